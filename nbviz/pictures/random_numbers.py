"""Read pictures with reproducible random numbers, leaving the user's generators as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info

from nbviz.core.generators import OwnGenerators
from nbviz.core.state import lock

T = TypeVar("T")


class SeededReader:
    """Reads pictures such that each is the same in every process and thread, whatever was drawn before.

    Transforms draw from global generators: a seed set there applies to all threads, and restoring a state undoes the
    draws of other threads. So nothing is set or restored for datasets that draw nothing, as most do: a picture is read,
    and the generators are compared before and after. Only if this thread has advanced them, it is read again with a
    seed of its own.
    """

    def __init__(self) -> None:
        self.draws: bool | None = None  # whether reading draws random numbers; None until known
        self.others_draw = False  # whether another thread currently draws

    def read(self, number: int, read_picture: Callable[[], T]) -> T:
        """The result of ``read_picture`` for the picture with this number."""
        if not self.draws:
            # One thread at a time until it is known, so that no thread sees the seed of another.
            with _locked() if self.draws is None else nullcontext():
                before = ended = _state()
                if not self.others_draw:
                    picture, ended = _restoring_on_error(read_picture, before)
                    if not any(_moved(before, ended)):
                        self.draws = False
                        return picture
                with _locked():
                    picture, self.draws, self.others_draw = _attributed(read_picture, ended)
                    if not self.draws:
                        return picture
                    _restore(before)
        with seeded(number):
            return read_picture()


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Set the global generators to a seed within the block, and restore them after it."""
    with _locked():
        before = _state()
        try:
            torch.default_generator.manual_seed(number)  # not those of other devices
            np.random.seed(number % 2**32)  # noqa: NPY002 - the generator that transforms draw from
            random.seed(number)
            yield
        finally:
            _restore(before)


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Undo what is drawn within the block, by this thread as far as that can be known."""
    before = _state()
    with OwnGenerators():
        try:
            yield
        finally:
            _, of_numpy, of_python = before
            if any(_moved(before, _state())[1:]):
                _restore((torch.get_rng_state(), of_numpy, of_python))


def _locked() -> AbstractContextManager[Any]:
    """Hold the lock, since passes of a model restore random states, too.

    Not in a DataLoader's worker: it runs no model, and in the parent another thread may have held the lock at the fork.
    """
    return lock if get_worker_info() is None else nullcontext()


State = tuple[Tensor, Any, Any]  # torch's, NumPy's and Python's


def _state() -> State:
    with _locked():
        return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(state: State) -> None:
    with _locked():
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])


def _moved(a: State, b: State) -> tuple[bool, bool, bool]:
    """Whether torch's, NumPy's and Python's generators differ between two states."""
    numpy = a[1][2:] != b[1][2:] or not np.array_equal(a[1][1], b[1][1])
    return not torch.equal(a[0], b[0]), numpy, a[2] != b[2]


def _restoring_on_error(read_picture: Callable[[], T], before: State) -> tuple[T, State]:
    try:
        return read_picture(), _state()
    except BaseException:
        if any(_moved(before, _state())):
            _restore(before)
        raise


def _attributed(read_picture: Callable[[], T], ended: State) -> tuple[T, bool, bool]:
    """The picture, whether reading it draws, and whether another thread draws from torch's generator.

    ``ended`` is the state after a first reading: if reading sets torch's seed, the generator ends in the same state
    again.
    """
    before = _state()
    with _DrawDetector() as detector:
        picture, after = _restoring_on_error(read_picture, before)
    torch_moved, numpy_moved, python_moved = _moved(before, after)
    draws = detector.drew or numpy_moved or python_moved or (torch_moved and torch.equal(after[0], ended[0]))
    return picture, draws, torch_moved and not draws


class _DrawDetector(TorchDispatchMode):
    """Notices whether this thread draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            values = (*args, *(kwargs or {}).values())
            self.drew |= not any(isinstance(value, torch.Generator) for value in values)
        return func(*args, **(kwargs or {}))
