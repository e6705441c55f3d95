// The line on top: which model, what the last change cost, whether the kernel is at work; errors and notes below it.
// It also asks the kernel for the next chunk once the page has painted the last.

import { followKernel } from "./kernel.js";
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
 * @property {string} code
 * @property {string[]} controls
 * @property {number} chunk
 * @property {number} painted
 * @property {boolean} hears */

/** @typedef {ReturnType<typeof setTimeout> | undefined} Timer */

const PATIENCE = 400; // ms after which an unanswered control is said to wait
const MOVED = ["value", "index", "picture", "off", "box", "boxes", "mask"].map((name) => `change:${name}`).join(" ");
const SLOW = 300; // ms after which it is said that the kernel works, and old pictures are dimmed: most are drawn sooner

/** @param {string} text */
function copyOld(text) {
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

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
      else copyOld(model.get("code")); // a page that did not come over https or from this machine
      code.textContent = "Copied";
      setTimeout(() => {
        code.textContent = "Copy code";
      }, 1500);
    },
  });
  const error = make("div", { className: "nbviz-error", role: "alert" });
  const note = make("div", { className: "nbviz-note" });
  el.classList.add("nbviz-header");
  el.append(
    make("div", { className: "nbviz-bar" }, title, info, make("span", { className: "nbviz-space" }), cost, code, state),
    error,
    note,
  );

  const show = () => {
    title.textContent = model.get("title");
    info.textContent = model.get("info");
    cost.textContent = model.get("cost");
    error.textContent = model.get("error");
    error.hidden = !model.get("error");
    note.textContent = model.get("note");
    note.hidden = !model.get("note");
    code.hidden = !model.get("code");
  };
  /** The header's own model, of which the host says whether its kernel still knows it.
   * @type {Model<object> | undefined} */
  let own;
  let unanswered = false; // a control has moved, and the kernel has not said a word since
  let slow = false; // it has been at work for a while
  const gone = () => own?.comm_live === false && (wasLive || unanswered);
  /** Say what is true now. */
  function tell() {
    const told = model.get("state");
    const lost = kernel.gone() || gone();
    let text = told;
    if (lost) text = "no kernel: run the cell again";
    else if (kernel.silent()) text = "no kernel answers";
    else if (unanswered) text = kernel.busy() ? "waiting: a cell is running" : "waiting: the kernel is busy";
    el.dataset.state = text.split(":")[0].replace(" answers", "");
    if (text !== "working" || slow || state.dataset.state !== "ready") {
      state.textContent = text;
      state.dataset.state = el.dataset.state;
    }
    // Of a change that waits, it is not known what it changes.
    dim(lost || kernel.silent() || el.dataset.state === "waiting");
  }
  // Not by a CSS transition with a delay: the page would draw frames all the while, and take the kernel's time.
  /** Dim what is of an earlier state, or all of it. @param {boolean} all */
  function dim(all) {
    /** @type {HTMLElement | null} */
    const root = el.closest(".nbviz");
    const stale = model.get("stale");
    const dimmed = (root?.dataset.stale ?? "").split(" ").filter((part) => stale.includes(part));
    if (!root) return;
    const now = slow ? stale : dimmed;
    root.dataset.stale = all ? "all" : now.join(" ");
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
        tell();
      }, SLOW);
    tell();
  };
  // A control that moved in the page, with no word from the kernel: it is busy with a cell, or far away.
  const moved = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      unanswered = true;
      tell();
    }, PATIENCE);
  };
  const kernel = followKernel(model.widget_manager, tell);
  model.on("comm_live_update", tell);
  /** @type {Model<object>[]} */
  const controls = [];
  let wasLive = kernel.known; // a saved page that never had a kernel shows what was saved: no less for that
  model.get("controls").forEach(async (reference, i) => {
    /** @type {Model<object>} */
    const control = await referred(model, reference);
    if (ended) return;
    if (i === 0) {
      own = control;
      wasLive ||= own.comm_live !== false;
      tell();
    } else {
      controls.push(control);
      control.on(MOVED, moved);
    }
  });

  /** The cell was run again, and the models go, with all views of them: what is on the screen stays as a still
   * picture. */
  const keep = () => {
    /** @type {HTMLElement | null} */
    let root = el.closest(".nbviz");
    for (let outer = root; outer; outer = outer.parentElement?.closest(".nbviz") ?? null) root = outer;
    if (!root?.isConnected || root.dataset.kept || !model.get("state").startsWith("closed")) return;
    root.dataset.kept = "true"; // of its headers one is enough
    const still = /** @type {HTMLElement} */ (root.cloneNode(true));
    // What a clone lacks.
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
    const output = root.closest(".jp-OutputArea-output"); // which JupyterLab hides with the view
    if (output) output.after(make("div", { className: output.className }, still));
    else root.after(still);
  };
  model.on("comm:close", keep);

  const painted = async () => {
    const chunk = model.get("chunk");
    // After the views have heard of the chunk, which may be later than this one, and have drawn it.
    await new Promise((done) => setTimeout(done));
    await Promise.all(page.drawing);
    // Twice: the first callback comes before the frame that shows the chunk, the second after it.
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
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
    follow(model, ["title", "info", "cost", "error", "note", "code"], show),
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
    model.off("comm_live_update", tell);
    model.off("comm:close", keep);
    end();
    for (const control of controls) control.off(MOVED, moved);
  };
}

export default { render };
