"""Grad-CAM against Captum's, and by arithmetic."""

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torchvision import models

import nbviz

X = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope="module", params=[("vgg11", "features.15"), ("resnet18", "layer3"), ("mobilenet_v3_small", "features.8")]
)
def case(request):
    name, layer = request.param
    torch.manual_seed(0)
    return models.get_model(name, weights=None, num_classes=7).eval(), layer


def test_it_is_captums(case, close, snapshot):
    net, layer = case
    for target in (3, [1, 5]):
        with snapshot(net):
            maps = nbviz.grad_cam(net, X, layer, target, raw=True)
        expected = LayerGradCam(net, net.get_submodule(layer)).attribute(X, target, relu_attributions=True)
        close(maps, expected[:, 0].detach())


def test_the_map_is_stretched_over_the_picture(case):
    net, layer = case
    maps, raw = (nbviz.grad_cam(net, X, layer, 3, raw=raw) for raw in (False, True))
    assert maps.shape == (2, 64, 48)
    assert maps.min() >= 0
    shares = raw / raw.amax((1, 2), keepdim=True)
    expected = nn.functional.interpolate(shares[:, None], (64, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(maps, expected)


def test_nothing_speaks_for_the_class(close):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    net[4].weight.data = torch.tensor([[-1.0, -2.0], [1.0, 2.0]])
    x = torch.rand(1, 1, 4, 4)
    assert not nbviz.grad_cam(net, x, "1", 0).any()
    close(nbviz.grad_cam(net, x, "1", 1, raw=True), 3 * x[0] / 16)


def test_layer_and_class_are_found():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    predicted = net(X).argmax(1).tolist()
    assert torch.equal(nbviz.grad_cam(net, X), nbviz.grad_cam(net, X, "1", predicted))
    with pytest.raises(ValueError, match=r"^no layer of Sequential gives feature maps \(N, C, H, W\)"):
        nbviz.grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(1, 3, 2, 2))


def test_a_layer_that_the_class_does_not_hang_on(snapshot):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.head = nn.Conv2d(3, 2, 1), nn.Linear(3, 2)

        def forward(self, x):
            self.aside(x)
            return self.head(x.mean((2, 3)))

    net = Aside()
    with (
        snapshot(net),
        pytest.raises(nbviz.ModelError, match=r"^no gradient flows .* 'aside': they do not depend"),
    ):
        nbviz.grad_cam(net, X, "aside", 1)


def test_under_inference_mode_and_autocast(case, close):
    net, layer = case
    expected = nbviz.grad_cam(net, X, layer, 3)
    with torch.inference_mode():
        close(nbviz.grad_cam(net, X, layer, 3), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (nbviz.grad_cam(net, X, layer, 3).float() - expected).abs().mean() < 0.1
