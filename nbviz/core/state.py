"""What nbviz works under: one thread at a time, Ctrl-C held back, no default device; and which models it takes."""

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

#: Held by whoever is in a pass of nbviz's own, a call or a widget's observer on a thread of its own: what they keep
#: between passes, and the device's memory, are for one at a time.
lock = threading.RLock()


def _after_fork() -> None:
    """A child has none of the other threads, of which one may have had the lock."""
    if not lock._is_owned():  # type: ignore[attr-defined]
        lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Interrupts:
    """A handler of SIGINT that passes it on while ``open``, and else notes that it came."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler, self.open, self.came = handler, False, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self.came = True
            return
        self.open = False  # what now puts things back is not to be interrupted again
        self.handler(number, frame)
        self.open = True

    def set(self, is_open: bool) -> None:
        self.open = is_open
        if self.open and self.came:
            self.came = False
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
    """While inside, Ctrl-C waits for the end, or for a part that is :func:`interruptible`."""
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
            if interrupts.came:
                signal.raise_signal(signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """A part of what is :func:`uninterrupted` that Ctrl-C may end; one that has been waiting does so at once."""
    handler = _handler()
    if isinstance(handler, _Interrupts):
        with handler.setting(True):
            yield
    else:
        yield


def _handler() -> Any:
    """What Ctrl-C would call; it never interrupts any but the main thread."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock on all models, and Ctrl-C back; while waiting for the lock, Ctrl-C is let through."""
    # The lock within: an interrupt between the end of a ``with lock`` and its release would leave it locked.
    with uninterrupted():
        while not lock.acquire(timeout=0.1):
            with interruptible():
                pass
        try:
            yield
        finally:
            lock.release()


def check_model(model: object) -> nn.Module:
    """The model, or the eager one that a compiled one was made from.

    Raises
    ------
    TypeError
        Unless it is a module whose operations autograd can see.
    """
    if type(model).__name__ == "ExportedProgram":
        raise TypeError("the model is exported (torch.export), which hides its layers; give the one it was made from")
    model = eager(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    try:
        modules = parts(model)
    except Exception as error:  # one whose __init__ does not begin with nn.Module's own
        said = line(error)
        raise TypeError(f"model is a {type(model).__name__} without parts ({said}); expected a complete one") from None
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    if any(issubclass(kind, _HIDES) for kind in set(map(type, chain(modules, tensors)))):
        for name, module in model.named_modules():
            if (fault := _fault(module)) is not None:
                what = f"its part {shown(name)}" if name else "the model"
                raise TypeError(f"{what} is {fault}")
    return model


def parts(model: nn.Module) -> list[nn.Module]:
    """``list(model.modules())``, several times as fast: it is asked for in every call.

    Examples
    --------
    >>> parts(nn.Sequential(nn.Flatten(), nn.ReLU()))[1:]
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
    """The model that a compiled one was made from; any other as it is."""
    while isinstance(model, nn.Module) and isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


#: What may keep autograd from seeing a module's operations, see :func:`_fault`.
_HIDES = (nn.UninitializedParameter, nn.UninitializedBuffer, torch.jit.ScriptModule, torch.fx.GraphModule)


def _fault(module: nn.Module) -> str | None:
    """What keeps autograd from seeing a module's operations."""
    tensors: chain[Any] = chain(module._parameters.values(), module._buffers.values())
    if any(map(is_lazy, tensors)):
        return "lazy and has yet to see its first input; expected a model that has run once"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted (torch.jit), which hides its layers; give the one it was made from"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "exported (torch.export), which hides its layers; give the one it was made from"
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled."""
    if "torch._dynamo" not in sys.modules:  # whoever has compiled anything has loaded this
        return False
    return any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in parts(model))


def eagerly() -> AbstractContextManager[None]:
    """While inside, what is compiled runs as what it was made from, hooks and all."""
    # It would load torch._dynamo, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


_persons = threading.local()


def persons_device() -> torch.device | None:
    """The default device that this thread has been given (``torch.set_default_device``), if any."""
    found = next((mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)), None)
    own: torch.device | None = getattr(_persons, "device", None)
    return own if own is not None or found is None else found.device


@contextmanager
def device_aside(device: torch.device | None = None) -> Iterator[None]:
    """While inside, the person's default device counts for the model's own code alone, see :func:`as_given`.

    It is this thread's, or the one given.
    """
    device, before = device or persons_device(), getattr(_persons, "device", None)
    if device is None:
        yield
        return
    _persons.device = device
    try:
        with torch.device("cpu"):
            yield
    finally:
        _persons.device = before


@contextmanager
def as_given() -> Iterator[None]:
    """While inside :func:`device_aside`, the person's default device again: for code of the person's own."""
    device = getattr(_persons, "device", None)
    if device is None:
        yield
        return
    _persons.device = None
    try:
        with torch.device(device):
            yield
    finally:
        _persons.device = device
