"""The widget that shows how channels came to be what they are: over checkpoints, and as it was recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn

import nbviz
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise
from nbviz.results import CheckpointResult
from tests.small import Ran, Small, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


@pytest.fixture
def net() -> Small:
    return Small()


@pytest.fixture
def images() -> Tensor:
    return pictures()


def states(count: int = 4) -> dict[str, dict[str, Tensor]]:
    return {f"epoch {i}": {k: (i + 1) * v for k, v in Small(seed=i).state_dict().items()} for i in range(count)}


def recorded(channels: list[int], sizes: tuple[int, ...] = (16, 16, 16)) -> list[CheckpointResult]:
    """Of a training, in the epochs of which the pictures have these sizes."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with nbviz.Recorder(net, "1", channels) as recorder:
        for epoch, size in enumerate(sizes):
            net(torch.rand(5, 3, size, size)).logsumexp(1).sum().backward()
            optimizer.step()
            recorder.mark(f"epoch {epoch}")
    return recorder.moments


def check(view: nbviz.Evolution, moments: list[CheckpointResult], i: int, k: int) -> None:
    """What is shown is picture i and channel k of the moments' tensors."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    moment = moments[view.moment]
    shown = {slot: decode(view.panels.slot(slot)) for slot in ("picture", "activation", "signal")}
    whole = (moment.pictures[i].clamp(0, 1) * 255).round().byte()
    np.testing.assert_array_equal(shown["picture"], whole.permute(1, 2, 0))
    every = [one.maps[i, k] for one in moments]
    ends = torch.stack([m.min() for m in every]).min(), torch.stack([m.max() for m in every]).max()
    np.testing.assert_array_equal(shown["activation"][..., 0], quantise(moment.maps[i, k], None, ends)[0])
    np.testing.assert_array_equal(shown["signal"], centre(moment.reconstructions[i, k]).permute(1, 2, 0))
    number = moment.channels[view.channel]
    strongest = float(moment.values[i, k])
    value = f"#{number}, strongest {strongest:.3g}; one scale for all checkpoints"
    if strongest == 0 and moment.values.shape[1] == 1 < len(moment.channels):
        value = f"#{number} is silent: never above zero in {moment.name}"
    assert view.panels.slot("activation")["caption"] == value
    assert view.panels.slot("picture")["caption"].startswith(moment.name)
    film = [view.film.slot(cell["slot"]) for cell in view.film.rows[0]["cells"]]
    assert len(film) == min(8, len(moments))
    for slot in (film[0], film[-1]):
        (one,) = (m for m in moments if m.name == slot["caption"])
        np.testing.assert_array_equal(decode(slot), centre(one.reconstructions[i, k]).permute(1, 2, 0))
    curve = next(one for one in view.values.series if one["name"] == f"#{number}")
    assert curve["x"] == list(range(len(moments)))
    assert curve["y"] == [float(one.values[i, k]) for one in moments]
    controls = view.moment_control, view.channel_control, view.picture_control
    assert [control.value for control in controls] == [view.moment, view.channel, view.picture]


def test_a_channel_that_died_is_said_to_answer_to_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with nbviz.Recorder(net, "1", [0, 1]) as recorder:
        for epoch in range(2):
            nn.init.constant_(net[0].bias, -100.0 * epoch)
            net(torch.rand(5, 3, 16, 16))
            recorder.mark(f"epoch {epoch}")
    view = nbviz.Evolution(net, recorder.moments)
    view.finish()
    assert view.panels.slot("signal")["caption"] == "it answers to nothing there"
    assert view.panels.slot("activation")["caption"] == "#0 is silent: never above zero in epoch 1"
    view.moment = 0
    view.finish()
    assert view.panels.slot("signal")["caption"] == "what it answers to there"


# Over checkpoints.


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_checkpoints_are_shown_as_the_function_gives_them(
    rule: str, net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    given = states()
    moments = nbviz.evolution(net, given, images, "2", [3, 0, 4], rule=rule)
    with snapshot(net):
        view = nbviz.Evolution(net, given, images, "2", [3, 0, 4], rule=rule)
        assert view.moment == 3  # the last
        check(view, moments, 0, 0)
        view.moment = 1
        check(view, moments, 0, 0)
        view.channel = 2
        check(view, moments, 0, 2)
        view.picture_control.set_state({"value": 2})
        check(view, moments, 2, 2)
        view.moment_control.set_state({"value": 0})
        check(view, moments, 2, 2)
        view.close()


def test_moments_that_were_found_before_are_shown_too(net: Small, images: Tensor) -> None:
    moments = nbviz.evolution(net, states(), images, "5")
    view = nbviz.Evolution(net, moments)
    check(view, moments, 0, 0)
    view.channel, view.picture = 5, 1
    check(view, moments, 1, 5)
    assert [one["name"] for one in view.values.series] == [f"#{i}" for i in range(6)]


def test_of_one_channel_all_pictures_are_shown(net: Small, images: Tensor) -> None:
    """Which looks like a recording, of which each channel has a picture of its own."""
    given = states()
    view = nbviz.Evolution(net, given, images, "2", 3)
    view.picture = 2
    check(view, nbviz.evolution(net, given, images, "2", 3), 2, 0)
    assert view.picture_control.max == 2


def test_the_picked_channel_is_among_the_curves_however_many_there_are(images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU())
    view = nbviz.Evolution(net, [net.state_dict()], images, "1")
    assert [one["name"] for one in view.values.series] == [f"#{i}" for i in range(6)]
    view.channel = 12
    assert [one["name"] for one in view.values.series] == ["#0", "#1", "#2", "#3", "#4", "#12"]


def test_the_film_goes_from_the_first_to_the_last_time(net: Small, images: Tensor) -> None:
    given = states(11)
    view = nbviz.Evolution(net, given, images, "2", [0])
    captions = [view.film.slot(f"film_{i}")["caption"] for i in range(8)]
    assert (captions[0], captions[-1]) == ("epoch 0", "epoch 10")
    assert captions == sorted(captions, key=lambda caption: int(caption[6:]))
    check(view, nbviz.evolution(net, given, images, "2", [0]), 0, 0)


# As it was recorded.


def test_a_recording_shows_for_each_channel_the_picture_that_excited_it_most(snapshot: Snapshot) -> None:
    moments, net = recorded([2, 0, 3]), nn.Sequential(nn.Conv2d(3, 4, 3))
    with snapshot(net):
        view = nbviz.Evolution(net, moments)
        for channel in range(3):
            view.channel = channel
            for moment in range(3):
                view.moment = moment
                check(view, moments, channel, 0)
        assert "excited it most" in view.panels.slot("picture")["caption"]
        assert view.picture_control.max == 0
        with pytest.raises(ValueError, match="no picture 1: there are 1"):
            view.picture = 1
        view.close()


def test_a_recording_of_one_channel_is_shown() -> None:
    moments = recorded([1])
    check(nbviz.Evolution(nn.Sequential(nn.Conv2d(3, 4, 3)), moments), moments, 0, 0)


def test_pictures_may_have_another_size_each_time() -> None:
    moments = recorded([0, 2], (16, 12, 20))
    view = nbviz.Evolution(nn.Sequential(nn.Conv2d(3, 4, 3)), moments)
    for moment in range(3):
        view.moment = moment
        check(view, moments, 0, 0)
    assert view.figure().axes


def test_values_that_are_no_numbers_are_shown() -> None:
    moments = recorded([0, 2])
    strange = replace(moments[1], values=moments[1].values * float("nan"), maps=moments[1].maps * float("nan"))
    view = nbviz.Evolution(nn.Sequential(nn.Conv2d(3, 4, 3)), [moments[0], strange, moments[2]])
    view.moment = 1
    view.finish()
    assert view.header.error == ""
    assert view.values.series[0]["y"][1] is None
    assert view.figure().axes


# What it costs, what is refused and what is left.


def test_nothing_runs_the_model(net: Small, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    view = nbviz.Evolution(net, states(), images, "2")
    view.finish()
    with Ran() as ran:
        view.moment, view.channel, view.picture = 0, 3, 2
        view.finish()
        view.figure()
    assert not ran.times["convolution"]
    before = view.film.slot_film_0, view.values.series
    view.moment = 1
    assert (view.film.slot_film_0, view.values.series) == before


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"layer": None},
            TypeError,
            "no layer; expected images= and layer=, or a list of nbviz.results.CheckpointResult as checkpoints",
        ),
        ({"images": None}, TypeError, "no images; expected images= and layer="),
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"layer": "8"}, ValueError, "expected feature maps"),
        ({"channels": [5]}, ValueError, "no channel 5: there are 5"),
        ({"channels": []}, ValueError, "channels is empty; expected at least one"),
        ({"rule": "deconv"}, ValueError, "no rule 'deconv'; did you mean 'deconvnet'"),
        ({"checkpoints": []}, ValueError, "checkpoints is empty"),
        ({"checkpoints": 3}, TypeError, "checkpoints is a int; expected a list of state dicts"),
        ({"checkpoints": [{}]}, ValueError, "does not fit the model"),
        ({"checkpoints": ["none.pt"]}, FileNotFoundError, "there is no file"),
        ({"moment": 30}, ValueError, "no moment 30"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, net: Small, images: Tensor
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Evolution(net, **{"checkpoints": states(1), "images": images, "layer": "2", **given})
    assert set(registry._instances) == widgets


def test_moments_that_do_not_go_together_are_refused(net: Small, images: Tensor) -> None:
    one, other = recorded([0, 2]), recorded([1, 2])
    evolved = nbviz.evolution(net, states(1), images, "2", [0, 2])
    for moments in ([one[0], other[0]], [one[0], *evolved], [*evolved, one[0]]):
        with pytest.raises(ValueError, match="expected moments of the same channels, made alike"):
            nbviz.Evolution(net, moments)
    with pytest.raises(TypeError, match="expected a list of nbviz.results.CheckpointResult alone"):
        nbviz.Evolution(net, [one[0], {}])
    with pytest.raises(TypeError, match="expected"):
        nbviz.Evolution(None, one)  # type: ignore[arg-type]


def test_signals_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"the model takes \(1, 2, 9\); expected pictures \(N, C, H, W\)"):
        nbviz.Evolution(net, [net.state_dict()], torch.rand(1, 2, 9), "1")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("moment", 4, "no moment 4: there are 4, numbered 0 to 3"),
        ("moment", -1, "no moment -1"),
        ("channel", 2, "no channel 2: there are 2"),
        ("picture", 3, "no picture 3: there are 3"),
        ("moment", "1", "expected a whole number"),
        ("channel", None, "expected a whole number"),
    ],
)
def test_a_bad_value_is_refused_and_nothing_changes(
    name: str, value: Any, message: str, net: Small, images: Tensor
) -> None:
    given = states()
    view = nbviz.Evolution(net, given, images, "2", [3, 1])
    view.moment, view.channel, view.picture = 2, 1, 1
    with pytest.raises((ValueError, TypeError, t.TraitError), match=message):
        setattr(view, name, value)
    check(view, nbviz.evolution(net, given, images, "2", [3, 1]), 1, 1)


def test_checkpoints_may_be_files(net: Small, images: Tensor, tmp_path: Path) -> None:
    paths = []
    for name, state in states(2).items():
        paths.append(tmp_path / f"{name}.pt")
        torch.save({"state_dict": state}, paths[-1])
    view = nbviz.Evolution(net, paths, images, "2", [1])
    check(view, nbviz.evolution(net, states(2), images, "2", [1]), 0, 0)


def test_the_figure_shows_the_row_and_the_time(net: Small, images: Tensor) -> None:
    view = nbviz.Evolution(net, states(), images, "2", [3, 1])
    view.moment = 1
    view.finish()
    *panels, curves = view.figure().axes
    assert [axes.get_xlabel() for axes in panels[3:]] == [f"epoch {i}" for i in range(4)]
    assert list(curves.lines[-1].get_xdata()) == [1, 1]
    # On the scale of all times, of which this is not the strongest.
    (image,) = panels[1].images
    assert (image.norm.vmin, image.norm.vmax) == (0, 255)
    assert image.get_array().max() < 255
