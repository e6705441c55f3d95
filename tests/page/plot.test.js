import assert from "node:assert/strict";
import test from "node:test";
import { axes, pathOf, ticks, valueNear } from "../../nbviz/widgets/static/plot.js";
import { short } from "../../nbviz/widgets/static/shared.js";

for (const [low, high, most, expected] of [
  [0, 1, 4, [0, 0.25, 0.5, 0.75, 1]],
  [0, 10, 5, [0, 2, 4, 6, 8, 10]],
  [-3, 3, 4, [-2, 0, 2]],
  [0.1, 0.3, 4, [0.1, 0.15, 0.2, 0.25, 0.3]],
  [5, 5, 4, [5]],
])
  test(`ticks from ${low} to ${high} are round numbers`, () => assert.deepEqual(ticks(low, high, most), expected));

test("ticks are few, whatever the range", () => {
  for (const power of [-12, -3, 0, 6, 15])
    for (const factor of [1, 1.3, 2.7, 4.4, 9.9]) {
      const found = ticks(0, factor * 10 ** power, 4);
      assert.ok(found.length >= 2 && found.length <= 5, `${found}`);
    }
});

const CURVE = { x: [0, 1, 2, 3], y: [1, null, 3, 5] };

test("the axes span all curves, or the range that is given", () => {
  const own = axes([CURVE, { x: [4], y: [-1] }], [null, null], 400);
  assert.deepEqual([own.x0, own.x1, own.y0, own.y1], [0, 4, -1, 5]);
  const given = axes([CURVE], [0, 10], 400);
  assert.deepEqual([given.y0, given.y1], [0, 10]);
});

test("a curve without extent lies in the middle", () => {
  const { y0, y1 } = axes([{ x: [0, 1], y: [2, 2] }], [null, null], 400);
  assert.deepEqual([y0, y1], [1.5, 2.5]);
});

test("from units to pixels and back is where it began", () => {
  const { across, back, down } = axes([CURVE], [null, null], 400);
  for (const x of CURVE.x) assert.ok(Math.abs(back(across(x)) - x) < 1e-9);
  assert.ok(across(0) < across(3) && down(1) > down(5)); // y goes up
  assert.ok(across(3) < 400);
});

test("one place on the axis alone divides by nothing", () => {
  const { across } = axes([{ x: [2], y: [1] }], [null, null], 400);
  assert.ok(Number.isFinite(across(2)));
});

test("a path has a gap where there is no value", () => {
  const same = (value) => value;
  assert.equal(pathOf(CURVE, same, same), "M0.0 1.0M2.0 3.0L3.0 5.0");
  assert.equal(pathOf({ x: [0, 1], y: [null, null] }, same, same), "");
});

test("the value next to a place, or none", () => {
  assert.deepEqual([valueNear(CURVE, 2.4), valueNear(CURVE, 99), valueNear(CURVE, 1.1)], [3, 5, null]);
});

test("numbers have three digits, as a person writes them", () => {
  assert.deepEqual([0, 1, 1234.5, 0.00012345, -2.5].map(short), ["0", "1", "1230", "0.000123", "-2.5"]);
});
