"""``make bench``: one table of ratios, each measured in this run, against a peer or a floor.

Milliseconds say something of this machine only; ratios travel better. Each is the best of a few runs in the kernel,
and the median of a few in the page.
"""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path

import torch
import torchvision

from tests.benchmarks import kernel, page, scans, table


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")  # the peers'
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the notebooks' kernels
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    print(f"{processor()}, {torch.get_num_threads()} threads, {versions}\n")
    table.heading()
    page.rows()
    kernel.rows(images)
    scans.rows()
    kernel.growth(images)
    scans.imagenet()


def processor() -> str:
    """What this machine computes with."""
    known = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in known.read_text().splitlines() if line.startswith("model name")]
        if known.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
