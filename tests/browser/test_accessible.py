"""What axe-core finds in every widget, and what it cannot: a focus that is seen, a pick that is read aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

from nbviz.widgets.explorer import VIEWS
from tests.browser.lab import Notebook
from tests.browser.test_explorer import EXPLORE, ready
from tests.browser.test_instruments import START
from tests.rounds import long
from tests.widgets.every_widget import EVERY

once = pytest.mark.parametrize("subshells", [True], indirect=True)
pytestmark = once
THEMES = ("light", "dark", "contrast")


def mostly(theme: str) -> list[Any]:
    """All themes; those other than this one for the long run."""
    return [pytest.param(name, marks=() if name == theme else long) for name in THEMES]


SMALL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.small import Small, pictures
from tests.widgets.every_widget import make
model = Small().eval()
"""
TABLE = """
table = nbviz.ablate(model, dataset, "features.13", points=8, progress=False)
nbviz.Ablation(model, images, table=table)
"""
#: All that takes the focus and is seen.
FOCUSABLE = ":is(button, select, input, .noUi-handle, .widget-readout, [tabindex='0']):visible"


def found(book: Notebook) -> list[Any]:
    """The serious faults in all widgets of the page."""
    results = Axe().run(book.page, ".nbviz")
    return [
        (fault["id"], node["target"], node.get("failureSummary"))
        for fault in results.response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def unnamed(book: Notebook) -> list[str]:
    """The canvases that are seen and have no name, and are not named by the button that they are in."""
    return book.page.locator(".nbviz canvas:visible").evaluate_all(
        """canvases => canvases.filter(canvas => !canvas.closest("[aria-hidden='true']")
            && !(canvas.role === "img" && canvas.ariaLabel?.trim())).map(canvas => canvas.outerHTML)"""
    )


def faint(book: Notebook) -> list[Any]:
    """Texts whose contrast with their ground is below 4.5, which axe-core leaves open within JupyterLab."""
    return book.page.evaluate(
        """() => {
            const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
            const over = (colours) => {  // the last uppermost
                context.clearRect(0, 0, 1, 1);
                for (const colour of colours) {
                    context.fillStyle = colour;
                    context.fillRect(0, 0, 1, 1);
                }
                return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const light = (rgb) => rgb.map(v => linear(v / 255))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const found = [];
            for (const element of document.querySelectorAll(".nbviz *")) {
                const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
                const isSeen = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
                if (!isSeen || !(text || element.matches("select, input[type='text']"))) continue;
                if (element.closest(":disabled, [aria-disabled=true], .nbviz-unseen")) continue;
                if (element.closest(".nbviz-tip, option, svg")) continue;
                const grounds = [];
                for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
                const ground = over(["white", ...grounds]);
                const ink = over([`rgb(${ground})`, getComputedStyle(element).color]);
                const [low, high] = [light(ground), light(ink)].sort((a, b) => a - b);
                const ratio = (high + 0.05) / (low + 0.05);
                if (ratio < 4.5) found.push([ratio.toFixed(2), element.className, element.textContent.slice(0, 40)]);
            }
            return found;
        }"""
    )


@pytest.mark.parametrize("theme", mostly("dark"))
def test_nothing_serious_in_any_widget(notebook: Callable[..., Notebook], theme: str) -> None:
    rows = [f"make({name!r}, model, pictures())" for name in EVERY]
    book = notebook([SMALL, *rows, START, TABLE], timeout=600)
    for cell in (*range(1, len(rows) + 1), len(rows) + 2):
        ready(book, cell)
    book.set_theme(theme)
    assert found(book) == []
    assert faint(book) == []
    assert unnamed(book) == []


@long
@pytest.mark.parametrize("theme", THEMES)
def test_nothing_serious_in_the_explorers_tabs(notebook: Callable[..., Notebook], theme: str) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.set_theme(theme)
    for view in VIEWS:
        widget.locator(".nbviz-tabs").get_by_role("button", name=view, exact=True).click()
        expect(widget.locator(".nbviz-tabs [aria-pressed='true']")).to_have_text(view)
        expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=60_000)
        book.wait_idle()
        assert found(book) == [], view
        assert faint(book) == [], view
        assert unnamed(book) == [], view


def outline(control: Locator) -> tuple[str, float]:
    return control.evaluate(
        "element => { const s = getComputedStyle(element); return [s.outlineStyle, parseFloat(s.outlineWidth)] }"
    )


@pytest.mark.parametrize("theme", mostly("light"))
def test_the_focus_is_seen_wherever_it_is(notebook: Callable[..., Notebook], theme: str) -> None:
    book = notebook([START, "nbviz.explore(model, images)", "nbviz.Regions(model, images)"])
    book.set_theme(theme)
    for cell in (1, 2):
        widget = ready(book, cell)
        for control in widget.locator(FOCUSABLE).all():
            book.page.keyboard.press("Shift")  # the focus that follows is the keyboard's
            control.focus()
            style, width = outline(control)
            assert style == "solid", control.evaluate("element => element.outerHTML.slice(0, 200)")
            assert width >= 2
    book.screenshot(f"focus-{theme}.png", ready(book, 2))


def test_a_pick_is_read_aloud(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    spoken = widget.locator(".nbviz-grid [aria-live='polite']")
    expect(spoken).to_have_text("")
    widget.locator(".nbviz-scroller").focus()
    book.page.keyboard.press("End")
    expect(spoken).to_contain_text("is picked")
    widget.locator(".nbviz-thumbs button").nth(1).click()
    expect(widget.locator(".nbviz-strip [aria-live='polite']")).to_contain_text("pullover")


def test_what_is_on_is_seen_in_the_systems_own_colours(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.page.emulate_media(forced_colors="active")
    try:
        ground = "element => getComputedStyle(element).backgroundColor"
        on, off = (
            widget.locator(f".nbviz-grid .nbviz-choices button[aria-pressed='{is_on}']").first
            for is_on in ("true", "false")
        )
        assert on.evaluate(ground) != off.evaluate(ground)
        bar = widget.locator(".nbviz-probability").first
        assert bar.evaluate(ground) not in (widget.evaluate(ground), "rgba(0, 0, 0, 0)")
        tab = widget.locator(".nbviz-tabs button")
        border = "element => getComputedStyle(element).borderBottomColor"
        assert tab.nth(0).evaluate(border) != tab.nth(1).evaluate(border)
        book.screenshot("forced-colours.png", widget)
    finally:
        book.page.emulate_media(forced_colors="none")
