"""Sends the tiles of a layer's channels to the page, the strongest first, as fast as the page draws them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbviz.core.chunks import in_chunks
from nbviz.imaging.encode import Array
from nbviz.widgets.session import TILES

if TYPE_CHECKING:
    from nbviz.core.layers import Layer
    from nbviz.widgets.layer_widget import LayerWidget

FIRST = 16  # channels that are drawn before the rest
_AT_ONCE, _MOST_TILES = 2, 64  # reconstructions in a batch, at first and at most
_TILES_SECONDS = 0.1  # that a batch should take
_FIRST_BYTES = 1 << 18  # of tiles in the first message, more than are in view


class Tiles:
    """Fills the grid of one widget: with maps, which are quick, or with reconstructions, which take their time.

    Parameters
    ----------
    widget
        The widget, whose ``grid`` it fills.
    """

    def __init__(self, widget: LayerWidget) -> None:
        self.widget = widget
        self._layer: tuple[str, str] | None = None  # the layer and the seed that the batch size was found for
        self._effective: Layer  # with the field that the reconstructions are cut to
        self._key = ""  # the state that the tiles sent so far show
        self._side, self._at_once, self._most, self._seconds = 0, _AT_ONCE, _MOST_TILES, 0.0

    def begin(self) -> bool:
        """Start on other tiles; whether the page should draw the first before it is sent more."""
        widget, session = self.widget, self.widget.session
        look, layer = widget.look(), session.layers[widget.layer]
        maps = widget.tiles == TILES[0]
        if maps:
            kind, size = "map", (1, *layer.shape[1:])[-2:]
        else:
            self._effective = session.effective(widget.picture, widget.layer, widget.seed, look)
            kind, size = "signed", session.patch(self._effective, widget.seed)
        if self._layer != (widget.layer, widget.seed):  # another layer's reconstructions take another time
            self._layer, self._at_once, self._most = (widget.layer, widget.seed), _AT_ONCE, _MOST_TILES
        # The tiles to come belong to this state, whatever changes meanwhile.
        self._side, self._key, self._seconds = widget.grid.side, widget._key("grid"), 0.0
        with widget.grid.hold_sync():
            widget.grid.begin(kind, (layer.shape[0], *size), look.high, look.spread, session.axes == 1)
            must_draw = maps and self._add_maps(_FIRST_BYTES)
        if maps:
            widget.cost("tiles", None)
        return must_draw

    def send(self, count: int | None = None) -> Iterator[bool]:
        """Send tiles until the page has ``count`` of them, or all; yields whether it should draw them first."""
        grid = self.widget.grid
        if "grid" in self.widget._stale:
            raise RuntimeError("the grid was not begun")
        while grid.waiting(1) and (count is None or grid.sent < count):
            if self._key != self.widget._key("grid"):  # a cell has trained the model meanwhile
                yield self.begin()
            yield self._add_maps(self.widget._room) if self.widget.tiles == TILES[0] else self._add_reconstructions()

    def _add_maps(self, room: int) -> bool:
        """Send maps of about ``room`` bytes."""
        look, grid = self.widget.look(self._side), self.widget.grid
        channels = grid.waiting(max(FIRST, room // look.pixels[0].size))
        return grid.add(look.pixels[channels], look.low[channels], look.high[channels]) > room // 4

    def _add_reconstructions(self) -> bool:
        """Send a batch of reconstructions."""
        widget, session = self.widget, self.widget.session
        start = time.perf_counter()
        places = widget.look(self._side).place

        def patches(channels: Sequence[int]) -> tuple[Array, Array]:
            maps, _ = session.reconstructions(widget.picture, widget.layer, channels, widget.tiles, widget.seed)
            return session.patches(self._effective, maps, places[channels].tolist(), widget.seed, self._side)

        channels = widget.grid.waiting(self._at_once)
        pieces = in_chunks(patches, channels, self._at_once, "one channel's reconstruction")
        if len(pieces) > 1:  # memory did not suffice for the batch
            self._most = len(pieces[0][1])
        pixels, scales = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        size = widget.grid.add(pixels, -scales, scales)
        seconds = time.perf_counter() - start
        self._seconds += seconds
        widget.cost("tiles", 1000 * self._seconds)
        # A batch takes about as long as a chunk: it is small where each needs a backward pass over the whole picture.
        self._at_once = max(1, min(self._most, _MOST_TILES, round(self._at_once * _TILES_SECONDS / seconds)))
        return size > widget._room // 4
