"""The widgets without a page: state, errors, work in chunks, what is left when the kernel is gone."""

from __future__ import annotations

import base64
import gc
import io
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nbviz
from nbviz.core.backward import RULES
from nbviz.core.state import lock
from nbviz.imaging.encode import decode, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.widgets.figure_panels import filled_panels, predictions_panel
from nbviz.widgets.layer_widget import LayerWidget
from tests.rounds import TIMES, few, long

WIDGETS = [nbviz.FeatureMaps, nbviz.Reconstruction, nbviz.Explorer]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return nbviz.bundled.load("fashion")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return nbviz.bundled.fashion_test()[0][:3, None]


def tiles(view: LayerWidget) -> np.ndarray:
    """The tiles that were sent, in the channels' own order."""
    channels, pixels = view.grid.pixels()
    assert sorted(channels) == list(range(view.grid.tiles["shape"][0]))
    return pixels[np.argsort(channels)]


def shown(view: LayerWidget, slot: str) -> np.ndarray:
    return decode(view.panels.slot(slot))


@pytest.mark.parametrize("kind", WIDGETS)
def test_starts_on_the_strongest_channel_and_gets_ready(kind: Any, model: nn.Module, images: torch.Tensor) -> None:
    view = kind(model, images, layer="features.8")
    view.finish()
    assert view.header.state == "ready"
    assert view.header.error == ""
    inner = nbviz.feature_maps(model, images[:1], "features.8")[0, :, 1:-1, 1:-1]
    assert view.channel == int(inner.flatten(1).amax(1).argmax())


def test_what_is_sent_is_what_the_functions_give(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.4", channel=7)
    view.finish()
    view.picture, view.layer, view.channel = 2, "features.9", 5
    view.finish()
    maps = nbviz.feature_maps(model, images[2:3], "features.9")[0]
    np.testing.assert_array_equal(tiles(view), quantise(maps)[0].numpy())
    back = nbviz.reconstruct(model, images[2:3], "features.9", [5])
    for rule, expected in back.items():
        np.testing.assert_array_equal(shown(view, rule)[..., 0], centre(expected[0, 0])[0].numpy())
    row, column = divmod(int(maps[5].argmax()), 7)
    field = view.session.layers["features.9"].field
    assert field is not None
    assert view.panels.slot("picture")["box"] == list(field.box((row, column), (28, 28)))
    labels, probabilities = zip(*view.strip.predictions, strict=True)
    with torch.no_grad():
        top = model(images[2:3] / 255).softmax(1)[0].topk(5)
    assert labels == tuple(model.nbviz_preprocess.labels[i] for i in top.indices)
    np.testing.assert_allclose(probabilities, top.values, rtol=1e-5)


def around(whole: torch.Tensor, middle: list[float], side: int) -> torch.Tensor:
    """The square of a picture (C, H, W) around a place, zero beyond the border."""
    top, left = (round(at - (side - 1) / 2) + 100 for at in middle)
    return nn.functional.pad(whole, (100,) * 4)[:, top : top + side, left : left + side]


def middle_of(view: LayerWidget, place: int) -> list[float]:
    """The middle of what a position sees."""
    layer = view.session.layers[view.layer]
    assert layer.field is not None
    axes = zip(divmod(place, layer.shape[2]), layer.field.stride, layer.field.low, layer.field.high, strict=True)
    return [step * at + (low + high) / 2 for at, step, low, high in axes]


def size_of_patches(view: LayerWidget, picture: torch.Tensor) -> int:
    """The side of the smallest square that holds 98 % of guided backprop's energy, the median of four channels."""
    field = view.session.layers[view.layer].field
    assert field is not None
    model, sides = view.session.subject.model, []
    maps = nbviz.feature_maps(model, picture, view.layer)[0].flatten(1)
    for channel in maps.amax(1).sort(descending=True, stable=True).indices[:4].tolist():
        energy = nbviz.guided_backprop(model, picture, view.layer, channel)[0, 0].square()
        middle = middle_of(view, int(maps[channel].argmax()))
        least = 8 - field.size[0] % 2  # centred in the field to the pixel
        shares = (
            (side, float(around(energy, middle, side).sum() / energy.sum()))
            for side in range(least, field.size[0] + 1, 2)
        )
        sides.append(next(side for side, share in shares if share >= 0.98 or side == field.size[0]))
    return sorted(sides)[len(sides) // 2]


@pytest.mark.parametrize(("layer", "rule"), few(product(["features.5", "features.11", "pool"], RULES), 0, 4, 8))
def test_the_grid_shows_each_channels_reconstruction_cut_to_where_the_signal_is(
    rule: str, layer: str, model: nn.Module, images: torch.Tensor
) -> None:
    view = nbviz.Explorer(model, images, layer=layer, picture=1, tiles=rule)
    view.finish()
    sent = tiles(view)
    back = nbviz.reconstruct(model, images[1:2], layer, rules=[rule])[rule][0]
    maps = nbviz.feature_maps(model, images[1:2], layer)[0]
    side = None if view.session.layers[layer].field is None else size_of_patches(view, images[1:2])
    for channel, whole in enumerate(back):
        part = whole
        if side is not None:
            part = around(whole, middle_of(view, int(maps[channel].argmax())), side)
        sizes = part[part != 0].abs().sort().values
        scale = sizes[-1 - len(sizes) // 200] if len(sizes) else torch.tensor(1.0)
        np.testing.assert_array_equal(sent[channel, ..., 0], centre(part, scale)[0].numpy())


@pytest.mark.parametrize("layer", few(["features.8", "features.11"]))
def test_the_cropped_panels_agree_with_the_tile(layer: str, model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer=layer, tiles="guided")
    view.finish()
    assert view.grid.tiles["shape"][1] < view.session.layers[layer].field.size[0]  # type: ignore[union-attr]
    compared = 0
    for channel in range(0, view.count, 5):
        view.channel = channel
        view.finish()
        label, tile = view.panels.slot("picture"), tiles(view)[channel]
        top, left, bottom, right = label["inner"]
        if (bottom - top, right - left) == tile.shape[:2]:  # else the picture ends within it
            compared += 1
            np.testing.assert_array_equal(shown(view, "guided")[top:bottom, left:right], tile)
        outer = label["box"]
        assert outer[0] <= top < bottom <= outer[2]
        assert outer[1] <= left < right <= outer[3]
    assert compared
    ((patch, *_), (picture, *_)) = filled_panels(view.panels)
    assert patch.pixels is not None
    assert patch.pixels.shape[:2] == (bottom - top, right - left)
    assert (picture.box, picture.inner) == (label["box"], label["inner"])
    view.seed = "map"
    view.finish()
    assert view.grid.tiles["shape"][1:] == [28, 28]
    assert view.panels.slot("picture")["inner"] == view.panels.slot("picture")["box"] == [0, 0, 28, 28]


class Clamped(nn.Module):
    """Of three channels the first is clamped at its strongest position, and the others are not."""

    def __init__(self, clamp: Any) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 3, 1, bias=False), nn.Identity()
        self.conv.weight.data = torch.tensor([9.0, 4.0, 5.0]).view(3, 1, 1, 1)
        self.clamp, self.pool = clamp, nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.act(self.clamp(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("layer", ["act", "pool"])
@pytest.mark.parametrize("clamp", [nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: x.clamp(0, 6), nn.Hardtanh(0, 6)])
def test_a_widget_starts_where_the_gradient_passes_and_says_where_it_does_not(clamp: Any, layer: str) -> None:
    view = nbviz.Explorer(Clamped(clamp).eval(), torch.rand(1, 1, 8, 8).clamp(max=0.99) + 0.01, layer=layer)
    view.finish()
    assert view.channel == 2
    assert "clamped" not in view.header.note
    assert (shown(view, "guided") != 128).any()
    view.channel = 0
    view.finish()
    assert "#0 is clamped at 6 where it is strongest" in view.header.note
    assert (shown(view, "guided") == 128).all()
    assert (shown(view, "gradient") == 128).all()
    assert (shown(view, "deconvnet") != 128).any()
    view.seed = "map"
    view.finish()
    assert "clamped" not in view.header.note


def test_where_all_channels_are_clamped_it_starts_at_the_strongest() -> None:
    net = Clamped(nn.ReLU6()).eval()
    net.conv.weight.data *= 100
    view = nbviz.Explorer(net, torch.rand(1, 1, 8, 8) + 0.1, layer="act", tiles="guided")
    view.finish()
    assert (view.header.state, view.channel) == ("ready", 0)
    assert "clamped at 6" in view.header.note


@pytest.mark.parametrize("picture", range(4))
def test_a_photographs_reconstruction_is_not_grey(picture: int) -> None:
    view = nbviz.Reconstruction(nbviz.bundled.load("efficientnet_lite0"), nbviz.bundled.pictures()[picture])
    view.finish()
    assert view.layer == "blocks.4"  # where a person sees the cat's eye
    guided = filled_panels(view.panels)[0][3]
    assert (guided.caption, guided.pixels.shape[0] < 224 // 2) == ("guided backprop", True)  # type: ignore[union-attr]
    away = np.abs(guided.pixels.astype(int) - 128)  # type: ignore[union-attr]
    assert np.median(away) >= 4  # it was 0, and the mean 1.3
    assert 12 < away.mean() < 40


def test_the_seed_is_that_of_the_grid_too(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.4", tiles="deconvnet")
    view.finish()
    view.seed = "map"
    view.finish()
    back = nbviz.deconvnet(model, images[:1], "features.4", seed="map")[0]
    np.testing.assert_array_equal(tiles(view)[..., 0], centre(back)[:, 0].numpy())
    view.tiles = "activation"
    view.finish()
    key = view.grid.tiles["key"]
    view.seed = "max"
    view.finish()
    assert view.grid.tiles["key"] == key  # which start from nothing


def test_the_strongest_come_first_then_the_picked_channel_then_the_rest(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    monkeypatch.setattr("nbviz.widgets.tiles._MOST_TILES", 8)
    monkeypatch.setattr("nbviz.widgets.layer_widget._FIRST_SECONDS", 60.0)
    view = nbviz.Explorer(model, images, layer="features.11", channel=3, tiles="guided")
    drawn: list[tuple[int, bool]] = []
    for chunk in range(100):
        drawn.append((view.grid.sent, view.panels.is_current(view.panels.slot("guided"))))
        if chunk == 12:
            view.channel = 5  # goes before the rest, which goes on where it was
        if view.header.state == "ready":
            break
        view.header.painted = view.header.chunk
    assert drawn[0] == (0, False)
    assert 16 <= next(sent for sent, picked in drawn if picked) < 24
    assert [sent for sent, _ in drawn] == sorted(sent for sent, _ in drawn)
    again = next(i for i in range(13, len(drawn)) if drawn[i][1])
    assert 128 > drawn[12][0] == drawn[again][0] > 16
    assert drawn[-1] == (128, True)
    strength = nbviz.feature_maps(model, images[:1], "features.11")[0].flatten(1).amax(1)
    channels, _ = view.grid.pixels()
    assert channels == strength.argsort(descending=True, stable=True).tolist()


def test_the_pixels_are_as_many_as_the_screen_has(images: torch.Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    picture = torch.rand(1, 3, 200, 160)
    view = nbviz.Explorer(net, picture, layer="1")
    view.finish()
    maps = nbviz.feature_maps(net, picture, "1")[0]
    for side in (64, 128, 256):
        key = view.grid.tiles["key"]
        view.grid.side = side
        view.finish()
        np.testing.assert_array_equal(tiles(view), quantise(maps, side)[0].numpy())
        assert view.grid.tiles["shape"] == [6, 200, 160]
        # From 128 there are no more pixels to be had.
        assert (view.grid.tiles["key"] > key) == (side == 128)
    assert view.session.forward_passes == 2


def test_a_layer_comes_to_the_host_in_one_copy(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU would be waited for: a copy, or a number that Python wants."""

    class Waits(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.name().split("::")[1]
            if name.startswith(("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "item", "_to_copy.device")):
                self.found.append(name)
            return func(*args, **(kwargs or {}))

    copies: list[int] = []

    def counted(*tensors: torch.Tensor) -> Any:
        copies.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return to_host(*tensors)

    view = nbviz.FeatureMaps(model, images, layer="features.4")
    view.finish()
    monkeypatch.setattr("nbviz.widgets.session.to_host", counted)
    with Waits() as waits:
        view.layer = "features.8"
        view.finish()
    assert view.header.state == "ready"
    assert len(copies) == 1
    assert waits.found == []


def test_the_autocast_of_the_cell_is_that_of_the_widget(model: nn.Module, images: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        view = nbviz.Explorer(model, images, layer="features.4", channel=0)
    thread = threading.Thread(target=lambda: setattr(view, "layer", "features.8"))
    thread.start()
    thread.join()
    view.finish()
    assert view.header.error == ""
    assert view.session.maps(0, "features.8").dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        plain = nbviz.Explorer(model, images, layer="features.4", channel=0)
    assert plain.session.maps(0, "features.4").dtype == torch.bfloat16


def test_the_channel_slider_runs_no_forward_pass(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images)
    view.finish()
    before = view.session.forward_passes
    for channel in (1, 2, 3):
        view.channel = channel
        view.finish()
    view.how = "max"
    view.seed = "map"
    view.finish()
    assert view.session.forward_passes == before


def test_a_weight_that_changes_is_seen(images: torch.Tensor) -> None:
    model = nbviz.bundled.load("fashion")
    view = nbviz.Explorer(model, images, layer="features.0", channel=0)
    view.finish()
    with torch.no_grad():
        model.features[0].weight.mul_(-1)
    view.channel = 1
    view.finish()
    assert view.header.error == ""
    expected = quantise(nbviz.feature_maps(model, images[:1], "features.0", 1)[0])[0]
    np.testing.assert_array_equal(shown(view, "activation")[..., 0], expected[0].numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "features.99"}, "no layer 'features.99'; did you mean 'features.9'"),
        ({"layer": "classifier"}, "gives no feature maps"),
        ({"channel": 64}, "no channel 64: there are 64, numbered 0 to 63"),
        ({"picture": 3}, "no picture 3: there are 3, numbered 0 to 2"),
        ({"how": "l3"}, "no way to fuse 'l3'"),
    ],
)
def test_a_bad_value_set_in_a_cell_is_refused_and_nothing_changes(
    change: dict[str, Any], message: str, model: nn.Module, images: torch.Tensor
) -> None:
    view = nbviz.Explorer(model, images, layer="features.8", channel=3)
    view.finish()
    with pytest.raises(ValueError, match=message):
        view.set_trait(*next(iter(change.items())))
    assert (view.layer, view.channel, view.picture, view.how) == ("features.8", 3, 0, "l2")
    view.channel = 4
    view.finish()
    assert view.header.state == "ready"


@pytest.mark.parametrize("kind", WIDGETS)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"layer": "fetures.3"}, ValueError, "did you mean 'features.3'"),
        ({"channel": 1000}, ValueError, "no channel 1000"),
        ({"channel": "3"}, TypeError, "expected a whole number"),
        ({"labels": ["a"]}, ValueError, "labels has 1 names for the model's 10 outputs"),
        ({"labels": "abc"}, TypeError, "expected a list of names"),
        ({"images": "missing.png"}, ValueError, "there is no file"),
        ({"images": torch.full((1, 1, 28, 28), float("nan"))}, ValueError, "not finite"),
        ({"images": torch.zeros(1, 3, 28, 28)}, ValueError, "takes 1"),
        ({"seed": "middle"}, ValueError, "no seed 'middle'"),
        ({"tiles": "deconvnets"}, ValueError, "no tiles 'deconvnets'; did you mean 'deconvnet'"),
    ],
)
def test_bad_arguments_are_refused_before_a_widget_is_made(
    kind: Any, given: dict[str, Any], error: type[Exception], message: str, model: nn.Module, images: torch.Tensor
) -> None:
    with pytest.raises(error, match=message):
        kind(model, **{"images": images, **given})


def test_an_unknown_keyword_is_a_type_error(model: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="chanel"):
        nbviz.Explorer(model, images, chanel=3)


def test_an_error_while_drawing_is_a_line_and_the_widget_goes_on(images: torch.Tensor) -> None:
    model = nbviz.bundled.load("fashion")
    view = nbviz.Explorer(model, images, layer="features.0")
    view.finish()

    def broken(*_: Any) -> None:
        raise RuntimeError("out of tune")

    handle = model.features[5].register_forward_hook(broken)
    view.layer = "features.8"
    assert view.header.state == "error"
    assert "out of tune" in view.header.error
    handle.remove()
    view.layer = "features.9"
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")


def test_a_page_that_has_painted_gets_the_next_chunk_and_a_late_one_nothing(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Explorer(model, images, layer="features.8")
    seen = []
    for _ in range(20):
        seen.append(view.header.state)
        late = view.header.chunk - 1
        if late > 0:
            view.header.painted = late
            assert view.header.chunk == late + 1
        view.header.painted = view.header.chunk
        if view.header.state == "ready":
            break
    assert view.header.state == "ready"
    assert seen.count("working") >= 4  # grid, fused, patch, then the rules one by one


def test_a_newer_state_drops_what_is_left_of_an_older_one(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    view.finish()
    drawn: list[int] = []
    project = view.session.reconstructions

    def counted(picture: int, layer: str, channels: list[int], rule: str, seed: str) -> Any:
        drawn.extend(channels)
        return project(picture, layer, channels, rule, seed)

    monkeypatch.setattr(view.session, "reconstructions", counted)
    for channel in range(1, 11):
        view.channel = channel
    view.finish()
    assert drawn == [10, 10, 10]
    assert view.panels.current["channel"].split()[2] == "10"


def test_two_threads_are_never_in_the_model_at_once(images: torch.Tensor) -> None:
    model = nbviz.bundled.load("fashion")
    inside, most = 0, 0

    def enter(*_: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside -= 1

    model.features[0].register_forward_pre_hook(enter)
    model.features[3].register_forward_hook(leave)
    views = [nbviz.Explorer(model, images, layer=layer) for layer in ("features.4", "features.8")]

    def move(view: LayerWidget) -> None:
        for picture in (1, 2, 0, 1):
            view.picture = picture
            view.finish()

    threads = [threading.Thread(target=move, args=(view,)) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert all(view.header.error == "" for view in views)


def test_a_change_that_has_to_wait_says_so_and_then_no_more(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    view.finish()
    states: list[str] = []
    view.header.observe(lambda change: states.append(change.new), "state")
    with lock:
        thread = threading.Thread(target=view.finish)
        thread.start()
        while not states:
            time.sleep(0.001)
        assert states == ["waiting: a cell is running"]
    thread.join()
    assert view.header.state == "ready"


def test_an_interrupt_while_drawing_leaves_the_rest_to_be_drawn(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    view.finish()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(view.session, "maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            view.layer = "features.4"
    assert view.header.state == "interrupted"
    view.finish()
    assert view.header.state == "ready"
    assert view.header.stale == []
    assert view.grid.tiles["state"].startswith("0 features.4 ")


def test_an_error_leaves_what_is_stale_marked_and_the_view_can_be_shown(images: torch.Tensor) -> None:
    model = nbviz.bundled.load("fashion")
    view = nbviz.Explorer(model, images, layer="features.8")
    view.finish()
    assert view.header.stale == []

    def broken(*_: Any) -> None:
        raise RuntimeError("out of tune")

    model.features[5].register_forward_hook(broken)
    view.picture = 1
    assert view.header.stale == ["channel", "first", "fused", "grid", "predictions", "rest", "trace"]
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "image/png" not in bundle


def test_a_closed_widget_keeps_no_activations(images: torch.Tensor) -> None:
    model = nbviz.bundled.load("fashion")
    view = nbviz.Explorer(model, images)
    view.finish()
    session = weakref.ref(view.session)
    parts = [view, view.header, view.grid, view.panels, view.channel_control]
    view.close()
    assert all(part.comm is None for part in parts)
    del view, parts
    gc.collect()
    assert session() is None or session()._trace is None


def test_without_pictures_one_of_each_class_is_shown() -> None:
    pictures, labels = nbviz.bundled.fashion_test()
    shown = nbviz.explore().session.display[:, 0]
    found = [int(labels[(pictures == picture).flatten(1).all(1)][0]) for picture in shown]
    assert sorted(found) == list(range(10))


@long
def test_a_kernel_that_ends_with_a_widget_open_ends_well() -> None:
    code = "import nbviz; view = nbviz.explore(); view.finish()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_that_are_not_finite_are_said_to_be() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[1] = float("nan")
    view = nbviz.Explorer(net, torch.rand(1, 1, 12, 12), how="pca", layer="1")
    view.finish()
    assert view.header.error == ""
    assert "100 of the layer's values are not finite" in view.header.note


def test_long_thin_pictures_have_thumbs() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    view = nbviz.Explorer(net, torch.rand(1, 1, 1, 400))
    assert view.strip.thumbs[0]["shape"] == [1, 96, 3]


def test_it_works_under_no_grad_and_inference_mode(model: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        view = nbviz.Explorer(model, images, layer="features.8")
        view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")


def test_a_model_without_rectifiers_gets_a_note_in_place_of_a_warning() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())
    view = nbviz.Reconstruction(net, torch.rand(1, 3, 16, 16), "0")
    view.finish()
    assert "equal the plain gradient" in view.header.note


def test_a_layer_without_max_pooling_before_it_gets_a_note_in_place_of_a_warning(
    model: nn.Module, images: torch.Tensor
) -> None:
    view = nbviz.Reconstruction(model, images, layer="features.0")
    view.finish()
    assert "no max-pooling" in view.header.note
    view.layer = "features.8"
    view.finish()
    assert view.header.note == ""


def test_a_missing_preprocessing_is_a_warning_with_the_call_that_mends_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    picture = Image.new("RGB", (16, 16), "red")
    view = nbviz.Reconstruction(net, picture)
    view.finish()
    assert "it is shown the pictures as RGB in [0, 1]" in view.header.warning
    assert "nbviz.Reconstruction(…, preprocess=weights.transforms())" in view.header.warning
    assert view.header.warning in view._foot()
    ready = torch.rand(1, 3, 16, 16)  # float tensors are the model's input
    known = nbviz.Preprocess(lambda picture: torch.zeros(3, 16, 16))
    for quiet in (nbviz.Reconstruction(net, ready), nbviz.Reconstruction(net, picture, preprocess=known)):
        assert quiet.header.warning == ""


@pytest.mark.parametrize(
    ("net", "images", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 16, 16), "no class scores"),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU()), torch.rand(1, 2, 16), "for models that take pictures"),
    ],
)
def test_an_explorer_without_tabs_says_why(net: nn.Module, images: torch.Tensor, reason: str) -> None:
    view = nbviz.Explorer(net, images)
    view.finish()
    assert view.view_control not in view.children
    assert reason in view.header.note


@long
def test_a_png_of_the_view_goes_with_it(model: nn.Module, images: torch.Tensor) -> None:
    for kind in WIDGETS:
        bundle = kind(model, images)._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50


@pytest.mark.parametrize("ending", few(["png", "svg", "pdf"], 1))
def test_a_view_can_be_saved(ending: str, tmp_path: Any, model: nn.Module, images: torch.Tensor) -> None:
    path = tmp_path / f"view.{ending}"
    nbviz.Explorer(model, images).save(path)
    assert path.stat().st_size > 10_000


def test_the_code_gives_the_same_view(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.9", channel=11, picture=1, seed="map", how="pca")
    view.finish()
    assert view.header.code == view.code
    again = eval(view.code, {"nbviz": nbviz, "model": model, "images": images})
    again.finish()
    assert again.panels.current == view.panels.current
    assert again.how == "pca"


@pytest.fixture
def strange() -> Iterator[nn.Module]:
    """A segmentation-like model: no class scores, maps of several sizes, a reused module, names that look like HTML."""

    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<img src=x onerror=alert(1)>", nn.Conv2d(3, 5, 3, stride=2, padding=1))
            self.relu = nn.ReLU(inplace=True)
            self.last = nn.Conv2d(5, 2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.relu(next(self.children())(x))
            return {"out": self.relu(self.last(x))}

    return Strange()


def test_a_model_without_class_scores_has_no_predictions(strange: nn.Module) -> None:
    view = nbviz.Explorer(strange, torch.rand(2, 3, 20, 30))
    view.finish()
    assert view.strip.predictions == []
    assert "relu:1" in view.session.layers
    view.layer = "relu:1"
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    assert view.figure().axes


def test_picks_while_the_grid_is_drawn_neither_starve_nor_restart_it(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.layer_widget._FIRST_SECONDS", 0.0)  # each tile takes long
    view = nbviz.Explorer(model, images, layer="features.11", channel=0, tiles="guided")
    key = view.grid.tiles["key"]
    for channel in range(1, 9):
        view.channel = channel
        for _ in range(4):
            view.header.painted = view.header.chunk
        assert view.panels.is_current(view.panels.slot("guided"))
    view.finish()
    assert view.grid.tiles["key"] == key


def test_the_grid_is_of_one_set_of_weights(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    model = nbviz.bundled.load("fashion")
    view = nbviz.Explorer(model, images, layer="features.11", channel=0, tiles="deconvnet")
    while not 0 < view.grid.sent < 128:
        view.header.painted = view.header.chunk
    with torch.no_grad():
        model.features[0].weight.mul_(-1)
    view.finish()
    fresh = nbviz.Explorer(model, images, layer="features.11", channel=0, tiles="deconvnet")
    fresh.finish()
    np.testing.assert_array_equal(tiles(view), tiles(fresh))


def test_an_interrupt_loses_no_tile(model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Explorer(model, images, layer="features.11", channel=0, tiles="deconvnet")
    while view.grid.sent == 0:
        view.header.painted = view.header.chunk

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nbviz.widgets.views.encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            view.finish()
    view.finish()
    assert view.header.state == "ready"
    assert len(tiles(view)) == 128


class NoWayBack(torch.autograd.Function):
    """Goes forward only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("no way back")


@pytest.mark.parametrize("shown", few(["activation", "guided"]))
def test_an_error_in_one_part_leaves_the_others_to_be_drawn(shown: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 70, 3), nn.Linear(70, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(NoWayBack.apply(x)).mean((2, 3)))

    view = nbviz.Explorer(Net(), torch.rand(2, 1, 100, 100), layer="a", tiles=shown)
    view.finish()
    view.picture = 1
    view.finish()
    assert view.header.state == "error"
    assert "no way back" in view.header.error
    assert view.session.knows(1)
    assert len(view.strip.predictions) == 3
    assert "picture=1" in view.header.code
    if shown == "activation":
        assert len(tiles(view)) == 70
    assert view.figure().axes  # of what there is


def test_a_figure_never_mixes_states(model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    view.finish()
    view.tiles = "guided"
    view.finish()
    answers = view.session.predictions(2)  # known, but not on the screen yet
    assert answers != view.strip.predictions
    view.picture = 2
    assert filled_panels(view.panels) == []
    assert list(predictions_panel(view).bars) == answers
    assert "guided" not in view._grid_panel().caption  # none is drawn yet
    view.finish()
    assert "guided" in view._grid_panel().caption
    assert [len(row) for row in filled_panels(view.panels)] == [4, 4]


def test_a_closed_widget_answers_no_more(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    view.close()
    passes = view.session.forward_passes
    view.picture = 1
    view.channel = 3
    assert view.session.forward_passes == passes
    assert view.session.trace_bytes == 0


def test_autocast_of_another_cell_plays_no_part(model: nn.Module, images: torch.Tensor) -> None:
    view = nbviz.Explorer(model, images, layer="features.4", channel=0)
    with torch.autocast("cpu", torch.bfloat16):
        view.layer = "features.8"
        view.finish()
    assert view.session.maps(0, "features.8").dtype == torch.float32


def test_a_view_of_feature_maps_has_no_other_tiles(model: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tiles is 'guided'; FeatureMaps shows activations"):
        nbviz.FeatureMaps(model, images, tiles="guided")
    view = nbviz.FeatureMaps(model, images)
    with pytest.raises(ValueError, match="shows activations"):
        view.tiles = "guided"
    assert view.tiles == "activation"


def test_a_clock_that_stands_still_does_no_harm(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    monkeypatch.setattr("nbviz.widgets.base.time.monotonic", lambda: 1.0)
    view = nbviz.Explorer(model, images, layer="features.8", channel=0)
    for _ in range(100):
        view.header.painted = view.header.chunk
    assert view.header.state == "ready"


def test_another_seed_starts_with_few_tiles_at_once(
    model: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one position takes says nothing of what a whole map takes, which may be a hundred times as long."""
    view = nbviz.Explorer(model, images, layer="features.11", channel=0, tiles="guided")
    view.finish()
    view._at_once = 64
    asked: list[int] = []
    project = view.session.reconstructions

    def counted(picture: int, layer: str, channels: list[int], rule: str, seed: str) -> Any:
        asked.append(len(channels))
        return project(picture, layer, channels, rule, seed)

    monkeypatch.setattr(view.session, "reconstructions", counted)
    view.seed = "map"
    assert asked[0] <= 2


def test_a_patch_does_not_hang_on_what_was_shown_before() -> None:
    model, pictures = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:6, None]
    moved = nbviz.Reconstruction(model, pictures, layer="features.11", channel=0)
    sizes = set()
    for picture in range(6 if TIMES else 3):
        moved.picture = picture
        moved.finish()
        fresh = nbviz.Reconstruction(model, pictures, layer="features.11", channel=0, picture=picture)
        fresh.finish()
        inner = fresh.panels.slot("guided")["inner"]
        assert moved.panels.slot("guided")["inner"] == inner
        sizes.add((inner[2] - inner[0], inner[3] - inner[1]))
        fresh.close()
    assert len(sizes) > 1  # they do differ between pictures
