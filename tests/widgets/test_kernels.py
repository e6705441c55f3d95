"""The widget that shows the kernels of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn

import nbviz
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise
from nbviz.widgets.views import ChannelGrid
from tests.rounds import few
from tests.small import Ran, Small

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


@pytest.fixture
def net() -> Small:
    return Small()


def sent(grid: ChannelGrid) -> np.ndarray:
    """The tiles in the kernels' own order."""
    channels, pixels = grid.pixels()
    assert sorted(channels) == list(range(grid.tiles["shape"][0]))
    return pixels[np.argsort(channels)]


def ends(grid: ChannelGrid) -> np.ndarray:
    """Low and high of each tile, in the same order."""
    block = grid.block(0)
    both = [np.frombuffer(block[end], np.float32)[np.argsort(block["channels"])] for end in ("low", "high")]
    return np.stack(both)


def check(view: nbviz.Kernels, found: Tensor) -> None:
    """What is shown is these kernels (K, I, h, w)."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    assert view.grid.title == f"{len(found)} kernels of {'×'.join(map(str, found.shape[1:]))}"
    strengths = np.frombuffer(view.grid.tiles["strength"], np.float32)
    np.testing.assert_allclose(strengths, found.flatten(1).norm(dim=1), rtol=1e-5)
    if found.shape[1] in (1, 3):
        high = found.flatten(1).abs().amax(1)
        np.testing.assert_array_equal(sent(view.grid), centre(found, high).permute(0, 2, 3, 1))
        np.testing.assert_allclose(ends(view.grid), torch.stack([-high, high]), rtol=1e-6)
    else:
        strength = found.square().mean(1).sqrt()
        high = strength.amax((1, 2))
        np.testing.assert_array_equal(sent(view.grid), quantise(strength, None, (torch.zeros(len(high)), high))[0])
        np.testing.assert_allclose(ends(view.grid), torch.stack([0 * high, high]), rtol=1e-6)
    kernel = found[view.channel]
    shown = kernel if len(kernel) in (1, 3) else kernel.mean(0, keepdim=True)
    np.testing.assert_array_equal(decode(view.panels.slot("kernel")), centre(shown, shown.abs().max()).permute(1, 2, 0))
    assert view.panels.slot("kernel")["caption"].startswith(f"#{view.channel}, norm {float(kernel.norm()):.3g}")
    np.testing.assert_array_equal(sent(view.slices)[..., 0], centre(kernel[:, None], kernel.abs().amax((1, 2)))[:, 0])
    assert (view.slices.layout.display == "none") == (len(kernel) == 1)
    controls = view.layer_control.value, view.channel_control.value, view.channel_control.max
    assert controls == (view.layer, view.channel, len(found) - 1)


def response(view: nbviz.Kernels, kernel: Tensor) -> None:
    """What is shown of it is the frequencies of this kernel (1, I, h, w)."""
    expected = nbviz.frequency_response(kernel, 32)[0]
    steps = decode(view.panels.slot("response"))[..., 0]
    np.testing.assert_allclose(steps / 255, expected / expected.max(), atol=0.5 / 255 + 1e-6)
    assert view.panels.is_current(view.panels.slot("response"))


def test_all_that_is_shown_is_what_the_functions_give(net: Small, snapshot: Snapshot) -> None:
    with snapshot(net), Ran() as ran:
        view = nbviz.Kernels(net)
        assert view.layer == "0"
        check(view, nbviz.kernels(net, "0"))
        response(view, nbviz.kernels(net, "0", 0))
        view.channel = 3
        check(view, nbviz.kernels(net, "0"))
        response(view, nbviz.kernels(net, "0", 3))
        view.layer = "4"
        check(view, nbviz.kernels(net, "4"))
        view.channel_control.set_state({"value": 5})
        check(view, nbviz.kernels(net, "4"))
        response(view, nbviz.kernels(net, "4", 5))
        view.layer_control.set_state({"index": 0})
        check(view, nbviz.kernels(net, "0"))
        assert view.channel == 4  # the last, as there is no fifth
        view.figure()
        view.close()
    assert not ran.times["convolution"]


def test_the_note_says_what_is_wrong_with_the_kernels(net: Small) -> None:
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].weight[1] = 2 * net[0].weight[0]
    view = nbviz.Kernels(net)
    view.finish()
    assert view.header.note.startswith("dead (almost zero): 2; alike: 0 and 1 (+1.000); ")
    view.layer = "4"
    view.finish()
    assert view.header.note.startswith("dead (almost zero): none; alike: none; ")


def test_the_picked_kernel_alone_is_drawn_anew(net: Small) -> None:
    view = nbviz.Kernels(net)
    view.finish()
    key, slices = view.grid.tiles["key"], view.slices.tiles["key"]
    view.channel = 2
    view.finish()
    assert (view.grid.tiles["key"], view.slices.tiles["key"]) == (key, slices + 1)


@pytest.mark.parametrize(
    ("layer", "shape"),
    few(
        [
            (nn.Conv2d(4, 6, (3, 5), groups=2), (6, 2, 3, 5)),
            (nn.Conv2d(4, 4, 3, groups=4), (4, 1, 3, 3)),
            (nn.ConvTranspose2d(4, 6, 3, groups=2), (6, 2, 3, 3)),
            (nn.Conv1d(4, 6, 5), (6, 4, 1, 5)),
            (nn.Conv3d(3, 2, (2, 3, 4)), (2, 3, 3, 8)),  # the slices side by side
            (nn.Conv2d(3, 1, 40), (1, 3, 40, 40)),
            (nn.Conv2d(4, 2, 3).to(torch.bfloat16), (2, 4, 3, 3)),
        ],
        *(2, 4, 6),
    ),
)
def test_convolutions_of_every_kind(layer: Any, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Identity(), layer)
    found = nbviz.kernels(net).float()
    found = found[:, :, None] if found.ndim == 3 else found
    found = found.transpose(2, 3).flatten(3) if found.ndim == 5 else found
    assert found.shape == shape
    view = nbviz.Kernels(net)
    check(view, found)
    view.channel = len(found) - 1
    check(view, found)
    assert view.figure().axes


def test_a_response_of_another_layer_is_not_shown_as_this_ones() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Conv1d(4, 4, 3))
    view = nbviz.Kernels(net)
    view.layer = "2"
    view.finish()
    assert not view.panels.is_current(view.panels.slot("response"))  # which the page dims
    assert len(view._figure_rows()[0]) == 2


def test_a_model_that_is_a_convolution_itself() -> None:
    net = nn.Conv2d(3, 4, 3)
    view = nbviz.Kernels(net, channel=2)
    assert view.layer == ""
    check(view, nbviz.kernels(net))
    view.channel = 3
    check(view, nbviz.kernels(net))


@pytest.mark.parametrize("inputs", [3, 8])
def test_kernels_of_one_pixel_are_on_one_scale(inputs: int) -> None:
    net = nn.Sequential(nn.Conv2d(inputs, 5, 1))
    view = nbviz.Kernels(net)
    view.finish()
    weight = net[0].weight.detach()
    if inputs == 3:
        expected = centre(weight, weight.abs().max()).permute(0, 2, 3, 1)
    else:
        strength = weight.square().mean(1).sqrt()
        expected = quantise(strength, None, (torch.zeros(5), strength.max().expand(5)))[0]
    np.testing.assert_array_equal(sent(view.grid), expected)
    kernel = weight[0][:, None]
    np.testing.assert_array_equal(sent(view.slices), centre(kernel, kernel.abs().max()).permute(0, 2, 3, 1))
    assert (decode(view.panels.slot("response")) == 255).all()  # all frequencies alike


def test_a_parametrisation_is_asked_and_left_alone(snapshot: Snapshot) -> None:
    """Spectral norm notes something whenever a module in train mode is asked for its weight."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))).train()
    with snapshot(net):
        view = nbviz.Kernels(net)
        check(view, nbviz.kernels(net))
        view.channel = 2
        view.figure()
        view.close()


def test_weights_that_change_are_seen_when_drawn_anew(net: Small) -> None:
    view = nbviz.Kernels(net)
    view.finish()
    with torch.no_grad():
        net[0].weight.mul_(-1)
        net[4].weight.fill_(float("nan"))
    view.layer = "4"
    check(view, torch.zeros(6, 5, 3, 3))
    view.layer = "0"
    check(view, nbviz.kernels(net, "0"))


@pytest.mark.parametrize(
    ("model", "given", "error", "message"),
    [
        (Small(), {"layer": "9"}, ValueError, "no layer '9'"),
        (Small(), {"layer": "1"}, ValueError, "layer '1' is not a convolution and has no kernels. Accepted: 0, 4"),
        (Small(), {"layer": 3}, ValueError, "no layer '3'|expected"),
        (Small(), {"channel": 5}, ValueError, "no channel 5: there are 5"),
        (Small(), {"channel": "1"}, TypeError, "expected a whole number"),
        (Small(), {"picture": 1}, TypeError, "picture"),
        (nn.Linear(2, 2), {}, ValueError, "has no convolution"),
        ("model", {}, TypeError, "expected"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    model: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    widgets = set(registry._instances)
    with pytest.raises((error, TypeError), match=message):
        nbviz.Kernels(model, **given)
    assert set(registry._instances) == widgets


@pytest.mark.parametrize(
    ("name", "value"), few([("layer", "1"), ("layer", None), ("channel", 5), ("channel", None)], 0, 3)
)
def test_a_bad_value_is_refused_and_nothing_changes(name: str, value: Any, net: Small) -> None:
    view = nbviz.Kernels(net, channel=2)
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        setattr(view, name, value)
    check(view, nbviz.kernels(net, "0"))
    assert view.channel == 2


def test_the_code_gives_the_same_view(net: Small) -> None:
    view = nbviz.Kernels(net, "4", 3)
    view.finish()
    again = eval(view.header.code, {"nbviz": nbviz, "model": net})
    assert (again.layer, again.channel) == ("4", 3)
