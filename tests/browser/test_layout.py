"""Columns fit the widget's width; what does nothing is not shown; the screenshots that a designer looks at."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from nbviz.widgets.explorer import VIEWS
from tests.browser.lab import Notebook
from tests.browser.test_explorer import EXPLORE, choose_layer, ready, select
from tests.browser.test_instruments import START
from tests.rounds import few, long

pytestmark = pytest.mark.parametrize("subshells", [True], indirect=True)
ABLATE = "table = nbviz.ablate(model, dataset, 'features.13', points=8, progress=False)"
#: How many columns stand beside each other, by the widget's width.
WIDTHS = {390: 1, 540: 1, 560: 2, 700: 2, 1000: 3}
#: Of the area of the columns, the share below the last thing in each.
BLANK = """columns => {
    let [all, blank] = [0, 0];
    for (const column of columns.children) {
        const own = column.getBoundingClientRect();
        const last = Math.max(...[...column.children].map(child => child.getBoundingClientRect().bottom));
        all += own.width * own.height;
        blank += own.width * Math.max(0, own.bottom - last);
    }
    return blank / all;
}"""


def box(place: Locator) -> dict[str, float]:
    found: Any = place.bounding_box()
    return found


def columns(widget: Locator) -> int:
    """The most columns that stand beside each other."""
    tops = [box(column)["y"] for column in widget.locator(".nbviz-columns > *").all()]
    return max(tops.count(top) for top in tops)


def set_width(book: Notebook, widget: Locator, width: int) -> None:
    widget.evaluate("(element, width) => { element.style.width = `${width}px` }", width)
    book.settle()


@pytest.mark.parametrize("kind", few(["Explorer", "Regions", "Ablation", "Invariance"]))
def test_as_many_columns_as_have_room(notebook: Callable[..., Notebook], kind: str) -> None:
    table = ", table=table" if kind == "Ablation" else ""
    book = notebook([START, ABLATE, f"nbviz.{kind}(model, images{table})"])
    widget = ready(book, 2)
    for width, count in WIDTHS.items():
        set_width(book, widget, width)
        assert columns(widget) == count, width
        assert widget.evaluate("element => element.scrollWidth - element.clientWidth") <= 0, width
        if width >= 560:
            assert widget.locator(".nbviz-columns").evaluate(BLANK) < 0.34, width


def test_what_starts_a_reconstruction_stands_above_it(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, "nbviz.explore(model, images)", "nbviz.Reconstruction(model, images)"])
    for cell in (1, 2):
        widget = ready(book, cell)
        seed, panels = select(widget, "From"), widget.locator(".nbviz-panels", has_text="Its strongest patch here")
        assert box(seed)["y"] < box(panels)["y"]
        assert box(seed)["x"] >= box(panels)["x"]


def test_tabs_that_wrap_keep_their_distance(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    set_width(book, widget, 390)
    tabs = [box(tab) for tab in widget.locator(".nbviz-tabs button").all()]
    rows = sorted({tab["y"] for tab in tabs})
    assert len(rows) > 1
    for above, below in pairwise(tabs):
        if above["y"] == below["y"]:
            assert below["x"] >= above["x"] + above["width"]
        else:
            assert below["y"] >= above["y"] + above["height"]


def test_what_does_nothing_is_not_shown(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, ABLATE, "nbviz.explore(model, images)", "nbviz.Kernels(model, 'features.2')"])
    widget = ready(book, 2)
    colours = widget.locator(".nbviz-grid select")
    expect(colours).to_be_visible()
    select(widget, "Tiles").select_option(label="deconvnet")
    expect(colours).to_be_hidden()
    select(widget, "Tiles").select_option(label="activation")
    expect(colours).to_be_visible()
    slices = ready(book, 3).locator(".nbviz-grid").nth(1)
    expect(slices.locator("canvas")).to_be_visible()
    expect(slices.locator("select")).to_be_hidden()
    # The order by redundancy, only for the layer of which it is known.
    book.add_and_run("view = nbviz.Ablation(model, images, table=table)\nview")
    widget = ready(book, 4)
    redundant = widget.get_by_role("button", name="redundant", exact=True)
    expect(redundant).to_be_visible()
    choose_layer(widget, "features.9")
    widget = ready(book, 4)
    expect(redundant).to_be_hidden()
    expect(widget.locator(".nbviz-empty").first).to_have_text("The table is of layer features.13.")


@long
def test_sliders_say_what_they_count_and_legends_look_like_their_curves(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, ABLATE, "nbviz.Ablation(model, images, table=table)", "nbviz.Ablation(model, images)"])
    widget = ready(book, 2)
    expect(widget.get_by_role("slider", name="Channels off")).to_be_visible()
    dashes = "lines => lines.map(line => line.getAttribute('stroke-dasharray'))"
    plot = widget.locator(".nbviz-plot").first
    curves = plot.locator("svg path").evaluate_all(dashes)
    assert plot.locator(".nbviz-legend line").evaluate_all(dashes) == curves
    assert set(curves) == {"none", "5 4"}
    expect(ready(book, 3).locator(".nbviz-empty").first).to_contain_text("nbviz.ablate")


#: Every widget as a person would open it, for the screenshots.
GALLERY = {
    **{f"Explorer-{view.replace(' ', '-')}": f"nbviz.explore(model, images, view={view!r})" for view in VIEWS},
    "FeatureMaps": "nbviz.FeatureMaps(model, images, layer='features.8')",
    "Reconstruction": "nbviz.Reconstruction(model, images, layer='features.8')",
    "Kernels": "nbviz.Kernels(model, 'features.2')",
    "TopPatches": "nbviz.TopPatches(model, dataset, 'features.8', k=6, progress=False)",
    "Ablation": "nbviz.Ablation(model, images, table=table)",
    "Maximise": "nbviz.Maximise(model, target=[1, 8], steps=16)",
    "Invariance": "nbviz.Invariance(model, images, values=[-40, -20, 0, 20, 40])",
    "Evolution": "nbviz.Evolution(model, {'before': before, 'after': model.state_dict()}, images, 'features.8')",
    "Correspondence": "nbviz.Correspondence(model, images[:4], random=10)",
    "Compare": "nbviz.Compare(model, model_b, images, comparison=comparison)",
    "ClassActivation": "nbviz.ClassActivation(model, images)",
    "Occlusion": "nbviz.Occlusion(model, images, stride=4)",
    "Regions": "nbviz.Regions(model, images, mask=torch.ones(28, 28, dtype=bool).triu())",
    "Sanity": "nbviz.Sanity(model, images)",
    "ScanView": "nbviz.scan(model, dataset, {'top': nbviz.statistics.TopK('features.8'),"
    " 'accuracy': nbviz.statistics.Accuracy()}, progress=False)",
    "Report": "nbviz.report(model, dataset, progress=False)",
}


@long
@pytest.mark.parametrize("name", GALLERY)
def test_every_widget_in_all_sizes_and_themes(notebook: Callable[..., Notebook], name: str) -> None:
    """For a designer's eye: nothing is wider than its place, and each is written as a screenshot."""
    book = notebook([START, ABLATE, OTHERS, GALLERY[name]])
    widget = ready(book, 3) if name not in ("ScanView", "Report") else book.cell(3).locator(".nbviz-table").first
    book.page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    try:
        for width in (390, 700, 1440):
            book.page.set_viewport_size({"width": width, "height": 2400})
            for theme in ("light", "dark"):
                book.set_theme(theme)
                book.screenshot(f"{name}-{width}-{theme}.png", widget)
            assert widget.evaluate("element => element.scrollWidth - element.clientWidth") <= 0 or name in (
                "ScanView",  # which scrolls
                "Report",
            )
    finally:
        book.page.set_viewport_size({"width": 1400, "height": 1500})
        book.page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        book.set_theme("light")


OTHERS = """
from nbviz.bundled.fashion import FashionNet
torch.manual_seed(0)
before = FashionNet().state_dict()
model_b = copy.deepcopy(model)
torch.nn.init.normal_(model_b.features[7].weight, std=0.1)
comparison = nbviz.compare(model, model_b, dataset, progress=False)
"""
