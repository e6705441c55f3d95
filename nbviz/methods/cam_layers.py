"""Which layer a class activation map uses, and how its activation becomes feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import SHAPES
from nbviz.core.checks import check_flag, check_real, check_tensor
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.layers import Layer
from nbviz.core.state import alone
from nbviz.core.trace import find_module, first_name
from nbviz.core.types import SubjectOptions
from nbviz.methods.subject import Subject

#: From an activation or its gradient, and the number of pictures, to feature maps (N, C, H, W).
Arrange = Callable[[Tensor, int], Tensor]
_MOST_CLASS_TOKENS = 5  # before the picture's tokens: class, distillation, registers
_MOST_TOKEN_LAYERS = 24  # the last ones, among which one with a gradient is looked for


def checked(
    model: nn.Module, images: Any, layer: str | None, raw: Any, reshape: Any, **options: Unpack[SubjectOptions]
) -> tuple[Subject, str, Arrange]:
    """Check the arguments that all class activation maps share: the subject, the layer, how its values become maps."""
    check_flag("raw", raw)
    subject = Subject.of(model, images, **options)
    return subject, *find_maps(subject, layer, reshape, lazily=True)


def find_maps(subject: Subject, layer: str | None, reshape: Any = None, lazily: bool = False) -> tuple[str, Arrange]:
    """The name of the layer, by default the last suitable one, and the function that turns its activation into maps.

    That function takes a forward pass to find; ``lazily`` puts it off until the shape of an activation is ambiguous.

    Raises
    ------
    ValueError, TypeError
        For a layer whose activation cannot become maps.
    """
    if reshape is not None and not callable(reshape):
        raise TypeError(f"reshape is {shown(reshape)}; expected a callable from an activation to (N, C, H, W), or None")
    pictures = subject.inputs
    if layer is None:
        last = _last_layer(subject)
        arrange = _arrangement(last, pictures) if reshape is None else reshape
        return last.name, lambda values, _: _reshaped(last.name, pictures, arrange, values)
    find_module(subject.model, layer)
    if reshape is not None:
        return layer, lambda values, _: _reshaped(layer, pictures, reshape, values)
    traced = cache(lambda: _traced_arrangement(subject, layer))
    if not lazily:
        traced()
    return layer, lambda values, n: _reshaped(
        layer, pictures, _identity if _are_maps(values, pictures, n) else traced(), values
    )


def _identity(values: Tensor) -> Tensor:
    return values


def _are_maps(values: Tensor, pictures: Tensor, n: int) -> bool:
    """Whether values are certainly (N, C, H, W): judged by the aspect ratio of the pictures, without a forward pass."""
    if values.ndim != 4 or pictures.ndim != 4 or len(values) != n:
        return False
    return _has_aspect(values.shape[2:], pictures) and not _has_aspect(values.shape[1:3], pictures)


def _has_aspect(sides: Sequence[int], pictures: Tensor) -> bool:
    """Whether height and width have the aspect ratio of the pictures, to about one position."""
    height, width = pictures.shape[2:]
    return abs(sides[0] * width - sides[1] * height) <= max(height, width)


def _traced_arrangement(subject: Subject, layer: str) -> Callable[[Tensor], Tensor]:
    """How the layer's activation becomes maps, from a forward pass that finds receptive fields."""
    name, pictures = first_name(subject.model, layer), subject.inputs
    traced = next((entry for entry in subject.layers() if entry.name == name), None)
    arrange = None if traced is None else _arrangement(traced, pictures)
    if arrange is None:
        # Raises an error of its own if the layer is not reached.
        activation = subject.with_inputs(subject.first).run([layer]).activations[layer]
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(activation.shape)}; expected feature maps {SHAPES[pictures.ndim]}, "
            "tokens on a grid of the picture's shape, or reshape="
        )
    return arrange


def _reshaped(layer: str, pictures: Tensor, arrange: Any, values: Tensor) -> Tensor:
    try:
        maps: Tensor = arrange(values)
    except Exception as error:
        cause = f"{type(error).__name__}: {line(error, 1000)}"
        raise ModelError(f"reshape= failed on {tuple(values.shape)}: {cause}") from error
    check_real(check_tensor("what reshape= gives", maps, SHAPES[pictures.ndim]), f"layer {shown(layer)}")
    if maps.ndim != pictures.ndim or len(maps) != len(values) or 0 in maps.shape:
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(maps.shape)}; expected feature maps {SHAPES[pictures.ndim]}, one for "
            "each picture"
        )
    return maps


def _arrangement(layer: Layer, pictures: Tensor) -> Callable[[Tensor], Tensor] | None:
    """How a layer's activation becomes maps; None where that is not known."""
    if _channels_last(layer, pictures):
        return lambda activation: activation.movedim(-1, 1)
    if layer.has_maps:
        return _identity
    if not layer.pictures or layer.axes != 2 or len(layer.shape) != 2:
        return None
    if (grid := _token_grid(layer.shape[0], pictures.shape[2:])) is None:
        return None
    sides, skipped = grid
    return lambda activation: activation[:, skipped:].transpose(1, 2).unflatten(2, sides)


def map_layers(layers: Sequence[Layer], pictures: Tensor) -> list[Layer]:
    """The layers whose activations become maps without ``reshape=``."""
    return [layer for layer in layers if _has_plain_maps(layer, pictures) or _has_tokens(layer, pictures)]


def _has_plain_maps(layer: Layer, pictures: Tensor) -> bool:
    """Whether the output is (N, C, H, W), not attention: by its receptive field or else its aspect ratio."""
    plain = _arrangement(layer, pictures) is _identity
    return plain and (layer.field is not None or layer.axes != 2 or _has_aspect(layer.shape[1:], pictures))


def _has_tokens(layer: Layer, pictures: Tensor) -> bool:
    """Whether the output is (N, T, C) on a grid, or (N, H, W, C)."""
    return _arrangement(layer, pictures) not in (None, _identity)


def _channels_last(layer: Layer, pictures: Tensor) -> bool:
    """Whether the output is (N, H, W, C): by its receptive field or else its aspect ratio."""
    if not layer.pictures or layer.axes != 2 or len(layer.shape) != 3:
        return False
    if layer.field is not None:
        return not layer.has_maps
    return _has_aspect(layer.shape[:2], pictures) and not _has_aspect(layer.shape[1:], pictures)


def _token_grid(tokens: int, sides: Sequence[int]) -> tuple[tuple[int, int], int] | None:
    """Rows and columns of a grid of tokens with the aspect ratio of the pictures, and how many tokens precede it."""
    height, width = sides
    for skipped in range(_MOST_CLASS_TOKENS + 1):
        rows = math.isqrt(max(tokens - skipped, 0) * height // width)
        columns = rows * width // height
        if rows * columns > 1 and rows * columns == tokens - skipped and rows * width == columns * height:
            return (rows, columns), skipped
    return None


def _last_layer(subject: Subject) -> Layer:
    """The last layer with feature maps of more than one position; in a transformer, the last that has a gradient."""
    layers, first = map_layers(subject.layers(), subject.first), subject.first
    usable = [layer for layer in layers if math.prod(layer.shape[1:]) > 1 or _has_tokens(layer, first)]
    if not usable:
        raise ValueError(
            f"no layer of {type(subject.model).__name__} gives feature maps {SHAPES[first.ndim]}: name one that does"
        )
    last = usable[-1]
    if not _has_tokens(last, first):
        return last
    # Layers inside attention or an MLP have other shapes than the tokens that go from block to block.
    same_shape = [layer for layer in usable if layer.shape == last.shape and _has_tokens(layer, first)]
    return _last_with_gradient(subject, same_shape[-_MOST_TOKEN_LAYERS:])


def _last_with_gradient(subject: Subject, layers: Sequence[Layer]) -> Layer:
    """The last layer on whose maps the class scores depend: they may depend on the class token alone."""
    trace = subject.with_inputs(subject.first).run([layer.name for layer in layers], output=True, grad=True)
    scores = subject.scores(trace.output)
    with alone(), torch.inference_mode(False), torch.enable_grad():
        activations = [trace.activations[layer.name] for layer in layers]
        gradients = torch.autograd.grad(scores.amax(1).sum(), activations, allow_unused=True)
    for layer, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        arrange = _arrangement(layer, subject.first)
        if gradient is not None and arrange is not None and bool(arrange(gradient).any()):
            return layer
    return layers[-1]  # with a head of zeros, no layer has a gradient
