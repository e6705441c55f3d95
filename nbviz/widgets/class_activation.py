"""The widget that shows where a layer speaks for a class, by several methods side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ipywidgets
import torch
import traitlets as t
from torch import Tensor, nn

from nbviz.core.checks import check_choice, check_index
from nbviz.core.errors import line
from nbviz.core.trace import first_name
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.cam import GRADIENT_CAMS, class_activation
from nbviz.methods.cam_layers import find_maps, map_layers
from nbviz.methods.cams import CAMS
from nbviz.methods.guided_grad_cam import guided_grad_cam
from nbviz.methods.subject import Subject
from nbviz.widgets.figure_panels import filled_panels
from nbviz.widgets.picture_widget import OfPictures, answering
from nbviz.widgets.views import Panels

#: What a person reads for the names of the methods; those of the gradient family cost one pass together.
NAMES = {name: cam.title for name, cam in CAMS.items()}
_MOST_CLASSES = 100  # in the dropdown, the most probable first


class ClassActivation(OfPictures):
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

    _parts: ClassVar[tuple[str, ...]] = ("family", "large", "predictions")
    _stales: ClassVar[dict[str, set[str]]] = {
        "picture": {"family", "large", "predictions"},
        "layer": {"family", "large"},
        "target": {"family", "large"},
        "method": {"large"},
    }

    layer = t.Unicode(help="The layer's name.")
    target = t.Int(0, help="The class.")
    method = t.Unicode(help="Which method is shown in large.")

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
        session = answering(model, images, preprocess, labels, inputs, output)
        self._given = {"inputs": inputs, "output": output}
        pictures = session.pictures.inputs
        subject = Subject(session.model, session.pictures, session.feed, output)
        start = first_name(session.model, find_maps(subject, layer)[0])
        named = {one.name: str(one) for one in session.every if one.name == start}
        self._names = {one.name: str(one) for one in map_layers(session.every, pictures)} | named
        self._pick_predicted = target is None
        first = 0 if target is None else check_index("class", target, len(session.labels or ()))
        super().__init__(session, model, picture)
        self.layer_control = ipywidgets.Dropdown(
            options=[(said, name) for name, said in self._names.items()], value=start, description="Layer"
        )
        self.target_control = ipywidgets.Dropdown(
            options=self._classes(picture, first), value=first, description="Class", tooltip="The most probable first"
        )
        self.method_control = ipywidgets.Dropdown(
            options=[(said, name) for name, said in NAMES.items()], value=method, description="Method"
        )
        self.panels = Panels(
            [
                {"title": "", "cells": [{"slot": "large"}, {"slot": "guided"}]},
                {"title": "From one pass: the gradient family", "cells": [{"slot": name} for name in GRADIENT_CAMS]},
            ],
            controls=["opacity", "contrast"],
        )
        self._maps: dict[str, Tensor] = {}
        self.layer, self.target, self.method = start, first, method
        for name in ("layer", "target", "method"):
            t.link((self, name), (getattr(self, f"{name}_control"), "value"))
        left = ipywidgets.VBox([self.strip])
        controls = [self.method_control, self.target_control, self.layer_control]
        right = ipywidgets.VBox([*controls, self.panels])
        self._lay_out(ipywidgets.Box([left, right]).add_class("nbviz-columns"), "activation")
        self._start()

    def _classes(self, picture: int, chosen: int) -> list[tuple[str, int]]:
        """The most probable classes, and the chosen one, for the dropdown."""
        scores, labels = self.session.scores_of(picture), self.session.labels or ()
        order = [] if scores is None else torch.nan_to_num(scores[0].float()).argsort(descending=True).tolist()
        classes = order[:_MOST_CLASSES]
        return [(f"{line(labels[c], 60)} ({c})", c) for c in [*classes, *([] if chosen in classes else [chosen])]]

    @t.validate("layer")
    def _valid_layer(self, proposal: Any) -> str:
        return check_choice("layer with feature maps", proposal["value"], self._names)

    @t.validate("method")
    def _valid_method(self, proposal: Any) -> str:
        return check_choice("method", proposal["value"], NAMES)

    @t.validate("target")
    def _valid_target(self, proposal: Any) -> int:
        return check_index("class", proposal["value"], len(self.session.labels or ()))

    def _changed(self, change: Any) -> None:
        with self._turn():
            stepping, self._stepping = self._stepping, True
            try:
                if change.name == "picture":
                    self._pick_predicted = True
                elif change.name == "target":
                    self._pick_predicted = self._pick_predicted and stepping
                    options = dict(self.target_control.options).values()
                    if self.target not in options:
                        self.target_control.options = self._classes(self.picture, self.target)
            finally:
                self._stepping = stepping
        super()._changed(change)

    def _show_family(self) -> Iterator[bool]:
        session = self.session
        if self._pick_predicted:  # another picture: the class that is predicted for it
            self._pick_predicted = False
            scores = session.scores_of(self.picture)
            best = 0 if scores is None else int(torch.nan_to_num(scores[0].float()).argmax())
            self.target_control.options = self._classes(self.picture, best)
            self.target = self.target_control.value = best
        with session.under_autocast():
            batch = session.batch(self.picture)
            arguments = batch, self.layer, self.target
            self._maps = session.ask(lambda model: class_activation(model, *arguments, **self._given))
        self._key = f"{self.picture} {line(self.layer)} {self.target}"
        self.panels.current = self._key
        for name, maps in self._maps.items():
            self._show(name, maps[session.row(self.picture)], NAMES[name])
        yield True

    def _show(self, slot: str, heat: Tensor, caption: str) -> None:
        nothing = "" if bool(heat.any()) else ": nothing speaks for the class"
        (over,) = to_host(quantise(heat, None, (heat.new_zeros(()).float(), heat.new_ones(()).float()))[0])
        picture = channels_last(self.session.shown(self.picture))
        self.panels.show(slot, "overlay", picture, over, caption=f"{caption}{nothing}")

    def _show_large(self) -> Iterator[bool]:
        session, name = self.session, self.method
        batch, layer, target, row = session.batch(self.picture), self.layer, self.target, session.row(self.picture)
        label = line((session.labels or ())[self.target], 40)
        with session.under_autocast():
            if name in self._maps:
                maps = self._maps[name]
            else:
                maps = session.ask(lambda model: CAMS[name].function(model, batch, layer, target, **self._given))
        self._show(
            "large", maps[row], f"{NAMES[name]} for {label}" if name != "eigen_cam" else "Eigen-CAM, of no class"
        )
        yield True
        with session.under_autocast():
            guided = session.ask(lambda model: guided_grad_cam(model, batch, layer, target, **self._given))[row]
        guided = guided if len(guided) in (1, 3) else guided.sum(0, keepdim=True)
        self.panels.show("guided", "signed", channels_last(centre(guided)), caption="Guided Grad-CAM")
        yield False

    def _ended(self) -> None:
        call = f"{self.layer!r}, {self.target}, {self.method!r}, picture={self.picture}"
        self.header.code = f"nbviz.ClassActivation(model, images, {call})"

    def _heading(self) -> str:
        return f"{self.header.title} · {self.layer} · {line((self.session.labels or ())[self.target], 60)}"

    def _figure_rows(self) -> list[list[Panel]]:
        return filled_panels(self.panels)
