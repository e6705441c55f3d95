"""The stages of networks of several families, as their papers draw them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from nbviz.core.layers import Layer, trace_layers
from nbviz.core.stages import after_activation, shows, stage_ends
from tests.rounds import few

STAGES = {
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "vgg11": ["features.1", "features.4", "features.9", "features.14", "features.20"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features.18"],
    "densenet121": ["features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3"],
    "inception_v3": ["Mixed_5d", "Mixed_6e", "Mixed_7c"],
}


def shown(model: nn.Module, side: int) -> list[Layer]:
    with torch.no_grad():
        layers = trace_layers(model.eval(), torch.rand(1, 3, side, side))[0]
    return [layer for layer in layers if layer.has_maps and shows(layer)]


@pytest.mark.parametrize("name", few(STAGES, 0, 2, 3, 4))
def test_the_stages_are_those_of_the_paper(name: str) -> None:
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    layers = shown(getattr(torchvision.models, name)(weights=None, **options), 299 if options else 128)
    ends = stage_ends(layers)
    assert set(STAGES[name]) - set(ends) == set()
    sizes = [layer.shape[1:] for layer in layers if layer.name in ends]
    assert set(sizes) == {layer.shape[1:] for layer in layers}, "a size without a stage"
    assert len(ends) <= 10


def test_a_network_of_one_block_has_its_stages() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    assert stage_ends(shown(net, 16)) == ["0.1", "0"]


def test_what_comes_of_an_activation() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU())
    layers = shown(nn.Sequential(block, nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), 16)
    assert [layer.name for layer in layers if layer.name in after_activation(layers)] == ["0.2", "0", "1"]


def test_single_pixels_and_what_is_handed_on_show_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    assert [layer.name for layer in shown(net, 16)] == ["0"]
