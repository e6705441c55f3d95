"""All rules from one forward pass: seeds, channels, classes, batches, and nothing left behind."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

import nbviz
from nbviz.core.backward import RULES
from nbviz.errors import ModelError, NoRectifierWarning, NoSwitchWarning
from nbviz.methods.reconstruct import SEEDS, seeds
from nbviz.methods.reconstruct import strongest as starts_at
from tests.rounds import few

METHODS = {"gradient": nbviz.gradient, "deconvnet": nbviz.deconvnet, "guided": nbviz.guided_backprop}


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


# What comes out


BY_HAND = itertools.product([torch.float32, torch.float64], RULES, SEEDS)


@pytest.mark.parametrize(("dtype", "rule", "seed"), few(BY_HAND, 0, 4, 8, 10, 14, 15), ids=str)
def test_a_channels_reconstruction_is_that_by_hand(rule, seed, vgg_like, x, dtype, by_hand, strongest, close):
    net, x = vgg_like.to(dtype), x.to(dtype)
    for layer, channel in (("3", 2), ("9", 5), ("11", 0)):
        maps = METHODS[rule](net, x, layer, channel, seed=seed)[:, 0]
        close(maps, by_hand(net, x, layer, rule, strongest(channel, seed))[0])


@pytest.mark.parametrize("rule", RULES)
def test_one_method_for_each_rule_gives_what_reconstruct_gives(rule, vgg_like, x):
    together = nbviz.reconstruct(vgg_like, x, "7", [1, 2])
    assert list(together) == list(RULES)
    assert torch.equal(METHODS[rule](vgg_like, x, "7", [1, 2]), together[rule])
    together = nbviz.reconstruct(vgg_like, x, target=[1, 4])
    assert torch.equal(METHODS[rule](vgg_like, x, target=[1, 4]), together[rule])


def test_all_rules_come_from_one_forward_pass(vgg_like, x):
    passes = []
    vgg_like.register_forward_pre_hook(lambda *_: passes.append(1))
    nbviz.reconstruct(vgg_like, x, "7", range(12))
    nbviz.reconstruct(vgg_like, x, target=1)
    assert passes == [1, 1]


def test_only_the_rules_asked_for_come(vgg_like, x):
    assert list(nbviz.reconstruct(vgg_like, x, "7", 0, rules=["guided", "gradient"])) == ["guided", "gradient"]
    assert list(nbviz.reconstruct(vgg_like, x, "7", 0, rules="guided")) == ["guided"]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (None, list(range(12))),
        (3, [3]),
        ([3, 0, 3], [3, 0, 3]),
        ((11,), [11]),
        (range(2, 5), [2, 3, 4]),
        (torch.tensor([1, 0]), [1, 0]),
        (torch.tensor(5), [5]),
    ],
)
def test_channels_come_in_the_order_asked(channels, expected, vgg_like, x):
    everything = nbviz.guided_backprop(vgg_like, x, "7")
    assert everything.shape == (2, 12, 3, 32, 32)
    maps = nbviz.guided_backprop(vgg_like, x, "7", channels)
    torch.testing.assert_close(maps, everything[:, expected])


def test_no_channels_give_nothing_and_no_warning(vgg_like, x):
    assert nbviz.deconvnet(vgg_like, x, "7", []).shape == (2, 0, 3, 32, 32)


def test_each_picture_of_a_batch_is_as_if_alone(vgg_like, x, close):
    """The strongest position, the predicted class and the switches are each picture's own."""
    for options in ({"layer": "9", "channels": [0, 1]}, {}):
        together = nbviz.reconstruct(vgg_like, x, **options)
        for n in range(2):
            alone = nbviz.reconstruct(vgg_like, x[n : n + 1], **options)
            for rule in RULES:
                close(together[rule][n : n + 1], alone[rule])


def test_results_are_in_the_models_dtype_and_on_its_device(vgg_like, device):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        net = vgg_like.to(device, dtype)
        for maps in (
            nbviz.guided_backprop(net, torch.rand(3, 32, 32), "7", 0),
            nbviz.deconvnet(net, torch.rand(3, 32, 32)),
        ):
            assert (maps.dtype, maps.device.type) == (dtype, device.type)
            assert not maps.requires_grad
            assert maps.isfinite().all()


def test_a_grey_model_gives_grey_maps():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    assert nbviz.deconvnet(net, torch.rand(1, 8, 8), "1").shape == (1, 4, 1, 8, 8)
    assert nbviz.deconvnet(net, torch.rand(1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("target", [None, 3, [3], [3, 0], torch.tensor([3, 0])])
def test_a_class_for_all_or_for_each(target, vgg_like, x, by_hand, close):
    logits = vgg_like(x).detach()
    chosen = logits.argmax(1) if target is None else torch.as_tensor(target).expand(2)
    for rule in RULES:
        expected, _ = by_hand(vgg_like, x, None, rule, lambda output: F.one_hot(chosen, output.shape[1]).float())
        close(METHODS[rule](vgg_like, x, target=target), expected)


def test_seeds_are_zero_but_where_the_paper_says():
    activation = torch.randn(2, 4, 3, 5)
    places = activation[:, 2].flatten(1).argmax(1)
    for seed in SEEDS:
        starts = None if seed == "map" else starts_at(activation, [2], seed)
        (signal,) = seeds(activation, [2], starts)
        assert signal.shape == activation.shape
        assert not signal[:, [0, 1, 3]].any()
        if seed == "map":
            assert torch.equal(signal[:, 2], activation[:, 2])
        else:
            for n in range(2):
                expected = torch.zeros(15)
                expected[places[n]] = 1 if seed == "unit" else activation[n, 2].max()
                assert torch.equal(signal[n, 2].flatten(), expected)


def test_a_second_call_of_a_module_can_be_reconstructed(close):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return F.relu(self.conv(F.relu(self.conv(x))))

    net, x = Twice(), torch.randn(1, 3, 8, 8)
    unrolled = nn.Sequential(net.conv, nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    unrolled[2].load_state_dict(net.conv.state_dict())
    assert torch.equal(nbviz.guided_backprop(net, x, "conv:1"), nbviz.guided_backprop(unrolled, x, "2"))


# Rectifiers


def test_a_network_without_rectifiers_is_said_to_be_one(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    net(x)
    expected = nbviz.gradient(net, x, "2")  # which never warns
    for rule, method in (("deconvnet", nbviz.deconvnet), ("guided", nbviz.guided_backprop)):
        message = f"the {rule} rule met no rectifier .* equal the plain gradient here"
        for options in ({"layer": "2"}, {"target": 1}):
            with pytest.warns(NoRectifierWarning, match=message) as caught:
                maps = method(net, x, **options)
            assert [warning.filename for warning in caught] == [__file__]
        assert torch.equal(method_quietly(method, net, x, "2"), expected)
        assert maps.shape == x.shape
    with pytest.warns(NoRectifierWarning) as caught:
        nbviz.reconstruct(net, x, "2", 0)
    assert [warning.filename for warning in caught] == [__file__] * 2


def method_quietly(method, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoRectifierWarning)
        return method(*arguments)


def test_the_first_convolution_has_no_rectifier_below_it(vgg_like, x):
    with pytest.warns(NoRectifierWarning):
        nbviz.guided_backprop(vgg_like, x, "0", 0)


@pytest.mark.filterwarnings("error")
def test_a_network_with_rectifiers_gets_no_warning(vgg_like, x):
    nbviz.reconstruct(vgg_like, x, "7", 0)
    nbviz.reconstruct(vgg_like, x)


# Switches


def strided(*more):
    """No max-pooling: strided convolutions with rectifiers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), *more, nn.Conv2d(6, 6, 3, stride=2), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    ).eval()


def test_a_deconvnet_without_max_pooling_is_said_to_be_the_same_for_every_picture(x):
    net = strided()
    for options in ({"layer": "3"}, {"target": 1}):
        with pytest.warns(NoSwitchWarning, match="no max-pooling") as caught:
            maps = nbviz.deconvnet(net, x, **options)
        assert [warning.filename for warning in caught] == [__file__]
        with pytest.warns(NoSwitchWarning):
            nbviz.reconstruct(net, x, **options)
    assert torch.equal(maps[0], maps[1])  # as the warning says: a class starts from a one


class HandWritten(nn.Module):
    def forward(self, x):
        return x * (x > 0)


class Gate(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "more",
    [nn.MaxPool2d(2, 1), nn.AdaptiveMaxPool2d(8), HandWritten(), Gate(), nn.Hardtanh(), nn.Tanh(), nn.GroupNorm(2, 6)],
    ids=lambda module: type(module).__name__,
)
def test_a_way_that_depends_on_the_picture_gets_no_warning(more, x):
    net = strided(more)
    maps = nbviz.deconvnet(net, x, target=1)
    assert not torch.allclose(maps[0], maps[1])
    nbviz.deconvnet(net, x, "4")


@pytest.mark.filterwarnings("error")
def test_gradient_and_guided_backprop_depend_on_the_picture_without_switches(x):
    net = strided()
    for method in (nbviz.gradient, nbviz.guided_backprop):
        maps = method(net, x, target=1)
        assert not torch.allclose(maps[0], maps[1])


def test_constants_and_parameters_as_factors_are_no_switches(x):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma, self.mean = nn.Parameter(torch.ones(3, 1, 1)), torch.ones(3, 1, 1)

        def forward(self, x):
            return 2 * ((x - self.mean) / self.mean) * self.gamma

    with pytest.warns(NoSwitchWarning):
        nbviz.deconvnet(nn.Sequential(Scaled(), *strided()), x, "3", 0)


# What is left behind: nothing


@pytest.fixture
def mixed():
    """In train mode, partly frozen, with hooks of the person's and statistics that a train-mode pass would change."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )
    net[0].requires_grad_(False)
    net[1].eval()
    net[5].weight.grad = torch.ones_like(net[5].weight)
    return net


CALLS = {
    "layers": nbviz.layers,
    "feature_maps": lambda net, x: nbviz.feature_maps(net, x, "5"),
    "gradient": lambda net, x: nbviz.gradient(net, x, "5"),
    "deconvnet": lambda net, x: nbviz.deconvnet(net, x, "5", seed="map", unpool="overwrite"),
    "guided_backprop": nbviz.guided_backprop,
    "reconstruct": lambda net, x: nbviz.reconstruct(net, x, "5"),
    "reconstruct a class": lambda net, x: nbviz.reconstruct(net, x, target=2),
    "load": nbviz.load,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_the_model_as_it_was(call, mixed, x, snapshot):
    seen = []
    mixed[0].register_forward_hook(lambda *_: seen.append("forward"))
    mixed[1].register_forward_pre_hook(lambda *_: seen.append("pre"))
    before = x.clone()
    with snapshot(mixed):
        CALLS[call](mixed, x)
    assert torch.equal(x, before)
    assert x.grad is None
    assert call == "load" or set(seen) == {"forward", "pre"}


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"load"}))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_fails_leaves_the_model_as_it_was(call, error, mixed, x, snapshot):
    def fail(*_):
        mixed[1].running_mean.add_(1)
        torch.rand(1)
        raise error("on purpose")

    mixed[4].register_forward_hook(fail)
    expected = ModelError if error is ValueError else KeyboardInterrupt
    with snapshot(mixed), pytest.raises(expected, match="on purpose"):
        CALLS[call](mixed, x)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_backward_pass_that_fails_leaves_the_model_as_it_was(error, mixed, x, snapshot):
    def fail(*_):
        raise error("on purpose")

    mixed[4].register_full_backward_hook(fail)
    expected = ModelError if error is ValueError else KeyboardInterrupt
    for call in ("gradient", "guided_backprop", "reconstruct a class"):
        with snapshot(mixed), pytest.raises(expected, match="on purpose"):
            CALLS[call](mixed, x)


MODES = [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]


@pytest.mark.parametrize(("call", "mode"), few(itertools.product(CALLS, MODES), *range(0, 24, 2)))
def test_the_persons_modes_do_no_harm(call, mode, mixed, x, snapshot):
    with mode(), snapshot(mixed):
        result = CALLS[call](mixed, x)
    if call in ("gradient", "guided_backprop"):
        tolerance = 0.1 if mode not in (torch.no_grad, torch.inference_mode) else 1e-6
        torch.testing.assert_close(result, CALLS[call](mixed, x), rtol=tolerance, atol=tolerance)


def test_pictures_made_in_inference_mode_are_welcome(mixed):
    with torch.inference_mode():
        x = torch.rand(1, 3, 32, 32)
    for call in CALLS.values():
        call(mixed, x)


def test_hooks_on_the_backward_pass_run_and_stay(vgg_like, x, snapshot):
    seen = []
    vgg_like[2].register_full_backward_hook(lambda *_: seen.append("module"))
    with snapshot(vgg_like):
        nbviz.gradient(vgg_like, x, "7", [0, 1])
    assert seen == ["module"]


class Checkpointed(nn.Module):
    """Runs its middle again in the backward pass, as memory-efficient networks do."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.middle = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 3))
        self.last = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = checkpoint(self.middle, self.stem(x), use_reentrant=False) if self.saves else self.middle(self.stem(x))
        return self.head(self.last(x).mean((2, 3)))


@pytest.mark.parametrize("options", [{"layer": "last"}, {"layer": "middle.3"}, {"target": 1}])
def test_what_a_checkpoint_runs_again_is_in_eval_mode_too(options, x, snapshot, close):
    net = Checkpointed().train()
    net.saves = False
    expected = nbviz.reconstruct(net, x, **options)
    net.saves = True
    with snapshot(net):
        maps = nbviz.reconstruct(net, x, **options)
    for rule in RULES:
        close(maps[rule], expected[rule])


def test_a_memory_efficient_densenet(snapshot, close):
    plain = models.DenseNet(4, (2, 2), 8, num_classes=3)
    saving = models.DenseNet(4, (2, 2), 8, num_classes=3, memory_efficient=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with snapshot(saving):
        maps = nbviz.guided_backprop(saving.train(), x, "features.norm5", [0, 3])
    close(maps, nbviz.guided_backprop(plain, x, "features.norm5", [0, 3]))


# What cannot be reconstructed


def test_a_layer_that_no_gradient_leaves_is_an_error(snapshot):
    class Detached(nn.Module):
        def __init__(self, way):
            super().__init__()
            self.conv, self.way = nn.Conv2d(3, 3, 1), way

        def forward(self, x):
            return self.conv(self.way(x))

    x = torch.rand(1, 3, 4, 4)
    for way in (torch.Tensor.detach, torch.round, torch.ones_like):
        net = Detached(way)
        if way is torch.round:  # its gradient is zero, but there
            assert not nbviz.gradient(net, x, "conv").any()
            continue
        with snapshot(net), pytest.raises(ModelError, match="no gradient reaches the picture"):
            nbviz.gradient(net, x, "conv")
        with snapshot(net.requires_grad_(False)), pytest.raises(ModelError, match="no gradient reaches"):
            nbviz.gradient(net, x, "conv")
