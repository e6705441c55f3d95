"""Maps as uint8 pixels on their device, colour tables, overlays, and the grid of make_grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nbviz.core.checks import FLOATS, check_number, check_tensor, check_whole
from nbviz.core.errors import shown, unknown
from nbviz.core.regions import overlap


def grid(
    maps: Tensor,
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = True,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0,
) -> Tensor:
    """Tile maps into one picture: exactly ``torchvision.utils.make_grid``, also for maps (K, H, W).

    Parameters
    ----------
    maps
        (K, H, W) or (K, 1, H, W) maps, or (K, 3, H, W) colour pictures; any dtype and device.
    nrow
        The number of maps in a row.
    padding
        The number of pixels between maps, at most 1,000.
    normalize
        Shift and scale the values to [0, 1].
    value_range
        The values that become 0 and 1; None takes the smallest and the largest.
    scale_each
        Scale each map by itself, not all together.
    pad_value
        The value of the pixels between maps.

    Returns
    -------
    Tensor
        (3, rows, columns) in the maps' dtype and on their device.

    Raises
    ------
    ValueError
        For maps of another shape, ``nrow`` below 1, ``padding`` below 0, or a reversed range.
    TypeError
        For maps that are not a tensor, or integer maps to be normalised.

    Examples
    --------
    >>> grid(torch.rand(10, 6, 6), nrow=4).shape
    torch.Size([3, 26, 34])
    """
    from torchvision.utils import make_grid

    check_tensor("maps", maps, "(K, H, W), (K, 1, H, W) or (K, 3, H, W)")
    if maps.ndim not in (3, 4) or 0 in maps.shape or (maps.ndim == 4 and maps.shape[1] not in (1, 3)):
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected (K, H, W), (K, 1, H, W) or (K, 3, H, W), none of them empty "
            "(for feature_maps' (N, K, H, W), take one picture: maps[0])"
        )
    nrow, padding = check_whole("nrow", nrow, 1), check_whole("padding", padding, 0, _MOST_PADDING)
    for name, value in (("normalize", normalize), ("scale_each", scale_each)):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} is {shown(value)}; expected True or False")
    if normalize and maps.dtype not in FLOATS:
        raise TypeError(f"maps is {maps.dtype}; expected a float dtype to normalise (or normalize=False)")
    if value_range is not None:
        ends: list[Any] = list(value_range) if isinstance(value_range, (tuple, list)) else []
        if len(ends) != 2 or not all(_fits(end, maps.dtype) for end in ends) or not ends[0] <= ends[1]:
            raise ValueError(f"value_range is {shown(value_range)}; expected (low, high) with low at most high")
        value_range = (float(ends[0]), float(ends[1]))
    if not _fits(pad_value, maps.dtype, finite=False):
        raise ValueError(f"pad_value is {shown(pad_value)}; expected a number that {maps.dtype} can hold")
    if maps.is_floating_point():
        pad_value = float(pad_value)
    tiles = maps[:, None] if maps.ndim == 3 else maps
    result: Tensor = make_grid(tiles, nrow, padding, normalize, value_range, scale_each, pad_value)
    return result


_MOST_PADDING = 1000  # pixels


def _fits(number: Any, dtype: torch.dtype, finite: bool = True) -> bool:
    """Whether a value is a real number that the dtype can represent."""
    if isinstance(number, np.timedelta64) or not isinstance(number, Real):  # NumPy registers timedelta64 as a number
        return False
    if dtype == torch.bool:
        return number in (0, 1)
    if dtype.is_floating_point and not finite and not -math.inf < cast(float, number) < math.inf:
        return True
    ends = torch.finfo(dtype) if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype)
    return bool(ends.min <= cast(float, number) <= ends.max)


def quantise(
    maps: Tensor, side: int | None = None, ends: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise each map to 256 steps between its lowest and highest value.

    Parameters
    ----------
    maps
        (..., H, W), any float dtype, on any device. Values that are not finite count as 0.
    side
        If given, larger maps are averaged over blocks, as long as their longer side is at least this.
    ends
        Bounds (...) of each map's values; None takes the lowest and the highest.

    Returns
    -------
    tuple of Tensor
        The steps q, uint8 (..., h, w), and the bounds low and high of each map, float32 (...), on the maps'
        device. A value (or the mean of a block) is ``low + q / 255 * (high - low)`` to within half a step.

    Examples
    --------
    >>> q, low, high = quantise(torch.tensor([[[-1.0, 0.0, 4.0]]]))
    >>> q.tolist(), low.item(), high.item()
    ([[[0, 51, 255]]], -1.0, 4.0)
    >>> quantise(torch.arange(8.0).view(2, 4), side=2)[0].tolist()
    [[91, 164]]
    """
    maps = torch.nan_to_num(maps.detach().float(), 0.0, 0.0, 0.0)
    low, high = (maps.amin((-2, -1)), maps.amax((-2, -1))) if ends is None else ends
    per_unit = 255 / (high - low).clamp(min=_LEAST)
    # In place, because allocating memory would take several times as long as the arithmetic.
    steps = (shrink(maps, side) - low[..., None, None]).mul_(per_unit[..., None, None])
    return steps.round_().to(torch.uint8), low, high


_LEAST = 1e-35  # positive, and 255 divided by it is still a float32


_AT_ONCE = 1 << 22  # values of a chunk


def shrink(maps: Tensor, side: int | None) -> Tensor:
    """Average maps (..., H, W) over square blocks, as large as the longer side remains at least ``side``.

    Integer maps are converted to float in chunks of rows.

    Examples
    --------
    >>> shrink(torch.arange(8.0).view(2, 4), 2).tolist(), shrink(torch.ones(3, 224, 224), 48).shape
    ([[2.5, 4.5]], torch.Size([3, 56, 56]))
    """
    block = 1 if side is None else max(1, max(maps.shape[-2:]) // max(side, 1))
    if block == 1:
        return maps
    tiles = maps.reshape(-1, 1, *maps.shape[-2:])
    rows = block * max(1, _AT_ONCE // max(1, block * tiles[:, :, :1].numel()))
    dtype = maps.dtype if maps.dtype in (torch.float32, torch.float64) else torch.float32
    sides = [-(-side // block) for side in maps.shape[-2:]]
    # Allocated first: between two large temporary tensors, it would keep the second from reusing the first's memory.
    small = tiles.new_empty(len(tiles), 1, *sides, dtype=dtype)
    for chunk, mean in zip(tiles.split(rows, 2), small.split(rows // block, 2), strict=True):
        mean.copy_(torch.nn.functional.avg_pool2d(chunk.to(dtype), block, ceil_mode=True, count_include_pad=False))
    return small.reshape(*maps.shape[:-2], *sides)


def cut(maps: Tensor, corner: Sequence[int], size: Sequence[int], fill: float = 0.0) -> Tensor:
    """Crop maps; what lies beyond their border is filled.

    Parameters
    ----------
    maps
        (..., H, W), or with as many spatial dimensions as ``corner`` has numbers.
    corner
        Top and left of the crop; may be negative.
    size
        Height and width of the crop.
    fill
        The value beyond the border.

    Examples
    --------
    >>> cut(torch.tensor([[1, 2], [3, 4]]), (1, -1), (2, 2)).tolist()
    [[0, 3], [0, 0]]
    """
    result = maps.new_full((*maps.shape[: -len(size)], *size), fill)
    target, source = overlap(corner, size, maps.shape[-len(size) :])
    result[target] = maps[source]
    return result


def centre(maps: Tensor, scale: Tensor | None = None) -> Tensor:
    """Quantise signed colour maps around grey: 0 becomes 128, ``scale`` 255, and its negative 1; the rest is clipped.

    Parameters
    ----------
    maps
        (..., C, H, W), any float dtype, on any device; each (C, H, W) is scaled by itself.
    scale
        The absolute value (...) of each map, or of all, that becomes 1 or 255; None takes :func:`signed_scale`.

    Returns
    -------
    Tensor
        uint8 of the same shape, on the maps' device.

    Examples
    --------
    >>> centre(torch.tensor([[[0.0, 1.0, -2.0]]])).tolist()
    [[[128, 192, 1]]]
    """
    scale = signed_scale(maps) if scale is None else scale
    maps = torch.nan_to_num(maps.detach().float(), 0.0, 0.0, 0.0)
    per_unit = 127 / scale.clamp(min=_LEAST)
    levels = (maps * per_unit[..., None, None, None]).clamp_(-127, 127)
    return levels.add_(128).round_().to(torch.uint8)


_ONE_IN = 200  # one value in so many may lie beyond the scale: it is the 99.5th percentile
_SAMPLE = 1 << 20  # values of a map are enough to find it


def signed_scale(maps: Tensor) -> Tensor:
    """The absolute value up to which each signed map is shown, so that single extreme pixels do not turn it grey.

    It is the 99.5th percentile of the absolute values that are not zero: the smallest of them that at most one in 200
    exceeds. Of fewer than 200 it is the largest.

    Parameters
    ----------
    maps
        (..., C, H, W), any float dtype, on any device. Values that are not finite count as 0. Of more than two million
        values, about one million are looked at.

    Returns
    -------
    Tensor
        float32 (...), on the maps' device; 0 for a map that is zero everywhere.

    Examples
    --------
    >>> maps = torch.zeros(1, 20, 40)
    >>> maps[0, :10] = torch.arange(-399.0, 1).view(10, 40)
    >>> maps[0, 0, 0] = 1e6
    >>> signed_scale(maps).item(), signed_scale(maps[:, 9:]).item()
    (398.0, 39.0)
    """
    values = maps.detach().flatten(-3)
    # An odd step, since a network's strides, and with them the patterns in its reconstructions, are even.
    values = values[..., :: values.shape[-1] // _SAMPLE | 1].float()
    sizes = torch.nan_to_num(values, 0.0, 0.0, 0.0).abs_()
    largest = sizes.topk(sizes.shape[-1] // _ONE_IN + 1).values
    beyond = sizes.count_nonzero(-1) // _ONE_IN
    return largest.gather(-1, beyond[..., None])[..., 0]


def around_zero(maps: Tensor) -> tuple[float, float]:
    """The ends of the scale on which :func:`centre` shows a signed map (C, H, W), with zero in the middle.

    Examples
    --------
    >>> around_zero(torch.tensor([[[0.5, -2.0, float("nan")]]]))
    (-2.0, 2.0)
    """
    scale = float(signed_scale(maps))
    return -scale, scale


def overlay(pictures: Tensor, maps: Tensor, opacity: float = 0.5, cmap: str = "viridis") -> Tensor:
    """Lay coloured maps over pictures.

    Parameters
    ----------
    pictures
        uint8 (N, 3, H, W).
    maps
        (N, h, w), resized to (H, W) bilinearly and each scaled to its own range.
    opacity
        From 0, the picture alone, to 1, the map alone.
    cmap
        The name of a matplotlib colour map.

    Returns
    -------
    Tensor
        uint8 (N, 3, H, W) on the pictures' device.

    Raises
    ------
    ValueError
        When the shapes do not fit or are empty. When ``opacity`` is out of range. When there is no colour map ``cmap``.
    TypeError
        When ``pictures`` is not uint8, or ``maps`` is complex or not a tensor.

    Examples
    --------
    >>> overlay(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(1, 2, 2), opacity=0).max().item()
    0
    """
    opacity = check_number("opacity", opacity, 0, 1)
    if not isinstance(cmap, str):
        raise TypeError(f"cmap is {shown(cmap)}; expected the name of a matplotlib colour map")
    check_tensor("pictures", pictures, "(N, 3, H, W)")
    check_tensor("maps", maps, "(N, h, w)")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or maps.ndim != 3 or len(maps) != len(pictures):
        raise ValueError(
            f"pictures has shape {tuple(pictures.shape)} and maps {tuple(maps.shape)}; "
            "expected (N, 3, H, W) and (N, h, w)"
        )
    if 0 in pictures.shape or 0 in maps.shape:
        raise ValueError("pictures or maps are empty; expected at least one of each, of at least one pixel")
    if pictures.dtype != torch.uint8 or maps.is_complex():
        raise TypeError(f"pictures is {pictures.dtype} and maps {maps.dtype}; expected torch.uint8 and real numbers")
    full = torch.nn.functional.interpolate(maps[:, None].float(), pictures.shape[-2:], mode="bilinear")[:, 0]
    colours = torch.from_numpy(colour_table(cmap)).to(pictures.device)
    coloured = colours[quantise(full)[0].to(pictures.device).long()].permute(0, 3, 1, 2)
    return (pictures.float() * (1 - opacity) + coloured.float() * opacity).round().to(torch.uint8)


def as_levels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers as bytes from 0 to 255, rounded and clamped as the page does.

    Examples
    --------
    >>> as_levels(np.array([-3.0, 0.5, 1.5, 300.0])).tolist()
    [0, 0, 2, 255]
    """
    levels: np.ndarray[Any, Any] = np.rint(values).clip(0, 255).astype(np.uint8)
    return levels


@lru_cache(maxsize=64)
def colour_table(name: str) -> np.ndarray[Any, Any]:
    """A matplotlib colour map as a table, uint8 (256, 3).

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> colour_table("gray")[[0, 255]].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    from matplotlib import colormaps

    if name not in colormaps:
        raise unknown("colour map", name, colormaps)
    return np.round(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
