"""What goes wrong in a widget's work leaves model, lock and modes as they were; the widget goes on, or says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn

import nbviz
from nbviz.core.backward import BackwardRule
from nbviz.core.state import lock
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise
from nbviz.widgets.layer_widget import LayerWidget
from tests.rounds import few, rounds

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]
LAYER_WIDGETS = [nbviz.FeatureMaps, nbviz.Reconstruction, nbviz.Explorer]


@pytest.fixture
def net(vgg_like: nn.Sequential) -> nn.Sequential:
    return vgg_like.train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32)


@pytest.fixture(autouse=True)
def a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)


def tiles(view: LayerWidget) -> np.ndarray:
    channels, pixels = view.grid.pixels()
    assert sorted(channels) == list(range(view.grid.tiles["shape"][0]))
    return pixels[np.argsort(channels)]


def goes_on(view: LayerWidget) -> None:
    """The next change draws what the functions give."""
    view.picture = 1
    view.picture = 2
    view.finish()
    assert (view.header.state, view.header.error, view.header.stale) == ("ready", "", [])
    image = view.session.subject.inputs[2:3]
    maps = nbviz.feature_maps(view.session.subject.model, image, view.layer)[0]
    if "grid" in view._parts and view.tiles == "activation":
        np.testing.assert_array_equal(tiles(view), quantise(maps)[0].numpy())
    if "channel" in view._parts:
        back = nbviz.guided_backprop(view.session.subject.model, image, view.layer, [view.channel])[0, 0]
        shown = decode(view.panels.slot("guided")).transpose(2, 0, 1).astype(int)
        assert np.abs(shown - centre(back).numpy().astype(int)).max() <= 1


# Errors.


def in_forward(net: nn.Sequential, patch: pytest.MonkeyPatch, fail: Callable[..., Any]) -> None:
    patch.setattr(net[3], "forward", fail)


def in_a_hook(net: nn.Sequential, patch: pytest.MonkeyPatch, fail: Callable[..., Any]) -> None:
    patch.setitem(net[3]._forward_hooks, 10_000, fail)


def in_a_backward_hook(net: nn.Sequential, patch: pytest.MonkeyPatch, fail: Callable[..., Any]) -> None:
    patch.setitem(net[3]._backward_hooks, 10_000, fail)
    patch.setattr(net[3], "_is_full_backward_hook", True)


def in_a_rule(net: nn.Sequential, patch: pytest.MonkeyPatch, fail: Callable[..., Any]) -> None:
    patch.setattr(BackwardRule, "__torch_dispatch__", fail)


@pytest.mark.parametrize(
    ("where", "tiled"),
    few(product([in_forward, in_a_hook, in_a_backward_hook, in_a_rule], ["activation", "guided"]), 0, 3, 5, 7),
)
def test_an_error_leaves_no_mark_and_the_widget_says_so_and_goes_on(
    where: Callable[..., None], tiled: str, net: nn.Sequential, images: Tensor, snapshot: Snapshot
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of tune")

    view = nbviz.Explorer(net, images, layer="6", tiles=tiled)
    view.finish()
    with snapshot(net):
        with pytest.MonkeyPatch.context() as patch:
            where(net, patch, fail)
            view.picture = 1
            view.finish()
        assert view.header.state == "error"
        assert "out of tune" in view.header.error
        view.finish()  # tries again, as does showing it again: the cause is gone
        assert (view.header.state, view.header.error) == ("ready", "")
        goes_on(view)
        view.close()


# Interrupts.


@pytest.mark.parametrize(
    ("kind", "tiled"), few([(kind, "activation") for kind in LAYER_WIDGETS] + [(nbviz.Explorer, "guided")], 0, 1, 3)
)
def test_an_interrupt_in_any_chunk_leaves_no_mark_and_the_rest_to_be_drawn(
    kind: Any, tiled: str, net: nn.Sequential, images: Tensor, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.tiles._MOST_TILES", 4)
    view = kind(net, images, layer="6", tiles=tiled)
    view.finish()
    chunks = 0

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with snapshot(net):
        ended = False
        while not ended:  # each chunk of a change in its turn
            view.picture = (view.picture + 1) % 3
            for _ in range(chunks):
                view.header.painted = view.header.chunk
            with pytest.MonkeyPatch.context() as patch:
                for name in ("session.to_host", "session.project", "views.encode", "channel_panels.to_host"):
                    patch.setattr(f"nbviz.widgets.{name}", interrupted)
                patch.setattr(view.session, "predictions", interrupted)
                try:
                    view.finish()
                    ended = True
                except KeyboardInterrupt:
                    assert view.header.state == "interrupted"
                    chunks += 1
            assert not lock._is_owned()  # type: ignore[attr-defined]
            view.finish()
            assert (view.header.state, view.header.error, view.header.stale) == ("ready", "", [])
        goes_on(view)
    assert chunks >= {"FeatureMaps": 2, "Reconstruction": 4, "Explorer": 6}[kind.__name__]


# A widget that goes.


def test_a_widget_closed_while_it_renders_ends(net: nn.Sequential, images: Tensor, snapshot: Snapshot) -> None:
    view = nbviz.Explorer(net, images, layer="6", tiles="guided")
    widgets = set(registry._instances)
    others = nbviz.Explorer(net, images, layer="6", tiles="guided")
    with snapshot(net):
        entered, leave = threading.Event(), threading.Event()

        def wait(*_: Any) -> None:
            entered.set()
            leave.wait(10)

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(net[3]._forward_hooks, 10_000, wait)
            thread = threading.Thread(target=lambda: (setattr(others, "picture", 1), others.finish()))
            thread.start()
            entered.wait(10)
            closing = threading.Thread(target=others.close)
            closing.start()
            leave.set()
            thread.join(30)
            closing.join(30)
        assert not thread.is_alive()
        assert not closing.is_alive()
        assert set(registry._instances) == widgets
        assert others.session.trace_bytes == 0
        goes_on(view)


@pytest.mark.parametrize("part", few(["trace", "grid", "fused", "first", "channel", "predictions", "rest"], 0, 1, 4))
def test_a_widget_that_an_observer_closes_in_any_chunk_ends(
    part: str, net: nn.Sequential, images: Tensor, snapshot: Snapshot
) -> None:
    view = nbviz.Explorer(net, images, layer="6", tiles="guided")
    view.finish()
    draw = getattr(view, f"_show_{part}")

    def closes() -> Any:
        yield from draw() or ()  # a part that is drawn at once gives nothing
        view.close()
        yield True

    widgets = set(registry._instances)
    with snapshot(net), pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, f"_show_{part}", closes)
        view.picture = 1
        view.finish()
    assert view.comm is None
    assert view.session.trace_bytes == 0
    assert len(set(registry._instances) & widgets) < len(widgets)


# Two at once.


def test_two_widgets_on_one_model_from_two_threads(net: nn.Sequential, images: Tensor, snapshot: Snapshot) -> None:
    views = [nbviz.Explorer(net, images, layer=layer, tiles="guided") for layer in ("4", "9")]
    errors: list[BaseException] = []

    def move(view: LayerWidget) -> None:
        try:
            for number in range(rounds(6, 12)):
                view.picture, view.seed = number % 3, ("max", "map", "unit")[number % 3]
                if number % 2:
                    view.finish()
        except BaseException as error:
            errors.append(error)

    with snapshot(net):
        thread = threading.Thread(target=move, args=(views[1],))
        thread.start()
        move(views[0])
        thread.join(60)
        assert errors == []
        for view in views:
            view.seed = "max"
            goes_on(view)


def test_a_cell_that_trains_the_model_while_its_widgets_are_open(net: nn.Sequential, images: Tensor) -> None:
    """Their threads stay out while a step is made, with the lock that a cell's beginning waits for."""
    views = [nbviz.Explorer(net, images, layer="6", tiles=tiles) for tiles in ("activation", "guided")]
    twin = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    stop = threading.Event()

    def move() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for view in views:
                view.picture = number % 3

    def step(weights: list[Tensor]) -> list[Tensor]:
        loss = torch.func.functional_call(net.eval(), dict(zip(names, weights, strict=True)), images).logsumexp(1).sum()
        return [w - 0.01 * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]

    names = [name for name, _ in net.named_parameters()]
    thread = threading.Thread(target=move)
    thread.start()
    for _ in range(10):
        with lock:
            net.eval()
            optimizer.zero_grad()
            net(images).logsumexp(1).sum().backward()
            optimizer.step()
            net.train()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    for _ in range(10):
        twin = [w.detach() for w in step([w.requires_grad_() for w in twin])]
    for parameter, expected in zip(net.parameters(), twin, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)
    net.train()
    for view in views:
        goes_on(view)


# Memory.


def test_tiles_that_memory_does_not_suffice_for_come_in_smaller_lots(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 70, 3), nn.ReLU())
    whole = nbviz.Explorer(net, images, layer="1", tiles="guided")
    whole.finish()
    view = nbviz.Explorer(net, images, layer="1", channel=0)
    patches = view.session.patches
    asked: list[int] = []

    def short(layer: Any, maps: Tensor, *more: Any) -> Any:
        asked.append(len(maps))
        if len(maps) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return patches(layer, maps, *more)

    monkeypatch.setattr(view.session, "patches", short)
    monkeypatch.setattr("nbviz.widgets.tiles._TILES_SECONDS", 1e6)  # as many as there may be
    with snapshot(net):
        view.tiles = "guided"
        view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    assert [size for size in asked if size > 2] == [64, 32, 16, 8, 4]
    assert np.abs(tiles(view).astype(int) - tiles(whole).astype(int)).max() <= 1


def test_a_picture_that_memory_does_not_suffice_for_is_a_line_that_says_what_to_do(
    net: nn.Sequential, images: Tensor, snapshot: Snapshot
) -> None:
    view = nbviz.Explorer(net, images, layer="6")
    view.finish()

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with snapshot(net):
        with pytest.MonkeyPatch.context() as patch:
            in_a_hook(net, patch, short)
            view.picture = 1
            view.finish()
        assert view.header.error.startswith("ModelError: out of memory for the forward pass of Sequential")
        assert "fewer or smaller pictures" in view.header.error
        goes_on(view)


# Displays.


@pytest.mark.parametrize("kind", LAYER_WIDGETS)
def test_a_model_that_fails_does_not_keep_a_widget_from_being_shown(
    kind: Any, net: nn.Sequential, images: Tensor, snapshot: Snapshot
) -> None:
    view = kind(net, images, layer="6")
    view.finish()
    view.session.forget()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of tune")

    with snapshot(net):
        with pytest.MonkeyPatch.context() as patch:
            in_a_hook(net, patch, fail)
            bundle = view._repr_mimebundle_()
            assert "application/vnd.jupyter.widget-view+json" in bundle
            assert ("image/png" in bundle) == ("out of tune" not in view.header.error)
        goes_on(view)


def test_a_figure_of_reconstructions_of_which_none_was_drawn_is_of_the_picture(
    net: nn.Sequential, images: Tensor
) -> None:
    view = nbviz.Reconstruction(net, images, layer="6")
    view.finish()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of tune")

    net[3].register_forward_hook(fail)
    view.picture = 1
    assert view.header.state == "error"
    assert [[panel.caption for panel in row] for row in view._figure_rows()] == [["picture 2"]]
    assert view.figure().axes


@pytest.mark.parametrize("value", few([0, -5, "large", None], 0, 2))
def test_a_bad_size_of_tiles_is_refused(value: Any, net: nn.Sequential, images: Tensor) -> None:
    view = nbviz.Explorer(net, images, layer="6")
    with pytest.raises(t.TraitError, match="side"):
        view.grid.side = value
    assert view.grid.side == 64
    goes_on(view)


def test_the_size_of_tiles_that_are_not_shown_plays_no_part(net: nn.Sequential, images: Tensor) -> None:
    view = nbviz.Reconstruction(net, images, layer="6")
    view.grid.side = 128
    goes_on(view)
