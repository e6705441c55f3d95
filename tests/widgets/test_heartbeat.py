"""The kernel's sign of life: for whom, and for how long."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from nbviz.widgets import heartbeat
from nbviz.widgets.views import Header


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "nbviz-heartbeat"]


def wait_until(state: object) -> None:
    end = time.monotonic() + 10
    while not state():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    messages: list[tuple[object, ...]] = []
    session = SimpleNamespace(send=lambda socket, kind, content: messages.append((socket, kind, content)))
    kernel = SimpleNamespace(session=session, iopub_socket="iopub")
    monkeypatch.setattr(heartbeat, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    return messages


def test_there_is_none_until_a_page_listens_and_none_after_the_last_is_closed(sent: list[object]) -> None:
    first, second = Header(), Header()
    assert threads() == []
    first.hears = True
    second.hears = True
    wait_until(lambda: len(sent) >= 2)
    assert len(threads()) == 1
    first.close()
    count = len(sent)
    wait_until(lambda: len(sent) > count)
    second.close()
    wait_until(lambda: threads() == [])
    third = Header()
    third.hears = True
    wait_until(threads)
    third.close()
    wait_until(lambda: threads() == [])


def test_it_is_no_output(sent: list[tuple[object, ...]]) -> None:
    header = Header()
    header.hears = True
    wait_until(lambda: sent)
    header.close()
    assert sent[0][:2] == ("iopub", "update_display_data")
    assert sent[0][2]["data"] == {}  # type: ignore[index]
    wait_until(lambda: threads() == [])


def test_without_a_kernel_there_is_none() -> None:
    header = Header()
    header.hears = True
    assert threads() == []
    header.close()
