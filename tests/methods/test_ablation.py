"""Channels switched off against the loop that one would write: a hook for each, and the whole network."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import nbviz
from nbviz.errors import InterruptedWarning, PictureError
from nbviz.scanning.statistics import Ablation
from tests.rounds import TIMES, few
from tests.scanning.test_statistics import same

LAYER = "features.8"  # 64 channels
COUNT = 12  # pictures


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nbviz.bundled.load("fashion")


@cache
def pictures(n: int) -> tuple[Tensor, Tensor]:
    images, labels = nbviz.bundled.fashion_test()
    return images[:n, None] / 255, labels[:n]


@pytest.fixture(scope="module")
def dataset() -> TensorDataset:
    return TensorDataset(*pictures(COUNT))


@pytest.fixture(scope="module")
def found(net: nn.Module, dataset: TensorDataset) -> Any:
    return nbviz.ablate(net, dataset, LAYER, points=8, batch_size=8, progress=False)


@contextmanager
def changed(net: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A plain hook."""
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda _m, _args, maps: change(maps))
    try:
        yield
    finally:
        handle.remove()


def answers(net: nn.Module, x: Tensor, layer: str, off: Iterable[int], fill: Tensor | None = None) -> Tensor:
    """The logits with some channels filled, by a loop over them."""

    def change(maps: Tensor) -> Tensor:
        maps = maps.clone()
        for channel in off:
            maps[:, channel] = 0 if fill is None else fill[channel]
        return maps

    with torch.no_grad(), changed(net, layer, change):
        return torch.cat([net(part) for part in x.split(32)])


def scores(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and loss by NumPy."""
    values, named = logits.double().numpy(), labels.numpy()
    losses = np.log(np.exp(values).sum(1)) - values[np.arange(len(values)), named]
    return float(np.mean(values.argmax(1) == named)), float(losses.mean())


def means(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), changed(net, layer, lambda maps: seen.append(maps) or maps):
        net(x)
    return seen[0].double().mean((0, *range(2, seen[0].ndim)))


class Interrupting(Dataset[Any]):
    """A dataset in which Ctrl-C comes when so many items have been read, of all passes together."""

    def __init__(self, dataset: Any, at: int) -> None:
        self.dataset, self.at, self.read = dataset, at, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        if self.read == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.dataset[i]


@pytest.mark.parametrize("mode", ["zero", "mean", "keep"])
def test_a_table_is_the_naive_loop_and_leaves_the_model_as_it_was(
    mode: str, net: nn.Module, dataset: TensorDataset, snapshot: Any
) -> None:
    x, labels = dataset.tensors
    with snapshot(net):
        found = nbviz.ablate(net, dataset, LAYER, mode, points=0, progress=False)
    assert (found.mode, found.layer, found.pictures, found.complete) == (mode, LAYER, COUNT, True)
    fill = means(net, x, LAYER) if mode == "mean" else None
    for channel in range(0, 64, 3 if TIMES else 9):
        others = [one for one in range(64) if one != channel]
        logits = answers(net, x, LAYER, others if mode == "keep" else [channel], fill)
        accuracy, loss = scores(logits, labels)
        assert float(found.accuracy[channel]) == accuracy
        assert float(found.loss[channel]) == pytest.approx(loss, rel=1e-6 if mode != "mean" else 1e-5)
        for one in labels.unique().tolist():
            right = logits[labels == one].argmax(1) == one
            assert found.per_class[channel, one] == right.double().mean()
    assert (found.baseline, found.baseline_loss) == pytest.approx(scores(answers(net, x, LAYER, []), labels), rel=1e-6)
    assert found.ranking.tolist() == np.argsort(found.loss.numpy(), kind="stable").tolist()
    assert (found.steps.shape, found.ranked.shape, found.random.shape) == ((0,), (0,), (3, 0))


TORCHVISION = [
    ("resnet18", "layer4.1.relu:1", "zero", (0, 7, 300)),
    ("resnet18", "layer4.0.bn1", "mean", (3, 511)),
    ("densenet121", "features.denseblock4.denselayer15.conv2", "zero", (0, 31)),
    ("densenet121", "features.denseblock4.denselayer16.conv2", "keep", (5,)),
]


@pytest.mark.parametrize(("build", "layer", "mode", "channels"), few(TORCHVISION, 0, 3))
def test_ablation_of_torchvisions_networks_is_the_naive_loop(
    build: str, layer: str, mode: str, channels: tuple[int, ...], snapshot: Any
) -> None:
    import torchvision

    torch.manual_seed(1)
    net = getattr(torchvision.models, build)(weights=None, num_classes=4).eval()
    x, labels = torch.rand(4, 3, 33, 33), torch.tensor([0, 1, 2, 3])
    with snapshot(net):
        found = nbviz.ablate(net, TensorDataset(x, labels), layer, mode, points=0, progress=False)
    name, _, call = layer.partition(":")
    for channel in channels:
        calls: list[int] = []

        def change(maps: Tensor, channel: int = channel, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            if len(calls) != int(call or 0) + 1:
                return maps
            off = torch.arange(maps.shape[1]) == channel
            fill = maps.mean((0, 2, 3)) if mode == "mean" else torch.zeros(maps.shape[1])
            return torch.where((~off if mode == "keep" else off)[:, None, None], fill[:, None, None], maps)

        with torch.no_grad(), changed(net, name, change):
            accuracy, loss = scores(net(x), labels)
        assert float(found.accuracy[channel]) == accuracy
        assert float(found.loss[channel]) == pytest.approx(loss, rel=1e-6)
    assert found.loss.unique().numel() > 1


# Curves


def test_curves_begin_at_the_baseline_and_end_with_everything_off(net: Any, dataset: Any, found: Any) -> None:
    x, labels = dataset.tensors
    assert found.steps.tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 64]
    assert (found.ranked.shape, found.random.shape) == ((9,), (3, 9))
    nothing, everything = (scores(answers(net, x, LAYER, off), labels)[0] for off in ([], range(64)))
    for curve in (found.ranked, *found.random):
        assert (curve[0], curve[-1]) == (nothing, everything)
    assert found.baseline == nothing


def test_a_point_of_the_ranked_curve_is_those_channels_off_at_once(net: Any, dataset: Any, found: Any) -> None:
    x, labels = dataset.tensors
    for place, step in enumerate(found.steps.tolist()):
        logits = answers(net, x, LAYER, found.ranking[:step].tolist())
        assert found.ranked[place] == scores(logits, labels)[0]
        switched = nbviz.switched_off(net, x, LAYER, found.ranking[:step])
        torch.testing.assert_close(switched, logits)


def test_a_point_of_a_random_curve_is_the_first_of_a_random_order(net: Any, dataset: Any, found: Any) -> None:
    """The orders are those of torch's generator with the seed, which is 0."""
    x, labels = dataset.tensors
    generator = torch.Generator().manual_seed(0)
    for curve in found.random:
        order = torch.randperm(64, generator=generator)
        for place in (3, 6):
            logits = answers(net, x, LAYER, order[: found.steps[place]].tolist())
            assert curve[place] == scores(logits, labels)[0]


def test_with_keep_the_curves_are_of_channels_left_on(net: Any, dataset: Any) -> None:
    x, labels = dataset.tensors
    found = nbviz.ablate(net, dataset, "features.13", "keep", points=4, progress=False)
    for place, step in enumerate(found.steps.tolist()):
        off = set(range(128)) - set(found.ranking[:step].tolist())
        assert found.ranked[place] == scores(answers(net, x, "features.13", off), labels)[0]
    assert found.ranked[-1] == found.baseline


def test_with_mean_the_curves_are_of_means(net: Any, dataset: Any) -> None:
    x, labels = dataset.tensors
    found = nbviz.ablate(net, dataset, "features.13", "mean", points=4, progress=False)
    fill = means(net, x, "features.13")
    for place, step in enumerate(found.steps.tolist()):
        logits = answers(net, x, "features.13", found.ranking[:step].tolist(), fill)
        assert found.ranked[place] == scores(logits, labels)[0]


def test_another_seed_gives_other_random_orders_and_the_same_ranking(net: Any, dataset: Any) -> None:
    options: dict[str, Any] = {"points": 4, "progress": False}
    found, other = (nbviz.ablate(net, dataset, "features.13", seed=seed, **options) for seed in (0, 1))
    assert not torch.equal(other.random, found.random)
    assert torch.equal(other.ranked, found.ranked)


@pytest.mark.parametrize("points", [2, 7, 10**15])
def test_no_more_points_than_channels(points: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    dataset = TensorDataset(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))
    found = nbviz.ablate(net, dataset, "1", points=points, progress=False)
    assert found.steps.tolist() == ([0, 2, 5] if points == 2 else [0, 1, 2, 3, 4, 5])
    assert found.random.shape == (3, len(found.steps))


# Some channels off


def test_switched_off_is_a_hook_by_hand(net: nn.Module, snapshot: Any) -> None:
    x, _ = pictures(5)
    for channels in (3, [0, 63], torch.tensor([5, 5]), (), range(64)):
        with snapshot(net):
            logits = nbviz.switched_off(net, x, LAYER, channels)
        off = [channels] if isinstance(channels, int) else list(channels)
        torch.testing.assert_close(logits, answers(net, x, LAYER, off), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(nbviz.switched_off(net, x, LAYER, []), net(x))


def test_switched_off_takes_pictures_of_any_kind_and_outputs_of_any_shape(net: nn.Module) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"scores": self.net(image) * scale}

    images, _ = nbviz.bundled.fashion_test()
    expected = answers(net, images[:2, None] / 255, LAYER, [7])
    picture = [images[0].numpy(), images[1].numpy()]
    torch.testing.assert_close(nbviz.switched_off(net, picture, LAYER, 7), expected)
    given = nbviz.switched_off(
        Deep(), picture, f"net.{LAYER}", 7, inputs=lambda x: {"image": x, "scale": torch.tensor(2.0)}, output="scores"
    )
    torch.testing.assert_close(given, 2 * expected)


def test_switched_off_of_a_layer_without_positions() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.rand(6, 1, 2, 2)
    torch.testing.assert_close(nbviz.switched_off(net, x, "2", [1]), answers(net, x, "2", [1]))


@pytest.mark.parametrize(
    ("layer", "channels", "message"),
    [
        (LAYER, [64], "^no channel 64: there are 64, numbered 0 to 63$"),
        ("features.99", [0], "^no layer 'features.99'"),
    ],
)
def test_switched_off_refuses_what_is_not_there(net: nn.Module, layer: str, channels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbviz.switched_off(net, pictures(1)[0], layer, channels)


# As a table


def test_the_table_is_a_data_frame_most_redundant_channel_first(found: Any) -> None:
    pandas = pytest.importorskip("pandas")
    table = found.table()
    assert isinstance(table, pandas.DataFrame)
    assert table.columns.tolist() == ["channel", "accuracy", "loss", "fall"]
    assert table.channel.tolist() == found.ranking.tolist()
    assert table.loss.is_monotonic_increasing
    for row in table.itertuples():
        assert row.accuracy == found.accuracy[row.channel]
        assert row.fall == found.baseline - row.accuracy


def test_without_pandas_the_table_is_rows(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = found.table()
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    rows = found.table()
    assert rows == frame.to_dict("records")
    assert isinstance(frame, pandas.DataFrame)
    assert isinstance(rows, builtins.list)


def test_it_shows_the_most_and_the_least_redundant_channels(found: Any) -> None:
    lines = repr(found).splitlines()
    assert lines[0].startswith("64 channels, mode 'zero', 12 pictures: accuracy ")
    shown = [int(one.split()[0]) for one in lines[2:] if "…" not in one]
    assert shown == [*found.ranking[:6].tolist(), *found.ranking[-6:].tolist()]
    first = found.ranking[0]
    assert lines[2].split() == [str(int(first)), f"{found.accuracy[first]:.4f}", f"{found.loss[first]:.4f}"]


# Datasets


def test_pictures_without_a_label_do_not_count(net: nn.Module, dataset: TensorDataset) -> None:
    x, labels = dataset.tensors
    some = [(one, int(label) if i % 5 else None) for i, (one, label) in enumerate(zip(x, labels, strict=True))]
    kept = TensorDataset(*(t[[i for i in range(COUNT) if i % 5]] for t in (x, labels)))
    given, expected = (
        nbviz.ablate(net, one, "features.13", points=2, batch_size=size, progress=False)
        for one, size in ((some, COUNT), (kept, 8))
    )
    assert given.pictures == expected.pictures == 9
    assert torch.equal(given.accuracy, expected.accuracy)
    assert torch.equal(given.ranked, expected.ranked)
    torch.testing.assert_close(given.loss, expected.loss, rtol=1e-6, atol=0)


def test_without_any_label_there_is_no_accuracy(net: nn.Module, dataset: TensorDataset) -> None:
    with pytest.raises(
        ValueError,
        match=r"^no picture of the dataset has a label that is a whole number; expected \(picture, label\), or a f",
    ):
        nbviz.ablate(net, dataset.tensors[0], LAYER, progress=False)


def test_a_label_that_is_no_class_is_left_out_and_said(net: nn.Module) -> None:
    dataset = TensorDataset(torch.rand(2, 1, 28, 28), torch.tensor([0, 10]))
    with pytest.warns(UserWarning, match=r"1 of 2 pictures .*: 1 is no class where the model has 10 \(10, of p"):
        found = nbviz.ablate(net, dataset, LAYER, progress=False)
    assert found.pictures == 1


class Stream(IterableDataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        yield from self.dataset


def test_an_iterable_may_be_gone_through_again_and_an_iterator_only_once(net: Any, dataset: Any) -> None:
    expected = nbviz.ablate(net, dataset, "features.13", points=2, progress=False)
    assert same(nbviz.ablate(net, Stream(dataset), "features.13", points=2, progress=False), expected)
    once = nbviz.ablate(net, iter(list(dataset)), "features.13", points=0, progress=False)
    assert same(once.loss, expected.loss)
    for options in ({"points": 2}, {"points": 0, "mode": "mean"}):
        with pytest.raises(TypeError, match="^an iterator can be read only once; expected a dataset with a len"):
            nbviz.ablate(net, iter(list(dataset)), "features.13", progress=False, **options)


# However it is worked through


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_an_executor_gives_the_same(mode: str, net: Any, dataset: Any) -> None:
    options: dict[str, Any] = {"points": 4, "batch_size": 4, "progress": False}
    expected = nbviz.ablate(net, dataset, "features.13", mode, **options)
    with ThreadPoolExecutor(2) as executor:
        there = nbviz.ablate(net, dataset, "features.13", mode, executor=executor, parts=3, **options)
    assert same(there, expected)


def test_an_interrupt_gives_the_table_of_the_pictures_seen_so_far_without_curves(net: Any, dataset: Any) -> None:
    options: dict[str, Any] = {"batch_size": 8, "progress": False}
    with pytest.warns(InterruptedWarning, match="after 8 pictures"):
        part = nbviz.ablate(net, Interrupting(dataset, 10), "features.13", points=4, **options)
    first = TensorDataset(*(t[:8] for t in dataset.tensors))
    assert not part.complete
    assert "8 pictures (not complete)" in repr(part)
    assert part.ranked.shape == part.steps.shape == (0,)
    whole = nbviz.ablate(net, first, "features.13", points=0, **options)
    assert torch.equal(part.loss, whole.loss)
    assert torch.equal(part.accuracy, whole.accuracy)


@pytest.mark.parametrize("at", [1, 10])
def test_an_interrupt_on_the_way_to_the_curves_keeps_the_table(at: int, net: Any, dataset: Any, found: Any) -> None:
    with pytest.warns(InterruptedWarning):
        part = nbviz.ablate(net, Interrupting(dataset, COUNT + at), LAYER, points=8, batch_size=8, progress=False)
    assert part.complete
    assert torch.equal(part.loss, found.loss)
    assert (part.steps.shape, part.ranked.shape, part.random.shape) == ((0,), (0,), (3, 0))


@pytest.mark.parametrize(("mode", "at"), [("zero", 3), ("mean", 3), ("mean", 10), ("mean", 14)])
def test_an_interrupt_before_there_is_a_table_comes_through(mode: str, at: int, net: Any, dataset: Any) -> None:
    with pytest.warns(InterruptedWarning), pytest.raises(KeyboardInterrupt):
        nbviz.ablate(net, Interrupting(dataset, at), LAYER, mode, batch_size=8, progress=False)


def test_an_interrupted_table_goes_on_from_its_checkpoint(net: Any, dataset: Any, found: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"points": 8, "batch_size": 8, "checkpoint": tmp_path / "table", "progress": False}
    interrupting = Interrupting(dataset, 3 + 10)
    with pytest.warns(InterruptedWarning):
        nbviz.ablate(net, interrupting, LAYER, **options)
    interrupting.read = -1000  # far from being interrupted; another place to be would make it another dataset
    assert same(nbviz.ablate(net, interrupting, LAYER, **options), found)
    assert interrupting.read == 3 + 4 + COUNT - 1000  # those that tell the dataset, what was left, and the curves


def test_watching_is_of_the_pass_that_gives_the_table(net: Any, dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.scanning.scan._WATCH_SECONDS", 1000.0)  # at the end alone, however long it takes
    seen: list[Any] = []
    found = nbviz.ablate(net, dataset, "features.13", "mean", points=2, watch=seen.append, progress=False)
    assert [list(one) for one in seen] == [["off"]]
    assert torch.equal(seen[0]["off"].loss, found.loss)


# Sets of channels in a scan of one's own


def test_sets_of_channels_are_trials(net: Any, dataset: Any) -> None:
    x, labels = dataset.tensors
    off = torch.rand(4, 64) < 0.5
    found = nbviz.scan(net, dataset, {"off": Ablation(LAYER, off=off)}, progress=False)["off"]
    for trial in range(4):
        logits = answers(net, x, LAYER, off[trial].nonzero().flatten().tolist())
        accuracy, loss = scores(logits, labels)
        assert float(found.accuracy[trial]) == accuracy
        assert float(found.loss[trial]) == pytest.approx(loss, rel=1e-6)
    assert found.per_class.shape == (4, 10)
    assert found.loss[found.ranking].diff().ge(0).all()


@pytest.mark.parametrize(
    ("off", "error", "message"),
    [
        (torch.zeros(2, 63).bool(), ValueError, r"^off has shape \(2, 63\); expected \(S, 64\): the layer's channels$"),
        (
            torch.zeros(0, 64).bool(),
            ValueError,
            r"^off has no trials; expected a bool tensor \(S, C\) of at least one$",
        ),
        (torch.zeros(2, 64), TypeError, r"; expected a bool tensor \(S, C\), or None for each channel in turn$"),
        ([[True]], TypeError, "expected a bool tensor"),
    ],
)
def test_what_are_no_trials_is_refused(net: Any, dataset: Any, off: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        nbviz.scan(net, dataset, {"off": Ablation(LAYER, off=off)}, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "features.99"}, ValueError, "^no layer 'features.99'"),
        ({"mode": "half"}, ValueError, "^no mode 'half'. Accepted: zero, mean, keep$"),
        ({"points": -1}, ValueError, "^points is -1; expected at least 0$"),
        ({"seed": 0.5}, TypeError, "^seed is 0.5; expected a whole number$"),
        ({"dataset": []}, PictureError, "^the dataset is empty"),
    ],
)
def test_arguments(net: nn.Module, dataset: Any, arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        nbviz.ablate(net, **{"dataset": dataset, "layer": LAYER, "progress": False, **arguments})


def test_the_loss_is_torchs_cross_entropy() -> None:
    """Of the arithmetic above."""
    logits, labels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    assert scores(logits, labels)[1] == pytest.approx(float(F.cross_entropy(logits, labels)))
