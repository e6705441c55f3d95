"""Small networks, pictures for one of them, (N, 3, 16, 16), and what counts the kernels that run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = ["0", "1", "2", "3", "4", "5"]


class Small(nn.Sequential):
    """Two convolutions and a matrix; in train mode, with statistics that a pass in train mode would change."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            *(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(384, classes)),
        )


class Weighted(nn.Module):
    """Takes pictures (N, channels, H, W) and a weight for each, and normalises the pictures by each other."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.fc = nn.Conv2d(channels, 8, 3), nn.Linear(8, 4)
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        scores: Tensor = self.fc((self.bn(self.c(x)).relu() * w[:, None, None, None]).amax((2, 3)))
        return scores


def pictures(count: int = 3) -> Tensor:
    """The same each time."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def labelled(count: int = 12, classes: int = 4) -> torch.utils.data.TensorDataset:
    """Pictures with labels."""
    return torch.utils.data.TensorDataset(pictures(count), torch.arange(count) % classes)


class Ran(TorchDispatchMode):
    """How often each of torch's kernels runs inside: ``"convolution"`` twice and ``"addmm"`` once for a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times[func.name().split("::")[1].split(".")[0]] += 1
        return func(*args, **(kwargs or {}))
