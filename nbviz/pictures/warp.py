"""Shift, scale and rotate pictures."""

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
    """Rotate and scale pictures around their centre, then shift them; differentiable.

    Parameters
    ----------
    pictures
        (N, C, H, W), a float dtype.
    down, across
        The shift in pixels.
    scale
        The magnification.
    angle
        The rotation in degrees, counter-clockwise.
    padding
        What fills in from beyond the border: ``"border"`` replicates the last pixels, ``"reflection"`` mirrors.

    Returns
    -------
    Tensor
        Of the same shape, interpolated bilinearly; the pictures themselves for the identity.

    Examples
    --------
    >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), across=1).flatten().tolist()
    [1.0, 1.0, 2.0]
    """
    if (down, across, scale) == (0, 0, 1) and angle % 360 == 0:
        return pictures
    height, width = pictures.shape[-2:]
    radians = math.radians(angle)
    # The source of each pixel: undo the shift, then the rotation and the scale.
    cos, sin = math.cos(radians) / scale, math.sin(radians) / scale
    y = torch.arange(height, dtype=pictures.dtype, device=pictures.device) - (height - 1) / 2 - down
    x = torch.arange(width, dtype=pictures.dtype, device=pictures.device) - (width - 1) / 2 - across
    from_y = cos * y[:, None] + sin * x[None]
    from_x = cos * x[None] - sin * y[:, None]
    # In grid_sample's units, where the outer edges of the border pixels are at -1 and 1.
    grid = torch.stack([2 * from_x / width, 2 * from_y / height], -1)
    grid = grid.expand(len(pictures), -1, -1, -1)
    return torch.nn.functional.grid_sample(pictures, grid, "bilinear", padding, align_corners=False)
