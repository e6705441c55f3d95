"""Which axis of a tensor holds its channels: a rule for each operation of a forward pass.

:class:`nbviz.core.field_tracker.FieldTracker` applies the rules along a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from nbviz.core.receptive_field import moved_order


class Moved(NamedTuple):
    """A call of a torch function, and what is known of its inputs.

    Parameters
    ----------
    known
        The shapes of the inputs whose axis is known, and the axis.
    output
        A tensor that it returned.
    args, kwargs
        Its arguments.
    """

    known: Sequence[tuple[tuple[int, ...], int]]
    output: Tensor
    args: Sequence[Any]
    kwargs: dict[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument, by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


def keeps_axis(call: Moved) -> int | None:
    """Pointwise operations, those along positions, and those that give other channels: the axis stays."""
    same = {axis for shape, axis in call.known if len(shape) == call.output.ndim}
    if same:
        return same.pop() if len(same) == 1 else None
    # Broadcast from the right, as a bias for each channel is.
    aligned = {
        call.output.ndim - len(shape) + axis
        for shape, axis in call.known
        if len(shape) < call.output.ndim and shape[axis] == call.output.shape[call.output.ndim - len(shape) + axis]
    }
    return aligned.pop() if len(aligned) == 1 else None


def _dims(value: Any, ndim: int) -> list[int]:
    if value is None:
        return list(range(ndim))
    return [d % ndim for d in (value if isinstance(value, (list, tuple)) else [value])]


def _reduced(call: Moved) -> int | None:
    """A sum, mean or maximum over some dimensions."""
    shape, axis = call.known[0]
    if call.output.ndim == len(shape):
        return axis
    given = call.argument(1, "dim", call.kwargs.get("axis"))
    gone = _dims(given, len(shape)) if isinstance(given, (int, list, tuple)) else list(range(len(shape)))
    return None if axis in gone else axis - sum(d < axis for d in gone)


def _indexed(call: Moved) -> int | None:
    """Numbers remove a dimension, slices keep it, None adds one; positions picked by a list are not followed."""
    (shape, axis), index = call.known[0], call.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in [item for item in items if item is None or item is Ellipsis]:
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (len(shape) - taken)
    before = after = 0
    for item in items:
        if before > axis:
            break
        if item is None:
            after += 1
        elif isinstance(item, slice):
            before, after = before + 1, after + 1
        elif isinstance(item, int) and before != axis:
            before += 1
        else:
            return None
    return axis - before + after if before <= axis else after - 1


def _permuted(call: Moved) -> int | None:
    dims = call.argument(1, "dims", ())
    given = dims if isinstance(dims, (list, tuple)) else call.args[1:]
    return _dims(list(given), call.output.ndim).index(call.known[0][1])


def _transposed(call: Moved) -> int | None:
    n, axis = call.output.ndim, call.known[0][1]
    a: int = call.argument(1, "dim0", call.kwargs.get("axis0", 0)) % n
    b: int = call.argument(2, "dim1", call.kwargs.get("axis1", 1)) % n
    return {a: b, b: a}.get(axis, axis)


def _moved_dims(call: Moved) -> int | None:
    order = moved_order(call.output.ndim, call.argument(1, "source"), call.argument(2, "destination"))
    return order.index(call.known[0][1])


def _reshaped(call: Moved) -> int | None:
    """The axis survives if it keeps its length, and the dimensions before it their product."""
    shape, axis = call.known[0]
    before = math.prod(shape[:axis])
    same = [i for i, length in enumerate(call.output.shape) if length == shape[axis]]
    fits = [i for i in same if math.prod(call.output.shape[:i]) == before]
    return fits[-1] if fits and shape[axis] > 1 else axis if tuple(call.output.shape) == shape else None


def _stacked(call: Moved) -> int | None:
    axis: int = call.known[0][1]
    dim: int = call.argument(1, "dim", 0) % call.output.ndim
    return axis + (dim <= axis)


def _unbound(call: Moved) -> int | None:
    axis: int = call.known[0][1]
    dim: int = call.argument(1, "dim", 0) % len(call.known[0][0])
    return None if dim == axis else axis - (dim < axis)


def _multiplied(call: Moved) -> int | None:
    """By weights (C, K) from the right, as a linear layer does."""
    is_weight = len(call.args) > 1 and isinstance(call.args[1], Tensor) and call.args[1].ndim == 2
    return call.output.ndim - 1 if is_weight and len(call.known) == 1 else LOST


def _lost(call: Moved) -> int:
    """Operations that mix axes, such as attention."""
    return LOST


#: In place of an axis: the channels have been mixed with the positions, and are nowhere.
LOST = 0


def _at(place: int) -> Rule:
    """The axis, from the end."""
    return lambda call: call.output.ndim + place if call.output.ndim > -place else None


#: From an operation to the axis of its output's channels; None where that is not known.
Rule = Callable[[Moved], "int | None"]

_REDUCTIONS = (
    *("mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "argmax", "argmin", "logsumexp", "prod"),
    *("median", "nanmean", "nansum", "all", "any", "count_nonzero", "linalg_vector_norm", "linalg_norm", "quantile"),
)
_MIXED = (
    *("bmm", "baddbmm", "einsum", "tensordot", "bilinear", "mm", "addmm", "addbmm", "inner", "cdist", "outer"),
    *("scaled_dot_product_attention", "t", "adjoint", "as_strided", "take", "unfold", "fold", "rot90"),
)

#: The rules by the names of torch's functions, which apply whatever is known of the inputs.
SETS: dict[str, Rule] = {
    **{f"conv{n}d": _at(-1 - n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _at(-1 - n) for n in (1, 2, 3)},
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), lambda call: 1 if call.output.ndim > 1 else None),
    **dict.fromkeys(("linear", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"), _at(-1)),
    "multi_head_attention_forward": _at(-1),
    "deform_conv2d": _at(-3),
}
#: The rules by the names of torch's functions, of inputs whose axis is known; all others keep the axis.
MOVES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduced),
    "getitem": _indexed,
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("movedim", "moveaxis"), _moved_dims),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), _reshaped),
    "stack": _stacked,
    **dict.fromkeys(("unbind", "select"), _unbound),
    **dict.fromkeys(("matmul", "rmatmul"), _multiplied),
    **dict.fromkeys(_MIXED, _lost),
}


_NORMS = ("layer_norm", "rms_norm")


def makes_channels(name: str) -> bool:
    """Whether an operation has a rule whatever is known of its inputs."""
    return name in SETS or name in _NORMS


def axis_after(name: str, call: Moved) -> int | None:
    """The axis of the channels of an operation's output; None where it is not known."""
    if name in SETS:
        return SETS[name](call)
    if name in _NORMS and len(call.argument(1, "normalized_shape", ())) == 1 and not call.known:
        return call.output.ndim - 1
    if any(axis == LOST for _, axis in call.known):
        return LOST
    if not call.known or (name.startswith(("fft_", "linalg_")) and name not in MOVES):
        return None
    try:
        return MOVES.get(name, keeps_axis)(call)
    except (IndexError, TypeError, ValueError):  # called in a way that its rule does not know
        return None
