"""Run a model once and keep some activations, stopping after the last of them and leaving nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbviz.core.calls import (
    Feed,
    call_model,
    find_module,
    hooked,
    is_transformed,
    no_tensor,
    not_reached,
    without_checkpoints,
)
from nbviz.core.graph import nodes_below
from nbviz.core.layers import Layouts, Unclear
from nbviz.core.layout import Layout
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, interruptible


@dataclass
class Trace:
    """The record of one forward pass.

    Parameters
    ----------
    inputs
        The pictures (N, C, H, W), on the model's device; a leaf that requires grad if the run was
        asked to keep the graph.
    activations
        The outputs of the requested layers by name, channels first: (N, C, ...), wherever the modules have them.
    layouts
        How the modules' own outputs became that; None for a layer of which it is not known, which is as it was given.
    output
        The model's output; None if the run stopped before.
    model
        The shadow of the model that ran; it shares the model's weights.
    """

    inputs: Tensor
    activations: dict[str, Tensor] = field(default_factory=dict)
    layouts: dict[str, Layout | None] = field(default_factory=dict)
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


#: Of what the autograd graph is kept.
Graph = bool | Literal["after", "throughout"]


class _Enough(BaseException):
    """Ends a forward pass after the last requested layer; a BaseException, so that no model catches it."""


def run(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[str] = (),
    *,
    feed: Feed = None,
    output: bool = False,
    grad: Graph = False,
    use: Callable[[str, Tensor, Layout | None], bool] | None = None,
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
        graph of what follows the first of ``layers``, for backward passes to the activations. ``"throughout"`` is for
        models that switch gradients on and off themselves: the graph is kept as in training.
    use
        Called with a layer's name, its activation, channels first, and the layout, as soon as it is computed; the
        activation is kept only if this returns True. It is the model's own tensor, still in the processor's cache, and
        must not be written to.

    Returns
    -------
    Trace
        The activations, channels first, on the model's device; later in-place operations of the model do not change
        them.

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
    layouts, found = Layouts(model, inputs, feed), {}
    unclear: list[Unclear] = []

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
            layout = None
            if isinstance(value, Tensor) and is_transformed(value):
                failures.append(no_tensor(next(name for name, its_call in names.items() if its_call == call), value))
                raise _Enough
            if isinstance(value, Tensor):
                try:
                    found[call] = layout = layouts.of(*call, value)
                except Unclear as error:
                    unclear.append(error)
                    raise _Enough from None
                value = value if layout is None else layout.channels(value)
            if use is not None and isinstance(value, Tensor):
                try:
                    answers = [use(name, _dense(value), layout) for name, its_call in names.items() if its_call == call]
                except Exception as error:
                    failures.append(error)
                    raise _Enough from error
                value = value if any(answers) else _USED
            is_tensor = isinstance(value, Tensor)
            # One copy to keep and one to continue with: what follows may work in place, even on the layer's input.
            kept[call] = value.clone() if is_tensor else value
            if isinstance(grad, str) and is_tensor and not value.requires_grad and value.is_floating_point():
                kept[call].requires_grad_()
                torch.set_grad_enabled(True)  # until the end of the pass
            if len(kept) == len(wanted) and not output:
                raise _Enough
            if not is_tensor:
                return None
            return (kept[call] if layout is None else layout.restored(kept[call])).clone()

        hooks = hooked(shadow, {module for module, _ in wanted}, keep)
        recorded = torch.set_grad_enabled(grad in (True, "throughout"))
        recomputed = without_checkpoints() if grad else nullcontext()
        with recorded, recomputed, hooks, suppress(_Enough), interruptible():
            trace.output = call_model(shadow, trace.inputs.clone(), feed)
        if failures:
            raise failures[0]
        return trace, kept, calls

    trace, kept, calls = in_shadow(model, forward)
    if unclear:
        layouts.find()
        trace, kept, calls = in_shadow(model, forward)
    for name, (module, call) in names.items():
        if (module, call) not in kept:
            raise not_reached(name, module, calls[module])
        value = kept[module, call]
        if isinstance(value, Tensor):
            trace.activations[name] = _dense(value)
            trace.layouts[name] = found[module, call]
        elif value is not _USED:
            raise no_tensor(name, value)
    return trace


_USED = object()  # in place of an activation that ``use`` has seen and that is not kept


def _dense(value: Tensor) -> Tensor:
    return value.dequantize() if value.is_quantized else value
