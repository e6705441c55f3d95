"""The widget in which a person draws the same part in several pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
from torch import nn

from nbviz.core.documented import documented_like
from nbviz.core.errors import line
from nbviz.core.types import Images, ModelInputs, Preprocessing
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.correspondence import CorrespondenceResult, check_boxes, correspondence
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Control, draws
from nbviz.widgets.figure_panels import plot_panel
from nbviz.widgets.session import Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import Boxes, Plot


@documented_like(correspondence)
class Correspondence(Pulled):
    """Draw the same part, an eye or a collar, in several pictures, and see whether the network relates it (table 1).

    Parameters
    ----------
    boxes
        For each picture top, left, bottom and right of the part at first, in pixels of the model's input, ends
        excluded. None puts the boxes in the middle.

    Examples
    --------
    >>> import nbviz
    >>> view = Correspondence(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:3, None], random=2)
    >>> view.boxes = [[0, 8, 8, 20]] * 3  # the neck
    """

    _arguments = ("model", "images", "boxes")

    boxes = Control(
        help="For each picture top, left, bottom and right of the part, in its pixels.",
        check=lambda widget, value: check_boxes(value, len(widget.session.display), *widget.session.size).tolist(),
        start=[],
        drawn_in="drawing",
    )

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        boxes: Any = None,
        layers: Sequence[str] | None = None,
        *,
        random: int = 10,
        fill: str = "grey",
        seed: int = 0,
        preprocess: Preprocessing | None = None,
        inputs: ModelInputs | None = None,
    ) -> None:
        self.session = session = Session(model, images, preprocess, None, False, inputs)
        subject = session.subject
        if session.axes != 2 or len(subject) < 2:
            shape = tuple(subject.inputs.shape)
            raise ValueError(f"images gives {shape}; expected at least two pictures (N, C, H, W)")
        self._layers = subject.layer_names(layers)
        self._options: dict[str, Any] = {"random": random, "fill": fill, "seed": seed, "inputs": inputs}
        self._options["preprocess"] = subject.pictures.preprocess  # it knows what grey is
        self.found: CorrespondenceResult | None = None
        super().__init__(subject.model, information(session))
        self._sessions = (session,)
        height, width = session.size
        middle = [height // 3, width // 3, height - height // 3, width - width // 3]
        self._set_controls(boxes=[middle] * len(subject) if boxes is None else boxes)
        self.drawing = Boxes(
            pictures=list(Thumbs(session, 320)),
            size=list(session.size),
            title="Drag over the same part in each picture",
        )
        self.plot = Plot(
            title="Features that change alike in two pictures, less those that change in opposite directions: "
            "higher where the part corresponds",
            xlabel=f"layers: {line(', '.join(self._layers), 80)}",
            ylabel="agreement",
        )
        self.table = ipywidgets.HTML()
        self._lay_out([self.drawing], [self.plot, self.table])

    @draws("boxes", into="plot")
    def _show_consistency(self) -> None:
        arguments = self.session.subject.inputs, self.boxes, self._layers
        self.found = found = self.session.ask(lambda model: correspondence(model, *arguments, **self._options))
        places = range(len(self._layers))
        curves = [("the part drawn", places, [found.agreement[name] for name in self._layers])]
        if self._options["random"]:
            curves.append(
                ("random parts", places, [float(found.random_agreement[name].mean()) for name in self._layers])
            )
        self.plot.show(curves, dashed=["random parts"])
        self.table.value = found._repr_html_()

    def _heading(self) -> str:
        return f"{self.header.title} · correspondence"

    def _foot(self) -> str:
        found = [] if self.found is None or self._stale else [self.found.verdict]
        return "\n".join(filter(None, (super()._foot(), *found)))

    def _figure_rows(self) -> list[list[Panel]]:
        pairs = enumerate(zip(self.session.display, self.boxes, strict=True))
        pictures = [Panel(channels_last(pixels), "", f"picture_{i}", box=box) for i, (pixels, box) in pairs]
        return [pictures, [plot_panel(self.plot, name="plot")]]
