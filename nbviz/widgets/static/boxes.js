// Pictures; a person draws a box on each.

import { between, covering, moved, moves, under } from "./box.js";
import { imageOf } from "./pixels.js";
import { bytes, context2d, follow, make, together } from "./shared.js";

/** @import { Box, Size } from "./box.js" */
/** @import { Model } from "./shared.js" */

/** @typedef {object} Traits
 * @property {{name: string, shape: number[], data: DataView}[]} pictures
 * @property {Size} size
 * @property {string} title
 * @property {Box[]} boxes one for each picture */

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-boxes");
  const row = make("div", { className: "nbviz-drawings", role: "group", "aria-label": "Pictures to draw on" });
  const caption = make("div", { className: "nbviz-caption" });
  el.append(caption, row);
  /** @type {{holder: HTMLElement, mark: HTMLElement}[]} */
  let places = [];

  /** @param {number} i @param {number[]} box */
  const set = (i, box) => {
    const boxes = [...model.get("boxes")];
    boxes[i] = box;
    model.set("boxes", boxes);
    model.save_changes();
  };
  /** Arrow keys move a box, with Shift its lower right corner. @param {KeyboardEvent} event @param {number} i */
  function key(event, i) {
    if (!moves(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const box = moved(model.get("boxes")[i], event, model.get("size"));
    if (box) set(i, box);
  }

  const pictures = () => {
    places = model.get("pictures").map(({ name, shape, data }, i) => {
      const canvas = make("canvas", { width: shape[1], height: shape[0], role: "img", "aria-label": name });
      context2d(canvas).putImageData(imageOf(bytes(data), shape), 0, 0);
      if (canvas.width <= 64) canvas.style.imageRendering = "pixelated";
      const mark = make("div", { className: "nbviz-mark" });
      const holder = make(
        "div",
        {
          className: "nbviz-drawing",
          tabIndex: 0,
          role: "application",
          title: "Drag to draw the box; arrow keys move it, with Shift its corner",
          "aria-label": `${name}: drag to draw the box`,
        },
        canvas,
        mark,
      );
      /** @type {number[] | null} */
      let start = null;
      /** Row and column under the pointer. @param {PointerEvent} event */
      const at = (event) => under(event, canvas, model.get("size"));
      holder.addEventListener("pointerdown", (event) => {
        start = at(event);
        holder.setPointerCapture(event.pointerId);
      });
      holder.addEventListener("pointermove", (event) => {
        if (start) place(i, between(start, at(event), model.get("size")));
      });
      holder.addEventListener("pointerup", (event) => {
        if (!start) return;
        set(i, between(start, at(event), model.get("size")));
        start = null;
      });
      holder.addEventListener("keydown", (event) => key(event, i));
      return { holder, mark };
    });
    row.replaceChildren(...places.map(({ holder }) => holder));
    draw();
  };
  /** @param {number} i @param {Box} box */
  function place(i, box) {
    places[i].mark.style.cssText = covering(box, model.get("size"));
  }
  function draw() {
    model.get("boxes").forEach((box, i) => {
      if (places[i]) place(i, box);
    });
    el.dataset.boxes = JSON.stringify(model.get("boxes"));
  }
  const ends = [
    follow(model, ["title"], () => {
      caption.textContent = model.get("title");
    }),
    follow(model, ["pictures"], pictures),
    follow(model, ["boxes", "size"], draw),
  ];
  return together(ends);
}

export default { render };
