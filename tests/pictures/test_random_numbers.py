"""A picture that is cropped at random is the same whoever reads it, and nobody else's random numbers change."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import nbviz
from nbviz.core.state import lock
from nbviz.pictures.random_numbers import SeededReader, random_state_restored, seeded
from nbviz.scanning.statistics import Moments
from tests.small import Small, pictures


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]  # noqa: NPY002


def seeds_itself() -> float:
    torch.manual_seed(5)
    return float(torch.rand(1))


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: float(torch.rand(1)),
    "in place": lambda: float(torch.zeros(1).uniform_()),
    "NumPy": np.random.rand,
    "Python": random.random,
    "all": lambda: (float(torch.randn(1)), np.random.rand(), random.random()),  # noqa: NPY002
    "a seed of its own": seeds_itself,
}


@pytest.mark.parametrize("kind", DRAWS)
def test_what_is_drawn_is_the_same_whatever_came_before_and_is_put_back(kind: str) -> None:
    draw, found = DRAWS[kind], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before, alike = states(), SeededReader()
        found.append([alike.read(number, draw) for number in (3, 4, 3)])
        assert states() == before
        assert alike.draws
    assert found[0] == found[1]
    assert found[0][0] == found[0][2]
    with seeded(4):
        assert draw() == found[0][1]
    before = states()
    with random_state_restored():
        draw()
    assert states() == before or kind == "a seed of its own"


def test_what_draws_only_now_and_then_is_the_same() -> None:
    alike, before = SeededReader(), states()
    found = [alike.read(number, lambda: float(torch.rand(1)) if number % 2 else 0.0) for number in range(4)]  # noqa: B023
    assert states() == before
    with seeded(1):
        assert found[1] == float(torch.rand(1))
    assert found[::2] == [0.0, 0.0]


def test_where_nothing_is_drawn_no_generator_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    for module, name in ((torch, "set_rng_state"), (np.random, "set_state"), (random, "setstate"), (random, "seed")):
        monkeypatch.setattr(module, name, never)
    own = torch.Generator().manual_seed(0)
    alike = SeededReader()
    for number in range(5):
        alike.read(number, lambda: torch.rand(3, generator=own))
    assert alike.draws is False


def test_the_numbers_that_another_thread_draws_meanwhile_are_its_own() -> None:
    """As a training that goes on while a dataset is scanned; the dataset itself draws nothing."""
    torch.manual_seed(0)
    expected = torch.rand(5000).tolist()
    torch.manual_seed(0)
    drawn: list[float] = []
    done = threading.Event()

    def train() -> None:
        while len(drawn) < 5000:
            drawn.append(float(torch.rand(1)))
        done.set()

    net, dataset = Small(), pictures(64)
    whole = nbviz.scan(net, dataset, {"m": Moments("0")}, progress=False)
    torch.manual_seed(0)
    thread = threading.Thread(target=train)
    thread.start()
    alike = SeededReader()
    while not done.is_set():
        assert alike.read(7, dataset[3].sum) == dataset[3].sum()
    thread.join()
    assert torch.allclose(torch.tensor(drawn), torch.tensor(expected))
    assert torch.equal(nbviz.scan(net, dataset, {"m": Moments("0")}, progress=False)["m"].mean, whole["m"].mean)


def test_threads_that_read_at_random_at_once_have_no_others_seed() -> None:
    def crop() -> list[float]:
        return [float(torch.rand(1)) for _ in range(20)]

    expected = [SeededReader().read(number, crop) for number in range(40)]
    before, alike = states(), SeededReader()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: alike.read(number, crop), range(40))) == expected
    assert states() == before


def test_a_reader_that_is_forked_while_another_thread_is_in_nbviz_does_not_hang() -> None:
    class Random(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return torch.rand(3, 16, 16)

    within, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            within.set()
            leave.wait(60)

    from nbviz.pictures.load import Reader
    from nbviz.scanning.dataset import Inputs

    expected = [one.inputs for one in Inputs(Random(), Reader.of(Small()), 4).load(range(2))]
    thread = threading.Thread(target=hold)
    thread.start()
    within.wait()
    try:
        found = [one.inputs for one in Inputs(Random(), Reader.of(Small()), 4).load(range(2), workers=2)]
    finally:
        leave.set()
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
