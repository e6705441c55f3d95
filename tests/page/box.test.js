import assert from "node:assert/strict";
import test from "node:test";
import { between, covering, moved, moves, under } from "../../nbviz/widgets/static/box.js";

const SIZE = [10, 20];
const press = (key, shiftKey = false) => ({ key, shiftKey });

for (const [key, whole, corner] of [
  ["ArrowUp", [1, 5, 5, 9], [2, 5, 5, 9]],
  ["ArrowDown", [3, 5, 7, 9], [2, 5, 7, 9]],
  ["ArrowLeft", [2, 4, 6, 8], [2, 5, 6, 8]],
  ["ArrowRight", [2, 6, 6, 10], [2, 5, 6, 10]],
])
  test(`${key} moves the box, with Shift its lower right corner`, () => {
    assert.ok(moves(key));
    assert.deepEqual(moved([2, 5, 6, 9], press(key), SIZE), whole);
    assert.deepEqual(moved([2, 5, 6, 9], press(key, true), SIZE), corner);
  });

test("other keys are left to the notebook", () => {
  assert.ok(!moves("Enter"));
  assert.equal(moved([2, 5, 6, 9], press("Enter"), SIZE), null);
});

test("no key moves a box out of the picture, or makes it empty", () => {
  assert.equal(moved([0, 0, 10, 20], press("ArrowUp"), SIZE), null);
  assert.equal(moved([0, 0, 10, 20], press("ArrowLeft"), SIZE), null);
  assert.equal(moved([0, 0, 10, 20], press("ArrowDown", true), SIZE), null);
  assert.equal(moved([0, 0, 10, 20], press("ArrowRight", true), SIZE), null);
  assert.equal(moved([2, 5, 3, 9], press("ArrowUp", true), SIZE), null);
});

test("between two places lie whole pixels, one at least, whichever comes first", () => {
  assert.deepEqual(between([1.2, 3.7], [4.5, 6.1], SIZE), [1, 3, 5, 7]);
  assert.deepEqual(between([4.5, 6.1], [1.2, 3.7], SIZE), [1, 3, 5, 7]);
  assert.deepEqual(between([4, 6], [4, 6], SIZE), [4, 6, 5, 7]);
  assert.deepEqual(between([10, 20], [10, 20], SIZE).slice(0, 2), [9, 19]);
});

test("the pointer's place counts in the picture's own pixels, and stays within it", () => {
  const element = { getBoundingClientRect: () => ({ left: 100, top: 50, width: 40, height: 30 }) };
  assert.deepEqual(under({ clientX: 120, clientY: 65 }, element, SIZE), [5, 10]);
  assert.deepEqual(under({ clientX: 0, clientY: 1000 }, element, SIZE), [10, 0]);
});

test("a mark covers its box", () => {
  assert.equal(covering([1, 5, 6, 15], SIZE), "top:10%;left:25%;height:50%;width:50%");
});
