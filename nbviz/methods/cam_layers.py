"""Which layer a class activation map uses, and how its activation becomes feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import SHAPES
from nbviz.core.calls import find_module
from nbviz.core.checks import check_flag, check_real, check_tensor
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.layers import Layer
from nbviz.core.layout import Layout
from nbviz.core.state import alone
from nbviz.core.types import SubjectOptions
from nbviz.methods.subject import Subject

#: From an activation or its gradient, channels first, and its layout to feature maps (N, C, H, W).
Arrange = Callable[[Tensor, Layout | None], Tensor]
_MOST_TOKEN_LAYERS = 24  # the last ones, among which one with a gradient is looked for


def checked(
    model: nn.Module, images: Any, layer: str | None, raw: Any, reshape: Any, **options: Unpack[SubjectOptions]
) -> tuple[Subject, str, Arrange]:
    """Check the arguments that all class activation maps share: the subject, the layer, how its values become maps."""
    check_flag("raw", raw)
    subject = Subject.of(model, images, **options)
    return subject, *find_maps(subject, layer, reshape)


def find_maps(subject: Subject, layer: str | None, reshape: Any = None) -> tuple[str, Arrange]:
    """The name of the layer, by default the last suitable one, and the function that turns its activation into maps.

    That function raises a ValueError for an activation that cannot become maps, and what ``reshape`` raises.
    """
    if reshape is not None and not callable(reshape):
        raise TypeError(f"reshape is {shown(reshape)}; expected a callable from an activation to (N, C, H, W), or None")
    name = _last_layer(subject).name if layer is None else layer
    find_module(subject.model, name)
    pictures = subject.inputs

    def arrange(values: Tensor, layout: Layout | None) -> Tensor:
        if reshape is not None:
            return _reshaped(name, pictures, reshape, values if layout is None else layout.restored(values))
        if layout is None or not layout.has_positions:
            given = values if layout is None else layout.restored(values)
            raise ValueError(
                f"layer {shown(name)} gives {tuple(given.shape)}; expected feature maps {SHAPES[pictures.ndim]}, "
                "tokens on a grid of the picture's shape, or reshape="
            )
        return check_real(layout.maps(values), f"layer {shown(name)}")

    return name, arrange


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


def _last_layer(subject: Subject) -> Layer:
    """The last layer with feature maps of more than one position; in a transformer, the last that has a gradient."""
    usable = [layer for layer in subject.layers() if layer.has_maps and math.prod(layer.shape[1:]) > 1]
    if not usable:
        raise ValueError(
            f"no layer of {type(subject.model).__name__} gives feature maps {SHAPES[subject.inputs.ndim]}: name one "
            "that does"
        )
    last = usable[-1]
    if not _has_tokens(last):
        return last
    # Layers inside attention or an MLP have other shapes than the tokens that go from block to block.
    same_shape = [layer for layer in usable if layer.shape == last.shape and _has_tokens(layer)]
    return _last_with_gradient(subject, same_shape[-_MOST_TOKEN_LAYERS:])


def _has_tokens(layer: Layer) -> bool:
    """Whether a transformer's tokens are behind the maps: (N, T, C) on a grid, or (N, H, W, C)."""
    return layer.layout is not None and layer.layout.moves


def _last_with_gradient(subject: Subject, layers: Sequence[Layer]) -> Layer:
    """The last layer on whose maps the class scores depend: they may depend on the class token alone."""
    trace = subject.with_inputs(subject.first).run([layer.name for layer in layers], output=True, grad=True)
    scores = subject.scores(trace.output)
    with alone(), torch.inference_mode(False), torch.enable_grad():
        activations = [trace.activations[layer.name] for layer in layers]
        gradients = torch.autograd.grad(scores.amax(1).sum(), activations, allow_unused=True)
    for layer, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        layout = trace.layouts[layer.name]
        if gradient is not None and layout is not None and bool(layout.maps(gradient).any()):
            return layer
    return layers[-1]  # with a head of zeros, no layer has a gradient
