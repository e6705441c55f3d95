"""The strongest patches against a search by hand through all activations, cut out by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import nbviz
from nbviz.core.backward import RULES
from nbviz.errors import InterruptedWarning, PictureError
from nbviz.scanning.statistics import TopKResult
from tests.methods.test_ablation import Interrupting
from tests.rounds import TIMES, long


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nbviz.bundled.load("fashion")


@pytest.fixture(scope="module")
def dataset() -> TensorDataset:
    """All 1,000 bundled pictures."""
    images, labels = nbviz.bundled.fashion_test()
    return TensorDataset(images[:, None], labels)


@pytest.fixture(scope="module")
def few(dataset: TensorDataset) -> TensorDataset:
    """60 of them, of which the last 20 come a second time: ties."""
    order = [*range(40), *range(20)]
    return TensorDataset(*(t[order] for t in dataset.tensors))


@pytest.fixture(scope="module")
def found(net: nn.Module, few: TensorDataset) -> nbviz.methods.top_patches.TopPatchesResult:
    return nbviz.top_patches(net, few, "features.8", progress=False)


def activations(net: nn.Module, x: Tensor, layer: str, call: int = 0) -> Tensor:
    """By a plain hook, in batches as a scan makes them."""
    seen: list[Tensor] = []
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda *args: seen.append(args[2].clone()))
    with torch.no_grad():
        for part in x.split(32):
            net(part)
    handle.remove()
    calls = len(seen) // len(x.split(32))
    return torch.cat(seen[call::calls])


def searched(maps: Tensor, labels: Any, k: int) -> list[list[tuple[float, int, tuple[int, ...], int]]]:
    """For each channel the k strongest pictures: value, index, position, label; one loop over everything."""
    rows = []
    for channel in range(maps.shape[1]):
        best = []
        for i, one in enumerate(maps[:, channel].numpy()):
            position = np.unravel_index(one.argmax(), one.shape)
            best.append((float(one[position]), i, tuple(map(int, position)), int(labels[i])))
        rows.append(sorted(best, key=lambda found: (-found[0], found[1]))[:k])
    return rows


def as_rows(found: TopKResult) -> Any:
    lists = (t.tolist() for t in (found.values, found.indices, found.positions, found.labels))
    return [[(v, i, tuple(p), n) for v, i, p, n in zip(*row, strict=True)] for row in zip(*lists, strict=True)]


@pytest.mark.parametrize(
    ("count", "layer"),
    [
        (150, "features.8"),
        *(pytest.param(1000, layer, marks=long) for layer in ("features.8", "features.13")),
    ],
)
def test_many_pictures_give_exactly_what_a_search_by_hand_finds(
    count: int, layer: str, net: nn.Module, dataset: TensorDataset, snapshot: Any
) -> None:
    images, labels = (t[:count] for t in dataset.tensors)
    with snapshot(net):
        found = nbviz.top_patches(net, TensorDataset(images, labels), layer, progress=False)
    expected = searched(activations(net, images / 255, layer), labels, 9)
    assert as_rows(found) == expected
    assert found.channels.tolist() == list(range(len(expected)))
    assert found.complete


def test_of_equal_ones_the_lower_index_and_the_first_position_come_first(net: nn.Module, few: TensorDataset) -> None:
    images, labels = few.tensors
    flat = torch.cat([images, torch.full((30, 1, 28, 28), 40, dtype=torch.uint8)])  # equal at many positions
    named = torch.cat([labels, torch.zeros(30, dtype=torch.int64)])
    found = nbviz.top_patches(net, TensorDataset(flat, named), "features.1", k=60, progress=False)
    expected = searched(activations(net, flat / 255, "features.1"), named, 60)
    assert as_rows(found) == expected
    values = torch.tensor([[one[0] for one in row] for row in expected])
    assert (values.diff() == 0).sum() > 500  # ties there were


def test_classes_have_the_names_that_are_given(net: nn.Module, few: TensorDataset) -> None:
    names = [f"kind {i}" for i in range(10)]
    named = nbviz.top_patches(net, few, "features.8", [3], k=2, labels=names, progress=False)
    assert named.names == tuple(names)
    view = nbviz.TopPatches(net, few, "features.8", [3], k=2, labels=names, progress=False)
    view.finish()
    assert "kind" in view.panels.slot("patches_0")["caption"]
    assert "labels=" in view.header.code
    with pytest.raises(TypeError, match="labels is a int; expected a list of names"):
        nbviz.top_patches(net, few, "features.8", labels=3)


def test_some_channels_are_rows_of_all(net: nn.Module, few: TensorDataset, found: Any) -> None:
    some = nbviz.top_patches(net, few, "features.8", [41, 3], 4, progress=False)
    assert some.channels.tolist() == [41, 3]
    assert as_rows(some) == [row[:4] for row in (as_rows(found)[41], as_rows(found)[3])]
    for channel in (41, 3):
        assert torch.equal(some.patches(channel), found.patches(channel)[:4])
        torch.testing.assert_close(some.reconstructions(channel), found.reconstructions(channel)[:4])
    assert as_rows(nbviz.top_patches(net, few, "features.8", 41, 4, progress=False)) == as_rows(some)[:1]
    none = nbviz.top_patches(net, few, "features.8", (), progress=False)
    assert (none.values.shape, none.size) == ((0, 9), (14, 14))


# What is to be seen there


def by_hand(picture: Any, corner: tuple[int, ...], size: int, fill: int) -> Any:
    """A square cut out of a picture (C, H, W) that lies on a wide sheet of the fill."""
    wide = 2 * size
    sheet = np.full((len(picture), *(side + 2 * wide for side in picture.shape[1:])), fill, picture.dtype)
    sheet[:, wide : wide + picture.shape[1], wide : wide + picture.shape[2]] = picture
    top, left = (wide + place for place in corner)
    return sheet[:, top : top + size, left : left + size]


def test_patches_are_the_pictures_cut_at_the_receptive_field_grey_beyond_them(few: Any, found: Any) -> None:
    """features.8 sees 14×14 pixels, two convolutions, pooling, and two more: from 2 * i - 6 on."""
    assert found.size == (14, 14)
    beyond = 0
    for channel in range(64):
        patches = found.patches(channel)
        assert (patches.shape, patches.dtype) == ((9, 3, 14, 14), torch.uint8)
        for k, (_, i, (row, column), _) in enumerate(as_rows(found)[channel]):
            corner = 2 * row - 6, 2 * column - 6
            expected = by_hand(np.repeat(few.tensors[0][i].numpy(), 3, 0), corner, 14, 128)
            assert np.array_equal(patches[k].numpy(), expected)
            beyond += min(corner) < 0 or max(corner) > 14
    assert beyond > 100


@pytest.mark.parametrize("rule", RULES)
def test_reconstructions_are_those_of_the_picture_alone_cut_at_the_same_box(
    rule: str, net: nn.Module, few: Any, found: Any, by_hand_signal: Callable[..., Tensor]
) -> None:
    for channel in (0, 11, 41) if TIMES else (11, 41):
        parts = found.reconstructions(channel, rule)
        assert parts.shape == (9, 1, 14, 14)
        for k, (value, i, (row, column), _) in enumerate(as_rows(found)[channel]):
            x = few.tensors[0][i][None] / 255
            whole = nbviz.reconstruct(net, x, "features.8", [channel], rules=[rule])[rule][0, 0]
            signal = by_hand_signal(net, x, rule, channel, (row, column), value)
            torch.testing.assert_close(whole, signal, rtol=1e-4, atol=1e-6)
            box = (2 * row - 6, 2 * column - 6)
            expected = by_hand(whole.numpy(), box, 14, 0)
            np.testing.assert_allclose(parts[k].numpy(), expected, rtol=1e-4, atol=1e-5)
            inside = np.abs(expected).sum()
            assert inside == pytest.approx(float(whole.abs().sum()), rel=1e-5)  # all zero outside the box
            assert inside > 0


@pytest.fixture
def by_hand_signal(by_hand: Callable[..., Any]) -> Callable[..., Tensor]:
    """Plain autograd with each rectifier's rule written out, from one position of features.8."""

    def signal(net: nn.Module, x: Tensor, rule: str, channel: int, position: Any, value: float) -> Tensor:
        def seed(maps: Tensor) -> Tensor:
            start = torch.zeros_like(maps)
            start[(0, channel, *position)] = value
            return start

        return by_hand(net, x, "features.8", rule, seed)[0][0]

    return signal


def test_a_patch_and_its_reconstruction_show_the_same_pixels(net: nn.Module, few: Any) -> None:
    """With another picture outside the box the activation is the same; with another pixel inside it, it is not."""
    found = nbviz.top_patches(net, few, "features.8", [11], 3, progress=False)
    signal, generator = found.reconstructions(11, "gradient"), torch.Generator().manual_seed(0)
    for k, (value, i, (row, column), _) in enumerate(as_rows(found)[0]):
        x, top, left = few.tensors[0][i][None] / 255, 2 * row - 6, 2 * column - 6
        rows, columns = slice(max(top, 0), top + 14), slice(max(left, 0), left + 14)
        other = torch.rand(x.shape, generator=generator)
        other[..., rows, columns] = x[..., rows, columns]
        assert float(activations(net, other, "features.8")[0, 11, row, column]) == pytest.approx(value, rel=1e-5)
        y, z = np.unravel_index(int(signal[k, 0].abs().argmax()), (14, 14))
        changed = x.clone()
        changed[0, 0, top + y, left + z] += 1e-3
        change = float(activations(net, changed, "features.8")[0, 11, row, column]) - value
        # The signal starts from the activation, where a gradient would from one.
        assert change == pytest.approx(1e-3 * float(signal[k, 0, y, z]) / value, rel=0.05)


def test_a_layer_that_sees_more_than_the_picture_gives_whole_pictures(net: nn.Module, few: Any) -> None:
    found = nbviz.top_patches(net, few, "features.13", [5], 2, progress=False)
    assert found.size == (28, 28)
    for k, i in enumerate(found.indices[0].tolist()):
        assert torch.equal(found.patches(5)[k], few.tensors[0][i].expand(3, 28, 28))
        whole = nbviz.deconvnet(net, few.tensors[0][i][None], "features.13", [5])[0, 0]
        torch.testing.assert_close(found.reconstructions(5)[k], whole, rtol=1e-4, atol=1e-5)


def test_more_places_than_pictures_are_empty(net: nn.Module, few: Any) -> None:
    three = TensorDataset(*(t[:3] for t in few.tensors))
    found = nbviz.top_patches(net, three, "features.8", [11], 5, progress=False)
    assert found.indices[0, 3:].tolist() == found.labels[0, 3:].tolist() == [-1, -1]
    assert found.values[0, 3:].tolist() == [-torch.inf] * 2
    assert (
        as_rows(found)[0][:3] == searched(activations(net, three.tensors[0] / 255, "features.8"), few.tensors[1], 3)[11]
    )
    assert found.patches(11).shape == (5, 3, 14, 14)
    assert (found.patches(11)[3:] == 128).all()
    assert not found.reconstructions(11)[3:].any()
    assert found.reconstructions(11)[:3].any()


class Signals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv1d(2, 3, 5, stride=2, padding=2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)).mean(2)


def test_of_signals() -> None:
    net, x = Signals(), torch.rand(10, 2, 20)
    found = nbviz.top_patches(net, x, "relu", progress=False)
    assert as_rows(found) == searched(activations(net, x, "relu"), [-1] * 10, 9)
    assert found.size == (5,)
    for channel in range(3):
        patches, parts = found.patches(channel), found.reconstructions(channel, "gradient")
        assert (patches.shape, parts.shape) == ((9, 2, 5), (9, 2, 5))
        for k, (value, i, (place,), _) in enumerate(as_rows(found)[channel]):
            for column in range(5):
                at = 2 * place - 2 + column
                inside = 0 <= at < 20
                shown = (x[i, :, at] * 255).round().tolist() if inside else [128] * 2
                assert patches[k, :, column].tolist() == shown
                weight = net.conv.weight[channel, :, column].detach()
                torch.testing.assert_close(parts[k, :, column], weight * value * inside)


@pytest.mark.parametrize(("layer", "size", "step", "first"), [("relu", 7, 2, -3), ("layer1.0.relu", 19, 4, -9)])
def test_of_resnet18(layer: str, size: int, step: int, first: int, snapshot: Any) -> None:
    """By hand: 7 wide with stride 2, pooling 3 wide with stride 2, then a convolution 3 wide."""
    import torchvision

    net = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(12, 3, 65, 65)
    with snapshot(net):
        found = nbviz.top_patches(net, x, layer, [1, 40], 3, progress=False)
        patches, parts = found.patches(40), found.reconstructions(40)
    expected = searched(activations(net, x, layer), [-1] * 12, 3)
    assert as_rows(found) == [expected[1], expected[40]]
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for k, (_, i, (row, column), _) in enumerate(expected[40]):
        corner = step * row + first, step * column + first
        shown = (np.clip(x[i].numpy() * std + mean, 0, 1) * 255).round().astype(np.uint8)
        off = np.abs(patches[k].numpy().astype(int) - by_hand(shown, corner, size, 128))
        assert off.max() <= 1  # rounded in another precision
        assert off.mean() < 0.01
        whole = nbviz.deconvnet(net, x[i : i + 1], layer, [40])[0, 0]
        expected_part = by_hand(whole.numpy(), corner, size, 0)
        np.testing.assert_allclose(parts[k].numpy(), expected_part, rtol=1e-3, atol=1e-5 * np.abs(whole.numpy()).max())
        assert np.abs(expected_part).sum() == pytest.approx(float(whole.abs().sum()), rel=1e-5)


def test_of_a_modules_second_call() -> None:
    import torchvision

    net, x = torchvision.models.resnet18(weights=None).eval(), torch.randn(5, 3, 33, 33)
    found = nbviz.top_patches(net, x, "layer1.0.relu:1", [2], 2, progress=False)
    assert as_rows(found)[0] == searched(activations(net, x, "layer1.0.relu", 1), [-1] * 5, 2)[2]
    assert found.reconstructions(2).shape == (2, 3, *found.size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_the_models_dtype(dtype: torch.dtype, few: Any) -> None:
    """In half precision an activation in another batch may be another one by a hundredth, and is let pass."""
    net = nbviz.bundled.load("fashion").to(dtype)
    images, labels = (t[-12:] for t in few.tensors)
    found = nbviz.top_patches(net, TensorDataset(images, labels), "features.8", progress=False)
    for channel in range(0, 64, 4 if TIMES else 16):
        assert found.reconstructions(channel).dtype == dtype
    expected = searched(activations(net, (images / 255).to(dtype), "features.8").float(), labels, 9)
    assert as_rows(found) == expected


# The dataset is read again


class Reading(Dataset[Any]):
    """Pictures whose ``change`` takes effect after ``then``; draws random numbers each time, as transforms do."""

    def __init__(self, few: TensorDataset, change: Callable[[int], Any]) -> None:
        self.few, self.change, self.changed = few, change, False

    def __len__(self) -> int:
        return len(self.few)

    def __getitem__(self, i: int) -> Any:
        torch.rand(3)
        return self.change(i) if self.changed else self.few[i]


def test_random_numbers_and_the_model_stay_as_they_are(net: nn.Module, few: TensorDataset, snapshot: Any) -> None:
    dataset = Reading(few, lambda i: few[i])
    with snapshot(net):
        found = nbviz.top_patches(net, dataset, "features.8", [11], progress=False)
        found.patches(11)
        for rule in RULES:
            found.reconstructions(11, rule)


def test_a_dataset_that_gives_other_pictures_the_second_time_is_refused(net: nn.Module, few: TensorDataset) -> None:
    dataset = Reading(few, lambda i: few[(i + 7) % len(few)])
    found = nbviz.top_patches(net, dataset, "features.8", progress=False)
    assert found.reconstructions(11).any()
    dataset.changed = True
    assert found.reconstructions(11).any()  # the pictures last asked for are kept
    living = [c for c in range(64) if found.values[c, 0] > 0]
    assert len(living) > 50
    for channel in living[:: 1 if TIMES else 5]:
        if channel != 11:
            with pytest.raises(PictureError, match="gave .* in the scan and gives .* expected a dataset that gives"):
                found.reconstructions(channel)


def test_other_pictures_are_noticed_by_a_channel_that_is_weak_beside_the_others(few: TensorDataset) -> None:
    net = nbviz.bundled.load("fashion")
    with torch.no_grad():
        net.features[7].weight[11] *= 1e-4
        net.features[7].bias[11] *= 1e-4
    dataset = Reading(few, lambda i: few[(i + 7) % len(few)])
    found = nbviz.top_patches(net, dataset, "features.8", [11], progress=False)
    assert 0 < found.values.max() < 1e-3
    dataset.changed = True
    with pytest.raises(PictureError, match="expected a dataset that gives"):
        found.reconstructions(11)


def test_another_model_than_in_the_scan_is_refused(few: TensorDataset) -> None:
    net = nbviz.bundled.load("fashion")
    found = nbviz.top_patches(net, few, "features.8", [11], progress=False)
    with torch.no_grad():
        net.features[5].weight.mul_(1.1)
    with pytest.raises(PictureError, match="and the model as it was$"):
        found.reconstructions(11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: "none.png", r"^picture \d+ cannot be read any more: there is no file"),
        (lambda i: torch.rand(1, 30, 28), r"^picture \d+ has the sides \(30, 28\); expected .* \(28, 28\)$"),
    ],
)
def test_pictures_that_are_gone_or_of_another_size_are_an_error(net: Any, few: Any, change: Any, message: str) -> None:
    dataset = Reading(few, change)
    found = nbviz.top_patches(net, dataset, "features.8", [11], progress=False)
    dataset.changed = True
    for what in (found.patches, found.reconstructions):
        with pytest.raises(PictureError, match=message):
            what(11)


def test_what_cannot_be_read_is_skipped_and_named(tmp_path: Path, net: nn.Module, few: TensorDataset) -> None:
    (tmp_path / "0.png").write_bytes(b"none")
    for i in range(1, 5):
        Image.fromarray(few.tensors[0][i, 0].numpy()).save(tmp_path / f"{i}.png")
    found = nbviz.top_patches(net, tmp_path, "features.8", [11], 2, progress=False)
    assert [(one.index, Path(one.name).name) for one in found.skipped] == [(0, "0.png")]
    expected = searched(activations(net, few.tensors[0][1:5] / 255, "features.8"), [-1] * 4, 2)[11]
    assert as_rows(found)[0] == [(value, i + 1, position, label) for value, i, position, label in expected]
    assert found.patches(11).shape == (2, 3, 14, 14)
    for one in tmp_path.iterdir():
        one.write_bytes(b"none")
    with pytest.raises(PictureError, match="^none of the first 5 pictures can be read; expected .*0.png: .*is no pict"):
        nbviz.top_patches(net, tmp_path, "features.8", progress=False)


def test_an_interrupt_gives_the_patches_of_the_pictures_seen_so_far(net: Any, few: Any) -> None:
    dataset = Interrupting(few, 40)
    with pytest.warns(InterruptedWarning, match="after 32 pictures"):
        found = nbviz.top_patches(net, dataset, "features.8", [11], progress=False)
    assert not found.complete
    assert "not complete" in repr(found)
    expected = searched(activations(net, few.tensors[0][:32] / 255, "features.8"), few.tensors[1], 9)[11]
    assert as_rows(found)[0] == expected
    with pytest.warns(InterruptedWarning), pytest.raises(KeyboardInterrupt):
        nbviz.top_patches(net, Interrupting(few, 3), "features.8", [11], progress=False)


def test_the_same_on_an_executor_from_a_checkpoint_and_in_parts(net: Any, few: Any, found: Any, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        there = nbviz.top_patches(net, few, "features.8", executor=executor, parts=2, progress=False)
    assert as_rows(there) == as_rows(found)
    for _ in range(2):
        again = nbviz.top_patches(net, few, "features.8", checkpoint=tmp_path / "c", batch_size=32, progress=False)
        assert as_rows(again) == as_rows(found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "classifier"}, ValueError, "^layer 'classifier' gives no feature maps. Accepted: features.0, "),
        ({"layer": "features.8:1"}, ValueError, "^layer 'features.8:1' gives no feature maps"),
        ({"layer": "feature.8"}, ValueError, "^no layer 'feature.8'; did you mean 'features.8'"),
        ({"channels": [64]}, ValueError, "^no channel 64: there are 64, numbered 0 to 63$"),
        ({"k": 0}, ValueError, "^k is 0; expected at least 1$"),
        ({"k": 10**9}, ValueError, "^k is 1000000000; expected at most 1000$"),
        ({"dataset": iter([])}, TypeError, "^an iterable dataset can be read only once; expected one with a length"),
        ({"dataset": []}, PictureError, "^the dataset is empty; expected at least one picture$"),
        (
            {"dataset": range(10**12)},
            PictureError,
            "^none of the first 1000 pictures can be read; expected",
        ),
    ],
)
def test_arguments(net: nn.Module, few: Any, arguments: Any, error: Any, message: str) -> None:
    given = {"dataset": few, "layer": "features.8", "progress": False, **arguments}
    with pytest.raises(error, match=message):
        nbviz.top_patches(net, **given)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.array, torch.tensor, lambda number: [number]])
def test_a_channel_may_be_any_whole_number(kind: Any, found: Any) -> None:
    assert torch.equal(found.patches(kind(11)), found.patches(11))
    assert torch.equal(found.reconstructions(kind(11)), found.reconstructions(11))


def test_a_channel_or_rule_that_was_not_asked_for_is_refused(net: nn.Module, few: Any) -> None:
    found = nbviz.top_patches(net, few, "features.8", [3, 11], progress=False)
    for what in (found.patches, found.reconstructions):
        with pytest.raises(
            ValueError, match=r"^no channel 4: the patches are those of \[3, 11\]; expected one of these$"
        ):
            what(4)
        with pytest.raises(ValueError, match="^no channel 64: there are 64"):
            what(64)
    with pytest.raises(ValueError, match="^no rule 'max'.* Accepted: gradient, deconvnet, guided$"):
        found.reconstructions(3, "max")


def test_a_channel_that_is_no_number_has_no_patches() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    nn.init.constant_(net[0].bias.data[1:], torch.nan)
    found = nbviz.top_patches(net, torch.rand(3, 1, 8, 8), "0", progress=False)
    assert found.patches(0).shape == (9, 3, 3, 3)
    with pytest.raises(ValueError, match=r"^channel 1 is NaN in all pictures; expected one with numbers$"):
        found.patches(1)


def test_the_seed_of_the_person_does_not_matter(net: nn.Module, few: Any, found: Any) -> None:
    torch.manual_seed(99)
    random.seed(99)
    assert as_rows(nbviz.top_patches(net, few, "features.8", progress=False)) == as_rows(found)
