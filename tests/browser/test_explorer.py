"""The explorer in a real JupyterLab, as a person uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook, slider_moves
from tests.rounds import long

FIRST = Path(__file__).parents[2] / "notebooks" / "01-first-look.ipynb"
EXPLORE = """
import nbviz, torch, json, time
from nbviz.imaging.pixels import centre, colour_table, quantise, signed_scale
model = nbviz.bundled.load("fashion")
images = nbviz.bundled.fashion_test()[0][:4, None]
view = nbviz.explore(model, images, layer="features.4", channel=0)
view
"""
once = pytest.mark.parametrize("subshells", [True], indirect=True)


def ready(book: Notebook, cell: int = 0) -> Locator:
    """The widget in a cell once it has nothing left to do."""
    widget = book.cell(cell).locator(".nbviz").first
    expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=30_000)
    book.wait_idle()
    return widget


def panel(widget: Locator, slot: str) -> Locator:
    """The panel of a slot, on the whole picture where it is shown cropped too."""
    return widget.locator(f"figure[data-slot='{slot}']").last


def kernel(book: Notebook, expression: str) -> Any:
    """The value of an expression in the kernel, through JSON."""
    return json.loads(book.add_and_run(f"print(json.dumps({expression}))"))


def select(widget: Locator, label: str) -> Locator:
    """The dropdown with a label."""
    return widget.locator(".widget-dropdown", has_text=label).locator("select").first


def choose_layer(widget: Locator, name: str) -> None:
    """Pick a layer by its name; the list's entries go on with the type."""
    picker = widget.locator(".nbviz-layers").first
    label = picker.locator("option", has_text=re.compile(f"^{re.escape(name)} ·")).first.text_content()
    picker.locator("select").select_option(label=label)


def check_channel(book: Notebook, widget: Locator, layer: str, channel: int, picture: int = 0) -> None:
    """The pixels in the page are those that the functions give."""
    book.add_and_run(
        f"image = images[{picture}:{picture} + 1]\n"
        f"maps = nbviz.feature_maps(model, image, {layer!r})\n"
        f"back = nbviz.reconstruct(model, image, {layer!r}, [{channel}])"
    )
    table = f"colour_table('viridis')[quantise(maps[0, {channel}])[0].numpy()].tolist()"
    activation = book.pixels(panel(widget, "activation").locator("canvas"))
    np.testing.assert_array_equal(activation[..., :3], kernel(book, table))
    for rule in ("deconvnet", "guided"):
        shown = book.pixels(panel(widget, rule).locator("canvas"))[..., :3].astype(int)
        # The patch gives the scale of the whole, too.
        top, left, bottom, right = kernel(book, f"view.panels.label_{rule}['inner']")
        patch = f"back['{rule}'][0, :1, :, {top}:{bottom}, {left}:{right}].flatten()[None, None]"
        signed = np.asarray(kernel(book, f"centre(back['{rule}'][0, 0], signed_scale({patch}))[0].tolist()"))
        expected = np.clip(128 + (signed - 128) * 2.0, 0, 255)  # the contrast that the page starts with
        np.testing.assert_array_equal(shown, np.repeat(expected[..., None], 3, -1))


@long
@once
def test_first_notebook_shows_its_widgets(notebook: Callable[..., Notebook]) -> None:
    book = notebook(FIRST)
    widgets = book.page.locator(".nbviz")
    expect(widgets).to_have_count(3)
    explorer = widgets.first
    expect(explorer.locator(".nbviz-header")).to_have_attribute("data-state", "ready")
    expect(explorer.locator(".nbviz-header")).to_contain_text("FashionNet")
    # The second code cell has steered it from the kernel.
    expect(explorer.locator(".nbviz-grid")).to_have_attribute("data-channel", "3")
    expect(explorer.locator(".nbviz-grid")).to_have_attribute("data-shape", "64×7×7")
    expect(explorer.locator(".nbviz-thumbs button").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(explorer.locator(".nbviz-predictions")).to_contain_text("pullover")
    for canvas in explorer.locator("canvas").all():
        assert len(np.unique(book.pixels(canvas).reshape(-1, 4), axis=0)) > 1, "a blank canvas"
    book.screenshot("first-look.png", explorer)


def test_every_control_ends_on_the_right_picture(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    check_channel(book, widget, "features.4", 0)

    choose_layer(widget, "features.7")
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-shape", "64×14×14")
    widget = ready(book)
    strongest = kernel(
        book, "int(nbviz.feature_maps(model, images[:1], 'features.7')[0, :, 1:-1, 1:-1].flatten(1).amax(1).argmax())"
    )
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-channel", str(strongest))
    check_channel(book, widget, "features.7", int(str(strongest)))

    widget.locator(".nbviz-scroller").click(position={"x": 60, "y": 60})
    widget = ready(book)
    picked = int(widget.locator(".nbviz-grid").get_attribute("data-channel") or -1)
    assert picked != strongest
    assert kernel(book, "view.channel") == picked
    expect(panel(widget, "activation")).to_contain_text(f"#{picked}:")
    check_channel(book, widget, "features.7", picked)

    widget.locator(".nbviz-thumbs button").nth(2).click()
    widget = ready(book)
    assert kernel(book, "view.picture") == 2
    check_channel(book, widget, "features.7", picked, picture=2)

    select(widget, "Fused").select_option("pca")
    widget = ready(book)
    expect(widget.locator("figure[data-slot='fused']")).to_contain_text("pca")

    select(widget, "From").select_option(label="whole map")
    widget = ready(book)
    whole = np.asarray(
        kernel(
            book,
            "centre(nbviz.deconvnet(model, images[2:3], 'features.7', view.channel, seed='map')[0, 0])[0].tolist()",
        )
    )
    shown = book.pixels(panel(widget, "deconvnet").locator("canvas"))[..., 0]
    np.testing.assert_array_equal(shown, np.clip(128 + (whole - 128) * 2.0, 0, 255))


@once
def test_page_controls_need_no_kernel_and_draw_within_two_frames(notebook: Callable[..., Notebook]) -> None:
    """A colour map change on an atlas of 1024×1024 pixels: 64 tiles of 128×128. The kernel only hears of it."""
    book = notebook(
        [
            "import nbviz, torch\ntorch.manual_seed(0)\n"
            "net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU())\n"
            "nbviz.FeatureMaps(net, torch.rand(1, 3, 128, 128), layer='1')"
        ]
    )
    widget = ready(book)
    grid = widget.locator(".nbviz-grid")
    expect(grid).to_have_attribute("data-shape", "64×128×128")
    book.page.set_viewport_size({"width": 1400, "height": 1500})
    before = book.pixels(grid.locator(".nbviz-scroller canvas"))
    chunk = widget.locator(".nbviz-header").get_attribute("data-chunk")
    with book.widget_messages() as sent:
        spent = grid.evaluate(
            """async grid => {
                const select = grid.querySelector("select"), spent = [];
                for (const name of ["magma", "gray", "turbo", "inferno", "magma"]) {
                    const painted = grid.dataset.painted, start = performance.now();
                    select.value = name;
                    select.dispatchEvent(new Event("change"));
                    let frames = 0;
                    while (grid.dataset.painted === painted && frames < 60) {
                        await new Promise(requestAnimationFrame);
                        frames += 1;
                    }
                    spent.push([frames, performance.now() - start]);
                    await new Promise(requestAnimationFrame);
                }
                return spent;
            }"""
        )
        grid.get_by_role("button", name="shared", exact=True).click()
        grid.get_by_role("button", name="index", exact=True).click()
        grid.get_by_title("larger tiles").click()
        grid.locator(".nbviz-scroller").hover(position={"x": 50, "y": 50})
        expect(grid.locator(".nbviz-tip")).to_have_text(re.compile(r"^#\d+ · row \d+ col \d+ · \S+$"))
        grid.locator(".nbviz-scroller").click(position={"x": 50, "y": 50})
        expect(grid.locator(".nbviz-picked")).to_contain_text("128×128")
        slider = widget.get_by_label("opacity")
        slider.focus()
        slider.press("ArrowRight")
    print("frames and ms to a drawn colour map on 1024×1024:", [(f, round(ms, 1)) for f, ms in spent])
    told = [name for message in sent for name in message.content["data"]["state"]]
    assert set(told) == {"cmap", "scale", "order", "columns", "channel", "opacity"}
    assert len(told) <= 10  # one for each change
    assert widget.locator(".nbviz-header").get_attribute("data-chunk") == chunk
    assert max(frames for frames, _ in spent) <= 2
    after = book.pixels(grid.locator(".nbviz-scroller canvas"))
    assert before.shape != after.shape or (before != after).any()


def test_sixty_moves_in_a_second_leave_no_backlog(notebook: Callable[..., Notebook]) -> None:
    book = notebook(
        [
            EXPLORE,
            "moves = []\nview.observe(lambda change: moves.append((time.time(), change.new)), 'channel')\n"
            "steps = []\nview.header.observe(lambda change: steps.append(time.time()), 'chunk')",
        ]
    )
    widget = ready(book)
    choose_layer(widget, "features.13")
    widget = ready(book)
    book.add_and_run("view.channel = 0; moves.clear(); steps.clear()")
    widget = ready(book)
    handle = widget.locator(".noUi-handle").first
    seconds = slider_moves(handle, 60)
    figure = panel(widget, "guided")
    layer = kernel(book, "view.layer")
    end = widget.evaluate(
        """async (widget, key) => {
            const start = performance.now();
            const figure = [...widget.querySelectorAll("figure[data-slot='guided']")].at(-1);
            while (figure.dataset.key !== key && performance.now() - start < 20000)
                await new Promise(requestAnimationFrame);
            return performance.now() - start;
        }""",
        f"0 {layer} 60 max 0 (0,) 0",
    )
    expect(figure).to_have_attribute("data-key", f"0 {layer} 60 max 0 (0,) 0")
    widget = ready(book)
    runs = kernel(book, "len(moves)")
    print(
        f"60 moves in {seconds:.2f} s: {runs} handler runs, last picture {end:.0f} ms after the kernel answered again"
    )
    assert kernel(book, "view.channel") == 60
    check_channel(book, widget, str(layer), 60)
    assert int(str(runs)) <= 20
    assert kernel(book, "view.session.forward_passes") == 3  # layers, first layer, second layer: none for the slider


@long
def test_a_control_moved_while_a_cell_runs_waits_and_says_so(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.add_and_run("time.sleep(4)", wait=False)
    handle = widget.locator(".noUi-handle").first
    for _ in range(3):
        handle.press("ArrowRight")
    header = widget.locator(".nbviz-header")
    expect(header).to_have_attribute("data-state", "waiting", timeout=3_000)
    expect(panel(widget, "activation")).to_contain_text("#0:")
    book.screenshot("waiting.png", widget)
    book.wait_run()
    widget = ready(book)
    assert kernel(book, "view.channel") == 3
    check_channel(book, widget, "features.4", 3)


@once
def test_an_error_is_a_line_in_the_widget_which_goes_on(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    book.add_and_run(
        "def broken(*_): raise RuntimeError('<b>out of tune</b>')\n"
        "handle = model.features[5].register_forward_hook(broken)"
    )
    choose_layer(widget, "features.7")
    error = widget.locator(".nbviz-error")
    expect(error).to_contain_text("<b>out of tune</b>")
    expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "error")
    for old in (".nbviz-predictions", ".nbviz-frame", "figure[data-slot='fused']", "figure[data-slot='guided']"):
        expect(widget.locator(old).first).to_have_css("opacity", "0.35")
    book.screenshot("error.png", widget)
    book.add_and_run("handle.remove()")
    choose_layer(widget, "features.6")
    widget = ready(book)
    expect(error).to_be_hidden()
    strongest = int(str(kernel(book, "view.channel")))
    check_channel(book, widget, "features.6", strongest)


@once
def test_the_picked_tile_comes_into_view(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE.replace("features.4", "features.13")])
    widget = ready(book)
    scroller = widget.locator(".nbviz-scroller")
    widget.get_by_role("button", name="index", exact=True).click()
    assert scroller.evaluate("element => element.scrollTop") == 0
    book.add_and_run("view.channel = 127")
    ready(book)
    assert scroller.evaluate("element => element.scrollTop") > 0
    scroller.focus()
    scroller.press("Home")
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-channel", "0")
    widget = ready(book)
    assert scroller.evaluate("element => element.scrollTop") == 0
    assert kernel(book, "view.channel") == 0


@long
@once
def test_a_view_without_its_kernel_keeps_its_shape_and_says_so(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    columns = widget.locator(".nbviz-columns > *")
    before = [columns.nth(i).bounding_box() for i in range(3)]
    book.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    book.wait_idle()
    widget.locator(".noUi-handle").first.press("ArrowRight")
    header = widget.locator(".nbviz-header")
    expect(header).to_contain_text("no kernel")
    widget.locator(".nbviz-grid select").select_option("magma")
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-cmap", "magma")
    after = [columns.nth(i).bounding_box() for i in range(3)]
    assert [(box["x"], box["width"]) for box in before if box] == [(box["x"], box["width"]) for box in after if box]
    book.screenshot("no-kernel.png", widget)
    book.run_all()  # as the line in the page says
    widget = ready(book)
    widget.locator(".noUi-handle").first.press("ArrowRight")
    widget = ready(book)
    assert kernel(book, "view.channel") == 1
    check_channel(book, widget, "features.4", 1)


@once
def test_themes_and_narrow_pages(notebook: Callable[..., Notebook]) -> None:
    book = notebook([EXPLORE])
    widget = ready(book)
    ground = "element => getComputedStyle(element).backgroundColor"
    light = widget.evaluate(ground)
    book.screenshot("explorer-light.png", widget)
    book.set_theme("dark")
    assert widget.evaluate(ground) != light
    book.screenshot("explorer-dark.png", widget)
    columns = widget.locator(".nbviz-columns > *")
    assert columns.nth(0).bounding_box()["y"] == columns.nth(2).bounding_box()["y"]  # type: ignore[index]
    book.page.set_viewport_size({"width": 760, "height": 1500})
    book.settle()
    assert columns.nth(0).bounding_box()["y"] < columns.nth(2).bounding_box()["y"]  # type: ignore[index]
    book.screenshot("explorer-narrow.png", widget)
    book.page.set_viewport_size({"width": 1400, "height": 1500})
