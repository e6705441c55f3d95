"""Which pixels of the picture a position of a tensor depends on, followed through a forward pass.

A ``TorchFunctionMode`` sees every operation of the pass, modules and functions alike, and carries
from its inputs to its output where each position looks. Along an axis, position i sees the pixels
``stride * i + low`` to ``stride * i + high``, both included (Araujo, Norris and Sim, 2019, "Computing
receptive fields of convolutional neural networks", in its interval form).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Pair = tuple[float, float]


@dataclass(frozen=True)
class Field:
    """Where the positions of one tensor look: rows first, then columns, in pixels of the input.

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

    axes: tuple[int, int]
    stride: Pair = (1.0, 1.0)
    low: Pair = (0.0, 0.0)
    high: Pair = (0.0, 0.0)
    gated: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the field away from the border."""
        return math.ceil(self.high[0] - self.low[0]) + 1, math.ceil(self.high[1] - self.low[1]) + 1

    def box(self, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right (ends excluded) of what a position sees of a picture, at least one pixel."""
        ends = []
        for i, position, size in ((0, row, height), (1, column, width)):
            start = math.floor(self.stride[i] * position + self.low[i])
            stop = math.ceil(self.stride[i] * position + self.high[i]) + 1
            start = min(max(start, 0), size - 1)
            ends.append((start, max(min(stop, size), start + 1)))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]

    def window(self, kernel: Pair, step: Pair, padding: Pair, dilation: Pair) -> Field:
        """The field after a sliding window: a convolution or a pooling."""
        both = range(2)
        low = tuple(self.low[i] - padding[i] * self.stride[i] for i in both)
        reach = tuple(((kernel[i] - 1) * dilation[i] - padding[i]) * self.stride[i] for i in both)
        high = tuple(self.high[i] + reach[i] for i in both)
        stride = tuple(self.stride[i] * step[i] for i in both)
        return replace(self, stride=stride, low=low, high=high)


class FieldTracker(TorchFunctionMode):
    """While active, ``fields[tensor]`` says for every tensor that depends on the picture where its positions look.

    None there means the whole picture, or that it is not known: what an operation unknown to this
    file leads to, unless it keeps rows and columns.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.fields: Any = WeakTensorKeyDictionary()  # None: looks at the whole picture
        self.fields[picture] = Field((picture.ndim - 2, picture.ndim - 1))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Shapes are taken now: an in-place operation gives its own input back.
        seen = [(tuple(t.shape), self.fields[t]) for t in _tensors((args, kwargs)) if t in self.fields]
        known = [(shape, field) for shape, field in seen if field is not None]
        result = func(*args, **kwargs)
        if seen:
            rule = _RULES.get(func.__name__.strip("_"), _keeps_positions)
            for output in _tensors(result):
                field = rule(known, output, args, kwargs) if known and output.ndim >= 2 else None
                if field is not None and len(known) < len(seen):
                    field = replace(field, gated=True)
                self.fields[output] = field
        return result


Known = Sequence[tuple[tuple[int, ...], Field]]
Rule = Callable[[Known, Tensor, Sequence[Any], dict[str, Any]], Field | None]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for item in value for t in _tensors(item)]


def _sides(shape: Sequence[int], axes: tuple[int, int]) -> tuple[int, int]:
    return shape[axes[0]], shape[axes[1]]


def _keeps_positions(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Pointwise operations, and those along channels: the union of what the inputs see."""
    if any(len(shape) != output.ndim for shape, _ in known):
        return None
    fits = [field for shape, field in known if _sides(shape, field.axes) == _sides(output.shape, field.axes)]
    gates = [field for shape, field in known if _sides(shape, field.axes) == (1, 1)]
    if not fits or any(f.axes != fits[0].axes or f.stride != fits[0].stride for f in fits):
        return None
    if len({*fits, *gates}) < len({field for _, field in known}):
        return None
    low = (min(f.low[0] for f in fits), min(f.low[1] for f in fits))
    high = (max(f.high[0] for f in fits), max(f.high[1] for f in fits))
    gated = any(f.gated for f in fits) or not set(gates) <= set(fits)
    return replace(fits[0], low=low, high=high, gated=gated)


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    value = args[place] if len(args) > place else kwargs.get(name, default)
    return default if value is None else value


def _pair(value: Any) -> Pair:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (float(values[0]), float(values[-1]))


def _convolution(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    weight = _argument(args, kwargs, 1, "weight", None)
    field = known[0][1]
    if weight is None or output.ndim - 2 != 2:
        return None
    kernel = _pair(tuple(weight.shape[-2:]))
    dilation = _pair(_argument(args, kwargs, 5, "dilation", 1))
    padding = _argument(args, kwargs, 4, "padding", 0)
    if padding == "same":
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    padding = _pair(0 if padding == "valid" else padding)
    return field.window(kernel, _pair(_argument(args, kwargs, 3, "stride", 1)), padding, dilation)


def _transposed(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    weight = _argument(args, kwargs, 1, "weight", None)
    if weight is None or output.ndim - 2 != 2:
        return None
    kernel = _pair(tuple(weight.shape[-2:]))
    step = _pair(_argument(args, kwargs, 3, "stride", 1))
    padding = _pair(_argument(args, kwargs, 4, "padding", 0))
    dilation = _pair(_argument(args, kwargs, 7, "dilation", 1))
    # Output o takes from inputs i with o = i * step - padding + k * dilation.
    field = known[0][1]
    stride = tuple(field.stride[i] / step[i] for i in range(2))
    low = tuple(field.low[i] + stride[i] * (padding[i] - (kernel[i] - 1) * dilation[i]) for i in range(2))
    high = tuple(field.high[i] + stride[i] * padding[i] for i in range(2))
    return replace(field, stride=stride, low=low, high=high)


def _pooling(dilated: bool) -> Rule:
    def rule(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
        if output.ndim < 3 or known[0][1].axes != (len(known[0][0]) - 2, len(known[0][0]) - 1):
            return None
        kernel = _pair(_argument(args, kwargs, 1, "kernel_size", 1))
        step = _argument(args, kwargs, 2, "stride", None) or kernel
        padding = _pair(_argument(args, kwargs, 3, "padding", 0))
        dilation = _pair(_argument(args, kwargs, 4, "dilation", 1)) if dilated else (1.0, 1.0)
        return known[0][1].window(kernel, _pair(step), padding, dilation)

    return rule


def _resampled(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Adaptive pooling and interpolation: windows of equal share; smooth interpolation also sees its neighbours."""
    shape, field = known[0]
    before, after = _sides(shape, field.axes), _sides(output.shape, field.axes)
    if after == (1, 1) != before:
        return None
    share = tuple(before[i] / after[i] for i in range(2))
    smooth = 0.0 if share == (1.0, 1.0) else 1.0 if kwargs.get("mode", "nearest") in ("bilinear", "bicubic") else 0.0
    kernel = tuple(math.ceil(share[i]) + 2 * smooth + (0 if share[i] >= 1 and share[i].is_integer() else 1) for i in range(2))
    kernel = (1.0, 1.0) if share == (1.0, 1.0) else kernel
    return field.window((kernel[0], kernel[1]), (share[0], share[1]), (smooth, smooth), (1.0, 1.0))


def _padded(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    pads = list(_argument(args, kwargs, 1, "pad", ()))
    field = known[0][1]
    low, high = list(field.low), list(field.high)
    for axis in range(len(pads) // 2):
        dim = output.ndim - 1 - axis
        for i in range(2):
            if field.axes[i] == dim:
                shift = pads[2 * axis] * field.stride[i]
                low[i], high[i] = low[i] - shift, high[i] - shift
    return replace(field, low=(low[0], low[1]), high=(high[0], high[1]))


def _permuted(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    dims = _argument(args, kwargs, 1, "dims", ())
    order = list(dims) if isinstance(dims, (list, tuple)) else list(args[1:])
    ndim = output.ndim
    order = [d % ndim for d in order]
    field = known[0][1]
    return replace(field, axes=(order.index(field.axes[0]), order.index(field.axes[1])))


def _transposed_dims(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    a = _argument(args, kwargs, 1, "dim0", 0) % output.ndim
    b = _argument(args, kwargs, 2, "dim1", 1) % output.ndim
    swap = {a: b, b: a}
    field = known[0][1]
    return replace(field, axes=(swap.get(field.axes[0], field.axes[0]), swap.get(field.axes[1], field.axes[1])))


def _reshaped(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Rows and columns survive where they keep their lengths and what lies before them its product."""
    shape, field = known[0]
    axes = []
    for axis in field.axes:
        before = math.prod(shape[:axis])
        fits = [i for i in range(output.ndim) if math.prod(output.shape[:i]) == before and output.shape[i] == shape[axis]]
        if not fits:
            return None
        axes.append(fits[-1])
    return replace(field, axes=(axes[0], axes[1])) if axes[0] != axes[1] else None


def _normalised(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    """Group and instance normalisation, and layer normalisation over rows or columns: statistics of the whole."""
    field = _keeps_positions(known[:1], output, args, kwargs)
    over = _argument(args, kwargs, 1, "normalized_shape", ())
    along_channels = isinstance(over, (list, tuple, torch.Size)) and field is not None
    if along_channels and field is not None and all(axis < output.ndim - len(over) for axis in field.axes):
        return field
    return replace(field, gated=True) if field is not None else None


def _linear(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    mixes_positions = output.ndim - 1 in known[0][1].axes
    return None if mixes_positions else _keeps_positions(known, output, args, kwargs)


def _softmaxed(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    field = _keeps_positions(known, output, args, kwargs)
    dim = _argument(args, kwargs, 1, "dim", 1) % output.ndim
    return None if field is None or dim in field.axes else field


def _lost(known: Known, output: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Field | None:
    return None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv2d",), _convolution),
    **dict.fromkeys(("conv_transpose2d",), _transposed),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _pooling(dilated=True)),
    **dict.fromkeys(("avg_pool2d",), _pooling(dilated=False)),
    "lp_pool2d": lambda known, output, args, kwargs: _pooling(dilated=False)(known, output, (args[0], *args[2:]), kwargs),
    **dict.fromkeys(
        ("adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices", "interpolate", "upsample"),
        _resampled,
    ),
    "pad": _padded,
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed_dims),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("group_norm", "instance_norm", "layer_norm"), _normalised),
    "linear": _linear,
    **dict.fromkeys(("softmax", "log_softmax"), _softmaxed),
    **dict.fromkeys(("flip", "roll", "rot90", "cumsum", "sort", "scaled_dot_product_attention", "grid_sample"), _lost),
    **dict.fromkeys(("matmul", "bmm", "einsum", "fft2", "rfft2", "ifft2", "pixel_shuffle"), _lost),
}
