"""A label is a class in whichever form it comes, and what is none says why."""

from __future__ import annotations

from collections import UserList
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from nbviz.scanning.labels import class_names, label_of
from nbviz.scanning.statistic import NAMELESS

NAMES = {"cat": 0, "dog": 1, "7": 2}


@pytest.mark.parametrize(
    ("given", "number"),
    [
        *((2, 2), (True, 1), (2.0, 2), (-0.0, 0), (np.int64(2), 2), (np.float32(2), 2), (np.bool_(True), 1)),
        *((np.array(2), 2), (np.array([2.0]), 2), (torch.tensor(2), 2), (torch.tensor([2.0]), 2), ([2], 2)),
        *(("dog", 1), (np.str_("dog"), 1), (np.array("dog"), 1), (["dog"], 1), ("7", 2), ("8", 8)),
        *(([0, 0, 1], 2), ((1.0, 0.0), 0), (np.eye(4)[3], 3), (torch.eye(4)[1], 1), ([False, True], 1)),
        *((None, -1), (-1, -1), (np.array(None), -1)),
    ],
)
def test_what_is_a_class(given: Any, number: int) -> None:
    found = label_of(given, lambda: NAMES)
    assert (found.number, found.reason) == (number, "")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        *((0.5, "no whole number"), (float("nan"), "no whole number"), (torch.tensor(float("inf")), "no whole number")),
        *((-5, "negative"), (-2.0, "negative"), (10**30, "too large"), (1e30, "too large")),
        *(("bird", "the name of no known class"), ({"boxes": 1}, "neither a number nor a name")),
        *(([1, 2], "several values, but"), ([0, 1, 1], "several values"), ([0.9, 0.1], "several"), ([0, 0], "several")),
        *(
            (torch.eye(2), "several"),
            ([], "several"),
            (Decimal("0.5"), "neither"),
            (object(), "neither"),
            (1j, "neither"),
        ),
    ],
)
def test_what_is_none(given: Any, why: str) -> None:
    found = label_of(given, lambda: NAMES)
    assert found.number == -1
    assert found.reason.startswith(why)
    assert found.given
    assert label_of("bird", lambda: None).reason == NAMELESS


def test_where_the_names_of_the_classes_come_from() -> None:
    own = {"b": 0, "a": 1}
    listed = [(None, "b"), (None, "a"), {"label": "b"}, (None, None), (None,)]
    assert class_names(SimpleNamespace(classes=["b", "a"]), ("a", "b")).numbers == own
    assert class_names(SimpleNamespace(class_to_idx={"b": 3, "a": 5}), None).numbers == {"b": 3, "a": 5}
    assert class_names(Subset(SimpleNamespace(classes=np.array(["b", "a"])), [0]), None).numbers == own  # type: ignore[arg-type]
    assert class_names(listed, ("c", "b", "a")) == ({"c": 0, "b": 1, "a": 2}, False)
    assert class_names(listed, ("c", "b")) == ({"a": 0, "b": 1}, True)
    assert class_names(SimpleNamespace(), ("a", "b")).numbers == {"a": 0, "b": 1}
    for unknown in (SimpleNamespace(), [(None, "b"), (None, 1)], [(None, "10"), (None, "9")], iter(listed), []):
        assert class_names(unknown, None) == (None, False)

    class Named(UserList[Any]):
        targets = ("b", "a")

    assert class_names(Named([0, 0]), None) == ({"a": 0, "b": 1}, True)
    assert class_names(Named([0]), None).numbers is None  # of another length they are not the pictures'


def test_hugging_faces_names() -> None:
    hub = pytest.importorskip("datasets")
    columns = {"image": [0, 1, 2], "label": ["b", "a", None]}
    dataset = hub.Dataset.from_dict(columns)
    assert class_names(dataset, None) == ({"a": 0, "b": 1}, True)
    features = hub.Features({"image": hub.Value("int64"), "label": hub.ClassLabel(names=["b", "a"])})
    assert class_names(hub.Dataset.from_dict(columns, features), None) == ({"b": 0, "a": 1}, False)
