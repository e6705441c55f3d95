"""Log what a network sees to TensorBoard during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_maps
from nbviz.core.backward import RULES
from nbviz.core.checks import check_choice, check_indices, check_real, check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import line, shown
from nbviz.core.types import Channels, Images, InputOptions
from nbviz.core.weights import steady
from nbviz.imaging.pixels import centre, grid, overlay
from nbviz.methods.feature_maps import fuse
from nbviz.methods.kernels import convolutions, kernels
from nbviz.methods.reconstruct import project
from nbviz.methods.subject import Subject, evenly_spaced

_MOST = 64  # channels in a grid
_LAYERS = 3  # where none are given


@documented
@steady
def log(
    writer: Any,
    step: int,
    model: nn.Module,
    images: Images,
    layers: Sequence[str] | None = None,
    channels: Channels = (0, 1, 2, 3),
    *,
    rule: str = "deconvnet",
    tag: str = "nbviz",
    **options: Unpack[InputOptions],
) -> None:
    """Log what a network sees in pictures to TensorBoard.

    For each layer, it writes a grid of the first picture's feature maps, ``<tag>/<layer>/maps``; all channels fused,
    over each picture, ``/fused``; and what the chosen channels respond to in each picture, ``/reconstructions``, one
    row per channel. It also writes the kernels of the first convolution, ``<tag>/kernels``, if it takes grey or colour
    pictures. The channels are the same each time, so that their change can be followed.

    It costs one forward pass as far as the last layer, and a backward pass for each channel: call it once in a while
    from a training loop, with a few pictures. The model is left unchanged, including gradients and train mode.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``, tensorboardX's, or another object with ``add_image``.
    step
        The number of the training step.
    images
        A few pictures; see :func:`nbviz.load`.
    layers
        Names of layers with feature maps. None takes three, evenly spaced, whose maps have more than one pixel.
    channels
        The channels whose reconstructions are written, as far as a layer has them; empty for none.
    tag
        The prefix of all names in TensorBoard.

    Raises
    ------
    TypeError
        When ``writer`` has no ``add_image``. When ``layers`` is not a list. When ``tag`` is not a string.
    ValueError
        When ``images`` has signals or volumes. When one of ``layers`` gives no feature maps.

    Examples
    --------
    >>> import nbviz
    >>> class Writer:
    ...     def add_image(self, tag, picture, step):
    ...         print(tag, tuple(picture.shape), step)
    >>> log(Writer(), 7, nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None], ["features.8"])
    nbviz/kernels (3, 17, 33) 7
    nbviz/features.8/maps (3, 121, 121) 7
    nbviz/features.8/fused (3, 32, 62) 7
    nbviz/features.8/reconstructions (3, 122, 62) 7
    """
    try:
        add_image = writer.add_image
    except Exception:  # an object of the user's can raise anything
        add_image = None
    if not callable(add_image):
        raise TypeError(f"writer is {shown(writer)}; expected a SummaryWriter, or anything with its add_image")
    if not isinstance(tag, str):
        raise TypeError(f"tag is {shown(tag)}; expected a string")
    step, rule = check_whole("step", step, 0), check_choice("rule", rule, RULES)
    subject = Subject.of(model, images, **options)
    subject.require_pictures()
    names = _spread_layers(subject) if layers is None else subject.layer_names(layers)
    chosen = check_indices("channel", channels, 1 << 30)
    trace = subject.run(names, grad=bool(chosen))
    for name in names:  # before anything is written
        check_real(check_maps(trace, name), f"layer {shown(name)}")

    def write(name: str, picture: Tensor) -> None:
        add_image(line(f"{tag}/{name}", 1000), picture.cpu(), step)

    first = next(iter(convolutions(subject.model)), None)
    if first is not None:
        weights = kernels(subject.model, first)
        if weights.ndim == 4 and weights.shape[1] in (1, 3):
            weights = torch.nan_to_num(weights[:_MOST].float(), 0.0, 0.0, 0.0)
            write("kernels", _tiles(centre(weights, weights.abs().amax((1, 2, 3))), 8, 1))
    pictures = subject.pictures.display()
    for name in names:
        maps = check_maps(trace, name)
        first_maps = torch.nan_to_num(maps.detach()[0, :_MOST].float())
        write(f"{name}/maps", grid(first_maps, 8, 1, scale_each=True))
        write(f"{name}/fused", _tiles(overlay(pictures, fuse(maps.detach()).float().cpu()), len(subject), 2))
        existing = [channel for channel in chosen if channel < maps.shape[1]]
        if existing:
            signals = project(trace, name, existing, rule)[0].transpose(0, 1)
            signals = signals if signals.shape[2] in (1, 3) else signals.mean(2, keepdim=True)
            write(f"{name}/reconstructions", _tiles(centre(signals.flatten(0, 1)), len(subject), 2))


def _tiles(pictures: Tensor, nrow: int, padding: int) -> Tensor:
    return grid(pictures, nrow, padding, normalize=False)


def _spread_layers(subject: Subject) -> list[str]:
    """Evenly spaced layers whose maps have more than one pixel."""
    layers = [layer for layer in subject.layers() if layer.has_maps and layer.leaf and math.prod(layer.shape[1:]) > 1]
    if not layers:
        raise ValueError(
            f"no layer of {type(subject.model).__name__} gives feature maps (N, C, H, W) of several pixels; "
            "expected one that does"
        )
    return [layer.name for layer in evenly_spaced(layers, _LAYERS)]
