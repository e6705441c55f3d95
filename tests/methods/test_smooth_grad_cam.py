"""Smooth Grad-CAM++ by its equations, and what its noise depends on."""

import numpy as np
import pytest
import torch
from torch import nn

import nbviz
from nbviz.pictures.noise import noisy

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def small():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 6))
    ).eval()


def loop(net, copies, x, layer, target):
    """Equations 8 and 9 for one picture, in float64, position by position."""
    a = net[: layer + 1](x[None])[0].detach().numpy()
    gradients = []
    for copy in copies:
        maps = net[: layer + 1](copy[None]).detach().requires_grad_()
        (g,) = torch.autograd.grad(net[layer + 1 :](maps)[0, target], maps)
        gradients.append(g[0].numpy())
    first, second, third = (np.mean([g**power for g in gradients], axis=0) for power in (1, 2, 3))
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        weight = 0.0
        for y, x_ in np.ndindex(*found.shape):
            below = 2 * second[k, y, x_] + a[k].sum() * third[k, y, x_]
            weight += (second[k, y, x_] / below if below else 0) * max(0, first[k, y, x_])
        found += weight * a[k]
    return np.maximum(found, 0)


@pytest.mark.parametrize("layer", [1, 2])
def test_it_is_its_papers_equations(layer, small, snapshot):
    """torch-cam takes the gradient of the last copy in place of their mean, and sums the cubes times the activation."""
    net, x = small.double(), X.double()
    with snapshot(net):
        found = nbviz.cams.smooth_grad_cam_pp(net, x, str(layer), [2, 5], samples=5, noise=0.3, seed=7, raw=True)
    copies = torch.stack(noisy(x, 5, 0.3, 7, range(2)), 1)
    for i, target in enumerate((2, 5)):
        expected = loop(net, copies[i], x[i], layer, target)
        assert expected.any()
        np.testing.assert_allclose(found[i], expected, rtol=1e-8, atol=1e-12)


def test_without_noise_it_is_grad_cam_pp(small, close):
    for raw in (True, False):
        found = nbviz.cams.smooth_grad_cam_pp(small, X, "2", 3, noise=0, samples=3, raw=raw)
        close(found, nbviz.cams.grad_cam_pp(small, X, "2", 3, raw=raw), 1e-4)


def test_the_class_is_that_of_the_picture_without_noise(small):
    predicted = small(X).argmax(1).tolist()
    options = {"samples": 3, "noise": 10, "raw": True}
    found = nbviz.cams.smooth_grad_cam_pp(small, X, "2", **options)
    assert torch.equal(found, nbviz.cams.smooth_grad_cam_pp(small, X, "2", predicted, **options))


def test_random_numbers_and_modes_are_left_alone(small, snapshot):
    expected = nbviz.cams.smooth_grad_cam_pp(small, X, "2", 3)
    torch.manual_seed(5)
    small.train()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), snapshot(small):
            assert torch.equal(nbviz.cams.smooth_grad_cam_pp(small, X, "2", 3), expected)


def test_in_half_precision_the_cubes_of_small_gradients_count(small):
    small[-1].weight.data *= 1e-2
    expected = nbviz.cams.smooth_grad_cam_pp(small, X, "2", 3, samples=2)
    found = nbviz.cams.smooth_grad_cam_pp(small.half(), X.half(), "2", 3, samples=2)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype, small):
    found = nbviz.cams.smooth_grad_cam_pp(small.to(dtype), X.to(dtype), "2", 3, samples=2)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    net = nn.Sequential(conv(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 5**dims, 3)).double()
    x = torch.randn(1, 2, *[5] * dims).double()
    found = nbviz.cams.smooth_grad_cam_pp(net, x, "1", 1, samples=3, raw=True)
    (copies,) = torch.stack(noisy(x, 3, 0.15, 0, range(1)), 1)

    class Flat(nn.Module):
        def forward(self, maps):
            return maps.view(len(maps), 4, -1, 1)

    class Back(nn.Module):
        def forward(self, maps):
            return maps.view(len(maps), 4, *[5] * dims)

    wide = nn.Sequential(nn.Sequential(net[0], net[1], Flat()), Back(), net[2], net[3])
    np.testing.assert_allclose(found[0].flatten(), loop(wide, copies, x[0], 0, 1).ravel(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_nothing_is_left_after_ctrl_c(call, small, snapshot):
    calls = []

    class Breaking(nn.Module):
        def forward(self, x):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return x

    small[1] = Breaking()
    with snapshot(small), pytest.raises(KeyboardInterrupt):
        nbviz.cams.smooth_grad_cam_pp(small, X, "2", 3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples is 0; expected at least 1"),
        ({"noise": -1}, ValueError, "noise is -1; expected"),
        ({"noise": "a"}, TypeError, "noise is 'a'; expected"),
        ({"seed": -1}, ValueError, "seed is -1; expected"),
        ({"raw": None}, TypeError, "raw is None; expected True or False"),
        ({"layer": "4"}, ValueError, r"layer '4' gives \(2, 45\); expected feature maps"),
        ({"target": [1, 2, 3]}, ValueError, "target has 3 classes for 2"),
    ],
)
def test_errors_say_what_is_accepted(given, error, message, small, snapshot):
    with snapshot(small), pytest.raises(error, match=message):
        nbviz.cams.smooth_grad_cam_pp(small, X, **{"layer": "2", **given})
