// The pictures to choose from, and what the network says of the chosen one.

/** @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  el.classList.add("nbviz-strip");
  const strip = make("div", { className: "nbviz-thumbs", role: "group", "aria-label": "Pictures" });
  const table = make("div", { className: "nbviz-predictions" });
  el.append(make("div", { className: "nbviz-caption", textContent: "Picture" }), strip, table);

  const thumbs = () => {
    strip.replaceChildren(
      ...model.get("thumbs").map((/** @type {any} */ thumb, /** @type {number} */ i) => {
        const [h, w, channels] = thumb.shape;
        const [height, width] = thumb.plot ? [96, 192] : [h, w];
        const canvas = /** @type {HTMLCanvasElement} */ (make("canvas", { width, height }));
        const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
        const from = bytes(thumb.data);
        if (thumb.plot) {
          canvas.style.aspectRatio = "2";
          curves(context, { x: 0, y: 0, width, height }, from, channels, (q) => q / 255, null, null);
        } else {
          const image = new ImageData(w, h);
          for (let p = 0; p < h * w; p++) {
            for (let c = 0; c < 3; c++) image.data[4 * p + c] = from[channels * p + (c % channels)];
            image.data[4 * p + 3] = 255;
          }
          context.putImageData(image, 0, 0);
          if (w <= 64) canvas.style.imageRendering = "pixelated";
        }
        const choose = () => {
          model.set("picture", i);
          model.save_changes();
        };
        return make("button", { type: "button", title: thumb.name, "aria-label": thumb.name, onclick: choose }, canvas);
      }),
    );
  };
  const choice = () =>
    [...strip.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === model.get("picture"))));
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
    follow(model, ["thumbs"], thumbs),
    follow(model, ["thumbs", "picture"], choice),
    follow(model, ["predictions", "caption"], predictions),
  ];
  return () => ends.forEach((end) => end());
}

export default { render };
