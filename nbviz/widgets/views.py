"""The views in the page: one class for each ES module in ``static/``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import traitlets as t
from torch import Tensor

from nbviz.core.state import uninterrupted
from nbviz.imaging.encode import Array, decode, encode, jpeg, to_host
from nbviz.imaging.pixels import as_levels, colour_table
from nbviz.widgets.heartbeat import beat_for
from nbviz.widgets.view import STATIC, View

if TYPE_CHECKING:
    from nbviz.widgets.thumbs import Thumbs

_THUMBS = 16  # pictures in a block of the strip: about as many as are in view
_BLOCKS = 128  # the most blocks of a grid
_PIXELATED = 64  # the longer side, in pixels, up to which the page shows single pixels
#: The colour maps that the page offers.
COLOURS = ("viridis", "magma", "inferno", "cividis", "gray", "turbo", "coolwarm")
#: The orders and the scales of a grid of channels, and the most tiles in a row.
ORDERS, SCALES, MOST_COLUMNS = ("index", "strongest", "spread", "redundant"), ("each", "shared"), 32
_TABLES = {name: colour_table(name).tobytes() for name in COLOURS}
#: Tags of a trait that holds widgets, which the page gets as references.
_WIDGETS = {"sync": True, **ipywidgets.widget_serialization}


class Header(View):
    """The model, the last change's cost, the kernel's state, errors, warnings and notes; it asks for chunks of work."""

    _script = "header.js"
    _css = (STATIC / "nbviz.css").read_text(encoding="utf-8")
    # The page writes the last two, the kernel all others.
    title = t.Unicode().tag(sync=True)
    info = t.Unicode().tag(sync=True)
    cost = t.Unicode().tag(sync=True)
    state = t.Unicode("ready").tag(sync=True)  # ready, working, waiting, interrupted or error; a reason after a colon
    stale: t.List[Any] = t.List().tag(sync=True)  # the parts whose pictures show an earlier state
    error = t.Unicode().tag(sync=True)
    note = t.Unicode().tag(sync=True)
    warning = t.Unicode().tag(sync=True)  # why all that is shown may be wrong
    code = t.Unicode().tag(sync=True)  # the call that gives this view
    controls: t.List[Any] = t.List().tag(**_WIDGETS)  # itself, and those whose changes the kernel must answer
    chunk = t.Int().tag(sync=True)  # the number of the last chunk that was sent
    painted = t.Int().tag(sync=True)  # the last chunk that is on the screen
    hears = t.Bool(default_value=False).tag(sync=True)  # whether the page listens for the heartbeat

    @contextmanager
    def says_working(self) -> Iterator[None]:
        """Show the state "working" while something is made that is not one of the widget's parts."""
        before, self.state = self.state, "working"
        try:
            yield
        finally:
            self.state = before

    @t.observe("hears")
    def _heard(self, change: Any) -> None:
        if change.new:
            beat_for(self)


class Strip(View):
    """The pictures to choose from, and the predictions for the chosen picture.

    The pictures are sent in blocks, each when it comes into view.
    """

    _script = "strip.js"
    names: t.List[Any] = t.List().tag(sync=True)  # of all pictures
    plot = t.Bool(default_value=False).tag(sync=True)  # whether they are signals, which are drawn as curves
    block = t.Int(_THUMBS).tag(sync=True)  # how many pictures are in a block
    wanted: t.List[Any] = t.List().tag(sync=True)  # written by the page: the blocks that have come into view
    picture = t.Int().tag(sync=True)  # written by both
    caption = t.Unicode("Prediction").tag(sync=True)  # above the predictions
    measure = t.Unicode("probability").tag(sync=True)  # what is predicted: that, or a "value"
    # Written by the kernel: (label, probability), or (label, probability, probability before a change).
    predictions: t.List[Any] = t.List().tag(sync=True)

    def __init__(self, thumbs: Thumbs, **kwargs: Any) -> None:
        self.thumbs, blocks = thumbs, math.ceil(len(thumbs.names) / _THUMBS)
        # Before the base class opens the comm, which reads the list of traits once.
        self.add_traits(**{f"block_{i}": t.Dict().tag(sync=True) for i in range(blocks)})
        super().__init__(names=thumbs.names, plot=thumbs.plot, **kwargs)

    def show(self, thumbs: Thumbs) -> None:
        """Show other versions of the same pictures."""
        self.thumbs = thumbs
        for block in range(math.ceil(len(self.names) / _THUMBS)):
            if getattr(self, f"block_{block}"):
                self.send(block)

    @t.observe("wanted")
    def _come_into_view(self, change: Any) -> None:
        for block in change.new:
            if getattr(self, f"block_{block}", None) == {}:  # the page may ask for a block that there is not
                self.send(block)

    def send(self, block: int) -> None:
        """Send the pictures of a block."""
        pixels = self.thumbs.pixels(slice(_THUMBS * block, _THUMBS * (block + 1)))
        # JPEG's losses are not visible in a photograph of this size; they are where single pixels are shown.
        photographs = not self.plot and max(pixels.shape[1:3]) > _PIXELATED
        sent = {"shape": list(pixels.shape), "jpegs": list(map(jpeg, pixels))} if photographs else encode(pixels)
        self.set_trait(f"block_{block}", sent)


class Coloured(View):
    """A view of maps. All of one group share the colour map and the contrast, which the page changes by itself."""

    tables = t.Dict(_TABLES).tag(sync=True)
    group = t.Unicode().tag(sync=True)
    cmap = t.Enum(COLOURS, "viridis").tag(sync=True)
    contrast = t.Float(2.0).tag(sync=True)


class ChannelGrid(Coloured):
    """All channels of a layer, in colours, an order and a scale that the page changes by itself.

    The channels come in blocks, the strongest first, each block in a trait of its own: what the page has is not sent
    again, and a page that is opened later finds all of them.
    """

    _script = "grid.js"
    # Written by the kernel: the tiles' size and kind, and how many the first blocks hold; later blocks are old.
    tiles: t.Dict[str, Any] = t.Dict().tag(sync=True)
    sent = t.Int().tag(sync=True)
    title = t.Unicode().tag(sync=True)  # what the tiles are, where no control says it
    scale = t.Enum(SCALES, "each").tag(sync=True)
    order = t.Enum(ORDERS, "strongest").tag(sync=True)
    columns = t.Int(0, min=0, max=MOST_COLUMNS).tag(sync=True)  # tiles in a row; 0 takes up to 8
    ranking = t.List(t.Int()).tag(sync=True)  # the channels, the most redundant first; empty where it is unknown
    large = t.Bool(False).tag(sync=True)  # whether the picked channel is shown large below the grid
    switches = t.Bool(False).tag(sync=True)  # whether a click switches a channel off and on
    off = t.List(t.Int()).tag(sync=True)  # written by both: the channels that are switched off
    channel = t.Int().tag(sync=True)  # the picked channel, where there is no slider
    slider = t.Instance(ipywidgets.Widget, allow_none=True).tag(**_WIDGETS)  # whose value is the picked channel
    side = t.Int(64, min=1).tag(sync=True)  # written by the page: pixels of the screen along a tile's longer side

    def __init__(self, **kwargs: Any) -> None:
        # Before the base class opens the comm, which reads the list of traits once.
        self.add_traits(**{f"block_{i}": t.Dict().tag(sync=True) for i in range(_BLOCKS)})
        self._waiting: list[int] = []  # channels that are not yet sent, in their order
        self._closed = 0  # blocks that are full
        self._open: tuple[list[int], Array, Array, Array] | None = None  # the next block: channels, pixels, ends
        self._is_to_come = False
        super().__init__(**kwargs)

    def begin(
        self,
        kind: str,
        shape: Sequence[int],
        strength: Array,
        spread: Array,
        plots: bool = False,
        ends: tuple[float, float] | None = None,
    ) -> None:
        """Start on other tiles.

        Parameters
        ----------
        kind
            ``"map"`` for values to colour, ``"signed"`` for colours around grey.
        shape
            The number of channels, and height and width of a tile at full size; the page may be sent smaller ones.
        strength, spread
            For each channel, the values by which the page orders them.
        plots
            Draw tiles of height 1 as curves.
        ends
            Low and high of the shared scale, where other grids share it too.
        """
        self._waiting = np.argsort(-strength, kind="stable").tolist()
        self._closed, self._open = 0, None
        self._is_to_come = False
        self.sent = 0
        self.tiles = {
            "key": self.tiles.get("key", 0) + 1,
            "kind": kind,
            "state": self._drawn[1],
            "shape": list(shape),
            "strength": _floats(strength),
            "spread": _floats(spread),
            "plots": plots,
            **({} if ends is None else {"ends": list(ends)}),
        }

    def is_to_come(self, part: str) -> None:
        """The tiles show an earlier state."""
        self._is_to_come = True

    def waiting(self, most: int) -> list[int]:
        """The channels that are sent next, at most this many."""
        return self._waiting[:most]

    def add(self, pixels: Array, low: Array, high: Array) -> int:
        """Send the next channels' tiles, uint8 (K, h, w) or (K, h, w, C); returns the number of bytes sent."""
        added = self._waiting[: len(pixels)]
        channels = added
        if self._open is not None:
            channels = self._open[0] + added
            pairs = zip(self._open[1:], (pixels, low, high), strict=True)
            pixels, low, high = (np.concatenate(pair) for pair in pairs)
        block = {"channels": channels, "low": _floats(low), "high": _floats(high), **encode(pixels)}
        size = 0 if block == self.block(self._closed) else len(block["data"])
        # A block holds so many tiles that the blocks suffice for all of them.
        left = self.tiles["shape"][0] - self.sent + (len(channels) - len(added))
        is_full = len(channels) * (_BLOCKS - self._closed) >= left
        with uninterrupted(), self.hold_sync():  # all of it or nothing
            self.set_trait(f"block_{self._closed}", block)
            self.sent += len(added)
            self._waiting = self._waiting[len(added) :]
            self._open = None if is_full else (channels, pixels, low, high)
            self._closed += is_full
        return size

    def show(
        self,
        kind: str,
        tiles: tuple[Tensor, Tensor, Tensor],
        ranks: tuple[Tensor, Tensor],
        shape: Sequence[int] | None = None,
        ends: tuple[float, float] | None = None,
    ) -> None:
        """Start on other tiles and send all: pixels, low and high, and the strength and the spread of each channel.

        See :meth:`begin`. Without a ``shape`` they are sent at full size.
        """
        pixels, low, high, strength, spread = to_host(*tiles, *ranks)
        self.begin(kind, shape or pixels.shape[:3], strength, spread, ends=ends)
        order = self.waiting(len(pixels))
        self.add(pixels[order], low[order], high[order])

    def wants_more(self, change: Any) -> bool:
        """Whether the page has enlarged its tiles (``side``), and there are more pixels than it was sent."""
        whole = int(max(self.tiles.get("shape", [1])[1:], default=1))  # no shape yet where nothing was drawn
        new, old = max(1, whole // int(change.new)), max(1, whole // int(change.old))
        return new < old

    def block(self, number: int) -> dict[str, Any]:
        """A block's contents; empty if it has none yet."""
        contents: dict[str, Any] = getattr(self, f"block_{number}")
        return contents

    def _blocks(self) -> list[dict[str, Any]]:
        return [self.block(i) for i in range(self._closed + (self._open is not None))]

    def pixels(self) -> tuple[list[int], Array]:
        """The channels that have been sent, and their tiles (K, h, w) or (K, h, w, C)."""
        blocks = self._blocks()
        return [c for block in blocks for c in block["channels"]], np.concatenate([decode(block) for block in blocks])

    def tile(self, channel: int) -> tuple[Array, float, float]:
        """A channel that has been sent: its tile, from its lowest value at 0 to its highest at 255, and these."""
        channels, pixels = self.pixels()
        blocks, place = self._blocks(), channels.index(channel)
        low, high = (np.frombuffer(b"".join(block[end] for block in blocks), np.float32) for end in ("low", "high"))
        return pixels[place], float(low[place]), float(high[place])

    # What follows is what grid.js and paint.js do, for figures.

    @property
    def nrow(self) -> int:
        """How many tiles are in a row."""
        return self.columns or max(1, min(8, math.ceil(math.sqrt(self.tiles["shape"][0]))))

    def is_current(self) -> bool:
        """Whether tiles have been sent since the grid's part became stale."""
        return not self._is_to_come and self.sent > 0

    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value of the shared scale, as far as tiles have been sent."""
        blocks, ends = self._blocks(), self.tiles.get("ends", (np.inf, -np.inf))
        low, high = (np.frombuffer(b"".join(block[end] for block in blocks), np.float32) for end in ("low", "high"))
        return float(min(low.min(), ends[0])), float(max(high.max(), ends[1]))

    def levels(self) -> tuple[list[int], Array]:
        """The channels that have been sent, in the page's order, and their tiles as levels 0 to 255 on its scale."""
        channels, pixels = self.pixels()
        blocks, one_each = self._blocks(), (-1, *[1] * (pixels.ndim - 1))
        low, high = (np.frombuffer(b"".join(block[end] for block in blocks), np.float32) for end in ("low", "high"))
        lowest, highest = self.ends()
        if self.tiles["kind"] == "signed":
            factor = high / (highest or 1) if self.scale == "shared" else np.ones_like(high)
            levels: Array = self.contrast * factor.reshape(one_each) * (pixels - 128.0) + 128
        else:
            span = highest - lowest or 1
            is_own = (low != high) & (self.scale == "each")
            factor = np.where(is_own, 1, (high - low) / span)
            shift = np.where(is_own, 0, 255 * (low - lowest) / span)
            levels = factor.reshape(one_each) * pixels + shift.reshape(one_each)
        rank = {channel: place for place, channel in enumerate(self._in_order())}
        places = sorted(range(len(channels)), key=lambda i: rank[channels[i]])
        return [channels[i] for i in places], as_levels(levels[places])

    def _in_order(self) -> list[int]:
        count = self.tiles["shape"][0]
        if self.order == "redundant" and len(self.ranking) == count:
            return list(self.ranking)
        if self.order in ("index", "redundant"):
            return list(range(count))
        strength = np.frombuffer(self.tiles["strength" if self.order == "strongest" else "spread"], np.float32)
        order: list[int] = np.argsort(-strength, kind="stable").tolist()
        return order


def _floats(values: Array) -> bytes:
    return values.astype(np.float32).tobytes()


#: A curve's name, x and y.
Curve = tuple[str, Sequence[float], Sequence[float]]


class Plot(View):
    """Curves over one axis. A marker follows the slider, if there is one, and a click on the curves moves it."""

    _script = "plot.js"
    # Written by the kernel: each curve's name, x, y (None where there is no value), and whether it is dashed.
    series: t.List[Any] = t.List().tag(sync=True)
    title = t.Unicode().tag(sync=True)
    empty = t.Unicode().tag(sync=True)  # shown while there are no curves: what would give some
    xlabel = t.Unicode().tag(sync=True)
    ylabel = t.Unicode().tag(sync=True)
    range: t.List[Any] = t.List([None, None]).tag(sync=True)  # low and high of the y axis; None fits the curves
    slider = t.Instance(ipywidgets.Widget, allow_none=True).tag(**_WIDGETS)  # whose value is marked

    def show(self, curves: Iterable[Curve], dashed: Sequence[str] = ()) -> None:
        """Draw these curves; those named in ``dashed`` are."""
        self.series = [
            {"name": name, "x": list(map(float, x)), "y": list(map(_number, y)), "dashed": name in dashed}
            for name, x, y in curves
        ]


def _number(value: float) -> float | None:
    """A number that a message can carry."""
    return float(value) if math.isfinite(value) else None


class Boxes(View):
    """Pictures; a person draws a box on each."""

    _script = "boxes.js"
    pictures: t.List[Any] = t.List().tag(sync=True)  # the name, shape (h, w, C) and data of each, from the kernel
    size: t.List[Any] = t.List([1, 1]).tag(sync=True)  # height and width of a picture in the boxes' units
    title = t.Unicode().tag(sync=True)
    boxes: t.List[Any] = t.List().tag(sync=True)  # written by both: top, left, bottom and right, ends excluded


class Region(View):
    """A picture in which a person marks a region by drawing a box or by painting."""

    _script = "region.js"
    picture: t.Dict[str, Any] = t.Dict().tag(sync=True)  # shape (h, w, C) and data, written by the kernel
    size: t.List[Any] = t.List([1, 1]).tag(sync=True)  # height and width of the picture in the region's units
    # Written by both.
    mode = t.Enum(("box", "paint"), "box").tag(sync=True)
    box: t.List[Any] = t.List([0, 0, 1, 1]).tag(sync=True)  # top, left, bottom and right, ends excluded
    # What is painted: a byte of 0 or 1 for each pixel, row by row. The page's message holds it as a memoryview.
    mask = t.Bytes().tag(sync=True, from_json=lambda value, _: bytes(value))


def picture_row(title: str, *slots: str, crop: bool = False) -> dict[str, Any]:
    """A row of pictures, given by the names of their slots, each whole or cropped to its inner box."""
    return {"title": title, "cells": [{"slot": slot, "crop": crop} for slot in slots]}


def picture_rows(title: str, slots: Sequence[str], columns: int) -> list[dict[str, Any]]:
    """Rows of at most so many pictures each, under one title."""
    starts = range(0, len(slots), columns)
    return [picture_row("" if start else title, *slots[start : start + columns]) for start in starts]


class Panels(Coloured):
    """Rows of pictures. Each has a slot of its own, so that only what has changed is sent.

    Parameters
    ----------
    rows
        Each row's ``title`` and ``cells``, see :func:`picture_row`.
    plots
        Draw pictures of height 1 as curves, one for each channel.
    controls
        Any of ``"cmap"``, ``"contrast"`` and ``"opacity"``: what is set below the pictures.
    """

    _script = "panels.js"
    rows: t.List[Any] = t.List().tag(sync=True)
    controls: t.List[Any] = t.List().tag(sync=True)
    opacity = t.Float(0.6, min=0.0, max=1.0).tag(sync=True)
    note = t.Unicode().tag(sync=True)
    plots = t.Bool(default_value=False).tag(sync=True)
    # The current state of each part that is drawn here: pictures that show another state are dimmed.
    current: t.Dict[str, str] = t.Dict({"": ""}).tag(sync=True)

    def __init__(self, rows: list[dict[str, Any]], **kwargs: Any) -> None:
        slots = sorted({cell["slot"] for row in rows for cell in row["cells"]})
        names = [f"{kind}_{slot}" for slot in slots for kind in ("slot", "over", "patch", "label")]
        self._to_come = set[str]()
        # Before the base class opens the comm, which reads the list of traits once.
        self.add_traits(**{name: t.Dict().tag(sync=True) for name in names})
        super().__init__(rows=rows, **kwargs)

    def draw_for(self, part: str, key: str) -> None:
        """From now on, this part is drawn here, and shows this state."""
        super().draw_for(part, key)
        self._to_come.discard(part)
        self.current = {**self.current, part: key}

    def is_to_come(self, part: str) -> None:
        """The pictures of this part show an earlier state."""
        self._to_come.add(part)

    def is_current(self, slot: dict[str, Any]) -> bool:
        """Whether a slot has been filled since its part became stale."""
        if not slot or slot["part_drawn"] in self._to_come:
            return False
        return bool(slot["key"] == self.current.get(slot["part_drawn"]))

    def slot(self, name: str) -> dict[str, Any]:
        """A slot's contents; empty if it has none yet."""
        own, label, patch, over = (getattr(self, f"{kind}_{name}") for kind in ("slot", "label", "patch", "over"))
        return {**own, **label, "patch": patch, "over": over} if own else {}

    def show(
        self,
        slot: str,
        kind: str,
        pixels: Array,
        over: Array | None = None,
        patch: Array | None = None,
        **label: Any,
    ) -> None:
        """Fill a slot.

        Parameters
        ----------
        slot
            Its name.
        kind
            ``"picture"`` or ``"overlay"`` for colours, ``"map"`` for values to colour, ``"signed"`` for colours around
            grey.
        pixels
            uint8 (H, W, C) with 1 or 3 channels.
        over
            The upper picture of an overlay: a uint8 map (h, w), or colours (h, w, 3).
        patch
            The picture of a cropped cell, uint8 (h, w, C); without it, the page cuts it out of ``pixels``.
        **label
            ``caption``; ``part``, the caption of a cropped cell; ``box`` (top, left, bottom, right) in a picture of
            ``size``, and ``inner``, the part of it that a cropped cell shows; ``mark``, whether to draw both; for
            figures ``ends``, the values of the lowest and the highest byte of a map (for signed values around zero),
            and what they ``measure``. They are sent apart from the pixels, which may stay the same.
        """
        with self.hold_sync():
            self.set_trait(f"slot_{slot}", {"kind": kind, **encode(pixels)})
            self.set_trait(f"over_{slot}", {} if over is None else encode(over))
            self.set_trait(f"patch_{slot}", {} if patch is None else encode(patch))
            self.set_trait(f"label_{slot}", {"part_drawn": self._drawn[0], "key": self._drawn[1], **label})
