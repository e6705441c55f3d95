"""The widget that shows where a layer speaks for a class, by several methods side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.checks import check_choice, check_index
from nbviz.core.trace import first_name
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.cam import GRADIENT_CAMS, class_activation
from nbviz.methods.cam_layers import find_maps, map_layers
from nbviz.methods.cams import CAMS
from nbviz.methods.guided_grad_cam import guided_grad_cam
from nbviz.methods.subject import Subject
from nbviz.widgets.controls import Choice, draws
from nbviz.widgets.figure_panels import filled_panels
from nbviz.widgets.picture_widget import ClassWidget
from nbviz.widgets.views import Panels

#: What a person reads for the names of the methods; those of the gradient family cost one pass together.
NAMES = {name: cam.title for name, cam in CAMS.items()}


class ClassActivation(ClassWidget):
    """Where a layer speaks for a class: one method in large, and those of the gradient family side by side.

    Parameters
    ----------
    model, images, layer, target, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.
    method
        Which is shown in large at first: the name of the function of any class activation map, such as
        ``"grad_cam"`` or ``"score_cam"``.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> import nbviz
    >>> view = ClassActivation(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.target = 3  # where it speaks for a dress
    """

    _kind = "activation"
    _parts = ("family", "large", "predictions")

    layer = Choice(
        "Layer",
        "The layer whose maps are weighed",
        kind="layer with feature maps",
        options=lambda view: view._names,
        start="",
    )
    method = Choice("Method", "Which method is shown in large", options=NAMES, usual="grad_cam", start="grad_cam")

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        layer: str | None = None,
        target: int | None = None,
        method: str = "grad_cam",
        *,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
    ) -> None:
        check_choice("method", method, NAMES)
        super().__init__(model, images, preprocess, labels, inputs, output)
        session, pictures = self.session, self.session.pictures.inputs
        subject = Subject(session.model, session.pictures, session.feed, session.output)
        start = first_name(session.model, find_maps(subject, layer)[0])
        named = {one.name: str(one) for one in session.every if one.name == start}
        self._names = {one.name: str(one) for one in map_layers(session.every, pictures)} | named
        if target is not None:
            target = check_index("class", target, len(session.labels or ()))
        self._begin_with(picture=picture, target=target, layer=start, method=method)
        self.panels = Panels(
            [
                {"title": "", "cells": [{"slot": "large"}, {"slot": "guided"}]},
                {"title": "From one pass: the gradient family", "cells": [{"slot": name} for name in GRADIENT_CAMS]},
            ],
            controls=["opacity", "contrast"],
        )
        self._maps: dict[str, Tensor] = {}
        controls = [self.method_control, self.target_control, self.layer_control]
        self._lay_out([self.strip], [*controls, self.panels])
        self._start()

    @draws("picture", "layer", "target", into="panels")
    def _show_family(self) -> Iterator[bool]:
        session = self.session
        with session.under_autocast():
            arguments = session.batch(self.picture), self.layer, self.target
            self._maps = session.ask(lambda model: class_activation(model, *arguments, **self.options))
        for name, maps in self._maps.items():
            self._show(name, maps[session.row(self.picture)], NAMES[name])
        yield True

    def _show(self, slot: str, heat: Tensor, caption: str) -> None:
        nothing = "" if bool(heat.any()) else ": nothing speaks for the class"
        (over,) = to_host(quantise(heat, None, (heat.new_zeros(()).float(), heat.new_ones(()).float()))[0])
        picture = channels_last(self.session.shown(self.picture))
        self.panels.show(slot, "overlay", picture, over, caption=f"{caption}{nothing}")

    @draws("picture", "layer", "target", "method", into="panels")
    def _show_large(self) -> Iterator[bool]:
        session, name = self.session, self.method
        batch, layer, target, row = session.batch(self.picture), self.layer, self.target, session.row(self.picture)
        with session.under_autocast():
            if name in self._maps:
                maps = self._maps[name]
            else:
                maps = session.ask(lambda model: CAMS[name].function(model, batch, layer, target, **self.options))
        caption = f"{NAMES[name]} for {self.class_name}" if name != "eigen_cam" else "Eigen-CAM, of no class"
        self._show("large", maps[row], caption)
        yield True
        with session.under_autocast():
            guided = session.ask(lambda model: guided_grad_cam(model, batch, layer, target, **self.options))[row]
        guided = guided if len(guided) in (1, 3) else guided.sum(0, keepdim=True)
        self.panels.show("guided", "signed", channels_last(centre(guided)), caption="Guided Grad-CAM")
        yield False

    def _heading(self) -> str:
        return f"{self.header.title} · {self.layer} · {self.class_name}"

    def _figure_rows(self) -> list[list[Panel]]:
        return filled_panels(self.panels)
