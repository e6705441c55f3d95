"""Class activation maps: where in the picture a layer speaks for a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.backward import NO_GRADIENT, pull
from nbviz.core.chunks import in_chunks, joined, kept_together
from nbviz.core.errors import ModelError, shown
from nbviz.core.layers import trace_layers
from nbviz.core.state import check_model, untouched
from nbviz.core.trace import run
from nbviz.imaging.load import load
from nbviz.imaging.pixels import check_tensor
from nbviz.methods.arguments import SHAPES, check_feed, check_logits, check_maps, check_real, check_target


def grad_cam(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    raw: bool = False,
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
        more than one position.
    target
        The class, or one for each picture; None takes the predicted one.
    raw
        Give the map as the equations have it, at the layer's size.
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
    if not isinstance(raw, bool):
        raise TypeError(f"raw is {shown(raw)}; expected True or False")
    feed, pictures = check_feed(inputs), load(model, images, preprocess).inputs
    check_tensor("the model's input", pictures, "on a device that holds values")
    if layer is None:
        layer = _last_maps(model, pictures, feed)

    def of(part: Sequence[int]) -> Tensor:
        trace = run(model, pictures[part[0] : part[-1] + 1], [layer], feed=feed, output=True, grad=True)
        activation = check_real(check_maps(trace, layer), f"layer {shown(layer)}")
        logits = check_logits(trace.output, output)
        classes = check_target(target, logits, part, len(pictures))
        signal = nn.functional.one_hot(classes, logits.shape[1]).to(logits.dtype)
        try:
            with untouched(check_model(model)):  # what a checkpoint left out of the graph runs again
                gradient = pull("gradient", logits, signal[None], activation)[0][0]
        except ModelError as error:
            if str(error) != NO_GRADIENT:
                raise
            reason = f"no gradient flows from the class scores to layer {shown(layer)}: they do not depend on it"
            raise ModelError(reason) from None
        weights = gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True)
        return (weights * activation.detach()).sum(1).relu()

    n = len(pictures)
    maps = joined(in_chunks(of, range(n), n, "one picture", kept_together(model, n, feed)))
    if raw:
        return maps
    maps = maps / maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1)).clamp(min=torch.finfo(maps.dtype).tiny)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[maps.ndim - 1]
    return nn.functional.interpolate(maps[:, None], pictures.shape[2:], mode=mode)[:, 0]


def _last_maps(model: nn.Module, pictures: Tensor, feed: Any) -> str:
    found = [
        layer
        for layer in trace_layers(model, pictures if feed is not None else pictures[:1], feed)[0]
        if layer.has_maps
    ]
    wide = [layer for layer in found if math.prod(layer.shape[1:]) > 1]
    if not wide:
        raise ValueError(
            f"no layer of {type(model).__name__} gives feature maps {SHAPES[pictures.ndim]}: name one that does"
        )
    return wide[-1].name
