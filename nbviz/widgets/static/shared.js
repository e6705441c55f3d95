// Shared by all views: joined in front of each by Python, since a widget's module is one file.

/** @typedef {{get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *   on(event: string, callback: () => void): void, off(event: string, callback: () => void): void,
 *   widget_manager: {get_model(id: string): Promise<any>}}} Model */

/** What the views of one widget tell each other without the kernel (colour map, contrast), and what all views of the
 * page share. */
const page = (globalThis.__nbviz_page ??= Object.assign(new EventTarget(), { drawing: new Set() }));

/** An element with properties and children. Text is always text, never HTML.
 * @param {string} tag @param {Record<string, any>} [properties] @param {(Node | string)[]} children */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.includes("-")) /** @type {any} */ (element)[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Bytes that came from the kernel. @param {DataView | undefined} view */
const bytes = (view) =>
  view ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array();

/** Float32 numbers that came from the kernel (copied: their offset may not be a multiple of 4). @param {DataView} view */
const floats = (view) => new Float32Array(bytes(view).slice().buffer);

/** Pixels that the kernel has encoded. Until they are drawn, the page does not ask for more.
 * @param {{data: DataView, deflated: boolean}} encoded */
async function inflate({ data, deflated }) {
  if (!deflated) return bytes(data);
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Do asynchronous work one after the other; the header waits for it before it asks for more. */
function inTurn() {
  let last = Promise.resolve();
  return (/** @type {() => Promise<void>} */ work) => {
    const done = (last = last.then(work).catch((error) => console.error(error)));
    page.drawing.add(done);
    done.then(() => page.drawing.delete(done));
  };
}

/** Tell the other views of a widget. @param {Model} model @param {string} name @param {any} value */
const tell = (model, name, value) =>
  page.dispatchEvent(new CustomEvent(name, { detail: { group: model.get("group"), value } }));

/** Hear what another view of the widget tells; gives the function that ends it.
 * @param {Model} model @param {string} name @param {(value: any) => void} use */
function hear(model, name, use) {
  const listener = (/** @type {any} */ event) => {
    if (event.detail.group === model.get("group")) use(event.detail.value);
  };
  page.addEventListener(name, listener);
  return () => page.removeEventListener(name, listener);
}

/** A colour map as 256 packed RGBA pixels. @param {DataView} table */
function palette(table) {
  const rgb = bytes(table);
  const packed = new Uint32Array(256);
  for (let i = 0; i < 256; i++)
    packed[i] = 0xff000000 | (rgb[3 * i + 2] << 16) | (rgb[3 * i + 1] << 8) | rgb[3 * i];
  return packed;
}

/** Three significant digits, as a person writes them. @param {number} value */
const short = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

/** Run now and whenever one of the model's traits changes; gives the function that ends it.
 * @param {Model} model @param {string[]} names @param {() => void} callback */
function follow(model, names, callback) {
  for (const name of names) model.on(`change:${name}`, callback);
  callback();
  return () => names.forEach((name) => model.off(`change:${name}`, callback));
}

/** What one curve, or each of three, is drawn in. */
const CURVES = ["#e53935", "#43a047", "#1e88e5"];

/** A signal's channels as curves in a box. Where samples are more than pixels, each column of these has the lowest
 * and the highest of its samples.
 * @param {CanvasRenderingContext2D} context @param {{x: number, y: number, width: number, height: number}} box
 * @param {Uint8Array} data L samples of so many channels @param {number} channels
 * @param {(byte: number) => number} level from 0, the bottom, to 1
 * @param {number | null} base the level from which it is filled; null draws a line
 * @param {((byte: number) => string) | null} colour by the value; null by the channel */
function curves(context, { x, y, width, height }, data, channels, level, base, colour) {
  const length = data.length / channels;
  const columns = Math.max(1, Math.min(length, Math.round(width)));
  const step = width / columns;
  const at = (/** @type {number} */ share) => y + (1 - Math.min(1, Math.max(0, share))) * height;
  for (let c = 0; c < channels; c++) {
    context.fillStyle = context.strokeStyle = channels === 1 ? CURVES[2] : CURVES[c];
    context.lineWidth = Math.max(1, height / 60);
    context.lineJoin = "round";
    context.beginPath();
    for (let i = 0; i < columns; i++) {
      let [low, high] = [255, 0];
      for (let s = Math.floor((i * length) / columns); s < Math.floor(((i + 1) * length) / columns); s++) {
        const byte = data[s * channels + c];
        low = Math.min(low, byte);
        high = Math.max(high, byte);
      }
      const [bottom, top] = [at(level(low)), at(level(high))];
      if (base === null) {
        context.lineTo(x + (i + 0.5) * step, bottom);
        if (low < high) context.lineTo(x + (i + 0.5) * step, top);
        continue;
      }
      if (colour) context.fillStyle = colour(high);
      const [from, to] = [Math.min(top, at(base)), Math.max(bottom, at(base))];
      context.fillRect(x + i * step, from, step + 0.02, to - from);
    }
    if (base === null) context.stroke();
  }
}

/** A row of buttons of which one is on. @param {string} label @param {[string, string][]} options name and tooltip
 * @param {(name: string) => void} choose */
function choices(label, options, choose) {
  const buttons = options.map(([name, title]) =>
    make("button", { type: "button", textContent: name, title, onclick: () => choose(name) }),
  );
  const group = make("span", { className: "nbviz-choices", role: "group", "aria-label": label }, ...buttons);
  return {
    group,
    /** @param {string} name */
    show: (name) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === name))),
  };
}
