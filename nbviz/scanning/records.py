"""Records that readers, workers and the scan exchange: batches that were read, and partial results."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from operator import attrgetter
from typing import Any

from torch import Tensor

from nbviz.core.state import uninterrupted
from nbviz.scanning.labels import Label
from nbviz.scanning.statistic import Statistic


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, with its index in the dataset, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class NoClass:
    """Labels that are no class of the model, so that their pictures count as unlabelled.

    Parameters
    ----------
    reason, count
        Why they are no class, and the number of pictures.
    index, label
        The first of these pictures, and its label as text.
    """

    reason: str
    count: int
    index: int
    label: str


@dataclass
class LoadedBatch:
    """A batch as it was read, before it goes through the model."""

    number: int
    indices: list[int]
    inputs: Tensor | None  # None if no picture of the batch could be read
    labels: list[Label]
    skipped: list[Skipped]

    @property
    def no_class(self) -> list[NoClass]:
        """The labels that are no class."""
        pairs = zip(self.indices, self.labels, strict=True)
        return [NoClass(label.reason, 1, index, label.given) for index, label in pairs if label.reason]


@dataclass
class PartialResult:
    """The statistics over some of the batches."""

    statistics: dict[str, Statistic]
    done: list[tuple[int, int]] = field(default_factory=list)  # ascending ranges of batches, with gaps between them
    pictures: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    no_class: dict[str, NoClass] = field(default_factory=dict)  # by reason
    torn: bool = False  # whether only some of the statistics have been updated

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Update all statistics within the block, without interruption; if it fails, the result is torn."""
        self.torn = True
        with uninterrupted():
            yield
            self.torn = False

    def add(self, loaded: LoadedBatch) -> None:
        """Record that a batch is done."""
        self._note([(loaded.number, loaded.number + 1)], len(loaded.indices), loaded.skipped, loaded.no_class)

    def merge(self, other: PartialResult) -> None:
        """Add the result of other batches."""
        with self.updating():
            for name, statistic in self.statistics.items():
                statistic.merge(other.statistics[name])
            self._note(other.done, other.pictures, other.skipped, other.no_class.values())

    def _note(
        self, done: list[tuple[int, int]], pictures: int, skipped: list[Skipped], no_class: Iterable[NoClass]
    ) -> None:
        joined: list[tuple[int, int]] = []
        for start, stop in sorted([*self.done, *done]):
            touches = bool(joined) and start == joined[-1][1]
            joined.append((joined.pop()[0] if touches else start, stop))
        self.done = joined
        self.pictures += pictures
        for picture in skipped:
            insort(self.skipped, picture, key=attrgetter("index"))
        for new in no_class:
            known = self.no_class.get(new.reason, replace(new, count=0))
            first = min(new, known, key=attrgetter("index"))
            self.no_class[new.reason] = replace(first, count=new.count + known.count)

    def state(self) -> dict[str, Any]:
        """The result as plain values and tensors, for another process or a file.

        Statistics are dicts: a worker's classes may come from a notebook, which other processes cannot import.
        """
        return {
            "done": self.done,
            "pictures": self.pictures,
            "skipped": list(map(astuple, self.skipped)),
            "no class": list(map(astuple, self.no_class.values())),
            "statistics": {name: vars(statistic) for name, statistic in self.statistics.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what another result had as its :meth:`state`."""
        self.done, self.pictures = state["done"], state["pictures"]
        self.skipped = [Skipped(*fields) for fields in state["skipped"]]
        self.no_class = {fields[0]: NoClass(*fields) for fields in state["no class"]}
        for name, statistic in self.statistics.items():
            vars(statistic).update(state["statistics"][name])

    def missing(self, batches: int) -> list[int]:
        """The numbers below ``batches`` of the batches that are not done."""
        done = {number for start, stop in self.done for number in range(start, stop)}
        return [number for number in range(batches) if number not in done]
