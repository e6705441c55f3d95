"""Cells that run while a widget draws: neither waits for the other for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Notebook
from tests.rounds import long, rounds

ROUNDS = rounds(5, 50)
VGG = """
import nbviz, torch, torchvision
torch.manual_seed(0)
net = torchvision.models.vgg16(weights=None).eval()
view = nbviz.explore(net, torch.rand(1, 3, 96, 96), layer="features.3")
view
"""
GROWING = """
import nbviz
grown = nbviz.Maximise(nbviz.bundled.load("fashion"), "features.8", [0, 1], steps=2048)
grown
"""
USES = "maps = nbviz.feature_maps(net, torch.rand(1, 3, 96, 96), 'features.8'); maps.shape"


def run_beside(book: Notebook) -> None:
    """Run the second cell to its end, whatever the widget of the first is at."""
    book.run_cell(1, wait=False)
    book.wait_for("return window.nbvizRun.done", timeout=60)


@pytest.mark.parametrize("subshells", [True], indirect=True)
def test_layers_are_chosen_and_cells_run_beside_each_other(notebook: Callable[..., Notebook]) -> None:
    book = notebook([VGG, USES])
    layer = book.page.locator(".nbviz-explorer select").first
    count = layer.locator("option").count()
    for i in range(ROUNDS):
        layer.select_option(index=(7 * i) % count)  # of which the page tells the kernel at once
        run_beside(book)
    header = book.page.locator(".nbviz-header").first
    expect(header).to_have_attribute("data-state", "ready", timeout=60_000)


@long
@pytest.mark.parametrize("subshells", [True], indirect=True)
def test_cells_run_beside_pictures_that_grow(notebook: Callable[..., Notebook]) -> None:
    book = notebook(
        [
            GROWING,
            "model = nbviz.bundled.load('fashion'); nbviz.layers(model, nbviz.bundled.fashion_test()[0][:1, None])[0]",
        ]
    )
    for _ in range(10):
        run_beside(book)
        assert "features.0" in book.cell_output_text(1)
