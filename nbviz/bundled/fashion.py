"""The bundled network: plain 3x3 convolutions, ReLU, max-pooling and a global-average-pool head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nbviz.pictures.preprocess import Preprocess, to_float32

#: The names of the ten outputs, in order, as given by Fashion-MNIST's authors.
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class FashionNet(nn.Module):
    """A VGG-like network for 28x28 grey pictures: (N, 1, 28, 28) in [0, 1] to (N, 10) logits.

    Parameters
    ----------
    batch_norm
        Train with batch normalisation after every convolution. In the bundled weights it is folded
        into the convolutions (see ``train_fashion.py``), so that the network consists of
        convolution, ReLU and max-pooling alone, as in the deconvnet paper.

    Examples
    --------
    >>> import torch
    >>> FashionNet().eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    #: Set when the weights are loaded.
    nbviz_preprocess: Preprocess

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        width_in = 1
        for width, pool in ((32, False), (32, True), (64, False), (64, True), (128, False), (128, False)):
            modules.append(nn.Conv2d(width_in, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                modules.append(nn.BatchNorm2d(width))
            modules.append(nn.ReLU())
            if pool:
                modules.append(nn.MaxPool2d(2))
            width_in = width
        self.features = nn.Sequential(*modules)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width_in, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of grey pictures (N, 1, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(images)), 1))
        return logits


def load() -> FashionNet:
    """The network with its weights and its preprocessing."""
    from safetensors.torch import load_file
    from torchvision import transforms

    with torch.device("meta"):  # without random numbers for weights that are replaced anyway
        model = FashionNet()
    model.load_state_dict(load_file(Path(__file__).with_name("fashion.safetensors")), assign=True)
    transform = transforms.Compose([transforms.Resize((28, 28)), to_float32])
    model.nbviz_preprocess = Preprocess(transform, "L", (0.0,), (1.0,), CLASSES, "its own")
    return model.eval()
