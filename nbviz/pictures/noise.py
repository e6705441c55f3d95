"""Noisy copies of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noisy(pictures: Tensor, samples: int, noise: float, seed: int, numbers: Sequence[int]) -> list[Tensor]:
    """Copies of pictures (N, C, H, W) with noise, whose strength is a share of each picture's range.

    What is drawn for a picture depends on its number alone, not on which others are there.

    Examples
    --------
    >>> two = torch.zeros(2, 1, 1, 2)
    >>> two[..., 1] = 1.0
    >>> copies = noisy(two, 3, 0.1, 0, range(2))
    >>> len(copies), torch.equal(noisy(two[1:], 3, 0.1, 0, [1])[0], copies[0][1:])
    (3, True)
    """
    drawn = []
    for number in numbers:
        draw = torch.Generator().manual_seed((seed + number * 0x9E3779B97F4A7C15) % 2**63)
        drawn.append(torch.randn(samples, *pictures.shape[1:], generator=draw, dtype=torch.float32))
    flat = pictures.flatten(1)
    spread = noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (pictures.ndim - 1))
    return [pictures + spread * torch.stack([own[i] for own in drawn]).to(pictures) for i in range(samples)]
