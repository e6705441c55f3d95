"""The widget that shifts, scales and turns a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn
from typing_extensions import Unpack

from nbviz.core.checks import check_choice
from nbviz.core.documented import documented_like
from nbviz.core.errors import line
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.invariance import TRANSFORMS, InvarianceResult, along, amounts_of, invariance, moved_by
from nbviz.widgets.controls import Choice, Number, draws, moves
from nbviz.widgets.figure_panels import bars_panels, filled_panels, plot_panel
from nbviz.widgets.picture_widget import ClassWidget, PictureOptions
from nbviz.widgets.session import Session
from nbviz.widgets.views import Panels, Plot, picture_row

_NAMES = {"down": "shift down", "across": "shift across", "scale": "scale", "angle": "rotation"}
_LABELS = {name: f"{words}, in {TRANSFORMS[name]}" for name, words in _NAMES.items()}
_LONGEST = 40  # characters of a layer's name in a legend


@documented_like(invariance)
class Invariance(ClassWidget):
    """A picture shifted, scaled or turned by a slider, and how features and prediction follow (figure 5 of the paper).

    Parameters
    ----------
    target
        The class at first; None takes the class predicted for the original picture.
    value
        Where the slider stands at first; None, where nothing is done.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Invariance(model, nbviz.bundled.fashion_test()[0][:2, None], transform="across")
    >>> view.value = 3  # pixels to the right
    """

    _caption = "Prediction: original → transformed"
    _parts = ("moved", "curves")

    transform = Choice("Transform", "What is done to the picture", options=_LABELS, default="angle")
    value = Number(
        "Amount",
        "By how much: in pixels, times or degrees",
        ends=lambda widget: widget._ends,
        default=lambda widget: widget._nothing(),
        follows=("transform",),
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        layers: Sequence[str] | None = None,
        transform: str = "angle",
        values: Sequence[float] | None = None,
        target: int | None = None,
        *,
        value: float | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(model, images, **options)
        self._names = self.session.subject.layer_names(layers)
        check_choice("transform", transform, _LABELS)
        self._given = {transform: sorted(amounts_of(transform, values, self.session.size))}
        self._set_controls()
        self.panels = Panels([picture_row("What the network is given", "picture")])
        slider = self.value_control
        self.distances = Plot(
            title="Distance between the features of the original and the transformed picture, relative to their norm",
            ylabel="distance",
            slider=slider,
        )
        measure = self.session.answer.measure
        ends = [0, 1] if measure == "probability" else [None, None]
        title = "Probability of the class" if measure == "probability" else "Value"
        self.probability = Plot(title=title, ylabel=measure, range=ends, slider=slider)
        controls = [self.transform_control, self.value_control, self.target_control]
        self._lay_out([self.strip], [*controls, self.panels], [self.distances, self.probability])

    @property
    def _amounts(self) -> list[float]:
        """The values at which the curves are measured."""
        return self._given.get(self.transform) or amounts_of(self.transform, None, self.session.size)

    @property
    def _ends(self) -> tuple[float, float, float]:
        """The lowest and the highest value, and the slider's step."""
        steps = [b - a for a, b in pairwise(self._amounts) if b > a]
        return min(self._amounts), max(self._amounts), min([0.05 if self.transform == "scale" else 1.0, *steps])

    @moves("value", when="transform")
    def _nothing(self) -> float:
        """The value at which nothing is done, if it lies between the ends."""
        low, high, _ = self._ends
        return min(max(1.0 if self.transform == "scale" else 0.0, low), high)

    @draws("picture", "transform", "value", into=("panels", "strip"))
    def _show_moved(self) -> Iterator[bool]:
        session, i = self.session, self.picture
        moved = moved_by(session.subject.inputs[i : i + 1], self.transform, self.value)
        picture = channels_last(session.rendered_input(moved))
        caption = f"{_NAMES[self.transform]} by {self.value:g} {TRANSFORMS[self.transform]}"
        self.panels.show("picture", "picture", picture, caption=caption)
        yield False
        self.strip.predictions = session.changed(i, moved)
        yield False

    @draws("picture", "transform", "target", into=("distances", "probability"))
    def _show_curves(self) -> Iterator[bool]:
        subject = replace(self.session.subject, model=self.session.current_model)
        pieces = along(subject, self.picture, self._names, self.transform, self._amounts, self.target)
        for plot in (self.distances, self.probability):
            plot.xlabel = f"{_NAMES[self.transform]}, {TRANSFORMS[self.transform]}"
        done: list[InvarianceResult] = []
        for piece in self.session.ask_each(pieces):
            done.append(piece)
            x = [value for piece in done for value in piece.values.tolist()]
            away = {name: [d for piece in done for d in piece.distances[name].tolist()] for name in self._names}
            self.distances.show((_end_of(name), x, y) for name, y in away.items())
            label = line(self._labels[int(piece.target)], 40)
            self.probability.show([(label, x, [p for piece in done for p in piece.probability.tolist()])])
            yield True

    @property
    def code(self) -> str:
        """The call that gives this view."""
        is_usual = self._amounts == amounts_of(self.transform, None, self.session.size)
        self._sources.pop("values", None)
        self._sources |= {} if is_usual else {"values": repr(self._amounts)}
        return super().code

    def _heading(self) -> str:
        return f"{self.header.title} · {_NAMES[self.transform]}"

    def _figure_rows(self) -> list[list[Panel]]:
        moved = [panel for row in filled_panels(self.panels) for panel in row]
        plots = {} if "curves" in self._stale else {"distances": self.distances, "probability": self.probability}
        bars = bars_panels(self, "as it is", "now", "moved")
        return list(filter(None, [[*moved, *bars], [plot_panel(plot, name) for name, plot in plots.items()]]))


def _end_of(name: str) -> str:
    """A layer's name; the end of a long one, where names differ."""
    return line(name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}", _LONGEST)
