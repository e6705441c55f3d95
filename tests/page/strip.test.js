import assert from "node:assert/strict";
import test from "node:test";
import { spelled, walked } from "../../nbviz/widgets/static/strip.js";

test("keys go from picture to picture and stop at the ends", () => {
  const from = (key, place) => walked(key, place, 10, 4);
  assert.deepEqual(
    [from("ArrowLeft", 5), from("ArrowRight", 5), from("ArrowUp", 5), from("ArrowDown", 5)],
    [4, 6, 1, 9],
  );
  assert.deepEqual([from("Home", 5), from("End", 5)], [0, 9]);
  assert.deepEqual(
    [from("ArrowLeft", 0), from("ArrowUp", 2), from("ArrowDown", 7), from("ArrowRight", 9)],
    [0, 0, 9, 9],
  );
  assert.equal(from("Enter", 5), null);
});

test("a prediction is read aloud with what it was before", () => {
  assert.equal(spelled(["cat", 0.5]), "cat 0.50");
  assert.equal(spelled(["cat", 0.25, 0.5]), "cat 0.50, now 0.25");
  assert.equal(spelled(["value", 1234.567, -0.00012345], "value"), "value -0.0001234, now 1235");
});
