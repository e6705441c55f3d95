"""Sends the tiles of a layer's channels to the page, the strongest first, as fast as it draws them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbviz.core.chunks import in_chunks
from nbviz.imaging.encode import Array
from nbviz.widgets.session import TILES

if TYPE_CHECKING:
    from nbviz.widgets.layer_widget import LayerWidget

FIRST = 16  # channels that are drawn before the rest
_AT_ONCE, _MOST_TILES = 2, 64  # reconstructions in one go, at first and at most
_TILES_SECONDS = 0.1  # that one go should take
_FIRST_BYTES = 1 << 18  # of tiles in the first message, which are more than are in view


class Tiles:
    """What one widget's grid is sent: maps, as far as they are in view, or reconstructions, each of which takes time.

    Parameters
    ----------
    view
        The widget, whose grid it fills.
    """

    def __init__(self, view: LayerWidget) -> None:
        self.view = view
        self._layer: tuple[str, str] | None = None  # and what its tiles start from
        self._key = ""  # what the tiles sent so far are of
        self._side, self._at_once, self._most, self._spent = 0, _AT_ONCE, _MOST_TILES, 0.0

    def begin(self) -> bool:
        """Start on other tiles; whether the page should draw the first before it is sent more."""
        view, session = self.view, self.view.session
        look, layer = view.look(), session.layers[view.layer]
        maps = view.tiles == TILES[0]
        kind, size = ("map", (1, *layer.shape[1:])[-2:]) if maps else ("signed", session.patch(layer, view.seed))
        if self._layer != (view.layer, view.seed):  # others take another time
            self._layer, self._at_once, self._most = (view.layer, view.seed), _AT_ONCE, _MOST_TILES
        # What the tiles to come are of as well, whatever changes meanwhile.
        self._side, self._key, self._spent = view.grid.side, view._key("grid"), 0.0
        with view.grid.hold_sync():
            view.grid.title = str(layer)
            view.grid.begin(kind, (layer.shape[0], *size), look.high, look.spread, session.axes == 1)
            much = maps and self._add_maps(_FIRST_BYTES)
        if maps:
            view.cost("tiles", None)
        return much

    def send(self, count: int | None = None) -> Iterator[bool]:
        """Send tiles until there are so many of them, or all; yields whether the page should draw them first."""
        grid = self.view.grid
        if not self._key:
            raise RuntimeError("the grid was not begun")
        count = grid.tiles["shape"][0] if count is None else count
        while grid.sent < count and grid.waiting(1):
            if self._key != self.view._key("grid"):  # a cell has trained the model meanwhile
                yield self.begin()
            yield self._add_maps(self.view.room) if self.view.tiles == TILES[0] else self._add_reconstructions()

    def _add_maps(self, room: int) -> bool:
        """Send some maps, of about so many bytes."""
        look, grid = self.view.look(self._side), self.view.grid
        channels = grid.waiting(max(FIRST, room // look.pixels[0].size))
        return grid.add(look.pixels[channels], look.low[channels], look.high[channels]) > room // 4

    def _add_reconstructions(self) -> bool:
        """The same with reconstructions."""
        view, session = self.view, self.view.session
        start = time.perf_counter()
        layer, places = session.layers[view.layer], view.look(self._side).place

        def patches(part: Sequence[int]) -> tuple[Array, Array]:
            maps, _ = session.reconstructions(view.picture, view.layer, part, view.tiles, view.seed)
            return session.patches(layer, maps, places[part].tolist(), view.seed, self._side)

        channels = view.grid.waiting(self._at_once)
        pieces = in_chunks(patches, channels, self._at_once, "one channel's reconstruction")
        if len(pieces) > 1:  # memory did not suffice for all
            self._most = len(pieces[0][1])
        pixels, scales = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        sent = view.grid.add(pixels, -scales, scales)
        spent = time.perf_counter() - start
        self._spent += spent
        view.cost("tiles", 1000 * self._spent)
        # As many as take about one chunk: few where each needs a backward pass over the whole picture.
        self._at_once = max(1, min(self._most, _MOST_TILES, round(self._at_once * _TILES_SECONDS / spent)))
        return sent > view.room // 4
