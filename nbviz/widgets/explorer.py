"""All widgets in one: picture, layer, channel."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets as t
from torch import nn

from nbviz import bundled
from nbviz.export.figure import Panel
from nbviz.pictures.preprocess import find_preprocess
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice
from nbviz.widgets.declared import spelled_out
from nbviz.widgets.figure_panels import fused_panel, grid_panel, predictions_panel, reconstruction_panels
from nbviz.widgets.layer_widget import LayerOptions, LayerWidget
from nbviz.widgets.session import Session
from nbviz.widgets.view import reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

#: What the explorer's tabs show.
VIEWS = ("channels", "switch off", "class activation", "occlusion", "regions", "invariance", "sanity")
_TOOLTIPS = (
    "Picture, layer, channel: maps and reconstructions",
    "Switch channels off and watch the predictions",
    "Where a layer speaks for a class",
    "Slide a square over the picture",
    "Keep or cut away a region",
    "Shift, scale or turn the picture",
    "Can the maps be believed? Destroy the weights, delete the pixels",
)
#: The widgets of the other tabs, which are imported when they are first opened.
_HOMES = {
    "switch off": ("ablation", "Ablation"),
    "class activation": ("class_activation", "ClassActivation"),
    "occlusion": ("occlusion", "Occlusion"),
    "regions": ("regions", "Regions"),
    "invariance": ("invariance", "Invariance"),
    "sanity": ("sanity", "Sanity"),
}
#: The controls whose values pass from one tab to the next.
_SHARED = ("picture", "layer", "channel", "target")
# The first picture of each class among the bundled ones.
_ONE_OF_EACH = [0, 1, 2, 4, 6, 8, 9, 13, 18, 19]


class Explorer(LayerWidget):
    """What a network sees, read from left to right: picture, layer, channel.

    On the left are the pictures, the predictions for the chosen one, and all channels of the layer fused over it. In
    the middle are the layer's channels; a click picks one. On the right are the patch that excites the picked channel
    most, and its reconstructions. :func:`nbviz.explore` makes an explorer with pictures and a model to start with.

    Parameters
    ----------
    model, images, layer, channel, labels, preprocess, inputs, output
        As in :func:`nbviz.explore`.

    Examples
    --------
    >>> import nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> view = Explorer(model, nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.picture, view.channel = 1, 7
    >>> view.view = "class activation"
    """

    _kind = "explorer"
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
        images: Any,
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
        self.view_control = ipywidgets.ToggleButtons(options=VIEWS, tooltips=list(_TOOLTIPS)).add_class("nbviz-views")
        if self.session.axes == 2 and self.session.labels is not None:  # the other tabs need a class
            self.children = [self.view_control, *self._own]
            t.link((self, "view"), (self.view_control, "value"))
            self.observe(self._switched, names="view")

    def _switched(self, change: Any) -> None:
        """Show another widget on the same model and picture; it is made when it is first opened."""
        with self._turn():
            if self.view == VIEWS[0]:
                if (left := self._others.get(change.old)) is not None:
                    _pass_on(left, self)
                self.children = [self.view_control, *self._own]
                return
            left = self._others.get(change.old, self)
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
        module, name = _HOMES[view]
        widget_class = getattr(importlib.import_module(f"nbviz.widgets.{module}"), name)
        with self.session.under_autocast():
            widget: Pulled = widget_class(self.session, None, picture=self.picture)
        widget._sources |= self._sources
        widget.header.code = widget.code
        return widget

    def figure(self) -> Figure:
        """The current view as a matplotlib figure, made without pyplot."""
        other = self._others.get(self.view)
        return super().figure() if other is None else other.figure()

    def close(self) -> None:
        """End the widget and the other tabs."""
        for other in getattr(self, "_others", {}).values():
            other.close()
        super().close()

    def _arrange(self) -> None:
        self.grid.slider = reference(self.channel_control)
        left = [*self._picture_column(), self.how_control, self.fused]
        middle = [*self._layer_controls(), self.tiles_control, self.grid]
        self._lay_out(left, middle, [self.channel_control, self.panels, self.seed_control])

    def _figure_rows(self) -> list[list[Panel]]:
        return [[fused_panel(self), predictions_panel(self), grid_panel(self)], *reconstruction_panels(self)]


def _pass_on(left: Pulled, entered: Pulled) -> None:
    """Set the controls that both have, as far as the values are accepted: not every layer has feature maps."""
    for name in _SHARED:
        if left.has_trait(name) and entered.has_trait(name) and getattr(left, name) != getattr(entered, name):
            with suppress(ValueError, TypeError):
                setattr(entered, name, getattr(left, name))


@spelled_out(Explorer)
def explore(
    model: nn.Module | None = None,
    images: Any = None,
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
        Any PyTorch model; it is left as it was, on its device. None takes the bundled network,
        which needs no download.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`. None takes
        bundled ones: photographs, or Fashion-MNIST for a model that takes 28×28 grey pictures.
    layer
        The layer at first; None takes the deepest whose maps still show shapes.
    channel
        The channel at first; None takes the one that is strongest away from the border.
    labels
        The names of the model's outputs, in order; found for torchvision's and timm's ImageNet models.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W), such as
        ``weights.transforms()``; found for torchvision's and timm's models.
    inputs
        For a model that is called with more than the pictures: a callable from their batch (N, C, H, W) to the
        model's argument, a tuple of its arguments, or a dict of its keyword arguments.
    output
        For a model that gives more than class scores (N, classes): where they are, as a key or an attribute's
        name, an index, or a callable from what it gives.
    picture
        Which of the pictures is shown at first, from 0.
    seed
        What a reconstruction starts from, as in :func:`nbviz.reconstruct`.
    how
        How all channels are fused into one map, as in :func:`nbviz.fuse`.
    tiles
        What the grid shows of each channel: ``"activation"``, its map; or ``"gradient"``, ``"deconvnet"`` or
        ``"guided"``, what this rule makes of it, cut to what the channel sees.
    plane
        Of volumes, the slice that is shown at first, from 0; None takes the middle.
    bands
        Which channels of the pictures are shown: three as red, green and blue, or one in grey. None takes the
        first three.
    view
        What is shown at first: ``"channels"``, or the name of another tab.

    Returns
    -------
    Explorer
        The widget, to be shown as a cell's last value.

    Raises
    ------
    ValueError
        For an unknown layer, a channel out of range, labels that do not fit.
    PictureError
        For a picture that cannot be read or does not fit the model (a ValueError).
    ModelError
        When the model fails in its forward pass (a RuntimeError).
    TypeError
        For an argument of the wrong type, or a scripted or exported model.

    Examples
    --------
    >>> explorer = explore()
    >>> explorer.layer in explorer.session.layers
    True
    """
    if model is None:
        model = bundled.load("fashion")
    if images is None:
        is_grey = (
            find_preprocess(model, options.get("preprocess")).mode == "L" if isinstance(model, nn.Module) else False
        )
        images = bundled.fashion_test()[0][_ONE_OF_EACH, None] if is_grey else bundled.pictures()
    return Explorer(model, images, layer, channel, view=view, **options)
