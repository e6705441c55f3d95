"""Checks of plain values: names, numbers, indices, tensors."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from nbviz.core.errors import shown, unknown

#: The float dtypes that every torch operation supports; float8 and the like are storage formats.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_choice(kind: str, given: Any, accepted: Iterable[str]) -> str:
    """The given name, which must be one of those accepted."""
    names = list(accepted)
    # isinstance first: a list is unhashable, and an array compares element by element.
    if not isinstance(given, str) or given not in names:
        raise unknown(kind, given, names)
    return given


def check_flag(name: str, given: Any) -> bool:
    """The given value, if it is True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"{name} is {shown(given)}; expected True or False")
    return given


def check_whole(name: str, given: Any, least: int, most: int = sys.maxsize) -> int:
    """The given whole number, which must lie between ``least`` and ``most``."""
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(f"{name} is {shown(given)}; expected a whole number")
    whole = int(given)
    if whole < least:
        raise ValueError(f"{name} is {shown(given)}; expected at least {least}")
    if whole > most:
        raise ValueError(f"{name} is {shown(given)}; expected at most {most}")
    return whole


def check_number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The given real number, which must lie between ``least`` and ``most``."""
    try:
        number = float(given) if isinstance(given, Real) else None
    except OverflowError:
        number = math.nan
    if number is None:
        raise TypeError(f"{name} is {shown(given)}; expected a number")
    if not least <= number <= most:  # also true of NaN
        raise ValueError(f"{name} is {shown(given)}; expected {least:g} to {most:g}")
    return number


def check_indices(kind: str, given: Any, count: int) -> list[int]:
    """One or several whole numbers from 0 to ``count`` - 1, as a list.

    Examples
    --------
    >>> check_indices("channel", 3, 8), check_indices("channel", torch.tensor([0, 7]), 8)
    ([3], [0, 7])
    """
    indices = []
    try:
        values = given.tolist() if hasattr(given, "tolist") else given
        for value in values if isinstance(values, (list, tuple, range, set)) else [values]:
            # A boolean mask is no list of indices, though Python counts bool as int.
            if isinstance(value, bool):
                raise TypeError
            indices.append(operator.index(value))
            if not 0 <= indices[-1] < count:
                break
        else:
            return indices
    except Exception:  # foreign objects may raise anything
        raise TypeError(f"{kind}: got {shown(given)}; expected a whole number or a list of them") from None
    raise ValueError(f"no {kind} {shown(indices[-1])}: there are {count}, numbered 0 to {count - 1}")


def check_index(kind: str, given: Any, count: int) -> int:
    """One whole number from 0 to ``count`` - 1."""
    indices = check_indices(kind, given, count)
    if len(indices) != 1:
        raise ValueError(f"{kind}: got {shown(given)}; expected one whole number")
    return indices[0]


def check_tensor(name: str, given: object, expected: str) -> Tensor:
    """The given tensor, which must be dense and hold values."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {type(given).__name__}; expected a tensor {expected}")
    if given.is_nested or given.layout is not torch.strided or given.is_quantized or given.is_meta:
        raise TypeError(f"{name} is a sparse, nested, quantised or meta tensor; expected a dense one with values")
    return given


def check_real(values: Tensor, what: str) -> Tensor:
    """The given values, which must be a dense float tensor: ordered and differentiable."""
    if not values.is_floating_point() or values.layout is not torch.strided:
        raise TypeError(f"{what} gives {values.dtype} values, {values.layout}; expected a dense float tensor")
    return values
