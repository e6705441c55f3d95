"""The widget that shows pictures grow."""

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
from nbviz.results import MaximiseResult
from tests.rounds import few
from tests.small import Ran, Small

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]
GIVEN: dict[str, Any] = {"size": 16, "seed": 3}


@pytest.fixture
def net() -> Small:
    return Small()


def check(view: nbviz.Maximise, found: MaximiseResult, names: list[str]) -> None:
    """All that is shown is what has grown."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    own = view.found
    assert own.step == found.step
    torch.testing.assert_close(own.pictures, found.pictures, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.values, found.values, rtol=1e-4, atol=1e-5)
    for i, name in enumerate(names):
        slot = view.panels.slot(f"picture_{i}")
        assert slot["caption"] == (
            f"{name}: {float(own.values[i]):.3g} (noise {float(own.start[i]):.3g}), step {found.step}"
        )
        expected = (255 * found.pictures[i]).round().permute(1, 2, 0).numpy()
        assert np.abs(decode(slot).astype(int) - expected).max() <= 1
    for i, (curve, name) in enumerate(zip(view.values.series, names, strict=False)):
        assert curve["name"] == name
        assert (curve["x"][0], curve["x"][-1]) == (0, found.step)
        assert curve["x"] == sorted(set(curve["x"]))
        assert curve["y"][0] == pytest.approx(float(found.start[i]), rel=1e-4)
        assert curve["y"][-1] == pytest.approx(float(found.values[i]), rel=1e-3)
    assert view.steps_control.value == view.steps


@pytest.mark.parametrize(
    ("given", "names"),
    few(
        [
            ({"layer": "2", "channels": [3, 0, 3]}, ["#3", "#0", "#3"]),
            ({"layer": "5", "channels": 1, "objective": "neuron"}, ["#1"]),
            ({"target": [2, 0]}, ["class 2", "class 0"]),
            ({"layer": "8", "channels": [1]}, ["#1"]),
        ],
        *(0, 2),
    ),
)
def test_more_steps_go_on_from_where_it_was(
    given: dict[str, Any], names: list[str], net: Small, snapshot: Snapshot
) -> None:
    with snapshot(net):
        view = nbviz.Maximise(net, steps=3, **given, **GIVEN)
        check(view, nbviz.maximise(net, steps=3, **given, **GIVEN), names)
        view.steps = 10
        check(view, nbviz.maximise(net, steps=10, **given, **GIVEN), names)
        view.steps_control.set_state({"value": 13})
        check(view, nbviz.maximise(net, steps=13, **given, **GIVEN), names)
        view.steps = 5  # fewer leave them as they are
        check(view, nbviz.maximise(net, steps=13, **given, **GIVEN), names)
        assert view.header.cost == "step 13 of 13"
        view.close()


def test_a_network_of_grey_pictures() -> None:
    model = nbviz.bundled.load("fashion")
    view = nbviz.Maximise(model, target=[1, 9], steps=2)
    check(view, nbviz.maximise(model, target=[1, 9], steps=2), ["trouser", "ankle boot"])
    assert decode(view.panels.slot("picture_0")).shape == (28, 28, 3)


def test_each_step_is_taken_once_and_shown_now_and_then(net: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 1e6)
    view = nbviz.Maximise(net, "5", [0], steps=20, **GIVEN)
    seen = []
    while view.header.state == "working":
        seen.append(view.header.cost)
        view.header.painted = view.header.chunk
    assert seen == ["step 8 of 20", "step 16 of 20"]
    assert (view.header.state, view.header.cost) == ("ready", "step 20 of 20")
    assert view.values.series[0]["x"] == [0, 8, 16, 20]
    with Ran() as ran:
        view.steps = 22
        view.finish()
    assert ran.times["convolution_backward"] == 4  # two steps through two convolutions
    assert ran.times["convolution"] == 6  # and one look at what has grown
    with Ran() as ran:
        view.steps = 1
        view.finish()
    assert not ran.times["convolution_backward"]


def test_a_newer_number_of_steps_drops_nothing_and_starts_nothing_over(
    net: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Maximise(net, "5", [0], steps=100, **GIVEN)
    view.header.painted = view.header.chunk
    before = view.found.step
    assert 0 < before < 100
    view.steps = 12
    check(view, nbviz.maximise(net, "5", [0], steps=12, **GIVEN), ["#0"])


def test_an_interrupt_or_an_error_leaves_what_has_grown(net: Small, snapshot: Snapshot) -> None:
    view = nbviz.Maximise(net, "5", [3], steps=4, robust=False, **GIVEN)
    view.finish()
    for error in (KeyboardInterrupt, RuntimeError):

        def fail(*_: Any, error: type[BaseException] = error) -> None:
            raise error("out of tune")

        with snapshot(net), pytest.MonkeyPatch.context() as patch:
            patch.setattr(net[1], "forward", fail)
            if error is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    view.steps = 6
                assert view.header.state == "interrupted"
            else:
                view.steps = 7
                assert "out of tune" in view.header.error
    check(view, nbviz.maximise(net, "5", [3], steps=7, robust=False, **GIVEN), ["#3"])


def test_classes_have_their_names_which_may_be_the_same(net: Small) -> None:
    view = nbviz.Maximise(net, target=[0, 3, 1, 2], steps=1, labels=["crane", "<b>", "crane", "x" * 1000], **GIVEN)
    view.finish()
    names = ["crane", "x" * 39 + "…", "<b>", "crane"]
    assert [one["name"] for one in view.values.series] == names
    check(view, nbviz.maximise(net, target=[0, 3, 1, 2], steps=1, **GIVEN), names)
    few = nbviz.Maximise(net, target=[0, 3], steps=1, labels=("a",), **GIVEN)
    few.finish()
    assert [one["name"] for one in few.values.series] == ["a", "class 3"]


def test_many_channels_come_in_rows(net: Small) -> None:
    view = nbviz.Maximise(net, "5", steps=1, **GIVEN)
    view.finish()
    assert [len(row["cells"]) for row in view.panels.rows] == [4, 2]
    rows = view._figure_rows()
    assert [len(row) for row in rows] == [4, 4, 1]  # the last as large as those above
    assert [panel.pixels is None for panel in rows[1]] == [False, False, True, True]
    widths = {round(axes.get_position().width, 2) for axes in view.figure().axes[:6]}
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"channels": [6]}, ValueError, "no channel 6: there are 6"),
        ({"channels": []}, ValueError, "channels is empty"),
        ({"layer": None}, ValueError, "channels belong to a layer"),
        ({"layer": None, "channels": None}, ValueError, "name a layer, or give target"),
        ({"layer": None, "channels": None, "target": [4]}, ValueError, "no class 4: there are 4"),
        ({"target": 1}, ValueError, "target is a class of the model's output"),
        ({"steps": 0}, ValueError, "steps is 0; expected at least 1"),
        ({"steps": 2049}, ValueError, "steps is 2049; expected at most 2048"),
        ({"steps": "9"}, TypeError, "steps is '9'; expected a whole number"),
        ({"objective": "class"}, ValueError, "no objective 'class'"),
        ({"rate": 0}, ValueError, "rate is 0; expected"),
        ({"size": 2}, ValueError, "size is 2; expected at least 8"),
        ({"labels": "abcd"}, TypeError, "labels is a str; expected a list of names"),
        ({"watch": print}, TypeError, "watch"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, net: Small
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Maximise(net, **{"layer": "5", "channels": [0], "steps": 1, **GIVEN, **given})
    assert set(registry._instances) == widgets


@pytest.mark.parametrize("steps", [0, 2049, -1, "3", None, 2.5])
def test_a_bad_number_of_steps_is_refused_and_nothing_changes(steps: Any, net: Small) -> None:
    view = nbviz.Maximise(net, "5", [0], steps=2, **GIVEN)
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        view.steps = steps
    check(view, nbviz.maximise(net, "5", [0], steps=2, **GIVEN), ["#0"])
    assert view.steps == 2


def test_signals_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one that takes pictures"):
        nbviz.Maximise(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), "1")


def test_it_works_under_no_grad_and_inference_mode(net: Small) -> None:
    expected = nbviz.maximise(net, "5", [0], steps=2, **GIVEN)
    with torch.inference_mode():
        view = nbviz.Maximise(net, "5", [0], steps=2, **GIVEN)
        check(view, expected, ["#0"])


def test_they_go_on_under_the_autocast_of_the_cell_that_made_it(net: Small) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = nbviz.maximise(net, "5", [3], steps=4, **GIVEN)
        view = nbviz.Maximise(net, "5", [3], steps=2, **GIVEN)
    view.steps = 4
    view.finish()
    assert torch.equal(view.found.pictures, expected.pictures)
    assert not torch.equal(view.found.pictures, nbviz.maximise(net, "5", [3], steps=4, **GIVEN).pictures)


def test_values_that_are_no_numbers_are_shown(net: Small) -> None:
    with torch.no_grad():
        net[4].bias[0] = float("nan")
    view = nbviz.Maximise(net, "5", [0], steps=2, **GIVEN)
    view.finish()
    assert view.header.error == ""
    assert view.values.series[0]["y"] == [None, None]
    assert isinstance(view.found.pictures, Tensor)
    assert view.figure().axes
