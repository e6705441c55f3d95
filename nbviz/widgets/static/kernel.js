// Whether a widget's kernel is there: from what its host says, and from the kernel's heartbeat.

// ms without a heartbeat, which comes every 200; longer once a silence was a false alarm
const SILENCE = [450, 4000];
const GONE = ["dead", "terminating", "restarting", "autorestarting"];

/** @import { Manager } from "./shared.js" */

/** @template T
 * @typedef {{connect(slot: (sender: unknown, value: T) => void): void,
 *   disconnect(slot: (sender: unknown, value: T) => void): void}} Signal */

/** A message from the kernel; only what is read here.
 * @typedef {{content?: {transient?: {display_id?: string}}}} Message */

/** A connection to a kernel: JupyterLab's, or another host's with fewer members.
 * @typedef {object} Kernel
 * @property {string} [status]
 * @property {string} [connectionStatus]
 * @property {boolean} [isDisposed]
 * @property {Signal<unknown>} [statusChanged]
 * @property {Signal<unknown>} [connectionStatusChanged]
 * @property {Signal<unknown>} [disposed]
 * @property {Signal<Message>} [iopubMessage] */

/** Follow a widget's kernel.
 * @param {Manager} manager
 * @param {() => void} changed called when the values below may have changed */
export function followKernel(manager, changed) {
  const kernel = manager.kernel;
  let heardAt = 0;
  let silent = false;
  let patience = SILENCE[0];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const check = () => {
    const left = heardAt + patience - performance.now();
    if (left > 0) timer = setTimeout(check, left);
    // Messages that came while the page itself was busy are handled first.
    else
      timer = setTimeout(() => {
        timer = undefined;
        if (performance.now() - heardAt < patience) return check();
        silent = true;
        changed();
      });
  };
  const heard = (/** @type {unknown} */ _, /** @type {Message} */ message) => {
    if (!heardAt && message.content?.transient?.display_id !== "nbviz-alive") return; // it may never send one
    heardAt = performance.now();
    timer ??= setTimeout(check);
    if (silent) {
      silent = false;
      patience = Math.min(2 * patience, SILENCE[1]); // the kernel was only slow, or far away
      changed();
    }
  };
  const signals = [
    kernel?.statusChanged,
    kernel?.connectionStatusChanged,
    kernel?.disposed,
    manager.context?.sessionContext?.kernelChanged,
  ];
  for (const signal of signals) signal?.connect(changed);
  kernel?.iopubMessage?.connect(heard);
  return {
    known: Boolean(kernel),
    hears: Boolean(kernel?.iopubMessage),
    busy: () => kernel?.status === "busy",
    silent: () => silent || (!!kernel && kernel.connectionStatus !== "connected"),
    gone: () =>
      !!kernel && (manager.kernel !== kernel || !!kernel.isDisposed || GONE.includes(kernel.status ?? "unknown")),
    end: () => {
      clearTimeout(timer);
      for (const signal of signals) signal?.disconnect(changed);
      kernel?.iopubMessage?.disconnect(heard);
    },
  };
}
