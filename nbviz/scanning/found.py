"""What a worker reads and finds: batches before the model has seen them, and what they gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from nbviz.core.state import uninterrupted
from nbviz.scanning.statistic import Statistic


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, with its index in the dataset, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class NoClass:
    """Labels that are no class of the model's, so that their pictures count as without: why, and how many.

    Parameters
    ----------
    reason, count
        Why, and of how many pictures.
    index, label
        The first of these pictures, and its label as text.
    """

    reason: str
    count: int
    index: int
    label: str


@dataclass
class Loaded:
    """A batch before the model has seen it; without inputs where no picture of it could be read.

    ``classes`` says how many there are of them where a label says it, else 0.
    """

    number: int
    indices: list[int]
    inputs: Tensor | None
    labels: list[int]
    skipped: list[Skipped]
    classes: list[int] = field(default_factory=list)
    no_class: list[NoClass] = field(default_factory=list)


@dataclass
class Found:
    """What some of the batches gave."""

    statistics: dict[str, Statistic]
    done: list[tuple[int, int]] = field(default_factory=list)  # ranges of batches, ascending, none touching another
    pictures: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    no_class: dict[str, NoClass] = field(default_factory=dict)  # by the reason
    torn: bool = False  # whether some statistics have taken something in that others have not

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While inside, all statistics take something in, or it is torn."""
        self.torn = True
        with uninterrupted():
            yield
            self.torn = False

    def add(self, loaded: Loaded) -> None:
        """Note that a batch is done."""
        self._note([(loaded.number, loaded.number + 1)], len(loaded.indices), loaded.skipped, loaded.no_class)

    def merge(self, other: Found) -> None:
        """Take in what other batches gave."""
        with self.whole():
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
        late = bool(self.skipped and skipped) and skipped[0].index < self.skipped[-1].index
        self.skipped += skipped
        if late:
            self.skipped.sort(key=lambda one: one.index)
        for one in no_class:
            same = self.no_class.get(one.reason, one)
            first, count = min(one, same, key=lambda one: one.index), one.count + (same.count if same is not one else 0)
            self.no_class[one.reason] = replace(first, count=count)

    def missing(self, batches: int) -> list[int]:
        """The batches that are not done, of so many."""
        done = {number for start, stop in self.done for number in range(start, stop)}
        return [number for number in range(batches) if number not in done]
