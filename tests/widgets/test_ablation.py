"""The widget that switches channels off: switches, slider and table say the same, and the answer is the functions'."""

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
from nbviz.results import AblateResult
from tests.rounds import few
from tests.small import Ran, Small, labelled, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


@pytest.fixture
def net() -> Small:
    return Small()


@pytest.fixture
def images() -> Tensor:
    return pictures()


@pytest.fixture(scope="module")
def tables() -> dict[str, AblateResult]:
    """Of the second rectifier, in each mode; and of the first."""
    modes = ("zero", "mean", "keep")
    found = {mode: nbviz.ablate(Small(), labelled(), "5", mode, progress=False) for mode in modes}
    return {**found, "other": nbviz.ablate(Small(), labelled(), "2", progress=False)}


def answer(view: nbviz.Ablation, off: list[int], row: int = 0, **more: Any) -> None:
    """The widget shows what the function gives without these channels."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    assert view.off == sorted(view.grid.off) == off
    assert view.count_control.value == len(off)
    images = view.session.subject.inputs[view.picture : view.picture + 1] if not more else view.session.subject.inputs
    expected = nbviz.switched_off(view.session.subject.model, images, view.layer, off, **more)[row].softmax(0)
    before = nbviz.switched_off(view.session.subject.model, images, view.layer, (), **more)[row].softmax(0)
    assert [row[0] for row in view.strip.predictions] == [f"class {i}" for i in before.argsort(descending=True)]
    for label, now, with_all in view.strip.predictions:
        assert now == pytest.approx(float(expected[int(label[6:])]), rel=1e-4)
        assert with_all == pytest.approx(float(before[int(label[6:])]), rel=1e-4)


# The answer.


@pytest.mark.parametrize("layer", few(["0", "2", "3", "5"], 1, 3))
def test_the_answer_is_that_without_the_channels(layer: str, net: Small, images: Tensor, snapshot: Snapshot) -> None:
    with snapshot(net):
        view = nbviz.Ablation(net, images, layer, off=[3, 1, 1])
        answer(view, [1, 3])
        view.off = [0]
        answer(view, [0])
        view.grid.set_state({"off": [4, 2]})  # as a click in the page does it
        answer(view, [2, 4])
        view.picture = 2
        answer(view, [2, 4])
        view.count_control.set_state({"value": 0})
        answer(view, [])
        view.close()


def test_pictures_that_go_together_are_answered_together(net: Small, images: Tensor) -> None:
    def feed(batch: Tensor) -> tuple[Tensor]:
        return (batch - batch.mean(),)

    view = nbviz.Ablation(net, images, "2", off=[0, 4], picture=1, inputs=feed)
    answer(view, [0, 4], row=1, inputs=feed)
    view.picture = 2
    answer(view, [0, 4], row=2, inputs=feed)
    assert view.code.endswith("off=[0, 4], inputs=inputs)")


def test_a_class_that_comes_first_without_the_channels_is_told_too() -> None:
    net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 8))
    with torch.no_grad():
        net[3].weight[:] = torch.tensor([[10.0, 0.0]] * 5 + [[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
        net[3].bias[:] = torch.arange(8.0, 0, -1)
    view = nbviz.Ablation(net, torch.ones(1, 2, 4, 4), "0", off=[0])
    assert [label for label, _, _ in view.strip.predictions] == [f"class {i}" for i in (0, 1, 2, 3, 4, 6)]


@pytest.mark.parametrize("sides", [(12,), (4, 6, 6)])
def test_channels_of_signals_and_volumes_are_switched_off_too(sides: tuple[int, ...]) -> None:
    conv: Any = nn.Conv1d if len(sides) == 1 else nn.Conv3d
    net = nn.Sequential(conv(2, 5, 3), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3))
    images = torch.rand(2, 2, *sides)
    view = nbviz.Ablation(net, images, "1", off=[2, 4])
    view.finish()
    expected = nbviz.switched_off(net, images[:1], "1", [2, 4])[0].softmax(0)
    for label, now, _ in view.strip.predictions:
        assert now == pytest.approx(float(expected[int(label[6:])]), rel=1e-4)
    assert view.figure().axes


# The table.


@pytest.mark.parametrize("mode", ["zero", "keep"])
def test_the_slider_goes_along_the_curve(mode: str, tables: dict[str, AblateResult]) -> None:
    """Where the marker stands is the accuracy with the channels off that are off."""
    net, table, dataset = Small(), tables[mode], labelled()
    images, labels = dataset.tensors
    view = nbviz.Ablation(net, images, table=table)
    assert view.layer == "5"
    ranked = view.curve.series[0]
    assert (ranked["name"], ranked["dashed"]) == ("most redundant first", False)
    assert sorted(ranked["x"]) == [0, 1, 2, 3, 4, 5, 6]
    for count, accuracy in zip(ranked["x"], ranked["y"], strict=True):
        view.count_control.value = int(count)
        assert len(view.off) == count
        scores = nbviz.switched_off(net, images, "5", view.off)
        assert float((scores.argmax(1) == labels).double().mean()) == pytest.approx(accuracy)
        assert sorted(view.grid.ranking[: int(count)]) == view.off
    random = view.curve.series[1:]
    assert [one["dashed"] for one in random] == [True] * 3
    expected = table.random.flip(1) if mode == "keep" else table.random
    for one, row in zip(random, expected, strict=True):
        by_count = [y for _, y in sorted(zip(one["x"], one["y"], strict=True))]
        assert by_count == row.tolist()


@pytest.mark.parametrize("mode", ["zero", "mean", "keep"])
def test_the_loss_of_each_channel_stands_beside_it(mode: str, tables: dict[str, AblateResult]) -> None:
    table = tables[mode]
    view = nbviz.Ablation(Small(), pictures(), table=table)
    alone, with_all = view.each.series
    assert alone["y"] == [float(table.loss[channel]) for channel in view.grid.ranking]
    assert with_all["y"] == [table.baseline_loss] * 6
    assert alone["y"] == sorted(alone["y"], reverse=mode == "keep")  # the most redundant first
    assert alone["name"] == ("with it alone" if mode == "keep" else "without it")
    assert view.each.title == f"Loss with one channel {'alone' if mode == 'keep' else 'removed'}"
    assert ("set to their mean" in view.curve.title) == (mode == "mean")


def test_without_a_table_the_slider_takes_the_weakest(net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "5")
    weakest = nbviz.feature_maps(net, images[:1], "5")[0, :, 1:-1, 1:-1].flatten(1).amax(1).argsort(stable=True)
    assert (view.grid.ranking, view.curve.series, view.each.series) == ([], [], [])
    for count in (1, 4, 6):
        view.count_control.set_state({"value": count})
        answer(view, sorted(weakest[:count].tolist()))


def test_a_table_of_another_layer_shows_no_curves(tables: dict[str, AblateResult], net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "2", tables["zero"])
    assert (view.grid.ranking, view.curve.series, view.each.series) == ([], [], [])
    view.layer = "5"
    assert len(view.curve.series) == 4
    assert len(view.each.series) == 2
    view.layer = "3"
    assert (view.grid.ranking, view.curve.series, view.each.series) == ([], [], [])
    assert view.figure().axes


def test_a_table_without_curves_shows_the_losses() -> None:
    table = nbviz.ablate(Small(), labelled(), "5", points=0, progress=False)
    view = nbviz.Ablation(Small(), pictures(), table=table)
    assert (len(view.curve.series), len(view.each.series)) == (0, 2)
    view.count_control.value = 2
    assert view.off == sorted(table.ranking[:2].tolist())
    assert view.figure().axes


# What it costs.


def test_a_click_runs_only_what_follows_the_layer(net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "3")
    view.finish()
    passes = view.session.forward_passes
    for change in ({"off": [1]}, {"off": [1, 2]}, {"off": []}):
        with Ran() as ran:
            view.grid.set_state(change)
            view.finish()
        assert (ran.times["convolution"], ran.times["addmm"]) == (1, 1)
    with Ran() as ran:
        view.count_control.value = 3
        view.finish()
        view.off = view.off  # nothing new
        view.channel = 2
        view.grid.set_state({"channel": 1})
    assert (ran.times["convolution"], ran.times["addmm"]) == (1, 1)
    assert view.session.forward_passes == passes


def test_another_layer_has_all_channels_on_and_is_run_once(net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "2", off=[0, 4])
    view.finish()
    passes = view.session.forward_passes
    view.layer = "5"
    answer(view, [])
    assert view.session.forward_passes == passes + 2  # its maps, and what can be gone on from
    assert (view.count_control.max, view.channel_control.max) == (6, 5)
    view.count_control.value = 6
    answer(view, [0, 1, 2, 3, 4, 5])
    view.layer = "0"
    answer(view, [])
    assert view.count_control.max == 5


def test_nothing_is_kept_beyond_the_limit(net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.memory._limit", 0)
    view = nbviz.Ablation(net, images, "5")
    view.off = [2]
    answer(view, [2])
    assert view.session._resumable is None
    assert view.session.trace_bytes == 0
    assert "it runs again at each change" in view.header.note
    monkeypatch.setattr("nbviz.widgets.memory._limit", 512 << 20)
    view.off = [3]
    answer(view, [3])
    kept = view.session._resumable
    assert kept is not None
    assert view.session.trace_bytes >= kept[1].activation.nbytes
    view.close()
    assert view.session._resumable is None


def test_weights_that_change_are_seen(net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "2", off=[1])
    view.finish()
    with torch.no_grad():
        net[8].weight.mul_(-1)
    view.off = [1, 2]
    answer(view, [1, 2])


# What is refused.


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"off": [5]}, ValueError, "no channel 5: there are 5, numbered 0 to 4"),
        ({"off": ["1"]}, TypeError, "channel: got .*; expected a whole number"),
        ({"off": [True]}, TypeError, "expected a whole number"),
        ({"off": None}, TypeError, "off is None; expected a list of channels"),
        ({"table": {}}, TypeError, "table is {}; expected what nbviz.ablate gives, or None"),
        ({"layer": "8"}, ValueError, "layer '8' gives no feature maps"),
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"labels": ["a"]}, ValueError, "labels has 1 names for the model's 4 outputs"),
        ({"tiles": "guided"}, ValueError, "Ablation shows activations"),
        ({"picture": 3}, ValueError, "no picture 3"),
        ({"chanel": 3}, TypeError, "chanel"),
        ({"output": "logits"}, ValueError, "no output 'logits'"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, net: Small, images: Tensor
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Ablation(net, images, **{"layer": "2", **given})
    assert set(registry._instances) == widgets


def test_a_table_of_another_model_is_refused(images: Tensor) -> None:
    table = nbviz.ablate(Small(), labelled(), "2", progress=False)
    other = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 14 * 14, 3))
    with pytest.raises(ValueError, match="table has 5 channels for layer '2' of 7; expected what nbviz.ablate found"):
        nbviz.Ablation(other, images, table=table)


def test_a_model_without_class_scores_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="gives no class scores; expected .* say with output= where they are"):
        nbviz.Ablation(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images)


@pytest.mark.parametrize("off", few([[9], [-1], ["1"], 3, None, [0.5], [[1]], "1"], 0, 4))
def test_channels_that_are_no_channels_are_refused_and_nothing_changes(off: Any, net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "2", off=[1])
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        view.off = off
    answer(view, [1])
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        view.grid.set_state({"off": off})
    assert view.off == [1]
    view.off = [2]
    answer(view, [2])


def test_a_slider_that_needs_a_model_that_fails_goes_back_and_says_so(
    net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = nbviz.Ablation(net, images, "2", off=[1])
    view.finish()
    with torch.no_grad():
        net[0].weight.mul_(2)  # the maps of before are not known any more

    def fail(*_: Any) -> None:
        raise RuntimeError("out of tune")

    with monkeypatch.context() as patch:
        patch.setattr(net[1], "forward", fail)
        view.count_control.set_state({"value": 3})
        assert view.header.state == "error"
        assert "out of tune" in view.header.error
        assert (view.off, view.count_control.value) == ([1], 1)
    view.count_control.set_state({"value": 3})
    view.finish()
    assert (view.header.error, len(view.off)) == ("", 3)


# What is left.


def test_the_code_gives_the_same_view(tables: dict[str, AblateResult], net: Small, images: Tensor) -> None:
    view = nbviz.Ablation(net, images, "5", tables["zero"], picture=1, channel=2)
    view.off = [0, 3]
    view.finish()
    assert view.header.code == view.code
    given = {"nbviz": nbviz, "model": net, "images": images, "table": tables["zero"]}
    again = eval(view.code, given)
    assert (again.off, again.picture, again.channel, again.layer) == ([0, 3], 1, 2, "5")
    assert again.strip.predictions == view.strip.predictions
    assert again.curve.series == view.curve.series


def test_the_figure_says_which_channels_are_off_and_what_came_of_it(
    tables: dict[str, AblateResult], net: Small, images: Tensor
) -> None:
    view = nbviz.Ablation(net, images, table=tables["zero"], off=[0, 3])
    _, before, now, grid, curve, each = view.figure().axes
    assert (before.get_xlabel(), now.get_xlabel()) == ("with all channels", "without 2 channels")
    widths = [[bar.get_width() for bar in axes.patches] for axes in (now, before)]
    np.testing.assert_allclose(widths, list(zip(*[row[1:] for row in view.strip.predictions], strict=True)))
    assert grid.get_xlabel() == "6 channels, strongest first, each on its own scale"
    assert [line.get_linestyle() for line in curve.lines] == ["-", "--", "--", "--", "-"]
    assert list(curve.lines[-1].get_xdata()) == [2, 2]  # where the slider is
    assert len(each.lines) == 2
    assert any("switched off: 0, 3" in text.get_text() for text in view.figure().texts)


def test_a_figure_never_mixes_states(net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Ablation(net, images, "2", off=[0])
    view.finish()
    view.picture = 1  # whose answer is not known yet
    assert "predictions" in view.header.stale
    assert [panel.caption for panel in view._figure_rows()[0]][:-1] == ["picture 2"]
