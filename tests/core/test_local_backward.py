"""The backward pass where the signal is: equal to the full pass, in every kind of network and at every border."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nbviz
from nbviz.core import local_backward as local
from nbviz.core.backward import RULES, pull
from nbviz.core.local_backward import pull_local
from nbviz.core.regions import Start
from nbviz.core.trace import run
from tests.rounds import few, rounds


@pytest.fixture
def always(monkeypatch):
    """Also where the full pass would be as quick."""
    monkeypatch.setattr(local, "_WORTH_IT", 2.0)


def compare(model, inputs, layer, places, rule):
    """Both passes from the same positions: (picture, channel, row, column) each."""
    trace = run(model, inputs, [layer], grad=True)
    activation = trace.activations[layer]
    starts = [Start(*place[:2], place[2:], value=1.0 + i) for i, place in enumerate(places)]
    seeds = activation.new_zeros(len(starts), *activation.shape)
    for i, s in enumerate(starts):
        seeds[(i, s.picture, s.channel, *s.position)] = s.value
    full, met = pull(rule, activation, seeds.detach(), trace.inputs)
    mine = pull_local(rule, activation, starts, trace.inputs)
    assert mine is not None, "not local"
    expected = torch.stack([full[i, s.picture] for i, s in enumerate(starts)])
    scale = expected.abs().max().clamp(min=1e-30)
    assert float((mine[0] - expected).abs().max() / scale) < 1e-5
    assert mine[1] == met


def corners(shape, pictures=1):
    """The four corners and the middle of a layer's maps, in some channels of each picture."""
    _, c, h, w = shape
    places = [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1), (h // 2, w // 2)]
    return [(n, (7 * i + n) % c, *place) for n in range(pictures) for i, place in enumerate(places)]


NETWORKS = [
    ("alexnet", "features.12", 96),
    ("resnet18", "layer2", 64),
    ("densenet121", "features.denseblock2.denselayer3", 96),
    ("googlenet", "inception4a", 96),
    ("mobilenet_v2", "features.7", 96),
    ("regnet_x_400mf", "trunk_output.block2", 96),
    ("vgg16", "features.16", 64),
    ("inception_v3", "Mixed_5c", 107),
    ("mnasnet1_0", "layers.9", 96),
    ("resnext50_32x4d", "layer1", 96),
]


#: With each network one rule, with each rule two networks
TRIED = [0, 4, 8, 9, 13, 17]


@pytest.mark.parametrize(
    ("name", "layer", "size", "rule"), few([(*network, rule) for network in NETWORKS for rule in RULES], *TRIED)
)
def test_it_equals_the_full_pass(name, layer, size, rule, always):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    inputs = torch.randn(2, 3, size, size + 13)
    shape = run(model, inputs, [layer]).activations[layer].shape
    compare(model, inputs, layer, corners(shape, 2), rule)


PADDED = ["blocks.1.0.conv_pw", "blocks.2.1.conv_pw", "blocks.3.0.conv_dw"]


@pytest.mark.parametrize(("layer", "rule"), few([(layer, rule) for layer in PADDED for rule in RULES], 0, 4, 8))
def test_padding_as_an_operation_of_its_own(layer, rule, always):
    torch.manual_seed(0)
    model, inputs = timm.create_model("tf_efficientnet_lite0").eval(), torch.randn(2, 3, 96, 109)
    shape = run(model, inputs, [layer]).activations[layer].shape
    compare(model, inputs, layer, corners(shape, 2), rule)


def test_padding_of_channels_is_left_to_the_full_pass(always):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0), nn.Identity())
    trace = run(model, torch.randn(1, 3, 12, 12), ["2"], grad=True)
    assert pull_local("gradient", trace.activations["2"], [Start(0, 0, (2, 2), 1.0)], trace.inputs) is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "kind", [nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Softplus, nn.Mish]
)
def test_every_activation_of_the_table(kind, in_place, rule, always):
    if in_place and kind in (nn.GELU, nn.Softplus):
        pytest.skip("there is none")
    options = {"inplace": True} if in_place else {}
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), kind(**options), nn.Conv2d(4, 4, 3, padding=1)).eval()
    inputs = 3 * torch.randn(1, 1, 12, 14)
    compare(net, inputs, "3", corners((1, 4, 10, 12)), rule)


class Random(nn.Module):
    """A chain of random steps, some with a way around them."""

    def __init__(self, steps, width=4):
        super().__init__()
        modules = []
        for kind, kernel, stride, padding, dilation, around in steps:
            if kind == "conv":
                step = nn.Conv2d(width, width, kernel, stride, padding, dilation)
            elif kind == "depthwise":
                step = nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=width)
            elif kind == "pad":  # to the left more than to the right; with dilation 2, a border cut off
                step = nn.ConstantPad2d((padding, kernel - 1, 1 - dilation, padding), 0.5)
            elif kind == "max":
                step = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), dilation)
            else:
                step = nn.AvgPool2d(kernel, stride, min(padding, kernel // 2))
            modules.append(nn.Sequential(step, nn.ReLU()))
            step.around = around if stride == 1 and kind != "pad" else 0
        self.steps = nn.ModuleList(modules)
        self.last = nn.Identity()

    def forward(self, x):
        for step in self.steps:
            y = step(x)
            if y.shape[2:] == x.shape[2:] and step[0].around:
                y = y + x if step[0].around == 1 else torch.cat([y, x], 1)[:, : x.shape[1]] + x
            x = y
        return self.last(x)


STEP = st.tuples(
    st.sampled_from(["conv", "depthwise", "pad", "max", "mean"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([0, 1]),
)


SIDE = st.integers(9, 33)


@settings(max_examples=rounds(30, 40), deadline=None)
@given(st.lists(STEP, min_size=1, max_size=5), st.tuples(SIDE, SIDE), st.sampled_from(RULES), st.data())
def test_it_equals_the_full_pass_on_random_networks(steps, size, rule, data):
    torch.manual_seed(0)
    model = Random(steps)
    inputs = torch.randn(2, 4, *size)
    try:
        seen = run(model, inputs, [*(f"steps.{i}.0" for i in range(len(steps))), "last"]).activations
    except RuntimeError:  # a step that leaves nothing of the picture
        return
    if not all(one.isfinite().all() for one in seen.values()):  # a window of padding alone: the full pass, see below
        return
    shape = seen["last"].shape
    place = st.tuples(
        st.integers(0, 1), st.integers(0, shape[1] - 1), st.integers(0, shape[2] - 1), st.integers(0, shape[3] - 1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_WORTH_IT", 2.0)
        compare(model, inputs, "last", data.draw(st.lists(place, min_size=1, max_size=5)), rule)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2)),
        torchvision.ops.SqueezeExcitation(3, 2),
    ],
    ids=lambda layer: type(list(layer.children())[-1]).__name__,
)
def test_what_is_not_local_is_left_to_the_full_pass(layer, always):
    model = nn.Sequential(layer, nn.Identity())
    trace = run(model, torch.randn(1, 3, 12, 12), ["1"], grad=True)
    assert pull_local("gradient", trace.activations["1"], [Start(0, 0, (2, 2), 1.0)], trace.inputs) is None


class Parted(nn.Module):
    """The channels in another order."""

    def forward(self, x):
        first, rest = x.split([2, 4], 1)
        return torch.cat([rest, first], 1)


def test_parts_of_a_split_tensor_are_left_to_the_full_pass(always, strongest, by_hand, close):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Parted(), nn.Conv2d(6, 3, 3)).eval()
    inputs = torch.randn(1, 3, 12, 12)
    trace = run(model, inputs, ["2"], grad=True)
    assert pull_local("gradient", trace.activations["2"], [Start(0, 0, (2, 2), 1.0)], trace.inputs) is None
    maps = nbviz.gradient(model, inputs, "2", 0)[:, 0]
    close(maps, by_hand(model, inputs, "2", "gradient", strongest(0))[0])


def test_a_field_as_large_as_the_picture_is_left_to_the_full_pass():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(6)))
    trace = run(model, torch.randn(1, 3, 12, 12), ["5"], grad=True)
    assert pull_local("gradient", trace.activations["5"], [Start(0, 0, (6, 6), 1.0)], trace.inputs) is None


def vgg16():
    """Its convolutions, without the classifier's 120 million weights."""
    return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])


def test_work_follows_the_field_and_not_the_picture():
    """Numbers touched on the way down, for a small picture and one of sixteen times its area."""
    model = vgg16()[:10]
    touched = []
    for size in (64, 256):
        trace = run(model, torch.randn(1, 3, size, size), ["9"], grad=True)
        start = [Start(0, 0, (size // 8, size // 8), 1.0)]
        walk = local._Walk("deconvnet", trace.activations["9"], start, trace.inputs)
        with torch.no_grad():
            walk.run(local._order(trace.activations["9"], trace.inputs))
        touched.append(walk.touched)
    assert touched[0] == touched[1]


def test_many_starts_in_many_batches(monkeypatch):
    monkeypatch.setattr(local, "_MOST_AT_ONCE", 3)
    model = vgg16()[:5]
    places = [(0, i, i % 16, (3 * i) % 16) for i in range(8)]
    compare(model, torch.randn(1, 3, 32, 32), "4", places, "guided")


def test_it_keeps_no_graph_and_changes_no_mode():
    model = vgg16()[:5]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            trace = run(model, torch.randn(1, 3, 32, 32), ["4"], grad=True)
            maps, _ = pull_local("guided", trace.activations["4"], [Start(0, 0, (5, 5), 1.0)], trace.inputs)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert not maps.requires_grad
        assert maps.grad_fn is None


def test_a_window_that_sees_nothing_but_padding_is_left_to_the_full_pass():
    """It has no switch, and where torch then sends the signal is torch's affair."""
    x = torch.rand(1, 1, 1, 1, requires_grad=True)
    y = nn.functional.max_pool2d(x * 1, 2, stride=1, padding=1, dilation=2).relu()
    assert pull_local("deconvnet", y, [Start(0, 0, (0, 0), 1.0)], x) is None
    wide = torch.rand(1, 1, 8, 8, requires_grad=True)
    y = nn.functional.max_pool2d(wide * 1, 2, stride=1, padding=1, dilation=2)
    local.pull_local("deconvnet", y, [Start(0, 0, (0, 0), 1.0)], wide)
