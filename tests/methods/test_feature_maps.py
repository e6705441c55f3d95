"""Feature maps as the layer gives them, and fused."""

import numpy as np
import pytest
import torch
from torch import nn

import nbviz


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def test_they_are_the_layers_own_output(vgg_like, x, dtype, device):
    net, x = vgg_like.to(device, dtype), x.to(device, dtype)
    with torch.no_grad():
        expected = net[:8](x)
    maps = nbviz.feature_maps(net, x, "7")
    assert torch.equal(maps, expected)
    assert not maps.requires_grad


@pytest.mark.parametrize(("channels", "expected"), [(3, [3]), ([4, 0, 4], [4, 0, 4]), (range(2), [0, 1]), ([], [])])
def test_channels_come_in_the_order_asked(channels, expected, vgg_like, x):
    assert torch.equal(
        nbviz.feature_maps(vgg_like, x, "7", channels), nbviz.feature_maps(vgg_like, x, "7")[:, expected]
    )


def test_they_are_the_persons_to_change(vgg_like, x, snapshot):
    net = nn.Sequential(nn.Identity(), vgg_like)
    before = x.clone()
    with snapshot(net):
        nbviz.feature_maps(net, x, "0").add_(1)
    assert torch.equal(x, before)


# Fusion, in NumPy


FORMULAS = {
    "mean": lambda maps: maps.mean(1),
    "max": lambda maps: maps.max(1),
    "sum": lambda maps: maps.sum(1),
    "l2": lambda maps: np.sqrt((maps**2).sum(1)),
}


@pytest.mark.parametrize("how", FORMULAS)
@pytest.mark.parametrize("shape", [(2, 7, 5, 4), (1, 1, 1, 1), (3, 2, 1, 6)])
def test_fusions_follow_their_formula(how, shape, dtype, device):
    maps = torch.randn(shape, dtype=dtype, device=device)
    fused = nbviz.fuse(maps, how)
    assert fused.dtype == dtype
    assert fused.device == maps.device
    torch.testing.assert_close(fused.cpu(), torch.from_numpy(FORMULAS[how](maps.cpu().numpy())))


def test_the_mean_is_what_comes_unasked():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(nbviz.fuse(maps), nbviz.fuse(maps, "mean"))


@pytest.mark.parametrize("how", [*FORMULAS, "pca"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(how, dtype):
    fused = nbviz.fuse(torch.randn(2, 5, 6, 7).to(dtype), how)
    assert fused.dtype == dtype
    assert fused.isfinite().all()


def principal(maps):
    """Scores on the first three principal components of one picture's positions, from the covariance of channels."""
    k, h, w = maps.shape
    points = maps.reshape(k, -1) - maps.reshape(k, -1).mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(points @ points.T)
    directions = vectors[:, ::-1][:, :3].T
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
    scores = (directions * signs[:, None]) @ points
    low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    return ((scores - low) / (high - low)).reshape(-1, h, w)


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 3, 9, 9), (1, 40, 4, 3)])
def test_pca_gives_the_three_strongest_directions_as_colours(shape, dtype, device):
    maps = torch.randn(shape, dtype=dtype, device=device)
    fused = nbviz.fuse(maps, "pca").cpu()
    assert fused.shape == (shape[0], 3, *shape[2:])
    for n in range(shape[0]):
        expected = torch.from_numpy(principal(maps[n].double().cpu().numpy())).to(dtype)
        torch.testing.assert_close(fused[n], expected, rtol=0, atol=1e-4)


def test_each_picture_has_directions_of_its_own():
    maps = torch.randn(3, 6, 5, 5)
    for n in range(3):
        torch.testing.assert_close(nbviz.fuse(maps, "pca")[n], nbviz.fuse(maps[n : n + 1], "pca")[0])


def test_a_direction_has_the_same_sign_every_time():
    """The largest channel weighs positively: where it is strong, its colour is."""
    loud = torch.randn(1, 1, 6, 6)
    maps = torch.cat([0.1 * torch.randn(1, 2, 6, 6), 10 * loud, 0.1 * torch.randn(1, 2, 6, 6)], 1)
    fused = nbviz.fuse(maps, "pca")
    assert torch.equal(fused, nbviz.fuse(maps.clone(), "pca"))
    assert fused[0, 0].flatten().argmax() == loud.flatten().argmax()
    torch.testing.assert_close(nbviz.fuse(maps.flip(1), "pca")[:, 0], fused[:, 0])
    assert nbviz.fuse(-maps, "pca")[0, 0].flatten().argmax() == loud.flatten().argmin()


def test_where_there_is_no_third_direction_there_is_no_colour():
    two = nbviz.fuse(torch.randn(1, 2, 5, 5), "pca")
    assert two.shape == (1, 3, 5, 5)
    assert two[:, :2].amax((2, 3)).tolist() == [[1, 1]]
    assert not two[:, 2].any()
    one = nbviz.fuse(torch.randn(1, 1, 5, 5), "pca")
    assert one[:, 0].max() == 1
    assert not one[:, 1:].any()
    direction = torch.randn(6)[:, None, None]
    only = nbviz.fuse((direction * torch.randn(1, 5, 5))[None], "pca")  # six channels, one direction
    assert only[:, 0].max() == 1
    assert not only[:, 1:].any()


@pytest.mark.parametrize("value", [0.0, 3.0, -1e6])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_constant_maps_have_no_colour(value, channels):
    assert not nbviz.fuse(torch.full((2, channels, 4, 4), value), "pca").any()
    assert not nbviz.fuse(torch.full((2, channels, 1, 1), value), "pca").any()


def test_a_constant_channel_takes_no_part():
    maps = torch.randn(1, 3, 6, 6)
    loud = torch.cat([maps, torch.full((1, 1, 6, 6), 50.0)], 1)
    torch.testing.assert_close(nbviz.fuse(loud, "pca"), nbviz.fuse(maps, "pca"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_counts_as_0_in_pca(value):
    maps = torch.randn(2, 4, 5, 5)
    maps[0, 1, 2, 3] = 0
    expected = nbviz.fuse(maps, "pca")
    maps[0, 1, 2, 3] = value
    assert torch.equal(nbviz.fuse(maps, "pca"), expected)


def test_the_dtype_under_autocast_is_autocasts(vgg_like, x):
    with torch.autocast("cpu", torch.bfloat16):
        assert nbviz.feature_maps(vgg_like, x, "0").dtype == torch.bfloat16
        assert nbviz.reconstruct(vgg_like, x, "2", 0)["guided"].dtype == torch.float32


def test_colours_lie_between_0_and_1():
    fused = nbviz.fuse(1e4 * torch.randn(4, 9, 7, 7), "pca")
    assert torch.equal(fused.amin((2, 3)), torch.zeros(4, 3))
    assert torch.equal(fused.amax((2, 3)), torch.ones(4, 3))


@pytest.mark.parametrize("how", [*FORMULAS, "pca"])
def test_fusing_leaves_its_input_alone(how):
    maps = torch.randn(2, 4, 5, 5)
    before = maps.clone()
    nbviz.fuse(maps, how)
    assert torch.equal(maps, before)


@pytest.mark.parametrize(
    ("maps", "how", "error", "message"),
    [
        (
            torch.rand(1, 2, 3, 3),
            "average",
            ValueError,
            r"^no way to fuse 'average'.*Accepted: mean, max, l2, sum, pca$",
        ),
        (torch.rand(2, 3), "mean", ValueError, r"^maps has shape \(2, 3\); expected \(N, K, H, W\)"),
        (torch.rand(1, 0, 3, 3), "max", ValueError, r"^maps has shape \(1, 0, 3, 3\); .*none but N zero$"),
        (torch.rand(1, 2, 0, 3), "pca", ValueError, r"^maps has shape \(1, 2, 0, 3\); .*none but N zero$"),
        (torch.rand(1, 2, 3, 3), ["max"], ValueError, r"^no way to fuse .*max.*Accepted: mean"),
        (
            torch.ones(1, 2, 3, 3, dtype=torch.uint8),
            "mean",
            TypeError,
            r"^maps is torch.uint8; expected a float dtype$",
        ),
        (np.ones((1, 2, 3, 3)), "mean", TypeError, r"^maps is ndarray; expected a tensor \(N, K, H, W\)$"),
    ],
)
def test_what_cannot_be_fused(maps, how, error, message):
    with pytest.raises(error, match=message):
        nbviz.fuse(maps, how)


@pytest.mark.parametrize("largest", [3e38, 1e-30, 6e4])
def test_principal_colours_of_numbers_of_any_size(largest):
    maps = torch.randn(2, 5, 4, 4)
    maps *= 0.9 / maps.abs().max()
    torch.testing.assert_close(nbviz.fuse(maps * largest, "pca"), nbviz.fuse(maps, "pca"), rtol=1e-3, atol=1e-3)
