import assert from "node:assert/strict";
import test from "node:test";
import { colour, css, curves, PLAIN, palette, tones } from "../../nbviz/widgets/static/pixels.js";

/** An image of the page, as far as it is written to. */
const blank = (width, height) => ({ width, data: new Uint8ClampedArray(4 * width * height) });
const grey = palette(Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3)));

test("a colour map is packed as the bytes of an image lie", () => {
  const rgb = Uint8Array.from({ length: 768 }, (_, i) => (7 * i) % 256);
  const packed = new Uint8Array(palette(rgb).buffer);
  for (let byte = 0; byte < 256; byte++)
    assert.deepEqual([...packed.subarray(4 * byte, 4 * byte + 4)], [...rgb.subarray(3 * byte, 3 * byte + 3), 255]);
});

test("a packed pixel is the colour of CSS that has its bytes", () => {
  assert.equal(css(palette(Uint8Array.of(1, 2, 255, ...new Uint8Array(765)))[0]), "rgb(1,2,255)");
});

test("without a table all is grey", () => {
  assert.deepEqual(
    tones((byte) => byte),
    { steps: Uint8ClampedArray.from(grey.keys()), packed: grey },
  );
});

test("what a level takes beyond the ends is cut", () => {
  const { steps, packed } = tones((byte) => 128 + (byte - 128) * 4, grey);
  assert.deepEqual([steps[0], steps[100], steps[128], steps[160], steps[255]], [0, 16, 128, 255, 255]);
  assert.equal(packed[255], grey[255]);
});

for (const [channels, seen] of [
  [1, (data, p) => [data[p], data[p], data[p], 255]],
  [3, (data, p) => [...data.subarray(3 * p, 3 * p + 3), 255]],
])
  test(`bytes of ${channels} channels become pixels`, () => {
    const data = Uint8Array.from({ length: 5 * 4 * channels }, (_, i) => (37 * i) % 256);
    const image = blank(4, 5);
    colour(image, 0, 0, data, [5, 4, channels], PLAIN);
    for (let p = 0; p < 20; p++) assert.deepEqual([...image.data.subarray(4 * p, 4 * p + 4)], seen(data, p));
  });

test("a tile is coloured in its place, and nothing beside it", () => {
  const image = blank(6, 5);
  colour(image, 2, 3, new Uint8Array(4).fill(9), [2, 2, 1], PLAIN);
  const pixels = new Uint32Array(image.data.buffer);
  const written = [...pixels.keys()].filter((p) => pixels[p]);
  assert.deepEqual(written, [15, 16, 21, 22]);
  assert.ok(written.every((p) => pixels[p] === grey[9]));
});

/** A canvas that keeps what is drawn on it. */
function sheet() {
  const drawn = { lines: [], bars: [], strokes: [] };
  const context = {
    beginPath: () => drawn.lines.push([]),
    lineTo: (x, y) => drawn.lines.at(-1).push([x, y]),
    fillRect: (...box) => drawn.bars.push([context.fillStyle, ...box]),
    stroke: () => drawn.strokes.push(context.strokeStyle),
  };
  return { context, drawn };
}
const BOX = { x: 10, y: 20, width: 100, height: 50 };
const share = (byte) => byte / 255;

test("a signal is a line from the bottom to the top of its box", () => {
  const { context, drawn } = sheet();
  curves(context, BOX, Uint8Array.of(0, 255), 1, share, null, null);
  assert.deepEqual(drawn.lines, [
    [
      [35, 70],
      [85, 20],
    ],
  ]);
  assert.equal(drawn.bars.length, 0);
});

test("three channels are three lines of different colours", () => {
  const { context, drawn } = sheet();
  curves(context, BOX, Uint8Array.of(0, 255, 0, 0, 255, 0), 3, share, null, null);
  assert.deepEqual(
    drawn.lines.map((line) => line.map(([, y]) => y)),
    [
      [70, 70],
      [20, 20],
      [70, 70],
    ],
  );
  assert.equal(new Set(drawn.strokes).size, 3);
});

test("of more samples than pixels none that stands out is lost", () => {
  const { context, drawn } = sheet();
  const data = new Uint8Array(10_000).fill(128);
  data[5_432] = 255;
  data[5_433] = 0;
  curves(context, BOX, data, 1, share, null, null);
  const heights = drawn.lines[0].map(([, y]) => y);
  assert.ok(drawn.lines[0].length <= 200);
  assert.deepEqual([Math.min(...heights), Math.max(...heights)], [20, 70]);
});

test("from a base, bars go up and down, in the colour of the value", () => {
  const { context, drawn } = sheet();
  curves(context, BOX, Uint8Array.of(255, 51), 1, share, 0.6, (byte) => `of ${byte}`);
  const [up, down] = drawn.bars.map(([colour, , top, , height]) => [colour, Math.round(top), Math.round(height)]);
  assert.deepEqual(up, ["of 255", 20, 20]);
  assert.deepEqual(down, ["of 51", 40, 20]);
  assert.equal(drawn.strokes.length, 0);
});
