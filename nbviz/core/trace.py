"""Run a model once, keep the activations asked for, stop after the last of them, leave nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.errors import EndlessError, ModelError, PictureError, line, shown, unknown
from nbviz.core.shadow import Hook, in_shadow
from nbviz.core.state import as_given, check_model, interruptible


@dataclass
class Trace:
    """What one forward pass left: the input, the activations asked for, the output.

    Parameters
    ----------
    inputs
        The pictures (N, C, H, W) that went in, on the model's device; a leaf that requires grad
        where the run was asked for it.
    activations
        The output of each layer asked for, under the name it was asked by.
    output
        The model's own output, or None where the run stopped before.
    model
        The shadow of the model that ran, whose weights are the model's.
    """

    inputs: Tensor
    activations: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    model: nn.Module | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the trace keeps beside the model and the pictures, its graph's saved tensors among them."""
        tensors = list(self.activations.values())
        seen: set[Any] = {None}
        nodes = [t.grad_fn for t in (*tensors, self.output) if isinstance(t, Tensor)]
        while nodes:
            node: Any = nodes.pop()
            if node not in seen:
                seen.add(node)
                nodes.extend(below for below, _ in node.next_functions)
                tensors += _saved(node)
        own = [self.inputs] if self.model is None else [self.inputs, *self.model.parameters(), *self.model.buffers()]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        for tensor in own:
            sizes.pop(tensor.untyped_storage().data_ptr(), None)
        return sum(sizes.values())


def _saved(node: Any) -> Iterator[Tensor]:
    """The tensors that a node of the graph keeps for its backward pass.

    Those that a hook would have to make again are left out: a checkpoint runs a part of the model for that.
    """
    for name in _saved_names(node.__class__):
        raw = getattr(node, name)
        for i, one in enumerate(raw if isinstance(raw, (list, tuple)) else [raw]):
            if getattr(one, "unpack_hook", one) is None:
                with suppress(RuntimeError):  # let go of, or written to, since
                    value = getattr(node, name.removeprefix("_raw"))
                    kept = value[i] if isinstance(raw, (list, tuple)) else value
                    if isinstance(kept, Tensor):
                        yield kept


@cache
def _saved_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


class _Enough(BaseException):
    """Ends a forward pass once its last wanted layer has spoken (no model catches a BaseException)."""


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
        From the pictures to what the model is called with; see :func:`call_model`.
    output
        Go on to the end and keep the model's output. Otherwise the pass stops right after the last
        of ``layers``.
    grad
        Keep the autograd graph, for backward passes from any kept tensor to ``inputs``; ``"after"`` only that of what
        comes after the first of ``layers``, for backward passes to the activations.
    use
        Called with a layer's name and activation as soon as the layer has given it, which is then kept only if this
        returns True. It is the model's own, still in the processor's cache, and not to be written to.

    Returns
    -------
    Trace
        Activations as the layers gave them, on the model's device; later in-place operations of the
        model do not reach them.

    Raises
    ------
    ValueError
        For an unknown layer, or one that this forward pass did not reach.
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
    names = find_modules(model, layers)
    wanted = set(names.values())

    def forward(shadow: nn.Module) -> tuple[Trace, dict[tuple[str, int], Any], Counter[str]]:
        kept: dict[tuple[str, int], Any] = {}
        calls: Counter[str] = Counter()
        failed: list[Exception] = []  # in ``use``, which is no fault of the model's
        after = grad == "after"
        given = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
        trace = Trace(given.requires_grad_(grad is True), model=shadow)

        def keep(module: str, value: Any) -> Any:
            call = module, calls[module]
            calls[module] += 1
            if call not in wanted:
                return None
            keeps = True
            if use is not None and isinstance(value, Tensor):
                try:
                    used = [use(name, _dense(value)) for name, its_call in names.items() if its_call == call]
                except Exception as error:
                    failed.append(error)
                    raise _Enough from error
                keeps = any(used)
            # A copy to keep and one to go on with: what follows may work in place, on what a layer handed on as well.
            copies = keeps and isinstance(value, Tensor)
            kept[call] = value.clone() if copies else value if keeps else _USED
            if after and copies and not value.requires_grad and value.is_floating_point():
                kept[call].requires_grad_()
                torch.set_grad_enabled(True)  # from here on, until the pass ends
            if len(kept) == len(wanted) and not output:
                raise _Enough
            return kept[call].clone() if copies else None

        hooks = hooked(shadow, {module for module, _ in wanted}, keep)
        with torch.set_grad_enabled(grad is True), hooks, suppress(_Enough), interruptible():
            trace.output = call_model(shadow, trace.inputs.clone(), feed)
        if failed:
            raise failed[0]
        return trace, kept, calls

    trace, kept, calls = in_shadow(model, forward)
    for name, call in names.items():
        if call not in kept:
            raise not_reached(name, call[0], calls[call[0]])
        value = kept[call]
        if value is _USED:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"layer {shown(name)} gives a {type(value).__name__}; expected a layer that gives a tensor")
        trace.activations[name] = _dense(value)
    return trace


_USED = object()


def _dense(value: Tensor) -> Tensor:
    return value.dequantize() if value.is_quantized else value


#: From a batch of pictures to the model's arguments; None for a model that takes the batch itself.
Feed = Callable[[Tensor], Any] | None


def call_model(model: nn.Module, inputs: Tensor, feed: Feed = None) -> Any:
    """The model's output; its own exceptions come as a PictureError or ModelError that says what went in.

    What ``feed`` makes of the pictures is the model's argument, or a tuple of its arguments, or a dict of its
    keyword arguments.
    """
    try:
        with as_given():
            given = inputs if feed is None else feed(inputs)
    except EndlessError:
        raise
    except Exception as error:
        raise ModelError(
            f"inputs= failed on pictures of shape {tuple(inputs.shape)}: {type(error).__name__}: {line(error, 1000)}"
        ) from error
    # Replicas on other devices would each call the hooks.
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    forward: Any = model.module if parallel else model
    try:
        with as_given():
            if isinstance(given, dict):
                return forward(**given)
            return forward(*given) if isinstance(given, tuple) else forward(given)
    except EndlessError:
        raise
    except Exception as error:
        first = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
        name, takes = (first[0], first[1].in_channels) if first is not None else ("", 0)
        said = line(error, 1000)
        if f"to have {takes} channels, but got {inputs.shape[1]} channels" in said:
            raise PictureError(
                f"the input has {inputs.shape[1]} channel(s), the model's first convolution {shown(name)} takes "
                f"{takes}; expected {(len(inputs), takes, *inputs.shape[2:])}, got {tuple(inputs.shape)}"
            ) from error
        given = f"an input of shape {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}, {inputs.device}"
        if out_of_memory(error):
            raise too_large(f"the forward pass of {type(model).__name__} on {given}", error) from error
        raise ModelError(
            f"{type(model).__name__} failed in its forward pass on {given}: {type(error).__name__}: {said}"
        ) from error


@contextmanager
def hooked(model: nn.Module, names: set[str] | None, on_output: Callable[[str, Any], Any]) -> Iterator[None]:
    """While inside, ``on_output(name, output)`` sees each call of the named modules (None: of all but the root).

    What it returns, unless None, takes the place of the output.
    """
    handles = []
    try:
        if names is None:  # what a parametrisation gives are weights
            named = model.named_modules()
            modules = [(name, module) for name, module in named if name and "parametrizations" not in name.split(".")]
        else:
            modules = [(name, module) for name in names if (module := submodule(model, name)) is not None]
        for name, module in modules:
            handles.append(module.register_forward_hook(Hook(name, on_output)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_modules(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """For each layer's name the module's and the number of its call."""
    result = {}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"layer is {type(name).__name__}; expected a module's name, such as 'features.16'")
        module, _, call = name.rpartition(":")
        if submodule(model, name) is not None or not (call.isdecimal() and len(call) < 10):
            module, call = name, "0"
        if submodule(model, module) is None:
            raise unknown("layer", name, (n for n, _ in model.named_modules() if n))
        result[name] = module, int(call)
    return result


def find_module(model: nn.Module, name: str) -> tuple[str, int]:
    """The same for one."""
    return find_modules(model, [name])[name]


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The part of a model that has this name, which may be one of several; None if there is none.

    As in ``model.named_modules()``: ``get_submodule`` knows no name with a dot of its own.

    Examples
    --------
    >>> submodule(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")
    ReLU()
    """
    found: nn.Module | None = model
    for step in name.split("."):
        found = None if found is None else found._modules.get(step)
    if found is None and name:
        found = dict(model.named_modules(remove_duplicate=False)).get(name)
    return found


def first_name(model: nn.Module, layer: str) -> str:
    """The name that :func:`nbviz.layers` has for a layer: a module may have several, and ``"name:0"`` is a first call.

    Examples
    --------
    >>> net = nn.Sequential(nn.ReLU())
    >>> net.add_module("same", net[0])
    >>> first_name(net, "same"), first_name(net, "same:1"), first_name(net, "0:0")
    ('0', '0:1', '0')
    """
    name, call = find_module(model, layer)
    module = submodule(model, name)
    first = next(name for name, one in model.named_modules() if one is module)
    return f"{first}:{call}" if call else first


def not_reached(name: str, module: str, calls: int) -> ValueError:
    """The error for a layer whose module is called fewer times than its name says."""
    if calls == 0:
        return ValueError(
            f"layer {shown(name)} takes no part in the forward pass; expected one that nbviz.layers lists"
        )
    runs = ", ".join([line(module, 80), *(line(f"{module}:{i}", 80) for i in range(1, min(calls, 12)))])
    return ValueError(
        f"no layer {shown(name)}: {shown(module)} is called {calls} time(s) in the forward pass. Accepted: {runs}"
    )
