"""What replaces the pixels of a region that is removed from a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbviz.core.checks import check_choice, check_real
from nbviz.core.errors import shown
from nbviz.pictures.preprocess import Preprocess

#: A name of ``FILLS``, or values in the units of the model's input.
Fill = str | float | Sequence[float] | Tensor
#: Mid-grey; the mean colour of the picture; the picture itself, blurred.
FILLS = ("grey", "mean", "blur")
_BLUR = 10  # the longer side of a picture, as a multiple of the blur's standard deviation


def filling(pictures: Tensor, fill: Fill, preprocess: Preprocess) -> Tensor:
    """The replacement for removed pixels of a model's inputs.

    Parameters
    ----------
    pictures
        The model's inputs (N, C, H, W).
    fill
        One of ``FILLS``; or the values themselves: a number, one for each channel, or (C, H, W), (N, C, H, W).
    preprocess
        The model's preprocessing, which determines the input for grey.

    Returns
    -------
    Tensor
        (N, C, H, W).

    Examples
    --------
    >>> plain = Preprocess(lambda picture: torch.zeros(1, 2, 2))
    >>> filling(torch.tensor([[[[0.0, 1.0]]]]), "mean", plain).flatten().tolist()
    [0.5, 0.5]
    """
    if not isinstance(fill, str):
        return _given(pictures, fill)
    check_choice("fill", fill, FILLS)
    if fill == "grey":
        return preprocess.redo(torch.full_like(pictures[:1].float(), 0.5)).to(pictures).expand_as(pictures)
    if fill == "mean":
        return pictures.mean((-2, -1), keepdim=True).expand_as(pictures)
    return blurred(pictures, max(pictures.shape[-2:]) / _BLUR)


def _given(pictures: Tensor, fill: Any) -> Tensor:
    """Values that a person gives, in the units of the model's input."""
    expected = f"{', '.join(map(repr, FILLS))}, a number, one for each channel, or (C, H, W), (N, C, H, W)"
    try:
        if isinstance(fill, bool):
            raise TypeError
        values = torch.as_tensor(fill, device=pictures.device).to(pictures.dtype)
    except Exception:  # an object of the user's can raise anything
        raise TypeError(f"fill is {shown(fill)}; expected {expected}") from None
    if not bool(check_real(values, "fill").isfinite().all()):
        raise ValueError(f"fill is {shown(fill)}; expected finite numbers")
    if values.ndim == 1:
        values = values[:, None, None]
    try:
        return values.expand_as(pictures)
    except RuntimeError:
        shape, wanted = tuple(torch.as_tensor(fill).shape), tuple(pictures.shape)
        raise ValueError(f"fill has shape {shape} for inputs {wanted}; expected {expected}") from None


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures (N, C, H, W) blurred by a Gaussian, along columns and then rows; border pixels are replicated."""
    radius = max(1, round(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32, device=pictures.device)
    weights = (-0.5 * (x / sigma).square()).exp()
    weights = (weights / weights.sum()).to(pictures.dtype)
    n, c, height, width = pictures.shape
    flat = pictures.reshape(n * c, 1, height, width)
    flat = torch.nn.functional.pad(flat, [radius] * 4, mode="replicate")
    flat = torch.nn.functional.conv2d(flat, weights.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(flat, weights.view(1, 1, 1, -1)).view(n, c, height, width)
