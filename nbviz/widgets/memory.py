"""A limit on the memory that all widgets together keep of their models' forward passes."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from nbviz.core.checks import check_whole
from nbviz.core.state import lock


class Keeper(Protocol):
    """An object that keeps a trace."""

    trace_bytes: int

    def forget(self) -> None:
        """Let go of the trace; the model runs again when it is needed."""


_limit = 512 << 20
#: The objects that keep a trace, the last used at the end.
_keepers: weakref.WeakKeyDictionary[Keeper, None] = weakref.WeakKeyDictionary()


def set_memory_limit(limit: int) -> None:
    """Limit the memory that all widgets together keep of their models' forward passes.

    A widget keeps the activations that its layer's reconstructions need, so that a slider runs no forward pass. Beyond
    the limit, the least recently used widgets let go of theirs and run the pass again when they need it. A pass that
    exceeds the limit by itself runs again at each change.

    Parameters
    ----------
    limit
        Bytes, on all devices together; 512 MB (``512 << 20``) unless set. 0 keeps nothing.

    Raises
    ------
    TypeError
        When ``limit`` is not a whole number.
    ValueError
        When ``limit`` is negative.

    Examples
    --------
    >>> set_memory_limit(256 << 20)
    >>> set_memory_limit(512 << 20)
    """
    global _limit  # noqa: PLW0603 - one limit for the process, as there is one memory
    limit = check_whole("limit (bytes, such as 512 << 20)", limit, 0)
    with lock:  # not while a trace is in use
        _limit = limit
        forget_beyond_limit()


def remember(keeper: Keeper) -> None:
    """Note that a trace was used, and let go of others that do not fit beside it."""
    _keepers.pop(keeper, None)
    _keepers[keeper] = None
    forget_beyond_limit(but=keeper)


def forget_beyond_limit(but: Keeper | None = None) -> None:
    """Let go of the least recently used traces, except one keeper's, until the rest is within the limit."""
    total = 0
    for keeper in reversed(list(_keepers)):
        total += keeper.trace_bytes
        if total > _limit and keeper is not but:
            keeper.forget()


def too_large(keeper: Keeper) -> str:
    """A note for the person, if a trace exceeds the limit by itself."""
    if keeper.trace_bytes <= _limit:
        return ""
    sizes = f"{keeper.trace_bytes / 2**20:.3g} MB, more than the limit of {_limit / 2**20:.3g} MB"
    return f"the forward pass keeps {sizes}: it runs again at each change (nbviz.set_memory_limit)"


@atexit.register
def _forget_all() -> None:
    """Torch aborts if the interpreter's exit destroys a graph whose tensors Python still holds."""
    for keeper in list(_keepers):
        keeper.forget()
