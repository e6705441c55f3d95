// Rows of pictures with captions. Contrast, opacity and colour map stay in the page.

/** @typedef {{kind: "picture" | "map" | "signed" | "overlay", key: string, caption?: string, shape: number[],
 *   data: DataView, low?: number, high?: number, box?: number[], over?: {shape: number[], data: DataView}}} Slot */

/** Pixels of a slot as an ImageData. @param {Slot} slot @param {Uint32Array} table @param {number} contrast */
function pixelsOf(slot, table, contrast) {
  const [h, w, channels] = slot.shape;
  const image = new ImageData(w, h);
  const from = bytes(slot.data);
  if (slot.kind === "map") {
    const to = new Uint32Array(image.data.buffer);
    for (let i = 0; i < to.length; i++) to[i] = table[from[i]];
    return image;
  }
  const to = image.data; // clamps
  const signed = slot.kind === "signed";
  for (let i = 0; i < h * w; i++) {
    for (let c = 0; c < 3; c++) {
      const value = from[i * channels + (channels === 3 ? c : 0)];
      to[4 * i + c] = signed ? 128 + (value - 128) * contrast : value;
    }
    to[4 * i + 3] = 255;
  }
  return image;
}

/** @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  let cmap = model.get("cmap");
  let contrast = model.get("contrast");
  let opacity = model.get("opacity");
  const native = document.createElement("canvas");

  /** @param {HTMLCanvasElement} canvas @param {ImageData} image */
  function put(canvas, image, box = [0, 0, image.height, image.width]) {
    const [top, left, bottom, right] = box;
    canvas.width = right - left;
    canvas.height = bottom - top;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.putImageData(image, -left, -top);
    return context;
  }

  /** @type {{cell: any, canvas: HTMLCanvasElement, mark: HTMLElement, figure: HTMLElement, caption: HTMLElement}[]} */
  const cells = [];

  /** @param {typeof cells[number]} place */
  function draw(place) {
    const { cell, canvas, mark, figure, caption } = place;
    /** @type {Slot} */
    const slot = model.get(`slot_${cell.slot}`);
    figure.hidden = !slot?.shape;
    if (!slot?.shape) return;
    const table = palette(model.get("tables")[cmap]);
    const context = put(canvas, pixelsOf(slot, table, contrast), cell.crop ? slot.box : undefined);
    if (slot.kind === "overlay" && slot.over) {
      const colours = slot.over.shape.length === 3;
      const map = { ...slot.over, kind: /** @type {Slot["kind"]} */ (colours ? "picture" : "map"), key: "" };
      put(native, pixelsOf(map, table, 1));
      context.globalAlpha = opacity;
      context.imageSmoothingQuality = "high";
      context.drawImage(native, 0, 0, canvas.width, canvas.height);
    }
    canvas.style.imageRendering = canvas.width <= 64 ? "pixelated" : "auto";
    mark.hidden = cell.crop || !slot.box || slot.kind !== "picture";
    if (!mark.hidden && slot.box) {
      const [h, w] = slot.shape;
      const [top, left, bottom, right] = slot.box;
      mark.style.cssText =
        `top:${(100 * top) / h}%;left:${(100 * left) / w}%;` +
        `height:${(100 * (bottom - top)) / h}%;width:${(100 * (right - left)) / w}%`;
    }
    caption.textContent = cell.caption || slot.caption || "";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption.textContent ?? "");
    // A picture of an earlier state is dimmed until its successor comes.
    figure.dataset.key = slot.key;
    figure.classList.toggle("nbviz-old", slot.key !== model.get("current"));
  }
  const drawAll = () => cells.forEach(draw);

  el.classList.add("nbviz-panels");
  for (const row of model.get("rows")) {
    if (row.title) el.append(make("div", { className: "nbviz-caption", textContent: row.title }));
    const line = make("div", { className: "nbviz-row" });
    line.style.setProperty("--columns", row.cells.length);
    for (const cell of row.cells) {
      const canvas = /** @type {HTMLCanvasElement} */ (make("canvas"));
      const mark = make("div", { className: "nbviz-mark", hidden: true });
      const caption = make("figcaption");
      const figure = make("figure", { "data-slot": cell.slot }, make("div", {}, canvas, mark), caption);
      cells.push({ cell, canvas, mark, figure, caption });
      line.append(figure);
    }
    el.append(line);
  }

  /** @param {string} label @param {string} title @param {number} min @param {number} max @param {number} value @param {(value: number) => void} use */
  const slider = (label, title, min, max, value, use) => {
    const input = /** @type {HTMLInputElement} */ (
      make("input", { type: "range", min, max, step: "any", value, title, "aria-label": label })
    );
    input.addEventListener("input", () => {
      use(Number(input.value));
      drawAll();
    });
    return make("label", { title }, label, input);
  };
  const controls = model.get("controls");
  const bar = make("div", { className: "nbviz-bar nbviz-right" });
  if (controls.includes("contrast"))
    bar.append(
      slider("contrast", "Contrast of the reconstructions, from 1× to 16×", 0, 4, Math.log2(contrast), (x) => (contrast = 2 ** x)),
    );
  if (controls.includes("opacity"))
    bar.append(slider("opacity", "Opacity of the map over the picture", 0, 1, opacity, (x) => (opacity = x)));
  const note = make("div", { className: "nbviz-note" });
  el.append(bar, note);

  const recolour = (/** @type {any} */ event) => {
    if (event.detail.group !== model.get("group")) return;
    cmap = event.detail.cmap;
    drawAll();
  };
  page.addEventListener("cmap", recolour);
  const ends = [
    ...cells.map((place) => follow(model, [`slot_${place.cell.slot}`], () => draw(place))),
    follow(model, ["current"], drawAll),
    follow(model, ["note"], () => {
      note.textContent = model.get("note");
      note.hidden = !model.get("note");
    }),
  ];
  return () => {
    page.removeEventListener("cmap", recolour);
    ends.forEach((end) => end());
  };
}

export default { render };
