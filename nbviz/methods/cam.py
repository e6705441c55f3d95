"""Class activation maps from gradients: where in the picture a layer speaks for a class.

All maps of this family are made of one forward and one backward pass, see :func:`class_activation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_logits, check_target
from nbviz.core.backward import NO_GRADIENT, pull
from nbviz.core.checks import check_choice, check_real
from nbviz.core.chunks import in_chunks, joined, kept_together
from nbviz.core.errors import ModelError, shown
from nbviz.core.trace import Feed, run
from nbviz.core.weights import steady
from nbviz.methods.cam_layers import Arrange, checked


def _sum(maps: Tensor) -> Tensor:
    """Over the positions of (N, C, ...), as (N, C, 1, ...)."""
    return maps.sum(tuple(range(2, maps.ndim)), keepdim=True)


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    return (weights * activation).sum(1)


def _grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    return _weighted(_sum(gradient) / gradient[0, 0].numel(), activation)


def _grad_cam_pp(activation: Tensor, gradient: Tensor) -> Tensor:
    return _weighted(_sum(_alpha(activation, gradient**2, gradient**3) * gradient.relu()), activation)


def _alpha(activation: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Equation 19 of Grad-CAM++, for a score that is the exponential of the logit."""
    below = 2 * second + _sum(activation) * third
    return torch.where(below != 0, second / torch.where(below != 0, below, 1), 0)


def _layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    return _weighted(gradient.relu(), activation)


def _xgrad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    total = _sum(activation)
    weights = torch.where(total != 0, _sum(gradient * activation) / torch.where(total != 0, total, 1), 0)
    return _weighted(weights, activation)


def _hires_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    return _weighted(gradient, activation)


#: From a layer's activation and the gradient of the class's score (N, C, ...) to each map (N, ...), before max(0, .).
GRADIENT_MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": _grad_cam,
    "grad_cam_pp": _grad_cam_pp,
    "layer_cam": _layer_cam,
    "xgrad_cam": _xgrad_cam,
    "hires_cam": _hires_cam,
}


@steady
def class_activation(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    methods: Sequence[str] = tuple(GRADIENT_MAPS),
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> dict[str, Tensor]:
    """Several class activation maps from one forward and one backward pass.

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.
    methods
        Any of ``"grad_cam"``, ``"grad_cam_pp"``, ``"layer_cam"``, ``"xgrad_cam"`` and ``"hires_cam"``.

    Returns
    -------
    dict of str to Tensor
        For each method (N, H, W), as :func:`nbviz.grad_cam` gives it.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> maps = class_activation(net, torch.rand(2, 1, 8, 8), "1", 0, ["grad_cam", "layer_cam"])
    >>> {name: tuple(map.shape) for name, map in maps.items()}
    {'grad_cam': (2, 8, 8), 'layer_cam': (2, 8, 8)}
    """
    if not isinstance(methods, (list, tuple, set)) or not methods:
        raise TypeError(f"methods is {shown(methods)}; expected a list of {', '.join(GRADIENT_MAPS)}")
    names = [check_choice("method", method, GRADIENT_MAPS) for method in methods]
    pictures, layer, arrange, feed = checked(model, images, layer, raw, reshape, preprocess, inputs, output)

    def of(part: Sequence[int]) -> dict[str, Tensor]:
        pair = backward(model, pictures, part, layer, target, arrange, feed, output)
        activation, gradient = map(in_full, pair)
        return {name: GRADIENT_MAPS[name](activation, gradient).relu().to(pair[0].dtype) for name in names}

    n = len(pictures)
    pieces = in_chunks(of, range(n), n, "one picture", kept_together(model, n, feed))
    found = {name: joined([piece[name] for piece in pieces]) for name in names}
    return found if raw else {name: at_the_pictures_size(maps, pictures) for name, maps in found.items()}


def backward(
    model: nn.Module,
    pictures: Tensor,
    part: Sequence[int],
    layer: str,
    target: Any,
    arrange: Arrange,
    feed: Any,
    output: Any,
) -> tuple[Tensor, Tensor]:
    """A layer's activation for some of the pictures, and the gradient of their class's score, as maps (N, C, ...)."""
    trace = run(model, pictures[part[0] : part[-1] + 1], [layer], feed=feed, output=True, grad="after")
    activation = check_real(trace.activations[layer], f"layer {shown(layer)}")
    logits = check_logits(trace.output, output)
    classes = check_target(target, logits, part, len(pictures))
    signal = nn.functional.one_hot(classes, logits.shape[1]).to(logits.dtype)
    try:
        gradient = pull("gradient", logits, signal[None], activation)[0][0]
    except ModelError as error:
        if str(error) != NO_GRADIENT:
            raise
        reason = f"no gradient flows from the class scores to layer {shown(layer)}: they do not depend on it"
        raise ModelError(reason) from None
    return arrange(activation.detach(), len(part)), arrange(gradient, len(part))


def each(model: nn.Module, pictures: Tensor, feed: Feed, raw: bool, of: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """What ``of`` gives for some of the pictures, for all of them."""
    n = len(pictures)
    maps = joined(in_chunks(of, range(n), n, "one picture", kept_together(model, n, feed)))
    return maps if raw else at_the_pictures_size(maps, pictures)


def at_the_pictures_size(maps: Tensor, pictures: Tensor) -> Tensor:
    """Maps (N, h, w), not negative, over their largest value and at the size of the model's input."""
    dtype, maps = maps.dtype, in_full(maps)
    maps = maps / maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1)).clamp(min=torch.finfo(maps.dtype).tiny)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[maps.ndim - 1]
    return nn.functional.interpolate(maps[:, None], pictures.shape[2:], mode=mode)[:, 0].to(dtype)


def in_full(values: Tensor) -> Tensor:
    """In single precision at least: the square of a small gradient is nothing in half."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@steady
def grad_cam(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """Where a layer speaks for a class: its channels, weighted by what they do for the class, in one map.

    R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017. A channel's weight is the mean over its positions of the gradient of the class's score before
    the softmax (equation 1); the map is max(0, the weighted sum of the channels) (equation 2).

    Parameters
    ----------
    model
        Any PyTorch model that gives class scores; it is left as it was.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`.
    layer
        A module's name (``"name:1"`` for its second call); None takes the last that gives feature maps with
        more than one position, of a transformer the last whose tokens have a gradient.
    target
        The class, or one for each picture; None takes the predicted one.
    raw
        Give the map at the layer's size as the equations have it, but that what speaks against the class is zero.
    reshape
        For a layer of another shape: a callable from its activation to feature maps (N, C, H, W). Tokens (N, T, C) on
        a grid of the picture's shape, whether class tokens come before them or not, and maps with channels last are
        found without.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W); found from the model if None.
    inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    Tensor
        (N, H, W), for signals (N, L), for volumes (N, D, H, W), at the size of the model's input, in [0, 1]:
        each picture's map divided by its largest value and brought to that size linearly; all zero where
        nothing speaks for the class. With ``raw``, at the layer's size and in units of the score. In the
        model's dtype and on its device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    Of two channels, the class takes one three times and the other not at all:

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
    >>> net[3].weight.data = torch.tensor([[3.0, 0.0]])
    >>> grad_cam(net, torch.tensor([[[[2.0, 4.0]]]]), "0", 0, raw=True)
    tensor([[[3., 6.]]])
    >>> grad_cam(net, torch.tensor([[[[2.0, 4.0]]]]), "0", 0)
    tensor([[[0.5000, 1.0000]]])
    """
    options = {"raw": raw, "reshape": reshape, "preprocess": preprocess, "inputs": inputs, "output": output}
    return class_activation(model, images, layer, target, ["grad_cam"], **options)["grad_cam"]


@steady
def grad_cam_pp(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """Grad-CAM++: each position's gradient counts by itself, so that several things of one class all show.

    A. Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional
    Networks", WACV 2018. With the gradient G and the activation A of channel k, a channel's weight is the sum of
    α · max(0, G) over its positions (equation 5), α = G² / (2 G² + G³ · ΣA) (equation 19, where the score is the
    exponential of the logit; its factor exp(logit), the same for all weights, is left out).

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.

    Returns
    -------
    Tensor
        (N, H, W) in [0, 1], as in :func:`nbviz.grad_cam`.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> grad_cam_pp(net, torch.rand(2, 1, 8, 8), "1", target=0).shape
    torch.Size([2, 8, 8])
    """
    options = {"raw": raw, "reshape": reshape, "preprocess": preprocess, "inputs": inputs, "output": output}
    return class_activation(model, images, layer, target, ["grad_cam_pp"], **options)["grad_cam_pp"]


@steady
def layer_cam(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """LayerCAM: each position is weighted by its own gradient where this speaks for the class; for early layers too.

    P.-T. Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021:
    max(0, Σ max(0, G) · A) over the channels (equations 7 to 9).

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.

    Returns
    -------
    Tensor
        (N, H, W) in [0, 1], as in :func:`nbviz.grad_cam`.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> layer_cam(net, torch.rand(2, 1, 8, 8), "1", target=0).shape
    torch.Size([2, 8, 8])
    """
    options = {"raw": raw, "reshape": reshape, "preprocess": preprocess, "inputs": inputs, "output": output}
    return class_activation(model, images, layer, target, ["layer_cam"], **options)["layer_cam"]


@steady
def xgrad_cam(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """XGrad-CAM: gradients are averaged by how strong the activation is at their position.

    R. Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020: a
    channel's weight is ΣG·A / ΣA over its positions (equation 8).

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.

    Returns
    -------
    Tensor
        (N, H, W) in [0, 1], as in :func:`nbviz.grad_cam`.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> xgrad_cam(net, torch.rand(2, 1, 8, 8), "1", target=0).shape
    torch.Size([2, 8, 8])
    """
    options = {"raw": raw, "reshape": reshape, "preprocess": preprocess, "inputs": inputs, "output": output}
    return class_activation(model, images, layer, target, ["xgrad_cam"], **options)["xgrad_cam"]


@steady
def hires_cam(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """HiResCAM: activation times gradient, position by position, nothing averaged.

    R. Draelos and L. Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", 2020: Σ G · A over the channels (equation 3); what speaks against the class is not shown here.

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.

    Returns
    -------
    Tensor
        (N, H, W) in [0, 1], as in :func:`nbviz.grad_cam`.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> hires_cam(net, torch.rand(2, 1, 8, 8), "1", target=0).shape
    torch.Size([2, 8, 8])
    """
    options = {"raw": raw, "reshape": reshape, "preprocess": preprocess, "inputs": inputs, "output": output}
    return class_activation(model, images, layer, target, ["hires_cam"], **options)["hires_cam"]
