"""The backward rules, against rectifiers whose backward pass is written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nbviz.core.backward import RULES, BackwardRule, clamped_at, pull
from nbviz.core.errors import ModelError

# Every way to write a rectifier, and whether a rule should meet it. The input is never a leaf.
SPELLED = {
    "nn.ReLU": (nn.ReLU(), True),
    "nn.ReLU, in place": (nn.ReLU(inplace=True), True),
    "F.relu": (F.relu, True),
    "F.relu, in place": (lambda z: F.relu(z, inplace=True), True),
    "F.relu_": (F.relu_, True),
    "torch.relu": (torch.relu, True),
    "torch.relu_": (torch.relu_, True),
    "Tensor.relu": (lambda z: z.relu(), True),
    "Tensor.relu_": (lambda z: z.relu_(), True),
    "nn.ReLU6": (nn.ReLU6(), True),
    "nn.ReLU6, in place": (nn.ReLU6(inplace=True), True),
    "F.relu6": (F.relu6, True),
    "F.hardtanh from 0": (lambda z: F.hardtanh(z, 0.0, 6.0), True),
    "F.hardtanh_ from 0": (lambda z: F.hardtanh_(z, 0.0, 1.0), True),
    "nn.Hardtanh from 0": (nn.Hardtanh(0, 6), True),
    "F.threshold": (lambda z: F.threshold(z, 0, 0), True),
    "F.threshold, elsewhere": (lambda z: F.threshold(z, 0.5, -2.0), True),
    "F.threshold_": (lambda z: F.threshold_(z, 0, 0), True),
    "nn.Threshold": (nn.Threshold(0.0, 0.0), True),
    "torch.clamp": (lambda z: torch.clamp(z, 0), True),
    "torch.clamp to 6": (lambda z: torch.clamp(z, min=0, max=6), True),
    "torch.clamp_min": (lambda z: torch.clamp_min(z, 0.0), True),
    "torch.clip": (lambda z: torch.clip(z, min=0), True),
    "torch.clamp from a tensor": (lambda z: torch.clamp(z, min=torch.zeros((), dtype=z.dtype, device=z.device)), True),
    "torch.clamp_min from a tensor of each": (lambda z: torch.clamp_min(z, torch.zeros_like(z)), True),
    "torch.clamp from a tensor above 0": (lambda z: torch.clamp(z, min=torch.arange(9, device=z.device)), False),
    "Tensor.clamp": (lambda z: z.clamp(min=0.0), True),
    "Tensor.clamp_": (lambda z: z.clamp_(min=0), True),
    "Tensor.clamp_min_": (lambda z: z.clamp_min_(0), True),
    "clamp from -1": (lambda z: z.clamp(-1, 1), False),
    "clamp up to 0": (lambda z: z.clamp(max=0), False),
    "F.hardtanh from -1": (F.hardtanh, False),
    "nn.Sigmoid": (nn.Sigmoid(), False),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), False),
    "nn.Tanh": (nn.Tanh(), False),
    "nn.Softmax": (nn.Softmax(1), False),
}


@pytest.fixture
def z(device, dtype):
    """Both signs, both sides of 6, and exactly 0."""
    values = torch.tensor([-8.0, -1.0, -0.25, 0.0, 0.25, 1.0, 5.0, 6.0, 8.0], device=device, dtype=dtype)
    return values.repeat(4, 1).requires_grad_()


@pytest.fixture
def signals(device, dtype):
    return torch.randn(3, 4, 9, device=device, dtype=dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLED)
def test_each_spelling_follows_the_rule(spelling, rule, z, signals, by_hand):
    rectify, met = SPELLED[spelling]
    if "clamp" in spelling or "clip" in spelling:  # a clamp passes the signal at its ends, too
        z = (z.detach() + 0.125).requires_grad_()
    maps, met_here = pull(rule, rectify(z.clone()), signals, z)
    model = nn.Sequential(rectify if isinstance(rectify, nn.Module) else Function(rectify))
    for k in range(3):
        expected, calls = by_hand(model, z, None, rule, lambda _, k=k: signals[k])
        assert torch.equal(maps[k], expected)
        assert bool(met_here) == bool(calls) == met


#: Activations beyond the papers' ReLU, in all spellings, with the name that is reported.
EXTENSIONS = {
    "nn.LeakyReLU": (nn.LeakyReLU(0.1), "LeakyReLU"),
    "F.leaky_relu_": (lambda z: F.leaky_relu_(z, 0.1), "LeakyReLU"),
    "nn.PReLU": (nn.PReLU(init=0.2), "PReLU"),
    "nn.PReLU, frozen": (nn.PReLU(init=0.2).requires_grad_(requires_grad=False), "PReLU"),
    "nn.PReLU of channels": (nn.PReLU(4), "PReLU"),
    "nn.RReLU": (nn.RReLU().eval(), "RReLU"),
    "nn.RReLU, in place": (nn.RReLU(inplace=True).eval(), "RReLU"),
    "nn.ELU": (nn.ELU(1.5), "ELU"),
    "F.elu_": (lambda z: F.elu_(z, 1.5), "ELU"),
    "nn.CELU": (nn.CELU(0.7), "ELU"),
    "nn.SELU": (nn.SELU(), "ELU"),
    "nn.SELU, in place": (nn.SELU(inplace=True), "ELU"),
    "nn.SiLU": (nn.SiLU(), "SiLU"),
    "nn.SiLU, in place": (nn.SiLU(inplace=True), "SiLU"),
    "nn.GELU": (nn.GELU(), "GELU"),
    "F.gelu of tanh": (lambda z: F.gelu(z, approximate="tanh"), "GELU"),
    "nn.Hardswish": (nn.Hardswish(), "Hardswish"),
    "nn.Hardswish, in place": (nn.Hardswish(inplace=True), "Hardswish"),
    "nn.Softplus": (nn.Softplus(2.0), "Softplus"),
    "nn.Mish": (nn.Mish(), "Mish"),
    "nn.Mish, in place": (nn.Mish(inplace=True), "Mish"),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("spelling", EXTENSIONS)
def test_other_activations_weigh_the_signal_by_their_slope(spelling, count, device):
    """The slope is measured, by finite differences."""
    activate, name = EXTENSIONS[spelling]
    activate = activate.to(device, torch.float64) if isinstance(activate, nn.Module) else activate
    z = torch.tensor([-8.0, -2.5, -1.5, -0.9, -0.3, 0.2, 0.8, 1.7, 5.0, 8.0], device=device, dtype=torch.float64)
    z = z.repeat(1, 4, 1).requires_grad_()
    signals = torch.randn(count, 1, 4, 10, device=device, dtype=torch.float64)
    with torch.no_grad():
        slope = (activate(z + 1e-6) - activate(z - 1e-6)) / 2e-6
    expected = {"gradient": signals * slope, "deconvnet": signals.relu(), "guided": signals.relu() * slope}
    for rule in RULES:
        maps, met = pull(rule, activate(z.clone()), signals, z)
        torch.testing.assert_close(maps, expected[rule], rtol=1e-6, atol=1e-8)
        assert met == {name}


def test_the_rules_are_those_of_the_papers(z):
    """Springenberg et al. 2015, figure 1, in numbers."""
    z = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    signal = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    assert pull("gradient", z.relu(), signal, z)[0].tolist() == [[2, 0, -2, 0]]
    assert pull("deconvnet", z.relu(), signal, z)[0].tolist() == [[2, 2, 0, 0]]
    assert pull("guided", z.relu(), signal, z)[0].tolist() == [[2, 0, 0, 0]]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Spelled(nn.Module):
    """A network in which one rectifier follows another, each spelled in its own way, with a branch and a skip."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(11))
        self.relu = nn.ReLU()
        self.in_place = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6(inplace=True)
        self.last = nn.Identity()

    def forward(self, x):
        c = iter(self.convs)
        x = self.relu(next(c)(x))
        x = self.relu(next(c)(x))  # the same module again
        x = self.in_place(next(c)(x))
        z = next(c)(x)
        x = z + F.relu(next(c)(F.relu(z)))  # a rectifier's input goes around it
        x = self.relu(x) + self.relu(next(c)(x))  # one module on two branches
        x = torch.relu(next(c)(x))
        x = next(c)(x)
        x.relu_()  # what it returns is not used
        x = F.max_pool2d(x, 3, 2)
        x = F.threshold(next(c)(x), 0, 0)
        x = F.hardtanh(next(c)(x), 0.0, 6.0)
        x = self.relu6(next(c)(x))
        return self.last(x)


@pytest.mark.parametrize("rule", RULES)
def test_a_network_of_all_spellings_follows_the_rule(rule, device, by_hand, close):
    net = Spelled().to(device, torch.float64)
    for conv in net.convs:
        nn.init.kaiming_normal_(conv.weight)
    x = torch.randn(2, 3, 16, 16, device=device, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    output = net(leaf.clone())
    signals = torch.randn(5, *output.shape, device=device, dtype=torch.float64)
    maps, met = pull(rule, output, signals, leaf)
    for k in range(5):
        expected, calls = by_hand(net, x, None, rule, lambda _, k=k: signals[k])
        close(maps[k], expected)
    assert met
    assert calls == 12


def test_rules_do_not_stay_on_a_clamp_and_it_may_be_behind_other_rectifiers(by_hand, close):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Function(lambda z: z.clamp(min=0)), nn.Conv2d(4, 4, 3), nn.ReLU())
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    output = net(x.clone())
    signals = torch.randn(2, *output.shape)
    for rule in (*RULES, *reversed(RULES)):
        maps, _ = pull(rule, output, signals, x)
        for k in range(2):
            expected, calls = by_hand(net, x, None, rule, lambda _, k=k: signals[k])
            assert calls == 2
            close(maps[k], expected)


def test_the_rules_differ_on_that_network(device):
    net = Spelled().to(device)
    x = torch.randn(1, 3, 16, 16, device=device, requires_grad=True)
    output = net(x.clone())
    maps = [pull(rule, output, torch.ones_like(output)[None], x)[0] for rule in RULES]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(maps[i], maps[j])


def test_the_gradient_rule_is_the_gradient(device):
    net = Spelled().to(device)
    x = torch.randn(1, 3, 16, 16, device=device, requires_grad=True)
    output = net(x.clone())
    (expected,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert torch.equal(pull("gradient", output, torch.ones_like(output)[None], x)[0][0], expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.InstanceNorm2d(6)])
def test_normalisation_below_tokens(norm, last, pictures, count, device, dtype):
    """Torch's own kernel is wrong on the CPU where the signal has channels last and is of one picture."""
    norm = norm.eval().to(device, dtype)
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(pictures, 6, 4, 5, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    x.requires_grad_()
    y = norm(x).flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    signals = torch.randn(count, *y.shape, device=device, dtype=dtype)
    by_pixels = signals.transpose(2, 3).reshape(count, *x.shape)
    if isinstance(norm, nn.BatchNorm2d):
        expected = by_pixels / torch.sqrt(norm.running_var + norm.eps).view(-1, 1, 1)
    else:
        centred = (x - x.mean((2, 3), keepdim=True)).detach()
        deviation = torch.sqrt(centred.square().mean((2, 3), keepdim=True) + norm.eps)
        z = centred / deviation
        along = by_pixels.mean((-2, -1), keepdim=True) + z * (by_pixels * z).mean((-2, -1), keepdim=True)
        expected = (by_pixels - along) / deviation
    torch.testing.assert_close(pull("gradient", y, signals, x)[0], expected)


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("return_indices", [False, True])
def test_overwriting_is_max_unpool(pool, return_indices, device, dtype):
    x = torch.randn(2, 3, 11, 13, device=device, dtype=dtype, requires_grad=True)
    pooled, switches = F.max_pool2d(x, pool, 2, return_indices=True)
    start = pooled if return_indices else F.max_pool2d(x, pool, 2)
    signals = torch.randn(4, *pooled.shape, device=device, dtype=dtype)
    maps, _ = pull("gradient", start, signals, x, unpool="overwrite")
    for k in range(4):
        assert torch.equal(maps[k], F.max_unpool2d(signals[k], switches, pool, 2, output_size=(11, 13)))


def test_summing_and_overwriting_differ_only_where_windows_overlap():
    x = torch.randn(1, 2, 12, 12, requires_grad=True)
    for pool, same in ((2, True), (3, False)):
        start = F.max_pool2d(x, pool, 2)
        a, b = (pull("deconvnet", start, torch.ones_like(start)[None], x, unpool=u)[0] for u in ("sum", "overwrite"))
        assert torch.equal(a, b) is same


def test_many_signals_at_once_equal_one_at_a_time(device):
    net = Spelled().to(device)
    x = torch.randn(1, 3, 16, 16, device=device, requires_grad=True)
    output = net(x.clone())
    signals = torch.randn(7, *output.shape, device=device)
    for rule in RULES:
        for unpool in ("sum", "overwrite"):
            together, met = pull(rule, output, signals, x, unpool)
            for k in range(7):
                alone, met_alone = pull(rule, output, signals[k : k + 1], x, unpool)
                torch.testing.assert_close(together[k : k + 1], alone)
                assert met == met_alone


def test_no_signal_at_all_gives_zeros():
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    output = Spelled()(x.clone())
    assert not pull("guided", output, torch.zeros_like(output)[None], x)[0].any()


def test_the_graph_outlives_a_pull_and_results_have_none():
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    output = Spelled()(x.clone())
    seed = torch.ones_like(output)[None]
    first, _ = pull("guided", output, seed, x)
    second, _ = pull("guided", output, seed, x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_tensor_that_does_not_depend_on_the_picture_is_an_error(count):
    x = torch.randn(3, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)
    with pytest.raises(ModelError, match="does not depend on it"):
        pull("gradient", weight * 2, torch.ones(count, 3), x)
    with pytest.raises(ModelError, match="detaches or rounds"):
        pull("gradient", (x * 2).detach(), torch.ones(count, 3), x)


def test_unknown_names_are_errors_with_the_nearest():
    with pytest.raises(ValueError, match=r"no rule 'deconv'; did you mean 'deconvnet'\? Accepted: gradient"):
        BackwardRule("deconv")
    with pytest.raises(ValueError, match=r"no unpooling 'overwrit'; did you mean 'overwrite'\?"):
        BackwardRule("guided", "overwrit")


def test_a_clamps_upper_end_is_found_below_copies_and_pooling() -> None:
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    pool = torch.nn.functional.max_pool2d
    found = {
        6.0: [torch.nn.functional.relu6(x), pool(torch.nn.functional.relu6(x), 2).clone(), x.clamp(0, 6)],
        0.5: [torch.nn.functional.hardtanh(x, 0, 0.5), x.clamp(torch.tensor(0.0), torch.tensor(0.5))],
        None: [x, x.detach(), x.relu(), x.clamp(min=0), x.clamp(max=1), x.clamp(-1, 1), 2 * x.clamp(0, 1)],
    }
    for end, tensors in found.items():
        assert [clamped_at(tensor) for tensor in tensors] == [end] * len(tensors)
