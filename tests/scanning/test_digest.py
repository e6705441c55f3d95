"""A digest is the same in every process, whatever it is of."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pytest

from nbviz.scanning.digest import digest
from tests.rounds import long

SCRIPT = """
import collections, enum, functools, operator, pathlib, random, re, threading
import numpy as np, torch
from torch import nn
from torchvision import models, transforms
from nbviz.scanning.digest import digest

FACTOR, TABLE = torch.ones(3), {"a": [1, 2], "s": {"x", "y", "zz"}}
def helper(x): return x * TABLE["a"][0]
class Mode(enum.Enum): A, B = 1, 2
class Call:
    __slots__ = ("s", "lock", "me")
    def __init__(self, s): self.s, self.lock, self.me = s, threading.Lock(), self
    def __call__(self, x): return helper(x) * self.s
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f, self.scale = nn.Conv2d(3, 4, 3), lambda x: x * FACTOR, 2.0
torch.manual_seed(0)
all_of_them = [
    lambda o: o["out"] * FACTOR, functools.partial(helper, x=3), Call(3), Call(2).__call__, Net(), pathlib.Path("a/b"),
    Mode.A, Mode, re.compile("a"), collections.deque([1, 2]), operator.itemgetter(1), random.Random(1), torch.relu,
    np.random.default_rng(0), models.ResNet18_Weights.DEFAULT.transforms(), transforms.Compose([transforms.ToTensor()]),
    str.lower, np.array(["a", None], object), {"a", "b", "c"}, functools.lru_cache(helper), torch.eye(3).to_sparse(),
    torch.zeros(2, dtype=torch.complex64).conj(), torch.ones(1, 3).expand(10**9, 3), models.resnet18(), np.float32(2),
    torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), torch.empty(0, 3), torch.tensor(3), np.array(3),
]
found = [digest(one) for one in all_of_them]
assert len({one for one, _ in found}) == len(found)
assert all(unknown == [] for _, unknown in found), found
print(*(one for one, _ in found))
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", ["1", pytest.param("23", marks=long)])
def test_it_is_the_same_in_every_process_and_another_for_each_value(seeds: str, tmp_path: Path, capsys: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    runpy.run_path(str(script), run_name="__main__")
    here = capsys.readouterr().out
    assert len(here.split()) == 29
    for seed in seeds:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
        call = [sys.executable, "-W", "ignore", str(script)]
        assert subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout == here


class Pair(NamedTuple):
    a: int
    b: int


def test_what_json_writes_alike_is_told_apart() -> None:
    path = PurePosixPath("a")
    alike: list[list[Any]] = [
        [{1: 2}, {"1": 2}, {True: 2}, {"true": 2}, {1.0: 2}],
        [[(1, 2)], [[1, 2]], [Pair(1, 2)]],
        [[path], [["path", "a"]], ["a"]],
        [[np.int64(1)], [["<i8", 1]], [np.int32(1)], [1], [1.0], [True]],
        [{None: 1}, {"null": 1}, {"a": None}],
    ]
    for values in alike:
        assert [pair for pair in combinations(values, 2) if digest(pair[0]) == digest(pair[1])] == []
        assert all(digest(value)[1] == [] for value in values)


def test_the_same_content_is_the_same_whatever_holds_it() -> None:
    name = sys.intern("name")
    for one, other in [
        ([{"a": defaultdict(lambda: 0)}], [{"a": defaultdict(lambda: 0)}]),  # of which repr gives an address
        ([name, name], ["".join(list("name")), "".join(reversed("eman"))]),
        ([(1, 2)] * 2, [(1, 2), tuple([1, 2])]),  # noqa: C409 - another object
        ([PurePosixPath("a")], [PurePosixPath("a")]),
    ]:
        assert digest(one) == digest(other)
