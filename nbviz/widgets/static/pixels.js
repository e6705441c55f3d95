// From bytes to colours of pixels and curves of signals.

/** Height, width and channels of a picture, whose channels are 1 or 3. @typedef {number[]} Shape */

/** For each byte, its tone from 0 to 255, and the packed RGBA pixel where it is the pixel's only byte.
 * @typedef {{steps: Uint8ClampedArray, packed: Uint32Array}} Tones */

/** A colour map as 256 packed RGBA pixels. @param {Uint8Array} rgb */
export function palette(rgb) {
  const packed = new Uint32Array(256);
  for (let i = 0; i < 256; i++) packed[i] = 0xff000000 | (rgb[3 * i + 2] << 16) | (rgb[3 * i + 1] << 8) | rgb[3 * i];
  return packed;
}

/** A packed pixel, as CSS writes it. @param {number} packed */
export const css = (packed) => `rgb(${packed & 255},${(packed >> 8) & 255},${(packed >> 16) & 255})`;

/** @param {(byte: number) => number} level of each byte, cut to 0..255 @param {Uint32Array} [table] grey if not given
 * @returns {Tones} */
export function tones(level, table) {
  const steps = new Uint8ClampedArray(256);
  const packed = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    steps[byte] = level(byte);
    packed[byte] = table ? table[steps[byte]] : 0xff000000 | (steps[byte] * 0x010101);
  }
  return { steps, packed };
}

/** Bytes as they are: a photograph. */
export const PLAIN = tones((byte) => byte);

/** Draw a picture of ``shape``, from the first of ``data``, into a part of an image. Only here do bytes become pixels.
 * @param {{width: number, data: {buffer: ArrayBufferLike}}} image @param {number} top @param {number} left
 * @param {Uint8Array} data @param {Shape} shape @param {Tones} tones */
export function colour(image, top, left, data, [height, width, channels], { steps, packed }) {
  const pixels = new Uint32Array(image.data.buffer); // a whole pixel at once: a quarter of the writes
  let from = 0;
  for (let y = 0; y < height; y++) {
    let to = (top + y) * image.width + left;
    if (channels === 1) for (let x = 0; x < width; x++) pixels[to++] = packed[data[from++]];
    else
      for (let x = 0; x < width; x++, from += channels)
        pixels[to++] = 0xff000000 | (steps[data[from + 2]] << 16) | (steps[data[from + 1]] << 8) | steps[data[from]];
  }
}

/** @param {Uint8Array} data @param {Shape} shape @param {Tones} [tones] */
export function imageOf(data, shape, tones = PLAIN) {
  const image = new ImageData(shape[1], shape[0]);
  colour(image, 0, 0, data, shape, tones);
  return image;
}

/** The colours of curves: of three channels, or the last for a single one. */
const CURVES = ["#e53935", "#43a047", "#1e88e5"];

/** Draw a signal's channels as curves in a box. Where there are more samples than pixels, each column shows the lowest
 * and the highest of its samples.
 * @param {CanvasRenderingContext2D} context @param {{x: number, y: number, width: number, height: number}} box
 * @param {Uint8Array} data L samples of all channels @param {number} channels
 * @param {(byte: number) => number} level from 0, the bottom, to 1
 * @param {number | null} base the level from which it is filled; null draws a line
 * @param {((byte: number) => string) | null} ink by the value; null by the channel */
export function curves(context, { x, y, width, height }, data, channels, level, base, ink) {
  const length = data.length / channels;
  const columns = Math.max(1, Math.min(length, Math.round(width)));
  const step = width / columns;
  const at = (/** @type {number} */ share) => y + (1 - Math.min(1, Math.max(0, share))) * height;
  for (let c = 0; c < channels; c++) {
    const own = channels === 1 ? CURVES[2] : CURVES[c];
    context.fillStyle = own;
    context.strokeStyle = own;
    context.lineWidth = Math.max(1, height / 60);
    context.lineJoin = "round";
    context.beginPath();
    for (let i = 0; i < columns; i++) {
      let [low, high] = [255, 0];
      for (let s = Math.floor((i * length) / columns); s < Math.floor(((i + 1) * length) / columns); s++) {
        const byte = data[s * channels + c];
        low = Math.min(low, byte);
        high = Math.max(high, byte);
      }
      const [bottom, top] = [at(level(low)), at(level(high))];
      if (base === null) {
        context.lineTo(x + (i + 0.5) * step, bottom);
        if (low < high) context.lineTo(x + (i + 0.5) * step, top);
        continue;
      }
      if (ink) context.fillStyle = ink(high);
      const [from, to] = [Math.min(top, at(base)), Math.max(bottom, at(base))];
      context.fillRect(x + i * step, from, step + 0.02, to - from);
    }
    if (base === null) context.stroke();
  }
}
