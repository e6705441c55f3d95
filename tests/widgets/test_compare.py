"""The widget that shows two models side by side, on one scale."""

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
from torch.nn import functional

import nbviz
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.compare import CompareResult
from nbviz.widgets.views import ChannelGrid
from tests.rounds import few
from tests.small import Small, labelled, pictures

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


class Other(nn.Module):
    """Layers of other names and sizes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 7, 5, stride=2), nn.Conv2d(7, 9, 3), nn.Linear(9, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.a(x).relu()).mean((2, 3)))
        return found


@pytest.fixture
def models() -> tuple[Small, Small]:
    return Small(), Small(seed=1)


@pytest.fixture
def images() -> Tensor:
    return pictures()


def sent(grid: ChannelGrid) -> np.ndarray:
    channels, pixels = grid.pixels()
    assert sorted(channels) == list(range(grid.tiles["shape"][0]))
    return pixels[np.argsort(channels)]


def probabilities(net: nn.Module, inputs: Tensor) -> Tensor:
    training = net.training
    net.eval()
    with torch.no_grad():
        found: Tensor = net(inputs).softmax(1)[0]
    net.train(training)
    return found


def check(view: nbviz.Compare, a: nn.Module, b: nn.Module, side: int | None = None) -> None:
    """All that is shown is what the functions give for both."""
    view.finish()
    assert (view.header.state, view.header.error) == ("ready", "")
    image = view.sessions[0].subject.inputs[view.picture : view.picture + 1]
    layers = view.layer_a, view.layer_b
    maps = [nbviz.feature_maps(net, image, layer)[0] for net, layer in zip((a, b), layers, strict=True)]
    fused = [nbviz.fuse(one[None])[0] for one in maps]
    ends = torch.stack([f.min() for f in fused]).min(), torch.stack([f.max() for f in fused]).max()
    for slot, one in zip(("a", "b"), fused, strict=True):
        np.testing.assert_array_equal(decode(view.panels.slot(slot)["over"]), quantise(one, None, ends)[0])
        assert view.panels.slot(slot)["caption"] == f"{slot}: {float(one.min()):.3g} to {float(one.max()):.3g}"
        assert view.panels.is_current(view.panels.slot(slot))
    wide = functional.interpolate(fused[1][None, None], fused[0].shape, mode="bilinear")[0, 0]
    shown = decode(view.panels.slot("difference")).astype(int)
    difference = wide - fused[0]
    largest = difference.abs().max()
    assert np.abs(shown[..., 0] - centre(difference[None], largest)[0].numpy()).max() <= 1
    assert view.panels.contrast == 1  # nothing that is shown is clipped
    assert largest == 0 or f"up to {float(largest):.3g}," in view.panels.slot("difference")["caption"]
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    for grid, one in zip(view.grids, maps, strict=True):
        np.testing.assert_array_equal(sent(grid), quantise(one, side)[0])
        assert grid.tiles["ends"] == pytest.approx([low, high])
        assert grid.scale == "shared"
    p, q = probabilities(a, image), probabilities(b, image)
    for label, after, before in view.strip.predictions:
        k = int(label[6:])
        assert (after, before) == pytest.approx((float(q[k]), float(p[k])), rel=1e-4)
    assert [control.value for control in (view.layer_a_control, view.layer_b_control)] == list(layers)
    assert view.strip.picture == view.picture


def test_all_that_is_shown_is_what_the_functions_give(
    models: tuple[Small, Small], images: Tensor, snapshot: Snapshot
) -> None:
    a, b = models
    with snapshot(a), snapshot(b):
        view = nbviz.Compare(a, b, images, "2")
        view.finish()
        assert (view.layer_a, view.layer_b) == ("2", "2")
        assert view.strip.predictions[0][0] == f"class {int(probabilities(a, images[:1]).argmax())}"
        check(view, a, b)
        view.picture = 1
        check(view, a, b)
        view.layer_a = "5"
        assert view.layer_b == "5"
        check(view, a, b)
        view.layer_b_control.set_state({"index": 0})
        assert (view.layer_a, view.layer_b) == ("5", "0")
        check(view, a, b)
        view.strip.set_state({"picture": 2})
        check(view, a, b)
        view.close()


def test_models_of_other_layers(images: Tensor) -> None:
    a, b = Small(), Other()
    view = nbviz.Compare(a, b, images)
    check(view, a, b)
    pairs = {}
    for layer in view.sessions[0].layers:
        view.layer_a = layer
        pairs[layer] = view.layer_b
        check(view, a, b)
    assert list(dict.fromkeys(pairs.values())) == ["a", "b"]  # as deep
    view = nbviz.Compare(b, a, images, "b")
    assert view.layer_b == "5"
    check(view, b, a)


def test_the_layer_that_is_most_alike_stands_beside_it(images: Tensor) -> None:
    a, b = Small(), Other()
    names = ("0", "2", "5")
    cka = torch.tensor([[0.1, 0.9, 1.0], [0.8, 0.2, 1.0], [float("nan"), 0.3, 1.0]], dtype=torch.float64)
    comparison = CompareResult(None, 0.5, cka, names, ("a", "b", "c"), 12, complete=True)
    view = nbviz.Compare(a, b, images, "0", comparison=comparison)
    pairs = {}
    for name in names:
        view.layer_a = name
        pairs[name] = view.layer_b
    assert pairs == {"0": "b", "2": "a", "5": "b"}  # of those with maps
    check(view, a, b)
    shown = decode(view.alike.slot("cka"))[..., 0]
    np.testing.assert_array_equal(shown, (255 * cka.nan_to_num(0.0)).round().byte())
    assert view.header.note == comparison.verdict


def test_the_verdict_over_a_dataset_stands_below(models: tuple[Small, Small], images: Tensor) -> None:
    comparison = nbviz.compare(*models, labelled(), progress=False)
    view = nbviz.Compare(*models, images, "2", comparison=comparison)
    assert view.header.note == comparison.verdict
    caption = view.alike.slot("cka")["caption"]
    assert caption == "CKA of 6 layers of a (rows) and 6 of b (columns), from 0 (dark) to 1 (bright)"
    check(view, *models)
    texts = [text.get_text() for text in view.figure().texts]
    assert any("on 12 pictures" in text for text in texts)
    few = nbviz.compare(*models, labelled(3), progress=False)  # too few for CKA
    assert few.cka is None
    assert nbviz.Compare(*models, images, "2", comparison=few).alike.slot("cka") == {}


def test_models_of_other_classes_show_their_layers_and_say_why_no_answers(images: Tensor) -> None:
    a, b = Small(), Other(classes=3)
    view = nbviz.Compare(a, b, images)
    view.finish()
    assert view.strip.predictions == []
    assert view.header.note == "a gives 4 classes and b 3: their predictions are not compared"
    check(view, a, b)
    assert view.figure().axes
    neither = nbviz.Compare(*[nn.Sequential(nn.Conv2d(3, 4, 3)) for _ in range(2)], images)
    neither.finish()
    assert (neither.strip.predictions, neither.header.note, neither.header.error) == ([], "", "")


def test_a_model_beside_itself_differs_in_nothing(images: Tensor) -> None:
    net = Small()
    view = nbviz.Compare(net, net, images, "2")
    check(view, net, net)
    assert (decode(view.panels.slot("difference")) == 128).all()
    assert view.panels.slot("difference")["caption"] == "b minus a: no difference"
    assert all(after == before for _, after, before in view.strip.predictions)


# What it costs.


def test_a_change_of_one_layer_runs_one_model(models: tuple[Small, Small], images: Tensor) -> None:
    view = nbviz.Compare(*models, images, "2")
    view.finish()

    def passes() -> tuple[int, ...]:
        return tuple(session.forward_passes for session in view.sessions)

    a, b = passes()
    view.layer_b = "5"
    view.finish()
    assert passes() == (a, b + 1)
    view.layer_a = "3"
    view.finish()
    assert passes() == (a + 1, b + 2)  # the other one follows
    for grid in view.grids:
        grid.set_state({"order": "strongest", "cmap": "magma", "channel": 1})
    view.panels.set_state({"opacity": 0.2})
    view.figure()
    assert passes() == (a + 1, b + 2)


def test_nothing_is_kept_beyond_the_limit(
    models: tuple[Small, Small], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbviz.widgets.memory._limit", 0)
    view = nbviz.Compare(*models, images, "2")
    check(view, *models)
    assert not any(session.trace_bytes for session in view.sessions)
    view.figure()
    assert not any(session.trace_bytes for session in view.sessions)


def test_larger_tiles_get_more_pixels(models: tuple[Small, Small]) -> None:
    images = torch.rand(1, 3, 160, 160)
    a, b = (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()) for _ in range(2))
    view = nbviz.Compare(a, b, images, "1")
    check(view, a, b, 64)
    passes = view.sessions[0].forward_passes
    for grid in view.grids:
        grid.set_state({"side": 128})
    check(view, a, b, 128)
    assert view.sessions[0].forward_passes == passes


# What is refused and what is left.


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"layer": "9"}, ValueError, "no layer '9'"),
        ({"layer": "8"}, ValueError, "layer '8' gives no feature maps"),
        ({"comparison": 3}, TypeError, "comparison is 3; expected what nbviz.compare gives, or None"),
        ({"picture": 3}, ValueError, "no picture 3"),
        ({"labels": ["a"]}, ValueError, "labels has 1 names for the model's 4 outputs"),
        ({"model_b": None}, TypeError, "expected"),
        ({"model_b": nn.Conv2d(1, 2, 3)}, ValueError, "takes 1|expected"),
        ({"images": []}, ValueError, "images is empty"),
    ],
)
def test_what_is_refused_leaves_no_widget(
    given: dict[str, Any], error: type[Exception], message: str, models: tuple[Small, Small], images: Tensor
) -> None:
    widgets = set(registry._instances)
    with pytest.raises(error, match=message):
        nbviz.Compare(**{"model_a": models[0], "model_b": models[1], "images": images, **given})
    assert set(registry._instances) == widgets


@pytest.mark.parametrize("sides", [(12,), (4, 6, 6)])
def test_signals_and_volumes_are_refused(sides: tuple[int, ...]) -> None:
    net = nn.Sequential((nn.Conv1d if len(sides) == 1 else nn.Conv3d)(2, 3, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"expected two that take pictures \(N, C, H, W\)"):
        nbviz.Compare(net, net, torch.rand(2, 2, *sides))


@pytest.mark.parametrize(
    ("name", "value"),
    few(
        [("layer_a", "9"), ("layer_b", "8"), ("layer_b", None), ("picture", 3), ("picture", "1"), ("layer_a", 2)], 1, 4
    ),
)
def test_a_bad_value_is_refused_and_nothing_changes(
    name: str, value: Any, models: tuple[Small, Small], images: Tensor
) -> None:
    view = nbviz.Compare(*models, images, "2", picture=1)
    view.layer_b = "5"
    with pytest.raises((ValueError, TypeError, t.TraitError)):
        setattr(view, name, value)
    assert (view.layer_a, view.layer_b, view.picture) == ("2", "5", 1)
    check(view, *models)


def test_an_error_in_either_model_is_a_line_and_the_widget_goes_on(
    models: tuple[Small, Small], images: Tensor, snapshot: Snapshot
) -> None:
    view = nbviz.Compare(*models, images, "2")
    view.finish()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of tune")

    for net in models:
        with snapshot(net):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(net[1], "forward", fail)
                view.picture = (view.picture + 1) % 3
                view.finish()
                assert view.header.state == "error"
                assert "out of tune" in view.header.error
                assert view._repr_mimebundle_().get("image/png") is None
            view.picture = (view.picture + 1) % 3
            check(view, *models)


def test_a_closed_widget_keeps_no_activations(models: tuple[Small, Small], images: Tensor) -> None:
    view = nbviz.Compare(*models, images, "2")
    view.finish()
    assert all(session.trace_bytes for session in view.sessions)
    view.close()
    assert not any(session.trace_bytes for session in view.sessions)


def test_the_figure_is_on_one_scale(images: Tensor) -> None:
    a, b = Small(), Small()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(b[0], name).mul_(0.25)
    view = nbviz.Compare(a, b, images, "0")
    view.finish()
    first, grids, bars = view._figure_rows()
    assert [panel.caption[:2] for panel in first] == ["a:", "b:", "b "]
    assert [len(panel.bars) for panel in bars] == [4, 4]
    maps = [nbviz.feature_maps(net, images[:1], "0")[0] for net in (a, b)]
    low, high = (float(end) for end in (maps[0].min(), maps[0].max()))
    for panel, one in zip(grids, maps, strict=True):
        steps = ((one - low) / (high - low) * 255).round().long()
        tile = np.asarray(panel.pixels)[1:33:2, 1:33:2]  # drawn at twice its size
        expected = nbviz.imaging.pixels.colour_table("viridis")[steps[0]].astype(int)
        assert np.abs(tile.astype(int) - expected).max() <= 4  # a step of the page's scale, which is rounded once more


def test_the_code_gives_the_same_view(models: tuple[Small, Small], images: Tensor) -> None:
    view = nbviz.Compare(*models, images, "5", picture=2)
    view.finish()
    given = {"nbviz": nbviz, "model_a": models[0], "model_b": models[1], "images": images}
    again = eval(view.header.code, given)
    assert (again.layer_a, again.layer_b, again.picture) == ("5", "5", 2)
