"""``make bench``: one table of ratios, each measured in this run, against a peer or a floor.

Milliseconds are the best of a few runs and say something of this machine only; ratios travel better.
Random weights, since what the numbers are does not change what they cost. Where a peer is too slow to be
run for every channel, it is timed on a sample of them and multiplied.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from captum.attr import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop
from torchvision.utils import make_grid

import nbviz
from nbviz.core.trace import run
from nbviz.imaging.pixels import quantise

SAMPLE = 4


def best(work: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the quickest of some runs, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def row(what: str, ours: float, against: str, theirs: float, wanted: str = "") -> None:
    """One line: our time, the other's, and how many times ours goes into it."""
    ratio = theirs / ours
    print(f"{what:<58} {1000 * ours:>9.1f}  {against:<42} {1000 * theirs:>10.1f} {ratio:>8.2f}×  {wanted}", flush=True)


def positions(model: torch.nn.Module, images: torch.Tensor, layer: str) -> list[tuple[int, int, int]]:
    """Each channel with its strongest position, as Captum wants a neuron named."""
    maps = nbviz.feature_maps(model, images, layer)[0]
    places = maps.flatten(1).argmax(1).tolist()
    return [(k, *divmod(place, maps.shape[2])) for k, place in enumerate(places)]


def whole_layer(name: str, layer: str, images: torch.Tensor, wanted: str, first_wanted: str = "") -> None:
    """All channels' reconstructions against a loop over Captum's, and against batched full passes."""
    model = torchvision.models.get_model(name, weights=None).eval()
    neurons = positions(model, images, layer)
    peer = NeuronDeconvolution(model, model.get_submodule(layer))
    theirs = best(lambda: [peer.attribute(images, neuron) for neuron in neurons[:SAMPLE]], 1) / SAMPLE * len(neurons)
    ours = best(lambda: nbviz.deconvnet(model, images, layer), 2)
    row(f"{name} {layer}: all {len(neurons)} channels, deconvnet", ours, "looping Captum (sampled)", theirs, wanted)
    first = best(lambda: nbviz.deconvnet(model, images, layer, [n[0] for n in neurons[:16]]), 3)

    def both() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(model(x).max(), x)

    row(f"{name} {layer}: first 16 channels", first, "one full forward + backward", best(both), first_wanted)


def one_channel(name: str, layer: str, images: torch.Tensor) -> None:
    """Three rules of one channel against three Captum calls, and against the floor."""
    model = torchvision.models.get_model(name, weights=None).eval()
    neuron = positions(model, images, layer)[7]
    module = model.get_submodule(layer)
    peers = [kind(model, module) for kind in (NeuronGradient, NeuronDeconvolution, NeuronGuidedBackprop)]
    ours = best(lambda: nbviz.reconstruct(model, images, layer, [neuron[0]]))
    theirs = best(lambda: [peer.attribute(images, neuron) for peer in peers], 2)
    row(f"{name} {layer}: three rules of one channel", ours, "three Captum calls", theirs, "≥ 2×")

    def floor() -> None:
        trace = run(model, images, [layer], grad=True)
        start = trace.activations[layer]
        seed = torch.zeros_like(start)
        seed[(0, *neuron)] = 1
        for _ in range(3):
            torch.autograd.grad(start, trace.inputs, seed, retain_graph=True)

    row("", ours, "truncated forward + three full backward", best(floor), "≥ 0.91×")


def growth(images: torch.Tensor) -> None:
    """How the cost of reconstructions grows: with channels, picture size and depth."""
    model = torchvision.models.vgg16(weights=None).eval()
    base = best(lambda: nbviz.deconvnet(model, images, "features.16", list(range(16))), 2)
    print("\nHow it grows: deconvnet, VGG16, times 16 channels of features.16 at 224")
    for channels in (1, 64, 256):
        ours = best(lambda channels=channels: nbviz.deconvnet(model, images, "features.16", list(range(channels))), 1)
        print(f"  {channels:>4} channels {ours / base:>24.2f}")
    for size in (112, 448):
        other = torch.randn(1, 3, size, size)
        ours = best(lambda other=other: nbviz.deconvnet(model, other, "features.16", list(range(16))), 1)
        print(f"  {size:>4} × {size} pixels {ours / base:>20.2f}")
    for layer in ("features.4", "features.9", "features.23", "features.30"):
        ours = best(lambda layer=layer: nbviz.deconvnet(model, images, layer, list(range(16))), 1)
        print(f"  {layer:<24} {ours / base:>13.2f}")


def pixels(images: torch.Tensor) -> None:
    """Tiles for the page against make_grid."""
    maps = torch.randn(256, 56, 56).relu()
    ours = best(lambda: [a.numpy().tobytes() for a in quantise(maps)], 10)
    theirs = best(lambda: make_grid(maps[:, None], normalize=True, scale_each=True).mul(255).byte().numpy(), 3)
    row("256 maps of 56×56 to bytes, each on its own scale", ours, "make_grid and to uint8", theirs)


def slider(images: torch.Tensor) -> None:
    """Forward passes that a moved channel slider costs."""
    view = nbviz.Explorer(torchvision.models.vgg16(weights=None), images, layer="features.16", channel=0)
    view.finish()
    before = view.session.forward_passes
    for channel in range(1, 6):
        view.channel = channel
        view.finish()
    print(f"{'moving the channel slider: forward passes run':<58} {view.session.forward_passes - before:>9}")


def imports() -> None:
    """``import nbviz`` beyond ``import torch``."""
    code = "import time, torch; start = time.perf_counter(); import nbviz; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    print(f"{'import nbviz beyond import torch':<58} {1000 * min(times):>9.1f}  (at most 150)")


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")  # the peers'
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':<58} {'ours, ms':>9}  {'against':<42} {'theirs, ms':>10} {'ratio':>9}  wanted")
    whole_layer("vgg16", "features.16", images, "≥ 25×", "≥ 0.67×")
    whole_layer("resnet18", "layer2", images, "≥ 6×")
    one_channel("vgg16", "features.16", images)
    one_channel("resnet18", "layer2", images)
    slider(images)
    pixels(images)
    imports()
    growth(images)


if __name__ == "__main__":
    main()
