"""Smooth Grad-CAM++: Grad-CAM++ with its gradients averaged over noisy copies of the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.checks import check_number, check_whole
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.cam import CamFunction, alpha, at_least_float32, backward, finished, sum_positions, weighted
from nbviz.methods.cam_layers import checked
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.noise import noisy


@as_method(CamFunction.__call__)
def smooth_grad_cam_pp(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    samples: int = 8,
    noise: float = 0.15,
    seed: int = 0,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Grad-CAM++ with its gradients averaged over noisy copies of the picture.

    D. Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional
    Neural Network Models", 2019: the mean of the gradients, of their squares and of their cubes over the samples
    replace the derivatives in Grad-CAM++ (equations 8 and 9).

    Parameters
    ----------
    samples
        How many noisy copies, each of which costs a forward and a backward pass.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> smooth_grad_cam_pp(net, torch.rand(2, 1, 8, 8), "1", target=0, samples=2).shape
    torch.Size([2, 8, 8])
    """
    samples, noise = check_whole("samples", samples, 1), check_number("noise", noise, 0, 10)
    seed = check_whole("seed", seed, 0, 2**63 - 1)
    subject, layer, arrange = checked(model, images, layer, raw, reshape, **options)

    def work(part: Subject) -> Tensor:
        trace = part.run([layer], output=True)
        activation = arrange(trace.activations[layer], trace.layouts[layer])
        dtype, activation = activation.dtype, at_least_float32(activation)
        classes = part.targets(target, part.scores(trace.output)).tolist()
        first, second, third = (torch.zeros_like(activation) for _ in range(3))
        for copies in noisy(part.inputs, samples, noise, seed, part.numbers):
            gradient = at_least_float32(backward(part.with_inputs(copies), layer, classes, arrange)[1])
            first, second, third = first + gradient, second + gradient**2, third + gradient**3
        weights = sum_positions(alpha(activation, second / samples, third / samples) * (first / samples).relu())
        return weighted(weights, activation).relu().to(dtype)

    return finished(subject.in_parts(work), subject, raw)
