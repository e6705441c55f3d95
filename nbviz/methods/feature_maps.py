"""Feature maps, unchanged or fused into one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_maps
from nbviz.core.checks import FLOATS, check_choice, check_indices, check_tensor
from nbviz.core.types import Channels, Images, InputOptions
from nbviz.methods.subject import Subject, as_method


@as_method()
def feature_maps(
    model: nn.Module,
    images: Images,
    layer: str,
    channels: Channels | None = None,
    **options: Unpack[InputOptions],
) -> Tensor:
    """A layer's activations for pictures, unchanged.

    Parameters
    ----------
    channels
        Which channels, in this order; None takes all.

    Returns
    -------
    Tensor
        (N, K, H, W), for signals (N, K, L), for volumes (N, K, D, H, W), detached; in the model's dtype (or
        autocast's) and on its device.

    Raises
    ------
    ValueError
        When ``layer`` gives no feature maps.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> feature_maps(net, torch.rand(2, 1, 8, 8), "1", channels=[3, 0]).shape
    torch.Size([2, 2, 6, 6])
    """
    subject = Subject.of(model, images, values=False, **options)
    activation = subject.in_parts(lambda part: check_maps(part.run([layer]), layer))
    return activation if channels is None else activation[:, check_indices("channel", channels, activation.shape[1])]


def fuse(maps: Tensor, how: str = "mean") -> Tensor:
    """Fuse all channels of each picture into one map.

    Parameters
    ----------
    maps
        (N, K, H, W), any float dtype, on any device; or (N, K, L) for signals, (N, K, D, H, W) for volumes.
    how
        ``"mean"``, ``"max"``, ``"sum"``, ``"l2"`` (the norm over the channels at each position), or ``"pca"``: the
        first three principal components of the channels over the positions of a picture, as red, green and blue (values
        that are not finite count as 0).

    Returns
    -------
    Tensor
        (N, H, W), or (N, L), (N, D, H, W). For ``"pca"`` (N, 3, H, W) in [0, 1], each colour stretched to its range
        (zero where there is no such component).

    Raises
    ------
    ValueError
        When ``how`` is unknown. When ``maps`` is not (N, K, H, W).
    TypeError
        When ``maps`` is not a float tensor.

    Examples
    --------
    >>> maps = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1)
    >>> fuse(maps, "l2").item(), fuse(maps, "sum").item()
    (5.0, -1.0)
    """
    check_tensor("maps", maps, "(N, K, H, W)")
    if maps.ndim not in (3, 4, 5) or 0 in maps.shape[1:]:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected (N, K, H, W), (N, K, L) or (N, K, D, H, W), none but N zero"
        )
    check_choice("way to fuse", how, _FUSIONS)
    if maps.dtype not in FLOATS:
        raise TypeError(f"maps is {maps.dtype}; expected a float dtype")
    return _FUSIONS[how](maps)


def _principal_colours(maps: Tensor) -> Tensor:
    points = torch.nan_to_num(maps.flatten(2).transpose(1, 2).float(), 0.0, 0.0, 0.0)  # (N, positions, channels)
    points = points / points.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)  # large squares would overflow
    points = points - points.mean(1, keepdim=True)
    u, s, v = torch.linalg.svd(points, full_matrices=False)
    u, s, v = u[..., :3], s[..., :3], v[:, :3]
    # The sign of a component is arbitrary: make the weight of its largest channel positive.
    sign = v.gather(2, v.abs().argmax(2, keepdim=True)).sign().transpose(1, 2)
    colours = u * s[:, None] * sign
    low, high = colours.amin(1, keepdim=True), colours.amax(1, keepdim=True)
    constant = high - low <= 1e-6 * s[:, None, :1]  # only rounding errors are left
    colours = torch.where(constant, 0.0, (colours - low) / (high - low).masked_fill(constant, 1.0))
    colours = nn.functional.pad(colours, (0, 3 - colours.shape[2]))
    return colours.transpose(1, 2).reshape(len(maps), 3, *maps.shape[2:]).to(maps.dtype)


_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(1),
    "max": lambda maps: maps.amax(1),
    "l2": lambda maps: torch.linalg.vector_norm(maps, dim=1),
    "sum": lambda maps: maps.sum(1),
    "pca": _principal_colours,
}
#: The names that :func:`fuse` takes.
FUSIONS = tuple(_FUSIONS)
