"""Datasets of every kind become batches of inputs; what cannot be read is named and left out."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision import datasets as torchvision_datasets
from torchvision import transforms

import nbviz
from nbviz.errors import PictureError
from nbviz.pictures.load import Reader
from nbviz.scanning.dataset import Folder, Inputs, check_dataset
from nbviz.scanning.records import LoadedBatch

NET = nn.Conv2d(3, 2, 1)


def pictures(n: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(n)]


def expected(n: int = 5) -> torch.Tensor:
    return nbviz.load(NET, pictures(n)).inputs


def loaded(
    dataset: Any, batch_size: int = 2, net: nn.Module = NET, workers: int = 0, **options: Any
) -> list[LoadedBatch]:
    source = Inputs(check_dataset(dataset), Reader.of(net, **options), batch_size)
    return list(source.load(None if source.batches is None else range(source.batches), workers))


def numbers(batch: LoadedBatch) -> list[int]:
    return [label.number for label in batch.labels]


def joined(found: list[LoadedBatch]) -> torch.Tensor:
    return torch.cat([one.inputs for one in found if one.inputs is not None])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two pictures each, one picture beside them, a broken one, and a file that is none."""
    for i, picture in enumerate(pictures()):
        place = tmp_path / ["", "cat", "cat", "dog", "dog"][i]
        place.mkdir(exist_ok=True)
        picture.save(place / f"{i}.png")
    (tmp_path / "dog" / "2broken.png").write_bytes(b"none")
    (tmp_path / "dog" / "notes.txt").write_text("none")
    return tmp_path


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pictures())


LABELS = [3, 1, 0, 2, 1]
DATASETS: dict[str, Any] = {
    "pictures": pictures,
    "arrays": lambda: [np.asarray(p) for p in pictures()],
    "one array": lambda: np.stack([np.asarray(p) for p in pictures()]),
    "one tensor": expected,
    "a list of a kind of its own": lambda: UserList(pictures()),
    "a map-style dataset": lambda: Items(list(pictures())),
    "a stream": Stream,
    "a generator": lambda: iter(pictures()),
    "dicts": lambda: [{"id": i, "photo": p} for i, p in enumerate(pictures())],
}
LABELLED: dict[str, Any] = {
    "pairs": lambda: list(zip(pictures(), LABELS, strict=True)),
    "more than pairs": lambda: [(p, np.int64(y), "else") for p, y in zip(pictures(), LABELS, strict=True)],
    "dicts": lambda: [{"label": y, "img": p} for p, y in zip(pictures(), LABELS, strict=True)],
    "tensors": lambda: TensorDataset(expected(), torch.tensor(LABELS)),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_pictures_without_labels(kind: str) -> None:
    found = loaded(DATASETS[kind]())
    assert torch.equal(joined(found), expected())
    assert [(one.number, one.indices, numbers(one)) for one in found] == [
        (0, [0, 1], [-1, -1]),
        (1, [2, 3], [-1, -1]),
        (2, [4], [-1]),
    ]


@pytest.mark.parametrize("kind", LABELLED)
def test_pictures_with_labels(kind: str) -> None:
    found = loaded(LABELLED[kind](), 3)
    assert torch.equal(joined(found), expected())
    assert [numbers(one) for one in found] == [LABELS[:3], LABELS[3:]]


@pytest.mark.parametrize("label", [[1, 2], torch.tensor([1, 2]), {"boxes": 1}, 1.5, -3])
def test_what_is_no_class_is_no_label_and_says_why(label: Any) -> None:
    (found,) = loaded([(pictures(1)[0], label)])
    assert numbers(found) == [-1]
    assert [(one.index, one.count) for one in found.no_class] == [(0, 1)]
    assert loaded([(pictures(1)[0], None)])[0].no_class == []


def test_a_folder(folder: Path) -> None:
    dataset = Folder(folder)
    assert dataset.classes == ["cat", "dog"]
    found = loaded(folder, 4)
    assert torch.equal(joined(found), expected())
    assert [numbers(one) for one in found] == [[-1, 0, 0], [1, 1]]
    (skipped,) = found[0].skipped
    assert (skipped.index, Path(skipped.name)) == (3, folder / "dog" / "2broken.png")
    assert "no picture that can be read" in skipped.reason
    assert torch.equal(joined(loaded(str(folder / "cat"))), expected()[1:3])


def test_links_in_a_folder_are_followed_and_each_folder_is_seen_once(folder: Path, tmp_path_factory: Any) -> None:
    expected = Folder(folder).samples
    (folder / "cat" / "itself").symlink_to(folder / "cat")
    (folder / "cat" / "above").symlink_to(folder)
    (folder / "cat" / "beside").symlink_to(folder / "dog")
    (folder / "dog" / "beside").symlink_to(folder / "cat")
    (folder / "dog" / "nowhere.png").symlink_to(folder / "none.png")
    (folder / "dog" / "round").symlink_to(folder / "dog" / "round")
    (folder / "all").symlink_to(folder)
    (folder / "kitten").symlink_to(folder / "cat")
    assert Folder(folder).samples == expected
    assert Folder(folder).classes == ["cat", "dog"]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    pictures(1)[0].save(elsewhere / "far.png")
    (folder / "fox").symlink_to(elsewhere)
    (folder / "dog" / "fox").symlink_to(elsewhere)
    (folder / "dog" / "also a cat.png").symlink_to(folder / "cat" / "1.png")
    found = Folder(folder)
    assert found.classes == ["cat", "dog", "fox"]
    assert [(str(Path(name).relative_to(folder)), label) for name, label in found.samples] == [
        *(("0.png", None), ("cat/1.png", 0), ("cat/2.png", 0), ("dog/2broken.png", 1), ("dog/3.png", 1)),
        *(("dog/4.png", 1), ("dog/also a cat.png", 1), ("fox/far.png", 2)),
    ]
    assert len(Folder(folder / "fox").samples) == 1


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no picture in the folder .*; expected a folder's path"):
        check_dataset(tmp_path)
    with pytest.raises(PictureError, match="there is no folder .*; expected a folder's path"):
        check_dataset(tmp_path / "none")


def test_torchvisions_image_folder(folder: Path) -> None:
    (folder / "dog" / "2broken.png").rename(folder / "dog" / "5broken.png")
    for transform in (None, transforms.ToTensor()):
        dataset = torchvision_datasets.ImageFolder(folder, transform)
        found = loaded(dataset, 8)
        assert torch.equal(joined(found), expected()[1:])
        assert numbers(found[0]) == [0, 0, 1, 1]
        assert [Path(one.name).name for one in found[0].skipped] == ["5broken.png"]


def test_hugging_faces(tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a", "b", "c", "d"])})
    dataset = hub.Dataset.from_dict({"image": pictures(), "label": LABELS}, features)
    for one in (dataset, dataset.to_iterable_dataset()):
        found = loaded(one, 5)
        assert torch.equal(joined(found), expected())
        assert numbers(found[0]) == LABELS


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    items = [
        pictures(1)[0],
        KeyError("lost"),
        "none.png",
        {"text": "no picture"},
        (),
        np.stack([np.asarray(p) for p in pictures(2)]),
        3,
    ]
    found = loaded(Items(items), 4)
    assert [one.indices for one in found] == [[0], []]
    assert found[1].inputs is None
    reasons = {one.index: one.reason for batch in found for one in batch.skipped}
    assert set(reasons) == {1, 2, 3, 4, 5, 6}
    for i, reason in {
        1: "KeyError: 'lost'",
        2: "no file",
        3: "the keys text",
        4: "an item is empty",
        5: "it holds 2 pictures",
        6: "int",
    }.items():
        assert reason in reasons[i]


def test_the_first_is_the_first_that_can_be_read() -> None:
    source = Inputs(Items(["none.png", 3, *pictures(2)]), Reader.of(NET), 2)
    assert torch.equal(source.first(), expected(1))


def test_a_broken_file_in_a_list_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (batch,) = loaded([tmp_path / "a.png"])
    assert batch.skipped[0].name == str(tmp_path / "a.png")


def test_pictures_of_different_sizes() -> None:
    small = pictures(1)[0].resize((4, 4))
    with pytest.raises(PictureError, match="pictures 0 to 1 .* different sizes: .* or batch_size=1"):
        loaded([*pictures(1), small])
    assert [tuple(one.inputs.shape) for one in loaded([*pictures(1), small], 1)] == [(1, 3, 6, 8), (1, 3, 4, 4)]


def test_processes_that_read(folder: Path) -> None:
    before = torch.get_rng_state()
    assert torch.equal(joined(loaded(folder, 2, workers=2)), expected())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transform_that_crops_at_random_leaves_the_random_numbers_alone() -> None:
    preprocess = transforms.Compose([transforms.RandomCrop(4), transforms.ToTensor()])
    before = torch.get_rng_state()
    assert joined(loaded(pictures(), preprocess=preprocess)).shape == (5, 3, 4, 4)
    assert joined(loaded(iter(pictures()), preprocess=preprocess)).shape == (5, 3, 4, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_that_fails() -> None:
    def stream() -> Any:
        yield pictures(1)[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(PictureError, match="failed after 1 items: RuntimeError: the disk is gone; expected"):
        loaded(stream())


@pytest.mark.parametrize("given", [None, 3, {"a": 1}, b"bytes", torch.tensor(1), Image.new("L", (2, 2)), object()])
def test_what_is_no_dataset(given: Any) -> None:
    with pytest.raises(TypeError, match=r"^dataset is .*; expected a folder's path, "):
        check_dataset(given)


def test_signals() -> None:
    net, x = nn.Conv1d(2, 3, 3), torch.randn(5, 2, 9)
    assert torch.equal(joined(loaded(list(x), net=net)), x)
    assert torch.equal(joined(loaded(x, net=net)), x)
