"""One pass over a dataset that feeds any number of mergeable statistics, here or on any executor.

A dataset is cut into numbered batches, which are the same however it is shared out. A worker works through a part,
some of the batches, with statistics of its own; what it found is merged into what the others have. A result does not
depend on the parts or their order: counts and extremes do not by nature, and sums of fractions are made along one
fixed tree over the batches, see :func:`add_along_tree`.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import pickle
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.intervene import Resumable
from nbviz.core.state import interruptible, uninterrupted
from nbviz.core.trace import Feed, run


@dataclass
class Batch:
    """What a statistic sees of some pictures that went through the model together.

    Parameters
    ----------
    number
        Of the batch in the dataset, from 0.
    indices
        (N,) int64 on the CPU, ascending: the pictures' indices in the dataset.
    inputs
        (N, C, H, W) on the model's device.
    labels
        (N,) int64 on the model's device: their classes, -1 where the dataset says none.
    activations
        Those of the layers that any of the statistics asks for, on the model's device. Not to be written to.
    logits
        (N, classes) if any of the statistics asks for them.
    go_on
        From a layer's name and other activations for it, (K * N, C, H, W), the logits (K * N, classes) that they lead
        to; what is before the layer is not run again.
    """

    number: int
    indices: Tensor
    inputs: Tensor
    labels: Tensor
    activations: dict[str, Tensor]
    logits: Tensor | None
    go_on: Callable[[str, Tensor], Tensor] | None = None


class Statistic(ABC):
    """What is collected over a dataset: fed batch by batch, and merged with what another worker found.

    Merging must be associative and commutative, so that the result does not depend on how the dataset was shared out.
    For a scan with a checkpoint, the attributes hold nothing but tensors, numbers, text, None, and lists, tuples and
    dicts of these. Other code's statistics are subclasses of this one.

    Examples
    --------
    >>> class Count(Statistic):
    ...     n = 0
    ...     def update(self, batch):
    ...         self.n += len(batch.indices)
    ...     def merge(self, other):
    ...         self.n += other.n
    ...     def result(self):
    ...         return self.n
    """

    #: The layers whose activations it needs.
    layers: tuple[str, ...] = ()
    #: Whether it needs the class scores.
    logits: bool = False
    #: Whether it measures its one layer as soon as this has spoken, so that the activation need not be kept: then
    #: ``measure`` is called before anything else of the batch is known, and must give no part of the activation itself.
    early: bool = False

    def measure(self, batch: Batch) -> Any:
        """What there is to take in of a batch. What takes long is done here, where it may be interrupted."""
        return batch

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Take in one batch, or what was measured of it."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what another of the same kind has seen, which is other pictures."""

    @abstractmethod
    def result(self) -> Any:
        """What the pictures seen so far amount to."""


Tree = dict[tuple[int, int], Tensor]


def add_along_tree(tree: Tree, number: int, value: Tensor, level: int = 0) -> None:
    """Add one batch's value to a sum in which the order does not matter, to the last bit.

    Floating-point sums depend on the order of their terms. Here two sums are added only if they are those of two
    neighbours in one binary tree over the batches, so that each is always made of the same terms in the same way. What
    has no neighbour yet is kept: after n batches in order at most log2(n) + 1 values.

    Examples
    --------
    >>> tree = {}
    >>> for number in (2, 0, 3, 1, 4):
    ...     add_along_tree(tree, number, torch.tensor(1.0))
    >>> tree
    {(2, 0): tensor(4.), (0, 4): tensor(1.)}
    >>> tree_sum(tree)
    tensor(5.)
    """
    while (neighbour := tree.pop((level, number ^ 1), None)) is not None:
        value = value + neighbour
        level, number = level + 1, number >> 1
    tree[level, number] = value


def merge_trees(tree: Tree, other: Tree) -> None:
    """Add to a sum along the tree what another has of other batches."""
    for (level, number), value in other.items():
        add_along_tree(tree, number, value, level)


def tree_sum(tree: Tree) -> Tensor:
    """The sum along the tree."""
    terms = [tree[node] for node in sorted(tree)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, with its index in the dataset, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass
class Loaded:
    """A batch before the model has seen it; without inputs where no picture of it could be read."""

    number: int
    indices: list[int]
    inputs: Tensor | None
    labels: list[int]
    skipped: list[Skipped]


class Source(Protocol):
    """A dataset in batches."""

    #: How many pictures and batches, or None if that is not known before the end.
    count: int | None
    batches: int | None

    def load(self, numbers: Sequence[int] | None, workers: int) -> Iterator[Loaded]:
        """These batches (None: all that there are, as they come), read by so many processes beside this one."""


@dataclass
class Found:
    """What some of the batches gave."""

    statistics: dict[str, Statistic]
    done: list[tuple[int, int]] = field(default_factory=list)  # ranges of batches, ascending, none touching another
    pictures: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, loaded: Loaded) -> None:
        """Note that a batch is done."""
        self._note([(loaded.number, loaded.number + 1)], len(loaded.indices), loaded.skipped)

    def merge(self, other: Found) -> None:
        """Take in what other batches gave."""
        for name, statistic in self.statistics.items():
            statistic.merge(other.statistics[name])
        self._note(other.done, other.pictures, other.skipped)

    def _note(self, done: list[tuple[int, int]], pictures: int, skipped: list[Skipped]) -> None:
        joined: list[tuple[int, int]] = []
        for start, stop in sorted([*self.done, *done]):
            touches = bool(joined) and start == joined[-1][1]
            joined.append((joined.pop()[0] if touches else start, stop))
        self.done = joined
        self.pictures += pictures
        self.skipped = sorted([*self.skipped, *skipped], key=lambda one: one.index) if skipped else self.skipped

    def missing(self, batches: int) -> list[int]:
        """The batches that are not done, of so many."""
        done = {number for start, stop in self.done for number in range(start, stop)}
        return [number for number in range(batches) if number not in done]


@dataclass
class Job:
    """All that a worker needs: it travels to each once."""

    model: nn.Module
    source: Source
    statistics: dict[str, Statistic]
    device: torch.device
    feed: Feed = None
    check_logits: Callable[[Any], Tensor] = lambda output: output
    check_activation: Callable[[str, Tensor, int], Tensor] = lambda _layer, activation, _pictures: activation
    _resumes: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # of each layer, whether it skips and widens

    def fresh(self) -> Found:
        """Nothing found yet."""
        return Found(copy.deepcopy(self.statistics))

    def see(self, loaded: Loaded, found: Found) -> None:
        """Run the model on a batch and have the statistics take it in."""
        with torch.no_grad():
            measured = self._measure(loaded, found.statistics) if loaded.inputs is not None else {}
            with uninterrupted():  # a batch is taken in by all statistics or by none
                for name, what in measured.items():
                    found.statistics[name].update(what)
                found.add(loaded)

    def _measure(self, loaded: Loaded, statistics: dict[str, Statistic]) -> dict[str, Any]:
        """What there is to take in of a batch, for each statistic."""
        assert loaded.inputs is not None
        inputs, labels = loaded.inputs.to(self.device), torch.tensor(loaded.labels, device=self.device)
        activations: dict[str, Tensor] = {}
        batch = Batch(loaded.number, torch.tensor(loaded.indices), inputs, labels, activations, None)
        measured: dict[str, Any] = {}
        late = {name: one for name, one in statistics.items() if not one.early}
        kept = {layer for one in late.values() for layer in one.layers}

        def use(layer: str, activation: Tensor) -> bool:
            activations[layer] = self.check_activation(layer, activation, len(inputs))
            for name, one in statistics.items():
                if one.early and one.layers == (layer,):
                    measured[name] = one.measure(batch)
            del activations[layer]
            return layer in kept

        layers = list(dict.fromkeys(layer for one in statistics.values() for layer in one.layers))
        logits = any(one.logits for one in statistics.values())
        if layers or logits:
            try:
                trace = run(self.model, inputs, layers, feed=self.feed, output=logits, use=use)
                activations.update(trace.activations)
                batch.logits = self.check_logits(trace.output) if logits else None
                batch.go_on = self._going_on(inputs)
                measured.update({name: one.measure(batch) for name, one in late.items()})
            except Exception as error:
                if not out_of_memory(error) or isinstance(error, ModelError):
                    raise
                raise too_large(f"a batch of {len(inputs)} pictures (batch_size=)", error) from error
        else:
            measured.update({name: one.measure(batch) for name, one in late.items()})
        return measured

    def _going_on(self, inputs: Tensor) -> Callable[[str, Tensor], Tensor]:
        resumables: dict[str, Resumable] = {}

        def go_on(layer: str, activation: Tensor) -> Tensor:
            one = resumables.get(layer)
            if one is None:
                known = self._resumes.get(layer)
                one = resumables[layer] = Resumable(self.model, inputs, layer, self.feed, check=known is None)
                if known is not None:
                    one.skips, one.widens = known
                self._resumes[layer] = one.skips, one.widens
            n = len(inputs)
            parts = [activation] if one.widens else activation.split(n)
            outputs = [one.go_on(part) for part in parts]
            return torch.cat([self.check_logits(output) for output in outputs])

        return go_on


def scan_here(job: Job, total: Found, parts: Sequence[Sequence[int]] | None, workers: int) -> Iterator[Found]:
    """Work through the parts in this process (None: all batches of a dataset of unknown length); gives what is new."""
    if parts is None:
        for loaded in job.source.load(None, 0):
            job.see(loaded, total)
            yield total
        return
    # One reader for all parts, so that it goes on reading ahead at the end of one.
    batches = job.source.load([number for part in parts for number in part], workers)
    for part in parts:
        found = total if len(parts) == 1 else job.fresh()
        for _ in part:
            with interruptible():
                loaded = next(batches)
            job.see(loaded, found)
            if found is total:
                yield total
        if found is not total:
            with uninterrupted():
                total.merge(found)
            yield total


def scan_on(
    executor: Executor, job: Job, total: Found, parts: Sequence[Sequence[int]], threads: int
) -> Iterator[Found]:
    """Have an executor's workers work through the parts; gives what is new."""
    data = _pickled(job)
    key = hashlib.blake2b(data, digest_size=16).hexdigest()
    waiting = list(reversed(parts))
    running: dict[Future[Any], Sequence[int]] = {}
    sending: set[Future[Any]] = set()  # those that carry the job
    asked: list[Sequence[int]] = []  # parts whose worker has not got it
    sent = 0
    with ExitStack() as stack:
        # In a file, which the workers on this machine read once each; those on others ask for it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nbviz-"))
        path = Path(folder) / "job"
        path.write_bytes(data)
        stack.callback(lambda: [future.cancel() for future in running])
        while waiting or running or asked:
            while waiting and len(running) < _AT_ONCE:
                part = waiting.pop()
                running[executor.submit(_work, key, str(path), None, part, threads)] = part
            # To one at first, then to as many at once as have it already: else it would go to one worker many times.
            while asked and len(sending) < max(1, sent):
                part = asked.pop()
                future = executor.submit(_work, key, str(path), data, part, threads)
                running[future] = part
                sending.add(future)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                found = future.result()
                if future in sending:
                    sending.remove(future)
                    sent += 1
                    waiting += asked
                    asked.clear()
                if found is None:
                    asked.append(part)
                    continue
                with uninterrupted():
                    total.merge(found)
                yield total


_AT_ONCE = 64  # parts that are handed to the executor and not yet done
_held: dict[str, Job] = {}  # in a worker: the job that it has


def _work(key: str, path: str, data: bytes | None, part: Sequence[int], threads: int) -> Found | None:
    """In a worker: what a part gives, or None if the job has yet to be sent."""
    job = _held.get(key)
    if job is None:
        if data is None:
            with suppress(OSError):
                data = Path(path).read_bytes()
        if data is None:
            return None
        job = pickle.loads(data)
        _held.clear()
        _held[key] = job
    found, before = job.fresh(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for loaded in job.source.load(part, 0):
            job.see(loaded, found)
    finally:
        torch.set_num_threads(before)
    return found


def _pickled(job: Job) -> bytes:
    """What is defined in a notebook can be sent only by cloudpickle, which dask and ipyparallel bring along."""
    try:
        pickler: Any = importlib.import_module("cloudpickle")
    except ImportError:
        pickler = pickle
    try:
        data: bytes = pickler.dumps(job)
    except Exception as error:
        raise TypeError(
            f"the model, the dataset or a statistic cannot be sent to the executor's workers: {type(error).__name__}: "
            f"{line(error, 1000)}; expected what pickle takes (or cloudpickle, if installed), or executor=None"
        ) from error
    return data


# Checkpoints


def key_of(job: Job) -> str:
    """What must be the same for a scan to go on from a checkpoint: the weights, the statistics, the batches."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in job.model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="replace"))
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, statistic in job.statistics.items():
        digest.update(f"{name} {type(statistic).__qualname__} {vars(statistic)}".encode(errors="replace"))
    digest.update(str(job.source).encode(errors="replace"))
    return digest.hexdigest()


def save_found(found: Found, key: str, path: Path) -> None:
    """Write what was found, all or nothing: to a file beside it, which then takes its place."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        content = {
            "nbviz scan": key,
            "done": found.done,
            "pictures": found.pictures,
            "skipped": [(one.index, one.name, one.reason) for one in found.skipped],
            "statistics": {name: vars(statistic) for name, statistic in found.statistics.items()},
        }
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def load_found(found: Found, key: str, path: Path) -> None:
    """Read what a scan found before it ended, if it has written anything."""
    if not path.exists():
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        of = content["nbviz scan"]
        done, pictures, skipped = content["done"], content["pictures"], content["skipped"]
        states: Mapping[str, dict[str, Any]] = content["statistics"]
    except Exception as error:
        said = line(error, 200)
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which cannot be read as one: {said}; expected a file that a scan has "
            "written, or a path where there is none"
        ) from error
    if of != key:
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which belongs to a scan with other weights, statistics or batches; "
            "expected that of this scan, or a path where there is none"
        )
    found.done, found.pictures = [(a, b) for a, b in done], pictures
    found.skipped = [Skipped(*one) for one in skipped]
    for name, statistic in found.statistics.items():
        vars(statistic).update(states[name])


class Saver:
    """Writes a checkpoint from time to time: so seldom that it takes a twentieth of the time at most."""

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path
        self._next = time.monotonic() + SAVE_SECONDS

    def save(self, found: Found, now: bool = False) -> None:
        """Write if it is time."""
        start = time.monotonic()
        if now or start >= self._next:
            with uninterrupted():
                save_found(found, self.key, self.path)
            end = time.monotonic()
            self._next = end + max(SAVE_SECONDS, 20 * (end - start))


#: The least time between two checkpoints.
SAVE_SECONDS = 10.0
