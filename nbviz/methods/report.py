"""What is wrong with a network, layer by layer: dead, duplicate and useless channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.backward import clamp_name
from nbviz.core.checks import check_number, check_whole
from nbviz.core.documented import documented, meanings
from nbviz.core.errors import line, shown
from nbviz.core.graph import nodes_below
from nbviz.core.layers import Layer
from nbviz.core.state import device_aside
from nbviz.core.types import Dataset, ModelInputs, Preprocessing, ScoresIn
from nbviz.imaging import charts
from nbviz.methods.kernels import KernelReportResult, convolutions, kernel_report, strongest_first
from nbviz.methods.subject import Subject
from nbviz.scanning.answers import Ablation, AblationResult, Accuracy, check_classes
from nbviz.scanning.patches import Patches
from nbviz.scanning.scan import scan
from nbviz.scanning.statistic import Batch, Combined, Statistic, Tree, leaf, merge_trees, tree_sum
from nbviz.scanning.statistics import Correlation, Moments, MomentsResult, Sparsity, SparsityResult, TopK, TopKResult


class Importance(Combined):
    """How much the loss would change, to first order, if a channel were switched off.

    P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, section
    2.2: the absolute value of the sum over the positions of activation times gradient, here for each picture, then
    averaged over the pictures. The loss is the cross-entropy with the picture's label, or with the predicted class
    where there is none. One backward pass serves all channels of all layers.

    The result is a dict from the layers to float64 (C,). Memory: 8 bytes for each channel, and as much again for each
    doubling of the number of batches.

    Parameters
    ----------
    layers
        Names of layers.
    """

    logits = grad = True
    combine: ClassVar = {
        "sums": lambda sums, other: {layer: merge_trees(tree, other[layer]) for layer, tree in sums.items()},
        "pictures": add,
    }

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.sums: dict[str, Tree] = {layer: {} for layer in layers}
        self.pictures = 0

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The importances in one batch."""
        assert batch.logits is not None
        activations = [batch.activations[layer] for layer in self.layers]
        check_classes(batch.labels, batch.logits.shape[1])
        with torch.inference_mode(False), torch.enable_grad():
            loss = F.cross_entropy(batch.logits.float(), _labels_or_predictions(batch), reduction="sum")
            gradients = torch.autograd.grad(loss, activations, retain_graph=True, allow_unused=True)
        sums = {}
        for layer, activation, gradient in zip(self.layers, activations, gradients, strict=True):
            product = activation * (torch.zeros_like(activation) if gradient is None else gradient)
            change = product.detach().flatten(2).sum(2) if product.ndim > 2 else product.detach()
            sums[layer] = leaf(batch, change.double().abs().sum(0).cpu())
        return {"sums": sums, "pictures": len(batch.labels)}

    def result(self) -> dict[str, Tensor]:
        """The means; empty before the first picture."""
        return {layer: tree_sum(tree) / self.pictures for layer, tree in self.sums.items() if tree}


class Rectified(Combined):
    """Whether a channel is ever above zero after the ReLU that its layer's output goes to, however that is called.

    The result is a dict from the layers to bool (C,), without those that go elsewhere than to one ReLU, straight or
    through batch normalisation. Memory: a byte for each channel.

    Parameters
    ----------
    layers
        Names of layers.
    """

    logits = grad = True
    combine: ClassVar = {
        "alive": lambda alive, other: {layer: alive.get(layer, seen) | seen for layer, seen in other.items()}
    }

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.alive: dict[str, Tensor] = {}

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The channels that are above zero in one batch."""
        assert batch.logits is not None
        consumers: dict[Any, list[Any]] = {}
        for node in nodes_below(batch.logits):
            for below, _ in node.next_functions:
                consumers.setdefault(below, []).append(node)
        made_by = {getattr(node, "variable", None): node for node in consumers if hasattr(node, "variable")}
        alive = {}
        for layer in self.layers:
            activation = batch.activations[layer]
            rectified = _rectified(consumers, activation.grad_fn or made_by.get(activation))
            if rectified is not None:
                alive[layer] = (rectified > 0).flatten(2).any(2).any(0).cpu()
        return {"alive": alive}

    def result(self) -> dict[str, Tensor]:
        """The channels that were ever above zero."""
        return self.alive


def _rectified(consumers: Mapping[Any, Sequence[Any]], node: Any) -> Tensor | None:
    """What the one ReLU to which a node's output goes saved, of which each value has the sign of its output."""
    while node is not None:
        above = consumers.get(node, ())
        if len(above) != 1:
            return None
        (node,) = above
        name = node.name()
        if name.startswith("ReluBackward"):
            return node._saved_result  # type: ignore[no-any-return]
        is_clamp = name.startswith("Clamp") and clamp_name(node._saved_min, getattr(node, "_saved_max", None))
        if is_clamp or (name.startswith("Hardtanh") and node._saved_min_val == 0):
            return node._saved_self  # type: ignore[no-any-return]
        if not name.startswith(("CloneBackward", "NativeBatchNorm", "CudnnBatchNorm")):
            return None
    return None


def _labels_or_predictions(batch: Batch) -> Tensor:
    """The pictures' labels; where there are none, the predicted classes."""
    assert batch.logits is not None
    return torch.where(batch.labels >= 0, batch.labels, batch.logits.argmax(1))


class _AblationOnAll(Ablation):
    """Ablation that also counts pictures without labels, by their predicted classes."""

    def measure(self, batch: Batch) -> dict[str, Any]:
        return super().measure(replace(batch, labels=_labels_or_predictions(batch)))


@dataclass(frozen=True)
class LayerReport:
    """What is wrong with a layer's channels.

    Parameters
    ----------
    layer
        The layer.
    dead
        Channels that are zero in all pictures; of a layer before a ReLU, those that are always zero after it.
    constant
        Channels that are not dead, but the same in all pictures up to rounding.
    duplicates
        (channel, channel, correlation): pairs of channels with the same values.
    useless
        Channels that are not dead, but without effect: with one of them switched off, as many answers are right
        (without labels: unchanged) as before, and the loss hardly changes.
    dimensions
        The effective number of independent channels: (sum of eigenvalues)² / sum of squared eigenvalues, of the
        correlation matrix.
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
        """The channels that could be removed: dead, constant and useless ones, and the second of two duplicates."""
        seconds = {j for _, j, _ in self.duplicates}
        return tuple(sorted({*self.dead, *self.constant, *self.useless, *seconds}))


@dataclass(frozen=True, repr=False)
class ReportResult:
    """What is wrong with a network; shows as a table with a picture of each layer's importances.

    Parameters
    ----------
    layers
        The reports of the layers by name.
    kernels
        The report of the first convolution; None without convolutions.
    accuracy
        The accuracy on pictures with labels; None without labels.
    interval
        Its 95 % confidence interval (Wilson); None without labels.
    pictures
        How many pictures were seen.
    complete
        Whether the whole dataset was seen.
    strongest
        The strongest activations of each layer's channels by name, whose patches the table shows.
    """

    layers: dict[str, LayerReport]
    kernels: KernelReportResult | None
    accuracy: float | None
    interval: tuple[float, float] | None
    pictures: int
    complete: bool
    strongest: dict[str, TopKResult]
    _patches: Patches | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_patches": None}  # which has the model and the dataset

    def __getitem__(self, layer: str) -> LayerReport:
        return self.layers[layer]

    def _head(self) -> str:
        accuracy = ""
        if self.accuracy is not None and self.interval is not None:
            low, high = map(charts.percent, self.interval)
            accuracy = f", accuracy {charts.percent(self.accuracy)} (95 % interval from {low} to {high})"
        pictures = f"{self.pictures:,} pictures{'' if self.complete else ' (not complete)'}"
        return f"{len(self.layers)} layers, {pictures}{accuracy}"

    def __repr__(self) -> str:
        lines = [f"ReportResult of {self._head()}"]
        for name, entry in self.layers.items():
            count = f"{entry.layer.shape[0]} channels, {entry.dimensions:.0f} effective"
            lines.append(f"  {line(name)} · {count}")
            lines += [f"    {kind}: {channels}" for kind, channels in _findings(entry) if channels]
        return "\n".join([*lines, repr(self.kernels)] if self.kernels is not None else lines)

    def _repr_html_(self) -> str:
        titles = ("layer", "channels", "effective channels", *_COLUMNS, "importance", "strongest patches")
        head = "".join(f'<th scope="col">{title}</th>' for title in titles)
        table = ""
        for name, entry in self.layers.items():
            cells = [str(entry.layer.shape[0]), f"{entry.dimensions:.0f}"]
            cells += [escape(channels) or "–" for _, channels in _findings(entry)]
            cells += [_bars(entry), self._strongest_patches(name)]
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            table += f'<tr><th scope="row">{escape(line(name, 60))}</th>{row}</tr>'
        table = f"<table><thead><tr>{head}</tr></thead>{table}</table>"
        chart = "" if self.accuracy is None or self.interval is None else charts.interval(self.accuracy, *self.interval)
        kernels = self.kernels._repr_html_() if self.kernels is not None else ""
        body = f"<div>{self._head()}</div>{chart}{table}{_legend()}{kernels}"
        return f'{charts.STYLE}<div class="nbviz-table nbviz-report">{body}</div>'

    def _strongest_patches(self, name: str) -> str:
        """The strongest patches of a layer's most important channels, as HTML."""
        found = self.strongest.get(name)
        if self._patches is None or found is None or not len(found.indices):
            return ""
        redundant = set(self.layers[name].redundant)
        order = self.layers[name].importance.nan_to_num().argsort(descending=True).tolist()
        chosen = [channel for channel in order if channel not in redundant][:_MOST_PATCHES]
        rows = self._patches.rows(name, found.indices[chosen], found.positions[chosen])
        return " ".join(f"<span>#{channel} {row}</span>" for channel, row in zip(chosen, rows, strict=True) if row)


_MOST_PATCHES = 2  # channels of a layer


def _legend() -> str:
    """What the columns mean, in HTML."""
    texts = meanings(LayerReport)
    columns = {
        "effective channels": texts.get("dimensions", ""),
        "dead": texts.get("dead", ""),
        "constant": texts.get("constant", ""),
        "duplicates": "The pairs of channels that have the same values up to a factor.",
        "useless": texts.get("useless", ""),
        "importance": "How much the loss would change, to first order, without the channel; the largest first. "
        "Orange: redundant, which is dead, constant, useless or the second of two duplicates.",
        "strongest patches": "What the strongest positions of the most important channels see, in one picture each; "
        "without redundant channels.",
    }
    entries = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in columns.items())
    return f"<details><summary data-lm-suppress-shortcuts>What the columns mean</summary><dl>{entries}</dl></details>"


_COLUMNS = ("dead", "constant", "duplicates", "useless")


def _findings(entry: LayerReport) -> list[tuple[str, str]]:
    """The channels of each kind, as text."""
    alike = [f"{i} = {j}" for i, j, _ in entry.duplicates]
    return list(zip(_COLUMNS, map(_first_few, (entry.dead, entry.constant, alike, entry.useless)), strict=True))


def _first_few(items: Sequence[Any], count: int = 8) -> str:
    more = f", … ({len(items)})" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def _bars(entry: LayerReport) -> str:
    """The importances as bars, largest first; those of redundant channels in orange."""
    order = entry.importance.nan_to_num().argsort(descending=True).tolist()
    redundant = {place for place, channel in enumerate(order) if channel in set(entry.redundant)}
    return charts.bars(entry.importance[order].tolist(), "importances", redundant, names=[f"#{i}" for i in order])


@documented
@device_aside()
def report(
    model: nn.Module,
    dataset: Dataset,
    layers: Sequence[str] | None = None,
    *,
    alike: float = 0.98,
    most: int = 256,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
    **options: Any,
) -> ReportResult:
    """Dead, constant, duplicate and useless channels of each layer, and what is wrong with the first kernels.

    One pass over the dataset finds how often each channel is silent, which channels have the same values and, to first
    order, how each affects the loss (:class:`Importance`). A second pass switches off those that seem useless, to
    confirm it. The options ``checkpoint`` and ``watch`` apply to the first pass only. The activations of all layers for
    one batch are kept in memory, with their autograd graph.

    Parameters
    ----------
    dataset
        Pictures of any kind that :func:`nbviz.scan` takes, with a length. Where there are no labels, the predicted
        classes are used.
    layers
        Names of layers with channels. None takes the rectifiers, or else the convolutions, that give feature maps.
    alike
        The correlation, from 0 to 1, from which two channels count as duplicates.
    most
        How many channels of each layer are switched off at most, the least important first. Only these can be found
        useless.

    Returns
    -------
    ReportResult
        ``report["layer"]`` has ``dead``, ``constant``, ``duplicates``, ``useless``, ``redundant``, ``dimensions`` and
        ``importance``; ``kernels`` is the report of the first convolution. Shows as a table.

    Raises
    ------
    ValueError
        When one of ``layers`` has no channels. When ``alike`` or ``most`` is out of range.
    TypeError
        When ``dataset`` has no length.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the report covers the pictures seen so far, and names no channel useless.

    Examples
    --------
    A network whose third channel was switched off, and whose fourth is ignored by the next layer:

    >>> import nbviz
    >>> model, (images, labels) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    >>> _ = nn.init.zeros_(model.features[0].weight.data[2]), nn.init.constant_(model.features[0].bias.data[2], -1)
    >>> _ = nn.init.zeros_(model.features[2].weight.data[:, 3])
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> layer = report(model, dataset, ["features.1"], progress=False)["features.1"]
    >>> layer.dead, layer.useless
    ((2,), (3,))
    """
    alike, most = check_number("alike", alike, 0, 1), check_whole("most", most, 0)
    subject, source = Subject.of_dataset(model, dataset, preprocess, inputs)
    model, chosen = subject.model, _chosen_layers(subject, layers)
    statistics: dict[str, Statistic] = {"importance": Importance(list(chosen)), "accuracy": Accuracy()}
    statistics["rectified"] = Rectified(list(chosen))
    for name in chosen:
        statistics |= {f"zeros {name}": Sparsity(name), f"moments {name}": Moments(name)}
        statistics |= {f"alike {name}": Correlation(name), f"top {name}": TopK(name, _MOST_PICTURES)}
    options |= {"preprocess": preprocess, "inputs": inputs, "output": output}
    scanned = scan(model, source.dataset, statistics, **options)
    if not scanned.pictures:
        raise KeyboardInterrupt  # the scan was interrupted before its first batch
    dead = {
        name: ~scanned["rectified"][name]
        if name in scanned["rectified"]
        else _dead(layer, scanned[f"zeros {name}"], scanned[f"moments {name}"])
        for name, layer in chosen.items()
    }
    suspects = {name: _suspects(scanned["importance"][name], dead[name])[:most] for name in chosen}
    trials: dict[str, Statistic] = {
        name: _AblationOnAll(name, off=F.one_hot(torch.tensor(channels), chosen[name].shape[0]).bool())
        for name, channels in suspects.items()
        if channels
    }
    complete = scanned.complete
    ablations: Mapping[str, Any] = {}
    if trials and complete:
        second_pass = {name: value for name, value in options.items() if name not in ("checkpoint", "watch")}
        second = scan(model, source.dataset, trials, **second_pass)
        ablations, complete = second if second.complete else {}, second.complete
    entries = {}
    for name, layer in chosen.items():
        moments, correlation = scanned[f"moments {name}"], scanned[f"alike {name}"]
        constant = (moments.std <= 1e-6 * moments.mean.abs().clamp(min=1e-30)) & ~dead[name]
        entries[name] = LayerReport(
            layer,
            _indices(dead[name]),
            _indices(constant),
            _pairs(correlation, alike),
            _without_effect(ablations[name], suspects[name]) if name in ablations else (),
            _dimensions(correlation),
            scanned["importance"][name],
        )
    accuracy = scanned["accuracy"]
    return ReportResult(
        entries,
        kernel_report(model) if convolutions(model) else None,
        accuracy.accuracy if accuracy else None,
        accuracy.interval if accuracy else None,
        scanned.pictures,
        complete,
        {name: scanned[f"top {name}"] for name in chosen},
        Patches(model, source, subject.feed),
    )


_MOST_PICTURES = 4  # for each channel


def _dead(layer: Layer, zeros: SparsityResult, moments: MomentsResult) -> Tensor:
    """The channels that are always zero; after a ReLU, those that are never above zero."""
    if layer.type in ("ReLU", "ReLU6"):
        return zeros.dead
    return (moments.low == 0) & (moments.high == 0)


def _suspects(importance: Tensor, dead: Tensor) -> list[int]:
    """The living channels that seem useless, the least important first."""
    suspect = (importance <= _LITTLE * importance.mean()) & ~dead
    return [channel for channel in importance.argsort().tolist() if suspect[channel]]


_LITTLE = 1e-3  # of the layer's mean importance


def _without_effect(ablation: AblationResult, suspects: Sequence[int]) -> tuple[int, ...]:
    """The suspects without which neither loss nor accuracy changes."""
    little = 1e-3 * max(abs(ablation.baseline_loss), 1e-3)
    same = ((ablation.loss - ablation.baseline_loss).abs() <= little) & (
        (ablation.accuracy - ablation.baseline).abs() <= 1e-12
    )
    return tuple(sorted(channel for channel, unchanged in zip(suspects, same, strict=True) if unchanged))


def _chosen_layers(subject: Subject, given: Sequence[str] | None) -> dict[str, Layer]:
    """The layers given, checked; for None, the rectifiers with feature maps, or else the convolutions."""
    layers = {layer.name: layer for layer in subject.layers()}
    if given is not None:
        names = subject.layer_names(given)
        for name in names:
            if name not in layers or not layers[name].shape:
                raise ValueError(f"layer {shown(name)} gives no channels; expected one that nbviz.layers lists")
        return {name: layers[name] for name in names}
    maps = {name: layer for name, layer in layers.items() if layer.has_maps and layer.leaf}
    rectifiers = {name: layer for name, layer in maps.items() if layer.type in _RECTIFIERS}
    chosen = rectifiers or {name: layer for name, layer in maps.items() if layer.type.startswith("Conv")}
    if not chosen:
        raise ValueError(f"no layer of {type(subject.model).__name__} is a rectifier or a convolution; name layers=")
    return chosen


_RECTIFIERS = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SiLU", "GELU", "Hardswish", "Mish")


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _pairs(correlation: Tensor, alike: float) -> tuple[tuple[int, int, float], ...]:
    """The pairs of channels with at least this correlation, the highest first."""
    upper = torch.nan_to_num(correlation.round(decimals=6)).triu(1)
    return strongest_first(upper, (upper >= alike) & (upper > 0))


def _dimensions(correlation: Tensor) -> float:
    """(sum of eigenvalues)² / sum of squared eigenvalues, from the trace and the sum of squares."""
    known = ~correlation.diagonal().isnan()
    inner = correlation[known][:, known]
    return float(inner.trace() ** 2 / inner.square().sum()) if len(inner) else 0.0
