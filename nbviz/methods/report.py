"""What is wrong with a network, layer by layer: dead, duplicate and useless channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.arguments import check_feed
from nbviz.core.checks import check_number, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.state import check_model, device_aside
from nbviz.core.trace import find_module
from nbviz.methods.kernels import KernelReportResult, convolutions, kernel_report
from nbviz.pictures.load import Reader
from nbviz.scanning.answers import Ablation, Accuracy, check_classes
from nbviz.scanning.dataset import Inputs, check_dataset
from nbviz.scanning.scan import scan
from nbviz.scanning.statistic import Batch, Measured, Statistic, Tree, add_along_tree, merge_trees, tree_sum
from nbviz.scanning.statistics import Correlation, Moments, MomentsResult, Sparsity, SparsityResult


class Importance(Measured):
    """By how much the loss would change, to first order, if a channel were switched off.

    P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, section
    2.2: the absolute value of the sum over the positions of activation times gradient, here for each picture, and its
    mean over the pictures. The loss is the cross-entropy with the picture's label, or with the predicted class where
    there is none. One backward pass serves all channels of all layers.

    The result is a dict from the layers to float64 (C,). Memory: 8 bytes for each channel, as much again for each
    doubling of the number of batches.

    Parameters
    ----------
    layers
        Names of modules.
    """

    logits = grad = True

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.sums: dict[str, Tree] = {layer: {} for layer in layers}
        self.pictures = 0

    def measure(self, batch: Batch) -> Importance:
        """That of one batch."""
        assert batch.logits is not None
        one = Importance(self.layers)
        activations = [batch.activations[layer] for layer in self.layers]
        check_classes(batch.labels, batch.logits.shape[1])
        with torch.inference_mode(False), torch.enable_grad():
            labels = _named(batch)
            loss = F.cross_entropy(batch.logits.float(), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, activations, retain_graph=True, allow_unused=True)
        for layer, activation, gradient in zip(self.layers, activations, gradients, strict=True):
            product = activation * (torch.zeros_like(activation) if gradient is None else gradient)
            change = product.detach().flatten(2).sum(2) if product.ndim > 2 else product.detach()
            add_along_tree(one.sums[layer], batch.number, change.double().abs().sum(0).cpu())
        one.pictures = len(batch.labels)
        return one

    def merge(self, other: Importance) -> None:
        """Take in what another has seen."""
        for layer, tree in self.sums.items():
            merge_trees(tree, other.sums[layer])
        self.pictures += other.pictures

    def result(self) -> dict[str, Tensor]:
        """The means; empty before the first picture."""
        return {layer: tree_sum(tree) / self.pictures for layer, tree in self.sums.items() if tree}


def _named(batch: Batch) -> Tensor:
    """The pictures' classes, where they have none the predicted ones."""
    assert batch.logits is not None
    return torch.where(batch.labels >= 0, batch.labels, batch.logits.argmax(1))


class _Trial(Ablation):
    """Channels switched off, of all pictures."""

    def measure(self, batch: Batch) -> Ablation:
        return super().measure(replace(batch, labels=_named(batch)))


@dataclass(frozen=True)
class LayerReport:
    """What is wrong with a layer's channels.

    Parameters
    ----------
    layer
        What it is.
    dead
        Channels that are zero wherever one looks, after a ReLU those that are above zero in no picture.
    constant
        Channels that are not dead and the same in all pictures, to within rounding.
    duplicates
        (channel, channel, correlation) of channels that say the same.
    useless
        Channels that are not dead, but of which nothing becomes: with one of them switched off, as many answers are
        right (without labels: stay the same) as before, and the loss hardly changes.
    dimensions
        How many channels without correlation would vary as much: (sum of eigenvalues)² / sum of squares of the
        correlations' eigenvalues.
    importance
        float64 (C,): see :class:`Importance`.
    """

    layer: Layer
    dead: tuple[int, ...]
    constant: tuple[int, ...]
    duplicates: tuple[tuple[int, int, float], ...]
    useless: tuple[int, ...]
    dimensions: float
    importance: Tensor

    @property
    def redundant(self) -> tuple[int, ...]:
        """The channels that could go: dead, constant or useless ones, and of duplicates the second."""
        twice = {j for _, j, _ in self.duplicates}
        return tuple(sorted({*self.dead, *self.constant, *self.useless, *twice}))


@dataclass(frozen=True, repr=False)
class ReportResult:
    """What is wrong with a network; shows as a table with a picture of each layer's importances.

    Parameters
    ----------
    layers
        By name.
    kernels
        That of the first convolution, None where there is none.
    accuracy
        Of the pictures with a label; None where there are none.
    pictures
        How many were seen.
    complete
        Whether that was the whole dataset.
    """

    layers: dict[str, LayerReport]
    kernels: KernelReportResult | None
    accuracy: float | None
    pictures: int
    complete: bool

    def __getitem__(self, layer: str) -> LayerReport:
        return self.layers[layer]

    def _head(self) -> str:
        right = "" if self.accuracy is None else f", accuracy {self.accuracy:.4f}"
        return (
            f"{len(self.layers)} layers, {self.pictures:,} pictures{'' if self.complete else ' (not complete)'}{right}"
        )

    def __repr__(self) -> str:
        lines = [f"ReportResult of {self._head()}"]
        for name, one in self.layers.items():
            lines.append(f"  {line(name)} · {one.layer.shape[0]} channels, which vary as {one.dimensions:.0f} would")
            lines += [f"    {what}: {said}" for what, said in _findings(one) if said]
        return "\n".join([*lines, repr(self.kernels)] if self.kernels is not None else lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("layer", "channels", "vary as", *_COLUMNS, "importance"))
        rows = []
        for name, one in self.layers.items():
            cells = [escape(line(name, 60)), str(one.layer.shape[0]), f"{one.dimensions:.0f}"]
            cells += [escape(said) or "–" for _, said in _findings(one)]
            rows.append("".join(f"<td>{cell}</td>" for cell in [*cells, _bars(one)]))
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        kernels = self.kernels._repr_html_() if self.kernels is not None else ""
        return (
            f'<div class="nbviz-report"><div>{self._head()}</div><table><tr>{head}</tr>{table}</table>{kernels}</div>'
        )


_COLUMNS = ("dead", "constant", "alike", "useless")


def _findings(one: LayerReport) -> list[tuple[str, str]]:
    alike = [f"{i} = {j}" for i, j, _ in one.duplicates]
    return list(zip(_COLUMNS, map(_few, (one.dead, one.constant, alike, one.useless)), strict=True))


def _few(items: Sequence[Any]) -> str:
    more = f", … ({len(items)})" if len(items) > _FEW else ""
    return ", ".join(map(str, items[:_FEW])) + more


_FEW = 8


def _bars(one: LayerReport, width: int = 240, height: int = 32) -> str:
    """The importances, largest first, as a picture that needs no script; those of redundant channels in orange."""
    values = torch.nan_to_num(one.importance)
    order = values.argsort(descending=True).tolist()[: width // 2]
    largest, wide = max(float(values.max()), 1e-30), max(2.0, width / len(order))
    redundant = set(one.redundant)
    bars = []
    for place, channel in enumerate(order):
        tall = max(1.0, height * float(values[channel]) / largest)
        colour = "#ef6c00" if channel in redundant else "#1976d2"
        bars.append(
            f'<rect x="{place * wide:.1f}" y="{height - tall:.1f}" width="{wide - 0.5:.1f}" height="{tall:.1f}" '
            f'fill="{colour}"><title>#{channel}: {float(values[channel]):.3g}</title></rect>'
        )
    return f'<svg width="{width}" height="{height}" role="img" aria-label="importances">{"".join(bars)}</svg>'


@device_aside()
def report(
    model: nn.Module,
    dataset: Any,
    layers: Sequence[str] | None = None,
    *,
    alike: float = 0.98,
    most: int = 256,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
    **options: Any,
) -> ReportResult:
    """Dead, constant, duplicate and useless channels of each layer, and what is wrong with the first kernels.

    One pass over the dataset finds how often each channel is silent, which say the same and, to first order, what each
    does to the loss (:class:`Importance`); a second one switches off those that seem useless, to be sure.

    Parameters
    ----------
    dataset
        Of any kind that :func:`nbviz.scan` takes, with a length; where there are no labels, the predicted classes stand
        for them.
    layers
        Names of layers with channels; None takes the rectifiers, or else the convolutions, that give feature maps.
    alike
        From which correlation on two channels are called duplicates, 0 to 1.
    most
        How many channels of each layer are switched off at most, those of least importance first: no more than these
        can be found useless.
    **options
        As in :func:`nbviz.scan`: ``batch_size``, ``workers``, ``executor``, ``parts``, ``threads`` and ``progress``,
        and for the first pass ``checkpoint`` and ``watch``.
        All layers' activations of one batch are kept with their graph.

    Returns
    -------
    ReportResult
        ``report["layer"]`` has ``dead``, ``constant``, ``duplicates``, ``useless``, ``redundant``, ``dimensions`` and
        ``importance``; ``kernels`` those of the first convolution. Shows as a table.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the report is that of the pictures seen so far, and names no channel useless.

    Examples
    --------
    A network whose third channel was switched off, and whose fourth is not looked at:

    >>> import nbviz
    >>> model, (images, labels) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    >>> _ = nn.init.zeros_(model.features[0].weight.data[2]), nn.init.constant_(model.features[0].bias.data[2], -1)
    >>> _ = nn.init.zeros_(model.features[2].weight.data[:, 3])
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> found = report(model, dataset, ["features.1"], progress=False)["features.1"]
    >>> found.dead, found.useless
    ((2,), (3,))
    """
    alike, most = check_number("alike", alike, 0, 1), check_whole("most", most, 0)
    reader, feed = Reader.of(model, preprocess), check_feed(inputs)
    model = check_model(model)
    chosen = _chosen(model, Inputs(check_dataset(dataset), reader, 1), feed, layers)
    statistics: dict[str, Statistic] = {"importance": Importance(list(chosen)), "accuracy": Accuracy()}
    for name in chosen:
        statistics |= {f"zeros {name}": Sparsity(name), f"moments {name}": Moments(name)}
        statistics[f"alike {name}"] = Correlation(name)
    given = {"preprocess": preprocess, "inputs": inputs, "output": output, **options}
    found = scan(model, dataset, statistics, **given)
    if not found.pictures:
        raise KeyboardInterrupt  # which ended it before there was anything
    dead = {name: _dead(layer, found[f"zeros {name}"], found[f"moments {name}"]) for name, layer in chosen.items()}
    suspects = {}
    for name in chosen:
        importance = found["importance"][name]
        little = (importance <= _LITTLE * importance.mean()) & ~dead[name]
        suspects[name] = [i for i in importance.argsort().tolist() if little[i]][:most]
    trials: dict[str, Statistic] = {
        name: _Trial(name, off=F.one_hot(torch.tensor(some), chosen[name].shape[0]).bool())
        for name, some in suspects.items()
        if some
    }
    accuracy, complete = found["accuracy"], found.complete
    checked: Mapping[str, Any] = {}
    if trials and complete:
        aside = {name: value for name, value in given.items() if name not in ("checkpoint", "watch")}
        second = scan(model, dataset, trials, **aside)
        checked, complete = second if second.complete else {}, second.complete
    result = {}
    for name, layer in chosen.items():
        useless: list[int] = []
        if name in checked:
            table = checked[name]
            small = 1e-3 * max(abs(table.baseline_loss), 1e-3)
            gone = [abs(float(loss) - table.baseline_loss) <= small for loss in table.loss]
            same = [abs(float(right) - table.baseline) <= 1e-12 for right in table.accuracy]
            useless = [channel for channel, g, s in zip(suspects[name], gone, same, strict=True) if g and s]
        moments, correlation = found[f"moments {name}"], found[f"alike {name}"]
        still = (moments.std <= 1e-6 * moments.mean.abs().clamp(min=1e-30)) & ~dead[name]
        result[name] = LayerReport(
            layer,
            _list(dead[name]),
            _list(still),
            _pairs(correlation, alike),
            tuple(sorted(useless)),
            _dimensions(correlation),
            found["importance"][name],
        )
    first = kernel_report(model) if convolutions(model) else None
    return ReportResult(result, first, accuracy.accuracy if accuracy else None, found.pictures, complete)


def _dead(layer: Layer, zeros: SparsityResult, moments: MomentsResult) -> Tensor:
    """The channels of which nothing comes: always zero, or never above it where the layer passes nothing else."""
    if layer.type in ("ReLU", "ReLU6"):
        return zeros.dead
    return (moments.low == 0) & (moments.high == 0)


_LITTLE = 1e-3  # of the layer's mean importance: what is below may be useless


def _chosen(model: nn.Module, source: Inputs, feed: Any, given: Sequence[str] | None) -> dict[str, Layer]:
    if source.count is None:
        raise TypeError("an iterable dataset is not gone through twice; expected one with a length and items")
    picture = source.first()
    every = {one.name: one for one in trace_layers(model, picture, feed)[0]}
    if given is not None:
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
        for name in given:
            find_module(model, name)
            if name not in every or not every[name].shape:
                raise ValueError(f"layer {shown(name)} gives no channels; expected one that nbviz.layers lists")
        return {name: every[name] for name in given}
    maps = {name: one for name, one in every.items() if one.has_maps and one.leaf}
    rectifiers = {name: one for name, one in maps.items() if one.type in _RECTIFIERS}
    chosen = rectifiers or {name: one for name, one in maps.items() if one.type.startswith("Conv")}
    if not chosen:
        raise ValueError(f"no layer of {type(model).__name__} is a rectifier or a convolution; name layers=")
    return chosen


_RECTIFIERS = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SiLU", "GELU", "Hardswish", "Mish")


def _list(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _pairs(correlation: Tensor, alike: float) -> tuple[tuple[int, int, float], ...]:
    upper = torch.nan_to_num(correlation.round(decimals=6)).triu(1)
    pairs = ((upper >= alike) & (upper > 0)).nonzero().tolist()
    return tuple((i, j, float(upper[i, j])) for i, j in sorted(pairs, key=lambda p: (-float(upper[tuple(p)]), p)))


def _dimensions(correlation: Tensor) -> float:
    known = ~correlation.diagonal().isnan()
    inner = correlation[known][:, known]
    return float(inner.trace() ** 2 / inner.square().sum()) if len(inner) else 0.0
