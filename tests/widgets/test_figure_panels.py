"""The figure of a widget shows what the page shows, and what the person has picked is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nbviz
from nbviz.widgets.figure_panels import grid_panel, named_panel
from tests.small import Small, pictures


def figure_of(view: nbviz.FeatureMaps | nbviz.Regions, name: str):
    view.finish()
    return named_panel(view._figure_rows(), name)


@pytest.mark.parametrize("channel", [0, 7, 29, 63])
@pytest.mark.parametrize("columns", [0, 3])
def test_the_picked_channel_is_in_the_figure(channel: int, columns: int) -> None:
    view = nbviz.FeatureMaps(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None], "features.8")
    view.grid.order, view.grid.columns, view.channel = "index", columns, channel
    panel = figure_of(view, "channels")
    assert channel in [number for *_, number in panel.numbers]
    assert panel.box is not None
    numbers = [number for *_, number in panel.numbers]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    top, left, *_ = panel.box
    x, y, _ = panel.numbers[numbers.index(channel)]
    assert (x, y) == (left, top)


def test_a_channel_that_is_off_is_in_the_figure() -> None:
    view = nbviz.FeatureMaps(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None], "features.8")
    view.grid.order, view.grid.columns = "index", 2
    view.finish()
    assert 50 in [number for *_, number in grid_panel(view.grid, off=[50]).numbers]


def test_the_large_map_is_in_the_figure() -> None:
    images = nbviz.bundled.fashion_test()[0][:1, None]
    model = nbviz.bundled.load("fashion")
    view = nbviz.FeatureMaps(model, images, "features.4", channel=5)
    panel = figure_of(view, "activation")
    expected = nbviz.feature_maps(model, images, "features.4", 5)[0, 0]
    assert panel.scale is not None
    assert (panel.scale.low, panel.scale.high) == (float(expected.amin()), float(expected.amax()))
    shown = panel.scale.low + panel.pixels / 255.0 * (panel.scale.high - panel.scale.low)
    np.testing.assert_allclose(shown, expected, atol=0.003 * panel.scale.high)


def test_a_painted_region_is_in_the_figure_and_what_was_predicted_before() -> None:
    mask = torch.ones(16, 16, dtype=torch.bool).triu()
    view = nbviz.Regions(Small().eval(), pictures(1), mask=mask)
    panel = figure_of(view, "region")
    plain = np.moveaxis(view.session.rendered(0).numpy(), 0, 2)
    np.testing.assert_array_equal(panel.pixels[mask], plain[mask])
    assert (panel.pixels[~mask] <= 0.31 * plain[~mask] + 1).all()
    names = [panel.name for row in view._figure_rows() for panel in row]
    assert names == ["region", "cut", "before", "after"]
