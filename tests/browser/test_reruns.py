"""A cell that is run again, in the page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import EXPLORE, kernel, ready
from tests.rounds import long

once = pytest.mark.parametrize("subshells", [True], indirect=True)


@long
@once
def test_what_is_shown_elsewhere_stays_as_a_still_picture(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE.removesuffix("view\n"), "view"])
    widget = ready(book, 1)
    before = [book.pixels(canvas) for canvas in widget.locator("canvas").all()]
    box = widget.bounding_box()
    book.run_cell(0)
    still = book.cell(1).locator(".nbviz[data-kept]")
    expect(still).to_have_count(1)
    expect(still.locator(".nbviz-state")).to_have_text("closed: its cell was run again")
    after = [book.pixels(canvas) for canvas in still.locator("canvas").all()]
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    now = still.bounding_box()
    assert box is not None
    assert now is not None
    assert (now["width"], now["height"]) == (box["width"], box["height"])
    book.screenshot("closed.png", still)
    book.set_theme("dark")
    book.screenshot("closed-dark.png", still)
    # Shown again, it is the new one, and the still picture is gone.
    book.run_cell(1)
    widget = ready(book, 1)
    expect(book.cell(1).locator(".nbviz[data-kept]")).to_have_count(0)
    widget.locator(".noUi-handle").first.press("ArrowRight")
    widget = ready(book, 1)
    assert kernel(book, "view.channel") == 1


@once
def test_the_page_lets_go_of_what_was_replaced(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    ready(book)
    comms = "len(__import__('comm').get_comm_manager().comms)"
    before = kernel(book, comms)
    for _ in range(3):
        book.run_cell(0)
        ready(book)
    assert kernel(book, comms) == before
    expect(book.page.locator(".nbviz-explorer")).to_have_count(1)
    expect(book.page.locator(".nbviz-state")).to_have_text("ready")
