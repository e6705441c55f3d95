// Shared by all views. In the page, each view is a single module: Python joins it with the modules that it imports, and
// leaves out "import" and "export" between them (see view.py).

/** The model of a view or a control, as the host provides it. T has the type of each trait.
 * @template {object} T
 * @typedef {object} Model
 * @property {<K extends keyof T & string>(name: K) => T[K]} get
 * @property {<K extends keyof T & string>(name: K, value: T[K]) => void} set
 * @property {() => void} save_changes
 * @property {(events: string, callback: () => void) => void} on
 * @property {(events: string, callback: () => void) => void} off
 * @property {Manager} widget_manager
 * @property {boolean} [comm_live] whether the kernel still knows it; not every host says so */

/** The host's widget manager. Some have their kernel.
 * @typedef {object} Manager
 * @property {<T extends object>(id: string) => Promise<Model<T>>} get_model
 * @property {import("./kernel.js").Kernel | null} [kernel]
 * @property {{sessionContext?: {kernelChanged?: import("./kernel.js").Signal<unknown>}}} [context] */

/** A slider, as views read it.
 * @typedef {{value: number, min: number, step: number | null}} Slider */

/** An array of bytes that the kernel has encoded (nbviz/imaging/encode.py).
 * @typedef {{shape: number[], data: DataView, deflated: boolean}} Encoded */

/** The state that all views of the page share.
 * @typedef {EventTarget & PageState} Page
 * @typedef {object} PageState
 * @property {Set<Promise<void>>} drawing drawing that is not yet finished
 * @property {HTMLCanvasElement} [native] the canvas on which tiles are coloured before they are scaled
 * @property {import("./paint.js").Shader | null} [shader] null where WebGL is no use
 * @property {boolean} [forceShader] set by tests, to use it even where it is slower than the table */

/** The messages that views of one widget exchange without the kernel, by the name of the event.
 * @typedef {{cmap: string, contrast: number, opacity: number, order: Order, scale: Scale, columns: number}} Messages */

/** @typedef {"index" | "strongest" | "spread" | "redundant"} Order */
/** @typedef {"each" | "shared"} Scale */

const host = /** @type {typeof globalThis & {__nbviz_page?: Page}} */ (globalThis);
if (!host.__nbviz_page) {
  host.__nbviz_page = Object.assign(new EventTarget(), { drawing: new Set() });
  // Before JupyterLab's own listener, which is the document's.
  host.window?.addEventListener("keydown", keepKey, true);
}
export const page = host.__nbviz_page;

/** A key pressed in a widget is the widget's: JupyterLab and Notebook 7 would run, delete or leave the cell. They look
 * for this attribute on the focused element alone. Ctrl+S still saves. Where there is no text to undo, the browser would
 * undo what was last typed elsewhere in the page. @param {KeyboardEvent} event */
function keepKey(event) {
  const { target, key, ctrlKey, metaKey } = event;
  if (!(target instanceof Element && target.closest(".nbviz"))) return;
  const command = ctrlKey || metaKey ? key.toLowerCase() : "";
  target.toggleAttribute("data-lm-suppress-shortcuts", command !== "s");
  const writes = target.matches("input:not([type=range]), textarea, [contenteditable=true]");
  if (!writes && (command === "z" || command === "y")) event.preventDefault();
}

/** An element with properties and children. Text is always text, never HTML.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Record<string, unknown>} [properties] @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]} */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.includes("-")) Reflect.set(element, name, value);
    else element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/** A line that is not seen, and that screen readers read aloud when it has been the same for a moment. */
export function announcer() {
  const line = make("div", { className: "nbviz-unseen", role: "status", "aria-live": "polite" });
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  return {
    line,
    /** @param {string} text */
    say(text) {
      clearTimeout(timer);
      timer = setTimeout(() => {
        line.textContent = text;
      }, 300);
    },
  };
}

/** A canvas's drawing context, which a WebGL canvas would not have. @param {HTMLCanvasElement} canvas */
export const context2d = (canvas) => /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));

/** Bytes that came from the kernel.
 * @param {DataView | undefined} view @returns {Uint8Array<ArrayBuffer>} a view of the same memory */
export const bytes = (view) =>
  view ? new Uint8Array(/** @type {ArrayBuffer} */ (view.buffer), view.byteOffset, view.byteLength) : new Uint8Array();

/** Float32 numbers that came from the kernel (copied: their offset may not be a multiple of 4).
 * @param {DataView} view */
export const floats = (view) => new Float32Array(bytes(view).slice().buffer);

/** Decode pixels from the kernel.
 * @param {Pick<Encoded, "data" | "deflated">} encoded */
export async function inflate({ data, deflated }) {
  if (!deflated) return bytes(data);
  const stream = new Blob([bytes(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Do asynchronous work one after the other; the header waits for it before it asks for the next chunk. */
export function inTurn() {
  let last = Promise.resolve();
  return (/** @type {() => Promise<void>} */ work) => {
    const done = last.then(work).catch((error) => console.error(error));
    last = done;
    page.drawing.add(done);
    done.then(() => page.drawing.delete(done));
  };
}

/** The model that a trait refers to.
 * @template {object} T
 * @param {{widget_manager: Manager}} model @param {string} reference @returns {Promise<Model<T>>} */
export const referred = (model, reference) => model.widget_manager.get_model(reference.replace("IPY_MODEL_", ""));

/** Send a message to the other views of a widget.
 * @template {keyof Messages} K
 * @param {{get(name: "group"): string}} model @param {K} name @param {Messages[K]} value */
export const tell = (model, name, value) =>
  page.dispatchEvent(new CustomEvent(name, { detail: { group: model.get("group"), value } }));

/** Receive messages from the other views of the widget; returns a function that ends it.
 * @template {keyof Messages} K
 * @param {{get(name: "group"): string}} model @param {K} name @param {(value: Messages[K]) => void} use */
export function hear(model, name, use) {
  const listener = (/** @type {Event} */ event) => {
    const { detail } = /** @type {CustomEvent<{group: string, value: Messages[K]}>} */ (event);
    if (detail.group === model.get("group")) use(detail.value);
  };
  page.addEventListener(name, listener);
  return () => page.removeEventListener(name, listener);
}

/** A setting that all views of a widget share. The page shows a change at once in all of them; once it is settled, the
 * kernel has it too, for figures and the copied code.
 * @template {keyof Messages} K
 * @param {Model<any>} model @param {K} name @param {() => void} use called after each change */
export function setting(model, name, use) {
  /** @type {Messages[K]} */
  let value = model.get(name);
  /** @param {Messages[K]} next */
  const take = (next) => {
    if (next === value) return;
    value = next;
    use();
  };
  const came = () => take(model.get(name));
  model.on(`change:${name}`, came);
  const deaf = hear(model, name, take);
  return {
    get value() {
      return value;
    },
    /** @param {Messages[K]} next */
    move(next) {
      take(next);
      tell(model, name, next);
    },
    settle() {
      model.set(name, value);
      model.save_changes();
    },
    end() {
      model.off(`change:${name}`, came);
      deaf();
    },
  };
}

/** A dropdown of colour maps. @param {string[]} names @param {{value: string, move(value: string): void, settle(): void}} cmap */
export function colourMaps(names, cmap) {
  const options = names.map((name) => make("option", { value: name, textContent: name }));
  const select = make("select", { title: "Colour map", "aria-label": "Colour map" }, ...options);
  select.addEventListener("change", () => {
    cmap.move(select.value);
    cmap.settle();
  });
  return select;
}

/** A number with three significant digits. @param {number} value */
export const short = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

/** Run now, and whenever one of these traits changes; returns a function that ends it.
 * @template {object} T
 * @param {Model<T>} model @param {(keyof T & string)[]} names @param {() => void} callback */
export function follow(model, names, callback) {
  for (const name of names) model.on(`change:${name}`, callback);
  callback();
  return () => {
    for (const name of names) model.off(`change:${name}`, callback);
  };
}

/** A function that calls all of these. @param {(() => void)[]} ends */
export const together = (ends) => () => {
  for (const end of ends) end();
};

/** The place that a key moves to, among places in rows, perhaps beyond the ends; null for other keys.
 * @param {string} key @param {number} place @param {number} count @param {number} columns */
export function towards(key, place, count, columns) {
  /** @type {Record<string, number | undefined>} */
  const places = {
    ArrowLeft: place - 1,
    ArrowRight: place + 1,
    ArrowUp: place - columns,
    ArrowDown: place + columns,
    Home: 0,
    End: count - 1,
  };
  return places[key] ?? null;
}

/** A row of buttons; one of them is on.
 * @param {string} label @param {[string, string][]} options name and tooltip @param {(name: string) => void} choose */
export function choices(label, options, choose) {
  const buttons = options.map(([name, title]) =>
    make("button", { type: "button", textContent: name, title, onclick: () => choose(name) }),
  );
  const group = make("span", { className: "nbviz-choices", role: "group", "aria-label": label }, ...buttons);
  return {
    group,
    /** @param {string} name */
    show(name) {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
    },
    /** Hide an option while it would do nothing. @param {string} name @param {boolean} works */
    offer(name, works) {
      for (const button of buttons) if (button.textContent === name) button.hidden = !works;
    },
  };
}
