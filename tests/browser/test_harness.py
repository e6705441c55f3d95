"""The harness sees what it claims to see: else "nothing was sent" would prove nothing."""

from __future__ import annotations

from itertools import combinations

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.browser.lab import SHOWN, CellError, likeness, slider_moves
from tests.rounds import few, long

SLIDER = """
import threading, time, ipywidgets

def on_value(change):
    time.sleep(delay)
    threads.append(threading.current_thread().name)

delay = 0
threads = []
slider = ipywidgets.IntSlider(max=100)
slider.observe(on_value, "value")
slider
"""

once = pytest.mark.parametrize("subshells", [True], ids=["once"], indirect=True)
both_ways = pytest.mark.parametrize("subshells", few([True, False]), ids=["subshells", "main-thread"], indirect=True)


@both_ways
def test_a_slider_move_reaches_the_kernel_on_the_thread_that_was_asked_for(notebook, subshells):
    book = notebook([SLIDER])
    handle = book.cell(0).locator(".noUi-handle")
    with book.widget_messages() as sent:
        for _ in range(5):
            handle.press("ArrowRight")
            book.wait_idle()
    assert [message.state["value"] for message in sent] == [1, 2, 3, 4, 5]
    assert book.add_and_run("slider.value") == "5"
    on_subshells = book.add_and_run("[name.startswith('subshell') for name in threads[1:]]")
    assert on_subshells == str([subshells] * 4)


def test_sixty_moves_in_a_second_end_on_the_last_value_without_a_backlog(notebook):
    book = notebook([SLIDER.replace("delay = 0", "delay = 0.1")])
    with book.widget_messages() as sent:
        took = slider_moves(book.cell(0).locator(".noUi-handle"), 60)
        book.wait_idle()
    assert 0.9 < took < 2
    assert book.add_and_run("slider.value, len(threads)") == str((60, len(sent)))
    assert len(sent) <= 20


def test_a_change_within_the_page_sends_nothing(notebook):
    book = notebook([SLIDER])
    with book.widget_messages() as sent:
        book.cell(0).locator(".noUi-handle").evaluate("handle => { handle.style.background = 'red' }")
    assert sent == []


@once
def test_a_cell_is_left_running_while_the_test_goes_on(notebook):
    wait = "goal = slider.value + 2\nwhile slider.value < goal: time.sleep(0.01)\nprint('done')"
    book = notebook([SLIDER, wait], run=False)
    book.run_cell(0)
    handle = book.cell(0).locator(".noUi-handle")
    for _ in range(20):  # JupyterLab asks for a subshell at the first move; until it has one, the main thread gets them
        handle.press("ArrowRight")
        book.wait_idle()
        if book.add_and_run("threads[-1].startswith('subshell')") == "True":
            break
    book.run_cell(1, wait=False)
    for _ in range(2):
        handle.press("ArrowRight")
    book.wait_run()
    assert book.cell_output_text(1) == "done\n"


@long
@once
def test_a_file_is_opened_and_shown_in_both_themes(notebook, tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(
            "from IPython.display import HTML\n"
            "HTML('<canvas width=3 height=2></canvas><div style=\"background: var(--jp-layout-color0)\">text</div>')"
        ),
    ]
    path = tmp_path / "file.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    book = notebook(path)
    canvas = book.cell(1).locator("canvas")
    canvas.evaluate("c => { const d = c.getContext('2d'); d.fillStyle = '#ff8000'; d.fillRect(1, 0, 1, 1) }")
    assert book.pixels(canvas).tolist()[0] == [[0, 0, 0, 0], [255, 128, 0, 255], [0, 0, 0, 0]]
    background = "e => getComputedStyle(e).backgroundColor"
    colours = []
    for theme in ("light", "dark"):
        book.set_theme(theme)
        colours.append(book.cell(1).locator("canvas + div").evaluate(background))
        assert book.screenshot(f"harness-{theme}.png").stat().st_size > 0
    assert colours == ["rgb(255, 255, 255)", "rgb(17, 17, 17)"]


@once
def test_a_cell_error_is_an_error_of_the_test(notebook):
    with pytest.raises(CellError, match=r"cell 1: [\s\S]*ZeroDivisionError"):
        notebook(["1", "1 / 0"])


@once
def test_requests_elsewhere_and_console_errors_are_recorded(notebook):
    book = notebook(["1"])
    book.page.evaluate("() => fetch('http://example.invalid/x').catch(() => console.error('an error'))")
    book.settle()
    assert book.external_requests == ["http://example.invalid/x"]
    assert any("an error" in error for error in book.console_errors)
    book.external_requests.clear()
    book.console_errors.clear()


def test_pictures_are_alike_only_if_they_show_the_same(tmp_path):
    """README's pictures are told apart, and one that is moved by a line is another one; other noise is not."""
    shown = sorted(SHOWN.glob("*.png"))
    assert all(likeness(one, other) < 0.5 for one, other in combinations(shown, 2))
    with Image.open(shown[0]) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    noisy = pixels + np.random.default_rng(0).integers(-8, 9, pixels.shape)
    moved = np.concatenate([pixels[:40], pixels[:-40]])
    for changed, is_alike in ((noisy, True), (moved, False)):
        Image.fromarray(changed.clip(0, 255).astype(np.uint8)).save(tmp_path / "changed.png")
        assert (likeness(tmp_path / "changed.png", shown[0]) > 0.6) == is_alike
