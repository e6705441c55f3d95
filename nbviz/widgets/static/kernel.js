// Whether the kernel of a widget is there: as its host says, and by the sign of life that it gives to the page.

const SILENCE = [450, 4000]; // ms without a sign of life, of which the kernel gives one every 200; longer once that was wrong
const GONE = ["dead", "terminating", "restarting", "autorestarting"];

/** Follow a widget's kernel.
 * @param {any} manager the host's widget manager; some tell what kernel they have
 * @param {() => void} changed called when the answers below may be others */
function followKernel(manager, changed) {
  const kernel = manager.kernel;
  let heardAt = 0;
  let silent = false;
  let patience = SILENCE[0];
  /** @type {any} */
  let timer;
  const check = () => {
    const left = heardAt + patience - performance.now();
    if (left > 0) timer = setTimeout(check, left);
    // What came while the page itself was busy is heard first.
    else
      timer = setTimeout(() => {
        timer = undefined;
        if (performance.now() - heardAt < patience) return check();
        silent = true;
        changed();
      });
  };
  const heard = (/** @type {any} */ _, /** @type {any} */ message) => {
    if (!heardAt && message.content?.transient?.display_id !== "nbviz-alive") return; // it may never give one
    heardAt = performance.now();
    timer ??= setTimeout(check);
    if (silent) {
      silent = false;
      patience = Math.min(2 * patience, SILENCE[1]); // it was only slow, or far away
      changed();
    }
  };
  const signals = [kernel?.statusChanged, kernel?.connectionStatusChanged, kernel?.disposed, manager.context?.sessionContext?.kernelChanged];
  for (const signal of signals) signal?.connect(changed);
  kernel?.iopubMessage?.connect(heard);
  return {
    known: Boolean(kernel),
    hears: Boolean(kernel?.iopubMessage),
    busy: () => kernel?.status === "busy",
    silent: () => silent || (Boolean(kernel) && kernel.connectionStatus !== "connected"),
    gone: () => Boolean(kernel) && (manager.kernel !== kernel || kernel.isDisposed || GONE.includes(kernel.status)),
    end: () => {
      clearTimeout(timer);
      for (const signal of signals) signal?.disconnect(changed);
      kernel?.iopubMessage?.disconnect(heard);
    },
  };
}
