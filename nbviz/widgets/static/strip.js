// The pictures to choose from, and what the network says of the chosen one.

/** @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-strip");
  const strip = make("div", { className: "nbviz-thumbs", role: "group", "aria-label": "Pictures" });
  const blocks = Array.from({ length: Math.ceil(model.get("names").length / model.get("block")) }, (_, i) => `block_${i}`);
  const table = make("div", { className: "nbviz-predictions" });
  el.append(make("div", { className: "nbviz-caption", textContent: "Picture" }), strip, table);

  /** @param {HTMLCanvasElement} canvas @param {Uint8Array} from @param {number[]} shape */
  function drawPixels(canvas, from, [h, w, channels]) {
    const plot = model.get("plot");
    [canvas.height, canvas.width] = plot ? [96, 192] : [h, w];
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    if (plot) {
      curves(context, { x: 0, y: 0, width: 192, height: 96 }, from, channels, (q) => q / 255, null, null);
      return;
    }
    const image = new ImageData(w, h);
    for (let p = 0; p < h * w; p++) {
      for (let c = 0; c < 3; c++) image.data[4 * p + c] = from[channels * p + (c % channels)];
      image.data[4 * p + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    if (w <= 64) canvas.style.imageRendering = "pixelated";
  }
  const next = inTurn();
  /** Draw a block of pictures, if it has come. @param {number} block */
  const draw = (block) =>
    next(async () => {
      const { shape: [count, ...shape] = [0], jpegs, ...encoded } = model.get(`block_${block}`);
      if (!count) return;
      const canvases = [...strip.querySelectorAll("canvas")].slice(block * model.get("block"));
      const pixels = jpegs ? null : await inflate(/** @type {any} */ (encoded));
      for (let i = 0; i < count; i++) {
        const canvas = canvases[i];
        if (pixels) drawPixels(canvas, pixels.subarray((i * pixels.length) / count, ((i + 1) * pixels.length) / count), shape);
        else {
          const bitmap = await createImageBitmap(new Blob([jpegs[i]], { type: "image/jpeg" }));
          [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
          canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
        }
        canvas.dataset.drawn = "true";
      }
    });

  // Which buttons are in view, and a moment later, when scrolling has ended there, what the page lacks for them.
  const inView = new Set();
  /** @type {any} */
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
      ...model.get("names").map((/** @type {string} */ name, /** @type {number} */ i) => {
        const canvas = make("canvas", { width: 1, height: 1 });
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
    [...strip.children].forEach((/** @type {any} */ button, i) => {
      const chosen = i === model.get("picture");
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen ? 0 : -1; // one stop for the Tab key; from there the arrows go on
    });
  strip.addEventListener("keydown", (event) => {
    const all = /** @type {HTMLElement[]} */ ([...strip.children]);
    const at = all.indexOf(/** @type {HTMLElement} */ (event.target));
    const across = Math.max(1, all.findIndex((button) => button.offsetTop > all[0].offsetTop));
    const last = all.length - 1;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across, Home: 0, End: last };
    if (at < 0 || !(event.key in moves)) return;
    all[Math.min(last, Math.max(0, moves[/** @type {keyof moves} */ (event.key)]))].focus();
    // Not the notebook's: it would go to another cell.
    event.preventDefault();
    event.stopPropagation();
  });
  const predictions = () => {
    const rows = model.get("predictions");
    table.classList.toggle("nbviz-compared", rows.some((/** @type {any[]} */ row) => row.length > 2));
    table.replaceChildren(
      ...(rows.length ? [make("div", { className: "nbviz-caption", textContent: model.get("caption") })] : []),
      ...rows.map((/** @type {[string, number, number?]} */ [label, probability, before]) => {
        const bar = make("span", { className: "nbviz-probability" });
        bar.style.width = `${Math.max(1, 30 * probability)}px`;
        const track = make("span", { className: "nbviz-track" }, bar);
        let number = probability.toFixed(2);
        if (before !== undefined) {
          const mark = make("span", { className: "nbviz-before", title: `before ${before.toFixed(3)}` });
          mark.style.left = `${30 * before - 1}px`;
          track.append(mark);
          number = `${before.toFixed(2)} → ${number}`;
        }
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
  const ends = [
    follow(model, ["names", "plot"], names),
    follow(model, ["picture"], choice),
    ...blocks.map((name, block) => follow(model, [name], () => draw(block))),
    follow(model, ["predictions", "caption"], predictions),
  ];
  return () => {
    seen.disconnect();
    clearTimeout(asking);
    ends.forEach((end) => end());
  };
}

export default { render };
