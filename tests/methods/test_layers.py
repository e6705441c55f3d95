"""nbviz.layers, from any kind of picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nbviz


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten())


def test_layers_come_in_the_order_of_execution_with_shape_stride_and_field(net, snapshot):
    x = torch.rand(3, 21, 13)
    with snapshot(net):
        found = nbviz.layers(net, x)
    described = [(layer.name, layer.type, layer.shape, layer.stride, layer.receptive_field) for layer in found]
    assert described == [
        ("0", "Conv2d", (4, 10, 6), (2, 2), (3, 3)),
        ("1.0", "ReLU", (4, 10, 6), (2, 2), (3, 3)),
        ("1.1", "MaxPool2d", (4, 5, 3), (4, 4), (5, 5)),
        ("1", "Sequential", (4, 5, 3), (4, 4), (5, 5)),
        ("2", "Flatten", (60,), None, None),
    ]


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (13, 21)),
        np.zeros((21, 13, 3), np.uint8),
        torch.zeros(3, 21, 13, dtype=torch.uint8),
        torch.rand(5, 3, 21, 13),
        [Image.new("L", (13, 21)), np.zeros((21, 13), bool)],
    ],
)
def test_any_picture_will_do_and_of_several_one(image, net):
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    assert nbviz.layers(net, image)[0].shape == (4, 10, 6)
    assert seen == [(1, 3, 21, 13)]


def test_a_preprocess_decides_the_size(net):
    found = nbviz.layers(net, Image.new("RGB", (50, 50)), preprocess=lambda picture: torch.zeros(3, 9, 9))
    assert found[0].shape == (4, 4, 4)
