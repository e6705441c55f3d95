"""What can be collected in a scan over a dataset: one class for each, all mergeable.

Each is a :class:`nbviz.scanning.statistic.Statistic`; its docstring says how much memory it keeps when batches come in
order; where parts end in any order, sums that wait for their neighbours add to it. Values that are not finite count as
zero in sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbviz.core.checks import check_number, check_whole
from nbviz.scanning.answers import Ablation as Ablation
from nbviz.scanning.answers import Accuracy as Accuracy
from nbviz.scanning.statistic import Batch, OfLayer, Tree, add_along_tree, merge_trees, tree_sum
from nbviz.scanning.statistic import Statistic as Statistic


@dataclass(frozen=True)
class TopKResult:
    """For each channel its strongest activations, strongest first.

    Parameters
    ----------
    values
        float32 (C, k); minus infinity where there were fewer pictures with a number.
    indices
        int64 (C, k): in the dataset; -1 where there were fewer.
    positions
        int64 (C, k, 2): row and column in the layer's map; for signals (C, k, 1), for volumes (C, k, 3), for a layer
        without maps (C, k, 0).
    labels
        int64 (C, k): the pictures' classes, -1 where the dataset says none.
    """

    values: Tensor
    indices: Tensor
    positions: Tensor
    labels: Tensor


class TopK(OfLayer):
    """The k strongest activations of each channel, each in another picture.

    Of equal ones that of the lower index in the dataset comes first, and within a picture the first position. A picture
    in which the channel has a value that is no number is left out.
    Memory: 36 bytes for each channel and place.

    Parameters
    ----------
    layer
        A module's name.
    k
        How many.

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

    def measure(self, batch: Batch) -> Candidates | None:
        """The activations of one batch that are stronger than the weakest of those found so far."""
        maps = self._values(batch)
        values = maps.amax(2).float().cpu()
        sides = batch.activations[self.layers[0]].shape[2:]
        if not len(self.values):
            self._make(values.shape[1], len(sides))
        weakest, index = self.values[:, -1], self.numbers[:, -1, 0]
        better = values > weakest
        if int(batch.indices[0]) < int(index.max()):  # later ones have been seen before
            better |= (values == weakest) & (batch.indices[:, None] < index)
        pictures, channels = better.nonzero().unbind(1)
        if not len(pictures):
            return None
        # Only what is better needs its position.
        places = maps[pictures.to(maps.device), channels.to(maps.device)].argmax(1).cpu()
        positions = np.unravel_index(places.numpy(), tuple(sides)) if sides else ()
        numbers = [batch.indices[pictures], batch.labels.cpu()[pictures], *map(torch.from_numpy, positions)]
        return channels, values[pictures, channels], torch.stack(numbers, 1)

    def update(self, batch: Candidates | None) -> None:
        """Take in what was measured of a batch."""
        if batch is not None:
            self._keep(*batch)

    def merge(self, other: TopK) -> None:
        """Take in what another has seen."""
        if len(other.values):
            if not len(self.values):
                self._make(len(other.values), other.numbers.shape[2] - 2)
            channels, places = (other.numbers[..., 0] >= 0).nonzero().unbind(1)
            self._keep(channels, other.values[channels, places], other.numbers[channels, places])

    def result(self) -> TopKResult:
        """The strongest."""
        indices, labels, positions = (
            n.clone() for n in (self.numbers[..., 0], self.numbers[..., 1], self.numbers[..., 2:])
        )
        return TopKResult(self.values.clone(), indices, positions, labels)

    def _make(self, channels: int, axes: int) -> None:
        self.values = torch.full((channels, self.k), -torch.inf, dtype=torch.float32, device="cpu")
        self.numbers = torch.full((channels, self.k, 2 + axes), -1, device="cpu")

    def _keep(self, channels: Tensor, values: Tensor, numbers: Tensor) -> None:
        """The k best of each channel, of what was there and what has come. With NumPy, which is quicker on few."""
        rows, new = np.unique(channels.numpy(), return_inverse=True)
        row = np.concatenate([np.repeat(np.arange(len(rows)), self.k), new])
        value = np.concatenate([self.values.numpy()[rows].ravel(), values.numpy()])
        number = np.concatenate([self.numbers.numpy()[rows].reshape(-1, numbers.shape[1]), numbers.numpy()])
        order = np.lexsort((number[:, 0], -value, row))
        best = order[np.arange(len(order)) - np.searchsorted(row[order], row[order]) < self.k].reshape(-1, self.k)
        self.values[rows], self.numbers[rows] = torch.from_numpy(value[best]), torch.from_numpy(number[best])


#: Activations of some channels: whose (P,), their values (P,), and index, label and position (P, 2 + axes).
Candidates = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class MomentsResult:
    """Of each channel, over all pictures and positions.

    Parameters
    ----------
    mean, std, low, high
        float64 (C,): mean, standard deviation, and the smallest and largest finite value (NaN where there is none).
    count
        How many values each has.
    strange
        int64 (C,): how many of them were not finite, and counted as zero.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    count: int
    strange: Tensor


class Moments(OfLayer):
    """Mean, standard deviation and range of each channel.

    Memory: 40 bytes for each channel, 16 more for each doubling of the number of batches.

    Parameters
    ----------
    layer
        A module's name.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"m": Moments("0")}, progress=False)["m"]
    >>> found.mean.item(), found.std.item(), found.high.item()
    (2.0, 1.0, 3.0)
    """

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.count = 0
        self.sums: Tree = {}
        self.low = self.high = self.strange = torch.empty(0, dtype=torch.float32, device="cpu")

    def measure(self, batch: Batch) -> Moments:
        """The moments of one batch."""
        values, one = self._values(batch), Moments(self.layers[0])
        finite = values.isfinite()
        strange = (~finite).sum((0, 2)).cpu()
        low = high = values
        if strange.any():
            low, high = torch.where(finite, values, torch.inf), torch.where(finite, values, -torch.inf)
            values = torch.where(finite, values, 0)
        sums = [values.sum((0, 2), dtype=torch.float64), values.to(torch.float64, copy=True).square_().sum((0, 2))]
        ends = torch.stack([low.amin((0, 2)), high.amax((0, 2))]).double().cpu()
        add_along_tree(one.sums, batch.number, torch.stack(sums).cpu())
        one._more(values.shape[0] * values.shape[2], ends[0], ends[1], strange)
        return one

    def merge(self, other: Moments) -> None:
        """Take in what another has seen."""
        if other.count:
            merge_trees(self.sums, other.sums)
            self._more(other.count, other.low, other.high, other.strange)

    def _more(self, count: int, low: Tensor, high: Tensor, strange: Tensor) -> None:
        first = not self.count
        self.low = low if first else torch.minimum(self.low, low)
        self.high = high if first else torch.maximum(self.high, high)
        self.strange = strange if first else self.strange + strange
        self.count += count

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
        float64 (C,): the share of values, over all pictures and positions, that are exactly zero.
    silent
        float64 (C,): the share of pictures in which no value is above zero.
    dead
        bool (C,): whether that is so in all.
    pictures
        How many.
    """

    zeros: Tensor
    silent: Tensor
    dead: Tensor
    pictures: int


class Sparsity(OfLayer):
    """How often each channel is silent, and which always are.

    Memory: 16 bytes for each channel.

    Parameters
    ----------
    layer
        A module's name.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.ReLU()), x, {"s": Sparsity("0")}, progress=False)["s"]
    >>> found.silent.tolist(), found.dead.tolist()
    ([0.5, 1.0], [False, True])
    """

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.pictures = self.values = 0
        self.zeros = self.silent = torch.zeros(1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> Sparsity:
        """That of one batch."""
        values, one = self._values(batch), Sparsity(self.layers[0])
        one.zeros = (values == 0).sum((0, 2)).cpu()
        one.silent = (~(values > 0).any(2)).sum(0).cpu()
        one.pictures, one.values = len(values), values.shape[0] * values.shape[2]
        return one

    def merge(self, other: Sparsity) -> None:
        """Take in what another has seen."""
        self.zeros, self.silent = self.zeros + other.zeros, self.silent + other.silent
        self.pictures, self.values = self.pictures + other.pictures, self.values + other.values

    def result(self) -> SparsityResult | None:
        """The shares; None before the first picture."""
        if not self.pictures:
            return None
        dead = self.silent == self.pictures
        shares = self.zeros.double() / self.values, self.silent.double() / self.pictures
        return SparsityResult(*shares, dead, self.pictures)


@dataclass(frozen=True)
class HistogramResult:
    """How often each channel has which values.

    Parameters
    ----------
    edges
        float32 (B + 1,): a bin holds the values between its edge and the next one's, the edge nearer to zero included.
    counts
        int64 (C, B).
    """

    edges: Tensor
    counts: Tensor

    def quantile(self, share: float) -> Tensor:
        """The upper edge of the bin in which each channel passes a share of its values, float32 (C,).

        NaN for a channel without values. The share is above 0 and at most 1.
        """
        share, total = check_number("share", share, 1e-9, 1), self.counts.sum(1)
        passed = self.counts.cumsum(1) >= share * total[:, None]
        return torch.where(total > 0, self.edges[1:][passed.int().argmax(1)], torch.nan)


class Histogram(OfLayer):
    """How often each channel has which values, in bins that need no range: four for each doubling, of either sign.

    They reach from 2**-24 to 2**16; what is nearer to zero is in the bin of zero, what is larger in the last, what is
    no number nowhere. Memory: 2,568 bytes for each channel.

    Parameters
    ----------
    layer
        A module's name.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([0.0, 1.0, 1.1, -3.0]).view(1, 1, 2, 2)
    >>> found = nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"h": Histogram("0")}, progress=False)["h"]
    >>> [(found.edges[i].item(), n.item()) for i, n in enumerate(found.counts[0]) if n]
    [(-3.5, 1), (-5.960464477539063e-08, 1), (1.0, 2)]
    """

    _ENDS = -24, 16  # as powers of 2
    _SIDE = 4 * (_ENDS[1] - _ENDS[0])  # bins of one sign

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.counts = torch.zeros(1, 2 * self._SIDE + 1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> Histogram:
        """That of one batch."""
        one, values = Histogram(self.layers[0]), self._values(batch).transpose(0, 1).flatten(1).float()
        # Exponent and first two bits of the fraction are the bin's number.
        steps = (values.contiguous().view(torch.int32) >> 21) & 0x3FF
        steps = (steps - 4 * (127 + self._ENDS[0]) + 1).clamp(0, self._SIDE)
        bins = torch.where(values.isnan(), 2 * self._SIDE + 1, self._SIDE + torch.where(values < 0, -steps, steps))
        width = 2 * self._SIDE + 2
        bins = bins + width * torch.arange(len(bins), device=bins.device)[:, None]
        found = bins.flatten().bincount(minlength=width * len(bins)).view(len(bins), width)
        one.counts = found[:, :-1].cpu()
        return one

    def merge(self, other: Histogram) -> None:
        """Take in what another has seen."""
        self.counts = self.counts + other.counts

    def result(self) -> HistogramResult:
        """The counts."""
        steps = torch.arange(self._SIDE + 1, dtype=torch.float32, device="cpu")
        ends = 2.0 ** (self._ENDS[0] + steps // 4) * (1 + steps % 4 / 4)
        return HistogramResult(torch.cat([-ends.flip(0), ends]), self.counts.clone())


class Correlation(OfLayer):
    """How alike two channels are: the correlation of their values over all pictures and positions.

    The result is float64 (C, C); NaN for channels that never change. Memory: 8 bytes for each pair of channels, as much
    again for each doubling of the number of batches. Time: C multiplications for each value.

    Parameters
    ----------
    layer
        A module's name.

    Examples
    --------
    >>> import nbviz
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0]]).T.reshape(3, 3, 1, 1)
    >>> nbviz.scan(torch.nn.Sequential(torch.nn.Identity()), x, {"c": Correlation("0")}, progress=False)["c"].round()
    tensor([[ 1.,  1., -1.],
            [ 1.,  1., -1.],
            [-1., -1.,  1.]], dtype=torch.float64)
    """

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.count = 0
        self.sums: Tree = {}

    def measure(self, batch: Batch) -> Correlation:
        """The products of one batch."""
        one = Correlation(self.layers[0])
        values = torch.nan_to_num(self._values(batch).double(), 0.0, 0.0, 0.0).transpose(0, 1).flatten(1)
        ones = values.new_ones(1, values.shape[1])
        values = torch.cat([values, ones])  # whose products with the others are the sums
        add_along_tree(one.sums, batch.number, (values @ values.T).cpu())
        one.count = values.shape[1]
        return one

    def merge(self, other: Correlation) -> None:
        """Take in what another has seen."""
        merge_trees(self.sums, other.sums)
        self.count += other.count

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
