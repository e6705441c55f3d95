// A layer among hundreds: a list in groups, a filter that makes it short, and steps to the layers before and after.

import { choices, follow, make, together } from "./shared.js";

/** @import { Model } from "./shared.js" */

/** @typedef {object} Layer
 * @property {string} short
 * @property {string} text
 * @property {string} group
 * @property {string[]} kinds */

/** @typedef {object} Traits
 * @property {string} label
 * @property {string} help
 * @property {Layer[]} layers
 * @property {number} index */

const FEW = 25; // layers that need no filter at first

/** @type {[string, string][]} */
const FILTERS = [
  ["stages", "the last layer of each size"],
  ["after activation", "activations, and what ends with one"],
  ["all", "all layers whose maps show something"],
  ["all + 1×1", "also layers of single pixels, and those that only hand on what they are given"],
];

/** The places of the layers that a filter shows, among them the one that is chosen.
 * @param {Layer[]} layers @param {string} filter @param {number} chosen */
export function filtered(layers, filter, chosen) {
  const shows = (/** @type {Layer} */ { kinds }) =>
    filter === "all + 1×1" || (filter === "all" ? !kinds.includes("hidden") : kinds.includes(filter));
  return [...layers.keys()].filter((i) => i === chosen || shows(layers[i]));
}

/** The filter at first: none where the layers are few, or have no stages. @param {Layer[]} layers */
export function firstFilter(layers) {
  const shown = layers.filter(({ kinds }) => !kinds.includes("hidden"));
  return shown.length > FEW && layers.some(({ kinds }) => kinds.includes("stages")) ? "stages" : "all";
}

/** Whether a filter shows other layers than "all" does, or fewer. @param {Layer[]} layers @param {string} filter */
export const offered = (layers, filter) =>
  filter === "all" || layers.some(({ kinds }) => kinds.includes(filter === "all + 1×1" ? "hidden" : filter));

/** Places in groups: neighbours of one group come together.
 * @param {Layer[]} layers @param {number[]} places @returns {[string, number[]][]} */
export function grouped(layers, places) {
  /** @type {[string, number[]][]} */
  const groups = [];
  for (const i of places) {
    const last = groups.at(-1);
    if (last?.[0] === layers[i].group) last[1].push(i);
    else groups.push([layers[i].group, [i]]);
  }
  return groups;
}

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  let filter = firstFilter(model.get("layers"));
  const layers = () => model.get("layers");
  const places = () => filtered(layers(), filter, model.get("index"));
  /** @param {number} place */
  const choose = (place) => {
    model.set("index", place);
    model.save_changes();
  };
  /** @param {number} by */
  const step = (by) => {
    const to = places()[places().indexOf(model.get("index")) + by];
    if (to !== undefined) choose(to);
  };
  const list = make("select", { title: model.get("help") });
  list.addEventListener("change", () => choose(Number(list.value)));
  const [before, after] = /** @type {[string, string, number][]} */ ([
    ["‹", "previous layer", -1],
    ["›", "next layer", 1],
  ]).map(([textContent, title, by]) =>
    make("button", { type: "button", textContent, title, "aria-label": title, onclick: () => step(by) }),
  );
  const filters = choices("Which layers are listed", FILTERS, (name) => {
    filter = name;
    show();
  });
  const text = make("div", { className: "nbviz-caption" });
  const label = make("label", { className: "nbviz-field" }, make("span", { textContent: model.get("label") }), list);
  el.classList.add("nbviz-layers");
  el.append(make("div", { className: "nbviz-steps" }, label, before, after), filters.group, text);

  /** @param {number} place */
  const option = (place) => make("option", { value: String(place), textContent: layers()[place].short });
  function show() {
    const shown = places();
    const chosen = model.get("index");
    list.replaceChildren(
      ...grouped(layers(), shown).flatMap(([label, members]) =>
        label ? make("optgroup", { label }, ...members.map(option)) : members.map(option),
      ),
    );
    list.value = String(chosen);
    const own = layers()[chosen]; // none while a list comes that the choice is not yet from
    text.textContent = own?.text ?? "";
    text.hidden = own?.text === own?.short;
    // Not "disabled", with which a button loses the focus.
    before.setAttribute("aria-disabled", String(chosen === shown[0]));
    after.setAttribute("aria-disabled", String(chosen === shown.at(-1)));
    filters.show(filter);
    for (const [name] of FILTERS) filters.offer(name, offered(layers(), name));
    filters.group.hidden = layers().every(({ kinds }) => !kinds.length);
    el.dataset.shown = String(shown.length);
  }
  return together([follow(model, ["layers", "index"], show)]);
}

export default { render };
