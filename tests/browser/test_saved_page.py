"""A page in which there is no kernel, such as nbconvert's: everything is dimmed, and the header says why."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, expect

from nbviz.widgets.views import Header

#: A header as html-manager shows it: its models have no comm, and their manager no kernel.
SAVED = """
async ([source, css, comm_live]) => {
    document.head.append(Object.assign(document.createElement("style"), {textContent: css}));
    const root = Object.assign(document.createElement("div"), {className: "nbviz"});
    root.innerHTML = "<div></div><div class='nbviz-columns'><div>an old picture</div></div>";
    const state = {title: "Net", info: "", cost: "", state: "ready", stale: [], error: "", note: "", code: "",
        controls: ["IPY_MODEL_own"], chunk: 1, painted: 1, hears: false};
    const own = {comm_live};
    const model = {get: name => state[name], set() {}, save_changes() {}, on() {}, off() {},
        widget_manager: {get_model: async () => own}};
    const {default: view} = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
    view.render({model, el: root.firstChild});  // before it is in the page, as hosts do
    document.body.append(root);
}
"""


@pytest.mark.parametrize("is_live", [True, False])
def test_a_saved_page_is_dimmed_and_says_so(context: BrowserContext, is_live: bool) -> None:
    page = context.new_page()
    try:
        page.evaluate(SAVED, [str(Header._esm), str(Header._css), is_live])
        header = page.locator(".nbviz-header")
        expect(header).to_have_attribute("data-chunk", "1")
        expect(header.locator(".nbviz-state")).to_have_text("ready" if is_live else "no kernel: this is a saved page")
        expect(page.locator(".nbviz-columns")).to_have_css("opacity", "1" if is_live else "0.5")
        expect(header).to_have_css("opacity", "1")
    finally:
        page.close()
