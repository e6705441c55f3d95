"""Two models side by side: whether their layers show the same, and whether one of them is better."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from nbviz.core.errors import check_whole, line, shown
from nbviz.core.layers import Layers, trace_layers
from nbviz.core.state import check_model
from nbviz.core.statistic import Batch, Measured, Statistic, Tree, add_along_tree, merge_trees, tree_sum
from nbviz.core.trace import find_module
from nbviz.imaging.dataset import Inputs, check_dataset
from nbviz.imaging.load import Reader
from nbviz.methods.answers import check_classes
from nbviz.methods.arguments import check_feed, check_logits
from nbviz.methods.scan import scan
from nbviz.methods.top_patches import first_picture


@dataclass(frozen=True)
class PairFound:
    """How often each of two models is right on the same pictures.

    Parameters
    ----------
    both, only_a, only_b, neither
        On how many pictures both, one or none of them names the label.
    agree
        The share of pictures, with a label or not, for which both name the same class.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    agree: float

    @property
    def pictures(self) -> int:
        """How many had a label."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracy_a(self) -> float:
        """Of the first model."""
        return (self.both + self.only_a) / self.pictures

    @property
    def accuracy_b(self) -> float:
        """Of the second model."""
        return (self.both + self.only_b) / self.pictures

    @property
    def difference(self) -> float:
        """By how much the second model is more accurate than the first."""
        return (self.only_b - self.only_a) / self.pictures

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test: how likely so uneven a split is if both models are equally good.

        Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 1947; exact, two-sided: of the n pictures on which one alone is right, twice the probability
        that a fair coin falls at least so unevenly.

        Examples
        --------
        >>> round(PairFound(90, 1, 9, 0, 0.9).p_value, 5)
        0.02148
        """
        n, least = self.only_a + self.only_b, min(self.only_a, self.only_b)
        log_half = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(least + 1)]
        return min(1.0, 2 * sum(math.exp(one - n * math.log(2)) for one in log_half))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the difference lies with 95 % confidence.

        R. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
        data", Statistics in Medicine 1998, method 10: from Wilson's intervals of the two accuracies, and how they hang
        together.

        Examples
        --------
        Newcombe's example of 36, 12, 2 and 0:

        >>> low, high = PairFound(36, 2, 12, 0, 0.7).interval
        >>> round(low, 4), round(high, 4)
        (0.0569, 0.3404)
        """
        a, b, n = self.accuracy_a, self.accuracy_b, self.pictures
        (low_a, high_a), (low_b, high_b) = _wilson(a, n), _wilson(b, n)
        phi = _phi(self.both, self.only_a, self.only_b, self.neither)
        down = _spread(b - low_b, high_a - a, phi)
        up = _spread(high_b - b, a - low_a, phi)
        return self.difference - down, self.difference + up

    @property
    def verdict(self) -> str:
        """In a sentence, whether one is better."""
        low, high = (100 * end for end in self.interval)
        found = (
            f"{100 * self.difference:+.1f} points (95 %: {low:+.1f} to {high:+.1f}; McNemar's p = {self.p_value:.2g})"
        )
        where = f"on {self.pictures:,} pictures: a {100 * self.accuracy_a:.1f} %, b {100 * self.accuracy_b:.1f} %"
        better = self.p_value < 0.05 and (low > 0 or high < 0)
        which = ("b is better" if self.difference > 0 else "a is better") if better else "no difference is shown"
        return f"{which} {where}, {found}"


_Z = 1.959963984540054  # of 95 %, two-sided


def _wilson(share: float, n: int) -> tuple[float, float]:
    middle, wide = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return (middle - wide) / (1 + _Z**2 / n), (middle + wide) / (1 + _Z**2 / n)


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """How the two hang together, with Newcombe's correction for continuity."""
    n = both + only_a + only_b + neither
    product = float(both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    cross = both * neither - only_a * only_b
    return (max(cross - n / 2, 0) if cross > 0 else cross) / math.sqrt(product)


def _spread(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


class PairedAccuracy(Measured):
    """On which pictures each of two models is right, whose logits stand side by side (N, 2 * classes).

    Memory: 48 bytes.
    """

    logits = True

    def __init__(self) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64)  # neither, only b, only a, both
        self.agree = self.pictures = 0

    def measure(self, batch: Batch) -> PairedAccuracy:
        """That of one batch; pictures without a label count for the agreement alone."""
        assert batch.logits is not None
        one, named = PairedAccuracy(), batch.logits.unflatten(1, (2, -1)).argmax(2)
        labelled = batch.labels >= 0
        check_classes(batch.labels, batch.logits.shape[1] // 2)
        right = (named == batch.labels[:, None])[labelled]
        one.counts = (2 * right[:, 0].long() + right[:, 1]).bincount(minlength=4).cpu()
        one.agree, one.pictures = int((named[:, 0] == named[:, 1]).sum()), len(named)
        return one

    def merge(self, other: PairedAccuracy) -> None:
        """Take in what another has seen."""
        self.counts = self.counts + other.counts
        self.agree, self.pictures = self.agree + other.agree, self.pictures + other.pictures

    def result(self) -> tuple[PairFound | None, float]:
        """The counts, None where no picture has a label; and how often both agree."""
        neither, only_b, only_a, both = self.counts.tolist()
        agree = self.agree / max(self.pictures, 1)
        found = PairFound(both, only_a, only_b, neither, agree) if self.counts.sum() else None
        return found, agree


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


class Pair(nn.Module):
    """Two models that see the same pictures."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What both give."""
        return self.a(*args, **kwargs), self.b(*args, **kwargs)


def _both(given: tuple[Any, Any], output: Any) -> Tensor:
    """The logits of both models side by side."""
    a, b = (check_logits(one, output) for one in given)
    if a.shape != b.shape:
        raise ValueError(
            f"model_a gives {a.shape[1]} classes and model_b {b.shape[1]}; expected two models of the same classes"
        )
    return torch.cat([a, b], 1)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What two models have in common, and which is better; shows as a table.

    Parameters
    ----------
    accuracy
        How often each is right, with ``difference``, ``interval``, ``p_value`` and ``verdict``; None where the dataset
        has no labels.
    agree
        The share of pictures for which both name the same class.
    cka
        float64 (A, B): how alike what each layer of the first and each of the second show is, from 0 to 1; None
        where there were too few pictures.
    layers_a, layers_b
        The layers' names.
    pictures
        How many were seen.
    complete
        Whether that was the whole dataset.
    """

    accuracy: PairFound | None
    agree: float
    cka: Tensor | None
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    pictures: int
    complete: bool

    @property
    def verdict(self) -> str:
        """In a sentence, whether one model is better."""
        if self.accuracy is None:
            return f"the pictures have no labels; both name the same class for {100 * self.agree:.1f} % of them"
        return self.accuracy.verdict

    def __repr__(self) -> str:
        lines = [self.verdict, f"the same class for {100 * self.agree:.1f} % of {self.pictures:,} pictures"]
        lines += [] if self.complete else ["(not complete)"]
        if self.cka is not None:
            lines.append("layer of a → the layer of b that shows most the same (CKA)")
            for name, row in zip(self.layers_a, self.cka.nan_to_num(-1.0), strict=True):
                best = int(row.argmax())
                lines.append(f"  {line(name)} → {line(self.layers_b[best])} ({float(row[best]):.3f})")
        return "\n".join(lines)


def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    dataset: Any,
    layers: Sequence[str] | None = None,
    *,
    most: int = 16,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
    **options: Any,
) -> Comparison:
    """Whether a change to a model does what is claimed: two models on the same pictures.

    Both see each batch. Their answers are counted picture by picture, so that McNemar's test can say whether one is
    better (:attr:`PairFound.p_value`); what their layers show is compared by centred kernel alignment (:class:`CKA`),
    which does not ask for the same channels, or for as many.

    Parameters
    ----------
    model_a, model_b
        PyTorch models that give scores of the same classes, on one device; they are left as they were. With and
        without a block, before and after training, ...
    dataset
        Of any kind that :func:`nbviz.scan` takes; with labels for the accuracy.
    layers
        Names of layers that both have; None, for a dataset with a length, takes of each those with feature maps, evenly
        spread.
    most
        How many of each at most.
    preprocess
        A callable from a PIL picture to the input of both; None takes the one of the models, which must be the same.
    inputs, output
        As in :func:`nbviz.reconstruct`, for both models.
    **options
        As in :func:`nbviz.scan`: ``batch_size``, ``workers``, ``executor``, ``parts``, ``threads``, ``checkpoint``,
        ``progress`` and ``watch``. CKA is that of batches: use the same ``batch_size`` for figures to be compared.

    Returns
    -------
    Comparison
        ``accuracy``, ``verdict``, ``agree``, ``cka`` (A, B), ``layers_a``, ``layers_b``.

    Raises
    ------
    ValueError
        For an unknown layer, models that prepare pictures differently, are on two devices or give other classes.
    PictureError, ModelError, TypeError
        As in :func:`nbviz.scan`.

    Examples
    --------
    >>> import copy, nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:200, None], labels[:200])
    >>> model = nbviz.bundled.load("fashion")
    >>> worse = copy.deepcopy(model)
    >>> _ = nn.init.zeros_(worse.features[12].weight)
    >>> found = compare(worse, model, dataset, ["features.3", "features.8"], progress=False)
    >>> found.verdict
    "b is better on 200 pictures: a 8.0 %, b 94.5 %, +86.5 points (95 %: +80.3 to +90.4; McNemar's p = 7.4e-51)"
    >>> found.cka.diagonal().round(decimals=6).tolist()
    [1.0, 1.0]
    """
    readers = [Reader.of(one, preprocess) for one in (model_a, model_b)]
    a, b = check_model(model_a), check_model(model_b)
    feed, most = check_feed(inputs), check_whole("most", most, 1)
    _check_alike(readers, preprocess is None)
    b = _apart(a, b)
    source = Inputs(check_dataset(dataset), readers[0], 1)
    names = [_layers(one, layers) for one in (a, b)]
    if source.count is not None:
        first = first_picture(source)[None].to(source.reader.device)
        traced = [trace_layers(one, first, feed) for one in (a, b)]
        _both((traced[0][1], traced[1][1]), output)
        names = names if layers is not None else [_evenly(every, most) for every, _ in traced]
    elif layers is None:
        raise TypeError(
            "an iterable dataset is not looked into beforehand; expected layers= with it, or one with a length"
        )
    sides = [[f"{side}.{name}" for name in some] for side, some in zip("ab", names, strict=True)]
    statistics: dict[str, Statistic] = {"cka": CKA(*sides)} if all(sides) else {}
    found = scan(
        Pair(a, b),
        source.dataset,
        {**statistics, "accuracy": PairedAccuracy()},
        preprocess=readers[0].preprocess,
        inputs=inputs,
        output=partial(_both, output=output),
        **options,
    )
    accuracy, agree = found["accuracy"]
    a_names, b_names = map(tuple, names)
    return Comparison(accuracy, agree, found.get("cka"), a_names, b_names, found.pictures, found.complete)


def _apart(a: nn.Module, b: nn.Module) -> nn.Module:
    """The second model, with modules of its own where it shares some with the first: else one would hide the other.

    All tensors stay shared.
    """
    if not {id(one) for one in a.modules()} & {id(one) for one in b.modules()}:
        return b
    return copy.deepcopy(b, {id(tensor): tensor for tensor in (*b.parameters(), *b.buffers())})


def _check_alike(readers: Sequence[Reader], own: bool) -> None:
    """Whether two models can be given the same inputs, prepared in their own way."""
    one, other = readers
    if (one.device, one.dtype) != (other.device, other.dtype):
        raise ValueError(
            f"model_a is on {one.device} in {one.dtype}, model_b on {other.device} in {other.dtype}; "
            "expected both on one device in one dtype"
        )
    if (one.channels, one.axes) != (other.channels, other.axes):
        raise ValueError(f"model_a takes {one.channels} channels and model_b {other.channels}; expected as many")
    if own and one.axes == 2 and one.preprocess is not other.preprocess and one.channels in (1, 3):
        made = [_prepared(reader) for reader in readers]
        if made[0].shape != made[1].shape or not torch.allclose(made[0], made[1], atol=1e-4):
            raise ValueError(
                f"the models prepare pictures differently ({line(one.preprocess.source)}, "
                f"{line(other.preprocess.source)}); expected preprocess=, which says how both are to see them"
            )


def _prepared(reader: Reader) -> Tensor:
    """What a model's own preprocessing makes of a picture with details, in which no two colours or sides are alike."""
    grey = Image.effect_mandelbrot((301, 257), (-2.0, -1.0, 0.5, 1.25), 64)
    probe = Image.merge("RGB", (grey, ImageOps.mirror(grey), ImageOps.flip(grey)))
    with torch.random.fork_rng(devices=[]):
        return next(reader.read(probe, 0))[1]


def _layers(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """The layers that are named, if the model has them."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
    for name in given:
        find_module(model, name)
    return list(given)


def _evenly(layers: Layers, most: int) -> list[str]:
    """So many layers, evenly spread over those with maps."""
    found = [one.name for one in layers if one.has_maps and one.leaf]
    found = found or [one.name for one in layers if one.shape and one.pictures]
    places = torch.linspace(0, len(found) - 1, min(most, len(found))).round().long().unique().tolist()
    return [found[place] for place in places]
