"""Call a model on pictures, find its modules by name, and hook them for one pass."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.copier import Hook
from nbviz.core.errors import EndlessError, ModelError, PictureError, line, shown, unknown, with_class
from nbviz.core.state import device_restored

#: Makes the model's arguments from a batch of pictures; None for a model that takes the batch itself.
Feed = Callable[[Tensor], Any] | None


def call_model(model: nn.Module, inputs: Tensor, feed: Feed = None) -> Any:
    """The model's output; its exceptions are raised as a PictureError or ModelError that describes the input.

    ``feed`` returns the model's argument, a tuple of its arguments, or a dict of its keyword arguments.
    """
    try:
        with device_restored():
            arguments = inputs if feed is None else feed(inputs)
    except EndlessError:
        raise
    except Exception as error:
        what = f"inputs= failed on pictures of shape {tuple(inputs.shape)}"
        raise ModelError(f"{what}: {with_class(error)}") from error
    # Not on several devices: the hooks would be called for every replica.
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    forward: Any = model.module if parallel else model
    try:
        with device_restored():
            if isinstance(arguments, dict):
                return forward(**arguments)
            return forward(*arguments) if isinstance(arguments, tuple) else forward(arguments)
    except EndlessError:
        raise
    except Exception as error:
        first = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
        name, takes = (first[0], first[1].in_channels) if first is not None else ("", 0)
        if f"to have {takes} channels, but got {inputs.shape[1]} channels" in line(error, 1000):
            raise PictureError(
                f"the input has {inputs.shape[1]} channel(s), the model's first convolution {shown(name)} takes "
                f"{takes}; expected {(len(inputs), takes, *inputs.shape[2:])}, got {tuple(inputs.shape)}"
            ) from error
        what = f"an input of shape {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}, {inputs.device}"
        if out_of_memory(error):
            raise too_large(f"the forward pass of {type(model).__name__} on {what}", error) from error
        raise ModelError(f"{type(model).__name__} failed in its forward pass on {what}: {with_class(error)}") from error


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Within the block, this thread's reentrant checkpoints keep their graph instead of running twice.

    Autograd sees nothing of what they run the first time, and cannot go through them to a tensor within.
    """
    module: Any = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        yield
        return
    original, here = module.CheckpointFunction, threading.get_ident()

    class Direct:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            if threading.get_ident() == here:
                return function(*args)
            return original.apply(function, preserve, *args)

    module.CheckpointFunction = Direct
    try:
        yield
    finally:
        module.CheckpointFunction = original


@contextmanager
def hooked(model: nn.Module, names: set[str] | None, on_output: Callable[[str, Any], Any]) -> Iterator[None]:
    """Within the block, call ``on_output(name, output)`` after each call of the named modules (None: all but the root).

    If it returns something other than None, that replaces the output.
    """
    with ExitStack() as stack:
        if names is None:  # a parametrisation's outputs are weights
            named = model.named_modules()
            modules = [(name, module) for name, module in named if name and "parametrizations" not in name.split(".")]
        else:
            modules = [(name, module) for name in names if (module := submodule(model, name)) is not None]
        for name, module in modules:
            stack.callback(module.register_forward_hook(Hook(name, on_output)).remove)
        yield


def is_transformed(value: Tensor) -> bool:
    """Whether a tensor exists only within ``torch.func.vmap`` or another transform, where its values are hidden."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def no_tensor(name: str, value: Any) -> TypeError:
    """The error for a layer whose output is not a tensor, or a hidden one."""
    if isinstance(value, Tensor):
        return TypeError(
            f"layer {shown(name)} runs within torch.func.vmap or another transform, which hides its values; expected a "
            "layer outside of it"
        )
    return TypeError(f"layer {shown(name)} gives a {type(value).__name__}; expected a layer that gives a tensor")


def find_module(model: nn.Module, name: str) -> tuple[str, int]:
    """The name of a layer's module and the number of the call."""
    if not isinstance(name, str):
        raise TypeError(f"layer is {type(name).__name__}; expected a module's name, such as 'features.16'")
    module, _, call = name.rpartition(":")
    if submodule(model, name) is not None or not (call.isdecimal() and len(call) < 10):
        module, call = name, "0"
    if submodule(model, module) is None:
        raise unknown("layer", name, (n for n, _ in model.named_modules() if n))
    return module, int(call)


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The module with this name, which may have several names; None if there is none.

    Unlike ``get_submodule``, this also finds names that themselves contain a dot.

    Examples
    --------
    >>> submodule(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")
    ReLU()
    """
    module: nn.Module | None = model
    for step in name.split("."):
        module = None if module is None else module._modules.get(step)
    if module is None and name:
        module = dict(model.named_modules(remove_duplicate=False)).get(name)
    return module


def first_name(model: nn.Module, layer: str) -> str:
    """The name that :func:`nbviz.layers` lists a layer under, since a module may have several names.

    Examples
    --------
    >>> net = nn.Sequential(nn.ReLU())
    >>> net.add_module("same", net[0])
    >>> first_name(net, "same"), first_name(net, "same:1"), first_name(net, "0:0")
    ('0', '0:1', '0')
    """
    name, call = find_module(model, layer)
    module = submodule(model, name)
    first = next(name for name, candidate in model.named_modules() if candidate is module)
    return f"{first}:{call}" if call else first


def not_reached(name: str, module: str, calls: int) -> ValueError:
    """The error for a layer whose module is called too few times."""
    if calls == 0:
        return ValueError(
            f"layer {shown(name)} takes no part in the forward pass; expected one that nbviz.layers lists"
        )
    runs = ", ".join([line(module, 80), *(line(f"{module}:{i}", 80) for i in range(1, min(calls, 12)))])
    return ValueError(
        f"no layer {shown(name)}: {shown(module)} is called {calls} time(s) in the forward pass. Accepted: {runs}"
    )
