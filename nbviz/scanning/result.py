"""The result of a scan, and how it is displayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from nbviz.core.documented import meanings
from nbviz.core.errors import line, unknown
from nbviz.imaging import charts
from nbviz.scanning.answers import AccuracyResult
from nbviz.scanning.patches import Patches
from nbviz.scanning.records import NoClass, Skipped
from nbviz.scanning.statistics import HistogramResult, TopKResult


@dataclass(frozen=True)
class ScanResult(Mapping[str, Any]):
    """The result of a scan: a mapping from the statistics' names to their results.

    Parameters
    ----------
    results
        The results by name.
    pictures
        The number of pictures seen.
    skipped
        The pictures that could not be read: ``index`` in the dataset, ``name``, ``reason``.
    complete
        Whether the whole dataset was seen.
    no_class
        Labels that are no class of the model, so that their pictures counted as unlabelled: for each ``reason``, their
        number (``count``), and the first of them (``index``, ``label``).
    """

    results: dict[str, Any]
    pictures: int
    skipped: tuple[Skipped, ...] = ()
    complete: bool = True
    no_class: tuple[NoClass, ...] = ()
    _layers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # of the statistics, by name
    _patches: Patches | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_patches": None}  # which has the model and the dataset

    def __getitem__(self, name: str) -> Any:
        if name not in self.results:
            raise KeyError(str(unknown("statistic", name, self.results)))
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def without_class(self) -> int:
        """The number of pictures whose label is no class."""
        return sum(labels.count for labels in self.no_class)

    def _summary(self) -> str:
        return f"{self.pictures:,} pictures" + ("" if self.complete else ", not complete")

    def _classes(self) -> dict[int, str]:
        """The names of the classes by number, where they are known."""
        known = None if self._patches is None else self._patches.source.names.numbers
        return {number: name for name, number in (known or {}).items()}

    def _repr_html_(self) -> str:
        """A table for each statistic: its values as text and bars, what they are, and the strongest patches."""
        skipped = f" · {len(self.skipped)} skipped, which could not be read" if self.skipped else ""
        wrong = f" · {self.without_class} with a label that is no class" if self.no_class else ""
        blocks = [f"<div>{self._summary()}{skipped}{wrong}</div>"]
        for name, result in self.results.items():
            layer = self._layers.get(name)
            if isinstance(result, TopKResult) and layer is not None:
                rows = _patch_rows(result, layer, self._patches)
            else:
                rows = _rows(result, self._classes())
            title = line(name, 80) + (f" · {line(layer, 60)}" if layer is not None else "")
            table = "".join(f'<tr><th scope="row">{escape(heading)}</th>{cells}</tr>' for heading, cells in rows)
            blocks.append(f"<table><caption>{escape(title)}</caption>{table}</table>")
        return f'{charts.STYLE}<div class="nbviz-table" data-pictures="{self.pictures}">{"".join(blocks)}</div>'

    def __repr__(self) -> str:
        lines = [f"ScanResult of {self._summary()}: {', '.join(self.results)}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped, which could not be read:")
            lines += [f"  {picture.index} {picture.name}: {picture.reason}" for picture in self.skipped[:10]]
            lines += [f"  … ({len(self.skipped)} in all)"] if len(self.skipped) > 10 else []
        if self.no_class:
            lines.append(f"{self.without_class} with a label that is no class:")
            lines += [f"  {labels.count}: {labels.reason} ({labels.index}: {labels.label})" for labels in self.no_class]
        return "\n".join(lines)


_MOST_CHANNELS = 6  # whose patches are shown


def _rows(result: Any, classes: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """The rows of a result's table: a heading, and cells in HTML with the values, a chart, and what they are."""
    if result is None:
        result = "nothing yet"
    if isinstance(result, HistogramResult):
        result = _histogram_of_all(result)
    texts, last = meanings(type(result)) if is_dataclass(result) else {}, ""
    values = result if isinstance(result, dict) else {"": result}
    if is_dataclass(result):
        values = {f.name: getattr(result, f.name) for f in fields(result)}
    for name, value in values.items():
        chart, text = _cell(str(name), value)
        if isinstance(result, AccuracyResult) and name == "accuracy":
            low, high = result.interval
            chart = charts.interval(value, low, high)
            text = f"{charts.percent(value)}, 95 % interval from {charts.percent(low)} to {charts.percent(high)}"
        elif isinstance(result, AccuracyResult) and name == "top5":
            text = charts.percent(value)
        elif isinstance(result, AccuracyResult) and name == "counts":
            text = _confusions(value, classes)
        note = texts.get(str(name), "")  # of several fields together it stands beside the first
        meaning = "" if note == last else escape(note)
        yield line(name, 60), f'<td>{escape(text)}</td><td>{chart}</td><td class="nbviz-note">{meaning}</td>'
        last = note


def _histogram_of_all(result: HistogramResult) -> HistogramResult:
    """The histogram of all channels together, from the first to the last bin with values."""
    counts = result.counts.sum(0)
    used = counts.nonzero().flatten().tolist() or [0]
    return HistogramResult(result.edges[used[0] : used[-1] + 2], counts[used[0] : used[-1] + 1])


def _confusions(counts: Tensor, classes: Mapping[int, str]) -> str:
    """The pairs of classes that are confused most often, from a confusion matrix."""
    wrong = counts - counts.diagonal().diag()
    most = wrong.flatten().argsort(descending=True, stable=True)[:3].tolist()
    pairs = [(*divmod(place, len(wrong)), int(wrong.flatten()[place])) for place in most]
    named = [
        f"{line(classes.get(true, true), 30)} taken for {line(classes.get(predicted, predicted), 30)}: {times}"
        for true, predicted, times in pairs
        if times
    ]
    return "; ".join(named) or "nothing is confused"


def _cell(name: str, value: Any) -> tuple[str, str]:
    """A chart of a value in HTML, and the value as text."""
    if not isinstance(value, Tensor):
        return "", f"{value:.4g}" if isinstance(value, float) else line(value, 80)
    if value.ndim == 2 and value.shape[0] == value.shape[1] and value.is_floating_point():  # correlations
        return "", _most_alike(value)
    if value.ndim != 1 or not len(value):
        return "", f"{'×'.join(map(str, value.shape))} numbers"
    if value.dtype == torch.bool:
        found = value.nonzero().flatten().tolist()
        return "", f"{len(found)} of {len(value)}" + (f": {_first_few(found)}" if found else "")
    if name == "edges":
        return "", f"{float(value[0]):.4g} to {float(value[-1]):.4g}"
    if name == "ranking":
        return "", _first_few(value.tolist())
    numbers = value.double()
    known = numbers[numbers.isfinite()]
    ends = f"{float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else "none"
    if len(numbers) > charts.MOST_BARS:
        ends += f" (the first {charts.MOST_BARS} of {len(numbers)} drawn)"
    return charts.bars(numbers.tolist(), f"{name} of {len(value)}: {ends}"), ends


def _most_alike(correlations: Tensor) -> str:
    """The pairs of channels that vary most alike."""
    upper = torch.nan_to_num(correlations.abs()).triu(1)
    most = upper.flatten().argsort(descending=True, stable=True)[:3].tolist()
    pairs = [divmod(place, len(upper)) for place in most]
    named = [f"{i} and {j}: {float(correlations[i, j]):+.2f}" for i, j in pairs if upper[i, j] > 0]
    return "most alike: " + "; ".join(named) if named else "no two channels"


def _first_few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_MOST_NAMED])) + (", …" if len(numbers) > _MOST_NAMED else "")


_MOST_NAMED = 12


def _patch_rows(result: TopKResult, layer: str, patches: Patches | None) -> Iterator[tuple[str, str]]:
    """A row for each of the first channels: its strongest values, and the patches that caused them."""
    count = min(len(result.values), _MOST_CHANNELS)
    pictures = patches.rows(layer, result.indices[:count], result.positions[:count]) if patches is not None else []
    for channel in range(count):
        numbers = [value for value in result.values[channel].tolist() if value > -float("inf")]
        text = f"{numbers[0]:.3g} down to {numbers[-1]:.3g}" if numbers else "none"
        image = pictures[channel] if pictures else ""
        if numbers and not any(numbers):  # dead: any picture is as strong as another
            text, image = "0 in every picture: it answers to nothing", ""
        yield f"channel {channel}", f"<td>{image}</td><td>{text}</td>"
    if len(result.values) > count:
        yield "", f"<td>and {len(result.values) - count} more channels</td><td></td>"
