"""The rules without nbviz: plain autograd, with the backward pass of every activation function written out.

With R the signal from above, z an activation function's input and f the function: gradient R · f'(z); deconvnet
max(R, 0), whatever f; guided max(R, 0) · f'(z). For ReLU these are the papers'. Gates (sigmoid, hardsigmoid, tanh,
softmax, GLU) keep the gradient, and so does a function put together by hand, such as x · sigmoid(x).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Seed = Callable[[Tensor], Tensor]


class ByHand(torch.autograd.Function):
    """An activation function as torch computes it, its backward pass after the rule."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rule: str, value: Callable[[Tensor], Tensor], slope: Tensor) -> Tensor:
        ctx.rule, ctx.slope = rule, slope
        return value(z)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.rule != "gradient":
            signal = torch.where(signal > 0, signal, torch.zeros_like(signal))
        if ctx.rule != "deconvnet":
            signal = ctx.slope * signal
        return signal, None, None, None


class ActivationsByHand(TorchFunctionMode):
    """Puts ``ByHand`` in place of every activation function of a forward pass, however it is spelled.

    ``calls`` counts those replaced, ``met`` those and the gates by name.
    """

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule, self.calls, self.met = rule, 0, Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # F.threshold is called _threshold
        if func is functional.batch_norm and not kwargs["training"]:
            return _batch_norm(*args, **kwargs)
        self.met[name] += name in GATES
        if name not in ACTIVATIONS:
            return func(*args, **kwargs)
        defaults, derivative = ACTIVATIONS[name]
        given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        z = given.pop("input")
        in_place = given.pop("inplace", False) or func.__name__.endswith("_")
        slope = derivative(z.detach().clone(), **given)
        if slope is None:
            return func(*args, **kwargs)
        self.calls += 1
        self.met[name] += 1

        def value(z: Tensor) -> Tensor:
            return func(z.clone(), *args[1:], **{key: v for key, v in kwargs.items() if key != "input"})

        result = ByHand.apply(z.clone() if in_place else z, self.rule, value, slope)
        return z.copy_(result) if in_place else result


def _batch_norm(z: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, eps: float, **more: Any) -> Tensor:
    """By hand too: on the CPU torch's own backward pass mixes up the layouts of a single picture."""
    slope = (1 if weight is None else weight.detach()) / torch.sqrt(variance + eps)
    slope = slope.to(z).view(-1, *[1] * (z.ndim - 2))
    value = partial(functional.batch_norm, running_mean=mean, running_var=variance, weight=weight, eps=eps, **more)
    return ByHand.apply(z, "gradient", value, slope)


def _hardtanh(z: Tensor, min_val: float = 0.0, max_val: float = 6.0) -> Tensor | None:
    return ((z > min_val) & (z < max_val)).to(z) if min_val == 0 else None


def _clamp(z: Tensor, min: Any, max: Any = None) -> Tensor | None:  # noqa: A002
    if min is None or bool((torch.as_tensor(min) != 0).any()):
        return None
    return ((z >= 0) & (z <= (math.inf if max is None else max))).to(z)


def _leaky(z: Tensor, negative_slope: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, negative_slope))


def _rrelu(z: Tensor, lower: float, upper: float, training: bool) -> Tensor:
    assert not training  # where the slope is drawn at random
    return _leaky(z, (lower + upper) / 2)


def _prelu(z: Tensor, weight: Tensor) -> Tensor:
    per_channel = weight.detach().view(-1, *[1] * (z.ndim - 2)) if weight.numel() > 1 else weight.detach()
    return torch.where(z > 0, torch.ones_like(z), per_channel * torch.ones_like(z))


def _elu(z: Tensor, alpha: float = 1.0, width: float = 1.0) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), alpha / width * torch.exp(z / width))


def _selu(z: Tensor) -> Tensor:
    return 1.0507009873554805 * _elu(z, 1.6732632423543772)


def _gelu(z: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return below + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    a, b = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(a * (z + b * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * a * (1 + 3 * b * z * z)


def _silu(z: Tensor) -> Tensor:
    s = 1 / (1 + torch.exp(-z))
    return s * (1 + z * (1 - s))


def _hardswish(z: Tensor) -> Tensor:
    return torch.where(z < -3, torch.zeros_like(z), torch.where(z > 3, torch.ones_like(z), z / 3 + 0.5))


def _softplus(z: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * z > threshold, torch.ones_like(z), 1 / (1 + torch.exp(-beta * z)))


def _mish(z: Tensor) -> Tensor:
    t = torch.tanh(torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0))
    return t + z * (1 - t * t) / (1 + torch.exp(-z))


# The arguments of each spelling, in order, with their defaults; its derivative, or None where it is no activation.
_IN_PLACE = {"input": None, "inplace": False}
ACTIVATIONS: dict[str, tuple[dict[str, Any], Callable[..., Tensor | None]]] = {
    "relu": (_IN_PLACE, lambda z: (z > 0).to(z)),
    "relu6": (_IN_PLACE, _hardtanh),
    "hardtanh": ({"input": None, "min_val": -1.0, "max_val": 1.0, "inplace": False}, _hardtanh),
    "threshold": (
        {"input": None, "threshold": None, "value": None, "inplace": False},
        lambda z, threshold, value: (z > threshold).to(z),
    ),
    "clamp": ({"input": None, "min": None, "max": None}, _clamp),
    "clip": ({"input": None, "min": None, "max": None}, _clamp),
    "clamp_min": ({"input": None, "min": None}, _clamp),
    "leaky_relu": ({"input": None, "negative_slope": 0.01, "inplace": False}, _leaky),
    "prelu": ({"input": None, "weight": None}, _prelu),
    "rrelu": ({"input": None, "lower": 1 / 8, "upper": 1 / 3, "training": False, "inplace": False}, _rrelu),
    "elu": ({"input": None, "alpha": 1.0, "inplace": False}, _elu),
    "celu": ({"input": None, "alpha": 1.0, "inplace": False}, lambda z, alpha: _elu(z, alpha, alpha)),
    "selu": (_IN_PLACE, _selu),
    "silu": (_IN_PLACE, _silu),
    "gelu": ({"input": None, "approximate": "none"}, _gelu),
    "hardswish": (_IN_PLACE, _hardswish),
    "softplus": ({"input": None, "beta": 1.0, "threshold": 20.0}, _softplus),
    "mish": (_IN_PLACE, _mish),
}
GATES = frozenset(("sigmoid", "hardsigmoid", "tanh", "softmax", "glu"))


def by_hand(
    model: nn.Module,
    inputs: Tensor,
    rule: str,
    seeds: Mapping[str | None, Sequence[Seed]],
    call: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict[str | None, list[Tensor]], ActivationsByHand]:
    """Plain autograd through a forward pass in which every activation function is replaced.

    ``seeds`` gives for a layer (or, for None, the output) functions from the layer's activation to the signal that
    starts there. What comes back are the signals at the input, in the same order, and what was replaced.
    """
    kept: dict[str | None, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, _args: Any, value: Tensor) -> Tensor | None:
            if name in kept:  # a later call of the same module
                return None
            kept[name] = value
            return value.clone()

        return hook

    x = inputs.detach().clone().requires_grad_()
    handles = [model.get_submodule(layer).register_forward_hook(keep(layer)) for layer in seeds if layer is not None]
    with ActivationsByHand(rule) as mode:
        kept[None] = (call or model)(x.clone())
    for handle in handles:
        handle.remove()
    signals = {
        layer: [torch.autograd.grad(kept[layer], x, one(kept[layer].detach()), True)[0] for one in several]
        for layer, several in seeds.items()
    }
    return signals, mode


def as_it_is(activation: Tensor) -> Tensor:
    """Channels come first."""
    return activation


def strongest(channel: int, seed: str = "max", view: Callable[[Tensor], Tensor] = as_it_is) -> Seed:
    """From an activation to its seed, position by position; ``view`` makes maps (N, C, ...) of an activation."""

    def signal(activation: Tensor) -> Tensor:
        result = torch.zeros_like(activation, memory_format=torch.contiguous_format)
        for maps, out in zip(view(activation)[:, channel], view(result)[:, channel], strict=True):
            if seed == "map":
                out.copy_(maps)
                continue
            place = torch.unravel_index(maps.argmax(), maps.shape)
            out[place] = 1 if seed == "unit" else maps.max()
        return result

    return signal


def cam_by_hand(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    target: int,
    call: Callable[[Tensor], Tensor] | None = None,
    view: Callable[[Tensor], Tensor] = as_it_is,
) -> tuple[Tensor, float]:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) at the layer's size, and how large its terms are.

    The terms may cancel: a channel's slopes where a softmax over positions follows (the keys of an attention), those
    of a position where it is normalised next. The map is then what rounding leaves of them.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, value: Tensor) -> Tensor:
        kept.append(value)
        return kept[-1].clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    with ActivationsByHand("gradient"):
        scores = (call or model)(inputs.clone().requires_grad_())
    handle.remove()
    (slopes,) = torch.autograd.grad(scores[:, target].sum(), kept[0])
    maps, slopes = view(kept[0].detach()), view(slopes)
    weighted = torch.einsum("nk...,nk->n...", maps, slopes.flatten(2).mean(2))
    terms = torch.einsum("nk...,nk->n...", maps.abs(), slopes.abs().flatten(2).mean(2))
    return torch.where(weighted > 0, weighted, torch.zeros_like(weighted)), float(terms.max())
