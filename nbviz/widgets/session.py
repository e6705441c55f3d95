"""What a widget computes, without widgets: one model, some pictures, and the last forward pass, which is kept."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median_high
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbviz.core.arguments import SHAPES, check_maps
from nbviz.core.backward import BACKWARD_RULES, RULES, clamped_at
from nbviz.core.calls import first_name
from nbviz.core.checks import check_real
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import ModelError, line, shown, unknown
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.stages import shows, stage_ends
from nbviz.core.state import is_compiled
from nbviz.core.switches import has_switches
from nbviz.core.trace import Trace, run
from nbviz.core.weights import steadily
from nbviz.imaging.encode import Array, to_host
from nbviz.imaging.pixels import centre, cut, quantise, shrink, signed_scale
from nbviz.methods.feature_maps import fuse
from nbviz.methods.reconstruct import project
from nbviz.methods.subject import Subject
from nbviz.pictures.preprocess import NONE_KNOWN
from nbviz.widgets.memory import remember
from nbviz.widgets.predictions import Predictor

#: The captions of the backward rules.
RULE_CAPTIONS = {name: rule.title for name, rule in BACKWARD_RULES.items()}
#: What their reconstructions measure.
MEASURES = {name: "gradient" if name == "gradient" else "signal" for name in RULES}
#: What the grid can show of each channel: its map, or its reconstruction under a rule.
TILES = ("activation", *RULES)
#: The longer side, in pixels, of what the page shows; maps at least twice as large are averaged over blocks.
LARGE = 1024
_ENERGY, _SMALLEST = 0.98, 7  # what a patch holds of a reconstruction's energy; its shortest side in pixels
_MOST_NUMBERS = 1 << 21  # in the reconstructions from which it is found
_MEASURED = 4  # channels from which a layer's patch is found: of 16, the median is the same to a few pixels


@dataclass(frozen=True)
class Look:
    """What the page shows of a layer on one picture, on the host; all but the last two for each channel."""

    pixels: Array  # the maps at screen resolution, uint8 (C, h, w), each from its low to its high
    low: Array
    high: Array
    inner: Array  # the highest value away from the border, where padding alone can excite a channel
    spread: Array  # the standard deviation over the positions
    place: Array  # the position of the highest value, counted row by row
    clamped: Array  # whether the highest value is the end of a clamp, as of a ReLU6: no gradient passes back from it
    strange: Array  # whether any value is NaN or infinite
    fused: Array  # all channels in one map, uint8 (h, w), or (3, h, w) in colours
    fused_ends: Array  # its lowest and its highest value, (2,), or (2, 3) for colours


class Session(Predictor):
    """A model and pictures, with one forward pass for everything that is asked about one picture and layer.

    Parameters
    ----------
    model, images, preprocess, inputs, output, answer
        The subject.
    labels
        The names of the model's outputs, in order; None takes those found with the preprocessing.
    grad
        Keep what reconstructions need.
    maps
        Whether some layer must have feature maps.

    Attributes
    ----------
    all_layers, layers
        All layers; and by name those with feature maps.
    axes
        2 for pictures, 1 for signals, 3 for volumes.
    depth, size
        The slices of a volume, else 1; height and width of a picture or a slice, for a signal 1 and its length.
    bands, display
        The channels of the pictures that are shown; the pictures as they are shown, uint8 (N, 3, *sides), for signals
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
        answer: str | None = None,
        maps: bool = True,
    ) -> None:
        super().__init__(Subject.of(model, images, preprocess, inputs, output, answer))
        self._grad, self.compiled = grad, is_compiled(model)
        self.all_layers, first_output = self._run_layers()
        self.forward_passes = 1
        self.layers = {layer.name: layer for layer in self.all_layers if layer.has_maps}
        self._structure: tuple[Any, Any] = _structure(self.subject.model), self._watch.settings
        self._difference = ""  # how the model differs from the one that the widget was made for
        sides = tuple(self.subject.inputs.shape[2:])
        self.axes = len(sides)
        self.depth = sides[0] if self.axes == 3 else 1
        self.size = (1, *sides)[-2:]
        if maps and not self.layers:
            kind, shape = type(self.subject.model).__name__, SHAPES[2 + self.axes]
            raise ValueError(f"no layer of {kind} gives feature maps; expected one that gives {shape}")
        self._last_look = lru_cache(maxsize=1)(self._look_at)
        # What was found for a picture and a layer, and with which weights.
        self._effective: dict[tuple[int, str], tuple[int, Layer]] = {}
        self._volumes = lru_cache(maxsize=len(RULES))(self.reconstructions)  # of one channel under each rule
        self.show_bands(None)
        self.name_classes(first_output, labels)
        self.milliseconds = 0.0
        self._key: tuple[Any, ...] | None = None
        self._trace: Trace | None = None

    def _run_layers(self) -> tuple[list[Layer], Any]:
        """All layers, and the output, for the first picture."""
        feed = self.subject.feed
        layers, output = steadily(self.subject.model, lambda model: trace_layers(model, self.batch(0), feed))
        return list(layers), output

    # A model that changes.

    def settle(self, in_full: bool, is_trained: bool = False) -> bool:
        """Look at the weights as they are now; whether they have changed.

        Raises
        ------
        ModelError
            When the model's layers are not what they were.
        """
        changed = super().settle(in_full, is_trained)
        if changed:
            structure = _structure(self.subject.model), self._watch.settings
            self._difference = "" if structure == self._structure else self._difference_from(structure[0])
            if not self._difference:
                self._structure = structure
        if self._difference:
            raise ModelError(f"the model has changed: {self._difference}; make this widget again (run its cell)")
        return changed

    def _difference_from(self, structure: Any) -> str:
        """How the model differs so that it cannot be followed; empty if its layers have been read again."""
        before, now = ({kind for *_, kinds in modules for kind in kinds} for modules in (self._structure[0], structure))
        if now - before:
            known, new = (
                ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) for kinds in (before, now)
            )
            return f"its weights are {new}, and were {known}".replace("torch.", "")
        try:
            layers, output = self._run_layers()
        except Exception as error:  # the same structure may fail for another reason, which the next pass will show
            shapes_before, shapes = ([own for *_, own, _ in modules] for modules in (self._structure[0], structure))
            return "" if shapes_before == shapes else line(error, 300)
        difference = _difference(self.all_layers, layers) or self._difference_in_classes(output)
        if not difference:
            self.all_layers, self.layers = layers, {layer.name: layer for layer in layers if layer.has_maps}
        return difference

    def _difference_in_classes(self, output: Any) -> str:
        scores = self._scores(output, 0)
        before, now = len(self.labels or ()), 0 if scores is None else len(scores)
        return "" if before == now else f"it gives {now} class scores, and gave {before}"

    # Layers, and pictures as they are shown.

    def check_layer(self, name: str) -> str:
        """The layer's name, if it has feature maps; otherwise a ValueError that lists the layers that do."""
        if isinstance(name, str) and name in self.layers:
            return name
        name = first_name(self.subject.model, name)  # suggests a similar name, if there is no such module
        if name in self.layers:
            return name
        accepted = str(unknown("such layer", name, self.layers)).partition("Accepted: ")[2]
        raise ValueError(f"layer {shown(name)} gives no feature maps {SHAPES[2 + self.axes]}. Accepted: {accepted}")

    @property
    def usual_bands(self) -> tuple[int, ...]:
        """The first three channels of the pictures, or as many as there are."""
        return tuple(range(min(3, self.subject.inputs.shape[1])))

    def show_bands(self, bands: tuple[int, ...] | None) -> None:
        """From now on, show these channels of the pictures and of their reconstructions."""
        self.bands, self.display = bands or self.usual_bands, self.subject.pictures.display(bands)
        self._volumes.cache_clear()
        self._effective.clear()
        self._volumes.cache_clear()

    def rendered(self, picture: int, plane: int = 0) -> Tensor:
        """A picture or a slice for the page, uint8 (3, h, w); a signal is (1 to 3, 1, l)."""
        return fitted(self.plane(self.display[picture], plane))

    def rendered_input(self, inputs: Tensor) -> Tensor:
        """Another input (1, C, H, W) for the page, uint8 (3, h, w)."""
        return fitted(replace(self.subject.pictures, inputs=inputs).display(self.bands)[0])

    def plane(self, maps: Tensor, plane: int) -> Tensor:
        """Maps (..., H, W), (..., L) or (..., D, H, W) as pictures (..., h, w), at a slice of the input."""
        if self.axes == 1:
            return maps.unsqueeze(-2)
        return maps if self.axes == 2 else maps.select(-3, plane * maps.shape[-3] // self.depth)

    def start_layer(self) -> str:
        """A useful layer to start with: the last of the deepest stage whose maps still show shapes.

        And that sees a part of the picture, where there is one: a field of twice the picture, as networks with many
        layers have it, is still an effective field of a third of it (see :meth:`effective`).
        """
        sides = self.subject.inputs.shape[2:]
        layers = list(self.layers.values())
        ends = [self.layers[name] for name in stage_ends([layer for layer in layers if shows(layer)])]
        shapely = [
            layer
            for layer in ends
            if min(layer.shape[1:][-2:]) >= 12
            and layer.receptive_field is not None
            and all(field <= 2 * side for field, side in zip(layer.receptive_field, sides, strict=True))
        ]
        return (shapely or [layers[len(layers) // 2]])[-1].name

    # The forward pass that is kept, and what is computed from it.

    def trace(self, picture: int, layer: str) -> Trace:
        """The trace of one picture up to a layer; it is run again only for another picture, layer or weight."""
        key = (None if self._is_joint else picture, layer, self.weights)
        if self._trace is None or key != self._key:
            self.forget()
            start = time.perf_counter()
            batch, feed = self.batch(picture), self.subject.feed
            trace = self.ask(lambda model: run(model, batch, [layer], feed=feed, grad=self._grad))
            self.forward_passes += 1
            check_real(check_maps(trace, layer), f"layer {shown(layer)}")
            self.milliseconds = 1000 * (time.perf_counter() - start)
            self._key, self._trace, self.trace_bytes = key, trace, trace.nbytes
        remember(self)
        return self._trace

    def forget(self) -> None:
        """Let go of the trace; it is run again when it is needed.

        It calls nothing of torch: Python's garbage collector may call it, at any moment of a forward pass.
        """
        super().forget()
        self._key, self._trace = None, None
        self._volumes.cache_clear()

    def maps(self, picture: int, layer: str) -> Tensor:
        """The layer's feature maps of one picture, (C, H, W), or (C, L), (C, D, H, W)."""
        return check_maps(self.trace(picture, layer), layer).detach()[self.row(picture)]

    def look(self, picture: int, layer: str, how: str, side: int, plane: int = 0) -> Look:
        """What the page shows of a layer's maps, each about ``side`` pixels wide, in one copy from the device."""
        return self._last_look(picture, layer, how, side, plane, self.weights)

    def _look_at(self, picture: int, layer: str, how: str, side: int, plane: int, _weights: int) -> Look:
        maps, end = self.maps(picture, layer), clamped_at(self.trace(picture, layer).activations[layer])
        with torch.autocast(maps.device.type, enabled=False):
            finite = torch.nan_to_num(maps.float(), 0.0, 0.0, 0.0)
            flat, raw, sides = finite.flatten(1), maps.flatten(1), maps.shape[1:]
            # The slices of a volume share one scale.
            steps, low, high = quantise(self.plane(maps, plane), side, (flat.amin(1), flat.amax(1)))
            inner = finite[(slice(None), *[slice(1, -1)] * len(sides))] if min(sides) >= 5 else finite
            spread = (flat - flat.mean(1, keepdim=True)).square_().mean(1).sqrt()
            # A value that is not finite is the lowest or the highest of its channel.
            clamped = torch.zeros_like(high, dtype=torch.bool) if end is None else high >= end
            strange = ~(raw.amin(1).isfinite() & raw.amax(1).isfinite())
            fused, *ends = quantise(self.plane(fuse(maps[None], how)[0], plane))
            place, inner = raw.argmax(1), inner.flatten(1).amax(1)
            return Look(*to_host(steps, low, high, inner, spread, place, clamped, strange, fused, torch.stack(ends)))

    def reconstructions(
        self, picture: int, layer: str, channels: Sequence[int], rule: str, seed: str
    ) -> tuple[Tensor, frozenset[str]]:
        """Channels projected back to the picture, and the names of the rectifiers that the rule applied to.

        (K, 1 or 3, *sides); for signals, which may be shown as two curves, (K, 1 to 3, L).
        """
        trace = self.trace(picture, layer)
        maps, met = self.ask(lambda _: project(trace, layer, channels, rule, seed))
        maps = maps[self.row(picture)]
        if self.bands != tuple(range(maps.shape[1])):
            maps = maps[:, list(self.bands)]
        shown_apart = (1, 2, 3) if self.axes == 1 else (1, 3)
        return (maps if maps.shape[1] in shown_apart else maps.sum(1, keepdim=True)), met

    def has_switches(self, picture: int, layer: str) -> bool:
        """Whether a deconvnet's way back from the layer depends on the picture."""
        trace = self.trace(picture, layer)
        return has_switches(trace.activations[layer], trace.inputs)

    def reconstruction(
        self, picture: int, layer: str, channel: int, rule: str, seed: str
    ) -> tuple[Tensor, frozenset[str]]:
        """The same for one channel; for a volume it is kept with the trace, for the next slice."""
        if self.axes < 3:
            return self.reconstructions(picture, layer, (channel,), rule, seed)
        self.trace(picture, layer)  # a new trace lets go of what is kept
        return self._volumes(picture, layer, (channel,), rule, seed)

    def effective(self, picture: int, layer: str, seed: str, look: Look) -> Layer:
        """The layer with its effective receptive field, which patches and reconstructions are cut to.

        The middle of a receptive field has far more influence than its outer parts (W. Luo, Y. Li, R. Urtasun and
        R. Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016).
        The effective field is the smallest centred square that holds 98 % of the energy of guided backprop, the median
        over a few channels. All patches of a picture and a layer have one size, whatever was shown before.
        """
        found = self.layers[layer]
        if found.field is None or max(found.field.size) <= _SMALLEST or seed == "map":
            return found
        if self._effective.get((picture, layer), (None, found))[0] != self.weights:
            order, sides = np.argsort(-look.high, kind="stable"), []
            strongest = order[~look.clamped[order]][:_MEASURED].tolist()
            pieces = in_chunks(
                lambda channels: self.reconstructions(picture, layer, channels, "guided", "max")[0],
                strongest,
                max(1, _MOST_NUMBERS // math.prod(self.subject.inputs.shape[1:])),
                "one channel's reconstruction",
            )
            for channel, signals in zip(strongest, (maps for piece in pieces for maps in piece), strict=True):
                position = np.unravel_index(look.place[channel], found.shape[1:])
                seen = cut(signals, found.field.corner([int(i) for i in position]), found.field.size)
                energy = torch.nan_to_num(seen.float(), 0.0, 0.0, 0.0).square().sum(0)
                sides += [_energy_side(energy)] if energy.any() else []
            if not sides:  # no signal in this picture; another may have one
                return found
            cuts = _cuts(found.field.size, median_high(sides))
            low = tuple(low + cut for low, cut in zip(found.field.low, cuts, strict=True))
            high = tuple(high - cut for high, cut in zip(found.field.high, cuts, strict=True))
            self._effective[picture, layer] = (
                self.weights,
                replace(found, field=replace(found.field, low=low, high=high)),
            )
        return self._effective[picture, layer][1]

    def patch(self, layer: Layer, seed: str) -> tuple[int, int]:
        """Height and width of the patch of the picture that a reconstruction shows."""
        height, width = self.size
        if layer.field is None or seed == "map":
            return height, width
        field = (1, *layer.field.size)[-2:]
        return min(field[0], height), min(field[1], width)

    def corner(self, layer: Layer, place: int) -> tuple[int, int, int]:
        """Middle slice, top and left of the receptive field at a layer's place, before clipping."""
        position = np.unravel_index(place, layer.shape[1:])
        if layer.field is None:
            return (int(position[0]) * self.depth // layer.shape[1] if self.axes == 3 else 0), 0, 0
        first = (0, 0, *layer.field.corner([int(i) for i in position]))[-3:]
        middle = first[0] + layer.field.size[0] // 2 if self.axes == 3 else 0
        return min(max(middle, 0), self.depth - 1), first[1] if self.axes > 1 else 0, first[2]

    def patches(self, layer: Layer, maps: Tensor, places: Sequence[int], seed: str, side: int) -> tuple[Array, Array]:
        """Reconstructions (K, C, *sides) cut to each place's receptive field: uint8 (K, h, w, C) and scales (K,).

        Beyond the picture's border they are zero, which is grey. Of a volume, it is the middle slice.
        """
        (height, width), (h, w) = self.size, self.patch(layer, seed)
        patches = []
        for whole, place in zip(maps, places, strict=True):
            plane, top, left = self.corner(layer, place)
            corner = (0 if h == height else top, 0 if w == width else left)
            patches.append(cut(self.plane(whole, plane), corner, (h, w)))
        signals = shrink(torch.nan_to_num(torch.stack(patches).float(), 0.0, 0.0, 0.0), side)
        scale = signed_scale(signals)
        pixels, scales = to_host(centre(signals, scale).permute(0, 2, 3, 1), scale)
        return pixels, scales

    def box(self, layer: Layer, place: int) -> tuple[tuple[int, ...], range]:
        """Top, left, bottom, right of the receptive field at a layer's place, in pixels of the input; its slices."""
        if layer.field is None:
            return (0, 0, *self.size), range(self.depth)
        position = [int(i) for i in np.unravel_index(place, layer.shape[1:])]
        ends = layer.field.box(position, self.subject.inputs.shape[2:])
        first, last = (0, 0, *ends[: self.axes])[-3:], (1, 1, *ends[self.axes :])[-3:]
        return (*first[1:], *last[1:]), range(first[0], last[0])


def _cuts(size: Sequence[int], side: int) -> tuple[int, ...]:
    """What to cut from either end of each axis, so that about ``side`` is left where it was longer."""
    return tuple(max(0, (length - side) // 2) for length in size)


def _energy_side(energy: Tensor) -> int:
    """The side of the smallest centred square, at least 7, that holds most of an energy (H, W); also on 1 or 3 axes."""

    def held(side: int) -> float:
        ends = zip(_cuts(energy.shape, side), energy.shape, strict=True)
        return float(energy[tuple(slice(cut, length - cut) for cut, length in ends)].sum())

    sides, enough = range(_SMALLEST, max(energy.shape)), _ENERGY * float(energy.sum())
    return _SMALLEST + bisect_left(sides, True, key=lambda side: held(side) >= enough)


def _structure(model: nn.Module) -> Any:
    """For each module its name, its class, and the shapes, dtypes and devices of its weights."""
    return [
        (name, type(m), [p.shape for p in own], [(p.dtype, p.device) for p in own])
        for name, m in model.named_modules()
        for own in [[p for p in m._parameters.values() if p is not None]]
    ]


def _difference(before: Sequence[Layer], now: Sequence[Layer]) -> str:
    """The first layer whose output has another shape, in words."""
    shapes = {layer.name: layer.shape for layer in now}
    for layer in before:
        shape = shapes.pop(layer.name, None)
        if shape is None:
            return f"it has no layer {shown(layer.name)} any more"
        if shape != layer.shape:
            new, old = ("×".join(map(str, sizes)) or "a number" for sizes in (shape, layer.shape))
            return f"layer {shown(layer.name)} gives {new}, and gave {old}"
    return f"it has a new layer {shown(next(iter(shapes)))}" if shapes else ""


def shared_ends(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of several maps, which are shown on one scale."""
    return min(m.amin() for m in maps), max(m.amax() for m in maps)


def fitted(maps: Tensor) -> Tensor:
    """Maps (C, H, W) of any dtype, averaged over blocks where they are much larger than the page shows them."""
    if max(maps.shape[-2:]) < 2 * LARGE:
        return maps
    small = shrink(maps, LARGE)
    return small if maps.is_floating_point() else small.round().to(maps.dtype)


def assumption(session: Session, call: str) -> str:
    """What is assumed of the input of a model whose preprocessing is not known, and the call that mends it."""
    pictures = session.subject.pictures
    known, _, assumed = pictures.preprocess.source.partition(": ")
    if known != NONE_KNOWN or pictures.as_given or session.axes != 2:
        return ""
    assumed = assumed.partition(" (")[0]
    return (
        f"No preprocessing is known for this model: it is shown the pictures as {assumed}. If it was trained on "
        f"anything else, such as normalised ones, its answers are wrong: {call}(…, preprocess=weights.transforms()), "
        "or any other callable from a PIL picture to the model's input"
    )


def information(session: Session) -> str:
    """The header's line about the model: layers, device, dtype, mode, and the preprocessing."""
    pictures = session.subject.pictures
    dtype = str(pictures.inputs.dtype).removeprefix("torch.")
    mode = "train mode, shown in eval" if session.subject.model.training else "eval"
    mode += " · compiled, shown eager" if session.compiled else ""
    where = f"{pictures.inputs.device} · {dtype} · {mode}"
    return f"{len(session.layers)} layers · {where} · input: {line(pictures.preprocess.source)}"
