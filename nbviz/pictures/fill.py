"""What replaces the pixels of a region that is removed from a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from nbviz.core.checks import check_choice
from nbviz.pictures.preprocess import Preprocess

#: Mid-grey; the mean colour of the picture; the picture itself, blurred.
FILLS = ("grey", "mean", "blur")
_BLUR = 10  # the longer side of a picture, as a multiple of the blur's standard deviation


def filling(pictures: Tensor, fill: str, preprocess: Preprocess) -> Tensor:
    """The replacement for removed pixels of a model's inputs.

    Parameters
    ----------
    pictures
        The model's inputs (N, C, H, W).
    fill
        One of ``FILLS``.
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
    check_choice("fill", fill, FILLS)
    if fill == "grey":
        return preprocess.redo(torch.full_like(pictures[:1].float(), 0.5)).to(pictures).expand_as(pictures)
    if fill == "mean":
        return pictures.mean((-2, -1), keepdim=True).expand_as(pictures)
    return blurred(pictures, max(pictures.shape[-2:]) / _BLUR)


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
