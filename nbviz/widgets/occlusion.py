"""The widget that slides a square over a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from nbviz.core.checks import check_choice, check_index, check_whole
from nbviz.core.errors import line
from nbviz.export.figure import Panel
from nbviz.imaging.encode import Array, channels_last
from nbviz.methods.occlusion import Piece, Squares
from nbviz.pictures.fill import FILLS
from nbviz.widgets.controls import Choice, Whole, draws
from nbviz.widgets.figure_panels import filled_panels
from nbviz.widgets.picture_widget import ClassWidget
from nbviz.widgets.views import Panels

#: matplotlib's "tab10": for the most frequent class, the next, and so on; all others are grey.
_SHADES = {
    "blue": (31, 119, 180),
    "orange": (255, 127, 14),
    "green": (44, 160, 44),
    "red": (214, 39, 40),
    "purple": (148, 103, 189),
    "brown": (140, 86, 75),
    "pink": (227, 119, 194),
}


class Occlusion(ClassWidget):
    """Which regions decide: a square slid over the picture, and what becomes of the answer (figure 7 of the paper).

    The maps fill while the square moves.

    Parameters
    ----------
    model, images, target, patch, stride, fill, layer, channel, preprocess, inputs, output
        As in :func:`nbviz.occlusion`.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.occlusion`.

    Examples
    --------
    >>> import nbviz
    >>> view = Occlusion(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.patch = 7
    """

    _kind = "occlusion"

    patch = Whole(
        "Square",
        "Height and width of the square, in pixels",
        least=1,
        most=lambda view: min(view.session.size),
        usual=lambda view: view._usual[0],
    )
    stride = Whole(
        "Step",
        "By how many pixels the square moves",
        least=1,
        most=lambda view: min(view.session.size),
        usual=lambda view: view._usual[1],
    )
    fill = Choice("Covered by", "What covers the picture", options=FILLS, usual="grey", start="grey")

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        target: int | None = None,
        patch: int | None = None,
        stride: int | None = None,
        fill: str = "grey",
        *,
        layer: str | None = None,
        channel: int | None = None,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
    ) -> None:
        check_choice("fill", fill, FILLS)
        super().__init__(model, images, preprocess, labels, inputs, output)
        session = self.session
        picture = check_index("picture", picture, len(session.display))
        patch, stride = (
            None if side is None else check_whole(name, side, 1, min(session.size))
            for name, side in (("patch", patch), ("stride", stride))
        )
        self._of_layer = layer, channel
        self._note_values({}, layer=layer, channel=channel)
        if target is not None:
            target = check_index("class", target, len(session.labels or ()))
        with session.under_autocast():
            squares = self._squares(picture, target, patch, stride, fill)
        side, step = squares.size[0], max(1, min(squares.size) // 2) if stride is None else stride
        self._usual = (0 if patch is not None else side), (0 if stride is not None else step)
        self._begin_with(picture=picture, target=target, patch=side, stride=step, fill=fill)
        cells = ["picture", "probability", "named", *(["activity"] if layer is not None else [])]
        self.panels = Panels([{"title": "", "cells": [{"slot": cell} for cell in cells]}], controls=["opacity"])
        controls = [self.target_control, self.patch_control, self.stride_control, self.fill_control]
        self._lay_out([self.strip], [*controls, self.panels])
        self._start()

    def _squares(self, picture: int, target: int | None, patch: int | None, stride: int | None, fill: str) -> Squares:
        session = self.session
        batch = replace(session.pictures, inputs=session.batch(picture))
        rest = *self._of_layer, session.feed, session.output
        return session.ask(lambda model: Squares(model, batch, target, patch, stride, fill, *rest))

    @draws("picture", "target", "patch", "stride", "fill", into="panels")
    def _show_maps(self) -> Iterator[bool]:
        with self.session.under_autocast():
            squares = self._squares(self.picture, self.target, self.patch, self.stride, self.fill)
            row = self.session.row(self.picture)
            pieces = squares.over(row)
        label = self.class_name
        self.panels.show("picture", "picture", channels_last(self.session.shown(self.picture)), caption="picture")
        found: list[Piece] = []
        count = len(squares.tops) * len(squares.lefts)
        while True:
            with self.session.under_autocast():
                piece = self.session.ask(lambda _: next(pieces, None))
            if piece is None:
                return
            found.append(piece)
            self._show_found(squares, row, found, label)
            done = sum(len(places) for places, *_ in found)
            self.header.cost = f"{done} of {count} squares"
            yield True

    def _show_found(self, squares: Squares, row: int, found: list[Piece], label: str) -> None:
        probability, named, activity = (None if one is None else one.cpu() for one in squares.gathered(found, row))
        assert probability is not None
        assert named is not None
        picture = channels_last(self.session.shown(self.picture))
        low, high = _ends(probability)
        steps = _steps(probability, low, high)
        caption = f"probability of {label} with the square there: {low:.3g} (dark) to {high:.3g} (bright)"
        self.panels.show("probability", "overlay", picture, steps, caption=caption)
        colours, said = self._named(named, picture.shape[:2])
        self.panels.show("named", "overlay", picture, colours, caption=f"most probable class: {said}")
        if activity is not None and squares.channels is not None:
            low, high = _ends(activity)
            steps = _steps(activity, low, high)
            caption = f"sum of channel #{squares.channels[row]}: {low:.3g} (dark) to {high:.3g} (bright)"
            self.panels.show("activity", "overlay", picture, steps, caption=caption)

    def _named(self, named: Tensor, sides: Sequence[int]) -> tuple[Array, str]:
        """The classes in colours at this size, no shade between two of them, and which is which."""
        classes, counts = named[named >= 0].unique(return_counts=True)
        order = classes[counts.argsort(descending=True, stable=True)].tolist()
        colours = np.full((*named.shape, 3), 128, np.uint8)
        labels, said = self.session.labels or (), []
        for (shade, colour), one in zip(_SHADES.items(), order, strict=False):
            colours[named.numpy() == one] = colour
            said.append(f"{line(labels[one], 30)} ({shade})")
        if len(order) > len(said):
            said.append("others (grey)")
        rows, columns = (np.arange(side) * n // side for side, n in zip(sides, named.shape, strict=True))
        return colours[np.ix_(rows, columns)], ", ".join(said)

    def _heading(self) -> str:
        return f"{self.header.title} · covered by a square of {self.patch} pixels"

    def _figure_rows(self) -> list[list[Panel]]:
        return filled_panels(self.panels)


def _ends(values: Tensor) -> tuple[float, float]:
    known = values[values.isfinite()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _steps(values: Tensor, low: float, high: float) -> Array:
    """Values as bytes from their lowest to their highest; what is not known yet is bright, as where nothing matters."""
    shares = (values.nan_to_num(high).double() - low) / max(high - low, 1e-12)
    found: Array = (255 * shares.clamp(0, 1)).round().byte().numpy()
    return found
