"""The plain gradient with respect to the picture (Simonyan, Vedaldi and Zisserman 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.types import Channels, Images, SubjectOptions, Target
from nbviz.methods.reconstruct import reconstruct
from nbviz.methods.subject import as_method


@as_method(reconstruct)
def gradient(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    channels: Channels | None = None,
    target: Target | None = None,
    seed: str = "max",
    *,
    position: Sequence[int] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """How a small change of each pixel would change a channel or a class.

    A rectifier passes R · [z > 0] (K. Simonyan, A. Vedaldi and A. Zisserman, "Deep Inside
    Convolutional Networks", ICLR workshop 2014, section 3).

    With ``seed="unit"``, the result is the gradient itself. With ``"max"``, the default of all three rules so that
    they can be compared, it is the gradient times the channel's maximum.

    Returns
    -------
    Tensor
        (N, K, C, H, W) for a layer's channels, (N, C, H, W) for a class; in the model's dtype and on its device.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    >>> _ = nn.init.constant_(net[0].weight, 3.0), nn.init.zeros_(net[0].bias)
    >>> gradient(net, torch.tensor([[[[0.1, 0.5]]]]), "1", 0, seed="unit").flatten().tolist()
    [0.0, 3.0]
    """
    return reconstruct(model, images, layer, channels, target, seed, ["gradient"], position=position, **options)[
        "gradient"
    ]
