"""The statistics that a scan over a dataset can collect.

Each is a :class:`nbviz.scanning.statistic.Statistic`. Its docstring gives the memory it takes when batches come in
order; when parts finish out of order, partial sums add to it. Values that are not finite count as zero in sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nbviz.core.checks import check_number, check_whole
from nbviz.core.documented import documented
from nbviz.scanning.answers import Ablation as Ablation
from nbviz.scanning.answers import Accuracy as Accuracy
from nbviz.scanning.statistic import Batch, LayerStatistic, Tree, leaf, merge_trees, tree_sum
from nbviz.scanning.statistic import Statistic as Statistic


@dataclass(frozen=True)
class TopKResult:
    """The strongest activations of each channel, strongest first.

    Parameters
    ----------
    values
        float32 (C, k); minus infinity where there were fewer than k pictures.
    indices
        int64 (C, k): the pictures' indices in the dataset; -1 where there were fewer.
    positions
        int64 (C, k, 2): row and column in the layer's map; (C, k, 1) for signals, (C, k, 3) for volumes, (C, k, 0) for
        a layer without maps.
    labels
        int64 (C, k): the pictures' classes; -1 for none.
    """

    values: Tensor
    indices: Tensor
    positions: Tensor
    labels: Tensor


@documented
class TopK(LayerStatistic):
    """The k strongest activations of each channel, at most one per picture.

    Ties are broken by the index in the dataset, and within a picture by the position. A picture in which the channel
    has a NaN is left out. Memory: 36 bytes for each of the k activations of a channel.

    Parameters
    ----------
    k
        How many activations of each channel.

    Examples
    --------
    >>> import nbviz
    >>> net = torch.nn.Sequential(torch.nn.Identity())
    >>> x = torch.tensor([1.0, 3.0, 2.0, 3.0]).view(4, 1, 1, 1)
    >>> nbviz.scan(net, x, {"top": TopK("0", 3)}, progress=False)["top"].indices
    tensor([[1, 3, 2]])
    """

    def __init__(self, layer: str, k: int = 9) -> None:
        super().__init__(layer)
        self.k = check_whole("k", k, 1)
        self.values = torch.empty(0, k, dtype=torch.float32, device="cpu")
        self.numbers = torch.empty(0, k, 2, dtype=torch.int64, device="cpu")  # index, label, then the position

    def measure(self, batch: Batch) -> Candidates:
        """The activations of one batch that are stronger than the weakest so far."""
        maps = self._values(batch)
        values = maps.amax(2).float().cpu()
        sides = batch.activations[self.layers[0]].shape[2:]
        if not len(self.values):
            self._make(values.shape[1], len(sides))
        weakest, index = self.values[:, -1], self.numbers[:, -1, 0]
        better = values > weakest
        if int(batch.indices[0]) < int(index.max()):  # batches come out of order, so ties have to be compared
            better |= (values == weakest) & (batch.indices[:, None] < index)
        pictures, channels = better.nonzero().unbind(1)
        # Positions are needed only for these.
        places = maps[pictures.to(maps.device), channels.to(maps.device)].argmax(1).cpu()
        positions = np.unravel_index(places.numpy(), tuple(sides)) if sides else ()
        numbers = [batch.indices[pictures], batch.labels.cpu()[pictures], *map(torch.from_numpy, positions)]
        return channels, values[pictures, channels], torch.stack(numbers, 1)

    def update(self, batch: Candidates) -> None:
        """Add the candidates of a batch."""
        self._keep(*batch)

    def merge(self, other: TopK) -> None:
        """Add the strongest activations over other pictures."""
        if len(other.values):
            if not len(self.values):
                self._make(len(other.values), other.numbers.shape[2] - 2)
            channels, places = (other.numbers[..., 0] >= 0).nonzero().unbind(1)
            self._keep(channels, other.values[channels, places], other.numbers[channels, places])

    def result(self) -> TopKResult:
        """The strongest activations."""
        numbers = self.numbers
        indices, labels, positions = numbers[..., 0].clone(), numbers[..., 1].clone(), numbers[..., 2:].clone()
        return TopKResult(self.values.clone(), indices, positions, labels)

    def _make(self, channels: int, axes: int) -> None:
        self.values = torch.full((channels, self.k), -torch.inf, dtype=torch.float32, device="cpu")
        self.numbers = torch.full((channels, self.k, 2 + axes), -1, device="cpu")

    def _keep(self, channels: Tensor, values: Tensor, numbers: Tensor) -> None:
        """Keep the k best of each channel, in NumPy, which is faster for few values."""
        rows, new = np.unique(channels.numpy(), return_inverse=True)
        row = np.concatenate([np.repeat(np.arange(len(rows)), self.k), new])
        value = np.concatenate([self.values.numpy()[rows].ravel(), values.numpy()])
        number = np.concatenate([self.numbers.numpy()[rows].reshape(-1, numbers.shape[1]), numbers.numpy()])
        order = np.lexsort((number[:, 0], -value, row))
        best = order[np.arange(len(order)) - np.searchsorted(row[order], row[order]) < self.k].reshape(-1, self.k)
        self.values[rows], self.numbers[rows] = torch.from_numpy(value[best]), torch.from_numpy(number[best])


#: P candidates: their channels (P,), values (P,), and index, label and position (P, 2 + axes).
Candidates = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class MomentsResult:
    """The moments of each channel over all pictures and positions.

    Parameters
    ----------
    mean, std, low, high
        float64 (C,): mean, standard deviation, and the smallest and largest finite value (NaN if there is none).
    count
        The number of values of each channel.
    strange
        int64 (C,): how many of them were not finite, and counted as zero.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    count: int
    strange: Tensor


@documented
class Moments(LayerStatistic):
    """Mean, standard deviation and range of each channel.

    Memory: 40 bytes for each channel, 16 more for each doubling of the number of batches.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"m": Moments("0")}, progress=False)["m"]
    >>> found.mean.item(), found.std.item(), found.high.item()
    (2.0, 1.0, 3.0)
    """

    combine: ClassVar = {"count": add, "sums": merge_trees, "strange": add, "low": torch.minimum, "high": torch.maximum}

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.count = 0
        self.sums: Tree = {}
        self.low = torch.tensor([torch.inf], dtype=torch.float64, device="cpu")
        self.high = -self.low
        self.strange = torch.zeros(1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The moments of one batch."""
        values = self._values(batch)
        finite = values.isfinite()
        strange = (~finite).sum((0, 2)).cpu()
        low = high = values
        if strange.any():
            low, high = torch.where(finite, values, torch.inf), torch.where(finite, values, -torch.inf)
            values = torch.where(finite, values, 0)
        sums = [values.sum((0, 2), dtype=torch.float64), values.to(torch.float64, copy=True).square_().sum((0, 2))]
        ends = torch.stack([low.amin((0, 2)), high.amax((0, 2))]).double().cpu()
        added = {"count": values.shape[0] * values.shape[2], "sums": leaf(batch, torch.stack(sums).cpu())}
        return {**added, "strange": strange, "low": ends[0], "high": ends[1]}

    def result(self) -> MomentsResult | None:
        """The moments; None before the first picture."""
        if not self.count:
            return None
        mean, square = tree_sum(self.sums) / self.count
        std = (square - mean.square()).clamp(min=0).sqrt()
        none = self.strange == self.count
        low, high = (torch.where(none, torch.nan, end) for end in (self.low, self.high))
        return MomentsResult(mean, std, low, high, self.count, self.strange.clone())


@dataclass(frozen=True)
class SparsityResult:
    """How often each channel is silent.

    Parameters
    ----------
    zeros
        float64 (C,): the fraction of values, over all pictures and positions, that are exactly zero.
    silent
        float64 (C,): the fraction of pictures without a value above zero.
    dead
        bool (C,): whether no picture has a value above zero.
    pictures
        The number of pictures.
    """

    zeros: Tensor
    silent: Tensor
    dead: Tensor
    pictures: int


@documented
class Sparsity(LayerStatistic):
    """How often each channel is silent, and which channels always are.

    Memory: 16 bytes for each channel.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.ReLU()), x, {"s": Sparsity("0")}, progress=False)["s"]
    >>> found.silent.tolist(), found.dead.tolist()
    ([0.5, 1.0], [False, True])
    """

    combine: ClassVar = {"pictures": add, "values": add, "zeros": add, "silent": add}

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.pictures = self.values = 0
        self.zeros = self.silent = torch.zeros(1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The sparsity on one batch."""
        values = self._values(batch)
        zeros, silent = (values == 0).sum((0, 2)).cpu(), (~(values > 0).any(2)).sum(0).cpu()
        pictures, _, positions = values.shape
        return {"pictures": pictures, "values": pictures * positions, "zeros": zeros, "silent": silent}

    def result(self) -> SparsityResult | None:
        """The fractions; None before the first picture."""
        if not self.pictures:
            return None
        zeros, silent = self.zeros.double() / self.values, self.silent.double() / self.pictures
        return SparsityResult(zeros, silent, self.silent == self.pictures, self.pictures)


@dataclass(frozen=True)
class HistogramResult:
    """The histogram of each channel's values.

    Parameters
    ----------
    edges
        float32 (B + 1,): the edges of the bins. A bin includes its edge nearer to zero.
    counts
        int64 (C, B): the number of values in each bin.
    """

    edges: Tensor
    counts: Tensor

    def quantile(self, share: float) -> Tensor:
        """The upper edge of the bin that contains the quantile of each channel, float32 (C,).

        ``share`` is above 0 and at most 1. NaN for channels without values.
        """
        share, total = check_number("share", share, 1e-9, 1), self.counts.sum(1)
        passed = self.counts.cumsum(1) >= share * total[:, None]
        return torch.where(total > 0, self.edges[1:][passed.int().argmax(1)], torch.nan)


@documented
class Histogram(LayerStatistic):
    """The histogram of each channel's values in logarithmic bins, four per doubling for either sign.

    The bins reach from 2**-24 to 2**16. Values nearer to zero fall into the bin of zero, larger ones into the last bin;
    NaN is not counted. Memory: 2,568 bytes for each channel.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([0.0, 1.0, 1.1, -3.0]).view(1, 1, 2, 2)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"h": Histogram("0")}, progress=False)["h"]
    >>> [(found.edges[i].item(), n.item()) for i, n in enumerate(found.counts[0]) if n]
    [(-3.5, 1), (-5.960464477539063e-08, 1), (1.0, 2)]
    """

    _ENDS = -24, 16  # exponents of 2
    _SIDE = 4 * (_ENDS[1] - _ENDS[0])  # bins for one sign
    combine: ClassVar = {"counts": add}

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.counts = torch.zeros(1, 2 * self._SIDE + 1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The histogram of one batch."""
        values = self._values(batch).transpose(0, 1).flatten(1).float()
        # The exponent and the first two bits of the fraction give the number of the bin.
        steps = (values.contiguous().view(torch.int32) >> 21) & 0x3FF
        steps = (steps - 4 * (127 + self._ENDS[0]) + 1).clamp(0, self._SIDE)
        bins = torch.where(values.isnan(), 2 * self._SIDE + 1, self._SIDE + torch.where(values < 0, -steps, steps))
        width = 2 * self._SIDE + 2
        bins = bins + width * torch.arange(len(bins), device=bins.device)[:, None]
        counts = bins.flatten().bincount(minlength=width * len(bins)).view(len(bins), width)
        return {"counts": counts[:, :-1].cpu()}

    def result(self) -> HistogramResult:
        """The counts."""
        steps = torch.arange(self._SIDE + 1, dtype=torch.float32, device="cpu")
        ends = 2.0 ** (self._ENDS[0] + steps // 4) * (1 + steps % 4 / 4)
        return HistogramResult(torch.cat([-ends.flip(0), ends]), self.counts.clone())


@documented
class Correlation(LayerStatistic):
    """The correlation of the channels' values over all pictures and positions.

    The result is float64 (C, C); NaN for constant channels. Memory: 8 bytes for each pair of channels, and as much
    again for each doubling of the number of batches. Time: C multiplications for each value.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0]]).T.reshape(3, 3, 1, 1)
    >>> nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"c": Correlation("0")}, progress=False)["c"].round()
    tensor([[ 1.,  1., -1.],
            [ 1.,  1., -1.],
            [-1., -1.,  1.]], dtype=torch.float64)
    """

    combine: ClassVar = {"count": add, "sums": merge_trees}

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.count = 0
        self.sums: Tree = {}

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The products of one batch."""
        values = torch.nan_to_num(self._values(batch).double(), 0.0, 0.0, 0.0).transpose(0, 1).flatten(1)
        count = values.shape[1]
        # The products of the ones with the values are the sums of the values.
        values = torch.cat([values, values.new_ones(1, count)])
        return {"count": count, "sums": leaf(batch, (values @ values.T).cpu())}

    def result(self) -> Tensor | None:
        """The correlations; None before the first picture."""
        if not self.count:
            return None
        total = tree_sum(self.sums)
        products, sums = total[:-1, :-1], total[:-1, -1]
        covariance = products - torch.outer(sums, sums) / self.count
        spread = covariance.diagonal().clamp(min=0).sqrt()
        spread = torch.where(spread <= 1e-7 * products.diagonal().sqrt(), torch.nan, spread)  # nothing but rounding
        return (covariance / torch.outer(spread, spread)).clamp(-1, 1)
