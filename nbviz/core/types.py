"""The types of arguments that many functions take."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor

#: One picture, before preprocessing.
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
#: What :func:`nbviz.load` takes.
Images: TypeAlias = Picture | Sequence[Picture]


class Items(Protocol):
    """A dataset with a length and items."""

    def __len__(self) -> int:
        """How many items."""

    def __getitem__(self, index: int, /) -> Any:
        """A picture, alone or with its label."""


#: What :func:`nbviz.scan` goes through.
Dataset: TypeAlias = str | os.PathLike[str] | Items | Iterable[Any]
#: Channels of a layer.
Channels: TypeAlias = int | Collection[int] | Tensor | np.ndarray[Any, Any]
#: One class for all pictures, or one for each.
Target: TypeAlias = int | Sequence[int] | Tensor | np.ndarray[Any, Any]
#: From a picture to the model's input (C, H, W).
Preprocessing: TypeAlias = Callable[[Any], Tensor]
#: From a batch of pictures to what the model is called with: an argument, a tuple of arguments, or a dict of keywords.
ModelInputs: TypeAlias = Callable[[Tensor], Any]
#: Where the class scores are in what the model returns: a key, an attribute's name, an index, or a callable.
ScoresIn: TypeAlias = str | int | Callable[[Any], Tensor]


class InputOptions(TypedDict, total=False):
    """How pictures become the model's input."""

    preprocess: Preprocessing | None
    inputs: ModelInputs | None


class SubjectOptions(InputOptions, total=False):
    """How a model is called on pictures, and how its answer is read."""

    output: ScoresIn | None
    answer: str | None
