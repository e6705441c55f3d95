// A box on a picture (top, left, bottom and right, ends excluded): keys move it, a pointer draws it, a mark shows it.

/** @typedef {number[]} Box @typedef {number[]} Size height and width of the picture, in the box's units */

/** @type {Record<string, [number, number] | undefined>} */
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** Whether a key moves a box. @param {string} key */
export const moves = (key) => key in STEPS;

/** The box that a key moves to, with Shift its lower right corner; null if it would leave the picture.
 * @param {Box} box @param {{key: string, shiftKey: boolean}} event @param {Size} size @returns {Box | null} */
export function moved(box, { key, shiftKey }, [height, width]) {
  const step = STEPS[key];
  if (!step) return null;
  const to = box.map((side, k) => (shiftKey && k < 2 ? side : side + step[k % 2]));
  const [top, left, bottom, right] = to;
  return top >= 0 && left >= 0 && bottom <= height && right <= width && top < bottom && left < right ? to : null;
}

/** Row and column under the pointer. @param {MouseEvent} event @param {Element} element @param {Size} size */
export function under(event, element, [height, width]) {
  const { top, left, height: h, width: w } = element.getBoundingClientRect();
  const inside = (/** @type {number} */ share, /** @type {number} */ side) => Math.min(side, Math.max(0, share * side));
  return [inside((event.clientY - top) / h, height), inside((event.clientX - left) / w, width)];
}

/** The box of whole pixels, at least one, between two places.
 * @param {number[]} a @param {number[]} b @param {Size} size @returns {Box} */
export function between(a, b, [height, width]) {
  const [top, left] = [Math.floor(Math.min(a[0], b[0])), Math.floor(Math.min(a[1], b[1]))];
  const [bottom, right] = [Math.ceil(Math.max(a[0], b[0])), Math.ceil(Math.max(a[1], b[1]))];
  return [Math.min(top, height - 1), Math.min(left, width - 1), Math.max(bottom, top + 1), Math.max(right, left + 1)];
}

/** The style of a mark over the picture. @param {Box} box @param {Size} size */
export const covering = ([top, left, bottom, right], [height, width]) =>
  `top:${(100 * top) / height}%;left:${(100 * left) / width}%;` +
  `height:${(100 * (bottom - top)) / height}%;width:${(100 * (right - left)) / width}%`;
