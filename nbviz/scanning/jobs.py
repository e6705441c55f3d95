"""One pass over a dataset that feeds any number of mergeable statistics, here or on any executor.

A dataset is cut into numbered batches, which are the same however it is shared out. A worker works through a part,
some of the batches, with statistics of its own; what it found is merged into what the others have. A result does not
depend on the parts or their order: counts and extremes do not by nature, and sums of fractions are made along one
fixed tree over the batches, see :func:`nbviz.scanning.statistic.add_along_tree`.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import pickle
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.errors import ModelError, line
from nbviz.core.resume import Resumable
from nbviz.core.trace import Feed, run
from nbviz.scanning.found import Found, Loaded, NoClass
from nbviz.scanning.statistic import NAMELESS, Batch, Statistic


class Source(Protocol):
    """A dataset in batches."""

    #: How many pictures and batches, or None if that is not known before the end.
    count: int | None
    batches: int | None

    def load(self, numbers: Sequence[int] | None, workers: int) -> Iterator[Loaded]:
        """These batches (None: all that there are, as they come), read by so many processes beside this one."""

    def parts(self, known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
        """What tells it from another dataset without reading its pictures, each with a name for people.

        Called again with what is known since, the same values are given where they have not changed.
        """

    def classes_named(self) -> int | None:
        """How many classes there are, where labels are names of which the model's order is not known."""

    def sample(self) -> Iterator[Sequence[Any]]:
        """A few of the pictures, as the model gets them."""


_GIVEN_NAMES = "whole numbers, or a dataset with an attribute classes: the names in the order of the model's outputs"


def _within(loaded: Loaded, classes: int) -> Tensor:
    """The labels that are one of so many classes, -1 for others, which are noted."""
    labels = list(loaded.labels)
    for row, (index, label) in enumerate(zip(loaded.indices, loaded.labels, strict=True)):
        of = (loaded.classes[row] if loaded.classes else 0) or classes
        if label >= classes or of != classes:
            reason = f"one-hot for {of} classes" if of != classes else "no class"
            loaded.no_class.append(NoClass(f"{reason} where the model has {classes}", 1, index, str(label)))
            labels[row] = -1
    return torch.tensor(labels)


def _logits(output: Any) -> Any:
    return output


def _activation(_layer: str, activation: Tensor, _pictures: int) -> Tensor:
    return activation


@dataclass
class Job:
    """All that a worker needs: it travels to each once."""

    model: nn.Module
    source: Source
    statistics: dict[str, Statistic]
    device: torch.device
    feed: Feed = None
    check_logits: Callable[[Any], Tensor] = _logits
    check_activation: Callable[[str, Tensor, int], Tensor] = _activation
    _resumes: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # of each layer, whether it skips and widens

    def __post_init__(self) -> None:
        kind = self.device.type if torch.amp.is_autocast_available(self.device.type) else "cpu"
        #: Of the thread that asks for the scan; an executor's workers have one of their own.
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def fresh(self) -> Found:
        """Nothing found yet."""
        return Found(copy.deepcopy(self.statistics))

    def see(self, loaded: Loaded, found: Found) -> None:
        """Run the model on a batch and have the statistics take it in."""
        nameless = next((one for one in loaded.no_class if one.reason == NAMELESS), None)
        if nameless is not None and self._needs_labels():
            raise ValueError(
                f"picture {nameless.index} has the label {nameless.label}, {NAMELESS}; expected {_GIVEN_NAMES}"
            )
        with torch.no_grad():
            measured = self._measure(loaded, found.statistics) if loaded.inputs is not None else {}
            with found.whole():
                for name, what in measured.items():
                    found.statistics[name].update(what)
                found.add(loaded)

    def _needs_labels(self) -> bool:
        return any(one.needs_labels for one in self.statistics.values())

    def _measure(self, loaded: Loaded, statistics: dict[str, Statistic]) -> dict[str, Any]:
        """What there is to take in of a batch, for each statistic."""
        assert loaded.inputs is not None
        inputs, labels = loaded.inputs.to(self.device), torch.tensor(loaded.labels, device=self.device)
        activations: dict[str, Tensor] = {}
        indices, go_on = torch.tensor(loaded.indices), self._going_on(inputs)
        batch = Batch(loaded.number, indices, inputs, labels, activations, None, go_on)
        measured: dict[str, Any] = {}
        late = {name: one for name, one in statistics.items() if not (one.early and len(one.layers) == 1)}
        reduced: dict[str, dict[str, Tensor]] = {name: {} for name in late}

        def use(layer: str, activation: Tensor) -> bool:
            """Whether the activation itself is to be kept."""
            activation = self.check_activation(layer, activation, len(inputs)).detach()
            activations[layer] = activation
            keep = False
            for name, one in statistics.items():
                if name not in late and one.layers == (layer,):
                    measured[name] = one.measure(batch)
                elif name in late and layer in one.layers:
                    less = one.reduce(activation)
                    if less is activation:
                        keep = True
                    else:
                        reduced[name][layer] = less
            del activations[layer]
            return keep

        layers = list(dict.fromkeys(layer for one in statistics.values() for layer in one.layers))
        logits, grad = (any(getattr(one, what) for one in statistics.values()) for what in ("logits", "grad"))
        try:
            if layers or logits:
                trace = run(self.model, inputs, layers, feed=self.feed, output=logits, grad=grad, use=use)
                if logits:
                    batch.logits = self.check_logits(trace.output)
                    classes = batch.logits.shape[1] // max(one.side_by_side for one in statistics.values())
                    batch.labels = _within(loaded, classes).to(self.device)
                    named = self.source.classes_named() if self._needs_labels() else None
                    if named not in (None, classes):
                        raise ValueError(
                            f"the labels are {named} names and the model has {classes} classes: which is which is "
                            f"not known; expected {_GIVEN_NAMES}"
                        )
                activations.update(trace.activations)
            for name, one in late.items():
                measured[name] = one.measure(replace(batch, activations={**activations, **reduced[name]}))
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, ModelError):
                raise
            raise too_large(f"a batch of {len(inputs)} pictures (batch_size=)", error) from error
        return measured

    def _going_on(self, inputs: Tensor) -> Callable[[str, Tensor], Tensor]:
        resumables: dict[str, Resumable] = {}

        def go_on(layer: str, activation: Tensor) -> Tensor:
            if layer not in resumables:
                resumables[layer] = Resumable(self.model, inputs, layer, self.feed, self._resumes.get(layer))
            one = resumables[layer]
            self._resumes.setdefault(layer, (one.skips, one.widens))
            parts = [activation] if one.widens else activation.split(len(inputs))
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
            try:
                job.see(next(batches), found)
            except Exception as error:
                if not (died := _dead_reader(error)):
                    raise
                raise RuntimeError(
                    f"one of the processes that read pictures (workers={workers}) has died: {died}; it was killed, as "
                    "for want of memory, or a file crashes what reads it. Expected fewer workers, or 0; with "
                    "checkpoint= a scan goes on from what was done"
                ) from error
            if found is total:
                yield total
        if found is not total:
            total.merge(found)
            yield total


def _dead_reader(error: BaseException | None) -> str:
    """What torch says of a process that has died, wherever in our work it said it."""
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            return line(error)
        error = error.__cause__ or error.__context__
    return ""


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
    needy: set[str] = set()  # the workers that asked for it and are not known to have it by now
    tries: Counter[int] = Counter()  # by a part's first batch, how often its worker was lost
    with ExitStack() as stack:
        # In a file, which the workers on this machine read once each; those on others ask for it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nbviz-"))
        path = Path(folder) / "job"
        path.write_bytes(data)
        stack.callback(lambda: [future.cancel() for future in running])
        stack.callback(_held.pop, key, None)  # where the workers are threads of this process
        stack.enter_context(_saying_who_died())
        while waiting or running or asked:
            while waiting and len(running) < _AT_ONCE:
                part = waiting.pop()
                running[_submit(executor, _work, key, str(path), None, part, threads)] = part
            # No more at once than ask for it: who takes a part is not ours to say, but who is idle for want of it will.
            while asked and len(sending) < max(1, len(needy)):
                part = asked.pop()
                future = _submit(executor, _work, key, str(path), data, part, threads)
                running[future] = part
                sending.add(future)
            failed: Exception | None = None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                sending.discard(future)
                try:
                    worker, state = _answer(future)
                except Exception as error:  # what others found is kept all the same
                    tries[part[0]] += 1
                    if _kind(error) == "EngineError" and tries[part[0]] < _TRIES:
                        waiting.append(part)  # ipyparallel has other workers; dask does it again by itself
                    else:
                        failed = failed or error
                    continue
                if state is None:
                    needy.add(worker)
                    asked.append(part)
                    continue
                needy.discard(worker)
                total.merge(_restored(job, state))
                yield total
            if failed is not None:
                raise failed
            if not needy:
                waiting += asked
                asked.clear()


@contextmanager
def _saying_who_died() -> Iterator[None]:
    """What an executor says of workers that are gone, with what happened and what to do."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, BrokenExecutor) and _kind(error) not in _GONE:
            raise
        kind = BrokenProcessPool if isinstance(error, BrokenProcessPool) else BrokenExecutor
        raise kind(
            f"the executor's workers have died ({_kind(error)}: {line(error)}): they were killed, perhaps for want of "
            "memory, crashed, or could not start (a script that uses a process pool needs its main code under "
            "if __name__ == '__main__':). Expected a new executor, or None; with checkpoint= a scan goes on from what "
            "was done"
        ) from error


def _submit(executor: Executor, *call: Any) -> Future[Any]:
    try:
        return executor.submit(*call)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        raise _shut_down() from error


def _shut_down() -> ValueError:
    return ValueError(
        "executor was shut down and takes no more work; expected one that is running, or None; with checkpoint= a scan "
        "goes on from what was done"
    )


def _kind(error: BaseException) -> str:
    """An error's name, on whichever machine it came up."""
    return str(getattr(error, "ename", type(error).__name__))


_GONE = ("EngineError", "KilledWorker")  # ipyparallel's and dask's words for a worker that has died
_TRIES = 3  # of a part whose worker has died
_AT_ONCE = 256  # parts that are handed to the executor and not yet done
_held: dict[str, Job] = {}  # in a worker: the job that it has


def _answer(future: Future[Any]) -> tuple[str, dict[str, Any] | None]:
    try:
        answer = future.result()
    except CancelledError as error:  # by shutdown(cancel_futures=True)
        raise _shut_down() from error
    if isinstance(answer, list):
        raise TypeError(
            "the executor runs each call on every engine; expected one that runs it once, such as ipyparallel's "
            "client.load_balanced_view().executor"
        )
    worker, state = answer
    return worker, state


def _work(key: str, path: str, data: bytes | None, part: Sequence[int], threads: int) -> tuple[str, Any]:
    """In a worker: its name, and what a part gives, or None if the job has yet to be sent."""
    worker, job = f"{socket.gethostname()} {os.getpid()}", _held.get(key)
    if job is None:
        if data is None:
            with suppress(OSError):
                data = Path(path).read_bytes()
        if data is None:
            return worker, None
        try:
            job = pickle.loads(data)
        except Exception as error:
            raise TypeError(
                f"the model, the dataset or a statistic cannot be made again in the executor's worker: "
                f"{type(error).__name__}: {line(error, 1000)}; expected classes that a worker can import, from a file "
                "rather than a notebook (or cloudpickle, if installed), or executor=None"
            ) from error
        _held.clear()
        _held[key] = job
    found, before = job.fresh(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast(*job.autocast):
            for loaded in job.source.load(part, 0):
                job.see(loaded, found)
    finally:
        torch.set_num_threads(before)
    # Not the statistics themselves: the class of one that is defined in a notebook cannot be found on the way back.
    return worker, {**vars(found), "statistics": {name: vars(one) for name, one in found.statistics.items()}}


def _restored(job: Job, state: dict[str, Any]) -> Found:
    """What a worker found."""
    found = job.fresh()
    for name, statistic in found.statistics.items():
        vars(statistic).update(state["statistics"][name])
    return Found(found.statistics, state["done"], state["pictures"], state["skipped"], state["no_class"])


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
