// Pictures on each of which a person draws a box.

/** @param {{model: Model, el: HTMLElement}} context */
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
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const [height, width] = model.get("size");
    const box = model.get("boxes")[i];
    const moved = box.map((/** @type {number} */ side, /** @type {number} */ k) => (event.shiftKey && k < 2 ? side : side + step[k % 2]));
    const [top, left, bottom, right] = moved;
    if (top >= 0 && left >= 0 && bottom <= height && right <= width && top < bottom && left < right) set(i, moved);
  }

  const pictures = () => {
    places = model.get("pictures").map((/** @type {any} */ picture, /** @type {number} */ i) => {
      const [h, w, channels] = picture.shape;
      const canvas = /** @type {HTMLCanvasElement} */ (make("canvas", { width: w, height: h }));
      const image = new ImageData(w, h);
      const from = bytes(picture.data);
      for (let p = 0; p < h * w; p++) {
        for (let c = 0; c < 3; c++) image.data[4 * p + c] = from[channels * p + (c % channels)];
        image.data[4 * p + 3] = 255;
      }
      /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
      if (w <= 64) canvas.style.imageRendering = "pixelated";
      const mark = make("div", { className: "nbviz-mark" });
      const holder = make(
        "div",
        { className: "nbviz-drawing", tabIndex: 0, role: "application", title: "Drag to draw the box; arrow keys move it, with Shift its corner", "aria-label": `${picture.name}: drag to draw the box` },
        canvas,
        mark,
      );
      /** @type {number[] | null} */
      let start = null;
      /** Row and column under the pointer. @param {PointerEvent} event */
      const at = (event) => {
        const box = canvas.getBoundingClientRect();
        const [height, width] = model.get("size");
        return [
          Math.min(height, Math.max(0, ((event.clientY - box.top) / box.height) * height)),
          Math.min(width, Math.max(0, ((event.clientX - box.left) / box.width) * width)),
        ];
      };
      /** @param {number[]} a @param {number[]} b */
      const between = (a, b) => {
        const [height, width] = model.get("size");
        const [top, left] = [Math.floor(Math.min(a[0], b[0])), Math.floor(Math.min(a[1], b[1]))];
        const [bottom, right] = [Math.ceil(Math.max(a[0], b[0])), Math.ceil(Math.max(a[1], b[1]))];
        return [Math.min(top, height - 1), Math.min(left, width - 1), Math.max(bottom, top + 1), Math.max(right, left + 1)];
      };
      holder.addEventListener("pointerdown", (event) => {
        start = at(event);
        holder.setPointerCapture(event.pointerId);
      });
      holder.addEventListener("pointermove", (event) => {
        if (start) place(i, between(start, at(event)));
      });
      holder.addEventListener("pointerup", (event) => {
        if (!start) return;
        set(i, between(start, at(event)));
        start = null;
      });
      holder.addEventListener("keydown", (event) => key(event, i));
      return { holder, mark };
    });
    row.replaceChildren(...places.map(({ holder }) => holder));
    draw();
  };
  /** @param {number} i @param {number[]} box */
  function place(i, [top, left, bottom, right]) {
    const [height, width] = model.get("size");
    places[i].mark.style.cssText =
      `top:${(100 * top) / height}%;left:${(100 * left) / width}%;` +
      `height:${(100 * (bottom - top)) / height}%;width:${(100 * (right - left)) / width}%`;
  }
  function draw() {
    model.get("boxes").forEach((/** @type {number[]} */ box, /** @type {number} */ i) => {
      if (places[i]) place(i, box);
    });
    el.dataset.boxes = JSON.stringify(model.get("boxes"));
  }
  const ends = [
    follow(model, ["title"], () => (caption.textContent = model.get("title"))),
    follow(model, ["pictures"], pictures),
    follow(model, ["boxes", "size"], draw),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };
