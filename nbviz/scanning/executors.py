"""Scan on the workers of an executor: processes, threads, or machines."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import socket
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbviz.core.errors import line
from nbviz.scanning.jobs import Job
from nbviz.scanning.records import PartialResult


def scan_on(
    executor: Executor, job: Job, total: PartialResult, parts: int | None, threads: int
) -> Generator[None, None, None]:
    """Have an executor's workers process the batches that are not done, in parts; yields after each part."""
    data = _pickled(job)
    key = hashlib.blake2b(data, digest_size=16).hexdigest()
    left = total.missing(job.source.batches or 0)
    count = min(parts or -(-len(left) // _BATCHES_IN_A_PART), len(left))
    waiting = [part.tolist() for part in reversed(np.array_split(left, count))] if left else []
    running: dict[Future[Any], Sequence[int]] = {}
    sending: set[Future[Any]] = set()  # those that carry the job
    refused: list[Sequence[int]] = []  # parts whose worker did not have the job
    needy: set[str] = set()  # workers that did not have the job and have not returned a result since
    tries: Counter[int] = Counter()  # by a part's first batch: how often its worker was lost
    with ExitStack() as stack:
        # The job is in a file that the workers on this machine read once; workers on other machines ask for it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nbviz-"))
        path = Path(folder) / "job"
        path.write_bytes(data)
        stack.callback(lambda: [future.cancel() for future in running])
        stack.callback(_jobs.pop, key, None)  # if the workers are threads of this process
        stack.enter_context(_explaining_dead_workers())
        while waiting or running or refused:
            while waiting and len(running) < _AT_ONCE:
                part = waiting.pop()
                running[_submit(executor, _work, key, str(path), None, part, threads)] = part
            # Send it once per worker without it: the executor chooses the worker, most likely an idle one.
            while refused and len(sending) < max(1, len(needy)):
                part = refused.pop()
                future = _submit(executor, _work, key, str(path), data, part, threads)
                running[future] = part
                sending.add(future)
            failed: Exception | None = None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                sending.discard(future)
                try:
                    worker, state = _answer(future)
                except Exception as error:  # the results of other parts are kept
                    tries[part[0]] += 1
                    if _kind(error) == "EngineError" and tries[part[0]] < _TRIES:
                        waiting.append(part)  # ipyparallel has other workers; dask retries by itself
                    else:
                        failed = failed or error
                    continue
                if state is None:
                    needy.add(worker)
                    refused.append(part)
                    continue
                needy.discard(worker)
                result = job.fresh()
                result.restore(state)
                total.merge(result)
                yield
            if failed is not None:
                raise failed
            if not needy:
                waiting += refused
                refused.clear()


@contextmanager
def _explaining_dead_workers() -> Iterator[None]:
    """Raise an executor's error about lost workers with an explanation."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, BrokenExecutor) and _kind(error) not in _GONE:
            raise
        kind = BrokenProcessPool if isinstance(error, BrokenProcessPool) else BrokenExecutor
        raise kind(
            f"the executor's workers have died ({_kind(error)}: {line(error)}): they were killed, as when memory runs "
            "out, crashed, or could not start (a script that uses a process pool needs its main code under "
            "if __name__ == '__main__':). Expected a new executor, or None; with checkpoint= a scan can be resumed"
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
        "can be resumed"
    )


def _kind(error: BaseException) -> str:
    """The name of an error's class, also if it was raised on another machine."""
    return str(getattr(error, "ename", type(error).__name__))


_GONE = ("EngineError", "KilledWorker")  # raised by ipyparallel and dask for a worker that has died
_BATCHES_IN_A_PART = 8
_TRIES = 3  # for a part whose worker dies
_AT_ONCE = 256  # parts that are submitted to the executor and not yet done
_jobs: dict[str, Job] = {}  # in a worker: its current job


def _answer(future: Future[Any]) -> tuple[str, dict[str, Any] | None]:
    try:
        answer = future.result()
    except CancelledError as error:  # after shutdown(cancel_futures=True)
        raise _shut_down() from error
    if isinstance(answer, list):
        raise TypeError(
            "the executor runs each call on every engine; expected one that runs it once, such as ipyparallel's "
            "client.load_balanced_view().executor"
        )
    worker, state = answer
    return worker, state


def _work(key: str, path: str, data: bytes | None, part: Sequence[int], threads: int) -> tuple[str, Any]:
    """In a worker: its name, and the result of a part, or None if it does not have the job."""
    worker, job = f"{socket.gethostname()} {os.getpid()}", _jobs.get(key)
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
                f"the model, the dataset or a statistic cannot be unpickled in the executor's worker: "
                f"{type(error).__name__}: {line(error, 1000)}; expected classes that a worker can import, from a file "
                "rather than a notebook (or cloudpickle, if installed), or executor=None"
            ) from error
        _jobs.clear()
        _jobs[key] = job
    result, before = job.fresh(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast(*job.autocast):
            for loaded in job.source.load(part, 0):
                job.process(loaded, result)
    finally:
        torch.set_num_threads(before)
    return worker, result.state()


def _pickled(job: Job) -> bytes:
    """The job, pickled by cloudpickle if installed (dask and ipyparallel bring it), which handles notebook classes."""
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
