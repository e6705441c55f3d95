"""The graph of operations that autograd records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nodes_below(*tensors: Tensor) -> Iterator[Any]:
    """The nodes of the graphs that end in these tensors, each once.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(1, requires_grad=True)
    >>> [node.name() for node in nodes_below(x.relu().exp())]
    ['ExpBackward0', 'ReluBackward0', 'torch::autograd::AccumulateGrad']
    """
    seen: set[Any] = {None}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(below for below, _ in node.next_functions)
            yield node
