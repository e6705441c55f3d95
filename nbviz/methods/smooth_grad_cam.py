"""Smooth Grad-CAM++: Grad-CAM++ with its gradients averaged over noisy copies of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_logits, check_target
from nbviz.core.checks import check_number, check_whole
from nbviz.core.trace import run
from nbviz.core.weights import steady
from nbviz.methods.cam import _alpha, _sum, backward, each, in_full
from nbviz.methods.cam_layers import checked


@steady
def smooth_grad_cam_pp(
    model: nn.Module,
    images: Any,
    layer: str | None = None,
    target: Sequence[int] | int | None = None,
    *,
    samples: int = 8,
    noise: float = 0.15,
    seed: int = 0,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """Grad-CAM++ with its gradients averaged over noisy copies of the picture.

    D. Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional
    Neural Network Models", 2019: the mean of the gradients, of their squares and of their cubes over the samples take
    the place of the derivatives in Grad-CAM++ (equations 8 and 9).

    Parameters
    ----------
    model, images, layer, target, raw, reshape, preprocess, inputs, output
        As in :func:`nbviz.grad_cam`.
    samples
        How many noisy copies, each of which costs a forward and a backward pass.
    noise
        The standard deviation of the noise, as a share of the range of the picture's values.
    seed
        Of the noise; the person's random numbers are left alone.

    Returns
    -------
    Tensor
        (N, H, W) in [0, 1], as in :func:`nbviz.grad_cam`.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.grad_cam`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> smooth_grad_cam_pp(net, torch.rand(2, 1, 8, 8), "1", target=0, samples=2).shape
    torch.Size([2, 8, 8])
    """
    samples, noise = check_whole("samples", samples, 1), check_number("noise", noise, 0, 10)
    seed = check_whole("seed", seed, 0, 2**63 - 1)
    pictures, layer, arrange, feed = checked(model, images, layer, raw, reshape, preprocess, inputs, output)

    def of(part: Sequence[int]) -> Tensor:
        some = pictures[part[0] : part[-1] + 1]
        trace = run(model, some, [layer], feed=feed, output=True)
        activation = arrange(trace.activations[layer], len(part))
        dtype, activation = activation.dtype, in_full(activation)
        classes = check_target(target, check_logits(trace.output, output), part, len(pictures)).tolist()
        first, second, third = (torch.zeros_like(activation) for _ in range(3))
        for copies in noisy(some, samples, noise, seed, part):
            gradient = in_full(backward(model, copies, range(len(part)), layer, classes, arrange, feed, output)[1])
            first, second, third = first + gradient, second + gradient**2, third + gradient**3
        alpha = _alpha(activation, second / samples, third / samples)
        return (_sum(alpha * (first / samples).relu()) * activation).sum(1).relu().to(dtype)

    return each(model, pictures, feed, raw, of)


def noisy(pictures: Tensor, samples: int, noise: float, seed: int, numbers: Sequence[int]) -> list[Tensor]:
    """Copies of pictures (N, C, H, W) with noise, whose strength is a share of each picture's range.

    What is drawn for a picture depends on its number alone, not on which others are there.
    """
    drawn = []
    for number in numbers:
        draw = torch.Generator().manual_seed((seed + number * 0x9E3779B97F4A7C15) % 2**63)
        drawn.append(torch.randn(samples, *pictures.shape[1:], generator=draw, dtype=torch.float32))
    flat = pictures.flatten(1)
    spread = noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (pictures.ndim - 1))
    return [pictures + spread * torch.stack([one[i] for one in drawn]).to(pictures) for i in range(samples)]
