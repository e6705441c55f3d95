"""Timing, and the rows of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def times(work: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of some runs, after one that warms up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - start))
    return found


def best(work: Callable[[], Any], repeats: int = 3) -> float:
    """Milliseconds of the quickest of some runs: what is compared within one process."""
    return min(times(work, repeats))


def median(work: Callable[[], Any], repeats: int = 7) -> float:
    """Median milliseconds of some runs: what is compared with the page's, where other processes take part."""
    return statistics.median(times(work, repeats))


def in_turn(*works: Callable[[], Any], rounds: int = 20) -> list[list[float]]:
    """Milliseconds of each work in each round: what makes the machine slow for a while, they share."""
    return [list(found) for found in zip(*([best(work, 1) for work in works] for _ in range(rounds)), strict=True)]


def paired(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Our median, and that times the median ratio of theirs to ours in the same round."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(ours) * ratio


def heading() -> None:
    """The table's head, in Markdown."""
    print("| what | nbviz, ms | against | ms | times | wanted | |\n|---|--:|---|--:|--:|--:|---|")


def row(what: str, ours: float, against: str, theirs: float, wanted: float | None = None) -> None:
    """One line: our milliseconds, the other's, and how many times ours go into them."""
    ratio = theirs / ours
    want, kept = ("", "") if wanted is None else (f"≥ {wanted:.3g}", "yes" if ratio >= wanted else "NO")
    print(f"| {what} | {ours:.1f} | {against} | {theirs:.1f} | {ratio:.2f} | {want} | {kept} |", flush=True)


def count(what: str, found: float, most: float, unit: str = "") -> None:
    """One line for something that is counted and must not be more than so much."""
    kept = "yes" if found <= most else "NO"
    print(f"| {what} | | | | {found:.3g}{unit} | ≤ {most:g}{unit} | {kept} |", flush=True)
