"""The interface of statistics over a dataset, and sums that do not depend on the order of batches."""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from nbviz.core.errors import shown

#: The reason for which a name as a label is no class, where the order of the classes is not known.
NAMELESS = "a name, and the order of the classes is not known"


@dataclass
class Batch:
    """A batch of pictures that went through the model, as statistics see it.

    Parameters
    ----------
    number
        The number of the batch in the dataset, from 0.
    indices
        (N,) int64 on the CPU, ascending: the pictures' indices in the dataset.
    inputs
        (N, C, H, W) on the model's device.
    labels
        (N,) int64 on the model's device: the pictures' classes, -1 for none. If there are logits, all labels are
        classes of the model or -1.
    activations
        The activations of the layers that any statistic needs, on the model's device. They must not be written to.
    logits
        (N, classes) if any statistic needs them.
    go_on
        Takes a layer's name and other activations for it (K * N, C, H, W), and returns the resulting logits
        (K * N, classes); what comes before the layer does not run again.
    """

    number: int
    indices: Tensor
    inputs: Tensor
    labels: Tensor
    activations: dict[str, Tensor]
    logits: Tensor | None
    go_on: Callable[[str, Tensor], Tensor] | None = None


class Statistic(ABC):
    """The base of all statistics: collected batch by batch, and merged with those of other workers.

    Merging must be associative and commutative, so that the result does not depend on how the batches are divided.
    For a scan with a checkpoint, the attributes may hold tensors, numbers, strings, None, and lists, tuples and dicts
    of these. Subclass it to write your own statistic.

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
    #: Whether it needs the gradient of the class scores. They and the activations then have a graph; it may run
    #: backward passes under ``torch.enable_grad()`` that retain the graph for other statistics.
    grad: bool = False
    #: Whether it depends on the labels, so that labels of unknown classes are an error.
    needs_labels: bool = False
    #: How many models' class scores are concatenated in ``logits``.
    side_by_side: int = 1
    #: Whether ``measure`` runs as soon as its one layer has been computed, so that the activation need not be kept.
    #: Nothing else of the batch is known by then, and the return value must not share the activation's memory.
    early: bool = False

    def reduce(self, activation: Tensor) -> Tensor:
        """The part of a layer's activation that is kept until the whole batch is known."""
        return activation

    def measure(self, batch: Batch) -> Any:
        """What ``update`` takes of a batch. Long computations belong here, where Ctrl-C may interrupt them."""
        return batch

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Add what ``measure`` returned for a batch."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add a statistic of the same kind over other pictures."""

    @abstractmethod
    def result(self) -> Any:
        """The result over the pictures seen so far."""


#: Partial sums by level and number in a binary tree over the batches.
Tree = dict[tuple[int, int], Tensor]


def merge_trees(tree: Tree, other: Tree) -> Tree:
    """Add a sum over other batches to a sum; to the last bit, the result does not depend on their order.

    Floating-point sums depend on the order of their terms. Here two partial sums are added only if they are siblings
    in a fixed binary tree over the batches, so every partial sum has the same terms, added in the same order. Sums
    without their sibling are kept: after n batches in order, at most log2(n) + 1 values. A batch is a :func:`leaf`.

    Examples
    --------
    >>> import torch
    >>> tree = {}
    >>> for number in (2, 0, 3, 1, 4):
    ...     tree = merge_trees(tree, {(0, number): torch.tensor(1.0)})
    >>> tree
    {(2, 0): tensor(4.), (0, 4): tensor(1.)}
    >>> tree_sum(tree)
    tensor(5.)
    """
    for node, value in other.items():
        (level, number), total = node, value
        while (sibling := tree.pop((level, number ^ 1), None)) is not None:
            total = total + sibling
            level, number = level + 1, number >> 1
        tree[level, number] = total
    return tree


def leaf(batch: Batch, value: Tensor) -> Tree:
    """The sum along the tree over one batch."""
    return {(0, batch.number): value}


def tree_sum(tree: Tree) -> Tensor:
    """The total of a sum along the tree."""
    return functools.reduce(operator.add, [tree[node] for node in sorted(tree)])


class Combined(Statistic):
    """The base of statistics whose attributes over different pictures are combined one by one.

    ``measure`` returns their values over one batch by name, or no values where there is nothing to add.
    """

    #: By attribute, how its values over different pictures become one, such as ``operator.add``.
    combine: ClassVar[Mapping[str, Callable[[Any, Any], Any]]]

    def update(self, batch: Any) -> None:
        """Combine each attribute with its value over a batch."""
        for name, value in batch.items():
            setattr(self, name, self.combine[name](getattr(self, name), value))

    def merge(self, other: Any) -> None:
        """Combine each attribute with its value over other pictures."""
        self.update({name: getattr(other, name) for name in self.combine})


class LayerStatistic(Combined):
    """The base of statistics of one layer.

    Parameters
    ----------
    layer
        The name of a module, ``"name:1"`` for its second call.
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
