"""The controls that pick a layer or a class: what the page is offered, and that any is taken from code."""

from __future__ import annotations

from typing import Any

import pytest
import torchvision
from torch import nn
from traitlets import TraitError

import nbviz
from nbviz.widgets.layer_choice import entries
from tests.small import Small, pictures
from tests.widgets.every_widget import EVERY, make


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None).eval()


@pytest.mark.parametrize("name", [name for name in EVERY if hasattr(getattr(nbviz, name), "layer")])
def test_every_widget_with_a_layer_picks_it_in_one_way(name: str) -> None:
    view = make(name, Small().eval(), pictures())
    picker = view.layer_control
    names = list(picker._names)
    assert len(picker.layers) == len(names) > 1
    assert picker.value == names[picker.index] == view.layer
    for i in range(len(names)):  # as the page does
        picker.set_state({"index": i})
        assert view.layer == names[i]
    view.layer = names[0]
    assert picker.index == 0
    with pytest.raises(TraitError, match="there are"):
        picker.set_state({"index": len(names)})
    view.close()


def test_the_list_is_in_blocks_and_says_what_each_layer_is(resnet: nn.Module) -> None:
    view = nbviz.FeatureMaps(resnet, pictures().repeat(1, 1, 4, 4))
    offered = dict(zip(view.layer_control._names, view.layer_control.layers, strict=True))
    assert offered["layer2.0.conv1"] == {
        "short": "layer2.0.conv1 · Conv2d",
        "text": str(view.session.layers["layer2.0.conv1"]),
        "group": "layer2.0 · 8×8",
        "kinds": [],
    }
    assert offered["layer2.0.relu:1"]["kinds"] == ["after activation"]
    assert offered["layer2"]["kinds"] == ["stages", "after activation"]
    assert offered["avgpool"]["kinds"] == ["hidden"]
    assert sum("stages" in entry["kinds"] for entry in offered.values()) <= 8
    assert "stages" in offered[view.layer]["kinds"], "the start is the last layer of a stage"
    view.layer = "avgpool"  # which no list shows at first
    assert view.layer_control.value == "avgpool"
    view.layer = "layer2.1.bn1"
    assert view.layer_control.layers[view.layer_control.index]["short"] == "layer2.1.bn1 · BatchNorm2d"


def test_of_a_long_name_the_end_is_read() -> None:
    net = nn.Sequential()
    net.add_module("encoder" * 9, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    view = nbviz.FeatureMaps(net, pictures())
    assert [entry["short"].split(" · ")[0][-3:] for entry in view.layer_control.layers[:2]] == ["r.0", "r.1"]
    assert all(len(entry["short"]) <= 80 for entry in view.layer_control.layers)
    assert entries({"a.b": "a.b · Conv2d · 4×3×3×3"})[0] == {
        "short": "a.b · Conv2d · 4×3×3×3",
        "text": "a.b · Conv2d · 4×3×3×3",
        "group": "a",
        "kinds": [],
    }


@pytest.mark.parametrize("name", ["ClassActivation", "Occlusion", "Invariance", "Sanity"])
def test_any_of_a_thousand_classes_is_found(name: str) -> None:
    labels = [f"class of things {i}" for i in range(1000)]
    view: Any = make(name, Small(1000).eval(), pictures(), labels=labels)
    picker = view.target_control
    assert picker.names == labels
    assert len(picker.first) == 100
    assert picker.first[0] == picker.value == view.target
    last = next(i for i in range(1000) if i not in picker.first)
    picker.set_state({"value": last})  # as the page does
    assert view.target == last
    view.finish()
    view.picture = 1
    view.finish()
    assert picker.first[0] == view.target == picker.value
    view.close()
