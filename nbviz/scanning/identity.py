"""The identity of a dataset, without reading its pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor, nn

from nbviz.scanning.digest import files

#: Facts about the files in a list of file names, by the id of the list.
Known = dict[int, tuple[Any, ...]]


def identity(dataset: Any, known: Known, name: str = "dataset") -> Iterator[tuple[str, Any]]:
    """Everything a dataset holds, as pairs of a name for people and a value.

    Every attribute counts, since any setting may change a picture; only the dataset's location (a folder, an absolute
    path) does not. File names come with the files' sizes and contents, or times of modification, and are relative to
    the dataset's folder, so that it may be moved. Files in ``known`` are not examined again. Attributes that change by
    reading, such as a count or a cache, are found by the caller, who compares before and after reading a few pictures.
    """
    if type(dataset) in (list, tuple):
        yield name, _with_files(dataset, (), known)
        return
    if isinstance(dataset, (Tensor, np.ndarray)) or not hasattr(dataset, "__dict__") or _has_own_pickling(dataset):
        yield name, dataset
        return
    yield f"{name}'s class", type(dataset)
    attributes = vars(dataset)
    roots = [os.fspath(value) for value in attributes.values() if _is_existing(value, Path.is_dir)]
    with_files = {attribute: _with_files(value, roots, known) for attribute, value in attributes.items()}
    for attribute, value in attributes.items():
        full_name = f"{name}.{attribute}"
        inner = value if isinstance(value, (list, tuple)) and 0 < len(value) <= _MOST else [value]
        if _is_existing(value, Path.is_file):
            yield f"{full_name}'s file", files([str(value)])
        elif _is_location(value):
            continue
        elif isinstance(value, _SETTINGS):
            yield full_name, value
        elif all(map(_is_dataset, inner)):
            for i, part in enumerate(inner):
                yield from identity(part, known, full_name if part is value else f"{full_name}[{i}]")
        else:
            yield full_name, with_files[attribute]


_SETTINGS = (bool, int, float, str, type(None))
_MOST = 1000  # datasets in a list


def _has_own_pickling(dataset: Any) -> bool:
    """Whether a dataset defines its pickled state, as those of Hugging Face do; that identifies it."""
    return getattr(type(dataset), "__getstate__", None) is not getattr(object, "__getstate__", None)


def _is_dataset(value: Any) -> bool:
    plain = (str, bytes, list, tuple, Mapping, set, frozenset, Tensor, np.ndarray, nn.Module, type, range)
    return not isinstance(value, plain) and hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _is_existing(value: Any, kind: Callable[[Path], bool]) -> bool:
    try:
        return isinstance(value, (str, os.PathLike)) and kind(Path(value))
    except (OSError, ValueError, TypeError):  # not a possible file name
        return False


def _is_location(value: Any) -> bool:
    """Whether a value is a path to something, on this machine or another."""
    if isinstance(value, os.PathLike):
        return True
    return isinstance(value, str) and (_is_existing(value, Path.is_dir) or PurePosixPath(value).is_absolute())


def _with_files(value: Any, roots: Sequence[str], known: Known) -> Any:
    """A list of file names, alone or first in tuples, together with facts about the files; other values unchanged."""
    if id(value) not in known:
        names = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "U" else value
        if not isinstance(names, (list, tuple)) or not names:
            return value
        firsts = [item[0] if isinstance(item, (list, tuple)) and item else item for item in names]
        if not all(isinstance(first, (str, os.PathLike)) for first in firsts):
            return value
        paths: list[str] = list(map(os.fspath, firsts))
        folder = next((root for root in ("", *roots) if _is_existing(Path(root, paths[0]), Path.is_file)), None)
        if folder is None:
            return value
        facts = files([f"{folder}{os.sep}{path}" for path in paths] if folder else paths)
        prefix = next((f"{root}{os.sep}" for root in roots if paths[0].startswith(f"{root}{os.sep}")), "")
        rests = [item[1:] if isinstance(item, (list, tuple)) else () for item in names]
        relative = (path.removeprefix(prefix) for path in paths)
        known[id(value)] = tuple((path, *rest, *fact) for path, rest, fact in zip(relative, rests, facts, strict=True))
    return known[id(value)]
