"""What tells a value from another one, whichever process made it: its content and its code, never its address."""

from __future__ import annotations

import copyreg
import dis
import hashlib
import json
import marshal
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(value: Any, hooks: bool = True) -> tuple[str, list[str]]:
    """A digest of all that a value holds, and of what kind is that in it which cannot be known.

    Of a callable it is that of its code, with the constants, defaults, closures and globals that it uses; of an object
    its class and its state. What an installed package defines goes by its name. Without ``hooks``, those of modules
    go by their code alone, see :func:`hooks_of`.

    Examples
    --------
    >>> twice, thrice = (lambda x: 2 * x), (lambda x: 3 * x)
    >>> digest(twice) == digest(lambda x: 2 * x), digest(twice) == digest(thrice)
    (True, False)
    >>> digest([1, (letter for letter in "ab")])[1]
    ['generator']
    """
    one = _Digest(hooks)
    return one.of(value).hex(), sorted(one.unknown)


def _hashed(*parts: Part) -> bytes:
    found = hashlib.sha256()  # for which processors have instructions
    for part in parts:
        data = part.encode("utf8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()[:16]


Part = bytes | str | memoryview


_PLAIN = (bool, int, float, complex, type(None), type(Ellipsis), type(NotImplemented), range, slice)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_MODULES_OWN = frozenset(vars(nn.Module()))  # the attributes that every module has
_MADE_BY_PYTHON = frozenset(("_abc_impl", "_member_map_", "_member_names_", "_member_type_", "_value2member_map_"))


#: Those that may change what a model gives, or its gradient.
_HOOKS = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"


def hooks_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The hooks of a model's modules and those of all modules, each with a name for people."""
    for name, module in model.named_modules():
        for i, hook in enumerate(_own_hooks(module)):
            yield f"hook {i} of {name!r}" if name else f"hook {i} of the model", hook
    every = (hook for kind in _HOOKS for hook in getattr(nn.modules.module, f"_global{kind}", {}).values())
    for i, hook in enumerate(every):
        yield f"hook {i} of all modules", hook


def _own_hooks(module: nn.Module) -> Iterator[Any]:
    return (hook for kind in _HOOKS for hook in vars(module).get(kind, {}).values())


class _Digest:
    def __init__(self, hooks: bool) -> None:
        self._hooks = hooks
        self.unknown: set[str] = set()
        self._open: dict[int, int] = {}  # what is being looked at, and how deep it lies
        self._done: dict[int, tuple[Any, bytes]] = {}  # with the value, so that its id stays its own

    def of(self, value: Any) -> bytes:
        """The digest of a value."""
        if type(value) in _PLAIN:
            return _hashed(type(value).__name__, repr(value))
        if type(value) in (str, bytes):
            return _hashed(type(value).__name__, value)
        place = id(value)
        if place in self._done:
            return self._done[place][1]
        if place in self._open:
            return _hashed("again", str(len(self._open) - self._open[place]))
        self._open[place] = len(self._open)
        try:
            found = _hashed(type(value).__name__, *self._parts(value))
        except Exception:  # of an object's own making, or one that holds too much
            found = self._not_known(value)
        finally:
            del self._open[place]
        self._done[place] = value, found
        return found

    def _not_known(self, value: Any) -> bytes:
        self.unknown.add(type(value).__name__)
        return _hashed("not known", type(value).__name__)

    def _all(self, values: Iterable[Any]) -> Iterator[bytes]:
        return map(self.of, values)

    def _parts(self, value: Any) -> Iterator[Part]:
        if isinstance(value, Tensor):
            yield from self._tensor(value)
        elif type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject:
            yield from _array(value)
        elif type(value) in (list, tuple, dict):
            yield from self._container(value)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(self._all(value))
        elif isinstance(value, PurePath):
            yield str(value)
        elif isinstance(value, Enum):
            yield from (value.name, self.of(value.value))
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield from self._all((value.__func__, value.__self__))
        elif isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            yield from (value.__qualname__, owner.__name__ if isinstance(owner, ModuleType) else self.of(owner))
        elif isinstance(value, CodeType):
            yield from self._code(value)
        elif isinstance(value, property):
            yield from self._all((value.fget, value.fset, value.fdel))
        elif isinstance(value, (staticmethod, classmethod)):
            yield self.of(value.__func__)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, weakref.ref):
            yield self.of(value())
        elif isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
            yield str(value)
        elif isinstance(value, torch.Generator):
            yield self.of(value.get_state())
        elif isinstance(value, torch.UntypedStorage):
            yield self.of(torch.empty(0, dtype=torch.uint8, device=value.device).set_(value))
        elif isinstance(value, torch.ScriptObject):
            yield self.of(value.__getstate__())
        elif not isinstance(value, _LOCKS):  # which hold nothing
            yield from self._object(value)

    def _tensor(self, value: Tensor) -> Iterator[Part]:
        value = value.detach()
        yield f"{value.dtype} {tuple(value.shape)}"
        if value.is_nested:
            yield from self._all(value.unbind())
        elif value.is_quantized:
            yield self.of(value.dequantize())
        elif value.layout is not torch.strided:
            yield self.of(value.to_dense())
        elif not value.is_meta and value.numel():
            # What is expanded is looked at once, and no second copy of a large one is made.
            value = value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]
            rows = value if value.ndim else value[None]
            for some in rows.split(max(1, _CHUNK // max(1, rows[0].nbytes))):
                plain = some.resolve_conj().resolve_neg().cpu().contiguous().flatten()
                yield plain.view(torch.uint8).numpy().data

    def _container(self, value: Any) -> Iterator[Part]:
        try:  # a million names of files, in C
            # JSON takes nothing whose content it does not write, and marshal, in the version without references, no
            # subclasses but tells {1: …} from {"1": …} and (1,) from [1].
            yield from (json.dumps(value, default=_as_text), marshal.dumps(value, 2))
            return
        except (TypeError, ValueError, RecursionError, OverflowError):
            pass
        if isinstance(value, dict):
            for key, one in value.items():
                yield from (self.of(key), self.of(one))
        else:
            yield from self._all(value)

    def _module(self, module: nn.Module) -> Iterator[Part]:
        """Without what a module notes down beside its work, such as flags."""
        own = vars(module)
        yield self.of(type(module))
        yield from self._all((own["_parameters"], own["_buffers"], own["_modules"]))
        yield self.of({name: value for name, value in own.items() if name not in _MODULES_OWN})
        for hook in _own_hooks(module):
            yield self.of(hook if self._hooks else getattr(getattr(hook, "__func__", hook), "__code__", type(hook)))

    def _function(self, function: FunctionType) -> Iterator[Part]:
        cells: list[Any] = []
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # nothing in it yet
                cells.append(cell.cell_contents)
        yield from self._all((function.__code__, function.__defaults__, function.__kwdefaults__, vars(function)))
        yield from self._all(cells)
        names = function.__globals__
        if _is_installed(names.get("__name__")):
            yield function.__qualname__
        else:
            for name in sorted(_globals_used(function.__code__) & names.keys()):
                yield from (name, *self._global(names[name], function.__code__))

    def _global(self, value: Any, code: CodeType) -> Iterator[Part]:
        """What a function uses by a global's name; of a module of the person's own, what it may take from it."""
        yield self.of(value)
        if isinstance(value, ModuleType) and not _is_installed(value.__name__) and id(value) not in self._open:
            self._open[id(value)] = len(self._open)
            for name in sorted(_names(code) & vars(value).keys()):
                yield from (name, *self._global(vars(value)[name], code))
            del self._open[id(value)]

    def _code(self, code: CodeType) -> Iterator[Part]:
        """All but where it stands."""
        numbers = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        yield from (code.co_code, getattr(code, "co_exceptiontable", b""), repr(numbers))
        yield json.dumps([code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars])
        yield from self._all(code.co_consts)

    def _class(self, value: type) -> Iterator[Part]:
        if _is_installed(value.__module__):
            yield f"{value.__module__}.{value.__qualname__}"
            return
        yield value.__name__
        yield from self._all(value.__bases__)
        for name, own in sorted(vars(value).items()):
            made = name.startswith("__") or name in _MADE_BY_PYTHON
            if isinstance(own, (FunctionType, staticmethod, classmethod, property)) or not made:
                yield from (name, self.of(own))

    def _object(self, value: Any) -> Iterator[Part]:
        """What pickle would write of it."""
        if type(value).__module__.startswith("PIL.") and getattr(value, "filename", None):
            yield from map(repr, files([value.filename]))  # the same whether it has been read by now or not
            return
        how: Any = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(4) if how is None else how(value)
        if isinstance(reduced, str):
            yield f"{type(value).__module__} {reduced}"
            yield from self._all([value.__wrapped__] if hasattr(value, "__wrapped__") else [])
            return
        make, arguments, state, *items = (*reduced, None, None, None, None)[:5]
        yield from self._all((make, arguments, state, *(list(some) for some in items if some is not None)))


_CHUNK = 1 << 24  # bytes


def _array(value: np.ndarray[Any, Any]) -> Iterator[Part]:
    yield f"{value.dtype.str} {value.dtype.descr} {value.shape}"
    if isinstance(value, np.memmap) and value.filename is not None:
        whole: Any = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        place = value.ctypes.data - whole.ctypes.data
        yield f"{files([os.fspath(value.filename)])} {value.offset} {place} {value.strides}"
        return
    if not value.size:
        return
    rows = value if value.ndim else value[None]
    step = max(1, _CHUNK // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step]).view(np.uint8).reshape(-1).data


def _as_text(value: Any) -> Any:
    if isinstance(value, (np.integer, np.bool_)):
        return [value.dtype.str, int(value)]
    raise TypeError


@cache
def _is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed package, which does not change with the person's script."""
    if not module or module == "__main__":
        return False
    if module.partition(".")[0] in (*sys.stdlib_module_names, "nbviz"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _within(code: CodeType) -> Iterator[CodeType]:
    """The code itself and that of the functions in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _within(one)


def _names(code: CodeType) -> set[str]:
    return {name for one in _within(code) for name in one.co_names}


def _globals_used(code: CodeType) -> set[str]:
    steps = (step for one in _within(code) for step in dis.get_instructions(one))
    return {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def files(paths: Sequence[str]) -> list[tuple[int, int | str]]:
    """Of each file its size, and what it holds; where all together are large, in place of that when it was written.

    A file that is not there is one of no size.
    """
    found: list[tuple[int, int | str]] = [_size_and_time(path) for path in paths]
    if sum(size for size, _ in found) > _READ:
        return found
    return [(size, _content(path)) for path, (size, _) in zip(paths, found, strict=True)]


_READ = 1 << 26  # bytes of files that are read to tell them from others: a tenth of a second


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        known = os.stat(path)  # noqa: PTH116 - of a million files
        return known.st_size, known.st_mtime_ns
    except (OSError, ValueError):
        return -1, 0


def _content(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return ""
