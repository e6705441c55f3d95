"""The widget that shows the growing pictures to which channels or classes answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.checks import check_whole
from nbviz.core.documented import documented_like
from nbviz.core.errors import line
from nbviz.core.state import check_model
from nbviz.core.types import Channels, Target
from nbviz.core.weights import WeightsChanged, own_copy
from nbviz.export.panel import Panel
from nbviz.imaging.encode import Array, channels_last
from nbviz.imaging.pixels import grid
from nbviz.methods.maximise import Growing, MaximiseResult, maximise
from nbviz.pictures.preprocess import check_labels
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Whole, draws
from nbviz.widgets.figure_panels import even, filled_panels, plot_panel
from nbviz.widgets.predictions import current_autocast
from nbviz.widgets.views import Panels, Plot, picture_rows

_COLUMNS = 4
_MOST_STEPS = 2048
_SHOW_EVERY = 8  # steps


@documented_like(maximise)
class Maximise(Pulled, options_of=Growing):
    """Pictures that channels or classes answer to as strongly as possible, while they grow.

    Parameters
    ----------
    steps
        How many steps at first; the slider goes on from there.

    Examples
    --------
    >>> import nbviz
    >>> view = Maximise(nbviz.bundled.load("fashion"), target=[1, 9], steps=4)
    >>> view.finish()
    >>> view.found.step
    4
    """

    _arguments = ("model",)

    steps = Whole(
        "Steps",
        "Up to which step they grow; fewer than were done leave them as they are",
        least=1,
        most=_MOST_STEPS,
        default=256,
    )

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        channels: Channels | None = None,
        target: Target | None = None,
        *,
        steps: int = 256,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        check_whole("steps", steps, 1, _MOST_STEPS)  # before the pass that the start takes
        self._seeds: tuple[Any, ...] = layer, channels, target
        self._options = options
        self._model = check_model(model)
        self._restart(self._model)
        growing = self._growing
        self._under_autocast = current_autocast(growing.start.device)
        names = growing.preprocess.labels or () if labels is None else check_labels(labels)
        kind = "#{}" if layer is not None else "class {}"
        self._names = [
            line(names[c], 40) if layer is None and c < len(names) else kind.format(c) for c in growing.channels
        ]
        super().__init__(growing.model, f"grown for {line(layer) if layer is not None else 'classes'}")
        self._set_controls()
        slots = [f"picture_{i}" for i in range(len(growing.channels))]
        self.panels = Panels(picture_rows("", slots, _COLUMNS))
        self.values = Plot(title="The activation that is maximised", xlabel="steps", ylabel="activation")
        self._lay_out([self.steps_control, self.panels, self.values])

    def _restart(self, model: nn.Module) -> None:
        self._growing = Growing(model, *self._seeds, **self._options)
        self._values_by_step: list[tuple[int, list[float]]] = [(0, self._growing.start.float().tolist())]

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
                    self._restart(own_copy(self._model))
            yield self._growing.steps % _SHOW_EVERY == 0 and self._show()
        self._show()
        yield False

    def _show(self) -> bool:
        found = self.found
        # A point for every eighth step and for the last, wherever it was stopped on the way.
        before = [pair for pair in self._values_by_step if pair[0] % _SHOW_EVERY == 0 and pair[0] < found.step]
        self._values_by_step = [*before, (found.step, found.values.float().tolist())]
        for i, (name, picture) in enumerate(zip(self._names, found.pictures, strict=True)):
            value, start = float(found.values[i]), float(found.start[i])
            caption = f"{name}: {value:.3g} (noise {start:.3g}), step {found.step}"
            self.panels.show(f"picture_{i}", "picture", _pixels(picture), caption=caption)
        steps = [step for step, _ in self._values_by_step]
        values = zip(*(values for _, values in self._values_by_step), strict=True)
        self.values.show((name, steps, curve) for name, curve in zip(self._names[:6], values, strict=False))
        self.header.cost = f"step {found.step} of {max(self.steps, found.step)}"
        return True

    def _heading(self) -> str:
        return f"{self.header.title} · {self.header.info} · {self._growing.steps} steps"

    def _figure_rows(self) -> list[list[Panel]]:
        return [*even(filled_panels(self.panels)), [plot_panel(self.values, name="values")]]


def _pixels(picture: Tensor) -> Array:
    """A picture (C, H, W) in [0, 1] as bytes (H, W, 3)."""
    colours = picture if len(picture) == 3 else picture.mean(0, keepdim=True)
    return channels_last(grid((255 * colours).round().byte().cpu()[None], 1, 0, normalize=False))
