"""The widget that slides a square over a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.documented import documented_like
from nbviz.core.errors import line
from nbviz.core.types import Images
from nbviz.imaging.encode import Array, channels_last
from nbviz.methods.occlusion import Piece, Squares, occlusion
from nbviz.pictures.fill import FILLS
from nbviz.widgets.controls import Choice, Whole, draws
from nbviz.widgets.picture_widget import ClassWidget, PictureOptions
from nbviz.widgets.session import Session
from nbviz.widgets.settings import MapSettings
from nbviz.widgets.views import Panels, picture_row

#: Colours of matplotlib's "tab10", for the most frequent classes in turn; all others are grey.
_SHADES = ("blue", "orange", "green", "red", "purple", "brown", "pink")


@documented_like(occlusion)
class Occlusion(ClassWidget, MapSettings):
    """Which regions decide: a square slid over the picture, and what becomes of the answer (figure 7 of the paper).

    The maps fill while the square moves.

    Parameters
    ----------
    target
        The class at first; None takes the class predicted for the whole picture.
    patch
        Height and width of the square at first, in pixels of the model's input. None takes a seventh of the picture's
        longer side.

    Examples
    --------
    >>> import nbviz
    >>> view = Occlusion(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.patch = 7
    """

    patch = Whole(
        "Square, px",
        "Height and width of the square, in pixels",
        least=1,
        most=lambda widget: min(widget.session.size),
        default=lambda widget: widget._usual_patch,
        start=1,
    )
    stride = Whole(
        "Step, px",
        "By how many pixels the square moves",
        least=1,
        most=lambda widget: min(widget.session.size),
        default=lambda widget: max(1, widget.patch // 2),
        start=1,
    )
    fill = Choice("Covered by", "What covers the picture", options=FILLS, default="grey")

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        target: int | None = None,
        patch: int | None = None,
        stride: int | None = None,
        fill: str = "grey",
        *,
        layer: str | None = None,
        channel: int | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(model, images, **options)
        self._activity = layer, channel
        self._usual_patch = min(self._squares(0, None, None, None, "grey").size)  # which checks layer and channel, too
        self._set_controls()
        named = ["named"] if len(self._labels) > 1 else []  # of one score nothing else can be the largest
        slots = ["picture", "probability", *named, *(["activity"] if layer is not None else [])]
        self.panels = Panels([picture_row("", *slots)], controls=["cmap", "opacity"])
        controls = [self.target_control, self.patch_control, self.stride_control, self.fill_control]
        self._lay_out([self.strip], [*controls, self.panels])

    def _squares(self, picture: int, target: int | None, patch: int | None, stride: int | None, fill: str) -> Squares:
        subject = self.session.subject.with_inputs(self.session.batch(picture))
        arguments = target, patch, stride, fill, *self._activity
        return self.session.ask(lambda model: Squares(replace(subject, model=model), *arguments))

    @draws("picture", "target", "patch", "stride", "fill", into="panels")
    def _show_maps(self) -> Iterator[bool]:
        squares = self._squares(self.picture, self.target, self.patch, self.stride, self.fill)
        row, label = self.session.row(self.picture), self.class_name
        picture = channels_last(self.session.rendered(self.picture))
        self.panels.show("picture", "picture", picture, caption="picture")
        done: list[Piece] = []
        count = len(squares.tops) * len(squares.lefts)
        for piece in self.session.ask_each(squares.over(row)):
            done.append(piece)
            maps = squares.gathered(done)
            what = f"probability of {label}" if squares.answer.measure == "probability" else label
            caption = f"{what} with the square there"
            self._show_values("probability", picture, maps["probability"], caption)
            if len(self._labels) > 1:
                colours, legend = self._in_colours(maps["named"].cpu(), picture.shape[:2])
                self.panels.show("named", "overlay", picture, colours, caption=f"most probable class: {legend}")
            if "activity" in maps:
                self._show_values("activity", picture, maps["activity"], f"sum of channel #{squares.channels[row]}")
            self.header.cost = f"{sum(len(places) for places, _ in done)} of {count} squares"
            yield True

    def _show_values(self, slot: str, picture: Array, values: Tensor, caption: str) -> None:
        """Show a map over the picture, from its lowest to its highest value.

        Places that are not yet known are bright, as are those where the square changes nothing.
        """
        values = values.cpu()
        known = values[values.isfinite()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        shares = (values.nan_to_num(high).double() - low) / max(high - low, 1e-12)
        steps: Array = (255 * shares.clamp(0, 1)).round().byte().numpy()
        caption = f"{caption}: {low:.3g} (dark) to {high:.3g} (bright)"
        measure = "activation" if slot == "activity" else slot
        self.panels.show(slot, "overlay", picture, steps, caption=caption, ends=(low, high), measure=measure)

    def _in_colours(self, named: Tensor, sides: Sequence[int]) -> tuple[Array, str]:
        """The most probable classes in colours, enlarged without mixing them, and their legend."""
        from matplotlib.colors import to_rgb

        classes, counts = named[named >= 0].unique(return_counts=True)
        order = classes[counts.argsort(descending=True, stable=True)].tolist()
        colours = np.full((*named.shape, 3), 128, np.uint8)
        legend = []
        for shade, number in zip(_SHADES, order, strict=False):
            colours[named.numpy() == number] = [round(255 * part) for part in to_rgb(f"tab:{shade}")]
            legend.append(f"{line(self._labels[number], 30)} ({shade})")
        if len(order) > len(legend):
            legend.append("others (grey)")
        rows, columns = (np.arange(side) * n // side for side, n in zip(sides, named.shape, strict=True))
        return colours[np.ix_(rows, columns)], ", ".join(legend)

    def _heading(self) -> str:
        return f"{self.header.title} · covered by a square of {self.patch} pixels"
