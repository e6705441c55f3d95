"""The widget in which a person draws the same part in several pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
from torch import nn

from nbviz.core.errors import line
from nbviz.core.layers import layers_of
from nbviz.core.state import is_compiled
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.correspondence import CorrespondenceResult, check_boxes, correspondence
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Control, draws
from nbviz.widgets.figure_panels import plot_panel
from nbviz.widgets.session import Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import Boxes, Header, Plot


class Correspondence(Pulled):
    """Draw the same part, an eye or a collar, in several pictures, and see whether the network relates it (table 1).

    Parameters
    ----------
    model, images, layers, random, fill, seed, preprocess, inputs
        As in :func:`nbviz.correspondence`.
    boxes
        Of the part in each picture at first; None puts them in the middle.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.correspondence`.

    Examples
    --------
    >>> import nbviz
    >>> view = Correspondence(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:3, None], random=2)
    >>> view.boxes = [[0, 8, 8, 20]] * 3  # the neck
    """

    _kind = "correspondence"
    _arguments = ("model", "images", "boxes")

    boxes = Control(
        help="For each picture top, left, bottom and right of the part, in its pixels.",
        check=lambda view, value: check_boxes(value, len(view.session.display), *view.session.size).tolist(),
        start=[],
        drawn_in="drawing",
    )

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        boxes: Any = None,
        layers: Sequence[str] | None = None,
        *,
        random: int = 10,
        fill: str = "grey",
        seed: int = 0,
        preprocess: Any = None,
        inputs: Any = None,
    ) -> None:
        self.session = session = Session(model, images, preprocess, None, False, inputs)
        n, (height, width) = len(session.display), session.size
        if session.axes != 2 or n < 2:
            shape = tuple(session.pictures.inputs.shape)
            raise ValueError(f"images gives {shape}; expected at least two pictures (N, C, H, W)")
        middle = [[height // 3, width // 3, height - height // 3, width - width // 3]] * n
        given = check_boxes(middle if boxes is None else boxes, n, height, width).tolist()
        self._layers = layers_of(session.model, session.pictures.inputs, session.feed, layers)
        self._options: dict[str, Any] = {"random": random, "fill": fill, "seed": seed, "inputs": inputs}
        self._options["preprocess"] = session.pictures.preprocess  # for what is grey
        self.found: CorrespondenceResult | None = None
        info = information(session, is_compiled(model))
        super().__init__(Header(title=line(type(session.model).__name__), info=info))
        self._note_given(preprocess=preprocess, inputs=inputs)
        self._note_values({"random": 10, "fill": "grey", "seed": 0}, random=random, fill=fill, seed=seed)
        self._given |= {} if layers is None else {"layers": repr(self._layers)}
        self.drawing = Boxes(
            pictures=list(Thumbs(session, 320)),
            size=list(session.size),
            title="Drag over the same part in each picture",
        )
        self.plot = Plot(
            title="Share of features whose change differs in sign between pictures: lower where the part corresponds",
            xlabel=f"layers: {line(', '.join(self._layers), 80)}",
            ylabel="differ",
        )
        self.table = ipywidgets.HTML()
        self._begin_with(boxes=given)
        self._lay_out([self.drawing], [self.plot, self.table])
        self._start()

    @draws("boxes", into="plot")
    def _show_consistency(self) -> Iterator[bool]:
        session = self.session
        arguments = session.pictures.inputs, self.boxes, self._layers
        with session.under_autocast():
            found = session.ask(lambda model: correspondence(model, *arguments, **self._options))
        self.found = found
        places = range(len(self._layers))
        curves = [("the part drawn", places, [found.part[name] for name in self._layers])]
        if self._options["random"]:
            curves.append(("random parts", places, [float(found.random[name].mean()) for name in self._layers]))
        self.plot.show(curves, dashed=["random parts"])
        self.table.value = found._repr_html_()
        yield False

    def _heading(self) -> str:
        return f"{self.header.title} · correspondence"

    def _figure_rows(self) -> list[list[Panel]]:
        display = self.session.display
        pictures = [Panel(channels_last(one), "", box=box) for one, box in zip(display, self.boxes, strict=True)]
        return [pictures, [plot_panel(self.plot)]]
