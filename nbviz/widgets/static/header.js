// The top line: the model, the cost of the last change, the state of the kernel; below it errors and notes.
// It also asks the kernel for the next chunk of work once the page has painted the last.

import { followKernel } from "./kernel.js";
import { nameHandles } from "./names.js";
import { context2d, follow, make, page, referred, together } from "./shared.js";

/** @import { Model } from "./shared.js" */

/** @typedef {object} Traits
 * @property {string} title
 * @property {string} info
 * @property {string} cost
 * @property {string} state
 * @property {string[]} stale
 * @property {string} error
 * @property {string} note
 * @property {string} warning
 * @property {string} code
 * @property {string[]} controls
 * @property {number} chunk
 * @property {number} painted
 * @property {boolean} hears */

/** @typedef {ReturnType<typeof setTimeout> | undefined} Timer */

const PATIENCE = 400; // ms until the header says that an unanswered control waits
const MOVED = ["value", "index", "picture", "off", "box", "boxes", "mask"].map((name) => `change:${name}`).join(" ");
const SLOW = 300; // ms until the header says "working" and old pictures are dimmed: most are replaced sooner

/** @param {string} text */
function copyWithoutClipboard(text) {
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** The widget that a widget is a part of. @param {HTMLElement} root @returns {HTMLElement | null} */
const around = (root) => root.parentElement?.closest(".nbviz") ?? null;

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  /** @type {Timer} */
  let waiting;
  /** @type {Timer} */
  let slowing;
  let ended = false;
  const title = make("strong");
  const info = make("span", { className: "nbviz-info" });
  const cost = make("span", { className: "nbviz-cost" });
  const state = make("span", { className: "nbviz-state", role: "status" });
  const code = make("button", {
    type: "button",
    className: "nbviz-link",
    textContent: "Copy code",
    title: "Copy the call that gives this view",
    onclick: async () => {
      if (navigator.clipboard) await navigator.clipboard.writeText(model.get("code"));
      else copyWithoutClipboard(model.get("code")); // which pages lack that did not come over https or from this machine
      code.textContent = "Copied";
      setTimeout(() => {
        code.textContent = "Copy code";
      }, 1500);
    },
  });
  const error = make("div", { className: "nbviz-error", role: "alert" });
  const warning = make("div", { className: "nbviz-note nbviz-warning" });
  const note = make("div", { className: "nbviz-note" });
  el.classList.add("nbviz-header");
  el.append(
    make("div", { className: "nbviz-bar" }, title, info, make("span", { className: "nbviz-space" }), cost, code, state),
    error,
    warning,
    note,
  );

  const show = () => {
    title.textContent = model.get("title");
    info.textContent = model.get("info");
    cost.textContent = model.get("cost");
    error.textContent = model.get("error");
    error.hidden = !model.get("error");
    warning.textContent = model.get("warning");
    warning.hidden = !model.get("warning");
    note.textContent = model.get("note");
    note.hidden = !model.get("note");
    code.hidden = !model.get("code");
  };
  /** The header's own model; the host says whether its kernel still knows it.
   * @type {Model<object> | undefined} */
  let own;
  let unanswered = false; // a control has moved, and the kernel has not answered
  let slow = false; // the kernel has been at work for a while
  const gone = () => own?.comm_live === false && (wasLive || unanswered);
  /** Whether this is a page that was saved, in which there never was a kernel. */
  const isCopy = () => own?.comm_live === false && !kernel.known;
  /** Show the present state. */
  function showState() {
    const lost = kernel.gone() || gone() || isCopy();
    let text = model.get("state");
    if (isCopy() && !wasLive) text = "no kernel: this is a saved page";
    else if (lost) text = "no kernel: run the cell again";
    else if (kernel.silent()) text = "no kernel answers";
    else if (unanswered) text = kernel.busy() ? "waiting: a cell is running" : "waiting: the kernel is busy";
    el.dataset.state = text.split(":")[0].replace(" answers", "");
    if (text !== "working" || slow || state.dataset.state !== "ready") {
      state.textContent = text;
      state.dataset.state = el.dataset.state;
    }
    // What a waiting change will alter is not known: dim everything.
    dim(lost || kernel.silent() || el.dataset.state === "waiting");
  }
  // Not a CSS transition with a delay: the page would draw frames all the while, and take time from the kernel.
  /** Dim the parts that show an earlier state, or all. @param {boolean} all */
  function dim(all) {
    /** @type {HTMLElement | null} */
    const root = el.closest(".nbviz");
    const stale = model.get("stale");
    const dimmed = (root?.dataset.stale ?? "").split(" ").filter((part) => stale.includes(part));
    if (!root) return;
    const now = slow ? stale : dimmed;
    root.dataset.stale = all ? "all" : now.join(" ");
    // Around it may be the explorer's tabs, which are as dead.
    for (let outer = around(root); outer; outer = around(outer)) outer.dataset.stale = all ? "all" : "";
    for (const drawn of /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll("[data-part]")))
      drawn.classList.toggle("nbviz-stale", !all && now.includes(drawn.dataset.part ?? ""));
  }
  const answered = () => {
    clearTimeout(waiting);
    unanswered = false;
    if (model.get("state") !== "working" && !model.get("stale").length) {
      clearTimeout(slowing);
      slowing = undefined;
      slow = false;
    } else
      slowing ||= setTimeout(() => {
        slow = true;
        showState();
      }, SLOW);
    showState();
  };
  // A control moved in the page, and the kernel does not answer: it runs a cell, or is far away.
  const moved = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      unanswered = true;
      showState();
    }, PATIENCE);
  };
  const kernel = followKernel(model.widget_manager, showState);
  model.on("comm_live_update", showState);
  /** @type {Model<object>[]} */
  const controls = [];
  let wasLive = kernel.known; // whether there was a kernel
  model.get("controls").forEach(async (reference, i) => {
    /** @type {Model<object>} */
    const control = await referred(model, reference);
    if (ended) return;
    if (i === 0) {
      own = control;
      wasLive ||= own.comm_live !== false;
      showState();
    } else {
      controls.push(control);
      control.on(MOVED, moved);
    }
  });

  /** The cell was run again, and the models and their views are closed: leave a still picture of the screen. */
  const keep = () => {
    /** @type {HTMLElement | null} */
    let root = el.closest(".nbviz");
    for (let outer = root; outer; outer = around(outer)) root = outer;
    if (!root?.isConnected || root.dataset.kept || !model.get("state").startsWith("closed")) return;
    root.dataset.kept = "true"; // one of its headers is enough
    const still = /** @type {HTMLElement} */ (root.cloneNode(true));
    // A clone lacks these.
    const canvases = still.querySelectorAll("canvas");
    root.querySelectorAll("canvas").forEach((from, i) => {
      if (from.width && from.height) context2d(canvases[i]).drawImage(from, 0, 0);
    });
    for (const tag of /** @type {("select" | "input")[]} */ (["select", "input"])) {
      const copies = still.querySelectorAll(tag);
      root.querySelectorAll(tag).forEach((from, i) => {
        copies[i].value = from.value;
      });
    }
    still.inert = true;
    const output = root.closest(".jp-OutputArea-output"); // JupyterLab hides it with the view
    if (output) output.after(make("div", { className: output.className }, still));
    else root.after(still);
  };
  model.on("comm:close", keep);

  /** @type {(() => void) | undefined} */
  let unname;
  /** The widget is in the page now. */
  function attached() {
    /** @type {HTMLElement | null} */
    const root = el.closest(".nbviz");
    if (unname || ended || !root) return;
    unname = nameHandles(root);
    showState();
  }
  const painted = async () => {
    const chunk = model.get("chunk");
    // Once the views, which may be notified after the header, have drawn the chunk.
    await new Promise((done) => setTimeout(done));
    await Promise.all(page.drawing);
    // Twice: the first callback comes before the frame that shows the chunk, the second after it.
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        attached();
        el.dataset.chunk = String(chunk);
        if (ended || chunk !== model.get("chunk")) return;
        if (chunk === model.get("painted") && model.get("hears") === kernel.hears) return;
        model.set("painted", chunk);
        model.set("hears", kernel.hears);
        model.save_changes();
      }),
    );
  };
  const end = together([
    follow(model, ["title", "info", "cost", "error", "note", "warning", "code"], show),
    follow(model, ["state", "stale"], answered),
    follow(model, ["chunk"], () => {
      answered();
      painted();
    }),
  ]);
  return () => {
    ended = true;
    clearTimeout(waiting);
    clearTimeout(slowing);
    kernel.end();
    unname?.();
    model.off("comm_live_update", showState);
    model.off("comm:close", keep);
    end();
    for (const control of controls) control.off(MOVED, moved);
  };
}

export default { render };
