"""What a person sees in JupyterLab: from the click or the key press to the painted canvas, in a headless Chromium."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.benchmarks.table import count, row
from tests.browser.lab import Notebook, chromium, lab_server

# Cheap to run, so that what is timed is what follows: the maps' way to the screen.
CHEAP = """
import nbviz, torch, json
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 3, padding=1), torch.nn.ReLU()).eval()
images = torch.rand(8, 3, 56, 56)
"""
INTERACT = """
%matplotlib inline
import matplotlib.pyplot as plt
from ipywidgets import IntSlider, interact

def show(i):
    with torch.no_grad():
        maps = net(images[i : i + 1])[0]
    figure, axes = plt.subplots(8, 8, figsize=(8, 8))
    for axis, one in zip(axes.flat, maps):
        axis.imshow(one)
        axis.axis("off")
    plt.show()

interact(show, i=IntSlider(max=7));
"""
INTERACT_ALL = INTERACT.replace("8, 8, figsize=(8, 8)", "16, 16, figsize=(8, 8)")
GRID = "view = nbviz.FeatureMaps(net, images, layer='1')\nview"
VGG = """
import nbviz, time, torch, torchvision, json
torch.manual_seed(0)
net = torchvision.models.vgg16(weights=None).eval()
images = torch.randn(8, 3, 224, 224)
"""
VGG_GRID = "view = nbviz.FeatureMaps(net, images, layer='features.15')\nview"
VGG_TILES = "view = nbviz.explore(net, images, layer='features.16', channel=0, tiles='deconvnet')\nview"
FLOORS = """
from nbviz.core.trace import run
from tests.benchmarks.kernel import forward_and_backward
from tests.benchmarks.table import median
print(json.dumps([
    median(lambda: run(net, images[:1], ["features.15"])),
    median(lambda: forward_and_backward(net, images[:1])),
]))
"""
LARGE = """
import nbviz, torch
net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU())
nbviz.FeatureMaps(net, torch.rand(1, 3, 128, 128), layer="1")
"""

# A click on the next picture, until so many tiles of it are painted (read back, so that it is done).
CLICK = """(widget, {number, tiles}) => new Promise((resolve, reject) => {
    const grid = widget.querySelector(".nbviz-grid"), before = grid.dataset.tiles;
    const watch = new MutationObserver(() => {
        if (grid.dataset.tiles === before || Number(grid.dataset.there) < tiles) return;
        watch.disconnect();
        grid.querySelector(".nbviz-scroller canvas").getContext("2d").getImageData(0, 0, 1, 1);
        resolve(performance.now() - start);
    });
    watch.observe(grid, {attributes: true});
    setTimeout(() => reject(Error("nothing came")), 60000);
    const start = performance.now();
    widget.querySelectorAll(".nbviz-thumbs button")[number].click();
})"""
# A key press on the slider, until the cell shows another picture.
PRESS = """async cell => {
    const image = () => cell.querySelector(".jp-OutputArea img");
    const before = image().src, start = performance.now(), handle = cell.querySelector(".noUi-handle");
    handle.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", code: "ArrowRight", bubbles: true}));
    while (!(image()?.complete && image().src !== before)) {
        if (performance.now() - start > 60000) throw Error("nothing came");
        await new Promise(next => setTimeout(next, 1));
    }
    return performance.now() - start;
}"""
# A colour map, until it is painted.
RECOLOUR = """async grid => {
    const select = grid.querySelector("select"), spent = [];
    for (const name of ["magma", "gray", "turbo", "inferno", "viridis"]) {
        await new Promise(requestAnimationFrame);
        const start = performance.now(), painted = grid.dataset.painted;
        select.value = name;
        select.dispatchEvent(new Event("change"));
        grid.querySelector(".nbviz-scroller canvas").getContext("2d").getImageData(0, 0, 1, 1);
        if (grid.dataset.painted === painted) throw Error("not drawn");
        spent.push(performance.now() - start);
    }
    return spent;
}"""


def rows() -> None:
    """All rows of the page."""
    with (
        tempfile.TemporaryDirectory() as home,
        lab_server(Path(home), subshells=True) as server,
        sync_playwright() as playwright,
    ):
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)

        def notebook(*cells: str, kind: type[Notebook] = Unheard) -> Notebook:
            server.stop_kernels()
            return opened(browser, server, list(cells), kind)

        grid(notebook(CHEAP, GRID, INTERACT, INTERACT_ALL))
        vgg(notebook(VGG, VGG_GRID, VGG_TILES, FLOORS))
        sent(notebook(VGG, VGG_GRID, kind=Notebook))
        recolour(notebook(LARGE, kind=Notebook))
        browser.close()


class Unheard(Notebook):
    """A notebook on whose messages nobody listens in, which would take its time from a machine of two cores."""

    def __init__(self, page: Page, *args: Any) -> None:
        super().__init__(page, *args)
        page.remove_listener("websocket", self.record._on_websocket)


def opened(browser: Browser, server: Any, cells: list[str], kind: type[Notebook]) -> Notebook:
    """A notebook whose cells have run."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    book = kind(page, server, Path(tempfile.gettempdir()))
    book.open(cells)
    book.run_all()
    for widget in page.locator(".nbviz > .widget-box >> xpath=..").all():
        expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=120_000)
    book.wait_idle()
    return book


def clicked(book: Notebook, widget: Locator, tiles: int, times: int = 7) -> tuple[float, float]:
    """Median milliseconds from a click on a picture to its painted tiles, and those of them beyond the forward pass.

    The widget says what the pass of each click took, beside a page that draws meanwhile.
    """
    spent, beyond = [], []
    for number in range(1, 1 + times):
        quiet(book, widget)
        spent.append(widget.evaluate(CLICK, {"number": number, "tiles": tiles}))
        quiet(book, widget)
        passed = re.match(r"layer (\d+) ms", widget.locator(".nbviz-cost").text_content() or "")
        beyond.append(spent[-1] - float(passed[1] if passed else 0))
    return statistics.median(spent), statistics.median(beyond)


def quiet(book: Notebook, widget: Locator) -> None:
    """Wait until all tiles are there and the kernel has nothing left to do."""
    shape = widget.locator(".nbviz-grid").get_attribute("data-shape") or ""
    expect(widget.locator(".nbviz-grid")).to_have_attribute("data-there", shape.split("×")[0], timeout=60_000)
    expect(widget.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=60_000)
    book.wait_for("return new Promise(done => setTimeout(() => done(true), 200))")  # the page's last acknowledgements
    book.wait_idle()


def grid(book: Notebook) -> None:
    """Another picture's 256 maps of 56×56, against 64 of them by matplotlib."""
    widget = book.cell(1).locator(".nbviz").first
    seen, whole = clicked(book, widget, tiles=64)[0], clicked(book, widget, tiles=256)[0]
    some, every = pressed(book, 2), pressed(book, 3)
    row(
        "control to painted canvas, grid of 256 maps 56×56: what is in view", seen, "`interact` + matplotlib", every, 25
    )
    row("the same: all of them in the page", whole, "`interact` + matplotlib", every)
    row("the same: what is in view", seen, "`interact` + matplotlib, 64 maps only", some)


def pressed(book: Notebook, cell: int, times: int = 4) -> float:
    """Median milliseconds from a key press on a slider to matplotlib's picture."""
    spent = []
    for _ in range(times):
        book.wait_idle()
        spent.append(book.cell(cell).evaluate(PRESS))
    return statistics.median(spent)


def vgg(book: Notebook) -> None:
    """The same with VGG16 in front of it, and the first reconstructions, against floors in the same kernel."""
    truncated, both = json.loads(book.cell_output_text(3))
    ours, beyond = clicked(book, book.cell(1).locator(".nbviz").first, tiles=64)
    count("vgg16 `features.15`: another picture to painted canvas, beyond its forward pass", beyond, 60, " ms")
    row("the same, all of it", ours, "truncated forward with nothing beside it, + 60 ms", truncated + 60)
    first, _ = clicked(book, book.cell(2).locator(".nbviz").first, tiles=16)
    row("vgg16 `features.16`: first 16 deconvnets on screen", first, "one full forward + backward", both, 1 / 1.5)


def sent(book: Notebook) -> None:
    """How many bytes a ReLU layer's grid takes."""
    widget = book.cell(1).locator(".nbviz").first
    quiet(book, widget)
    before = len(book.kernel_replies)
    clicked(book, widget, tiles=256, times=3)
    blocks = [message for message in book.kernel_replies[before:] if "sent" in message.state]
    share = sum(sum(message.buffer_sizes) for message in blocks) / (3 * 256 * 56 * 56)
    count("vgg16 `features.15`: bytes of the grid, against raw uint8", share, 0.6)


def recolour(book: Notebook) -> None:
    """A control that stays in the page, on 1024×1024 pixels."""
    widget = book.cell(0).locator(".nbviz-grid")
    with book.widget_messages() as messages:
        spent = widget.evaluate(RECOLOUR)
    count("colour map on 1024×1024 pixels, painted", statistics.median(spent), 16, " ms")
    # One at most for each of the five: figures and the copied code have the colour map, too.
    count("the same: messages to the kernel", len(messages), 5)
