"""What nbviz runs under: a lock, Ctrl-C deferred, no default device; and which models it takes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from nbviz.core.errors import line, shown

#: Held during nbviz's own passes, whether a call or a widget's observer runs them: they share caches and the memory of
#: the device.
lock = threading.RLock()


def _after_fork() -> None:
    """Release the lock in a child process if another thread of the parent held it: the child has no other threads."""
    if not lock._is_owned():  # type: ignore[attr-defined]
        lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Interrupts:
    """A SIGINT handler that forwards the signal while ``open`` and otherwise keeps it ``pending``."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler, self.open, self.pending = handler, False, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self.pending = True
            return
        self.open = False  # a second Ctrl-C must not interrupt the clean-up that the first one starts
        self.handler(number, frame)
        self.open = True

    def set(self, is_open: bool) -> None:
        self.open = is_open
        if self.open and self.pending:
            self.pending = False
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def setting(self, is_open: bool) -> Iterator[None]:
        before = self.open
        try:
            self.set(is_open)
            yield
        finally:
            self.set(before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block, or until an :func:`interruptible` block within it."""
    handler = _handler()
    if not callable(handler):
        yield
    elif isinstance(handler, _Interrupts):
        with handler.setting(False):
            yield
    else:
        interrupts = _Interrupts(handler)
        signal.signal(signal.SIGINT, interrupts)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            if interrupts.pending:
                signal.raise_signal(signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C through within an :func:`uninterrupted` block; a pending one is delivered at once."""
    handler = _handler()
    with handler.setting(True) if isinstance(handler, _Interrupts) else nullcontext():
        yield


def _handler() -> Any:
    """The handler of Ctrl-C; None off the main thread, which is the only one that Python interrupts."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock and defer Ctrl-C, which is let through while waiting for the lock."""
    # The lock is taken within: an interrupt between the end of a ``with lock`` and its release would leave it locked.
    with uninterrupted():
        while not lock.acquire(timeout=0.1):
            with interruptible():
                pass
        try:
            yield
        finally:
            lock.release()


def check_model(model: object) -> nn.Module:
    """The model; the eager one that a compiled model was made from.

    Raises
    ------
    TypeError
        Unless it is a module whose operations autograd sees.
    """
    if type(model).__name__ == "ExportedProgram":
        raise TypeError("the model is exported (torch.export), which hides its layers; give the one it was made from")
    model = eager(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    try:
        modules = modules_of(model)
    except Exception as error:  # its __init__ has not called that of nn.Module
        raise TypeError(
            f"model is an incomplete {type(model).__name__} ({line(error)}); expected one whose __init__ calls "
            "super().__init__()"
        ) from None
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    if any(issubclass(kind, _SUSPECT) for kind in set(map(type, chain(modules, tensors)))):
        for name, module in model.named_modules():
            if (fault := _fault(module)) is not None:
                what = f"its module {shown(name)}" if name else "the model"
                raise TypeError(f"{what} is {fault}")
    return model


def modules_of(model: nn.Module) -> list[nn.Module]:
    """``list(model.modules())``, several times faster: every call of nbviz needs it.

    Examples
    --------
    >>> modules_of(nn.Sequential(nn.Flatten(), nn.ReLU()))[1:]
    [Flatten(start_dim=1, end_dim=-1), ReLU()]
    """
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            waiting.extend(reversed(module._modules.values()))
    return list(found.values())


def eager(model: Any) -> Any:
    """The model that a compiled one was made from; any other model itself."""
    while isinstance(model, nn.Module) and isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


#: Modules and parameters of these types need a closer look, see :func:`_fault`.
_SUSPECT = (nn.UninitializedParameter, nn.UninitializedBuffer, torch.jit.ScriptModule, torch.fx.GraphModule)


def _fault(module: nn.Module) -> str | None:
    """Why autograd does not see a module's operations, if it does not."""
    tensors: chain[Any] = chain(module._parameters.values(), module._buffers.values())
    if any(map(is_lazy, tensors)):
        return "lazy and not yet initialised; expected a model that has run once"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted (torch.jit), which hides its layers; give the one it was made from"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "exported (torch.export), which hides its layers; give the one it was made from"
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or one of its modules is compiled."""
    if "torch._dynamo" not in sys.modules:  # compiling anything imports it
        return False
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules_of(model))


def eagerly() -> AbstractContextManager[None]:
    """Run compiled functions and modules eagerly within the block, with their hooks."""
    # Without anything compiled, set_stance would import torch._dynamo, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _SetAside(threading.local):
    device: torch.device | None = None


_set_aside = _SetAside()


def user_device() -> torch.device | None:
    """The default device that the user has set for this thread (``torch.set_default_device``), if any."""
    modes = (mode.device for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext))
    return _set_aside.device or next(modes, None)


@contextmanager
def device_aside(device: torch.device | None = None) -> Iterator[None]:
    """Set the user's default device (this thread's, or the one given) aside for nbviz's own code.

    For the model's code it is restored, see :func:`device_restored`.
    """
    device = device or user_device()
    with nullcontext() if device is None else _default_device(torch.device("cpu"), device):
        yield


@contextmanager
def device_restored() -> Iterator[None]:
    """Within :func:`device_aside`, restore the user's default device for the user's code."""
    device = _set_aside.device
    with nullcontext() if device is None else _default_device(device, None):
        yield


@contextmanager
def _default_device(device: torch.device, aside: torch.device | None) -> Iterator[None]:
    before, _set_aside.device = _set_aside.device, aside
    try:
        with device:
            yield
    finally:
        _set_aside.device = before
