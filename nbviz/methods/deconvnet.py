"""The deconvnet (Zeiler and Fergus 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.types import Channels, Images, SubjectOptions, Target
from nbviz.methods.reconstruct import reconstruct
from nbviz.methods.subject import as_method


@as_method(reconstruct)
def deconvnet(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    channels: Channels | None = None,
    target: Target | None = None,
    seed: str = "max",
    *,
    position: Sequence[int] | None = None,
    unpool: str = "sum",
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """What in the picture a channel's activation was made of, by running the network backwards.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
    section 2.1. All other activations of the layer are set to zero, then layer by layer: max-pooling
    is undone by placing each value at its recorded switch (*unpooling*), the signal is rectified,
    R → max(R, 0) (*rectification*), and each convolution is applied transposed (*filtering*).

    The switches are what ties the result to this picture. In a network without max-pooling (strided convolutions, as in
    many since 2018) every picture gets the same reconstruction but for where it starts, and how strongly.

    The signal is rectified where the network has a rectifier, so what reaches the picture through the
    first convolution has both signs. As in the paper, the signal ignores which rectifiers were open,
    and starts from the strongest position, ``seed="max"``.

    Returns
    -------
    Tensor
        (N, K, C, H, W) for a layer's channels, (N, C, H, W) for a class; in the model's dtype and on its device.

    Warns
    -----
    NoRectifierWarning
        When the rule met no rectifier, so that the result equals the gradient.
    NoSwitchWarning
        When nothing between the layer and the picture makes the way back depend on the picture.

    Examples
    --------
    A rectifier that was shut lets the deconvnet's signal through, but not the gradient's:

    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    >>> _ = nn.init.ones_(net[1].weight), nn.init.zeros_(net[1].bias)
    >>> deconvnet(net, torch.tensor([[[[-1.0, 2.0]]]]), "1", 0, seed="unit").flatten().tolist()
    [1.0, 1.0]
    """
    rules = ["deconvnet"]
    return reconstruct(
        model, images, layer, channels, target, seed, rules, position=position, unpool=unpool, **options
    )["deconvnet"]
