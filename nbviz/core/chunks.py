"""Process items in chunks, and in smaller ones when memory runs out."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nbviz.core.errors import ModelError, with_class
from nbviz.core.state import modules_of

Item = TypeVar("Item")
Result = TypeVar("Result")

#: The messages of allocators and libraries that raise a plain RuntimeError when memory runs out.
_OUT_OF_MEMORY = re.compile(
    "DefaultCPUAllocator|not enough memory|out of memory|ALLOC_FAILED|bad_alloc|could not create a primitive$"
)


def in_chunks(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], at_once: int, what: str, least: int = 1
) -> list[Result]:
    """The results of ``work`` on successive chunks of items; when memory runs out, chunks are halved.

    Parameters
    ----------
    work
        Takes a chunk of items. Items of a chunk that failed are passed in again.
    items
        A list or a range.
    at_once
        The size of a chunk while memory suffices.
    what
        One item in words, for the error message.
    least
        The size of the smallest chunk.

    Raises
    ------
    ModelError
        When memory runs out on the smallest chunk.

    Examples
    --------
    >>> def work(chunk):
    ...     if len(chunk) > 2:
    ...         raise torch.OutOfMemoryError
    ...     return list(chunk)
    >>> in_chunks(work, range(6), 5, "a number")
    [[0, 1], [2, 3], [4, 5]]
    """
    results: list[Result] = []
    done = 0
    while done < len(items):
        chunk = items[done : done + at_once]
        try:
            results.append(work(chunk))
            done += len(chunk)
            continue
        except Exception as error:
            smallest = len(chunk) <= least
            if not out_of_memory(error) or (smallest and isinstance(error, ModelError)):
                raise
            if smallest:
                raise too_large(what, error) from error
        # Outside the except clause the error no longer keeps its frames alive; collect what they held in cycles.
        at_once = max(least, len(chunk) // 2)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return results


def joined(pieces: list[Tensor]) -> Tensor:
    """The pieces concatenated along their first dimension; a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: an allocator's error, or an error raised from one."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
        return True
    return error is not None and out_of_memory(error.__cause__)


def too_large(what: str, error: Exception) -> ModelError:
    """The error for work that did not fit into memory."""
    return ModelError(
        f"out of memory for {what}; give fewer or smaller pictures, or move the model to another device "
        f"({with_class(error)})"
    )


def kept_together(model: nn.Module, pictures: int, feed: object) -> int:
    """How many pictures of a batch must share a forward pass.

    All of them where a batch normalisation has no running statistics, or where ``feed`` makes the model's arguments
    from the whole batch.
    """
    if feed is not None or pictures == 1:
        return pictures
    uses_batch = (isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in modules_of(model))
    return pictures if any(uses_batch) else 1
