"""The result of a scan, and how it is displayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from typing import Any

from torch import Tensor

from nbviz.core.errors import line, unknown
from nbviz.scanning.records import NoClass, Skipped


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

    def _repr_html_(self) -> str:
        """A table for each statistic, with the values of its first channels."""
        skipped = f" · {len(self.skipped)} skipped, which could not be read" if self.skipped else ""
        wrong = f" · {self.without_class} with a label that is no class" if self.no_class else ""
        blocks = [f"<div>{self._summary()}{skipped}{wrong}</div>"]
        for name, result in self.results.items():
            rows = "".join(f"<tr><th>{escape(heading)}</th>{cells}</tr>" for heading, cells in _rows(result))
            blocks.append(f"<table><caption>{escape(line(name, 80))}</caption>{rows}</table>")
        return f'<div class="nbviz-scan" data-pictures="{self.pictures}">{"".join(blocks)}</div>'

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


_MOST_CHANNELS = 12  # in a table


def _rows(result: Any) -> Iterator[tuple[str, str]]:
    """The rows of a result's table: a heading, and cells in HTML."""
    values = {f.name: getattr(result, f.name) for f in fields(result)} if is_dataclass(result) else {"": result}
    channels = max((len(v) for v in values.values() if isinstance(v, Tensor) and v.ndim), default=0)
    if channels:
        more = "<td>…</td>" if channels > _MOST_CHANNELS else ""
        yield f"{channels} rows", "".join(f"<td>{i}</td>" for i in range(min(channels, _MOST_CHANNELS))) + more
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim in (1, 2) and value.numel():
            first = value if value.ndim == 1 else value[:, 0]
            style = ".4g" if value.is_floating_point() else ""
            cells = "".join(f"<td>{number:{style}}</td>" for number in first[:_MOST_CHANNELS].tolist())
            yield (name if value.ndim == 1 else f"{name}[:, 0]"), cells
        elif isinstance(value, Tensor):
            yield name, f'<td colspan="{_MOST_CHANNELS + 1}">{escape(f"a tensor {tuple(value.shape)}")}</td>'
        else:
            text = f"{value:.4g}" if isinstance(value, float) else line(value, 80)
            yield name, f'<td colspan="{_MOST_CHANNELS + 1}">{escape(text)}</td>'
