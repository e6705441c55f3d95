"""The layers of a model in the order in which they run."""

from __future__ import annotations

from typing import Any

from torch import nn

from nbviz.core.layers import Layers
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject


@steady
def layers(model: nn.Module, images: Any, *, preprocess: Any = None, inputs: Any = None) -> Layers:
    """List the layers of a model in execution order, with type, output shape, stride and receptive field.

    Parameters
    ----------
    images
        A picture that fits the model (of several, the first is taken); see :func:`nbviz.load`.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W); found from the model if None.
    inputs
        For a model that is called with more than the pictures: a callable from their batch (N, C, H, W) to the
        model's argument, a tuple of its arguments, or a dict of its keyword arguments.

    Returns
    -------
    Layers
        A list of :class:`nbviz.core.layers.Layer` that prints as a table: every module whose output is
        a tensor, in the order in which they finish. A module that runs more than once is listed once
        for each call, as ``name``, ``name:1``, … Shapes are for one picture, (C, H, W); strides and
        receptive fields are in pixels of the model's input, rows first.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        For a picture that cannot be read or does not fit, a model that fails, is scripted or exported.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> [(layer.name, layer.shape, layer.receptive_field) for layer in layers(net, torch.rand(1, 10, 10))]
    [('0', (4, 8, 8), (3, 3)), ('1', (4, 8, 8), (3, 3)), ('2', (4, 4, 4), (4, 4))]
    """
    return Subject.of(model, images, preprocess, inputs, values=False).layers()
