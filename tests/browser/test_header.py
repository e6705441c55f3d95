"""What the header says of the kernel is soon true, whatever happens to it: in half a second where nothing else runs."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import EXPLORE, choose_layer, kernel, ready
from tests.rounds import long

once = pytest.mark.parametrize("subshells", [True], indirect=True)
SOON = int(os.environ.get("NBVIZ_SOON_MS", "2000"))  # which a machine that runs other tests beside may need
#: One pass that takes three seconds.
SLOW = """
def dwell(*_):
    end = time.monotonic() + 2
    while time.monotonic() < end:
        torch.ones(64, 64) @ torch.ones(64, 64)
handle = model.features[5].register_forward_hook(dwell)
"""


def header(widget: Locator) -> Locator:
    return widget.locator(".nbviz-header").first


def expect_soon(widget: Locator, state: str, text: str, soon: int = SOON) -> None:
    expect(header(widget)).to_have_attribute("data-state", state, timeout=soon)
    expect(header(widget).locator(".nbviz-state")).to_contain_text(text, timeout=soon)


def expect_dimmed(widget: Locator) -> None:
    for part in (".nbviz-columns", ".nbviz-views"):
        assert widget.locator(part).evaluate("element => Number(getComputedStyle(element).opacity)") < 1
    assert header(widget).evaluate("element => Number(getComputedStyle(element).opacity)") == 1


def kill(book: Notebook) -> None:
    pid = int(str(kernel(book, "__import__('os').getpid()")))
    book.settle()
    os.kill(pid, signal.SIGKILL)


def test_a_long_pass_is_said_to_be_work(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.add_and_run(SLOW)
    choose_layer(widget, "features.7")
    expect_soon(widget, "working", "working")
    expect(widget).to_have_attribute("data-stale", "channel first fused grid rest trace")
    book.screenshot("working.png", widget)
    widget = ready(book)
    expect(header(widget).locator(".nbviz-state")).to_have_text("ready")
    book.add_and_run("view.layer = 'features.8'", wait=False)  # from a cell as well
    expect_soon(widget, "working", "working")
    book.wait_run()


@once
def test_after_a_restart_there_is_no_kernel(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.page.evaluate("void jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    expect_soon(widget, "no kernel", "run the cell again")
    expect_dimmed(widget)
    book.wait_for("return jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status === 'idle'")
    expect_soon(widget, "no kernel", "run the cell again")
    book.screenshot("restarted.png", widget)
    book.run_all()
    widget = ready(book)
    expect(widget).to_have_attribute("data-stale", "")


@long
def test_a_killed_kernel_is_missed_at_once(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    kill(book)
    expect_soon(widget, "no kernel", "no kernel", 3 * SOON)  # longer where there were false alarms
    expect_dimmed(widget)
    book.screenshot("killed.png", widget)
    # The server notices, some seconds later, and starts another, which knows nothing of the widget.
    expect(header(widget)).to_contain_text("run the cell again", timeout=30_000)
    book.page.get_by_role("button", name="Ok", exact=True).click()  # JupyterLab's own word on it
    book.run_all()
    widget = ready(book)
    expect(widget).to_have_attribute("data-stale", "")


@long
@once
def test_a_kernel_shut_down_is_missed_at_once(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    expect_soon(widget, "no kernel", "run the cell again")
    expect_dimmed(widget)


@long
@once
def test_without_a_kernel_the_tabs_are_dimmed_too(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    widget.get_by_role("button", name="regions", exact=True).click()
    expect(widget.locator(".nbviz-region")).to_be_visible()
    ready(book)
    book.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    expect_soon(widget, "no kernel", "run the cell again")
    expect_dimmed(widget)
    book.screenshot("no-kernel-tab.png", widget)


def test_a_kernel_that_is_busy_in_python_is_not_missed(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    header(widget).evaluate(
        """header => {
            window.seen = new Set();
            new MutationObserver(() => seen.add(header.dataset.state)).observe(header, {attributes: true});
            let last = performance.now();
            window.longest = 0;
            const {kernel} = jupyterapp.shell.currentWidget.context.sessionContext.session;
            kernel.iopubMessage.connect((_, m) => {
                if (m.content.transient?.display_id !== "nbviz-alive") return;
                longest = Math.max(longest, performance.now() - last);
                last = performance.now();
            });
        }"""
    )
    book.add_and_run("end = time.monotonic() + 3\nwhile time.monotonic() < end: sum(range(1000))", wait=False)
    widget.locator(".noUi-handle").first.press("ArrowRight")
    expect_soon(widget, "waiting", "waiting: a cell is running")
    # All of it, as long as nobody in the kernel has heard of the change.
    expect(widget).to_have_attribute("data-stale", re.compile("^(all|channel)$"), timeout=SOON)
    book.screenshot("cell-running.png", widget)
    book.wait_run()
    widget = ready(book)
    assert kernel(book, "view.channel") == 1
    # On a machine that is overloaded, half a second may pass without a sign of life.
    assert "no kernel" not in book.page.evaluate("[...seen]") or book.page.evaluate("longest") > 450


@long
@once
def test_a_sign_of_life_costs_next_to_nothing(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    ready(book)
    spent = "print(time.process_time())"
    before, start, heard = float(book.add_and_run(spent)), time.monotonic(), len(book.kernel_replies)
    with book.widget_messages() as sent:
        book.page.evaluate(
            """() => {
                window.beats = 0;
                const {kernel} = jupyterapp.shell.currentWidget.context.sessionContext.session;
                kernel.iopubMessage.connect((_, m) => { beats += m.content.transient?.display_id === "nbviz-alive" });
            }"""
        )
        book.wait_for("return beats >= 20")
    assert sent == []
    assert len(book.kernel_replies) - heard < 30
    ratio = (float(book.add_and_run(spent)) - before) / (time.monotonic() - start)
    print(f"{100 * ratio:.1f} % of a core, with two cells run")
    assert ratio < 0.05
