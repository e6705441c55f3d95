"""Integrated gradients, SmoothGrad and input times gradient: against Captum, and by loops."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

import nbviz
from nbviz.errors import ModelError
from nbviz.pictures.noise import noisy
from tests.rounds import TIMES, few

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NAMES = ["integrated_gradients", "smooth_grad", "input_x_gradient"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor 0 did not already require gradients:UserWarning",
    "ignore:picture .. after .* steps:UserWarning",
)


NETWORKS = ["fashion", "resnet18", "vgg_like"]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, pictures and a class for each."""
    torch.manual_seed(0)
    if request.param == "fashion":
        images, labels = nbviz.bundled.fashion_test()
        return nbviz.bundled.load("fashion"), images[:2, None] / 255, labels[:2].tolist()
    if request.param == "resnet18":
        return models.resnet18(num_classes=7).eval(), X, [3, 5]
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(1352, 6)).eval(), X, [3, 5]


def logits(net, x, target):
    with torch.no_grad():
        return net(x).gather(1, torch.tensor(target)[:, None])[:, 0]


def gradient(net, x, target):
    x = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(net(x).gather(1, torch.tensor(target)[:, None]).sum(), x)
    return found


@pytest.mark.parametrize(("case", "steps"), few(itertools.product(NETWORKS, [1, 7, 16]), 1, 3, 6, 8), indirect=["case"])
def test_integrated_gradients_are_captums(case, steps, close, snapshot):
    net, x, target = case
    with snapshot(net):
        found = nbviz.attribution.integrated_gradients(net, x, target, steps=steps)
    expected = IntegratedGradients(net).attribute(x, target=target, n_steps=steps, method="gausslegendre")
    close(found, expected.detach().float(), 1e-4)
    start = torch.full_like(x[:1], 0.3)
    found = nbviz.attribution.integrated_gradients(net, x, target, steps=steps, baseline=0.3)
    expected = IntegratedGradients(net).attribute(x, start, target=target, n_steps=steps, method="gausslegendre")
    close(found, expected.detach().float(), 1e-4)
    assert torch.equal(nbviz.attribution.integrated_gradients(net, x, target, steps=steps, baseline=start), found)


def test_what_the_pixels_are_given_sums_to_the_change_of_the_score(case):
    """Completeness, to 1%. Where a ReLU or a maximum changes over, the gradient jumps, and more steps are needed."""
    net, x, target = case
    if x.shape[1] == 1 and not TIMES:
        pytest.skip("long: the next test shows it of this network, with as many steps as are needed")
    few = isinstance(net, models.ResNet)
    steps = 16 if few else 64 if x.shape[1] == 3 else 512
    found = nbviz.attribution.integrated_gradients(net, x, target, steps=steps).sum((1, 2, 3))
    change = logits(net, x, target) - logits(net, torch.zeros_like(x), target)
    assert (change.abs() > 0.01).all()
    torch.testing.assert_close(found, change, rtol=0.01, atol=1e-5)
    start = x.flip(0)  # whose score may be nearly the same: to 1% of what is given and taken
    found = nbviz.attribution.integrated_gradients(net, x, target, baseline=start, steps=32 if few else 64)
    change = logits(net, x, target) - logits(net, start, target)
    assert ((found.sum((1, 2, 3)) - change).abs() < 0.01 * found.abs().sum((1, 2, 3))).all()


def test_each_picture_takes_as_many_steps_as_it_needs():
    net, (images, labels) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    some = [0, 1, 2, 3] if TIMES else [2, 3, 9]  # which need 128, 64 and 32
    x, target = images[some, None] / 255, labels[some].tolist()
    change = logits(net, x, target) - logits(net, torch.zeros_like(x), target)
    found = nbviz.attribution.integrated_gradients(net, x, target)
    torch.testing.assert_close(found.sum((1, 2, 3)), change, rtol=0.011, atol=0)
    for i in range(len(some)):
        tried = (
            nbviz.attribution.integrated_gradients(net, x[i], target[i], steps=count)
            for count in (32, 64, 128, 256, 512)
        )
        enough = next(one for one in tried if abs(float(one.sum() / change[i]) - 1) <= 0.01)
        torch.testing.assert_close(found[i : i + 1], enough, rtol=1e-3, atol=1e-5)


def test_where_no_number_of_steps_suffices_it_says_so():
    class Jumps(nn.Module):
        def forward(self, x):
            return x.flatten(1).round() + 0.1 * x.flatten(1)  # the gradient knows nothing of the rounding

    with pytest.warns(UserWarning, match=r"picture 0: after 512 steps the sum is 90\.9\d? % off the change"):
        found = nbviz.attribution.integrated_gradients(Jumps(), torch.ones(1, 1, 1, 1), 0)
    assert found.item() == pytest.approx(0.1, rel=1e-4)


class Kinks(nn.Module):
    """The score is max(x - 0.5, 0): the fewer the steps, the more the place of the kink is off."""

    def forward(self, x):
        return (x.flatten(1).mean(1, keepdim=True) - 0.5).relu()


def test_too_few_steps_of_ones_own_are_said_too():
    x = torch.tensor([0.4, 0.9, 0.7]).view(3, 1, 1, 1)
    with pytest.warns(UserWarning, match=r"picture 2: after 2 steps the sum is .* \(and of 1 more by less\)") as caught:
        nbviz.attribution.integrated_gradients(Kinks(), x, 0, steps=2)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nbviz.attribution.integrated_gradients(Kinks(), x, 0, steps=500)


def test_just_beyond_the_tolerance_does_not_read_as_the_tolerance():
    class Nearly(nn.Module):
        def forward(self, x):
            return x.flatten(1) + 0.010102 * x.flatten(1).round()  # 1.0001 % of the change has no gradient

    with pytest.warns(UserWarning, match=r"is 1\.01 % off"):
        nbviz.attribution.integrated_gradients(Nearly(), torch.ones(1, 1, 1, 1), 0)


def test_integrated_gradients_of_a_polynomial():
    """Gauss and Legendre's rule with n points is exact for degree 2n - 1: x³ needs two."""

    class Cubes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0], [-2.0]], dtype=torch.float64))

        def forward(self, x):
            return (x**3).flatten(1) @ self.weight

    x = torch.tensor([[[[3.0, 5.0]]]], dtype=torch.float64)
    found = nbviz.attribution.integrated_gradients(Cubes(), x, 0, steps=2, baseline=1.0)
    torch.testing.assert_close(found.flatten(), torch.tensor([27.0 - 1, -2 * (125.0 - 1)], dtype=torch.float64))


def test_a_baseline_for_each_picture(case, close):
    net, x, target = case
    start = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    found = nbviz.attribution.integrated_gradients(net, x, target, steps=4, baseline=start)
    for i in range(2):
        alone = nbviz.attribution.integrated_gradients(net, x[i : i + 1], target[i], steps=4, baseline=start[i : i + 1])
        close(found[i : i + 1], alone, 1e-4)
    plane = nbviz.attribution.integrated_gradients(net, x, target, steps=4, baseline=start[0, 0])
    assert torch.equal(plane, nbviz.attribution.integrated_gradients(net, x, target, steps=4, baseline=start[:1, :1]))


def test_smooth_grad_is_a_loop(case, close, snapshot):
    net, x, target = case
    with snapshot(net):
        found = nbviz.attribution.smooth_grad(net, x, target, samples=5, noise=0.2, seed=3)
    copies = noisy(x, 5, 0.2, 3, range(2))
    close(found, sum(gradient(net, copy, target) for copy in copies) / 5, 1e-4)
    plain = nbviz.attribution.smooth_grad(net, x, target, samples=2, noise=0)
    close(plain, gradient(net, x, target), 1e-4)


def test_smooth_grad_does_not_depend_on_the_other_pictures(case, close):
    net, x, target = case
    together = nbviz.attribution.smooth_grad(net, x, target, samples=3)
    close(nbviz.attribution.smooth_grad(net, x[:1], target[0], samples=3), together[:1], 1e-4)
    assert not torch.equal(nbviz.attribution.smooth_grad(net, x, target, samples=3, seed=1), together)


def test_input_x_gradient_is_captums(case, close, snapshot):
    net, x, target = case
    with snapshot(net):
        found = nbviz.attribution.input_x_gradient(net, x, target)
    close(found, InputXGradient(net).attribute(x, target=target).detach())
    close(found, x * gradient(net, x, target))


def test_input_x_gradient_sums_to_the_score_of_a_network_without_biases():
    """Which is homogeneous: f(tx) = t f(x)."""
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1800, 5, bias=False)
    net = nn.Sequential(*layers)
    found = nbviz.attribution.input_x_gradient(net, X, [1, 4])
    torch.testing.assert_close(found.sum((1, 2, 3)), logits(net, X, [1, 4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_is_that_of_the_picture_as_it_is(name, case):
    net, x, _ = case
    options = {} if name == "input_x_gradient" else {"samples": 2} if name == "smooth_grad" else {"steps": 2}
    predicted = net(x).argmax(1).tolist()
    assert torch.equal(
        getattr(nbviz.attribution, name)(net, x, **options),
        getattr(nbviz.attribution, name)(net, x, predicted, **options),
    )


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU()), nn.Linear(3136, 4)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False).flatten(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_any_mode_and_with_a_checkpoint(name, mode, snapshot):
    net = Checkpointed()
    plain = nn.Sequential(*net.body, nn.Flatten(), net.head)
    expected = getattr(nbviz.attribution, name)(plain, X, 1)
    net.train().requires_grad_(False)
    with mode(), snapshot(net):
        assert torch.equal(getattr(nbviz.attribution, name)(net, X, 1), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(name, dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(3136, 4))
    expected = getattr(nbviz.attribution, name)(net, X, 1)
    found = getattr(nbviz.attribution, name)(net.to(dtype), X.to(dtype), 1)
    assert found.dtype == dtype
    worst = float((found.float() - expected).abs().max() / expected.abs().max())
    assert worst < (1e-5 if dtype == torch.float64 else 0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 4, 5, 6)])
def test_signals_and_volumes(name, shape, close):
    conv = {3: nn.Conv1d, 5: nn.Conv3d}[len(shape)]
    x = torch.randn(shape)
    net = nn.Sequential(conv(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * x[0, 0].numel(), 5))
    options = {"steps": 64} if name == "integrated_gradients" else {}
    found = getattr(nbviz.attribution, name)(net, x, [1, 4], **options)
    if name == "input_x_gradient":
        expected = x * gradient(net, x, [1, 4])
    elif name == "smooth_grad":
        expected = sum(gradient(net, copy, [1, 4]) for copy in noisy(x, 16, 0.15, 0, range(2))) / 16
    else:
        places, weights = np.polynomial.legendre.leggauss(64)
        steps = [
            float(w) / 2 * gradient(net, (float(p) + 1) / 2 * x, [1, 4]) for p, w in zip(places, weights, strict=True)
        ]
        expected = x * sum(steps)
    close(found, expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_nothing_is_left_after_an_interruption(name, error, call, when, snapshot):
    calls = []

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(1)
            if when == "forward" and len(calls) == call:
                raise error
            return x.clone()

        @staticmethod
        def backward(ctx, signal):
            raise error

    class Breaking(nn.Module):
        def forward(self, x):
            return Breaks.apply(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Breaking(), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3))
    with snapshot(net), pytest.raises((KeyboardInterrupt, ModelError)):
        getattr(nbviz.attribution, name)(net, X, 1)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("integrated_gradients", {"steps": 0}, ValueError, "steps is 0; expected at least 1"),
        ("integrated_gradients", {"steps": 1.5}, TypeError, "steps is 1.5; expected a whole number"),
        ("integrated_gradients", {"baseline": "a"}, TypeError, "baseline is str; expected .* or a number"),
        ("integrated_gradients", {"baseline": None}, TypeError, "baseline is NoneType; expected .* or a number"),
        ("integrated_gradients", {"baseline": torch.tensor(torch.inf)}, ValueError, "baseline has values that are not"),
        ("integrated_gradients", {"baseline": torch.tensor(1j)}, TypeError, "baseline has torch.complex64 values"),
        ("integrated_gradients", {"baseline": torch.zeros(5)}, ValueError, r"baseline has shape \(5,\); expected one"),
        ("integrated_gradients", {"baseline": torch.zeros(3, 3, 32, 32)}, ValueError, r"baseline has shape \(3, 3, 32"),
        ("integrated_gradients", {"baseline": float("nan")}, ValueError, "baseline is nan; expected"),
        ("smooth_grad", {"samples": 0}, ValueError, "samples is 0; expected at least 1"),
        ("smooth_grad", {"noise": -0.1}, ValueError, "noise is -0.1; expected"),
        ("smooth_grad", {"seed": 2**63}, ValueError, "seed is 9223372036854775808; expected"),
        ("input_x_gradient", {"target": 9}, ValueError, "no class 9: there are 4"),
        ("input_x_gradient", {"inputs": 3}, TypeError, "inputs is int; expected a callable"),
    ],
)
def test_errors_say_what_is_accepted(name, given, error, message, snapshot):
    net = Checkpointed()
    with snapshot(net), pytest.raises(error, match=message):
        getattr(nbviz.attribution, name)(net, X, **{"target": 0, **given})
