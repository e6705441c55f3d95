import assert from "node:assert/strict";
import test from "node:test";
import { tonesOf } from "../../nbviz/widgets/static/panels.js";

const TABLE = Uint32Array.from({ length: 256 }, (_, i) => 0xff000000 + i);

test("a picture is shown as it is, whatever the contrast", () => {
  assert.deepEqual([...tonesOf("picture", TABLE, 8).steps], [...Array(256).keys()]);
});

test("a map is coloured by the table", () => assert.equal(tonesOf("map", TABLE, 8).packed, TABLE));

test("contrast spreads what is signed around grey", () => {
  const { steps } = tonesOf("signed", TABLE, 2);
  assert.deepEqual([steps[0], steps[118], steps[128], steps[138], steps[255]], [0, 108, 128, 148, 255]);
});
