// Rows of pictures with captions. Contrast, opacity and colour map stay in the page.

/** @typedef {{shape: number[], pixels: Uint8Array}} Pixels */

/** @param {Pixels} source @param {"picture" | "map" | "signed"} kind @param {Uint32Array} table @param {number} contrast */
function imageOf({ shape, pixels }, kind, table, contrast) {
  const [h, w, channels] = shape;
  const image = new ImageData(w, h);
  if (kind === "map") {
    const to = new Uint32Array(image.data.buffer);
    for (let i = 0; i < to.length; i++) to[i] = table[pixels[i]];
    return image;
  }
  const to = image.data; // clamps
  for (let i = 0; i < h * w; i++) {
    for (let c = 0; c < 3; c++) {
      const value = pixels[i * channels + (channels === 3 ? c : 0)];
      to[4 * i + c] = kind === "signed" ? 128 + (value - 128) * contrast : value;
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

  const plots = model.get("plots");
  /** A signal, or a part of it. @param {HTMLCanvasElement} canvas @param {Pixels} source
   * @param {"picture" | "map" | "signed"} kind @param {Uint32Array} table @param {number[]} [box] */
  function plot(canvas, { shape, pixels }, kind, table, box) {
    const channels = shape[2];
    [canvas.width, canvas.height] = [384, 192];
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const place = { x: 0, y: 0, width: canvas.width, height: canvas.height };
    const own = box ? pixels.subarray(box[1] * channels, box[3] * channels) : pixels;
    const level = (/** @type {number} */ q) => (kind === "signed" ? 128 + (q - 128) * contrast : q) / 255;
    const base = kind === "map" ? 0 : kind === "signed" && channels === 1 ? 128 / 255 : null;
    const rgb = (/** @type {number} */ q) => `rgb(${table[q] & 255},${(table[q] >> 8) & 255},${(table[q] >> 16) & 255})`;
    context.fillStyle = "rgba(128,128,128,0.12)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (kind === "signed" && base === null) {
      context.fillStyle = "rgba(128,128,128,0.6)";
      context.fillRect(0, canvas.height * (1 - 128 / 255), canvas.width, 1);
    }
    curves(context, place, own, channels, level, base, kind === "map" ? rgb : null);
  }

  /** @type {{cell: any, canvas: HTMLCanvasElement, mark: HTMLElement, figure: HTMLElement, caption: HTMLElement}[]} */
  const cells = [];
  /** What each slot holds, inflated. @type {Record<string, {source: any, kind: string, own: Pixels,
   * over: Pixels | null, patch: Pixels | null, label: any}>} */
  const slots = {};

  /** @param {typeof cells[number]} place */
  function draw({ cell, canvas, mark, figure, caption }) {
    const slot = slots[cell.slot];
    figure.hidden = !slot;
    if (!slot) return;
    const { kind, own, over, patch, label } = slot;
    const table = palette(model.get("tables")[cmap]);
    const plain = kind === "map" || kind === "signed" ? kind : "picture";
    const source = (cell.crop && patch) || own;
    const box = cell.crop && !patch ? label.box : undefined;
    if (plots) plot(canvas, source, plain, table, box);
    const context = plots ? null : put(canvas, imageOf(source, plain, table, contrast), box);
    if (over && context) {
      put(native, imageOf(over, over.shape.length === 3 ? "picture" : "map", table, 1));
      context.globalAlpha = opacity;
      context.imageSmoothingQuality = "high";
      context.drawImage(native, 0, 0, canvas.width, canvas.height);
    }
    canvas.style.imageRendering = canvas.width <= 64 ? "pixelated" : "auto";
    mark.hidden = cell.crop || !label.mark || kind !== "picture";
    if (!mark.hidden) {
      const [h, w] = label.size;
      const [top, left, bottom, right] = label.box;
      mark.style.cssText =
        `top:${(100 * top) / h}%;left:${(100 * left) / w}%;` +
        `height:${(100 * (bottom - top)) / h}%;width:${(100 * (right - left)) / w}%`;
    }
    caption.textContent = (cell.crop && label.part) || label.caption || "";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption.textContent ?? "");
    figure.dataset.key = label.key;
    dim();
  }
  const drawAll = () => cells.forEach(draw);
  /** A picture of an earlier state is dimmed until its successor comes. */
  const dim = () =>
    cells.forEach(({ figure }) => figure.classList.toggle("nbviz-old", figure.dataset.key !== model.get("current")));

  const next = inTurn();
  const queued = new Set();
  /** @param {string} slot */
  function receive(slot) {
    if (queued.has(slot)) return; // one of its other traits has changed too
    queued.add(slot);
    next(async () => {
      queued.delete(slot);
      const [own, over, patch, label] = ["slot", "over", "patch", "label"].map((part) => model.get(`${part}_${slot}`));
      if (!own.shape) return;
      const before = slots[slot];
      const pixels = own === before?.source ? before.own.pixels : await inflate(own);
      const above = over.shape ? { shape: over.shape, pixels: await inflate(over) } : null;
      const part = patch.shape ? { shape: patch.shape, pixels: await inflate(patch) } : null;
      slots[slot] = { source: own, kind: own.kind, own: { shape: own.shape, pixels }, over: above, patch: part, label };
      cells.filter(({ cell }) => cell.slot === slot).forEach(draw);
    });
  }

  el.classList.add("nbviz-panels");
  for (const row of model.get("rows")) {
    if (row.title) el.append(make("div", { className: "nbviz-caption", textContent: row.title }));
    const line = make("div", { className: "nbviz-row" });
    line.style.setProperty("--columns", row.cells.length);
    for (const cell of row.cells) {
      const canvas = /** @type {HTMLCanvasElement} */ (make("canvas"));
      const mark = make("div", { className: "nbviz-mark", hidden: true });
      const caption = make("figcaption");
      const figure = make("figure", { "data-slot": cell.slot, hidden: true }, make("div", {}, canvas, mark), caption);
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
      slider("contrast", "Contrast of the reconstructions, from 1× to 16×", 0, 4, Math.log2(contrast), (x) => tell(model, "contrast", (contrast = 2 ** x))),
    );
  if (controls.includes("opacity"))
    bar.append(slider("opacity", "Opacity of the map over the picture", 0, 1, opacity, (x) => (opacity = x)));
  const note = make("div", { className: "nbviz-note" });
  el.append(bar, note);

  const ends = [
    hear(model, "contrast", (value) => {
      if (value === contrast) return; // told by this view itself
      contrast = value;
      drawAll();
    }),
    hear(model, "cmap", (value) => {
      cmap = value;
      drawAll();
    }),
    ...cells.map(({ cell: { slot } }) =>
      follow(model, ["slot", "over", "patch", "label"].map((part) => `${part}_${slot}`), () => receive(slot)),
    ),
    follow(model, ["current"], dim),
    follow(model, ["note"], () => {
      note.textContent = model.get("note");
      note.hidden = !model.get("note");
    }),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };
