"""Fixtures of the browser tests: a JupyterLab, a Chromium, and a notebook open in the two of them.

Each test that asks for ``notebook`` runs twice: JupyterLab sends comm messages to kernel subshells (its default), and
to the kernel's main thread. Where that makes no difference, once is enough::

    @pytest.mark.parametrize("subshells", [True], indirect=True)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, sync_playwright

from tests.browser.lab import LabServer, Notebook, chromium, lab_server

FAILED = pytest.StashKey[bool]()
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: they are slow, and Playwright leaves an event loop running in this thread."""
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(scope="session", params=[True, False], ids=["subshells", "main-thread"])
def subshells(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="session")
def lab(subshells: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab"), subshells=subshells) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    arguments = [
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # offline, wherever the tests run
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1400, "height": 1500})
    yield context
    context.close()


@pytest.fixture
def notebook(
    lab: LabServer, context: BrowserContext, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Notebook]]:
    """Open a notebook, a list of cells or a file, and run it: ``notebook(["import nbviz; nbviz.explore()"])``."""
    screenshots = Path(os.environ.get("NBVIZ_SCREENSHOTS", tmp_path))
    opened: list[Notebook] = []

    def open_notebook(source: Sequence[str] | Path, *, run: bool = True, timeout: float = 300.0) -> Notebook:
        lab.reset_settings()
        book = Notebook(context.new_page(), lab, screenshots)
        opened.append(book)
        book.open(source)
        if run:
            book.run_all(timeout)
        return book

    yield open_notebook
    for book in opened:
        if request.node.stash.get(FAILED, True):
            with suppress(Error):  # a page that has crashed
                book.screenshot(f"failed-{request.node.name}.png")
            print(*book.console_errors, sep="\n")
        book.page.close()
    lab.stop_kernels()
    if not request.node.stash.get(FAILED, True):
        assert [url for book in opened for url in book.external_requests] == []
        assert [error for book in opened for error in book.console_errors] == []
