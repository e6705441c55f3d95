// A class among thousands, found by typing a part of its name. The browser's own list offers what matches.

import { announcer, follow, make, together } from "./shared.js";

/** @import { Model } from "./shared.js" */

/** @typedef {object} Traits
 * @property {string} label
 * @property {string} help
 * @property {string[]} names
 * @property {number[]} first
 * @property {number} value */

/** All classes, those first that are the most probable. @param {number} count @param {number[]} first */
export function inOrder(count, first) {
  const known = new Set(first);
  return [...first, ...Array.from({ length: count }, (_, i) => i).filter((i) => !known.has(i))];
}

/** @param {string[]} names @param {number} number */
export const titled = (names, number) => `${names[number]} (${number})`;

/** The class that a text means: its whole title, its name, its number, or the first whose name begins with the text, or
 * holds it; null where there is none.
 * @param {string} text @param {string[]} names @param {number[]} order */
export function meant(text, names, order) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return null;
  const lower = (/** @type {number} */ i) => names[i].toLowerCase();
  const ways = /** @type {((i: number) => boolean)[]} */ ([
    (i) => titled(names, i).toLowerCase() === wanted,
    (i) => lower(i) === wanted || String(i) === wanted,
    (i) => lower(i).startsWith(wanted),
    (i) => lower(i).includes(wanted),
  ]);
  for (const way of ways) {
    const found = order.find(way);
    if (found !== undefined) return found;
  }
  return null;
}

let count = 0;

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  const id = `nbviz-classes-${Math.random().toString(36).slice(2)}-${++count}`;
  const list = make("datalist", { id });
  const input = make("input", { type: "text", title: model.get("help"), autocomplete: "off", spellcheck: false });
  input.setAttribute("list", id);
  const spoken = announcer();
  const note = make("div", { className: "nbviz-caption", hidden: true });
  /** @param {string} text */
  const say = (text) => {
    note.textContent = text;
    note.hidden = !text;
    spoken.say(text);
  };
  const order = () => inOrder(model.get("names").length, model.get("first"));
  const title = () => titled(model.get("names"), model.get("value"));
  const show = () => {
    input.value = title();
  };
  /** Take the class that the text means, or go back to the one there was. @param {boolean} exactly */
  const take = (exactly) => {
    const names = model.get("names");
    const found = meant(input.value, names, order());
    if (exactly && (found === null || titled(names, found) !== input.value)) return;
    if (found === null && input.value.trim()) say(`no class matches “${input.value.trim()}”`);
    if (found !== null && found !== model.get("value")) {
      model.set("value", found);
      model.save_changes();
    }
    show();
    if (document.activeElement === input) input.select(); // so that typing goes on with another name
  };
  // The browser lists what matches the text: all classes only where there is none.
  const open = () => {
    if (input.value !== title()) return;
    input.placeholder = input.value;
    input.value = "";
  };
  input.addEventListener("focus", () => input.select());
  input.addEventListener("pointerdown", open);
  input.addEventListener("input", () => {
    say("");
    take(true); // one of the list was chosen
  });
  input.addEventListener("change", () => take(false));
  input.addEventListener("blur", () => take(false));
  input.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowDown") open();
    else if (key === "Escape") show();
    else if (key === "Enter") take(false);
  });
  el.classList.add("nbviz-classes");
  el.append(
    make("label", { className: "nbviz-field" }, make("span", { textContent: model.get("label") }), input),
    list,
    note,
    spoken.line,
  );
  return together([
    follow(model, ["names", "first"], () => {
      list.replaceChildren(...order().map((i) => make("option", { value: titled(model.get("names"), i) })));
    }),
    follow(model, ["names", "value"], show),
  ]);
}

export default { render };
