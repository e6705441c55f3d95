"""Names that hold HTML and scripts are text in a real page: no element comes of them and nothing runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Notebook

once = pytest.mark.parametrize("subshells", [True], indirect=True)
# Each would set a mark in the page if it ran, or be an element that the test finds.
MAKE = r"""
import nbviz, torch, tempfile
from pathlib import Path
from PIL import Image
from torch import nn

def evil(number):
    run = f"(window.ran = window.ran || []).push({number})"
    return f"<x-evil></x-evil><img src=x onerror='{run}'><script>{run}</script>\"><svg onload='{run}'>"

name = evil(1).replace(".", "·")
net = nn.Sequential()
net.add_module(name, type(evil(2), (nn.Conv2d,), {})(3, 4, 3))
net.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
net.__class__ = type(evil(3), (nn.Sequential,), {})
path = Path(tempfile.mkdtemp()) / evil(4).replace("/", "∕")
Image.new("RGB", (16, 16), "red").save(path, "PNG")
preprocess = nbviz.Preprocess(lambda picture: torch.rand(3, 16, 16), source=evil(6))
view = nbviz.explore(net, path, name, labels=[evil(5), "\ud800\u202e", "a" * 100_000], preprocess=preprocess)
"""
FAIL = """
class Fails(Exception):
    pass
Fails.__name__ = evil(7)
def fail(*_):
    raise Fails(evil(8))
handle = net[0].register_forward_hook(fail)
view.session.forget()
view.channel = (view.channel + 1) % 4
"""


@once
def test_names_are_text_in_the_page(notebook: Callable[..., Notebook]) -> None:
    book = notebook([MAKE, "view", "nbviz.layers(net, path, preprocess=preprocess)"], fresh=True)
    widget = book.cell(1).locator(".nbviz").first
    header = widget.locator(".nbviz-header")
    expect(header).to_have_attribute("data-state", "ready", timeout=30_000)
    book.wait_idle()
    for place in (header.locator("strong"), header.locator(".nbviz-info"), widget.locator(".nbviz-predictions")):
        expect(place).to_contain_text("<x-evil></x-evil><img src=x onerror=")
    layers = widget.locator(".nbviz-layers option")
    expect(layers.first).to_contain_text("<x-evil></x-evil><img src=x onerror=")
    title = widget.locator(".nbviz-thumbs button").get_attribute("title") or ""
    assert title.startswith("<x-evil><∕x-evil><img src=x onerror=")
    book.add_and_run(FAIL)
    expect(header).to_have_attribute("data-state", "error", timeout=30_000)
    expect(header.locator(".nbviz-error")).to_contain_text("<x-evil></x-evil><img src=x onerror=")
    book.settle()
    assert book.page.evaluate("() => window.ran ?? []") == []
    assert book.page.locator("x-evil").count() == 0
    assert book.page.locator(".nbviz script, .nbviz img, .nbviz svg").count() == 0
    longest = "Math.max(...[...document.querySelectorAll('.nbviz *')].map(element => element.textContent.length))"
    assert book.page.evaluate(f"() => {longest}") < 20_000
    # And it would have been seen.
    book.add_and_run("from IPython.display import HTML\nHTML(evil(9))")
    book.wait_for("return window.ran?.includes(9)")
    assert book.page.locator("x-evil").count() == 1
    book.console_errors.clear()  # that picture x is not to be had
