"""What is set in the page is what a figure shows and the copied code gives, for every widget that has settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

import nbviz
from tests.browser.lab import Notebook
from tests.browser.test_grid import canvas, tile
from tests.rounds import long
from tests.widgets.every_widget import EVERY

once = pytest.mark.parametrize("subshells", [True], indirect=True)
SETTINGS = {
    name: [setting for setting, control in getattr(nbviz, name)._controls.items() if control.in_views] for name in EVERY
}
START = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import numpy as np, torch, nbviz
from nbviz.imaging.pixels import colour_table
from tests.small import Small
from tests.widgets.every_widget import make
torch.manual_seed(0)
model, images = Small().eval(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))

def drawn(view, file):
    '''Write the figure's pictures; print their captions, and the channels of the grid that it shows.'''
    panels = [panel for row in view._figure_rows() for panel in row if panel.pixels is not None]
    arrays = [colour_table(p.cmap)[p.pixels] if p.pixels.ndim == 2 else p.pixels for p in panels]
    grid = getattr(view, "grid", None)
    channels, levels = grid.levels() if grid is not None and grid.is_current() else ([], np.zeros((0, 1, 1), np.uint8))
    if levels.ndim == 3:
        levels = colour_table(grid.cmap)[levels] if len(levels) else np.zeros((0, 1, 1, 3), np.uint8)
    crossed = np.isin(channels, grid.off if grid is not None else [])
    np.savez(file, *arrays, grid=np.broadcast_to(levels, (*levels.shape[:3], 3)), crossed=crossed)
    return json.dumps([panel.caption for panel in panels])
"""
# In the page: what a person takes hold of, and what they do with it
SLIDE = """(slider, value) => {
  slider.value = value;
  for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind));
}"""
HANDLES = {
    "cmap": ('select[aria-label="Colour map"]:visible', lambda control: control.select_option("magma")),
    "opacity": ('input[aria-label="opacity"]:visible', lambda control: control.evaluate(SLIDE, 0.25)),
    "contrast": ('input[aria-label="contrast"]:visible', lambda control: control.evaluate(SLIDE, 1.5)),
    "order": (
        '[aria-label="Order of the channels"] button:has-text("spread"):visible',
        lambda control: control.click(),
    ),
    "scale": ('[aria-label="Scale"] button:not([aria-pressed="true"]):visible', lambda control: control.click()),
    "columns": ('[aria-label="Zoom"] button[title="larger tiles"]:visible', lambda control: control.click()),
}


def change(widget: Locator, setting: str) -> bool:
    """Set it in the page; whether the page offers it."""
    selector, act = HANDLES[setting]
    found = widget.locator(selector)
    if found.count():
        act(found.first)
    return found.count() > 0


@once
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "Explorer" else long) for name, settings in SETTINGS.items() if settings],
)
def test_a_figure_shows_what_was_set_in_the_page(notebook: Callable[..., Notebook], name: str, tmp_path: Path) -> None:
    book = notebook([START, f"view = make({name!r}, model, images)\nview"])
    widget = book.cell(1).locator(".nbviz").first
    expect(widget.locator(".nbviz-header").first).to_have_attribute("data-state", "ready", timeout=60_000)
    book.wait_idle()
    before, after, file = (str(tmp_path / name) for name in ("before.png", "after.png", "drawn.npz"))
    book.add_and_run(f"view.save({before!r})")
    offered = [setting for setting in SETTINGS[name] if change(widget, setting)]
    assert offered
    book.wait_idle()
    values = json.loads(book.add_and_run(f"print(json.dumps({{n: getattr(view, n) for n in {offered}}}))"))
    defaults = {setting: getattr(nbviz, name)._controls[setting].default_argument for setting in offered}
    assert [setting for setting in offered if values[setting] == defaults[setting]] == []
    assert all(f"{setting}={value!r}" in book.add_and_run("print(view.code)") for setting, value in values.items())
    captions = json.loads(book.add_and_run(f"view.save({after!r})\nprint(drawn(view, {file!r}))"))
    assert Path(before).read_bytes() != Path(after).read_bytes()
    with np.load(file) as loaded:
        arrays = dict(loaded)

    compared = 0
    for place in widget.locator(".nbviz-row figure:visible").all():
        shown = book.pixels(place.locator("canvas"))[..., :3].astype(int)
        caption = place.locator("figcaption").inner_text()
        figure = [arrays[f"arr_{i}"].astype(int) for i, its_own in enumerate(captions) if its_own == caption]
        # A map over a picture is enlarged by the browser here and by torch there.
        assert min(np.abs(shown - one).mean() for one in figure if one.shape == shown.shape) <= 3
        compared += 1
    grids = widget.locator(".nbviz-grid:visible")
    if len(arrays["grid"]):
        pixels, levels = canvas(book, grids.first), arrays["grid"].astype(int)
        columns = values.get("columns") or min(8, int(np.ceil(np.sqrt(len(levels)))))
        for i in np.flatnonzero(~arrays["crossed"][:columns]):
            level = levels[i]
            assert np.abs(tile(pixels, i, level.shape[:2], columns) - level)[2:-2, 2:-2].max(initial=0) <= 2
            compared += 1
    assert compared
    book.screenshot(f"settings-{name}.png")
