"""The widgets on signals, volumes, pictures of many bands, and pictures of every size."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nbviz
from nbviz.core.backward import RULES
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise
from nbviz.widgets.layer_widget import LayerWidget
from tests.rounds import few, long

WIDGETS = [nbviz.FeatureMaps, nbviz.Reconstruction, nbviz.Explorer]


def finished(view: LayerWidget) -> LayerWidget:
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    return view


def tiles(view: LayerWidget) -> np.ndarray:
    channels, pixels = view.grid.pixels()
    return pixels[np.argsort(channels)]


def shown(view: LayerWidget, slot: str, part: str = "") -> np.ndarray:
    slot = view.panels.slot(slot)
    return decode(slot[part] if part else slot)


# Signals


@pytest.fixture
def signals() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(
        *(nn.Conv1d(2, 7, 5, 2), nn.ReLU(), nn.Conv1d(7, 9, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(9, 3)),
    )
    return net.eval(), torch.randn(3, 2, 50)


def test_a_signals_maps_are_sent_as_curves(signals: Any) -> None:
    net, x = signals
    view = finished(nbviz.explore(net, x, "3", 4, picture=1))
    maps = nbviz.feature_maps(net, x[1:2], "3")[0]
    assert view.grid.tiles["plots"] is True
    np.testing.assert_array_equal(tiles(view), quantise(maps[:, None])[0].numpy())
    back = nbviz.reconstruct(net, x[1:2], "3", 4)
    for rule in RULES:
        expected = centre(back[rule][0, 0][:, None], back[rule].abs().max())  # a curve for each of the two channels
        np.testing.assert_array_equal(shown(view, rule), expected.permute(1, 2, 0).numpy())
    place = int(maps[4].argmax())
    first, last = view.session.layers["3"].field.box([place], [50])  # type: ignore[union-attr]
    assert view.panels.slot("picture")["box"] == [0, first, 1, last]
    assert view.panels.slot("picture")["size"] == [1, 50]
    view.tiles = "guided"
    finished(view)
    assert tiles(view).shape == (9, 1, 9, 2)


@pytest.mark.parametrize(("kind", "how"), few(product(WIDGETS, ["l2", "pca"]), 0, 2, 5))
def test_a_signals_figure(kind: Any, how: str, signals: Any) -> None:
    view = kind(*signals, layer="1", **({} if kind is nbviz.Reconstruction else {"how": how}))
    figure = view.figure()
    drawn = [axes for axes in figure.axes if axes.lines]
    assert drawn
    assert all(np.isfinite(line.get_ydata()).all() for axes in drawn for line in axes.lines)


# Volumes


@pytest.fixture
def volumes() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(
        *(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 5, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 3)),
    )
    return net.eval(), torch.randn(2, 1, 8, 12, 16)


def test_a_volume_is_shown_slice_by_slice(volumes: Any) -> None:
    net, x = volumes
    view = finished(nbviz.explore(net, x, "4", 2))
    maps, back = nbviz.feature_maps(net, x[:1], "4")[0], nbviz.reconstruct(net, x[:1], "4", 2)
    place = np.unravel_index(int(maps[2].argmax()), maps.shape[1:])
    field = view.session.layers["4"].field
    assert field is not None
    front, top, left, rear, bottom, right = field.box([int(i) for i in place], [8, 12, 16])
    assert view.plane == 4
    passes = view.session.forward_passes
    for plane in (4, 0, 7):
        view.plane = plane
        finished(view)
        ends = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
        np.testing.assert_array_equal(tiles(view), quantise(maps[:, plane // 2], None, ends)[0].numpy())
        picture = view.session.subject.pictures.display()[0, :, plane].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown(view, "picture"), picture)
        label = view.panels.slot("picture")
        assert label["mark"] is (front <= plane < rear)
        assert label["box"] == [top, left, bottom, right]
        for rule in RULES:
            whole = centre(back[rule][0, 0].reshape(1, -1, 16)).view(8, 12, 16)  # one scale for all slices
            np.testing.assert_array_equal(shown(view, rule)[..., 0], whole[plane].numpy())
            at = min(max(field.corner([int(i) for i in place])[0] + field.size[0] // 2, 0), 7)
            np.testing.assert_array_equal(shown(view, rule, "patch")[..., 0], whole[at, top:bottom, left:right].numpy())
    assert view.session.forward_passes == passes
    assert view.code.endswith("plane=7)")
    view.figure()


def test_the_tiles_of_a_volumes_reconstructions_are_in_the_slices_of_their_channels(
    volumes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = volumes
    view = finished(nbviz.explore(net, x, "1", tiles="gradient"))
    sent = tiles(view)
    back = nbviz.gradient(net, x[:1], "1")[0]
    maps = nbviz.feature_maps(net, x[:1], "1")[0]
    for channel in range(6):
        d, row, column = (int(i) for i in np.unravel_index(int(maps[channel].argmax()), maps.shape[1:]))
        padded = nn.functional.pad(back[channel, 0, d], (1, 1, 1, 1))
        expected = centre(padded[row : row + 3, column : column + 3][None])[0]
        np.testing.assert_array_equal(sent[channel, ..., 0], expected.numpy())
    view.plane = 0
    finished(view)
    np.testing.assert_array_equal(tiles(view), sent)
    monkeypatch.setattr("nbviz.widgets.base._CHUNK", 0.0)
    view.seed = "unit"  # begins anew; a slice that is chosen meanwhile does not
    assert 0 < view.grid.sent < 6
    begun = view.grid.tiles["key"]
    view.plane = 3
    finished(view)
    assert view.grid.tiles["key"] == begun


def test_a_slice_that_is_not_there(volumes: Any) -> None:
    with pytest.raises(ValueError, match=r"^no plane 8: there are 8, numbered 0 to 7$"):
        nbviz.explore(*volumes, plane=8)
    view = nbviz.explore(*volumes)
    with pytest.raises(ValueError, match="^no plane -1"):
        view.plane = -1
    with pytest.raises(TypeError, match="expected a whole number"):
        view.plane = "first"
    assert finished(view).plane == 4


# Bands


def test_the_bands_that_are_shown_are_chosen() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU()).eval()
    x = torch.rand(2, 6, 9, 11)
    view = finished(nbviz.explore(net, x, "1", 2, bands=(5, 1, 0)))
    back = nbviz.guided_backprop(net, x[:1], "1", 2)[0, 0]
    for bands in [(5, 1, 0), (3,), (0, 1, 2), (4, 2, 3)]:
        view.bands = bands
        finished(view)
        chosen = x[0, list(bands)]
        expected = (255 * chosen).round().byte().expand(3, -1, -1).permute(1, 2, 0)
        np.testing.assert_array_equal(shown(view, "picture"), expected.numpy())
        np.testing.assert_array_equal(shown(view, "guided"), centre(back[list(bands)]).permute(1, 2, 0).numpy())
        assert view.bands_control.value == bands
        assert np.frombuffer(view.strip.thumbs[0]["data"], np.uint8).tolist() == expected.flatten().tolist()
    assert view.code.endswith("bands=(4, 2, 3))")
    view.figure()
    for bands, error in (((6,), "^no band 6: there are 6"), ((), "^bands is empty"), ("red", "^band: got 'red'")):
        with pytest.raises((ValueError, TypeError), match=error):
            view.bands = bands
    view = nbviz.explore(net, x)
    assert view.bands_control in view.children[1].children[0].children


def test_pictures_in_colour_offer_no_bands() -> None:
    view = nbviz.explore(nn.Sequential(nn.Conv2d(3, 2, 1)), torch.rand(1, 3, 4, 4))
    assert view.bands_control not in view.children[1].children[0].children


# Sizes


@pytest.mark.parametrize(
    ("kind", "sides"),
    few(product(WIDGETS, [(1, 1), (1, 7), (7, 1), (2, 3), (3, 200), (211, 5)]), 3, 7, 11, 12, 14, 16),
)
def test_pictures_of_every_shape(kind: Any, sides: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()).eval()
    view = finished(kind(net, torch.rand(2, 3, *sides)))
    view.picture = 1
    finished(view).figure()
    if kind is nbviz.Explorer:
        view.tiles = "guided"
        finished(view)
        assert len(view.grid.pixels()[0]) == 4
    view.close()


@pytest.mark.parametrize("sides", [pytest.param((4096, 4096), marks=long), (2500, 60)])
def test_large_pictures_are_sent_as_large_as_a_page_shows_them(sides: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 5, stride=4), nn.ReLU(), nn.Conv2d(2, 3, 3, stride=2), nn.ReLU()).eval()
    x = torch.rand(1, 3, *sides)
    view = finished(nbviz.explore(net, x, "3", 1))
    picture = view.panels.slot("picture")
    assert 1024 <= max(picture["shape"]) < 2048
    assert picture["size"] == list(sides)
    top, left, bottom, right = picture["inner"]
    expected = (255 * x[0, :, top:bottom, left:right]).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(shown(view, "picture", "patch"), expected.numpy())
    back = nbviz.gradient(net, x, "3", 1)[0, 0, :, top:bottom, left:right]
    sizes = back[back != 0].abs().sort().values
    expected = centre(back, sizes[-1 - len(sizes) // 200]).permute(1, 2, 0)
    np.testing.assert_array_equal(shown(view, "gradient", "patch"), expected.numpy())
    sent = sum(
        len(value["data"]) for value in view.panels.get_state().values() if isinstance(value, dict) and "data" in value
    )
    assert sent < 12 * 2048 * 2048
    view.figure()
    view.close()


def test_other_bands_of_a_volume_have_reconstructions_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU()).eval()
    x = torch.rand(1, 2, 8, 8, 8)
    moved = finished(nbviz.explore(net, x, "1", channel=1, bands=0))
    moved.bands = 1
    fresh = finished(nbviz.explore(net, x, "1", channel=1, bands=1))
    for rule in RULES:
        shown, expected = (decode(view.panels.slot(rule)) for view in (finished(moved), fresh))
        np.testing.assert_array_equal(shown, expected)
