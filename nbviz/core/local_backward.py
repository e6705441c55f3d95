"""A backward pass that works only where the signal is.

A reconstruction that starts from one position touches no more than that position's receptive field,
and above the picture less still: one position at the layer, three by three below a 3x3 convolution.
This pass walks the graph of the full forward pass, and at each operation sends on only the region
that carries a signal, with the part of the kept switches and masks that lies under it. Many starts go
together: along the walk the region of start b begins at ``scale * position_b + shift``, so that all
regions of a batch have one size. Where a region would outgrow its tensor it becomes the whole tensor.

The result is that of the full pass. An operation that is not in the table below (a gate, an attention,
a reshape) ends the attempt, and the caller makes the full pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nbviz.core.backward import BackwardRule
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.state import alone, interruptible

Pair = tuple[int, int]
_aten = torch.ops.aten


@dataclass(frozen=True)
class Start:
    """Where one signal starts: a picture of the batch, a channel, a position (row and column), and how strong it is."""

    picture: int
    channel: int
    position: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class _Region:
    """Signals (B, C, h, w); that of start b begins at ``scale * position_b + shift`` in its tensor."""

    signal: Tensor
    scale: Pair = (1, 1)
    shift: Pair = (0, 0)


class _NotLocal(Exception):
    """An operation that this pass does not know."""


def pull_local(
    rule: str, start: Tensor, starts: Sequence[Start], inputs: Tensor
) -> tuple[Tensor, frozenset[str]] | None:
    """Send one position's signal for each start back to the picture, as :func:`nbviz.core.backward.pull` does.

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
        The signals at the input, each on its own picture, (B, C, H, W), and the names of the rectifiers
        that the rule met; None where an operation on the way is not local, or the regions are no smaller
        than the picture and the full pass is as quick.

    Examples
    --------
    >>> x = torch.rand(1, 1, 6, 6, requires_grad=True)
    >>> y = F.conv2d(x, torch.ones(1, 1, 3, 3)).relu()
    >>> pull_local("gradient", y, [Start(0, 0, (1, 2), 1.0)], x)[0][0, 0].sum(0).tolist()
    [0.0, 0.0, 3.0, 3.0, 3.0, 0.0]
    """
    # In this order: leaving inference mode turns gradients on.
    with alone(), torch.inference_mode(False), torch.no_grad():

        def send(part: Sequence[Start]) -> tuple[Tensor, _Walk]:
            with interruptible():
                walk = _Walk(rule, start, part, inputs)
            return walk.run(order), walk

        try:
            order = _order(start, inputs)
            # A batch of starts takes as much memory as its largest region: the first, alone, says how much that is.
            ((first, walk),) = in_chunks(send, starts[:1], 1, _ONE)
            if walk.touched > _WORTH_IT * walk.passed:
                return None
            at_once = max(1, min(_MOST_AT_ONCE, _MOST_NUMBERS // walk.largest))
            others = in_chunks(send, starts[1:], at_once, _ONE)
        except _NotLocal:
            return None
    return joined([first, *(piece for piece, _ in others)]), frozenset(walk.mode.met)


_ONE = "the way of one channel's signal back to the picture"
_WORTH_IT = 0.5  # share of all numbers on the way above which the full pass is as quick
_MOST_AT_ONCE = 64
_MOST_NUMBERS = 1 << 23  # in one tensor of signals: 32 MB of float32


class _Walk:
    """One batch of starts on its way down."""

    def __init__(self, rule: str, start: Tensor, starts: Sequence[Start], inputs: Tensor) -> None:
        self.mode = BackwardRule(rule)
        self.starts = starts
        self.inputs = inputs
        self.largest = 1
        self.touched = self.passed = 0  # numbers in the regions, and in the tensors that they are of
        signal = start.new_zeros(len(starts), start.shape[1], 1, 1)
        channels = torch.tensor([s.channel for s in starts], device=start.device)
        values = torch.tensor([s.value for s in starts], device=start.device, dtype=start.dtype)
        signal[torch.arange(len(starts), device=start.device), channels, 0, 0] = values
        self.first = _Region(signal)

    def run(self, order: list[Any]) -> Tensor:
        waiting: dict[Any, _Region] = {order[0]: self.first}
        ways_down = set(order)
        for node in order[:-1]:
            region = waiting.pop(node)
            rule = _RULES.get(node.name())
            if rule is None:
                raise _NotLocal(node.name())
            for (below, port), sent in zip(node.next_functions, rule(self, node, region), strict=False):
                if below in ways_down:
                    if port:  # two parts of a split tensor would pass for two ways to it
                        raise _NotLocal("one of several outputs")
                    fitted = self.fit(sent, _shape(below, port))
                    waiting[below] = self.join(waiting[below], fitted) if below in waiting else fitted
        leaf = waiting.pop(order[-1])
        return self.whole(leaf, tuple(self.inputs.shape))

    def corner(self, region: _Region, b: int) -> Pair:
        """Row and column where the region of start b begins."""
        row, column = self.starts[b].position
        return region.scale[0] * row + region.shift[0], region.scale[1] * column + region.shift[1]

    def under(self, full: Tensor, region: _Region) -> Tensor:
        """The part of a kept tensor (N, C, H, W) under each region, (B, C, h, w); zero beyond its border."""
        h, w = region.signal.shape[2:]
        parts = []
        for b, s in enumerate(self.starts):
            top, left = self.corner(region, b)
            part = full[s.picture, :, max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
            if part.shape[1:] != (h, w):
                above, before = min(max(-top, 0), h), min(max(-left, 0), w)
                part = F.pad(part, (before, w - before - part.shape[2], above, h - above - part.shape[1]))
            parts.append(part)
        return torch.stack(parts)

    def rectified(self, kernel: Any, region: _Region, full: Tensor, *more: Any) -> Sequence[_Region]:
        """What autograd's kernel of a rectifier makes of the signal under the rule."""
        kept = self.under(full, region)
        with self.mode:
            return [_Region(kernel(region.signal, kept, *more), region.scale, region.shift)]

    def fit(self, region: _Region, shape: tuple[int, ...]) -> _Region:
        """No signal beyond the border of the tensor that it belongs to, and no region larger than that."""
        if len(shape) != 4 or shape[1] != region.signal.shape[1]:
            raise _NotLocal(f"a tensor of shape {shape}")
        height, width = shape[2:]
        h, w = region.signal.shape[2:]
        if h >= height or w >= width:
            rows = (height, 0, 0) if h >= height else (h, region.scale[0], region.shift[0])
            columns = (width, 0, 0) if w >= width else (w, region.scale[1], region.shift[1])
            region = self.moved(region, *zip(rows, columns, strict=True))
            h, w = region.signal.shape[2:]
        self.largest = max(self.largest, region.signal[0].numel())
        self.touched += region.signal[0].numel()
        self.passed += shape[1] * height * width
        for b in range(len(self.starts)):
            top, left = self.corner(region, b)
            if top < 0:
                region.signal[b, :, :-top] = 0
            if top + h > height:
                region.signal[b, :, max(height - top, 0) :] = 0
            if left < 0:
                region.signal[b, :, :, :-left] = 0
            if left + w > width:
                region.signal[b, :, :, max(width - left, 0) :] = 0
        return region

    def moved(self, region: _Region, size: Pair, scale: Pair, shift: Pair) -> _Region:
        """The same signals in regions of another size or place; what does not fit in is dropped."""
        h, w = region.signal.shape[2:]
        result = _Region(region.signal.new_zeros(*region.signal.shape[:2], *size), scale, shift)
        for b in range(len(self.starts)):
            (top, left), (to_top, to_left) = self.corner(region, b), self.corner(result, b)
            down, across = top - to_top, left - to_left
            rows = slice(max(down, 0), max(min(down + h, size[0]), 0))
            columns = slice(max(across, 0), max(min(across + w, size[1]), 0))
            from_rows = slice(rows.start - down, max(rows.stop - down, 0))
            from_columns = slice(columns.start - across, max(columns.stop - across, 0))
            if rows.start < rows.stop and columns.start < columns.stop:
                result.signal[b, :, rows, columns] = region.signal[b, :, from_rows, from_columns]
        return result

    def whole(self, region: _Region, shape: tuple[int, ...]) -> Tensor:
        """The signals on pictures that are zero elsewhere."""
        return self.moved(region, (shape[2], shape[3]), (0, 0), (0, 0)).signal

    def join(self, a: _Region, b: _Region) -> _Region:
        """The sum of two signals that reach one tensor by different ways."""
        sizes, scales, shifts = [], [], []
        for axis in range(2):
            ends = [(r.shift[axis], r.shift[axis] + r.signal.shape[2 + axis]) for r in (a, b)]
            if a.scale[axis] == b.scale[axis]:
                first = min(ends[0][0], ends[1][0])
                sizes.append(max(ends[0][1], ends[1][1]) - first)
                scales.append(a.scale[axis])
                shifts.append(first)
            else:
                wide = a if a.scale[axis] == 0 else b  # one of them is the whole tensor already
                if wide.scale[axis] != 0:
                    raise _NotLocal("ways of different strides")
                sizes.append(wide.signal.shape[2 + axis])
                scales.append(0)
                shifts.append(wide.shift[axis])
        size, scale, shift = (sizes[0], sizes[1]), (scales[0], scales[1]), (shifts[0], shifts[1])
        if all(r.signal.shape[2:] == size and r.scale == scale and r.shift == shift for r in (a, b)):
            return _Region(a.signal + b.signal, scale, shift)
        signal = self.moved(a, size, scale, shift).signal + self.moved(b, size, scale, shift).signal
        return _Region(signal, scale, shift)


def _order(start: Tensor, inputs: Tensor) -> list[Any]:
    """The nodes between a tensor and the input, each after all that send it a signal; the input's own is last."""
    if start.ndim != 4 or start.grad_fn is None:
        raise _NotLocal("no feature maps")
    state: dict[Any, bool | None] = {}  # whether the input lies below; None while not known
    finished: list[Any] = []
    stack: list[Any] = [start.grad_fn]
    while stack:
        node = stack[-1]
        if node in state:
            stack.pop()
            if state[node] is None:
                state[node] = any(state.get(below) for below, _ in node.next_functions if below is not None)
                finished.append(node)
            continue
        if getattr(node, "variable", None) is inputs:
            stack.pop()
            state[node] = True
            finished.append(node)
            continue
        state[node] = None
        stack.extend(below for below, _ in node.next_functions if below is not None and below not in state)
    order = [node for node in reversed(finished) if state[node]]
    leaves = [node for node in order if getattr(node, "variable", None) is inputs]
    if not leaves:
        raise _NotLocal("no way to the input")
    return [*(node for node in order if node is not leaves[0]), leaves[0]]


def _shape(node: Any, port: int) -> tuple[int, ...]:
    """The shape of the tensor that a node's signal belongs to."""
    variable = getattr(node, "variable", None)
    return tuple(variable.shape if variable is not None else node._input_metadata[port].shape)


def _pair(value: Any) -> Pair:
    values = list(value)
    return int(values[0]), int(values[-1])


# The table: for each kind of node, the signals it sends to the nodes below it, in their order.

_Rule = Callable[[_Walk, Any, _Region], Sequence[_Region]]


def _spread(region: _Region, weight: Tensor, step: Pair, padding: Pair, dilation: Pair, groups: int) -> _Region:
    """Transposed filtering: each position reaches all those that its window took from."""
    signal = F.conv_transpose2d(region.signal, weight, None, step, 0, 0, groups, dilation)
    scale = (region.scale[0] * step[0], region.scale[1] * step[1])
    shift = (region.shift[0] * step[0] - padding[0], region.shift[1] * step[1] - padding[1])
    return _Region(signal, scale, shift)


def _convolution(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    weight = node._saved_weight
    if weight.ndim != 4 or node._saved_transposed:
        raise _NotLocal("a transposed convolution, or not a 2-D one")
    step, padding, dilation = (_pair(v) for v in (node._saved_stride, node._saved_padding, node._saved_dilation))
    return [_spread(region, weight, step, padding, dilation, node._saved_groups)]


def _max_pooling(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    """Unpooling: each value goes to its recorded switch."""
    width = node._saved_self.shape[3]
    step = _pair(node._saved_stride) if len(node._saved_stride) else _pair(node._saved_kernel_size)
    kernel, padding, dilation = (_pair(v) for v in (node._saved_kernel_size, node._saved_padding, node._saved_dilation))
    if any(side < apart for side, apart in zip(node._saved_self.shape[2:], dilation, strict=True)):
        raise _NotLocal("a window that sees nothing but padding, and has no switch")
    h, w = region.signal.shape[2:]
    tall = (h - 1) * step[0] + (kernel[0] - 1) * dilation[0] + 1
    wide = (w - 1) * step[1] + (kernel[1] - 1) * dilation[1] + 1
    scale = (region.scale[0] * step[0], region.scale[1] * step[1])
    shift = (region.shift[0] * step[0] - padding[0], region.shift[1] * step[1] - padding[1])
    empty = _Region(region.signal.new_zeros(*region.signal.shape[:2], tall, wide), scale, shift)
    switches = walk.under(node._saved_result1, region)
    corners = torch.tensor([walk.corner(empty, b) for b in range(len(walk.starts))], device=switches.device)
    rows = switches // width - corners[:, 0].view(-1, 1, 1, 1)
    columns = switches % width - corners[:, 1].view(-1, 1, 1, 1)
    # Beyond the border there is no switch, and no signal either: any place will do.
    places = (rows * wide + columns).clamp(0, tall * wide - 1)
    empty.signal.flatten(2).scatter_add_(2, places.flatten(2), region.signal.flatten(2))
    return [empty]


def _average_pooling(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    kernel, padding = _pair(node._saved_kernel_size), _pair(node._saved_padding)
    step = _pair(node._saved_stride) if len(node._saved_stride) else kernel
    counts_padding = node._saved_count_include_pad or padding == (0, 0)
    if node._saved_ceil_mode or not counts_padding or node._saved_divisor_override is not None:
        raise _NotLocal("an average over windows of several sizes")
    channels = region.signal.shape[1]
    weight = region.signal.new_full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return [_spread(region, weight, step, padding, (1, 1), channels)]


def _batch_norm(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    if node._saved_training:
        raise _NotLocal("a normalisation by the batch's own statistics")
    factor = torch.rsqrt(node._saved_running_var + node._saved_eps)
    if node._saved_weight is not None:
        factor = factor * node._saved_weight
    signal = region.signal * factor.to(region.signal.dtype).view(1, -1, 1, 1)
    return [_Region(signal, region.scale, region.shift)]


def _relu(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    return walk.rectified(_aten.threshold_backward, region, node._saved_result, 0)


def _activation(kernel: Any, *names: str) -> _Rule:
    """An activation whose kernel takes the signal, its own input, and what else the node has saved."""

    def rule(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
        more = [getattr(node, f"_saved_{name}") for name in names]
        return walk.rectified(kernel, region, node._saved_self, *more)

    return rule


def _leaky_relu(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    in_place = node.name().endswith("1")
    kept = node._saved_result if in_place else node._saved_self
    return walk.rectified(_aten.leaky_relu_backward, region, kept, node._saved_negative_slope, in_place)


def _elu(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    in_place = node.name().endswith("1")
    ends = node._saved_alpha, node._saved_scale, node._saved_input_scale, in_place
    kept = node._saved_result if in_place else node._saved_self
    return walk.rectified(lambda signal, part: _aten.elu_backward(signal, *ends, part), region, kept)


def _gelu(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    kernel = partial(_aten.gelu_backward, approximate=node._saved_approximate)
    return walk.rectified(kernel, region, node._saved_self)


def _sum(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    alpha = node._saved_alpha
    second = region if alpha == 1 else _Region(region.signal * alpha, region.scale, region.shift)
    # Each has signals of its own to work on.
    return [_Region(region.signal.clone(), region.scale, region.shift), second]


def _concatenation(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    if node._saved_dim % 4 != 1 or any(below is None for below, _ in node.next_functions):
        raise _NotLocal("a concatenation that is not along channels")
    widths = [_shape(below, port)[1] for below, port in node.next_functions]
    return [_Region(part.clone(), region.scale, region.shift) for part in region.signal.split(widths, 1)]


def _padding(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
    """Padding as an operation of its own, such as TensorFlow's "same": what lies beyond the border is dropped."""
    pads = [pad - (pad >> 63 << 64) for pad in node._saved_pad]  # autograd gives negative ones as unsigned numbers
    left, _, top, *_ = *pads, 0, 0, 0
    if any(pads[4:]):
        raise _NotLocal("a padding of channels")
    return [_Region(region.signal, region.scale, (region.shift[0] - top, region.shift[1] - left))]


def _same(walk: _Walk, node: Any, region: _Region) -> Sequence[_Region]:
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
    "GeluBackward0": _gelu,
    "HardswishBackward0": _activation(_aten.hardswish_backward),
    "SoftplusBackward0": _activation(_aten.softplus_backward, "beta", "threshold"),
    "MishBackward0": _activation(_aten.mish_backward),
    "AddBackward0": _sum,
    "CatBackward0": _concatenation,
    "CloneBackward0": _same,
    "ConstantPadNdBackward0": _padding,
}
