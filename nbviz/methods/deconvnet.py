"""The deconvnet (Zeiler and Fergus 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.weights import steady
from nbviz.methods.reconstruct import reconstruct


@steady
def deconvnet(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    channels: Sequence[int] | int | None = None,
    target: Sequence[int] | int | None = None,
    seed: str = "max",
    *,
    unpool: str = "sum",
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """What in the picture a channel's activation was made of, by running the network backwards.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
    section 2.1. All other activations of the layer are set to zero, then layer by layer: max-pooling
    is undone by placing each value at its recorded switch (*unpooling*), the signal is rectified,
    R → max(R, 0) (*rectification*), and each convolution is applied transposed (*filtering*).

    The signal is rectified where the network has a rectifier, so what reaches the picture, after the
    first convolution, has both signs. As in the paper, the signal ignores which rectifiers were open.

    Parameters
    ----------
    model, images, layer, channels, target, seed, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`. The paper starts from the strongest position, ``seed="max"``.
    unpool
        Where overlapping pooling windows (AlexNet's 3×3, stride 2) share a switch: ``"sum"`` their
        values, as the gradient and Captum do, or ``"overwrite"`` with the last, as ``max_unpool2d``.

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
    A rectifier that was shut lets the deconvnet's signal through, and the gradient's not:

    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    >>> _ = nn.init.ones_(net[1].weight), nn.init.zeros_(net[1].bias)
    >>> deconvnet(net, torch.tensor([[[[-1.0, 2.0]]]]), "1", 0, seed="unit").flatten().tolist()
    [1.0, 1.0]
    """
    options = {"unpool": unpool, "preprocess": preprocess, "inputs": inputs, "output": output}
    return reconstruct(model, images, layer, channels, target, seed, ["deconvnet"], **options)["deconvnet"]
