"""What waits for a running cell, and what must not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

import nbviz
from nbviz.core import state
from nbviz.core.state import lock
from nbviz.widgets import cells
from tests.rounds import few
from tests.widgets import schedules


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # of another environment, it would be warned of
    shell = InteractiveShell()
    monkeypatch.setattr(cells, "get_ipython", lambda: shell)
    monkeypatch.setattr(cells, "_watched", [])
    monkeypatch.setattr(cells, "_running", [])
    shell.user_ns.update(nbviz=nbviz, torch=torch, threading=threading, cells=cells)
    yield shell
    cells._idle.set()


def on_thread(name: str, work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


MAKE = "view = nbviz.explore(layer='features.8', channel=0); view.finish()"


def test_a_subshell_waits_for_the_cell_that_made_the_widget_and_says_so(shell: InteractiveShell) -> None:
    shell.run_cell(
        f"{MAKE}\n"
        "states = []\n"
        "view.header.observe(lambda change: states.append(change.new), 'state')\n"
        "thread = threading.Thread(target=lambda: setattr(view, 'channel', 1), name='subshell-1', daemon=True)\n"
        "thread.start()\n"
        "thread.join(0.3)\n"
        "waited, during = thread.is_alive(), list(states)"
    ).raise_error()
    shell.user_ns["thread"].join(10)
    assert shell.user_ns["waited"]
    assert shell.user_ns["during"] == ["waiting: a cell is running"]
    shell.user_ns["view"].finish()
    assert shell.user_ns["view"].header.state == "ready"
    assert shell.user_ns["view"].panels.current["channel"].split()[2] == "1"


def test_a_cell_that_a_subshell_runs_does_not_wait_for_itself(shell: InteractiveShell) -> None:
    shell.run_cell(MAKE).raise_error()
    made = "nbviz.FeatureMaps(view.session.subject.model, view.session.subject.inputs)"
    cell = f"view.channel = 2; made = {made}; view.figure()"
    thread = on_thread("subshell-1", lambda: shell.run_cell(cell))
    thread.join(30)
    assert not thread.is_alive()
    assert cells._idle.is_set()
    assert shell.user_ns["view"].channel == 2


def test_a_cell_waits_for_a_chunk_that_is_being_drawn(shell: InteractiveShell) -> None:
    shell.run_cell(MAKE).raise_error()
    entered, leave = threading.Event(), threading.Event()

    def chunk() -> None:
        with cells.between_cells(lambda: None):
            entered.set()
            leave.wait(10)

    on_thread("subshell-1", chunk)
    entered.wait(10)
    shell.user_ns["leave"] = leave
    on_thread("timer", lambda: (threading.Event().wait(0.2), leave.set()))
    shell.run_cell("free = leave.is_set()").raise_error()
    assert shell.user_ns["free"]


def test_a_persons_own_threads_wait_for_no_cell(shell: InteractiveShell) -> None:
    shell.run_cell(
        f"{MAKE}\n"
        "def work():\n"
        "    nbviz.feature_maps(view.session.subject.model, torch.zeros(1, 1, 28, 28), 'features.0')\n"
        "    view.channel = 2\n"
        "thread = threading.Thread(target=work, daemon=True)\n"
        "thread.start(); thread.join(20)\n"
        "done = not thread.is_alive()"
    ).raise_error()
    assert shell.user_ns["done"]


def test_a_first_widget_made_outside_a_cell_holds_nothing(shell: InteractiveShell) -> None:
    nbviz.explore()
    assert cells._idle.is_set()
    assert lock.acquire(blocking=False)
    lock.release()
    shell.run_cell("1 / 0", silent=False)
    assert cells._idle.is_set()


def test_nested_and_empty_cells_end_what_they_began(shell: InteractiveShell) -> None:
    shell.run_cell("import nbviz; nbviz.explore()").raise_error()
    shell.user_ns["shell"] = shell
    shell.run_cell(
        "seen = []\n"
        "for source in ('', 'pass', '1 / 0'):\n"
        "    shell.run_cell(source)\n"
        "    seen.append(cells._idle.is_set())"
    ).raise_error()
    assert shell.user_ns["seen"] == [False, False, False]
    assert cells._idle.is_set()


def test_an_end_without_a_beginning_is_no_error() -> None:
    cells._end(SimpleNamespace(info=object()))
    assert cells._idle.is_set()


def turns(ran: int, drawn: int, own: int) -> list[schedules.Actor]:
    """Cells that call nbviz, one after the other; subshells that draw, with a turn in a turn; a thread of one's own."""

    def cell_after_cell() -> None:
        for info in [object() for _ in range(ran)]:
            cells._begin(info)
            with state.alone():
                pass
            cells._end(SimpleNamespace(info=info))

    def draw() -> None:
        with cells.between_cells(lambda: None), cells.between_cells(lambda: None):
            pass

    def call() -> None:
        with state.alone():
            pass

    subshells = [(f"subshell-{i}", draw) for i in range(drawn)]
    return [("MainThread", cell_after_cell), *subshells, *((f"own-{i}", call) for i in range(own))]


@pytest.mark.parametrize(("ran", "drawn", "own"), few([(2, 1, 1), (1, 2, 0), (1, 1, 2)], 0, 1))
def test_in_no_order_do_cells_and_chunks_wait_for_each_other_for_ever(
    ran: int, drawn: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, idle = schedules.Lock(), schedules.Event()
    for module in (state, cells):
        monkeypatch.setattr(module, "lock", lock)
    monkeypatch.setattr(cells, "_idle", idle)
    monkeypatch.setattr(state, "_handler", lambda: None)  # the walk's threads are no main thread

    def actors() -> list[schedules.Actor]:
        monkeypatch.setattr(cells, "_running", [])
        return turns(ran, drawn, own)

    assert schedules.walk(actors, lock, idle) > 500


def test_what_a_cell_did_after_it_last_used_a_widget_is_seen_when_a_control_moves(shell: InteractiveShell) -> None:
    shell.run_cell(
        "model = nbviz.bundled.load('fashion')\n"
        "view = nbviz.explore(model, torch.rand(2, 1, 28, 28), layer='features.8', channel=0); view.finish()\n"
        "list(model.parameters())[-2].detach().numpy()[3, 5] += 50"
    ).raise_error()
    view, model = shell.user_ns["view"], shell.user_ns["model"]
    view.picture = 1
    view.finish()
    expected = model.eval()(view.session.subject.inputs[1:])[0].softmax(0).max()
    assert view.strip.predictions[0][1] == pytest.approx(float(expected.detach()), abs=1e-6)
