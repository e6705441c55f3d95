"""The backward rules (gradient, deconvnet, guided backprop) at autograd's own kernels.

However a rectifier is written in the forward pass (module, function, in place, reused), its backward
pass calls one of a few kernels. A mode entered around ``torch.autograd.grad`` intercepts these calls
and applies the rule, so nothing in the model is replaced. With R the signal from above and z the
rectifier's input:

==========  ====================  ====================
rule        what a ReLU does      another activation f
==========  ====================  ====================
gradient    R · [z > 0]           R · f'(z)
deconvnet   max(R, 0)             max(R, 0)
guided      max(R, 0) · [z > 0]   max(R, 0) · f'(z)
==========  ====================  ====================

The papers define the rules for the ReLU alone. For its successors (the table ``_RECTIFIERS``) they are an extension:
only a positive signal passes, since only that speaks for the channel, and guided backprop multiplies it by the
activation's slope, a smooth version of the ReLU's [z > 0]. Where such an activation decreases (SiLU below -1.28, GELU
below -0.75), its slope is negative and flips the sign of the signal. Gates (sigmoid, softmax, tanh, GLU) are no
rectifiers and keep the gradient.

A clamp at 0 has no backward kernel of its own; it is found in the graph, see :func:`clamp_name`.

The rest of a deconvnet is the gradient itself: the backward pass of a convolution is the transposed
filter, and that of max-pooling sends each value to its recorded switch.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nbviz.core.checks import check_choice
from nbviz.core.chunks import out_of_memory
from nbviz.core.errors import ModelError, with_class
from nbviz.core.graph import nodes_below
from nbviz.core.state import alone


@dataclass(frozen=True)
class Rule:
    """What a rectifier with input z does to the signal R from above.

    Parameters
    ----------
    title
        The rule's name in the interface.
    paper
        Its source.
    positive
        Whether R is replaced by max(R, 0).
    slope
        Whether the result is multiplied by the rectifier's slope: [z > 0], or f'(z) of another activation.
    """

    title: str
    paper: str
    positive: bool
    slope: bool


#: The rules by name, in display order.
BACKWARD_RULES: dict[str, Rule] = {
    "gradient": Rule("gradient", "Simonyan, Vedaldi and Zisserman 2014", positive=False, slope=True),
    "deconvnet": Rule("deconvnet", "Zeiler and Fergus 2014, section 2.1", positive=True, slope=False),
    "guided": Rule("guided backprop", "Springenberg et al. 2015, figure 1", positive=True, slope=True),
}
#: The names of the rules.
RULES = tuple(BACKWARD_RULES)
#: How values are combined where overlapping pooling windows share a switch.
UNPOOLING = ("sum", "overwrite")

_aten = torch.ops.aten
#: The backward kernels of rectifiers, whose first argument is the signal from above, and the names of the activations.
_RECTIFIERS: dict[Any, str] = {
    _aten.threshold_backward.default: "ReLU",
    _aten.hardtanh_backward.default: "ReLU6",  # with a lower end of 0; others are no rectifiers
    _aten.leaky_relu_backward.default: "LeakyReLU",
    _aten.rrelu_with_noise_backward.default: "RReLU",
    _aten._prelu_kernel_backward.default: "PReLU",
    _aten.elu_backward.default: "ELU",  # CELU and SELU as well
    _aten.silu_backward.default: "SiLU",
    _aten.gelu_backward.default: "GELU",
    _aten.hardswish_backward.default: "Hardswish",
    _aten.softplus_backward.default: "Softplus",
    _aten.mish_backward.default: "Mish",
}
#: The backward kernels of max-pooling: along how many axes they pool, and the position of the switches' argument.
_SWITCHES: dict[Any, tuple[int, int]] = {
    _aten.max_pool2d_with_indices_backward.default: (2, 7),
    _aten.max_pool3d_with_indices_backward.default: (3, 7),
    _aten.adaptive_max_pool2d_backward.default: (2, 2),
    _aten.adaptive_max_pool3d_backward.default: (3, 2),
}
#: The activations that the papers define the rules for.
PAPERS = frozenset(("ReLU",))


class BackwardRule(TorchDispatchMode):
    """Apply a rule to the rectifiers and max-poolings of a backward pass; ``met`` collects the rectifiers' names."""

    def __init__(self, rule: str, unpool: str = "sum") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = BACKWARD_RULES[check_choice("rule", rule, RULES)]
        self.unpool = check_choice("unpooling", unpool, UNPOOLING)
        self.met: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes seconds, only to exempt this mode from compilation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RECTIFIERS and not (func is _aten.hardtanh_backward.default and args[2] != 0):
            self.met.add(_RECTIFIERS[func])
            if self.rule.positive:
                args = (args[0].clamp(min=0), *args[1:])
            if not self.rule.slope:  # the PReLU's kernel also returns the gradient of its weights
                return (args[0], *func(*args)[1:]) if func is _aten._prelu_kernel_backward.default else args[0]
        if func is _aten.native_batch_norm_backward.default:
            # On the CPU torch misreads the signal of a single picture in channels-last memory format.
            args = (args[0].contiguous(), args[1].contiguous(), *args[2:])
        if func in _SWITCHES and self.unpool == "overwrite":
            axes, place = _SWITCHES[func]
            return _unpool(args[0], args[1], args[place], axes)
        return func(*args, **kwargs)

    def clamped(self, name: str, sent: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]) -> Any:
        """The signals that a clamp at 0 sends on under the rule; a hook of its node."""
        self.met.add(name)
        signal = sent[0] if self.rule.slope else received[0]
        return (signal.clamp(min=0), *sent[1:]) if self.rule.positive and signal is not None else None


def clamp_name(low: Any, high: Any) -> str | None:
    """The rectifier that a clamp to these ends is, but for passing the signal where z = 0; None for another clamp."""
    if low is None or torch.as_tensor(low != 0).any():
        return None
    return "ReLU" if high is None else "ReLU6"


def clamped_at(start: Tensor) -> float | None:
    """The upper end of the rectifier that a tensor comes from, such as 6 after a ReLU6; None where there is none.

    Where the tensor has this value, the gradient is zero. Max-pooling in between keeps such values.

    Examples
    --------
    >>> x = torch.ones(1, 1, 4, 4, requires_grad=True)
    >>> [clamped_at(y) for y in (x.relu(), torch.nn.functional.relu6(x).clone(), x.clamp(0, 1), x.clamp(-1, 1))]
    [None, 6.0, 1.0, None]
    """
    node: Any = start.grad_fn
    while node is not None and node.name().startswith(_KEEP_THE_LARGEST):
        node = node.next_functions[0][0]
    kind = "" if node is None else node.name()
    if kind.startswith("Hardtanh"):
        low, high = node._saved_min_val, node._saved_max_val
    elif kind.startswith("ClampBackward"):
        low, high = node._saved_min, node._saved_max
    else:
        return None
    if clamp_name(low, high) != "ReLU6" or torch.as_tensor(high).numel() > 1:
        return None
    return float(high)


_KEEP_THE_LARGEST = ("CloneBackward", "MaxPool", "AdaptiveMaxPool")


def _unpool(signal: Tensor, pooled_from: Tensor, switches: Tensor, axes: int) -> Tensor:
    """``max_unpool2d``: each value at its switch, where later values overwrite earlier ones."""
    empty = pooled_from.new_zeros(pooled_from.shape).flatten(-axes)
    return empty.scatter(-1, switches.flatten(-axes), signal.flatten(-axes)).view(pooled_from.shape)


NO_GRADIENT = (
    "no gradient reaches the picture: the start does not depend on it, or the model detaches or rounds on the way, as "
    "quantised layers do, or runs a part of itself under torch.no_grad()"
)


def pull(rule: str, start: Tensor, seeds: Tensor, inputs: Tensor, unpool: str = "sum") -> tuple[Tensor, frozenset[str]]:
    """Send signals from a tensor back to the input under a rule, through the graph of one forward pass.

    Parameters
    ----------
    rule
        One of ``RULES``.
    start
        A tensor of the graph, such as an activation or the output of a trace, of any shape.
    seeds
        (K, *start.shape): K signals, sent in one batched pass.
    inputs
        The trace's inputs (N, C, H, W).
    unpool
        One of ``UNPOOLING``. Where pooling windows overlap, several values may share a switch: the
        gradient sums them, ``max_unpool2d`` keeps the last. Without overlap both agree.

    Returns
    -------
    tuple
        The signals at the input (K, N, C, H, W), and the names of the rectifiers that the rule was applied to.

    Raises
    ------
    ModelError
        When no gradient flows from ``start`` to the input.

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 2.0, 3.0]], requires_grad=True)
    >>> pull("guided", x.relu(), torch.tensor([[[1.0, 1.0, -1.0]]]), x)
    (tensor([[[0., 1., 0.]]]), frozenset({'ReLU'}))
    """
    mode = BackwardRule(rule, unpool)
    if not start.requires_grad:
        raise ModelError(NO_GRADIENT)
    batched = len(seeds) > 1
    with alone(), torch.inference_mode(False), mode, ExitStack() as stack:
        for node in nodes_below(start):
            ends = getattr(node, "_saved_min", None), getattr(node, "_saved_max", None)
            if node.name().startswith("Clamp") and (name := clamp_name(*ends)) is not None:
                stack.callback(node.register_hook(partial(mode.clamped, name)).remove)
        try:
            (signal,) = torch.autograd.grad(
                start, inputs, seeds if batched else seeds[0], True, is_grads_batched=batched, allow_unused=True
            )
        except Exception as error:  # a custom operation, or an input that was overwritten since
            if out_of_memory(error):
                raise
            what = f"the model failed in its backward pass from {tuple(start.shape)}"
            raise ModelError(f"{what}: {with_class(error)}") from error
    if signal is None:
        raise ModelError(NO_GRADIENT)
    return signal.detach() if batched else signal.detach()[None], frozenset(mode.met)
