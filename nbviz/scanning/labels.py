"""What a dataset says of a picture's class, in whichever form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from nbviz.core.errors import shown
from nbviz.scanning.statistic import NAMELESS

#: Under which names the items of a dataset, if they are dicts, hold the class.
LABEL_KEYS = ("label", "labels", "fine_label", "target", "cls", "class")


class Label(NamedTuple):
    """A picture's class, -1 where there is none.

    Parameters
    ----------
    number
        The class.
    classes
        How many there are, where the label says it: the length of a one-hot vector; else 0.
    why, given
        Why a label that there is is none, and what it is.
    """

    number: int = -1
    classes: int = 0
    why: str = ""
    given: str = ""


def label_of(given: Any, names: Callable[[], Mapping[str, int] | None] = dict) -> Label:
    """The class that a label is: a whole number, a name, or a one-hot vector. None and -1 say that there is none.

    Examples
    --------
    >>> label_of(2.0).number, label_of("cat", lambda: {"cat": 0}).number, label_of([0, 0, 1])[:2]
    (2, 0, (2, 3))
    >>> label_of(0.5).why
    'no whole number'
    """
    try:
        value = given.tolist() if isinstance(given, (Tensor, np.ndarray, np.generic)) else given
        while isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if value is None:
            return Label()
        number, classes, why = _number(value, names)
    except Exception:  # of an object's own making
        number, classes, why = -1, 0, _STRANGE
    return Label(number, classes, why, shown(given, 40) if why else "")


NO_NAME = "the name of no class that is known"
_STRANGE = "neither a number nor a name"


def _number(value: Any, names: Callable[[], Mapping[str, int] | None]) -> tuple[int, int, str]:
    if isinstance(value, str):
        known = names()
        if known is not None and value in known:
            return known[value], 0, ""
        if value.isdecimal():
            return _checked(int(value))
        return -1, 0, NAMELESS if known is None else NO_NAME
    if isinstance(value, (list, tuple)):
        if sorted(value) == [0] * (len(value) - 1) + [1]:
            return [bool(one) for one in value].index(True), len(value), ""
        return -1, 0, "several values, and no one-hot vector"
    if isinstance(value, Real) and not hasattr(value, "__index__"):
        if not float(value).is_integer():
            return -1, 0, "no whole number"
        value = int(float(value))
    return _checked(index(value))


def _checked(number: int) -> tuple[int, int, str]:
    if number < -1:
        return -1, 0, "negative"
    return (-1, 0, "too large") if number >= 2**31 else (number, 0, "")


def given_label(item: Any) -> Any:
    """The label in one item of a dataset, None where there is none."""
    if isinstance(item, Mapping):
        return next((item[name] for name in LABEL_KEYS if name in item), None)
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


class Names(NamedTuple):
    """The numbers of the classes by name, None where they cannot be known; and whether they are the alphabet's order.

    That is the model's order only where it has just as many classes.
    """

    numbers: Mapping[str, int] | None
    alphabetic: bool = False


def class_names(dataset: Any, model_names: Sequence[str] | None) -> Names:
    """The numbers of the classes by name.

    From the dataset's own list of them; otherwise, where all labels are names of the model's outputs, from these;
    otherwise, where all labels are names, in the order of the alphabet.
    """
    owner, features = dataset, None
    for _ in range(_DEPTH):  # of datasets within datasets
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
    """A list of text, if it is one."""
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(values, (list, tuple)) and values and all(isinstance(one, str) for one in values):
        return list(values)
    return None


def _all_labels(dataset: Any) -> list[str] | None:
    """All labels of a dataset, if they are text and known without its pictures being read."""
    if isinstance(dataset, (list, tuple)):
        return _texts([label for label in map(given_label, dataset) if label is not None])
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and hasattr(dataset, "unique"):
        key = next(_keys(features), None)
        return None if key is None else _texts([one for one in dataset.unique(key) if one is not None])
    named = [_texts(getattr(dataset, name, None)) or [] for name in ("targets", "labels")]
    count = len(dataset) if hasattr(dataset, "__len__") else -1
    return next((one for one in named if len(one) == count), None)
