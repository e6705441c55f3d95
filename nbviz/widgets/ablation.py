"""The widget that switches channels off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import traitlets as t
from torch import nn
from typing_extensions import Unpack

from nbviz.core.checks import check_indices
from nbviz.core.documented import documented_like
from nbviz.core.errors import line, shown
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.methods.ablation import AblateResult, switched_off
from nbviz.widgets.controls import Control, draws, moves
from nbviz.widgets.figure_panels import bars_panels, picture_panel, plot_panel
from nbviz.widgets.layer_widget import LayerOptions, LayerWidget
from nbviz.widgets.session import Session
from nbviz.widgets.views import Plot

_NO_TABLE = "Give table=nbviz.ablate(model, dataset, layer) to see here what each channel is worth over a dataset."


@documented_like(switched_off, LayerWidget)
class Ablation(LayerWidget):
    """Switch a layer's channels off by a click, and see at once how the predictions for a picture change.

    With the ``table`` of :func:`nbviz.ablate`, what each channel is worth over a dataset is shown beside the grid, and
    a slider switches off the most redundant channels.

    Parameters
    ----------
    layer
        The layer at first. None takes the table's, or starts where maps still show shapes.
    table
        What :func:`nbviz.ablate` found of this model.
    off
        The channels that are switched off at first.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Ablation(model, nbviz.bundled.fashion_test()[0][:2, None], layer="features.13")
    >>> view.off = [3, 5]  # runs the layers above it
    """

    _grad = False
    _caption = "Prediction: all channels on → now"
    _parts = ("trace", "grid", "predictions", "rest")

    off = Control(
        help="The channels that are switched off.",
        check=lambda widget, value: widget._valid_off(value),
        default=[],
        drawn_in="grid",
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        layer: str | None = None,
        table: AblateResult | None = None,
        off: Sequence[int] = (),
        **options: Unpack[LayerOptions],
    ) -> None:
        if table is not None and not isinstance(table, AblateResult):
            raise TypeError(f"table is {shown(table)}; expected what nbviz.ablate gives, or None")
        self.table = table
        super().__init__(model, images, layer if layer is not None or table is None else table.layer, **options)

    def _check_session(self) -> None:
        self._require_classes()
        layers, table = self.session.layers, self.table
        if table is not None and table.layer in layers and len(table.loss) != layers[table.layer].shape[0]:
            count = f"{len(table.loss)} channels for layer {shown(table.layer)} of {layers[table.layer].shape[0]}"
            raise ValueError(f"table has {count}; expected what nbviz.ablate found of this model")

    def _arrange(self) -> None:
        t.dlink((self, "channel"), (self.grid, "channel"))
        self.grid.switches = True
        texts = {
            "description": "Channels off",
            "tooltip": "Switches off this many channels: the most redundant, or without a table the weakest here",
        }
        self.count_control = ipywidgets.IntSlider(len(self.off), 0, self.count, **texts)
        self.curve = Plot(xlabel="channels switched off", ylabel="accuracy", slider=self.count_control)
        self.each = Plot(xlabel="channels, the most redundant first", ylabel="loss")
        self._show_table()
        self.count_control.observe(self._counted, names="value")
        middle, curves = [*self._layer_controls(), self.count_control, self.grid], [self.curve, self.each]
        rest = [[*middle, *curves]] if self.table is None else [middle, curves]
        self._lay_out(self._picture_column(), *rest)

    def _show_table(self) -> None:
        """The table's curves, if they belong to the layer that is shown."""
        table = self.table if self.table is not None and self.table.layer == self.layer else None
        self.grid.ranking, self.curve.series, self.each.series = [], [], []
        if table is None:
            self.curve.empty = _NO_TABLE if self.table is None else f"The table is of layer {line(self.table.layer)}."
            return
        keep, count = table.mode == "keep", len(table.loss)
        # Among channels that were left on alone, the one with the best answer is the least redundant.
        ranking = table.ranking.flip(0) if keep else table.ranking
        self.grid.ranking = ranking.tolist()
        if len(table.steps):
            steps = [count - step for step in table.steps.tolist()] if keep else table.steps.tolist()
            random = [(f"random order {i + 1}", steps, row.tolist()) for i, row in enumerate(table.random)]
            ranked = ("most redundant first", steps, table.ranked.tolist())
            self.curve.show([ranked, *random], dashed=[name for name, _, _ in random])
        ways = "are set to their mean" if table.mode == "mean" else "go"
        self.curve.title = f"Accuracy over the dataset as more and more channels {ways}"
        alone, places = ("with it alone" if keep else "without it"), range(count)
        self.each.title = "Loss with one channel alone" if keep else "Loss with one channel removed"
        losses = (alone, places, table.loss[ranking].tolist())
        self.each.show([losses, ("with all", places, [table.baseline_loss] * count)], dashed=["with all"])

    def _valid_off(self, value: Any) -> list[int]:
        if not (isinstance(value, (list, tuple, set)) or hasattr(value, "tolist")):
            raise TypeError(f"off is {shown(value)}; expected a list of channels")
        return sorted(set(check_indices("channel", value, self.count)))

    @moves("off", when="layer")
    def _all_on(self) -> list[int]:
        self.count_control.max = self.count
        self._show_table()
        return []

    def _changed(self, change: Any) -> None:
        if change.name == "off":
            self.count_control.value = len(self.off)
        super()._changed(change)

    def _counted(self, change: Any) -> None:
        """The slider was moved, not a switch."""
        if change.new == len(self.off):
            return
        with self._turn():
            try:
                order = self.grid.ranking or self.look().inner.argsort(kind="stable").tolist()
            except Exception as error:  # the model may have to run again for its maps
                self.count_control.value = len(self.off)
                self._failed(error)
                return
        self.off = order[: change.new]

    @draws("picture", "layer", "off", into="strip")
    def _show_predictions(self) -> None:
        self.strip.predictions = self.session.without(self.picture, self.layer, self.off)

    def _figure_rows(self) -> list[list[Panel]]:
        now = f"without {len(self.off)} channels" if self.off else ""
        bars = bars_panels(self, "with all channels", now)
        plots = [plot_panel(plot, name) for name, plot in (("curve", self.curve), ("each", self.each)) if plot.series]
        return list(filter(None, [[picture_panel(self), *bars, self._grid_panel()], plots]))

    def _foot(self) -> str:
        channels = ", ".join(map(str, self.off))
        return "\n".join(filter(None, (super()._foot(), f"switched off: {channels}" if channels else "")))
