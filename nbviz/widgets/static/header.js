// The line on top: which model, what the last change cost, whether the kernel is at work; errors and notes below it.
// It also asks the kernel for the next chunk once the page has painted the last.

const PATIENCE = 400; // ms after which an unanswered control is said to wait
const MOVED = ["value", "index", "picture", "off", "box", "boxes", "mask"].map((name) => `change:${name}`).join(" ");
const DIMMED_AFTER = 300; // ms: most changes are drawn sooner

/** @param {string} text */
function copyOld(text) {
  const area = /** @type {HTMLTextAreaElement} */ (make("textarea", { value: text }));
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  let waiting = 0;
  /** @type {any} */
  let dimming;
  let gone = false;
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
      setTimeout(() => (code.textContent = "Copy code"), 1500);
    },
  });
  const error = make("div", { className: "nbviz-error", role: "alert" });
  const note = make("div", { className: "nbviz-note" });
  el.classList.add("nbviz-header");
  el.append(make("div", { className: "nbviz-bar" }, title, info, make("span", { className: "nbviz-space" }), cost, code, state), error, note);

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
  /** @param {string} text */
  const say = (text) => {
    state.textContent = text;
    state.dataset.state = text.split(":")[0];
    el.dataset.state = state.dataset.state ?? "";
  };
  const answered = () => {
    clearTimeout(waiting);
    say(model.get("state"));
    const stale = model.get("stale");
    const dimmed = dim((/** @type {string} */ part) => stale.includes(part));
    // Not by a CSS transition with a delay: the page would draw frames all the while, and take the kernel's time.
    if (stale.some((/** @type {string} */ part) => !dimmed.includes(part))) dimming ||= setTimeout(dim, DIMMED_AFTER);
    if (!stale.length) dimming = clearTimeout(dimming);
  };
  /** Dim what is of an earlier state: no more than is dimmed already, or all of it. @param {any} [still] */
  function dim(still) {
    const root = /** @type {HTMLElement | null} */ (el.closest(".nbviz"));
    const dimmed = still ? (root?.dataset.stale ?? "").split(" ").filter(still) : model.get("stale");
    if (root) root.dataset.stale = dimmed.join(" ");
    if (!still) dimming = undefined;
    return dimmed;
  }
  // A control that moved in the page, with no word from the kernel: it is busy with a cell, or far away.
  const moved = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const alive = controls.every((control) => control.comm_live !== false);
      say(alive ? "waiting: the kernel is busy" : "no kernel: run the cell again");
    }, PATIENCE);
  };
  /** @type {any[]} */
  const controls = [];
  for (const reference of model.get("controls"))
    model.widget_manager.get_model(reference.replace("IPY_MODEL_", "")).then((control) => {
      if (gone) return;
      controls.push(control);
      control.on(MOVED, moved);
    });

  const painted = async () => {
    const chunk = model.get("chunk");
    // After the views have heard of the chunk, which may be later than this one, and have drawn it.
    await new Promise((done) => setTimeout(done));
    await Promise.all(page.drawing);
    // Twice: the first callback comes before the frame that shows the chunk, the second after it.
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        el.dataset.chunk = String(chunk);
        if (gone || chunk !== model.get("chunk") || chunk === model.get("painted")) return;
        model.set("painted", chunk);
        model.save_changes();
      }),
    );
  };
  const ends = [
    follow(model, ["title", "info", "cost", "error", "note", "code"], show),
    follow(model, ["state", "stale"], answered),
    follow(model, ["chunk"], () => {
      answered();
      painted();
    }),
  ];
  return () => {
    gone = true;
    clearTimeout(waiting);
    clearTimeout(dimming);
    ends.forEach((end) => end());
    controls.forEach((control) => control.off(MOVED, moved));
  };
}

export default { render };
