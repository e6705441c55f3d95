"""Passes over a dataset: against a bare loop, one worker against two, memory, and what ImageNet would cost."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset

import nbviz
from nbviz.pictures.load import Reader
from nbviz.results import ScanResult
from nbviz.scanning.dataset import Inputs
from nbviz.scanning.jobs import Job
from nbviz.scanning.statistic import Batch, Statistic
from nbviz.scanning.statistics import Accuracy, Correlation, Histogram, Moments, Sparsity, TopK
from tests.benchmarks.kernel import network
from tests.benchmarks.table import count, row

LAYERS = ("features.3", "features.8", "features.12")
PICTURES = 20_000
#: Networks, a layer in their last third, and how many times faster than the naive loop.
ABLATED = (
    ("vgg16", "features.30", 10),
    ("resnet18", "layer4.0.bn1", 2),
    ("densenet121", "features.denseblock4.denselayer4.conv2", 2),
)


def repeated(pictures: int) -> ConcatDataset[Any]:
    """The bundled pictures, so many."""
    images, labels = nbviz.bundled.fashion_test()
    return ConcatDataset([TensorDataset(images[:, None], labels)] * (pictures // 1000))


def top() -> dict[str, Statistic]:
    """The nine strongest pictures of each channel of three layers."""
    return {layer: TopK(layer) for layer in LAYERS}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def against_a_bare_loop(net: nn.Module) -> None:
    """In turns, since a machine's speed changes within minutes."""
    source = Inputs(repeated(PICTURES // 4), Reader.of(net), 32)

    def bare() -> None:
        with torch.no_grad():
            for loaded in source.load(range(source.batches or 0)):
                net(loaded.inputs)

    pairs = [(seconds(lambda: scan(net, PICTURES // 4)), seconds(bare)) for _ in range(5)]
    ours, theirs = (1000 * sum(sorted(side)[:4]) for side in zip(*pairs, strict=True))
    what = f"scan of {PICTURES:,} pictures for the 9 strongest of all channels of 3 layers"
    row(what, ours, "bare forward loop over the same loader", theirs, 1 / 1.15)


def scan(net: nn.Module, pictures: int = PICTURES, **options: Any) -> ScanResult:
    """The scan that is measured."""
    return nbviz.scan(net, repeated(pictures), top(), progress=False, **options)


def two_workers_against_one(net: nn.Module) -> None:
    """Each has one thread, and was there before."""
    found = []
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(ready, [1.0] * workers))
            found.append(1000 * seconds(lambda pool=pool: scan(net, executor=pool)))
    row("the same, two workers of one thread each", found[1], "one worker", found[0], 1.5)


def ready(wait: float) -> None:
    """Long enough that each worker gets one."""
    time.sleep(wait)


def memory() -> None:
    """Most memory of a process that scans 20,000 pictures, over that of one which scans 2,000."""
    script = (
        "import resource, sys; from tests.benchmarks.scans import *;"
        "scan(nbviz.bundled.load('fashion'), int(sys.argv[1]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    few, many = (
        int(subprocess.run([sys.executable, "-c", script, str(n)], capture_output=True, check=True, text=True).stdout)
        for n in (2000, PICTURES)
    )
    count("most memory of the scan of 20,000 pictures over that of 2,000", many / few, 1.05)


def ablation(name: str, layer: str, wanted: float) -> None:
    """All channels of a late layer, switched off one by one, against the naive loop on a sample of them."""
    net = network(name)
    images, module = torch.randn(1, 3, 224, 224), dict(net.named_modules())[layer]
    channels = nbviz.feature_maps(net, images, layer).shape[1]
    dataset = TensorDataset(images, torch.tensor([0]))
    ours = 1000 * seconds(lambda: nbviz.ablate(net, dataset, layer, points=0, progress=False))

    def naive() -> None:
        for channel in range(_SAMPLE):
            off = torch.arange(channels) == channel
            handle = module.register_forward_hook(lambda _m, _a, maps, off=off: maps * ~off[:, None, None])
            with torch.no_grad():
                net(images)
            handle.remove()

    theirs = 1000 * seconds(naive) / _SAMPLE * channels
    what = f"{name} `{layer}`: each of {channels} channels switched off"
    row(what, ours, "a hook and the whole network", theirs, wanted)


_SAMPLE = 4  # channels


def imagenet() -> None:
    """What a picture of ImageNet's usual size costs on one thread, and what crosses between machines."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (32, 24, 3), np.uint8)).resize((375, 500)).resize((500, 375))
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=90)
    net = network("resnet50")
    reader = Reader.of(net)
    data = file.getvalue()

    def read() -> None:
        for _ in range(32):
            list(reader.read(Image.open(io.BytesIO(data)), 0))

    x = torch.randn(32, 3, 224, 224)
    with torch.no_grad():
        decode, forward = (min(seconds(work) for _ in range(2)) / 32 for work in (read, lambda: net(x)))
    print(f"\nresnet50, one thread: {1000 * decode:.1f} ms to read a picture, {1000 * forward:.0f} ms to run it")
    job = Job(net, Inputs([], reader, 32), {}, torch.device("cpu"))
    print(f"the model on its way to a worker, once: {len(pickle.dumps(job)) / 1e6:.0f} MB")
    maps = torch.rand(32, 1024, 14, 14)
    batch = Batch(0, torch.arange(32), x, torch.zeros(32, dtype=torch.int64), {"l": maps}, torch.rand(32, 1000))
    kinds: dict[str, Statistic] = {
        "TopK": TopK("l"),
        "Moments": Moments("l"),
        "Sparsity": Sparsity("l"),
        "Histogram": Histogram("l"),
        "Accuracy": Accuracy(),
        "Correlation": Correlation("l"),
    }
    print(
        "\n| statistic of a layer of 1,024 channels, 14×14 | ms per picture | bytes back from a part |\n|---|--:|--:|"
    )
    for name, one in kinds.items():
        each = min(seconds(lambda one=one: one.update(one.measure(batch))) for _ in range(3)) / 32
        fresh = type(one)("l") if one.layers else type(one)()
        fresh.update(fresh.measure(batch))
        print(f"| {name} | {1000 * each:.2f} | {len(pickle.dumps(vars(fresh))):,} |")


def rows() -> None:
    """All rows."""
    net = nbviz.bundled.load("fashion")
    scan(net, 1000)
    against_a_bare_loop(net)
    two_workers_against_one(net)
    memory()
    for name, layer, wanted in ABLATED:
        ablation(name, layer, wanted)


if __name__ == "__main__":
    rows()
    imagenet()
