"""Which axis of an activation holds its channels, and which its positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nbviz.core.channel_axis import LOST
from nbviz.core.receptive_field import Field

_MOST_CLASS_TOKENS = 5  # before the picture's tokens: class, distillation, registers


@dataclass(frozen=True)
class Layout:
    """From an activation as a module gives it to its channels, and to feature maps.

    Parameters
    ----------
    order
        The axes of the activation in the order pictures, channels, positions.
    grid
        Rows and columns of the tokens, where the positions are one axis of tokens.
    skipped
        How many tokens come before those of the grid, such as a class token.
    has_positions
        Whether the positions are those of the picture, and not windows and positions in them.

    Examples
    --------
    >>> import torch
    >>> last = Layout((0, 3, 1, 2))
    >>> last.channels(torch.zeros(1, 7, 7, 96)).shape, last.restored(torch.zeros(1, 96, 7, 7)).shape
    (torch.Size([1, 96, 7, 7]), torch.Size([1, 7, 7, 96]))
    >>> Layout((0, 2, 1), grid=(7, 7), skipped=1).maps(torch.zeros(1, 96, 50)).shape
    torch.Size([1, 96, 7, 7])
    """

    order: tuple[int, ...]
    grid: tuple[int, ...] | None = None
    skipped: int = 0
    has_positions: bool = True

    @property
    def moves(self) -> bool:
        """Whether the module gives the channels elsewhere than first."""
        return self.order != tuple(range(len(self.order)))

    def channels(self, activation: Tensor) -> Tensor:
        """The module's activation as (N, C, ...), a view of it."""
        return activation.permute(self.order) if self.moves else activation

    def restored(self, channels: Tensor) -> Tensor:
        """Channels (N, C, ...) as the module gives them, a view of them."""
        return channels.permute([self.order.index(axis) for axis in range(len(self.order))]) if self.moves else channels

    def maps(self, channels: Tensor) -> Tensor:
        """Channels (N, C, ...) as feature maps (N, C, H, W): of tokens, those of the picture on their grid."""
        return channels if self.grid is None else channels[:, :, self.skipped :].unflatten(2, self.grid)

    def shape(self, of: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, H, W) of one picture's maps, from the shape of the module's activation without the batch."""
        first, *positions = (of[axis - 1] for axis in self.order[1:])
        return (first, *(positions if self.grid is None else self.grid))


def layout_of(shape: Sequence[int], field: Field | None, axis: int | None, sides: Sequence[int]) -> Layout | None:
    """The layout of an activation; None where it is not known which axis holds the channels.

    Parameters
    ----------
    shape
        Of the activation for one picture, without the batch.
    field
        Its receptive field, if that is known.
    axis
        The axis of the channels, if that is known from the operations of the forward pass; see
        :mod:`nbviz.core.channel_axis`.
    sides
        Height and width of the pictures; for signals and volumes one or three numbers.

    Examples
    --------
    >>> layout_of((7, 7, 96), None, 3, (224, 224)).order, layout_of((96, 7, 7), None, None, (224, 224)).order
    ((0, 3, 1, 2), (0, 1, 2, 3))
    >>> layout_of((50, 96), None, 2, (224, 224)).shape((50, 96))
    (96, 7, 7)
    """
    axes = range(1, len(shape) + 1)
    if len(shape) == 1:
        return Layout((0, 1), has_positions=False)
    if field is not None:
        channels = [a for a in axes if a not in field.axes]
        if len(channels) == 1:
            return Layout((0, *channels, *field.axes))
    elif axis is None or (axis == LOST and len(shape) == 2):  # pairs of positions, as attention gives, are no maps
        axis = _by_aspect(shape, sides)
    if axis is None or axis not in axes:
        return None
    positions = tuple(a for a in axes if a != axis)
    counts = [shape[position - 1] for position in positions]
    if len(sides) == 2 and len(counts) == 1 and (grid := token_grid(counts[0], sides)):
        return Layout((0, axis, *positions), *grid)
    # Convolutions give any number of rows and columns. What comes before channels may be windows.
    has_positions = len(counts) == len(sides) and (axis == 1 or len(counts) != 2 or has_aspect(counts, sides))
    return Layout((0, axis, *positions), has_positions=has_positions)


def _by_aspect(shape: Sequence[int], sides: Sequence[int]) -> int | None:
    """The axis of the channels, first or last, of which the other axes have the aspect ratio of the pictures."""
    if len(sides) != 2:
        return None
    if len(shape) == 2:
        fits = [token_grid(shape[1], sides) is not None, token_grid(shape[0], sides) is not None]
    elif len(shape) == 3:
        fits = [has_aspect(shape[1:], sides), has_aspect(shape[:2], sides)]
    else:
        return None
    return None if fits[0] == fits[1] else 1 if fits[0] else len(shape)


def has_aspect(rows_and_columns: Sequence[int], sides: Sequence[int]) -> bool:
    """Whether rows and columns have the aspect ratio of the pictures, to about one position."""
    (rows, columns), (height, width) = rows_and_columns, sides
    return abs(rows * width - columns * height) <= max(height, width)


def token_grid(tokens: int, sides: Sequence[int]) -> tuple[tuple[int, int], int] | None:
    """Rows and columns of a grid of tokens with the aspect ratio of the pictures, and how many tokens precede it.

    Examples
    --------
    >>> token_grid(197, (224, 224)), token_grid(196, (224, 224)), token_grid(200, (224, 224))
    (((14, 14), 1), ((14, 14), 0), ((14, 14), 4))
    """
    height, width = sides
    for skipped in range(_MOST_CLASS_TOKENS + 1):
        rows = math.isqrt(max(tokens - skipped, 0) * height // width)
        columns = rows * width // height
        if rows * columns > 1 and rows * columns == tokens - skipped and rows * width == columns * height:
            return (rows, columns), skipped
    return None


_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def plainly_first(module: Any, values: Tensor, inputs: Tensor) -> bool:
    """Whether values of a module are certainly (N, C, ...), which needs no look at the forward pass."""
    if values.ndim == 2:
        return True
    if values.ndim != inputs.ndim:
        return False
    if isinstance(module, _CHANNELS_FIRST):
        return True
    if inputs.ndim != 4:
        return False
    sides = inputs.shape[2:]
    return has_aspect(values.shape[2:], sides) and not has_aspect(values.shape[1:3], sides)
