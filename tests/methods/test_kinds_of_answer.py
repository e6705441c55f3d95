"""Each kind of answer is read as what it is, in every function that reads one; by arithmetic with the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbviz

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net(outputs: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, outputs)).eval()


class Flat(nn.Module):
    """One number for each picture: (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)[:, 0]
        return found


#: For each kind a model, what is passed beside it, what its scores mean, and the word for it.
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Callable[[Tensor], Tensor], str]] = {
    "classes": (lambda: net(4), {}, lambda y: y.softmax(1), "probability"),
    "after a softmax": (lambda: net(4).append(nn.Softmax(1)), {}, lambda y: y, "probability"),
    "after a log-softmax": (lambda: net(4).append(nn.LogSoftmax(1)), {}, lambda y: y.exp(), "probability"),
    "labels": (lambda: net(4), {"answer": "labels"}, lambda y: y.sigmoid(), "probability"),
    "after a sigmoid": (lambda: net(4).append(nn.Sigmoid()), {}, lambda y: y, "probability"),
    "one label": (lambda: net(1), {"answer": "labels"}, lambda y: y.sigmoid(), "probability"),
    "one after a sigmoid": (lambda: net(1).append(nn.Sigmoid()), {}, lambda y: y, "probability"),
    "a value": (lambda: net(1), {}, lambda y: y, "value"),
    "a value without its axis": (Flat, {}, lambda y: y[:, None], "value"),
    "values": (lambda: net(3), {"answer": "value"}, lambda y: y, "value"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    make, options, read, measure = KINDS[request.param]
    model = make().eval()

    def expected(x: Tensor) -> Tensor:
        with torch.no_grad():
            return read(model(x)).float()

    return model, options, expected, measure


def test_occlusion(kind: Any) -> None:
    model, options, expected, measure = kind
    found = nbviz.occlusion(model, X, patch=4, stride=4, **options)
    chosen = expected(X).argmax(1)
    assert found.measure == measure
    torch.testing.assert_close(found.whole, expected(X).gather(1, chosen[:, None])[:, 0])
    for row, top in enumerate(found.tops):
        for column, left in enumerate(found.lefts):
            covered = X.clone()
            covered[:, :, top : top + 4, left : left + 4] = 0.5  # grey, of pictures from 0 to 1
            read = expected(covered)
            torch.testing.assert_close(found.probability[:, row, column], read.gather(1, chosen[:, None])[:, 0])
            assert torch.equal(found.named[:, row, column], read.argmax(1))
    assert f"{measure} " in repr(found)


def test_region_effect(kind: Any) -> None:
    model, options, expected, measure = kind
    found = nbviz.region_effect(model, X, (0, 0, 4, 8), **options)
    assert found.measure == measure
    torch.testing.assert_close(found.before, expected(X))
    torch.testing.assert_close(found.after, expected(found.inputs))
    assert ("class" in repr(found)) == (measure == "probability")


def test_invariance(kind: Any) -> None:
    model, options, expected, measure = kind
    found = nbviz.invariance(model, X, ["1" if isinstance(model, nn.Sequential) else "net.1"], "across", [0], **options)
    assert found.measure == measure
    chosen = expected(X).argmax(1)
    torch.testing.assert_close(found.probability[:, 0], expected(X).gather(1, chosen[:, None])[:, 0])
    assert f"{measure} of the class" in repr(found)


def test_deletion_and_insertion(kind: Any) -> None:
    model, options, expected, measure = kind
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = nbviz.sanity.deletion_insertion(model, X, maps, steps=4, target=0, **options)
    assert found.measure == measure
    torch.testing.assert_close(found.deletion[:, 0].float(), expected(X)[:, 0])
    torch.testing.assert_close(found.insertion[:, -1].float(), expected(X)[:, 0])


@pytest.mark.parametrize("method", ["grad_cam", "gradient", "occlusion", "region_effect"])
def test_an_unknown_kind_is_refused_by_its_name(method: str) -> None:
    given = {"region_effect": {"mask": (0, 0, 4, 8)}}.get(method, {})
    with pytest.raises(ValueError, match="no answer 'class'; did you mean 'classes'"):
        getattr(nbviz, method)(net(4), X, answer="class", **given)


@pytest.mark.parametrize("widget", ["ClassActivation", "Occlusion", "Regions", "Sanity", "Invariance", "FeatureMaps"])
def test_widgets_say_the_same(kind: Any, widget: str) -> None:
    model, options, expected, measure = kind
    given = {"layer": "1" if isinstance(model, nn.Sequential) else "net.1"} if widget == "ClassActivation" else {}
    view = getattr(nbviz, widget)(model, X, **given, **options)
    view.finish()
    assert view.header.error == ""
    assert view.strip.measure == measure
    values, places = expected(X)[0].topk(min(5, expected(X).shape[1]))
    now = {name: row[-1] for name, *row in view.strip.predictions}
    assert list(now.values())[: len(values)] == pytest.approx(values.tolist(), abs=1e-5)
    if measure == "probability":
        assert list(now)[: len(places)] == [f"class {i}" for i in places.tolist()]
    assert ("answer" in view.code) == bool(options)


# Over a dataset: probabilities count as the classes' scores do, and what is of no class is refused.

DATA = torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 4)


def over_dataset(model: nn.Module) -> dict[str, Any]:
    """All that a method says of accuracy and loss."""
    table = nbviz.ablate(model, DATA, "1", progress=False)
    report = nbviz.report(model, DATA, ["1"], progress=False)
    right = nbviz.scan(model, DATA, {"a": nbviz.statistics.Accuracy()}, progress=False)["a"]
    compared = nbviz.compare(model, net(4), DATA, progress=False)
    return {
        "accuracy": torch.tensor([right.accuracy, report.accuracy, compared.accuracy.accuracy_a, table.baseline]),
        "loss": torch.tensor([right.loss, table.baseline_loss]),
        "ablated": table.loss,
        "importance": report["1"].importance,
    }


def test_probabilities_over_a_dataset_are_as_the_scores_that_they_come_from() -> None:
    found, expected = over_dataset(net(4).append(nn.Softmax(1))), over_dataset(net(4))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=1e-4, atol=1e-5)


def test_a_probability_of_zero_has_a_large_loss_that_is_finite() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1))
    net[1].weight.data.mul_(1e4)
    assert 0 < nbviz.scan(net, DATA, {"a": nbviz.statistics.Accuracy()}, progress=False)["a"].loss < 100


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (net(1), r"the model gives one score for each picture; expected scores of classes \(N, classes\)"),
        (Flat(), r"the model gives \(\d+,\); expected class scores \(N, classes\)"),
    ],
    ids=["(N, 1)", "(N,)"],
)
def test_one_score_for_each_picture_is_refused_where_classes_are_needed(model: nn.Module, said: str) -> None:
    layer = "1" if isinstance(model, nn.Sequential) else "net.1"
    for work in (
        lambda: nbviz.scan(model, DATA, {"a": nbviz.statistics.Accuracy()}, progress=False),
        lambda: nbviz.ablate(model, DATA, layer, progress=False),
        lambda: nbviz.report(model, DATA, [layer], progress=False),
        lambda: nbviz.compare(model, model, DATA, progress=False),
    ):
        with pytest.raises(ValueError, match=said):
            work()


class Squeezed(nn.Module):
    """Drops the axis of the pictures where there is one: (classes,)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x).squeeze(0)
        return found


def test_the_classes_of_one_picture_are_not_taken_for_a_value_of_each_of_several() -> None:
    for work in (
        lambda: nbviz.occlusion(Squeezed(), X[:1]),
        lambda: nbviz.region_effect(Squeezed(), X[:1], (0, 0, 4, 8)),
    ):
        with pytest.raises(ValueError, match=r"gives \(4,\); expected class scores \(N, classes\)"):
            work()
    assert nbviz.FeatureMaps(Squeezed(), X[:1], layer="net.1").strip.predictions == []


def test_a_model_without_gradients_is_read_without_them() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("no gradients")
            return torch.full((len(x), 3), 0.5)

    assert nbviz.region_effect(Fails(), X, (0, 0, 4, 8)).measure == "probability"
