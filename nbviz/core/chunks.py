"""Work in chunks, and in smaller ones where memory does not suffice."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nbviz.core.errors import ModelError, line
from nbviz.core.state import parts

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What allocators and libraries say that have no exception of their own for it.
_SHORTAGE = re.compile(
    "DefaultCPUAllocator|not enough memory|out of memory|ALLOC_FAILED|bad_alloc|could not create a primitive$"
)


def in_chunks(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], at_once: int, what: str, least: int = 1
) -> list[Result]:
    """What some work gives for each chunk of items; a chunk that memory does not suffice for is halved.

    Parameters
    ----------
    work
        Takes some of the items. It may be called again for some of those that it failed on.
    items
        A list or a range.
    at_once
        How many items a chunk has as long as memory suffices.
    what
        One item in words, for the error.
    least
        How many items must stay together.

    Raises
    ------
    ModelError
        When memory does not suffice for the smallest chunk.

    Examples
    --------
    >>> def work(part):
    ...     if len(part) > 2:
    ...         raise torch.OutOfMemoryError
    ...     return list(part)
    >>> in_chunks(work, range(6), 5, "a number")
    [[0, 1], [2, 3], [4, 5]]
    """
    results: list[Result] = []
    done = 0
    while done < len(items):
        part = items[done : done + at_once]
        try:
            results.append(work(part))
            done += len(part)
            continue
        except Exception as error:
            smallest = len(part) <= least
            if not out_of_memory(error) or (smallest and isinstance(error, ModelError)):
                raise
            if smallest:
                raise too_large(what, error) from error
        # Here the error is gone, and with it what its frames held; what they held in a circle goes now.
        at_once = max(least, len(part) // 2)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return results


def joined(pieces: list[Tensor]) -> Tensor:
    """Pieces along their first dimension in one; a single one is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory did not suffice: what an allocator said, or an error that was made from that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)):
        return True
    return error is not None and out_of_memory(error.__cause__)


def too_large(what: str, error: Exception) -> ModelError:
    """The error that says what memory did not suffice for and what to do."""
    return ModelError(
        f"memory does not suffice for {what}; give fewer or smaller pictures, or move the model to another device "
        f"({type(error).__name__}: {line(error, 1000)})"
    )


def kept_together(model: nn.Module, pictures: int, feed: object) -> int:
    """How many pictures of a batch must be in one forward pass.

    All where a part normalises them by each other, or where the model's arguments are made from the whole batch.
    """
    if feed is not None or pictures == 1:
        return pictures
    by_each_other = (isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in parts(model))
    return pictures if any(by_each_other) else 1
