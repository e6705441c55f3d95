"""One pass over a dataset for any number of statistics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nbviz.core.arguments import check_feed
from nbviz.core.calls import find_module
from nbviz.core.checks import check_flag, check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import PictureError, line, shown, unknown, warn
from nbviz.core.state import check_model, device_aside
from nbviz.core.types import Dataset, ModelInputs, Preprocessing, ScoresIn
from nbviz.core.weights import fingerprint
from nbviz.pictures.load import Reader
from nbviz.scanning.checkpoint import Saver, key_of
from nbviz.scanning.dataset import Inputs, check_dataset
from nbviz.scanning.executors import scan_on
from nbviz.scanning.jobs import Job, scan_here
from nbviz.scanning.labels import NO_NAME
from nbviz.scanning.patches import Patches
from nbviz.scanning.records import NoClass, PartialResult
from nbviz.scanning.result import ScanResult
from nbviz.scanning.statistic import NAMELESS, Statistic

if TYPE_CHECKING:
    from tqdm import tqdm


class InterruptedWarning(UserWarning):
    """A scan was interrupted: its result is that of the pictures seen so far."""


@device_aside()
@documented
def scan(
    model: nn.Module,
    dataset: Dataset,
    statistics: Mapping[str, Statistic],
    *,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
    batch_size: int = 32,
    workers: int = 0,
    executor: Executor | None = None,
    parts: int | None = None,
    threads: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    watch: Callable[[ScanResult], None] | None = None,
) -> ScanResult:
    """Run a model once over a dataset and collect statistics of its layers and its answers.

    The result does not depend on how the work is divided, to the last bit on machines of the same kind and number of
    torch threads: the batches are always the same, sums do not depend on the order, and a transform that draws random
    numbers draws the same ones for a picture in every process.

    Parameters
    ----------
    dataset
        The path of a folder (its sub-folders are the classes), a torchvision or Hugging Face dataset, a list, an array
        or a tensor of pictures, or anything else with a length and items; in this process also an iterable. Items are
        pictures as :func:`nbviz.load` takes them, (picture, label), or dicts with these. A picture that cannot be read
        is skipped and listed in the result. A label is a whole number, a one-hot vector, or a name: one of the
        dataset's ``classes``, or of the model's output names; names of neither are numbered alphabetically if there are
        as many as the model has classes. None and -1 stand for no label. Any other label, such as several classes,
        counts as none and is reported.
    statistics
        Statistics by name, such as ``{"top": nbviz.statistics.TopK("layer3")}``; see :mod:`nbviz.scanning.statistics`.
        The scan works on copies of them.
    executor
        Where the work is done: any ``concurrent.futures.Executor``, such as a ``ProcessPoolExecutor``, dask's
        ``client.get_executor()`` or ipyparallel's ``client.load_balanced_view().executor``; None takes this process.
        The model is sent to each worker once (possibly twice to workers that do not see this machine's files), and at
        most 256 parts are submitted at once. Shutting the executor down is up to you.
    parts
        Into how many parts an executor's work is divided; None takes parts of 8 batches. If a worker is lost, another
        repeats its part; a process pool that has lost one raises, and the scan can be resumed from a checkpoint.
    threads
        The number of threads of each of the executor's workers; more than one can hang in a process pool that forks.
    checkpoint
        A file to which the results so far are written from time to time, and from which an unfinished scan is resumed,
        in another process too. It is refused if it is damaged or if something differs: the model, the statistics, the
        precision (autocast, default dtype, TF32), a callable (its code, and what it holds) or the dataset (its
        attributes, the names, sizes and contents of its files, or of many files their times of modification, and three
        of its pictures). The dataset's location may differ, and so may anything that changes by merely reading
        pictures, such as a count, a cache or an open file.

    Returns
    -------
    ScanResult
        A mapping from the names to the statistics' results, with ``pictures``, ``skipped`` and ``complete``. An
        interrupt (Ctrl-C, *Interrupt the kernel*) ends the scan with the results so far.

    Raises
    ------
    ValueError
        For an unknown layer, a checkpoint of another scan, an executor that was shut down, numbers out of range, or
        labels that are names in an unknown order, if a statistic needs labels.
    PictureError
        When no picture can be read, or the pictures of a batch differ in size (a ValueError).
    ModelError
        When the model fails in its forward pass (a RuntimeError).
    TypeError
        For an argument of the wrong type, or one that cannot be sent to the executor's workers.

    Warns
    -----
    InterruptedWarning
        When the scan was interrupted.
    UserWarning
        When labels are no classes, or a checkpoint cannot tell whether something is the same.

    Notes
    -----
    While a dataset or preprocessing that draws random numbers reads a picture, the global generators of torch, NumPy
    and Python are set to a seed of the picture, and then restored. If another thread draws from them at the same time,
    use ``workers=1``. For a dataset that draws none they are left alone.

    Examples
    --------
    >>> import nbviz, torch
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> statistics = {"top": nbviz.statistics.TopK("features.8"), "accuracy": nbviz.statistics.Accuracy()}
    >>> found = scan(nbviz.bundled.load("fashion"), dataset, statistics, progress=False)
    >>> found["top"].values.shape, found["accuracy"].pictures
    (torch.Size([64, 9]), 100)
    """
    reader = Reader.of(model, preprocess)
    source = Inputs(check_dataset(dataset), reader, check_whole("batch_size", batch_size, 1))
    job = Job(check_model(model), source, check_statistics(statistics), reader.device, check_feed(inputs), output)
    for layer in {layer for statistic in job.statistics.values() for layer in statistic.layers}:
        find_module(job.model, layer)
    _check_options(source, workers, executor, threads, progress, watch)
    parts = None if parts is None else check_whole("parts", parts, 1)
    total, saver, weights = job.fresh(), None, fingerprint(job.model)
    if checkpoint is not None:
        if source.batches is None:
            raise TypeError("an iterable dataset has no checkpoints; expected one with a length and items")
        saver = Saver(key_of(job), _check_path(checkpoint))
        saver.load(total)
    watcher = _Watcher(watch, patches := Patches(job.model, source, job.feed))
    if executor is None:
        steps = scan_here(job, total, workers, weights)
    else:
        steps = scan_on(executor, job, total, parts, threads)
    with closing(steps), _bar(source.count, total.pictures + len(total.skipped), progress) as bar:
        complete = _collect(steps, total, bar, saver, watcher)
    if not total.pictures and total.skipped:
        first = total.skipped[0]
        raise PictureError(
            f"none of {len(total.skipped)} pictures can be read, expected at least one that can; the first, "
            f"{first.name}: {first.reason}"
        )
    if not total.pictures and complete:
        raise PictureError(_EMPTY)
    result = _result(total, complete, patches)
    watcher.show(result)
    if result.no_class:
        warn(f"{result.without_class} of {total.pictures} {_described(result.no_class, source)}", UserWarning)
    return result


def _check_options(source: Inputs, workers: Any, executor: Any, threads: Any, progress: Any, watch: Any) -> None:
    check_whole("workers", workers, 0, _MOST_WORKERS)
    check_whole("threads", threads, 1, _MOST_WORKERS)
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor is {shown(executor)}; expected a concurrent.futures.Executor, or None")
    if executor is not None and source.batches is None:
        raise TypeError(
            "the work on an iterable dataset cannot be divided; expected one with a length and items, or executor=None"
        )
    check_flag("progress", progress)
    if source.count == 0:
        raise PictureError(_EMPTY)
    if watch is not None and not callable(watch):
        raise TypeError(f"watch is {type(watch).__name__}; expected a callable that takes a ScanResult, or None")


def _collect(
    steps: Iterator[None], total: PartialResult, bar: tqdm[Any], saver: Saver | None, watcher: _Watcher
) -> bool:
    """Do the work, showing and saving the results so far; whether it was completed, and not interrupted."""
    try:
        for _ in steps:
            bar.update(total.pictures + len(total.skipped) - bar.n)
            if not total.pictures and len(total.skipped) >= _HOPELESS:
                break
            if saver is not None:
                saver.save(total)
            if watcher.is_due():
                watcher.show(_result(total, False, watcher.patches))
    except KeyboardInterrupt:
        if total.torn:
            raise
        warn(
            f"the scan was interrupted after {total.pictures} pictures; its result is that of these pictures",
            InterruptedWarning,
        )
        return False
    finally:
        if saver is not None and not total.torn:  # a torn result must not replace the last checkpoint
            saver.save(total, now=True)
    return True


class _Watcher:
    """Calls ``watch`` with results, until it fails: a scan must not be lost for that."""

    def __init__(self, watch: Callable[[ScanResult], None] | None, patches: Patches) -> None:
        self._watch, self._last, self.patches = watch, time.monotonic(), patches

    def is_due(self) -> bool:
        return self._watch is not None and time.monotonic() - self._last > _WATCH_SECONDS

    def show(self, result: ScanResult) -> None:
        if self._watch is None:
            return
        try:
            self._watch(result)
        except Exception as error:
            warn(f"watch failed and is called no more: {type(error).__name__}: {line(error)}", UserWarning)
            self._watch = None
        self._last = time.monotonic()


def _described(no_class: Sequence[NoClass], source: Inputs) -> str:
    """The kinds of labels that are no class, each with an example, and the labels accepted."""
    kinds = [
        f"{labels.count} {'is' if labels.count == 1 else 'are'} {labels.reason} "
        f"({labels.label}, of {source.name(labels.index)})"
        for labels in no_class
    ]
    accepted = "a whole number from 0, its name or a one-hot vector"
    wrong_name = next((labels.label for labels in no_class if labels.reason == NO_NAME), None)
    if wrong_name is not None:
        accepted += f"; {unknown('class', wrong_name[1:-1], source.names.numbers or ())}"
    elif any(labels.reason == NAMELESS for labels in no_class):
        accepted += " that the dataset's attribute classes has, in the order of the model's outputs"
    return f"pictures have a label that is no class, and count as unlabelled: {'; '.join(kinds)}; expected {accepted}"


_EMPTY = "the dataset is empty; expected at least one picture"
_WATCH_SECONDS = 1.0
_HOPELESS = 1000  # unreadable pictures, and no readable one, after which a scan gives up
_MOST_WORKERS = 256


def _bar(count: int | None, done: int, visible: bool) -> tqdm[Any]:
    # In a notebook tqdm.auto imports widgets, which a scan without a bar does not need.
    if visible:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=count, initial=done, unit=" pictures", disable=not visible, leave=True)


def _result(total: PartialResult, complete: bool, patches: Patches) -> ScanResult:
    results = {name: statistic.result() for name, statistic in total.statistics.items()}
    no_class = tuple(sorted(total.no_class.values(), key=attrgetter("index")))
    layers = {name: statistic.layers[0] for name, statistic in total.statistics.items() if len(statistic.layers) == 1}
    return ScanResult(results, total.pictures, tuple(total.skipped), complete, no_class, layers, patches)


def check_statistics(given: Any) -> dict[str, Statistic]:
    """The given statistics by name, at least one."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"statistics is {type(given).__name__}; expected a dict from names to statistics, such as "
            '{"top": nbviz.statistics.TopK("layer3")}'
        )
    if not given:
        raise ValueError("statistics is empty; expected at least one, such as nbviz.statistics.TopK")
    for name, statistic in given.items():
        if not isinstance(name, str) or not isinstance(statistic, Statistic):
            raise TypeError(
                f"statistics has {shown(name)}: {shown(statistic)}; expected a name and an nbviz.statistics.Statistic"
            )
    return dict(given)


def _check_path(given: Any) -> Path:
    try:
        path = Path(given).expanduser()
        usable = path.parent.is_dir() and (path.is_file() or not path.exists())
    except Exception as error:  # not a path, or not a possible file name
        kind = ValueError if isinstance(error, (OSError, ValueError)) else TypeError
        raise kind(f"checkpoint is {shown(given)}; expected the path of a file to write") from None
    if not usable:
        raise ValueError(f"checkpoint is {shown(given)}; expected the path of a file in an existing folder")
    return path
