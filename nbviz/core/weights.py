"""Whether a model's weights are what they were, and what to do where another thread trains it meanwhile."""

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

from nbviz.core.errors import ModelError
from nbviz.core.shadow import content_of, held_by, is_library, shadow_of
from nbviz.core.state import device_aside, eager, modules_of

P = ParamSpec("P")
Result = TypeVar("Result")

#: Values of a tensor that are looked at each time.
_SAMPLES = 8
#: How long a state of the weights is waited for that no other thread is about to change.
_PATIENCE = 2.0


class WeightsChanged(Exception):
    """Another thread has changed the weights while they were in use."""


def fingerprint(model: nn.Module, in_full: bool = False) -> Hashable:
    """What is another one whenever a parameter or buffer has been written to or replaced, or a module replaced.

    Torch counts most writes. Those that it does not count (a fused optimizer, ``.data``, NumPy) are seen by the values:
    a few of each module's first weight, which no step of an optimizer leaves as they are.

    Parameters
    ----------
    model
        Any module.
    in_full
        Look at all values (0.5 ms for each million), and at all else that hangs on the model.
    """
    every = modules_of(model)
    tensors = [t for m in every for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    counted = *map(id, every), *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    if in_full:
        held = held_by(model)
        return counted, _digest([t for t in held if isinstance(t, Tensor) and _is_readable(t)]), _settings(held)
    first = (next(iter(m._parameters.values()), None) for m in every if m._parameters)
    return counted, _samples([t for t in first if t is not None and _is_readable(t)])


def _is_readable(t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and not t.is_quantized


def _settings(held: list[Any]) -> Hashable:
    """What a model's answer depends on beside its weights: all else that hangs on it, as far as it can be seen."""
    found: list[Any] = []
    for value in held:
        kind = type(value)
        if isinstance(value, nn.Module):
            hooks = *value._forward_hooks.values(), *value._forward_pre_hooks.values()
            found += (id(value), _class(kind), tuple(map(id, hooks)), _plain_of(vars(value)))
        elif isinstance(value, Tensor):
            found.append((id(value), value.data_ptr() if _is_readable(value) else 0))
        elif isinstance(value, np.ndarray):
            found += (value.shape, None if value.dtype.hasobject else zlib.crc32(np.ascontiguousarray(value).data))
        elif isinstance(value, FunctionType):
            cells = map(content_of, value.__closure__ or ())
            found += (id(value.__code__), _plain_of(enumerate(cells)), _plain_of(enumerate(value.__defaults__ or ())))
        elif isinstance(value, (dict, list, tuple, set, frozenset, deque)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            found += (kind.__name__, _plain_of(items))
        else:
            found += (id(value), _plain_of(getattr(value, "__dict__", {})))
    return tuple(found)


_PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device}


def _plain_of(items: Any) -> str:
    """Of names and values those that are numbers and the like, or tuples of them; and which functions there are."""
    pairs = list(items.items() if isinstance(items, dict) else items)
    plain = [(k, v) for k, v in pairs if k != "training" and _is_plain(v)]
    return repr((plain, [(k, id(v)) for k, v in pairs if callable(v) and not isinstance(v, nn.Module)]))


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _class(kind: type) -> Hashable:
    """A class, and what is set in it: of the person's own; a library's does not change."""
    own = [one for one in kind.__mro__ if not is_library(one.__module__)]
    functions = tuple(id(value) for one in own for value in vars(one).values() if isinstance(value, FunctionType))
    return id(kind), functions, *(_plain_of([*vars(one).items()]) for one in own)


def _samples(tensors: list[Tensor]) -> Hashable:
    """A few values of each tensor, in one copy from each device."""
    groups: dict[Any, list[Tensor]] = {}
    with torch.inference_mode(), suppress(RuntimeError):  # of a tensor that is larger than its memory
        for t in tensors:
            if count := t.numel():
                taken = min(count, _SAMPLES)
                groups.setdefault((t.dtype, t.device), []).append(t.as_strided((taken,), (count // taken,)))
    with torch.inference_mode():
        return tuple(torch.cat(group).view(torch.uint8).cpu().numpy().tobytes() for group in groups.values())


def _digest(tensors: list[Tensor]) -> Hashable:
    """Of all values."""
    storages = {t.untyped_storage().data_ptr(): t for t in tensors if t.numel()}
    found: list[Any] = []
    with torch.inference_mode():
        for t in storages.values():
            raw = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
            # NumPy takes a fifth of the time of any checksum, and no threads that may have to wait.
            found += _sums(raw.numpy() if t.device.type == "cpu" else raw)
        if any(isinstance(one, Tensor) for one in found):
            on_device = torch.cat([one.view(torch.uint8) for one in found if isinstance(one, Tensor)]).cpu().numpy()
            found = [*(one for one in found if not isinstance(one, Tensor)), on_device]
    return tuple(zlib.crc32(np.ascontiguousarray(one).data) for one in found)


def _sums(raw: Any) -> tuple[Any, Any]:
    """Of bytes in rows the sum of each column, and the rest.

    It is exact, so that every change of a value alters it; and no weights are as long as a row, so that those that
    change places come into other columns.
    """
    count = len(raw) // _ROW * _ROW
    rows = raw[:count].view(torch.int64 if isinstance(raw, Tensor) else np.int64).reshape(-1, _ROW // 8)
    return rows.sum(0), raw[count:]


_ROW = 8 * 509  # a prime


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of the model, weights and all, that no training of it changes; of one state of the weights.

    Raises
    ------
    ModelError
        When another thread changes them without a pause.
    """
    return _copy_of_one_state(model)[0]


def _copy_of_one_state(model: nn.Module) -> tuple[nn.Module, Hashable]:
    """The copy, and the fingerprint that the model had."""
    end = time.monotonic() + _PATIENCE
    while True:
        in_use, before = is_being_changed(model), fingerprint(model)
        copied = shadow_of(model, own_weights=True)
        time.sleep(1e-5)  # whoever is in the middle of a change, and waits for Python, gets on with it
        late = time.monotonic() > end
        if (not in_use or late) and before == fingerprint(model):
            return copied, before
        if late:
            raise ModelError(
                f"another thread changes the weights of {type(model).__name__} all the time; expected a model at rest, "
                "or a copy of it (copy.deepcopy)"
            )
        time.sleep(1e-4)


def is_being_changed(model: nn.Module) -> bool:
    """Whether another thread is in an optimizer's step of the model, or a forward pass that updates its statistics."""
    modules: list[nn.Module] | None = None
    frames: dict[int, Any] = sys._current_frames()
    # Not even by a name: a frame that refers to itself lives on, with all that is below it, until it is collected.
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
    """Whether an optimizer, in the middle of a step, has weights of these modules."""
    optimizer = running.get("self") or next(iter(running.get("args", ())), None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        return False
    own = {id(p) for module in modules for p in module._parameters.values() if p is not None}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def _updates(running: dict[str, Any], modules: list[nn.Module]) -> bool:
    """Whether a module in the middle of a call is one of these in training mode, and there are statistics to update."""
    module = running.get("self")
    is_trained = isinstance(module, nn.Module) and module.training and any(one is module for one in modules)
    return is_trained and any(one._buffers for one in modules)


#: What every optimizer's step runs in, and every module's forward pass.
_STEP = torch.optim.Optimizer.profile_hook_step(lambda _self: None).__code__
_CALL = nn.Module._call_impl.__code__


class Watch:
    """Follows the weights of a model; ``state`` is a number that grows whenever they are found to have changed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.state = model, 0
        self._seen = fingerprint(model)
        self._in_full: Hashable = fingerprint(model, in_full=True)

    def look(self, in_full: bool = False) -> int:
        """The state as it is now; ``in_full``, also what a glance at large weights may miss."""
        seen = fingerprint(self.model)
        if in_full or seen != self._seen:
            found = fingerprint(self.model, in_full=True)
            if found != self._in_full:
                self.state += 1
            self._seen, self._in_full = seen, found
        return self.state

    @property
    def settings(self) -> Hashable:
        """What else the model's answer depended on when it was last looked at in full."""
        return self._in_full[2] if isinstance(self._in_full, tuple) else None

    def copy(self) -> nn.Module:
        """A copy of the model, whose weights are those of ``state`` from now on."""
        copied, seen = _copy_of_one_state(self.model)
        if seen != self._seen:
            self.state += 1
            self._seen, self._in_full = seen, None  # which the model may have left again
        return copied

    def is_past(self) -> bool:
        """Whether the weights have changed since the last look, or are about to."""
        return fingerprint(self.model) != self._seen or is_being_changed(self.model)


_inside = threading.local()


def steadily(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """What some work gives for the model, all of it for one state of the weights.

    Parameters
    ----------
    model
        Any module.
    work
        From the model, or from a copy of it where another thread changes the weights, to a result. May be called twice.
    """
    actual = eager(model)
    at_work: list[nn.Module] = _inside.__dict__.setdefault("at_work", [])
    if any(one is actual for one in at_work) or len(sys._current_frames()) == 1:  # there is no other thread
        return work(model)

    def attempt(on: nn.Module) -> Result:
        at_work.append(eager(on))
        try:
            return work(on)
        finally:
            at_work.pop()

    try:
        in_use, before = is_being_changed(actual), fingerprint(actual)
    except Exception:  # no complete model, as which the work will refuse it
        return work(model)
    if not in_use:
        try:
            result = attempt(model)
        except Exception:
            if fingerprint(actual) == before:
                raise
        else:
            if threading.active_count() > 1:
                time.sleep(0)  # whoever is in the middle of a change, and waits for Python, gets on with it
            if fingerprint(actual) == before:
                return result
    return attempt(own_copy(actual))


def steady(function: Callable[P, Result]) -> Callable[P, Result]:
    """Have a function of a model, its first argument, see one state of the weights and no default device."""

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
