"""Labels of datasets, in any of their forms, as numbers of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from nbviz.core.errors import shown
from nbviz.scanning.statistic import NAMELESS

#: The keys under which items that are dicts may hold the label.
LABEL_KEYS = ("label", "labels", "fine_label", "target", "cls", "class")


class Label(NamedTuple):
    """A picture's class.

    Parameters
    ----------
    number
        The class, -1 for none.
    classes
        The length of a one-hot vector, else 0.
    reason, given
        For a label that is no class: why, and the label as text.
    """

    number: int = -1
    classes: int = 0
    reason: str = ""
    given: str = ""


def label_of(given: Any, names: Callable[[], Mapping[str, int] | None] = dict) -> Label:
    """The class of a label: a whole number, a name, or a one-hot vector; None and -1 stand for no class.

    Examples
    --------
    >>> label_of(2.0).number, label_of("cat", lambda: {"cat": 0}).number, label_of([0, 0, 1])[:2]
    (2, 0, (2, 3))
    >>> label_of(0.5).reason
    'no whole number'
    """
    try:
        value = given.tolist() if isinstance(given, (Tensor, np.ndarray, np.generic)) else given
        while isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        label = Label() if value is None else _label(value, names)
    except Exception:  # foreign objects may raise anything
        label = Label(reason="neither a number nor a name")
    return label._replace(given=shown(given, 40)) if label.reason else label


NO_NAME = "the name of no known class"


def _label(value: Any, names: Callable[[], Mapping[str, int] | None]) -> Label:
    if isinstance(value, str):
        known = names()
        if known is not None and value in known:
            return Label(known[value])
        if not value.isdecimal():
            return Label(reason=NAMELESS if known is None else NO_NAME)
        value = int(value)
    if isinstance(value, (list, tuple)):
        if sorted(value) == [0] * (len(value) - 1) + [1]:
            return Label([bool(entry) for entry in value].index(True), len(value))
        return Label(reason="several values, but no one-hot vector")
    if isinstance(value, Real) and not hasattr(value, "__index__"):
        if not float(value).is_integer():
            return Label(reason="no whole number")
        value = int(float(value))
    number = index(value)
    if number < -1:
        return Label(reason="negative")
    return Label(number) if number < 2**31 else Label(reason="too large")


def given_label(item: Any) -> Any:
    """The label in an item of a dataset; None if there is none."""
    if isinstance(item, Mapping):
        return next((item[name] for name in LABEL_KEYS if name in item), None)
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


class Names(NamedTuple):
    """The numbers of the classes by name, or None if they are unknown; and whether they follow the alphabet.

    The alphabetic order can be the model's only if it has as many classes.
    """

    numbers: Mapping[str, int] | None
    alphabetic: bool = False


def class_names(dataset: Any, model_names: Sequence[str] | None) -> Names:
    """The numbers of the classes by name.

    They come from the dataset's own list of classes; without one, from the model's output names if all labels are among
    them; otherwise, if all labels are names, they are numbered alphabetically.
    """
    owner, features = dataset, None
    for _ in range(_DEPTH):  # datasets may wrap other datasets
        features = getattr(owner, "features", None)
        numbers, names = getattr(owner, "class_to_idx", None), _texts(getattr(owner, "classes", None))
        if isinstance(numbers, Mapping) and numbers:
            return Names({str(name): index(number) for name, number in numbers.items()})
        if isinstance(features, Mapping):
            names = names or _texts(next((getattr(features[key], "names", None) for key in _keys(features)), None))
        if names:
            return _numbered(names)
        owner = getattr(owner, "dataset", None)
    all_labels = _all_labels(dataset)
    if model_names and (all_labels is None or set(all_labels) <= set(model_names)):
        return _numbered(model_names)
    if all_labels is None or all(name.isdecimal() for name in all_labels):
        return Names(None)
    return _numbered(sorted(set(all_labels)), alphabetic=True)


def _numbered(names: Sequence[str], alphabetic: bool = False) -> Names:
    return Names({name: number for number, name in enumerate(names)}, alphabetic)


_DEPTH = 10


def _keys(features: Mapping[str, Any]) -> Iterator[str]:
    return (key for key in LABEL_KEYS if key in features)


def _texts(given: Any) -> list[str] | None:
    """The given list of strings; None for anything else, and for an empty list."""
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, str) for value in values):
        return list(values)
    return None


def _all_labels(dataset: Any) -> list[str] | None:
    """All labels of a dataset, if they are strings and known without reading the pictures."""
    if isinstance(dataset, (list, tuple)):
        return _texts([label for label in map(given_label, dataset) if label is not None])
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and hasattr(dataset, "unique"):
        key = next(_keys(features), None)
        return None if key is None else _texts([label for label in dataset.unique(key) if label is not None])
    lists = [_texts(getattr(dataset, name, None)) or [] for name in ("targets", "labels")]
    count = len(dataset) if hasattr(dataset, "__len__") else -1
    return next((labels for labels in lists if len(labels) == count), None)
