"""Datasets of every kind, in batches of a model's inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nbviz.core.errors import PictureError, line, shown
from nbviz.core.scan import Loaded, Skipped
from nbviz.imaging.load import Reader, as_path

#: Under which names the items of a dataset, if they are dicts, hold the picture and its class.
PICTURE_KEYS = ("image", "img", "picture", "pixel_values", "jpg", "png", "jpeg")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "cls", "class")
_ACCEPTED = (
    "a folder's path, a torchvision or Hugging Face dataset, anything with a length and items, or an iterable; "
    "its items are pictures, (picture, label) or dicts of these"
)


class Folder(Dataset[Any]):
    """The pictures below a folder; those in each of its sub-folders are a class, in the order of their names.

    Parameters
    ----------
    path
        Of the folder. Where no picture lies in a sub-folder, there are no classes.

    Raises
    ------
    PictureError
        When there is no such folder, or no picture in it.
    """

    def __init__(self, path: Path) -> None:
        known = Image.registered_extensions()
        try:
            there = path.is_dir()
        except (OSError, ValueError):  # a name that no folder can have
            there = False
        if not there:
            raise PictureError(f"there is no folder {shown(str(path), 200)}; expected {_ACCEPTED}")
        self.path = str(path)
        self.classes = sorted(one.name for one in path.iterdir() if one.is_dir())
        groups = [(path / name, label) for label, name in enumerate(self.classes)]
        # What lies beside the classes' folders belongs to none of them.
        beside = [(file, None) for file in sorted(path.iterdir()) if file.is_file()]
        inside = [(file, label) for folder, label in groups for file in sorted(folder.rglob("*")) if file.is_file()]
        self.samples = [(str(file), label) for file, label in [*beside, *inside] if file.suffix.lower() in known]
        if not self.samples:
            raise PictureError(f"there is no picture in the folder {shown(str(path), 200)}; expected {_ACCEPTED}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[str, int | None]:
        return self.samples[i]

    def __str__(self) -> str:
        return f"Folder {self.path}"


def check_dataset(given: Any) -> Any:
    """The dataset: of a folder's path, a :class:`Folder`; otherwise as it is, if it is one.

    Raises
    ------
    TypeError, PictureError
        For anything that is none.
    """
    if isinstance(given, (str, os.PathLike)):
        return Folder(as_path(given).expanduser())
    if (isinstance(given, Tensor) and given.ndim == 0) or isinstance(given, (Mapping, bytes, Image.Image)):
        raise TypeError(f"dataset is a {type(given).__name__}; expected {_ACCEPTED}")
    try:
        sized = hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, IterableDataset)
        if sized or isinstance(given, Iterable):
            return given
    except Exception:  # an object of the person's own that fails however it is looked at
        pass
    raise TypeError(f"dataset is {type(given).__name__}; expected {_ACCEPTED}")


@dataclass
class Inputs(Dataset[Any]):
    """A dataset as a model's inputs, in batches: the source of a scan.

    Parameters
    ----------
    dataset
        What :func:`check_dataset` lets pass.
    reader
        The model's.
    batch_size
        How many pictures a batch has, but for the last.
    """

    dataset: Any
    reader: Reader
    batch_size: int

    def __post_init__(self) -> None:
        self.count = _length(self.dataset)
        self.batches = None if self.count is None else -(-self.count // self.batch_size)

    def __str__(self) -> str:
        return f"{self.count} pictures of a {type(self.dataset).__name__} by {self.batch_size}"

    def load(self, numbers: Sequence[int] | None, workers: int = 0) -> Iterator[Loaded]:
        """These batches in order (None: all), read by so many processes beside this one.

        Raises
        ------
        PictureError
            When the pictures of a batch differ in size.
        """
        if numbers is None:
            yield from self._stream()
            return
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_sampler=[self._indices(number) for number in numbers],
            num_workers=workers,
            collate_fn=list,
            # Its seed would come from the person's random numbers.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        for number in numbers:
            with torch.random.fork_rng(devices=[]):  # a transform that crops at random draws from them too
                items = next(batches)
            yield _batch(number, items)

    def _indices(self, number: int) -> list[int]:
        start = number * self.batch_size
        return list(range(start, min(start + self.batch_size, len(self))))

    def _stream(self) -> Iterator[Loaded]:
        """All batches of an iterable dataset."""
        items: list[Any] = []
        number = 0
        for i, item in enumerate(_given(self.dataset)):
            with torch.random.fork_rng(devices=[]):
                items.append(self._read(i, item))
            if len(items) == self.batch_size:
                yield _batch(number, items)
                items, number = [], number + 1
        if items:
            yield _batch(number, items)

    def __len__(self) -> int:
        return self.count or 0

    def __getitem__(self, i: int) -> tuple[int, Tensor, int] | Skipped:
        try:
            item = self.dataset[i]
        except Exception as error:
            return Skipped(i, _name(self.dataset, i), f"{type(error).__name__}: {line(error)}")
        return self._read(i, item)

    def _read(self, i: int, item: Any) -> tuple[int, Tensor, int] | Skipped:
        """The picture's input (C, H, W) and class, -1 where there is none."""
        try:
            picture, label = _picture_and_label(item)
            found = list(self.reader.read(picture, i))
            if len(found) != 1:
                raise PictureError(f"it holds {len(found)} pictures; expected one")
            return i, found[0][1], label
        except Exception as error:
            return Skipped(i, _name(self.dataset, i), line(error))


def _given(dataset: Any) -> Iterator[Any]:
    """What an iterable gives, until its end."""
    n = 0
    try:
        for n, item in enumerate(dataset, 1):  # noqa: B007 - for the error
            yield item
    except GeneratorExit:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {line(error, 1000)}"
        raise PictureError(f"the dataset failed after {n} items: {said}; expected {_ACCEPTED}") from error


def _length(dataset: Any) -> int | None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return None
    try:
        return len(dataset)
    except Exception:  # an iterable that has the method and not the answer
        return None


def _name(dataset: Any, i: int) -> str:
    """What a person finds a picture by: its file's path where the dataset keeps it, as torchvision's do."""
    named = (getattr(dataset, "samples", None), getattr(dataset, "imgs", None), dataset)
    samples = next((one for one in named if isinstance(one, (list, tuple)) and i < len(one)), None)
    if samples is not None:
        first = samples[i][0] if isinstance(samples[i], (list, tuple)) and samples[i] else samples[i]
        if isinstance(first, (str, os.PathLike)):
            return line(os.fspath(first), 300)
    return f"picture {i}"


def _picture_and_label(item: Any) -> tuple[Any, int]:
    label: Any = None
    if isinstance(item, Mapping):
        names = [name for name in PICTURE_KEYS if name in item]
        names += [name for name, value in item.items() if isinstance(value, Image.Image)]
        if not names:
            keys = ", ".join(line(name, 40) for name in list(item)[:12])
            raise PictureError(f"an item has the keys {keys}; expected the picture under one of {PICTURE_KEYS}")
        label = next((item[name] for name in LABEL_KEYS if name in item), None)
        item = item[names[0]]
    elif isinstance(item, (tuple, list)):
        if not item:
            raise PictureError(f"an item is empty; expected {_ACCEPTED}")
        item, label = item[0], (item[1] if len(item) > 1 else None)
    try:
        number: Any = label.item() if isinstance(label, (Tensor, np.ndarray)) else label
        return item, -1 if number is None else max(index(number), -1)
    except Exception:  # boxes, captions, several classes
        return item, -1


def _batch(number: int, items: list[tuple[int, Tensor, int] | Skipped]) -> Loaded:
    skipped = [item for item in items if isinstance(item, Skipped)]
    read = [item for item in items if not isinstance(item, Skipped)]
    indices, labels = [i for i, _, _ in read], [label for _, _, label in read]
    shapes = sorted({tuple(x.shape) for _, x, _ in read})
    if len(shapes) > 1:
        raise PictureError(
            f"the pictures {indices[0]} to {indices[-1]} of the dataset have different sizes: "
            f"{', '.join(map(str, shapes[:4]))}; give preprocess= with a resize and a crop to one size, or batch_size=1"
        )
    return Loaded(number, indices, torch.stack([x for _, x, _ in read]) if read else None, labels, skipped)
