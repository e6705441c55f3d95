"""Follow receptive fields and channels through a forward pass.

A ``TorchFunctionMode`` sees every operation of the pass, in modules and functions alike. By the rules of
:mod:`nbviz.core.receptive_field` and :mod:`nbviz.core.channel_axis` it derives what its output sees, and where its
channels are, from what is known of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nbviz.core.backward import clamp_name
from nbviz.core.channel_axis import Moved, axis_after, makes_channels
from nbviz.core.receptive_field import RULES, Field, Operation, keeps_positions, lost

#: Functions that use only the shape or type of their second tensor.
_SHAPED_BY_ANOTHER = frozenset(("view_as", "reshape_as", "expand_as", "type_as", "to"))


class FieldTracker(TorchFunctionMode):
    """While active, ``fields[tensor]`` is the receptive field of every tensor that depends on the picture.

    None stands for the whole picture, or for a field that is not known: after an operation without a
    rule, unless it keeps rows and columns. ``channels`` has the axis of the channels where it is known, and
    ``rectified(tensor)`` names the activations before it.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.fields: Any = WeakTensorKeyDictionary()
        self.channels: Any = WeakTensorKeyDictionary()
        self._rectified: Any = WeakTensorKeyDictionary()  # by the owner of the memory, shared by views
        axes = tuple(range(2, picture.ndim)) or (0,)
        nothing = (0.0,) * len(axes)
        self.fields[picture] = Field(axes, (1.0,) * len(axes), nothing, nothing)
        self.channels[picture] = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        in_place = name == "__setitem__" or re.fullmatch(r"__i\w+__|\w*[a-z0-9]_", name) or "out" in kwargs
        name = name.strip("_")
        taken = args[:1] if name in _SHAPED_BY_ANOTHER else (args, kwargs)
        # Shapes are read before the call: an in-place operation may change its input's.
        inputs = tensors_in(taken)
        found = [(tuple(t.shape), self.fields.get(t, _ABSENT), self.channels.get(t)) for t in inputs]
        seen = [(shape, field) for shape, field, _ in found if field is not _ABSENT]
        known = [(shape, field) for shape, field in seen if field is not None]
        placed = [(shape, axis) for shape, _, axis in found if axis is not None]
        rectified = _rectifier(name, args, kwargs).union(*map(self.rectified, tensors_in((args, kwargs))))
        result = func(*args, **kwargs)
        if placed or makes_channels(name):
            for output in tensors_in(args[0] if name == "setitem" else result):
                self.channels[output] = axis_after(name, Moved(placed, output, args, kwargs))
        if seen:
            unknown = name.startswith(("fft_", "linalg_")) or isinstance(func, (OpOverload, OpOverloadPacket))
            rule = lost if unknown else RULES.get(name, keeps_positions)
            for output in tensors_in(args[0] if name == "setitem" else result):
                field = rule(Operation(known, output, args, kwargs)) if known and output.ndim >= 2 else None
                if field is not None and len(known) < len(seen):
                    field = replace(field, gated=True)
                if in_place and (field is None or field != self.fields.get(output)):
                    self._written(output)
                self.fields[output] = field
                if rectified:
                    self._rectified[_owner(output)] = rectified | self.rectified(output)
        return result

    def forget(self) -> None:
        """Release what is known of all tensors."""
        self.fields.clear()
        self.channels.clear()
        self._rectified.clear()

    def rectified(self, tensor: Tensor) -> frozenset[str]:
        """The rectifiers between the picture and a tensor, by their names in the backward rules."""
        names: frozenset[str] = self._rectified.get(_owner(tensor), frozenset())
        return names

    def _written(self, tensor: Tensor) -> None:
        """Forget the fields of all views of a memory that was written to."""
        base = _owner(tensor)
        for other in (base, *self.fields):
            if other is base or other._base is base:
                self.fields[other] = None


_ABSENT = object()


def _owner(tensor: Tensor) -> Tensor:
    """The tensor that a view looks into."""
    return tensor if tensor._base is None else tensor._base


def _rectifier(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> frozenset[str]:
    """The name of an operation in the backward rules, if they act on it."""
    if name in ("clamp", "clip", "clamp_min", "hardtanh"):
        names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        rectifier = clamp_name(*(args[i] if len(args) > i else kwargs.get(end) for i, end in enumerate(names, 1)))
    else:
        rectifier = _RECTIFIERS.get(name)
    return frozenset() if rectifier is None else frozenset((rectifier,))


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
    """The tensors in a value, including those in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for item in value for t in tensors_in(item)]
