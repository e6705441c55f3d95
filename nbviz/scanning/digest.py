"""Digests of arbitrary values by content and code, never by address, so that they agree between processes."""

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
    """A digest of everything a value holds, and the types of the values in it that could not be digested.

    Callables are digested by their code with the constants, defaults, closures and globals that it uses, objects by
    their class and state, and definitions of installed packages by name. Without ``hooks``, modules' hooks are digested
    by their code alone, see :func:`hooks_of`.

    Examples
    --------
    >>> twice, thrice = (lambda x: 2 * x), (lambda x: 3 * x)
    >>> digest(twice) == digest(lambda x: 2 * x), digest(twice) == digest(thrice)
    (True, False)
    >>> digest([1, (letter for letter in "ab")])[1]
    ['generator']
    """
    digester = _Digester(hooks)
    return digester.digest(value).hex(), sorted(digester.unknown)


def _hashed(*parts: Part) -> bytes:
    hasher = hashlib.sha256()  # processors have instructions for it
    for part in parts:
        data = part.encode("utf8", "surrogatepass") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest()[:16]


Part = bytes | str | memoryview


_PLAIN = (bool, int, float, complex, type(None), type(Ellipsis), type(NotImplemented), range, slice)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those that every module has
_CLASS_INTERNALS = frozenset(("_abc_impl", "_member_map_", "_member_names_", "_member_type_", "_value2member_map_"))


#: The hooks that may change a model's output or its gradient.
_HOOKS = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"


def hooks_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The hooks of a model's modules and the global hooks, each with a name for people."""
    for name, module in model.named_modules():
        for i, hook in enumerate(_own_hooks(module)):
            yield f"hook {i} of {name!r}" if name else f"hook {i} of the model", hook
    global_hooks = (hook for kind in _HOOKS for hook in getattr(nn.modules.module, f"_global{kind}", {}).values())
    for i, hook in enumerate(global_hooks):
        yield f"hook {i} of all modules", hook


def _own_hooks(module: nn.Module) -> Iterator[Any]:
    return (hook for kind in _HOOKS for hook in vars(module).get(kind, {}).values())


class _Digester:
    def __init__(self, hooks: bool) -> None:
        self._hooks = hooks
        self.unknown: set[str] = set()
        self._open: dict[int, int] = {}  # the values being digested, by id, and their depth
        self._done: dict[int, tuple[Any, bytes]] = {}  # by id, together with the value, so that its id stays unique

    def digest(self, value: Any) -> bytes:
        if type(value) in _PLAIN:
            return _hashed(type(value).__name__, repr(value))
        if type(value) in (str, bytes):
            return _hashed(type(value).__name__, value)
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            return _hashed("again", str(len(self._open) - self._open[key]))
        self._open[key] = len(self._open)
        try:
            result = _hashed(type(value).__name__, *self._parts(value))
        except Exception:  # foreign objects may raise anything, and deep ones a RecursionError
            self.unknown.add(type(value).__name__)
            result = _hashed("not known", type(value).__name__)
        finally:
            del self._open[key]
        self._done[key] = value, result
        return result

    def _all(self, values: Iterable[Any]) -> Iterator[bytes]:
        return map(self.digest, values)

    def _parts(self, value: Any) -> Iterator[Part]:
        if isinstance(value, Tensor):
            yield from self._tensor(value)
        elif type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject:
            yield from _array(value)
        elif type(value) in (list, tuple, dict):
            yield from self._container(value)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(self._all(value))
        elif isinstance(value, (PurePath, torch.dtype, torch.device, torch.layout, torch.memory_format)):
            yield str(value)
        elif isinstance(value, Enum):
            yield from (value.name, self.digest(value.value))
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield from self._all((value.__func__, value.__self__))
        elif isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            yield from (value.__qualname__, owner.__name__ if isinstance(owner, ModuleType) else self.digest(owner))
        elif isinstance(value, CodeType):
            yield from self._code(value)
        elif isinstance(value, property):
            yield from self._all((value.fget, value.fset, value.fdel))
        elif isinstance(value, (staticmethod, classmethod)):
            yield self.digest(value.__func__)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, weakref.ref):
            yield self.digest(value())
        elif isinstance(value, torch.Generator):
            yield self.digest(value.get_state())
        elif isinstance(value, torch.UntypedStorage):
            yield self.digest(torch.empty(0, dtype=torch.uint8, device=value.device).set_(value))
        elif isinstance(value, torch.ScriptObject):
            yield self.digest(value.__getstate__())
        elif not isinstance(value, _LOCKS):  # which hold nothing
            yield from self._object(value)

    def _tensor(self, value: Tensor) -> Iterator[Part]:
        value = value.detach()
        yield f"{value.dtype} {tuple(value.shape)}"
        if value.is_nested:
            yield from self._all(value.unbind())
        elif value.is_quantized:
            yield self.digest(value.dequantize())
        elif value.layout is not torch.strided:
            yield self.digest(value.to_dense())
        elif not value.is_meta and value.numel():
            # Expanded dimensions are read once, and large tensors copied in chunks.
            value = value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]
            rows = value if value.ndim else value[None]
            for chunk in rows.split(max(1, _CHUNK // max(1, rows[0].nbytes))):
                plain = chunk.resolve_conj().resolve_neg().cpu().contiguous().flatten()
                yield plain.view(torch.uint8).numpy().data

    def _container(self, value: Any) -> Iterator[Part]:
        try:  # in C, for millions of file names
            # JSON fails on anything it cannot represent in full. Marshal, in its version without references, fails on
            # subclasses, and distinguishes {1: …} from {"1": …} and (1,) from [1].
            yield from (json.dumps(value, default=_as_text), marshal.dumps(value, 2))
            return
        except (TypeError, ValueError, RecursionError, OverflowError):
            pass
        if isinstance(value, dict):
            for key, item in value.items():
                yield from (self.digest(key), self.digest(item))
        else:
            yield from self._all(value)

    def _module(self, module: nn.Module) -> Iterator[Part]:
        """The module without flags such as ``training``."""
        own = vars(module)
        yield self.digest(type(module))
        yield from self._all((own["_parameters"], own["_buffers"], own["_modules"]))
        yield self.digest({name: value for name, value in own.items() if name not in _MODULE_ATTRIBUTES})
        for hook in _own_hooks(module):
            yield self.digest(hook if self._hooks else getattr(getattr(hook, "__func__", hook), "__code__", type(hook)))

    def _function(self, function: FunctionType) -> Iterator[Part]:
        cells: list[Any] = []
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # still empty
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
        """What a function uses through a global name; of a user's module, the attributes that its code names."""
        yield self.digest(value)
        if isinstance(value, ModuleType) and not _is_installed(value.__name__) and id(value) not in self._open:
            self._open[id(value)] = len(self._open)
            for name in sorted(_names(code) & vars(value).keys()):
                yield from (name, *self._global(vars(value)[name], code))
            del self._open[id(value)]

    def _code(self, code: CodeType) -> Iterator[Part]:
        """Everything but the file and the lines."""
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
        for name, attribute in sorted(vars(value).items()):
            generated = name.startswith("__") or name in _CLASS_INTERNALS
            if isinstance(attribute, (FunctionType, staticmethod, classmethod, property)) or not generated:
                yield from (name, self.digest(attribute))

    def _object(self, value: Any) -> Iterator[Part]:
        """What pickle would save."""
        if type(value).__module__.startswith("PIL.") and getattr(value, "filename", None):
            yield from map(repr, files([value.filename]))  # the same whether its pixels are loaded or not
            return
        reducer: Any = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(4) if reducer is None else reducer(value)
        if isinstance(reduced, str):
            yield f"{type(value).__module__} {reduced}"
            yield from self._all([value.__wrapped__] if hasattr(value, "__wrapped__") else [])
            return
        make, arguments, state, *items = (*reduced, None, None, None, None)[:5]
        yield from self._all((make, arguments, state, *(list(part) for part in items if part is not None)))


_CHUNK = 1 << 24  # bytes


def _array(value: np.ndarray[Any, Any]) -> Iterator[Part]:
    yield f"{value.dtype.str} {value.dtype.descr} {value.shape}"
    if isinstance(value, np.memmap) and value.filename is not None:
        whole: Any = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        start = value.ctypes.data - whole.ctypes.data
        yield f"{files([os.fspath(value.filename)])} {value.offset} {start} {value.strides}"
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
    """Whether a module belongs to Python or an installed package, and so does not change with the user's script."""
    if not module or module == "__main__":
        return False
    if module.partition(".")[0] in (*sys.stdlib_module_names, "nbviz"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _within(code: CodeType) -> Iterator[CodeType]:
    """The code and that of the functions defined in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _within(const)


def _names(code: CodeType) -> set[str]:
    return {name for inner in _within(code) for name in inner.co_names}


def _globals_used(code: CodeType) -> set[str]:
    instructions = (instruction for inner in _within(code) for instruction in dis.get_instructions(inner))
    return {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def files(paths: Sequence[str]) -> list[tuple[int, int | str]]:
    """The size of each file and a digest of its content; its time of modification instead if the files are large.

    The size of a missing file is -1.
    """
    facts: list[tuple[int, int | str]] = [_size_and_time(path) for path in paths]
    if sum(size for size, _ in facts) > _READ:
        return facts
    return [(size, _content(path)) for path, (size, _) in zip(paths, facts, strict=True)]


_READ = 1 << 26  # bytes of files to read at most, which takes a tenth of a second


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - faster, for a million files
        return status.st_size, status.st_mtime_ns
    except (OSError, ValueError):
        return -1, 0


def _content(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return ""
