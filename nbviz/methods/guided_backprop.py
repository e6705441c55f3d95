"""Guided backpropagation (Springenberg et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.types import Channels, Images, SubjectOptions, Target
from nbviz.methods.reconstruct import reconstruct
from nbviz.methods.subject import as_method


@as_method(reconstruct)
def guided_backprop(
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
    """What in the picture speaks for a channel or a class: gradient and deconvnet, each masking the other.

    A rectifier passes max(R, 0) · [z > 0] (J. Springenberg, A. Dosovitskiy, T. Brox and M. Riedmiller,
    "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015, figure 1).

    Returns
    -------
    Tensor
        (N, K, C, H, W) for a layer's channels, (N, C, H, W) for a class; in the model's dtype and on its device.

    Warns
    -----
    NoRectifierWarning
        When the rule met no rectifier, so that the result equals the gradient.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    >>> _ = nn.init.ones_(net[1].weight), nn.init.zeros_(net[1].bias)
    >>> guided_backprop(net, torch.tensor([[[[-1.0, 2.0]]]]), "1", 0, seed="unit").flatten().tolist()
    [0.0, 1.0]
    """
    return reconstruct(model, images, layer, channels, target, seed, ["guided"], position=position, **options)["guided"]
