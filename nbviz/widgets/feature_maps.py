"""The widget that shows feature maps directly."""

from __future__ import annotations

import traitlets as t

from nbviz.core.documented import documented_like
from nbviz.export.panel import Panel
from nbviz.widgets.figure_panels import filled_panels, large_panel
from nbviz.widgets.layer_widget import LayerWidget


@documented_like(LayerWidget)
class FeatureMaps(LayerWidget):
    """A layer's feature maps: the grid of all channels, one of them in large, all fused over the picture.

    Colour map, scale, order, zoom and the picked channel need no kernel: they answer at once, also while it is busy.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = FeatureMaps(model, nbviz.bundled.fashion_test()[0][:2, None], layer="features.4")
    >>> view.layer = "features.9"  # re-renders in place
    """

    _grad = False
    _parts = ("trace", "grid", "fused", "predictions", "rest")

    def _arrange(self) -> None:
        t.link((self, "channel"), (self.grid, "channel"))
        self.grid.large = True
        self.grid.side = 128  # the grid has most of the width here
        self._lay_out([*self._picture_column(), self.how_control, self.fused], [*self._layer_controls(), self.grid])

    def _figure_rows(self) -> list[list[Panel]]:
        fused = [panel for row in filled_panels(self.fused) for panel in row]
        return [[*fused, large_panel(self.grid, self.channel), self._grid_panel()]]
