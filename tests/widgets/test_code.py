"""The code copied from a widget, evaluated with the person's own names, gives the same view."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
import traitlets as t

import nbviz
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Control, Index, Number, Whole, value_for
from nbviz.widgets.explorer import VIEWS
from tests.rounds import TIMES, few, long
from tests.small import Small
from tests.widgets.every_widget import EVERY, TELLING, every_with, make, state

LABELS = ["ant", "bee", "cat", "dog"]


def network() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def names() -> dict[str, Any]:
    """What the person has."""
    model = network()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    dataset = [(x, i) for i, x in enumerate(torch.rand(12, 3, 16, 16, generator=generator))]
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(0.5)
    return {
        "nbviz": nbviz,
        "model": model,
        "model_a": model,
        "model_b": other,
        "images": images,
        "dataset": dataset,
        "checkpoints": {"before": other.state_dict(), "after": model.state_dict()},
        "inputs": lambda batch: (batch,),
        "output": lambda scores: scores * 2,
        "labels": LABELS,
        "preprocess": lambda picture: picture,
    }


OBJECTS = ("inputs", "output", "labels", "preprocess")


def made(name: str, own: dict[str, Any], given: tuple[str, ...]) -> Pulled:
    accepted = inspect.signature(getattr(nbviz, name)).parameters
    options = {key: own[key] for key in given if key in accepted}
    if name == "Maximise":
        options.pop("preprocess", None)  # which would have to make a picture of a tensor
    if name == "TopPatches":
        options = {key: value for key, value in options.items() if key in ("inputs", "preprocess")}
    data = {key: own[key] for key in ("model_b", "dataset", "checkpoints")}
    return make(name, own["model"], own["images"], **data, **options)


def another(view: Pulled, name: str, control: Control) -> Any:
    """Another value of a control."""
    value = getattr(view, name)
    if isinstance(control, Choice):
        return next((other for other in control.labels(view) if other != value), value)
    if isinstance(control, Index):
        return (value + 1) % (control.count(view) if callable(control.count) else control.count)
    if isinstance(control, Whole):
        return value + 1
    if isinstance(control, Number):
        low, high, _ = value_for(view, control.ends)
        return (low + high) / 3
    return {"off": [1], "box": [1, 2, 9, 10], "boxes": [[1, 1, 8, 9]] * 3, "mask": bytes([0, 1] * 128)}[name]


def picture(view: Pulled) -> bytes:
    file = io.BytesIO()
    view.figure().savefig(file, format="png", dpi=50)
    return file.getvalue()


def check(view: Pulled, own: dict[str, Any]) -> None:
    view.finish()
    assert view.header.error == ""
    assert view.header.code == view.code
    again = eval(view.code, {"progress": False, **own})
    again.finish()
    idle = {"box"} if isinstance(view, nbviz.Regions) and view.mode == "paint" else set()
    same = [[item for item in state(one) if item[0] not in idle] for one in (again, view)]
    assert same[0] == same[1], view.code
    if TIMES or type(view).__name__ in TELLING:
        assert picture(again) == picture(view), view.code
    again.close()


@pytest.mark.filterwarnings("ignore::nbviz.errors.NoRectifierWarning")
@pytest.mark.parametrize("name", few(EVERY, list(EVERY).index("Explorer")))
def test_the_code_of_a_widget_that_was_left_alone_gives_the_same_view(name: str) -> None:
    own = names()
    view = made(name, own, ())
    check(view, own)
    view.close()


@pytest.mark.filterwarnings("ignore::nbviz.errors.NoRectifierWarning")
@every_with("given", {"alone": (), "with options": OBJECTS}, "alone")
def test_the_copied_code_gives_the_same_view_whatever_was_moved(name: str, given: tuple[str, ...]) -> None:
    own = names()
    view = made(name, own, given)
    for control_name, control in view._controls.items():
        if control_name == "view":
            continue
        if control_name == "bands" or (control_name == "tiles" and name != "Explorer"):
            continue
        setattr(view, control_name, another(view, control_name, control))
        view.finish()
    check(view, own)
    left_out = {"Maximise": {"preprocess"}, "TopPatches": {"labels", "output"}}.get(name, set())  # see made()
    for argument in (set(given) & set(inspect.signature(type(view)).parameters)) - left_out:
        assert f"{argument}={argument}" in view.code
    for argument in set(OBJECTS) - set(given):
        assert f"{argument}=" not in view.code
    view.close()


@pytest.mark.filterwarnings("ignore::nbviz.errors.NoRectifierWarning")
@pytest.mark.parametrize("given", [(), pytest.param(OBJECTS, marks=long)])
def test_so_does_that_of_each_tab_of_the_explorer(given: tuple[str, ...]) -> None:
    own = names()
    explorer = nbviz.explore(own["model"], own["images"], "2", **{key: own[key] for key in given})
    explorer.picture = 1
    for view in VIEWS[1:]:
        explorer.view = view
        tab = explorer._others[view]
        check(tab, own)
        assert tab.picture == 1
    explorer.close()


def test_the_tabs_share_picture_layer_channel_and_class_both_ways() -> None:
    own = names()
    explorer = nbviz.explore(own["model"], own["images"], "2", channel=3)
    explorer.view = "switch off"
    tab = explorer._others["switch off"]
    assert (tab.layer, tab.channel) == ("2", 3)
    tab.layer, tab.picture = "5", 2
    explorer.view = "class activation"
    activation = explorer._others["class activation"]
    assert activation.picture == 2
    activation.target = 3
    explorer.view = "occlusion"
    assert explorer._others["occlusion"].target == 3
    explorer._others["occlusion"].picture = 0
    explorer.view = "channels"
    assert (explorer.picture, explorer.session.subject.pictures.names) == (0, tab.session.subject.pictures.names)
    explorer.close()
    shown = nbviz.explore(own["model"], own["images"], view="occlusion")
    assert shown.view == "occlusion"
    shown.close()


def test_every_control_says_what_it_is() -> None:
    for name in EVERY:
        for control_name, control in getattr(nbviz, name).class_traits().items():
            if isinstance(control, Control):
                assert control.help, (name, control_name)
                assert isinstance(control, t.TraitType)


def test_an_attribute_that_there_is_not_cannot_be_set() -> None:
    own = names()
    view = nbviz.FeatureMaps(own["model"], own["images"], "2")
    with pytest.raises(AttributeError, match="FeatureMaps has no attribute 'chanel'; did you mean 'channel'"):
        view.chanel = 3
    with pytest.raises(AttributeError, match="Controls: picture, layer, channel"):
        view.zzz = 3
    view._own_note = 3  # a subclass's or a test's
    view.channel = 3
    view.close()
