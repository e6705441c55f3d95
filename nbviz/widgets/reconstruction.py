"""The widget that shows a channel's reconstructions under the three rules, side by side."""

from __future__ import annotations

from nbviz.core.documented import documented_like
from nbviz.export.panel import Panel
from nbviz.widgets.figure_panels import filled_panels, picture_panel
from nbviz.widgets.layer_widget import LayerWidget


@documented_like(LayerWidget)
class Reconstruction(LayerWidget):
    """A channel passed back to the picture: plain gradient, deconvnet and guided backprop from one forward pass.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Reconstruction(model, nbviz.bundled.fashion_test()[0][:2, None], layer="features.9", channel=3)
    >>> view.channel = 5  # runs no forward pass
    """

    _parts = ("trace", "channel", "predictions")

    def _arrange(self) -> None:
        right = [*self._layer_controls(), self.channel_control, self.seed_control, self.panels]
        self._lay_out(self._picture_column(), right)

    def _figure_rows(self) -> list[list[Panel]]:
        return filled_panels(self.panels) or [[picture_panel(self)]]
