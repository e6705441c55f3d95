"""Fixtures of the browser tests: a JupyterLab, a Chromium, and a notebook open in the two of them.

JupyterLab sends comm messages to kernel subshells, which is its default, or to the kernel's main thread. ``make test``
tries the default, and one test both ways::

    @pytest.mark.parametrize("subshells", [True, False], indirect=True)

``make test-all`` tries both in each test that asks for ``notebook``, except where that makes no difference::

    @pytest.mark.parametrize("subshells", [True], indirect=True)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, ViewportSize, sync_playwright

from tests.browser.lab import LabServer, Notebook, chromium, lab_server
from tests.rounds import long

FAILED = pytest.StashKey[bool]()
HERE = Path(__file__).parent
VIEWPORT: ViewportSize = {"width": 1400, "height": 1500}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last where one process runs all: they are slow."""
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(scope="package", params=[True, pytest.param(False, marks=long)], ids=["subshells", "main-thread"])
def subshells(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="package")
def lab(subshells: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab"), subshells=subshells) as server:
        yield server


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport=VIEWPORT)
    yield context
    context.close()


@pytest.fixture(scope="package")
def left(lab: LabServer) -> Iterator[list[Notebook]]:
    """The page that a test has left for the next: to load JupyterLab and torch takes longer than most tests."""
    pages: list[Notebook] = []
    yield pages
    for book in pages:
        book.page.close()


@pytest.fixture
def notebook(
    lab: LabServer, context: BrowserContext, left: list[Notebook], request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Notebook]]:
    """Open a notebook, a list of cells or a file, and run it: ``notebook(["import nbviz; nbviz.explore()"])``.

    With ``fresh=True`` in a page of its own, which a test asks for that changes more of the page than its notebook; so
    does ``host=Notebook7``.
    """
    opened: list[Notebook] = []
    own: list[Notebook] = []

    def open_notebook(
        source: Sequence[str] | Path,
        *,
        run: bool = True,
        timeout: float = 300.0,
        fresh: bool = False,
        host: type[Notebook] = Notebook,
    ) -> Notebook:
        screenshots = Path(os.environ.get("NBVIZ_SCREENSHOTS", tmp_path))
        fresh = fresh or host is not Notebook
        if left and not fresh:
            book = left.pop()
            book.screenshots = screenshots
            book.page.set_viewport_size(VIEWPORT)
            book.set_theme("light")
        else:
            lab.reset_settings()
            book = host(context.new_page(), lab, screenshots)
        opened.append(book)
        own.extend([book] if fresh else [])
        book.open(source)
        if run:
            book.run_all(timeout)
        return book

    yield open_notebook
    failed = request.node.stash.get(FAILED, True)
    for book in opened:
        if failed:
            with suppress(Error):  # a page that has crashed
                book.screenshot(f"failed-{request.node.name}.png")
            print(*book.console_errors, sep="\n")
    external = [url for book in opened for url in book.external_requests]
    errors = [error for book in opened for error in book.console_errors]
    if failed or len(opened) != 1:
        lab.stop_kernels()
    else:
        opened[0].clear()
    for book in opened:
        if failed or len(opened) != 1 or book in own:
            book.page.close()
        else:
            left.append(book)
    if not failed:
        assert external == []
        assert errors == []
