"""The widget in which a person keeps or cuts away a region of a picture."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import torch
import traitlets as t
from torch import Tensor, nn

from nbviz.core.checks import check_choice
from nbviz.core.errors import shown
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.occlusion import check_region
from nbviz.pictures.fill import FILLS, filling
from nbviz.widgets.picture_widget import OfPictures, answering
from nbviz.widgets.views import Panels, Region


class Regions(OfPictures):
    """Cut the background away, and see whether the answer survives: draw a box, or paint over a region.

    Parameters
    ----------
    model, images, mask, keep, fill, preprocess, inputs, output
        As in :func:`nbviz.region_effect`; ``mask=None`` starts with a box in the middle.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.region_effect`.

    Examples
    --------
    >>> import nbviz
    >>> view = Regions(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.box, view.keep = [0, 0, 14, 28], False  # cut the upper half away
    """

    _parts: ClassVar[tuple[str, ...]] = ("picture", "effect")
    _stales: ClassVar[dict[str, set[str]]] = {
        "picture": {"picture", "effect"},
        "box": {"effect"},
        "mask": {"effect"},
        "mode": {"effect"},
        "keep": {"effect"},
        "fill": {"effect"},
    }

    box: t.List[Any] = t.List(help="Top, left, bottom and right of the region, in pixels of the input.")
    mask = t.Bytes(help="The painted region, a byte of 0 or 1 for each pixel of the input, row by row.")
    mode = t.Unicode("box", help="Whether the region is the box or what is painted.")
    keep = t.Bool(True, help="Keep the region and cut the rest away, or the other way round.")
    fill = t.Unicode("grey", help="What is put in the place of what is cut away.")

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        mask: Any = None,
        keep: bool = True,
        fill: str = "grey",
        *,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
    ) -> None:
        check_choice("fill", fill, FILLS)
        if not isinstance(keep, bool):
            raise TypeError(f"keep is {shown(keep)}; expected True or False")
        session = answering(model, images, preprocess, labels, inputs, output)
        height, width = session.size
        box, painted = [height // 4, width // 4, height - height // 4, width - width // 4], b""
        if mask is not None:
            region = check_region(mask, session.pictures.inputs)
            if len(region) != 1:
                raise ValueError(f"mask has shape {tuple(region.shape)}; expected one region for all pictures")
            given = torch.as_tensor(mask, device="cpu")
            if given.ndim == 1:
                box = given.tolist()
            else:
                painted = region[0].to(torch.uint8).cpu().numpy().tobytes()
        super().__init__(session, model, picture, "Prediction: whole → cut")
        self.drawing = Region(size=[height, width])
        self.keep_control = ipywidgets.Dropdown(
            options=[("keep the region", True), ("cut it away", False)], description="Do"
        )
        self.fill_control = ipywidgets.Dropdown(options=FILLS, description="Fill with")
        self.panels = Panels([{"title": "What the network is given", "cells": [{"slot": "cut"}]}])
        self.box, self.mask, self.mode = box, painted, "paint" if painted else "box"
        self.keep, self.fill = keep, fill
        for name in ("keep", "fill"):
            t.link((self, name), (getattr(self, f"{name}_control"), "value"))
        for name in ("box", "mask", "mode"):
            t.link((self, name), (self.drawing, name))
        middle = ipywidgets.VBox([self.keep_control, self.fill_control, self.drawing])
        columns = [ipywidgets.VBox([self.strip]), middle, ipywidgets.VBox([self.panels])]
        self._lay_out(ipywidgets.Box(columns).add_class("nbviz-columns"), "regions")
        self._start()

    @t.validate("box")
    def _valid_box(self, proposal: Any) -> list[int]:
        check_region(proposal["value"], self.session.pictures.inputs)
        return list(map(int, proposal["value"]))

    @t.validate("mask")
    def _valid_mask(self, proposal: Any) -> bytes:
        mask = bytes(proposal["value"])
        count = self.session.size[0] * self.session.size[1]
        if len(mask) not in (0, count):
            raise ValueError(f"mask has {len(mask)} bytes; expected {count}, one for each pixel of the input, or none")
        return mask

    @t.observe("box", "mask")
    def _drawn(self, change: Any) -> None:
        """What was set last counts, by a cell as well as in the page."""
        if self._open and change.new:
            self.mode = {"box": "box", "mask": "paint"}[change.name]

    @t.validate("mode")
    def _valid_mode(self, proposal: Any) -> str:
        return check_choice("mode", proposal["value"], ("box", "paint"))

    @t.validate("fill")
    def _valid_fill(self, proposal: Any) -> str:
        return check_choice("fill", proposal["value"], FILLS)

    @property
    def region(self) -> Tensor:
        """The region, bool (H, W)."""
        if self.mode == "box":
            return check_region(self.box, self.session.pictures.inputs)[0]
        if not self.mask:
            return torch.zeros(self.session.size, dtype=torch.bool)
        return torch.from_numpy(np.frombuffer(self.mask, np.uint8).copy().reshape(self.session.size)).bool()

    def _altered(self) -> Tensor:
        """The model's input (1, C, H, W) after the cut."""
        one = self.session.only(self.picture)
        region = self.region.to(one.inputs.device)
        return torch.where(region == self.keep, one.inputs, filling(one.inputs, self.fill, one.preprocess))

    def _show_picture(self) -> Iterator[bool]:
        pixels = channels_last(self.session.shown(self.picture))
        self.drawing.picture = {"shape": list(pixels.shape), "data": pixels.tobytes()}
        yield False

    def _show_effect(self) -> Iterator[bool]:
        altered = self._altered()
        painted = zlib.crc32(self.mask) if self.mode == "paint" else self.box
        self.panels.current = f"{self.picture} {self.keep} {self.fill} {painted}"
        share = 100 * float(self.region.float().mean())
        caption = f"{share:.0f} % of the picture {'kept' if self.keep else 'cut away'}"
        self.panels.show("cut", "picture", channels_last(self.session.shown_input(altered)), caption=caption)
        yield False
        self.strip.predictions = self.session.changed(self.picture, altered)
        yield False

    def _ended(self) -> None:
        call = f"{self._region_code()}, {self.keep}, {self.fill!r}, picture={self.picture}"
        self.header.code = f"nbviz.Regions(model, images, {call})"

    def _region_code(self) -> str:
        """What gives the region again: its box, or the lengths of its runs, outside and inside in turn."""
        if self.mode == "box":
            return str(self.box)
        ends = (self.region.flatten().diff().nonzero()[:, 0] + 1).tolist()
        ends = [*([0] if bool(self.region[0, 0]) else []), *ends, self.region.numel()]
        runs = [end - start for start, end in pairwise([0, *ends])]
        return f"numpy.repeat(numpy.arange({len(runs)}) % 2 == 1, {runs}).reshape{self.session.size}"

    def _heading(self) -> str:
        return f"{self.header.title} · {'kept' if self.keep else 'cut away'}"

    def _figure_rows(self) -> list[list[Panel]]:
        box = self.box if self.mode == "box" else None
        whole = Panel(channels_last(self.session.shown(self.picture)), "the region", box=box)
        cut = Panel(channels_last(self.session.shown_input(self._altered())), "what the network is given")
        bars = [(label, after) for label, after, _ in self.strip.predictions]
        return [[whole, cut, *([Panel(None, bars=bars)] if bars else [])]]
