"""Kernels against what their convolution does to an impulse, frequencies against NumPy's transform."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import nbviz
from nbviz.methods import kernels as module
from nbviz.methods.kernels import convolutions, kernel_report


def test_kernels_are_the_weights(snapshot: Any) -> None:
    net = nbviz.bundled.load("fashion")
    with snapshot(net):
        assert torch.equal(nbviz.kernels(net), net.features[0].weight)
        assert torch.equal(nbviz.kernels(net, "features.5", [7, 2]), net.features[5].weight[[7, 2]])
        assert torch.equal(nbviz.kernels(net, "features.12", 3), net.features[12].weight[3:4])
        assert nbviz.kernels(net, "features.12", ()).shape == (0, 128, 3, 3)
    assert list(convolutions(net)) == [f"features.{i}" for i in (0, 2, 5, 7, 10, 12)]


CONVOLUTIONS: list[Any] = [
    nn.Conv2d(4, 6, (3, 5), bias=False),
    nn.Conv2d(4, 6, 3, groups=2, bias=False),
    nn.Conv2d(4, 4, 3, groups=4, bias=False),
    nn.Conv1d(4, 6, 5, groups=2, bias=False),
    nn.Conv3d(2, 3, 3, bias=False),
    nn.ConvTranspose2d(4, 6, (3, 5), bias=False),
    nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_kernels_are_what_a_convolution_makes_of_an_impulse(conv: Any) -> None:
    """A transposed one paints its kernel; another one finds it, from its last pixel to its first."""
    found = nbviz.kernels(nn.Sequential(conv), "0")
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    sides = conv.kernel_size
    assert found.shape == (conv.out_channels, inputs, *sides)
    for output in range(conv.out_channels):
        for i in range(inputs):
            impulse = torch.zeros(1, conv.in_channels, *(1 if conv.transposed else 2 * side - 1 for side in sides))
            middle = [0 if conv.transposed else side - 1 for side in sides]
            impulse[(0, output // outputs * inputs + i, *middle)] = 1
            with torch.no_grad():
                answer = conv(impulse)[0, output]
            if not conv.transposed:
                answer = answer.flip(tuple(range(len(sides))))
            torch.testing.assert_close(found[output, i], answer)


def test_a_copy_in_the_models_dtype() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).to(torch.bfloat16)
    found = nbviz.kernels(net)
    assert found.dtype == torch.bfloat16
    found.zero_()
    assert net[0].weight.all()
    assert not found.requires_grad


def test_a_parametrised_kernel_is_what_is_convolved_with_and_leaves_no_mark(snapshot: Any) -> None:
    """A spectral norm in training notes a step of its iteration whenever its weight is asked for."""
    net = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))).train()
    with snapshot(net):
        found = nbviz.kernels(net, "0")
        kernel_report(net)
    net.eval()
    impulse = torch.zeros(1, 2, 5, 5)
    impulse[0, 1, 2, 2] = 1
    answer = net(impulse) - net(torch.zeros(1, 2, 5, 5))
    torch.testing.assert_close(found[:, 1], answer[0].flip((1, 2)), rtol=1e-4, atol=1e-6)


def test_a_module_under_two_names_and_a_model_that_is_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    net.add_module("twin", net[0])
    assert torch.equal(nbviz.kernels(net, "twin"), net[0].weight)
    for layer in (None, ""):
        assert torch.equal(nbviz.kernels(net[0], layer), net[0].weight)
    assert kernel_report(net[0]).layer == ""


@pytest.mark.parametrize(
    ("model", "layer", "channels", "message"),
    [
        (nn.Linear(2, 2), None, None, r"^Linear has no convolution \(Conv1d, Conv2d, Conv3d\); expected one that has$"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "1", None, "^layer '1' is not a convolution .*Accepted: 0$"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "2", None, "^no layer '2'.* Accepted: 0, 1$"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "0", [1, 2], "^no channel 2: there are 2, numbered 0 to 1$"),
    ],
)
def test_what_has_no_kernels_is_refused(model: nn.Module, layer: Any, channels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbviz.kernels(model, layer, channels)


def test_weights_that_are_not_there_are_refused() -> None:
    for call in (nbviz.kernels, kernel_report):
        with pytest.raises(TypeError, match="^the convolution's weight is a sparse, nested, quantised or meta tensor"):
            call(nn.Conv2d(1, 2, 3, device="meta"))


# Frequencies


def transformed(kernels: Tensor, size: int) -> Any:
    """The response by NumPy, kernel by kernel and channel by channel."""
    axes = tuple(range(kernels.ndim - 2))
    rows = []
    for kernel in kernels.double().numpy():
        powers = [np.abs(np.fft.fftshift(np.fft.fftn(one, [size] * len(axes), axes))) ** 2 for one in kernel]
        rows.append(np.sqrt(np.mean(powers, 0)))
    return np.stack(rows)


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (4, 3, 3, 7), (5, 2, 6), (2, 2, 3, 2, 3)])
@pytest.mark.parametrize("size", [7, 16])
def test_a_response_is_numpys_transform(shape: tuple[int, ...], size: int) -> None:
    kernels = torch.randn(shape)
    found = nbviz.frequency_response(kernels, size)
    assert (found.shape, found.dtype) == ((shape[0], *[size] * (len(shape) - 2)), torch.float32)
    np.testing.assert_allclose(found.numpy(), transformed(kernels, size), rtol=1e-4, atol=1e-5)


def test_a_grating_answers_at_its_own_frequency() -> None:
    y, x = np.mgrid[:32, :32]
    wave = np.cos(2 * np.pi * (3 * y - 5 * x) / 32)
    found = nbviz.frequency_response(torch.from_numpy(wave)[None, None], 32)[0]
    assert sorted(found.flatten().topk(2).indices.tolist()) == sorted([(16 + 3) * 32 + 16 - 5, (16 - 3) * 32 + 16 + 5])


def test_a_response_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = torch.randn(7, 3, 5, 5)
    whole = nbviz.frequency_response(kernels)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 3 * 32 * 32)
    torch.testing.assert_close(nbviz.frequency_response(kernels), whole)


@pytest.mark.parametrize(
    ("kernels", "size", "message"),
    [
        (torch.rand(2, 1, 5, 5), 4, "^size is 4; expected at least 5$"),
        (torch.rand(2, 1, 5, 5), 1 << 20, "^size is 1048576; expected at most 1024$"),
        (torch.rand(2, 5), 8, r"^kernels is torch.float32 \(2, 5\); expected real \(K, I, h, w\)"),
        (torch.rand(2, 0, 5, 5), 8, "none of them empty"),
        (torch.ones(2, 1, 5, 5).long(), 8, "^kernels is torch.int64"),
    ],
)
def test_what_has_no_response_is_refused(kernels: Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbviz.frequency_response(kernels, size)


# What is wrong with kernels


def blob(width: float, side: int = 11) -> Tensor:
    """A smooth spot of a Gaussian's form."""
    y, x = torch.meshgrid(*[torch.arange(side).double() - side // 2] * 2, indexing="ij")
    return torch.exp(-(y * y + x * x) / (2 * width * width))


def grating(cycles: float, side: int = 11) -> Tensor:
    """Stripes of so many cycles for each pixel under the spot."""
    return blob(2.5, side) * torch.cos(2 * math.pi * cycles * torch.arange(side))


def planted() -> nn.Sequential:
    """As AlexNet's first layer, 11×11 with stride 4: dead, alike, opposite, smooth, and too fine for the stride."""
    conv = nn.Conv2d(3, 8, 11, stride=4)
    with torch.no_grad():
        conv.weight.normal_(generator=torch.Generator().manual_seed(0))
        conv.weight[1] = 2.5 * conv.weight[0]
        conv.weight[2] = -conv.weight[3]
        conv.weight[4] *= 1e-4
        conv.weight[5] = blob(3.0)
        conv.weight[6] = grating(0.42)
    return nn.Sequential(conv)


def test_dead_and_alike_and_opposite_kernels_are_named_and_no_others() -> None:
    found = kernel_report(planted())
    assert found.dead == (4,)
    assert found.duplicates == ((0, 1, 1.0), (2, 3, -1.0))
    assert found.stride == (4, 4)


def test_what_the_stride_cannot_carry_is_told_from_what_it_can() -> None:
    found = kernel_report(planted())
    assert found.aliased[6] > 0.99
    assert found.aliased[5] < 0.01
    assert found.rough[6] > 0.99
    assert found.rough[5] < 0.01


def test_what_is_called_aliased_comes_out_as_a_lower_frequency() -> None:
    """0.42 cycles for each pixel are 1.68 for each step of 4, of which 0.32 can be seen: 0.08 for each pixel."""
    conv = planted()[0]
    stripes = torch.cos(2 * math.pi * 0.42 * torch.arange(407.0)).expand(1, 3, 11, 407)
    with torch.no_grad():
        answer = (conv(stripes)[0, 6, 0] - conv.bias[6]).numpy()
    spectrum = np.abs(np.fft.rfft(answer, 4096))
    assert np.fft.rfftfreq(4096)[spectrum.argmax()] / 4 == pytest.approx(0.08, abs=1e-3)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, 11, stride=4),
        nn.Conv2d(2, 5, (3, 7), stride=(1, 2)),
        nn.Conv2d(2, 4, 3, stride=2, groups=2),
        nn.Conv1d(2, 4, 80, stride=4),
        nn.Conv3d(1, 3, 3, stride=2),
        nn.Conv2d(2, 4, 1, stride=2),
    ],
    ids=str,
)
def test_shares_of_energy_are_those_of_numpys_transform(conv: Any) -> None:
    found, weight = kernel_report(nn.Sequential(conv)), conv.weight.detach()
    size = max(64, *conv.kernel_size)
    power = transformed(weight, size) ** 2
    for name, limits in (("aliased", [0.5 / s for s in conv.stride]), ("rough", [0.25] * len(conv.stride))):
        frequencies = np.abs(np.fft.fftshift(np.fft.fftfreq(size)))
        over = np.zeros([size] * len(limits), bool)
        for axis, limit in enumerate(limits):
            shape = [-1 if i == axis else 1 for i in range(len(limits))]
            over |= (frequencies > limit).reshape(shape)
        expected = [float(one[over].sum() / one.sum()) for one in power]
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.norms.numpy(), [np.linalg.norm(one) for one in weight.numpy()], rtol=1e-5)


def test_nothing_is_aliased_without_a_stride() -> None:
    assert kernel_report(nn.Sequential(nn.Conv2d(3, 4, 3))).aliased.tolist() == [0] * 4
    assert kernel_report(nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2))).aliased.tolist() == [0] * 4


@pytest.mark.parametrize(("alike", "pairs"), [(1, 1), (0.98, 1), (0, 6)])
def test_how_alike_is_alike(alike: float, pairs: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        net[0].weight[2] = net[0].weight[0] / 3
    found = kernel_report(net, alike=alike)
    assert len(found.duplicates) == pairs
    assert found.duplicates[0] == (0, 2, 1.0)
    flat = net[0].weight.detach().flatten(1).double().numpy()
    for i, j, cosine in found.duplicates:
        assert i < j
        assert cosine == pytest.approx(flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j]), abs=1e-6)


def test_a_layer_of_zeros_is_dead_and_shown() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))
    nn.init.zeros_(net[0].weight)
    found = kernel_report(net)
    assert (found.dead, found.duplicates, found.aliased.tolist()) == ((0, 1, 2, 3), (), [0] * 4)
    assert "dead (almost zero): 0, 1, 2, 3" in repr(found)


def test_a_large_layer_takes_neither_long_nor_much_memory() -> None:
    """Transformed at once, its kernels would take 8 GB."""
    found = kernel_report(nn.Sequential(nn.Conv2d(512, 512, 3, stride=2)))
    assert float(found.aliased.mean()) == pytest.approx(0.75, abs=0.02)  # of noise, as much everywhere


def test_names_are_text() -> None:
    net = nn.Sequential()
    net.add_module("<img src=x>\n\x1b[31m", nn.Conv2d(1, 2, 3))
    found = kernel_report(net)
    assert "<img" not in found._repr_html_()
    assert "&lt;img src=x&gt;" in found._repr_html_()
    assert "\x1b" not in repr(found)
    assert "\x1b" not in found._repr_html_()
