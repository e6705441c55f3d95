"""The widget that shifts, scales and turns a picture: its curves, its picture and its answers are the functions'."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn

import nbviz
from nbviz.imaging.encode import decode
from nbviz.pictures.warp import warp
from tests.rounds import few
from tests.small import Ran, Small, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]
NOTHING = {"down": 0, "across": 0, "scale": 1, "angle": 0}


@pytest.fixture
def net() -> Small:
    return Small()


@pytest.fixture
def images() -> Tensor:
    return pictures()


def scores(net: nn.Module, inputs: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        found: Tensor = net(inputs).softmax(1)[0]
    net.train()
    return found


def check(view: nbviz.Invariance, **more: Any) -> None:
    """All that is shown is what the functions give for the state."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    net, i = view.session.subject.model, view.picture
    inputs = view.session.subject.inputs[i : i + 1]
    values = view.distances.series[0]["x"]
    layers = [one["name"] for one in view.distances.series]
    found = nbviz.invariance(net, inputs, layers, view.transform, values, **more)
    for one in view.distances.series:
        np.testing.assert_allclose(one["y"], found.distances[one["name"]][0], rtol=1e-4, atol=1e-6)
    (probability,) = view.probability.series
    np.testing.assert_allclose(probability["y"], found.probability[0], rtol=1e-4)
    assert probability["name"] == f"class {int(found.target[0])}"
    moved = warp(inputs, **{view.transform: view.value})
    shown = (moved[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(decode(view.panels.slot("picture")).astype(int) - shown).max() <= 1
    assert view.panels.is_current(view.panels.slot("picture"))
    before, after = scores(net, inputs), scores(net, moved)
    assert [row[0] for row in view.strip.predictions][:4] == [f"class {k}" for k in before.argsort(descending=True)]
    for label, now, then in view.strip.predictions:
        assert (now, then) == pytest.approx((float(after[int(label[6:])]), float(before[int(label[6:])])), rel=1e-4)
    control = view.value_control
    assert (control.value, control.min, control.max) == (view.value, min(values), max(values))
    assert (view.transform_control.value, view.strip.picture) == (view.transform, view.picture)


@pytest.mark.parametrize("transform", few(["down", "across", "scale", "angle"], 1, 3))
def test_all_that_is_shown_is_what_the_functions_give(
    transform: str, net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    with snapshot(net):
        view = nbviz.Invariance(net, images, ["0", "5", "8"], transform, picture=1)
        assert view.value == NOTHING[transform]  # which every transform is wanted to begin with
        check(view)
        view.value = view.value_control.max
        check(view)
        view.value_control.set_state({"value": 0.75})
        check(view)
        view.strip.set_state({"picture": 2})
        check(view)
        view.close()


def test_another_transform_begins_where_nothing_is_done(net: Small, images: Tensor) -> None:
    view = nbviz.Invariance(net, images, transform="angle")
    view.value = 120.0
    for transform in ("scale", "down", "angle", "scale", "across"):
        view.transform_control.set_state({"index": ["down", "across", "scale", "angle"].index(transform)})
        assert view.value == NOTHING[transform]
        check(view)
    assert view.distances.xlabel == view.probability.xlabel == "shift across, pixels"


@pytest.mark.parametrize(("values", "first"), [([2, 5], 2), ([-7, -3.5], -3.5), ([4], 4), (torch.tensor([1, 3]), 1)])
def test_values_of_ones_own_may_leave_out_what_does_nothing(
    values: Any, first: float, net: Small, images: Tensor
) -> None:
    view = nbviz.Invariance(net, images, None, "down", values)
    assert view.value == first
    check(view)
    assert view.distances.series[0]["x"] == [float(value) for value in values]
    view.transform = "scale"
    view.transform = "down"
    assert view.distances.series[0]["x"] == [float(value) for value in values]


def test_a_class_that_is_given_is_followed(net: Small, images: Tensor) -> None:
    view = nbviz.Invariance(net, images, ["5"], "across", [-1, 0, 2], 3, labels=["a", "b", "c", "<b>d"])
    view.finish()
    (curve,) = view.probability.series
    expected = nbviz.invariance(net, images[:1], ["5"], "across", [-1, 0, 2], 3).probability[0]
    assert curve["name"] == "<b>d"
    np.testing.assert_allclose(curve["y"], expected, rtol=1e-5)


def test_pictures_that_go_together_move_alone(net: Small, images: Tensor) -> None:
    def feed(batch: Tensor) -> tuple[Tensor]:
        return (batch - batch.mean(),)

    view = nbviz.Invariance(net, images, ["5"], "across", [0, 3], inputs=feed, picture=1)
    view.value = 3
    view.finish()
    assert view.header.error == ""
    moved = images.clone()
    moved[1:2] = warp(images[1:2], across=3)
    expected = scores(net, (moved - moved.mean())[1:2])
    for label, now, _ in view.strip.predictions:
        assert now == pytest.approx(float(expected[int(label[6:])]), rel=1e-4)


# What it costs.


def test_the_slider_runs_one_pass_and_no_curve(net: Small, images: Tensor) -> None:
    view = nbviz.Invariance(net, images, transform="across")
    view.finish()
    before = view.distances.series
    with Ran() as ran:
        view.value = 2.0
        view.finish()
        view.value = 3.0
        view.finish()
    assert (ran.times["convolution"], ran.times["addmm"]) == (4, 2)
    assert view.distances.series is before
    with Ran() as ran:
        view.value = 3.0
        view.header.painted = view.header.chunk
    assert not ran.times["convolution"]


def test_the_curves_come_piece_by_piece_and_a_newer_state_drops_the_rest(
    net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Invariance(net, images, transform="angle")
    seen = []
    while view.header.state != "ready":
        if view.distances.series:
            seen.append(len(view.distances.series[0]["x"]))
        view.header.painted = view.header.chunk
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3
    view.picture = 1
    view.picture = 2
    check(view)


def test_a_figure_never_mixes_states(net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Invariance(net, images, transform="across")
    view.finish()
    assert [len(row) for row in view._figure_rows()] == [3, 2]
    view.picture = 1  # of which only the picture is drawn so far
    rows = view._figure_rows()
    assert [len(row) for row in rows] == [1]
    view.finish()
    first, plots = view._figure_rows()
    assert [panel.caption for panel in first] == ["shift across by 0 pixels", "as it is", "now"]
    assert [(panel.marker, list(panel.ends)) for panel in plots] == [(0, [None, None]), (0, [0, 1])]


# What is refused.


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"transform": "turn"}, ValueError, "no transform 'turn'.*Accepted: down, across, scale, angle"),
        ({"layers": ["9"]}, ValueError, "no layer '9'"),
        ({"layers": "5"}, TypeError, "layers is '5'; expected a list of modules' names"),
        ({"layers": []}, TypeError, "expected a list of modules' names"),
        ({"values": []}, ValueError, "values has 0 numbers; expected 1 to 10,000"),
        ({"values": ["a"]}, TypeError, "expected a list of numbers"),
        ({"values": [0], "transform": "scale"}, ValueError, "scale is 0.0; expected 0.01 to"),
        ({"target": 4}, ValueError, "no class 4: there are 4, numbered 0 to 3"),
        ({"target": [0, 1]}, ValueError, "class: got .*; expected one whole number"),
        ({"picture": 3}, ValueError, "no picture 3"),
        ({"labels": "abcd"}, TypeError, "expected a list of names"),
        ({"images": torch.rand(1, 1, 16, 16)}, ValueError, "takes 3"),
        ({"angle": 3}, TypeError, "angle"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, net: Small, images: Tensor
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Invariance(net, **{"images": images, **given})
    assert set(registry._instances) == widgets


@pytest.mark.parametrize(
    ("net", "images", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 8, 8), "no class scores; expected .*output="),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 8), r"expected pictures \(N, C, H, W\)"),
        (nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 8, 8, 8), "expected pictures"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(net: nn.Module, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbviz.Invariance(net, images)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("value", 4.5, "value is 4.5; expected -4 to 4"),
        ("value", float("nan"), "expected -4 to 4"),
        ("transform", "turn", "no transform 'turn'"),
        ("picture", 3, "no picture 3"),
        ("value", "1", "expected a number"),
        ("transform", None, "no transform"),
    ],
)
def test_a_bad_value_is_refused_and_nothing_changes(
    name: str, value: Any, message: str, net: Small, images: Tensor
) -> None:
    view = nbviz.Invariance(net, images, transform="down", picture=1)
    view.value = 2.0
    with pytest.raises((ValueError, TypeError, t.TraitError), match=message):
        setattr(view, name, value)
    assert (view.transform, view.value, view.picture) == ("down", 2.0, 1)
    view.value = 1.0
    check(view)


def test_layers_with_long_names_are_told_apart(images: Tensor) -> None:
    net = nn.Sequential()
    for name in ("a" * 100 + "1", "a" * 100 + "2"):
        net.add_module(name, nn.Conv2d(3, 3, 1))
    net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    names = [name for name, _ in net.named_children()][:2]
    view = nbviz.Invariance(net, images, names, "down", [0, 1])
    view.finish()
    assert [one["name"] for one in view.distances.series] == [f"…{'a' * 38}{i}" for i in (1, 2)]
    assert len(view.figure().axes[-2].get_legend().get_texts()) == 2


def test_the_code_gives_the_same_view(net: Small, images: Tensor) -> None:
    view = nbviz.Invariance(net, images, ["2"], "scale", picture=2)
    view.finish()
    again = eval(view.header.code, {"nbviz": nbviz, "model": net, "images": images})
    again.finish()
    assert (again.transform, again.picture, again.distances.series) == ("scale", 2, view.distances.series)
