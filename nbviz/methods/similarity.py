"""How similar two maps are: rank correlation and structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of two sets of maps, for each picture.

    Parameters
    ----------
    a, b
        Maps (N, ...) of one shape.

    Returns
    -------
    Tensor
        float64 (N,); NaN where a map is constant.

    Raises
    ------
    RuntimeError
        When the shapes differ.

    Examples
    --------
    >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 30.0, 20.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    a, b = (torch.stack([_ranks(row) for row in maps.flatten(1)]) for maps in (a, b))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    scale = a.norm(dim=1) * b.norm(dim=1)
    correlation: Tensor = torch.where(scale > 0, (a * b).sum(1) / scale, torch.nan)
    return correlation


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = (ends - (counts.double() - 1) / 2)[inverse]
    return ranks


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two sets of maps, each scaled to [0, 1].

    Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, with a
    window of 7×7, or as large as the map.

    Parameters
    ----------
    a, b
        Maps (N, H, W) or (N, C, H, W) of one shape.

    Returns
    -------
    Tensor
        float64 (N,).

    Raises
    ------
    RuntimeError
        When the shapes differ.

    Examples
    --------
    >>> maps = torch.rand(2, 8, 8)
    >>> ssim(maps, maps)
    tensor([1., 1.], dtype=torch.float64)
    """
    a, b = (_unit_range(maps.reshape(len(maps), -1, *maps.shape[-2:]).double()) for maps in (a, b))
    window = min(7, *a.shape[-2:])
    window -= 1 - window % 2
    n, size = window * window, [window, window]

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, size, 1)

    u, v = mean(a), mean(b)
    unbiased = n / max(n - 1, 1)
    var_a, var_b, cov = (unbiased * (mean(x * y) - p * q) for x, y, p, q in ((a, a, u, u), (b, b, v, v), (a, b, u, v)))
    c1, c2 = 0.01**2, 0.03**2
    local = (2 * u * v + c1) * (2 * cov + c2) / ((u**2 + v**2 + c1) * (var_a + var_b + c2))
    return torch.mean(local.flatten(1), 1)


def _unit_range(maps: Tensor) -> Tensor:
    """Each picture's maps scaled to [0, 1]."""
    flat = maps.flatten(1)
    low, high = (end.view(-1, 1, 1, 1) for end in (flat.amin(1), flat.amax(1)))
    return (maps - low) / (high - low).clamp(min=1e-30)
