"""The widget in which a person draws the same part in several pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from PIL import Image
from torch import Tensor, nn

import nbviz
from tests.rounds import few
from tests.small import Ran, Small, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]
BOXES = [[0, 1, 5, 9], [3, 3, 8, 11], [10, 2, 15, 10]]


@pytest.fixture
def net() -> Small:
    return Small()


@pytest.fixture
def images() -> Tensor:
    return pictures()


def check(view: nbviz.Correspondence, images: Any, boxes: list[list[int]], layers: list[str], **more: Any) -> None:
    """All that is shown is what the function gives for these boxes."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    assert view.boxes == view.drawing.boxes == boxes
    found = nbviz.correspondence(view.session.subject.model, images, boxes, layers, **more)
    assert view.found is not None
    assert repr(view.found) == repr(found)
    assert view.table.value == found._repr_html_()
    assert found.verdict in view.table.value
    curves = {one["name"]: one for one in view.plot.series}
    assert curves["the part drawn"]["y"] == pytest.approx([found.agreement[name] for name in layers])
    assert curves["the part drawn"]["x"] == list(range(len(layers)))
    if more.get("random", 10):
        expected = [float(found.random_agreement[name].mean()) for name in layers]
        assert curves["random parts"]["y"] == pytest.approx(expected)
        assert curves["random parts"]["dashed"]
    else:
        assert list(curves) == ["the part drawn"]


@pytest.mark.parametrize("fill", ["grey", "mean", "blur"])
def test_all_that_is_shown_is_what_the_function_gives(
    fill: str, net: Small, images: Tensor, snapshot: Snapshot
) -> None:
    more: dict[str, Any] = {"random": 3, "fill": fill, "seed": 5}
    with snapshot(net):
        view = nbviz.Correspondence(net, images, BOXES, ["0", "5", "8"], **more)
        check(view, images, BOXES, ["0", "5", "8"], **more)
        others = [[1, 1, 4, 4], [5, 5, 9, 16], [0, 0, 16, 16]]
        view.boxes = others
        check(view, images, others, ["0", "5", "8"], **more)
        view.drawing.set_state({"boxes": [others[0], [0, 0, 1, 1], others[2]]})  # as the page does it
        check(view, images, [others[0], [0, 0, 1, 1], others[2]], ["0", "5", "8"], **more)
        view.close()


def test_the_part_is_at_first_in_the_middle(net: Small, images: Tensor) -> None:
    view = nbviz.Correspondence(net, images, random=2)
    check(view, images, [[5, 5, 11, 11]] * 3, ["0", "5"], random=2)
    assert view.drawing.size == [16, 16]
    assert [picture["shape"] for picture in view.drawing.pictures] == [[16, 16, 3]] * 3


@pytest.mark.parametrize("boxes", [np.array(BOXES), torch.tensor(BOXES), tuple(map(tuple, BOXES))])
def test_boxes_may_be_given_in_any_form(boxes: Any, net: Small, images: Tensor) -> None:
    check(nbviz.Correspondence(net, images, boxes, ["2"], random=0), images, BOXES, ["2"], random=0)


def test_grey_is_that_of_the_persons_preprocessing() -> None:
    """What stands in a part's place is grey in the picture, whatever number that is in the model's input."""
    net = Small()
    made = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)]
    preprocess = nbviz.Preprocess(
        lambda picture: (torch.as_tensor(np.asarray(picture).copy()).permute(2, 0, 1) / 255 - 0.1) / 0.5,
        mean=[0.1] * 3,
        std=[0.5] * 3,
        source="own",
    )
    more: dict[str, Any] = {"random": 1, "preprocess": preprocess}
    view = nbviz.Correspondence(net, made, BOXES[:2], ["2"], **more)
    check(view, made, BOXES[:2], ["2"], **more)
    other = nbviz.correspondence(net, view.session.subject.inputs, BOXES[:2], ["2"], random=1)
    assert repr(other) != repr(view.found)


def test_pictures_that_go_together(net: Small, images: Tensor) -> None:
    def feed(batch: Tensor) -> tuple[Tensor]:
        return (batch - batch.mean(),)

    view = nbviz.Correspondence(net, images, BOXES, ["2"], random=1, inputs=feed)
    check(view, images, BOXES, ["2"], random=1, inputs=feed)


def test_only_other_boxes_run_the_model(net: Small, images: Tensor) -> None:
    view = nbviz.Correspondence(net, images, BOXES, ["0"], random=0)
    view.finish()
    with Ran() as ran:
        view.boxes = [list(box) for box in BOXES]  # the same
        view.drawing.set_state({"boxes": BOXES})
        view.header.painted = view.header.chunk
        view.figure()
    assert not ran.times["convolution"]
    with Ran() as ran:
        view.boxes = [[0, 0, 2, 2], *BOXES[1:]]
        view.finish()
    assert ran.times["convolution"] == 2  # as they are, and with the parts masked


BAD = [
    ([[0, 0, 17, 4]] * 3, "box 0 is .*; expected top < bottom and left < right within 16×16 pixels"),
    ([*BOXES[:2], [0, -1, 4, 4]], "box 2 is .*; expected top < bottom"),
    ([[4, 4, 4, 8]] * 3, "box 0 is .*expected top < bottom"),
    (BOXES[:2], r"expected whole numbers \(3, 4\): top, left, bottom and right for each picture"),
    ([[0, 0, 4]] * 3, "expected whole numbers"),
    ([[0, 0, 4.5, 4]] * 3, "expected whole numbers"),
    ([1, 2, 3], "expected whole numbers"),
    ([["0", 0, 4, 4]] * 3, "expected whole numbers"),
]


@pytest.mark.parametrize(("boxes", "message"), few(BAD, 0, 3))
def test_boxes_out_of_the_picture_are_refused_and_nothing_changes(
    boxes: Any, message: str, net: Small, images: Tensor
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        nbviz.Correspondence(net, images, boxes)
    view = nbviz.Correspondence(net, images, BOXES, ["2"], random=0)
    with pytest.raises((ValueError, TypeError), match=message):
        view.boxes = boxes
    assert view.boxes == view.drawing.boxes == BOXES
    with pytest.raises((ValueError, TypeError), match=message):
        view.drawing.set_state({"boxes": boxes})
    assert view.boxes == BOXES
    view.boxes = [[0, 0, 3, 3]] * 3
    check(view, images, [[0, 0, 3, 3]] * 3, ["2"], random=0)


@pytest.mark.parametrize("boxes", [3, None, "abc", {1: 2}])
def test_what_is_no_list_of_boxes_is_refused(boxes: Any, net: Small, images: Tensor) -> None:
    view = nbviz.Correspondence(net, images, BOXES, ["2"], random=0)
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        view.boxes = boxes
    assert view.boxes == BOXES


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": pictures(1)}, ValueError, r"images gives \(1, 3, 16, 16\); expected at least two pictures"),
        ({"layers": ["9"]}, ValueError, "no layer '9'"),
        ({"layers": "2"}, TypeError, "expected a list of modules' names"),
        ({"random": -1}, ValueError, "random is -1; expected at least 0"),
        ({"random": "3"}, TypeError, "random is '3'; expected a whole number"),
        ({"fill": "white"}, ValueError, "no fill 'white'.*Accepted: grey, mean, blur"),
        ({"seed": 0.5}, TypeError, "seed is 0.5; expected a whole number"),
        ({"inputs": 3}, TypeError, "inputs is int; expected a callable"),
        ({"box": BOXES}, TypeError, "box"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, net: Small, images: Tensor
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Correspondence(net, **{"images": images, **given})
    assert set(registry._instances) == widgets


@pytest.mark.parametrize("sides", [(12,), (4, 6, 6)])
def test_signals_and_volumes_are_refused(sides: tuple[int, ...]) -> None:
    net = nn.Sequential((nn.Conv1d if len(sides) == 1 else nn.Conv3d)(2, 3, 3), nn.ReLU())
    with pytest.raises(ValueError, match="expected at least two pictures"):
        nbviz.Correspondence(net, torch.rand(2, 2, *sides))


def test_the_figure_frames_the_parts(net: Small, images: Tensor) -> None:
    view = nbviz.Correspondence(net, images, BOXES, random=1)
    *drawn, plot = view.figure().axes
    frames = [axes.patches[0] for axes in drawn]
    found = [(f.get_y() + 0.5, f.get_x() + 0.5, f.get_height(), f.get_width()) for f in frames]
    assert found == [(top, left, bottom - top, right - left) for top, left, bottom, right in BOXES]
    assert [line.get_linestyle() for line in plot.lines] == ["-", "--"]


def test_the_code_gives_the_same_view(net: Small, images: Tensor) -> None:
    view = nbviz.Correspondence(net, images, BOXES, ["2"])
    view.finish()
    again = eval(view.header.code, {"nbviz": nbviz, "model": net, "images": images})
    assert again.boxes == BOXES
    assert again.table.value == view.table.value
