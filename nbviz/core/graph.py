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


def nodes_between(start: Tensor, inputs: Tensor) -> list[Any]:
    """The nodes between a tensor and the input in topological order; the input's own node is last.

    There are none where no path leads to the input.

    Examples
    --------
    >>> import torch
    >>> x, w = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> [node.name() for node in nodes_between(x.relu() * w.exp(), x)]
    ['MulBackward0', 'ReluBackward0', 'torch::autograd::AccumulateGrad']
    """
    state: dict[Any, bool | None] = {}  # whether a node leads to the input; None until known
    finished: list[Any] = []
    stack: list[Any] = [] if start.grad_fn is None else [start.grad_fn]
    while stack:
        node = stack[-1]
        below = [other for other, _ in node.next_functions if other is not None]
        if node not in state:
            state[node] = None
            stack.extend(other for other in below if other not in state)
            continue
        stack.pop()
        if state[node] is None:
            state[node] = getattr(node, "variable", None) is inputs or any(map(state.get, below))
            finished.append(node)
    return [node for node in reversed(finished) if state[node]]
