"""How alike what two sets of layers show is (centred kernel alignment)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbviz.scanning.statistic import Batch, Measured, Tree, add_along_tree, merge_trees, tree_sum


class CKA(Measured):
    """How alike what two sets of layers show is: centred kernel alignment, linear, from one batch after the other.

    S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019; by the unbiased estimate
    over batches of T. Nguyen, M. Raghu and S. Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR
    2021, equations 2 and 3. The result is float64 (A, B); batches of fewer than four pictures do not count.

    Memory: 8 bytes for each pair of layers, as much again for each doubling of the number of batches.

    Parameters
    ----------
    layers_a, layers_b
        Names of modules.
    """

    def __init__(self, layers_a: Sequence[str], layers_b: Sequence[str]) -> None:
        self.sides = tuple(layers_a), tuple(layers_b)
        self.layers = (*layers_a, *layers_b)
        self.sums: Tree = {}

    def reduce(self, activation: Tensor) -> Tensor:
        """The Gram matrix of the pictures (N, N), with nothing on its diagonal."""
        flat = activation.flatten(1).float()
        flat = flat - flat.mean(0)  # which the estimate leaves out anyhow, and float32 might not
        scale = flat.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # no square overflows
        flat = flat / scale
        return ((flat @ flat.T).double() * scale.double().square()).fill_diagonal_(0)

    def measure(self, batch: Batch) -> CKA:
        """The terms of one batch."""
        one, n = CKA(*self.sides), len(batch.indices)
        if n < 4:
            return one
        grams = [torch.stack([batch.activations[layer] for layer in side]) for side in self.sides]
        cross = _hsic(grams[0][:, None], grams[1][None])
        own = [_hsic(gram, gram) for gram in grams]
        add_along_tree(one.sums, batch.number, torch.cat([cross.flatten(), *own]).cpu())
        return one

    def merge(self, other: CKA) -> None:
        """Take in what another has seen."""
        merge_trees(self.sums, other.sums)

    def result(self) -> Tensor | None:
        """The alignment (A, B), from 0 to 1; None before the first batch that counts."""
        if not self.sums:
            return None
        a, b = map(len, self.sides)
        cross, own_a, own_b = tree_sum(self.sums).split([a * b, a, b])
        scale = torch.outer(own_a.clamp(min=0).sqrt(), own_b.clamp(min=0).sqrt())
        return torch.where(scale > 0, cross.view(a, b) / scale, torch.nan).clamp(-1, 1)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate of Hilbert and Schmidt's independence criterion of Gram matrices without diagonal."""
    n = one.shape[-1]
    rows, columns = one.sum(-1), other.sum(-1)
    trace = (one * other).sum((-2, -1))
    totals = rows.sum(-1) * columns.sum(-1) / ((n - 1) * (n - 2))
    return (trace + totals - 2 * (rows * columns).sum(-1) / (n - 2)) / (n * (n - 3))
