// A picture in which a person marks a region: a box, or whatever is painted over.

/** @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-region");
  const canvas = /** @type {HTMLCanvasElement} */ (make("canvas"));
  const over = /** @type {HTMLCanvasElement} */ (make("canvas", { className: "nbviz-painted" }));
  const mark = make("div", { className: "nbviz-mark" });
  const holder = make(
    "div",
    { className: "nbviz-drawing", tabIndex: 0, role: "application", "aria-label": "Picture: drag to mark the region; arrow keys move the box, with Shift its corner" },
    canvas,
    over,
    mark,
  );
  const modes = choices(
    "How to mark",
    [
      ["box", "drag a box; arrow keys move it, with Shift its lower right corner"],
      ["paint", "paint over the region; with Alt rub it out"],
    ],
    (mode) => {
      model.set("mode", mode);
      model.save_changes();
    },
  );
  const clear = make("button", { type: "button", className: "nbviz-link", textContent: "rub all out", onclick: () => send(new Uint8Array(h() * w())) });
  el.append(make("div", { className: "nbviz-bar" }, modes.group, clear), holder);

  const h = () => model.get("size")[0];
  const w = () => model.get("size")[1];
  /** Where the region is, a byte for each pixel, in paint mode. @type {Uint8Array} */
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
    const [height, width, channels] = shape;
    [canvas.width, canvas.height] = [width, height];
    const image = new ImageData(width, height);
    const from = bytes(data);
    for (let p = 0; p < height * width; p++) {
      for (let c = 0; c < 3; c++) image.data[4 * p + c] = from[channels * p + (c % channels)];
      image.data[4 * p + 3] = 255;
    }
    /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
    canvas.style.imageRendering = width <= 64 ? "pixelated" : "auto";
  };
  function draw() {
    const painting = model.get("mode") === "paint";
    modes.show(model.get("mode"));
    clear.hidden = over.hidden = !painting;
    mark.hidden = painting;
    const [top, left, bottom, right] = model.get("box");
    mark.style.cssText =
      `top:${(100 * top) / h()}%;left:${(100 * left) / w()}%;` +
      `height:${(100 * (bottom - top)) / h()}%;width:${(100 * (right - left)) / w()}%`;
    [over.width, over.height] = [w(), h()];
    const image = new ImageData(w(), h());
    for (let p = 0; p < mask.length; p++) if (mask[p]) image.data.set([255, 152, 0, 130], 4 * p);
    /** @type {CanvasRenderingContext2D} */ (over.getContext("2d")).putImageData(image, 0, 0);
    el.dataset.box = JSON.stringify(model.get("box"));
    el.dataset.painted = String(mask.reduce((a, b) => a + b, 0));
  }
  const received = () => {
    const own = bytes(model.get("mask"));
    mask = own.length === h() * w() ? own.slice() : new Uint8Array(h() * w());
    draw();
  };
  /** Row and column under the pointer. @param {PointerEvent} event */
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const inside = (/** @type {number} */ share, /** @type {number} */ side) => Math.min(side, Math.max(0, share * side));
    return [inside((event.clientY - box.top) / box.height, h()), inside((event.clientX - box.left) / box.width, w())];
  };
  /** @param {number[]} place @param {number} value */
  function dab([row, column], value) {
    const radius = Math.max(0.5, Math.max(h(), w()) / 24);
    for (let y = Math.max(0, Math.floor(row - radius)); y < Math.min(h(), row + radius); y++)
      for (let x = Math.max(0, Math.floor(column - radius)); x < Math.min(w(), column + radius); x++)
        if ((y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 <= radius ** 2) mask[y * w() + x] = value;
    draw();
  }
  /** @param {number[]} a @param {number[]} b */
  const between = (a, b) => {
    const [top, left] = [Math.floor(Math.min(a[0], b[0])), Math.floor(Math.min(a[1], b[1]))];
    const [bottom, right] = [Math.ceil(Math.max(a[0], b[0])), Math.ceil(Math.max(a[1], b[1]))];
    return [Math.min(top, h() - 1), Math.min(left, w() - 1), Math.max(bottom, top + 1), Math.max(right, left + 1)];
  };
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
      const to = at(event);
      const steps = Math.ceil(Math.max(Math.abs(to[0] - start[0]), Math.abs(to[1] - start[1]))) || 1;
      for (let i = 1; i <= steps; i++) dab([0, 1].map((k) => start[k] + ((to[k] - start[k]) * i) / steps), event.altKey ? 0 : 1);
      start = to;
    } else setBox(between(start, at(event)), false);
  });
  holder.addEventListener("pointerup", (event) => {
    if (!start) return;
    if (model.get("mode") === "paint") send(mask);
    else setBox(between(start, at(event)), true);
    start = null;
  });
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || model.get("mode") !== "box") return;
    event.preventDefault();
    event.stopPropagation();
    const moved = model.get("box").map((/** @type {number} */ side, /** @type {number} */ k) => (event.shiftKey && k < 2 ? side : side + step[k % 2]));
    const [top, left, bottom, right] = moved;
    if (top >= 0 && left >= 0 && bottom <= h() && right <= w() && top < bottom && left < right) setBox(moved, true);
  });

  const ends = [
    follow(model, ["picture"], picture),
    follow(model, ["mask", "size"], received),
    follow(model, ["box", "mode"], draw),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };
