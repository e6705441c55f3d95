"""What is drawn in the page: one class for each ES module in ``static/``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import anywidget
import numpy as np
import traitlets as t

from nbviz.core.state import uninterrupted
from nbviz.imaging.encode import Array, decode, encode, jpeg
from nbviz.imaging.pixels import colour_table
from nbviz.widgets.heartbeat import beat_for

_STATIC = Path(__file__).parent / "static"
_THUMBS = 16  # pictures in a block of the strip: about what is in view
_PIXELATED = 64  # pixels of a longer side up to which the page shows single pixels
#: The colour maps that a person can choose from in the page.
COLOURS = ("viridis", "magma", "inferno", "cividis", "gray", "turbo", "coolwarm")
_TABLES = {name: colour_table(name).tobytes() for name in COLOURS}


def _modules(name: str, before: dict[str, str]) -> dict[str, str]:
    """The texts of a module and of those that it imports, each once and after what it needs itself."""
    text = (_STATIC / name).read_text(encoding="utf-8")
    for imported in _IMPORT.findall(text):
        if imported not in before:
            _modules(imported, before)
    before[name] = _EXPORT.sub("", _IMPORT.sub("", text))
    return before


# As the files have them: no other name by "as", nothing imported from elsewhere.
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


class View(anywidget.AnyWidget):
    """Base of the views: joins the view's module with those that it imports, as a widget's module is one file."""

    _script: str
    part = t.Unicode().tag(sync=True)  # of the widget, the part that is drawn here: the view is dimmed with it
    _drawn = ("", "")  # the part that is being drawn, and what it is of

    def draw_for(self, part: str, key: str) -> None:
        """From now on, what is drawn here is of this part, and of this state."""
        self._drawn = part, key

    def is_to_come(self, part: str) -> None:
        """Of this part, what is here will be drawn again."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_script" in cls.__dict__:
            cls._esm = "\n".join(_modules(cls._script, {}).values())
        super().__init_subclass__(**kwargs)


class Header(View):
    """Which model, what the last change cost, whether the kernel is at work; errors and notes; the pulling."""

    _script = "header.js"
    _css = (_STATIC / "nbviz.css").read_text(encoding="utf-8")
    # All written by the kernel, but for the last two.
    title = t.Unicode().tag(sync=True)
    info = t.Unicode().tag(sync=True)
    cost = t.Unicode().tag(sync=True)
    state = t.Unicode("ready").tag(sync=True)  # ready, working, waiting, interrupted or error; after a colon why
    stale: t.List[Any] = t.List().tag(sync=True)  # the parts whose pictures are of an earlier state
    error = t.Unicode().tag(sync=True)
    note = t.Unicode().tag(sync=True)
    code = t.Unicode().tag(sync=True)  # the call that gives this view
    controls = t.List(t.Unicode()).tag(sync=True)  # its own model, then those whose changes the kernel must answer
    chunk = t.Int().tag(sync=True)  # number of the last chunk of work that was sent
    painted = t.Int().tag(sync=True)  # written by the page: the last chunk that is on the screen
    hears = t.Bool(default_value=False).tag(sync=True)  # written by the page: whether it listens for a sign of life

    @contextmanager
    def says_working(self) -> Iterator[None]:
        """Say so while something is made that is not one of the widget's parts."""
        before, self.state = self.state, "working"
        try:
            yield
        finally:
            self.state = before

    @t.observe("hears")
    def _heard(self, change: Any) -> None:
        if change.new:
            beat_for(self)


class SmallPictures(Protocol):
    """What the strip shows: names and small pictures."""

    names: list[str]
    plot: bool

    def pixels(self, places: slice) -> Array:
        """Some of the pictures, uint8 (N, h, w, C)."""


class Strip(View):
    """The pictures to choose from, and the predictions for the chosen one.

    The pictures go to the page in blocks, each when it comes into view.
    """

    _script = "strip.js"
    names: t.List[Any] = t.List().tag(sync=True)  # of all pictures
    plot = t.Bool(default_value=False).tag(sync=True)  # whether they are signals, drawn as curves
    block = t.Int(_THUMBS).tag(sync=True)  # how many pictures are in a block
    wanted: t.List[Any] = t.List().tag(sync=True)  # written by the page: the blocks that have come into view
    picture = t.Int().tag(sync=True)  # written by both
    caption = t.Unicode("Prediction").tag(sync=True)  # above the predictions
    # Written by the kernel: (label, probability), or (label, probability, what it was before).
    predictions: t.List[Any] = t.List().tag(sync=True)

    def __init__(self, thumbs: SmallPictures | None = None, **kwargs: Any) -> None:
        self._thumbs = thumbs
        count = 0 if thumbs is None else len(thumbs.names)
        # Before the base class opens the comm, which asks once which traits there are.
        self.add_traits(**{f"block_{i}": t.Dict().tag(sync=True) for i in range(math.ceil(count / _THUMBS))})
        super().__init__(**kwargs)
        if thumbs is not None:
            self.thumbs = thumbs

    @property
    def thumbs(self) -> SmallPictures | None:
        """The pictures in small."""
        return self._thumbs

    @thumbs.setter
    def thumbs(self, thumbs: SmallPictures) -> None:
        self._thumbs, self.names, self.plot = thumbs, thumbs.names, thumbs.plot
        for block in range(math.ceil(len(self.names) / _THUMBS)):
            if getattr(self, f"block_{block}"):
                self.send(block)

    @t.observe("wanted")
    def _come_into_view(self, change: Any) -> None:
        for block in change.new:
            if getattr(self, f"block_{block}", None) == {}:  # it is the page that asks: not what there is none of
                self.send(block)

    def send(self, block: int) -> None:
        """Send the pictures of a block."""
        if self._thumbs is None:
            return
        pixels = self._thumbs.pixels(slice(_THUMBS * block, _THUMBS * (block + 1)))
        # A photograph's losses are not seen at this size; what is shown pixel by pixel has none.
        photographs = not self.plot and max(pixels.shape[1:3]) > _PIXELATED
        sent = {"shape": list(pixels.shape), "jpegs": list(map(jpeg, pixels))} if photographs else encode(pixels)
        self.set_trait(f"block_{block}", sent)


class ChannelGrid(View):
    """All channels of a layer. What the page changes of it stays in the page.

    The channels come in blocks, the strongest first, each in a trait of its own: what the page has is
    not sent again, and a page that is opened anew finds all of them.
    """

    _script = "grid.js"
    # Written by the kernel: what the tiles are, and how many of them the first blocks hold; later ones are old.
    tiles: t.Dict[str, Any] = t.Dict().tag(sync=True)
    sent = t.Int().tag(sync=True)
    tables = t.Dict(_TABLES).tag(sync=True)
    title = t.Unicode().tag(sync=True)  # what the layer is
    group = t.Unicode().tag(sync=True)  # views of one group share the colour map and the contrast
    cmap = t.Enum(COLOURS, "viridis").tag(sync=True)
    contrast = t.Float(2.0).tag(sync=True)
    scale = t.Enum(("each", "shared"), "each").tag(sync=True)
    order = t.Enum(("index", "strongest", "spread", "redundant"), "strongest").tag(sync=True)
    ranking = t.List(t.Int()).tag(sync=True)  # the channels, the most redundant first; empty where that is not known
    large = t.Bool(False).tag(sync=True)  # whether the picked one is shown in large below the grid
    switches = t.Bool(False).tag(sync=True)  # whether a click switches a channel off and on
    off = t.List(t.Int()).tag(sync=True)  # written by both: the channels that are switched off
    channel = t.Int().tag(sync=True)  # the picked one, where there is no slider
    slider = t.Unicode().tag(sync=True)  # the model of the slider whose value is the picked channel
    side = t.Int(64, min=1).tag(sync=True)  # written by the page: pixels of the screen along a tile's longer side

    def __init__(self, **kwargs: Any) -> None:
        # Before the base class opens the comm, which asks once which traits there are.
        self.add_traits(**{f"block_{i}": t.Dict().tag(sync=True) for i in range(_BLOCKS)})
        self._waiting: list[int] = []  # channels that are still to be sent, in their order
        self._closed = 0  # blocks that are full
        self._open: tuple[list[int], Array, Array, Array] | None = None  # what the next holds: channels, pixels, ends
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
            Channels, and height and width of a whole tile, of which the page may be sent a smaller one.
        strength, spread
            For each channel, what the page orders them by.
        plots
            Tiles of height 1 are drawn as curves.
        ends
            Low and high that the shared scale reaches at least, which other grids have too.
        """
        self._waiting = np.argsort(-strength, kind="stable").tolist()
        self._closed, self._open = 0, None
        ranks: dict[str, Any] = {"strength": _floats(strength), "spread": _floats(spread), "plots": plots}
        self.sent = 0
        ranks |= {} if ends is None else {"ends": list(ends)}
        self.tiles = {
            "key": self.tiles.get("key", 0) + 1,
            "kind": kind,
            "of": self._drawn[1],
            "shape": list(shape),
            **ranks,
        }

    def waiting(self, most: int) -> list[int]:
        """The channels that come next, so many at most."""
        return self._waiting[:most]

    def add(self, pixels: Array, low: Array, high: Array) -> int:
        """Send the next channels' tiles, uint8 (K, h, w) or (K, h, w, C); gives the bytes that it took."""
        channels = self._waiting[: len(pixels)]
        held = (channels, pixels, low, high)
        if self._open is not None:
            more = (np.concatenate(pair) for pair in zip(self._open[1:], held[1:], strict=True))
            held = (self._open[0] + channels, next(more), next(more), next(more))
        ends = {"low": _floats(held[2]), "high": _floats(held[3])}
        block = {"channels": held[0], **ends, **encode(held[1])}
        spent = 0 if block == self.block(self._closed) else len(block["data"])
        # As many in a block that the blocks suffice for all.
        left = self.tiles["shape"][0] - self.sent + (len(held[0]) - len(channels))
        full = len(held[0]) * (_BLOCKS - self._closed) >= left
        with uninterrupted(), self.hold_sync():  # all of it or nothing
            self.set_trait(f"block_{self._closed}", block)
            self.sent += len(channels)
            self._waiting = self._waiting[len(channels) :]
            self._open, self._closed = (None, self._closed + 1) if full else (held, self._closed)
        return spent

    def block(self, number: int) -> dict[str, Any]:
        """What a block was last filled with; empty if nothing yet."""
        filled: dict[str, Any] = getattr(self, f"block_{number}")
        return filled

    def pixels(self) -> tuple[list[int], Array]:
        """The channels that were sent, and their tiles (K, h, w) or (K, h, w, C)."""
        blocks = [self.block(i) for i in range(self._closed + (self._open is not None))]
        return [c for block in blocks for c in block["channels"]], np.concatenate([decode(block) for block in blocks])


_BLOCKS = 128  # at most


def _floats(values: Array) -> bytes:
    return values.astype(np.float32).tobytes()


#: Name, x and y.
Curve = tuple[str, Sequence[float], Sequence[float]]


class Plot(View):
    """Curves over one axis. Where there is a slider, a marker follows it, and a click on the curves moves it."""

    _script = "plot.js"
    # Written by the kernel: name, x and y (None where there is no value) of each curve, whether it is dashed.
    series: t.List[Any] = t.List().tag(sync=True)
    title = t.Unicode().tag(sync=True)
    xlabel = t.Unicode().tag(sync=True)
    ylabel = t.Unicode().tag(sync=True)
    range: t.List[Any] = t.List([None, None]).tag(sync=True)  # low and high of the y axis; None: of the curves
    marker = t.Float(None, allow_none=True).tag(sync=True)  # where there is no slider
    slider = t.Unicode().tag(sync=True)  # the model of the slider whose value is marked

    def show(self, curves: Iterable[tuple[str, Sequence[float], Sequence[float]]], dashed: Sequence[str] = ()) -> None:
        """Draw these curves, of each its name, x and y."""
        self.series = [
            {"name": name, "x": list(map(float, x)), "y": list(map(_number, y)), "dashed": name in dashed}
            for name, x, y in curves
        ]


def _number(value: float) -> float | None:
    """A number that a message can carry."""
    return float(value) if math.isfinite(value) else None


class Boxes(View):
    """Pictures on each of which a person draws a box."""

    _script = "boxes.js"
    pictures: t.List[Any] = t.List().tag(sync=True)  # name, shape (h, w, C), data of each, written by the kernel
    size: t.List[Any] = t.List([1, 1]).tag(sync=True)  # height and width in which the boxes count
    title = t.Unicode().tag(sync=True)
    boxes: t.List[Any] = t.List().tag(sync=True)  # written by both: top, left, bottom and right, ends excluded


class Region(View):
    """A picture in which a person marks a region: a box, or whatever is painted over."""

    _script = "region.js"
    picture: t.Dict[str, Any] = t.Dict().tag(sync=True)  # shape (h, w, C) and data, written by the kernel
    size: t.List[Any] = t.List([1, 1]).tag(sync=True)  # height and width in which the region counts
    # Written by both.
    mode = t.Enum(("box", "paint"), "box").tag(sync=True)
    box: t.List[Any] = t.List([0, 0, 1, 1]).tag(sync=True)  # top, left, bottom and right, ends excluded
    # From the page it comes as a view of the message's memory.
    mask = t.Bytes().tag(
        sync=True, from_json=lambda value, _: bytes(value)
    )  # what is painted: a byte of 0 or 1 for each pixel, row by row


class Panels(View):
    """Rows of pictures, each in a slot of its own so that only what changed is sent.

    Parameters
    ----------
    rows
        For each row its title and cells; a cell names its slot, and whether it is cropped to the slot's box.
    plots
        Pictures of height 1 are drawn as curves, one for each channel.
    controls
        Any of ``"contrast"`` and ``"opacity"``.
    """

    _script = "panels.js"
    rows: t.List[Any] = t.List().tag(sync=True)
    controls: t.List[Any] = t.List().tag(sync=True)
    tables = t.Dict(_TABLES).tag(sync=True)
    group = t.Unicode().tag(sync=True)
    cmap = t.Enum(COLOURS, "viridis").tag(sync=True)
    contrast = t.Float(2.0).tag(sync=True)
    opacity = t.Float(0.6, min=0.0, max=1.0).tag(sync=True)
    note = t.Unicode().tag(sync=True)
    plots = t.Bool(default_value=False).tag(sync=True)
    # For each part drawn here, the state that is wanted: pictures of another are dimmed.
    current: t.Dict[str, str] = t.Dict({"": ""}).tag(sync=True)

    def __init__(self, rows: list[dict[str, Any]], **kwargs: Any) -> None:
        slots = sorted({cell["slot"] for row in rows for cell in row["cells"]})
        parts = ("slot", "over", "patch", "label")
        traits = {f"{part}_{slot}": t.Dict().tag(sync=True) for slot in slots for part in parts}
        self._to_come = set[str]()
        # Before the base class opens the comm, which asks once which traits there are.
        self.add_traits(**traits)
        super().__init__(rows=rows, **kwargs)

    def draw_for(self, part: str, key: str) -> None:
        """From now on, what is drawn here is of this part, and of this state."""
        super().draw_for(part, key)
        self._to_come.discard(part)
        self.current = {**self.current, part: key}

    def is_to_come(self, part: str) -> None:
        """Of this part, what is here is of an earlier state."""
        self._to_come.add(part)

    def is_current(self, slot: dict[str, Any]) -> bool:
        """Whether a slot was filled, and since its part was last to be drawn again."""
        if not slot or slot["part_drawn"] in self._to_come:
            return False
        return bool(slot["key"] == self.current.get(slot["part_drawn"]))

    def slot(self, name: str) -> dict[str, Any]:
        """What a slot was last filled with; empty if nothing yet."""
        own, label, patch, over = (getattr(self, f"{part}_{name}") for part in ("slot", "label", "patch", "over"))
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
            ``"picture"`` or ``"overlay"`` for colours, ``"map"`` for values to colour, ``"signed"``
            for colours around grey.
        pixels
            uint8 (H, W, C) with 1 or 3 channels.
        over
            For an overlay: a uint8 map (h, w), or (h, w, 3) in colours.
        patch
            What a cropped cell shows, uint8 (h, w, C); None leaves it to the page to cut it out of ``pixels``.
        **label
            ``caption`` and ``part``, that of a cropped cell; ``box`` (top, left, bottom, right) and the ``size``
            that it is within; whether it is a ``mark`` on the picture. Apart from the pixels, which may stay the same.
        """
        with self.hold_sync():
            self.set_trait(f"slot_{slot}", {"kind": kind, **encode(pixels)})
            self.set_trait(f"over_{slot}", {} if over is None else encode(over))
            self.set_trait(f"patch_{slot}", {} if patch is None else encode(patch))
            self.set_trait(f"label_{slot}", {"part_drawn": self._drawn[0], "key": self._drawn[1], **label})
