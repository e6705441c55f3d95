"""The deconvnet against one built by hand: unpooling at the switches, rectification, transposed filters."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbviz
from tests.rounds import few

SEEDS = ["max", "map", "unit"]


def some(layers, every):
    """Dtype, layer and seed; each of them at least once among those that ``make test`` tries."""
    rows = list(itertools.product([torch.float32, torch.float64], layers, SEEDS))
    return few(rows, *range(0, len(rows), every))


def forward(net, layer, x):
    """Activation after each module up to the layer, and the switches of each max-pooling."""
    activations, switches = [x], {}
    for i, module in enumerate(net[: layer + 1]):
        if isinstance(module, nn.MaxPool2d):
            x, switches[i] = F.max_pool2d(x, module.kernel_size, module.stride, return_indices=True)
        elif isinstance(module, nn.Conv2d):
            x = F.conv2d(x, module.weight, module.bias, module.stride, module.padding, groups=module.groups)
        else:
            x = x.clamp(min=0)
        activations.append(x)
    return activations, switches


def backward(net, layer, signal, activations, switches, unpool=F.max_unpool2d):
    """Zeiler and Fergus 2014, section 2.1, layer by layer."""
    for i in range(layer, -1, -1):
        module, size = net[i], activations[i].shape[2:]
        if isinstance(module, nn.MaxPool2d):
            signal = unpool(signal, switches[i], module.kernel_size, module.stride, output_size=size)
        elif isinstance(module, nn.Conv2d):
            given = [
                (signal.shape[2 + d] - 1) * module.stride[d] - 2 * module.padding[d] + module.kernel_size[d]
                for d in range(2)
            ]
            missing = [size[d] - given[d] for d in range(2)]  # rows and columns that a stride did not reach
            signal = F.conv_transpose2d(
                signal, module.weight, None, module.stride, module.padding, missing, module.groups
            )
        else:
            signal = signal.clamp(min=0)
    return signal


def summing(signal, switches, kernel, stride, output_size):
    """Unpooling that adds where windows share a switch, with loops."""
    result = torch.zeros(*signal.shape[:2], *output_size, dtype=signal.dtype)
    for n in range(signal.shape[0]):
        for c in range(signal.shape[1]):
            for value, switch in zip(signal[n, c].flatten(), switches[n, c].flatten().tolist(), strict=True):
                result[n, c].view(-1)[switch] += value
    return result


def by_rule(net, layer, x, channel, seed, unpool=F.max_unpool2d):
    with torch.no_grad():
        activations, switches = forward(net, layer, x)
        signal = torch.zeros_like(activations[-1])
        for n, maps in enumerate(activations[-1]):
            row, column = divmod(int(maps[channel].argmax()), maps.shape[2])
            if seed == "map":
                signal[n, channel] = maps[channel]
            else:
                signal[n, channel, row, column] = maps[channel, row, column] if seed == "max" else 1
        return backward(net, layer, signal, activations, switches, unpool)


@pytest.mark.parametrize(("dtype", "layer", "seed"), some([1, 2, 3, 4, 7, 9, 12], 4), ids=str)
def test_on_a_vgg_it_is_the_one_built_by_hand(layer, seed, vgg_like, dtype, close):
    net = vgg_like.to(dtype)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    maps = nbviz.deconvnet(net, x, str(layer), [5, 0], seed=seed)
    for k, channel in enumerate([5, 0]):
        close(maps[:, k], by_rule(net, layer, x, channel, seed))


@pytest.mark.parametrize(("dtype", "layer", "seed"), some([2, 4, 5, 9, 10], 4), ids=str)
def test_on_an_alexnet_with_pooling_2_it_is_the_one_built_by_hand(layer, seed, alexnet_like, dtype, close):
    net = alexnet_like(2).to(dtype)
    x = torch.randn(2, 3, 95, 87, dtype=dtype)
    for unpool in ("sum", "overwrite"):
        maps = nbviz.deconvnet(net, x, str(layer), [7, 1], seed=seed, unpool=unpool)
        for k, channel in enumerate([7, 1]):
            close(maps[:, k], by_rule(net, layer, x, channel, seed))


@pytest.mark.parametrize(("dtype", "layer", "seed"), some([2, 5, 10], 5), ids=str)
def test_overlapping_windows_overwrite_or_sum(layer, seed, alexnet_like, dtype, close):
    net = alexnet_like(3).to(dtype)
    x = torch.randn(1, 3, 95, 87, dtype=dtype)
    # A later window's zero overwrites too, and may leave nothing of a single position: all channels together.
    channels = range(8)
    overwritten = torch.stack([by_rule(net, layer, x, k, seed) for k in channels], 1)
    summed = torch.stack([by_rule(net, layer, x, k, seed, summing) for k in channels], 1)
    close(nbviz.deconvnet(net, x, str(layer), channels, seed=seed, unpool="overwrite"), overwritten)
    close(nbviz.deconvnet(net, x, str(layer), channels, seed=seed), summed)
    assert not torch.allclose(overwritten, summed)


def test_the_paper_starts_from_the_strongest_position(vgg_like):
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(nbviz.deconvnet(vgg_like, x, "9"), nbviz.deconvnet(vgg_like, x, "9", seed="max"))


def test_the_reconstruction_stays_in_the_receptive_field(vgg_like):
    x = torch.randn(1, 3, 32, 32)
    found = {layer.name: layer for layer in nbviz.layers(vgg_like, x)}["7"]
    activation = nbviz.feature_maps(vgg_like, x, "7")[0]
    maps = nbviz.deconvnet(vgg_like, x, "7")[0]
    for channel in range(12):
        row, column = divmod(int(activation[channel].argmax()), activation.shape[2])
        top, left, bottom, right = found.field.box((row, column), (32, 32))
        outside = maps[channel].clone()
        outside[:, top:bottom, left:right] = 0
        assert maps[channel].any()
        assert not outside.any()


def test_unpooling_has_two_names(vgg_like, snapshot):
    x = torch.rand(1, 3, 32, 32)
    with snapshot(vgg_like), pytest.raises(ValueError, match=r"no unpooling 'max'.* Accepted: sum, overwrite"):
        nbviz.deconvnet(vgg_like, x, "4", unpool="max")
