"""The gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbviz
from tests.rounds import few


class Mixed(nn.Module):
    """All kinds of operations, smooth and not."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.relu, self.relu6, self.last = nn.ReLU(inplace=True), nn.ReLU6(), nn.Identity()

    def forward(self, x):
        x = self.relu(self.norm(self.a(x)))
        x = F.silu(self.b(x)) + self.relu6(3 * x) + F.leaky_relu(x - 0.1)
        x = self.last(F.max_pool2d(x, 2) * torch.sigmoid(x.mean((2, 3), keepdim=True)))
        return self.head(x.amax((2, 3)))


@pytest.fixture
def net():
    return Mixed().double()


def differences(f, x, step=1e-6):
    """Central differences of a number by every pixel."""
    result = torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros_like(x).view(-1)
        shift[i] = step
        shift = shift.view_as(x)
        result.view(-1)[i] = (f(x + shift) - f(x - shift)) / (2 * step)
    return result


@pytest.mark.parametrize("channel", few([0, 3]))
def test_unit_seed_is_the_gradient_of_the_channels_maximum(net, channel, close):
    x = torch.rand(1, 2, 8, 7, dtype=torch.float64)
    maximum = differences(lambda z: nbviz.feature_maps(net, z, "last")[0, channel].max(), x)
    close(nbviz.gradient(net, x, "last", channel, seed="unit")[:, 0], maximum)


def test_max_seed_is_half_the_gradient_of_the_squared_maximum(net, close):
    x = torch.rand(1, 2, 8, 7, dtype=torch.float64)
    square = differences(lambda z: nbviz.feature_maps(net, z, "last")[0, 1].max() ** 2 / 2, x)
    close(nbviz.gradient(net, x, "last", 1)[:, 0], square)


def test_map_seed_is_half_the_gradient_of_the_squared_length(net, close):
    x = torch.rand(1, 2, 8, 7, dtype=torch.float64)
    energy = differences(lambda z: nbviz.feature_maps(net, z, "last")[0, 2].square().sum() / 2, x)
    close(nbviz.gradient(net, x, "last", 2, seed="map")[:, 0], energy)


@pytest.mark.parametrize("target", few([0, 2]))
def test_the_gradient_of_a_class_is_that_of_its_score(net, target, close):
    x = torch.rand(1, 2, 8, 7, dtype=torch.float64)
    close(nbviz.gradient(net, x, target=target), differences(lambda z: net.eval()(z)[0, target].detach(), x))


def test_without_a_target_it_is_that_of_the_highest_score(net, close):
    x = torch.rand(1, 2, 8, 7, dtype=torch.float64)
    close(nbviz.gradient(net, x), differences(lambda z: net.eval()(z)[0].max().detach(), x))
