"""The widget in which a person keeps or cuts away a region of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import traitlets as t
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.documented import documented_like
from nbviz.core.errors import shown
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last
from nbviz.imaging.pixels import as_levels
from nbviz.methods.occlusion import check_region, region_effect
from nbviz.pictures.fill import FILLS, filling
from nbviz.widgets.controls import Choice, Control, draws
from nbviz.widgets.figure_panels import bars_panels
from nbviz.widgets.picture_widget import PictureOptions, PictureWidget
from nbviz.widgets.session import Session
from nbviz.widgets.views import Panels, Region, picture_row


@documented_like(region_effect)
class Regions(PictureWidget):
    """Cut the background away, and see whether the answer survives: draw a box, or paint over a region.

    Parameters
    ----------
    mask
        The region at first: bool (H, W) at the size of the model's input, or a box (top, left, bottom, right) in its
        pixels, ends excluded. None takes a box in the middle.

    Examples
    --------
    >>> import nbviz
    >>> view = Regions(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.box, view.keep = [0, 0, 14, 28], False  # cut the upper half away
    """

    _caption = "Prediction: whole → cut"
    _parts = ("whole", "effect")

    keep = Choice(
        "Region",
        "Keep the region and cut the rest away, or the other way round",
        options={True: "keep the region", False: "cut it away"},
        default=True,
    )
    fill = Choice("Fill with", "What takes the place of what is cut away", options=FILLS, default="grey")
    mode = Choice(
        help="Whether the region is the box or the painted pixels.",
        options=("box", "paint"),
        start="box",
        drawn_in="drawing",
        in_code=False,
    )
    box = Control(
        help="Top, left, bottom and right of the region, in pixels of the input.",
        check=lambda widget, value: widget._valid_box(value),
        start=[0, 0, 1, 1],
        drawn_in="drawing",
        in_code=False,
    )
    mask = Control(
        help="The painted region, a byte of 0 or 1 for each pixel of the input, row by row.",
        check=lambda widget, value: widget._valid_mask(value),
        start=b"",
        drawn_in="drawing",
        in_code=False,
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        mask: Any = None,
        keep: bool = True,
        fill: str = "grey",
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(model, images, **options)
        height, width = self.session.size
        box, painted = [height // 4, width // 4, height - height // 4, width - width // 4], b""
        if mask is not None:
            region = check_region(mask, self.session.subject.inputs)
            if len(region) != 1:
                raise ValueError(f"mask has shape {tuple(region.shape)}; expected one region for all pictures")
            given = torch.as_tensor(mask, device="cpu")
            if given.ndim == 1:
                box = given.tolist()
            else:
                painted = region[0].to(torch.uint8).cpu().numpy().tobytes()
        self._set_controls(box=box, mask=painted, mode="paint" if painted else "box")
        self.drawing = Region(size=[height, width])
        self.panels = Panels([picture_row("What the network is given", "cut")])
        self._lay_out([self.strip], [self.keep_control, self.fill_control, self.drawing], [self.panels])

    def _valid_box(self, value: Any) -> list[int]:
        check_region(value, self.session.subject.inputs)
        return list(map(int, value))

    def _valid_mask(self, value: Any) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"mask is {shown(value)}; expected bytes")
        mask, count = bytes(value), self.session.size[0] * self.session.size[1]
        if len(mask) not in (0, count):
            raise ValueError(f"mask has {len(mask)} bytes; expected {count}, one for each pixel of the input, or none")
        return mask

    @t.observe("box", "mask")
    def _drawn(self, change: Any) -> None:
        """Whichever was set last counts, whether in the page or from a cell."""
        if self._open and change.new:
            self.mode = {"box": "box", "mask": "paint"}[change.name]

    @property
    def region(self) -> Tensor:
        """The region, bool (H, W)."""
        if self.mode == "box":
            return check_region(self.box, self.session.subject.inputs)[0]
        painted = bytearray(self.mask or bytes(math.prod(self.session.size)))
        return torch.frombuffer(painted, dtype=torch.uint8).reshape(self.session.size).bool()

    def _cut(self) -> Tensor:
        """The model's input (1, C, H, W) after the cut."""
        subject, i = self.session.subject, self.picture
        inputs = subject.inputs[i : i + 1]
        filled = filling(inputs, self.fill, subject.pictures.preprocess)
        return torch.where(self.region.to(inputs.device) == self.keep, inputs, filled)

    @draws("picture")
    def _show_whole(self) -> None:
        pixels = channels_last(self.session.rendered(self.picture))
        self.drawing.picture = {"shape": list(pixels.shape), "data": pixels.tobytes()}

    @draws(
        *("picture", "keep", "fill", "mode"),
        into=("panels", "strip"),
        also=lambda widget: ("box",) if widget.mode == "box" else ("mask",),
    )
    def _show_effect(self) -> Iterator[bool]:
        cut = self._cut()
        share = 100 * float(self.region.float().mean())
        caption = f"{share:.0f} % of the picture {'kept' if self.keep else 'cut away'}"
        self.panels.show("cut", "picture", channels_last(self.session.rendered_input(cut)), caption=caption)
        yield False
        self.strip.predictions = self.session.changed(self.picture, cut)
        yield False

    @property
    def code(self) -> str:
        """The call that gives this view."""
        return super().code.replace("(model, images", f"(model, images, mask={self._region_code()}", 1)

    def _region_code(self) -> str:
        """Code for the region: its box, or the lengths of its runs, outside and inside in turn."""
        if self.mode == "box":
            return str(self.box)
        ends = (self.region.flatten().diff().nonzero()[:, 0] + 1).tolist()
        ends = [*([0] if bool(self.region[0, 0]) else []), *ends, self.region.numel()]
        runs = [end - start for start, end in pairwise([0, *ends])]
        runs += [0] * (len(runs) % 2)
        repeat = "__import__('numpy').repeat"  # whatever name the person has for numpy
        return f"{repeat}([False, True] * {len(runs) // 2}, {runs}).reshape{self.session.size}"

    def _heading(self) -> str:
        return f"{self.header.title} · {'kept' if self.keep else 'cut away'}"

    def _figure_rows(self) -> list[list[Panel]]:
        pixels, box = channels_last(self.session.rendered(self.picture)), self.box
        if self.mode == "paint":  # what is outside is darkened, as in the page
            shown = nn.functional.interpolate(self.region[None, None].float(), pixels.shape[:2])[0, 0, :, :, None]
            pixels, box = as_levels(pixels * (0.3 + 0.7 * shown.numpy())), None
        whole = Panel(pixels, "the region", "region", box=box)
        cut = Panel(channels_last(self.session.rendered_input(self._cut())), "what the network is given", "cut")
        return [[whole, cut], bars_panels(self, "whole picture", "cut", part="effect")]
