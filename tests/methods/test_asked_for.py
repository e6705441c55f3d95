"""What people have asked occlusion and reconstructions for, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbviz
from tests.reference import by_hand as by_autograd
from tests.small import Small, pictures

RULES = {"gradient": nbviz.gradient, "deconvnet": nbviz.deconvnet, "guided": nbviz.guided_backprop}


@pytest.fixture
def net() -> nn.Module:
    return Small().eval()


def by_hand(net: nn.Module, x: Tensor, value: Any, top: int, left: int, size: int = 4) -> Tensor:
    """The scores with a square of a value."""
    covered = x.clone()
    covered[:, :, top : top + size, left : left + size] = value
    with torch.no_grad():
        return net(covered)


@pytest.mark.parametrize(
    ("fill", "value"),
    [
        (0, 0.0),
        (-1.5, -1.5),
        ([0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3])[:, None, None]),
        (torch.full((3, 16, 16), 0.7, dtype=torch.float64), 0.7),
        (torch.tensor(0.25), 0.25),
    ],
)
def test_a_fill_of_ones_own_and_the_score(net: nn.Module, fill: Any, value: Any) -> None:
    x = pictures()
    found = nbviz.occlusion(net, x, 1, patch=4, stride=4, fill=fill)
    assert found.score is not None
    for r, top in enumerate(found.tops):
        for s, left in enumerate(found.lefts):
            scores = by_hand(net, x, value, top, left)
            torch.testing.assert_close(found.score[:, r, s], scores[:, 1])
            torch.testing.assert_close(found.probability[:, r, s], scores.softmax(1)[:, 1])
    effect = nbviz.region_effect(net, x, (4, 0, 8, 4), keep=False, fill=fill)
    torch.testing.assert_close(effect.after, by_hand(net, x, value, 4, 0).softmax(1))


def test_a_picture_may_be_the_fill(net: nn.Module) -> None:
    x = pictures()
    other = x.flip(0)
    found = nbviz.occlusion(net, x, 0, patch=8, stride=8, fill=other)
    covered = x.clone()
    covered[:, :, :8, 8:] = other[:, :, :8, 8:]
    torch.testing.assert_close(found.probability[:, 0, 1], net(covered).softmax(1)[:, 0].detach())


@pytest.mark.parametrize(
    ("fill", "error", "message"),
    [
        ("black", ValueError, "no fill 'black'"),
        (True, TypeError, "fill is True; expected 'grey', 'mean', 'blur', a number"),
        (object(), TypeError, "fill is .*; expected 'grey'"),
        ([1.0, 2.0], ValueError, r"fill has shape \(2,\) for inputs \(3, 3, 16, 16\)"),
        (torch.zeros(3, 8, 8), ValueError, r"fill has shape \(3, 8, 8\)"),
        (float("nan"), ValueError, "fill"),
    ],
)
def test_no_such_fill(net: nn.Module, fill: Any, error: type[Exception], message: str) -> None:
    for call in (
        lambda: nbviz.occlusion(net, pictures(), fill=fill),
        lambda: nbviz.region_effect(net, pictures(), (0, 0, 4, 4), fill=fill),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_stride_for_each_axis(net: nn.Module) -> None:
    found = nbviz.occlusion(net, pictures(), 0, patch=(4, 8), stride=(6, 2))
    assert (found.tops, found.lefts) == ((0, 6, 12), (0, 2, 4, 6, 8))
    whole = nbviz.occlusion(net, pictures(), 0, patch=(4, 8), stride=2)
    torch.testing.assert_close(found.probability, whole.probability[:, ::3])
    for stride in ((1, 2, 3), (0, 1), "2"):
        with pytest.raises((ValueError, TypeError), match="stride is"):
            nbviz.occlusion(net, pictures(), 0, stride=stride)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", ["max", "unit"])
@pytest.mark.parametrize("position", [(0, 0), (3, 5), [6, 2]])
def test_a_position_of_ones_own(net: nn.Module, rule: str, seed: str, position: Any) -> None:
    x = pictures()
    found = RULES[rule](net, x, "5", [1, 4], seed=seed, position=position)

    def starting_at(channel: int) -> Callable[[Tensor], Tensor]:
        def signal(activation: Tensor) -> Tensor:
            start, at = torch.zeros_like(activation), (slice(None), channel, *position)
            start[at] = activation[at] if seed == "max" else 1
            return start

        return signal

    expected, _ = by_autograd(net, x, rule, {"5": [starting_at(1), starting_at(4)]})
    torch.testing.assert_close(found, torch.stack(expected["5"], 1))
    assert found.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "5", "position": (8, 0)}, "no position 8"),
        ({"layer": "5", "position": (1, 2, 3)}, "expected 2 whole numbers, within maps of 8×8"),
        ({"layer": "5", "position": 3}, "expected 2 whole numbers, within maps of 8×8"),
        ({"layer": "5", "position": (0, 0), "seed": "map"}, 'seed="map" has none'),
        ({"target": 1, "position": (0, 0)}, "a class has none"),
    ],
)
def test_no_such_position(net: nn.Module, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbviz.guided_backprop(net, pictures(), **given)


@pytest.mark.parametrize("rule", RULES)
def test_the_units_of_a_linear_network(rule: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    found = RULES[rule](net, x.detach(), "4", [0, 5], seed="unit")
    assert found.shape == (2, 2, 3, 4, 4)
    first, second = net[1], net[3]
    z = first(x.flatten(1))
    above = net[:4](x)
    for k, unit in enumerate([0, 5]):
        signal = second.weight[unit].expand(2, -1)
        if rule != "deconvnet":
            signal = signal * (above[:, unit, None] > 0)
        passed = {"gradient": signal * (z > 0), "deconvnet": signal.relu(), "guided": signal.relu() * (z > 0)}[rule]
        torch.testing.assert_close(found[:, k], (passed @ first.weight).view(2, 3, 4, 4))
