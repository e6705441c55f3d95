"""Copy a model's modules and what hangs on them, sharing its weights: the copy is a shadow of the model."""

from __future__ import annotations

import copy
import copyreg
import io
import itertools
import logging
import queue
import random
import threading
import warnings
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nbviz.core.state import device_aside, modules_of

#: What shadow and model share: values that cannot change, or that no forward pass changes.
_SHARED = (
    *(bool, int, float, complex, str, bytes, type(None), type, range, slice, Enum, BuiltinFunctionType, ModuleType),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Stream, torch.fx.Graph),
    *(torch.optim.Optimizer, torch.utils.data.Dataset, torch.utils.data.DataLoader, logging.Logger, io.IOBase),
    # A copy of these would wait for events that reach only the original.
    *(threading.Thread, threading.Event, threading.Condition, threading.Semaphore, threading.Barrier),
    *(queue.Queue, Executor),
)
#: What advances whenever it is used.
_STATEFUL = (
    *(bytearray, array, random.Random, np.random.Generator, np.random.RandomState),
    *(itertools.count, itertools.cycle),
)
#: How many objects are copied with an object that is neither module nor container; a larger structure (a trainer that
#: the model refers to) is shared.
_MOST = 1000


class _Eager(nn.Module):
    """Takes the place of a compiled module and runs the module it was made from, with its hooks."""

    _orig_mod: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


class Hook:
    """A forward hook of nbviz's own, which is not copied to the shadow of a shadow.

    Such a shadow arises where a user's hook, itself called on a shadow, asks nbviz for another pass.
    """

    def __init__(self, name: str, on_output: Callable[[str, Any], Any]) -> None:
        self.name, self.on_output = name, on_output

    def __call__(self, _module: nn.Module, _args: Any, value: Any) -> Any:
        """The value that replaces the output, or None."""
        with device_aside():
            return self.on_output(self.name, value)


class _TooMuch(Exception):
    """Too many objects hang on an object to copy it."""


class Copier:
    """Copies a model and what hangs on it, each object once, like ``copy.deepcopy``.

    Unlike that, it shares weights and what cannot be copied (a lock, a file), ignores the ``__deepcopy__`` of classes,
    and makes functions that refer to the model (a closure, a patched ``forward``) refer to the shadow.
    """

    def __init__(self, model: nn.Module, own_weights: bool) -> None:
        self.own_weights = own_weights
        self.copies: dict[int, Any] = {}
        self.originals: list[Any] = []  # kept alive, so that their ids stay unique
        self.room: int | None = None  # how many objects may still be copied within the outermost non-module object
        tree = modules_of(model)
        # First, so that references to modules find their shadows.
        self.shadows = [self.note(module, _empty(module)) for module in tree]
        self.hooks = {id(held) for module in tree for name, held in vars(module).items() if name in _HOOKS and held}
        self.storages: dict[int, Tensor] = {}  # the copy of each memory, which several tensors may view
        for module, shadow in zip(tree, self.shadows, strict=True):
            self.fill(module, shadow)
        for module, shadow in zip(tree, self.shadows, strict=True):
            vars(shadow)["training"] = False
            if module.training and type(shadow).train is not nn.Module.train:  # an override may do more
                with suppress(Exception):
                    shadow.train(False)

    def note(self, value: Any, new: Any) -> Any:
        """Remember the copy of an object."""
        self.originals.append(value)
        self.copies[id(value)] = new
        if self.room is not None:
            self.room -= 1
            if self.room < 0:
                raise _TooMuch
        return new

    def copied(self, value: Any) -> Any:
        """The copy of an object, or the object itself where it is shared."""
        how = _HOW[type(value)]
        if how is None:
            return value
        known = self.copies.get(id(value), self)  # self: no entry, as None may be one
        if known is not self:
            return known
        try:
            return how(self, value)
        except _TooMuch:
            raise
        except Exception:  # a container class that cannot be copied or modified
            return self.note(value, value)

    def fill(self, module: nn.Module, shadow: nn.Module) -> None:
        """Give a shadow copies of its module's attributes."""
        own = vars(shadow)
        own.update(vars(module))
        for name, value in list(own.items()):
            kind = type(value)
            if _HOW[kind] is None:
                continue
            if name not in _OWN:
                own[name] = self.copied(value)
            elif not value:  # mostly dicts of hooks, never shared between modules
                own[name] = kind()
            elif name == "_modules" and kind is dict and all(id(m) in self.copies for m in value.values()):
                own[name] = self.note(value, {key: self.copies[id(m)] for key, m in value.items()})
            else:
                own[name] = self.copied(value)
        for name in copyreg._slotnames(type(module)):  # type: ignore[attr-defined]
            if hasattr(module, name):
                object.__setattr__(shadow, name, self.copied(getattr(module, name)))
        own["_compiled_call_impl"] = None
        if type(shadow) is _Eager:
            own.pop("forward", None)

    def module(self, module: nn.Module) -> Any:
        """A module outside the model's tree, such as in a list."""
        new = self.note(module, _empty(module))
        self.fill(module, new)
        return new

    def tensor(self, value: Tensor) -> Any:
        """Weights and tensors that require grad are shared; others are copied."""
        is_weight = value.requires_grad or isinstance(value, nn.Parameter)
        if value.is_inference() or (is_weight and self.own_weights):  # autograd cannot save inference tensors
            new = value.detach().clone().requires_grad_(value.requires_grad)
            if isinstance(value, nn.Parameter):
                new = nn.Parameter(new, value.requires_grad)
        elif is_weight:
            return self.note(value, value)
        elif value.layout is not torch.strided or value.is_quantized or value.is_nested:
            new = value.clone()
        else:
            memory = value.untyped_storage()
            if (whole := self.storages.get(memory._cdata)) is not None:
                new = torch.empty(0, dtype=value.dtype, device=value.device)
                new.set_(whole.untyped_storage(), value.storage_offset(), value.shape, value.stride())
            else:
                new = value.clone()
                if new.stride() == value.stride() and memory.nbytes() == new.untyped_storage().nbytes():
                    self.storages[memory._cdata] = new
        return self.with_attributes(value, self.note(value, new))

    def dict(self, value: dict[Any, Any]) -> Any:
        """A dict of any kind, without nbviz's own hooks."""
        new = self.note(value, copy.copy(value) if type(value) not in _PLAIN else value.copy())
        for key, item in list(new.items()):
            if type(item) is Hook:
                del new[key]
                continue
            own_key = key if type(key) is str else self.key(key)
            own = item if _HOW[type(item)] is None else self.copied(item)
            if own_key is not key:
                del new[key]
                new[own_key] = own
            elif own is not item:
                new[key] = own
        return self.with_attributes(value, new)

    def key(self, key: Any) -> Any:
        """The key of a dict, which may be the id of a copied object."""
        return id(self.copies[key]) if type(key) is int and key in self.copies else self.copied(key)

    def with_attributes(self, value: Any, new: Any) -> Any:
        """A copied tensor or container, completed by copies of the attributes that it has besides."""
        for name, item in getattr(value, "__dict__", {}).items():
            new.__dict__[name] = self.copied(item)
        return new

    def list(self, value: list[Any] | deque[Any]) -> Any:
        """A list or deque."""
        new = self.note(value, copy.copy(value))
        for i, item in enumerate(list(new)):
            own = self.copied(item)
            if own is not item:
                new[i] = own
        return self.with_attributes(value, new)

    def set(self, value: set[Any]) -> Any:
        """A set."""
        items = list(value)
        own = [self.copied(item) for item in items]
        same = all(a is b for a, b in zip(own, items, strict=True))
        return self.note(value, copy.copy(value) if same else type(value)(own))

    def tuple(self, value: tuple[Any, ...]) -> Any:
        """A tuple; itself if none of its items is copied."""
        if all(_HOW[type(item)] is None for item in value):
            return value
        own = [self.copied(item) for item in value]
        if all(a is b for a, b in zip(own, value, strict=True)):
            return value
        return self.note(value, type(value)(*own) if hasattr(value, "_fields") else type(value)(own))

    def array(self, value: np.ndarray[Any, Any]) -> Any:
        """A NumPy array."""
        return self.note(value, value.copy())

    def generator(self, value: torch.Generator) -> Any:
        """A random generator in the same state."""
        return self.note(value, value.clone_state())

    def state(self, value: Any) -> Any:
        """Bytes, random generators, iterators: the copy continues from the same state."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer versions of Python no longer copy iterators
            return self.note(value, copy.deepcopy(value))

    def reference(self, value: weakref.ref[Any]) -> Any:
        """A weak reference, to the copy of its target."""
        target = value()
        if isinstance(value, weakref.WeakMethod):
            own = self.copied(target)
            return value if own is target or own is None else self.note(value, weakref.WeakMethod(own))
        # A hook's handle refers to its module's dict of hooks, which may not have been copied yet.
        own = self.copied(target) if type(target) in _PLAIN else self.copies.get(id(target), target)
        return value if own is target else self.note(value, weakref.ref(own))

    def proxy(self, value: Any) -> Any:
        """A weak proxy, of the copy of its target."""
        target = value.__init__.__self__
        own = self.copies.get(id(target), target)
        return value if own is target else self.note(value, weakref.proxy(own))

    def cached(self, value: Any) -> Any:
        """A function wrapped by ``lru_cache``."""
        own = self.copied(value.__wrapped__)
        return value if own is value.__wrapped__ else self.note(value, lru_cache(**value.cache_parameters())(own))

    def method(self, value: MethodType) -> Any:
        """A bound method, bound to the copy."""
        own, function = self.copied(value.__self__), self.copied(value.__func__)
        same = own is value.__self__ and function is value.__func__
        return value if same else self.note(value, MethodType(function, own))

    def partial(self, value: partial[Any]) -> Any:
        """A ``functools.partial``."""
        own = self.copied((value.func, value.args, value.keywords))
        return self.note(value, type(value)(own[0], *own[1], **own[2]))

    def function(self, value: FunctionType) -> Any:
        """The function, or a copy if it refers to the model through its closure, defaults, attributes or globals."""
        self.note(value, value)  # until it has been examined: functions may refer to each other
        cells = value.__closure__ or ()
        held = [*map(content_of, cells), value.__defaults__, value.__kwdefaults__, *vars(value).values()]
        own = [self.reaching(item) for item in held]
        names = {}
        if not is_library(value.__globals__.get("__name__", "")):
            used = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
            reached = {name: self.reaching(item) for name, item in used.items()}
            names = {name: item for name, item in reached.items() if item is not used[name]}
        if not names and all(a is b for a, b in zip(own, held, strict=True)):
            return value
        own_globals = {**value.__globals__, **names} if names else value.__globals__
        closure = tuple(cell if a is b else CellType(a) for cell, a, b in zip(cells, own, held, strict=False))
        defaults, keywords, *attributes = own[len(cells) :]
        new = FunctionType(value.__code__, own_globals, value.__name__, defaults, closure or None)
        new.__kwdefaults__, new.__qualname__ = keywords, value.__qualname__
        vars(new).update(zip(vars(value), attributes, strict=True))
        self.copies[id(value)] = new
        return new

    def reaching(self, value: Any) -> Any:
        """A copy of what a function refers to if a module of the model is in it; otherwise the value itself."""
        return self.within_reason(value) if self.reaches(value, _DEEP) else value

    def within_reason(self, value: Any, how: Callable[[Copier, Any], Any] = copied) -> Any:
        """A copy, or the value itself if too many objects hang on it."""
        if self.room is not None:
            return how(self, value)
        noted = len(self.originals)
        self.room = _MOST
        try:
            return how(self, value)
        except _TooMuch:
            self.forget(noted)
            return value
        finally:
            self.room = None

    def forget(self, noted: int) -> None:
        """Discard the copies made since ``noted`` originals were known."""
        for other in self.originals[noted:]:
            self.copies.pop(id(other), None)

    def reaches(self, value: Any, depth: int) -> bool:
        """Whether a value contains a module of the model, within this many levels of containers and objects."""
        if isinstance(value, nn.Module):
            return id(value) in self.copies
        if isinstance(value, FunctionType):
            return self.copied(value) is not value
        if isinstance(value, RemovableHandle):
            return id(value.hooks_dict_ref()) in self.hooks
        if not depth or isinstance(value, _SHARED):
            return False
        if isinstance(value, MethodType):
            inner: Any = (value.__self__,)
        elif isinstance(value, (list, tuple, set)):
            inner = value
        elif isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, partial):
            inner = (value.func, *value.args, *value.keywords.values())
        else:
            inner = getattr(value, "__dict__", {}).values()
        return any(self.reaches(item, depth - 1) for item in list(inner))

    def thing(self, value: Any) -> Any:
        """Any other object; itself if it cannot be copied."""
        own = self.within_reason(value, Copier.instance)
        return self.note(value, value) if own is value else own

    def instance(self, value: Any) -> Any:
        """A new instance with copies of the attributes; the object itself where Python cannot create one."""
        noted = len(self.originals)
        try:
            kind = type(value)
            new = self.note(value, SimpleNamespace() if kind is SimpleNamespace else object.__new__(_quiet(kind)))
            slots = {name: getattr(value, name) for name in copyreg._slotnames(kind) if hasattr(value, name)}  # type: ignore[attr-defined]
            for name, item in {**getattr(value, "__dict__", {}), **slots}.items():
                object.__setattr__(new, name, self.copied(item))
            return new
        except _TooMuch:
            raise
        except Exception:
            self.forget(noted)
            self.room = _MOST
            return value


#: Packages whose functions do not refer to a user's model by a global name.
_LIBRARIES = {"builtins", "torch", "torchvision", "timm", "transformers", "numpy", "nbviz", "functools", "contextlib"}


def is_library(module: str) -> bool:
    """Whether a module belongs to such a package."""
    return module.split(".")[0] in _LIBRARIES


class _How(dict[type, Callable[[Copier, Any], Any] | None]):
    """How objects of a type are copied; None if they are shared. Determined once per type, as isinstance is slow."""

    def __missing__(self, kind: type) -> Callable[[Copier, Any], Any] | None:
        known: tuple[tuple[Any, Any], ...] = (
            (_SHARED, None),
            (nn.Module, Copier.module),
            (Tensor, Copier.tensor),
            (dict, Copier.dict),
            ((list, deque), Copier.list),
            ((set, frozenset), Copier.set),
            (tuple, Copier.tuple),
            (FunctionType, Copier.function),
            (MethodType, Copier.method),
            (partial, Copier.partial),
            (np.ndarray, Copier.array),
            (torch.Generator, Copier.generator),
            (weakref.ref, Copier.reference),
            (weakref.ProxyTypes, Copier.proxy),
            (type(lru_cache(len)), Copier.cached),
            (_STATEFUL, Copier.state),
        )
        other = Copier.thing if kind.__dictoffset__ or "__slots__" in vars(kind) else None
        how = next((how for kinds, how in known if issubclass(kind, kinds)), other)
        if kind.__module__ != "__main__":  # do not keep a notebook's classes alive
            self[kind] = how
        return how


_HOW = _How()


#: The attributes that every module has.
_OWN = frozenset(vars(nn.Module()))
_HOOKS = frozenset(name for name in _OWN if name.endswith("_hooks"))
_PLAIN = (dict, OrderedDict)
#: How many levels of containers and objects are searched for a module of the model in what a function refers to.
_DEEP = 6


def _empty(module: nn.Module) -> Any:
    """The shadow of a module, still without attributes."""
    return object.__new__(_Eager if "_orig_mod" in module._modules else _quiet(type(module)))


def _quiet(kind: type) -> type:
    """The class, or a subclass without its ``__del__``, which would close what belongs to the model."""
    if not hasattr(kind, "__del__"):
        return kind
    return type(kind.__name__, (kind,), {"__del__": lambda _self: None, "__module__": kind.__module__, "__slots__": ()})


def content_of(cell: Any) -> Any:
    """The content of a closure's cell."""
    with suppress(ValueError):  # still empty
        return cell.cell_contents
    return None


def _names(code: CodeType) -> set[str]:
    """The global names used by a function's code and by the functions within it."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names}.union(*inner)
