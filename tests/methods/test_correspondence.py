"""The change of sign when a part is masked, against loops written out and a part that is planted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nbviz
from nbviz.errors import ModelError
from nbviz.methods import subject

BOXES = [[2, 3, 5, 8], [0, 0, 3, 5], [6, 4, 10, 12]]


def net() -> nn.Sequential:
    made = nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )
    made.nbviz_preprocess = nbviz.Preprocess(lambda picture: picture, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return made.double()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(3, 3, 10, 12, dtype=torch.float64)


def by_hand(model: nn.Sequential, layer: int, pictures: Tensor, masked: Tensor) -> list[float]:
    """Section 4.4 of the paper, number by number: for each pair of pictures the share of signs that differ."""
    model.eval()
    with torch.no_grad():
        changes = [
            (model[: layer + 1](one[None]) - model[: layer + 1](other[None])).flatten().tolist()
            for one, other in zip(pictures, masked, strict=True)
        ]
    signs = [[(change > 0) - (change < 0) for change in row] for row in changes]
    return [
        sum(a != b for a, b in zip(signs[i], signs[j], strict=True)) / len(signs[i])
        for i, j in itertools.combinations(range(len(signs)), 2)
    ]


def mask(pictures: Tensor, boxes: list[list[int]], fill: str) -> Tensor:
    masked = pictures.numpy().copy()
    for i, (top, left, bottom, right) in enumerate(boxes):
        for c, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), strict=True)):
            colour = (0.5 - mean) / std if fill == "grey" else pictures[i, c].numpy().mean()
            for row, column in itertools.product(range(top, bottom), range(left, right)):
                masked[i, c, row, column] = colour
    return torch.from_numpy(masked)


@pytest.mark.parametrize("fill", ["grey", "mean"])
@pytest.mark.parametrize("count", [2, 3])
def test_it_is_the_sum_over_pairs_of_the_paper(fill: str, count: int, pictures: Tensor, snapshot: Any) -> None:
    model, some, boxes = net().train(), pictures[:count], BOXES[:count]
    with snapshot(model):
        found = nbviz.correspondence(model, some, boxes, ["0", "4", "7"], fill=fill, random=0)
    for layer in (0, 4, 7):
        pairs = by_hand(model, layer, some, mask(some, boxes, fill))
        assert found.part[f"{layer}"] == pytest.approx(np.mean(pairs), abs=1e-12)
        error = np.std(pairs, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else np.nan
        assert found.error[f"{layer}"] == pytest.approx(error, abs=1e-12, nan_ok=True)
        assert 0 < found.part[f"{layer}"] <= 1
        assert found.random[f"{layer}"].shape == (0,)


def seen_by(model: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    return seen


def test_random_parts_have_the_parts_size_and_lie_anywhere(pictures: Tensor) -> None:
    model = net().eval()
    found = nbviz.correspondence(model, pictures, BOXES, ["0"], random=150, fill="mean")
    seen = seen_by(model)
    nbviz.correspondence(model, pictures, BOXES, ["0"], random=150, fill="mean")
    masked = seen[-150:]
    corners: list[set[tuple[int, int]]] = [set(), set(), set()]
    for drawn in masked:
        for i, (top, left, bottom, right) in enumerate(BOXES):
            places = (drawn[i] != pictures[i]).any(0).nonzero()
            low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
            assert [high[0] - low[0], high[1] - low[1]] == [bottom - top, right - left]
            assert len(places) == (bottom - top) * (right - left)
            corners[i].add((low[0], low[1]))
    for i, (top, left, bottom, right) in enumerate(BOXES):
        room = (10 - (bottom - top) + 1) * (12 - (right - left) + 1)
        assert len(corners[i]) > 0.7 * room  # of all places, after 150 draws
        rows, columns = ({corner[axis] for corner in corners[i]} for axis in (0, 1))
        assert (min(rows), max(rows)) == (0, 10 - (bottom - top))
        assert (min(columns), max(columns)) == (0, 12 - (right - left))
    model._forward_pre_hooks.clear()
    expected = [np.mean(by_hand(model, 0, pictures, drawn)) for drawn in masked[:20]]
    np.testing.assert_allclose(found.random["0"][:20], expected, atol=1e-12)


def test_random_parts_are_seeded(pictures: Tensor, snapshot: Any) -> None:
    model = net().eval()
    with snapshot(model):
        first = nbviz.correspondence(model, pictures, BOXES, ["4"], seed=3)
    torch.rand(5)
    again, other = (nbviz.correspondence(model, pictures, BOXES, ["4"], seed=seed) for seed in (3, 4))
    assert first.random["4"].shape == (10,)
    assert torch.equal(first.random["4"], again.random["4"])
    assert not torch.equal(first.random["4"], other.random["4"])
    assert first.part == other.part


def test_a_planted_part_corresponds_where_the_network_relates_it() -> None:
    """The same pattern at another place in each of five pictures: not in the first layer, but in the last."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(3, 6, 6, generator=generator)
    pictures = 0.1 * torch.randn(5, 3, 32, 32, generator=generator)
    corners = [(2, 3), (20, 5), (11, 24), (7, 14), (25, 25)]
    for picture, (top, left) in zip(pictures, corners, strict=True):
        picture[:, top : top + 6, left : left + 6] = pattern
    model = nn.Sequential(nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    boxes = [[top, left, top + 6, left + 6] for top, left in corners]
    found = nbviz.correspondence(model, pictures, boxes, ["0", "2"], random=20, fill="mean")
    assert found.part["2"] < 0.1
    assert found.part["2"] < found.random["2"].min()
    assert found.part["2"] + 4 * found.error["2"] < found.random["2"].mean()
    assert found.part["0"] > 0.7 * float(found.random["0"].mean())


def test_features_that_nothing_changes_count_as_alike(pictures: Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x[:, :1]

    found = nbviz.correspondence(nn.Sequential(nn.Identity(), Constant()), pictures, BOXES, ["1"])
    assert (found.part, found.error) == ({"1": 0.0}, {"1": 0.0})
    assert not found.random["1"].any()


def test_boxes_may_be_a_tensor_or_an_array(pictures: Tensor) -> None:
    model = net()
    given = [
        BOXES,
        torch.tensor(BOXES),
        np.array(BOXES, np.int16),
        list(torch.tensor(BOXES).byte()),
        tuple(map(tuple, BOXES)),
    ]
    found = [nbviz.correspondence(model, pictures, boxes, ["4"], random=1) for boxes in given]
    assert all(one.part == found[0].part and torch.equal(one.random["4"], found[0].random["4"]) for one in found)


def test_layers_are_the_first_and_the_last_where_none_are_named(pictures: Tensor) -> None:
    found = nbviz.correspondence(net(), pictures, BOXES, random=1)
    assert list(found.part) == list(found.error) == list(found.random) == ["0", "5"]


def test_a_whole_picture_may_be_the_part(pictures: Tensor) -> None:
    found = nbviz.correspondence(net(), pictures, [[0, 0, 10, 12]] * 3, ["4"], random=3)
    assert found.random["4"].tolist() == [found.part["4"]] * 3  # there is one place only


@pytest.mark.parametrize("by_each_other", [False, True])
def test_where_memory_does_not_suffice_it_takes_fewer_at_once(
    by_each_other: bool, pictures: Tensor, monkeypatch: Any
) -> None:
    model = net().eval()
    if by_each_other:
        model[1] = nn.BatchNorm2d(5, track_running_stats=False).double()
    expected = nbviz.correspondence(model, pictures, BOXES, ["4"], random=1)
    run = subject.run

    def short(model: nn.Module, inputs: Tensor, *args: Any, **options: Any) -> Any:
        if len(inputs) > 2:
            raise torch.OutOfMemoryError
        return run(model, inputs, *args, **options)

    monkeypatch.setattr(subject, "run", short)
    if by_each_other:
        with pytest.raises(ModelError, match="out of memory for one picture"):
            nbviz.correspondence(model, pictures, BOXES, ["4"], random=1)
        return
    found = nbviz.correspondence(model, pictures, BOXES, ["4"], random=1)
    assert found.part["4"] == pytest.approx(expected.part["4"], abs=1e-12)
    torch.testing.assert_close(found.random["4"], expected.random["4"])


def test_a_model_of_other_arguments(pictures: Tensor) -> None:
    plain = net()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.nbviz_preprocess = plain, plain.nbviz_preprocess

        def forward(self, x: Tensor, factor: float) -> Tensor:
            return factor * self.net(x)

    found = nbviz.correspondence(Model(), pictures, BOXES, ["net.4"], inputs=lambda x: (x, 1.0))
    expected = nbviz.correspondence(plain, pictures, BOXES, ["4"])
    assert found.part["net.4"] == expected.part["4"]
    assert torch.equal(found.random["net.4"], expected.random["4"])


def test_the_agreement_is_that_of_the_features_that_change(pictures: Tensor) -> None:
    model = net().eval()
    found = nbviz.correspondence(model, pictures, BOXES, ["0", "4"], random=0)
    with torch.no_grad():
        for layer in (0, 4):
            masked = mask(pictures, BOXES, "grey")
            changes = (model[: layer + 1](pictures) - model[: layer + 1](masked)).flatten(1).numpy()
            alike = opposite = 0
            for one, other in itertools.combinations(changes, 2):
                alike += ((one > 0) & (other > 0) | (one < 0) & (other < 0)).mean() / 3
                opposite += ((one > 0) & (other < 0) | (one < 0) & (other > 0)).mean() / 3
            assert found.agreement[f"{layer}"] == pytest.approx(alike - opposite, abs=1e-12)
            assert found.changed[f"{layer}"] == pytest.approx(alike + opposite, abs=1e-12)
    assert found.verdict == "no verdict: expected at least 2 random parts to compare with"


def fashion(kind: int, box: list[int]) -> tuple[Any, float, float]:
    """What is found of six pictures, and how far from random parts: the paper's measure and the agreement."""
    images, labels = nbviz.bundled.fashion_test()
    model, some = nbviz.bundled.load("fashion"), images[labels == kind][:6, None]
    found = nbviz.correspondence(model, some, [box] * 6, ["features.12"], random=20)
    differ, agreement = found.random["features.12"], found.random_agreement["features.12"]
    return (
        found,
        float((found.part["features.12"] - differ.mean()) / differ.std()),
        float((found.agreement["features.12"] - agreement.mean()) / agreement.std()),
    )


def test_an_empty_corner_which_changes_few_features_does_not_correspond() -> None:
    corner, papers, agreement = fashion(0, [21, 21, 28, 28])  # of T-shirts
    _, papers_of_sleeve, agreement_of_sleeve = fashion(0, [8, 0, 20, 8])
    assert papers < -1.9
    assert papers < papers_of_sleeve  # the paper's measure is misled: lower is better
    assert agreement < 1
    assert agreement < agreement_of_sleeve
    assert corner.verdict == "no layer relates the part more than random parts"


def test_a_layer_that_relates_the_part_is_named() -> None:
    found, _, agreement = fashion(6, [0, 8, 8, 20])  # the necks of shirts
    assert agreement > 3
    assert found.verdict == "the part is related more than random parts in features.12"


def test_it_says_what_it_found(pictures: Tensor) -> None:
    found = nbviz.correspondence(net(), pictures, BOXES, ["4"], random=4)
    drawn, own = found.random["4"].numpy(), found.random_agreement["4"].numpy()
    numbers = [
        f"{found.agreement['4']:+.3f}",
        f"{own.mean():+.3f} ± {own.std(ddof=1):.3f}",
        f"{100 * found.changed['4']:.1f} %",
        f"{found.part['4']:.3f} ± {found.error['4']:.3f}",
        f"{drawn.mean():.3f} ± {drawn.std(ddof=1):.3f}",
    ]
    assert repr(found).splitlines()[0] == found.verdict
    assert repr(found).splitlines()[2:] == [f"  4: {', '.join(numbers)}"]
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    assert f"<tr><th>4</th>{cells}</tr>" in found._repr_html_()
    none = nbviz.correspondence(net(), pictures, BOXES, ["4"], random=0)
    assert repr(none).endswith(f"{none.error['4']:.3f}, –")
    assert "<td>–</td></tr></table>" in none._repr_html_()
    named = nn.Sequential()
    named.add_module("<b>", nn.Conv2d(3, 2, 3).double())
    assert "<b>" not in nbviz.correspondence(named, pictures, BOXES, random=1)._repr_html_()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boxes": BOXES[:2]}, TypeError, r"boxes is .*; expected whole numbers \(3, 4\)"),
        ({"boxes": range(10**12)}, TypeError, r"expected whole numbers \(3, 4\)"),
        ({"boxes": torch.rand(3, 4)}, TypeError, r"expected whole numbers \(3, 4\)"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 11, 5]]}, ValueError, r"box 2 is \[4, 4, 11, 5\]; .* 10×12"),
        ({"boxes": [[0, 0, 1, 1], [3, 0, 3, 1], [0, 0, 1, 1]]}, ValueError, "box 1 is .*; expected top < bottom"),
        ({"boxes": [[0, -1, 1, 1]] * 3}, ValueError, "box 0 is"),
        ({"fill": "black"}, ValueError, "no fill 'black'.* Accepted: grey, mean"),
        ({"random": -1}, ValueError, "random is -1; expected at least 0"),
        ({"seed": 0.5}, TypeError, "seed is 0.5; expected a whole number"),
        ({"layers": ["9"]}, ValueError, "no layer '9'"),
        ({"layers": "0"}, TypeError, "expected a list of modules' names, or None"),
        ({"inputs": 3}, TypeError, "inputs is int"),
    ],
)
def test_wrong_arguments(options: Any, error: Any, message: str, pictures: Tensor, snapshot: Any) -> None:
    model = net()
    arguments = {"boxes": BOXES, **options}
    with snapshot(model), pytest.raises(error, match=message):
        nbviz.correspondence(model, pictures, **arguments)


def test_one_picture_and_signals_are_refused(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="expected at least two pictures"):
        nbviz.correspondence(net(), pictures[:1], BOXES[:1])
    with pytest.raises(ValueError, match="expected at least two pictures"):
        nbviz.correspondence(nn.Sequential(nn.Conv1d(2, 2, 3)), torch.rand(2, 2, 9), BOXES[:2])


def test_the_same_place_in_noise_does_not_correspond() -> None:
    """The random parts lie to each other as the given ones do: else all boxes at one place would seem to."""
    noise = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model = nbviz.bundled.load("fashion")
    found = nbviz.correspondence(model, noise, [[10, 10, 18, 18]] * 6, ["features.0", "features.8"], random=8)
    for layer, drawn in found.random.items():
        assert abs(found.part[layer] - float(drawn.mean())) < 4 * float(drawn.std()) + 0.01
