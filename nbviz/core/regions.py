"""Regions: the parts of a tensor that carry the signals of a batch of starts, and how they move and join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        h, w = region.signal.shape[2:]
        result = Region(region.signal.new_zeros(*region.signal.shape[:2], *size), scale, shift)
        for b in range(len(self.starts)):
            (top, left), (to_top, to_left) = self.corner(region, b), self.corner(result, b)
            down, across = top - to_top, left - to_left
            rows = slice(max(down, 0), max(min(down + h, size[0]), 0))
            columns = slice(max(across, 0), max(min(across + w, size[1]), 0))
            from_rows = slice(rows.start - down, max(rows.stop - down, 0))
            from_columns = slice(columns.start - across, max(columns.stop - across, 0))
            if rows.start < rows.stop and columns.start < columns.stop:
                result.signal[b, :, rows, columns] = region.signal[b, :, from_rows, from_columns]
        return result

    def whole(self, region: Region, shape: tuple[int, ...]) -> Tensor:
        """The signals on whole tensors (B, C, H, W) of this shape, zero elsewhere."""
        return self.moved(region, (shape[2], shape[3]), (0, 0), (0, 0)).signal

    def join(self, a: Region, b: Region) -> Region:
        """The sum of two signals that reach the same tensor on different paths."""
        sizes, scales, shifts = [], [], []
        for axis in range(2):
            ends = [(r.shift[axis], r.shift[axis] + r.signal.shape[2 + axis]) for r in (a, b)]
            if a.scale[axis] == b.scale[axis]:
                first = min(ends[0][0], ends[1][0])
                sizes.append(max(ends[0][1], ends[1][1]) - first)
                scales.append(a.scale[axis])
                shifts.append(first)
            else:
                wide = a if a.scale[axis] == 0 else b  # scale 0: already the whole tensor
                if wide.scale[axis] != 0:
                    raise NotLocal("paths of different strides")
                sizes.append(wide.signal.shape[2 + axis])
                scales.append(0)
                shifts.append(wide.shift[axis])
        size, scale, shift = (sizes[0], sizes[1]), (scales[0], scales[1]), (shifts[0], shifts[1])
        if all(r.signal.shape[2:] == size and r.scale == scale and r.shift == shift for r in (a, b)):
            return Region(a.signal + b.signal, scale, shift)
        signal = self.moved(a, size, scale, shift).signal + self.moved(b, size, scale, shift).signal
        return Region(signal, scale, shift)
