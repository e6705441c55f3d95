"""Run a model once and keep some activations, stopping after the last of them and leaving nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.copier import Hook
from nbviz.core.errors import EndlessError, ModelError, PictureError, line, shown, unknown, with_class
from nbviz.core.graph import nodes_below
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, device_restored, interruptible


@dataclass
class Trace:
    """The record of one forward pass.

    Parameters
    ----------
    inputs
        The pictures (N, C, H, W), on the model's device; a leaf that requires grad if the run was
        asked to keep the graph.
    activations
        The outputs of the requested layers by name.
    output
        The model's output; None if the run stopped before.
    model
        The shadow of the model that ran; it shares the model's weights.
    """

    inputs: Tensor
    activations: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    model: nn.Module | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the trace holds besides the model and the pictures, including the graph's saved tensors."""
        tensors = list(self.activations.values())
        ends = [*tensors, self.output] if isinstance(self.output, Tensor) else tensors
        tensors = [*tensors, *(saved for node in nodes_below(*ends) for saved in _saved(node))]
        own = [self.inputs] if self.model is None else [self.inputs, *self.model.parameters(), *self.model.buffers()]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        for tensor in own:
            sizes.pop(tensor.untyped_storage().data_ptr(), None)
        return sum(sizes.values())


def _saved(node: Any) -> Iterator[Tensor]:
    """The tensors that a node of the graph keeps for its backward pass.

    Those with an unpack hook are skipped: unpacking them would recompute them, as a checkpoint does.
    """
    for name in _saved_names(node.__class__):
        raw = getattr(node, name)
        for i, variable in enumerate(raw if isinstance(raw, (list, tuple)) else [raw]):
            if getattr(variable, "unpack_hook", variable) is None:
                with suppress(RuntimeError):  # freed or overwritten since
                    value = getattr(node, name.removeprefix("_raw"))
                    saved = value[i] if isinstance(raw, (list, tuple)) else value
                    if isinstance(saved, Tensor):
                        yield saved


@cache
def _saved_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


class _Enough(BaseException):
    """Ends a forward pass after the last requested layer; a BaseException, so that no model catches it."""


def run(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[str] = (),
    *,
    feed: Feed = None,
    output: bool = False,
    grad: bool | Literal["after"] = False,
    use: Callable[[str, Tensor], bool] | None = None,
) -> Trace:
    """One forward pass in eval mode.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.
    layers
        Names of modules; ``"name:1"`` is the second call of a module that runs more than once.
    feed
        Makes the model's arguments from the inputs; see :func:`call_model`.
    output
        Run to the end and keep the model's output. Otherwise the pass stops right after the last
        of ``layers``.
    grad
        Keep the autograd graph, for backward passes from any kept tensor to ``inputs``; ``"after"`` keeps only the
        graph of what follows the first of ``layers``, for backward passes to the activations.
    use
        Called with a layer's name and activation as soon as it is computed; the activation is kept only if this
        returns True. It is the model's own tensor, still in the processor's cache, and must not be written to.

    Returns
    -------
    Trace
        The activations as the layers returned them, on the model's device; later in-place operations
        of the model do not change them.

    Raises
    ------
    ValueError
        For an unknown layer, or a layer that the forward pass did not reach.
    ModelError
        When the model's forward pass fails.
    TypeError
        When a layer's output is not a tensor, or the model is scripted or exported.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten())
    >>> trace = run(net, torch.zeros(1, 1, 5, 5), ["0", "1"])
    >>> trace.activations["1"].shape, trace.output is None
    (torch.Size([1, 2, 3, 3]), True)
    """
    model = check_model(model)
    names = {name: find_module(model, name) for name in layers}
    wanted = set(names.values())

    def forward(shadow: nn.Module) -> tuple[Trace, dict[tuple[str, int], Any], Counter[str]]:
        kept: dict[tuple[str, int], Any] = {}
        calls: Counter[str] = Counter()
        failures: list[Exception] = []  # of ``use``, not to be reported as failures of the model
        leaf = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
        trace = Trace(leaf.requires_grad_(grad is True), model=shadow)

        def keep(module: str, value: Any) -> Any:
            call = module, calls[module]
            calls[module] += 1
            if call not in wanted:
                return None
            if use is not None and isinstance(value, Tensor):
                try:
                    answers = [use(name, _dense(value)) for name, its_call in names.items() if its_call == call]
                except Exception as error:
                    failures.append(error)
                    raise _Enough from error
                value = value if any(answers) else _USED
            is_tensor = isinstance(value, Tensor)
            # One copy to keep and one to continue with: what follows may work in place, even on the layer's input.
            kept[call] = value.clone() if is_tensor else value
            if grad == "after" and is_tensor and not value.requires_grad and value.is_floating_point():
                kept[call].requires_grad_()
                torch.set_grad_enabled(True)  # until the end of the pass
            if len(kept) == len(wanted) and not output:
                raise _Enough
            return kept[call].clone() if is_tensor else None

        hooks = hooked(shadow, {module for module, _ in wanted}, keep)
        with torch.set_grad_enabled(grad is True), hooks, suppress(_Enough), interruptible():
            trace.output = call_model(shadow, trace.inputs.clone(), feed)
        if failures:
            raise failures[0]
        return trace, kept, calls

    trace, kept, calls = in_shadow(model, forward)
    for name, (module, call) in names.items():
        if (module, call) not in kept:
            raise not_reached(name, module, calls[module])
        value = kept[module, call]
        if isinstance(value, Tensor):
            trace.activations[name] = _dense(value)
        elif value is not _USED:
            raise TypeError(f"layer {shown(name)} gives a {type(value).__name__}; expected a layer that gives a tensor")
    return trace


_USED = object()  # in place of an activation that ``use`` has seen and that is not kept


def _dense(value: Tensor) -> Tensor:
    return value.dequantize() if value.is_quantized else value


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
