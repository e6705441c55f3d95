// The names of several views in a row; one of them is shown below.

import { choices, follow } from "./shared.js";

/** @import { Model } from "./shared.js" */

/** @typedef {object} Traits
 * @property {string} label
 * @property {[string, string][]} options name and tooltip
 * @property {string} value */

/** @param {{model: Model<Traits>, el: HTMLElement}} context */
function render({ model, el }) {
  const tabs = choices(model.get("label"), model.get("options"), (name) => {
    model.set("value", name);
    model.save_changes();
  });
  tabs.group.className = "nbviz-tabs";
  el.append(tabs.group);
  return follow(model, ["value"], () => tabs.show(model.get("value")));
}

export default { render };
