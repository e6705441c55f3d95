// Rows of pictures with captions. Contrast, opacity and colour map need no kernel.

import { covering } from "./box.js";
import { css, curves, imageOf, PLAIN, palette, tones } from "./pixels.js";
import { bytes, colourMaps, context2d, follow, inflate, inTurn, make, setting, together } from "./shared.js";

/** @import { Box, Size } from "./box.js" */
/** @import { Encoded, Model } from "./shared.js" */

/** @typedef {{slot: string, crop?: boolean}} Cell */

/** The description of a slot's pixels.
 * @typedef {{part_drawn: string, key: string, caption?: string, part?: string, box?: Box, inner?: Box, size?: Size,
 *   mark?: boolean}} Label */

/** @typedef {Encoded | {shape?: undefined}} Sent an array, or nothing yet */

/** @typedef {object} Own
 * @property {{title: string, cells: Cell[]}[]} rows
 * @property {string[]} controls
 * @property {Record<string, DataView>} tables
 * @property {string} group
 * @property {string} cmap
 * @property {number} contrast
 * @property {number} opacity
 * @property {string} note
 * @property {boolean} plots
 * @property {Record<string, string>} current */

/** Four traits for each slot.
 * @typedef {Record<`slot_${string}`, ({kind: Kind | "overlay"} & Encoded) | {shape?: undefined}>
 *   & Record<`over_${string}` | `patch_${string}`, Sent> & Record<`label_${string}`, Label>} Slots */

/** @typedef {Own & Slots} Traits */

/** @typedef {"picture" | "map" | "signed"} Kind */

/** @typedef {{shape: number[], pixels: Uint8Array}} Pixels */

/** A slot's contents, decoded.
 * @typedef {{source: Sent, kind: Kind | "overlay", own: Pixels, over: Pixels | null, patch: Pixels | null,
 *   label: Label}} Filled */

/** How a picture's bytes become tones. @param {Kind} kind @param {Uint32Array} table @param {number} contrast */
export function tonesOf(kind, table, contrast) {
  if (kind === "map") return { steps: PLAIN.steps, packed: table };
  return kind === "signed" ? tones((byte) => 128 + (byte - 128) * contrast) : PLAIN;
}

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  const cmap = setting(model, "cmap", () => drawAll());
  const contrast = setting(model, "contrast", () => drawAll());
  const opacity = setting(model, "opacity", () => drawAll());
  const native = document.createElement("canvas");

  /** @param {HTMLCanvasElement} canvas @param {ImageData} image */
  function put(canvas, image, box = [0, 0, image.height, image.width]) {
    const [top, left, bottom, right] = box;
    canvas.width = right - left;
    canvas.height = bottom - top;
    const context = context2d(canvas);
    context.putImageData(image, -left, -top);
    return context;
  }

  const plots = model.get("plots");
  /** Draw a signal, or a part of it. @param {HTMLCanvasElement} canvas @param {Pixels} source
   * @param {Kind} kind @param {Uint32Array} table @param {Box} [box] */
  function plot(canvas, { shape, pixels }, kind, table, box) {
    const channels = shape[2];
    [canvas.width, canvas.height] = [384, 192];
    const context = context2d(canvas);
    const place = { x: 0, y: 0, width: canvas.width, height: canvas.height };
    const own = box ? pixels.subarray(box[1] * channels, box[3] * channels) : pixels;
    const level = (/** @type {number} */ q) => (kind === "signed" ? 128 + (q - 128) * contrast.value : q) / 255;
    const base = kind === "map" ? 0 : kind === "signed" && channels === 1 ? 128 / 255 : null;
    const ink = (/** @type {number} */ q) => css(table[q]);
    context.fillStyle = "rgba(128,128,128,0.12)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (kind === "signed" && base === null) {
      context.fillStyle = "rgba(128,128,128,0.6)";
      context.fillRect(0, canvas.height * (1 - 128 / 255), canvas.width, 1);
    }
    curves(context, place, own, channels, level, base, kind === "map" ? ink : null);
  }

  /** @type {{cell: Cell, canvas: HTMLCanvasElement, marks: HTMLElement[], figure: HTMLElement,
   *   caption: HTMLElement}[]} */
  const cells = [];
  /** @type {Record<string, Filled | undefined>} */
  const slots = {};

  /** @param {typeof cells[number]} place */
  function draw({ cell, canvas, marks, figure, caption }) {
    const slot = slots[cell.slot];
    figure.hidden = !slot;
    if (!slot) return;
    const { kind, own, over, patch, label } = slot;
    const table = palette(bytes(model.get("tables")[cmap.value]));
    const plain = kind === "map" || kind === "signed" ? kind : "picture";
    const source = (cell.crop && patch) || own;
    const box = cell.crop && !patch ? label.inner : undefined;
    if (plots) plot(canvas, source, plain, table, box);
    const context = plots
      ? null
      : put(canvas, imageOf(source.pixels, source.shape, tonesOf(plain, table, contrast.value)), box);
    if (over && context) {
      const [height, width, channels = 1] = over.shape;
      const colours = tonesOf(over.shape.length === 3 ? "picture" : "map", table, 1);
      put(native, imageOf(over.pixels, [height, width, channels], colours));
      context.globalAlpha = opacity.value;
      context.imageSmoothingQuality = "high";
      context.drawImage(native, 0, 0, canvas.width, canvas.height);
    }
    canvas.style.imageRendering = canvas.width <= 64 ? "pixelated" : "auto";
    const { box: outer, inner, size } = label;
    const boxes =
      !cell.crop && label.mark && kind === "picture" ? [outer, String(inner) !== String(outer) && inner] : [];
    marks.forEach((mark, i) => {
      mark.hidden = !boxes[i];
      if (boxes[i] && size) mark.style.cssText = covering(boxes[i], size);
    });
    caption.textContent = (cell.crop && label.part) || label.caption || "";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption.textContent || cell.slot);
    figure.dataset.key = label.key;
    figure.dataset.part = label.part_drawn;
    dim();
  }
  /** @type {(() => void)[]} */
  const shown = []; // what shows a setting
  const drawAll = () => {
    for (const place of cells) draw(place);
    for (const show of shown) show();
  };
  /** What a setting changes: where there is none of it, its control is hidden.
   * @type {Record<"cmap" | "contrast" | "opacity", (slot: Filled) => boolean>} */
  const changes = {
    cmap: ({ kind, over }) => kind === "map" || over?.shape.length === 2,
    contrast: ({ kind }) => kind === "signed",
    opacity: ({ over }) => over !== null,
  };
  /** @param {HTMLElement} control @param {keyof typeof changes} name */
  const hideIdle = (control, name) => {
    control.hidden = !Object.values(slots).some((slot) => slot && changes[name](slot));
  };
  /** Dim the pictures that show an earlier state. */
  const dim = () => {
    for (const { figure } of cells)
      figure.classList.toggle("nbviz-old", figure.dataset.key !== model.get("current")[figure.dataset.part ?? ""]);
  };

  const next = inTurn();
  /** @type {Set<string>} */
  const queued = new Set();
  /** @param {string} slot */
  function receive(slot) {
    if (queued.has(slot)) return; // another of its traits has changed too
    queued.add(slot);
    next(async () => {
      queued.delete(slot);
      const [own, over, patch] = [model.get(`slot_${slot}`), model.get(`over_${slot}`), model.get(`patch_${slot}`)];
      const label = model.get(`label_${slot}`);
      if (!own.shape) return;
      const before = slots[slot];
      const pixels = own === before?.source ? before.own.pixels : await inflate(own);
      const above = over.shape ? { shape: over.shape, pixels: await inflate(over) } : null;
      const part = patch.shape ? { shape: patch.shape, pixels: await inflate(patch) } : null;
      slots[slot] = { source: own, kind: own.kind, own: { shape: own.shape, pixels }, over: above, patch: part, label };
      for (const place of cells) if (place.cell.slot === slot) draw(place);
      for (const show of shown) show();
    });
  }

  el.classList.add("nbviz-panels");
  for (const row of model.get("rows")) {
    if (row.title) el.append(make("div", { className: "nbviz-caption", textContent: row.title }));
    const line = make("div", { className: "nbviz-row" });
    line.style.setProperty("--columns", String(row.cells.length));
    for (const cell of row.cells) {
      const canvas = make("canvas");
      const marks = ["nbviz-mark", "nbviz-mark nbviz-inner"].map((name) =>
        make("div", { className: name, hidden: true }),
      );
      const caption = make("figcaption");
      const figure = make(
        "figure",
        { "data-slot": cell.slot, hidden: true },
        make("div", {}, canvas, ...marks),
        caption,
      );
      cells.push({ cell, canvas, marks, figure, caption });
      line.append(figure);
    }
    el.append(line);
  }

  /** A slider of a setting; ``to`` and ``from`` are the slider's scale and its inverse.
   * @param {"contrast" | "opacity"} name @param {string} title @param {number} max
   * @param {(value: number) => number} [to] @param {(value: number) => number} [from] */
  const slider = (name, title, max, to = (value) => value, from = to) => {
    const of = { contrast, opacity }[name];
    const value = to(of.value);
    const input = make("input", { type: "range", min: 0, max, step: "any", value, title, "aria-label": name });
    input.addEventListener("input", () => of.move(from(Number(input.value))));
    input.addEventListener("change", of.settle);
    const control = make("label", { title }, name, input);
    shown.push(() => {
      input.value = String(to(of.value));
      hideIdle(control, name);
    });
    return control;
  };
  const controls = model.get("controls");
  const bar = make("div", { className: "nbviz-bar nbviz-right" });
  if (controls.includes("cmap")) {
    const select = colourMaps(Object.keys(model.get("tables")), cmap);
    shown.push(() => {
      select.value = cmap.value;
      hideIdle(select, "cmap");
    });
    bar.append(select);
  }
  if (controls.includes("contrast"))
    bar.append(slider("contrast", "Contrast of what is grey at zero, from 1× to 16×", 4, Math.log2, (x) => 2 ** x));
  if (controls.includes("opacity")) bar.append(slider("opacity", "Opacity of the map over the picture", 1));
  const note = make("div", { className: "nbviz-note" });
  el.append(bar, note);

  const ends = [
    ...[cmap, contrast, opacity].map(({ end }) => end),
    ...cells.map(({ cell: { slot } }) =>
      follow(model, [`slot_${slot}`, `over_${slot}`, `patch_${slot}`, `label_${slot}`], () => receive(slot)),
    ),
    follow(model, ["current"], dim),
    follow(model, ["note"], () => {
      note.textContent = model.get("note");
      note.hidden = !model.get("note");
    }),
  ];
  return together(ends);
}

export default { render };
