"""The widget that shows where a layer speaks for a class, by several methods side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.calls import first_name
from nbviz.core.documented import documented_like
from nbviz.core.types import Images
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import around_zero, centre, quantise
from nbviz.methods.cam import GRADIENT_CAMS, class_activation, grad_cam
from nbviz.methods.cam_layers import find_maps
from nbviz.methods.cams import CAMS
from nbviz.methods.guided_grad_cam import guided_grad_cam
from nbviz.widgets.controls import Choice, draws
from nbviz.widgets.layer_choice import LayerChoice
from nbviz.widgets.picture_widget import ClassWidget, PictureOptions
from nbviz.widgets.session import Session
from nbviz.widgets.settings import MapSettings, SignedSettings
from nbviz.widgets.views import Panels, picture_row

#: The titles of the methods by their names. Those of the gradient family share one pass.
NAMES = {name: cam.title for name, cam in CAMS.items()}


@documented_like(grad_cam)
class ClassActivation(ClassWidget, MapSettings, SignedSettings):
    """Where a layer speaks for a class: one method in large, and those of the gradient family side by side.

    Parameters
    ----------
    target
        The class at first; None takes the predicted class.
    method
        The method that is shown in large at first: the name of the function of any class activation map, such as
        ``"grad_cam"`` or ``"score_cam"``.

    Examples
    --------
    >>> import nbviz
    >>> view = ClassActivation(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.target = 3  # where it speaks for a dress
    """

    _parts = ("family", "large", "predictions")

    layer = LayerChoice(
        "Layer",
        "The layer whose maps are weighted",
        kind="layer with feature maps",
        options=lambda widget: widget._layers,
    )
    method = Choice("Method", "The method that is shown in large", options=NAMES, default="grad_cam")

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        layer: str | None = None,
        target: int | None = None,
        method: str = "grad_cam",
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(model, images, **options)
        subject, layers = self.session.subject, self.session.all_layers
        start = first_name(subject.model, find_maps(subject, layer)[0])
        self._layers = {found.name: found for found in layers if found.has_maps}
        self._layers |= {found.name: found for found in layers if found.name == start}
        self._set_controls(layer=start)
        self.panels = Panels(
            [picture_row("", "large", "guided"), picture_row("From one pass: the gradient family", *GRADIENT_CAMS)],
            controls=["cmap", "opacity", "contrast"],
        )
        self._family: dict[str, Tensor] = {}
        controls = [self.method_control, self.target_control, self.layer_control]
        self._lay_out([self.strip], [*controls, self.panels])

    @draws("picture", "layer", "target", into="panels")
    def _show_family(self) -> Iterator[bool]:
        self._family = self._ask(class_activation, self.layer, self.target)
        for name, maps in self._family.items():
            self._show(name, maps[self.session.row(self.picture)], NAMES[name])
        yield True

    def _show(self, slot: str, heat: Tensor, caption: str) -> None:
        nothing = "" if bool(heat.any()) else ": nothing speaks for the class"
        (over,) = to_host(quantise(heat, None, (heat.new_zeros(()).float(), heat.new_ones(()).float()))[0])
        picture = channels_last(self.session.rendered(self.picture))
        scale: dict[str, Any] = {"ends": (0.0, 1.0), "measure": "relative"}
        self.panels.show(slot, "overlay", picture, over, caption=f"{caption}{nothing}", **scale)

    @draws("picture", "layer", "target", "method", into="panels")
    def _show_large(self) -> Iterator[bool]:
        name, row = self.method, self.session.row(self.picture)
        known, function = self._family, CAMS[name].function
        maps = known[name] if name in known else self._ask(function, self.layer, self.target)
        caption = f"{NAMES[name]} for {self.class_name}" if name != "eigen_cam" else "Eigen-CAM, of no class"
        self._show("large", maps[row], caption)
        yield True
        guided = self._ask(guided_grad_cam, self.layer, self.target)[row]
        guided = guided if len(guided) in (1, 3) else guided.sum(0, keepdim=True)
        scale: dict[str, Any] = {"ends": around_zero(guided), "measure": "signal"}
        self.panels.show("guided", "signed", channels_last(centre(guided)), caption="Guided Grad-CAM", **scale)
        yield False

    def _heading(self) -> str:
        return f"{self.header.title} · {self.layer} · {self.class_name}"
