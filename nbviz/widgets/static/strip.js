// The pictures to choose from, and the predictions for the chosen picture.

import { curves, imageOf } from "./pixels.js";
import { announcer, bytes, context2d, follow, inflate, inTurn, make, together, towards } from "./shared.js";

/** @import { Encoded, Model } from "./shared.js" */

/** Some of the pictures: pixels, or photographs that the browser decodes; empty until the page asks.
 * @typedef {(Encoded & {jpegs?: undefined}) | {shape: number[], jpegs: DataView[]} | {shape?: undefined}} Block */

/** @typedef {object} Own
 * @property {string} part
 * @property {string[]} names
 * @property {boolean} plot
 * @property {number} block
 * @property {number[]} wanted
 * @property {number} picture
 * @property {string} caption
 * @property {string} measure
 * @property {[string, number, number?][]} predictions label, probability, and perhaps the probability before a change */

/** @typedef {Own & Record<`block_${number}`, Block>} Traits */

/** The picture that a key moves to, at most the first or the last; null for other keys.
 * @param {string} key @param {number} place @param {number} count @param {number} columns */
export function walked(key, place, count, columns) {
  const to = towards(key, place, count, columns);
  return to === null ? null : Math.min(count - 1, Math.max(0, to));
}

/** A probability, or a value, in digits. @param {number} number @param {string} measure */
export const digits = (number, measure) =>
  measure === "value" ? String(Number(number.toPrecision(4))) : number.toFixed(2);

/** A prediction in words. @param {[string, number, number?]} row @param {string} [measure] */
export const spelled = ([label, now, before], measure = "probability") =>
  `${label} ${before === undefined ? "" : `${digits(before, measure)}, now `}${digits(now, measure)}`;

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-strip");
  const strip = make("div", { className: "nbviz-thumbs", role: "group", "aria-label": "Pictures" });
  const blocks = Array.from({ length: Math.ceil(model.get("names").length / model.get("block")) }, (_, i) => i);
  const table = make("div", { className: "nbviz-predictions", "data-part": model.get("part") });
  const spoken = announcer();
  el.append(
    make("div", { className: "nbviz-caption", textContent: "Picture" }),
    make("div", { className: "nbviz-pictures" }, strip, table),
    spoken.line,
  );

  /** @param {HTMLCanvasElement} canvas @param {Uint8Array} from @param {number[]} shape */
  function drawPixels(canvas, from, [h, w, channels]) {
    const plot = model.get("plot");
    [canvas.height, canvas.width] = plot ? [96, 192] : [h, w];
    const context = context2d(canvas);
    if (plot) {
      curves(context, { x: 0, y: 0, width: 192, height: 96 }, from, channels, (q) => q / 255, null, null);
      return;
    }
    context.putImageData(imageOf(from, [h, w, channels]), 0, 0);
    if (w <= 64) canvas.style.imageRendering = "pixelated";
  }
  const next = inTurn();
  /** Draw a block of pictures, if the kernel has sent it. @param {number} block */
  const draw = (block) =>
    next(async () => {
      const came = model.get(`block_${block}`);
      if (!came.shape) return;
      const [count, ...shape] = came.shape;
      const canvases = [...strip.querySelectorAll("canvas")].slice(block * model.get("block"));
      const pixels = came.jpegs ? new Uint8Array() : await inflate(came);
      const size = pixels.length / count;
      for (let i = 0; i < count; i++) {
        const canvas = canvases[i];
        if (came.jpegs) {
          const bitmap = await createImageBitmap(new Blob([bytes(came.jpegs[i])], { type: "image/jpeg" }));
          [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
          context2d(canvas).drawImage(bitmap, 0, 0);
        } else drawPixels(canvas, pixels.subarray(i * size, (i + 1) * size), shape);
        canvas.dataset.drawn = "true";
      }
    });

  // The buttons in view; a moment later, when scrolling has ended, the page asks for the pictures that they lack.
  /** @type {Set<Element>} */
  const inView = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let asking;
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) inView[isIntersecting ? "add" : "delete"](target);
    clearTimeout(asking);
    asking = setTimeout(ask, 100);
  });
  function ask() {
    const wanted = new Set(model.get("wanted"));
    const before = wanted.size;
    [...strip.children].forEach((button, i) => {
      const block = Math.floor(i / model.get("block"));
      if (inView.has(button) && !model.get(`block_${block}`).shape) wanted.add(block);
    });
    if (wanted.size === before) return;
    model.set("wanted", [...wanted]);
    model.save_changes();
  }

  const names = () => {
    seen.disconnect();
    inView.clear();
    strip.replaceChildren(
      ...model.get("names").map((name, i) => {
        const canvas = make("canvas", { width: 1, height: 1, "aria-hidden": "true" });
        if (model.get("plot")) canvas.style.aspectRatio = "2";
        const choose = () => {
          model.set("picture", i);
          model.save_changes();
        };
        const button = make("button", { type: "button", title: name, "aria-label": name, onclick: choose }, canvas);
        seen.observe(button);
        return button;
      }),
    );
    choice();
  };
  const choice = () =>
    strip.querySelectorAll("button").forEach((button, i) => {
      const chosen = i === model.get("picture");
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen ? 0 : -1; // one stop for the Tab key; arrow keys move on from there
    });
  strip.addEventListener("keydown", (event) => {
    const all = [...strip.querySelectorAll("button")];
    const at = all.indexOf(/** @type {HTMLButtonElement} */ (event.target));
    const across = Math.max(
      1,
      all.findIndex((button) => button.offsetTop > all[0].offsetTop),
    );
    const to = walked(event.key, at, all.length, across);
    if (at < 0 || to === null) return;
    all[to].focus();
    // The notebook would move to another cell.
    event.preventDefault();
    event.stopPropagation();
  });
  let drawn = false;
  const predictions = () => {
    const rows = model.get("predictions");
    if (drawn && rows.length)
      spoken.say(`${model.get("names")[model.get("picture")]}: ${spelled(rows[0], model.get("measure"))}`);
    drawn = rows.length > 0;
    table.classList.toggle("nbviz-values", model.get("measure") === "value");
    table.classList.toggle(
      "nbviz-compared",
      rows.some((row) => row.length > 2),
    );
    table.replaceChildren(
      ...(rows.length ? [make("div", { className: "nbviz-caption", textContent: model.get("caption") })] : []),
      ...rows.map(([label, probability, before]) => {
        const bar = make("span", { className: "nbviz-probability" });
        bar.style.width = `${Math.max(1, 30 * probability)}px`;
        const track = make("span", { className: "nbviz-track" }, bar);
        const measure = model.get("measure");
        let number = digits(probability, measure);
        if (before !== undefined) {
          const mark = make("span", { className: "nbviz-before", title: `before ${before.toFixed(3)}` });
          mark.style.left = `${30 * before - 1}px`;
          track.append(mark);
          number = `${digits(before, measure)} → ${number}`;
        }
        track.hidden = measure === "value"; // which has no ends to draw a bar between
        return make(
          "div",
          {},
          make("span", { className: "nbviz-label", textContent: label, title: label }),
          track,
          make("span", { className: "nbviz-number", textContent: number }),
        );
      }),
    );
  };
  const end = together([
    follow(model, ["names", "plot"], names),
    follow(model, ["picture"], choice),
    ...blocks.map((block) => follow(model, [`block_${block}`], () => draw(block))),
    follow(model, ["predictions", "caption"], predictions),
  ]);
  return () => {
    seen.disconnect();
    clearTimeout(asking);
    end();
  };
}

export default { render };
