"""The widget that shows pictures grow which channels or classes answer to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from nbviz.core.checks import check_whole
from nbviz.core.errors import line
from nbviz.core.state import check_model
from nbviz.core.weights import WeightsChanged, own_copy
from nbviz.export.figure import Panel
from nbviz.imaging.encode import Array, channels_last
from nbviz.imaging.pixels import grid
from nbviz.methods.maximise import Growing, MaximiseResult
from nbviz.pictures.preprocess import check_labels
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Whole, draws
from nbviz.widgets.figure_panels import filled_panels, plot_panel
from nbviz.widgets.predictions import context_of_now
from nbviz.widgets.views import Header, Panels, Plot

_COLUMNS = 4
_MOST_STEPS = 2048


class Maximise(Pulled):
    """Pictures that channels or classes answer to as strongly as possible, while they grow.

    Parameters
    ----------
    model, layer, channels, target, objective, rate, size, robust, seed, preprocess, inputs, output
        As in :func:`nbviz.maximise`.
    steps
        How many at first; the slider goes on from there.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.

    Raises
    ------
    ValueError, TypeError, ModelError
        As in :func:`nbviz.maximise`.

    Examples
    --------
    >>> import nbviz
    >>> view = Maximise(nbviz.bundled.load("fashion"), target=[1, 9], steps=4)
    >>> view.finish()
    >>> view.found.step
    4
    """

    _kind = "maximise"
    _arguments = ("model",)

    steps = Whole(
        "Steps",
        "Up to which step they grow; fewer than were done leave them as they are",
        least=1,
        most=_MOST_STEPS,
        usual=256,
        start=256,
    )

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        channels: Sequence[int] | int | None = None,
        target: Sequence[int] | int | None = None,
        *,
        steps: int = 256,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        steps = check_whole("steps", steps, 1, _MOST_STEPS)
        self._seeds: tuple[Any, ...] = layer, channels, target
        self._options = options
        self._model, self._growing = check_model(model), self._grow(model)
        growing = self._growing
        self._under_autocast = context_of_now(growing.start.device)
        names = growing.preprocess.labels or () if labels is None else check_labels(labels)
        kind = "#{}" if layer is not None else "class {}"
        self._names = [
            line(names[c], 40) if layer is None and c < len(names) else kind.format(c) for c in growing.channels
        ]
        self._values: list[tuple[int, list[float]]] = [(0, growing.start.float().tolist())]
        what = line(layer) if layer is not None else "classes"
        super().__init__(Header(title=line(type(growing.model).__name__), info=f"grown for {what}"))
        self._note_values({}, layer=layer, channels=channels, target=target)
        objects = {"labels": labels, **{name: options.get(name) for name in ("preprocess", "inputs", "output")}}
        self._note_given(**objects)
        self._note_values({}, **{name: value for name, value in options.items() if name not in objects})
        cells = [{"slot": f"picture_{i}"} for i in range(len(growing.channels))]
        rows = [{"title": "", "cells": cells[i : i + _COLUMNS]} for i in range(0, len(cells), _COLUMNS)]
        self.panels = Panels(rows)
        self.values = Plot(title="What is made large", xlabel="steps", ylabel="activation")
        self._begin_with(steps=steps)
        self._lay_out([self.steps_control, self.panels, self.values])
        self._start()

    def _grow(self, model: nn.Module) -> Growing:
        """From the start."""
        return Growing(model, *self._seeds, **self._options)

    @property
    def found(self) -> MaximiseResult:
        """What has grown so far."""
        with self._turn(), self._under_autocast():
            return self._growing.found()

    @draws("steps", into=("panels", "values"))
    def _show_grown(self) -> Iterator[bool]:
        while self._growing.steps < self.steps:
            with self._under_autocast():
                try:
                    self._growing.step()
                except WeightsChanged:  # from the start, for the weights as they are now
                    self._growing = self._grow(own_copy(self._model))
                    self._values = [(0, self._growing.start.float().tolist())]
            yield self._growing.steps % _SHOW_EVERY == 0 and self._show()
        self._show()
        yield False

    def _show(self) -> bool:
        found = self.found
        # A point for each so many steps and for the last, however often it was stopped on the way.
        before = [pair for pair in self._values if pair[0] % _SHOW_EVERY == 0 and pair[0] < found.step]
        self._values = [*before, (found.step, found.values.float().tolist())]
        steps = [step for step, _ in self._values]
        for i, (name, picture) in enumerate(zip(self._names, found.pictures, strict=True)):
            value, start = float(found.values[i]), float(found.start[i])
            caption = f"{name}: {value:.3g} (noise {start:.3g}), step {found.step}"
            self.panels.show(f"picture_{i}", "picture", _pixels(picture), caption=caption)
        grown = zip(*(values for _, values in self._values), strict=True)
        self.values.show((name, steps, values) for name, values in zip(self._names[:6], grown, strict=False))
        self.header.cost = f"step {found.step} of {max(self.steps, found.step)}"
        return True

    def _heading(self) -> str:
        return f"{self.header.title} · {self.header.info} · {self._growing.steps} steps"

    def _figure_rows(self) -> list[list[Panel]]:
        rows = filled_panels(self.panels)
        for row in rows[1:]:
            row.extend([Panel(None)] * (len(rows[0]) - len(row)))  # as large as those above
        return [*rows, [plot_panel(self.values)]]


_SHOW_EVERY = 8  # steps


def _pixels(picture: Any) -> Array:
    """A picture (C, H, W) in [0, 1] as bytes (H, W, 3)."""
    three = picture if len(picture) == 3 else picture.mean(0, keepdim=True)
    return channels_last(grid((255 * three).round().byte().cpu()[None], 1, 0, normalize=False))
