// The grid of all channels of a layer. Colour, scale, order, zoom, hover and pick stay in the page.

const GAP = 3;
const MAX_HEIGHT = 400;

/** @param {{model: Model, el: HTMLElement}} context */
async function render({ model, el }) {
  // The picked channel is the slider's value where there is a slider: one truth, and no second message for it.
  const reference = model.get("slider");
  /** @type {Model} */
  const owner = reference ? await model.widget_manager.get_model(reference.replace("IPY_MODEL_", "")) : model;
  const trait = reference ? "value" : "channel";
  const picked = () => owner.get(trait);
  /** @param {number} channel */
  const pick = (channel) => {
    owner.set(trait, channel);
    if (reference) owner.save_changes();
  };
  /** @type {{count: number, h: number, w: number, data: Uint8Array, low: Float32Array, high: Float32Array, spread: Float32Array}} */
  let tiles;
  /** @type {number[]} */
  let order = [];
  let columns = 8;
  let painted = 0;
  const native = document.createElement("canvas");
  const nativeContext = /** @type {CanvasRenderingContext2D} */ (native.getContext("2d"));

  const orders = choices(
    "Order of the channels",
    [
      ["index", "in the layer's own order"],
      ["strongest", "largest activation first"],
      ["spread", "largest standard deviation over the positions first"],
    ],
    (name) => model.set("order", name),
  );
  const scales = choices(
    "Scale",
    [
      ["each", "each channel from its own lowest to its own highest value"],
      ["shared", "all channels on one scale"],
    ],
    (name) => model.set("scale", name),
  );
  const colours = /** @type {HTMLSelectElement} */ (
    make("select", { title: "Colour map", "aria-label": "Colour map", onchange: () => model.set("cmap", colours.value) })
  );
  const zooms = make(
    "span",
    { className: "nbviz-choices", role: "group", "aria-label": "Zoom" },
    make("button", { type: "button", textContent: "−", title: "smaller tiles", onclick: () => zoom(1) }),
    make("button", { type: "button", textContent: "+", title: "larger tiles", onclick: () => zoom(-1) }),
  );
  const canvas = /** @type {HTMLCanvasElement} */ (make("canvas"));
  const spacer = make("div");
  const tip = make("div", { className: "nbviz-tip", hidden: true });
  const scroller = make(
    "div",
    {
      className: "nbviz-scroller",
      tabIndex: 0,
      role: "application",
      "aria-label": "Channels: arrow keys pick, plus and minus zoom",
    },
    canvas,
    spacer,
  );
  const caption = make("div", { className: "nbviz-caption" });
  const title = make("div", { className: "nbviz-caption" });
  const large = /** @type {HTMLCanvasElement} */ (make("canvas", { className: "nbviz-large" }));
  const largeCaption = make("figcaption");
  const bar = make("div", { className: "nbviz-bar" }, orders.group, scales.group, colours, zooms);
  el.classList.add("nbviz-grid");
  el.append(title, bar, make("div", { className: "nbviz-frame" }, scroller, tip), caption);
  if (!reference) el.append(make("figure", { className: "nbviz-picked" }, large, largeCaption));

  const layout = () => {
    const width = Math.max(scroller.clientWidth, 40);
    const tile = (width + GAP) / columns - GAP;
    const height = Math.max(1, (tile * tiles.h) / tiles.w);
    return { width, tile, height, rows: Math.ceil(tiles.count / columns) };
  };

  /** The tile and the position in it under the pointer, or null. @param {MouseEvent} event */
  function under(event) {
    const box = canvas.getBoundingClientRect();
    const { tile, height } = layout();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top + scroller.scrollTop;
    const column = Math.floor(x / (tile + GAP));
    const place = Math.floor(y / (height + GAP)) * columns + column;
    const across = (x - column * (tile + GAP)) / tile;
    const down = (y - Math.floor(y / (height + GAP)) * (height + GAP)) / height;
    if (column >= columns || place >= tiles.count || across >= 1 || down >= 1 || x < 0) return null;
    return { channel: order[place], row: Math.floor(down * tiles.h), column: Math.floor(across * tiles.w) };
  }

  /** @param {number} channel @param {number} step of 0..255 */
  const valueOf = (channel, step) =>
    tiles.low[channel] + (step / 255) * (tiles.high[channel] - tiles.low[channel]);

  function draw() {
    if (!tiles?.count) return;
    const { width, tile, height, rows } = layout();
    const total = rows * (height + GAP) - GAP;
    scroller.style.height = `${Math.min(total, MAX_HEIGHT)}px`;
    const view = Math.min(total, MAX_HEIGHT);
    spacer.style.height = `${Math.max(0, total - view)}px`;
    const ratio = globalThis.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(view * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${view}px`;
    const first = Math.floor(scroller.scrollTop / (height + GAP));
    const last = Math.min(rows, Math.ceil((scroller.scrollTop + view) / (height + GAP)));
    const { h, w } = tiles;
    const image = new ImageData(columns * w, Math.max(1, (last - first) * h));
    const pixels = new Uint32Array(image.data.buffer);
    const table = palette(model.get("tables")[model.get("cmap")]);
    const shared = model.get("scale") === "shared";
    const low = tiles.low.reduce((a, b) => Math.min(a, b));
    const high = tiles.high.reduce((a, b) => Math.max(a, b));
    // A channel without extent (a global pooling) has its colour from where it lies among all.
    const own = new Uint32Array(256);
    for (let place = first * columns; place < Math.min(last * columns, tiles.count); place++) {
      const channel = order[place];
      for (let q = 0; q < 256; q++) {
        const among = shared || tiles.low[channel] === tiles.high[channel];
        const step = among ? Math.round(((valueOf(channel, q) - low) / (high - low || 1)) * 255) : q;
        own[q] = table[Math.min(255, Math.max(0, step))];
      }
      const left = (place % columns) * w;
      const top = (Math.floor(place / columns) - first) * h;
      let from = channel * h * w;
      for (let y = 0; y < h; y++) {
        let to = (top + y) * columns * w + left;
        for (let x = 0; x < w; x++) pixels[to++] = own[tiles.data[from++]];
      }
    }
    native.width = image.width;
    native.height = image.height;
    nativeContext.putImageData(image, 0, 0);

    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.setTransform(ratio, 0, 0, ratio, 0, -scroller.scrollTop * ratio);
    context.imageSmoothingEnabled = tile * ratio < w;
    context.imageSmoothingQuality = "high";
    for (let place = first * columns; place < Math.min(last * columns, tiles.count); place++) {
      const x = (place % columns) * (tile + GAP);
      const row = Math.floor(place / columns);
      const y = row * (height + GAP);
      context.drawImage(native, (place % columns) * w, (row - first) * h, w, h, x, y, tile, height);
      if (order[place] === picked()) {
        context.strokeStyle = "#ff9800";
        context.lineWidth = 2;
        context.strokeRect(x + 1, y + 1, tile - 2, height - 2);
      }
    }
    if (!reference) drawLarge(table);
    const shown = Math.min(tiles.count, last * columns) - first * columns;
    caption.textContent =
      `${shown} of ${tiles.count} shown` +
      (total > view ? " · scroll for more" : "") +
      " · Ctrl + wheel or + − zooms · click or arrow keys pick";
    orders.show(model.get("order"));
    scales.show(model.get("scale"));
    colours.value = model.get("cmap");
    el.dataset.painted = String(++painted);
    el.dataset.channel = picked();
    el.dataset.cmap = model.get("cmap");
  }

  /** The picked channel alone, from its own low to its own high. @param {Uint32Array} table */
  function drawLarge(table) {
    const { h, w } = tiles;
    const channel = Math.min(picked(), tiles.count - 1);
    const image = new ImageData(w, h);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[tiles.data[channel * h * w + i]];
    large.width = w;
    large.height = h;
    /** @type {CanvasRenderingContext2D} */ (large.getContext("2d")).putImageData(image, 0, 0);
    large.style.imageRendering = w <= 128 ? "pixelated" : "auto";
    largeCaption.textContent = `#${channel}: ${h}×${w}, ${short(tiles.low[channel])} to ${short(tiles.high[channel])}`;
  }

  function arrange() {
    if (!tiles) return;
    const key = { index: null, strongest: tiles.high, spread: tiles.spread }[model.get("order")];
    order = Array.from({ length: tiles.count }, (_, i) => i);
    if (key) order.sort((a, b) => key[b] - key[a] || a - b);
    draw();
  }

  function receive() {
    const { shape, data, low, high, spread } = model.get("tiles");
    if (!shape) return;
    const [count, h, w] = shape;
    const before = tiles?.count;
    tiles = { count, h, w, data: bytes(data), low: floats(low), high: floats(high), spread: floats(spread) };
    if (before !== count) {
      columns = Math.max(1, Math.min(8, Math.ceil(Math.sqrt(count))));
      scroller.scrollTop = 0;
    }
    arrange();
    el.dataset.shape = shape.join("×");
  }

  /** @param {number} by */
  function zoom(by) {
    columns = Math.max(1, Math.min(32, columns + by * Math.max(1, Math.round(columns / 5))));
    draw();
    reveal();
  }

  /** Scroll so that the picked channel is in view. */
  function reveal() {
    const { height } = layout();
    const top = Math.floor(order.indexOf(picked()) / columns) * (height + GAP);
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + height > scroller.scrollTop + scroller.clientHeight)
      scroller.scrollTop = top + height - scroller.clientHeight;
  }

  scroller.addEventListener("scroll", draw);
  scroller.addEventListener("mousemove", (event) => {
    const at = under(event);
    tip.hidden = !at;
    if (!at) return;
    const step = tiles.data[(at.channel * tiles.h + at.row) * tiles.w + at.column];
    tip.textContent = `#${at.channel} · row ${at.row} col ${at.column} · ${short(valueOf(at.channel, step))}`;
    const box = scroller.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth)}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
  });
  scroller.addEventListener("mouseleave", () => (tip.hidden = true));
  scroller.addEventListener("click", (event) => {
    const at = under(event);
    if (at) pick(at.channel);
  });
  scroller.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // the plain wheel scrolls
      event.preventDefault();
      zoom(Math.sign(event.deltaY));
    },
    { passive: false },
  );
  scroller.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const place = order.indexOf(picked());
    if (event.key in moves) {
      const to = place + moves[/** @type {keyof moves} */ (event.key)];
      if (to >= 0 && to < tiles.count) pick(order[to]);
      reveal();
    } else if (event.key === "Home") pick(order[0]);
    else if (event.key === "End") pick(order[tiles.count - 1]);
    else if (event.key === "+" || event.key === "=") zoom(-1);
    else if (event.key === "-") zoom(1);
    else return;
    // Arrow keys belong to this grid here, not to the notebook's cells.
    event.preventDefault();
    event.stopPropagation();
  });

  for (const name of Object.keys(model.get("tables"))) colours.append(make("option", { value: name, textContent: name }));
  const ends = [
    follow(model, ["tiles"], receive),
    follow(model, ["order"], arrange),
    follow(model, ["scale"], draw),
    follow(model, ["title"], () => (title.textContent = model.get("title"))),
    follow(owner, [trait], () => {
      draw();
      if (tiles) reveal();
    }),
    follow(model, ["cmap"], () => {
      draw();
      const detail = { group: model.get("group"), cmap: model.get("cmap") };
      page.dispatchEvent(new CustomEvent("cmap", { detail }));
    }),
  ];
  const resized = new ResizeObserver(draw);
  resized.observe(scroller);
  return () => {
    resized.disconnect();
    ends.forEach((end) => end());
  };
}

export default { render };
