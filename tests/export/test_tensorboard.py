"""What a training loop writes, read back from TensorBoard's own file, against torchvision's grids."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.utils import make_grid

import nbviz

Images = dict[str, dict[int, np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def fashion() -> nn.Module:
    return nbviz.bundled.load("fashion")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return nbviz.bundled.fashion_test()[0][:3, None]


class Writer:
    """As tensorboardX's, which is another class with the same method."""

    def __init__(self) -> None:
        self.images: Images = {}

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int | None = None, dataformats: str = "CHW") -> None:
        assert isinstance(img_tensor, Tensor)
        assert img_tensor.device.type == "cpu"
        assert dataformats == "CHW"
        assert type(global_step) is int
        assert global_step not in self.images.get(tag, {})
        self.images.setdefault(tag, {})[global_step] = img_tensor.numpy()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Images]:
    """What ``nbviz.log`` with these arguments, for each step, leaves in an event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    def write(steps: list[int], *args: Any, **options: Any) -> Images:
        with SummaryWriter(tmp_path) as writer:
            for step in steps:
                nbviz.log(writer, step, *args, **options)
        events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
        found: Images = {}
        for tag in events.Tags()["images"]:
            for event in events.Images(tag):
                pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                assert pixels.shape == (event.height, event.width, 3)
                found.setdefault(tag, {})[event.step] = pixels
        return found

    return write


def centred(signed: Tensor, beyond: int = 200) -> Tensor:
    """Each (C, H, W) with 0 in grey; of its values that are not zero, one in so many may lie beyond black and white."""
    result = []
    for values in signed.numpy():
        sizes = np.sort(np.abs(values[values != 0]))
        scale = sizes[-1 - len(sizes) // beyond] if len(sizes) else 1
        result.append(np.round(128 + 127 * (values / scale).clip(-1, 1)).astype(np.uint8))
    return torch.from_numpy(np.stack(result))


def tiled(tiles: Tensor, nrow: int, padding: int) -> np.ndarray[Any, Any]:
    return make_grid(tiles, nrow, padding).permute(1, 2, 0).numpy()


def test_the_file_holds_what_nbviz_gives(fashion: nn.Module, pictures: Tensor, written: Callable[..., Images]) -> None:
    layer = "features.8"
    found = written([0, 40], fashion, pictures, [layer, "features.3"], (5, 0))
    names = [f"{name}/{what}" for name in (layer, "features.3") for what in ("maps", "fused", "reconstructions")]
    assert set(found) == {"nbviz/kernels", *(f"nbviz/{name}" for name in names)}
    assert all(list(steps) == [0, 40] for steps in found.values())
    assert all(np.array_equal(steps[0], steps[40]) for steps in found.values())
    got = {tag.removeprefix("nbviz/"): steps[0] for tag, steps in found.items()}

    kernels = tiled(centred(fashion.get_submodule("features.0").weight.detach()), 8, 1)
    np.testing.assert_array_equal(got["kernels"], kernels)

    maps = nbviz.feature_maps(fashion, pictures, layer)
    stretched = [(one - one.min()) / (one.max() - one.min()).clamp(min=1e-5) for one in maps[0]]
    np.testing.assert_allclose(got[f"{layer}/maps"], tiled(255 * torch.stack(stretched)[:, None], 8, 1), atol=1)

    grey = pictures.expand(-1, 3, -1, -1)
    overlaid = nbviz.overlay(grey, maps.mean(1))
    np.testing.assert_array_equal(got[f"{layer}/fused"], tiled(overlaid, 3, 2))

    signals = nbviz.deconvnet(fashion, pictures, layer, [5, 0])
    rows = torch.cat([centred(signals[:, 0]), centred(signals[:, 1])])  # a row for each channel
    np.testing.assert_array_equal(got[f"{layer}/reconstructions"], tiled(rows, 3, 2))


def test_one_sees_them_change(fashion: nn.Module, pictures: Tensor) -> None:
    writer, model = Writer(), nbviz.bundled.load("fashion").train()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for step in (0, 1):
        nbviz.log(writer, step, model, pictures, ["features.5"])
        optimiser.zero_grad()
        model(pictures / 255).logsumexp(1).sum().backward()
        optimiser.step()
    assert all(not np.array_equal(steps[0], steps[1]) for steps in writer.images.values())
    np.testing.assert_array_equal(
        writer.images["nbviz/features.5/maps"][0], read(fashion, pictures, ["features.5"])["nbviz/features.5/maps"]
    )


def read(*args: Any, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    writer = Writer()
    nbviz.log(writer, 0, *args, **options)
    return {tag: steps[0] for tag, steps in writer.images.items()}


def test_any_writer_with_add_image_gets_the_same(
    fashion: nn.Module, pictures: Tensor, written: Callable[..., Images]
) -> None:
    found, other = written([3], fashion, pictures, ["features.13"]), read(fashion, pictures, ["features.13"])
    assert set(found) == set(other)
    for tag, steps in found.items():
        pixels = other[tag].transpose(1, 2, 0)
        as_bytes = pixels if pixels.dtype == np.uint8 else (pixels * 255).clip(0, 255).astype(np.uint8)
        np.testing.assert_array_equal(steps[3], as_bytes)


@pytest.mark.parametrize("rule", ["gradient", "guided"])
def test_other_rules(rule: str, fashion: nn.Module, pictures: Tensor) -> None:
    found = read(fashion, pictures, ["features.6"], [7], rule=rule)["nbviz/features.6/reconstructions"]
    signals = nbviz.reconstruct(fashion, pictures, "features.6", [7], rules=[rule])[rule]
    np.testing.assert_array_equal(found.transpose(1, 2, 0), tiled(centred(signals[:, 0]), 3, 2))


def test_a_resnet_in_colour_while_it_is_trained(snapshot: Any) -> None:
    """Gradients, train mode, statistics of BatchNorm and random numbers stay as they are."""
    model = models.resnet18(num_classes=5).train()
    x = torch.rand(2, 3, 64, 48)
    loss = model(torch.rand(4, 3, 64, 48)).sum()
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    with snapshot(model):
        found = read(model, x, tag="a/b")
    loss.backward()  # the step goes on
    layers = sorted({tag.removeprefix("a/b/").rpartition("/")[0] for tag in found} - {""})
    listed = [layer for layer in nbviz.layers(model, x) if layer.leaf and layer.has_maps and layer.shape[1:] != (1, 1)]
    names = [layer.name for layer in listed]
    assert layers == sorted([names[0], names[round((len(names) - 1) / 2)], names[-1]])
    assert layers[0] == "conv1"
    for name in layers:
        shape = nbviz.feature_maps(model, x, name).shape
        assert found[f"a/b/{name}/maps"].shape[0] == 3
        assert found[f"a/b/{name}/maps"].shape[1] == 8 * (shape[2] + 1) + 1  # the first 64, in rows of 8
        assert found[f"a/b/{name}/fused"].shape == (3, 64 + 4, 2 * (48 + 2) + 2)
        give = nbviz.gradient if name == "conv1" else nbviz.deconvnet  # which are the same there
        signals = give(model, x, name, [0, 1, 2, 3])
        rows = torch.cat([centred(signals[:, k]) for k in range(4)])
        got = found[f"a/b/{name}/reconstructions"]
        assert np.abs(got.transpose(1, 2, 0).astype(int) - tiled(rows, 2, 2)).max() <= 1  # which is rounded
    kernels = tiled(centred(model.conv1.weight.detach(), 10**9), 8, 1)  # up to the largest weight
    np.testing.assert_array_equal(found["a/b/kernels"].transpose(1, 2, 0), kernels)


def test_the_layers_are_three_evenly_spread_with_maps_of_several_pixels(fashion: nn.Module, pictures: Tensor) -> None:
    found = read(fashion, pictures, channels=())
    assert {tag.split("/")[1] for tag in found} == {"kernels", "features.0", "features.6", "features.13"}
    assert not any(tag.endswith("reconstructions") for tag in found)
    one = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1))
    assert set(read(one, pictures)) == {*("nbviz/kernels", "nbviz/0/maps", "nbviz/0/fused", "nbviz/0/reconstructions")}


def test_each_layer_shows_the_channels_that_it_has(pictures: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3))
    found = read(model, pictures, ["1", "2", "1"], [4, 1])
    assert found["nbviz/1/reconstructions"].shape == (3, 32, 92)  # channel 1 in three pictures
    assert found["nbviz/2/reconstructions"].shape == (3, 62, 92)
    alone = read(model, pictures, ["1"], 1)
    np.testing.assert_array_equal(found["nbviz/1/reconstructions"], alone["nbviz/1/reconstructions"])
    assert "nbviz/1/reconstructions" not in read(model, pictures, ["1"], [4])


def test_kernels_that_are_no_pictures_are_left_out() -> None:
    bands, x = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU()), torch.rand(2, 4, 9, 9)
    found = read(bands, x, ["1"], 0)
    assert set(found) == {"nbviz/1/maps", "nbviz/1/fused", "nbviz/1/reconstructions"}
    grey = centred(nbviz.deconvnet(bands, x, "1", 0)[:, 0].mean(1, keepdim=True))
    np.testing.assert_array_equal(found["nbviz/1/reconstructions"].transpose(1, 2, 0), tiled(grey, 2, 2))
    assert set(read(nn.Sequential(nn.AvgPool2d(2)), torch.rand(1, 3, 8, 8), channels=())) == {
        *("nbviz/0/maps", "nbviz/0/fused")
    }


def test_hostile_names_are_written_as_text(pictures: Tensor, written: Callable[..., Images]) -> None:
    model = nn.Sequential()
    model.add_module("\ud800<b>\x1b[1m", nn.Conv2d(1, 2, 3))
    found = written([0], model, pictures, channels=0, tag="\u202egnp")
    assert set(found) == {
        f"\ufffdgnp/{name}" for name in ("kernels", *(f"\ufffd<b>\ufffd[1m/{what}" for what in WRITTEN))
    }


WRITTEN = ("maps", "fused", "reconstructions")


def test_a_training_that_went_astray_is_still_written(pictures: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
        model[2].bias[1] = torch.inf
    found = read(model, pictures, ["1", "2"])
    assert len(found) == 7
    assert all(np.isfinite(pixels).all() for pixels in found.values())


def test_half_precision_and_no_grad(fashion: nn.Module, pictures: Tensor) -> None:
    plain = read(fashion, pictures, ["features.3"])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = read(fashion, pictures, ["features.3"])
        assert all(np.array_equal(found[tag], plain[tag]) for tag in plain)
    half = read(nbviz.bundled.load("fashion").to(torch.bfloat16), pictures, ["features.3"])
    for tag, pixels in half.items():
        assert pixels.shape == plain[tag].shape
        scale = 255 if pixels.dtype == np.uint8 else 1
        assert np.abs(pixels.astype(float) - plain[tag].astype(float)).mean() < 0.05 * scale


def test_a_model_of_other_arguments(fashion: nn.Module, pictures: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.nbviz_preprocess = fashion, fashion.nbviz_preprocess

        def forward(self, factor: float, x: Tensor) -> Tensor:
            return factor * self.net(x)

    found = read(Model(), pictures, ["net.features.3"], inputs=lambda x: (1.0, x))
    plain = read(fashion, pictures, ["features.3"])
    assert all(
        np.array_equal(pixels, found[tag.replace("/features", "/net.features")]) for tag, pixels in plain.items()
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"writer": None}, TypeError, "writer is None; expected a SummaryWriter, or anything with its add_image"),
        ({"writer": "runs"}, TypeError, "writer is 'runs'; expected a SummaryWriter"),
        ({"step": -1}, ValueError, "step is -1; expected at least 0"),
        ({"step": 0.5}, TypeError, "step is 0.5; expected a whole number"),
        ({"layers": "features.3"}, TypeError, "layers is 'features.3'; expected a list of modules' names"),
        ({"layers": ["features.33"]}, ValueError, "no layer 'features.33'; did you mean 'features.3'"),
        ({"layers": ["classifier"]}, ValueError, "expected feature maps"),
        ({"channels": None}, TypeError, "channel: got None; expected a whole number or a list of them"),
        ({"channels": [-1]}, ValueError, "no channel -1"),
        ({"tag": 3}, TypeError, "tag is 3; expected a string"),
        ({"rule": "max"}, ValueError, "no rule 'max'.* Accepted: gradient, deconvnet, guided"),
        ({"inputs": 1}, TypeError, "inputs is int"),
    ],
)
def test_wrong_arguments(
    options: Any, error: Any, message: str, fashion: nn.Module, pictures: Tensor, snapshot: Any
) -> None:
    writer = Writer()
    arguments = {"writer": writer, "step": 0, "model": fashion, "images": pictures, **options}
    with snapshot(fashion), pytest.raises(error, match=message):
        nbviz.log(**arguments)


def test_signals_and_models_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the model takes \(1, 2, 9\); expected pictures"):
        nbviz.log(Writer(), 0, nn.Sequential(nn.Conv1d(2, 2, 3)), torch.rand(1, 2, 9))
    with pytest.raises(ValueError, match="no layer of Sequential gives feature maps"):
        nbviz.log(Writer(), 0, nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2))
