"""What tells a dataset from another one, without reading its pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor, nn

from nbviz.scanning.digest import files

#: By the id of a list of files' names what is known of them.
Known = dict[int, tuple[Any, ...]]


def identity(dataset: Any, known: Known, name: str = "dataset") -> Iterator[tuple[str, Any]]:
    """All that a dataset holds, part by part, each with a name for people.

    Names of files go together with how large the files are and what they hold or when they were written. They are
    taken relative to the folder that the dataset names, so that it may be moved. Files that are known already are not
    looked at again. Every attribute counts, plain settings too: one of them may change a single picture. But where the
    dataset lies does not, a folder or an absolute path. (Nor does what changes by merely reading, such as a count or a
    cache: who asks for the parts sees that, before and after a few pictures have been read.)
    """
    if type(dataset) in (list, tuple):
        yield name, _with_files(dataset, (), known)
        return
    if isinstance(dataset, (Tensor, np.ndarray)) or not hasattr(dataset, "__dict__") or _says_itself(dataset):
        yield name, dataset
        return
    yield f"{name}'s class", type(dataset)
    attributes = vars(dataset)
    roots = [os.fspath(one) for one in attributes.values() if _is_there(one, Path.is_dir)]
    told = {attribute: _with_files(value, roots, known) for attribute, value in attributes.items()}
    for attribute, value in attributes.items():
        part = f"{name}.{attribute}"
        inner = value if isinstance(value, (list, tuple)) and 0 < len(value) <= _MOST else [value]
        if _is_there(value, Path.is_file):
            yield f"{part}'s file", files([str(value)])
        elif _is_place(value):
            continue
        elif isinstance(value, _SETTINGS):
            yield part, value
        elif all(map(_is_dataset, inner)):
            for i, one in enumerate(inner):
                yield from identity(one, known, part if one is value else f"{part}[{i}]")
        else:
            yield part, told[attribute]


_SETTINGS = (bool, int, float, str, type(None))
_MOST = 1000  # datasets in a dataset


def _says_itself(dataset: Any) -> bool:
    """Whether it has a way of its own to be pickled, as those of Hugging Face, which says what it is."""
    return getattr(type(dataset), "__getstate__", None) is not getattr(object, "__getstate__", None)


def _is_dataset(value: Any) -> bool:
    plain = (str, bytes, list, tuple, Mapping, set, frozenset, Tensor, np.ndarray, nn.Module, type, range)
    return not isinstance(value, plain) and hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _is_there(value: Any, how: Callable[[Path], bool]) -> bool:
    try:
        return isinstance(value, (str, os.PathLike)) and how(Path(value))
    except (OSError, ValueError, TypeError):  # text that no file could have for a name
        return False


def _is_place(value: Any) -> bool:
    """Whether it says where something lies, on this machine or on another."""
    if isinstance(value, os.PathLike):
        return True
    return isinstance(value, str) and (_is_there(value, Path.is_dir) or PurePosixPath(value).is_absolute())


def _with_files(value: Any, roots: Sequence[str], known: Known) -> Any:
    """Names of files, alone or first in a pair, with what is known of the files; anything else as it is."""
    if id(value) not in known:
        names = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "U" else value
        if not isinstance(names, (list, tuple)) or not names:
            return value
        firsts = [one[0] if isinstance(one, (list, tuple)) and one else one for one in names]
        if not all(isinstance(one, (str, os.PathLike)) for one in firsts):
            return value
        paths: list[str] = [os.fspath(one) for one in firsts]
        folder = next((root for root in ("", *roots) if _is_there(Path(root, paths[0]), Path.is_file)), None)
        if folder is None:
            return value
        facts = files([f"{folder}{os.sep}{path}" for path in paths] if folder else paths)
        above = next((f"{root}{os.sep}" for root in roots if paths[0].startswith(f"{root}{os.sep}")), "")
        rest = [one[1:] if isinstance(one, (list, tuple)) else () for one in names]
        short = (path.removeprefix(above) for path in paths)
        known[id(value)] = tuple((path, *one, *fact) for path, one, fact in zip(short, rest, facts, strict=True))
    return known[id(value)]
