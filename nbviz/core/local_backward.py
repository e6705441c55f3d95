"""A backward pass restricted to the regions that carry a signal.

A reconstruction from one position touches only that position's receptive field, and less on the way
there: one position at the layer, three by three below a 3x3 convolution. This pass walks the graph of
the full forward pass, and at each operation propagates only the region that carries a signal, with the
part of the saved switches and masks under it. A batch of starts goes together: the region of start b
begins at ``scale * position_b + shift``, so all regions of a batch have the same size. A region that
would outgrow its tensor becomes the whole tensor.

The result equals that of the full pass. An operation without a rule in the table below (a gate, an
attention, a reshape) ends the attempt, and the caller makes the full pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nbviz.core.backward import BackwardRule
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.graph import nodes_between
from nbviz.core.regions import NotLocal, Pair, Region, Regions, Start
from nbviz.core.state import alone, interruptible

_aten = torch.ops.aten


def pull_local(
    rule: str, start: Tensor, starts: Sequence[Start], inputs: Tensor
) -> tuple[Tensor, frozenset[str]] | None:
    """Send the signal of each start back to the picture, with the results of :func:`nbviz.core.backward.pull`.

    Parameters
    ----------
    rule
        One of ``nbviz.core.backward.RULES``.
    start
        The activation (N, C, H, W) of a trace that was run with ``grad=True``.
    starts
        B starts in it.
    inputs
        The trace's inputs (N, C, H, W).

    Returns
    -------
    tuple or None
        The signals at the input (B, C, H, W), each for the picture of its start, and the names of the rectifiers
        that the rule was applied to. None if an operation has no local rule, or if the regions are so
        large that the full pass is as fast.

    Examples
    --------
    >>> x = torch.rand(1, 1, 6, 6, requires_grad=True)
    >>> y = F.conv2d(x, torch.ones(1, 1, 3, 3)).relu()
    >>> pull_local("gradient", y, [Start(0, 0, (1, 2), 1.0)], x)[0][0, 0].sum(0).tolist()
    [0.0, 0.0, 3.0, 3.0, 3.0, 0.0]
    """
    # no_grad comes last: leaving inference mode turns gradients on.
    with alone(), torch.inference_mode(False), torch.no_grad():

        def send(batch: Sequence[Start]) -> tuple[Tensor, _Walk]:
            with interruptible():
                walk = _Walk(rule, start, batch, inputs)
            return walk.run(order), walk

        try:
            order = _order(start, inputs)
            # The largest region of the first start gives the memory per start, and so the size of the batches.
            ((first, walk),) = in_chunks(send, starts[:1], 1, _ONE_START)
            if walk.touched > _WORTH_IT * walk.passed:
                return None
            at_once = max(1, min(_MOST_AT_ONCE, _MOST_NUMBERS // walk.largest))
            others = in_chunks(send, starts[1:], at_once, _ONE_START)
        except NotLocal:
            return None
    return joined([first, *(piece for piece, _ in others)]), frozenset(walk.mode.met)


_ONE_START = "the backward pass of one channel's signal to the picture"
_WORTH_IT = 0.5  # the share of all values in the regions above which the full pass is as fast
_MOST_AT_ONCE = 64
_MOST_NUMBERS = 1 << 23  # in a tensor of signals: 32 MB of float32


class _Walk:
    """The backward pass of one batch of starts."""

    def __init__(self, rule: str, start: Tensor, starts: Sequence[Start], inputs: Tensor) -> None:
        self.mode = BackwardRule(rule)
        self.regions = Regions(starts)
        self.inputs = inputs
        self.largest = 1
        self.touched = self.passed = 0  # values in the regions of a start, and in their whole tensors
        signal = start.new_zeros(len(starts), start.shape[1], 1, 1)
        channels = torch.tensor([s.channel for s in starts], device=start.device)
        values = torch.tensor([s.value for s in starts], device=start.device, dtype=start.dtype)
        signal[torch.arange(len(starts), device=start.device), channels, 0, 0] = values
        self.first = Region(signal)

    def run(self, order: list[Any]) -> Tensor:
        waiting: dict[Any, Region] = {order[0]: self.first}
        nodes = set(order)
        for node in order[:-1]:
            region = waiting.pop(node)
            rule = _RULES.get(node.name())
            if rule is None:
                raise NotLocal(node.name())
            for (below, port), sent in zip(node.next_functions, rule(self, node, region), strict=False):
                if below in nodes:
                    if port:  # the parts of a split tensor would be added up as if they were one tensor
                        raise NotLocal("one of several outputs")
                    fitted = self.fit(sent, _shape(below, port))
                    waiting[below] = self.regions.join(waiting[below], fitted) if below in waiting else fitted
        return self.regions.whole(waiting.pop(order[-1]), tuple(self.inputs.shape))

    def fit(self, region: Region, shape: tuple[int, ...]) -> Region:
        """The region clipped to its tensor, and counted."""
        region = self.regions.fit(region, shape)
        self.largest = max(self.largest, region.signal[0].numel())
        self.touched += region.signal[0].numel()
        self.passed += shape[1] * shape[2] * shape[3]
        return region

    def rectified(self, kernel: Any, node: Any, region: Region, **more: Any) -> Sequence[Region]:
        """The signal that a rectifier's backward kernel sends on under the rule."""
        saved = node._saved_self if hasattr(node, "_saved_self") else node._saved_result  # of a ReLU, or in place
        patches = self.regions.under(saved, region)
        with self.mode:
            return [replace(region, signal=kernel(region.signal, patches, **more))]


def _order(start: Tensor, inputs: Tensor) -> list[Any]:
    """The nodes between a tensor and the input in topological order; the input's own node is last."""
    if start.ndim != 4 or start.grad_fn is None:
        raise NotLocal("no feature maps")
    order = nodes_between(start, inputs)
    if not order:
        raise NotLocal("no path to the input")
    return order


def _shape(node: Any, port: int) -> tuple[int, ...]:
    """The shape of the tensor that a node's signal belongs to."""
    variable = getattr(node, "variable", None)
    return tuple(variable.shape if variable is not None else node._input_metadata[port].shape)


def _pair(value: Any) -> Pair:
    values = list(value)
    return int(values[0]), int(values[-1])


# The rules, each from a node of the graph and its signal to the signals of the nodes below it, in their order.

_Rule = Callable[[_Walk, Any, Region], Sequence[Region]]


def _spread(region: Region, weight: Tensor, step: Pair, padding: Pair, dilation: Pair, groups: int) -> Region:
    """Transposed filtering: each position reaches all positions that its window covered."""
    signal = F.conv_transpose2d(region.signal, weight, None, step, 0, 0, groups, dilation)
    return region.through_windows(signal, step, padding)


def _convolution(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    weight = node._saved_weight
    if weight.ndim != 4 or node._saved_transposed:
        raise NotLocal("a transposed convolution, or not a 2-D one")
    step, padding, dilation = (_pair(v) for v in (node._saved_stride, node._saved_padding, node._saved_dilation))
    return [_spread(region, weight, step, padding, dilation, node._saved_groups)]


def _max_pooling(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    """Unpooling: each value goes to its recorded switch."""
    width = node._saved_self.shape[3]
    step = _pair(node._saved_stride) if len(node._saved_stride) else _pair(node._saved_kernel_size)
    kernel, padding, dilation = (_pair(v) for v in (node._saved_kernel_size, node._saved_padding, node._saved_dilation))
    if any(padding) and any(side < apart for side, apart in zip(node._saved_self.shape[2:], dilation, strict=True)):
        raise NotLocal("a window over padding alone, which has no switch")
    h, w = region.signal.shape[2:]
    tall = (h - 1) * step[0] + (kernel[0] - 1) * dilation[0] + 1
    wide = (w - 1) * step[1] + (kernel[1] - 1) * dilation[1] + 1
    empty = region.through_windows(region.signal.new_zeros(*region.signal.shape[:2], tall, wide), step, padding)
    switches = walk.regions.under(node._saved_result1, region)
    starts = range(len(region.signal))
    corners = torch.tensor([walk.regions.corner(empty, b) for b in starts], device=switches.device)
    rows = switches // width - corners[:, 0].view(-1, 1, 1, 1)
    columns = switches % width - corners[:, 1].view(-1, 1, 1, 1)
    # Beyond the border there is neither a switch nor a signal, so any place will do.
    places = (rows * wide + columns).clamp(0, tall * wide - 1)
    empty.signal.flatten(2).scatter_add_(2, places.flatten(2), region.signal.flatten(2))
    return [empty]


def _average_pooling(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    kernel, padding = _pair(node._saved_kernel_size), _pair(node._saved_padding)
    step = _pair(node._saved_stride) if len(node._saved_stride) else kernel
    counts_padding = node._saved_count_include_pad or padding == (0, 0)
    if node._saved_ceil_mode or not counts_padding or node._saved_divisor_override is not None:
        raise NotLocal("an average over windows of several sizes")
    channels = region.signal.shape[1]
    weight = region.signal.new_full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return [_spread(region, weight, step, padding, (1, 1), channels)]


def _batch_norm(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    if node._saved_training:
        raise NotLocal("a normalisation by the batch's own statistics")
    factor = torch.rsqrt(node._saved_running_var + node._saved_eps)
    if node._saved_weight is not None:
        factor = factor * node._saved_weight
    signal = region.signal * factor.to(region.signal.dtype).view(1, -1, 1, 1)
    return [replace(region, signal=signal)]


def _relu(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    return walk.rectified(_aten.threshold_backward, node, region, threshold=0)


def _activation(kernel: Any, *names: str) -> _Rule:
    """An activation whose backward kernel takes the signal, its input, and other attributes saved by the node."""

    def rule(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
        return walk.rectified(kernel, node, region, **{name: getattr(node, f"_saved_{name}") for name in names})

    return rule


def _leaky_relu(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    more = {"negative_slope": node._saved_negative_slope, "self_is_result": node.name().endswith("1")}
    return walk.rectified(_aten.leaky_relu_backward, node, region, **more)


def _elu(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    ends = node._saved_alpha, node._saved_scale, node._saved_input_scale, node.name().endswith("1")
    return walk.rectified(lambda signal, saved: _aten.elu_backward(signal, *ends, saved), node, region)


def _sum(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    alpha = node._saved_alpha
    second = region if alpha == 1 else replace(region, signal=region.signal * alpha)
    # Copied, because signals are modified in place.
    return [replace(region, signal=region.signal.clone()), second]


def _concatenation(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    if node._saved_dim % 4 != 1 or any(below is None for below, _ in node.next_functions):
        raise NotLocal("a concatenation that is not along channels")
    widths = [_shape(below, port)[1] for below, port in node.next_functions]
    return [replace(region, signal=signal.clone()) for signal in region.signal.split(widths, 1)]


def _padding(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    """Padding as an operation of its own, such as TensorFlow's "same": what lies beyond the border is dropped."""
    pads = [pad - (pad >> 63 << 64) for pad in node._saved_pad]  # autograd gives negative ones as unsigned numbers
    left, _, top, *_ = *pads, 0, 0, 0
    if any(pads[4:]):
        raise NotLocal("a padding of channels")
    return [region.through_windows(region.signal, (1, 1), (top, left))]


def _same(walk: _Walk, node: Any, region: Region) -> Sequence[Region]:
    return [region]


_RULES: dict[str, _Rule] = {
    "ConvolutionBackward0": _convolution,
    "MaxPool2DWithIndicesBackward0": _max_pooling,
    "AvgPool2DBackward0": _average_pooling,
    "NativeBatchNormBackward0": _batch_norm,
    "ReluBackward0": _relu,
    "HardtanhBackward0": _activation(_aten.hardtanh_backward, "min_val", "max_val"),
    "LeakyReluBackward0": _leaky_relu,
    "LeakyReluBackward1": _leaky_relu,
    "EluBackward0": _elu,
    "EluBackward1": _elu,
    "SiluBackward0": _activation(_aten.silu_backward),
    "GeluBackward0": _activation(_aten.gelu_backward, "approximate"),
    "HardswishBackward0": _activation(_aten.hardswish_backward),
    "SoftplusBackward0": _activation(_aten.softplus_backward, "beta", "threshold"),
    "MishBackward0": _activation(_aten.mish_backward),
    "AddBackward0": _sum,
    "CatBackward0": _concatenation,
    "CloneBackward0": _same,
    "ConstantPadNdBackward0": _padding,
}
