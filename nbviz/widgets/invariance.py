"""The widget that shifts, scales and turns a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from nbviz.core.checks import check_choice, check_index
from nbviz.core.errors import line
from nbviz.core.layers import layers_of
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.invariance import TRANSFORMS, InvarianceResult, along, amounts_of, moved_by
from nbviz.methods.subject import Subject
from nbviz.widgets.controls import Choice, Number, draws, moves
from nbviz.widgets.figure_panels import filled_panels, plot_panel
from nbviz.widgets.picture_widget import ClassWidget
from nbviz.widgets.views import Panels, Plot

_NAMES = {"down": "shift down", "across": "shift across", "scale": "scale", "angle": "turn"}


class Invariance(ClassWidget):
    """A picture shifted, scaled or turned by a slider, and what becomes of features and answer (figure 5 of the paper).

    Parameters
    ----------
    model, images, layers, transform, values, target, preprocess, inputs, output
        As in :func:`nbviz.invariance`.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.
    value
        Where the slider stands at first; None, where nothing is done.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.invariance`.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Invariance(model, nbviz.bundled.fashion_test()[0][:2, None], transform="across")
    >>> view.value = 3  # pixels to the right
    """

    _kind = "invariance"
    _parts = ("moved", "curves")

    transform = Choice("Do", "What is done to the picture", options=_NAMES, usual="angle", start="angle")
    value = Number(
        "By",
        "By how much: in pixels, times or degrees",
        ends=lambda view: view._ends,
        usual=lambda view: view._nothing(),
        follows=("transform",),
    )

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        layers: Sequence[str] | None = None,
        transform: str = "angle",
        values: Sequence[float] | None = None,
        target: int | None = None,
        *,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
        value: float | None = None,
    ) -> None:
        check_choice("transform", transform, TRANSFORMS)
        super().__init__(model, images, preprocess, labels, inputs, output, "Prediction: as it is → now")
        session = self.session
        if target is not None:
            target = check_index("class", target, len(session.labels or ()))
        self._names = layers_of(session.model, session.pictures.inputs, session.feed, layers)
        self._values = {transform: sorted(amounts_of(transform, values, session.size))}
        self._given |= {} if layers is None else {"layers": repr(self._names)}
        self._begin_with(picture=picture, transform=transform, value=value, target=target)
        slider = f"IPY_MODEL_{self.value_control.model_id}"
        self.panels = Panels([{"title": "What the network is given", "cells": [{"slot": "picture"}]}])
        self.distances = Plot(
            title="Distance of the features from those of the picture as it is (1: as long as these)",
            ylabel="distance",
            slider=slider,
        )
        self.probability = Plot(title="Probability of the class", ylabel="probability", range=[0, 1], slider=slider)
        controls = [self.transform_control, self.value_control, self.target_control]
        self._lay_out([self.strip], [*controls, self.panels], [self.distances, self.probability])
        self._start()

    @property
    def _amounts(self) -> list[float]:
        """The values at which the curves are measured."""
        if self.transform not in self._values:
            self._values[self.transform] = amounts_of(self.transform, None, self.session.size)
        return self._values[self.transform]

    @property
    def _ends(self) -> tuple[float, float, float]:
        """Lowest and highest value, and the slider's step."""
        apart = [b - a for a, b in pairwise(self._amounts) if b > a]
        return min(self._amounts), max(self._amounts), min([0.05 if self.transform == "scale" else 1.0, *apart])

    @moves("value", when="transform")
    def _nothing(self) -> float:
        """Where nothing is done, if that lies between the ends."""
        low, high, _ = self._ends
        return min(max(1.0 if self.transform == "scale" else 0.0, low), high)

    @draws("picture", "transform", "value", into=("panels", "strip"))
    def _show_moved(self) -> Iterator[bool]:
        session, i = self.session, self.picture
        moved = moved_by(session.pictures.inputs[i : i + 1], self.transform, self.value)
        picture = session.shown_input(moved)
        caption = f"{_NAMES[self.transform]} by {self.value:g} {TRANSFORMS[self.transform]}"
        self.panels.show("picture", "picture", channels_last(picture), caption=caption)
        yield False
        self.strip.predictions = session.changed(i, moved)
        yield False

    @draws("picture", "transform", "target", into=("distances", "probability"))
    def _show_curves(self) -> Iterator[bool]:
        session = self.session
        subject = Subject(session.subject, session.pictures, session.feed, session.output)
        arguments = self.picture, self._names, self.transform, self._amounts, self.target
        found: list[InvarianceResult] = []
        for plot in (self.distances, self.probability):
            plot.xlabel = f"{_NAMES[self.transform]}, {TRANSFORMS[self.transform]}"
        with session.under_autocast():
            pieces = along(subject, *arguments)
        while True:
            with session.under_autocast():
                piece = session.ask(lambda _: next(pieces, None))
            if piece is None:
                return
            found.append(piece)
            x = [value for one in found for value in one.values.tolist()]
            away = {name: [d for one in found for d in one.distances[name].tolist()] for name in self._names}
            self.distances.show((_end(name), x, y) for name, y in away.items())
            label = line((session.labels or ())[int(piece.target)], 40)
            self.probability.show([(label, x, [p for one in found for p in one.probability.tolist()])])
            yield True

    @property
    def code(self) -> str:
        """The call that gives this view."""
        usual = self._amounts == sorted(amounts_of(self.transform, None, self.session.size))
        self._given.pop("values", None)
        self._given |= {} if usual else {"values": repr(self._amounts)}
        return super().code

    def _heading(self) -> str:
        return f"{self.header.title} · {_NAMES[self.transform]}"

    def _figure_rows(self) -> list[list[Panel]]:
        moved = filled_panels(self.panels)
        known = [] if "moved" in self._stale else self.strip.predictions
        answers = {"as it is": [(label, before) for label, _, before in known]}
        answers["now"] = [(label, after) for label, after, _ in known]
        bars = [Panel(None, caption, bars=rows) for caption, rows in answers.items() if rows]
        plots = [] if "curves" in self._stale else [self.distances, self.probability]
        rows = [[*(panel for row in moved for panel in row), *bars], [plot_panel(plot, self.value) for plot in plots]]
        return [row for row in rows if row]


def _end(name: str) -> str:
    """A layer's name, of a long one the end, which tells it from others."""
    return line(name if len(name) <= _LONG else f"…{name[1 - _LONG :]}", _LONG)


_LONG = 40
