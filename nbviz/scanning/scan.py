"""One pass over a dataset for any number of statistics."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, is_dataclass
from functools import partial
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbviz.core.arguments import check_channels, check_feed, check_logits
from nbviz.core.checks import check_whole
from nbviz.core.errors import ModelError, PictureError, line, shown, unknown, warn
from nbviz.core.state import check_model, device_aside
from nbviz.core.trace import find_module
from nbviz.core.weights import fingerprint
from nbviz.pictures.load import Reader
from nbviz.scanning.checkpoint import Saver, key_of, load_found
from nbviz.scanning.dataset import Inputs, check_dataset
from nbviz.scanning.found import Found, NoClass, Skipped
from nbviz.scanning.jobs import Job, scan_here, scan_on
from nbviz.scanning.labels import NO_NAME
from nbviz.scanning.statistic import NAMELESS, Statistic

if TYPE_CHECKING:
    from tqdm import tqdm


class InterruptedWarning(UserWarning):
    """A scan was interrupted: its result is that of the pictures seen so far."""


@dataclass(frozen=True)
class ScanResult(Mapping[str, Any]):
    """What a scan found: under each statistic's name its result.

    Parameters
    ----------
    results
        By name.
    pictures
        How many were seen.
    skipped
        Those that could not be read: ``index`` in the dataset, ``name``, ``reason``.
    complete
        Whether the whole dataset was seen.
    no_class
        Labels that are no class of the model's, so that their pictures counted as without a label: for each ``reason``
        how many (``count``), and the first of them (``index``, ``label``).
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
        """How many pictures have a label that is no class."""
        return sum(one.count for one in self.no_class)

    def _said(self) -> str:
        return f"{self.pictures:,} pictures" + ("" if self.complete else ", not complete")

    def _repr_html_(self) -> str:
        """A table for each statistic: its first channels, and what it has of all together."""
        skipped = f" · {len(self.skipped)} skipped, which could not be read" if self.skipped else ""
        wrong = f" · {self.without_class} with a label that is no class" if self.no_class else ""
        parts = [f"<div>{self._said()}{skipped}{wrong}</div>"]
        for name, result in self.results.items():
            rows = "".join(f"<tr><th>{escape(what)}</th>{cells}</tr>" for what, cells in _rows(result))
            parts.append(f"<table><caption>{escape(line(name, 80))}</caption>{rows}</table>")
        return f'<div class="nbviz-scan" data-pictures="{self.pictures}">{"".join(parts)}</div>'

    def __repr__(self) -> str:
        lines = [f"ScanResult of {self._said()}: {', '.join(self.results)}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped, which could not be read:")
            lines += [f"  {one.index} {one.name}: {one.reason}" for one in self.skipped[:10]]
            lines += [f"  … ({len(self.skipped)} in all)"] if len(self.skipped) > 10 else []
        if self.no_class:
            lines.append(f"{self.without_class} with a label that is no class:")
            lines += [f"  {one.count}: {one.reason} ({one.index}: {one.label})" for one in self.no_class]
        return "\n".join(lines)


_SHOWN = 12  # channels


def _rows(result: Any) -> Iterator[tuple[str, str]]:
    """What a table says of a result: a name, and cells in HTML."""
    fields = (
        {f.name: getattr(result, f.name) for f in dataclasses.fields(result)} if is_dataclass(result) else {"": result}
    )
    channels = max((len(v) for v in fields.values() if isinstance(v, Tensor) and v.ndim), default=0)
    if channels:
        more = "<td>…</td>" if channels > _SHOWN else ""
        yield f"{channels} rows", "".join(f"<td>{i}</td>" for i in range(min(channels, _SHOWN))) + more
    for name, value in fields.items():
        if isinstance(value, Tensor) and value.ndim in (1, 2) and value.numel():
            first = value if value.ndim == 1 else value[:, 0]
            shown_as = ".4g" if value.is_floating_point() else ""
            cells = "".join(f"<td>{one:{shown_as}}</td>" for one in first[:_SHOWN].tolist())
            yield (name if value.ndim == 1 else f"{name}[:, 0]"), cells
        elif isinstance(value, Tensor):
            yield name, f'<td colspan="{_SHOWN + 1}">{escape(f"a tensor {tuple(value.shape)}")}</td>'
        else:
            shown_here = f"{value:.4g}" if isinstance(value, float) else line(value, 80)
            yield name, f'<td colspan="{_SHOWN + 1}">{escape(shown_here)}</td>'


@device_aside()
def scan(
    model: nn.Module,
    dataset: Any,
    statistics: Mapping[str, Statistic],
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
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

    The result does not depend on how the work is shared out, to the last bit on machines of one kind whose torch has as
    many threads: batches are the same whatever the parts are, sums do not depend on the order, and a transform that
    draws random numbers draws the same for a picture whoever reads it.

    Parameters
    ----------
    model
        Any PyTorch model; it is left as it was.
    dataset
        A folder's path (its sub-folders are the classes), a torchvision or Hugging Face dataset, a list, an array or a
        tensor of pictures, or anything else with a length and items; or an iterable, in this process only. Items are
        pictures as :func:`nbviz.load` takes them, (picture, label), or dicts that hold these. A picture that cannot
        be read is skipped and named in the result. A label is a whole number, a one-hot vector, or a name: one of the
        dataset's ``classes``, of the model's own, or, where all labels are names, of as many as the model has classes
        in the order of the alphabet. None and -1 say that there is none; what is anything else (several classes at
        once among them) counts as none, and is counted and said.
    statistics
        By name, such as ``{"top": nbviz.statistics.TopK("layer3")}``; see :mod:`nbviz.scanning.statistics`. They are
        copied: those given stay as they are.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W); found from the model if None.
    inputs, output
        As in :func:`nbviz.reconstruct`.
    batch_size
        How many pictures go through the model at once.
    workers
        How many processes read pictures beside this one (as in a ``DataLoader``).
    executor
        Where the work is done: any ``concurrent.futures.Executor``, such as a ``ProcessPoolExecutor``, dask's
        ``client.get_executor()`` or ipyparallel's ``client.load_balanced_view().executor``; None takes this process.
        The model travels to each of the executor's workers once (where they do not see this machine's files, a few may
        get it twice), and the executor stays yours to close. At most 256 parts are handed to it at once.
    parts
        Into how many parts the batches are shared out; None takes parts of 8 batches. A worker that is lost costs its
        part, which is done again by another; a process pool that has lost one can do nothing more and raises, and a
        checkpoint has the rest.
    threads
        Of each of the executor's workers; more than one can hang in a process pool that forks.
    checkpoint
        A file to which what was found is written from time to time, and from which a scan that has ended early goes on,
        in another process too. It is refused where the model, the statistics, the precision (autocast, default dtype,
        TF32), a callable (its code, and what it holds) or the dataset (all that its attributes hold, its files' names,
        sizes and content, or of many the times they were written, and three of its pictures) is another, and where a
        bit of the file has changed. Where a dataset lies does not count, nor what changes by merely reading its
        pictures, such as a count, a cache or an open file.
    progress
        Show a bar with rate and time left.
    watch
        Called about once a second with what is known so far, and at the end; a :class:`nbviz.ScanView` shows it in the
        notebook.

    Returns
    -------
    ScanResult
        A mapping from the names to the statistics' results, with ``pictures``, ``skipped`` and ``complete``. An
        interrupt (Ctrl-C, *Interrupt the kernel*) ends the scan with what it has found.

    Raises
    ------
    ValueError
        For an unknown layer, a checkpoint of another scan, an executor that was shut down, numbers out of range,
        pictures that differ in size, or names for labels whose order is not known, where a statistic needs them.
    PictureError
        When no picture can be read, or those of a batch differ in size (a ValueError).
    ModelError
        When the model fails in its forward pass (a RuntimeError).
    TypeError
        For an argument of the wrong type, or what cannot be sent to the executor's workers.

    Warns
    -----
    InterruptedWarning
        When the scan was interrupted.
    UserWarning
        Where labels are no classes, and where a checkpoint cannot tell whether something is the same.

    Notes
    -----
    A dataset or preprocessing that draws random numbers is read with the generators of torch, NumPy and Python set to a
    seed for each picture, and put back. They are the process's: where another thread draws from them at the same time,
    read with ``workers=1``. A dataset that draws none leaves them alone.

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
    model = check_model(model)
    source = Inputs(check_dataset(dataset), reader, check_whole("batch_size", batch_size, 1))
    job = Job(
        model,
        source,
        check_statistics(statistics),
        reader.device,
        check_feed(inputs),
        partial(check_logits, pick=output),
        check_channels,
    )
    for layer in {layer for one in job.statistics.values() for layer in one.layers}:
        find_module(model, layer)
    check_whole("workers", workers, 0, _MOST_WORKERS)
    check_whole("threads", threads, 1, _MOST_WORKERS)
    if executor is not None and not (hasattr(executor, "submit") and isinstance(executor, Executor)):
        raise TypeError(f"executor is {shown(executor)}; expected a concurrent.futures.Executor, or None")
    if executor is not None and job.source.batches is None:
        raise TypeError(
            "an iterable dataset cannot be shared out; expected one with a length and items, or executor=None"
        )
    if not isinstance(progress, bool):
        raise TypeError(f"progress is {shown(progress)}; expected True or False")
    if job.source.count == 0:
        raise PictureError(_EMPTY)
    if watch is not None and not callable(watch):
        raise TypeError(f"watch is {type(watch).__name__}; expected a callable that takes a ScanResult, or None")
    parts = None if parts is None else check_whole("parts", parts, 1)
    total, saver, weights = job.fresh(), None, fingerprint(model)
    if checkpoint is not None:
        if job.source.batches is None:
            raise TypeError("an iterable dataset has no checkpoints; expected one with a length and items")
        saver = Saver(key_of(job), _check_path(checkpoint))
        load_found(total, saver.key, saver.path)
    news = _news(job, total, executor, parts, workers, threads)
    complete = False
    with closing(news), _bar(job.source.count, total.pictures + len(total.skipped), progress) as bar:
        try:
            told = time.monotonic()
            for _ in news:
                if executor is None and fingerprint(model) != weights:
                    total.torn = True  # the last batch may be of other weights
                    raise ModelError(
                        f"the weights of {type(model).__name__} were changed while it was scanned, by another thread "
                        "or the dataset; expected a model at rest, or a copy of it (copy.deepcopy)"
                    )
                bar.update(total.pictures + len(total.skipped) - bar.n)
                if not total.pictures and len(total.skipped) >= _HOPELESS:
                    break
                if saver is not None:
                    saver.save(total)
                if watch is not None and time.monotonic() - told > _WATCH_SECONDS:
                    watch = _told(watch, _result(total, complete=False))
                    told = time.monotonic()
            complete = True
        except KeyboardInterrupt:
            if total.torn:
                raise
            warn(
                f"the scan was interrupted after {total.pictures} pictures: this is what they gave", InterruptedWarning
            )
        finally:
            if saver is not None and not total.torn:  # else the last one written is the best there is
                saver.save(total, now=True)
    if not total.pictures and total.skipped:
        first = total.skipped[0]
        raise PictureError(
            f"none of {len(total.skipped)} pictures can be read, expected at least one that can; the first, "
            f"{first.name}: {first.reason}"
        )
    if not total.pictures and complete:
        raise PictureError(_EMPTY)
    result = _result(total, complete)
    if watch is not None:
        _told(watch, result)
    if result.no_class:
        warn(f"{result.without_class} of {total.pictures} {_listed(result.no_class, source)}", UserWarning)
    return result


def _listed(no_class: Sequence[NoClass], source: Inputs) -> str:
    """What labels that are no class are, each kind with an example, and what would be one."""
    said = [
        f"{one.count} {'is' if one.count == 1 else 'are'} {one.reason} ({one.label}, of {source.name(one.index)})"
        for one in no_class
    ]
    accepted = "a whole number from 0, its name or a one-hot vector"
    wrong = next((one.label for one in no_class if one.reason == NO_NAME), None)
    if wrong is not None:
        accepted += f"; {unknown('class', wrong[1:-1], source.names.numbers or ())}"
    elif any(one.reason == NAMELESS for one in no_class):
        accepted += " that the dataset's attribute classes has, in the order of the model's outputs"
    return f"pictures have a label that is no class, and count as without: {'; '.join(said)}; expected {accepted}"


def _told(watch: Callable[[ScanResult], None], found: ScanResult) -> Callable[[ScanResult], None] | None:
    """Who is to be told next time: no one who fails, for whom a scan is not to be lost."""
    try:
        watch(found)
    except Exception as error:
        warn(f"watch failed and is called no more: {type(error).__name__}: {line(error)}", UserWarning)
        return None
    return watch


_EMPTY = "the dataset is empty; expected at least one picture"
_WATCH_SECONDS = 1.0
_HOPELESS = 1000  # pictures that cannot be read, when none can: a dataset of another kind
_MOST_WORKERS = 256
_BATCHES_IN_A_PART = 8


def _news(
    job: Job, total: Found, executor: Executor | None, parts: int | None, workers: int, threads: int
) -> Generator[Found, None, None]:
    """Do what is left of the work; gives what was found so far each time that there is more."""
    if job.source.batches is None:
        yield from scan_here(job, total, None, workers)
        return
    left = total.missing(job.source.batches)
    if parts is None:
        parts = 1 if executor is None else -(-len(left) // _BATCHES_IN_A_PART)
    parts = min(parts, len(left))
    size, more = divmod(len(left), parts) if left else (0, 0)
    ends = [i * size + min(i, more) for i in range(parts + 1)]
    shares = [left[start:stop] for start, stop in pairwise(ends) if start < stop]
    if executor is None:
        yield from scan_here(job, total, shares, workers)
    else:
        yield from scan_on(executor, job, total, shares, threads)


def _bar(count: int | None, done: int, shown: bool) -> tqdm[Any]:
    # In a notebook tqdm.auto is a widget, which is not to be loaded for a scan without it.
    if not shown:
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    return tqdm(total=count, initial=done, unit=" pictures", disable=not shown, leave=True)


def _result(total: Found, complete: bool) -> ScanResult:
    results = {name: statistic.result() for name, statistic in total.statistics.items()}
    no_class = tuple(sorted(total.no_class.values(), key=lambda one: one.index))
    return ScanResult(results, total.pictures, tuple(total.skipped), complete, no_class)


def check_statistics(given: Any) -> dict[str, Statistic]:
    """The statistics by name, if they are some.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
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
    except Exception as error:  # no path, or one that no file can have
        kind = ValueError if isinstance(error, (OSError, ValueError)) else TypeError
        raise kind(f"checkpoint is {shown(given)}; expected the path of a file to write") from None
    if not usable:
        raise ValueError(f"checkpoint is {shown(given)}; expected the path of a file in a folder that there is")
    return path
