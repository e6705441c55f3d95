"""What a widget computes, free of widgets: one model, some pictures, the last trace kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.backward import RULES
from nbviz.core.errors import line, shown, unknown
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.state import fingerprint
from nbviz.core.trace import Trace, find_module, run
from nbviz.imaging.encode import Array, to_host
from nbviz.imaging.load import load
from nbviz.imaging.pixels import centre, check_tensor, quantise, shrink
from nbviz.imaging.preprocess import check_labels
from nbviz.methods.arguments import check_maps, check_real
from nbviz.methods.feature_maps import fuse
from nbviz.methods.reconstruct import project
from nbviz.widgets.memory import remember

#: What a person reads for the names of the rules.
RULE_CAPTIONS = {"gradient": "gradient", "deconvnet": "deconvnet", "guided": "guided backprop"}
#: What the grid can show of each channel: its map, or what a rule makes of it.
TILES = ("activation", *RULES)


@dataclass(frozen=True)
class Look:
    """What the page wants to know of a layer on one picture, on the host; but for the last, one entry a channel."""

    pixels: Array  # the maps at screen resolution, uint8 (C, h, w), each from its low to its high
    low: Array
    high: Array
    inner: Array  # the highest value away from the border, where padding alone can excite a channel
    spread: Array  # the standard deviation over the positions
    place: Array  # the position of the highest value, row by row
    strange: Array  # whether any value is NaN or infinite
    fused: Array  # all channels in one map, uint8 (h, w), or (3, h, w) in colours


class Session:
    """A model and pictures, with one forward pass for all that is asked of the same picture and layer.

    Parameters
    ----------
    model, images, preprocess
        As in :func:`nbviz.load`.
    labels
        The names of the model's outputs, in order; None takes those found with the preprocessing.
    grad
        Keep what reconstructions need.

    Attributes
    ----------
    layers
        The layers that have feature maps.
    forward_passes
        How many were run, for people who count.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        grad: bool = True,
    ) -> None:
        self.model = model
        self.grad = grad
        self.pictures = load(model, images, preprocess)
        check_tensor("the model's input", self.pictures.inputs, "on a device that holds values")
        found, output = trace_layers(model, self.pictures.inputs[:1])
        self.layers = {layer.name: layer for layer in found if layer.has_maps}
        if not self.layers:
            raise ValueError(
                f"no layer of {type(model).__name__} gives feature maps; expected one that gives (N, C, H, W)"
            )
        self.display = self.pictures.display()
        scores = isinstance(output, Tensor) and output.ndim == 2 and not output.is_complex()
        classes = output.shape[1] if scores and output.shape[1] > 1 else None
        self.labels = _names(classes, labels, self.pictures.preprocess.labels)
        self.forward_passes = 1
        self.milliseconds = 0.0
        # Widgets answer on other threads, where the person's autocast is not known.
        device = self.pictures.inputs.device.type
        self._autocast: dict[str, Any] = {
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        self._key: tuple[Any, ...] | None = None
        self._trace = Trace(self.pictures.inputs[:0])
        self.trace_bytes = 0
        self._look: tuple[tuple[Any, ...], Look] | None = None
        self._predictions: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
        if self.labels is not None:  # known from the pass that found the layers
            self._predictions[0, fingerprint(model)] = self._top(output)

    def check_layer(self, name: str) -> str:
        """The layer's name if it has feature maps; otherwise a ValueError that says what does."""
        if isinstance(name, str) and name in self.layers:
            return name
        find_module(self.model, name)  # says what is near, if it is no module at all
        accepted = str(unknown("such layer", name, self.layers)).partition("Accepted: ")[2]
        raise ValueError(f"layer {shown(name)} gives no feature maps (N, C, H, W). Accepted: {accepted}")

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
            start = time.perf_counter()
            inputs = self.pictures.inputs[picture : picture + 1]
            with self._under_autocast():
                self._trace = run(self.model, inputs, [layer], grad=self.grad)
            self.forward_passes += 1
            check_real(check_maps(self._trace.activations[layer], layer), f"layer {shown(layer)}")
            self.milliseconds = 1000 * (time.perf_counter() - start)
            self._key = key
            self.trace_bytes = self._trace.nbytes
        remember(self)
        return self._trace

    def forget(self) -> None:
        """Let go of the trace; the next question runs it again."""
        self._key, self._trace, self.trace_bytes = None, Trace(self.pictures.inputs[:0]), 0

    def _under_autocast(self) -> AbstractContextManager[Any]:
        device = self.pictures.inputs.device.type
        return torch.autocast(device, **self._autocast)

    def maps(self, picture: int, layer: str) -> Tensor:
        """The layer's feature maps of one picture, (C, H, W)."""
        return self.trace(picture, layer).activations[layer].detach()[0]

    def look(self, picture: int, layer: str, how: str, side: int) -> Look:
        """All that is shown of a layer's maps, in one copy from the device; each map about ``side`` pixels wide."""
        key = (picture, layer, how, side, fingerprint(self.model))
        if self._look is not None and self._look[0] == key:
            return self._look[1]
        maps = self.maps(picture, layer)
        with torch.autocast(maps.device.type, enabled=False):
            look = self._look_at(maps, how, side)
        self._look = key, look
        return look

    def knows(self, picture: int) -> bool:
        """Whether the predictions for a picture need no pass any more."""
        return self.labels is None or (picture, fingerprint(self.model)) in self._predictions

    @staticmethod
    def _look_at(maps: Tensor, how: str, side: int) -> Look:
        finite = torch.nan_to_num(maps.float(), 0.0, 0.0, 0.0)
        steps, low, high = quantise(maps, side)
        inner = finite[:, 1:-1, 1:-1] if min(maps.shape[1:]) >= 5 else finite
        flat, raw = finite.flatten(1), maps.flatten(1)
        spread = (flat - flat.mean(1, keepdim=True)).square_().mean(1).sqrt()
        # A value that is not finite is its channel's lowest or highest.
        strange = ~(raw.amin(1).isfinite() & raw.amax(1).isfinite())
        fused = quantise(fuse(maps[None], how)[0])[0]
        return Look(*to_host(steps, low, high, inner.amax((1, 2)), spread, raw.argmax(1), strange, fused))

    def predictions(self, picture: int) -> list[tuple[str, float]]:
        """The five most probable classes; empty for a model that gives no class scores.

        They need the whole network: a pass of their own, so that the layer's maps need not wait for what
        comes after them. It is run once for each picture.
        """
        if self.labels is None:
            return []
        key = picture, fingerprint(self.model)
        if key not in self._predictions:
            with self._under_autocast():
                output = run(self.model, self.pictures.inputs[picture : picture + 1], output=True).output
            self.forward_passes += 1
            self._predictions = {k: v for k, v in self._predictions.items() if k[1] == key[1]}
            self._predictions[key] = self._top(output)
        return self._predictions[key]

    def reconstructions(
        self, picture: int, layer: str, channels: Sequence[int], rule: str, seed: str
    ) -> tuple[Tensor, bool]:
        """Channels sent back to the picture, (K, 1 or 3, H, W), and whether the rule met a rectifier."""
        maps, met = project(self.trace(picture, layer), layer, channels, rule, seed)
        # Pictures with another number of channels are drawn as their sum.
        return (maps[0] if maps.shape[2] in (1, 3) else maps[0].sum(1, keepdim=True)), met

    def patch(self, layer: Layer, seed: str) -> tuple[int, int]:
        """Height and width of the part of the picture that a reconstruction in the layer's grid shows."""
        height, width = self.pictures.inputs.shape[2:]
        if layer.field is None or seed == "map":
            return height, width
        return min(layer.field.size[0], height), min(layer.field.size[1], width)

    def patches(self, layer: Layer, maps: Tensor, places: Sequence[int], seed: str, side: int) -> tuple[Array, Array]:
        """Reconstructions (K, C, H, W) cut to what each channel's position sees: uint8 (K, h, w, C) and scales (K,).

        What lies beyond the picture's border is zero, which is grey.
        """
        (height, width), (h, w) = maps.shape[2:], self.patch(layer, seed)
        parts = []
        for signal, place in zip(maps, places, strict=True):
            top, left = (0, 0) if layer.field is None else layer.field.corner(*divmod(place, layer.shape[2]))
            top, left = 0 if h == height else top, 0 if w == width else left
            part = signal[:, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
            above, before = min(max(-top, 0), h), min(max(-left, 0), w)
            parts.append(F.pad(part, (before, w - before - part.shape[2], above, h - above - part.shape[1])))
        signals = torch.nan_to_num(torch.stack(parts).float(), 0.0, 0.0, 0.0)
        signals = shrink(signals, side)
        pixels, scales = to_host(centre(signals).permute(0, 2, 3, 1), signals.abs().flatten(1).amax(1))
        return pixels, scales

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
        return [(line(names[c]), v) for v, c in zip(values.tolist(), classes.tolist(), strict=True)]


def _names(classes: int | None, given: Sequence[str] | None, found: Sequence[str] | None) -> tuple[str, ...] | None:
    """A name for each output of the model, or None for a model that gives no class scores."""
    if given is not None:
        names = check_labels(given)
        if classes is not None and len(names) != classes:
            raise ValueError(f"labels has {len(names)} names for the model's {classes} outputs; expected one for each")
        return names if classes is not None else None
    if classes is None:
        return None
    if found is not None and len(found) == classes:
        return tuple(found)
    return tuple(f"class {i}" for i in range(classes))
