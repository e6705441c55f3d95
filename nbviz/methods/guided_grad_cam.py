"""Guided Grad-CAM (Selvaraju et al. 2017): guided backprop, masked by Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.cam import CamFunction, grad_cam
from nbviz.methods.guided_backprop import guided_backprop
from nbviz.methods.subject import as_method


@as_method(CamFunction.__call__)
def guided_grad_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Guided Grad-CAM: guided backprop of the class, masked by Grad-CAM.

    R. Selvaraju et al., "Grad-CAM", ICCV 2017, section 3.2: the product of both. As with guided backprop alone, its
    details show what is in the picture rather than what was learned.

    Returns
    -------
    Tensor
        (N, C, H, W), signed, in the model's dtype and on its device.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> guided_grad_cam(net, torch.rand(2, 1, 8, 8), "1", target=0).shape
    torch.Size([2, 1, 8, 8])
    """
    mask = grad_cam(model, images, layer, target, reshape=reshape, **options)
    return guided_backprop(model, images, target=target, **options) * mask[:, None]
