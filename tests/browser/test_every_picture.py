"""Signals, volumes and pictures of many bands in a real JupyterLab."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import kernel, panel, ready, select
from tests.rounds import long

once = pytest.mark.parametrize("subshells", [True], indirect=True)
SIGNALS = """
import nbviz, torch, json, math
from torch import nn
torch.manual_seed(0)
t = torch.linspace(0, 1, 400)
bursts = [torch.sin(2 * math.pi * f * t) * torch.exp(-((t - at) / 0.08) ** 2) for f, at in ((20, 0.3), (40, 0.6))]
net = nn.Sequential(nn.Conv1d(1, 12, 9, 2, 4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 24, 7, 1, 3), nn.ReLU(),
                    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 3)).eval()
view = nbviz.explore(net, torch.stack(bursts)[:, None], "4")
view
"""
VOLUMES = """
import nbviz, torch, json
from torch import nn
from nbviz.imaging.pixels import colour_table, quantise
torch.manual_seed(0)
z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (12, 32, 32)], indexing="ij")
ball = (z**2 + y**2 + x**2 < 0.6).float()
net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
                    nn.Conv3d(8, 10, 3, padding=1), nn.ReLU(),
                    nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(10, 3)).eval()
view = nbviz.explore(net, ball[None], "4", 2)
view
"""
BANDS = """
import nbviz, numpy as np, json
from torch import nn
picture = np.asarray(nbviz.bundled.pictures()[0].resize((80, 60)))
bands = np.concatenate([picture, 255 - picture[..., ::-1]], -1)
net = nn.Sequential(nn.Conv2d(6, 16, 3, 2, 1), nn.ReLU()).eval()
view = nbviz.explore(net, bands, "1")
view
"""


@long
@once
def test_a_signal_is_drawn_as_curves(notebook: Callable[..., Notebook]) -> None:
    book = notebook([SIGNALS])
    widget = ready(book)
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-by", "curves")
    thumb = book.pixels(widget.locator(".nbviz-thumbs canvas").first)
    drawn = (thumb[..., 3] > 100).any(0).nonzero()[0]  # a line from one end to the other
    assert drawn[0] <= 1
    assert drawn[-1] >= thumb.shape[1] - 2
    for slot in ("picture", "activation", "deconvnet", "guided"):
        pixels = book.pixels(panel(widget, slot).locator("canvas"))
        assert pixels.shape[:2] == (192, 384)
        assert 0 < (pixels[..., 3] > 200).mean() < 0.9
    before = book.pixels(widget.locator(".nbviz-scroller canvas"))
    select(widget, "Tiles").select_option(label="guided backprop")
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-shape", "24×1×35")
    widget = ready(book)
    assert not np.array_equal(book.pixels(widget.locator(".nbviz-scroller canvas")), before)
    book.screenshot("signals.png", widget)


@once
def test_a_volumes_slices_follow_the_slider(notebook: Callable[..., Notebook]) -> None:
    book = notebook([VOLUMES])
    widget = ready(book)
    slider = widget.locator(".widget-slider", has_text="Slice").locator("input, .noUi-handle").first
    slider.focus()
    for _ in range(5):
        book.page.keyboard.press("ArrowLeft")
    expect(panel(widget, "picture")).to_contain_text("slice 1")
    widget = ready(book)
    assert kernel(book, "view.plane") == 1
    book.add_and_run(
        "maps = nbviz.feature_maps(net, ball[None], '4')[0, 2]\n"
        "steps = quantise(maps[0], None, (maps.min(), maps.max()))[0]"
    )
    shown = book.pixels(panel(widget, "activation").locator("canvas"))[..., :3]
    np.testing.assert_array_equal(shown, kernel(book, "colour_table('viridis')[steps.numpy()].tolist()"))
    np.testing.assert_array_equal(
        book.pixels(panel(widget, "picture").locator("canvas"))[..., 0], kernel(book, "(255 * ball[1]).int().tolist()")
    )
    book.screenshot("volumes.png", widget)


@long
@once
def test_the_bands_in_the_dropdown_are_shown(notebook: Callable[..., Notebook]) -> None:
    book = notebook([BANDS])
    widget = ready(book)
    select(widget, "Bands").select_option(label="4")
    widget = ready(book)
    shown = book.pixels(panel(widget, "picture").locator("canvas"))[..., :3]
    np.testing.assert_array_equal(shown, np.repeat(np.asarray(kernel(book, "bands[..., 4:5].tolist()")), 3, -1))
    book.screenshot("bands.png", widget)
