"""Random numbers that are the same for a picture whoever reads it, and the person's left as they were."""

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
    """Reads pictures such that each is the same whoever reads it and whatever was drawn before.

    The generators that transforms draw from are the process's: a seed that is set there is set for all its threads, and
    a state that is put back takes back what others drew meanwhile. So nothing is set or put back where nothing is
    drawn, which is so for most datasets: a picture is read, and the generators are looked at before and after. Only
    where they have moved, and this thread has moved them, is it read again from a seed of its own.
    """

    def __init__(self) -> None:
        self.draws: bool | None = None  # whether reading draws random numbers; None before it is known
        self.watches = False  # whether another thread draws at this time

    def read(self, number: int, how: Callable[[], T]) -> T:
        """What ``how`` gives for the picture of this number."""
        if not self.draws:
            # The first picture alone, so that of many threads that read at random none has another's seed.
            with _alone() if self.draws is None else nullcontext():
                before = ended = _state()
                if not self.watches:
                    found, ended = _unless_interrupted(how, before)
                    if not any(_moved(before, ended)):
                        self.draws = False
                        return found
                with _alone():
                    found, mine, self.watches = _watched(how, ended)
                    self.draws = mine
                    if not mine:
                        return found
                    _put_back(before)
        with seeded(number):
            return how()


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """While inside, random numbers are drawn from a seed of its own; the person's are left as they were."""
    with _alone():
        before = _state()
        try:
            torch.default_generator.manual_seed(number)  # not those of other devices
            np.random.seed(number % 2**32)  # noqa: NPY002 - the generator that transforms draw from
            random.seed(number)
            yield
        finally:
            _put_back(before)


@contextmanager
def left_alone() -> Iterator[None]:
    """What is drawn inside, by this thread as far as that can be told, is put back."""
    before = _state()
    with OwnGenerators():
        try:
            yield
        finally:
            _, numpys, pythons = before
            if any(_moved(before, _state())[1:]):
                _put_back((torch.get_rng_state(), numpys, pythons))


def _alone() -> AbstractContextManager[Any]:
    """Hold the lock, as who is in a model puts random numbers back, too; a process that only reads has no need of it.

    It is the copy of one in which a thread may have held the lock that is not there any more.
    """
    return lock if get_worker_info() is None else nullcontext()


State = tuple[Tensor, Any, Any]  # torch's, NumPy's and Python's


def _state() -> State:
    with _alone():
        return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _put_back(state: State) -> None:
    with _alone():
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])


def _moved(a: State, b: State) -> tuple[bool, bool, bool]:
    """Whether torch's, NumPy's and Python's generator have moved from one state to another."""
    numpy = a[1][2:] != b[1][2:] or not np.array_equal(a[1][1], b[1][1])
    return not torch.equal(a[0], b[0]), numpy, a[2] != b[2]


def _unless_interrupted(how: Callable[[], T], before: State) -> tuple[T, State]:
    try:
        return how(), _state()
    except BaseException:
        if any(_moved(before, _state())):
            _put_back(before)
        raise


def _watched(how: Callable[[], T], ended: State) -> tuple[T, bool, bool]:
    """What ``how`` gives, whether it draws, and whether another thread does, as far as that can be told.

    Of torch's numbers it can. Its generator also moves where a seed is set: then it ends as it did the last time.
    """
    before = _state()
    with _Watch() as watch:
        found, after = _unless_interrupted(how, before)
    torchs, numpys, pythons = _moved(before, after)
    mine = watch.drew or numpys or pythons or (torchs and torch.equal(after[0], ended[0]))
    return found, mine, torchs and not mine


class _Watch(TorchDispatchMode):
    """Sees whether this thread draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = (*args, *(kwargs or {}).values())
            self.drew |= not any(isinstance(one, torch.Generator) for one in given)
        return func(*args, **(kwargs or {}))
