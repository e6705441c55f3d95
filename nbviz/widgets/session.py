"""What a widget computes, free of widgets: one model, some pictures, the last trace kept."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.layers import Layer, trace_layers
from nbviz.core.state import fingerprint
from nbviz.core.trace import Trace, find_module, run
from nbviz.imaging.load import load
from nbviz.methods.arguments import check_maps
from nbviz.methods.reconstruct import project


class Session:
    """A model and pictures, with one forward pass for all that is asked of the same picture and layer.

    Parameters
    ----------
    model, images, preprocess
        As in :func:`nbviz.load`.
    labels
        The names of the model's outputs, in order; None takes those found with the preprocessing.

    Attributes
    ----------
    layers
        The layers that have feature maps.
    forward_passes
        How many were run, for people who count.
    """

    def __init__(self, model: nn.Module, images: Any, preprocess: Any = None, labels: Sequence[str] | None = None):
        self.model = model
        self.pictures = load(model, images, preprocess)
        found, output = trace_layers(model, self.pictures.inputs[:1])
        self.layers = {layer.name: layer for layer in found if layer.has_maps}
        if not self.layers:
            raise ValueError(f"no layer of {type(model).__name__} gives feature maps (N, C, H, W)")
        self.display = self.pictures.display()
        classes = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1 else None
        self.labels = _names(classes, labels, self.pictures.preprocess.labels)
        self.forward_passes = 1
        self.milliseconds = 0.0
        self._key: tuple[Any, ...] | None = None
        self._trace = Trace(self.pictures.inputs[:0])
        self._predictions: dict[tuple[Any, ...], list[tuple[str, float]]] = {}

    def check_layer(self, name: str) -> str:
        """The layer's name if it has feature maps; otherwise a ValueError that says what does."""
        if name in self.layers:
            return name
        find_module(self.model, name)  # says what is near, if it is no module at all
        raise ValueError(f"layer {name!r} gives no feature maps (N, C, H, W). Accepted: {', '.join(self.layers)}")

    def start_layer(self) -> str:
        """Where looking is useful at first: the deepest layer that still shows shapes, of parts of the picture."""
        picture = self.pictures.inputs.shape[2:]
        layers = list(self.layers.values())
        parts = [
            layer
            for layer in layers
            if layer.leaf
            and min(layer.shape[1:]) >= 12
            and layer.receptive_field is not None
            and all(field <= 0.6 * side for field, side in zip(layer.receptive_field, picture, strict=True))
        ]
        # Rather after a rectifier, whose maps say where a channel fires; but one that saturates (ReLU6, …)
        # passes no gradient where it is strongest.
        fires = [layer for layer in parts if layer.type in ("ReLU", "MaxPool2d")]
        filters = [layer for layer in parts if layer.type.startswith("Conv")]
        return (fires or filters or parts or [layers[len(layers) // 2]])[-1].name

    def trace(self, picture: int, layer: str) -> Trace:
        """The trace of one picture up to a layer; run again only if one of these or a weight has changed."""
        weights = fingerprint(self.model)
        key = (picture, layer, weights)
        if key != self._key:
            self.forget()
            # The predictions need the rest of the network: once for each picture.
            whole = self.labels is not None and (picture, weights) not in self._predictions
            start = time.perf_counter()
            inputs = self.pictures.inputs[picture : picture + 1]
            self._trace = run(self.model, inputs, [layer], output=whole, grad=True)
            self.forward_passes += 1
            check_maps(self._trace.activations[layer], layer)
            if whole:
                self._predictions = {k: v for k, v in self._predictions.items() if k[1] == weights}
                self._predictions[picture, weights] = self._top(self._trace.output)
                self._trace.output = None  # and with it the graph above the layer
            self.milliseconds = 1000 * (time.perf_counter() - start)
            self._key = key
        _remember(self)
        return self._trace

    def forget(self) -> None:
        """Let go of the trace; the next question runs it again."""
        self._key, self._trace = None, Trace(self.pictures.inputs[:0])

    def maps(self, picture: int, layer: str) -> Tensor:
        """The layer's feature maps of one picture, (C, H, W)."""
        return self.trace(picture, layer).activations[layer].detach()[0]

    def predictions(self, picture: int, layer: str) -> list[tuple[str, float]]:
        """The five most probable classes; empty for a model that gives no class scores."""
        self.trace(picture, layer)
        return self._predictions.get((picture, fingerprint(self.model)), [])

    def reconstruction(self, picture: int, layer: str, channel: int, rule: str, seed: str) -> tuple[Tensor, bool]:
        """A channel sent back to the picture, (C, H, W), and whether the rule met a rectifier."""
        maps, met = project(self.trace(picture, layer), layer, [channel], rule, seed)
        return maps[0, 0], met

    def box(self, layer: Layer, row: int, column: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of what a position of a layer sees, in pixels of the input."""
        height, width = self.pictures.inputs.shape[2:]
        return (0, 0, height, width) if layer.field is None else layer.field.box(row, column, height, width)

    def _top(self, output: Tensor) -> list[tuple[str, float]]:
        scores = output.detach()[0].float()
        already = bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-3
        probabilities = scores if already else scores.softmax(0)
        if not bool(probabilities.isfinite().all()):
            return []
        values, classes = probabilities.topk(min(5, len(scores)))
        names = self.labels or ()
        return [(names[c], v) for v, c in zip(values.tolist(), classes.tolist(), strict=True)]


#: The sessions whose traces are kept, the latest last: a notebook's older widgets run theirs again when asked.
_recent: list[weakref.ref[Session]] = []
_TRACES_KEPT = 3


def _remember(session: Session) -> None:
    others = [ref for ref in _recent if ref() is not None and ref() is not session]
    for ref in others[: len(others) - _TRACES_KEPT + 1]:
        if (old := ref()) is not None:
            old.forget()
    _recent[:] = [*others[max(0, len(others) - _TRACES_KEPT + 1) :], weakref.ref(session)]


@atexit.register
def _forget_all() -> None:
    """Torch aborts if the interpreter's end takes a graph apart whose tensors Python still holds."""
    for ref in _recent:
        if (session := ref()) is not None:
            session.forget()


def _names(classes: int | None, given: Sequence[str] | None, found: Sequence[str] | None) -> tuple[str, ...] | None:
    """A name for each output of the model, or None for a model that gives no class scores."""
    if given is not None:
        if isinstance(given, str):
            raise TypeError("labels is a str; expected a list of names, one for each output")
        names = tuple(str(name) for name in given)
        if classes is not None and len(names) != classes:
            raise ValueError(f"labels has {len(names)} names for the model's {classes} outputs; expected one for each")
        return names if classes is not None else None
    if classes is None:
        return None
    if found is not None and len(found) == classes:
        return tuple(found)
    return tuple(f"class {i}" for i in range(classes))
