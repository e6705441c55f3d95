"""Checks that all methods share."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from nbviz.core.errors import shown


def check_indices(kind: str, given: Any, count: int) -> list[int]:
    """A whole number, or several, each at least 0 and below ``count``, as a list.

    Examples
    --------
    >>> check_indices("channel", 3, 8), check_indices("channel", torch.tensor([0, 7]), 8)
    ([3], [0, 7])
    """
    indices = []
    try:
        values = given.tolist() if hasattr(given, "tolist") else given
        for value in values if isinstance(values, (list, tuple, range, set)) else [values]:
            # A mask of truth values is no list of numbers, though Python could take it for one.
            if isinstance(value, bool):
                raise TypeError
            indices.append(operator.index(value))
            if not 0 <= indices[-1] < count:
                break
        else:
            return indices
    except Exception:  # of an object's own making as well
        raise TypeError(f"{kind}: got {shown(given)}; expected a whole number or a list of them") from None
    raise ValueError(f"no {kind} {shown(indices[-1])}: there are {count}, numbered 0 to {count - 1}")


def check_index(kind: str, given: Any, count: int) -> int:
    """The same for one whole number."""
    indices = check_indices(kind, given, count)
    if len(indices) != 1:
        raise ValueError(f"{kind}: got {shown(given)}; expected one whole number")
    return indices[0]


def check_maps(activation: Tensor, layer: str) -> Tensor:
    """The activation if it is (N, C, H, W)."""
    if activation.ndim != 4 or 0 in activation.shape:
        raise ValueError(
            f"layer {shown(layer)} gives {tuple(activation.shape)}; expected feature maps (N, C, H, W) "
            "(nbviz.layers lists the shapes)"
        )
    return activation


def check_logits(output: object) -> Tensor:
    """The model's output if it is (N, classes)."""
    if not isinstance(output, Tensor):
        raise TypeError(f"the model gives a {type(output).__name__}; expected class scores (N, classes): name a layer")
    if output.ndim != 2 or 0 in output.shape:
        raise ValueError(f"the model gives {tuple(output.shape)}; expected class scores (N, classes): name a layer")
    return check_real(output, "the model")


def check_real(values: Tensor, what: str) -> Tensor:
    """The values if they are fractions that can be ordered and have a gradient."""
    if not values.is_floating_point() or values.layout is not torch.strided:
        raise TypeError(f"{what} gives {values.dtype} values, {values.layout}; expected dense ones of a float dtype")
    return values


def check_target(target: Any, logits: Tensor) -> Tensor:
    """One class per picture, (N,): the predicted one where target is None."""
    n, classes = logits.shape
    if target is None:
        return logits.argmax(1)
    chosen = check_indices("class", target, classes)
    if len(chosen) not in (1, n):
        raise ValueError(f"target has {len(chosen)} classes for {n} picture(s); expected one, or one for each picture")
    return torch.tensor(chosen * (n if len(chosen) == 1 else 1), device=logits.device)
