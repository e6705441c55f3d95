import assert from "node:assert/strict";
import test from "node:test";
import { bound, ordered, stepped, valueIn, zoomed } from "../../nbviz/widgets/static/grid.js";
import { levels, scaling } from "../../nbviz/widgets/static/paint.js";

/** Channels from 0 to 10, from 5 to 7, and one of which all values are 4. */
const TILES = {
  kind: "map",
  count: 3,
  have: Uint8Array.of(1, 1, 1),
  low: Float32Array.of(0, 5, 4),
  high: Float32Array.of(10, 7, 4),
};

test("each channel has its own scale, or all have one", () => {
  assert.deepEqual(scaling(TILES, false)(1), [1, 0]);
  assert.deepEqual(scaling(TILES, true)(0), [1, 0]);
  const [factor, shift] = scaling(TILES, true)(1);
  assert.deepEqual([factor, shift], [0.2, 127.5]);
  assert.equal(255 * factor + shift, (7 / 10) * 255);
});

test("a channel of one value is coloured by where it lies among all", () => {
  assert.deepEqual(scaling(TILES, false)(2), [0, 102]);
});

test("a shared scale has no part of channels that have not come, and reaches given ends", () => {
  const [factor] = scaling({ ...TILES, have: Uint8Array.of(0, 1, 1) }, true)(1);
  assert.equal(factor, 2 / 3);
  assert.deepEqual(scaling({ ...TILES, ends: [-10, 30] }, true)(0), [0.25, 63.75]);
});

test("a signed channel stays around grey on every scale", () => {
  const signed = { ...TILES, kind: "signed" };
  for (const shared of [false, true])
    for (const contrast of [1, 2, 16]) assert.equal(levels(signed, { shared, contrast })(1)(128), 128);
  assert.equal(levels(signed, { shared: false, contrast: 2 })(1)(138), 148);
  assert.ok(Math.abs(levels(signed, { shared: true, contrast: 2 })(1)(138) - 142) < 1e-9);
});

test("a map's levels are those of its scale, whatever the contrast", () => {
  assert.equal(levels(TILES, { shared: true, contrast: 16 })(1)(0), 127.5);
});

test("a byte stands for a value between its channel's ends, or around 0", () => {
  assert.deepEqual(
    [0, 51, 255].map((byte) => valueIn(TILES, 0, byte)),
    [0, 2, 10],
  );
  assert.deepEqual(
    [1, 128, 255].map((byte) => valueIn({ ...TILES, kind: "signed" }, 0, byte)),
    [-10, 0, 10],
  );
});

test("a signed value at the end of the scale may lie beyond it, and the tooltip says so", () => {
  const signed = { kind: "signed", high: Float32Array.of(10, 0) };
  assert.deepEqual(
    [10, 9.9, 0, -9.9, -10].map((value) => bound(signed, 0, value)),
    ["≥ ", "", "", "", "≤ "],
  );
  assert.equal(bound(signed, 1, 0), ""); // zero everywhere
  assert.equal(bound(TILES, 0, 10), ""); // a map's largest value is just that
});

test("channels stand in the order that is chosen, ties in the layer's own", () => {
  const tiles = { count: 4, strength: Float32Array.of(1, 3, 1, 2), spread: Float32Array.of(4, 1, 2, 3) };
  const ranking = [2, 0, 3, 1];
  assert.deepEqual(ordered(tiles, "index", ranking), [0, 1, 2, 3]);
  assert.deepEqual(ordered(tiles, "strongest", ranking), [1, 3, 0, 2]);
  assert.deepEqual(ordered(tiles, "spread", ranking), [0, 3, 2, 1]);
  assert.deepEqual(ordered(tiles, "redundant", ranking), ranking);
  assert.deepEqual(ordered(tiles, "redundant", []), [0, 1, 2, 3]); // of another layer, or not known
});

test("keys go from tile to tile and not beyond the ends", () => {
  const from = (key, place) => stepped(key, place, 10, 4);
  assert.deepEqual(
    [from("ArrowLeft", 5), from("ArrowRight", 5), from("ArrowUp", 5), from("ArrowDown", 5)],
    [4, 6, 1, 9],
  );
  assert.deepEqual([from("Home", 5), from("End", 5)], [0, 9]);
  assert.deepEqual(
    [from("ArrowLeft", 0), from("ArrowUp", 3), from("ArrowDown", 6), from("ArrowRight", 9)],
    [0, 3, 6, 9],
  );
  assert.equal(from("Enter", 5), null);
});

test("the zoom ends at one tile across, and at 32", () => {
  assert.deepEqual([zoomed(8, 1), zoomed(8, -1), zoomed(20, 1)], [10, 6, 24]);
  assert.deepEqual([zoomed(1, -1), zoomed(32, 1)], [1, 32]);
  let columns = 1;
  for (let i = 0; i < 40; i++) columns = zoomed(columns, 1);
  assert.equal(columns, 32);
});
