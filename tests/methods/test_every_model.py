"""Every way in which a model comes: what the functions and the explorer give is what they give of the plain one."""

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import nbviz
from nbviz.core.backward import RULES
from nbviz.errors import CompiledWarning, ModelError
from tests.rounds import few

X = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
LAYER, CHANNELS = "features.6", [4, 0]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(8, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 1), nn.ReLU()),
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def plain():
    torch.manual_seed(3)
    net = Network().eval()
    net.features[1].running_mean.normal_()
    return net


@pytest.fixture
def net():
    return plain()


def answers(model, x, layer=LAYER, seed="max", **options):
    """All that the functions say of a model."""
    inputs = {name: value for name, value in options.items() if name == "inputs"}
    found = {"maps": nbviz.feature_maps(model, x, layer, CHANNELS, **inputs)}
    found |= nbviz.reconstruct(model, x, layer, CHANNELS, None, seed, **options)
    found |= {f"class {rule}": maps for rule, maps in nbviz.reconstruct(model, x, target=[1, 4], **options).items()}
    found["cam"] = nbviz.grad_cam(model, x, layer, [1, 4], raw=True, **options)
    return found


def same(found, expected, tolerance=1e-5):
    for name in expected:
        wanted = expected[name].float()
        assert found[name].shape == wanted.shape
        assert float((found[name].float() - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), name


def explored(model, x, layer=LAYER, channel=4, **options):
    """The explorer's pictures; an error in it is raised."""
    view = nbviz.explore(model, x, layer, channel, tiles="guided", **options)
    view.finish()
    assert view.header.error == ""
    found = [view.panels.slot(name)["data"] for name in ("picture", "activation", *RULES)]
    found += [view.grid.pixels()[1].tobytes(), view.strip.predictions]
    view.close()
    return found


@pytest.fixture(scope="module")
def expected():
    return answers(plain(), X)


@pytest.fixture(scope="module")
def expected_of_maps():
    """The strongest position is another where values are rounded."""
    return answers(plain(), X, seed="map")


@pytest.fixture(scope="module")
def seen():
    return explored(plain(), X)


# Modes and flags. Each changes the model or the surroundings, and may give what surrounds the calls.

HERE = {
    "frozen": lambda net: net.requires_grad_(requires_grad=False) and None,
    "in train mode": lambda net: net.train() and None,
    "channels last": lambda net: net.to(memory_format=torch.channels_last) and None,
    "under no_grad": lambda net: torch.no_grad(),
    "under inference_mode": lambda net: torch.inference_mode(),
    "hooks of its own": lambda net: net.features[4].register_forward_hook(lambda *_: None) and None,
    "hooks on gradients": lambda net: net.features[4].register_full_backward_hook(lambda *_: None) and None,
}


@pytest.mark.parametrize("how", HERE)
def test_modes_and_flags(how, net, expected, seen, snapshot):
    around = HERE[how](net)
    x = X.to(memory_format=torch.channels_last) if how == "channels last" else X
    with around or warnings.catch_warnings(), snapshot(net):
        same(answers(net, x), expected)
        assert explored(net, x) == seen


def test_weights_made_in_inference_mode(net, expected, seen, snapshot):
    with torch.inference_mode():
        model = copy.deepcopy(net)
    assert all(p.is_inference() for p in model.parameters())
    with snapshot(model):
        same(answers(model, X), expected)
        assert explored(model, X) == seen
    assert all(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype, net, expected_of_maps, snapshot):
    model = copy.deepcopy(net).to(dtype)
    with snapshot(model):
        found = answers(model, X, seed="map")
        explored(model, X)
    assert {maps.dtype for maps in found.values()} == {dtype}
    same(found, expected_of_maps, {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-5}[dtype])


def test_autocast(net, expected_of_maps, snapshot):
    with snapshot(net), torch.autocast("cpu", torch.bfloat16):
        same(answers(net, X, seed="map"), expected_of_maps, 0.1)
        explored(net, X)


# Wrappings. Each gives a model that computes the same, and the layer's name in it.


def weight_norm_of_old(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        nn.utils.weight_norm(net.features[4])
        nn.utils.weight_norm(net.features[6])
    return net


def weight_norm(net):
    nn.utils.parametrizations.weight_norm(net.features[4])
    nn.utils.parametrizations.weight_norm(net.features[6])
    return net


class LowRank(nn.Module):
    """A LoRA of a 1×1 convolution, after its training has begun."""

    def __init__(self, base):
        super().__init__()
        self.base = copy.deepcopy(base).requires_grad_(requires_grad=False)
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)
        with torch.no_grad():
            change = (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).view_as(self.base.weight)
            self.base.weight -= change

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def low_rank(net):
    net.features[6] = LowRank(net.features[6])
    return net


def parts_compiled(net):
    net.features[4] = torch.compile(net.features[4], backend="eager")
    net.head = torch.compile(net.head, backend="eager")
    net(X)
    return net


def compiled(net):
    model = torch.compile(net, backend="eager")
    model(X)
    return model


def compiled_in_place(net):
    net.features.compile(backend="eager")
    net(X)
    return net


class Checkpointed(Network):
    def forward(self, x):
        x = checkpoint(self.features[:4], x, use_reentrant=False)
        x = checkpoint(self.features[4:], x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


class Branching(Network):
    def forward(self, x):
        for i, module in enumerate(self.features):
            if bool(x.isfinite().all()) and (i < 7 or x.shape[0] > 0):
                x = module(x)
        return self.head(x.mean((2, 3)))


def as_a(kind):
    def make(net):
        other = kind().eval()
        other.load_state_dict(net.state_dict())
        return other

    return make


WRAPPED = {
    "weight norm of old": (weight_norm_of_old, LAYER),
    "weight norm": (weight_norm, LAYER),
    "LoRA": (low_rank, LAYER),
    "DataParallel": (nn.DataParallel, f"module.{LAYER}"),
    "checkpointed": (as_a(Checkpointed), LAYER),
    "dynamic control flow": (as_a(Branching), LAYER),
    "compiled": (compiled, LAYER),
    "in part compiled": (parts_compiled, LAYER),
    "compiled in place": (compiled_in_place, LAYER),
}


@pytest.mark.parametrize("how", few(WRAPPED, 1, 2, 3, 4, 5, 6))
@pytest.mark.filterwarnings(
    "ignore::nbviz.errors.CompiledWarning", "ignore:The .grad attribute"
)  # the second is torch's own
def test_wrappings(how, net, expected, seen, snapshot):
    wrap, layer = WRAPPED[how]
    model = wrap(copy.deepcopy(net))
    before = model(X)
    with snapshot(model):
        same(answers(model, X, layer), expected)
        pictures = explored(model, X, layer)
    assert pictures[0] == seen[0]
    torch.testing.assert_close([p for _, p in pictures[-1]], [p for _, p in seen[-1]])
    assert not [found for found in nbviz.layers(model, X) if "parametrizations" in found.name]
    assert torch.equal(model(X), before)


def test_spectral_norm(net, snapshot):
    """Which changes the network, so that only its own passes can say what is right."""
    nn.utils.parametrizations.spectral_norm(net.features[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        nn.utils.spectral_norm(net.features[6])
    net(X)
    with snapshot(net.train()):
        maps = nbviz.feature_maps(net, X, LAYER)
        saliency = nbviz.gradient(net, X, target=1)
        explored(net, X)
    x = X.clone().requires_grad_()
    net.eval()(x)[:, 1].sum().backward()
    torch.testing.assert_close(saliency, x.grad)
    assert torch.equal(maps, net.features[:7](X).detach())


@pytest.mark.parametrize("how", ["compiled", "in part compiled", "compiled in place"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_model_is_said_to_run_eagerly(how, net):
    model = WRAPPED[how][0](net)
    calls = {
        "load": lambda: nbviz.load(model, X),
        "layers": lambda: nbviz.layers(model, X),
        "deconvnet": lambda: nbviz.deconvnet(model, X, LAYER, 0),
    }
    for call in calls.values():
        with pytest.warns(CompiledWarning, match="runs as the eager one it was made from") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(CompiledWarning):
        view = nbviz.explore(model, X)
    assert "compiled, shown eager" in view.header.info
    assert view.header.title == "Network"
    view.close()


# What cannot be looked into


def quantised(net):
    q = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moves to a package of its own
        model = nn.Sequential(q.QuantStub(), *net.features[4:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), q.DeQuantStub())
        model[2] = nn.ReLU()
        model.eval().qconfig = q.get_default_qconfig("x86")
        q.prepare(model, inplace=True)(torch.rand(1, 8, 9, 9))
        return q.convert(model)


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised convolutions here")
def test_a_quantised_model_has_maps_and_no_gradients(net, snapshot):
    model, x = quantised(net), torch.rand(1, 8, 9, 9)
    assert {found.name: found.shape for found in nbviz.layers(model, x)}["4"] == (6, 9, 9)
    expected = model[:5](x).dequantize()
    message = "^no gradient reaches the picture: .* as quantised layers do"
    with snapshot(model):
        assert torch.equal(nbviz.feature_maps(model, x, "4"), expected)
        with pytest.raises(ModelError, match=message):
            nbviz.gradient(model, x, "4")
        with pytest.raises(ModelError, match=message):
            nbviz.guided_backprop(model, x, target=1)
        with pytest.raises(ModelError, match=r"^no gradient flows from the class scores to layer '4'"):
            nbviz.grad_cam(model, x, "4")
        view = nbviz.explore(model, x, "4")
        view.finish()
    assert "as quantised layers do" in view.header.error
    assert len(view.grid.pixels()[0]) == 6
    view.close()


@pytest.mark.parametrize("call", [nbviz.load, nbviz.layers, nbviz.gradient, nbviz.explore])
def test_an_exported_program(call, net):
    program = torch.export.export(net, (X,))
    for model, what in (
        (program, "the model is exported"),
        (program.module(), "the model is exported"),
        (nn.Sequential(program.module()), "its module '0' is exported"),
    ):
        with pytest.raises(TypeError, match=rf"^{what} \(torch.export\), which hides its layers; give the one it was"):
            call(model, X)


# Several inputs, and outputs that are more than scores


class Several(nn.Module):
    """Takes the pictures in the middle, a bias and a scale; the network's own names are kept."""

    def __init__(self, net):
        super().__init__()
        self.features, self.head = net.features, net.head

    def forward(self, bias, pictures, *, scale=2.0):
        return self.head((self.features(pictures) + bias).mean((2, 3))) * scale


FEEDS = {
    "keywords": lambda pictures: {"bias": torch.zeros(6, 1, 1), "pictures": pictures, "scale": 1.0},
    "one by one": lambda pictures: {"bias": 0, "pictures": torch.stack([*pictures]), "scale": 1.0},
}


@pytest.mark.parametrize("feed", FEEDS)
def test_a_model_of_several_inputs(feed, net, expected, seen, snapshot):
    model, feed = Several(net), FEEDS[feed]
    with snapshot(model):
        same(answers(model, X, inputs=feed), expected)
        assert explored(model, X, inputs=feed)[:2] == seen[:2]
        assert len(nbviz.layers(model, X, inputs=feed)) == len(nbviz.layers(net, X))


def test_a_tuple_of_inputs_and_a_list_as_one(net, expected):
    class Pair(Network):
        def forward(self, x, weight):
            return super().forward(x) * weight

    class Listed(Network):
        def forward(self, pictures):
            assert isinstance(pictures, list)
            return super().forward(torch.stack(pictures))

    same(answers(as_a(Pair)(net), X, inputs=lambda x: (x, 1.0)), expected)
    same(answers(as_a(Listed)(net), X, inputs=list), expected)


@dataclass
class Scores:
    logits: torch.Tensor
    hidden: torch.Tensor


OUTPUTS = {
    "a tuple": (lambda y, x: (x, y), 1),
    "a tuple, from its end": (lambda y, x: (x, y), -1),
    "a dict": (lambda y, x: {"aux": x, "out": y}, "out"),
    "an object": (Scores, "logits"),
    "a function of it": (
        lambda y, x: {"out": y[:, :, None, None].expand(-1, -1, 3, 3)},
        lambda o: o["out"].mean((2, 3)),
    ),
}


@pytest.mark.parametrize("how", few(OUTPUTS, 1, 2, 3, 4))
def test_where_the_scores_are(how, net, expected, seen, snapshot):
    pack, pick = OUTPUTS[how]

    class Packed(Network):
        def forward(self, x):
            return pack(super().forward(x), x)

    model = as_a(Packed)(net)
    with snapshot(model):
        found = nbviz.reconstruct(model, X, target=[1, 4], output=pick)
        same(
            {f"class {rule}": maps for rule, maps in found.items()}, {k: v for k, v in expected.items() if "class" in k}
        )
        same({"cam": nbviz.grad_cam(model, X, LAYER, [1, 4], raw=True, output=pick)}, {"cam": expected["cam"]})
        assert explored(model, X, output=pick)[-1] == seen[-1]


def test_where_the_scores_are_not(net):
    class Packed(Network):
        def forward(self, x):
            return {"aux": x, "out": super().forward(x)}

    model = as_a(Packed)(net)
    for pick, error, message in (
        (
            None,
            TypeError,
            r"^the model gives a dict; expected class scores \(N, classes\): say with output= where they",
        ),
        ("ou", ValueError, "^no output 'ou'; did you mean 'out'"),
        ("aux", ValueError, r"^the model gives \(\d, 3, 24, 20\); expected class scores"),
        (1.5, TypeError, "^output is float; expected a key"),
        (lambda o: o["none"], ModelError, "^output= failed on the model's dict: KeyError: 'none'"),
    ):
        with pytest.raises(error, match=message):
            nbviz.guided_backprop(model, X, target=1, output=pick)
        with pytest.raises(error, match=message):
            nbviz.grad_cam(model, X, target=1, output=pick)
        if pick is not None:
            with pytest.raises(error, match=message):
                nbviz.explore(model, X, output=pick)
    with pytest.raises(TypeError, match="^inputs is Tensor; expected a callable from the pictures"):
        nbviz.feature_maps(net, X, LAYER, inputs=X)
    with pytest.raises(ModelError, match=r"^inputs= failed on pictures of shape \(2, 3, 24, 20\): ZeroDivision"):
        nbviz.layers(net, X, inputs=lambda x: 1 / 0)
    with pytest.raises(ValueError, match="^no output 0: the model gives a Tensor, which has no entries"):
        nbviz.gradient(net, X, output=0)


def test_a_detector(snapshot):
    """Takes a list of pictures, resizes them, and gives a list of dicts."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3).eval()
    x = torch.rand(1, 3, 64, 96)
    with snapshot(model):
        maps = nbviz.guided_backprop(model, x, "backbone.body.4", [0, 3], inputs=list)
    assert maps.shape == (1, 2, 3, 64, 96)
    assert F.normalize(maps.flatten(2), dim=2).isfinite().all()
    assert float(maps.abs().max()) > 0


def test_what_inputs_makes_of_each_picture_stays_with_it(net):
    """In the widgets too, which ask for one picture at a time."""

    class Masked(Network):
        def forward(self, x, mask):
            return super().forward(x * mask)

    model, mask = as_a(Masked)(net), torch.rand(2, 1, 24, 20).round()
    for feed in (lambda x: (x, mask), lambda x: (x, mask[: len(x)])):
        maps = nbviz.feature_maps(model, X, LAYER, inputs=feed)
        back = nbviz.guided_backprop(model, X, LAYER, [4], inputs=feed)
        view = nbviz.explore(model, X, LAYER, 4, inputs=feed)
        for picture in (1, 0):
            view.picture = picture
            view.finish()
            assert view.header.error == ""
            assert torch.equal(view.session.maps(picture, LAYER), maps[picture])
            found, _ = view.session.reconstructions(picture, LAYER, [4], "guided", "max")
            assert torch.equal(found, back[picture])
            expected = model(X, mask)[picture].softmax(0).topk(5).values.tolist()
            assert [p for _, p in view.strip.predictions] == pytest.approx(expected, rel=1e-5)
        view.close()


def test_a_batch_normalised_by_itself_is_so_in_the_widgets(net):
    net.features[1] = nn.BatchNorm2d(8, track_running_stats=False)
    maps = nbviz.feature_maps(net, X, LAYER)
    view = nbviz.FeatureMaps(net, X, LAYER, picture=1)
    assert torch.equal(view.session.maps(1, LAYER), maps[1])
    view.close()


def test_the_reason_of_a_failed_backward_pass_is_given(net):
    def fail(*_):
        raise KeyError("boom")

    net.features[4].register_full_backward_hook(fail)
    with pytest.raises(ModelError, match="boom"):
        nbviz.grad_cam(net, X, "features.0", 1)
    with pytest.raises(TypeError, match="^target is a set, which has no order"):
        nbviz.grad_cam(net, X, LAYER, {1, 2})
