"""What all widgets keep to: errors, interrupts, a model left as it was, a figure, and text that is text."""

from __future__ import annotations

import base64
import copy
import gc
import io
import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import combinations
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib as mpl
import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as registry
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import nbviz
from nbviz.core.state import lock
from nbviz.errors import InterruptedWarning, ModelError
from nbviz.widgets.base import Pulled
from nbviz.widgets.view import View
from tests.rounds import TIMES, few, long
from tests.small import Ran, Small, pictures
from tests.widgets.every_widget import EVERY, TELLING, every, every_with, make, parts, state, telling

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


drawn = pytest.mark.parametrize("name", few(EVERY, list(EVERY).index("Occlusion")))  # files take long to draw
RUNNING = [name for name, row in EVERY.items() if row.runs]
running = pytest.mark.parametrize("name", few(RUNNING, *map(RUNNING.index, TELLING)))


@pytest.fixture
def net() -> Small:
    return Small()


@pytest.fixture
def images() -> Tensor:
    return pictures()


def change(view: Pulled, number: int, name: str) -> None:
    for trait, value in EVERY[name].changes[number].items():
        setattr(view, trait, value)


def ready(view: Pulled) -> None:
    view.finish()
    assert (view.header.state, view.header.error, view.header.stale) == ("ready", "", [])


class Armed(Exception):
    pass


ERRORS: dict[str, type[BaseException]] = {"KeyboardInterrupt": KeyboardInterrupt, "Armed": Armed}
every_place = pytest.mark.parametrize(
    ("name", "place", "error"),
    [
        pytest.param(name, place, error, marks=() if name in TELLING or i % 2 == j else long)
        for name, row in EVERY.items()
        for i, place in enumerate(row.places)
        for j, error in enumerate(ERRORS.values())
    ],
)


def fail_with(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error("out of tune")

    return fail


# Errors and interrupts.


@running
def test_an_error_in_the_model_is_a_line_and_the_widget_goes_on(
    name: str, net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    whole = make(name, net, images)
    change(whole, 0, name)
    change(whole, 1, name)
    whole.finish()
    view = make(name, net, images)
    view.finish()
    models = [session.subject.model for session in getattr(view, "sessions", ())] or [net]
    with snapshot(net):
        with pytest.MonkeyPatch.context() as patch:
            for model in models:
                patch.setattr(model[1], "forward", fail_with(Armed))
            change(view, 0, name)
            view.finish()
            assert view.header.state == "error"
            assert "out of tune" in view.header.error
            assert view.header.stale != []
            assert "image/png" not in view._repr_mimebundle_()
        change(view, 1, name)
        ready(view)
    if name != "Maximise":  # whose failed steps have drawn random numbers
        assert state(view) == state(whole)


@every_place
def test_a_chunk_that_fails_or_is_interrupted_is_drawn_when_next_asked_for(
    name: str, place: str, error: type[BaseException], net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    view = make(name, net, images)
    view.finish()
    with snapshot(net):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"nbviz.widgets.{place}", fail_with(error))
            try:
                change(view, 0, name)
                view.finish()
                assert error is Armed
                assert "out of tune" in view.header.error
            except KeyboardInterrupt:
                assert error is KeyboardInterrupt
                assert view.header.state == "interrupted"
            assert not lock._is_owned()  # type: ignore[attr-defined]
        for trait, value in EVERY[name].changes[0].items():
            if trait in ("channel", "moment"):  # the first of two changes was interrupted
                setattr(view, trait, value)
        ready(view)  # without another change: the cause is gone
    whole = make(name, net, images)
    change(whole, 0, name)
    whole.finish()
    assert state(view) == state(whole)


@every_with("error", ERRORS, "KeyboardInterrupt")
def test_a_widget_whose_making_fails_anywhere_leaves_nothing(
    name: str, error: type[BaseException], net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    widgets = set(registry._instances)
    failed = 0
    with snapshot(net):
        while True:
            calls: list[int] = []

            def fail(x: Tensor, calls: list[int] = calls, most: int = failed) -> Tensor:
                calls.append(1)
                if len(calls) > most:
                    raise error("out of tune")
                return nn.functional.relu(x)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(nn.ReLU, "forward", lambda _, x, fail=fail: fail(x))
                try:
                    view = make(name, net, images)
                    break
                except (KeyboardInterrupt, ModelError, InterruptedWarning):
                    assert set(registry._instances) == widgets
                    failed += 1
        view.close()
    assert set(registry._instances) == widgets
    assert failed >= (0 if name == "Kernels" else 2)


@every
def test_a_closed_widget_leaves_no_comm_open_and_no_tensor(name: str, net: Small, images: Tensor) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    make(name, net, images).close()
    gc.collect()
    gc.freeze()  # what was there before is neither searched nor counted
    widgets, before = set(registry._instances), tensors()
    view = make(name, net, images)
    view.finish()
    if TIMES or name in TELLING:
        view.figure()
    view.close()
    view.close()  # which may be said twice
    assert set(registry._instances) == widgets
    change(view, 0, name)  # answers no more
    assert view.header.state == "ready"
    del view
    assert tensors() == before


# State.


@telling
def test_what_stays_in_the_page_runs_nothing(name: str, net: Small, images: Tensor) -> None:
    view = make(name, net, images)
    view.finish()
    chunk = view.header.chunk
    page = {"cmap": "magma", "contrast": 4.0, "opacity": 0.3, "scale": "each", "order": "spread", "marker": 1.0}
    with Ran() as ran:
        for widget in parts(view):
            if isinstance(widget, View):
                widget.set_state({key: value for key, value in page.items() if widget.has_trait(key)})
        view.header.set_state({"painted": chunk})
        view.finish()
    assert not {"convolution", "addmm"} & set(ran.times)
    assert view.header.chunk == chunk


@telling
def test_a_change_from_the_page_comes_on_another_thread(name: str, net: Small, images: Tensor) -> None:
    view = make(name, net, images)
    with torch.inference_mode():
        thread = threading.Thread(target=lambda: change(view, 0, name), name="subshell-1")
        thread.start()
        thread.join(30)
    ready(view)
    own = make(name, net, images)
    change(own, 0, name)
    own.finish()
    assert state(view) == state(own)


MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@every_with("mode", MODES, "inference mode")
def test_it_works_under_no_grad_and_inference_mode_and_autocast(
    name: str, mode: Callable[[], AbstractContextManager[None]], net: Small, images: Tensor
) -> None:
    with mode():
        view = make(name, net, images)
        view.finish()
        assert (view.header.state, view.header.error) == ("ready", "")
    change(view, 0, name)
    ready(view)


@every_with("dtype", {"float32": torch.float32, "bfloat16": torch.bfloat16}, "bfloat16")
def test_a_model_of_every_dtype_and_device(
    name: str, dtype: torch.dtype, device: torch.device, net: Small, images: Tensor
) -> None:
    view = make(name, net.to(device, dtype), images.to(device, dtype))
    ready(view)
    change(view, 0, name)
    ready(view)


# A picture of it.


def blank(png: bytes) -> bool:
    colours = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24)
    return colours is None or len(colours) < 50


@every
def test_it_has_a_picture_for_when_the_kernel_is_gone(name: str, net: Small, images: Tensor) -> None:
    bundle = make(name, net, images)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert not blank(base64.b64decode(bundle["image/png"]))


@drawn
def test_that_picture_can_be_saved(name: str, net: Small, images: Tensor, tmp_path: Path) -> None:
    view = make(name, net, images)
    view.save(tmp_path / "view.png")
    assert not blank((tmp_path / "view.png").read_bytes())
    with pytest.raises(ValueError, match="expected a file that ends with png, svg, pdf"):
        view.save(tmp_path / "view.gif")


def texts(figure: Figure) -> Iterator[tuple[str, Any]]:
    """What stands in a figure, and where."""
    found = list(figure.texts)
    for axes in (axes for axes in figure.axes if axes.axison):
        found += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        found += axes.get_yticklabels() if axes.patches else []  # beside bars
        found += [text for text in axes.texts if text.get_transform() == axes.transAxes]  # below a colour bar
    return ((text.get_text(), text.get_window_extent()) for text in found if text.get_text())


def check_legible(figure: Figure) -> None:
    """No text is cut off, or lies over another."""
    figure.canvas.draw()
    found = list(texts(figure))
    assert len(found) > 1
    for text, place in found:
        assert -1 <= place.x0 <= place.x1 <= figure.bbox.width + 1, text
        assert -1 <= place.y0 <= place.y1 <= figure.bbox.height + 1, text
    for (one, a), (other, b) in combinations(found, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or down < 2, (one, other)


@telling
def test_no_text_of_the_figure_is_cut_or_lies_over_another(name: str, net: Small, images: Tensor) -> None:
    check_legible(make(name, net, images).figure())


# Figures that go into a paper unedited.


@every
def test_a_figure_of_one_column_is_legible(name: str, net: Small, images: Tensor) -> None:
    figure = make(name, net, images).figure(width=3.4)
    assert figure.get_figwidth() == 3.4
    check_legible(figure)


@drawn
def test_the_text_of_a_saved_figure_is_text(name: str, net: Small, images: Tensor, tmp_path: Path) -> None:
    view = make(name, net, images)
    before = dict(mpl.rcParams)
    view.save(tmp_path / "a.pdf", width=3.4)
    view.save(tmp_path / "a.svg", width=3.4)
    assert dict(mpl.rcParams) == before
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()
    assert "<text" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@telling
def test_each_picture_of_a_figure_can_be_drawn_alone(name: str, net: Small, images: Tensor) -> None:
    view = make(name, net, images)
    view.finish()
    panels = [panel for row in view._figure_rows() for panel in row if not panel.is_empty]
    assert all(panel.name for panel in panels)
    assert len({panel.name for panel in panels}) == len(panels)
    own = Figure()
    axes = own.subplots()
    assert view.figure(panel=panels[-1].name, ax=axes) is own
    assert axes.get_xlabel() or axes.get_title("left") or not panels[-1].caption
    assert len(view.figure(panel=panels[0].name, width=2).axes) == 1
    with pytest.raises(ValueError, match=f"no panel 'zzz'.* Accepted: {re.escape(panels[0].name)}"):
        view.figure(panel="zzz")


def test_heading_and_note_can_be_replaced_and_left_out(net: Small, images: Tensor) -> None:
    view = nbviz.Explorer(net, images)

    def found(**options: Any) -> list[str]:
        return [text.get_text() for text in view.figure(**options).texts]

    usual = found()
    assert len(usual) == 2
    assert found(title="Mine $5") == [r"Mine \$5", usual[1]]
    assert found(title="", note=False) == []
    wrong = {"width": "3.4", "title": 3, "note": 1, "ax": 3, "dpi": None}
    for option, value in wrong.items():
        with pytest.raises(TypeError, match=f"{option} is "):
            view.figure(**{option: value})
    with pytest.raises(ValueError, match="width is 0; expected 2 to 40"):
        view.figure(width=0)


def test_each_map_has_its_bar_and_a_shared_scale_one(net: Small, images: Tensor) -> None:
    cam = nbviz.ClassActivation(net, images, layer="2")
    cam.finish()
    scales = {panel.name: panel.scale for row in cam._figure_rows() for panel in row}
    assert all(scale is not None and scale.high > scale.low for scale in scales.values())
    large, guided = scales["large"], scales["guided"]
    assert large is not None
    assert guided is not None
    assert (large.low, large.high) == (0, 1)
    assert guided.low == -guided.high
    view = nbviz.Explorer(net, images, "2")
    view.finish()
    by_name = {panel.name: panel for row in view._figure_rows() for panel in row}
    assert by_name["channels"].scale is None
    assert "each on its own scale" in by_name["channels"].caption
    maps = nbviz.feature_maps(net, images[:1], "2")[0]
    scale = by_name["activation"].scale
    assert scale is not None
    assert scale.high == pytest.approx(float(maps[view.channel].max()))
    view.scale = "shared"
    shared = nbviz.widgets.figure_panels.grid_panel(view.grid).scale
    assert shared is not None
    assert (shared.low, shared.high) == pytest.approx((float(maps.min()), float(maps.max())))


# Text is text.

TEXTS = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "half, turned, NUL and escape": "\ud83d caf\udcc3 \u202egnp.tac\u2066 a\0b\x1b[31mred",
    "mathematics": "_$\\frac{$_^{",
    "long": "x\n\r\n\t" * 50 + "x" * 100_000,
}


class Named(nn.Module):
    """Layers of the name given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        self.end, self.name = nn.Linear(4, 3), name

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.end(self.get_submodule(self.name)(x).mean((2, 3)))
        return found


def made(name: str, text: str) -> Pulled:
    """A widget in which a layer, the labels, the pictures and the checkpoints have this name."""
    kind = type("<b>Net", (Named,), {})
    net = kind(text.replace(".", "·"))
    layer, images, labels = f"{net.name}.1", torch.rand(3, 3, 8, 8), [text, "b", text]
    net.nbviz_preprocess = nbviz.Preprocess(lambda _: torch.rand(3, 8, 8), labels=labels, source=text)
    dataset = torch.utils.data.TensorDataset(images, torch.tensor([0, 1, 2]))
    given: dict[str, Any] = {"dataset": dataset, "checkpoints": {f"{text}{i}": net.state_dict() for i in range(9)}}
    options = EVERY[name].options
    given |= {"layer": layer} if "layer" in options else {}
    given |= {"layers": [layer]} if "layers" in options else {}
    if name == "Ablation":
        given |= {"table": nbviz.ablate(net, dataset, layer, progress=False), "off": [0]}
    elif name == "Compare":
        given["comparison"] = nbviz.compare(net, copy.deepcopy(net), dataset, progress=False)
    elif name == "Maximise":
        given |= {"steps": 1, "size": 8, "labels": labels}
    elif name == "Invariance":
        given["labels"] = labels
    return make(name, net, images, **given)


@every_with("text", TEXTS, "half, turned, NUL and escape", "mathematics")
def test_names_are_text_that_a_page_can_show(name: str, text: str) -> None:
    view = made(name, text)
    ready(view)
    for widget in parts(view):
        sent = {key: value for key, value in widget.get_state().items() if key not in ("_esm", "_css", "code")}
        told = json.dumps(sent, ensure_ascii=False, allow_nan=False, default=len).encode().decode()
        assert len(told) < 50_000
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\\u00(?!0a|09)[01]", told)
        if isinstance(widget, ipywidgets.HTML):  # the only one whose text a page takes for HTML
            assert not re.search("<(script|img|b)", widget.value)
            assert name == "Correspondence"
    view.header.code.encode()
    if text in (TEXTS["mathematics"], TEXTS["long"]):  # a figure takes its time
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_legible(view.figure())
    view.close()


@pytest.mark.parametrize("name", few(["Ablation", "Invariance", "Compare", "Correspondence"], 2, 3))
def test_file_names_are_text_too(name: str, net: Small, tmp_path: Path) -> None:
    paths = [tmp_path / f"<img src=x onerror=alert({i})>$^\udcc3\u202e.png" for i in range(2)]
    for path in paths:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    view = make(name, net, paths)  # type: ignore[arg-type]
    ready(view)
    shown = view.drawing.pictures if isinstance(view, nbviz.Correspondence) else view.strip.thumbs  # type: ignore[attr-defined]
    assert [one["name"] for one in shown] == [f"<img src=x onerror=alert({i})>$^\ufffd\ufffd.png" for i in range(2)]
    check_legible(view.figure())


@telling
def test_any_text_in_an_error_is_one_that_a_page_can_show(
    name: str, net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = make(name, net, images)
    view.finish()
    for text in TEXTS.values():

        def fail(*_: Any, text: str = text, **__: Any) -> None:
            raise MemoryError(text)

        with monkeypatch.context() as patch:
            patch.setattr(view, f"_show_{view._parts[0]}", fail)
            change(view, 0, name)
            assert view.header.error.startswith("MemoryError: ")
            assert len(view.header.error.encode()) < 2000
        change(view, 1, name)
        ready(view)


def test_the_same_class_twice_among_the_answers_is_told_twice() -> None:
    """Two classes of a network may have one name, as ImageNet's two cranes."""
    net = Small()
    view = nbviz.Ablation(net, pictures(), "2", labels=["crane"] * 4, off=[0])
    _, before, now, _ = view.figure().axes
    for axes in (before, now):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["crane"] * 4
        assert len({round(bar.get_y(), 3) for bar in axes.patches}) == 4
    np.testing.assert_allclose([bar.get_width() for bar in now.patches], [row[1] for row in view.strip.predictions])
