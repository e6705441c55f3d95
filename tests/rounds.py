"""How much of what goes on for ever is tried: some of it by ``make test``, all of it by ``make test-all``.

``NBVIZ_ALL=1`` is all: 1,000 fuzzed calls of each function, 10,000 random moves, whole networks. ``NBVIZ_ALL=10`` is
ten times as many, with other random values each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

TIMES = int(os.environ.get("NBVIZ_ALL", "0"))

#: For a test that takes long and repeats on a large case what a test beside it shows on a small one.
long = pytest.mark.skipif(not TIMES, reason="long: for make test-all")


def rounds(some: int, every: int) -> int:
    """How often."""
    return every * TIMES if TIMES else some


def few(rows: Iterable[Any], *indices: int) -> list[Any]:
    """The rows of a parametrised test, of which ``make test`` tries those with these indices; the first, if none."""
    params = [row if isinstance(row, type(pytest.param())) else _param(row) for row in rows]
    tried = {range(len(params))[i] for i in indices or (0,)}
    return [p if i in tried else p._replace(marks=(*p.marks, long)) for i, p in enumerate(params)]


def _param(row: Any) -> Any:
    return pytest.param(*row) if isinstance(row, tuple) else pytest.param(row)
