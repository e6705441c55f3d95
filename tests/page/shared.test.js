import assert from "node:assert/strict";
import test from "node:test";
import { deflateSync } from "node:zlib";
import {
  bytes,
  floats,
  follow,
  hear,
  inflate,
  inTurn,
  page,
  referred,
  tell,
} from "../../nbviz/widgets/static/shared.js";

/** A model of so many traits. */
function modelOf(traits) {
  const heard = new Map();
  return {
    heard,
    get: (name) => traits[name],
    on: (event, callback) => heard.set(event, callback),
    off: (event) => heard.delete(event),
    widget_manager: { get_model: async (id) => id },
  };
}

test("numbers are read from wherever they lie in a message", () => {
  const message = new Uint8Array(11);
  message.set(new Uint8Array(Float32Array.of(0.5, -2).buffer), 3);
  assert.deepEqual(floats(new DataView(message.buffer, 3)), Float32Array.of(0.5, -2));
});

test("bytes are those of their message, and none before it has come", () => {
  assert.deepEqual(bytes(new DataView(Uint8Array.of(1, 2, 3, 4).buffer, 1, 2)), Uint8Array.of(2, 3));
  assert.equal(bytes(undefined).length, 0);
});

test("pixels come deflated, or as they are", async () => {
  const pixels = Uint8Array.from({ length: 500 }, (_, i) => i % 7);
  const viewOf = ({ buffer, byteOffset, byteLength }) => new DataView(buffer, byteOffset, byteLength);
  assert.deepEqual(await inflate({ data: viewOf(deflateSync(pixels)), deflated: true }), pixels);
  assert.deepEqual(await inflate({ data: viewOf(pixels), deflated: false }), pixels);
});

test("work is done in turn, after an error too, and counts as drawing until it is done", async (context) => {
  context.mock.method(console, "error", () => {});
  const next = inTurn();
  const done = [];
  next(async () => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    done.push("slow");
  });
  next(async () => {
    throw new Error("broken");
  });
  next(async () => {
    done.push("quick");
  });
  assert.equal(page.drawing.size, 3);
  await Promise.all(page.drawing);
  assert.deepEqual(done, ["slow", "quick"]);
  assert.equal(console.error.mock.callCount(), 1);
  await null;
  assert.equal(page.drawing.size, 0);
});

test("a view hears the views of its own widget, until it ends", () => {
  const [own, other] = [modelOf({ group: "a" }), modelOf({ group: "b" })];
  const told = [];
  const end = hear(own, "contrast", (value) => told.push(value));
  tell(own, "contrast", 2);
  tell(other, "contrast", 3);
  tell(own, "cmap", "magma");
  assert.deepEqual(told, [2]);
  end();
  tell(own, "contrast", 4);
  assert.deepEqual(told, [2]);
});

test("what follows a model runs at once, at each change, and no more when it ends", () => {
  const model = modelOf({});
  let runs = 0;
  const end = follow(model, ["low", "high"], () => {
    runs++;
  });
  model.heard.get("change:high")();
  assert.equal(runs, 2);
  assert.deepEqual([...model.heard.keys()], ["change:low", "change:high"]);
  end();
  assert.equal(model.heard.size, 0);
});

test("a trait refers to a model by its id", async () => {
  assert.equal(await referred(modelOf({}), "IPY_MODEL_abc"), "abc");
});
