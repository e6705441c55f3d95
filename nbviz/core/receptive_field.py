"""Receptive fields: which pixels of the picture a position of a tensor depends on, and a rule for each operation.

Along an axis, position i sees the pixels ``stride * i + low`` to ``stride * i + high``, both included (Araujo, Norris
and Sim, 2019, "Computing receptive fields of convolutional neural networks", in its interval form).
:class:`nbviz.core.field_tracker.FieldTracker` applies the rules along a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

#: One number for each spatial axis: rows and columns of a picture.
Steps = tuple[float, ...]


@dataclass(frozen=True)
class Field:
    """The receptive field of a tensor's positions, rows before columns, in pixels of the input.

    A signal has one axis instead, its samples, and a volume three, its slices first.

    Parameters
    ----------
    axes
        Which dimensions of the tensor are its rows and columns.
    stride, low, high
        Position i sees pixels ``stride * i + low`` to ``stride * i + high`` before clipping.
    gated
        Whether the position also depends on the whole picture through a statistic: a squeeze-and-excite
        gate, or a normalisation over positions.
    """

    axes: tuple[int, ...]
    stride: Steps = (1.0, 1.0)
    low: Steps = (0.0, 0.0)
    high: Steps = (0.0, 0.0)
    gated: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """Its height and width away from the border."""
        return tuple(math.ceil(high - low) + 1 for low, high in zip(self.low, self.high, strict=True))

    def corner(self, position: Sequence[int]) -> tuple[int, ...]:
        """Top and left of what a position sees, before clipping: negative beyond the border."""
        return tuple(math.floor(y * i + low) for y, i, low in zip(self.stride, position, self.low, strict=True))

    def box(self, position: Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
        """Top, left, bottom, right (exclusive) of what a position sees of a picture: at least one pixel."""
        first = [min(max(start, 0), side - 1) for start, side in zip(self.corner(position), sides, strict=True)]
        last = (math.ceil(y * i + high) + 1 for y, i, high in zip(self.stride, position, self.high, strict=True))
        ends = (max(min(stop, side), start + 1) for stop, side, start in zip(last, sides, first, strict=True))
        return (*first, *ends)

    def window(self, kernel: Steps, step: Steps, padding: Steps, dilation: Steps) -> Field:
        """The field after a sliding window, of a convolution or a pooling."""
        first = tuple(-p for p in padding)
        last = tuple((k - 1) * d - p for k, d, p in zip(kernel, dilation, padding, strict=True))
        return self.reading(step, first, last)

    def reading(self, step: Steps, first: Steps, last: Steps) -> Field:
        """The field of a tensor whose position i reads ``step * i + first`` to ``step * i + last`` of this tensor."""
        return replace(
            self,
            stride=tuple(y * s for y, s in zip(self.stride, step, strict=True)),
            low=tuple(low + y * f for low, y, f in zip(self.low, self.stride, first, strict=True)),
            high=tuple(high + y * f for high, y, f in zip(self.high, self.stride, last, strict=True)),
        )


#: The shapes and fields of an operation's inputs.
Known = Sequence[tuple[tuple[int, ...], Field]]


class Operation(NamedTuple):
    """A call of a torch function in the forward pass.

    Parameters
    ----------
    known
        The shapes and fields of the inputs whose field is known, at least one.
    output
        A tensor that it returned.
    args, kwargs
        Its arguments.
    """

    known: Known
    output: Tensor
    args: Sequence[Any]
    kwargs: dict[str, Any]

    @property
    def field(self) -> Field:
        """The field of the first input."""
        return self.known[0][1]

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.field.axes)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument; the default also stands in for None."""
        value = self.args[place] if len(self.args) > place else self.kwargs.get(name, default)
        return default if value is None else value

    def steps(self, place: int, name: str, default: Any) -> Steps:
        """An argument as one number per axis."""
        return _steps(self.argument(place, name, default), self.axes)

    @property
    def can_slide(self) -> bool:
        """Whether rows and columns are the last dimensions, along which windows slide."""
        last = tuple(range(self.output.ndim - self.axes, self.output.ndim))
        return len(self.known[0][0]) == self.output.ndim > len(last) and self.field.axes == last

    @property
    def kernel(self) -> Steps:
        """The sides of a convolution's kernel."""
        return _steps(tuple(self.argument(1, "weight").shape[2:]), self.axes)


#: From an operation to its output's field; None where that is the whole picture or not known.
Rule = Callable[[Operation], Field | None]


def _steps(value: Any, axes: int) -> Steps:
    """One number per axis; a single number stands for all axes."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(float(v) for v in (values if len(values) == axes else values[:1] * axes))


def _sides(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in axes)


def keeps_positions(call: Operation) -> Field | None:
    """Pointwise operations and those along channels: the union of the inputs' fields."""
    known, output = call.known, call.output
    if any(len(shape) != output.ndim for shape, _ in known):
        return None
    fits = [field for shape, field in known if _sides(shape, field.axes) == _sides(output.shape, field.axes)]
    gates = [field for shape, field in known if set(_sides(shape, field.axes)) == {1}]
    if not fits or any(f.axes != fits[0].axes or f.stride != fits[0].stride for f in fits):
        return None
    if len({*fits, *gates}) < len({field for _, field in known}):
        return None
    low = tuple(map(min, zip(*(f.low for f in fits), strict=True)))
    high = tuple(map(max, zip(*(f.high for f in fits), strict=True)))
    gated = any(f.gated for f in fits) or not set(gates) <= set(fits)
    return replace(fits[0], low=low, high=high, gated=gated)


def _convolution(call: Operation) -> Field | None:
    dilation, padding = call.steps(5, "dilation", 1), call.argument(4, "padding", 0)
    if padding == "same":
        padding = tuple((k - 1) * d // 2 for k, d in zip(call.kernel, dilation, strict=True))
    padding = _steps(0 if padding == "valid" else padding, call.axes)
    return call.field.window(call.kernel, call.steps(3, "stride", 1), padding, dilation)


def _transposed(call: Operation) -> Field | None:
    kernel, dilation = call.kernel, call.steps(7, "dilation", 1)
    step, padding = call.steps(3, "stride", 1), call.steps(4, "padding", 0)
    # Output o reads the inputs i for which o = i * step - padding + k * dilation with some k.
    first = tuple((padding[i] - (kernel[i] - 1) * dilation[i]) / step[i] for i in range(call.axes))
    last = tuple(p / s for p, s in zip(padding, step, strict=True))
    return call.field.reading(tuple(1 / s for s in step), first, last)


def _pooling(call: Operation) -> Field | None:
    kernel = call.steps(1, "kernel_size", 1)
    step = _steps(call.argument(2, "stride") or kernel, call.axes)
    return call.field.window(kernel, step, call.steps(3, "padding", 0), call.steps(4, "dilation", 1))


def _average_pooling(call: Operation) -> Field | None:
    return _pooling(call._replace(args=call.args[:4]))  # the fifth argument is ceil_mode, not dilation


def _power_pooling(call: Operation) -> Field | None:
    return _pooling(call._replace(args=(call.args[0], *call.args[2:4])))  # the second argument is the power


def _adaptive_pooling(call: Operation) -> Field | None:
    """Windows of equal share, rounded outwards."""

    def windows(before: int, after: int, axis: int) -> tuple[float, Reads]:
        return before / after, [(i * before // after, -((i + 1) * before // -after) - 1) for i in range(after)]

    return _resampled(call, windows)


def _interpolated(call: Operation) -> Field | None:
    """The nearest position, or for smooth modes a few around it."""
    mode = call.argument(3, "mode", "nearest")
    if mode == "area":
        return _adaptive_pooling(call)
    factor = call.argument(2, "scale_factor")
    corners = call.argument(4, "align_corners", False)
    resized = factor is None or call.argument(5, "recompute_scale_factor", False)
    antialias = call.argument(6, "antialias", False)
    around = {"linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 2}.get(mode, 0)

    def reads(before: int, after: int, axis: int) -> tuple[float, Reads]:
        step = before / after if resized else 1 / _steps(factor, call.output.ndim - 2)[axis]
        if around and corners:
            step = (before - 1) / max(after - 1, 1)
        elif mode == "nearest" and after in (before, 2 * before):
            step = before / after  # torch has a shortcut here that ignores the factor
        spans = []
        for i in range(after):
            if mode == "nearest" or step == 1:
                first = last = math.floor(i * step)
            elif not around:
                first = last = math.floor((i + 0.5) * step)
            elif antialias:
                centre, support = (i + 0.5) * step, around * max(step, 1)
                first, last = math.floor(centre - support), math.ceil(centre + support)
            else:
                left = math.floor(max(i * step if corners else (i + 0.5) * step - 0.5, 0))
                first, last = left + 1 - around, left + around
            spans.append((min(max(first, 0), before - 1), min(max(last, 0), before - 1)))
        return step, spans

    return _resampled(call, reads)


#: The first and last input position that each output position reads along an axis.
Reads = list[tuple[int, int]]


def _resampled(call: Operation, reads: Callable[[int, int, int], tuple[float, Reads]]) -> Field | None:
    """The field where ``reads`` gives, for an axis' lengths before and after, the step and what each position reads."""
    before, after = call.known[0][0][-call.axes :], tuple(call.output.shape[-call.axes :])
    if not call.can_slide or set(after) == {1} != set(before):
        return None
    steps, firsts, lasts = [], [], []
    for axis in range(call.axes):
        step, spans = reads(before[axis], after[axis], axis)
        steps.append(step)
        firsts.append(min(first - step * i for i, (first, _) in enumerate(spans)))
        lasts.append(max(last - step * i for i, (_, last) in enumerate(spans)))
    return call.field.reading(tuple(steps), tuple(firsts), tuple(lasts))


def _padded(call: Operation) -> Field | None:
    """Reflected and replicated borders count like zeros; circular padding brings in the opposite border."""
    if call.argument(2, "mode", "constant") == "circular":
        return None
    pads = list(call.argument(1, "pad", ()))
    padded = {call.output.ndim - 1 - i: -float(pads[2 * i]) for i in range(len(pads) // 2)}
    before = tuple(padded.get(axis, 0.0) for axis in call.field.axes)
    return call.field.reading((1.0,) * len(before), before, before)


def _permuted(call: Operation) -> Field | None:
    dims = call.argument(1, "dims", ())
    order = [d % call.output.ndim for d in (dims if isinstance(dims, (list, tuple)) else call.args[1:])]
    return replace(call.field, axes=tuple(map(order.index, call.field.axes)))


def _transposed_dims(call: Operation) -> Field | None:
    a = call.argument(1, "dim0", 0) % call.output.ndim
    b = call.argument(2, "dim1", 1) % call.output.ndim
    swap = {a: b, b: a}
    return replace(call.field, axes=tuple(swap.get(axis, axis) for axis in call.field.axes))


def moved_order(ndim: int, source: Any, destination: Any) -> list[int]:
    """The dimensions in the order that ``movedim`` gives them.

    Examples
    --------
    >>> moved_order(4, 1, -1), moved_order(4, (0, 1), (2, 0))
    ([0, 2, 3, 1], [1, 2, 0, 3])
    """
    sources, targets = (
        [d % ndim for d in (given if isinstance(given, (list, tuple)) else [given])] for given in (source, destination)
    )
    placed = dict(zip(targets, sources, strict=True))
    left = iter([d for d in range(ndim) if d not in sources])
    return [placed[d] if d in placed else next(left) for d in range(ndim)]


def _moved_dims(call: Operation) -> Field | None:
    order = moved_order(call.output.ndim, call.argument(1, "source"), call.argument(2, "destination"))
    return replace(call.field, axes=tuple(map(order.index, call.field.axes)))


def _reshaped(call: Operation) -> Field | None:
    """Rows and columns survive if they keep their lengths, and the dimensions before them their product."""
    shape, field = call.known[0]
    axes = []
    for axis in field.axes:
        before = math.prod(shape[:axis])
        same = [i for i, length in enumerate(call.output.shape) if length == shape[axis]]
        fits = [i for i in same if math.prod(call.output.shape[:i]) == before]
        if not fits:
            return None
        axes.append(fits[-1])
    return replace(field, axes=tuple(axes)) if len(set(axes)) == len(axes) else None


def _normalised(call: Operation, over_positions: bool = True) -> Field | None:
    """Group and instance normalisation: by statistics over rows and columns."""
    field = keeps_positions(call._replace(known=call.known[:1]))
    return replace(field, gated=True) if field is not None and over_positions else field


def _layer_normalised(call: Operation) -> Field | None:
    """By statistics over the last dimensions, which may be channels alone."""
    over = len(call.argument(1, "normalized_shape", ()))
    return _normalised(call, max(call.field.axes) >= call.output.ndim - over)


def _batch_normalised(call: Operation) -> Field | None:
    """By running statistics, or in training mode by those of the batch."""
    return _normalised(call, call.argument(5, "training", False))


def _along(place: int, default: int = -1) -> Rule:
    """Operations that mix or move positions along the dimensions in the argument ``dim``."""

    def rule(call: Operation) -> Field | None:
        field, dim = keeps_positions(call), call.argument(place, "dim", default)
        dims = [d % call.output.ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
        return None if field is None or any(axis in dims for axis in field.axes) else field

    return rule


def _indexed(call: Operation) -> Field | None:
    """Slices that leave rows and columns whole; positions picked by a list may come in any order."""
    field, index = keeps_positions(call), call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    for place, item in enumerate(index):
        if item is None or item is Ellipsis:
            return field if all(isinstance(i, slice) for i in index[place + 1 :]) else None
        if field is not None and not isinstance(item, slice) and place >= min(field.axes):
            return None
    return field


def lost(call: Operation) -> None:
    """Operations that mix or move positions in ways that are not followed."""


def _sliding(name: str, rule: Rule) -> dict[str, Rule]:
    """A rule for windows that slide along one, two or three axes, if these are all that the field has."""

    def along(axes: int) -> Rule:
        return lambda call: rule(call) if call.axes == axes and call.can_slide else None

    return {name.format(axes): along(axes) for axes in (1, 2, 3)}


#: The rules of torch's functions by name; all others keep positions.
RULES: dict[str, Rule] = {
    **_sliding("conv{}d", _convolution),
    **_sliding("conv_transpose{}d", _transposed),
    **_sliding("max_pool{}d", _pooling),
    **_sliding("max_pool{}d_with_indices", _pooling),
    **_sliding("avg_pool{}d", _average_pooling),
    **_sliding("lp_pool{}d", _power_pooling),
    **_sliding("adaptive_avg_pool{}d", _adaptive_pooling),
    **_sliding("adaptive_max_pool{}d", _adaptive_pooling),
    **_sliding("adaptive_max_pool{}d_with_indices", _adaptive_pooling),
    **dict.fromkeys(("interpolate", "upsample"), _interpolated),
    "pad": _padded,
    "permute": _permuted,
    **dict.fromkeys(("movedim", "moveaxis"), _moved_dims),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed_dims),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), _reshaped),
    **dict.fromkeys(("group_norm", "instance_norm"), _normalised),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_normalised),
    "batch_norm": _batch_normalised,
    "linear": _along(3),  # it has no argument dim: always the last
    "getitem": _indexed,
    **dict.fromkeys(("softmax", "log_softmax", "special_softmax", "special_log_softmax"), _along(1, default=1)),
    "normalize": _along(2, default=1),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort"), _along(1)),
    **dict.fromkeys(("index_select", "gather", "index_add", "index_copy", "index_reduce"), _along(1)),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _along(1)),
    **dict.fromkeys(("setitem", "roll", "rot90", "flip", "fliplr", "flipud", "get"), lost),
    **dict.fromkeys(("t", "adjoint", "as_strided", "take", "put", "index_put", "masked_scatter", "set"), lost),
    **dict.fromkeys(("gradient", "renorm", "convolution", "max_unpool2d"), lost),
    **dict.fromkeys(("native_batch_norm", "native_group_norm", "native_layer_norm"), lost),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "baddbmm", "einsum", "tensordot", "bilinear"), lost),
    **dict.fromkeys(("mm", "addmm", "addbmm", "inner", "cdist"), lost),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), lost),
    **dict.fromkeys(("grid_sample", "deform_conv2d", "pixel_shuffle", "take_along_dim", "topk"), lost),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), lost),
}
