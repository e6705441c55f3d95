"""What the grid sends: blocks of tiles, the strongest first, nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbviz.imaging.encode import decode
from nbviz.widgets.views import ChannelGrid, Panels


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
        view.begin("map", "these", pixels.shape[:3], strength, strength)
        send(view, pixels, at_once)
    while view.waiting(1):
        send(view, pixels, at_once)


def send(view: ChannelGrid, pixels: np.ndarray[Any, Any], at_once: int) -> int:
    channels = view.waiting(at_once)
    return view.add(pixels[channels], np.zeros(len(channels)), np.asarray(channels, float))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 100, 256, 257, 2048])
@pytest.mark.parametrize("at_once", [1, 7, 16, 5000])
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
    view.begin("map", "others", new.shape, np.arange(64.0), np.arange(64.0))
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
