"""One model: what nbviz says of it against plain hooks and autograd, and whether it is as it was."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import nbviz
from nbviz.core.backward import RULES
from nbviz.core.layers import Layer
from nbviz.core.trace import run
from nbviz.methods import reconstruct
from tests.conftest import unchanged
from tests.coverage.models import Case, prepare
from tests.coverage.table import Row
from tests.reference import by_hand, strongest

CHANNELS = 3
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
    row = Row(case.name, str(pictures.shape[-1]))
    for dtype, tolerance in TOLERANCES.items():
        model, pictures = model.to(dtype), pictures.to(dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", nbviz.NoRectifierWarning)
                found, largest = compare(model, pictures)
        except Exception as error:
            return row._replace(verdict="refused" if _is_refusal(error) else "wrong", note=_said(error))
        row = row._replace(**found)
        if largest <= tolerance:
            return row._replace(verdict="right")
        row = row._replace(note=f"float64; float32 differs by {largest:.0e}", verdict="wrong")
    return row


def compare(model: nn.Module, pictures: Tensor) -> tuple[dict[str, str], float]:
    """The line's cells, and the largest difference of all."""
    shapes, maps, output = by_hooks(model.eval(), pictures)
    target = output.shape[1] // 2 if isinstance(output, Tensor) and output.ndim == 2 else None
    model.train()  # nbviz has to see to that itself, and to put it back
    with unchanged(model):
        layers = nbviz.layers(model, pictures)
        if [(layer.name, layer.shape) for layer in layers] != shapes:
            raise Wrong("the list of layers is not what hooks see")
        early, deep = choose([layer for layer in layers if layer.name in maps], pictures.shape[-1])
        activations = run(model, pictures, list(maps)).activations
        ours: dict[str | None, dict[str, Tensor]] = {}
        channels: dict[str, list[int]] = {}
        local: list[bool] = []
        with patch.object(reconstruct, "pull_local", noting(reconstruct.pull_local, local)):
            for layer in (deep, *early):
                channels[layer] = live(maps[layer])
                ours[layer] = nbviz.reconstruct(model, pictures, layer, channels[layer])
                if layer in early and local[-1]:
                    break
        if target is not None:
            ours[None] = nbviz.reconstruct(model, pictures, target=target)
        for layer, several in channels.items():
            if not torch.equal(nbviz.feature_maps(model, pictures, layer, several), maps[layer][:, several]):
                raise Wrong(f"the feature maps of {layer} are not what a hook sees")
    model.eval()
    differences = [difference(activations[layer], maps[layer]) for layer in maps]
    cells = {"layers": str(len(layers)), "maps": f"{len(maps)}" if max(differences) == 0 else f"{max(differences):.0e}"}
    met: Counter[str] = Counter()
    for rule in RULES:
        seeds: dict[str | None, Any] = {layer: [strongest(k) for k in several] for layer, several in channels.items()}
        if target is not None:
            seeds[None] = [lambda logits: torch.eye(logits.shape[1]).to(logits)[None, target]]
        theirs, mode = by_hand(model, pictures, rule, seeds)
        met |= mode.met
        worst = []
        for start, signals in theirs.items():
            mine = ours[start][rule].unbind(1) if start is not None else [ours[None][rule]]
            found = [difference(a, b) for a, b in zip(mine, signals, strict=True) if b.any() or a.any()]
            if not found:
                raise Wrong(f"nothing to compare: the {rule} rule gives zero from {start or 'the class'}")
            worst += found
        cells[rule] = f"{max(worst):.0e}"
        differences += worst
    cells["activations"] = " ".join(sorted(name for name in met if met[name]))
    cells["note"] = f"local from {layer}" if local[-1] else "never local"
    return cells, max(differences)


def by_hooks(model: nn.Module, pictures: Tensor) -> tuple[list[tuple[str, tuple[int, ...]]], dict[str, Tensor], Any]:
    """Every layer's name and shape as plain hooks see it, the feature maps among them, and the output."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    maps: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def see(name: str, value: Any) -> None:
        call, calls[name] = calls[name], calls[name] + 1
        if isinstance(value, Tensor):
            name = f"{name}:{call}" if call else name
            shapes.append((name, tuple(value.shape[1:])))
            if value.ndim == 4 and value.is_floating_point() and value.shape[0] == len(pictures):
                maps[name] = value.clone()

    handles = [
        module.register_forward_hook(lambda _m, _args, value, name=name: see(name, value))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        output = model(pictures.clone())
    for handle in handles:
        handle.remove()
    return shapes, maps, output


def choose(layers: list[Layer], side: int) -> tuple[list[str], str]:
    """Early layers, whose positions look at a part of the picture, and the last one that still has positions."""
    wide = [layer for layer in layers if layer.has_maps and min(layer.shape[1:]) > 1 and ":" not in layer.name]
    near = [layer for layer in wide if layer.receptive_field and not layer.field.gated]
    near = [layer for layer in near if max(layer.receptive_field) <= 0.4 * side]
    near = near or wide[:1]
    several = sorted({len(near) - 1, len(near) // 2, len(near) // 4, min(3, len(near) - 1)}, reverse=True)
    return [near[i].name for i in several], wide[-1].name


def live(maps: Tensor) -> list[int]:
    """A few channels from all over the layer whose strongest activation is positive."""
    alive = (maps.amax((0, 2, 3)) > 0).nonzero().flatten().tolist() or list(range(maps.shape[1]))
    step = max(1, (len(alive) - 1) // (CHANNELS - 1))
    return alive[::step][:CHANNELS]


def noting(function: Any, taken: list[bool]) -> Any:
    """The function, which notes for each call whether it gave something."""

    def call(*args: Any) -> Any:
        result = function(*args)
        taken.append(result is not None)
        return result

    return call


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, in units of the largest value expected."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise Wrong(f"{actual.dtype} {tuple(actual.shape)} in place of {expected.dtype} {tuple(expected.shape)}")
    if torch.equal(actual, expected):
        return 0.0
    largest = float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    return largest if largest == largest else float("inf")


def _is_refusal(error: Exception) -> bool:
    """Whether nbviz itself says no; that a model fails in nbviz's hands which has just run without is no such thing."""
    *_, last = traceback.walk_tb(error.__traceback__)
    inside = Path(last[0].f_code.co_filename).is_relative_to(Path(nbviz.__file__).parent)
    return isinstance(error, (nbviz.ModelError, TypeError, ValueError)) and inside and "failed in its" not in str(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")
