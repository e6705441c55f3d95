"""Whether a model's weights are what they were, and what to do where another thread trains it meanwhile."""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nbviz.core.errors import ModelError
from nbviz.core.shadow import shadow_of
from nbviz.core.state import device_aside, eager, parts

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
        Look at all values (0.5 ms for each million), and at the modules' own settings.
    """
    every = parts(model)
    tensors = [t for m in every for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    counted = *map(id, every), *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
    if in_full:
        return counted, _digest(list(filter(_is_readable, tensors))), tuple(map(_settings, every))
    first = (next(iter(m._parameters.values()), None) for m in every if m._parameters)
    return counted, _samples([t for t in first if t is not None and _is_readable(t)])


def _is_readable(t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and not t.is_quantized


def _settings(module: nn.Module) -> Hashable:
    """What a module's answer depends on beside its weights: numbers and the like among its attributes, and hooks."""
    own = vars(module)
    hooks = tuple(module._forward_hooks), tuple(module._forward_pre_hooks)
    return hooks, repr([(name, value) for name, value in own.items() if type(value) in _PLAIN and name != "training"])


_PLAIN = {bool, int, float, complex, str, tuple, type(None), torch.Size}


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
    """Whether another thread is in an optimizer's step, or in a forward pass that updates statistics of the model."""
    modules: set[int] | None = None
    frames: dict[int, Any] = sys._current_frames()
    # Not even by a name: a frame that refers to itself lives on, with all that is below it, until it is collected.
    frames.pop(threading.get_ident(), None)
    for top in frames.values():
        at = top
        while at is not None:
            if at.f_code is _STEP:
                return True
            if at.f_code is _CALL:
                if modules is None:
                    found = parts(model)
                    modules = {id(part) for part in found} if any(part._buffers for part in found) else set()
                module = at.f_locals.get("self") if modules else None
                if module is not None and id(module) in modules and module.training:
                    return True
            at = at.f_back
    return False


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
