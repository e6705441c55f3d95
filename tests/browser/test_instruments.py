"""The instruments of the paper in a real JupyterLab: what a click, a drag or a slider changes is the right thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Notebook
from tests.browser.test_explorer import kernel, panel, ready
from tests.rounds import long

once = pytest.mark.parametrize("subshells", [True], indirect=True)
START = """
import copy, json, nbviz, torch
model = nbviz.bundled.load("fashion")
pictures, labels = nbviz.bundled.fashion_test()
images = pictures[:6, None]
dataset = torch.utils.data.TensorDataset(pictures[:200, None], labels[:200])
"""


def open_widget(notebook: Callable[..., Notebook], code: str) -> tuple[Notebook, Locator]:
    """A widget in the second cell, kept there as ``view``."""
    book = notebook([START, f"view = {code}\nview"])
    return book, ready(book, 1)


def probabilities(widget: Locator) -> dict[str, tuple[float, float]]:
    """What the page says of each class: before and now."""
    rows = widget.locator(".nbviz-predictions > div:not(.nbviz-caption)").all()
    found = {}
    for row in rows:
        before, now = row.locator(".nbviz-number").inner_text().split(" → ")
        found[row.locator(".nbviz-label").inner_text()] = float(before), float(now)
    return found


def drawn(book: Notebook, canvas: Locator) -> bool:
    """Whether there is something to see."""
    return len(np.unique(book.pixels(canvas).reshape(-1, 4), axis=0)) > 1


def both_themes(book: Notebook, widget: Locator, name: str) -> None:
    book.page.set_viewport_size({"width": 1400, "height": 2200})  # what is out of view is not in a screenshot
    for theme in ("light", "dark"):
        book.set_theme(theme)
        book.screenshot(f"{name}-{theme}.png", widget)
    book.page.set_viewport_size({"width": 1400, "height": 1500})


def test_switching_channels_off_by_clicks_updates_the_probability(notebook: Callable[..., Notebook]) -> None:
    book = notebook(
        [
            START,
            "table = nbviz.ablate(model, dataset, 'features.13', points=8, progress=False)",
            "view = nbviz.Ablation(model, images, table=table, picture=1)\nview",
        ]
    )
    widget = ready(book, 2)
    before = probabilities(widget)
    assert all(was == now for was, now in before.values())
    grid, scroller = widget.locator(".nbviz-grid"), widget.locator(".nbviz-scroller")
    for number, x in enumerate((20, 70, 115), 1):
        scroller.click(position={"x": x, "y": 20})
        expect(grid).to_have_attribute("data-off", str(number))
    ready(book, 2)
    off = kernel(book, "view.off")
    assert isinstance(off, list)
    assert len(off) == 3
    kernel_side = kernel(
        book,
        f"dict(zip(view.session.labels, nbviz.switched_off(model, images[1:2], 'features.13', {off})"
        ".softmax(1)[0].tolist()))",
    )
    assert isinstance(kernel_side, dict)
    now = probabilities(widget)
    assert now != before
    assert {label: after for label, (_, after) in now.items()} == pytest.approx(
        {label: kernel_side[label] for label in now}, abs=0.0051
    )
    both_themes(book, widget, "ablation")
    # A click on the curve switches off as many, the most redundant first; a second click on a tile switches it on.
    curve = widget.locator(".nbviz-plot svg").first
    box = curve.bounding_box() or {"width": 0.0}
    curve.click(position={"x": box["width"] * 0.6, "y": 60})
    expect(grid).not_to_have_attribute("data-off", "3")
    ready(book, 2)
    count = int(grid.get_attribute("data-off") or 0)
    assert kernel(book, f"sorted(table.ranking[:{count}].tolist()) == view.off")
    assert widget.locator(".nbviz-plot").first.get_attribute("data-marker") == str(count)
    widget.get_by_role("button", name="all on").click()
    expect(grid).to_have_attribute("data-off", "0")
    ready(book, 2)
    assert probabilities(widget) == before
    widget.locator(".noUi-handle").first.press("ArrowRight")
    expect(grid).to_have_attribute("data-off", "1")
    scroller.focus()
    for key in ("End", "Space"):
        scroller.press(key)
    expect(grid).to_have_attribute("data-off", re.compile("[02]"))
    ready(book, 2)


@long
@once
def test_the_invariance_slider_moves_the_picture_and_the_markers(notebook: Callable[..., Notebook]) -> None:
    book, widget = open_widget(notebook, "nbviz.Invariance(model, images, ['features.1', 'features.13'], 'across')")
    plots = widget.locator(".nbviz-plot")
    expect(plots.nth(0)).to_have_attribute("data-curves", "2")
    still = book.pixels(panel(widget, "picture").locator("canvas"))
    handle = widget.locator(".noUi-handle").first
    for _ in range(3):
        handle.press("ArrowRight")
    widget = ready(book, 1)
    assert kernel(book, "view.value") == 3
    moved = book.pixels(panel(widget, "picture").locator("canvas"))
    np.testing.assert_array_equal(moved[:, 3:], still[:, :-3])
    for i in range(2):
        expect(plots.nth(i)).to_have_attribute("data-marker", "3")
    said = kernel(
        book, "view.session.changed(0, nbviz.pictures.warp.warp(view.session.subject.inputs[:1], across=3.0))"
    )
    assert isinstance(said, list)
    shown = probabilities(widget)
    assert {label: now for label, (_, now) in shown.items()} == pytest.approx({s[0]: s[1] for s in said}, abs=0.0051)
    # The curve at the slider's place says the same as the prediction.
    legend = plots.nth(1).locator(".nbviz-legend").inner_text()
    label, value = re.match(r"(.*) ([\d.e-]+)$", legend.strip()).groups()  # type: ignore[union-attr]
    at = kernel(book, "nbviz.invariance(model, images[:1], ['features.1'], 'across', [4.0]).probability[0, 0].item()")
    near = kernel(book, "nbviz.invariance(model, images[:1], ['features.1'], 'across', [3.0]).probability[0, 0].item()")
    assert min(abs(float(value) - float(str(one))) for one in (at, near)) < 0.01
    assert label in shown
    widget.locator("select").first.select_option(label="rotation, in degrees")
    widget = ready(book, 1)
    assert kernel(book, "view.value") == 0
    both_themes(book, widget, "invariance")


EVOLVE = """
from nbviz.bundled.fashion import FashionNet
torch.manual_seed(0)
net, x = FashionNet(), images / 255
states = {}
for epoch in range(6):
    states[f"epoch {epoch}"] = {name: value.clone() for name, value in net.state_dict().items()}
    for value in net.parameters():
        value.data += 0.03 * torch.randn_like(value)
"""


@long
@once
def test_the_evolution_slider_shows_each_time(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, EVOLVE, "view = nbviz.Evolution(net, states, images[:2], 'features.8', [3, 7])\nview"])
    widget = ready(book, 2)
    caption = panel(widget, "picture").locator("figcaption")
    expect(caption).to_contain_text("epoch 5")
    last = book.pixels(panel(widget, "signal").locator("canvas"))
    handle = widget.locator(".noUi-handle").first
    for _ in range(3):
        handle.press("ArrowLeft")
    widget = ready(book, 2)
    expect(caption).to_contain_text("epoch 2")
    expect(widget.locator(".nbviz-plot")).to_have_attribute("data-marker", "2")
    shown = book.pixels(panel(widget, "signal").locator("canvas"))[..., :3].astype(int)
    assert (shown != last[..., :3]).any()
    book.add_and_run(
        "import warnings\nother = FashionNet()\n_ = other.load_state_dict(states['epoch 2'])\n"
        "expected = nbviz.imaging.pixels.centre(nbviz.deconvnet(other, images[:1], 'features.8', 3)[0, 0])[0]"
    )
    signed = np.asarray(kernel(book, "expected.tolist()"))
    expected = np.clip(128 + (signed - 128) * 2.0, 0, 255)  # the contrast that the page starts with
    np.testing.assert_array_equal(shown, np.repeat(expected[..., None], 3, -1))
    # A channel may be silent at one time, and then there is nothing to see.
    assert sum(drawn(book, panel(widget, f"film_{place}").locator("canvas")) for place in range(6)) >= 4
    both_themes(book, widget, "evolution")


@long
@once
def test_a_box_drawn_with_the_mouse_is_the_part_that_is_masked(notebook: Callable[..., Notebook]) -> None:
    code = "nbviz.Correspondence(model, images[:3], layers=['features.3', 'features.13'], random=3)"
    book, widget = open_widget(notebook, code)
    before = widget.locator("table").inner_text()
    picture = widget.locator(".nbviz-drawing").nth(1)
    box: Any = picture.bounding_box()
    book.page.mouse.move(box["x"] + box["width"] * 4.5 / 28, box["y"] + box["height"] * 2.5 / 28)
    book.page.mouse.down()
    book.page.mouse.move(box["x"] + box["width"] * 19.5 / 28, box["y"] + box["height"] * 9.5 / 28, steps=4)
    book.page.mouse.up()
    expect(widget.locator(".nbviz-boxes")).to_have_attribute("data-boxes", re.compile(r"\[2,4,10,20\]"))
    widget = ready(book, 1)
    assert kernel(book, "view.boxes[1]") == [2, 4, 10, 20]
    expect(widget.locator("table")).not_to_have_text(before)
    picture.focus()
    picture.press("ArrowDown")
    expect(widget.locator(".nbviz-boxes")).to_have_attribute("data-boxes", re.compile(r"\[3,4,11,20\]"))
    widget = ready(book, 1)
    both_themes(book, widget, "correspondence")


@long
@once
def test_patches_kernels_and_two_models_are_drawn(notebook: Callable[..., Notebook]) -> None:
    book = notebook(
        [
            START,
            "view = nbviz.TopPatches(model, dataset, 'features.8', [3, 5, 8, 40, 41], progress=False)\nview",
            "kernels = nbviz.Kernels(model, 'features.2')\nkernels",
            "torch.manual_seed(0)\nother = copy.deepcopy(model)\n"
            "other.features[10].weight.data += 0.05 * torch.randn_like(other.features[10].weight)\n"
            "found = nbviz.compare(model, other, dataset, progress=False)\n"
            "two = nbviz.Compare(model, other, images, 'features.11', comparison=found)\ntwo",
        ]
    )
    widgets = {name: ready(book, i) for i, name in enumerate(("patches", "kernels", "compare"), 1)}
    for name, widget in widgets.items():
        for canvas in widget.locator("canvas:visible").all():
            assert drawn(book, canvas), f"a blank canvas in {name}"
    patches = widgets["patches"]
    expect(panel(patches, "patches_0").locator("figcaption")).to_contain_text("#3:")
    patches.locator(".noUi-handle").first.press("End")
    patches = ready(book, 1)
    expect(panel(patches, "patches_3").locator("figcaption")).to_contain_text("#41:")

    kernels = widgets["kernels"]
    kernels.locator(".nbviz-scroller").first.click(position={"x": 100, "y": 100})
    kernels = ready(book, 2)
    picked = kernels.locator(".nbviz-grid").first.get_attribute("data-channel")
    assert kernel(book, "kernels.channel") == int(picked or -1)
    expect(panel(kernels, "kernel").locator("figcaption")).to_contain_text(f"#{picked}, norm")

    two = widgets["compare"]
    expect(two.locator(".nbviz-header .nbviz-note:not(.nbviz-warning)")).to_contain_text("on 200 pictures")
    two.locator(".nbviz-thumbs button").nth(2).click()
    two = ready(book, 3)
    assert kernel(book, "two.picture") == 2
    for i, name in enumerate(widgets, 1):
        both_themes(book, ready(book, i), name)


@long
@once
def test_maximised_pictures_grow_before_ones_eyes(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, "view = nbviz.Maximise(model, target=[1, 9], steps=160)\nview"], run=False)
    book.run_all(wait=False)
    widget = book.cell(1).locator(".nbviz").first
    seen: list[int] = []
    while not seen or seen[-1] < 160:
        caption = panel(widget, "picture_0").locator("figcaption").inner_text(timeout=120_000)
        if "step " in caption:
            step, value = int(caption.split("step ")[1]), float(caption.split(": ")[1].split()[0])
            if not seen or step > seen[-1]:
                seen.append(step)
        book.page.wait_for_timeout(100)
    assert len(seen) >= 4, "it was not seen to grow"
    widget = ready(book, 1)
    reached = kernel(book, "float(model(pictures[:, None] / 255)[:, 1].max().detach())")
    assert value > 1.3 * float(str(reached))
    for slot in ("picture_0", "picture_1"):
        assert book.pixels(panel(widget, slot).locator("canvas"))[..., 0].astype(float).std() > 20
    both_themes(book, widget, "maximise")


# What decided


@long
@once
def test_another_class_gives_another_map(notebook: Callable[..., Notebook]) -> None:
    book, widget = open_widget(notebook, "nbviz.ClassActivation(model, images, picture=1)")
    predicted = kernel(book, "int(model(images[1:2] / 255).argmax())")
    assert kernel(book, "view.target") == predicted
    before = book.pixels(panel(widget, "grad_cam").locator("canvas"))
    target = widget.get_by_label("Class", exact=True)
    target.fill("dres")
    target.press("Enter")
    expect(target).to_have_value("dress (3)")
    widget = ready(book, 1)
    assert kernel(book, "view.target") == 3
    expect(panel(widget, "large").locator("figcaption")).to_contain_text("Grad-CAM for dress")
    after = book.pixels(panel(widget, "grad_cam").locator("canvas"))
    assert (before != after).any()
    # The heat is that of the function: where it is zero, the picture is blended with the darkest colour.
    book.add_and_run(
        "from nbviz.imaging.pixels import colour_table\n"
        "heat = nbviz.grad_cam(model, images[1:2], target=3)[0]\n"
        "dark = (heat < 0.5 / 255).tolist()\n"
        "mixed = (0.4 * images[1, 0][..., None] + 0.6 * torch.tensor(colour_table('viridis')[0])).round().tolist()"
    )
    dark, mixed = np.asarray(kernel(book, "dark")), np.asarray(kernel(book, "mixed"))
    assert dark.any()
    assert np.abs(after[..., :3].astype(float) - mixed)[dark].max() <= 2
    method = widget.locator(".widget-dropdown", has_text="Method").locator("select").first
    method.select_option(label="Ablation-CAM")
    widget = ready(book, 1)
    expect(panel(widget, "large").locator("figcaption")).to_contain_text("Ablation-CAM for dress")
    widget.locator(".nbviz-thumbs button").nth(2).click()
    widget = ready(book, 1)
    assert kernel(book, "view.target") == kernel(book, "int(model(images[2:3] / 255).argmax())")
    both_themes(book, widget, "class-activation")


def drag(book: Notebook, place: Locator, path: list[tuple[float, float]]) -> None:
    """Drag over a picture, along points given as shares of its width and height."""
    place.scroll_into_view_if_needed()
    box: Any = place.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in path]
    book.page.mouse.move(*points[0])
    book.page.mouse.down()
    for point in points[1:]:
        book.page.mouse.move(*point, steps=4)
    book.page.mouse.up()


def test_a_region_drawn_or_painted_changes_the_prediction(notebook: Callable[..., Notebook]) -> None:
    book, widget = open_widget(notebook, "nbviz.Regions(model, images, picture=1)")
    before = probabilities(widget)
    picture = widget.locator(".nbviz-drawing")
    drag(book, picture, [(4.5 / 28, 2.5 / 28), (19.5 / 28, 9.5 / 28)])
    expect(widget.locator(".nbviz-region")).to_have_attribute("data-box", "[2,4,10,20]")
    widget = ready(book, 1)
    after = probabilities(widget)
    assert after != before
    effect = kernel(book, "nbviz.region_effect(model, images[1:2], (2, 4, 10, 20)).after[0].tolist()")
    names = kernel(book, "list(view.session.labels)")
    assert isinstance(effect, list)
    assert isinstance(names, list)
    assert {label: now for label, (_, now) in after.items()} == pytest.approx(
        {label: effect[names.index(label)] for label in after}, abs=0.0051
    )
    widget.locator("select").first.select_option(label="cut it away")
    widget = ready(book, 1)
    assert probabilities(widget) != after
    widget.get_by_role("button", name="paint").click()
    drag(book, picture, [(0.2, 0.2), (0.8, 0.2), (0.8, 0.6)])
    expect(widget.locator(".nbviz-region")).not_to_have_attribute("data-painted", "0")
    widget = ready(book, 1)
    painted = int(widget.locator(".nbviz-region").get_attribute("data-painted") or 0)
    assert kernel(book, "int(view.region.sum())") == painted > 20
    both_themes(book, widget, "regions")


@once
def test_occlusion_fills_and_sanity_says_what_to_believe(notebook: Callable[..., Notebook]) -> None:
    book = notebook(
        [
            START,
            "view = nbviz.Occlusion(model, images, patch=8, stride=2)\nview",
            "sane = nbviz.Sanity(model, images)\nsane",
        ]
    )
    widgets = [ready(book, 1), ready(book, 2)]
    for widget in widgets:
        for canvas in widget.locator("canvas:visible").all():
            assert drawn(book, canvas)
    expect(widgets[0].locator(".nbviz-header")).to_contain_text("121 of 121 squares")
    note = widgets[1].locator(".nbviz-header .nbviz-note:not(.nbviz-warning)")
    expect(note).to_contain_text("guided_backprop hardly changes")
    widgets[1].locator("select").first.select_option("gradient")
    widget = ready(book, 2)
    expect(note).to_contain_text("gradient changes with 1 of 7 layers randomised")
    for i, name in enumerate(("occlusion", "sanity"), 1):
        both_themes(book, ready(book, i), name)


@once
def test_the_explorer_has_all_of_them(notebook: Callable[..., Notebook]) -> None:
    book = notebook([START, "view = nbviz.explore(model, images)\nview"])
    widget = ready(book, 1)
    for name in ("switch off", "class activation", "occlusion", "regions", "invariance", "sanity"):
        widget.get_by_role("button", name=name, exact=True).first.click()
        inner = widget.locator(".nbviz").first
        expect(inner.locator(".nbviz-header")).to_have_attribute("data-state", "ready", timeout=30_000)
        assert drawn(book, inner.locator("canvas:visible").first)
    widget.get_by_role("button", name="channels", exact=True).first.click()
    widget = ready(book, 1)
    widget.locator(".nbviz-thumbs button").nth(2).click()
    widget = ready(book, 1)
    assert kernel(book, "view.picture") == 2
