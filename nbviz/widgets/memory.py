"""What all widgets together keep of their models' forward passes, within a limit."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from nbviz.core.checks import check_whole
from nbviz.core.state import lock


class Keeper(Protocol):
    """Who keeps a trace."""

    trace_bytes: int

    def forget(self) -> None:
        """Let go of the trace; the next question runs the model again."""


_limit = 512 << 20
#: Who keeps a trace, the latest last.
_keepers: list[weakref.ref[Keeper]] = []


def set_memory_limit(limit: int) -> None:
    """Bound what all widgets together keep of their models' forward passes.

    A widget keeps the activations that its layer's reconstructions need, so that a slider runs no forward
    pass. Beyond the limit, the widgets used longest ago let go of theirs and run the pass again when they are
    next asked; a pass that is larger than the limit by itself is run again at each change.

    Parameters
    ----------
    limit
        Bytes, on all devices together; 512 MB (``512 << 20``) unless set. 0 keeps nothing.

    Raises
    ------
    TypeError, ValueError
        For a limit that is not a whole number from 0.

    Examples
    --------
    >>> set_memory_limit(256 << 20)
    >>> set_memory_limit(512 << 20)
    """
    global _limit  # noqa: PLW0603 - one limit for the process, as there is one memory
    limit = check_whole("limit (bytes, such as 512 << 20)", limit, 0)
    with lock:  # not while one of them is in use
        _limit = limit
        forget_beyond_limit()


def remember(keeper: Keeper) -> None:
    """Note who has used a trace, and let go of others' where there is no room beside it."""
    _keepers[:] = [*(ref for ref in _keepers if ref() not in (None, keeper)), weakref.ref(keeper)]
    forget_beyond_limit(but=keeper)


def forget_beyond_limit(but: Keeper | None = None) -> None:
    """Let go of the traces used longest ago, but that of one keeper, until the rest is within the limit."""
    total = 0
    for ref in reversed(_keepers):
        if (keeper := ref()) is not None:
            total += keeper.trace_bytes
            if total > _limit and keeper is not but:
                keeper.forget()


def too_large(keeper: Keeper) -> str:
    """A note for the person where a trace is larger than the limit by itself."""
    if keeper.trace_bytes <= _limit:
        return ""
    sizes = f"{keeper.trace_bytes / 2**20:.3g} MB, more than the limit of {_limit / 2**20:.3g} MB"
    return f"the forward pass keeps {sizes}: it runs again at each change (nbviz.set_memory_limit)"


@atexit.register
def _forget_all() -> None:
    """Torch aborts if the interpreter's end takes a graph apart whose tensors Python still holds."""
    for ref in _keepers:
        if (keeper := ref()) is not None:
            keeper.forget()
