"""Models that are trained or rebuilt under a live widget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nbviz
from nbviz.core.shadow import shadow_of
from tests.core.test_weights import convolutional, train
from tests.rounds import few, rounds

ROUNDS = rounds(10, 40)
X = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def head(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, classes))


def wide() -> nn.Sequential:
    """Of more weights than are looked at each time."""
    torch.manual_seed(1)
    pool = nn.AdaptiveAvgPool2d(8)
    return nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4096, 100), nn.Linear(100, 3))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.functional.cross_entropy(net(X), torch.tensor([0, 1])).backward()
    optimizer.step()


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "fused SGD": lambda net: step(net, torch.optim.SGD(net.parameters(), 0.5, fused=True)),
    "fused Adam": lambda net: step(net, torch.optim.Adam(net.parameters(), 0.1, fused=True)),
    "data": lambda net: net[-1].bias.data.copy_(torch.tensor([9.0, 0, 0])),
    "NumPy": lambda net: net[-1].bias.detach().numpy().__setitem__(0, 9.0),
    "one value by NumPy": lambda net: net[0].weight.detach().numpy().__setitem__((3, 0, 1, 1), 9.0),
    "a state dict": lambda net: net.load_state_dict({k: v + 0.5 for k, v in net.state_dict().items()}),
}


@pytest.mark.parametrize(("change", "make"), few(product(CHANGES, [head, wide]), 1, 2, 4, 7, 9, 10))
def test_after_every_way_of_training_a_widget_says_what_the_model_says(make, change):
    net = make()
    view = nbviz.explore(net, X, layer="1", channel=0)
    view.finish()
    CHANGES[change](net)
    view.picture = 1
    view.finish()
    again = nbviz.explore(net, X, layer="1", channel=view.channel, picture=1)
    again.finish()
    probabilities = net.eval()(X[1:2])[0].softmax(0)  # alone, as the widget asks: in a batch it rounds otherwise
    assert dict(view.strip.predictions) == dict(again.strip.predictions)
    assert view.strip.predictions[0][1] == pytest.approx(float(probabilities.max().detach()), abs=1e-6)
    assert np.array_equal(view.grid.pixels()[1], again.grid.pixels()[1])
    view.close()
    again.close()


@pytest.mark.parametrize("change", few(CHANGES, 1, 4))
def test_a_figure_is_of_the_weights_as_they_are(change):
    net = head()
    view = nbviz.explore(net, X, layer="1", channel=0)
    view.finish()
    CHANGES[change](net)
    view.figure()
    again = nbviz.explore(net, X, layer="1", channel=0)
    again.finish()
    assert dict(view.strip.predictions) == dict(again.strip.predictions)
    assert view.panels.slot("activation")["data"] == again.panels.slot("activation")["data"]


WIDGETS: dict[str, Callable[[nn.Module], Any]] = {
    "explore": lambda net: nbviz.explore(net, X, layer="1"),
    "FeatureMaps": lambda net: nbviz.FeatureMaps(net, X, layer="1"),
    "ClassActivation": lambda net: nbviz.ClassActivation(net, X, layer="1"),
    "Occlusion": lambda net: nbviz.Occlusion(net, X, patch=8, stride=8),
    "Ablation": lambda net: nbviz.Ablation(net, X, layer="1"),
    "Invariance": lambda net: nbviz.Invariance(net, X),
    "Regions": lambda net: nbviz.Regions(net, X),
}
REBUILT: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "wider": (
        lambda net: rebuilt(net, 0, nn.Conv2d(1, 8, 3), nn.Linear(128, 3)),
        r"layer '0' gives 8×14×14, and gave 4×14×14",
    ),
    "a stride": (lambda net: setattr(net[0], "stride", (2, 2)), "the model has changed"),
    "other weights": (lambda net: net.double(), "its weights are float64 on cpu, and were float32 on cpu"),
    "a new head": (lambda net: net.__setitem__(4, nn.Linear(64, 7)), r"layer '4' gives 7, and gave 3"),
    "one more": (lambda net: net.append(nn.Identity()), r"it has a new layer '5'"),
    "one less": (lambda net: net.__delitem__(4), r"it has no layer '4' any more"),
}


def rebuilt(net: nn.Module, place: int, part: nn.Module, last: nn.Module) -> None:
    net[place], net[4] = part, last


@pytest.mark.parametrize(("change", "widget"), few(product(REBUILT, WIDGETS), *range(0, 42, 8), 34, 41))
def test_a_model_that_was_rebuilt_is_said_to_be_until_it_is_what_it_was(widget, change):
    net = head()
    view = WIDGETS[widget](net)
    view.finish()
    act, said = REBUILT[change]
    act(net)
    for picture in (1, 0):
        view.picture = picture
        view.finish()
        assert "the model has changed" in view.header.error
        assert said in view.header.error
        assert "run its cell" in view.header.error
    view.close()


def test_a_model_that_is_again_what_it_was_is_shown_again():
    net = head()
    first = net[4]
    view = nbviz.explore(net, X, layer="1")
    view.finish()
    expected = view.strip.predictions
    net[4] = nn.Linear(64, 7)
    view.picture = 1
    view.finish()
    assert view.header.error
    net[4] = first
    view.picture = 0
    view.finish()
    assert (view.header.error, view.strip.predictions) == ("", expected)


@pytest.mark.parametrize("widget", few(WIDGETS, 0, 3, 4))
def test_a_part_of_the_same_shape_is_followed(widget):
    net = head()
    view = WIDGETS[widget](net)
    view.finish()
    net[1] = nn.LeakyReLU(0.5)
    net[4] = nn.Linear(64, 3)
    view.picture = 1
    view.finish()
    assert view.header.error == ""
    again = WIDGETS[widget](net)
    again.picture = 1
    again.finish()
    assert view.strip.predictions == again.strip.predictions


def test_kernels_of_a_wider_layer_are_all_there():
    net = head()
    view = nbviz.Kernels(net, "0")
    net[0] = nn.Conv2d(1, 8, 3)
    view.channel = 1
    view.finish()
    view._renew({"all"})
    view.finish()
    assert view.channel_control.max == 7
    assert view.grid.tiles["shape"][0] == 8


@pytest.mark.parametrize("optimizer", few(["SGD", "fused AdamW"], 1))
def test_widgets_beside_a_training_show_maps_of_weights_that_the_model_had(optimizer):
    alone, net = convolutional(norm=True), convolutional(norm=True)
    train(alone, optimizer, ROUNDS)
    states = [shadow_of(net, own_weights=True)]
    views = [
        *(nbviz.FeatureMaps(net, X, layer=layer) for layer in ("0", "2", "5", "6")),
        *(nbviz.explore(net, X, layer=layer, channel=1) for layer in ("2", "6")),
        *(nbviz.ClassActivation(net, X, layer="6"), nbviz.Occlusion(net, X, patch=8, stride=8)),
        *(nbviz.Ablation(net, X, layer="2"), nbviz.Maximise(net, "2", [0], steps=4)),
    ]
    shown: list[tuple[int, str, Any]] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def drive(number: int) -> None:
        view, turn = views[number], 0
        try:
            while not stop.is_set():
                turn += 1
                if hasattr(view, "picture"):
                    view.picture = turn % 2
                else:
                    view.steps = 4 + turn
                view.finish()
                assert view.header.error == "", view.header.error
                if hasattr(view, "grid") and number < 6:
                    with view._turn():
                        channels, pixels = view.grid.pixels()
                        shown.append(
                            (
                                turn % 2,
                                view.layer,
                                np.array(
                                    [p for _, p in sorted(zip(channels, pixels, strict=True), key=lambda pair: pair[0])]
                                ),
                            )
                        )
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=drive, args=[number]) for number in range(len(views))]
    for thread in threads:
        thread.start()
    train(net, optimizer, ROUNDS, lambda: states.append(shadow_of(net, own_weights=True)))
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), net.state_dict().values(), strict=True))
    expected: dict[tuple[int, str], list[Any]] = {}
    for state in states:
        for layer in ("0", "2", "5", "6"):
            maps = nbviz.feature_maps(state, X, layer)
            for picture in (0, 1):
                low, high = maps[picture].flatten(1).amin(1), maps[picture].flatten(1).amax(1)
                span = (high - low).clamp(min=1e-12)[:, None, None]
                steps = ((maps[picture] - low[:, None, None]) / span * 255).numpy()
                expected.setdefault((picture, layer), []).append(steps)
    assert len(shown) >= 6
    for picture, layer, pixels in shown:
        nearest = min(np.abs(pixels - other).max() for other in expected[picture, layer])
        assert nearest <= 1, (layer, nearest)
    for view in views:
        view.close()
