"""Datasets of every kind, in batches of a model's inputs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nbviz.core.errors import PictureError, line, shown
from nbviz.pictures.load import Reader, as_path
from nbviz.pictures.random_numbers import Alike
from nbviz.scanning.found import Loaded, NoClass, Skipped
from nbviz.scanning.identity import Known, identity
from nbviz.scanning.labels import Label, Names, class_names, given_label, label_of

#: Under which names the items of a dataset, if they are dicts, hold the picture.
PICTURE_KEYS = ("image", "img", "picture", "pixel_values", "jpg", "png", "jpeg")
_ACCEPTED = (
    "a folder's path, a torchvision or Hugging Face dataset, anything with a length and items, or an iterable; "
    "its items are pictures, (picture, label) or dicts of these"
)

_TRIED = 1000  # pictures, for one that can be read


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")  # such as .ipynb_checkpoints, or what macOS leaves beside a picture


def _is_picture(path: Path) -> bool:
    """Whether a file's name says that Pillow can open it: some formats it can only write, or knows by name alone."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return _visible(path) and kind in Image.OPEN and kind not in _BY_NAME and path.is_file()


_BY_NAME = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")  # or, the last two, only with another program's help


def _pictures_below(path: Path, folders: Sequence[Path]) -> list[list[str]]:
    """The pictures in each of a folder's folders and those below, in the order of their names.

    Links are followed, but each folder is looked into once, and by its own name before any link's: a link to what lies
    above it has no end, and one beside it would have its pictures counted twice. A link to a picture is one more.
    """
    found: list[list[Path]] = [[] for _ in folders]
    seen = {_place(path)}
    own = [(i, folder) for i, folder in enumerate(folders) if not folder.is_symlink()]
    links = [(i, folder) for i, folder in enumerate(folders) if folder.is_symlink()]
    while own or links:
        i, folder = own.pop() if own else links.pop(0)
        try:
            place, inside = _place(folder), sorted(folder.iterdir())
        except OSError:  # may not be looked into, or has gone
            continue
        if place in seen:
            continue
        seen.add(place)
        for one in filter(_visible, inside):
            if _is_picture(one):
                found[i].append(one)
            elif one.is_dir():
                (links if one.is_symlink() else own).append((i, one))
    return [list(map(str, sorted(files))) for files in found]


def _place(folder: Path) -> tuple[int, int]:
    """What a folder is known by, whatever its name."""
    known = folder.stat()
    return known.st_dev, known.st_ino


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
        try:
            there = path.is_dir()
        except (OSError, ValueError):  # a name that no folder can have
            there = False
        if not there:
            raise PictureError(f"there is no folder {shown(str(path), 200)}; expected {_ACCEPTED}")
        self.path = str(path)
        below = [one for one in sorted(path.iterdir()) if _visible(one) and one.is_dir()]
        found = dict(zip((one.name for one in below), _pictures_below(path, below), strict=True))
        self.classes = [name for name, files in found.items() if files]
        # What lies beside the classes' folders belongs to none of them.
        beside = [(str(file), None) for file in sorted(path.iterdir()) if _is_picture(file)]
        inside = [(file, label) for label, name in enumerate(self.classes) for file in found[name]]
        self.samples: list[tuple[str, int | None]] = [*beside, *inside]
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
        self._alike = Alike()

    @cached_property
    def names(self) -> Names:
        """The numbers of the classes by name; see :func:`nbviz.scanning.labels.class_names`."""
        return class_names(self.dataset, self.reader.preprocess.labels)

    def classes_named(self) -> int | None:
        """How many classes there are, where labels are names that are taken in the order of the alphabet."""
        return len(self.names.numbers or ()) if self.names.alphabetic else None

    def name(self, i: int) -> str:
        """What a person finds a picture by."""
        return _name(self.dataset, i)

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
            batch_sampler=_Batches(numbers, self.batch_size, len(self)),
            num_workers=workers,
            collate_fn=partial(_collated, self.batch_size),
            # Its seed would come from the person's random numbers.
            generator=torch.Generator(),
        )
        for loaded in _started(loader):
            if isinstance(loaded, PictureError):
                raise loaded
            yield loaded

    def parts(self, known: Known) -> Iterator[tuple[str, Any]]:
        """The size of batches, what prepares a picture, and what the dataset holds."""
        yield "batch_size=", self.batch_size
        yield "the number of pictures", self.count
        reader, made = self.reader, self.reader.preprocess
        yield "preprocess=", (made.transform, made.mode, reader.channels, reader.axes, reader.dtype)
        yield from identity(self.dataset, known)

    def first(self) -> Tensor:
        """The model's input (1, C, H, W), on its device, for the first picture that can be read.

        Raises
        ------
        PictureError
            When there is none, or none among the first thousand.
        """
        tried, first = min(len(self), _TRIED), None
        for i in range(tried):
            item = self[i]
            if not isinstance(item, Skipped):
                return item[1][None].to(self.reader.device)
            first = first or item
        if first is None:
            raise PictureError("the dataset is empty; expected at least one picture")
        said = f"the first, {first.name}: {first.reason}"
        raise PictureError(f"none of the first {tried} pictures can be read; expected at least one that can; {said}")

    def sample(self) -> Iterator[tuple[Any, ...]]:
        """The first picture, the last and one between: each with its index and class, if it can be read."""
        for i in sorted({0, len(self) // 2, len(self) - 1}) if len(self) else ():
            item = self[i]
            yield (i,) if isinstance(item, Skipped) else (*item[:2], *item[2])

    def _stream(self) -> Iterator[Loaded]:
        """All batches of an iterable dataset."""
        items: list[Any] = []
        number = 0
        for i, item in enumerate(_given(self.dataset)):
            items.append(self._alike.read(i, partial(self._read, i, item)))
            if len(items) == self.batch_size:
                yield _batch(number, items)
                items, number = [], number + 1
        if items:
            yield _batch(number, items)

    def __len__(self) -> int:
        return self.count or 0

    def __getitem__(self, i: int) -> Item:
        return self._alike.read(i, partial(self._item, i))

    def _item(self, i: int) -> Item:
        try:
            item = self.dataset[i]
        except Exception as error:
            return Skipped(i, _name(self.dataset, i), f"{type(error).__name__}: {line(error)}")
        return self._read(i, item)

    def _read(self, i: int, item: Any) -> Item:
        """The picture's input (C, H, W) and class."""
        try:
            found = list(self.reader.read(_picture(item), i))
            if len(found) != 1:
                raise PictureError(f"it holds {len(found)} pictures; expected one")
            return i, found[0][1], label_of(given_label(item), lambda: self.names.numbers)
        except Exception as error:
            return Skipped(i, _name(self.dataset, i), line(error))


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # where processes are not forked
        raise TypeError(
            f"the dataset or preprocess= cannot be sent to the processes that read pictures "
            f"(workers={loader.num_workers}): {type(error).__name__}: {line(error, 1000)}; expected what pickle takes, "
            "or workers=0"
        ) from error


class _Batches:
    """The indices of each of some batches, when they are asked for."""

    def __init__(self, numbers: Sequence[int], size: int, count: int) -> None:
        self._numbers, self._size, self._count = numbers, size, count

    def __iter__(self) -> Iterator[list[int]]:
        for number in self._numbers:
            yield list(range(number * self._size, min((number + 1) * self._size, self._count)))

    def __len__(self) -> int:
        return len(self._numbers)


def _collated(size: int, items: list[Item]) -> Loaded | PictureError:
    """A batch, stacked in the process that reads it: each tensor that goes to another takes a file descriptor."""
    first = items[0]
    try:
        return _batch((first.index if isinstance(first, Skipped) else first[0]) // size, items)
    except PictureError as error:
        return error


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


def _picture(item: Any) -> Any:
    """The picture in one item."""
    if isinstance(item, Mapping):
        names = [name for name in PICTURE_KEYS if name in item]
        names += [name for name, value in item.items() if isinstance(value, Image.Image)]
        if not names:
            keys = ", ".join(line(name, 40) for name in list(item)[:12])
            raise PictureError(f"an item has the keys {keys}; expected the picture under one of {PICTURE_KEYS}")
        return item[names[0]]
    if isinstance(item, (tuple, list)):
        if not item:
            raise PictureError(f"an item is empty; expected {_ACCEPTED}")
        return item[0]
    return item


def _batch(number: int, items: list[Item]) -> Loaded:
    skipped = [item for item in items if isinstance(item, Skipped)]
    read = [item for item in items if not isinstance(item, Skipped)]
    indices, labels = [i for i, _, _ in read], [label for _, _, label in read]
    shapes = sorted({tuple(x.shape) for _, x, _ in read})
    if len(shapes) > 1:
        raise PictureError(
            f"the pictures {indices[0]} to {indices[-1]} of the dataset have different sizes: "
            f"{', '.join(map(str, shapes[:4]))}; give preprocess= with a resize and a crop to one size, or batch_size=1"
        )
    inputs = torch.stack([x for _, x, _ in read]) if read else None
    numbers, classes = [label.number for label in labels], [label.classes for label in labels]
    no_class = [NoClass(label.why, 1, i, label.given) for i, label in zip(indices, labels, strict=True) if label.why]
    return Loaded(number, indices, inputs, numbers, skipped, classes, no_class)


#: A picture's index, input (C, H, W) and class; or why it could not be read.
Item = tuple[int, Tensor, Label] | Skipped
