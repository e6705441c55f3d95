"""One model: what nbviz says of it against plain hooks and autograd, and whether it is as it was."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import nbviz
from nbviz.core.arguments import check_maps
from nbviz.core.backward import RULES
from nbviz.core.layers import Layer
from nbviz.core.trace import run
from nbviz.errors import ModelError, NoRectifierWarning
from nbviz.methods import reconstruct
from tests.conftest import unchanged
from tests.reference import by_hand, cam_by_hand, strongest
from tests.zoo.models import Case, prepare
from tests.zoo.table import Row

CHANNELS = 3
#: Where modules say how many channels they give.
CHANNELS_OF = ("out_channels", "out_features", "num_features", "num_channels")
# Of the largest value. Where float32 differs by more, both sides run again in float64.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-7}


class Wrong(Exception):
    """Something that nbviz says of a model is not so."""


def timed(case: Case) -> tuple[Row, float]:
    """The model's line, and the seconds that it took."""
    start = time.perf_counter()
    return check(case), time.perf_counter() - start


def check(case: Case) -> Row:
    """The model's line."""
    try:
        model, pictures = prepare(case)
    except Exception as error:
        return Row(case.name, verdict="wrong", note=f"without nbviz, too: {_said(error)}")
    row, before = Row(case.name, str(pictures.shape[-1])), ""
    for dtype, tolerance in TOLERANCES.items():
        model, pictures = model.to(dtype), pictures.to(dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoRectifierWarning)
                found, largest = compare(case, model, pictures)
        except Exception as error:
            return row._replace(verdict="refused" if _is_refusal(error) else "wrong", note=_said(error))
        row = row._replace(**found, verdict="right" if largest <= tolerance else "wrong")
        row = row._replace(note=before + row.note)
        if largest <= tolerance:
            break
        before = f"float64, as float32 differs by {largest:.0e}; "
    return row


def compare(case: Case, model: nn.Module, pictures: Tensor) -> tuple[dict[str, str], float]:
    """The line's cells, and the largest difference of all."""

    def scores(x: Tensor) -> Any:
        given = model(x)
        return given if case.output is None else case.output(given)

    model.eval()
    shapes, given, output = by_hooks(model, pictures, scores)
    classes = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else 0
    model.train()  # nbviz has to see to that itself, and to put it back
    with unchanged(model):
        ours = by_nbviz(case, model, pictures, given, classes)
    model.eval()
    maps = ours.expected

    if [(layer.name, as_given(layer, shape)) for layer, (_, shape) in zip(ours.layers, shapes, strict=True)] != shapes:
        raise Wrong("the list of layers is not what hooks see")
    counted = with_channels(model, ours.layers)
    if not all(torch.equal(ours.maps[layer], maps[layer][:, several]) for layer, several in ours.channels.items()):
        raise Wrong("feature maps are not what a hook sees")
    differences = [difference(ours.activations[layer], maps[layer]) for layer in maps]
    cells = {"layers": str(len(ours.layers)), "maps": str(len(maps)), "channels": str(counted), "note": ours.note}
    if any(differences):
        cells["maps"] += f", {max(differences):.0e}"

    views = {layer.name: partial(permuted, layer) for layer in ours.layers if layer.has_maps}
    seeds: dict[str | None, Any] = {
        layer: [strongest(k, view=views[layer]) for k in several] for layer, several in ours.channels.items()
    }
    if classes:
        seeds[None] = [lambda logits: torch.eye(classes).to(logits)[None, ours.target]]
    met: Counter[str] = Counter()
    for rule in RULES:
        theirs, mode = by_hand(model, pictures, rule, seeds, scores)
        met |= mode.met
        found = {}
        for start, signals in theirs.items():
            pairs = zip(ours.signals[start][rule], signals, strict=True)
            found[start] = [difference(mine, signal) for mine, signal in pairs if signal.any() or mine.any()]
            if not found[start]:
                cells["note"] += f"; the {rule} rule gives zero from {start or 'the class'}"
        if sum(map(bool, found.values())) < min(3, len(found)):  # an early layer, a deep one, a class
            raise Wrong(f"too little to compare: {cells['note']}")
        cells[rule] = f"{max(map(max, filter(None, found.values()))):.0e}"
        differences += chain.from_iterable(found.values())
    cells["activations"] = " ".join(sorted(name for name in met if met[name]))
    if ours.cam is not None:
        expected, terms = cam_by_hand(model, pictures, ours.deep, ours.target, scores, views[ours.deep])
        if not expected.any():
            raise Wrong(f"nothing to compare: Grad-CAM gives zero at {ours.deep}")
        cancelled = float(expected.max()) < 1e-5 * terms
        if cancelled:
            cells["note"] += f"; Grad-CAM's terms cancel at {ours.deep}: compared in units of these"
        differences.append(difference(ours.cam, expected, terms if cancelled else None))
        cells["grad_cam"] = f"{differences[-1]:.0e}"
    return cells, max(differences)


@dataclass
class Ours:
    """What nbviz says of a model."""

    layers: list[Layer]
    activations: dict[str, Tensor]
    expected: dict[str, Tensor]  # of the feature maps, from a hook
    deep: str = ""
    channels: dict[str, list[int]] = field(default_factory=dict)  # of the early layers and the deep one
    maps: dict[str, Tensor] = field(default_factory=dict)
    signals: dict[str | None, dict[str, Sequence[Tensor]]] = field(default_factory=dict)  # None: from the class
    target: int = 0
    cam: Tensor | None = None
    note: str = "no feature maps"


def by_nbviz(case: Case, model: nn.Module, pictures: Tensor, given: dict[str, Tensor], classes: int) -> Ours:
    """All of it through the functions that people call, but for the activations of all layers in one pass."""
    layers = nbviz.layers(model, pictures)
    maps = {layer.name: permuted(layer, given[layer.name]) for layer in layers if layer.has_maps}
    trace = run(model, pictures, list(maps))
    ours = Ours(layers, {name: check_maps(trace, name) for name in maps}, maps)
    early, deep = choose([layer for layer in layers if layer.name in maps], pictures.shape[-1])
    count = CHANNELS
    if case.frames is not None:  # three axes take long, and no short way
        early, count = early[:1], 1
    local: list[bool] = []
    with patch.object(reconstruct, "pull_local", noting(reconstruct.pull_local, local)):
        for layer in (*deep, *early):
            ours.channels[layer] = several = live(maps[layer], count)
            ours.maps[layer] = nbviz.feature_maps(model, pictures, layer, several)
            signals = nbviz.reconstruct(model, pictures, layer, several)
            ours.signals[layer] = {rule: signal.unbind(1) for rule, signal in signals.items()}
            ours.note = f"local from {layer}" if local[-1] else "never local"
            if layer in early and local[-1] and all(signal.any() for signal in signals.values()):
                break
    if classes:
        # Until a layer speaks for a class somewhere: after a transformer's last block only the class token counts.
        last = [layer.name for layer in reversed(layers) if layer.has_maps and layer.name in ours.activations]
        for ours.deep, ours.target in [
            *product(deep, range(min(classes, 10))),
            *product(last[:30] if deep else [], [0]),
        ]:
            ours.cam = nbviz.grad_cam(model, pictures, ours.deep, ours.target, raw=True, output=case.output)
            if ours.cam.any():
                break
        signals = nbviz.reconstruct(model, pictures, target=ours.target, output=case.output)
        ours.signals[None] = {rule: [signal] for rule, signal in signals.items()}
    return ours


def by_hooks(
    model: nn.Module, pictures: Tensor, call: Callable[[Tensor], Any]
) -> tuple[list[tuple[str, tuple[int, ...]]], dict[str, Tensor], Any]:
    """Every layer's name and shape as plain hooks see it, what may be feature maps among them, and the output."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    maps: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def see(name: str, value: Any) -> None:
        call, calls[name] = calls[name], calls[name] + 1
        if isinstance(value, Tensor):
            name = f"{name}:{call}" if call else name
            shapes.append((name, tuple(value.shape[1:])))
            if value.ndim > 2 and value.is_floating_point() and value.shape[0] == len(pictures):
                maps[name] = value.clone()

    handles = [
        module.register_forward_hook(lambda _m, _args, value, name=name: see(name, value))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        output = call(pictures.clone())
    for handle in handles:
        handle.remove()
    return shapes, maps, output


def as_given(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the module itself must have given for nbviz's to be right."""
    layout = layer.layout
    if layout is None:
        return layer.shape
    positions = layer.shape[1:] if layout.grid is None else (layout.skipped + math.prod(layer.shape[1:]),)
    lengths = dict(zip(layout.order[1:], (layer.shape[0], *positions), strict=True))
    return tuple(lengths[axis] for axis in range(1, len(shape) + 1))


def permuted(layer: Layer, given: Tensor) -> Tensor:
    """A hook's activation as maps: the channels where the numbers of ``with_channels`` say that they are."""
    assert layer.layout is not None
    channels = given.movedim(layer.layout.order[1], 1)
    if layer.layout.grid is None:
        return channels
    return channels[:, :, -math.prod(layer.shape[1:]) :].unflatten(2, layer.shape[1:])


def with_channels(model: nn.Module, layers: Sequence[Layer]) -> int:
    """How many layers have as many channels as their module says that it gives; the others say nothing."""
    modules, counted = dict(model.named_modules()), 0
    for layer in layers:
        module = modules[layer.name.partition(":")[0]]
        if not layer.leaf or not type(module).__module__.startswith("torch.nn"):
            continue
        given = next((value for name in CHANNELS_OF if isinstance(value := getattr(module, name, None), int)), None)
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            (given,) = module.normalized_shape
        if given is None or layer.layout is None:
            continue
        if layer.shape[0] != given:
            raise Wrong(f"{layer.name} has {given} channels, not {layer.shape[0]}")
        counted += 1
    return counted


def choose(layers: list[Layer], side: int) -> tuple[list[str], list[str]]:
    """Early layers, whose positions look at a part of the picture, and the last one that still has positions."""
    wide = [layer for layer in layers if layer.has_maps and min(layer.shape[1:]) > 1 and ":" not in layer.name]
    near = [layer for layer in wide if layer.field is not None and not layer.field.gated]
    near = [layer for layer in near if max(layer.field.size) <= 0.4 * side] or wide[:1]
    places = sorted({min(place, len(near) - 1) for place in (len(near), len(near) // 2, len(near) // 4, 3)})
    return [near[place].name for place in reversed(places) if near], [layer.name for layer in wide[-1:]]


def live(maps: Tensor, count: int) -> list[int]:
    """A few channels from all over the layer whose strongest activation is positive."""
    alive = (maps.transpose(0, 1).flatten(1).amax(1) > 0).nonzero().flatten().tolist() or list(range(maps.shape[1]))
    return alive[:: max(1, len(alive) // count)][:count]


def noting(function: Any, taken: list[bool]) -> Any:
    """The function, which notes for each call whether it gave something."""

    def call(*args: Any) -> Any:
        result = function(*args)
        taken.append(result is not None)
        return result

    return call


def difference(actual: Tensor, expected: Tensor, unit: float | None = None) -> float:
    """The largest, in units of the largest value expected where no other is given."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise Wrong(f"{actual.dtype} {tuple(actual.shape)} in place of {expected.dtype} {tuple(expected.shape)}")
    if torch.equal(actual, expected):
        return 0.0
    largest = float((actual - expected).abs().max()) / max(unit or float(expected.abs().max()), 1e-30)
    return largest if largest == largest else float("inf")


def _is_refusal(error: Exception) -> bool:
    """Whether nbviz itself says no; that a model fails in nbviz's hands which has just run without is no such thing."""
    *_, last = traceback.walk_tb(error.__traceback__)
    inside = Path(last[0].f_code.co_filename).is_relative_to(Path(nbviz.__file__).parent)
    return isinstance(error, (ModelError, TypeError, ValueError)) and inside and "failed in its" not in str(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")
