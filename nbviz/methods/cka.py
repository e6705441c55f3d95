"""How similar the representations of two sets of layers are (centred kernel alignment)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nbviz.scanning.statistic import Batch, Combined, Tree, leaf, merge_trees, tree_sum


class CKA(Combined):
    """How similar the representations of two sets of layers are: linear centred kernel alignment, batch by batch.

    S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, with the unbiased
    minibatch estimate of T. Nguyen, M. Raghu and S. Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR
    2021, equations 2 and 3. The result is float64 (A, B); batches of fewer than four pictures do not count.

    Memory: 8 bytes for each pair of layers, and as much again for each doubling of the number of batches.

    Parameters
    ----------
    layers_a, layers_b
        Names of layers.
    """

    combine: ClassVar = {"sums": merge_trees}

    def __init__(self, layers_a: Sequence[str], layers_b: Sequence[str]) -> None:
        self.sides = tuple(layers_a), tuple(layers_b)
        self.layers = (*layers_a, *layers_b)
        self.sums: Tree = {}

    def reduce(self, activation: Tensor) -> Tensor:
        """The Gram matrix of the pictures (N, N), with a diagonal of zeros."""
        flat = activation.flatten(1).float()
        flat = flat - flat.mean(0)  # does not change the estimate, but the rounding errors
        scale = flat.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # so that no square overflows
        flat = flat / scale
        return ((flat @ flat.T).double() * scale.double().square()).fill_diagonal_(0)

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The terms of one batch."""
        if len(batch.indices) < 4:
            return {}
        grams = [torch.stack([batch.activations[layer] for layer in side]) for side in self.sides]
        cross = _hsic(grams[0][:, None], grams[1][None])
        own = [_hsic(gram, gram) for gram in grams]
        return {"sums": leaf(batch, torch.cat([cross.flatten(), *own]).cpu())}

    def result(self) -> Tensor | None:
        """The alignment (A, B), from 0 to 1; None before the first batch that counts."""
        if not self.sums:
            return None
        a, b = map(len, self.sides)
        cross, own_a, own_b = tree_sum(self.sums).split([a * b, a, b])
        scale = torch.outer(own_a.clamp(min=0).sqrt(), own_b.clamp(min=0).sqrt())
        return torch.where(scale > 0, cross.view(a, b) / scale, torch.nan).clamp(-1, 1)


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, from Gram matrices without diagonals."""
    n = a.shape[-1]
    rows, columns = a.sum(-1), b.sum(-1)
    trace = (a * b).sum((-2, -1))
    totals = rows.sum(-1) * columns.sum(-1) / ((n - 1) * (n - 2))
    return (trace + totals - 2 * (rows * columns).sum(-1) / (n - 2)) / (n * (n - 3))
