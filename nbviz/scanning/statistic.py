"""What can be collected over a dataset, batch by batch, such that the order does not matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nbviz.core.errors import shown

#: Why a label is no class, where it is a name and it is not known of which class.
NAMELESS = "a name, and the order of the classes is not known"


@dataclass
class Batch:
    """What a statistic sees of some pictures that went through the model together.

    Parameters
    ----------
    number
        Of the batch in the dataset, from 0.
    indices
        (N,) int64 on the CPU, ascending: the pictures' indices in the dataset.
    inputs
        (N, C, H, W) on the model's device.
    labels
        (N,) int64 on the model's device: their classes, -1 where the dataset says none; where there are logits, none
        that the model does not have.
    activations
        Those of the layers that any of the statistics asks for, on the model's device. Not to be written to.
    logits
        (N, classes) if any of the statistics asks for them.
    go_on
        From a layer's name and other activations for it, (K * N, C, H, W), the logits (K * N, classes) that they lead
        to; what is before the layer is not run again.
    """

    number: int
    indices: Tensor
    inputs: Tensor
    labels: Tensor
    activations: dict[str, Tensor]
    logits: Tensor | None
    go_on: Callable[[str, Tensor], Tensor] | None = None


class Statistic(ABC):
    """What is collected over a dataset: fed batch by batch, and merged with what another worker found.

    Merging must be associative and commutative, so that the result does not depend on how the dataset was shared out.
    For a scan with a checkpoint, the attributes hold nothing but tensors, numbers, text, None, and lists, tuples and
    dicts of these. Other code's statistics are subclasses of this one.

    Examples
    --------
    >>> class Count(Statistic):
    ...     n = 0
    ...     def update(self, batch):
    ...         self.n += len(batch.indices)
    ...     def merge(self, other):
    ...         self.n += other.n
    ...     def result(self):
    ...         return self.n
    """

    #: The layers whose activations it needs.
    layers: tuple[str, ...] = ()
    #: Whether it needs the class scores.
    logits: bool = False
    #: Whether it needs the gradient of the class scores: they and the activations then have a graph, in which it may go
    #: backwards under ``torch.enable_grad()``, keeping the graph for others.
    grad: bool = False
    #: Whether it says something of the classes, so that labels whose class is not known are not to be left out.
    needs_labels: bool = False
    #: How many models' class scores stand side by side.
    side_by_side: int = 1
    #: Whether it measures its one layer as soon as this has spoken, so that the activation need not be kept: then
    #: ``measure`` is called before anything else of the batch is known, and must give no part of the activation itself.
    early: bool = False

    def reduce(self, activation: Tensor) -> Tensor:
        """What of one of its layers' activations it needs to keep until the rest of the batch is known."""
        return activation

    def measure(self, batch: Batch) -> Any:
        """What there is to take in of a batch. What takes long is done here, where it may be interrupted."""
        return batch

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Take in one batch, or what was measured of it."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what another of the same kind has seen, which is other pictures."""

    @abstractmethod
    def result(self) -> Any:
        """What the pictures seen so far amount to."""


Tree = dict[tuple[int, int], Tensor]


def add_along_tree(tree: Tree, number: int, value: Tensor, level: int = 0) -> None:
    """Add one batch's value to a sum in which the order does not matter, to the last bit.

    Floating-point sums depend on the order of their terms. Here two sums are added only if they are those of two
    neighbours in one binary tree over the batches, so that each is always made of the same terms in the same way. What
    has no neighbour yet is kept: after n batches in order at most log2(n) + 1 values.

    Examples
    --------
    >>> import torch
    >>> tree = {}
    >>> for number in (2, 0, 3, 1, 4):
    ...     add_along_tree(tree, number, torch.tensor(1.0))
    >>> tree
    {(2, 0): tensor(4.), (0, 4): tensor(1.)}
    >>> tree_sum(tree)
    tensor(5.)
    """
    while (neighbour := tree.pop((level, number ^ 1), None)) is not None:
        value = value + neighbour
        level, number = level + 1, number >> 1
    tree[level, number] = value


def merge_trees(tree: Tree, other: Tree) -> None:
    """Add to a sum along the tree what another has of other batches."""
    for (level, number), value in other.items():
        add_along_tree(tree, number, value, level)


def tree_sum(tree: Tree) -> Tensor:
    """The sum along the tree."""
    terms = [tree[node] for node in sorted(tree)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class Measured(Statistic):
    """The base of those that measure a batch as one of their own, and take that in as any other."""

    def update(self, batch: Any) -> None:
        """Take in what was measured of a batch."""
        self.merge(batch)


class OfLayer(Measured):
    """The base of those that look at one layer.

    Parameters
    ----------
    layer
        A module's name, ``"name:1"`` for the second call of one that runs more than once.
    """

    early = True

    def __init__(self, layer: str) -> None:
        if not isinstance(layer, str):
            raise TypeError(f"layer is {shown(layer)}; expected a module's name, such as 'features.16'")
        self.layers = (layer,)

    def _values(self, batch: Batch) -> Tensor:
        """The layer's activations (N, C, positions)."""
        values = batch.activations[self.layers[0]]
        return values[..., None] if values.ndim == 2 else values.flatten(2)
