"""The plain gradient with respect to the picture (Simonyan, Vedaldi and Zisserman 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nbviz.core.weights import steady
from nbviz.methods.reconstruct import reconstruct


@steady
def gradient(
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
    """How a small change of each pixel would change a channel or a class.

    A rectifier passes R · [z > 0] (K. Simonyan, A. Vedaldi and A. Zisserman, "Deep Inside
    Convolutional Networks", ICLR workshop 2014, section 3).

    Parameters
    ----------
    model, images, layer, channels, target, seed, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`. ``seed="unit"`` gives the gradient itself; ``"max"`` (the
        default of all three rules, so that they compare) gives it times the channel's maximum.

    Returns
    -------
    Tensor
        (N, K, C, H, W) for a layer's channels, (N, C, H, W) for a class; the model's dtype and device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    >>> _ = nn.init.constant_(net[0].weight, 3.0), nn.init.zeros_(net[0].bias)
    >>> gradient(net, torch.tensor([[[[0.1, 0.5]]]]), "1", 0, seed="unit").flatten().tolist()
    [0.0, 3.0]
    """
    options = {"preprocess": preprocess, "inputs": inputs, "output": output}
    return reconstruct(model, images, layer, channels, target, seed, ["gradient"], **options)["gradient"]
