"""The layers of a model in the order in which they run."""

from __future__ import annotations

from torch import nn

from nbviz.core.layers import Layers
from nbviz.core.types import Images, ModelInputs, Preprocessing
from nbviz.methods.subject import Subject, as_method


@as_method()
def layers(
    model: nn.Module, images: Images, *, preprocess: Preprocessing | None = None, inputs: ModelInputs | None = None
) -> Layers:
    """List the layers of a model in execution order, with type, output shape, stride and receptive field.

    Parameters
    ----------
    images
        A picture that fits the model; of several, the first is used. See :func:`nbviz.load`.

    Returns
    -------
    Layers
        A list of :class:`nbviz.core.layers.Layer` that prints as a table: every module whose output is a tensor, in
        the order in which they finish. A module that runs more than once is listed once for each call, as ``name``,
        ``name:1``, … Shapes are for one picture, (C, H, W); strides and receptive fields are in pixels of the model's
        input, rows first.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> [(layer.name, layer.shape, layer.receptive_field) for layer in layers(net, torch.rand(1, 10, 10))]
    [('0', (4, 8, 8), (3, 3)), ('1', (4, 8, 8), (3, 3)), ('2', (4, 4, 4), (4, 4))]
    """
    return Subject.of(model, images, preprocess, inputs, values=False).layers()
