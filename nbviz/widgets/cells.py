"""Whether a cell is running, for observers that run on another thread meanwhile.

JupyterLab sends a control's change to a *subshell*: another thread of the kernel, which runs beside the person's cell.
An observer on such a thread waits until no cell runs, since the cell may be training the same model. All other threads
are the person's own, also a subshell's that runs a cell (JupyterLab's subshell console). They wait only for the lock on
all models.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell

from nbviz.core.state import lock

_idle = threading.Event()
_idle.set()
_running: list[tuple[Any, int]] = []  # the cells that have begun, outermost first: IPython's info, and the thread
_watched: list[Any] = []  # the shell whose cells are followed
_count = 0


def _after_fork() -> None:
    """In a child process no cell is running, and no thread is left that would set the event."""
    _idle._at_fork_reinit()  # type: ignore[attr-defined]
    _idle.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def between_cells(before_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on all models; on a subshell's thread, only while no cell runs.

    A thread that already has the lock does not wait for cells: a cell that begins waits for the lock, and each would
    wait for the other.
    """
    own = threading.get_ident()
    runs_cell = any(own == thread for _, thread in _running)
    is_observer = threading.current_thread().name.startswith("subshell-") and not runs_cell
    must_wait = is_observer and not lock._is_owned()  # type: ignore[attr-defined]
    if not lock.acquire(blocking=False):
        before_wait()
        lock.acquire()
    while must_wait and not _idle.is_set():
        lock.release()
        before_wait()
        _idle.wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cells_run() -> int:
    """A number that grows when code may have run: a cell has begun or ended, or is running at this moment."""
    global _count  # noqa: PLW0603 - there is one shell
    if _running or not _watched:
        _count += 1
    return _count


def watch_cells() -> None:
    """Follow the shell's cells from now on, including the one that is running."""
    shell = get_ipython()
    if shell is None or shell in _watched:
        return
    _watched[:] = [shell]
    shell.events.register("pre_run_cell", _begin)
    shell.events.register("post_run_cell", _end)
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is InteractiveShell.run_code.__code__:
            _begin(None)
            return


def _begin(info: Any) -> None:
    global _count  # noqa: PLW0603
    _count += 1
    _running.append((info, threading.get_ident()))
    _idle.clear()
    with lock:  # an observer that is running a model finishes its chunk first
        pass


def _end(result: Any) -> None:
    global _count  # noqa: PLW0603
    _count += 1  # it may have changed weights after a widget last looked
    # An empty cell ends without having begun.
    for info in (result.info, None):
        if any(begun is info for begun, _ in _running):
            _running[:] = [cell for cell in _running if cell[0] is not info]
            break
    if not _running:
        _idle.set()
