"""Regions: the parts of a tensor that carry the signals of a batch of starts, and how they move and join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


@dataclass(frozen=True)
class Start:
    """The start of a signal: a picture of the batch, a channel, a position (row and column), and the signal's value."""

    picture: int
    channel: int
    position: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Region:
    """Signals (B, C, h, w); the region of start b begins at ``scale * position_b + shift`` in its tensor."""

    signal: Tensor
    scale: Pair = (1, 1)
    shift: Pair = (0, 0)

    def through_windows(self, signal: Tensor, step: Pair, padding: Pair) -> Region:
        """The region below a sliding window, with the signal that arrives there."""
        scale = (self.scale[0] * step[0], self.scale[1] * step[1])
        shift = (self.shift[0] * step[0] - padding[0], self.shift[1] * step[1] - padding[1])
        return Region(signal, scale, shift)


def overlap(corner: Sequence[int], size: Sequence[int], sides: Sequence[int]) -> tuple[Any, Any]:
    """The part of a crop, which may reach beyond the border, that lies in its tensor: its index in the crop and there.

    Examples
    --------
    >>> overlap([-1], [3], [5])
    ((Ellipsis, slice(1, 3, None)), (Ellipsis, slice(0, 2, None)))
    """
    ends = [min(max(start + length, 0), side) for start, length, side in zip(corner, size, sides, strict=True)]
    first = [min(max(start, 0), end) for start, end in zip(corner, ends, strict=True)]
    in_crop = (slice(f - start, end - start) for f, start, end in zip(first, corner, ends, strict=True))
    return (..., *in_crop), (..., *map(slice, first, ends))


class NotLocal(Exception):
    """An operation that has no local rule."""


class Regions:
    """The geometry of the regions of a batch of starts."""

    def __init__(self, starts: Sequence[Start]) -> None:
        self.starts = starts

    def corner(self, region: Region, b: int) -> Pair:
        """Row and column where the region of start b begins."""
        row, column = self.starts[b].position
        return region.scale[0] * row + region.shift[0], region.scale[1] * column + region.shift[1]

    def under(self, full: Tensor, region: Region) -> Tensor:
        """The part of a saved tensor (N, C, H, W) under each region, (B, C, h, w); zero beyond the border."""
        h, w = region.signal.shape[2:]
        patches = []
        for b, s in enumerate(self.starts):
            top, left = self.corner(region, b)
            patch = full[s.picture, :, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
            if patch.shape[1:] != (h, w):
                above, before = min(max(-top, 0), h), min(max(-left, 0), w)
                patch = F.pad(patch, (before, w - before - patch.shape[2], above, h - above - patch.shape[1]))
            patches.append(patch)
        return torch.stack(patches)

    def fit(self, region: Region, shape: tuple[int, ...]) -> Region:
        """The region clipped to its tensor: no signal beyond the border, and no region larger than the tensor."""
        if len(shape) != 4 or shape[1] != region.signal.shape[1]:
            raise NotLocal(f"a tensor of shape {shape}")
        height, width = shape[2:]
        h, w = region.signal.shape[2:]
        if h >= height or w >= width:
            rows = (height, 0, 0) if h >= height else (h, region.scale[0], region.shift[0])
            columns = (width, 0, 0) if w >= width else (w, region.scale[1], region.shift[1])
            region = self.moved(region, *zip(rows, columns, strict=True))
            h, w = region.signal.shape[2:]
        for b in range(len(self.starts)):
            top, left = self.corner(region, b)
            if top < 0:
                region.signal[b, :, :-top] = 0
            if top + h > height:
                region.signal[b, :, max(height - top, 0) :] = 0
            if left < 0:
                region.signal[b, :, :, :-left] = 0
            if left + w > width:
                region.signal[b, :, :, max(width - left, 0) :] = 0
        return region

    def moved(self, region: Region, size: Pair, scale: Pair, shift: Pair) -> Region:
        """The signals in regions of another size or place; what does not fit is dropped."""
        result = Region(region.signal.new_zeros(*region.signal.shape[:2], *size), scale, shift)
        for b in range(len(self.starts)):
            (top, left), (to_top, to_left) = self.corner(region, b), self.corner(result, b)
            target, source = overlap((to_top - top, to_left - left), size, region.signal.shape[2:])
            result.signal[b][target] = region.signal[b][source]
        return result

    def whole(self, region: Region, shape: tuple[int, ...]) -> Tensor:
        """The signals on whole tensors (B, C, H, W) of this shape, zero elsewhere."""
        return self.moved(region, (shape[2], shape[3]), (0, 0), (0, 0)).signal

    def join(self, a: Region, b: Region) -> Region:
        """The sum of two signals that reach the same tensor on different paths."""
        axes = []  # size, scale and shift along each
        for axis in range(2):
            wide = a if a.scale[axis] == 0 else b  # scale 0: already the whole tensor
            if a.scale[axis] == b.scale[axis]:
                first = min(a.shift[axis], b.shift[axis])
                end = max(r.shift[axis] + r.signal.shape[2 + axis] for r in (a, b))
                axes.append((end - first, a.scale[axis], first))
            elif wide.scale[axis] == 0:
                axes.append((wide.signal.shape[2 + axis], 0, wide.shift[axis]))
            else:
                raise NotLocal("paths of different strides")
        size, scale, shift = zip(*axes, strict=True)
        if all(r.signal.shape[2:] == size and r.scale == scale and r.shift == shift for r in (a, b)):
            return Region(a.signal + b.signal, scale, shift)
        signal = self.moved(a, size, scale, shift).signal + self.moved(b, size, scale, shift).signal
        return Region(signal, scale, shift)
