"""Bad arguments: the right type, what was given, what is accepted, before any backward work."""

import re
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import nbviz
from nbviz.core.checks import check_indices
from nbviz.errors import ModelError, PictureError
from nbviz.methods import reconstruct

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

METHODS = {
    "feature_maps": nbviz.feature_maps,
    "gradient": nbviz.gradient,
    "deconvnet": nbviz.deconvnet,
    "guided_backprop": nbviz.guided_backprop,
    "reconstruct": nbviz.reconstruct,
}
method_names = pytest.mark.parametrize("name", METHODS)
reconstructions = pytest.mark.parametrize("name", list(METHODS)[1:])


@pytest.fixture
def net(vgg_like, monkeypatch):
    """No backward pass may start."""

    def begun(*_, **__):
        pytest.fail("the backward pass has begun")

    monkeypatch.setattr(reconstruct, "project", begun)
    monkeypatch.setattr(reconstruct, "pull", begun)
    return vgg_like


@pytest.fixture
def never_run(net):
    """Nor a forward pass."""
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    return net


def refused(error, message, model, call, snapshot):
    """The call raises just this error, and leaves no mark."""
    if isinstance(model, nn.Module):
        with snapshot(model), pytest.raises(error, match=message) as raised:
            call()
    else:
        with pytest.raises(error, match=message) as raised:
            call()
    assert raised.type is error
    return str(raised.value)


@method_names
def test_an_unknown_layer(name, never_run, snapshot):
    message = r"^no layer '99'; did you mean '9'\? Accepted: 0, 1, 2, .*\(18 in all\)$"
    refused(ValueError, message, never_run, lambda: METHODS[name](never_run, X, "99"), snapshot)


@method_names
@pytest.mark.parametrize("layer", [3, ["3"], b"3"])
def test_a_layer_that_is_no_name(name, layer, never_run, snapshot):
    message = f"^layer is {type(layer).__name__}; expected a module's name, such as 'features.16'$"
    refused(TypeError, message, never_run, lambda: METHODS[name](never_run, X, layer), snapshot)


@pytest.mark.parametrize("layer", ["13", "14", "17"])
def test_a_layer_without_maps(layer, net, snapshot):
    """A reconstruction takes them for maps of a single position."""
    message = (
        rf"^layer '{layer}' gives \(1, \d+\); expected feature maps \(N, C, H, W\) \(nbviz.layers lists the shapes\)$"
    )
    refused(ValueError, message, net, lambda: nbviz.feature_maps(net, X, layer), snapshot)


@method_names
@pytest.mark.parametrize("channel", [12, -1, [0, 12], 10**30, np.int64(12), torch.tensor([3, 99])])
def test_a_channel_out_of_range(name, channel, net, snapshot):
    message = r"^no channel (12|-1|10+|99): there are 12, numbered 0 to 11$"
    refused(ValueError, message, net, lambda: METHODS[name](net, X, "7", channel), snapshot)


@method_names
@pytest.mark.parametrize("channel", ["3", 1.0, [0, 2.5], [None], [[0]], True, [True, False], np.array([True] * 12)])
def test_a_channel_that_is_no_number(name, channel, net, snapshot):
    message = "^channel: got .*; expected a whole number or a list of them$"
    refused(TypeError, re.compile(message, re.DOTALL), net, lambda: METHODS[name](net, X, "7", channel), snapshot)


@reconstructions
@pytest.mark.parametrize("target", [10, -1, [99]])
def test_a_class_out_of_range(name, target, net, snapshot):
    message = r"^no class (10|-1|99): there are 10, numbered 0 to 9$"
    refused(ValueError, message, net, lambda: METHODS[name](net, X, target=target), snapshot)


@reconstructions
def test_a_class_that_is_no_number(name, net, snapshot):
    message = "^class: got 'cat'; expected a whole number or a list of them$"
    refused(TypeError, message, net, lambda: METHODS[name](net, X, target="cat"), snapshot)


@reconstructions
def test_a_wrong_number_of_classes(name, net, snapshot):
    message = r"^target has 2 classes for 1 picture\(s\); expected one, or one for each picture$"
    refused(ValueError, message, net, lambda: METHODS[name](net, X, target=[1, 2]), snapshot)


@reconstructions
def test_what_belongs_together(name, never_run, snapshot):
    call = METHODS[name]
    refused(
        ValueError, "^target .* goes with layer=None", never_run, lambda: call(never_run, X, "7", target=1), snapshot
    )
    refused(ValueError, "^channels belong to a layer", never_run, lambda: call(never_run, X, channels=1), snapshot)


@reconstructions
def test_an_unknown_seed(name, never_run, snapshot):
    message = r"^no seed 'maximum'; did you mean 'max'\? Accepted: max, map, unit$"
    refused(ValueError, message, never_run, lambda: METHODS[name](never_run, X, "7", seed="maximum"), snapshot)


@pytest.mark.parametrize("rules", ["guidd", ["gradient", "guidd"]])
def test_an_unknown_rule(rules, never_run, snapshot):
    message = r"^no rule 'guidd'; did you mean 'guided'\? Accepted: gradient, deconvnet, guided$"
    refused(ValueError, message, never_run, lambda: nbviz.reconstruct(never_run, X, "7", rules=rules), snapshot)


# The model


@method_names
@pytest.mark.parametrize("model", [None, "vgg16", nn.ReLU, lambda x: x, {"model": nn.ReLU()}])
def test_what_is_no_model(name, model, snapshot):
    message = f"^model is {type(model).__name__}; expected a torch.nn.Module$"
    refused(TypeError, message, model, lambda: METHODS[name](model, X, "7"), snapshot)
    refused(TypeError, message, model, lambda: nbviz.layers(model, X), snapshot)
    refused(TypeError, message, model, lambda: nbviz.load(model, X), snapshot)


@method_names
def test_a_scripted_model(name, vgg_like, snapshot):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        model = torch.jit.script(vgg_like)
    message = r"^the model is scripted \(torch.jit\), which hides its layers; give the one it was made from$"
    refused(TypeError, message, None, lambda: METHODS[name](model, X, "7"), snapshot)
    refused(TypeError, message, None, lambda: nbviz.layers(model, X), snapshot)


@method_names
def test_a_model_that_fails(name, net, snapshot):
    net[5] = nn.Conv2d(99, 12, 3)
    given = r"an input of shape \(1, 3, 32, 32\), float32, cpu"
    message = rf"^Sequential failed in its forward pass on {given}: RuntimeError: .*99"
    refused(ModelError, message, net, lambda: METHODS[name](net, X, "7"), snapshot)
    refused(ModelError, message, net, lambda: nbviz.layers(net, X), snapshot)


@reconstructions
@pytest.mark.parametrize(
    ("output", "error", "what"),
    [
        (lambda x: (x, x), TypeError, "a tuple"),
        (lambda x: {"out": x}, TypeError, "a dict"),
        (lambda x: x, ValueError, r"\(1, 3, 32, 32\)"),
        (lambda x: x.mean(), ValueError, r"\(\)"),
        (lambda x: x[:, :0].flatten(1), ValueError, r"\(1, 0\)"),
    ],
)
def test_a_model_without_class_scores(name, output, error, what, snapshot):
    class Model(nn.Module):
        def forward(self, x):
            return output(x)

    model = Model()
    message = rf"^the model gives {what}; expected class scores \(N, classes\): say with output= .*, or name a layer$"
    refused(error, message, model, lambda: METHODS[name](model, X), snapshot)


# Pictures


@method_names
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_wrong_number_of_channels(name, count, net, snapshot):
    message = (
        rf"^the input has {count} channel\(s\), the model's first convolution '0' takes 3; "
        rf"expected \(1, 3, 32, 32\), got \(1, {count}, 32, 32\)$"
    )
    x = torch.rand(1, count, 32, 32)
    refused(PictureError, message, net, lambda: METHODS[name](net, x, "7"), snapshot)
    refused(PictureError, message, net, lambda: nbviz.layers(net, x), snapshot)


@method_names
@pytest.mark.parametrize("shape", [(), (32,), (32, 32), (1, 1, 3, 32, 32), (0, 3, 32, 32), (3, 0, 32)])
def test_a_wrong_number_of_dimensions(name, shape, never_run, snapshot):
    message = rf"^a tensor of shape {re.escape(str(shape))} is no picture; expected \(C, H, W\) or \(N, C, H, W\)$"
    x = torch.rand(shape)
    refused(PictureError, message, never_run, lambda: METHODS[name](never_run, x, "7"), snapshot)


@method_names
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_with_values_that_are_not_finite(name, value, never_run, snapshot):
    x = X.repeat(2, 1, 1, 1)
    x[1, 2, 3, 4] = value
    message = r"^picture 2 has values that are not finite \(NaN or infinity\); expected finite ones$"
    refused(PictureError, message, never_run, lambda: METHODS[name](never_run, x, "7"), snapshot)


@method_names
def test_a_path_that_is_not_there(name, never_run, tmp_path, snapshot):
    path = tmp_path / "cat.png"
    with (
        snapshot(never_run),
        pytest.raises(PictureError, match="^there is no file '.*cat.png'$") as raised,
    ):
        METHODS[name](never_run, str(path), "7")
    assert isinstance(raised.value, FileNotFoundError)


@method_names
def test_a_file_that_is_no_picture(name, never_run, tmp_path, snapshot):
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    message = "^'.*notes.jpg' is no picture that can be read; expected PNG, JPEG or the like$"
    refused(PictureError, message, never_run, lambda: METHODS[name](never_run, path, "7"), snapshot)


@method_names
@pytest.mark.parametrize("images", [None, 3, {"a": 1}, b"cat.png", object()])
def test_what_is_no_picture(name, images, never_run, snapshot):
    message = (
        f"^images: got {type(images).__name__}; expected a path, a PIL picture, a NumPy array, a tensor, or a list"
    )
    refused(TypeError, message, never_run, lambda: METHODS[name](never_run, images, "7"), snapshot)


@method_names
def test_no_picture_at_all(name, never_run, snapshot):
    refused(
        PictureError,
        "^images is empty; expected",
        never_run,
        lambda: METHODS[name](never_run, [], "7"),
        snapshot,
    )


def test_the_errors_come_before_the_backward_pass(net):
    """The guard of this file is one that speaks."""
    for options in ({"layer": "7"}, {}):
        with pytest.raises(pytest.fail.Exception, match="the backward pass has begun"):
            nbviz.gradient(net, X, **options)


def test_indices_of_every_kind():
    for given in (3, np.int32(3), torch.tensor(3), [3], (3,), np.array([3]), torch.tensor([3]), {3}, range(3, 4)):
        assert check_indices("channel", given, 4) == [3]


@pytest.mark.parametrize("given", [range(10**12), (i for i in [0]), b"ab", {0: 1}, [torch.tensor([0, 1])], deque([0])])
def test_what_is_no_list_of_numbers_is_refused_at_once(given):
    with pytest.raises((TypeError, ValueError), match=r"^(channel: got|no channel 4: there are 4)"):
        check_indices("channel", given, 4)


@reconstructions
def test_complex_values_have_no_order_to_start_from(name):
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fft = nn.Conv2d(3, 2, 3), FFT()

        def forward(self, x):
            return self.fft(self.conv(x)).flatten(1)

    class FFT(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x)

    net = Spectrum()
    with pytest.raises(TypeError, match="^layer 'fft' gives torch.complex64 values, .*; expected a dense float"):
        METHODS[name](net, X, "fft")
    with pytest.raises(TypeError, match="^the model gives torch.complex64 values"):
        METHODS[name](net, X)
    assert nbviz.feature_maps(net, X, "fft").is_complex()


@reconstructions
def test_a_model_on_the_meta_device_has_no_values(name):
    with pytest.raises(TypeError, match="^the model's input is a .* meta tensor; expected a dense one with values"):
        METHODS[name](nn.Sequential(nn.Conv2d(3, 2, 3)).to("meta"), X, "0")


@method_names
@pytest.mark.parametrize("part", ["incomplete", "lazy"])
def test_a_model_that_is_not_complete(name, part):
    class Incomplete(nn.Module):
        def __init__(self):
            pass

    model = Incomplete() if part == "incomplete" else nn.Sequential(nn.LazyConv2d(2, 3))
    with pytest.raises(
        TypeError, match=r"an incomplete .*; expected one whose __init__ calls|'0' is lazy .*; expected a model that"
    ):
        METHODS[name](model, X, "0")
