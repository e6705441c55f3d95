"""Each statistic against arithmetic on all pictures at once, however the pictures are shared out."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nbviz
from nbviz.scanning.statistic import Batch
from nbviz.scanning.statistics import Ablation, Accuracy, Correlation, Histogram, Moments, Sparsity, TopK
from tests.rounds import few, rounds

N, C, CLASSES = 23, 5, 6
KINDS = {
    "top": lambda: TopK("layer", 4),
    "moments": lambda: Moments("layer"),
    "sparsity": lambda: Sparsity("layer"),
    "histogram": lambda: Histogram("layer"),
    "accuracy": Accuracy,
    "correlation": lambda: Correlation("layer"),
}


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """With zeros, equal values within and across pictures, and values of very different size."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(N, C, 3, 4, generator=generator).round(decimals=1).relu()
    values[:, 2] *= 1e4
    values[:, 3] = 0
    values[:, 4] = values[:, 0] * 2 - 1
    return values


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.randint(-1, CLASSES, (N,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(2)).round(decimals=1)


@pytest.fixture(scope="module")
def batches(maps: Tensor, labels: Tensor, logits: Tensor) -> list[Batch]:
    parts = torch.arange(N).split(4)
    return [Batch(i, p, maps[p], labels[p], {"layer": maps[p]}, logits[p]) for i, p in enumerate(parts)]


def seen(kind: str, batches: list[Batch]) -> Any:
    statistic = KINDS[kind]()
    for batch in batches:
        statistic.update(statistic.measure(batch))
    return statistic


def same(a: Any, b: Any) -> bool:
    """To the last bit; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            torch.equal(torch.nan_to_num(a, -7.0), torch.nan_to_num(b, -7.0)) if a.is_floating_point() else a.equal(b)
        )
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=rounds(30, 60), deadline=None)
@given(st.data())
def test_merging_gives_the_same_however_the_batches_are_shared_out(
    kind: str, batches: Any, data: st.DataObject
) -> None:
    whole = seen(kind, batches).result()
    shares = data.draw(st.lists(st.integers(0, 4), min_size=len(batches), max_size=len(batches)))
    parts = [seen(kind, [b for b, s in zip(batches, shares, strict=True) if s == share]) for share in range(5)]
    while len(parts) > 1:  # in any order, in any tree
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        left.merge(right)
        parts.append(left)
    assert same(parts[0].result(), whole)


def test_top(batches: Any, maps: Tensor, labels: Tensor) -> None:
    found = seen("top", batches).result()
    values, places = maps.flatten(2).numpy().max(2), maps.flatten(2).numpy().argmax(2)
    for channel in range(C):
        order = sorted(range(N), key=lambda i: (-values[i, channel], i))[:4]
        assert found.indices[channel].tolist() == order
        assert found.values[channel].tolist() == [values[i, channel] for i in order]
        rows = [np.unravel_index(places[i, channel], (3, 4)) for i in order]
        assert found.positions[channel].tolist() == [[int(y), int(x)] for y, x in rows]
        assert found.labels[channel].tolist() == labels[order].tolist()


def test_top_does_not_depend_on_the_order_of_the_batches(batches: Any) -> None:
    """As when a scan goes on from a checkpoint that others than the first have written."""
    whole = seen("top", batches).result()
    for order in ([5, 4, 3, 2, 1, 0], [3, 0, 5, 2, 4, 1]):
        assert same(seen("top", [batches[i] for i in order]).result(), whole)


def test_top_of_fewer_pictures_than_asked_for() -> None:
    top = TopK("layer", 3)
    values = torch.tensor([[[1.0]], [[torch.nan]], [[-2.0]]])
    top.update(
        top.measure(Batch(0, torch.tensor([4, 7, 9]), values, torch.tensor([-1, 2, 3]), {"layer": values}, None))
    )
    found = top.result()
    assert found.indices.tolist() == [[4, 9, -1]]
    assert found.values.tolist() == [[1.0, -2.0, -torch.inf]]
    assert found.labels.tolist() == [[-1, 3, -1]]
    assert TopK("layer").result().values.shape == (0, 9)


def test_moments(batches: Any, maps: Tensor) -> None:
    found = seen("moments", batches).result()
    values = maps.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, values.mean(1))
    torch.testing.assert_close(found.std, values.std(1, correction=0))
    assert torch.equal(found.low, values.amin(1))
    assert torch.equal(found.high, values.amax(1))
    assert found.count == N * 12
    assert not found.strange.any()


def test_moments_count_what_is_not_finite() -> None:
    moments = Moments("layer")
    values = torch.tensor([[1.0, torch.nan, 3.0, torch.inf]]).view(1, 1, 4)
    moments.update(moments.measure(Batch(0, torch.tensor([0]), values, torch.tensor([-1]), {"layer": values}, None)))
    found = moments.result()
    assert found is not None
    assert (found.mean.item(), found.strange.item(), found.high.item()) == (1.0, 2, 3.0)
    assert Moments("layer").result() is None


def test_sparsity(batches: Any, maps: Tensor) -> None:
    found = seen("sparsity", batches).result()
    assert found.zeros.tolist() == [float(np.mean(maps[:, c].numpy() == 0)) for c in range(C)]
    assert found.silent.tolist() == [float(np.mean(~(maps[:, c].flatten(1).numpy() > 0).any(1))) for c in range(C)]
    assert found.dead.tolist() == [False, False, False, True, False]
    assert found.pictures == N


def test_histogram(batches: Any, maps: Tensor) -> None:
    found = seen("histogram", batches).result()
    assert (found.edges.diff() > 0).all()
    for channel in range(C):
        values = maps[:, channel].numpy().ravel()
        # NumPy has edges on the right of the bin where ours, for what is negative, are on the left of their mirror.
        magnitude = np.histogram(np.abs(values[values < 0]), np.asarray(found.edges[len(found.edges) // 2 :]))[0]
        assert found.counts[channel, : len(magnitude)].flip(0).tolist() == magnitude.tolist()
        positive = np.histogram(values[values > 0], np.asarray(found.edges[len(found.edges) // 2 :]))[0]
        assert found.counts[channel, -len(positive) :].tolist() == positive.tolist()
        assert found.counts[channel].sum() == values.size
        low, high = np.quantile(values, 0.9, method="lower"), found.quantile(0.9)[channel]
        assert low <= high <= max(1.26 * low, 1e-6)


def test_histogram_of_extremes() -> None:
    histogram = Histogram("layer")
    values = torch.tensor([[1e30, -1e30, torch.inf, torch.nan, 1e-30, -0.0]]).view(1, 1, 6)
    histogram.update(
        histogram.measure(Batch(0, torch.tensor([0]), values, torch.tensor([-1]), {"layer": values}, None))
    )
    counts = histogram.result().counts[0]
    assert counts[0] == 1
    assert counts[-1] == 2
    assert counts[len(counts) // 2] == 2
    assert counts.sum() == 5


def test_accuracy(batches: Any, logits: Tensor, labels: Tensor) -> None:
    found = seen("accuracy", batches).result()
    some = labels >= 0
    right = logits[some].argmax(1) == labels[some]
    assert found.pictures == int(some.sum()) < N
    assert found.accuracy == float(right.double().mean())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits[some], labels[some])))
    best = logits[some].argsort(1, descending=True)[:, :5]
    assert found.top5 == float((best == labels[some][:, None]).any(1).double().mean())
    for one in range(CLASSES):
        assert found.per_class[one] == right[labels[some] == one].double().mean()
        for other in range(CLASSES):
            assert found.counts[one, other] == ((labels == one) & (logits.argmax(1) == other)).sum()


def test_accuracy_without_labels_and_with_wrong_ones(batches: Any) -> None:
    accuracy = Accuracy()
    accuracy.update(accuracy.measure(dataclasses.replace(batches[0], labels=torch.full((4,), -1))))
    assert accuracy.result() is None
    with pytest.raises(ValueError, match="a picture has the label 6; expected 0 to 5"):
        accuracy.update(accuracy.measure(dataclasses.replace(batches[0], labels=torch.full((4,), 6))))


def test_correlation(batches: Any, maps: Tensor) -> None:
    found = seen("correlation", batches).result()
    changing = [0, 1, 2, 4]
    values = maps.double().transpose(0, 1).flatten(1).numpy()[changing]
    np.testing.assert_allclose(found[changing][:, changing], np.corrcoef(values), atol=1e-9)
    assert found[3].isnan().all()
    assert found[0, 4] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["top", "moments", "sparsity", "histogram", "correlation"])
def test_a_layer_without_positions(kind: str) -> None:
    x = torch.randn(3, 4)
    statistic = {
        "top": TopK,
        "moments": Moments,
        "sparsity": Sparsity,
        "histogram": Histogram,
        "correlation": Correlation,
    }
    one = statistic[kind]("layer")
    one.update(one.measure(Batch(0, torch.arange(3), x, torch.full((3,), -1), {"layer": x[..., None]}, None)))
    flat = statistic[kind]("layer")
    flat.update(flat.measure(Batch(0, torch.arange(3), x, torch.full((3,), -1), {"layer": x}, None)))
    assert kind == "top" or same(one.result(), flat.result())


@pytest.mark.parametrize("make", [lambda: TopK(3), lambda: TopK("a", 0), lambda: TopK("a", 1.5), lambda: Moments(None)])
def test_wrong_arguments(make: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="expected"):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_activations_are_not_written_to(dtype: torch.dtype) -> None:
    """What follows in the model would come out wrong, and so would what other statistics see."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).to(dtype)
    x, labels = torch.rand(6, 3, 8, 8).to(dtype), torch.tensor([0, 1, 2, 3, 4, 0])
    for kind in (TopK, Moments, Sparsity, Histogram, Correlation):
        collected = {"first": kind("0"), "second": kind("1"), "accuracy": Accuracy(), "top": TopK("3")}
        found = nbviz.scan(net, TensorDataset(x, labels), collected, progress=False)
        with torch.no_grad():
            logits = net(x)
        assert found["accuracy"].loss == pytest.approx(float(nn.functional.cross_entropy(logits.double(), labels)))
        torch.testing.assert_close(found["top"].values[:, 0], logits.amax(0).float())


def test_half_precision() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(torch.bfloat16)
    x = torch.rand(6, 3, 8, 8)
    kinds = {"top": TopK("1"), "moments": Moments("1"), "sparsity": Sparsity("1"), "histogram": Histogram("1")}
    found = nbviz.scan(net, x, {**kinds, "correlation": Correlation("1")}, progress=False)
    values = nbviz.feature_maps(net, x, "1").double()
    torch.testing.assert_close(found["moments"].mean, values.mean((0, 2, 3)))
    assert found["top"].values[:, 0].tolist() == values.amax((0, 2, 3)).tolist()


# Channels switched off


def naive(net: nn.Module, x: Tensor, labels: Tensor, layer: str, mode: str, value: Tensor | None) -> Any:
    """The loop that one would write: a hook for each channel, and the whole network."""
    rows = []
    for channel in range(nbviz.feature_maps(net, x[:1], layer).shape[1]):

        def change(_m: Any, _args: Any, maps: Tensor, channel: int = channel) -> Tensor:
            fill = (torch.zeros(maps.shape[1]) if value is None else value)[None, :, None, None].expand_as(maps)
            off = torch.arange(maps.shape[1]) == channel
            return torch.where((off if mode == "zero" else ~off)[None, :, None, None], fill, maps)

        handle = dict(net.named_modules())[layer].register_forward_hook(change)
        with torch.no_grad():
            logits = torch.cat([net(part) for part in x.split(32)]).double()
        handle.remove()
        right = logits.argmax(1) == labels
        classes = [right[labels == one].double().mean() for one in range(logits.shape[1])]
        rows.append((right.double().mean(), nn.functional.cross_entropy(logits, labels), torch.stack(classes)))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("mode", "mean"), few([("zero", False), ("keep", True), ("keep", False), ("zero", True)], 0, 1)
)
def test_ablation_of_the_bundled_network_is_the_naive_loop(mode: str, mean: bool, snapshot: Any) -> None:
    net, (images, labels) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    x, labels, layer = images[:20, None] / 255, labels[:20], "features.8"
    value = nbviz.feature_maps(net, x, layer).mean((0, 2, 3)) if mean else None
    with snapshot(net):
        dataset = TensorDataset(x, labels)
        found = nbviz.scan(net, dataset, {"off": Ablation(layer, mode, value)}, progress=False)["off"]
    accuracy, loss, per_class = naive(net, x, labels, layer, mode, value)
    assert torch.equal(found.accuracy, accuracy)
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-7)
    assert torch.equal(found.per_class, per_class)
    with torch.no_grad():
        assert found.baseline == float((net(x).argmax(1) == labels).double().mean())
    assert (found.loss[found.ranking].diff() >= 0).all()
    assert found.pictures == 20


@pytest.mark.parametrize("parts", few([1, 2, 5], 2))
def test_ablation_does_not_depend_on_the_parts(parts: int) -> None:
    net, (images, labels) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    dataset = TensorDataset(images[:48, None], labels[:48])
    options: dict[str, Any] = {"batch_size": 8, "progress": False}
    whole = nbviz.scan(net, dataset, {"off": Ablation("features.13")}, **options)["off"]
    with ThreadPoolExecutor(1) as executor:
        options.update(executor=executor, parts=parts)
        assert same(nbviz.scan(net, dataset, {"off": Ablation("features.13")}, **options)["off"], whole)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ablation("a", "mean"), ValueError, "no mode 'mean'.* Accepted: zero, keep"),
        (lambda: Ablation("a", value=3), TypeError, r"value is 3; expected a tensor \(C,\)"),
        (lambda: Ablation("a", at_once=0), ValueError, "at_once is 0; expected at least 1"),
    ],
)
def test_arguments_of_ablation(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_value_for_each_channel_and_no_other_number() -> None:
    net, dataset = nbviz.bundled.load("fashion"), TensorDataset(torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"value has shape \(3,\); expected \(64,\), one for each channel"):
        nbviz.scan(net, dataset, {"off": Ablation("features.8", value=torch.zeros(3))}, progress=False)
