"""Feature maps as they are, and fused into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_maps
from nbviz.core.checks import FLOATS, check_choice, check_indices, check_tensor
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject


@steady
def feature_maps(
    model: nn.Module,
    images: Any,
    layer: str,
    channels: Sequence[int] | int | None = None,
    *,
    preprocess: Any = None,
    inputs: Any = None,
) -> Tensor:
    """What a layer gives for pictures: its activations, unchanged.

    Parameters
    ----------
    layer
        A module's name, ``"name:1"`` for the second call of one that runs more than once.
    channels
        Which channels, in the order wanted; None gives all.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W); found from the model if None.
    inputs
        For a model that is called with more than the pictures: a callable from their batch (N, C, H, W) to the
        model's argument, a tuple of its arguments, or a dict of its keyword arguments.

    Returns
    -------
    Tensor
        (N, K, H, W), for signals (N, K, L), for volumes (N, K, D, H, W), without a graph; in the model's
        dtype (under autocast, the one that autocast gives) and on its device.

    Raises
    ------
    ValueError
        For an unknown layer, a channel out of range, or a layer whose output is no feature maps.
    PictureError
        For a picture that cannot be read or does not fit the model (a ValueError).
    ModelError
        When the model fails in its forward pass (a RuntimeError).
    TypeError
        For an argument of the wrong type, or a scripted or exported model.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> feature_maps(net, torch.rand(2, 1, 8, 8), "1", channels=[3, 0]).shape
    torch.Size([2, 2, 6, 6])
    """
    subject = Subject.of(model, images, preprocess, inputs, values=False)
    activation = subject.in_parts(lambda part: check_maps(part.run([layer]), layer))
    return activation if channels is None else activation[:, check_indices("channel", channels, activation.shape[1])]


def fuse(maps: Tensor, how: str = "mean") -> Tensor:
    """All channels of each picture in one map.

    Parameters
    ----------
    maps
        (N, K, H, W), any float dtype, on any device; or (N, K, L) of signals, (N, K, D, H, W) of volumes.
    how
        ``"mean"``, ``"max"``, ``"sum"``, ``"l2"`` (the length of the vector of channels at each
        position), or ``"pca"``: the three directions in which the channels vary most over the
        positions of a picture, as red, green and blue (values that are not finite count as 0).

    Returns
    -------
    Tensor
        (N, H, W), or (N, L), (N, D, H, W); for ``"pca"`` (N, 3, H, W) in [0, 1], each colour stretched over
        its range (zero where there is no third direction).

    Raises
    ------
    ValueError
        For an unknown ``how`` or maps that are not (N, K, H, W).
    TypeError
        For maps that are not a float tensor.

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
    points = points / points.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)  # whose squares could be infinite
    points = points - points.mean(1, keepdim=True)
    u, s, v = torch.linalg.svd(points, full_matrices=False)
    u, s, v = u[..., :3], s[..., :3], v[:, :3]
    # A direction has no sign of its own: let its largest channel weigh positively.
    sign = v.gather(2, v.abs().argmax(2, keepdim=True)).sign().transpose(1, 2)
    colours = u * s[:, None] * sign
    low, high = colours.amin(1, keepdim=True), colours.amax(1, keepdim=True)
    flat = high - low <= 1e-6 * s[:, None, :1]  # no variation left but rounding
    colours = torch.where(flat, 0.0, (colours - low) / (high - low).masked_fill(flat, 1.0))
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
