"""What is drawn in the page: one class for each ES module in ``static/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets as t
from torch import Tensor

from nbviz.imaging.pixels import colour_table, quantise

_STATIC = Path(__file__).parent / "static"
#: The colour maps that a person can choose from in the page.
COLOURS = ("viridis", "magma", "inferno", "cividis", "gray", "turbo", "coolwarm")
_TABLES = {name: colour_table(name).tobytes() for name in COLOURS}


class View(anywidget.AnyWidget):
    """Base of the views: joins the shared script with the view's own, as a widget's module is one file."""

    _script: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_script" in cls.__dict__:
            cls._esm = "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in ("shared.js", cls._script))
        super().__init_subclass__(**kwargs)


class Header(View):
    """Which model, what the last change cost, whether the kernel is at work; errors and notes; the pulling."""

    _script = "header.js"
    _css = (_STATIC / "nbviz.css").read_text(encoding="utf-8")
    # All written by the kernel, but for the last.
    title = t.Unicode().tag(sync=True)
    info = t.Unicode().tag(sync=True)
    cost = t.Unicode().tag(sync=True)
    state = t.Unicode("ready").tag(sync=True)  # ready, working, waiting, interrupted or error; after a colon why
    stale: t.List[Any] = t.List().tag(sync=True)  # the parts whose pictures are of an earlier state
    error = t.Unicode().tag(sync=True)
    note = t.Unicode().tag(sync=True)
    code = t.Unicode().tag(sync=True)  # the call that gives this view
    controls = t.List(t.Unicode()).tag(sync=True)  # the models whose changes the kernel must answer
    chunk = t.Int().tag(sync=True)  # number of the last chunk of work that was sent
    painted = t.Int().tag(sync=True)  # written by the page: the last chunk that is on the screen


class Strip(View):
    """The pictures to choose from, and the predictions for the chosen one."""

    _script = "strip.js"
    thumbs: t.List[Any] = t.List().tag(sync=True)  # name, shape (h, w), data (RGB) of each picture
    picture = t.Int().tag(sync=True)  # written by both
    predictions: t.List[Any] = t.List().tag(sync=True)  # (label, probability), written by the kernel


class ChannelGrid(View):
    """All channels of a layer. What the page changes of it stays in the page."""

    _script = "grid.js"
    tiles = t.Dict().tag(sync=True)  # written by the kernel, see show()
    tables = t.Dict(_TABLES).tag(sync=True)
    title = t.Unicode().tag(sync=True)  # what the layer is, written by the kernel
    group = t.Unicode().tag(sync=True)  # views of one group share the colour map
    cmap = t.Unicode("viridis").tag(sync=True)
    scale = t.Enum(("each", "shared"), "each").tag(sync=True)
    order = t.Enum(("index", "strongest", "spread"), "strongest").tag(sync=True)
    channel = t.Int().tag(sync=True)  # the picked one, where there is no slider
    slider = t.Unicode().tag(sync=True)  # the model of the slider whose value is the picked channel

    def show(self, maps: Tensor) -> None:
        """Send maps (K, H, W) as bytes, with what the page needs to scale and order them."""
        steps, low, high = quantise(maps)
        spread = torch.nan_to_num(maps.float()).flatten(1).std(1, correction=0)
        arrays = {"data": steps, "low": low, "high": high, "spread": spread}
        self.tiles = {"shape": list(steps.shape), **{name: a.cpu().numpy().tobytes() for name, a in arrays.items()}}


class Panels(View):
    """Rows of pictures, each in a slot of its own so that only what changed is sent.

    Parameters
    ----------
    rows
        For each row its title and cells; a cell names its slot, a caption, and whether it is cropped
        to the slot's box.
    controls
        Any of ``"contrast"`` and ``"opacity"``.
    """

    _script = "panels.js"
    rows: t.List[Any] = t.List().tag(sync=True)
    controls: t.List[Any] = t.List().tag(sync=True)
    tables = t.Dict(_TABLES).tag(sync=True)
    group = t.Unicode().tag(sync=True)
    cmap = t.Unicode("viridis").tag(sync=True)
    contrast = t.Float(2.0).tag(sync=True)
    opacity = t.Float(0.6).tag(sync=True)
    note = t.Unicode().tag(sync=True)
    current = t.Unicode().tag(sync=True)  # the state that is wanted: pictures of another are dimmed

    def __init__(self, rows: list[dict[str, Any]], **kwargs: Any) -> None:
        slots = {cell["slot"] for row in rows for cell in row["cells"]}
        # Before the base class opens the comm, which asks once which traits there are.
        self.add_traits(**{f"slot_{slot}": t.Dict().tag(sync=True) for slot in sorted(slots)})
        super().__init__(rows=rows, **kwargs)

    def slot(self, name: str) -> dict[str, Any]:
        """What a slot was last filled with; empty if nothing yet."""
        filled: dict[str, Any] = getattr(self, f"slot_{name}")
        return filled

    def show(self, slot: str, kind: str, pixels: Tensor, **more: Any) -> None:
        """Fill a slot.

        Parameters
        ----------
        slot
            Its name.
        kind
            ``"picture"`` or ``"overlay"`` for colours, ``"map"`` for values to colour, ``"signed"``
            for colours around grey.
        pixels
            uint8 (C, H, W) with 1 or 3 channels.
        **more
            ``caption``, ``box`` (top, left, bottom, right), and for an overlay ``over``: a uint8 map (h, w),
            or (h, w, 3) in colours.
        """
        over = more.pop("over", None)
        if over is not None:
            more["over"] = {"shape": list(over.shape), "data": over.cpu().numpy().tobytes()}
        image = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        payload = {"kind": kind, "key": self.current, "shape": list(image.shape), "data": image.tobytes(), **more}
        self.set_trait(f"slot_{slot}", payload)
