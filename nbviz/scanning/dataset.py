"""Datasets of every kind, in batches of a model's inputs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from nbviz.core.errors import PictureError, line, shown
from nbviz.pictures.decode import as_path
from nbviz.pictures.load import Reader
from nbviz.pictures.random_numbers import SeededReader
from nbviz.scanning.identity import Known, identity
from nbviz.scanning.labels import Label, Names, class_names, given_label, label_of
from nbviz.scanning.records import LoadedBatch, Skipped

#: The keys under which items that are dicts may hold the picture.
PICTURE_KEYS = ("image", "img", "picture", "pixel_values", "jpg", "png", "jpeg")
_ACCEPTED = (
    "a folder's path, a torchvision or Hugging Face dataset, a DataLoader, anything with a length and items, or an "
    "iterable; "
    "its items are pictures, (picture, label) or dicts of these"
)

_MOST_TRIED = 1000  # pictures that may be unreadable before the first readable one


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")  # as .ipynb_checkpoints does, and the files that macOS adds to pictures


def _is_picture(path: Path) -> bool:
    """Whether a file is of a format that Pillow can open."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return _visible(path) and kind in Image.OPEN and kind not in _UNREADABLE and path.is_file()


_UNREADABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS")  # the last two need another program


def _pictures_below(path: Path, folders: Sequence[Path]) -> list[list[str]]:
    """The pictures below each of a folder's sub-folders, sorted by path.

    Links are followed, but each folder is visited once, by its own name rather than by that of a link: a link to a
    parent would never end, and pictures behind a link to a sibling would count twice. Links to pictures count.
    """
    found: list[list[Path]] = [[] for _ in folders]
    visited = {_inode(path)}
    own = [(i, folder) for i, folder in enumerate(folders) if not folder.is_symlink()]
    links = [(i, folder) for i, folder in enumerate(folders) if folder.is_symlink()]
    while own or links:
        i, folder = own.pop() if own else links.pop(0)
        try:
            inode, entries = _inode(folder), sorted(folder.iterdir())
        except OSError:  # no permission, or deleted meanwhile
            continue
        if inode in visited:
            continue
        visited.add(inode)
        for entry in filter(_visible, entries):
            if _is_picture(entry):
                found[i].append(entry)
            elif entry.is_dir():
                (links if entry.is_symlink() else own).append((i, entry))
    return [list(map(str, sorted(files))) for files in found]


def _inode(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


class Folder(Dataset[Any]):
    """The pictures below a folder; its sub-folders are the classes, in alphabetical order.

    Parameters
    ----------
    path
        The path of the folder. If no sub-folder has pictures, there are no classes.

    Raises
    ------
    PictureError
        When there is no such folder, or no picture in it.
    """

    def __init__(self, path: Path) -> None:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir fails for what is not a possible file name
            raise PictureError(f"there is no folder {shown(str(path), 200)}; expected {_ACCEPTED}")
        self.path = str(path)
        folders = [entry for entry in sorted(path.iterdir()) if _visible(entry) and entry.is_dir()]
        found = dict(zip((folder.name for folder in folders), _pictures_below(path, folders), strict=True))
        self.classes = [name for name, files in found.items() if files]
        unlabelled = [(str(file), None) for file in sorted(path.iterdir()) if _is_picture(file)]
        labelled = [(file, label) for label, name in enumerate(self.classes) for file in found[name]]
        self.samples: list[tuple[str, int | None]] = [*unlabelled, *labelled]
        if not self.samples:
            raise PictureError(f"there is no picture in the folder {shown(str(path), 200)}; expected {_ACCEPTED}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[str, int | None]:
        return self.samples[i]


def check_dataset(given: Any) -> Any:
    """The given dataset; a :class:`Folder` for a path.

    Raises
    ------
    TypeError, PictureError
        For anything that is not a dataset.
    """
    if isinstance(given, (str, os.PathLike)):
        return Folder(as_path(given).expanduser())
    if isinstance(given, DataLoader):  # whose items are batches, perhaps shuffled
        if given.collate_fn is not default_collate:
            raise TypeError("dataset is a DataLoader with its own collate_fn; expected its items: give loader.dataset")
        return check_dataset(given.dataset)
    if (isinstance(given, Tensor) and given.ndim == 0) or isinstance(given, (Mapping, bytes, Image.Image)):
        raise TypeError(f"dataset is a {type(given).__name__}; expected {_ACCEPTED}")
    with suppress(Exception):  # foreign objects may raise anything
        if isinstance(given, Iterable) or (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            return given
    raise TypeError(f"dataset is {type(given).__name__}; expected {_ACCEPTED}")


@dataclass
class Inputs(Dataset[Any]):
    """A dataset in batches of a model's inputs: the source of a scan.

    Parameters
    ----------
    dataset
        A dataset that :func:`check_dataset` accepts.
    reader
        The reader of the model's inputs.
    batch_size
        The number of pictures in each batch but the last.
    """

    dataset: Any
    reader: Reader
    batch_size: int

    def __post_init__(self) -> None:
        self.count = _length(self.dataset)
        self.batches = None if self.count is None else -(-self.count // self.batch_size)
        self._seeded = SeededReader()

    @cached_property
    def names(self) -> Names:
        """The numbers of the classes by name; see :func:`nbviz.scanning.labels.class_names`."""
        return class_names(self.dataset, self.reader.preprocess.labels)

    def name(self, i: int) -> str:
        """The path of a picture's file, if the dataset has it as torchvision's do, else its number."""
        lists = (getattr(self.dataset, "samples", None), getattr(self.dataset, "imgs", None), self.dataset)
        samples = next((items for items in lists if isinstance(items, (list, tuple)) and i < len(items)), None)
        if samples is not None:
            first = samples[i][0] if isinstance(samples[i], (list, tuple)) and samples[i] else samples[i]
            if isinstance(first, (str, os.PathLike)):
                return line(os.fspath(first), 300)
        return f"picture {i}"

    def load(self, numbers: Sequence[int] | None, workers: int = 0) -> Iterator[LoadedBatch]:
        """The batches with these numbers (None: all), read by ``workers`` processes besides this one.

        Raises
        ------
        PictureError
            When the pictures of a batch differ in size.
        """
        if numbers is None:
            yield from self._stream()
            return
        starts = [number * self.batch_size for number in numbers]
        batches: Any = [range(start, min(start + self.batch_size, len(self))) for start in starts]
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=partial(_collated, self.batch_size),
            generator=torch.Generator(),  # by default, the user's generator would give its seed
        )
        for loaded in _started(loader):
            if isinstance(loaded, PictureError):
                raise loaded
            yield loaded

    def parts(self, known: Known) -> Iterator[tuple[str, Any]]:
        """What identifies these inputs: the batch size, the preprocessing, and everything the dataset holds."""
        yield "batch_size=", self.batch_size
        yield "the number of pictures", self.count
        reader, preprocess = self.reader, self.reader.preprocess
        yield "preprocess=", (preprocess.transform, preprocess.mode, reader.channels, reader.axes, reader.dtype)
        yield from identity(self.dataset, known)

    def first(self) -> Tensor:
        """The model's input (1, C, H, W), on its device, for the first readable picture.

        Raises
        ------
        PictureError
            When none of the first thousand pictures can be read.
        """
        tried, skipped = min(len(self), _MOST_TRIED), None
        for i in range(tried):
            item = self[i]
            if not isinstance(item, Skipped):
                return item[1][None].to(self.reader.device)
            skipped = skipped or item
        if skipped is None:
            raise PictureError("the dataset is empty; expected at least one picture")
        raise PictureError(
            f"none of the first {tried} pictures can be read; expected at least one that can; the first, "
            f"{skipped.name}: {skipped.reason}"
        )

    def sample(self) -> Iterator[tuple[Any, ...]]:
        """The first, the middle and the last picture: index, input and label, or the index alone if unreadable."""
        for i in sorted({0, len(self) // 2, len(self) - 1}) if len(self) else ():
            item = self[i]
            yield (i,) if isinstance(item, Skipped) else (*item[:2], *item[2])

    def _stream(self) -> Iterator[LoadedBatch]:
        """All batches of an iterable dataset."""
        items = enumerate(_items(self.dataset))
        read = (self._seeded.read(i, partial(self._read, i, item)) for i, item in items)
        while batch := list(islice(read, self.batch_size)):
            yield _batch(self.batch_size, batch)

    def __len__(self) -> int:
        return self.count or 0

    def __getitem__(self, i: int) -> Item:
        return self._seeded.read(i, partial(self._item, i))

    def _item(self, i: int) -> Item:
        try:
            item = self.dataset[i]
        except Exception as error:
            return Skipped(i, self.name(i), f"{type(error).__name__}: {line(error)}")
        return self._read(i, item)

    def _read(self, i: int, item: Any) -> Item:
        """The input (C, H, W) and label of a picture."""
        try:
            inputs = [x for _, x in self.reader.read(_picture(item), i)]
            if len(inputs) != 1:
                raise PictureError(f"it holds {len(inputs)} pictures; expected one")
            return i, inputs[0], label_of(given_label(item), lambda: self.names.numbers)
        except Exception as error:
            return Skipped(i, self.name(i), line(error))


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # if processes are spawned, not forked
        raise TypeError(
            f"the dataset or preprocess= cannot be sent to the processes that read pictures "
            f"(workers={loader.num_workers}): {type(error).__name__}: {line(error, 1000)}; expected what pickle takes, "
            "or workers=0"
        ) from error


def _collated(size: int, items: list[Item]) -> LoadedBatch | PictureError:
    """A batch, stacked in the reader's process, since each tensor sent to another takes a file descriptor."""
    try:
        return _batch(size, items)
    except PictureError as error:
        return error


def _items(dataset: Any) -> Iterator[Any]:
    """The items of an iterable dataset."""
    n = 0
    try:
        for n, item in enumerate(dataset, 1):  # noqa: B007 - for the error
            yield item
    except Exception as error:
        reason = f"{type(error).__name__}: {line(error, 1000)}"
        raise PictureError(f"the dataset failed after {n} items: {reason}; expected {_ACCEPTED}") from error


def _length(dataset: Any) -> int | None:
    with suppress(Exception):  # an iterable's __len__ may fail
        if hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset):
            return len(dataset)
    return None


def _picture(item: Any) -> Any:
    """The picture in an item of a dataset."""
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


def _batch(size: int, items: list[Item]) -> LoadedBatch:
    """One of the batches of ``size`` pictures."""
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
    first = min([*indices, *(item.index for item in skipped)])
    return LoadedBatch(first // size, indices, inputs, labels, skipped)


#: A picture's index, input (C, H, W) and label; or why it could not be read.
Item = tuple[int, Tensor, Label] | Skipped
