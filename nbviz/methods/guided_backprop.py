"""Guided backpropagation (Springenberg et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.weights import steady
from nbviz.methods.reconstruct import reconstruct


@steady
def guided_backprop(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    channels: Sequence[int] | int | None = None,
    target: Sequence[int] | int | None = None,
    seed: str = "max",
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """What in the picture speaks for a channel or a class: gradient and deconvnet, each masking the other.

    A rectifier passes max(R, 0) · [z > 0] (J. Springenberg, A. Dosovitskiy, T. Brox and M. Riedmiller,
    "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015, figure 1).

    Parameters
    ----------
    model, images, layer, channels, target, seed, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    Tensor
        (N, K, C, H, W) for a layer's channels, (N, C, H, W) for a class; the model's dtype and device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Warns
    -----
    NoRectifierWarning
        When no rectifier was met: the result equals the gradient.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    >>> _ = nn.init.ones_(net[1].weight), nn.init.zeros_(net[1].bias)
    >>> guided_backprop(net, torch.tensor([[[[-1.0, 2.0]]]]), "1", 0, seed="unit").flatten().tolist()
    [0.0, 1.0]
    """
    options = {"preprocess": preprocess, "inputs": inputs, "output": output}
    return reconstruct(model, images, layer, channels, target, seed, ["guided"], **options)["guided"]
