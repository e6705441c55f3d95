"""Models of signals and of volumes, against constructions by hand."""

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

import nbviz
from nbviz.core.backward import RULES

CONV = {1: nn.Conv1d, 3: nn.Conv3d}
POOL = {1: nn.MaxPool1d, 3: nn.MaxPool3d}
UNPOOL = {1: F.max_unpool1d, 3: F.max_unpool3d}
TRANSPOSED = {1: F.conv_transpose1d, 3: F.conv_transpose3d}
MEAN = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}
SIDES = {1: (37,), 3: (8, 10, 12)}
CHANNELS = 2


@pytest.fixture(params=[1, 3], ids=["signals", "volumes"])
def axes(request):
    return request.param


@pytest.fixture
def net(axes):
    conv = CONV[axes]
    return nn.Sequential(
        *(conv(CHANNELS, 6, 3, padding=1), nn.ReLU(), POOL[axes](2), conv(6, 5, 3), nn.ReLU(inplace=True)),
        *(MEAN[axes](1), nn.Flatten(), nn.Linear(5, 3)),
    ).eval()


@pytest.fixture
def x(axes):
    return torch.randn(2, CHANNELS, *SIDES[axes])


def test_feature_maps(net, x, snapshot):
    with snapshot(net):
        maps = nbviz.feature_maps(net, x, "4", [3, 0])
    assert torch.equal(maps, net[:5](x)[:, [3, 0]].detach())
    assert [layer.name for layer in nbviz.layers(net, x) if layer.has_maps] == ["0", "1", "2", "3", "4", "5"]
    for how in ("mean", "max", "sum", "l2"):
        assert nbviz.fuse(maps, how).shape == (2, *maps.shape[2:])
    assert nbviz.fuse(maps, "pca").shape == (2, 3, *maps.shape[2:])


def test_the_deconvnet_is_the_one_built_by_hand(net, x, axes, close, snapshot):
    with snapshot(net):
        maps = nbviz.deconvnet(net, x, "4", [3, 0])
    pooled, switches = POOL[axes](2, return_indices=True)(net[:2](x))
    activation = net[3:5](pooled).detach()
    for k, channel in enumerate([3, 0]):
        signal = torch.zeros_like(activation)
        for n in range(2):
            place = activation[n, channel].flatten().argmax()
            signal[n, channel].view(-1)[place] = activation[n, channel].max()
        signal = TRANSPOSED[axes](signal.relu(), net[3].weight)
        signal = UNPOOL[axes](signal, switches, 2, output_size=net[:2](x).shape)
        signal = TRANSPOSED[axes](signal.relu(), net[0].weight, padding=1)
        close(maps[:, k], signal.detach())


@pytest.mark.parametrize("adaptive", [False, True])
def test_unpooling_overwrites_where_windows_overlap(axes, adaptive, close):
    sides = {1: (13,), 3: (7, 9, 11)}[axes]
    pool = (
        {1: nn.AdaptiveMaxPool1d, 3: nn.AdaptiveMaxPool3d}[axes](5, return_indices=False)
        if adaptive
        else POOL[axes](3, 2)
    )
    net, x = nn.Sequential(CONV[axes](1, 3, 3, padding=1), nn.ReLU(), pool), torch.rand(1, 1, *sides)
    nn.init.constant_(net[0].bias, 0.5)
    maps = nbviz.deconvnet(net, x, "2", 1, seed="map", unpool="overwrite")[:, 0]
    before = net[:2](x)
    pool.return_indices = True
    pooled, switches = pool(before)
    signal = torch.zeros_like(pooled)
    signal[:, 1] = pooled[:, 1]
    # Written out, in order: the last of those that share a switch stays.
    places = torch.zeros(3, before[0, 0].numel())
    for place, value in zip(switches[0, 1].flatten().tolist(), signal[0, 1].flatten().tolist(), strict=True):
        places[1, place] = value
    expected = TRANSPOSED[axes](places.view(1, 3, *sides), net[0].weight, padding=1)
    close(maps, expected.detach())


@pytest.mark.parametrize("seed", ["max", "map", "unit"])
def test_the_gradient_is_autograds(net, x, seed, close):
    maps = nbviz.gradient(net, x, "4", 2, seed=seed)
    leaf = x.clone().requires_grad_()
    channel = net[:5](leaf)[:, 2].flatten(1)
    start = {"max": channel.square() / 2, "unit": channel}.get(seed)
    score = channel.square().sum() / 2 if start is None else start.amax(1).sum()
    close(maps[:, 0], torch.autograd.grad(score, leaf)[0])


def test_a_class_under_all_rules(net, x, by_hand, close):
    found = nbviz.reconstruct(net, x, target=1)
    for rule in RULES:
        close(found[rule], by_hand(net, x, None, rule, lambda y: F.one_hot(torch.tensor([1, 1]), 3).to(y.dtype))[0])


def test_grad_cam_is_captums(net, x, axes, close):
    maps = nbviz.grad_cam(net, x, "1", 2, raw=True)
    close(maps, LayerGradCam(net, net[1]).attribute(x, 2, relu_attributions=True)[:, 0].detach())
    assert nbviz.grad_cam(net, x, "3", 2).shape == (2, *SIDES[axes])
    assert torch.equal(nbviz.grad_cam(net, x, target=2), nbviz.grad_cam(net, x, "4", 2))


def test_tokens_are_no_maps_of_a_signal(axes):
    flat = nn.Sequential(CONV[axes](1, 4, 3), nn.Flatten(2 if axes == 3 else 1), nn.LazyLinear(2))
    x = torch.rand(1, 1, *SIDES[axes])
    flat(x)
    shape = {1: r"\(N, C, L\)", 3: r"\(N, C, D, H, W\)"}[axes]
    with pytest.raises(ValueError, match=rf"^layer '2' gives .*; expected feature maps {shape}"):
        nbviz.feature_maps(flat, x, "2")
