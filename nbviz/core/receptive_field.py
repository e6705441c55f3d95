"""Which pixels of the picture a position of a tensor depends on, followed through a forward pass.

A ``TorchFunctionMode`` sees every operation of the pass, modules and functions alike, and carries
from its inputs to its output where each position looks. Along an axis, position i sees the pixels
``stride * i + low`` to ``stride * i + high``, both included (Araujo, Norris and Sim, 2019, "Computing
receptive fields of convolutional neural networks", in its interval form).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

#: One number for each of the axes that a convolution slides along: rows and columns of a picture.
Steps = tuple[float, ...]


@dataclass(frozen=True)
class Field:
    """Where the positions of one tensor look: rows first, then columns, in pixels of the input.

    A signal has one axis instead, its samples, and a volume three, its slices first.

    Parameters
    ----------
    axes
        Which dimensions of the tensor are its rows and its columns.
    stride, low, high
        Position i sees pixels ``stride * i + low`` to ``stride * i + high`` before clipping.
    gated
        The position also depends on the whole picture through a statistic: a squeeze-and-excite
        gate, or a normalisation over positions.
    """

    axes: tuple[int, ...]
    stride: Steps = (1.0, 1.0)
    low: Steps = (0.0, 0.0)
    high: Steps = (0.0, 0.0)
    gated: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """Rows and columns of the field away from the border."""
        return tuple(math.ceil(high - low) + 1 for low, high in zip(self.low, self.high, strict=True))

    def corner(self, position: Sequence[int]) -> tuple[int, ...]:
        """Top and left of what a position sees, before clipping: beyond the border they are negative."""
        return tuple(math.floor(y * i + low) for y, i, low in zip(self.stride, position, self.low, strict=True))

    def box(self, position: Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
        """Top, left, bottom, right (ends excluded) of what a position sees of a picture, at least one pixel."""
        first = [min(max(start, 0), side - 1) for start, side in zip(self.corner(position), sides, strict=True)]
        last = (math.ceil(y * i + high) + 1 for y, i, high in zip(self.stride, position, self.high, strict=True))
        ends = (max(min(stop, side), start + 1) for stop, side, start in zip(last, sides, first, strict=True))
        return (*first, *ends)

    def window(self, kernel: Steps, step: Steps, padding: Steps, dilation: Steps) -> Field:
        """The field after a sliding window: a convolution or a pooling."""
        first = tuple(-p for p in padding)
        last = tuple((k - 1) * d - p for k, d, p in zip(kernel, dilation, padding, strict=True))
        return self.reading(step, first, last)

    def reading(self, step: Steps, first: Steps, last: Steps) -> Field:
        """The field of a tensor whose position i reads ``step * i + first`` to ``step * i + last`` of this one."""
        return replace(
            self,
            stride=tuple(y * s for y, s in zip(self.stride, step, strict=True)),
            low=tuple(low + y * f for low, y, f in zip(self.low, self.stride, first, strict=True)),
            high=tuple(high + y * f for high, y, f in zip(self.high, self.stride, last, strict=True)),
        )


class FieldTracker(TorchFunctionMode):
    """While active, ``fields[tensor]`` says for every tensor that depends on the picture where its positions look.

    None there means the whole picture, or that it is not known: what an operation unknown to this
    file leads to, unless it keeps rows and columns. ``rectified(tensor)`` names the activations on its way.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.fields: Any = WeakTensorKeyDictionary()  # None: looks at the whole picture
        self._rectified: Any = WeakTensorKeyDictionary()  # by the tensor whose memory it is: views have it in common
        axes = tuple(range(2, picture.ndim)) or (0,)
        nothing = (0.0,) * len(axes)
        self.fields[picture] = Field(axes, (1.0,) * len(axes), nothing, nothing)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        in_place = name == "__setitem__" or re.fullmatch(r"__i\w+__|\w*[a-z0-9]_", name) or "out" in kwargs
        name = name.strip("_")
        taken = args[:1] if name in _SHAPED_BY_ANOTHER else (args, kwargs)
        # Shapes are taken now: an in-place operation gives its own input back.
        seen = [(tuple(t.shape), self.fields[t]) for t in tensors_in(taken) if t in self.fields]
        known = [(shape, field) for shape, field in seen if field is not None]
        rectified = _rectifier(name, args, kwargs).union(*map(self.rectified, tensors_in((args, kwargs))))
        result = func(*args, **kwargs)
        if seen:
            unknown = name.startswith(("fft_", "linalg_")) or isinstance(func, (OpOverload, OpOverloadPacket))
            rule = _lost if unknown else _RULES.get(name, _keeps_positions)
            for output in tensors_in(args[0] if name == "setitem" else result):
                field = rule(known, output, args, kwargs) if known and output.ndim >= 2 else None
                if field is not None and len(known) < len(seen):
                    field = replace(field, gated=True)
                if in_place and (field is None or field != self.fields.get(output)):
                    self._written(output)
                self.fields[output] = field
                if rectified:
                    self._rectified[_owner(output)] = rectified | self.rectified(output)
        return result

    def forget(self) -> None:
        """Let go of what is known of all tensors."""
        self.fields.clear()
        self._rectified.clear()

    def rectified(self, tensor: Tensor) -> frozenset[str]:
        """The names of the rectifiers that lie between the picture and a tensor, as the backward rules have them."""
        found: frozenset[str] = self._rectified.get(_owner(tensor), frozenset())
        return found

    def _written(self, tensor: Tensor) -> None:
        """What else lies in the same memory is no longer known."""
        base = _owner(tensor)
        for other in (base, *self.fields):
            if other is base or other._base is base:
                self.fields[other] = None


Known = Sequence[tuple[tuple[int, ...], Field]]
Rule = Callable[[Known, Tensor, Sequence[Any], dict[str, Any]], Field | None]


def _owner(tensor: Tensor) -> Tensor:
    """Whose memory a tensor looks into."""
    return tensor if tensor._base is None else tensor._base


def _rectifier(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> frozenset[str]:
    """The name that the backward rules have for an operation of the forward pass, if it is one that they act on."""
    if name in ("clamp", "clip", "clamp_min", "hardtanh"):
        names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        low, high = (_argument(args, kwargs, i + 1, name, None) for i, name in enumerate(names))
        from_zero = low is not None and not torch.as_tensor(low != 0).any()
        found = None if not from_zero else "ReLU" if high is None else "ReLU6"
    else:
        found = _RECTIFIERS.get(name)
    return frozenset(filter(None, (found,)))


_RECTIFIERS = {
    **dict.fromkeys(("relu", "threshold"), "ReLU"),
    **dict.fromkeys(("elu", "celu", "selu"), "ELU"),
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "prelu": "PReLU",
    "rrelu": "RReLU",
    "silu": "SiLU",
    "gelu": "GELU",
    "hardswish": "Hardswish",
    "softplus": "Softplus",
    "mish": "Mish",
}


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value, in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for item in value for t in tensors_in(item)]


def _sides(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in axes)


def _keeps_positions(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Pointwise operations, and those along channels: the union of what the inputs see."""
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


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    value = args[place] if len(args) > place else kwargs.get(name, default)
    return default if value is None else value


def _steps(value: Any, axes: int) -> Steps:
    """A number for each axis, of which one may stand for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(float(v) for v in (values if len(values) == axes else values[:1] * axes))


def _rows_and_columns_last(known: Known, output: Tensor) -> Field | None:
    """The field of a convolution's or pooling's input, if rows and columns are what it slides along."""
    shape, field = known[0]
    last = tuple(range(output.ndim - len(field.axes), output.ndim))
    return field if len(shape) == output.ndim > len(last) and field.axes == last else None


def _convolution(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    field, weight = _rows_and_columns_last(known, output), _argument(args, kwargs, 1, "weight", None)
    if field is None or weight is None:
        return None
    axes = len(field.axes)
    kernel = _steps(tuple(weight.shape[2:]), axes)
    dilation = _steps(_argument(args, kwargs, 5, "dilation", 1), axes)
    padding = _argument(args, kwargs, 4, "padding", 0)
    if padding == "same":
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    padding = _steps(0 if padding == "valid" else padding, axes)
    return field.window(kernel, _steps(_argument(args, kwargs, 3, "stride", 1), axes), padding, dilation)


def _transposed(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    field, weight = _rows_and_columns_last(known, output), _argument(args, kwargs, 1, "weight", None)
    if field is None or weight is None:
        return None
    axes = len(field.axes)
    kernel = _steps(tuple(weight.shape[2:]), axes)
    step = _steps(_argument(args, kwargs, 3, "stride", 1), axes)
    padding = _steps(_argument(args, kwargs, 4, "padding", 0), axes)
    dilation = _steps(_argument(args, kwargs, 7, "dilation", 1), axes)
    # Output o takes from inputs i with o = i * step - padding + k * dilation.
    first = tuple((padding[i] - (kernel[i] - 1) * dilation[i]) / step[i] for i in range(axes))
    last = tuple(p / s for p, s in zip(padding, step, strict=True))
    return field.reading(tuple(1 / s for s in step), first, last)


def _pooling(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    field = _rows_and_columns_last(known, output)
    if field is None:
        return None
    axes = len(field.axes)
    kernel = _steps(_argument(args, kwargs, 1, "kernel_size", 1), axes)
    step = _steps(_argument(args, kwargs, 2, "stride", None) or kernel, axes)
    padding = _steps(_argument(args, kwargs, 3, "padding", 0), axes)
    return field.window(kernel, step, padding, _steps(_argument(args, kwargs, 4, "dilation", 1), axes))


def _average_pooling(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    return _pooling(known, output, args[:4], kwargs)  # the fifth is ceil_mode


def _power_pooling(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    return _pooling(known, output, (args[0], *args[2:4]), kwargs)  # the second is the power


def _adaptive_pooling(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Windows of equal share, rounded outwards."""

    def windows(before: int, after: int, axis: int) -> tuple[float, Reads]:
        return before / after, [(i * before // after, -((i + 1) * before // -after) - 1) for i in range(after)]

    return _resampled(known, output, windows)


def _interpolated(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """The nearest position, or for smooth modes a few around it."""
    mode = _argument(args, kwargs, 3, "mode", "nearest")
    if mode == "area":
        return _adaptive_pooling(known, output, args, kwargs)
    factor = _argument(args, kwargs, 2, "scale_factor", None)
    corners = _argument(args, kwargs, 4, "align_corners", False)
    resized = factor is None or _argument(args, kwargs, 5, "recompute_scale_factor", False)
    antialias = _argument(args, kwargs, 6, "antialias", False)
    around = {"linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 2}.get(mode, 0)

    def reads(before: int, after: int, axis: int) -> tuple[float, Reads]:
        step = before / after if resized else 1 / _steps(factor, output.ndim - 2)[axis]
        if around and corners:
            step = (before - 1) / max(after - 1, 1)
        elif mode == "nearest" and after in (before, 2 * before):
            step = before / after  # torch takes a short cut here, whatever the factor
        found = []
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
            found.append((min(max(first, 0), before - 1), min(max(last, 0), before - 1)))
        return step, found

    return _resampled(known, output, reads)


Reads = list[tuple[int, int]]


def _resampled(known: Known, output: Tensor, reads: Callable[[int, int, int], tuple[float, Reads]]) -> Field | None:
    """From the first and last position that each position of the output reads, along each axis."""
    field = _rows_and_columns_last(known, output)
    axes = len(known[0][1].axes)
    before, after = tuple(known[0][0][-axes:]), tuple(output.shape[-axes:])
    if field is None or set(after) == {1} != set(before):
        return None
    steps, firsts, lasts = [], [], []
    for axis in range(axes):
        step, found = reads(before[axis], after[axis], axis)
        steps.append(step)
        firsts.append(min(first - step * i for i, (first, _) in enumerate(found)))
        lasts.append(max(last - step * i for i, (_, last) in enumerate(found)))
    return field.reading(tuple(steps), tuple(firsts), tuple(lasts))


def _padded(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """What is reflected or repeated at a border is counted as zeros are; what comes from the other side is not."""
    if _argument(args, kwargs, 2, "mode", "constant") == "circular":
        return None
    pads = list(_argument(args, kwargs, 1, "pad", ()))
    field = known[0][1]
    padded = {output.ndim - 1 - i: -float(pads[2 * i]) for i in range(len(pads) // 2)}
    before = tuple(padded.get(axis, 0.0) for axis in field.axes)
    return field.reading((1.0,) * len(before), before, before)


def _permuted(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    dims = _argument(args, kwargs, 1, "dims", ())
    order = list(dims) if isinstance(dims, (list, tuple)) else list(args[1:])
    ndim = output.ndim
    order = [d % ndim for d in order]
    field = known[0][1]
    return replace(field, axes=tuple(map(order.index, field.axes)))


def _transposed_dims(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    a = _argument(args, kwargs, 1, "dim0", 0) % output.ndim
    b = _argument(args, kwargs, 2, "dim1", 1) % output.ndim
    swap = {a: b, b: a}
    field = known[0][1]
    return replace(field, axes=tuple(swap.get(axis, axis) for axis in field.axes))


def _reshaped(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Rows and columns survive where they keep their lengths and what lies before them its product."""
    shape, field = known[0]
    axes = []
    for axis in field.axes:
        before = math.prod(shape[:axis])
        same = [i for i, length in enumerate(output.shape) if length == shape[axis]]
        fits = [i for i in same if math.prod(output.shape[:i]) == before]
        if not fits:
            return None
        axes.append(fits[-1])
    return replace(field, axes=tuple(axes)) if len(set(axes)) == len(axes) else None


def _normalised(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Group and instance normalisation: by statistics over rows and columns."""
    field = _keeps_positions(known[:1], output, args, kwargs)
    return replace(field, gated=True) if field is not None else None


def _layer_normalised(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """By statistics over the last dimensions, which may be channels alone."""
    field = _keeps_positions(known[:1], output, args, kwargs)
    over = len(_argument(args, kwargs, 1, "normalized_shape", ()))
    alone = field is not None and max(field.axes) < output.ndim - over
    return field if alone else _normalised(known, output, args, kwargs)


def _linear(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    mixes_positions = output.ndim - 1 in known[0][1].axes
    return None if mixes_positions else _keeps_positions(known, output, args, kwargs)


def _batch_normalised(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """By the statistics kept with the module, or by those of the pictures at hand."""
    field = _keeps_positions(known[:1], output, args, kwargs)
    by_these = _argument(args, kwargs, 5, "training", False)
    return replace(field, gated=True) if field is not None and by_these else field


def _along(place: int, default: int = -1) -> Rule:
    """Operations that mix or move positions along given dimensions."""

    def rule(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
        field = _keeps_positions(known, output, args, kwargs)
        given = _argument(args, kwargs, place, "dim", default)
        dims = [d % output.ndim for d in (given if isinstance(given, (list, tuple)) else [given])]
        return None if field is None or any(axis in dims for axis in field.axes) else field

    return rule


def _indexed(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Slices that leave rows and columns whole; positions picked one by one may come in any order."""
    field, index = _keeps_positions(known, output, args, kwargs), args[1] if isinstance(args[1], tuple) else (args[1],)
    for place, item in enumerate(index):
        if item is None or item is Ellipsis:
            return field if all(isinstance(i, slice) for i in index[place + 1 :]) else None
        if field is not None and not isinstance(item, slice) and place >= min(field.axes):
            return None
    return field


def _lost(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    return None


def _sliding(name: str, rule: Rule) -> dict[str, Rule]:
    """A rule for what slides along one, two or three axes, where these are all that the field has."""

    def along(axes: int) -> Rule:
        return lambda known, *call: rule(known, *call) if len(known[0][1].axes) == axes else None

    return {name.format(axes): along(axes) for axes in (1, 2, 3)}


#: They take but the shape or type of their second tensor.
_SHAPED_BY_ANOTHER = frozenset(("view_as", "reshape_as", "expand_as", "type_as", "to"))

_RULES: dict[str, Rule] = {
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
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed_dims),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), _reshaped),
    **dict.fromkeys(("group_norm", "instance_norm"), _normalised),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_normalised),
    "batch_norm": _batch_normalised,
    "linear": _linear,
    "getitem": _indexed,
    **dict.fromkeys(("softmax", "log_softmax", "special_softmax", "special_log_softmax"), _along(1, default=1)),
    "normalize": _along(2, default=1),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort"), _along(1)),
    **dict.fromkeys(("index_select", "gather", "index_add", "index_copy", "index_reduce"), _along(1)),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _along(1)),
    # They mix or move positions in ways that are not followed.
    **dict.fromkeys(("setitem", "roll", "rot90", "flip", "fliplr", "flipud", "movedim", "moveaxis", "get"), _lost),
    **dict.fromkeys(("t", "adjoint", "as_strided", "take", "put", "index_put", "masked_scatter", "set"), _lost),
    **dict.fromkeys(("gradient", "renorm", "convolution", "max_unpool2d"), _lost),
    **dict.fromkeys(("native_batch_norm", "native_group_norm", "native_layer_norm"), _lost),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "baddbmm", "einsum", "tensordot", "bilinear"), _lost),
    **dict.fromkeys(("mm", "addmm", "addbmm", "inner", "cdist"), _lost),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), _lost),
    **dict.fromkeys(("grid_sample", "deform_conv2d", "pixel_shuffle", "take_along_dim", "topk"), _lost),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _lost),
}
