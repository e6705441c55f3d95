"""A key pressed in a widget is the widget's, never the notebook's."""

import pytest

# Each would change the notebook, its cells or which of them is selected.
KEYS = ("d", "d", "m", "b", "a", "x", "1", "y", "ArrowDown", "ArrowUp", "Escape", "Enter", "Control+Enter")
STATE = """() => {
    const book = window.jupyterapp.shell.currentWidget.content;
    const cells = book.widgets.map(cell => [cell.model.type, cell.model.executionCount ?? null]);
    return JSON.stringify([cells, book.activeCellIndex, book.mode]);
}"""


@pytest.mark.parametrize("subshells", [True], indirect=True)
def test_the_notebook_stays_as_it_is_whatever_key_is_pressed_in_a_widget(notebook):
    book = notebook(["import nbviz\nview = nbviz.explore()\nview", "1 + 1"])
    widget = book.cell(0).locator(".nbviz").first
    for focusable in ("select", ".noUi-handle", "canvas", "button", "[tabindex='0']"):
        for place in range(min(2, widget.locator(focusable).count())):
            found = widget.locator(focusable).nth(place)
            if not found.is_visible():
                continue
            found.focus()
            if not found.evaluate("found => found.contains(document.activeElement)"):
                continue  # it takes no focus
            before = book.page.evaluate(STATE)
            for key in KEYS:
                book.page.keyboard.press(key)
            book.wait_idle()
            assert book.page.evaluate(STATE) == before, (focusable, place)


@pytest.mark.parametrize("subshells", [True], indirect=True)
def test_control_s_saves_from_within_a_widget(notebook):
    book = notebook(["import nbviz\nview = nbviz.explore()\nview"])
    book.cell(0).locator(".nbviz select").first.focus()
    book.page.keyboard.press("Control+s")
    book.wait_for("return !window.jupyterapp.shell.currentWidget.context.model.dirty")
