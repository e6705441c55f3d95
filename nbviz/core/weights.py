"""Notice changes of a model's weights, and work with one state of them while another thread trains the model."""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nbviz.core.copier import content_of, is_library
from nbviz.core.errors import ModelError
from nbviz.core.shadow import held_by, shadow_of
from nbviz.core.state import device_aside, eager, modules_of

P = ParamSpec("P")
Result = TypeVar("Result")

#: How many values of a tensor the quick fingerprint reads.
_SAMPLES = 8
#: Seconds to wait for a state of the weights that no other thread is about to change.
_PATIENCE = 2.0


class WeightsChanged(Exception):
    """Another thread has changed the weights while they were in use."""


def fingerprint(model: nn.Module, in_full: bool = False) -> Hashable:
    """A value that changes whenever a parameter or buffer is written to or replaced, or a module is replaced.

    Torch counts most writes. Those that it does not count (a fused optimizer, ``.data``, NumPy) are detected by values:
    a few of each module's first weight, which every optimizer step changes.

    Parameters
    ----------
    model
        Any module.
    in_full
        Read all values (0.5 ms per million), and everything else that hangs on the model.
    """
    modules = modules_of(model)
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    counted = *map(id, modules), *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    if in_full:
        held = held_by(model)
        return counted, _digest([t for t in held if isinstance(t, Tensor) and _is_readable(t)]), _settings(held)
    first = (next(iter(m._parameters.values()), None) for m in modules if m._parameters)
    return counted, _samples([t for t in first if t is not None and _is_readable(t)])


def _is_readable(t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and not t.is_quantized


def _settings(held: list[Any]) -> Hashable:
    """What a model's output depends on besides its weights: everything else that hangs on it and can be compared."""
    settings: list[Any] = []
    for value in held:
        kind = type(value)
        if isinstance(value, nn.Module):
            hooks = *value._forward_hooks.values(), *value._forward_pre_hooks.values()
            settings += (id(value), _class(kind), tuple(map(id, hooks)), _plain_in(vars(value)))
        elif isinstance(value, Tensor):
            settings.append((id(value), value.data_ptr() if _is_readable(value) else 0))
        elif isinstance(value, np.ndarray):
            settings += (value.shape, None if value.dtype.hasobject else zlib.crc32(np.ascontiguousarray(value).data))
        elif isinstance(value, FunctionType):
            held_by_it = *map(content_of, value.__closure__ or ()), *(value.__defaults__ or ())
            settings += (id(value.__code__), _plain_in(enumerate(held_by_it)))
        elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            settings += (kind.__name__, _plain_in(value if isinstance(value, dict) else enumerate(value)))
        else:
            settings += (id(value), _plain_in(getattr(value, "__dict__", {})))
    return tuple(settings)


_PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device}


def _plain_in(items: Any) -> str:
    """Of names and values, the plain ones (numbers, strings, tuples of them), and the ids of callables."""
    pairs = list(items.items() if isinstance(items, dict) else items)
    plain = [(k, v) for k, v in pairs if k != "training" and _is_plain(v)]
    return repr((plain, [(k, id(v)) for k, v in pairs if callable(v) and not isinstance(v, nn.Module)]))


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _class(kind: type) -> Hashable:
    """A class and its attributes, without those of libraries, which do not change."""
    bases = [base for base in kind.__mro__ if not is_library(base.__module__)]
    functions = tuple(id(value) for base in bases for value in vars(base).values() if isinstance(value, FunctionType))
    return id(kind), functions, *(_plain_in([*vars(base).items()]) for base in bases)


def _samples(tensors: list[Tensor]) -> Hashable:
    """A few values of each tensor, copied from each device at once."""
    groups: dict[Any, list[Tensor]] = {}
    with torch.inference_mode(), suppress(RuntimeError):  # a tensor whose memory was freed
        for t in tensors:
            if count := t.numel():
                taken = min(count, _SAMPLES)
                groups.setdefault((t.dtype, t.device), []).append(t.as_strided((taken,), (count // taken,)))
    with torch.inference_mode():
        return tuple(torch.cat(group).view(torch.uint8).cpu().numpy().tobytes() for group in groups.values())


def _digest(tensors: list[Tensor]) -> Hashable:
    """A digest of all values of the tensors."""
    storages = {t.untyped_storage().data_ptr(): t for t in tensors if t.numel()}
    sums: list[Any] = []
    with torch.inference_mode():
        for t in storages.values():
            raw = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
            # Sums in NumPy take a fifth of the time of any checksum, and use no threads that may be busy.
            sums += _sums(raw.numpy() if t.device.type == "cpu" else raw)
        if on_device := [part.view(torch.uint8) for part in sums if isinstance(part, Tensor)]:
            sums = [*(part for part in sums if not isinstance(part, Tensor)), torch.cat(on_device).cpu().numpy()]
    return tuple(zlib.crc32(np.ascontiguousarray(part).data) for part in sums)


def _sums(raw: Any) -> tuple[Any, Any]:
    """The column sums of bytes arranged in rows, and the remaining bytes.

    Integer sums are exact, so any change of a value changes them. The length of a row is 8 times a prime, so weights
    that swap places come into other columns.
    """
    count = len(raw) // _ROW * _ROW
    rows = raw[:count].view(torch.int64 if isinstance(raw, Tensor) else np.int64).reshape(-1, _ROW // 8)
    return rows.sum(0), raw[count:]


_ROW = 8 * 509  # bytes


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of the model with one consistent state of its weights, which training the model does not change.

    Raises
    ------
    ModelError
        When another thread changes the weights without a pause.
    """
    return _consistent_copy(model)[0]


def _consistent_copy(model: nn.Module) -> tuple[nn.Module, Hashable]:
    """The copy, and the fingerprint of the model at that time."""
    end = time.monotonic() + _PATIENCE
    while True:
        in_use, before = is_being_changed(model), fingerprint(model)
        copied = shadow_of(model, own_weights=True)
        time.sleep(1e-5)  # let a thread that waits for the interpreter in the middle of a change go on
        late = time.monotonic() > end
        if (not in_use or late) and before == fingerprint(model):
            return copied, before
        if late:
            raise ModelError(
                f"another thread keeps changing the weights of {type(model).__name__}; expected a model at rest, or a "
                "copy of it (copy.deepcopy)"
            )
        time.sleep(1e-4)


def is_being_changed(model: nn.Module) -> bool:
    """Whether another thread is in an optimizer step for the model, or a forward pass that updates its statistics."""
    modules: list[nn.Module] | None = None
    frames: dict[int, Any] = sys._current_frames()
    # Drop this thread's own frame: referring to itself, it would stay alive, with all below it, until collected.
    frames.pop(threading.get_ident(), None)
    for top in frames.values():
        at = top
        while at is not None:
            if at.f_code is _STEP or at.f_code is _CALL:
                modules = modules_of(model) if modules is None else modules
                changes = _steps if at.f_code is _STEP else _updates
                if changes(at.f_locals, modules):
                    return True
            at = at.f_back
    return False


def _steps(running: dict[str, Any], modules: list[nn.Module]) -> bool:
    """Whether the optimizer of a running step has weights of these modules."""
    optimizer = running.get("self") or next(iter(running.get("args", ())), None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        return False
    own = {id(p) for module in modules for p in module._parameters.values() if p is not None}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def _updates(running: dict[str, Any], modules: list[nn.Module]) -> bool:
    """Whether the module of a running call is one of these, in training mode, and there are statistics to update."""
    module = running.get("self")
    is_trained = isinstance(module, nn.Module) and module.training and any(m is module for m in modules)
    return is_trained and any(m._buffers for m in modules)


#: The code that every optimizer's step runs in, and every module's forward pass.
_STEP = torch.optim.Optimizer.profile_hook_step(lambda _self: None).__code__
_CALL = nn.Module._call_impl.__code__


class Watch:
    """Follows the weights of a model; ``state`` counts the changes noticed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.state = model, 0
        self._seen = fingerprint(model)
        self._in_full: Hashable = fingerprint(model, in_full=True)

    def look(self, in_full: bool = False) -> int:
        """The current state; ``in_full`` also notices what the samples of large weights may miss."""
        seen = fingerprint(self.model)
        if in_full or seen != self._seen:
            full = fingerprint(self.model, in_full=True)
            if full != self._in_full:
                self.state += 1
            self._seen, self._in_full = seen, full
        return self.state

    @property
    def settings(self) -> Hashable:
        """What else the model's output depended on when it was last read in full."""
        return self._in_full[2] if isinstance(self._in_full, tuple) else None

    def copy(self) -> nn.Module:
        """A copy of the model with the weights of ``state``."""
        copied, seen = _consistent_copy(self.model)
        if seen != self._seen:
            self.state += 1
            self._seen, self._in_full = seen, None  # unknown: the model may have changed since
        return copied

    def is_past(self) -> bool:
        """Whether the weights have changed since the last look, or are changing."""
        return fingerprint(self.model) != self._seen or is_being_changed(self.model)


_inside = threading.local()


def steadily(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """The result of ``work`` on the model, computed from one state of the weights.

    Parameters
    ----------
    model
        Any module.
    work
        Takes the model, or a copy of it if another thread changes the weights. It may be called twice.
    """
    actual = eager(model)
    at_work: list[nn.Module] = _inside.__dict__.setdefault("at_work", [])
    if any(m is actual for m in at_work) or len(sys._current_frames()) == 1:  # nested, or the only thread
        return work(model)

    def attempt(on: nn.Module) -> Result:
        at_work.append(eager(on))
        try:
            return work(on)
        finally:
            at_work.pop()

    try:
        in_use, before = is_being_changed(actual), fingerprint(actual)
    except Exception:  # not a complete model; the work will say so
        return work(model)
    if not in_use:
        try:
            result = attempt(model)
        except Exception:
            if fingerprint(actual) == before:
                raise
        else:
            if threading.active_count() > 1:
                time.sleep(0)  # let a thread that waits for the interpreter in the middle of a change go on
            if fingerprint(actual) == before:
                return result
    return attempt(own_copy(actual))


def steady(function: Callable[P, Result]) -> Callable[P, Result]:
    """Run a function whose first argument is a model on one state of its weights, and without a default device."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        def work(model: Any) -> Result:
            if args:
                return function(model, *args[1:], **kwargs)  # type: ignore[arg-type]
            return function(*args, **{**kwargs, "model": model})

        given: Any = args[0] if args else kwargs.get("model")
        with device_aside():
            return steadily(given, work) if isinstance(eager(given), nn.Module) else function(*args, **kwargs)

    return call
