"""What happens in the kernel, against peers and floors. Random weights: what numbers are does not change their cost."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import torchvision
from captum.attr import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop
from pytorch_grad_cam import AblationCAM, GradCAM, GuidedBackpropReLUModel
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchCam
from torchvision.utils import make_grid

import nbviz
from nbviz.core.trace import Trace, run
from nbviz.imaging.encode import encode
from nbviz.imaging.pixels import quantise
from tests.benchmarks.table import best, count, in_turn, paired, row

SAMPLE = 4  # channels of a layer on which a slow peer is timed, to be multiplied


def network(name: str) -> nn.Module:
    """One of torchvision's with random weights, the same in each run."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def positions(model: nn.Module, images: Tensor, layer: str) -> list[tuple[int, int, int]]:
    """Each channel with its strongest position, as Captum wants a neuron named."""
    maps = nbviz.feature_maps(model, images, layer)[0]
    places = maps.flatten(1).argmax(1).tolist()
    return [(k, *divmod(place, maps.shape[2])) for k, place in enumerate(places)]


def forward_and_backward(model: nn.Module, images: Tensor) -> None:
    """One full pass each way."""
    x = images.clone().requires_grad_()
    torch.autograd.grad(model(x).max(), x)


def whole_layer(name: str, layer: str, images: Tensor, wanted: float, first_wanted: float | None = None) -> None:
    """All channels' reconstructions against a loop over Captum's, and the first of them against full passes."""
    model = network(name)
    neurons = positions(model, images, layer)
    peer = NeuronDeconvolution(model, model.get_submodule(layer))
    theirs = best(lambda: [peer.attribute(images, neuron) for neuron in neurons[:SAMPLE]], 1) / SAMPLE * len(neurons)
    ours = best(lambda: nbviz.deconvnet(model, images, layer), 2)
    row(f"{name} `{layer}`: all {len(neurons)} channels, deconvnet", ours, "looping Captum", theirs, wanted)
    first = best(lambda: nbviz.deconvnet(model, images, layer, list(range(16))))
    both = best(lambda: forward_and_backward(model, images))
    row(f"{name} `{layer}`: 16 channels, deconvnet", first, "one full forward + backward", both, first_wanted)


def one_channel(name: str, layer: str, images: Tensor) -> None:
    """Three rules of one channel against three Captum calls, and against the floor."""
    model = network(name)
    neuron = positions(model, images, layer)[7]
    module = model.get_submodule(layer)
    peers = [kind(model, module) for kind in (NeuronGradient, NeuronDeconvolution, NeuronGuidedBackprop)]
    ours = best(lambda: nbviz.reconstruct(model, images, layer, [neuron[0]]))
    theirs = best(lambda: [peer.attribute(images, neuron) for peer in peers], 2)
    row(f"{name} `{layer}`: three rules of one channel", ours, "three Captum calls", theirs, 2)

    def floor() -> None:
        trace = run(model, images, [layer], grad=True)
        start = trace.activations[layer]
        seed = torch.zeros_like(start)
        seed[(0, *neuron)] = 1
        for _ in range(3):
            torch.autograd.grad(start, trace.inputs, seed, retain_graph=True)

    row("the same", ours, "truncated forward + three full backward", best(floor), 1 / 1.1)


def grad_cam(trace: Trace, layer: str, target: int) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) from a trace."""
    activation = trace.activations[layer]
    (gradient,) = torch.autograd.grad(trace.output[0, target], activation, retain_graph=True)
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()


def classes(images: Tensor) -> None:
    """What a class answers to: guided backprop and Grad-CAM, from one trace where peers run the network again."""
    model, target, layer = network("resnet50"), 3, "layer4"
    ours = best(lambda: nbviz.guided_backprop(model, images, target=target))
    peer = GuidedBackpropReLUModel(network("resnet50"), device="cpu")
    theirs = best(lambda: peer(images, target_category=target))
    row("resnet50: guided backprop of a class", ours, "pytorch-grad-cam", theirs)

    trace = run(model, images, [layer], output=True, grad=True)
    cams = best(lambda: grad_cam(trace, layer, target))
    with GradCAM(model, [model.layer4]) as cam:
        row("resnet50 `layer4`: Grad-CAM of one more class", cams, "pytorch-grad-cam", best(lambda: cam(images, None)))
    with TorchCam(model, target_layer=layer) as other:
        theirs = best(lambda: other(target, model(images)))
    row("the same", cams, "torch-cam", theirs)


def to_the_layer(model: nn.Module, images: Tensor, layer: str, target: int) -> None:
    """A bare forward pass, and a backward pass that ends at the layer: what Grad-CAM cannot do without."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _given: Any, value: Tensor) -> Tensor:
        kept.append(value.requires_grad_())
        torch.set_grad_enabled(True)
        return value.clone()  # what follows may work in place

    handle = model.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        logits = model(images)
    handle.remove()
    torch.autograd.grad(logits[0, target], kept[0])


def class_maps(name: str, layer: str, images: Tensor) -> None:
    """Grad-CAM against its floor and a peer, and all maps of the gradient family against it alone."""
    model, target = network(name), 3
    with GradCAM(model, [model.get_submodule(layer)]) as peer:
        theirs = best(lambda: peer(images, [ClassifierOutputTarget(target)]))
    floor, one, every = in_turn(
        lambda: to_the_layer(model, images, layer, target),
        lambda: nbviz.grad_cam(model, images, layer, target),
        lambda: nbviz.class_activation(model, images, layer, target),
    )
    ours, bare = paired(one, floor)
    row(f"{name} `{layer}`: Grad-CAM", ours, "a bare forward + backward to the layer", bare, 1 / 1.1)
    ours, alone = paired(every, one)
    row(f"{name} `{layer}`: five gradient maps", ours, "Grad-CAM alone", alone, 1 / 1.3)
    row(f"{name} `{layer}`: Grad-CAM", min(one), "pytorch-grad-cam", theirs, 2)


class Few(AblationLayer):
    """Ablates one batch of channels, whose time is to be multiplied: for all of VGG16's 512, 352 s were measured."""

    batch = 32

    def activations_to_be_ablated(self, _activations: Any, _ratio: float = 1.0) -> Any:
        self.indices = np.arange(self.batch)
        return self.indices


def ablation_cam(images: Tensor) -> None:
    """Ablation-CAM of all 512 channels before VGG16's classifier; the peer runs the whole network for each."""
    model, layer, target = network("vgg16"), "features.30", 3
    ours = best(lambda: nbviz.cams.ablation_cam(model, images, layer, target), 1)
    start = time.perf_counter()
    with AblationCAM(model, [model.get_submodule(layer)], ablation_layer=Few(), batch_size=Few.batch) as cam:
        cam(images, [ClassifierOutputTarget(target)])
    theirs = 1000 * (time.perf_counter() - start) * 512 / Few.batch
    row(f"vgg16 `{layer}`: Ablation-CAM", ours, f"pytorch-grad-cam ({Few.batch} of 512 channels timed)", theirs, 10)


def pixels() -> None:
    """Tiles for the page against make_grid, and how many bytes they are."""
    maps = torch.randn(256, 56, 56).relu()
    ours = best(lambda: [encode(quantise(maps)[0].numpy())], 5)
    theirs = best(lambda: make_grid(maps[:, None], normalize=True, scale_each=True).mul(255).byte().numpy(), 3)
    row("256 maps of 56×56 to bytes for the page, deflated", ours, "`make_grid`, to uint8", theirs)


def slider(images: Tensor) -> None:
    """Forward passes that a moved channel slider costs."""
    view = nbviz.Explorer(network("vgg16"), images, layer="features.16", channel=0)
    view.finish()
    before = view.session.forward_passes
    for channel in range(1, 6):
        view.channel = channel
        view.finish()
    count("moving the channel slider: forward passes", view.session.forward_passes - before, 0)


def imports() -> None:
    """``import nbviz`` beyond ``import torch``."""
    code = "import time, torch; start = time.perf_counter(); import nbviz; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    count("`import nbviz` beyond `import torch`", 1000 * min(times), 150, " ms")


def on_a_gpu(images: Tensor) -> None:
    """A layer change on VGG16, what it costs beyond the forward pass, and the copies that are waited for."""
    model, images = network("vgg16").cuda(), images.cuda()
    view = nbviz.FeatureMaps(model, images, layer="features.16")
    view.finish()
    session, layers = view.session, ("features.16", "features.15")

    def look(layer: str) -> None:
        session.forget()
        session.look(0, layer, "l2", 64)

    def floor(layer: str) -> None:
        run(model, images, [layer])
        torch.cuda.synchronize()

    for layer in layers:
        ours, theirs = best(lambda: look(layer), 20), best(lambda: floor(layer), 20)  # noqa: B023
        row(
            f"vgg16 `{layer}` on {torch.cuda.get_device_name()}: layer change",
            ours,
            "its forward pass",
            theirs,
            1 / 1.2,
        )


def growth(images: Tensor) -> None:
    """How the cost of reconstructions grows: with channels, picture size, batch and depth."""
    model, layer = network("vgg16"), "features.16"
    few = list(range(16))

    def cost(images: Tensor = images, layer: str = layer, channels: list[int] = few) -> float:
        return best(lambda: nbviz.deconvnet(model, images, layer, channels), 1)

    base = cost()
    print(f"\nHow it grows: deconvnet on vgg16; 1 is 16 channels of `{layer}` at 224×224, {base:.0f} ms\n")
    cases: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "channels": [(str(n), {"channels": list(range(n))}) for n in (1, 16, 64, 256)],
        "pixels a side": [(str(n), {"images": torch.randn(1, 3, n, n)}) for n in (112, 224, 448)],
        "pictures": [(str(n), {"images": torch.randn(n, 3, 224, 224)}) for n in (1, 2, 4)],
        "layer": [(f"`features.{n}`", {"layer": f"features.{n}"}) for n in (4, 9, 16, 23, 30)],
    }
    print("| | times |\n|---|---|")
    for what, ways in cases.items():
        found = ", ".join(f"{name}: {cost(**given) / base:.2f}" for name, given in ways)
        print(f"| {what} | {found} |", flush=True)


def rows(images: Tensor) -> None:
    """All rows of the kernel."""
    whole_layer("vgg16", "features.16", images, 25, 1 / 1.5)
    whole_layer("resnet18", "layer2", images, 6)
    one_channel("vgg16", "features.16", images)
    one_channel("resnet18", "layer2", images)
    classes(images)
    class_maps("resnet50", "layer4", images)
    class_maps("vgg16", "features.29", images)
    ablation_cam(images)
    slider(images)
    pixels()
    imports()
    if torch.cuda.is_available():
        on_a_gpu(images)
