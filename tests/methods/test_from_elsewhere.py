"""What other libraries hand over: a DataLoader, names in a configuration, oblong pictures, torch.func in a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nbviz
from nbviz.pictures.preprocess import find_preprocess
from nbviz.scanning.statistics import Moments
from tests.conftest import unchanged
from tests.small import Small, labelled, pictures


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}, {"batch_size": 4, "shuffle": True}, {"num_workers": 1}])
def test_a_loader_is_its_dataset(options: dict[str, Any]) -> None:
    model, dataset = Small().eval(), labelled()
    loader = DataLoader(dataset, **options)
    table, expected = (nbviz.ablate(model, given, "2", progress=False) for given in (loader, dataset))
    torch.testing.assert_close(table.loss, expected.loss)
    found, expected = (
        nbviz.scan(model, given, {"m": Moments("2")}, progress=False)["m"] for given in (loader, dataset)
    )
    assert torch.equal(found.mean, expected.mean)


def test_a_loader_that_makes_its_own_batches_is_refused() -> None:
    loader = DataLoader(labelled(), collate_fn=lambda items: items[0])
    with pytest.raises(TypeError, match=r"with its own collate_fn; expected its items: give loader\.dataset"):
        nbviz.scan(Small().eval(), loader, {"m": Moments("2")}, progress=False)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({0: "cat", 1: "dog", 2: "owl"}, ("cat", "dog", "owl")),
        ({"2": "owl", "0": "cat", "1": "dog"}, ("cat", "dog", "owl")),  # as JSON has them
        ({0: "LABEL_0", 1: "LABEL_1"}, None),  # a model without names of its own
        ({0: "cat", 2: "dog"}, None),
        ({"a": "cat"}, None),
        (["cat", "dog"], None),
        (None, None),
    ],
)
def test_names_are_found_in_a_configuration(names: Any, expected: tuple[str, ...] | None) -> None:
    model = Small(classes=3)
    model.config = SimpleNamespace(id2label=names)
    assert find_preprocess(model).labels == expected


class Wrapped(nn.Module):
    """As people wrap a Hugging Face model, to get its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small(classes=2).eval()
        self.inner.config = SimpleNamespace(id2label={0: "cat", 1: "<b>dog"})

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner(x)
        return scores


def test_they_are_shown_also_where_the_model_is_within_another() -> None:
    assert nbviz.explore(Wrapped().eval(), pictures()).session.labels == ("cat", "<b>dog")
    given = nbviz.explore(Wrapped().eval(), pictures(), labels=["a", "b"])
    assert given.session.labels == ("a", "b")


def test_names_that_are_too_few_are_not_shown() -> None:
    model = Small(classes=4).eval()
    model.config = SimpleNamespace(id2label={0: "cat", 1: "dog"})
    assert nbviz.explore(model, pictures()).session.labels == ("class 0", "class 1", "class 2", "class 3")


@pytest.mark.parametrize(("size", "sides"), [((32, 100), (32, 100)), ([100, 9], (100, 9)), (16, (16, 16))])
def test_pictures_to_maximise_may_be_oblong(size: Any, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    found = nbviz.maximise(net, "0", [0, 3], size=size, steps=4)
    assert found.pictures.shape == (2, 3, *sides)
    assert bool((found.values > found.start).all())
    view = nbviz.Maximise(net, "1", 0, size=size, steps=2)
    view.finish()
    assert view.header.error == ""


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        ((8, 8, 8), ValueError, "size has 3 numbers; expected height and width, or one number for both"),
        ((4, 100), ValueError, "size is 4; expected .* 8"),
        ((8, 5000), ValueError, "size is 5000"),
        ("big", TypeError, "size is 'big'; expected a whole number"),
        ((8, 9.5), TypeError, "size is 9.5; expected a whole number"),
    ],
)
def test_no_such_size(size: Any, error: type[Exception], message: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(error, match=message):
        nbviz.maximise(net, "1", 0, size=size)


class Mapped(nn.Module):
    """Whose features run within torch.func.vmap, where their values cannot be had."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.func.vmap(lambda maps: self.conv(maps[None])[0])(self.stem(x).relu())
        scores: Tensor = self.head(y.mean((2, 3)))
        return scores


def test_layers_within_a_transform_are_refused_and_the_others_work() -> None:
    model = Mapped().eval()
    dataset = TensorDataset(pictures(), torch.tensor([0, 1, 2]))
    with unchanged(model):
        assert [layer.name for layer in nbviz.layers(model, pictures())] == ["stem", "head"]
        assert nbviz.grad_cam(model, pictures(), "stem", 1).shape == (3, 16, 16)
        assert nbviz.guided_backprop(model, pictures(), target=1).shape == (3, 3, 16, 16)
        view = nbviz.explore(model, pictures())
        view.finish()
        assert (view.layer, view.header.error) == ("stem", "")
        for call in (
            lambda: nbviz.feature_maps(model, pictures(), "conv"),
            lambda: nbviz.guided_backprop(model, pictures(), "conv"),
            lambda: nbviz.grad_cam(model, pictures(), "conv", 1),
            lambda: nbviz.switched_off(model, pictures(), "conv", 0),
            lambda: nbviz.ablate(model, dataset, "conv", progress=False),
            lambda: nbviz.scan(model, dataset, {"m": Moments("conv")}, progress=False),
            lambda: nbviz.maximise(model, "conv", 0, size=16, steps=1),
        ):
            with pytest.raises(TypeError, match=r"layer 'conv' runs within torch\.func\.vmap or another transform"):
                call()
