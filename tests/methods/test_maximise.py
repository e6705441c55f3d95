"""Pictures grown by ascent: by how much they exceed real ones, and their slope against finite differences."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

import nbviz
from nbviz.errors import ModelError
from nbviz.methods import maximise as its_module
from nbviz.methods.maximise import Growing
from nbviz.results import MaximiseResult
from tests.rounds import TIMES, few, long


@pytest.fixture(scope="module")
def fashion() -> nn.Module:
    return nbviz.bundled.load("fashion")


def answers(net: nn.Module, inputs: Tensor, layer: str | None, neuron: bool = False) -> Tensor:
    """(N, C): each channel's mean, its middle or the class's score, with a hook and nothing of nbviz."""
    kept: list[Tensor] = []
    module = net if layer is None else net.get_submodule(layer)
    handle = module.register_forward_hook(lambda _m, _a, value: kept.append(value.clone()))
    with torch.no_grad():
        net(inputs)
    handle.remove()
    maps = kept[0]
    if maps.ndim == 2:
        return maps
    return maps[..., maps.shape[2] // 2, maps.shape[3] // 2] if neuron else maps.mean((2, 3))


# Layer, channels or classes, objective
GROWN = [
    *(("features.8", [1, 3], "channel"), ("features.13", [0, 6], "neuron"), (None, [1, 6], "channel")),
    *(("features.3", [4, 5, 6], "channel"), ("features.8", [1, 3, 12], "channel")),
    *(("features.8", [0, 2, 4], "neuron"), ("features.10", [0, 3], "channel")),
    *(("features.13", [0, 4], "channel"), (None, [1, 3, 6], "channel")),
]


@pytest.mark.parametrize(("layer", "channels", "kind"), few(GROWN))
def test_it_answers_more_than_to_any_of_a_thousand_real_pictures(
    layer: str | None, channels: list[int], kind: str, fashion: nn.Module
) -> None:
    which: Any = {"target": channels} if layer is None else {"layer": layer, "channels": channels}
    steps = 128 if TIMES else 64
    found = nbviz.maximise(fashion, **which, objective=kind, steps=steps)
    images = nbviz.bundled.fashion_test()[0][:, None] / 255
    assert (found.channels, found.step) == (tuple(channels), steps)
    real = answers(fashion, images, layer, kind == "neuron").amax(0)[channels]
    crossed = answers(fashion, found.inputs, layer, kind == "neuron")[:, channels]
    assert crossed.argmax(0).tolist() == list(range(len(channels)))  # each picture is for its own
    grown = crossed.diagonal()
    print(layer, kind, *(f"{c}: {g / r:.2f} times {r:.2f}" for c, g, r in zip(channels, grown, real, strict=True)))
    assert (real > 0).all()
    assert (grown >= 1.5 * real).all()
    torch.testing.assert_close(found.values, grown)


def lucid(spectrum: np.ndarray[Any, Any], sides: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Pictures in [0, 1] from (K, C, H, W // 2 + 1, 2), as in Lucid's spatial.py, color.py and param/images.py."""
    height, width = sides
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.fftfreq(width)[: width // 2 + (2 if width % 2 else 1)]
    frequencies = np.sqrt(fx * fx + fy * fy)[:, : width // 2 + 1]
    scale = np.sqrt(width * height) / np.maximum(frequencies, 1 / max(width, height))
    values = np.fft.irfft2(scale * (spectrum[..., 0] + 1j * spectrum[..., 1]), sides) / 4
    if values.shape[1] == 3:
        root = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
        values = np.moveaxis(np.moveaxis(values, 1, -1) @ (root / np.linalg.norm(root, axis=0).max()).T, -1, 1)
    return 1 / (1 + np.exp(-values))


def noise(seed: int, k: int, c: int, sides: tuple[int, int]) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(k, c, sides[0], sides[1] // 2 + 1, 2, generator=draw)


class Net(nn.Sequential):
    """Pictures of three colours, with a normalisation."""

    def __init__(self, *modules: nn.Module, sides: tuple[int, int] = (14, 11)) -> None:
        super().__init__(*modules)
        self.nbviz_preprocess = nbviz.Preprocess(
            lambda picture: torch.zeros(3, *sides), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
        )

    def made(self, pictures: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
        return ((pictures - mean) / std).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def small(**options: Any) -> Net:
    return Net(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        **options,
    )


@pytest.mark.parametrize("sides", [(14, 11), (12, 16), (13, 13)])
@pytest.mark.parametrize("seed", [0, 5])
def test_it_starts_from_lucids_noise(seed: int, sides: tuple[int, int]) -> None:
    net = small(sides=sides)
    pictures = torch.from_numpy(lucid(noise(seed, 2, 3, sides).double().numpy(), sides)).float()
    growing = Growing(net, "4", [3, 0], None, seed=seed)
    start = growing.found()
    torch.testing.assert_close(start.pictures, pictures)
    torch.testing.assert_close(start.inputs, net.made(pictures))
    torch.testing.assert_close(start.start, answers(net, start.inputs, "4")[[0, 1], [3, 0]])
    assert torch.equal(start.start, start.values)
    assert start.step == 0


@pytest.mark.parametrize(
    ("layer", "kind"), [("4", "channel"), ("4", "neuron"), ("5", "channel"), ("0", "neuron"), (None, "channel")]
)
def test_the_slope_is_that_of_finite_differences(layer: str | None, kind: str) -> None:
    """Of the objective along random directions in the spectrum."""
    net, sides, which = small().double(), (14, 11), [2, 0]
    growing = Growing(net, layer, which if layer else None, None if layer else which, kind, robust=False)
    before = noise(0, 2, 3, sides).double().numpy()
    growing.step()
    slope = growing._basis.spectrum.grad

    def value(spectrum: np.ndarray[Any, Any]) -> float:
        inputs = net.made(torch.from_numpy(lucid(spectrum, sides)))
        with torch.no_grad():
            maps = (net if layer is None else net[: int(layer) + 1])(inputs)[range(2), which]
        return float(maps[:, maps.shape[1] // 2, maps.shape[2] // 2].sum() if kind == "neuron" else maps.sum())

    assert slope is not None
    for _ in range(3):
        direction = np.random.default_rng().standard_normal(before.shape)
        differences = (value(before + 1e-6 * direction) - value(before - 1e-6 * direction)) / 2e-6
        assert -float((slope.numpy() * direction).sum()) == pytest.approx(differences, rel=1e-4)


def test_it_climbs_with_adam() -> None:
    """The same steps by hand: torch's own derivative of Lucid's pictures, and torch's Adam."""
    net, sides = small(), (14, 11)
    found = nbviz.maximise(net, "4", [1, 3], steps=7, rate=0.02, robust=False, seed=3)
    spectrum = noise(3, 2, 3, sides).requires_grad_()
    adam = torch.optim.Adam([spectrum], 0.02)
    y, x = np.fft.fftfreq(14)[:, None], np.fft.rfftfreq(11)
    scale = torch.tensor(np.sqrt(14 * 11) / np.maximum(np.hypot(y, x), 1 / 14), dtype=torch.float32)
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    root = torch.tensor(root / np.linalg.norm(root, axis=0).max(), dtype=torch.float32)
    for _ in range(7):
        values = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=sides) / 4
        inputs = net.made(torch.sigmoid((root @ values.flatten(2)).view(values.shape)))
        maps = net[:5](inputs)
        adam.zero_grad()
        (-maps[0, 1].sum() - maps[1, 3].sum()).backward()
        adam.step()
    expected = torch.from_numpy(lucid(spectrum.detach().double().numpy(), sides)).float()
    torch.testing.assert_close(found.pictures, expected, rtol=1e-4, atol=1e-4)


# Channels that are shut


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "in place": lambda x: functional.relu_(x + 0),
    "relu6": functional.relu6,
    "threshold": lambda x: functional.threshold(x, 0.1, 0.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp to 4": lambda x: x.clamp(0, 4),
    "relu, then max-pooling": lambda x: functional.max_pool2d(x.relu(), 2),
    "two branches": lambda x: torch.cat([x[:, :1].relu(), x[:, 1:].clamp(min=0)], 1),
}


class Shut(nn.Module):
    """Two channels that answer to a bright or a dark middle, and to nothing that is grey."""

    def __init__(self, rectify: Callable[[Tensor], Tensor], below: float) -> None:
        super().__init__()
        self.first, self.conv, self.act = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), Rectify(rectify)
        with torch.no_grad():
            ring = torch.full((3, 3), -1 / 16)
            ring[1, 1] = 1
            self.first.weight.copy_(torch.stack([ring, -ring])[:, None])
            self.first.bias.copy_(below - 0.5 * self.first.weight.sum((1, 2, 3)))
            self.conv.weight.zero_()
            self.conv.weight[[0, 1], [0, 1], 1, 1] = 2
            self.conv.bias.fill_(-0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.first(x).relu()))


class Rectify(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x)


# With the layer's rectifier alone, and with those below it
SHUT = itertools.product(RECTIFIERS, ["channel", "neuron"], [0.03, -0.03])


@pytest.mark.parametrize(("rectifier", "kind", "below"), few(SHUT, 0, 3, 13, 22, 27, 28))
def test_a_channel_that_is_shut_on_the_noise_grows(rectifier: str, kind: str, below: float) -> None:
    net = Shut(RECTIFIERS[rectifier], below)
    found = nbviz.maximise(net, "act", [0, 1], objective=kind, steps=64, size=12)
    assert found.start.tolist() == [0, 0]
    assert (found.values > 0.1).all()


@long
def test_a_channel_that_is_shut_in_most_places_wakes_there_too(fashion: nn.Module) -> None:
    """At a corner, the padding opens it."""
    found = nbviz.maximise(fashion, "features.3", 1, steps=256)
    assert found.start == 0
    assert float((nbviz.feature_maps(fashion, found.inputs, "features.3", 1) > 0).float().mean()) > 0.2
    real = answers(fashion, nbviz.bundled.fashion_test()[0][:, None] / 255, "features.3")[:, 1].max()
    assert found.values > 0.6 * real


@pytest.mark.parametrize("rectifier", ["relu", "in place", "relu6", "clamp", "two branches"])
def test_where_the_layers_own_rectifier_is_shut_it_passes_a_tenth(rectifier: str) -> None:
    """The slope is that of a leaky rectifier, and the rectifiers below stay as they are."""
    below = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    net = Net(*below, Rectify(RECTIFIERS[rectifier]))
    growing = Growing(net, "3", [0, 2], None, robust=False)
    with torch.no_grad():
        net[2].bias -= below(growing.found().inputs).transpose(0, 1).flatten(1).quantile(0.5, 1)
    growing._watch.look()  # which would else have it start over
    pictures = growing.found().pictures.double().requires_grad_()
    before = below(net.made(pictures))
    assert 0.3 < float((before[[0, 1], [0, 2]] > 0).double().mean()) < 0.7
    leaky = functional.leaky_relu(before, 0.1)
    (slope,) = torch.autograd.grad(leaky[0, 0].sum() + leaky[1, 2].sum(), pictures)

    taken: list[Tensor] = []
    draw = growing._basis.pictures
    growing._basis.pictures = lambda: watched(draw(), taken)  # type: ignore[method-assign]
    growing.step()
    torch.testing.assert_close(-taken[0], slope.float(), rtol=1e-5, atol=1e-5)


def watched(pictures: Tensor, taken: list[Tensor]) -> Tensor:
    if pictures.requires_grad:
        pictures.register_hook(taken.append)
    return pictures


# What is left alone


def test_the_same_seed_gives_the_same(snapshot: Any) -> None:
    net, options = small().train(), {"steps": 6, "layer": "4", "channels": [0, 3]}
    with snapshot(net):
        found = nbviz.maximise(net, **options, seed=4)
    torch.rand(9)
    again, other = nbviz.maximise(net, **options, seed=4), nbviz.maximise(net, **options, seed=5)
    assert torch.equal(found.pictures, again.pictures)
    assert torch.equal(found.values, again.values)
    assert not torch.isclose(found.pictures, other.pictures).all(3).any()
    plain = nbviz.maximise(net, **options, seed=4, robust=False)
    assert torch.equal(plain.start, found.start)
    assert not torch.equal(plain.pictures, found.pictures)


def test_what_the_model_does_in_training_and_its_gradients_are_left_alone(snapshot: Any) -> None:
    net = models.resnet18(num_classes=7).train()
    net(torch.rand(2, 3, 33, 33)).sum().backward()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("bn" not in name)
    with snapshot(net):
        found = nbviz.maximise(net, "layer1", [5, 0], steps=30, size=33)
        scores = nbviz.maximise(net, target=[6], steps=2, size=32)
    assert found.pictures.shape == found.inputs.shape == (2, 3, 33, 33)
    assert scores.pictures.shape == (1, 3, 32, 32)
    assert 0 <= found.pictures.min() < found.pictures.max() <= 1
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    torch.testing.assert_close(found.inputs, (found.pictures - mean) / std)
    torch.testing.assert_close(found.values, answers(net.eval(), found.inputs, "layer1")[[0, 1], [5, 0]])
    assert (found.values > 5 * found.start).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_any_mode_it_is_the_same(mode: Any) -> None:
    net = small()
    expected = nbviz.maximise(net, "4", 1, steps=4)
    with mode():
        found = nbviz.maximise(net, "4", 1, steps=4)
    assert torch.equal(found.pictures, expected.pictures)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    net = small().to(dtype)
    found = nbviz.maximise(net, "4", [0, 1], steps=24)
    assert (found.pictures.dtype, found.inputs.dtype, found.values.dtype) == (torch.float32, dtype, dtype)
    assert (found.values > found.start).all()


def test_an_interrupt_leaves_no_hooks(snapshot: Any) -> None:
    """Ctrl-C in the model's forward pass, or between two steps."""
    net = small()
    calls: list[int] = []

    class Interrupts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(calls))
            if len(calls) == 5:
                signal.raise_signal(signal.SIGINT)
            return x

    net.append(Interrupts())
    with snapshot(net), pytest.raises(KeyboardInterrupt):
        nbviz.maximise(net, target=1, steps=50)
    assert len(calls) == 5

    def stop(_found: MaximiseResult) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, snapshot(net), pytest.raises(KeyboardInterrupt):
        patch.setattr(its_module, "_WATCH_SECONDS", -1)
        nbviz.maximise(net, target=1, steps=50, watch=stop)


# Options


def test_watch_is_called_about_twice_a_second_with_what_has_grown(monkeypatch: Any) -> None:
    clock = [0.0]
    monkeypatch.setattr(its_module.time, "monotonic", lambda: clock[0])
    net, seen = small(), []
    net.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 0.125))  # so long a pass takes
    result = nbviz.maximise(net, target=[0, 2], steps=15, watch=seen.append)
    assert [found.step for found in seen] == [5, 10, 15]
    plain = [nbviz.maximise(net, target=[0, 2], steps=steps) for steps in (5, 10, 15)]
    for found, expected in zip([*seen[:2], result], plain, strict=True):
        for field in ("pictures", "inputs", "values", "start"):
            assert torch.equal(getattr(found, field), getattr(expected, field))


def test_before_each_step_all_pictures_are_moved_a_little(monkeypatch: Any) -> None:
    moves: list[tuple[Any, ...]] = []

    def warp(pictures: Tensor, *how: Any, padding: str) -> Tensor:
        moves.append((*how, padding))
        return real(pictures, *how, padding=padding)

    real = its_module.warp
    monkeypatch.setattr(its_module, "warp", warp)
    nbviz.maximise(small(sides=(48, 32)), "0", 0, steps=120)
    down, across, scale, angle, padding = zip(*moves, strict=True)
    assert len(moves) == 120
    assert set(padding) == {"reflection"}
    assert set(down) == set(range(-3, 4))
    assert set(across) == set(range(-2, 3))
    for values, low, high in ((scale, 0.95, 1.05), (angle, -8, 8)):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)
        assert abs(np.mean(values) - (low + high) / 2) < 0.1 * (high - low)


def test_robust_pictures_hang_less_on_single_pixels(fashion: nn.Module) -> None:
    """Turned a little, they keep more of what they raise."""
    kept = []
    for robust in (True, False):
        found = nbviz.maximise(fashion, "features.13", [0, 1], steps=24, robust=robust)
        turned = torch.cat(
            [rotate(found.inputs, angle, InterpolationMode.BILINEAR) for angle in (-6.0, -3.0, 3.0, 6.0)]
        )
        values = answers(fashion, turned, "features.13").view(4, 2, -1)[:, range(2), range(2)].mean(0)
        kept.append(values / found.values)
    assert (kept[0] > 1.1 * kept[1]).all()


def test_the_size_is_that_of_the_preprocessing_or_the_one_given() -> None:
    assert nbviz.maximise(small(sides=(14, 11)), target=0, steps=1).pictures.shape == (1, 3, 14, 11)
    assert nbviz.maximise(small(sides=(14, 11)), target=0, steps=1, size=17).pictures.shape == (1, 3, 17, 17)
    bands = nn.Sequential(nn.Conv2d(5, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert nbviz.maximise(bands, target=0, steps=1, size=9).pictures.shape == (1, 5, 9, 9)
    assert nbviz.maximise(bands, target=0, steps=1).pictures.shape == (1, 5, 224, 224)


def test_channels_are_the_first_eight_where_none_are_named() -> None:
    assert nbviz.maximise(small(), "0", steps=1).channels == (0, 1, 2, 3, 4, 5)
    wide = nn.Sequential(nn.Conv2d(1, 11, 3))
    assert nbviz.maximise(wide, "0", steps=1, size=8).channels == tuple(range(8))
    assert nbviz.maximise(wide, "0", 10, steps=1, size=8).channels == (10,)


def test_a_model_of_other_arguments_and_answers() -> None:
    plain = small()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.nbviz_preprocess = plain, plain.nbviz_preprocess

        def forward(self, factor: float, pictures: Tensor) -> dict[str, Any]:
            return {"scores": factor * self.net(pictures), "aux": None}

    found = nbviz.maximise(Model(), target=[2, 0], steps=5, inputs=lambda p: (1.0, p), output="scores")
    assert torch.equal(found.pictures, nbviz.maximise(plain, target=[2, 0], steps=5).pictures)


def test_a_given_preprocessing_takes_the_place_of_the_models() -> None:
    given = nbviz.Preprocess(lambda picture: torch.zeros(3, 9, 9), mean=(0.1,), std=(2.0,))
    found = nbviz.maximise(small(), "0", 1, steps=2, preprocess=given)
    torch.testing.assert_close(found.inputs, (found.pictures - 0.1) / 2)
    assert found.pictures.shape == (1, 3, 9, 9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "name a layer, or give target for output classes"),
        ({"layer": "0", "target": 1}, ValueError, "target is a class of the model.s output and goes with layer=None"),
        ({"channels": 1}, ValueError, "channels belong to a layer"),
        ({"target": 1, "channels": 1}, ValueError, "channels belong to a layer"),
        ({"layer": "9", "channels": 0}, ValueError, "no layer '9'"),
        ({"layer": "0", "channels": 6}, ValueError, "no channel 6: there are 6"),
        ({"target": [0, 3]}, ValueError, "no class 3: there are 3"),
        ({"layer": "0", "channels": []}, ValueError, "channels is empty"),
        ({"target": 0, "objective": "pixel"}, ValueError, "no objective 'pixel'.* Accepted: channel, neuron"),
        ({"target": 0, "steps": 0}, ValueError, "steps is 0; expected at least 1"),
        ({"target": 0, "rate": 0}, ValueError, "rate is 0; expected"),
        ({"target": 0, "size": 7}, ValueError, "size is 7; expected at least 8"),
        ({"target": 0, "seed": -1}, ValueError, "seed is -1; expected at least 0"),
        ({"target": 0, "robust": 1}, TypeError, "robust is 1; expected True or False"),
        ({"target": 0, "watch": 3}, TypeError, "watch is int; expected a callable"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str, snapshot: Any) -> None:
    net = small()
    with snapshot(net), pytest.raises(error, match=message):
        nbviz.maximise(net, **options)


def test_signals_and_models_without_a_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match="takes signals or volumes; expected one that takes pictures"):
        nbviz.maximise(nn.Sequential(nn.Conv1d(1, 2, 3)), "0")
    with pytest.raises(TypeError, match="the model's input is a .* meta tensor; expected a dense one"):
        nbviz.maximise(small().to("meta"), "0")
    with pytest.raises(ModelError, match="no gradient reaches the picture"):
        nbviz.maximise(nn.Sequential(nn.Conv2d(1, 2, 3), Rectify(Tensor.detach)), "1", size=8)
