"""A model's shadow: its modules copied, its weights shared, for one forward pass of nbviz's own.

What a pass does to a model (eval mode, hooks, buffers that it updates, what a module notes down) it does to the
shadow. Nothing of the person's model is touched, whatever happens and whichever thread uses the model meanwhile; and
there is nothing to put back.
"""

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
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nbviz.core.errors import EndlessError
from nbviz.core.generators import OwnGenerators, generator_states, restore_generators
from nbviz.core.state import alone, device_aside, eagerly, modules_of

Result = TypeVar("Result")

#: What is as good in the shadow as in the model: it cannot change, or nobody's forward pass changes it.
_SHARED = (
    *(bool, int, float, complex, str, bytes, type(None), type, range, slice, Enum, BuiltinFunctionType, ModuleType),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Stream, torch.fx.Graph),
    *(torch.optim.Optimizer, torch.utils.data.Dataset, torch.utils.data.DataLoader, logging.Logger, io.IOBase),
    # Of which a copy would wait for what happens to the original.
    *(
        threading.Thread,
        threading.Event,
        threading.Condition,
        threading.Semaphore,
        threading.Barrier,
        queue.Queue,
        Executor,
    ),
)
#: What a use of it changes.
_GO_ON = (
    *(bytearray, array, random.Random, np.random.Generator, np.random.RandomState),
    *(itertools.count, itertools.cycle),
)
#: So many objects may hang on one that is no module and no container: a larger structure (a trainer that a model
#: refers to) is shared as it is.
_MOST = 1000


#: Whether a model draws random numbers in its forward pass, of those of which that was in question.
_draws: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
#: So deep may a forward pass ask nbviz for another one: a hook that does so in each of its own would never end.
_DEEPEST = 8
_depth = 0


def in_shadow(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """What some work gives with a shadow of the model, which it may change as it likes: a forward pass, as a rule.

    Torch's random numbers are afterwards where they were, but for what other threads have drawn.

    Parameters
    ----------
    model
        Any module that :func:`nbviz.core.state.check_model` lets pass.
    work
        From the shadow, in eval mode and of this call alone, to a result. May be called twice.

    Raises
    ------
    ModelError
        When the work leads to itself again and again.
    """
    global _depth  # noqa: PLW0603 - of the one thread that has the lock
    with alone(), torch.inference_mode(False), eagerly():
        if _depth >= _DEEPEST:
            raise EndlessError(
                f"{type(model).__name__} calls nbviz on itself in its own forward pass (in a hook, inputs= or the "
                "like), and so without end; expected hooks that do not, or that are off meanwhile"
            )
        _depth += 1
        try:
            return _own_draws(model, work)
        finally:
            _depth -= 1


def _own_draws(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    if _draws.get(model):
        with OwnGenerators():
            return work(shadow_of(model))
    before = generator_states(model)
    try:
        result = work(shadow_of(model))
    except BaseException:
        if model not in _draws:
            restore_generators(before)
        raise
    after = generator_states(model)
    if after == before or model in _draws:
        return result
    # This pass has drawn, or another thread meanwhile; a pass that draws from generators of its own knows.
    with OwnGenerators(states=before) as draws:
        again = work(shadow_of(model))
    ended = generator_states(model)
    if draws.used and ended != after:
        # Another thread still draws; or the model seeds torch's own generator, and the same each time.
        with OwnGenerators(states=before):
            work(shadow_of(model))
        if generator_states(model) == ended:
            restore_generators(before)
            return result
    _draws[model] = draws.used
    if draws.used and generator_states(model) == after:
        restore_generators(before)
    return again if draws.used else result


def held_by(model: nn.Module) -> list[Any]:
    """All that hangs on a model and that a shadow has of its own: modules, weights, containers, functions, objects."""
    with torch.inference_mode(False), torch.no_grad():
        return _Copier(model, own_weights=False).originals


def shadow_of(model: nn.Module, own_weights: bool = False) -> nn.Module:
    """A shadow in eval mode.

    Parameters
    ----------
    model
        Any module that :func:`nbviz.core.state.check_model` lets pass.
    own_weights
        Copy the weights as well: a shadow that training the model does not change.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> shadow = shadow_of(net)
    >>> shadow[0].weight is net[0].weight, shadow[0] is net[0], shadow.training, net.training
    (True, False, False, True)
    """
    with torch.inference_mode(False), torch.no_grad():
        shadow: nn.Module = _Copier(model, own_weights).shadows[0]
    return shadow


class _Eager(nn.Module):
    """In place of a compiled module: runs what that was made from, hooks and all."""

    _orig_mod: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


class Hook:
    """A forward hook of nbviz's own, which no shadow of a shadow takes over.

    A person's hook that asks nbviz for another pass of the model may have the shadow in its hands.
    """

    def __init__(self, name: str, on_output: Callable[[str, Any], Any]) -> None:
        self.name, self.on_output = name, on_output

    def __call__(self, _module: nn.Module, _args: Any, value: Any) -> Any:
        """What takes the output's place, or None."""
        with device_aside():
            return self.on_output(self.name, value)


class _TooMuch(Exception):
    """More hangs on an object than is worth a copy."""


class _Copier:
    """Copies a model and what hangs on it; everything once, as ``copy.deepcopy`` does.

    Unlike that, it shares weights and what cannot be copied (a lock, a file), asks no class for its own idea of a
    copy, and has functions that reach the model (a closure, a patched ``forward``) reach the shadow.
    """

    def __init__(self, model: nn.Module, own_weights: bool) -> None:
        self.own_weights = own_weights
        self.copies: dict[int, Any] = {}
        self.originals: list[Any] = []  # kept, so that no other object gets an id that has been noted
        self.room: int | None = None  # for what may still hang on the outermost object that is no module
        tree = modules_of(model)
        self.shadows = [_empty(module) for module in tree]  # first, so that whatever refers to one finds its shadow
        self.originals += tree
        self.copies.update(zip(map(id, tree), self.shadows, strict=True))
        self.hooks = {id(held) for module in tree for name, held in vars(module).items() if name in _HOOKS and held}
        self.storages: dict[int, Tensor] = {}  # of the tensors copied: some look at the memory of others
        for module, shadow in zip(tree, self.shadows, strict=True):
            self.fill(module, shadow)
        for module, shadow in zip(tree, self.shadows, strict=True):
            vars(shadow)["training"] = False
            if module.training and type(shadow).train is not nn.Module.train:  # a subclass may do more there
                with suppress(Exception):
                    shadow.train(False)

    def note(self, value: Any, new: Any) -> Any:
        self.originals.append(value)
        self.copies[id(value)] = new
        if self.room is not None:
            self.room -= 1
            if self.room < 0:
                raise _TooMuch
        return new

    def copied(self, value: Any) -> Any:
        how = _HOW[type(value)]
        if how is None:
            return value
        found = self.copies.get(id(value), self)
        if found is not self:
            return found
        try:
            return how(self, value)
        except _TooMuch:
            raise
        except Exception:  # a container of the person's own that refuses to be copied or changed
            return self.note(value, value)

    def fill(self, module: nn.Module, shadow: nn.Module) -> None:
        own = vars(shadow)
        own.update(vars(module))
        for name, value in list(own.items()):
            kind = type(value)
            if _HOW[kind] is None:
                continue
            if name not in _OWN:
                own[name] = self.copied(value)
            elif not value:  # most are empty dicts of hooks, which no two modules have in common
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
        """One that is no part of the model, but in a list or the like."""
        new = self.note(module, _empty(module))
        self.fill(module, new)
        return new

    def tensor(self, value: Tensor) -> Any:
        """A weight is shared, and so is what belongs to a graph; all others are the shadow's own."""
        is_weight = value.requires_grad or isinstance(value, nn.Parameter)
        if value.is_inference() or (is_weight and self.own_weights):  # no graph can hold one made in inference mode
            new = value.detach().clone()
            if isinstance(value, nn.Parameter):
                new = nn.Parameter(new, value.requires_grad)
            else:
                new.requires_grad_(value.requires_grad)
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
        self.note(value, new)
        if own := value.__dict__:
            new.__dict__.update({name: self.copied(item) for name, item in own.items()})
        return new

    def dict(self, value: dict[Any, Any]) -> Any:
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
        """A key of a dict, which may be the id of what has been copied."""
        return id(self.copies[key]) if type(key) is int and key in self.copies else self.copied(key)

    def with_attributes(self, value: Any, new: Any) -> Any:
        """A copied container, with copies of what a subclass keeps beside its items."""
        for name, item in getattr(value, "__dict__", {}).items():
            new.__dict__[name] = self.copied(item)
        return new

    def list(self, value: list[Any] | deque[Any]) -> Any:
        new = self.note(value, copy.copy(value))
        for i, item in enumerate(list(new)):
            own = self.copied(item)
            if own is not item:
                new[i] = own
        return self.with_attributes(value, new)

    def set(self, value: set[Any]) -> Any:
        items = list(value)
        own = [self.copied(item) for item in items]
        new = copy.copy(value)
        if any(a is not b for a, b in zip(own, items, strict=True)):
            new = type(value)(own)
        return self.note(value, new)

    def tuple(self, value: tuple[Any, ...]) -> Any:
        for item in value:
            if _HOW[type(item)] is not None:
                break
        else:
            return value
        own = [self.copied(item) for item in value]
        if all(a is b for a, b in zip(own, value, strict=True)):
            return value
        return self.note(value, type(value)(*own) if hasattr(value, "_fields") else type(value)(own))

    def array(self, value: np.ndarray[Any, Any]) -> Any:
        return self.note(value, value.copy())

    def generator(self, value: torch.Generator) -> Any:
        return self.note(value, value.clone_state())

    def state(self, value: Any) -> Any:
        """What goes on from where it is: another's copy, bytes, random numbers, a counter."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of iterators, which newer versions of Python share
            return self.note(value, copy.deepcopy(value))

    def reference(self, value: weakref.ref[Any]) -> Any:
        target = value()
        if isinstance(value, weakref.WeakMethod):
            own = self.copied(target)
            return value if own is target or own is None else self.note(value, weakref.WeakMethod(own))
        # A hook's handle refers to the module's dict of hooks, which may be still to be copied.
        own = self.copied(target) if type(target) in _PLAIN else self.copies.get(id(target), target)
        return value if own is target else self.note(value, weakref.ref(own))

    def proxy(self, value: Any) -> Any:
        target = value.__init__.__self__
        own = self.copies.get(id(target), target)
        return value if own is target else self.note(value, weakref.proxy(own))

    def cached(self, value: Any) -> Any:
        """A function in ``lru_cache``."""
        own = self.copied(value.__wrapped__)
        return value if own is value.__wrapped__ else self.note(value, lru_cache(**value.cache_parameters())(own))

    def method(self, value: MethodType) -> Any:
        own, function = self.copied(value.__self__), self.copied(value.__func__)
        same = own is value.__self__ and function is value.__func__
        return value if same else self.note(value, MethodType(function, own))

    def partial(self, value: partial[Any]) -> Any:
        own = self.copied((value.func, value.args, value.keywords))
        return self.note(value, type(value)(own[0], *own[1], **own[2]))

    def function(self, value: FunctionType) -> Any:
        """The same, but for one that reaches the model: by its closure, its defaults, or a global name."""
        self.note(value, value)  # as long as it is being looked at: functions may refer to each other
        cells = value.__closure__ or ()
        contents = [content_of(cell) for cell in cells]
        closure = [self.reaching(cell, content) for cell, content in zip(cells, contents, strict=True)]
        defaults = self.reaching(value.__defaults__, value.__defaults__)
        keywords = self.reaching(value.__kwdefaults__, value.__kwdefaults__)
        attributes = {name: self.reaching(item, item) for name, item in vars(value).items()}
        names = {}
        if not is_library(value.__globals__.get("__name__", "")):
            used = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
            found = {name: self.reaching(item, item) for name, item in used.items()}
            names = {name: item for name, item in found.items() if item is not used[name]}
        before = (*cells, value.__defaults__, value.__kwdefaults__, *vars(value).values())
        after = (*closure, defaults, keywords, *attributes.values())
        if not names and all(a is b for a, b in zip(before, after, strict=True)):
            return value
        new = FunctionType(
            value.__code__, {**value.__globals__, **names} if names else value.__globals__, value.__name__, defaults,
            tuple(one if one is cell else _cell(one) for one, cell in zip(closure, cells, strict=True)) or None,
        )  # fmt: skip
        new.__kwdefaults__, new.__qualname__ = keywords, value.__qualname__
        vars(new).update(attributes)
        self.copies[id(value)] = new
        return new

    def reaching(self, holder: Any, content: Any) -> Any:
        """A copy of what a function refers to if a part of the model is in it; otherwise what holds it, as it is."""
        if not self.reaches(content, _DEEP):
            return holder
        own = self.within_reason(content)
        return holder if own is content else own

    def within_reason(self, value: Any) -> Any:
        """A copy, unless more hangs on the value than is worth one."""
        outermost, noted = self.room is None, len(self.originals)
        if outermost:
            self.room = _MOST
        try:
            return self.copied(value)
        except _TooMuch:
            if not outermost:
                raise
            self.forget(noted)
            return value
        finally:
            if outermost:
                self.room = None

    def forget(self, noted: int) -> None:
        """Let go of the copies since then."""
        for other in self.originals[noted:]:
            self.copies.pop(id(other), None)

    def reaches(self, value: Any, depth: int) -> bool:
        """Whether a part of the model is in it, or in a function, so many containers or objects deep."""
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
        """Any other object: its attributes are copied, if Python can make one of its kind."""
        outermost, noted = self.room is None, len(self.originals)
        if outermost:
            self.room = _MOST
        try:
            kind = type(value)
            new = self.note(value, SimpleNamespace() if kind is SimpleNamespace else object.__new__(_quiet(kind)))
            slots = {name: getattr(value, name) for name in copyreg._slotnames(kind) if hasattr(value, name)}  # type: ignore[attr-defined]
            for name, item in {**getattr(value, "__dict__", {}), **slots}.items():
                object.__setattr__(new, name, self.copied(item))
            return new
        except Exception as error:
            if isinstance(error, _TooMuch) and not outermost:
                raise
            self.forget(noted)
            self.room = _MOST
            return self.note(value, value)
        finally:
            if outermost:
                self.room = None


#: Whose functions reach nobody's model by a global name.
_LIBRARIES = {"builtins", "torch", "torchvision", "timm", "transformers", "numpy", "nbviz", "functools", "contextlib"}


def is_library(module: str) -> bool:
    """Whether a module's functions and classes are nobody's own."""
    return module.split(".")[0] in _LIBRARIES


class _How(dict[type, Callable[[_Copier, Any], Any] | None]):
    """How a kind of object is copied; None for what is shared. Asked once for each kind, as isinstance is slow."""

    def __missing__(self, kind: type) -> Callable[[_Copier, Any], Any] | None:
        known: tuple[tuple[Any, Any], ...] = (
            (_SHARED, None),
            (nn.Module, _Copier.module),
            (Tensor, _Copier.tensor),
            (dict, _Copier.dict),
            ((list, deque), _Copier.list),
            ((set, frozenset), _Copier.set),
            (tuple, _Copier.tuple),
            (FunctionType, _Copier.function),
            (MethodType, _Copier.method),
            (partial, _Copier.partial),
            (np.ndarray, _Copier.array),
            (torch.Generator, _Copier.generator),
            (weakref.ref, _Copier.reference),
            (weakref.ProxyTypes, _Copier.proxy),
            (type(lru_cache(len)), _Copier.cached),
            (_GO_ON, _Copier.state),
        )
        other = _Copier.thing if kind.__dictoffset__ or "__slots__" in vars(kind) else None
        how = next((how for kinds, how in known if issubclass(kind, kinds)), other)
        if kind.__module__ != "__main__":  # a notebook's classes are not kept alive
            self[kind] = how
        return how


_HOW = _How()


#: What every module has among its attributes.
_OWN = frozenset(vars(nn.Module()))
_HOOKS = frozenset(name for name in _OWN if name.endswith("_hooks"))
_PLAIN = (dict, OrderedDict)
#: So many containers and objects deep a part of the model is looked for in what a function refers to.
_DEEP = 6


def _empty(module: nn.Module) -> Any:
    """The shadow of a module, before it has its attributes."""
    return object.__new__(_Eager if "_orig_mod" in module._modules else _quiet(type(module)))


def _quiet(kind: type) -> type:
    """The class, or one that is like it but does nothing at an object's end: what it would close is the model's."""
    if not hasattr(kind, "__del__"):
        return kind
    return type(kind.__name__, (kind,), {"__del__": lambda _self: None, "__module__": kind.__module__, "__slots__": ()})


def _cell(content: Any) -> Any:
    return (lambda: content).__closure__[0]  # type: ignore[index]


def content_of(cell: Any) -> Any:
    """What is in a cell of a closure."""
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _names(code: CodeType) -> set[str]:
    """The global names that a function's code uses, and those of functions within it."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*inner)
