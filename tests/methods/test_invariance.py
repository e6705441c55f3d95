"""Distances and answers under shifts, scales and turns, against plain loops over pictures that scipy warps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import nbviz
from nbviz.methods import invariance as its_module
from nbviz.methods import subject
from tests.rounds import few

AMOUNTS = {
    "down": [-3, -0.5, 0, 1.25, 4],
    "across": [2.5, 0, -6],
    "scale": [0.5, 0.9, 1, 1.7],
    "angle": [-170.0, -12, 0, 45, 90],
}


def net(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5, **options), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    ).double()


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(3, 2, 12, 17, dtype=torch.float64)


def warped(picture: Tensor, transform: str, value: float) -> Tensor:
    height, width = picture.shape[1:]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    angle, scale = (math.radians(value) if transform == "angle" else 0.0), (value if transform == "scale" else 1.0)
    shift = np.array([value * (transform == "down"), value * (transform == "across")])
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    moved = [
        ndimage.affine_transform(one, back, middle - back @ (middle + shift), order=1, mode="nearest")
        for one in picture.numpy()
    ]
    return torch.from_numpy(np.stack(moved))


def by_hand(
    model: nn.Sequential, pictures: Tensor, layer: int, transform: str, amounts: list[float], target: list[int]
) -> tuple[Tensor, Tensor]:
    model.eval()
    distances, probability = (torch.empty(len(pictures), len(amounts), dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for i, picture in enumerate(pictures):
            own = model[: layer + 1](picture[None])[0].numpy()
            for t, value in enumerate(amounts):
                moved = warped(picture, transform, value)[None]
                features, scores = model[: layer + 1](moved)[0].numpy(), model(moved)[0].numpy()
                distances[i, t] = float(np.sqrt(((features - own) ** 2).sum()) / np.sqrt((own**2).sum()))
                probability[i, t] = np.exp(scores[target[i]]) / np.exp(scores).sum()
    return distances, probability


@pytest.mark.parametrize("transform", AMOUNTS)
def test_it_is_the_plain_loop(transform: str, pictures: Tensor, snapshot: Any) -> None:
    model, amounts = net().train(), AMOUNTS[transform]
    model(pictures)
    with snapshot(model):
        found = nbviz.invariance(model, pictures, ["0", "5", "8"], transform, amounts, [2, 0, 3])
    assert list(found.distances) == ["0", "5", "8"]
    assert (found.transform, found.values.tolist(), found.values.dtype) == (transform, amounts, torch.float64)
    assert found.target.tolist() == [2, 0, 3]
    for layer, distances in found.distances.items():
        expected, probability = by_hand(model, pictures, int(layer), transform, amounts, [2, 0, 3])
        torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.probability.double(), probability, rtol=1e-5, atol=1e-6)


def test_a_picture_as_it_is_has_distance_0_and_its_own_answer(pictures: Tensor) -> None:
    model = net().eval()
    with torch.no_grad():
        scores = model(pictures).softmax(1)
    for transform, nothing in (("down", 0), ("across", 0), ("scale", 1), ("angle", 0)):
        found = nbviz.invariance(model, pictures, ["0", "8"], transform, [nothing, nothing + 0.5, nothing])
        for distances in found.distances.values():
            assert distances[:, [0, 2]].tolist() == [[0, 0]] * 3
            assert (distances[:, 1] > 0).all()
        assert torch.equal(found.target, scores.argmax(1))  # the predicted one, where none is given
        torch.testing.assert_close(found.probability[:, 0].double(), scores.amax(1), rtol=1e-6, atol=1e-6)


def test_default_values() -> None:
    model, picture = net().eval(), torch.rand(1, 2, 12, 70, dtype=torch.float64)
    values = {transform: nbviz.invariance(model, picture, ["0"], transform).values.tolist() for transform in AMOUNTS}
    assert values["angle"] == [15.0 * step for step in range(-12, 13)]
    np.testing.assert_allclose(values["scale"], np.geomspace(0.5, 2, 25))
    assert values["scale"][12] == 1
    assert values["down"] == list(range(-3, 4))  # whole pixels, a quarter of the side
    assert (values["across"][0], values["across"][12], values["across"][-1]) == (-18, 0, 18)
    assert len(values["across"]) == 25
    assert all(value == round(value) for value in values["across"])
    assert torch.equal(nbviz.invariance(model, picture, ["0"]).values, torch.tensor(values["angle"]).double())


@pytest.mark.parametrize("at_once", few([1, 3, 16], 1, 2))
def test_it_does_not_depend_on_the_batches(at_once: int, pictures: Tensor, monkeypatch: Any) -> None:
    amounts = torch.linspace(-40, 40, 19).tolist()
    monkeypatch.setattr(its_module, "_AT_ONCE", at_once)
    found = nbviz.invariance(net_once(), pictures, ["4"], "angle", amounts)
    for i in range(3):
        for t in (0, 7, 16, 18):
            alone = nbviz.invariance(net_once(), pictures[i : i + 1], ["4"], "angle", [amounts[t]])
            torch.testing.assert_close(found.distances["4"][i, t], alone.distances["4"][0, 0])
            torch.testing.assert_close(found.probability[i, t], alone.probability[0, 0])


def test_where_memory_does_not_suffice_it_takes_fewer_at_once(pictures: Tensor, monkeypatch: Any) -> None:
    amounts = torch.linspace(-40, 40, 7).tolist()
    expected = nbviz.invariance(net_once(), pictures[:1], ["4"], "angle", amounts)
    run = subject.run

    def short(model: nn.Module, moved: Tensor, *args: Any, **options: Any) -> Any:
        if len(moved) > 3:
            raise torch.OutOfMemoryError
        return run(model, moved, *args, **options)

    monkeypatch.setattr(subject, "run", short)
    found = nbviz.invariance(net_once(), pictures[:1], ["4"], "angle", amounts)
    assert torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.distances["4"], expected.distances["4"])
    torch.testing.assert_close(found.probability, expected.probability)


def net_once() -> nn.Sequential:
    torch.manual_seed(1)
    return net().eval()


def test_pictures_are_not_normalised_by_those_they_are_run_beside(pictures: Tensor) -> None:
    model, amounts = net(track_running_stats=False), [-20.0, 5, 30]
    found = nbviz.invariance(model, pictures, ["5"], "angle", amounts, 1)
    expected, probability = by_hand(model, pictures, 5, "angle", amounts, [1] * 3)
    torch.testing.assert_close(found.distances["5"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.probability.double(), probability, rtol=1e-5, atol=1e-6)


def test_features_that_leave_their_place_are_away_by_the_root_of_two() -> None:
    """A bright square on black: a shift takes its features elsewhere, and their mean stays."""
    picture = torch.zeros(1, 1, 32, 32)
    picture[..., 12:16, 12:16] = torch.rand(4, 4)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = nbviz.invariance(model, picture, ["0", "1"], "across", [-8, 1, 7, 9])
    assert found.distances["0"][0, [0, 2, 3]].tolist() == pytest.approx([math.sqrt(2)] * 3, rel=1e-5)
    assert 0 < found.distances["0"][0, 1] < math.sqrt(2)
    assert found.distances["1"].max() < 1e-5
    torch.testing.assert_close(found.probability, found.probability[:, :1].expand(1, 4))


def test_a_quarter_turn_turns_the_features_of_symmetric_filters() -> None:
    """And leaves a sum over all positions as it was."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2, 1], [2, -5, 2], [1, 2, 1]]))
    picture, model = torch.rand(1, 1, 9, 9), nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = nbviz.invariance(model, picture, ["1", "2"], "angle", [90, 180, -90])
    assert found.distances["2"].max() < 1e-4
    with torch.no_grad():
        maps = model[:2](picture)
    expected = [float((torch.rot90(maps, k, (2, 3)) - maps).norm() / maps.norm()) for k in (1, 2, 3)]
    assert found.distances["1"][0].tolist() == pytest.approx(expected, rel=1e-4)


def test_as_in_the_paper_first_layers_change_at_once_and_last_ones_slowly() -> None:
    model, images = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:20, None]
    found = nbviz.invariance(model, images, None, "down", [-1, 1])
    first, last = found.distances.values()
    assert (first.mean(1) > last.mean(1)).double().mean() >= 0.9
    assert list(found.distances) == ["features.0", "pool"]


def test_layers_are_the_first_and_the_last_where_none_are_named(pictures: Tensor) -> None:
    model = net().eval()
    assert list(nbviz.invariance(model, pictures, values=[3]).distances) == ["0", "6"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert list(nbviz.invariance(flat, torch.rand(1, 1, 2, 2), values=[3]).distances) == ["0", "1"]
    twice = nbviz.invariance(model, pictures, ["2", "2"], values=[3])
    assert list(twice.distances) == ["2"]


def test_a_picture_without_features_is_not_away_from_itself() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    found = nbviz.invariance(model, -torch.rand(1, 1, 4, 4), ["0"], "angle", [0, 30])
    assert found.distances["0"].tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, pictures: Tensor) -> None:
    model = net_once()
    exact = nbviz.invariance(model, pictures, ["4"], "angle", [10, 20], 0)
    found = nbviz.invariance(model.to(dtype), pictures, ["4"], "angle", [10, 20], 0)
    torch.testing.assert_close(found.distances["4"].double(), exact.distances["4"].double(), rtol=0.05, atol=0.02)
    torch.testing.assert_close(found.probability.double(), exact.probability.double(), rtol=0.05, atol=0.02)


def test_a_model_of_other_arguments_and_answers(pictures: Tensor) -> None:
    plain = net_once()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain

        def forward(self, factor: float, x: Tensor) -> tuple[Tensor, None]:
            return factor * self.net(x), None

    found = nbviz.invariance(Model(), pictures, ["net.4"], inputs=lambda x: {"factor": 1.0, "x": x}, output=0)
    expected = nbviz.invariance(plain, pictures, ["4"])
    assert torch.equal(found.distances["net.4"], expected.distances["4"])
    assert torch.equal(found.probability, expected.probability)


def test_it_says_what_it_found(pictures: Tensor) -> None:
    found = nbviz.invariance(net().eval(), pictures, ["0"], "scale", [0.5, 1])
    low, high = float(found.probability.min()), float(found.probability.max())
    assert repr(found).splitlines() == [
        "Invariance to scale, 2 values in times",
        f"  0: distance 0.00 to {float(found.distances['0'].max()):.2f}",
        f"  probability of the class: {low:.2f} to {high:.2f}",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"transform": "turn"}, ValueError, "no transform 'turn'.* Accepted: down, across, scale, angle"),
        ({"transform": "scale", "values": [0]}, ValueError, "scale is 0.0; expected 0.01 to"),
        ({"values": []}, ValueError, "values has 0 numbers; expected 1 to 10,000"),
        ({"values": range(10**12)}, ValueError, "values has 1000000000000 numbers; expected 1 to 10,000"),
        ({"values": itertools.count()}, TypeError, "values is count.*; expected a list of numbers, or None"),
        ({"values": ["a"]}, TypeError, "values is .*; expected a list of numbers, or None"),
        ({"values": [math.nan]}, ValueError, "angle is nan; expected"),
        ({"layers": "0"}, TypeError, "layers is '0'; expected a list of modules' names, or None"),
        ({"layers": []}, TypeError, "expected a list of modules' names, or None"),
        ({"layers": ["conv"]}, ValueError, "no layer 'conv'"),
        ({"target": 4}, ValueError, "no class 4: there are 4, numbered 0 to 3"),
        ({"target": [1, 2]}, ValueError, r"target has 2 classes for 3 picture\(s\)"),
        ({"inputs": 3}, TypeError, "inputs is int; expected a callable"),
    ],
)
def test_wrong_arguments(options: Any, error: Any, message: str, pictures: Tensor, snapshot: Any) -> None:
    model = net()
    with snapshot(model), pytest.raises(error, match=message):
        nbviz.invariance(model, pictures, **options)


def test_signals_and_scores_of_another_shape_are_refused(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the model takes \(1, 2, 9\); expected pictures \(N, C, H, W\)"):
        nbviz.invariance(nn.Sequential(nn.Conv1d(2, 2, 3)), torch.rand(1, 2, 9))
    with pytest.raises(ValueError, match="expected class scores"):
        nbviz.invariance(net()[:3], pictures)
