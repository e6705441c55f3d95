"""Layers: named, in the order in which they run, once for each call."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbviz
from nbviz.core.backward import pull
from nbviz.core.errors import ModelError
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.trace import run


class Network(nn.Module):
    """Registered in another order than called, with reuse, a part left out, a tuple and a container."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.unused = nn.Conv2d(9, 9, 1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), self.relu)
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.twin = self.first

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.second(x)
        x, _ = self.pool(x)
        return self.head(F.relu(x).mean((2, 3)))


@pytest.fixture
def net():
    return Network().train()


PICTURE = torch.rand(1, 3, 13, 15, generator=torch.Generator().manual_seed(1))


def test_layers_come_in_the_order_in_which_they_finish(net):
    found, _ = trace_layers(net, PICTURE)
    assert [layer.name for layer in found] == ["first", "relu", "second.0", "relu:1", "second", "head"]


def test_every_listed_name_can_be_traced_and_has_the_shape_said(net):
    found, output = trace_layers(net, PICTURE)
    trace = run(net, PICTURE, [layer.name for layer in found], output=True)
    for layer in found:
        assert layer.shape == tuple(trace.activations[layer.name].shape[1:])
    assert torch.equal(output, trace.output)


def test_a_layer_says_what_it_is(net):
    found = {layer.name: layer for layer in trace_layers(net, PICTURE)[0]}
    assert found["second.0"].type == "Conv2d"
    assert found["second.0"].shape == (4, 6, 7)
    assert found["second.0"].receptive_field == (7, 7)
    assert found["second.0"].stride == (2, 2)
    assert found["second.0"].leaf
    assert not found["second"].leaf
    assert found["second.0"].has_maps
    assert not found["head"].has_maps
    assert (found["head"].field, found["head"].stride, found["head"].receptive_field) == (None, None, None)
    assert str(found["second.0"]) == "second.0 · Conv2d · 4×6×7 · sees 7×7 px, step 2"
    assert str(found["head"]) == "head · Linear · 3 · sees the whole picture"


def test_what_gives_no_tensor_is_left_out(net):
    assert not any(layer.name.startswith("pool") for layer in trace_layers(net, PICTURE)[0])


def test_what_does_not_run_is_left_out(net):
    assert not any(layer.name == "unused" for layer in trace_layers(net, PICTURE)[0])


def test_maps_with_channels_last_are_listed_with_channels_first():
    class Last(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    found, _ = trace_layers(nn.Sequential(nn.Conv2d(3, 5, 3), Last()), PICTURE)
    assert [layer.has_maps for layer in found] == [True, True]
    assert found[1].shape == found[0].shape == (5, 11, 13)
    assert found[1].field == found[0].field
    assert found[1].layout.order == (0, 3, 1, 2)


def test_unequal_steps_are_written_out():
    found, _ = trace_layers(nn.Sequential(nn.Conv2d(3, 1, (3, 1), stride=(2, 1))), PICTURE)
    assert found[0].sees == "sees 3×1 px, step 2×1"


def test_the_list_prints_as_a_table(net):
    found, _ = trace_layers(net, PICTURE)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["layer", "type", "output", "rectified", "by"]
    assert lines[1].split() == ["first", "Conv2d", "4×6×7", "sees", "3×3", "px,", "step", "2"]
    assert len(lines) == 1 + len(found)
    assert isinstance(found[0], Layer)


class Mixed(nn.Module):
    """Activations of many kinds and spellings, some on one way only, one that is no rectifier, a view in place."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(9))
        self.prelu = nn.PReLU()
        self.side = nn.Identity()
        self.ends = nn.ModuleList(nn.Identity() for _ in range(6))

    def forward(self, x):
        c, end = iter(self.convs), iter(self.ends)
        x = next(end)(F.hardtanh(next(c)(x)))
        side = self.side(F.gelu(next(c)(x)))
        x = next(end)(F.selu(next(c)(x), inplace=True))
        x = next(end)(next(c)(x).clamp(0, 6))
        x = next(c)(x)
        F.silu(x[:, :2], inplace=True)
        x = next(end)(x)
        x = next(end)(self.prelu(next(c)(x)).clamp(min=0))
        return next(end)(F.hardswish(next(c)(x + side)))


def test_the_activations_on_the_way_are_those_that_the_rules_meet():
    net = Mixed().eval()
    found = {layer.name: set(layer.rectifiers) for layer in trace_layers(net, PICTURE)[0]}
    for name in ("side", *(f"ends.{i}" for i in range(6))):
        trace = run(net, PICTURE, [name], grad=True)
        activation = trace.activations[name]
        assert found[name] == pull("guided", activation, torch.ones(1, *activation.shape), trace.inputs)[1]
    assert found["side"] == {"GELU"}
    assert found["ends.5"] == {"GELU", "ELU", "ReLU6", "SiLU", "PReLU", "ReLU", "Hardswish"}


def test_the_table_says_where_a_rule_extends_its_paper():
    found, _ = trace_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.SiLU()), PICTURE)
    lines = repr(found).splitlines()
    assert "ReLU, SiLU*" in lines[3]
    assert lines[4] == "* An extension of the papers of deconvnet and guided backprop: see nbviz.reconstruct."
    assert "*" not in repr(type(found)(found[:2]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_nothing_is_left_behind(net, mode, snapshot):
    with mode(), snapshot(net):
        trace_layers(net, PICTURE)


def test_the_picture_is_left_alone():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    x = PICTURE.clone()
    trace_layers(nn.Sequential(InPlace(), nn.ReLU(True)), x)
    assert torch.equal(x, PICTURE)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(net, error, snapshot):
    def fail(*_):
        raise error("on purpose")

    net.second.register_forward_hook(fail)
    with snapshot(net), pytest.raises(ModelError if error is ValueError else error, match="on purpose"):
        trace_layers(net, PICTURE)


def test_hooks_of_the_person_run_and_stay(net, snapshot):
    seen = []
    net.second.register_forward_hook(lambda *_: seen.append("second"))
    with snapshot(net):
        trace_layers(net, PICTURE)
    assert seen == ["second"]


def test_one_forward_pass_is_enough(net):
    seen = []
    net.register_forward_pre_hook(lambda *_: seen.append(1))
    trace_layers(net, PICTURE)
    assert seen == [1]


def test_layers_of_a_half_precision_model():
    found, _ = trace_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16), PICTURE.bfloat16())
    assert [layer.receptive_field for layer in found] == [(3, 3), (3, 3)]


class Windows(nn.Module):
    """The quarters of each picture as pictures of their own; it goes on with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.quarters, self.whole = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        rows = torch.cat(x.chunk(2, 2))
        return self.whole(self.quarters(torch.cat(rows.chunk(2, 3)))[: len(x)])


@pytest.mark.parametrize("pictures", [1, 2])
def test_maps_of_windows_are_no_maps_of_the_pictures(pictures):
    net, x = Windows(), torch.rand(pictures, 3, 8, 8)
    found = {layer.name: layer for layer in trace_layers(net, x)[0]}
    assert (found["quarters"].pictures, found["quarters"].has_maps) == (False, False)
    assert (found["whole"].pictures, found["whole"].has_maps) == (True, True)
    message = rf"^layer 'quarters' gives {4 * pictures} maps for {pictures} picture\(s\), as for windows, crops or regi"
    with pytest.raises(ValueError, match=message):
        nbviz.feature_maps(net, x, "quarters")
    assert list(nbviz.FeatureMaps(net, x).session.layers) == ["whole"]


class Seen(nn.Module):
    """With weights of one, so that a position's gradient is above zero wherever it looks."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self.steps = nn.Sequential(*steps)
        for parameter in self.steps.parameters():
            nn.init.ones_(parameter)

    def forward(self, x):
        return self.steps(x)


@pytest.mark.parametrize(
    ("steps", "sides"),
    [
        ([nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.Conv2d(1, 1, 3, padding=1)], (29, 34)),
        ([nn.Conv2d(1, 1, (5, 3), stride=(3, 1), dilation=(1, 2), padding=(4, 1))], (17, 11)),
        ([nn.Conv2d(1, 1, (3, 7), padding=(1, 3))], (9, 7)),  # across, as wide as the picture
        ([nn.Conv2d(1, 1, (3, 9), padding=(1, 4))], (9, 7)),  # and wider
        ([nn.Conv1d(1, 1, 4, stride=2, padding=3), nn.AvgPool1d(2)], (31,)),
    ],
)
def test_a_patch_is_what_a_position_sees_by_its_gradient(steps, sides):
    net, x = Seen(*steps), torch.ones(1, 1, *sides, requires_grad=True)
    layer = trace_layers(net, x)[0][-1]
    maps, exact = net(x)[0, 0], 0
    for position in np.ndindex(*maps.shape):
        corner, size = layer.patch(position, sides)
        assert size == tuple(map(min, layer.receptive_field, sides))
        looks = torch.autograd.grad(maps[position], x, retain_graph=True)[0][0, 0].nonzero()
        low, high = looks.amin(0).tolist(), (looks.amax(0) + 1).tolist()
        for first, last, start, length, side in zip(low, high, corner, size, sides, strict=True):
            assert start <= first < last <= start + length
            inside = start >= 0 and start + length <= side
            assert not inside or length == side or (first, last) == (start, start + length)
            assert length < side or start == 0
            exact += inside
    assert exact


def test_the_patch_of_what_sees_everything_is_the_whole_picture():
    found = trace_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), PICTURE)[0]
    assert found[-1].field is None
    assert found[-1].patch((), (13, 15)) == ((0, 0), (13, 15))
