"""Whether the way that a deconvnet takes back to the picture depends on the picture.

A deconvnet passes rectifiers in the same way for every picture, max(R, 0), and so it does convolutions. What makes its
result one of this picture are the switches of max-pooling (Zeiler and Fergus 2014, section 2.1), or other operations
that depend on their input, such as gates.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from nbviz.core.backward import clamp_name
from nbviz.core.graph import nodes_between

_NAMES = """
Convolution Addmm Mm Linear NativeBatchNorm CudnnBatchNorm
AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D Mean Sum Add Sub Neg Mul Div
Cat Split SplitWithSizes Slice Select Unbind Clone Alias ToCopy Roll
ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad2D
View UnsafeView ReshapeAlias Permute Transpose T Squeeze Unsqueeze Expand
PixelShuffle PixelUnshuffle UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D
Relu Threshold Hardtanh Clamp ClampMin LeakyRelu RreluWithNoise PreluKernel Elu Silu Gelu Hardswish Softplus Mish
"""
#: Linear operations, and the rectifiers of the deconvnet rule: each sends every picture's signal back in the same way.
_FIXED = frozenset(_NAMES.split())


def has_switches(start: Tensor, inputs: Tensor) -> bool:
    """Whether anything between the input and a tensor makes a deconvnet's way back depend on the picture.

    It does where that is not known, such as for an operation written in Python or in C++.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(1, 1, 4, 4, requires_grad=True)
    >>> has_switches(x.relu(), x), has_switches(torch.nn.functional.max_pool2d(x, 2).relu(), x)
    (False, True)
    """
    nodes = nodes_between(start, inputs)
    on_the_way = set(nodes)
    return not all(_is_fixed(node, on_the_way) for node in nodes[:-1])


def _is_fixed(node: Any, on_the_way: set[Any]) -> bool:
    name = re.sub(r"Backward\d+$", "", node.name())
    if name not in _FIXED:
        return False
    if name.startswith("Clamp"):
        return clamp_name(getattr(node, "_saved_min", None), getattr(node, "_saved_max", None)) is not None
    if name == "Hardtanh":
        return bool(node._saved_min_val == 0)  # others keep their gradient
    if name.endswith("BatchNorm"):
        return not node._saved_training
    if name in ("Mul", "Div", "Convolution", "Addmm", "Mm", "Linear"):
        # With a factor that is computed from the picture too it is a gate, such as that of squeeze-and-excitation.
        paths = [place for place, (below, _) in enumerate(node.next_functions) if below in on_the_way]
        if len(paths) > 1 or (name == "Div" and paths != [0]):
            return False
        return name not in ("Mul", "Div") or _has_constant_factor(node)
    return True


def _has_constant_factor(node: Any) -> bool:
    """Whether a product has a number, a parameter or constants of channels as one factor."""
    if any(hasattr(below, "variable") for below, _ in node.next_functions if below is not None):
        return True
    factors = [getattr(node, f"_saved_{side}", None) for side in ("self", "other")]
    sides = len(node._input_metadata[0].shape)
    # Where x * (x > 0) is written by hand, the factor is computed from the picture without a gradient.
    return all(not isinstance(factor, Tensor) or factor.ndim < sides for factor in factors)
