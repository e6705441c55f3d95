// Curves over one axis. A marker follows the slider, and a click on the curves moves it.

import { follow, make, referred, short, together } from "./shared.js";

/** @import { Model, Slider } from "./shared.js" */

/** y is null where there is no value.
 * @typedef {{name: string, x: number[], y: (number | null)[], dashed: boolean}} Curve */

/** @typedef {object} Traits
 * @property {string} part
 * @property {Curve[]} series
 * @property {string} title
 * @property {string} empty
 * @property {string} xlabel
 * @property {string} ylabel
 * @property {[number | null, number | null]} range
 * @property {string | null} slider */

const INKS = ["#1e88e5", "#e53935", "#43a047", "#8e24aa", "#fb8c00", "#6d4c41"];
const HEIGHT = 190;
const EDGE = { left: 46, right: 10, top: 8, bottom: 34 };

/** The strokes of a curve, in the plot and in its legend. @param {Pick<Curve, "dashed">} curve */
export const dashes = ({ dashed }) => (dashed ? "5 4" : "none");

/** An SVG element.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag @param {Record<string, string | number>} properties @param {(Node | string)[]} children */
function drawn(tag, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Round numbers within a range, about ``most`` of them, and no nearer to each other than ``least``.
 * @param {number} low @param {number} high @param {number} most @param {number} [least] */
export function ticks(low, high, most, least = 0) {
  const raw = Math.max((high - low) / most || 1, least);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw) ?? raw;
  /** @type {number[]} */
  const numbers = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    numbers.push(Number((i * step).toPrecision(12)));
  return numbers;
}

/** The axes: from units to pixels, and from a pixel to a unit of the x axis.
 * @param {Pick<Curve, "x" | "y">[]} series @param {[number | null, number | null]} range @param {number} width */
export function axes(series, [low, high], width) {
  const xs = series.flatMap((curve) => curve.x);
  const ys = series.flatMap((curve) => curve.y).filter((y) => y !== null);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let y0 = low ?? Math.min(...ys);
  let y1 = high ?? Math.max(...ys);
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
  const across = (/** @type {number} */ x) => EDGE.left + ((x - x0) / (x1 - x0 || 1)) * inner.width;
  const down = (/** @type {number} */ y) => EDGE.top + (1 - (y - y0) / (y1 - y0)) * inner.height;
  const back = (/** @type {number} */ px) => x0 + ((px - EDGE.left) / inner.width) * (x1 - x0);
  return { x0, x1, y0, y1, across, down, back };
}

/** The value of a curve nearest to x. @param {Pick<Curve, "x" | "y">} curve @param {number} x */
export function valueNear(curve, x) {
  let best = 0;
  curve.x.forEach((at, i) => {
    if (Math.abs(at - x) < Math.abs(curve.x[best] - x)) best = i;
  });
  return curve.y[best];
}

/** A curve as the path of an SVG element, with a gap where there is no value.
 * @param {Pick<Curve, "x" | "y">} curve @param {(x: number) => number} across @param {(y: number) => number} down */
export function pathOf({ x, y }, across, down) {
  let path = "";
  let gap = true;
  x.forEach((at, i) => {
    const value = y[i];
    if (value !== null) path += `${gap ? "M" : "L"}${across(at).toFixed(1)} ${down(value).toFixed(1)}`;
    gap = value === null;
  });
  return path;
}

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
async function render({ model, el }) {
  const reference = model.get("slider");
  /** @type {Model<Slider> | null} */
  const owner = reference ? await referred(model, reference) : null;
  const caption = make("div", { className: "nbviz-caption" });
  const svg = drawn("svg", { role: "img", height: HEIGHT });
  const legend = make("div", { className: "nbviz-legend" });
  const frame = make("div", { className: "nbviz-frame", "data-part": model.get("part") }, svg);
  el.classList.add("nbviz-plot");
  const empty = make("div", { className: "nbviz-empty" });
  el.append(caption, frame, legend, empty);
  /** The pointer's place in units of the x axis. @type {number | null} */
  let pointed = null;

  const wide = () => Math.max(frame.clientWidth, 160);
  const scales = () => axes(model.get("series"), model.get("range"), wide());

  function draw() {
    const series = model.get("series");
    // Without curves, what would give some, if there is something to say.
    for (const part of [caption, frame, legend]) part.hidden = !series.length;
    empty.textContent = series.length ? "" : model.get("empty");
    el.hidden = !series.length && !empty.textContent;
    caption.textContent = model.get("title");
    if (!series.length) return;
    const { x0, x1, y0, y1, across, down } = scales();
    const width = wide();
    svg.setAttribute("width", String(width));
    svg.setAttribute("aria-label", `${model.get("ylabel")} against ${model.get("xlabel")}`);
    /** @type {SVGElement[]} */
    const parts = [];
    for (const y of ticks(y0, y1, 4))
      parts.push(
        drawn("line", { class: "nbviz-rule", x1: EDGE.left, x2: width - EDGE.right, y1: down(y), y2: down(y) }),
        drawn("text", { x: EDGE.left - 5, y: down(y) + 3.5, "text-anchor": "end" }, short(y)),
      );
    const whole = series.every((curve) => curve.x.every(Number.isInteger));
    for (const x of ticks(x0, x1, Math.max(2, Math.min(8, width / 60)), whole ? 1 : 0))
      parts.push(drawn("text", { x: across(x), y: HEIGHT - EDGE.bottom + 14, "text-anchor": "middle" }, short(x)));
    parts.push(
      drawn(
        "text",
        { x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 5, "text-anchor": "middle" },
        model.get("xlabel"),
      ),
      drawn(
        "text",
        { transform: `translate(10 ${(HEIGHT - EDGE.bottom + EDGE.top) / 2}) rotate(-90)`, "text-anchor": "middle" },
        model.get("ylabel"),
      ),
    );
    series.forEach((curve, i) => {
      const path = pathOf(curve, across, down);
      const ink = INKS[i % INKS.length];
      parts.push(
        drawn("path", {
          d: path,
          stroke: ink,
          fill: "none",
          "stroke-width": 1.8,
          "stroke-dasharray": dashes(curve),
        }),
      );
    });
    const at = owner ? Number(owner.get("value")) : null;
    /** @type {[number | null, string][]} */
    const lines = [
      [at, "nbviz-marker"],
      [pointed, "nbviz-pointer"],
    ];
    for (const [place, name] of lines)
      if (place !== null)
        parts.push(
          drawn("line", { class: name, x1: across(place), x2: across(place), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }),
        );
    svg.replaceChildren(...parts);
    const shown = pointed ?? at;
    legend.replaceChildren(
      ...series.map((curve, i) => {
        const look = { stroke: INKS[i % INKS.length], "stroke-width": 2.5, "stroke-dasharray": dashes(curve) };
        const swatch = drawn("svg", { class: "nbviz-swatch", width: 22, height: 6, "aria-hidden": "true" });
        swatch.append(drawn("line", { ...look, x1: 0, x2: 22, y1: 3, y2: 3 }));
        const value = shown === null ? null : valueNear(curve, shown);
        return make("span", {}, swatch, curve.name + (value === null ? "" : ` ${short(value)}`));
      }),
    );
    el.dataset.marker = String(at);
    el.dataset.curves = String(series.length);
  }

  /** @param {MouseEvent} event */
  const place = (event) => {
    const { x0, x1, back } = scales();
    return Math.min(x1, Math.max(x0, back(event.clientX - svg.getBoundingClientRect().left)));
  };
  svg.addEventListener("pointermove", (event) => {
    pointed = place(event);
    draw();
  });
  svg.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });
  svg.addEventListener("click", (event) => {
    if (!owner) return;
    const [min, step] = [Number(owner.get("min")), Number(owner.get("step")) || 1];
    owner.set("value", Number((min + Math.round((place(event) - min) / step) * step).toPrecision(12)));
    owner.save_changes();
  });

  const end = together([
    follow(model, ["series", "title", "range", "xlabel", "ylabel", "empty"], draw),
    ...(owner ? [follow(owner, ["value"], draw)] : []),
  ]);
  const resized = new ResizeObserver(draw);
  resized.observe(frame);
  return () => {
    resized.disconnect();
    end();
  };
}

export default { render };
