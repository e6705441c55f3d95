import assert from "node:assert/strict";
import test from "node:test";
import { filtered, firstFilter, grouped, offered } from "../../nbviz/widgets/static/layers.js";

const layer = (group, ...kinds) => ({ short: "", text: "", group, kinds });
const LAYERS = [
  layer("a"),
  layer("a", "after activation"),
  layer("a", "hidden"),
  layer("b", "stages", "after activation"),
  layer("a"),
];

test("a filter shows its own layers, and always the chosen one", () => {
  assert.deepEqual(filtered(LAYERS, "stages", 0), [0, 3]);
  assert.deepEqual(filtered(LAYERS, "after activation", 3), [1, 3]);
  assert.deepEqual(filtered(LAYERS, "all", 4), [0, 1, 3, 4]);
  assert.deepEqual(filtered(LAYERS, "all", 2), [0, 1, 2, 3, 4]);
  assert.deepEqual(filtered(LAYERS, "all + 1×1", 0), [0, 1, 2, 3, 4]);
  assert.deepEqual(filtered(LAYERS, "stages", 9), [3]);
});

test("many layers start with the stages, few or such without stages with all", () => {
  const many = Array.from({ length: 40 }, () => layer("a"));
  assert.equal(firstFilter(LAYERS), "all");
  assert.equal(firstFilter([...many, layer("b", "stages")]), "stages");
  assert.equal(firstFilter(many), "all");
  assert.equal(firstFilter([...Array.from({ length: 40 }, () => layer("a", "hidden")), ...LAYERS]), "all");
});

test("neighbours of one group come together", () => {
  assert.deepEqual(grouped(LAYERS, [0, 1, 3, 4]), [
    ["a", [0, 1]],
    ["b", [3]],
    ["a", [4]],
  ]);
});

test("a filter is offered where it shows other layers", () => {
  const some = [layer("a", "stages"), layer("b", "hidden")];
  assert.deepEqual(
    ["stages", "after activation", "all", "all + 1×1"].map((name) => offered(some, name)),
    [true, false, true, true],
  );
  assert.equal(offered([layer("a", "stages")], "all + 1×1"), false);
});
