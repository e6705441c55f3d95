"""Which layer class activation maps are made of, and how its activation becomes feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import SHAPES
from nbviz.core.checks import check_real, check_tensor
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.layers import Layer
from nbviz.core.state import alone
from nbviz.core.trace import find_module, first_name
from nbviz.methods.subject import Subject

#: From an activation, or a gradient of it, of so many pictures to feature maps (N, C, H, W).
Arrange = Callable[[Tensor, int], Tensor]
_MOST_CLASS_TOKENS = 5  # before those of the picture: a class, a distillation, registers


def checked(
    model: nn.Module, images: Any, layer: str | None, raw: Any, reshape: Any, preprocess: Any, inputs: Any, output: Any
) -> tuple[Subject, str, Arrange]:
    """The arguments that all class activation maps share: the subject, the layer, how its values become maps."""
    if not isinstance(raw, bool):
        raise TypeError(f"raw is {shown(raw)}; expected True or False")
    subject = Subject.of(model, images, preprocess, inputs, output)
    return subject, *find_maps(subject, layer, reshape, later=True)


def find_maps(subject: Subject, layer: str | None, reshape: Any = None, later: bool = False) -> tuple[str, Arrange]:
    """The layer's name, the last useful one where none is given, and how its activation becomes maps.

    How is told from a pass of the model; ``later``, only where the shape of an activation leaves it open.

    Raises
    ------
    ValueError, TypeError
        For a layer whose activation cannot become maps.
    """
    if reshape is not None and not callable(reshape):
        raise TypeError(f"reshape is {shown(reshape)}; expected a callable from an activation to (N, C, H, W), or None")
    pictures = subject.inputs
    if layer is None:
        chosen = _last(subject)
        arrange = _arrangement(chosen, pictures) if reshape is None else reshape
        return chosen.name, lambda values, _: _reshaped(chosen.name, pictures, arrange, values)
    find_module(subject.model, layer)
    if reshape is not None:
        return layer, lambda values, _: _reshaped(layer, pictures, reshape, values)
    by_field = cache(lambda: _by_field(subject, layer))
    if not later:
        by_field()
    return layer, lambda values, n: _reshaped(
        layer, pictures, _plain if _are_maps(values, pictures, n) else by_field(), values
    )


def _plain(values: Tensor) -> Tensor:
    return values


def _are_maps(values: Tensor, pictures: Tensor, n: int) -> bool:
    """Whether values of n pictures are (N, C, H, W) beyond doubt: by the pictures' proportion, which costs no pass."""
    if values.ndim != 4 or pictures.ndim != 4 or len(values) != n:
        return False
    return _fits(values.shape[2:], pictures) and not _fits(values.shape[1:3], pictures)


def _fits(sides: Sequence[int], pictures: Tensor) -> bool:
    """Whether sides are in the pictures' proportion, to about one position."""
    height, width = pictures.shape[2:]
    return abs(sides[0] * width - sides[1] * height) <= max(height, width)


def _by_field(subject: Subject, layer: str) -> Callable[[Tensor], Tensor]:
    """How the layer's activation becomes maps, by where its positions look."""
    name, pictures = first_name(subject.model, layer), subject.inputs
    found = next((one for one in subject.layers() if one.name == name), None)
    own = None if found is None else _arrangement(found, pictures)
    if own is None:
        given = subject.at(subject.first).run([layer]).activations[layer]  # says so itself if it is not reached
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(given.shape)}; expected feature maps {SHAPES[pictures.ndim]}, tokens "
            "on a grid of the picture's shape, or reshape="
        )
    return own


def _reshaped(layer: str, pictures: Tensor, arrange: Any, values: Tensor) -> Tensor:
    try:
        maps: Tensor = arrange(values)
    except Exception as error:
        said = f"{type(error).__name__}: {line(error, 1000)}"
        raise ModelError(f"reshape= failed on {tuple(values.shape)}: {said}") from error
    check_real(check_tensor("what reshape= gives", maps, SHAPES[pictures.ndim]), f"layer {shown(layer)}")
    if maps.ndim != pictures.ndim or len(maps) != len(values) or 0 in maps.shape:
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(maps.shape)}; expected feature maps {SHAPES[pictures.ndim]}, one for "
            "each picture"
        )
    return maps


def _arrangement(layer: Layer, pictures: Tensor) -> Callable[[Tensor], Tensor] | None:
    """How a layer's activation becomes maps, None where that cannot be told."""
    if _channels_last(layer, pictures):
        return lambda activation: activation.movedim(-1, 1)
    if layer.has_maps:
        return _plain
    if not layer.pictures or layer.axes != 2 or len(layer.shape) != 2:
        return None
    if (found := _grid(layer.shape[0], pictures.shape[2:])) is None:
        return None
    sides, before = found
    return lambda activation: activation[:, before:].transpose(1, 2).unflatten(2, sides)


def map_layers(every: Sequence[Layer], pictures: Tensor) -> list[Layer]:
    """Those whose activations become maps without ``reshape=``."""
    return [one for one in every if _has_plain_maps(one, pictures) or _has_tokens(one, pictures)]


def _has_plain_maps(layer: Layer, pictures: Tensor) -> bool:
    """Whether the output is (N, C, H, W) and no attention: by its field or, if that is not known, its proportion."""
    return (
        layer.has_maps
        and not _channels_last(layer, pictures)
        and (layer.field is not None or layer.axes != 2 or _fits(layer.shape[1:], pictures))
    )


def _has_tokens(layer: Layer, pictures: Tensor) -> bool:
    """Whether they are (N, T, C) on a grid, or (N, H, W, C)."""
    return _arrangement(layer, pictures) not in (None, _plain)


def _channels_last(layer: Layer, pictures: Tensor) -> bool:
    """Whether maps are (N, H, W, C): by where their positions look, or if that is not known, by the pictures' shape."""
    if not layer.pictures or layer.axes != 2 or len(layer.shape) != 3:
        return False
    if layer.field is not None:
        return not layer.has_maps
    return _fits(layer.shape[:2], pictures) and not _fits(layer.shape[1:], pictures)


def _grid(tokens: int, sides: Sequence[int]) -> tuple[tuple[int, int], int] | None:
    """The rows and columns in which tokens lie, in the pictures' proportion, and how many come before them."""
    height, width = sides
    for before in range(_MOST_CLASS_TOKENS + 1):
        rows = math.isqrt(max(tokens - before, 0) * height // width)
        columns = rows * width // height
        if rows * columns > 1 and rows * columns == tokens - before and rows * width == columns * height:
            return (rows, columns), before
    return None


def _last(subject: Subject) -> Layer:
    """The last layer that gives feature maps with more than one position; of a transformer, whose have a gradient."""
    every, first = subject.layers(), subject.first
    wide = [i for i, one in enumerate(every) if _has_plain_maps(one, first) and math.prod(one.shape[1:]) > 1]
    tokens = [i for i, one in enumerate(every) if _has_tokens(one, first)]
    if tokens and (not wide or tokens[-1] > wide[-1]):
        # The last tokens of a picture may have no part in the answer, which is that of the class token alone. As wide
        # as those: what is within attention or an MLP is none of the maps that go from block to block.
        tokens = [i for i in tokens if every[i].shape == every[tokens[-1]].shape][-_TRIED:]
        names = [every[i].name for i in tokens]
        trace = subject.at(first).run(names, output=True, grad=True)
        logits = subject.scores(trace.output)
        with alone(), torch.inference_mode(False), torch.enable_grad():
            best = logits.amax(1).sum()
            gradients = torch.autograd.grad(best, [trace.activations[name] for name in names], allow_unused=True)
        for i, gradient in zip(reversed(tokens), reversed(gradients), strict=False):
            arrange = _arrangement(every[i], first)
            if gradient is not None and arrange is not None and bool(arrange(gradient).any()):
                return every[i]
        return every[tokens[-1]]  # a head of zeros: no layer has a gradient
    if not wide:
        raise ValueError(
            f"no layer of {type(subject.model).__name__} gives feature maps {SHAPES[first.ndim]}: name one that does"
        )
    return every[wide[-1]]


_TRIED = 24  # of the last layers with tokens
