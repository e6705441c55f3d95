"""What a widget computes, free of widgets: one model, some pictures, the last trace kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbviz.core.arguments import SHAPES, check_maps
from nbviz.core.backward import BACKWARD_RULES, RULES
from nbviz.core.checks import check_real
from nbviz.core.errors import ModelError, line, shown, unknown
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.trace import Trace, first_name, run
from nbviz.core.weights import steadily
from nbviz.imaging.encode import Array, to_host
from nbviz.imaging.pixels import centre, cut, quantise, shrink
from nbviz.methods.feature_maps import fuse
from nbviz.methods.reconstruct import project
from nbviz.widgets.memory import remember
from nbviz.widgets.predictions import Answers

#: What a person reads for the names of the rules.
RULE_CAPTIONS = {name: rule.title for name, rule in BACKWARD_RULES.items()}
#: What the grid can show of each channel: its map, or what a rule makes of it.
TILES = ("activation", *RULES)


#: Pixels of a side; what is at least twice as large is shown in fewer.
LARGE = 1024


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


class Session(Answers):
    """A model and pictures, with one forward pass for all that is asked of the same picture and layer.

    Parameters
    ----------
    model, images, preprocess
        As in :func:`nbviz.load`.
    inputs, output
        As in :func:`nbviz.reconstruct`.
    labels
        The names of the model's outputs, in order; None takes those found with the preprocessing.
    grad
        Keep what reconstructions need.
    maps
        Whether there must be a layer with feature maps.

    Attributes
    ----------
    every, layers
        All layers; those that have feature maps, by name.
    axes
        2 for pictures, 1 for signals, 3 for volumes.
    depth, size
        Slices of a volume, else 1; height and width of a picture or a slice, for a signal 1 and its length.
    bands, display
        Which channels of the pictures are shown; the pictures as they are shown, uint8 (N, 3, *sides), of signals
        (N, 1 to 3, L).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        grad: bool = True,
        inputs: Any = None,
        output: Any = None,
        maps: bool = True,
    ) -> None:
        super().__init__(model, images, preprocess, inputs, output)
        self.grad, model = grad, self.model
        found, given = steadily(model, lambda model: trace_layers(model, self.batch(0), self.feed))
        self.forward_passes = 1
        self.every = found
        self.layers = {layer.name: layer for layer in found if layer.has_maps}
        self._outline: tuple[Any, Any] = _outline(model), self._watch.settings
        self._unlike = ""  # in what the model has become another one
        sides = tuple(self.pictures.inputs.shape[2:])
        self.axes = len(sides)
        self.depth = sides[0] if self.axes == 3 else 1
        self.size = (1, *sides)[-2:]
        if maps and not self.layers:
            shape = SHAPES[2 + self.axes]
            raise ValueError(f"no layer of {type(model).__name__} gives feature maps; expected one that gives {shape}")
        self.show_bands(None)
        self.name_classes(given, labels)
        self.milliseconds = 0.0
        self._key: tuple[Any, ...] | None = None
        self._trace = self._nothing = Trace(self.pictures.inputs[:0])
        self._kept: tuple[Any, dict[str, tuple[Tensor, frozenset[str]]]] = (None, {})
        self._look: tuple[tuple[Any, ...], Look] | None = None

    def settle(self, in_full: bool, is_trained: bool = False) -> bool:
        """As :meth:`Answers.settle <nbviz.widgets.predictions.Answers.settle>`.

        Raises
        ------
        ModelError
            When the model's layers are no more what they were.
        """
        changed = super().settle(in_full, is_trained)
        if changed and (outline := (_outline(self.model), self._watch.settings)) != self._outline:
            self._unlike = self._became_another(outline[0])
            if not self._unlike:
                self._outline = outline
        elif changed:
            self._unlike = ""
        if self._unlike:
            raise ModelError(f"the model has changed: {self._unlike}; make this widget again (run its cell)")
        return changed

    def _became_another(self, outline: Any) -> str:
        """In what it cannot be followed, in words; otherwise its layers are taken as they are now."""
        before, now = ({kind for *_, kinds in one for kind in kinds} for one in (self._outline[0], outline))
        if now - before:
            known, new = (", ".join(sorted(f"{dtype} on {device}" for dtype, device in one)) for one in (before, now))
            return f"its weights are {new}, and were {known}".replace("torch.", "")
        try:
            found, given = steadily(self.model, lambda model: trace_layers(model, self.batch(0), self.feed))
        except Exception as error:  # of itself no sign of another model: the next pass will say so, too
            shapes = ([own for *_, own, _ in one] for one in (self._outline[0], outline))
            return "" if next(shapes) == next(shapes) else line(error, 300)
        unlike = _difference(self.every, found) or self._other_classes(given)
        if not unlike:
            self.every, self.layers = found, {layer.name: layer for layer in found if layer.has_maps}
        return unlike

    def _other_classes(self, given: Any) -> str:
        scores = self._scores(given)
        before, now = len(self.labels or ()), 0 if scores is None or scores.shape[1] == 1 else scores.shape[1]
        return "" if before == now else f"it gives {now} class scores, and gave {before}"

    def check_layer(self, name: str) -> str:
        """The layer's name if it has feature maps; otherwise a ValueError that says what does."""
        if isinstance(name, str) and name in self.layers:
            return name
        name = first_name(self.model, name)  # says what is near, if it is no module at all
        if name in self.layers:
            return name
        accepted = str(unknown("such layer", name, self.layers)).partition("Accepted: ")[2]
        raise ValueError(f"layer {shown(name)} gives no feature maps {SHAPES[2 + self.axes]}. Accepted: {accepted}")

    @property
    def usual_bands(self) -> tuple[int, ...]:
        """The first three channels of the pictures, or as many as there are."""
        return tuple(range(min(3, self.pictures.inputs.shape[1])))

    def show_bands(self, bands: tuple[int, ...] | None) -> None:
        """From now on, show these channels of the pictures and of what is reconstructed of them."""
        self.bands, self.display = bands or self.usual_bands, self.pictures.display(bands)

    def shown(self, picture: int, plane: int = 0) -> Tensor:
        """A picture or a slice as a person sees it, uint8 (3, h, w); of a signal (1 to 3, 1, l)."""
        return fitted(self.plane(self.display[picture], plane))

    def shown_input(self, inputs: Tensor) -> Tensor:
        """Another input (1, C, H, W) as a person sees it, uint8 (3, h, w)."""
        return fitted(replace(self.pictures, inputs=inputs).display(self.bands)[0])

    def plane(self, maps: Tensor, plane: int) -> Tensor:
        """What is shown of maps (..., H, W), (..., L) or (..., D, H, W): (..., h, w), at a slice of the input."""
        if self.axes == 1:
            return maps.unsqueeze(-2)
        return maps if self.axes == 2 else maps.select(-3, plane * maps.shape[-3] // self.depth)

    def start_layer(self) -> str:
        """Where looking is useful at first: the deepest layer that still shows shapes, of parts of the picture."""
        picture = self.pictures.inputs.shape[2:]
        layers = list(self.layers.values())
        parts = [
            layer
            for layer in layers
            if layer.leaf
            and min(layer.shape[1:][-2:]) >= 12
            and layer.receptive_field is not None
            and all(field <= 0.6 * side for field, side in zip(layer.receptive_field, picture, strict=True))
        ]
        # Rather after a rectifier, whose maps say where a channel fires; but one that saturates (ReLU6, …)
        # passes no gradient where it is strongest.
        fires = [layer for layer in parts if layer.type in ("ReLU", f"MaxPool{self.axes}d")]
        filters = [layer for layer in parts if layer.type.startswith("Conv")]
        return (fires or filters or parts or [layers[len(layers) // 2]])[-1].name

    def trace(self, picture: int, layer: str) -> Trace:
        """The trace of one picture up to a layer; run again only if one of these or a weight has changed."""
        key = (None if self._together else picture, layer, self.weights)
        if key != self._key:
            self.forget()
            start = time.perf_counter()
            batch = self.batch(picture)
            with self.under_autocast():
                self._trace = self.ask(lambda model: run(model, batch, [layer], feed=self.feed, grad=self.grad))
            self.forward_passes += 1
            check_real(check_maps(self._trace, layer), f"layer {shown(layer)}")
            self.milliseconds = 1000 * (time.perf_counter() - start)
            self._key = key
            self.trace_bytes = self._trace.nbytes
        remember(self)
        return self._trace

    def forget(self) -> None:
        """Let go of the trace; the next question runs it again.

        Without a call of torch's: it may be Python's garbage collector that asks, at any moment of a forward pass.
        """
        super().forget()
        self._key, self._trace, self._kept = None, self._nothing, (None, {})

    def maps(self, picture: int, layer: str) -> Tensor:
        """The layer's feature maps of one picture, (C, H, W), or (C, L), (C, D, H, W)."""
        return self.trace(picture, layer).activations[layer].detach()[self.row(picture)]

    def look(self, picture: int, layer: str, how: str, side: int, plane: int = 0) -> Look:
        """All that is shown of a layer's maps, in one copy from the device; each map about ``side`` pixels wide."""
        key = (picture, layer, how, side, plane, self.weights)
        if self._look is not None and self._look[0] == key:
            return self._look[1]
        maps = self.maps(picture, layer)
        with torch.autocast(maps.device.type, enabled=False):
            look = self._look_at(maps, how, side, plane)
        self._look = key, look
        return look

    def _look_at(self, maps: Tensor, how: str, side: int, plane: int) -> Look:
        finite = torch.nan_to_num(maps.float(), 0.0, 0.0, 0.0)
        flat, raw, sides = finite.flatten(1), maps.flatten(1), maps.shape[1:]
        # Of a volume, all slices are on one scale.
        steps, low, high = quantise(self.plane(maps, plane), side, (flat.amin(1), flat.amax(1)))
        inner = finite[(slice(None), *[slice(1, -1)] * len(sides))] if min(sides) >= 5 else finite
        spread = (flat - flat.mean(1, keepdim=True)).square_().mean(1).sqrt()
        # A value that is not finite is its channel's lowest or highest.
        strange = ~(raw.amin(1).isfinite() & raw.amax(1).isfinite())
        fused = quantise(self.plane(fuse(maps[None], how)[0], plane))[0]
        return Look(*to_host(steps, low, high, inner.flatten(1).amax(1), spread, raw.argmax(1), strange, fused))

    def reconstructions(
        self, picture: int, layer: str, channels: Sequence[int], rule: str, seed: str
    ) -> tuple[Tensor, frozenset[str]]:
        """Channels sent back to the picture, and the names of the rectifiers that the rule met.

        (K, 1 or 3, *sides); of signals, which can be shown in two curves as well, (K, 1 to 3, L).
        """
        trace = self.trace(picture, layer)
        maps, met = self.ask(lambda _: project(trace, layer, channels, rule, seed))
        maps = maps[self.row(picture)]
        if self.bands != tuple(range(maps.shape[1])):
            maps = maps[:, list(self.bands)]
        apart = (1, 2, 3) if self.axes == 1 else (1, 3)
        return (maps if maps.shape[1] in apart else maps.sum(1, keepdim=True)), met

    def reconstruction(
        self, picture: int, layer: str, channel: int, rule: str, seed: str
    ) -> tuple[Tensor, frozenset[str]]:
        """The same of one channel; of a volume it is kept with the trace, for the next slice."""
        if self.axes < 3:
            return self.reconstructions(picture, layer, [channel], rule, seed)
        self.trace(picture, layer)  # another one lets go of what is kept
        key = picture, channel, seed, self.bands
        if self._kept[0] != key:
            self._kept = key, {}
        kept = self._kept[1]
        if rule not in kept:
            kept[rule] = self.reconstructions(picture, layer, [channel], rule, seed)
        return kept[rule]

    def patch(self, layer: Layer, seed: str) -> tuple[int, int]:
        """Height and width of the part of the picture that a reconstruction in the layer's grid shows."""
        height, width = self.size
        if layer.field is None or seed == "map":
            return height, width
        sees = (1, *layer.field.size)[-2:]
        return min(sees[0], height), min(sees[1], width)

    def corner(self, layer: Layer, place: int) -> tuple[int, int, int]:
        """Slice, top and left of what a place of a layer sees, before clipping; of the slices the one in the middle."""
        position = np.unravel_index(place, layer.shape[1:])
        if layer.field is None:
            return (int(position[0]) * self.depth // layer.shape[1] if self.axes == 3 else 0), 0, 0
        first = (0, 0, *layer.field.corner([int(i) for i in position]))[-3:]
        middle = first[0] + layer.field.size[0] // 2 if self.axes == 3 else 0
        return min(max(middle, 0), self.depth - 1), first[1] if self.axes > 1 else 0, first[2]

    def patches(self, layer: Layer, maps: Tensor, places: Sequence[int], seed: str, side: int) -> tuple[Array, Array]:
        """Reconstructions (K, C, *sides) cut to what each channel's place sees: uint8 (K, h, w, C) and scales (K,).

        What lies beyond the picture's border is zero, which is grey. Of a volume, the slice in the middle is taken.
        """
        (height, width), (h, w) = self.size, self.patch(layer, seed)
        parts = []
        for whole, place in zip(maps, places, strict=True):
            plane, top, left = self.corner(layer, place)
            corner = (0 if h == height else top, 0 if w == width else left)
            parts.append(cut(self.plane(whole, plane), corner, (h, w)))
        signals = torch.nan_to_num(torch.stack(parts).float(), 0.0, 0.0, 0.0)
        signals = shrink(signals, side)
        pixels, scales = to_host(centre(signals).permute(0, 2, 3, 1), signals.abs().flatten(1).amax(1))
        return pixels, scales

    def box(self, layer: Layer, place: int) -> tuple[tuple[int, ...], range]:
        """Top, left, bottom, right of what a place of a layer sees, in pixels of the input, and which slices."""
        if layer.field is None:
            return (0, 0, *self.size), range(self.depth)
        position = [int(i) for i in np.unravel_index(place, layer.shape[1:])]
        ends = layer.field.box(position, self.pictures.inputs.shape[2:])
        first, last = (0, 0, *ends[: self.axes])[-3:], (1, 1, *ends[self.axes :])[-3:]
        return (*first[1:], *last[1:]), range(first[0], last[0])


def _outline(model: nn.Module) -> Any:
    """Of each module its name, its class, and the shapes and the kinds of its weights."""
    return [
        (name, type(m), [p.shape for p in own], [(p.dtype, p.device) for p in own])
        for name, m in model.named_modules()
        for own in [[p for p in m._parameters.values() if p is not None]]
    ]


def _difference(before: Sequence[Layer], now: Sequence[Layer]) -> str:
    """The first layer that gives something else, in words."""
    shapes = {layer.name: layer.shape for layer in now}
    for layer in before:
        given = shapes.pop(layer.name, None)
        if given is None:
            return f"it has no layer {shown(layer.name)} any more"
        if given != layer.shape:
            sizes = ("×".join(map(str, shape)) or "a number" for shape in (given, layer.shape))
            return f"layer {shown(layer.name)} gives {next(sizes)}, and gave {next(sizes)}"
    return f"it has a new layer {shown(next(iter(shapes)))}" if shapes else ""


def fitted(maps: Tensor) -> Tensor:
    """Maps (C, H, W) of any dtype, averaged over blocks where they are much larger than what a page shows."""
    if max(maps.shape[-2:]) < 2 * LARGE:
        return maps
    small = shrink(maps, LARGE)
    return small if maps.is_floating_point() else small.round().to(maps.dtype)


def information(session: Session, compiled: bool) -> str:
    """The line that says what runs where, and how."""
    model, pictures = session.model, session.pictures
    dtype = str(pictures.inputs.dtype).removeprefix("torch.")
    mode = "train mode, shown in eval" if model.training else "eval"
    mode += " · compiled, shown eager" if compiled else ""
    where = f"{pictures.inputs.device} · {dtype} · {mode}"
    return f"{len(session.layers)} layers · {where} · input: {line(pictures.preprocess.source)}"
