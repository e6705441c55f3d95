"""The widget that shows each channel's strongest patches, page by page."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nbviz
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre
from nbviz.results import TopPatchesResult
from tests.rounds import few
from tests.small import Small, labelled, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


def tiles(pixels: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    """The pictures in a square of them, one pixel apart."""
    nrow = max(1, round(count**0.5))
    height, width = size
    places = [divmod(i, nrow) for i in range(count)]
    corners = [(1 + row * (height + 1), 1 + column * (width + 1)) for row, column in places]
    return np.stack([pixels[top : top + height, left : left + width] for top, left in corners])


def check(view: nbviz.TopPatches, found: TopPatchesResult, k: int) -> None:
    """Each row of the page is what was found for its channel."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    for row in range(view.pages):
        channel = int(found.channels[view.first + row])
        slots = {what: view.panels.slot(f"{what}_{row}") for what in ("patches", "deconvnet", "guided")}
        assert all(map(view.panels.is_current, slots.values()))
        if not found.values[view.first + row].any():
            assert slots["patches"]["caption"].endswith("answers to nothing")
            continue
        sent = tiles(decode(slots["patches"]), k, found.size)
        np.testing.assert_array_equal(sent, found.patches(channel).permute(0, 2, 3, 1))
        for rule in ("deconvnet", "guided"):
            back = centre(found.reconstructions(channel, rule)).permute(0, 2, 3, 1).numpy()
            sent = tiles(decode(slots[rule]), k, found.size)
            assert np.abs(sent.astype(int) - back).max() <= 1
        values = found.values[view.first + row]
        caption = f"#{channel}: {float(values[0]):.3g} to {float(values[-1]):.3g}"
        assert slots["patches"]["caption"].startswith(caption)


@pytest.mark.parametrize("layer", few(["2", "3", "5"], 1))
def test_each_page_shows_what_was_found(layer: str, snapshot: Snapshot) -> None:
    net, dataset = Small(), labelled()
    found = nbviz.top_patches(net, dataset, layer, k=4, progress=False)
    with snapshot(net):
        view = nbviz.TopPatches(net, dataset, layer, k=4, progress=False)
        check(view, found, 4)
        view.first = view.first_control.max
        check(view, found, 4)
        view.first_control.set_state({"value": 0})
        check(view, found, 4)
        assert view.first == 0
        view.close()


def test_what_was_found_before_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = nbviz.top_patches(Small(), labelled(), "2", [4, 0], k=3, progress=False)
    monkeypatch.setattr("nbviz.methods.top_patches.scan", None)
    view = nbviz.TopPatches(found)
    assert view.first_control.max == 0
    assert view.pages == 2
    check(view, found, 3)
    assert view.header.code == "nbviz.TopPatches(patches)"


def test_labels_are_told_the_most_frequent_first() -> None:
    net = Small()
    net.nbviz_preprocess = nbviz.Preprocess(lambda _: torch.rand(3, 16, 16), labels=["<b>cat", "dog", "cow"], source="")
    dataset = TensorDataset(pictures(5), torch.tensor([0, 0, 3, 1, 0]))
    view = nbviz.TopPatches(net, dataset, "2", [0], k=5, progress=False)
    view.finish()
    _, told = view.panels.slot("patches_0")["caption"].split(" · ")
    assert told in ("<b>cat ×3, class 3 ×1, dog ×1", "<b>cat ×3, dog ×1, class 3 ×1")
    without = nbviz.TopPatches(net, pictures(5), "2", [0], k=5, progress=False)
    assert "·" not in without.panels.slot("patches_0")["caption"]


def test_fewer_pictures_than_places_are_told_as_they_are() -> None:
    net = Small()
    view = nbviz.TopPatches(net, labelled(3), "2", [1], k=9, progress=False)
    view.finish()
    found = nbviz.top_patches(net, labelled(3), "2", [1], k=9, progress=False)
    assert found.values[0, 3] == -torch.inf
    assert view.panels.slot("patches_0")["caption"].startswith(
        f"#1: {float(found.values[0, 0]):.3g} to {float(found.values[0, 2]):.3g} · "
    )
    assert view.header.error == ""


def test_a_channel_without_a_number_is_said_to_be() -> None:
    net = Small()
    with torch.no_grad():
        net[4].bias[2] = float("nan")
    view = nbviz.TopPatches(net, labelled(), "4", k=2, progress=False)
    view.finish()
    assert view.header.error == ""
    assert view.panels.slot("patches_2")["caption"] == "#2: no number in any picture"
    assert [len(row) for row in view._figure_rows()] == [3, 3, 3, 3]
    view.first = 1
    view.finish()
    assert view.panels.slot("patches_1")["caption"] == "#2: no number in any picture"
    assert view.panels.slot("patches_2")["caption"].startswith("#3: ")
    assert view.figure().axes


def test_a_network_without_rectifiers_gets_a_note_in_place_of_a_warning() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = nbviz.TopPatches(net, pictures(), "0", k=2, progress=False)
        view.finish()
    assert view.header.error == ""
    assert "equal the plain gradient here" in view.header.note
    assert "no max-pooling" in view.header.note


def test_a_dataset_that_changes_is_a_line_and_the_widget_goes_on() -> None:
    net, images = Small(), pictures(12)
    view = nbviz.TopPatches(net, TensorDataset(images, torch.zeros(12).long()), "2", k=3, progress=False)
    view.finish()
    kept = images.clone()
    images.mul_(0.5)
    view.found._read.clear()
    view.first = 1
    view.finish()
    assert view.header.state == "error"
    assert "expected a dataset that gives the same picture each time" in view.header.error
    images.copy_(kept)
    view.found._read.clear()
    view.first = 0
    check(view, view.found, 3)


def test_a_page_is_drawn_row_by_row_and_dropped_for_a_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    found = nbviz.top_patches(Small(), labelled(), "5", k=2, progress=False)
    view = nbviz.TopPatches(found)
    view.finish()
    asked: list[int] = []
    patches = type(found).patches

    def counted(self: Any, channel: int) -> Tensor:
        asked.append(channel)
        return patches(self, channel)

    monkeypatch.setattr(type(found), "patches", counted)
    view.first = 1
    assert len(view._figure_rows()) == 1  # those of the page before are not shown as if they were of this
    view.first = 2
    view.finish()
    assert asked == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"layer": None}, TypeError, "layer None; expected both, or what nbviz.top_patches found"),
        ({"dataset": None}, TypeError, "dataset is None and layer '2'; expected both"),
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"layer": "8"}, ValueError, "gives no feature maps"),
        ({"channels": [5]}, ValueError, "no channel 5: there are 5"),
        ({"channels": []}, ValueError, "channels is empty; expected at least one"),
        ({"k": 0}, ValueError, "k is 0; expected at least 1"),
        ({"top": 3}, TypeError, "top"),
    ],
)
def test_what_is_refused_leaves_no_widget(given: dict[str, Any], error: type[Exception], message: str) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.TopPatches(Small(), **{"dataset": labelled(), "layer": "2", "k": 2, "progress": False, **given})
    assert set(registry._instances) == widgets


def test_what_was_found_takes_nothing_beside_it() -> None:
    found = nbviz.top_patches(Small(), labelled(), "2", k=2, progress=False)
    for given in ({"layer": "2"}, {"dataset": labelled()}, {"k": 3}, {"batch_size": 3}, {"channels": [1]}):
        with pytest.raises(TypeError, match="the patches are found already; expected nothing beside them"):
            nbviz.TopPatches(found, **given)


@pytest.mark.parametrize("sides", [(12,), (4, 6, 6)])
def test_signals_and_volumes_are_refused(sides: tuple[int, ...]) -> None:
    net = nn.Sequential((nn.Conv1d if len(sides) == 1 else nn.Conv3d)(2, 3, 3), nn.ReLU())
    with pytest.raises(ValueError, match="the model takes signals or volumes: patches are .*; expected pictures"):
        nbviz.TopPatches(net, torch.rand(3, 2, *sides), "1", k=2, progress=False)


@pytest.mark.parametrize("first", few([2, -1, "0", None, 0.5], 0, 2))
def test_a_bad_page_is_refused_and_nothing_changes(first: Any) -> None:
    found = nbviz.top_patches(Small(), labelled(), "2", k=2, progress=False)
    view = nbviz.TopPatches(found)
    view.first = 1
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        view.first = first
    assert view.first == view.first_control.value == 1
    check(view, found, 2)


def test_a_dead_channel_has_no_strongest_patches() -> None:
    model = Small().eval()
    with torch.no_grad():
        model[4].weight[2], model[4].bias[2] = 0, -1
    view = nbviz.TopPatches(model, labelled(), "5", [2, 3], k=4, progress=False)
    view.finish()
    dead, alive = (view.panels.slot(f"patches_{row}") for row in range(2))
    assert dead["caption"] == "#2: 0 in every picture, answers to nothing"
    assert decode(dead).shape == (1, 1, 3)
    assert decode(alive).shape[0] > 1
