// The grid of all channels of a layer. Colours, scale, order, zoom and hover need no kernel.

import { paint, paintByTable, paintCurves, release } from "./paint.js";
import { palette } from "./pixels.js";
import {
  announcer,
  bytes,
  choices,
  colourMaps,
  context2d,
  floats,
  follow,
  inflate,
  inTurn,
  make,
  referred,
  setting,
  short,
  together,
  towards,
} from "./shared.js";

/** @import { Look, Place, Tiles } from "./paint.js" */
/** @import { Encoded, Messages, Model, Order, Scale, Slider } from "./shared.js" */

/** The size and kind of the tiles; empty at first.
 * @typedef {{key: number, kind: "map" | "signed", state: string, shape: number[], strength: DataView, spread: DataView,
 *   plots: boolean, ends?: [number, number]}} Header */

/** Some of the tiles. @typedef {Encoded & {channels: number[], low: DataView, high: DataView}} Block */

/** @typedef {object} Own
 * @property {Header | {shape?: undefined}} tiles
 * @property {number} sent
 * @property {Record<string, DataView>} tables
 * @property {string} title
 * @property {string} group
 * @property {string} part
 * @property {string} cmap
 * @property {number} contrast
 * @property {Scale} scale
 * @property {Order} order
 * @property {number[]} ranking
 * @property {boolean} large
 * @property {boolean} switches
 * @property {number[]} off
 * @property {number} channel
 * @property {string | null} slider
 * @property {number} columns 0 for as many as suit the number of channels
 * @property {number} side */

/** @typedef {Own & Record<`block_${number}`, Block>} Traits */

/** @typedef {Tiles & {key: number, state: string, whole: number[], strength: Float32Array, spread: Float32Array,
 *   blocks: Block[]}} Ranked */

const GAP = 3;
const MAX_HEIGHT = 400;

/** The tiles before the first have come. @returns {Ranked} */
const none = () => ({
  ...{ key: 0, kind: "map", state: "", count: 0, h: 1, w: 1, whole: [1, 1], channels: 1, plots: false },
  ...{ low: new Float32Array(), high: new Float32Array(), strength: new Float32Array(), spread: new Float32Array() },
  ...{ data: new Uint8Array(), have: new Uint8Array(), blocks: [], fresh: new Set() },
});

/** The channels in the order in which they are shown.
 * @param {Pick<Ranked, "count" | "strength" | "spread">} tiles @param {Order} by @param {number[]} ranking */
export function ordered({ count, strength, spread }, by, ranking) {
  if (by === "redundant" && ranking.length === count) return [...ranking];
  const order = Array.from({ length: count }, (_, i) => i);
  const key = { index: null, strongest: strength, spread, redundant: null }[by];
  return key ? order.sort((a, b) => key[b] - key[a] || a - b) : order;
}

/** The value that a channel's byte stands for.
 * @param {Pick<Tiles, "kind" | "low" | "high">} tiles @param {number} channel @param {number} byte */
export const valueIn = ({ kind, low, high }, channel, byte) =>
  kind === "signed"
    ? ((byte - 128) / 127) * high[channel]
    : low[channel] + (byte / 255) * (high[channel] - low[channel]);

/** What is said before a value at the end of a signed scale, beyond which values are clipped.
 * @param {Pick<Tiles, "kind" | "high">} tiles @param {number} channel @param {number} value */
export const bound = ({ kind, high }, channel, value) =>
  kind !== "signed" || !value || Math.abs(value) < high[channel] ? "" : value > 0 ? "≥ " : "≤ ";

/** The number of columns after a step of the zoom: out (1) or in (-1).
 * @param {number} columns @param {number} by */
export const zoomed = (columns, by) => Math.max(1, Math.min(32, columns + by * Math.max(1, Math.round(columns / 5))));

/** The place that a key moves to, which stays within the tiles; null for other keys.
 * @param {string} key @param {number} place @param {number} count @param {number} columns */
export function stepped(key, place, count, columns) {
  const to = towards(key, place, count, columns);
  return to === null || (to >= 0 && to < count) ? to : place;
}

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
async function render({ model, el }) {
  // Where there is a slider, its value is the picked channel, which so needs no message of its own.
  const reference = model.get("slider");
  /** @type {Model<Slider> | null} */
  const slider = reference ? await referred(model, reference) : null;
  const picked = () => (slider ? slider.get("value") : model.get("channel"));
  /** @param {number} channel */
  const pick = (channel) => {
    if (slider) {
      slider.set("value", channel);
      slider.save_changes();
    } else {
      model.set("channel", channel);
      model.save_changes();
    }
  };
  let tiles = none();
  /** @type {number[]} */
  let order = [];
  let painted = 0;
  const ordering = setting(model, "order", () => arrange());
  const scaling = setting(model, "scale", () => draw());
  const colouring = setting(model, "cmap", () => draw());
  const contrast = setting(model, "contrast", () => draw());
  const zooming = setting(model, "columns", () => draw());
  const columns = () => zooming.value || Math.max(1, Math.min(8, Math.ceil(Math.sqrt(tiles.count))));
  /** @template {keyof Messages} K @param {{move(value: Messages[K]): void, settle(): void}} of @param {Messages[K]} to */
  const change = (of, to) => {
    of.move(to);
    of.settle();
  };

  const orders = choices(
    "Order of the channels",
    [
      ["index", "in the layer's own order"],
      ["strongest", "largest activation first"],
      ["spread", "largest standard deviation over the positions first"],
      ["redundant", "most redundant first"],
    ],
    (name) => change(ordering, /** @type {Order} */ (name)),
  );
  const scales = choices(
    "Scale",
    [
      ["each", "each channel from its own lowest to its own highest value"],
      ["shared", "all channels on one scale"],
    ],
    (name) => change(scaling, /** @type {Scale} */ (name)),
  );
  const colours = colourMaps(Object.keys(model.get("tables")), colouring);
  const zooms = make(
    "span",
    { className: "nbviz-choices", role: "group", "aria-label": "Zoom" },
    make("button", { type: "button", textContent: "−", title: "smaller tiles", onclick: () => zoom(1) }),
    make("button", { type: "button", textContent: "+", title: "larger tiles", onclick: () => zoom(-1) }),
  );
  const canvas = make("canvas");
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
  canvas.setAttribute("role", "img");
  const spoken = announcer();
  const caption = make("div", { className: "nbviz-caption" });
  const title = make("div", { className: "nbviz-caption" });
  const large = make("canvas", { className: "nbviz-large" });
  const largeCaption = make("figcaption");
  const bar = make("div", { className: "nbviz-bar" }, orders.group, scales.group, colours, zooms);
  const switches = model.get("switches");
  /** @param {number[]} off */
  const switchTo = (off) => {
    model.set("off", off);
    model.save_changes();
  };
  /** @param {number} channel */
  const toggle = (channel) => {
    const off = model.get("off");
    switchTo(off.includes(channel) ? off.filter((other) => other !== channel) : [...off, channel]);
  };
  if (switches)
    bar.append(
      make(
        "span",
        { className: "nbviz-choices", role: "group", "aria-label": "Switches" },
        make("button", {
          type: "button",
          textContent: "all on",
          title: "switch all channels on",
          onclick: () => switchTo([]),
        }),
        make("button", {
          type: "button",
          textContent: "invert",
          title: "switch on what is off, and off what is on",
          onclick: () => switchTo(order.filter((channel) => !model.get("off").includes(channel))),
        }),
      ),
    );
  el.classList.add("nbviz-grid");
  el.append(
    title,
    bar,
    make("div", { className: "nbviz-frame", "data-part": model.get("part") }, scroller, tip),
    caption,
    spoken.line,
  );
  if (model.get("large"))
    el.append(make("figure", { className: "nbviz-picked", "data-part": model.get("part") }, large, largeCaption));

  const layout = () => {
    const width = Math.max(scroller.clientWidth, 40);
    const tile = (width + GAP) / columns() - GAP;
    const height = Math.max(1, tiles.plots ? tile / 2 : (tile * tiles.whole[0]) / tiles.whole[1]);
    return { width, tile, height, rows: Math.ceil(tiles.count / columns()) };
  };

  /** The longer side of a tile in pixels of the screen, rounded up to a power of two. */
  const side = () => {
    const { tile, height } = layout();
    return 2 ** Math.ceil(Math.log2(Math.max(tile, height) * (globalThis.devicePixelRatio || 1)));
  };

  /** The tile under the pointer and the position in it, or null. @param {MouseEvent} event */
  function under(event) {
    const box = canvas.getBoundingClientRect();
    const { tile, height } = layout();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top + scroller.scrollTop;
    const column = Math.floor(x / (tile + GAP));
    const place = Math.floor(y / (height + GAP)) * columns() + column;
    const across = (x - column * (tile + GAP)) / tile;
    const down = (y - Math.floor(y / (height + GAP)) * (height + GAP)) / height;
    if (column >= columns() || place >= tiles.count || across >= 1 || down >= 1 || x < 0) return null;
    return { channel: order[place], down, across };
  }

  const reduced = () => tiles.h < tiles.whole[0] || tiles.w < tiles.whole[1];

  /** The value under the pointer; in a signed tile with colours, the strongest of its three.
   * @param {{channel: number, down: number, across: number}} at */
  function valueAt({ channel, down, across }) {
    const { h, w, channels, data } = tiles;
    const pixel = (channel * h + Math.floor(down * h)) * w + Math.floor(across * w);
    const values = [...data.subarray(pixel * channels, (pixel + 1) * channels)].map((byte) =>
      valueIn(tiles, channel, byte),
    );
    return values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
  }

  /** @returns {Look} */
  const look = () => ({
    table: palette(bytes(model.get("tables")[colouring.value])),
    shared: scaling.value === "shared",
    contrast: contrast.value,
  });

  function draw() {
    if (!tiles.count) return;
    const { width, tile, height, rows } = layout();
    const total = rows * (height + GAP) - GAP;
    const view = Math.min(total, MAX_HEIGHT);
    scroller.style.height = `${view}px`;
    spacer.style.height = `${Math.max(0, total - view)}px`;
    const ratio = globalThis.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(view * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${view}px`;
    const first = Math.floor(scroller.scrollTop / (height + GAP)) * columns();
    const last = Math.min(tiles.count, Math.ceil((scroller.scrollTop + view) / (height + GAP)) * columns());
    /** @type {Place[]} */
    const places = order.slice(first, last).map((channel, i) => {
      const row = Math.floor((first + i) / columns());
      const [x, y] = [(i % columns()) * (tile + GAP), row * (height + GAP) - scroller.scrollTop];
      return { channel, x: x * ratio, y: y * ratio, width: tile * ratio, height: height * ratio };
    });
    const context = context2d(canvas);
    const by = paint(
      context,
      tiles,
      places.filter(({ channel }) => tiles.have[channel]),
      look(),
    );
    const off = new Set(switches ? model.get("off") : []);
    for (const { channel, x, y, width: w, height: h } of places) {
      if (!off.has(channel)) continue;
      context.fillStyle = "rgba(22, 24, 26, 0.8)";
      context.fillRect(x, y, w, h);
      context.strokeStyle = "#9aa0a6";
      context.lineWidth = 1.5 * ratio;
      context.beginPath();
      for (const [from, to] of [
        [0.25, 0.75],
        [0.75, 0.25],
      ]) {
        context.moveTo(x + from * w, y + 0.25 * h);
        context.lineTo(x + to * w, y + 0.75 * h);
      }
      context.stroke();
    }
    const frame = places.find(({ channel }) => channel === picked());
    if (frame) {
      context.strokeStyle = "#ff9800";
      context.lineWidth = 2 * ratio;
      context.strokeRect(frame.x + ratio, frame.y + ratio, frame.width - 2 * ratio, frame.height - 2 * ratio);
    }
    if (model.get("large")) drawLarge();
    const there = tiles.have.reduce((a, b) => a + b, 0);
    const shown = last - first;
    caption.textContent =
      `${shown} of ${tiles.count} shown` +
      (there < tiles.count ? ` · ${there} drawn so far` : "") +
      (total > view ? " · scroll for more" : "") +
      " · Ctrl + wheel or + − zooms · " +
      (switches ? `${off.size} switched off · click, or arrow keys and Space, switch` : "click or arrow keys pick");
    orders.show(ordering.value);
    orders.offer("redundant", model.get("ranking").length > 0);
    scales.show(scaling.value);
    colours.value = colouring.value;
    colours.hidden = tiles.kind === "signed"; // which have colours of their own
    canvas.setAttribute("aria-label", `${tiles.count} tiles, ${shown} of them in view`);
    el.dataset.painted = String(++painted);
    el.dataset.channel = String(picked());
    if (switches) el.dataset.off = String(off.size);
    el.dataset.cmap = colouring.value;
    el.dataset.by = by;
    // Tiles that were enlarged may need more pixels than were sent: ask for them.
    const [most, own] = [Math.max(...tiles.whole), Math.max(tiles.h, tiles.w)];
    if (there && own < most && side() > own && side() > model.get("side")) {
      model.set("side", side());
      model.save_changes();
    }
  }

  /** Draw the picked channel large, from its own lowest to its own highest value. */
  function drawLarge() {
    const { h, w } = tiles;
    const channel = Math.min(picked(), tiles.count - 1);
    if (!tiles.have[channel]) return;
    [large.width, large.height] = tiles.plots ? [480, 160] : [w, h];
    const context = context2d(large);
    const place = { channel, x: 0, y: 0, width: large.width, height: large.height };
    (tiles.plots ? paintCurves : paintByTable)(context, tiles, [place], { ...look(), shared: false });
    large.setAttribute("role", "img");
    large.setAttribute("aria-label", `Tile ${channel}, large`);
    large.style.imageRendering = w <= 128 && !tiles.plots ? "pixelated" : "auto";
    const ends = `${short(tiles.low[channel])} to ${short(tiles.high[channel])}`;
    const less = reduced() ? `, drawn at ${tiles.plots ? w : `${h}×${w}`}: zoom in for all of it` : "";
    largeCaption.textContent = `#${channel}: ${tiles.plots ? tiles.whole[1] : tiles.whole.join("×")}, ${ends}${less}`;
  }

  function arrange() {
    order = ordered(tiles, ordering.value, model.get("ranking"));
    draw();
  }

  const next = inTurn();
  let queued = false;
  /** Take what the kernel has sent: other tiles, or more of them. */
  function receive() {
    if (queued) return;
    queued = true;
    next(async () => {
      queued = false;
      const header = model.get("tiles");
      if (!header.shape) return;
      /** @type {Block[]} */
      const blocks = [];
      for (let left = model.get("sent"); left > 0; ) {
        const block = model.get(`block_${blocks.length}`);
        blocks.push(block);
        left -= block.channels.length;
      }
      const known = header.key === tiles.key ? tiles.blocks : [];
      const came = blocks.filter((block, i) => block !== known[i]);
      const pixels = await Promise.all(came.map(inflate));
      // The size of the tiles is not known before the first block.
      const shape = came[0]?.shape ?? [0, 1, 1];
      if (header.key !== tiles.key || (came.length && !tiles.blocks.length)) begin(header, shape);
      tiles.blocks = blocks;
      for (const [i, block] of came.entries()) fill(block, pixels[i]);
      arrange();
      el.dataset.shape = header.shape.join("×");
      el.dataset.there = String(tiles.have.reduce((a, b) => a + b, 0));
      el.dataset.tiles = header.state;
    });
  }

  /** Start on other tiles. @param {Header} header @param {number[]} shape of a block */
  function begin({ key, kind, state, shape, strength, spread, plots, ends }, [, h, w, channels = 1]) {
    const before = tiles;
    const [count, ...whole] = shape;
    const nothing = { low: new Float32Array(count), high: new Float32Array(count), have: new Uint8Array(count) };
    const ranks = { strength: floats(strength), spread: floats(spread) };
    const data = new Uint8Array(count * h * w * channels);
    tiles = {
      key,
      kind,
      state,
      count,
      h,
      w,
      whole,
      channels,
      data,
      plots,
      ends,
      ...nothing,
      ...ranks,
      blocks: [],
      fresh: new Set(),
    };
    if (before.state === state && h >= before.h && w >= before.w) magnify(before);
    else tip.hidden = true;
    release(before);
    if (side() < model.get("side") && before.count && before.state !== state) {
      model.set("side", side());
      model.save_changes();
    }
    if (before.count !== count) scroller.scrollTop = 0;
  }

  /** Keep the same tiles, which have fewer pixels, until they are replaced. @param {Tiles} before */
  function magnify(before) {
    const { count, h, w, channels, data } = tiles;
    tiles.low.set(before.low);
    tiles.high.set(before.high);
    tiles.have.set(before.have);
    let to = 0;
    for (let k = 0; k < count; k++)
      for (let y = 0; y < h; y++) {
        const row = (k * before.h + Math.floor((y * before.h) / h)) * before.w;
        for (let x = 0; x < w; x++) {
          const from = (row + Math.floor((x * before.w) / w)) * channels;
          for (let c = 0; c < channels; c++) data[to++] = before.data[from + c];
        }
      }
  }

  /** @param {Block} block @param {Uint8Array} pixels */
  function fill({ channels, low, high }, pixels) {
    const size = tiles.h * tiles.w * tiles.channels;
    const ends = [floats(low), floats(high)];
    channels.forEach((channel, i) => {
      tiles.data.set(pixels.subarray(i * size, (i + 1) * size), channel * size);
      [tiles.low[channel], tiles.high[channel]] = [ends[0][i], ends[1][i]];
      tiles.have[channel] = 1;
      tiles.fresh.add(channel);
    });
  }

  /** @param {number} by */
  function zoom(by) {
    change(zooming, zoomed(columns(), by));
    reveal();
  }

  /** Scroll so that the picked channel is in view. */
  function reveal() {
    const { height } = layout();
    const top = Math.floor(order.indexOf(picked()) / columns()) * (height + GAP);
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + height > scroller.scrollTop + scroller.clientHeight)
      scroller.scrollTop = top + height - scroller.clientHeight;
  }

  scroller.addEventListener("scroll", draw);
  scroller.addEventListener("mousemove", (event) => {
    const at = under(event);
    tip.hidden = !at || !tiles.have[at.channel];
    if (!at || tip.hidden) return;
    const [row, column] = [Math.floor(at.down * tiles.whole[0]), Math.floor(at.across * tiles.whole[1])];
    const value = valueAt(at);
    const about = bound(tiles, at.channel, value) || (reduced() ? "≈ " : ""); // it is the mean of a block
    const where = tiles.plots ? `sample ${column}` : `row ${row} col ${column}`;
    tip.textContent = `#${at.channel} · ${where} · ${about}${short(value)}`;
    const box = scroller.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth)}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
  });
  scroller.addEventListener("mouseleave", () => {
    tip.hidden = true;
  });
  scroller.addEventListener("click", (event) => {
    const at = under(event);
    if (!at) return;
    pick(at.channel);
    if (switches) toggle(at.channel);
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
    if (!tiles.count) return; // nothing to pick yet
    const place = order.indexOf(picked());
    const to = stepped(event.key, place, tiles.count, columns());
    if (to !== null) {
      if (to !== place) pick(order[to]);
      reveal();
    } else if (switches && (event.key === " " || event.key === "Enter")) toggle(picked());
    else if (event.key === "+" || event.key === "=") zoom(-1);
    else if (event.key === "-") zoom(1);
    else return;
    // The notebook would move to another cell.
    event.preventDefault();
    event.stopPropagation();
  });

  let before = picked();
  const chosen = () => {
    draw();
    if (!tiles.count) return;
    reveal();
    const channel = picked();
    if (before !== channel) spoken.say(described(channel));
    before = channel;
  };
  /** What a screen reader says of a tile. @param {number} channel */
  const described = (channel) => {
    const ends = tiles.have[channel] ? `, ${short(tiles.low[channel])} to ${short(tiles.high[channel])}` : "";
    const off = switches && model.get("off").includes(channel) ? ", switched off" : "";
    return `${channel} is picked, ${order.indexOf(channel) + 1} of ${tiles.count}${ends}${off}`;
  };
  const end = together([
    follow(model, ["tiles", "sent"], receive),
    follow(model, ["ranking"], arrange),
    follow(model, ["off"], draw),
    follow(model, ["title"], () => {
      title.textContent = model.get("title");
      title.hidden = !model.get("title");
    }),
    slider ? follow(slider, ["value"], chosen) : follow(model, ["channel"], chosen),
    ...[ordering, scaling, colouring, contrast, zooming].map(({ end }) => end),
  ]);
  const resized = new ResizeObserver(draw);
  resized.observe(scroller);
  return () => {
    resized.disconnect();
    release(tiles);
    end();
  };
}

export default { render };
