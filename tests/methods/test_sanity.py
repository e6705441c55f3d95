"""Whether maps change with the weights: by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

import nbviz
from nbviz.errors import ModelError
from nbviz.methods.randomise import layers_with_weights, randomised_copies
from nbviz.methods.sanity import (
    METHODS,
    RandomisationResult,
    deletion_insertion,
    randomisation,
)
from tests.rounds import TIMES, few

X = torch.rand(2, 3, 10, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Dropout()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 6)),
    )


# Weights randomised


def by_hand(net, mode, seed):
    """Layers with weights from the top: of this network the linear layer, and then what was before."""
    changed = copy.deepcopy(net)
    for i, name in enumerate(["8", "3", "1", "0"]):
        if mode == "independent":
            changed = copy.deepcopy(net)
        torch.manual_seed(seed + i)
        changed.get_submodule(name).reset_parameters()
        yield name, changed


RANDOMISED = itertools.product(["gradient", "guided_backprop", "grad_cam"], [True, False], ["cascading", "independent"])


@pytest.mark.parametrize(("method", "absolute", "mode"), few(RANDOMISED, 0, 5, 6, 11))
def test_randomisation_by_hand(mode, absolute, method, tiny, snapshot):
    tiny[1].running_mean += 0.1
    tiny[1].weight.data *= 3
    with snapshot(tiny):
        found = randomisation(tiny, X, method, mode=mode, target=[1, 4], seed=5, absolute=absolute)
    apply = getattr(nbviz, method)
    before = apply(tiny, X, target=[1, 4]).numpy()
    assert found.layers == ("8", "3", "1", "0")
    assert found.rank.shape == found.ssim.shape == (4, 2)
    for i, (_, changed) in enumerate(by_hand(tiny, mode, 5)):
        after = apply(changed, X, target=[1, 4]).numpy()
        for n in range(2):
            a, b = (np.abs(maps[n]) if absolute else maps[n] for maps in (before, after))
            if a.any() and b.any():
                assert float(found.rank[i, n]) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-6)
            low = [(maps - maps.min()) / max(maps.max() - maps.min(), 1e-30) for maps in (a, b)]
            axis = None if a.ndim == 2 else 0
            expected = structural_similarity(*map(np.float64, low), data_range=1, channel_axis=axis)
            assert float(found.ssim[i, n]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_the_weights_are_new_and_the_model_is_as_it_was(mode, tiny, snapshot):
    with snapshot(tiny):
        order = layers_with_weights(tiny, X, None)
        found = [
            (name, copy.deepcopy(changed.state_dict())) for name, changed in randomised_copies(tiny, order, mode, 3)
        ]
    for (name, weights), (expected_name, expected) in zip(found, by_hand(tiny, mode, 3), strict=True):
        assert name == expected_name
        for key, other in expected.state_dict().items():
            assert torch.equal(weights[key], other), key


def test_guided_backprop_hardly_depends_on_what_was_learned():
    """Adebayo et al., on the bundled network: of signed maps 0.55 to 0.68 with five seeds, the gradient's below 0.02.

    Of absolute values both are low (0.1 and 0.05): what stays is which way the picture's edges go.
    """
    net, images = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:, None] / 255
    for seed in range(2 if TIMES else 1):
        x = images[seed * 20 : seed * 20 + 8]
        guided, plain = (
            float(randomisation(net, x, method, seed=seed, absolute=False).rank[-1].mean())
            for method in ("guided_backprop", "gradient")
        )
        assert guided > 0.4
        assert guided > plain + 0.3
        assert abs(plain) < 0.1


def test_a_method_of_ones_own_and_one_that_ignores_the_weights(tiny):
    given = []

    def edges(model, inputs, target):
        given.append((model is tiny, inputs, target))
        return inputs.sum(1)

    found = randomisation(tiny, X, edges)
    assert torch.equal(found.rank, torch.ones(4, 2, dtype=torch.float64))
    assert [same for same, _, _ in given] == [True, False, False, False, False]
    assert all(target == tiny.eval()(X).argmax(1).tolist() for _, _, target in given)
    assert found.method == "edges"
    lines = repr(found).splitlines()
    assert lines[0] == found.verdict
    assert lines[2:] == [f"  {name}: 1.000, 1.000" for name in ("8", "3", "1", "0")]


DOUBT = "it shows what is in the picture rather than what was learned"


@pytest.mark.parametrize(
    ("mode", "means", "verdict"),
    [
        (
            "cascading",
            [1, 1, 1, 1],
            f"it hardly changes with 4 of 4 layers randomised (rank correlation 1.00): {DOUBT}",
        ),
        (
            "cascading",
            [0.9, 0.6, 0.4, 0.8],
            f"it hardly changes with 2 of 4 layers randomised (rank correlation 0.60): {DOUBT}",
        ),
        (
            "cascading",
            [0.9, 0.4, 0.1, 0.8],
            "it changes with 2 of 4 layers randomised (rank correlation 0.40), as it should",
        ),
        (
            "cascading",
            [np.nan, 0.4, 0.1, 0],
            "it changes with 1 of 4 layers randomised (rank correlation 0.00), as it should",
        ),
        (
            "independent",
            [0.9, 0.5, 0.5, 0.5],
            f"it hardly changes with a layer randomised (mean rank correlation 0.60): {DOUBT}",
        ),
        (
            "independent",
            [0.9, 0, -0.1, 0],
            "it changes with a layer randomised (mean rank correlation 0.20), as it should",
        ),
    ],
)
def test_the_verdict(mode, means, verdict):
    rank = torch.tensor(means, dtype=torch.float64)[:, None].expand(4, 2)
    assert RandomisationResult("it", ("d", "c", "b", "a"), rank, rank, mode).verdict == verdict


@pytest.mark.parametrize("name", METHODS)
def test_each_method_can_be_given_by_name(name, snapshot):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6))
    with snapshot(net):
        found = randomisation(net, X[:1], name)
    assert found.method == name
    assert found.rank.shape == (2, 1)
    assert randomisation(net, X[:1], METHODS[name]).method == name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_are_left_as_they_were(mode, tiny, snapshot):
    expected = randomisation(tiny, X, "gradient")
    curves = deletion_insertion(tiny, X, torch.rand(2, 10, 9, generator=torch.Generator().manual_seed(0)))
    with mode(), snapshot(tiny):
        assert torch.equal(randomisation(tiny, X, "gradient").rank, expected.rank)
        maps = torch.rand(2, 10, 9, generator=torch.Generator().manual_seed(0))
        assert torch.equal(deletion_insertion(tiny, X, maps).deletion, curves.deletion)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_nothing_is_left_after_an_interruption(error, call, tiny, snapshot):
    calls = []

    def method(model, inputs, target):
        calls.append(1)
        if len(calls) == call:
            raise error
        return nbviz.gradient(model, inputs, target=target)

    said = r"^method= failed on pictures of shape \(2, 3, 10, 9\): ZeroDivisionError: "
    with snapshot(tiny), pytest.raises((KeyboardInterrupt, ModelError), match=f"^$|{said}"):
        randomisation(tiny, X, method)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"method": "gradcam"}, ValueError, "no method 'gradcam'; did you mean 'grad_cam'"),
        ({"method": 3}, (TypeError, ValueError), "method"),
        ({"mode": "all"}, ValueError, "no mode 'all'.* Accepted: cascading, independent"),
        ({"absolute": 1}, TypeError, "absolute is 1; expected True or False"),
        ({"seed": -1}, ValueError, "seed is -1; expected"),
        ({"target": 6}, ValueError, "no class 6"),
        (
            {"method": lambda model, inputs, target: inputs[:1]},
            ValueError,
            r"gives \(1, 3, 10, 9\); expected a map for each",
        ),
        ({"method": lambda model, inputs, target: 3}, TypeError, "gives is int; expected a tensor|gives"),
    ],
)
def test_errors_of_randomisation_say_what_is_accepted(given, error, message, tiny, snapshot):
    with snapshot(tiny), pytest.raises(error, match=message):
        randomisation(tiny, X, **given)


def test_a_model_without_weights_that_can_be_drawn():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x.mean((2, 3)) * self.weight

    with pytest.raises(ValueError, match="no layer of Scale has weights; expected convolutions or the like"):
        randomisation(Scale(), X, "gradient")


def test_nbvizs_own_functions_are_told_of_inputs_and_output(tiny):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny

        def forward(self, x, mask):
            return {"logits": self.net(x * mask), "other": None}

    options = {"inputs": lambda x: (x, torch.ones(9)), "output": "logits"}
    found = randomisation(Both().eval(), X, nbviz.cams.eigen_cam, **options)
    assert found.method == "eigen_cam"
    assert len(found.layers) == 4


def test_of_a_constant_map_nothing_is_said():
    found = randomisation(
        nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 3)), X, lambda *_, **__: torch.ones(2, 5, 5)
    )
    assert "is constant, so that nothing can be said of it" in found.verdict
