// A picture in which a person marks a region, by a box or by painting.

import { between, covering, moved, moves, under } from "./box.js";
import { imageOf } from "./pixels.js";
import { bytes, choices, context2d, follow, make, together } from "./shared.js";

/** @import { Box, Size } from "./box.js" */
/** @import { Model } from "./shared.js" */

/** @typedef {object} Traits
 * @property {{shape?: number[], data?: DataView}} picture
 * @property {Size} size
 * @property {"box" | "paint"} mode
 * @property {Box} box
 * @property {DataView} mask a byte of 0 or 1 for each pixel */

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-region");
  const canvas = make("canvas", { role: "img", "aria-label": "The picture" });
  const over = make("canvas", { className: "nbviz-painted", "aria-hidden": "true" });
  const mark = make("div", { className: "nbviz-mark" });
  const holder = make(
    "div",
    {
      className: "nbviz-drawing",
      tabIndex: 0,
      role: "application",
      "aria-label": "Picture: drag to mark the region; arrow keys move the box, with Shift its corner",
    },
    canvas,
    over,
    mark,
  );
  const modes = choices(
    "How to mark",
    [
      ["box", "drag a box; arrow keys move it, with Shift its lower right corner"],
      ["paint", "paint over the region; hold Alt to erase"],
    ],
    (mode) => {
      model.set("mode", mode === "box" ? "box" : "paint");
      model.save_changes();
    },
  );
  const clear = make("button", {
    type: "button",
    className: "nbviz-link",
    textContent: "erase all",
    onclick: () => send(new Uint8Array(h() * w())),
  });
  el.append(make("div", { className: "nbviz-bar" }, modes.group, clear), holder);

  const h = () => model.get("size")[0];
  const w = () => model.get("size")[1];
  /** The painted region, a byte for each pixel. @type {Uint8Array} */
  let mask = new Uint8Array();
  /** @type {number[] | null} */
  let start = null;

  /** @param {Uint8Array} painted */
  function send(painted) {
    mask = painted;
    model.set("mask", new DataView(painted.slice().buffer));
    model.save_changes();
    draw();
  }
  const picture = () => {
    const { shape, data } = model.get("picture");
    if (!shape) return;
    [canvas.height, canvas.width] = shape;
    context2d(canvas).putImageData(imageOf(bytes(data), shape), 0, 0);
    canvas.style.imageRendering = canvas.width <= 64 ? "pixelated" : "auto";
  };
  function draw() {
    const painting = model.get("mode") === "paint";
    modes.show(model.get("mode"));
    clear.hidden = over.hidden = !painting;
    mark.hidden = painting;
    mark.style.cssText = covering(model.get("box"), model.get("size"));
    [over.width, over.height] = [w(), h()];
    const image = new ImageData(w(), h());
    for (let p = 0; p < mask.length; p++) if (mask[p]) image.data.set([255, 152, 0, 130], 4 * p);
    context2d(over).putImageData(image, 0, 0);
    el.dataset.box = JSON.stringify(model.get("box"));
    el.dataset.painted = String(mask.reduce((a, b) => a + b, 0));
  }
  const received = () => {
    const own = bytes(model.get("mask"));
    mask = own.length === h() * w() ? own.slice() : new Uint8Array(h() * w());
    draw();
  };
  /** Row and column under the pointer. @param {PointerEvent} event */
  const at = (event) => under(event, canvas, model.get("size"));
  /** @param {number[]} place @param {number} value */
  function dab([row, column], value) {
    const radius = Math.max(0.5, Math.max(h(), w()) / 24);
    for (let y = Math.max(0, Math.floor(row - radius)); y < Math.min(h(), row + radius); y++)
      for (let x = Math.max(0, Math.floor(column - radius)); x < Math.min(w(), column + radius); x++)
        if ((y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 <= radius ** 2) mask[y * w() + x] = value;
    draw();
  }
  /** @param {number[]} box @param {boolean} done */
  function setBox(box, done) {
    model.set("box", box);
    if (done) model.save_changes();
  }
  holder.addEventListener("pointerdown", (event) => {
    start = at(event);
    holder.setPointerCapture(event.pointerId);
    if (model.get("mode") === "paint") dab(start, event.altKey ? 0 : 1);
  });
  holder.addEventListener("pointermove", (event) => {
    if (!start) return;
    if (model.get("mode") === "paint") {
      const [from, to] = [start, at(event)];
      const steps = Math.ceil(Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]))) || 1;
      for (let i = 1; i <= steps; i++)
        dab(
          [0, 1].map((k) => from[k] + ((to[k] - from[k]) * i) / steps),
          event.altKey ? 0 : 1,
        );
      start = to;
    } else setBox(between(start, at(event), model.get("size")), false);
  });
  holder.addEventListener("pointerup", (event) => {
    if (!start) return;
    if (model.get("mode") === "paint") send(mask);
    else setBox(between(start, at(event), model.get("size")), true);
    start = null;
  });
  holder.addEventListener("keydown", (event) => {
    if (!moves(event.key) || model.get("mode") !== "box") return;
    event.preventDefault();
    event.stopPropagation();
    const box = moved(model.get("box"), event, model.get("size"));
    if (box) setBox(box, true);
  });

  const ends = [
    follow(model, ["picture"], picture),
    follow(model, ["mask", "size"], received),
    follow(model, ["box", "mode"], draw),
  ];
  return together(ends);
}

export default { render };
