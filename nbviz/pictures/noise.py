"""Noisy copies of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noisy(pictures: Tensor, samples: int, noise: float, seed: int, numbers: Sequence[int]) -> list[Tensor]:
    """Noisy copies of pictures (N, C, H, W); ``noise`` is the standard deviation as a fraction of a picture's range.

    The noise of a picture depends on the seed and the picture's number, not on the other pictures.

    Examples
    --------
    >>> two = torch.zeros(2, 1, 1, 2)
    >>> two[..., 1] = 1.0
    >>> copies = noisy(two, 3, 0.1, 0, range(2))
    >>> len(copies), torch.equal(noisy(two[1:], 3, 0.1, 0, [1])[0], copies[0][1:])
    (3, True)
    """
    draws = []
    for number in numbers:
        generator = torch.Generator().manual_seed((seed + number * 0x9E3779B97F4A7C15) % 2**63)
        draws.append(torch.randn(samples, *pictures.shape[1:], generator=generator, dtype=torch.float32))
    flat = pictures.flatten(1)
    std = noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (pictures.ndim - 1))
    return [pictures + std * torch.stack([draw[i] for draw in draws]).to(pictures) for i in range(samples)]
