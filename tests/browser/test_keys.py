"""A key pressed in a widget is the widget's, never the notebook's: in JupyterLab and in Notebook 7."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook, Notebook7
from tests.browser.test_explorer import kernel, ready
from tests.rounds import TIMES

pytestmark = [
    pytest.mark.parametrize("subshells", [True], indirect=True),
    pytest.mark.parametrize("host", [Notebook, Notebook7], ids=["lab", "notebook7"]),
]
WIDGETS = [
    "import json, nbviz\nview = nbviz.explore()\nview",
    "nbviz.Regions(nbviz.bundled.load('fashion'), nbviz.bundled.fashion_test()[0][:3, None])",
    "nbviz.Correspondence(nbviz.bundled.load('fashion'), nbviz.bundled.fashion_test()[0][:3, None], random=2)",
    "nbviz.ClassActivation(nbviz.bundled.load('fashion'), nbviz.bundled.fashion_test()[0][:3, None])",
    "1 + 1",
]
# Those that JupyterLab or Notebook 7 binds while no cell is being edited; of two keys, one after the other.
KEYS = """
d,d m y r a b x c v z j k h f s l o p u i,i 0,0 q 1 2 3 4 5 6 Shift+a Shift+c Shift+j Shift+k Shift+l Shift+m Shift+o
Shift+v Shift+z Shift+ArrowDown Shift+ArrowUp ArrowDown ArrowUp ArrowLeft ArrowRight Home End Space Shift+Space Enter
Shift+Enter Control+Enter Alt+Enter Control+a Control+b Escape
"""
SHARE = 1 if TIMES else 12  # of the keys, one in so many is tried in each control, and each in some
STATE = """() => {
    const {content, context} = window.jupyterapp.shell.currentWidget;
    const cells = content.widgets.map(cell => [
        cell.model.type, cell.model.sharedModel.getSource(), cell.model.executionCount ?? null,
        cell.outputHidden ?? null, cell.inputHidden ?? null, content.isSelected(cell),
    ]);
    const open = [".jp-Dialog", ".jp-DocumentSearch-overlay", ".lm-CommandPalette:not(.lm-mod-hidden *)"];
    const dialogs = open.map(name => [...document.querySelectorAll(name)].filter(e => e.offsetParent).length);
    const numbers = content.widgets[0].editorConfig?.lineNumbers ?? null;
    return JSON.stringify([cells, content.activeCellIndex, content.mode, dialogs, numbers, context.path]);
}"""
#: Each kind of control, and where it is.
CONTROLS = {
    "tiles": (0, ".nbviz-scroller"),
    "thumbnail": (0, ".nbviz-thumbs button[tabindex='0']"),
    "dropdown": (0, ".widget-dropdown select"),
    "layer": (0, ".nbviz-layers select"),
    "step": (0, ".nbviz-steps button:enabled"),
    "slider": (0, ".noUi-handle"),
    "readout": (0, ".widget-readout"),
    "tab": (0, ".nbviz-tabs button"),
    "choice": (0, ".nbviz-choices button:visible"),
    "colours": (0, ".nbviz-grid select"),
    "range": (0, "input[type='range']"),
    "region": (1, ".nbviz-drawing"),
    "boxes": (2, ".nbviz-drawing"),
    "class": (3, ".nbviz-classes input"),
}


def value(widget: Locator, selector: str) -> str:
    return widget.locator(selector).first.evaluate("element => element.value ?? element.ariaValueNow")


def test_the_notebook_stays_as_it_is_whatever_key_is_pressed(
    notebook: Callable[..., Notebook], host: type[Notebook]
) -> None:
    book = notebook(WIDGETS, host=host)
    for cell in range(4):
        ready(book, cell)
    book.page.evaluate(
        "window.saves = 0; jupyterapp.shell.currentWidget.context.saveState.connect(() => { window.saves += 1 })"
    )
    for i, (name, (cell, selector)) in enumerate(CONTROLS.items()):
        control = book.cell(cell).locator(".nbviz").first.locator(selector).first
        for key in KEYS.split()[i % SHARE :: SHARE]:
            control.focus()
            before = book.page.evaluate(STATE)
            for one in key.split(","):
                book.page.keyboard.press(one)
            book.settle()
            assert book.page.evaluate(STATE) == before, (name, key)
            book.page.keyboard.press("Escape")  # of a list that has opened
    assert book.page.evaluate("saves") == 0
    book.wait_idle()


def test_arrow_keys_move_what_has_the_focus(notebook: Callable[..., Notebook], host: type[Notebook]) -> None:
    book = notebook([WIDGETS[0]], host=host)
    widget = ready(book)
    for selector, key in (
        (".noUi-handle", "ArrowRight"),
        (".widget-dropdown select", "ArrowDown"),
        (".nbviz-layers select", "ArrowUp"),
        (".nbviz-grid select", "ArrowDown"),
        ("input[type='range']", "ArrowLeft"),
    ):
        control = widget.locator(selector).first
        before = value(widget, selector)
        control.focus()
        book.page.keyboard.press(key)
        book.wait_for("return document.activeElement?.isConnected")
        expect(control).to_be_focused()
        assert value(widget, selector) != before, selector
        widget = ready(book)
    grid = widget.locator(".nbviz-grid")
    before = grid.get_attribute("data-channel")
    grid.locator(".nbviz-scroller").focus()
    book.page.keyboard.press("ArrowRight")
    expect(grid).not_to_have_attribute("data-channel", str(before))
    widget = ready(book)
    assert str(kernel(book, "view.channel")) == grid.get_attribute("data-channel")


def test_undo_in_a_widget_undoes_nothing_in_a_cell(notebook: Callable[..., Notebook], host: type[Notebook]) -> None:
    book = notebook(["import nbviz\nview = nbviz.explore()\nview", "x = 1"], host=host)
    widget = ready(book)
    book.cell(1).locator(".cm-content").click()
    book.page.keyboard.press("End")
    book.page.keyboard.type("23")
    source = (
        "return window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel.getSource() === 'x = 123'"
    )
    book.wait_for(source)
    for selector in (".nbviz-thumbs button[tabindex='0']", ".nbviz-scroller", ".nbviz-layers select", ".noUi-handle"):
        for key in ("Control+z", "Control+y", "Control+Shift+z"):
            widget.locator(selector).first.focus()
            book.page.keyboard.press(key)
            book.settle()
            book.wait_for(source, timeout=1)


def test_control_s_saves_from_within_a_widget(notebook: Callable[..., Notebook], host: type[Notebook]) -> None:
    book = notebook(["import nbviz\nview = nbviz.explore()\nview"], host=host)
    book.cell(0).locator(".nbviz select").first.focus()
    book.page.keyboard.press("Control+s")
    book.wait_for("return !window.jupyterapp.shell.currentWidget.context.model.dirty")


def test_the_last_step_keeps_the_focus(notebook: Callable[..., Notebook], host: type[Notebook]) -> None:
    view = "nbviz.FeatureMaps(nbviz.bundled.load('fashion'), nbviz.bundled.fashion_test()[0][:1, None], 'features.0')"
    book = notebook(["import nbviz", view], host=host)
    step = ready(book, 1).locator(".nbviz-steps button").first
    step.focus()
    book.page.keyboard.press("Enter")
    expect(step).to_have_attribute("aria-disabled", "true")
    expect(step).to_be_focused()


def test_a_class_that_is_none_is_said_until_the_next_is_typed(
    notebook: Callable[..., Notebook], host: type[Notebook]
) -> None:
    book = notebook([WIDGETS[3].replace("nbviz.Class", "import nbviz\nnbviz.Class")], host=host)
    field = ready(book).locator(".nbviz-classes")
    line = field.locator(".nbviz-caption")
    for key in ("Tab", "Enter"):
        field.locator("input").click()
        field.locator("input").fill("zzzz")
        book.page.keyboard.press(key)
        expect(line).to_have_text("no class matches “zzzz”")
        expect(field.locator("input")).to_have_value("ankle boot (9)")
    field.locator("input").fill("bag")
    expect(line).to_be_hidden()
    book.page.keyboard.press("Enter")
    expect(field.locator("input")).to_have_value("bag (8)")
    expect(line).to_be_hidden()
