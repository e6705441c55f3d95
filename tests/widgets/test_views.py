"""What the views send: blocks of tiles, the strongest first, nothing twice; curves, boxes and switches."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets as t

from nbviz.export.figure import Panel
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import colour_table
from nbviz.widgets.figure_panels import filled_panels, grid_panel, plot_panel
from nbviz.widgets.views import Boxes, ChannelGrid, Panels, Plot, Region, Strip
from tests.rounds import few

NO_PICTURES = SimpleNamespace(names=[], plot=False)


class Page:
    """What a page makes of the traits that it is sent, by the rules of grid.js."""

    def __init__(self, view: Any) -> None:
        self.state: dict[str, Any] = {}
        self.sent: list[dict[str, Any]] = []
        view.send_state = self.receive
        self.view = view

    def receive(self, key: Any = None) -> None:
        names = [key] if isinstance(key, str) else list(key or self.view.keys)
        update = {name: getattr(self.view, name) for name in names}
        self.sent.append(update)
        self.state |= update

    def tiles(self) -> dict[int, np.ndarray[Any, Any]]:
        found: dict[int, np.ndarray[Any, Any]] = {}
        i = 0
        while len(found) < self.state["sent"]:
            block = self.state[f"block_{i}"]
            found |= dict(zip(block["channels"], decode(block), strict=True))
            i += 1
        return found


@pytest.fixture
def view() -> ChannelGrid:
    return ChannelGrid()


def show(view: ChannelGrid, pixels: np.ndarray[Any, Any], strength: np.ndarray[Any, Any], at_once: int) -> None:
    with view.hold_sync():
        view.draw_for("", "these")
        view.begin("map", pixels.shape[:3], strength, strength)
        send(view, pixels, at_once)
    while view.waiting(1):
        send(view, pixels, at_once)


def send(view: ChannelGrid, pixels: np.ndarray[Any, Any], at_once: int) -> int:
    channels = view.waiting(at_once)
    return view.add(pixels[channels], np.zeros(len(channels)), np.asarray(channels, float))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 100, 256, 257, 2048])
@pytest.mark.parametrize("at_once", few([1, 7, 16, 5000], 1, 3))
def test_every_tile_arrives_the_strongest_first(view: ChannelGrid, count: int, at_once: int) -> None:
    page = Page(view)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 2, 3), np.uint8)
    strength = rng.random(count)
    show(view, pixels, strength, at_once)
    tiles = page.tiles()
    assert list(tiles) == np.argsort(-strength).tolist()
    for channel, tile in tiles.items():
        np.testing.assert_array_equal(tile, pixels[channel])
    channels, sent = view.pixels()
    np.testing.assert_array_equal(sent, pixels[channels])
    assert page.sent[0].keys() >= {"tiles", "sent", "block_0"}  # in one message: no page without tiles between


def test_the_page_never_takes_an_old_block_for_a_new_one(view: ChannelGrid) -> None:
    page = Page(view)
    old, new = np.zeros((64, 2, 2), np.uint8), np.ones((64, 2, 2), np.uint8)
    show(view, old, np.arange(64.0), 64)
    view.draw_for("", "others")
    view.begin("map", new.shape, np.arange(64.0), np.arange(64.0))
    while view.waiting(1):
        send(view, new, 5)
        assert all((tile == 1).all() for tile in page.tiles().values())
        assert len(page.tiles()) == page.state["sent"]


def test_what_the_page_has_is_not_sent_again(view: ChannelGrid) -> None:
    page = Page(view)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    show(view, pixels, np.arange(64.0), 4)
    page.sent.clear()
    show(view, pixels, np.arange(64.0), 4)
    assert not any(name.startswith("block_") for update in page.sent for name in update)
    pixels[7] += 1
    show(view, pixels, np.arange(64.0), 4)
    changed = [name for update in page.sent for name in update if name.startswith("block_")]
    assert changed == ["block_14"]  # the strongest is number 63
    np.testing.assert_array_equal(page.tiles()[7], pixels[7])


def test_a_page_that_is_opened_anew_finds_all(view: ChannelGrid) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
    show(view, pixels, np.arange(40.0), 16)
    page = Page(view)
    page.receive()
    assert len(page.tiles()) == 40


def test_a_panels_pixels_are_not_sent_again_with_a_new_label() -> None:
    panels = Panels([{"title": "", "cells": [{"slot": "a"}, {"slot": "b"}]}])
    page = Page(panels)
    picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    panels.show("a", "picture", picture, box=[0, 0, 4, 4])
    assert page.state.keys() == {"slot_a", "label_a"}
    page.sent.clear()
    panels.show("a", "picture", picture, box=[1, 1, 5, 5])
    assert [update.keys() for update in page.sent] == [{"label_a"}]
    assert panels.slot("a")["box"] == [1, 1, 5, 5]
    assert panels.slot("b") == {}


# What the instruments added.


def test_curves_cross_as_numbers_that_a_message_can_carry() -> None:
    plot = Plot(title="<b>", range=[0, 1])
    page = Page(plot)
    x, y = np.arange(3, dtype=np.float32), torch.tensor([0.5, float("nan"), float("-inf")])
    plot.show([("a", x, y), ("a", range(2), [1, np.float64(2)]), ("b", (), ())], dashed=["b"])
    assert page.state.keys() == {"series"}
    assert json.loads(json.dumps(page.state["series"], allow_nan=False)) == [
        {"name": "a", "x": [0, 1, 2], "y": [0.5, None, None], "dashed": False},
        {"name": "a", "x": [0, 1], "y": [1, 2], "dashed": False},  # two may have the same name
        {"name": "b", "x": [], "y": [], "dashed": True},
    ]
    page.sent.clear()
    plot.show([("a", x, y), ("a", range(2), [1, 2]), ("b", (), ())], dashed=["b"])
    assert page.sent == []  # nothing new
    plot.show(())
    assert page.state["series"] == []


def test_a_plots_curves_become_those_of_the_figure() -> None:
    plot = Plot(title="t", xlabel="x", ylabel="y", range=[0, None], slider=ipywidgets.IntSlider(1))
    plot.show([("a", [0, 1], [3, float("nan")]), ("b", [0, 1], [1, 2])], dashed=["b"])
    panel = plot_panel(plot)
    assert (panel.caption, panel.labels, list(panel.dashed)) == ("t", ("x", "y"), ["b"])
    assert (list(panel.ends), panel.marker) == ([0, None], 1)
    assert [name for name, _, _ in panel.series] == ["a", "b"]
    assert panel.series[0][2][0] == 3
    assert np.isnan(panel.series[0][2][1])
    plot.slider = None
    assert plot_panel(plot).marker is None


def test_two_grids_may_have_one_scale(view: ChannelGrid) -> None:
    strength = np.zeros(2)
    view.begin("map", (2, 1, 1), strength, strength, ends=(-1.0, 3.0))
    assert view.tiles["ends"] == [-1.0, 3.0]
    view.begin("map", (2, 1, 1), strength, strength)
    assert "ends" not in view.tiles


@pytest.mark.parametrize(
    ("name", "values", "refused"),
    [
        ("off", [[3, 1], [], [0]], "1"),
        ("ranking", [[2, 0, 1], []], [0.5]),
        ("large", [True, False], "yes"),
        ("switches", [True, False], 3),
        ("order", ["index", "strongest", "spread", "redundant"], "weakest"),
        ("scale", ["shared", "each"], "all"),
    ],
)
def test_what_a_grid_says_beside_its_tiles(view: ChannelGrid, name: str, values: list[Any], refused: Any) -> None:
    page = Page(view)
    for value in values:
        setattr(view, name, value)
        assert page.state.get(name, value) == value
        view.set_state({name: value})
        assert getattr(view, name) == value
    before = getattr(view, name)
    with pytest.raises(t.TraitError):
        setattr(view, name, refused)
    assert getattr(view, name) == before


def test_switches_send_no_tile_again(view: ChannelGrid) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 4), np.uint8)
    show(view, pixels, np.arange(16.0), 16)
    page = Page(view)
    view.off = [3, 5]
    view.ranking = list(range(16))
    assert page.state.keys() == {"off", "ranking"}


def test_predictions_may_say_what_they_were_before() -> None:
    strip = Strip(NO_PICTURES, caption="Prediction: with all → now")
    page = Page(strip)
    strip.predictions = [("<b>cat", 0.25, 0.75), ("dog", 0.5, 0.0)]
    assert page.state == {"predictions": [("<b>cat", 0.25, 0.75), ("dog", 0.5, 0.0)]}
    assert strip.get_state()["caption"] == "Prediction: with all → now"
    assert Strip(NO_PICTURES).caption == "Prediction"


def test_boxes_come_from_the_page_and_go_to_it() -> None:
    boxes = Boxes(size=[8, 9], boxes=[[0, 0, 3, 3], [1, 1, 4, 4]])
    page = Page(boxes)
    boxes.set_state({"boxes": [[0, 0, 2, 2], [1, 1, 4, 4]]})
    assert boxes.boxes[0] == [0, 0, 2, 2]
    boxes.boxes = [[0, 0, 1, 1], [1, 1, 4, 4]]
    assert page.state["boxes"] == [[0, 0, 1, 1], [1, 1, 4, 4]]
    assert "pictures" not in page.state  # which are not sent again


@pytest.mark.parametrize("kind", [Plot, Boxes, lambda: Strip(NO_PICTURES), ChannelGrid, Region])
def test_each_view_is_one_module(kind: Any) -> None:
    made = kind()
    assert made._esm.count("export default") == 1
    assert "const page =" in made._esm  # what all share comes first
    assert ".innerHTML" not in made._esm  # text is text


def test_panels_of_an_earlier_state_are_no_part_of_the_figure() -> None:
    panels = Panels([{"title": "", "cells": [{"slot": "a"}, {"slot": "b"}]}, {"title": "", "cells": [{"slot": "c"}]}])
    assert filled_panels(panels) == []
    picture, heat = np.full((4, 6, 3), 100, np.uint8), np.full((2, 3), 255, np.uint8)
    panels.draw_for("part", "first")
    panels.show("a", "map", heat[..., None], caption="values")
    panels.show("b", "overlay", picture, heat, caption="over it")
    panels.draw_for("part", "second")
    panels.show("c", "signed", picture[..., :1], caption="grey")
    assert [[panel.caption for panel in row] for row in filled_panels(panels)] == [["grey"]]
    panels.draw_for("part", "first")
    panels.opacity = 0.25
    ((values, over),) = filled_panels(panels)
    np.testing.assert_array_equal(values.pixels, heat)
    assert values.cmap == "viridis"
    mixed = (0.75 * picture + 0.25 * colour_table("viridis")[255]).round()
    np.testing.assert_array_equal(over.pixels, mixed)


def grid_of(kind: str, **settings: Any) -> ChannelGrid:
    """Five channels of 24×24 equal pixels: channel c has the byte 100 + 20 c, from 0 to c + 1."""
    grid = ChannelGrid(**settings)
    high = torch.arange(1.0, 6.0)
    grid.draw_for("grid", "now")
    steps = (100 + 20 * torch.arange(5, dtype=torch.uint8))[:, None, None].expand(5, 24, 24)
    tiles = steps[..., None] if kind == "signed" else steps, torch.zeros(5) if kind == "map" else -high, high
    grid.show(kind, tiles, (high, high.flip(0)), (5, 24, 24))
    return grid


def levels_of(panel: Panel, columns: int) -> list[int]:
    """The red of each tile, which are 24 pixels wide and one apart."""
    pixels = np.asarray(panel.pixels)
    middles = [pixels[13 + 25 * (i // columns), 13 + 25 * (i % columns)] for i in range(5)]
    return [int(red) for red, _, _ in middles]


@pytest.mark.parametrize(
    ("settings", "columns", "channels", "levels"),
    [
        ({}, 3, [4, 3, 2, 1, 0], [180, 160, 140, 120, 100]),
        ({"order": "index"}, 3, [0, 1, 2, 3, 4], [100, 120, 140, 160, 180]),
        ({"order": "spread", "columns": 5}, 5, [0, 1, 2, 3, 4], [100, 120, 140, 160, 180]),
        ({"order": "redundant", "ranking": [1, 0, 2, 4, 3]}, 3, [1, 0, 2, 4, 3], [120, 100, 140, 180, 160]),
        # (100 + 20 c) (c + 1) / 5
        ({"order": "index", "scale": "shared"}, 3, [0, 1, 2, 3, 4], [20, 48, 84, 128, 180]),
    ],
)
def test_a_figures_grid_has_the_order_the_scale_and_the_columns_of_the_page(
    settings: dict[str, Any], columns: int, channels: list[int], levels: list[int]
) -> None:
    panel = grid_panel(grid_of("map", cmap="gray", **settings), picked=0)
    assert levels_of(panel, columns) == levels
    place = channels.index(0)
    top, left = 1 + 25 * (place // columns), 1 + 25 * (place % columns)
    assert panel.box == [top, left, top + 24, left + 24]
    assert panel.caption.startswith("5 channels, ")


@pytest.mark.parametrize(("scale", "factor"), [("each", [1, 1, 1, 1, 1]), ("shared", [0.2, 0.4, 0.6, 0.8, 1])])
def test_and_its_contrast(scale: str, factor: list[float]) -> None:
    grid = grid_of("signed", order="index", scale=scale, contrast=3.0)
    expected = [round(min(255.0, 128 + 3 * f * (100 + 20 * c - 128))) for c, f in enumerate(factor)]
    assert levels_of(grid_panel(grid), 3) == expected
    off = levels_of(grid_panel(grid, off=[1]), 3)
    assert off[1] == round(0.2 * expected[1] + 0.8 * 22)
    assert [*off[:1], *off[2:]] == [*expected[:1], *expected[2:]]


def test_a_grid_of_an_earlier_state_is_no_part_of_the_figure() -> None:
    grid = grid_of("map")
    grid.is_to_come("grid")
    assert grid_panel(grid).pixels is None
