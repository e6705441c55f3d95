"""A notebook that is opened again: live with its kernel, a picture without."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import EXPLORE, kernel, ready
from tests.rounds import long

pytestmark = pytest.mark.parametrize("subshells", [True], indirect=True)


def expect_picture(book: Notebook, number: int, png: str) -> None:
    """The saved picture is what is seen in a cell's output."""
    image = book.cell(number).locator(".jp-OutputArea-output img")
    expect(image).to_be_visible()
    book.wait_for("return document.querySelector('.jp-OutputArea-output img')?.complete")
    assert width(image) > 600
    expect(book.cell(number)).not_to_contain_text("Error")
    expect(book.cell(number)).to_contain_text("Saved picture: run the cell for the live view")
    with Image.open(io.BytesIO(base64.b64decode(png))) as saved:
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(saved.size)
        assert len(np.unique(np.asarray(saved).reshape(-1, 4), axis=0)) > 100


def width(image: Locator) -> float:
    box = image.bounding_box()
    assert box is not None
    return box["width"]


def png(book: Notebook, number: int) -> str:
    (output,) = book.save().cells[number].outputs
    return output["data"]["image/png"]


def test_with_a_new_kernel_the_picture_is_seen(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    ready(book)
    saved = png(book, 0)
    book.server.stop_kernels()
    book.reopen()
    expect_picture(book, 0, saved)
    book.screenshot("reopened-light.png", book.cell(0))
    book.set_theme("dark")
    book.screenshot("reopened-dark.png", book.cell(0))
    book.run_all()
    widget = ready(book)
    widget.locator(".noUi-handle").first.press("ArrowRight")
    ready(book)
    assert kernel(book, "view.channel") == 1


@long
def test_with_its_kernel_it_lives(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    ready(book)
    book.save()
    book.reopen()
    widget = ready(book)
    widget.locator(".noUi-handle").first.press("ArrowRight")
    ready(book)
    assert kernel(book, "view.channel") == 1


@long
def test_with_a_restarted_kernel_the_picture_is_seen(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    ready(book)
    saved = png(book, 0)
    book.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    book.reopen()
    expect_picture(book, 0, saved)


@long
def test_what_was_closed_before_it_was_saved_is_a_picture(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE.removesuffix("view\n"), "view"])
    ready(book, 1)
    book.run_cell(0)
    expect(book.cell(1).locator(".nbviz[data-kept]")).to_have_count(1)
    saved = png(book, 1)
    book.reopen()
    expect_picture(book, 1, saved)
