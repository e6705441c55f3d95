"""Train the bundled network and cut the bundled pictures: ``python -m nbviz.bundled.train_fashion DATA``.

DATA is the folder with Fashion-MNIST's four ``*-ubyte.gz`` files (Debian's package
``dataset-fashion-mnist`` puts them in /usr/share/datasets/fashion-mnist). It is seeded: the same torch
on the same kind of processor gives the same weights. It takes about 20 minutes on two cores with
bfloat16 instructions.

The last 5,000 training pictures are held out for choices; the 10,000 test pictures are used once, at
the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbviz.bundled.fashion import FashionNet

HERE = Path(__file__).parent
HELD_OUT = 5000


def read_idx(path: Path) -> Tensor:
    """The array in a gzipped IDX file of unsigned bytes."""
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).copy()).reshape(shape)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch (N, 1, 28, 28), shift each picture by up to 2 pixels."""
    n = len(images)
    flip = torch.rand(n, generator=generator, dtype=torch.float32) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    dy, dx = torch.randint(0, 5, (2, n, 1), generator=generator)
    padded = F.pad(images, (2, 2, 2, 2))[:, 0]
    rows, columns = dy + torch.arange(28), dx + torch.arange(28)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of pictures whose strongest logit is their label."""
    model.eval()
    right = [model(images[i : i + 500]).argmax(1) == labels[i : i + 500] for i in range(0, len(images), 500)]
    return float(torch.cat(right).double().mean())


def fold(model: FashionNet) -> FashionNet:
    """The same function with each batch normalisation folded into the convolution before it."""
    model.eval()
    plain = FashionNet().eval()
    modules = list(model.features)
    fused = [
        fuse_conv_bn_eval(a, b)
        for a, b in pairwise(modules)
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)
    ]
    targets = [m for m in plain.features if isinstance(m, nn.Conv2d)]
    for target, source in zip(targets, fused, strict=True):
        target.load_state_dict(source.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    return plain


def main() -> None:
    """Train, fold, measure on the test pictures, write the weights and the pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder with Fashion-MNIST's gzipped IDX files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = read_idx(arguments.data / "train-images-idx3-ubyte.gz")[:, None].float() / 255
    labels = read_idx(arguments.data / "train-labels-idx1-ubyte.gz").long()
    held_images, held_labels = images[-HELD_OUT:], labels[-HELD_OUT:]
    images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]

    model = FashionNet(batch_norm=True).to(memory_format=torch.channels_last)
    batch, steps = 128, arguments.epochs * (len(images) // 128)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps, pct_start=0.2)
    for epoch in range(arguments.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for indices in torch.split(order, batch)[: len(images) // batch]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(images[indices], generator))
            loss = F.cross_entropy(logits.float(), labels[indices], label_smoothing=0.05)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        held = accuracy(model, held_images, held_labels)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, held-out accuracy {held:.4f}", flush=True)

    plain = fold(model)
    test_images = read_idx(arguments.data / "t10k-images-idx3-ubyte.gz")
    test_labels = read_idx(arguments.data / "t10k-labels-idx1-ubyte.gz").long()
    test = accuracy(plain, test_images[:, None].float() / 255, test_labels)
    print(f"test accuracy {test:.4f}")
    arguments.out.mkdir(exist_ok=True, parents=True)
    state = {name: value.contiguous() for name, value in plain.state_dict().items()}
    save_file(state, arguments.out / "fashion.safetensors", metadata={"test_accuracy": json.dumps(test)})
    np.savez_compressed(
        arguments.out / "fashion_test.npz",
        images=test_images[:1000].numpy(),
        labels=test_labels[:1000].numpy().astype(np.uint8),
    )


if __name__ == "__main__":
    main()
