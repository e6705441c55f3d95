"""Pixels deleted and inserted: by a loop."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nbviz.methods.deletion_insertion import deletion_insertion
from nbviz.pictures.fill import FILLS, filling
from nbviz.pictures.preprocess import Preprocess
from tests.rounds import few
from tests.small import Weighted

X = torch.rand(2, 3, 10, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Dropout()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 6)),
    )


@pytest.mark.parametrize(("steps", "fill"), few(itertools.product([1, 7, 90], FILLS), 0, 4, 8))
def test_deletion_and_insertion_by_a_loop(fill, steps, tiny, snapshot):
    maps = torch.randint(0, 20, (2, 10, 9)).float()  # with ties: the first of them first
    with snapshot(tiny):
        found = deletion_insertion(tiny, X, maps, target=[1, 4], steps=steps, fill=fill)
    filled = filling(X, fill, Preprocess(lambda picture: picture))
    counts = [round(share) for share in np.linspace(0, 90, steps + 1)]
    assert found.shares.tolist() == pytest.approx([count / 90 for count in counts])
    for i, target in enumerate((1, 4)):
        order = sorted(range(90), key=lambda place: (-float(maps[i].flatten()[place]), place))
        curves = {"deletion": (X[i], filled[i]), "insertion": (filled[i], X[i])}
        for name, (left, gone) in curves.items():
            for step, count in enumerate(counts):
                seen = left.clone()
                for place in order[:count]:
                    seen[:, place // 9, place % 9] = gone[:, place // 9, place % 9]
                with torch.no_grad():
                    expected = float(tiny.eval()(seen[None]).softmax(1)[0, target])
                assert float(getattr(found, name)[i, step]) == pytest.approx(expected, abs=1e-6)
            area = np.trapezoid(getattr(found, name)[i].numpy(), found.shares.numpy())
            assert float(getattr(found, f"{name}_area")[i]) == pytest.approx(area)


def test_pixels_go_to_grey_and_come_to_the_blurred_picture(tiny):
    """Which RISE takes."""
    maps = torch.rand(2, 10, 9)
    found, grey, blur = (deletion_insertion(tiny, X, maps, target=1, fill=fill) for fill in (None, "grey", "blur"))
    torch.testing.assert_close(found.deletion, grey.deletion)
    torch.testing.assert_close(found.insertion, blur.insertion)
    assert not torch.allclose(found.deletion, blur.deletion)


def test_a_perfect_map_beats_a_random_one():
    """The class is said by how bright some of the pixels are: the map that has these."""
    weights = torch.zeros(1, 8, 8)
    weights[0, 2:5, 3:6] = torch.rand(3, 3) + 0.5
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    net[1].weight.data = torch.stack([weights.flatten(), torch.zeros(64)])
    net[1].bias.data = torch.tensor([-2.0, 0.0])
    x = torch.ones(3, 1, 8, 8)
    x[:, :, 4:] = 0.9
    options = {"target": 0, "steps": 64, "fill": "grey"}
    perfect = deletion_insertion(net, x, weights.expand(3, 8, 8), **options)
    at_random = deletion_insertion(net, x, torch.rand(3, 8, 8), **options)
    worst = deletion_insertion(net, x, -weights.expand(3, 8, 8), **options)
    assert (perfect.deletion_area < at_random.deletion_area).all()
    assert (at_random.deletion_area < worst.deletion_area).all()
    assert (perfect.insertion_area > at_random.insertion_area).all()
    assert (at_random.insertion_area > worst.insertion_area).all()
    assert repr(perfect).startswith("DeletionInsertionResult of 3 pictures: deletion 0.")


def test_of_many_channels_the_absolute_values_are_summed(tiny):
    maps = torch.randn(2, 3, 10, 9)
    one, other = deletion_insertion(tiny, X, maps, steps=5), deletion_insertion(tiny, X, maps.abs().sum(1), steps=5)
    assert torch.equal(one.deletion, other.deletion)
    assert torch.equal(one.insertion, other.insertion)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"maps": torch.rand(2, 9, 9)}, ValueError, r"maps has shape \(2, 9, 9\); expected \(N, H, W\)"),
        ({"maps": torch.rand(3, 10, 9)}, ValueError, "maps has 3 maps for 2 pictures; expected one for each"),
        ({"maps": [1]}, TypeError, "maps is list; expected|maps"),
        ({"steps": 0}, ValueError, "steps is 0; expected at least 1"),
        ({"fill": "black"}, ValueError, "no fill 'black'"),
        ({"target": 6}, ValueError, "no class 6"),
    ],
)
def test_errors_of_deletion_say_what_is_accepted(given, error, message, tiny, snapshot):
    with snapshot(tiny), pytest.raises(error, match=message):
        deletion_insertion(tiny, X, **{"maps": torch.zeros(2, 10, 9), **given})


def test_pictures_that_hang_on_each_other_are_deleted_among_each_other(snapshot):
    model, weights, maps = Weighted().eval(), torch.tensor([1.0, 2.0]), torch.rand(2, 10, 9)
    with snapshot(model):
        found = deletion_insertion(model, X, maps, target=1, steps=4, inputs=lambda x: (x, weights))
    whole = model(X, weights).softmax(1)[:, 1]
    torch.testing.assert_close(found.deletion[:, 0].float(), whole)
    torch.testing.assert_close(found.insertion[:, -1].float(), whole)
    gone = X.clone()
    gone[1] = filling(X, "grey", Preprocess(lambda picture: picture))[1]
    expected = model(gone, weights).softmax(1)[1, 1]
    torch.testing.assert_close(found.deletion[1, -1].float(), expected)
