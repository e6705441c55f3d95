"""The grid of channels in a real page: what it draws, by shader and by table; what it asks for, and when."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook
from tests.rounds import long

once = pytest.mark.parametrize("subshells", [True], indirect=True)
EXPLORE = """
import nbviz, torch, json
model = nbviz.bundled.load("fashion")
images = nbviz.bundled.fashion_test()[0][:4, None]
view = nbviz.explore(model, images, layer="features.11", channel=0, tiles={tiles!r})
view
"""
LARGE = """
import nbviz, torch, json
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, {count}, 3, padding=1), torch.nn.ReLU())
picture = torch.rand(1, 3, {side}, {side})
view = nbviz.explore(model, picture, layer="1", channel=0)
view
"""
FORCE = "globalThis.__nbviz_page = Object.assign(new EventTarget(), {drawing: new Set(), forceShader: true})"


def ready(book: Notebook, tiles: int) -> Locator:
    """The grid once all of its tiles are there."""
    widget = book.cell(0).locator(".nbviz").first
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-there", str(tiles), timeout=30_000)
    expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=30_000)
    book.wait_idle()
    return widget.locator(".nbviz-grid")


def canvas(book: Notebook, grid: Locator) -> np.ndarray:
    return book.pixels(grid.locator(".nbviz-scroller canvas"))[..., :3].astype(int)


def tile(pixels: np.ndarray, place: int, shape: tuple[int, int], columns: int = 8) -> np.ndarray:
    """A tile of a canvas, one pixel of the canvas from the middle of each of its own."""
    across = (pixels.shape[1] + 3) / columns - 3
    down = across * shape[0] / shape[1]
    left, top = (place % columns) * (across + 3), place // columns * (down + 3)
    rows = (top + (np.arange(shape[0]) + 0.5) * down / shape[0]).astype(int)
    return pixels[rows][:, (left + (np.arange(shape[1]) + 0.5) * across / shape[1]).astype(int)]


def kernel(book: Notebook, expression: str) -> np.ndarray:
    return np.asarray(json.loads(book.add_and_run(f"print(json.dumps({expression}))")))


def controls(book: Notebook, grid: Locator) -> list[np.ndarray]:
    """The canvas under several settings of what stays in the page, at natural size and reduced."""
    found = [canvas(book, grid)]
    for name in ("shared", "index", "spread"):
        grid.get_by_role("button", name=name, exact=True).click()
        found.append(canvas(book, grid))
    if grid.locator("select").is_visible():  # reconstructions have no colour map
        grid.locator("select").select_option("turbo")
    found.append(canvas(book, grid))
    grid.locator(".nbviz-scroller").evaluate("element => { element.scrollTop = 77 }")
    book.settle()
    found.append(canvas(book, grid))
    for _ in range(9):
        grid.get_by_title("smaller tiles").click()
    found.append(canvas(book, grid))
    for _ in range(13):
        grid.get_by_title("larger tiles").click()
    book.wait_idle()
    found.append(canvas(book, grid))
    return found


@long
@once
@pytest.mark.parametrize("tiles", ["activation", pytest.param("deconvnet", marks=long)])
def test_the_shader_draws_what_the_table_draws(notebook: Callable[..., Notebook], tiles: str) -> None:
    pictures = {}
    for by in ("table", "webgl2"):
        book = notebook([EXPLORE.format(tiles=tiles)], run=False, fresh=True)
        if by == "webgl2":
            book.page.evaluate(FORCE)
        book.run_all()
        grid = ready(book, 128)
        expect(grid).to_have_attribute("data-by", by)
        pictures[by] = controls(book, grid)
        expect(grid).to_have_attribute("data-by", by)
        book.screenshot(f"grid-{tiles}-{by}.png")
    # A page that loses its WebGL context draws the same by the table.
    book.page.evaluate("__nbviz_page.shader.gl.getExtension('WEBGL_lose_context').loseContext()")
    for name in ("each", "shared"):
        grid.get_by_role("button", name=name, exact=True).click()
    expect(grid).to_have_attribute("data-by", "table")
    assert np.median(np.abs(canvas(book, grid) - pictures["webgl2"][-1])) == 0
    for number, (a, b) in enumerate(zip(pictures["table"], pictures["webgl2"], strict=True)):
        assert a.shape == b.shape
        assert len(np.unique(a.reshape(-1, 3), axis=0)) > 10
        difference = np.abs(a - b).max(2)
        # The same but for pixels on the seam of two of a tile's own, which either may give to one of the two.
        assert np.median(difference) == 0, number
        assert (difference > 2).mean() < (0.25 if number == 6 else 0.12), number  # 6: many of its pixels in one


def test_reconstructions_of_all_channels_the_strongest_first(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE.format(tiles="guided")])
    grid = ready(book, 128)
    maps = "nbviz.feature_maps(model, images[:1], 'features.11')[0].flatten(1)"
    strongest = kernel(book, f"{maps}.amax(1).argsort(descending=True, stable=True).tolist()")
    sent = kernel(book, f"dict(zip(view.grid.pixels()[0], view.grid.pixels()[1].tolist()))[{strongest[1]}]")
    shown = tile(canvas(book, grid), 1, sent.shape[:2])
    expected = np.clip(128 + (sent - 128) * 2.0, 0, 255)
    np.testing.assert_array_equal(shown, np.repeat(expected, 3, -1))
    # Contrast is that of the panels, and sends nothing.
    with book.widget_messages() as messages:
        slider = book.cell(0).get_by_label("contrast")
        slider.evaluate("slider => { slider.value = 3; slider.dispatchEvent(new Event('input')) }")
    assert messages == []
    shown = tile(canvas(book, grid), 1, sent.shape[:2])
    np.testing.assert_array_equal(shown, np.repeat(np.clip(128 + (sent - 128) * 8.0, 0, 255), 3, -1))
    grid.locator(".nbviz-scroller").hover(position={"x": 60, "y": 20})
    expect(grid.locator(".nbviz-tip")).to_contain_text(f"#{strongest[1]} · row")
    # A click picks, also here.
    grid.locator(".nbviz-scroller").click(position={"x": 60, "y": 20})
    grid = ready(book, 128)
    assert kernel(book, "view.channel") == strongest[1]
    label = book.cell(0).locator(".widget-dropdown", has_text="Tiles").locator("select")
    label.select_option("gradient")
    expect(grid).to_have_attribute("data-tiles", "0 features.11 gradient (0,) max 0")
    ready(book, 128)
    assert kernel(book, "view.session.forward_passes") == 2


@long
@once
def test_larger_tiles_are_sent_once_they_are_wanted(notebook: Callable[..., Notebook]) -> None:
    book = notebook([LARGE.format(count=40, side=224)])
    grid = ready(book, 40)
    few = kernel(book, "view.grid.block_0['shape']")
    assert few.tolist()[1:] == [75, 75]
    with book.widget_messages() as messages:
        grid.get_by_title("smaller tiles").click()
        book.settle()
    assert [list(message.state) for message in messages] == [["columns"]]
    with book.widget_messages() as messages:
        for _ in range(7):  # to one column
            grid.get_by_title("larger tiles").click()
        book.wait_idle()
    asked = [message.state["side"] for message in messages if "side" in message.state]
    # Each once, in turn; a change that comes while the kernel is busy takes the place of the one that waits.
    assert asked == [side for side in (128, 256, 512) if side in asked]
    grid = ready(book, 40)
    # And those are on the screen: the strongest comes first, with a frame where it is the picked one.
    grid.locator(".nbviz-scroller").evaluate("element => { element.scrollTop = 0 }")
    book.settle()
    table = "nbviz.imaging.pixels.colour_table('viridis')[view.grid.pixels()[1][0]].tolist()"
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_array_equal(tile(canvas(book, grid), 0, (224, 224), columns=1)[inner], kernel(book, table)[inner])


@long
@once
def test_a_page_opened_anew_has_all_tiles(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE.format(tiles="deconvnet")])
    grid = ready(book, 128)
    before = canvas(book, grid)
    # A second view of the same widget, made when all was sent.
    book.add_and_run("view", wait=True)
    other = book.cell(1).locator(".nbviz-grid")
    expect(other).to_have_attribute("data-there", "128")
    np.testing.assert_array_equal(canvas(book, other), before)


@once
def test_two_thousand_channels_scroll_and_recolour_smoothly(notebook: Callable[..., Notebook]) -> None:
    book = notebook([LARGE.format(count=2048, side=28)])
    grid = ready(book, 2048)
    spent = grid.evaluate(
        """async grid => {
            const scroller = grid.querySelector(".nbviz-scroller"), spent = [];
            for (let i = 0; i < 30; i++) {
                const painted = grid.dataset.painted, start = performance.now();
                scroller.scrollTop += 211;
                scroller.dispatchEvent(new Event("scroll"));
                scroller.querySelector("canvas").getContext("2d").getImageData(0, 0, 1, 1);
                spent.push(performance.now() - start);
                if (grid.dataset.painted === painted) throw Error("not drawn");
                await new Promise(requestAnimationFrame);
            }
            return spent;
        }"""
    )
    print(f"2,048 channels: a scrolled grid is drawn in {np.median(spent):.1f} ms, at worst {max(spent):.1f} ms")
    for _ in range(12):
        grid.get_by_title("smaller tiles").click()
    book.screenshot("grid-2048.png", grid)
    assert len(np.unique(canvas(book, grid).reshape(-1, 3), axis=0)) > 100
