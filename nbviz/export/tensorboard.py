"""What a network sees, to TensorBoard, from inside a training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_maps
from nbviz.core.backward import RULES
from nbviz.core.checks import check_choice, check_indices, check_real, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.weights import steady
from nbviz.imaging.pixels import centre, grid, overlay
from nbviz.methods.feature_maps import fuse
from nbviz.methods.kernels import convolutions, kernels
from nbviz.methods.reconstruct import project
from nbviz.methods.subject import Subject

_MOST = 64  # channels of a grid
_LAYERS = 3  # where none are named


@steady
def log(
    writer: Any,
    step: int,
    model: nn.Module,
    images: Any,
    layers: Sequence[str] | None = None,
    channels: Sequence[int] | int = (0, 1, 2, 3),
    *,
    rule: str = "deconvnet",
    tag: str = "nbviz",
    preprocess: Any = None,
    inputs: Any = None,
) -> None:
    """Write what a network sees in some pictures to TensorBoard.

    For each layer: a grid of the first picture's feature maps, ``<tag>/<layer>/maps``; all channels fused over each
    picture, ``/fused``; and what some channels answer to in each picture, ``/reconstructions``, a row for each
    channel. And the kernels of the first convolution, ``<tag>/kernels``, where it takes grey or colour. The channels
    are the same each time, so that one sees them change.

    It costs one forward pass through as much of the network as the layers need, and a backward pass for each channel:
    call it once in a while from a training loop, with a few pictures. The model is left as it was, gradients and
    train mode too.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``, tensorboardX's, or anything else with its ``add_image``.
    step
        The number of the training step.
    model
        Any PyTorch model that takes pictures.
    images
        A few pictures; see :func:`nbviz.load`.
    layers
        Names of layers with feature maps; None takes three, evenly spread, whose maps have more than one pixel.
    channels
        Whose reconstructions are written, of each layer as far as it has them; empty for none.
    rule
        Of the reconstructions: ``"deconvnet"``, ``"guided"`` or ``"gradient"``.
    tag
        What the names begin with.

    Raises
    ------
    TypeError
        For a writer without ``add_image``, or layers that are no list.
    ValueError
        For an unknown layer, or a model of signals or volumes.

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
    except Exception:  # of an object's own making as well
        add_image = None
    if not callable(add_image):
        raise TypeError(f"writer is {shown(writer)}; expected a SummaryWriter, or anything with its add_image")
    if not isinstance(tag, str):
        raise TypeError(f"tag is {shown(tag)}; expected a string")
    step, rule = check_whole("step", step, 0), check_choice("rule", rule, RULES)
    subject = Subject.of(model, images, preprocess, inputs)
    subject.require_pictures()
    names = _spread(subject) if layers is None else subject.layer_names(layers)
    chosen = check_indices("channel", channels, 1 << 30)
    trace = subject.run(names, grad=bool(chosen))
    for name in names:  # before anything is written
        check_real(check_maps(trace, name), f"layer {shown(name)}")

    def write(what: str, picture: Tensor) -> None:
        add_image(line(f"{tag}/{what}", 1000), picture.cpu(), step)

    first = next(iter(convolutions(subject.model)), None)
    if first is not None:
        weights = kernels(subject.model, first)
        if weights.ndim == 4 and weights.shape[1] in (1, 3):
            write("kernels", _tiles(centre(weights[:_MOST]), 8, 1))
    shown_pictures = subject.pictures.display()
    for name in names:
        maps = trace.activations[name]
        alone = maps.detach()[0, :_MOST].float()
        write(f"{name}/maps", grid(torch.nan_to_num(alone), 8, 1, scale_each=True))
        write(f"{name}/fused", _tiles(overlay(shown_pictures, fuse(maps.detach()).float().cpu()), len(subject), 2))
        own = [channel for channel in chosen if channel < maps.shape[1]]
        if own:
            signals = project(trace, name, own, rule)[0].transpose(0, 1)
            signals = signals if signals.shape[2] in (1, 3) else signals.mean(2, keepdim=True)
            write(f"{name}/reconstructions", _tiles(centre(signals.flatten(0, 1)), len(subject), 2))


def _tiles(pictures: Tensor, nrow: int, padding: int) -> Tensor:
    return grid(pictures, nrow, padding, normalize=False)


def _spread(subject: Subject) -> list[str]:
    maps = [
        layer.name for layer in subject.layers() if layer.has_maps and layer.leaf and math.prod(layer.shape[1:]) > 1
    ]
    if not maps:
        raise ValueError(
            f"no layer of {type(subject.model).__name__} gives feature maps (N, C, H, W) of several pixels; "
            "expected one that does"
        )
    places = torch.linspace(0, len(maps) - 1, min(_LAYERS, len(maps)), dtype=torch.float32).round().long().tolist()
    return [maps[place] for place in places]
