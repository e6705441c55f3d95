"""Working in a user's model without leaving a mark: one at a time, and everything put back."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nbviz.core.errors import line, shown

#: Held by whoever is in any model, a call or a widget's observer on a thread of its own: two threads in
#: one model would mix their hooks and flags.
lock = threading.RLock()


#: Threads, of which one has the lock, and the models that they hold, see :func:`untouched`.
_held: list[tuple[int, nn.Module]] = []


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


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode and uncompiled, and Ctrl-C back; afterwards model and random state are as before.

    Of the model: flags, hooks and buffers, attributes, and what the lists, dicts and sets among them hold.
    What is worth interrupting inside goes in :func:`interruptible`. Within another one of the same model, nothing more
    is done.

    Parameters
    ----------
    model
        Any module that :func:`check_model` lets pass.
    """
    if _is_held(model):
        yield
        return
    modules = parts(model)
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    devices = sorted({p.device.index or 0 for p in parameters if p.is_cuda})
    with alone(), torch.random.fork_rng(devices=devices), _eagerly():
        # All attributes: a buffer that a forward pass replaced may belong to a size noted beside it.
        owns = [vars(module) for module in modules]
        holds = _Holds()
        before = _Contents([*owns, *(value for own in owns for value in own.values() if holds[type(value)])])
        # What it writes to its buffers goes to copies, which also stay valid in the graph of the run. So do those of
        # weights that were made in inference mode, which no graph can hold.
        buffers = [b for module in modules for b in module._buffers.values() if b is not None]
        inference = [p for p in parameters if p.is_inference()]
        with torch.inference_mode(False), torch.no_grad():
            copies = {id(t): t.clone() for t in chain(buffers, inference)}
            for t in (*(b for b in buffers if b.requires_grad), *inference):
                copies[id(t)].requires_grad_(t.requires_grad)
        own_tensors: list[Any] = [
            one for m in modules for one in (m._buffers, m._parameters if inference else {}) if one
        ]
        originals = [dict(one) for one in own_tensors]
        try:
            _held.append((threading.get_ident(), model))
            for module in modules:
                # The flag itself, not .eval(): a subclass may do more there than can be undone.
                if module.training:
                    module.training = False
            for one, original in zip(own_tensors, originals, strict=True):
                one.update({name: copies.get(id(t), t) for name, t in original.items()})
            yield
        finally:
            _held.pop()
            for one, original in zip(own_tensors, originals, strict=True):
                one.update(original)
            before.put_back()


class _Holds(dict[type, bool]):
    """Whether a type is a dict, list or set; asked once for each, as isinstance is slow to say no."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = issubclass(kind, (dict, list, set))
        return self[kind]


class _Contents:
    """What some dicts, lists and sets hold, to be put back.

    Kept in three long lists: as many copies would set off the garbage collector, and would be compared one by one where
    as a rule nothing has changed.
    """

    def __init__(self, holders: list[Any]) -> None:
        self.empty, self.full = [held for held in holders if not held], [held for held in holders if held]
        self.dicts = [held for held in self.full if isinstance(held, dict)]
        self.before = self._now()

    def _now(self) -> tuple[list[int], list[Any], list[Any]]:
        """The size of each, the items or keys of all, the values of the dicts."""
        values = chain.from_iterable(held.values() for held in self.dicts)
        return list(map(len, self.full)), list(chain.from_iterable(self.full)), list(values)

    def put_back(self) -> None:
        """In place, and none emptied at any moment."""
        for held in filter(None, self.empty):
            held.clear()
        sizes, items, values = self.before
        now = self._now()
        if sizes == now[0] and all(map(is_, chain(items, values), chain(*now[1:]))):
            return
        all_items, all_values = iter(items), iter(values)
        for held, size in zip(self.full, sizes, strict=True):
            own = list(islice(all_items, size))
            if isinstance(held, dict):
                _put_back_dict(held, dict(zip(own, islice(all_values, size), strict=True)))
            elif isinstance(held, list):
                if len(held) != size or not all(map(is_, held, own)):
                    held[:] = own
            else:
                held.intersection_update(own)
                held.update(own)


def _put_back_dict(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    if len(held) == len(before) and all(map(is_, _items(held), _items(before))):
        return
    in_order = list(held) == list(before)
    for key in held.keys() - before.keys():
        del held[key]
    for key, value in before.items():
        if not in_order:
            held.pop(key, None)
        if held.get(key, held) is not value:
            held[key] = value


def _items(held: dict[Any, Any]) -> Iterator[Any]:
    return chain(held, held.values())


def check_model(model: object) -> nn.Module:
    """The model, or the eager one that a compiled one was made from.

    Raises
    ------
    TypeError
        Unless it is a module whose operations autograd can see.
    """
    if isinstance(model, nn.Module) and _is_held(model):
        return model
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


def _is_held(model: object) -> bool:
    """Whether this thread is within :func:`untouched` of the model."""
    return threading.get_ident() in {thread for thread, held in _held if held is model}


def _eagerly() -> AbstractContextManager[None]:
    """While inside, what is compiled runs as what it was made from, hooks and all."""
    # It would load torch._dynamo, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def fingerprint(model: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """Changes whenever a parameter or buffer is written to (``.data`` aside) or replaced; looks at no values."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
