"""Checks of the arguments that all methods share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nbviz.core.calls import Feed
from nbviz.core.checks import check_indices, check_real, check_tensor
from nbviz.core.errors import ModelError, shown, unknown, with_class
from nbviz.core.layout import Layout
from nbviz.core.trace import Trace

#: The shape of inputs and feature maps, by the number of dimensions.
SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


def check_maps(trace: Trace, layer: str) -> Tensor:
    """The layer's feature maps, with as many dimensions as the N inputs: (N, C, H, W)."""
    activation, layout, ndim = trace.activations[layer], trace.layouts[layer], trace.inputs.ndim
    if layout is not None and layout.has_positions and len(activation) == len(trace.inputs):
        maps = layout.maps(activation)
        if maps.ndim == ndim and 0 not in maps.shape:
            return maps
    gives = f"{tuple(activation.shape)}"
    if activation.ndim == ndim and len(activation) != len(trace.inputs):
        gives = f"{len(activation)} maps for {len(trace.inputs)} picture(s), as for windows, crops or regions"
    elif activation.ndim == ndim and 0 not in activation.shape and layout is None:
        gives += ", of which it is not known which axis holds the channels"
    raise ValueError(
        f"layer {shown(layer)} gives {gives}; expected feature maps {SHAPES[ndim]} (nbviz.layers lists the shapes)"
    )


def check_units(trace: Trace, layer: str) -> Tensor:
    """The layer's feature maps; numbers (N, C), as of a linear layer, count as maps of a single position."""
    activation = trace.activations[layer]
    if activation.ndim == 2 and len(activation) == len(trace.inputs) and activation.shape[1]:
        return activation[(..., *[None] * (trace.inputs.ndim - 2))]
    return check_maps(trace, layer)


def check_channels(layer: str, activation: Tensor, layout: Layout | None, pictures: int) -> Tensor:
    """The layer's activation, which must have channels for every picture, as maps or not: (N, C, ...)."""
    activation = check_features(layer, activation, pictures)
    if layout is None:
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(activation.shape)}, of which it is not known which axis holds the "
            "channels; expected (N, C, ...), (N, H, W, C), or tokens on a grid of the picture's shape"
        )
    return activation


def check_features(layer: str, activation: Tensor, pictures: int) -> Tensor:
    """The layer's activation, which must be numbers of every picture: (N, C), or more dimensions in any order."""
    check_real(check_tensor(f"layer {shown(layer)}'s output", activation, "(N, C, ...)"), f"layer {shown(layer)}")
    if activation.ndim < 2 or 0 in activation.shape or len(activation) != pictures:
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(activation.shape)} for {pictures} picture(s); expected "
            "(N, C, ...): channels of each picture (nbviz.layers lists the shapes)"
        )
    return activation


def check_feed(inputs: Any) -> Feed:
    """The argument ``inputs=`` of all methods, which must be a callable or None."""
    if inputs is not None and not callable(inputs):
        raise TypeError(
            f"inputs is {type(inputs).__name__}; expected a callable from the pictures (N, C, H, W) to what the model "
            "is called with, such as lambda pictures: (pictures, mask)"
        )
    return inputs  # type: ignore[no-any-return]


def check_logits(output: Any, pick: Any = None, count: int | None = None) -> Tensor:
    """The scores (N, K) in a model's output; (N, 1) of one that gives (N,).

    Parameters
    ----------
    output
        The model's output.
    pick
        The argument ``output=`` of all methods: a key, an attribute's name, an index, a callable, or None for the
        output itself.
    count
        How many pictures it is of. So many numbers (N,) are one for each; of a model that drops the axis of the
        pictures they would be the classes of one.

    Examples
    --------
    >>> check_logits({"out": torch.zeros(1, 3), "aux": None}, "out")
    tensor([[0., 0., 0.]])
    """
    if callable(pick):
        try:
            output = pick(output)
        except Exception as error:
            raise ModelError(f"output= failed on the model's {type(output).__name__}: {with_class(error)}") from error
    elif pick is not None:
        output = _picked(output, pick)
    if not isinstance(output, Tensor):
        keys = _keys(output)
        hint = f" (output={shown(keys[0])}, for example)" if keys else ""
        raise TypeError(
            f"the model gives a {type(output).__name__}; expected class scores (N, classes): "
            f"say with output= where they are{hint}, or name a layer"
        )
    if output.ndim == 1 and len(output) == count:  # one number for each picture
        output = output[:, None]
    if output.ndim != 2 or 0 in output.shape:
        raise ValueError(
            f"the model gives {tuple(output.shape)}; expected class scores (N, classes): "
            "say with output= how to get them, or name a layer"
        )
    return check_real(output, "the model")


def _picked(output: Any, pick: Any) -> Any:
    """The entry or attribute of a model's output that ``pick`` names."""
    if isinstance(pick, bool) or not isinstance(pick, (str, int)):
        raise TypeError(f"output is {type(pick).__name__}; expected a key, an attribute's name, an index or a callable")
    keys = _keys(output)
    from_end = isinstance(output, (tuple, list)) and isinstance(pick, int) and -len(output) <= pick < 0
    if pick in keys or from_end:
        return output[pick]
    if isinstance(pick, str) and not isinstance(output, Tensor) and hasattr(output, pick):
        return getattr(output, pick)
    if keys:
        raise unknown("output", pick, keys)
    raise ValueError(
        f"no output {shown(pick)}: the model gives a {type(output).__name__}, which has no entries; "
        "expected a callable that takes it, or None"
    )


def _keys(output: Any) -> list[Any]:
    """The keys or indices of the entries of a model's output."""
    if isinstance(output, Mapping):
        return list(output)
    if isinstance(output, (tuple, list)):
        return list(range(len(output)))
    return []


def check_target(target: Any, logits: Tensor, indices: Sequence[int], n: int) -> Tensor:
    """The target class of the pictures at these indices among n, whose logits are given; None takes the prediction."""
    if target is None:
        return logits.argmax(1)
    if isinstance(target, (set, frozenset)):
        raise TypeError(
            f"target is a {type(target).__name__}, which has no order; expected a class, or one for each picture"
        )
    classes = check_indices("class", target, logits.shape[1])
    if len(classes) not in (1, n):
        raise ValueError(f"target has {len(classes)} classes for {n} picture(s); expected one, or one for each picture")
    return torch.tensor([classes[i if len(classes) > 1 else 0] for i in indices], device=logits.device)
