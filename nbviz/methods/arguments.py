"""Checks that all methods share."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def check_indices(kind: str, given: Any, count: int) -> list[int]:
    """A whole number, or several, each at least 0 and below ``count``, as a list.

    Examples
    --------
    >>> check_indices("channel", 3, 8), check_indices("channel", torch.tensor([0, 7]), 8)
    ([3], [0, 7])
    """
    values = given.tolist() if hasattr(given, "tolist") else given
    values = list(values) if isinstance(values, Iterable) else [values]
    # A mask of truth values is no list of numbers, though Python could take it for one.
    if not all(hasattr(i, "__index__") and not isinstance(i, bool) for i in values):
        raise TypeError(f"{kind}: got {given!r:.80}; expected a whole number or a list of them")
    indices = [operator.index(i) for i in values]
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"no {kind} {index}: there are {count}, numbered 0 to {count - 1}")
    return indices


def check_maps(activation: Tensor, layer: str) -> Tensor:
    """The activation if it is (N, C, H, W)."""
    if activation.ndim != 4 or 0 in activation.shape:
        raise ValueError(
            f"layer {layer!r} gives {tuple(activation.shape)}; expected feature maps (N, C, H, W) "
            "(nbviz.layers lists the shapes)"
        )
    return activation


def check_logits(output: object) -> Tensor:
    """The model's output if it is (N, classes)."""
    if not isinstance(output, Tensor):
        raise TypeError(f"the model gives a {type(output).__name__}; expected class scores (N, classes): name a layer")
    if output.ndim != 2 or 0 in output.shape:
        raise ValueError(f"the model gives {tuple(output.shape)}; expected class scores (N, classes): name a layer")
    return output


def check_target(target: Any, logits: Tensor, part: Sequence[int], n: int) -> Tensor:
    """One class for each of some of n pictures, whose logits are given: the predicted one where target is None."""
    if target is None:
        return logits.argmax(1)
    chosen = check_indices("class", target, logits.shape[1])
    if len(chosen) not in (1, n):
        raise ValueError(f"target has {len(chosen)} classes for {n} picture(s); expected one, or one for each picture")
    return torch.tensor([chosen[i if len(chosen) > 1 else 0] for i in part], device=logits.device)
