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

#: The float dtypes that torch computes with everywhere.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_choice(kind: str, given: Any, accepted: Iterable[str]) -> str:
    """The name given, if it is one of those accepted."""
    names = list(accepted)
    # A list or an array in its place cannot be looked up, or is not one thing or the other.
    if not isinstance(given, str) or given not in names:
        raise unknown(kind, given, names)
    return given


def check_whole(name: str, given: Any, least: int, most: int = sys.maxsize) -> int:
    """The whole number given, if it lies between two."""
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(f"{name} is {shown(given)}; expected a whole number")
    whole = int(given)
    if whole < least:
        raise ValueError(f"{name} is {shown(given)}; expected at least {least}")
    if whole > most:
        raise ValueError(f"{name} is {shown(given)}; expected at most {most}")
    return whole


def check_number(name: str, given: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The same for any real number."""
    try:
        number = float(given) if isinstance(given, Real) else None
    except OverflowError:
        number = math.nan
    if number is None:
        raise TypeError(f"{name} is {shown(given)}; expected a number")
    if not least <= number <= most:  # which a NaN is not
        raise ValueError(f"{name} is {shown(given)}; expected {least:g} to {most:g}")
    return number


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


def check_tensor(name: str, given: object, expected: str) -> Tensor:
    """The tensor given, if it is one whose numbers can be looked at."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {type(given).__name__}; expected a tensor {expected}")
    if given.is_nested or given.layout is not torch.strided or given.is_quantized or given.is_meta:
        raise TypeError(f"{name} is a sparse, nested, quantised or meta tensor; expected a dense one with values")
    return given


def check_real(values: Tensor, what: str) -> Tensor:
    """The values if they are fractions that can be ordered and have a gradient."""
    if not values.is_floating_point() or values.layout is not torch.strided:
        raise TypeError(f"{what} gives {values.dtype} values, {values.layout}; expected dense ones of a float dtype")
    return values
