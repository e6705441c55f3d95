"""Class activation maps from gradients: where in the picture a layer speaks for a class.

One forward and one backward pass serve all maps of this family, see :func:`class_activation`. A method is its formula,
decorated with :func:`gradient_cam`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.backward import NO_GRADIENT, pull
from nbviz.core.checks import check_choice, check_real
from nbviz.core.errors import ModelError, shown
from nbviz.core.trace import Graph
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.cam_layers import Arrange, checked
from nbviz.methods.subject import Subject, as_method

#: From a layer's activation and the gradient of the class score (N, C, ...) to the maps (N, ...), before max(0, .).
Formula = Callable[[Tensor, Tensor], Tensor]


class CamFunction(Protocol):
    """How a class activation map of this family is called."""

    def __call__(
        self,
        model: nn.Module,
        images: Images,
        layer: str | None = None,
        target: Target | None = None,
        *,
        raw: bool = False,
        reshape: Callable[[Tensor], Tensor] | None = None,
        **options: Unpack[SubjectOptions],
    ) -> Tensor:
        """A class activation map.

        Parameters
        ----------
        layer
            The name of a module (``"name:1"`` for its second call). None takes the last layer that gives feature maps
            with more than one position; of a transformer, the last whose tokens have a gradient.

        Returns
        -------
        Tensor
            (N, H, W), for signals (N, L), for volumes (N, D, H, W), at the size of the model's input, in [0, 1]: each
            picture's map divided by its largest value and enlarged linearly; all zero where nothing speaks for the
            class. With ``raw``, at the layer's size and in units of the score. What speaks against the class is zero
            in both. In the model's dtype and on its device.

        Raises
        ------
        ValueError
            When the activation of ``layer`` cannot become feature maps.
        ModelError
            When the class scores do not depend on ``layer``. When ``reshape`` fails.
        TypeError
            When ``raw`` is neither True nor False. When ``reshape`` is not callable.
        """


@dataclass(frozen=True)
class Cam:
    """A class activation map.

    Parameters
    ----------
    title
        The name in its paper.
    function
        The public function, whose docstring names the paper.
    """

    title: str
    function: Callable[..., Tensor]


#: The gradient family by the names of its functions, in the order in which menus list them.
GRADIENT_CAMS: dict[str, Cam] = {}
_FORMULAS: dict[str, Formula] = {}

_EXAMPLE = """
Examples
--------
Of two channels, the class takes one three times and the other not at all:

>>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
>>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
>>> net[3].weight.data = torch.tensor([[3.0, 0.0]])
>>> NAME(net, torch.tensor([[[[2.0, 4.0]]]]), "0", 0)
tensor([[[0.5000, 1.0000]]])
"""


def gradient_cam(title: str) -> Callable[[Formula], CamFunction]:
    """Turn a formula into the public function of its class activation map, and register it in ``GRADIENT_CAMS``.

    The function has the formula's name, and its docstring begins with the formula's.

    Parameters
    ----------
    title
        The name in its paper.
    """

    def make(formula: Formula) -> CamFunction:
        name = formula.__name__

        def function(
            model: nn.Module,
            images: Images,
            layer: str | None = None,
            target: Target | None = None,
            *,
            raw: bool = False,
            reshape: Callable[[Tensor], Tensor] | None = None,
            **options: Unpack[SubjectOptions],
        ) -> Tensor:
            maps = class_activation(model, images, layer, target, [name], raw=raw, reshape=reshape, **options)
            return maps[name]

        function.__name__ = function.__qualname__ = name
        function.__doc__ = formula.__doc__ and f"{inspect.getdoc(formula)}\n{_EXAMPLE.replace('NAME', name)}"
        public = as_method(CamFunction.__call__)(function)
        GRADIENT_CAMS[name], _FORMULAS[name] = Cam(title, public), formula
        return public

    return make


def sum_positions(maps: Tensor) -> Tensor:
    """The sum of (N, C, ...) over all positions, (N, C, 1, ...)."""
    return maps.sum(tuple(range(2, maps.ndim)), keepdim=True)


def weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """The sum over a layer's channels (N, C, ...), each with its weight."""
    return (weights * activation).sum(1)


@gradient_cam("Grad-CAM")
def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Where a layer speaks for a class: the sum of its channels, each weighted by its effect on the class score.

    R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017. A channel's weight is the mean over its positions of the gradient of the class score before
    the softmax (equation 1); the map is max(0, the weighted sum of the channels) (equation 2).
    """
    return weighted(sum_positions(gradient) / gradient[0, 0].numel(), activation)


@gradient_cam("Grad-CAM++")
def grad_cam_pp(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++: each position has a gradient weight of its own, so that several objects of one class all show.

    A. Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional
    Networks", WACV 2018. With the gradient G and the activation A of channel k, a channel's weight is the sum of
    α · max(0, G) over its positions (equation 5), α = G² / (2 G² + G³ · ΣA) (equation 19, where the score is the
    exponential of the logit; the factor exp(logit), which all weights share, is left out).
    """
    return weighted(sum_positions(alpha(activation, gradient**2, gradient**3) * gradient.relu()), activation)


def alpha(activation: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Equation 19 of Grad-CAM++, for a score that is the exponential of the logit."""
    return _ratio(second, 2 * second + sum_positions(activation) * third)


def _ratio(over: Tensor, below: Tensor) -> Tensor:
    """A quotient that is 0 where its divisor is."""
    return torch.where(below != 0, over / torch.where(below != 0, below, 1), 0)


@gradient_cam("LayerCAM")
def layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM: each position is weighted by its own gradient where that is positive; suits early layers too.

    P.-T. Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021:
    max(0, Σ max(0, G) · A) over the channels (equations 7 to 9).
    """
    return weighted(gradient.relu(), activation)


@gradient_cam("XGrad-CAM")
def xgrad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """XGrad-CAM: gradients are averaged with the activations as weights.

    R. Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020: a
    channel's weight is ΣG·A / ΣA over its positions (equation 8).
    """
    return weighted(_ratio(sum_positions(gradient * activation), sum_positions(activation)), activation)


@gradient_cam("HiResCAM")
def hires_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM: activation times gradient, position by position, without averaging.

    R. Draelos and L. Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", 2020: Σ G · A over the channels (equation 3). Here, what speaks against the class is set to zero.
    """
    return weighted(gradient, activation)


@as_method(CamFunction.__call__)
def class_activation(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    methods: Sequence[str] = tuple(GRADIENT_CAMS),
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> dict[str, Tensor]:
    """Several class activation maps from one forward and one backward pass.

    Parameters
    ----------
    methods
        Names of functions of the gradient family, such as ``"grad_cam"`` and ``"layer_cam"``; by default all of them.

    Returns
    -------
    dict of str to Tensor
        For each method what its function returns, such as :func:`nbviz.grad_cam`: (N, H, W) in [0, 1].

    Raises
    ------
    ValueError
        When one of ``methods`` is unknown.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> maps = class_activation(net, torch.rand(2, 1, 8, 8), "1", 0, ["grad_cam", "layer_cam"])
    >>> {name: tuple(map.shape) for name, map in maps.items()}
    {'grad_cam': (2, 8, 8), 'layer_cam': (2, 8, 8)}
    """
    if not isinstance(methods, (list, tuple, set)) or not methods:
        raise TypeError(f"methods is {shown(methods)}; expected a list of {', '.join(GRADIENT_CAMS)}")
    names = [check_choice("method", method, GRADIENT_CAMS) for method in methods]
    subject, layer, arrange = checked(model, images, layer, raw, reshape, **options)

    def maps(part: Subject) -> dict[str, Tensor]:
        pair = backward(part, layer, target, arrange)
        activation, gradient = map(at_least_float32, pair)
        return {name: _FORMULAS[name](activation, gradient).relu().to(pair[0].dtype) for name in names}

    return {name: finished(values, subject, raw) for name, values in subject.in_parts(maps).items()}


def backward(subject: Subject, layer: str, target: Any, arrange: Arrange) -> tuple[Tensor, Tensor]:
    """A layer's activation, and the gradient of the class scores with respect to it, as maps (N, C, ...)."""
    # Second, for a model that switches gradients on or off within its pass, which ends the graph of the first.
    ways: tuple[Graph, ...] = ("after", "throughout")
    for grad in ways:
        trace = subject.run([layer], output=True, grad=grad)
        activation = check_real(trace.activations[layer], f"layer {shown(layer)}")
        scores, layout = subject.scores(trace.output), trace.layouts[layer]
        try:
            gradient = pull("gradient", scores, subject.selector(target, scores)[None], activation)[0][0]
        except ModelError as error:
            if str(error) != NO_GRADIENT:
                raise
        else:
            return arrange(activation.detach(), layout), arrange(gradient, layout)
    raise ModelError(
        f"no gradient flows from the class scores to layer {shown(layer)}: they do not depend on it, or only through "
        "what the model detaches or runs under torch.no_grad()"
    )


def finished(maps: Tensor, subject: Subject, raw: bool) -> Tensor:
    """Non-negative maps (N, h, w) in [0, 1] at the size of the pictures; with ``raw``, unchanged."""
    if raw:
        return maps
    dtype, maps = maps.dtype, at_least_float32(maps)
    maps = maps / maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1)).clamp(min=torch.finfo(maps.dtype).tiny)
    return enlarged(maps[:, None], subject.inputs.shape[2:])[:, 0].to(dtype)


def enlarged(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """Maps (N, C, ...) enlarged linearly to these sides."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[maps.ndim]
    return nn.functional.interpolate(maps, sides, mode=mode)


def at_least_float32(values: Tensor) -> Tensor:
    """The values in single precision at least: in half precision, the square of a small gradient is zero."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
