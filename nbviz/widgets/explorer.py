"""All widgets in one: picture, layer, channel."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets as t
from torch import nn
from typing_extensions import Unpack

import nbviz
from nbviz.core.documented import documented_like
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.pictures.preprocess import find_preprocess
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice
from nbviz.widgets.declared import spelled_out
from nbviz.widgets.figure_panels import filled_panels, predictions_panel
from nbviz.widgets.layer_widget import LayerOptions, LayerWidget
from nbviz.widgets.pickers import Tabs
from nbviz.widgets.session import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The explorer's tabs: what each is for, and the widget in all but the first, which is imported when it is opened.
_TABS = {
    "channels": ("Picture, layer, channel: maps and reconstructions", ""),
    "switch off": ("Switch channels off and watch the predictions", "Ablation"),
    "class activation": ("Where a layer speaks for a class", "ClassActivation"),
    "occlusion": ("Slide a square over the picture", "Occlusion"),
    "regions": ("Keep or cut away a region", "Regions"),
    "invariance": ("Shift, scale or turn the picture", "Invariance"),
    "sanity": ("Can the maps be believed? Destroy the weights, delete the pixels", "Sanity"),
}
#: What the explorer's tabs show.
VIEWS = tuple(_TABS)
#: The controls whose values pass from one tab to the next.
_SHARED = ("picture", "layer", "channel", "target", "cmap", "opacity", "contrast")
# The first picture of each class among the bundled ones.
_ONE_OF_EACH = [0, 1, 2, 4, 6, 8, 9, 13, 18, 19]


@documented_like(LayerWidget)
class Explorer(LayerWidget):
    """What a network sees, read from left to right: picture, layer, channel.

    On the left are the pictures, the predictions for the chosen one, and all channels of the layer fused over it. In
    the middle are the layer's channels; a click picks one. On the right are the patch that excites the picked channel
    most, and its reconstructions. :func:`nbviz.explore` makes an explorer with pictures and a model to start with.

    Parameters
    ----------
    view
        What is shown at first: ``"channels"``, or the name of another tab.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Explorer(model, nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.picture, view.channel = 1, 7
    >>> view.view = "class activation"
    """

    _parts = ("trace", "grid", "fused", "first", "channel", "predictions", "rest")

    view = Choice(
        help="What is shown: one of nbviz.widgets.explorer.VIEWS.",
        options=VIEWS,
        default="channels",
        in_code=False,
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        layer: str | None = None,
        channel: int | None = None,
        *,
        view: str = "channels",
        **options: Unpack[LayerOptions],
    ) -> None:
        self._values.pop("view")  # the other tabs need this one
        super().__init__(model, images, layer, channel, **options)
        self.view = view

    def _show_below(self, content: ipywidgets.Box) -> None:
        super()._show_below(content)
        self._own = (self.header, content)
        self._others: dict[str, Any] = {}
        options = [[name, tooltip] for name, (tooltip, _) in _TABS.items()]
        self.view_control = Tabs(label="What is shown", options=options, value=VIEWS[0]).add_class("nbviz-views")
        if self.session.axes != 2:
            self.note("views", "the other tabs are for models that take pictures")
        elif self.session.labels is None:
            reason = "no class scores (N, classes) were found in what this model gives; output= says where they are"
            self.note("views", f"the other tabs look at classes, and {reason}")
        else:
            self.children = [self.view_control, *self._own]
            t.link((self, "view"), (self.view_control, "value"))
            self.observe(self._switched, names="view")

    def _switched(self, change: Any) -> None:
        """Show another widget on the same model and picture; it is made when it is first opened."""
        with self._turn():
            left = self._others.get(change.old, self)
            if self.view == VIEWS[0]:
                _pass_on(left, self)
                self.children = [self.view_control, *self._own]
                return
            try:
                with left.header.says_working():
                    if self.view not in self._others:
                        self._others[self.view] = self._make(self.view)
                    entered = self._others[self.view]
                    _pass_on(left, entered)
                self.children = [self.view_control, entered]
            except Exception as error:
                self.view = VIEWS[0]
                self._failed(error)

    def _make(self, view: str) -> Pulled:
        """Another widget on the same session, so that nothing is computed twice."""
        with self.session.under_autocast():
            widget: Pulled = getattr(nbviz, _TABS[view][1])(self.session, None, picture=self.picture)
        widget._sources |= self._sources
        widget.header.code = widget.code
        return widget

    @documented_like(Pulled.figure)
    @spelled_out(Pulled.figure)
    def figure(self, **options: Any) -> Figure:
        """The current view as a matplotlib figure, made without pyplot: that of the open tab."""
        other = self._others.get(self.view)
        return super().figure(**options) if other is None else other.figure(**options)

    def close(self) -> None:
        """End the widget and the other tabs."""
        for other in getattr(self, "_others", {}).values():
            other.close()
        super().close()

    def _arrange(self) -> None:
        self.grid.slider = self.channel_control
        left = [*self._picture_column(), self.how_control, self.fused]
        middle = [*self._layer_controls(), self.tiles_control, self.grid]
        self._lay_out(left, middle, [self.channel_control, self.seed_control, self.panels])

    def _figure_rows(self) -> list[list[Panel]]:
        fused = [panel for row in filled_panels(self.fused) for panel in row]
        return [[*fused, predictions_panel(self), self._grid_panel()], *filled_panels(self.panels)]


def _pass_on(left: Pulled, entered: Pulled) -> None:
    """Set the controls that both have, as far as the values are accepted: not every layer has feature maps."""
    for name in _SHARED:
        if left.has_trait(name) and entered.has_trait(name) and getattr(left, name) != getattr(entered, name):
            with suppress(ValueError, TypeError):
                setattr(entered, name, getattr(left, name))


@documented_like(Explorer)
@spelled_out(Explorer)
def explore(
    model: nn.Module | None = None,
    images: Images | None = None,
    layer: str | None = None,
    channel: int | None = None,
    *,
    view: str = "channels",
    **options: Unpack[LayerOptions],
) -> Explorer:
    """Open the explorer on a model and pictures, starting where it is useful.

    Parameters
    ----------
    model
        Any PyTorch model. It is left unchanged, on its device. None takes the bundled network, which needs no download.
    images
        A path, a PIL picture, an array or a tensor, or a list of these; see :func:`nbviz.load`. None takes bundled
        ones: photographs, or Fashion-MNIST for a model that takes grey pictures of 28×28.

    Returns
    -------
    Explorer
        The widget, to be shown as a cell's last value.

    Examples
    --------
    >>> explorer = explore()
    >>> explorer.layer in explorer.session.layers
    True
    """
    if model is None:
        model = nbviz.bundled.load("fashion")
    if images is None:
        is_grey = isinstance(model, nn.Module) and find_preprocess(model, options.get("preprocess")).mode == "L"
        images = nbviz.bundled.fashion_test()[0][_ONE_OF_EACH, None] if is_grey else nbviz.bundled.pictures()
    return Explorer(model, images, layer, channel, view=view, **options)
