"""Pictures shifted, scaled and turned."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def warp(
    pictures: Tensor,
    down: float = 0.0,
    across: float = 0.0,
    scale: float = 1.0,
    angle: float = 0.0,
    padding: str = "border",
) -> Tensor:
    """Pictures turned and scaled around their middle, then shifted; differentiable.

    Parameters
    ----------
    pictures
        (N, C, H, W), a float dtype.
    down, across
        By how many pixels.
    scale
        Above 1 things become larger.
    angle
        In degrees, counter-clockwise.
    padding
        What comes in from beyond the border: ``"border"`` goes on as its last pixels, ``"reflection"`` mirrors.

    Returns
    -------
    Tensor
        Of the same shape, interpolated bilinearly; the pictures themselves where nothing is to be done.

    Examples
    --------
    >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), across=1).flatten().tolist()
    [1.0, 1.0, 2.0]
    """
    if (down, across, scale) == (0, 0, 1) and angle % 360 == 0:
        return pictures
    height, width = pictures.shape[-2:]
    turn = math.radians(angle)
    # From where each pixel comes: from the pixel's place, the shift back, then the turn and the scale back.
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    y = torch.arange(height, dtype=pictures.dtype, device=pictures.device) - (height - 1) / 2 - down
    x = torch.arange(width, dtype=pictures.dtype, device=pictures.device) - (width - 1) / 2 - across
    from_y = cos * y[:, None] + sin * x[None]
    from_x = cos * x[None] - sin * y[:, None]
    # In grid_sample's units, in which pixels' outer edges lie at -1 and 1.
    grid = torch.stack([2 * from_x / width, 2 * from_y / height], -1)
    grid = grid.expand(len(pictures), -1, -1, -1)
    return torch.nn.functional.grid_sample(pictures, grid, "bilinear", padding, align_corners=False)
