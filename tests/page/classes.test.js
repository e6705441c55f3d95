import assert from "node:assert/strict";
import test from "node:test";
import { inOrder, meant, titled } from "../../nbviz/widgets/static/classes.js";

const NAMES = ["tabby", "tiger cat", "cat", "espresso", "tiger"];

test("the most probable classes come first, then all others", () => {
  assert.deepEqual(inOrder(5, [3, 1]), [3, 1, 0, 2, 4]);
});

test("a text means the class of this name or number, or one that begins with it or holds it", () => {
  const means = (text, first = []) => meant(text, NAMES, inOrder(5, first));
  assert.equal(means(titled(NAMES, 1)), 1);
  assert.equal(means("cat"), 2);
  assert.equal(means("4"), 4);
  assert.equal(means("ESPR"), 3);
  assert.equal(means("ti"), 1);
  assert.equal(means("ti", [4]), 4); // the more probable one
  assert.equal(means("bb"), 0);
  assert.equal(means("dog"), null);
  assert.equal(means("  "), null);
});
