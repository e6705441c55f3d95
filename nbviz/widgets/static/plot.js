// Curves over one axis, with a marker that follows a slider; a click on them moves the slider.

const INKS = ["#1e88e5", "#e53935", "#43a047", "#8e24aa", "#fb8c00", "#6d4c41"];
const HEIGHT = 190;
const EDGE = { left: 46, right: 10, top: 8, bottom: 34 };

/** An SVG element. @param {string} tag @param {Record<string, any>} properties @param {(Node | string)[]} children */
function drawn(tag, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Round numbers within a range, so many at most. @param {number} low @param {number} high @param {number} most */
function ticks(low, high, most) {
  const raw = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw) ?? raw;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** @param {{model: Model, el: HTMLElement}} context */
async function render({ model, el }) {
  const reference = model.get("slider");
  /** @type {Model | null} */
  const owner = reference ? await model.widget_manager.get_model(reference.replace("IPY_MODEL_", "")) : null;
  const caption = make("div", { className: "nbviz-caption" });
  const svg = /** @type {SVGSVGElement} */ (drawn("svg", { role: "img", height: HEIGHT }));
  const legend = make("div", { className: "nbviz-legend" });
  const frame = make("div", { className: "nbviz-frame" }, svg);
  el.classList.add("nbviz-plot");
  el.append(caption, frame, legend);
  /** Where the pointer is, in units of the axis. @type {number | null} */
  let pointed = null;

  /** Of the two axes from units to pixels, and back across. */
  function scales() {
    const series = model.get("series");
    const width = Math.max(frame.clientWidth, 160);
    const xs = series.flatMap((/** @type {any} */ one) => one.x);
    const ys = series.flatMap((/** @type {any} */ one) => one.y).filter((/** @type {any} */ y) => y !== null);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const [low, high] = model.get("range");
    let y0 = low ?? Math.min(...ys);
    let y1 = high ?? Math.max(...ys);
    if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
    const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
    const across = (/** @type {number} */ x) => EDGE.left + ((x - x0) / (x1 - x0 || 1)) * inner.width;
    const down = (/** @type {number} */ y) => EDGE.top + (1 - (y - y0) / (y1 - y0)) * inner.height;
    const back = (/** @type {number} */ px) => x0 + ((px - EDGE.left) / inner.width) * (x1 - x0);
    return { series, width, x0, x1, y0, y1, across, down, back };
  }

  /** The value of a curve next to a place. @param {{x: number[], y: (number | null)[]}} one @param {number} x */
  function valueAt(one, x) {
    let best = 0;
    one.x.forEach((at, i) => {
      if (Math.abs(at - x) < Math.abs(one.x[best] - x)) best = i;
    });
    return one.y[best];
  }

  function draw() {
    const series = model.get("series");
    el.hidden = !series.length;
    caption.textContent = model.get("title");
    if (!series.length) return;
    const { width, x0, x1, y0, y1, across, down } = scales();
    svg.setAttribute("width", String(width));
    svg.setAttribute("aria-label", `${model.get("ylabel")} against ${model.get("xlabel")}`);
    const parts = [];
    for (const y of ticks(y0, y1, 4))
      parts.push(
        drawn("line", { class: "nbviz-rule", x1: EDGE.left, x2: width - EDGE.right, y1: down(y), y2: down(y) }),
        drawn("text", { x: EDGE.left - 5, y: down(y) + 3.5, "text-anchor": "end" }, short(y)),
      );
    for (const x of ticks(x0, x1, Math.max(2, Math.min(8, width / 60))))
      parts.push(drawn("text", { x: across(x), y: HEIGHT - EDGE.bottom + 14, "text-anchor": "middle" }, short(x)));
    parts.push(
      drawn("text", { x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, model.get("xlabel")),
      drawn("text", { transform: `translate(10 ${(HEIGHT - EDGE.bottom + EDGE.top) / 2}) rotate(-90)`, "text-anchor": "middle" }, model.get("ylabel")),
    );
    series.forEach((/** @type {any} */ one, /** @type {number} */ i) => {
      let path = "";
      one.x.forEach((/** @type {number} */ x, /** @type {number} */ k) => {
        if (one.y[k] === null) return;
        path += `${path && one.y[k - 1] !== null ? "L" : "M"}${across(x).toFixed(1)} ${down(one.y[k]).toFixed(1)}`;
      });
      const ink = INKS[i % INKS.length];
      parts.push(drawn("path", { d: path, stroke: ink, fill: "none", "stroke-width": 1.8, "stroke-dasharray": one.dashed ? "5 4" : "none" }));
    });
    const at = owner ? Number(owner.get("value")) : model.get("marker");
    for (const [place, name] of [[at, "nbviz-marker"], [pointed, "nbviz-pointer"]])
      if (place !== null && place !== undefined)
        parts.push(drawn("line", { class: name, x1: across(place), x2: across(place), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    svg.replaceChildren(...parts);
    const shown = pointed ?? at;
    legend.replaceChildren(
      ...series.map((/** @type {any} */ one, /** @type {number} */ i) => {
        const swatch = make("span", { className: "nbviz-swatch" });
        swatch.style.background = INKS[i % INKS.length];
        const value = shown === null || shown === undefined ? null : valueAt(one, shown);
        return make("span", {}, swatch, one.name + (value === null ? "" : ` ${short(value)}`));
      }),
    );
    el.dataset.marker = String(at);
    el.dataset.curves = String(series.length);
  }

  /** @param {PointerEvent} event */
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
    owner.set("value", Number((min + Math.round((place(/** @type {any} */ (event)) - min) / step) * step).toPrecision(12)));
    owner.save_changes();
  });

  const ends = [follow(model, ["series", "marker", "title", "range", "xlabel", "ylabel"], draw)];
  if (owner) ends.push(follow(owner, ["value"], draw));
  const resized = new ResizeObserver(draw);
  resized.observe(frame);
  return () => {
    resized.disconnect();
    ends.forEach((end) => end());
  };
}

export default { render };
