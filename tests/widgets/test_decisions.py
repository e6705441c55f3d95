"""What decided: the widgets send what the functions give, refuse what is wrong, and leave the model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traitlets import TraitError

import nbviz
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import quantise
from nbviz.widgets.class_activation import NAMES
from nbviz.widgets.explorer import VIEWS
from tests.rounds import few
from tests.small import Weighted


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return nbviz.bundled.load("fashion")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return nbviz.bundled.fashion_test()[0][:4, None]


KINDS = (nbviz.ClassActivation, nbviz.Occlusion, nbviz.Regions, nbviz.Sanity)


@pytest.mark.parametrize("kind", few(KINDS, 2))
def test_the_model_is_as_it_was_and_a_figure_shows_something(
    kind: Any, model: nn.Module, images: Tensor, snapshot: Any
) -> None:
    with snapshot(model):
        view = kind(model, images, picture=1)
        view.finish()
        assert view.header.error == ""
        assert view.header.state == "ready"
        figure = view.figure()
        view.picture = 2
        view.finish()
        view.close()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_classes_is_refused(kind: Any, images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"gives no class scores; expected \(N, classes\): say with output= where they are"
    ):
        kind(nn.Sequential(nn.Conv2d(1, 2, 3)), images)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_set_is_accepted_or_refused_in_words(kind: Any, model: nn.Module, images: Tensor) -> None:
    view = kind(model, images)
    with pytest.raises((ValueError, TraitError), match="no picture 9: there are 4, numbered 0 to 3"):
        view.picture = 9
    assert view.picture == 0
    view.close()


# Class activation


def over(view: Any, slot: str) -> Any:
    return decode(view.panels.slot(slot)["over"])


def steps(heat: Tensor) -> Any:
    return quantise(heat, None, (torch.zeros(()), torch.ones(())))[0].numpy()


def test_class_activation_shows_the_functions_maps(model: nn.Module, images: Tensor) -> None:
    view = nbviz.ClassActivation(model, images, picture=1)
    view.finish()
    predicted = int(model(images[1:2] / 255).argmax())
    assert view.target == predicted
    view.target = 3
    view.finish()
    for name in ("grad_cam", "grad_cam_pp", "layer_cam", "xgrad_cam", "hires_cam"):
        heat = getattr(nbviz.cams, name)(model, images[1:2], view.layer, 3)[0]
        np.testing.assert_array_equal(over(view, name), steps(heat))
    for name in NAMES:
        view.method = name
        view.finish()
        arguments = (model, images[1:2], view.layer, *([] if name == "eigen_cam" else [3]))
        np.testing.assert_array_equal(over(view, "large"), steps(getattr(nbviz.cams, name)(*arguments)[0]))
        assert NAMES[name] in view.panels.slot("large")["caption"]


def test_another_picture_takes_its_own_class_and_a_chosen_one_stays_with_the_layer(model: Any, images: Any) -> None:
    view = nbviz.ClassActivation(model, images)
    view.finish()
    view.picture = 2
    view.finish()
    assert view.target == int(model(images[2:3] / 255).argmax())
    view.target = 7
    view.layer = "features.8"
    view.finish()
    assert (view.target, view.layer) == (7, "features.8")
    assert view.target_control.value == 7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "gradcam", "no method 'gradcam'; did you mean 'grad_cam'"),
        ("target", 10, "no class 10: there are 10, numbered 0 to 9"),
        ("layer", "features.99", "no layer with feature maps 'features.99'; did you mean"),
    ],
)
def test_class_activation_refuses_in_words(model: Any, images: Any, name: str, value: Any, message: str) -> None:
    view = nbviz.ClassActivation(model, images)
    before = getattr(view, name)
    with pytest.raises((ValueError, TraitError), match=message):
        setattr(view, name, value)
    assert getattr(view, name) == before
    with pytest.raises(ValueError, match=message.partition(";")[0].replace(" with feature maps", "")):
        nbviz.ClassActivation(model, images, **{name: value})


# Occlusion


def test_occlusion_fills_its_maps_piece_by_piece(model: nn.Module, images: Tensor) -> None:
    view = nbviz.Occlusion(model, images, patch=8, stride=2, layer="features.8", picture=0)
    view.finish()
    found = nbviz.occlusion(model, images[:1], patch=8, stride=2, layer="features.8")
    for slot, values in (("probability", found.probability[0]), ("activity", found.activity[0])):  # type: ignore[index]
        low, high = values.min(), values.max()
        expected = 255 * (values.double() - low) / (high - low)
        assert np.abs(over(view, slot).astype(float) - expected.numpy()).max() <= 0.51
    shades = {"blue": (31, 119, 180), "orange": (255, 127, 14), "green": (44, 160, 44), "red": (214, 39, 40)}
    classes, counts = found.named[0].unique(return_counts=True)
    order = classes[counts.argsort(descending=True, stable=True)].tolist()
    assert 2 <= len(order) <= len(shades)
    wide = nn.functional.interpolate(found.named[:, None].double(), (28, 28))[0, 0].numpy()
    for one, (shade, colour) in zip(order, shades.items(), strict=False):
        assert (over(view, "named")[wide == one] == colour).all()
        assert f"{view.session.labels[one]} ({shade})" in view.panels.slot("named")["caption"]  # type: ignore[index]
    assert view.header.cost == f"{found.probability[0].numel()} of {found.probability[0].numel()} squares"
    assert f"#{int(found.channel[0])}" in view.panels.slot("activity")["caption"]  # type: ignore[index]


def test_another_square_starts_over(model: nn.Module, images: Tensor) -> None:
    view = nbviz.Occlusion(model, images)
    view.patch, view.stride, view.fill = 14, 14, "mean"
    view.finish()
    assert over(view, "probability").shape == (2, 2)
    for name, value in (("patch", 29), ("patch", 0), ("stride", 0), ("fill", "white")):
        with pytest.raises((ValueError, TraitError), match=r"expected at|no fill 'white'.* Accepted: grey, mean, blur"):
            setattr(view, name, value)
    assert (view.patch, view.stride, view.fill) == (14, 14, "mean")


# Regions


def shares(view: Any) -> dict[str, tuple[float, float]]:
    return {label: (after, before) for label, after, before in view.strip.predictions}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("fill", ["grey", "mean", "blur"])
def test_a_region_changes_the_answer_as_the_function_says(model: Any, images: Any, keep: bool, fill: str) -> None:
    view = nbviz.Regions(model, images, (4, 4, 20, 16), keep, fill, picture=1)
    view.finish()
    effect = nbviz.region_effect(model, images[1:2], (4, 4, 20, 16), keep, fill)
    names = list(view.session.labels or ())
    for label, (after, before) in shares(view).items():
        assert after == pytest.approx(float(effect.after[0, names.index(label)]), abs=1e-5)
        assert before == pytest.approx(float(effect.before[0, names.index(label)]), abs=1e-5)
    shown = decode(view.panels.slot("cut"))
    np.testing.assert_array_equal(shown[..., 0], (effect.inputs[0, 0] * 255).round().byte().numpy())


def test_what_is_painted_is_the_region(model: nn.Module, images: Tensor) -> None:
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[3:9, 5:20] = True
    view = nbviz.Regions(model, images, mask)
    assert view.mode == "paint"
    assert torch.equal(view.region, mask)
    view.mask = bytes(28 * 28)
    assert not view.region.any()
    view.mode = "box"
    assert int(view.region.sum()) == 14 * 14
    view.drawing.set_state({"mask": memoryview(mask.to(torch.uint8).numpy().tobytes()), "mode": "paint"})
    assert torch.equal(view.region, mask)  # as it comes from the page
    view.box = [1, 2, 3, 4]
    assert view.mode == "box"  # what was set last counts
    view.mask = (~mask).to(torch.uint8).numpy().tobytes()
    assert view.mode == "paint"
    for name, value in (("box", [0, 0, 29, 5]), ("box", [5, 5, 5, 9]), ("mask", b"123"), ("mode", "draw")):
        with pytest.raises((ValueError, TypeError, TraitError), match="expected|Accepted"):
            setattr(view, name, value)


@pytest.mark.parametrize("corner", [0, 1])
def test_the_copied_code_gives_the_painted_region_again(model: nn.Module, images: Tensor, corner: int) -> None:
    mask = torch.rand(28, 28) < 0.3
    mask[0, 0] = bool(corner)
    view = nbviz.Regions(model, images, mask, False, "blur", picture=1)
    view.finish()
    again = eval(view.header.code, {"nbviz": nbviz, "numpy": np, "model": model, "images": images})
    assert torch.equal(again.region, mask)
    assert (again.keep, again.fill, again.picture) == (False, "blur", 1)
    view.box = [1, 2, 3, 4]
    view.finish()
    assert view.header.code == "nbviz.Regions(model, images, mask=[1, 2, 3, 4], picture=1, keep=False, fill='blur')"


def test_another_painting_makes_another_cut(model: nn.Module, images: Tensor) -> None:
    view = nbviz.Regions(model, images, torch.eye(28) > 0)
    view.finish()
    before = view.panels.current
    view.mask = bytes([0, 1]) * (28 * 14)
    view.finish()
    assert view.panels.current != before


# Sanity


def test_sanity_draws_the_curves_of_the_functions(model: nn.Module, images: Tensor) -> None:
    view = nbviz.Sanity(model, images, "gradient", picture=2)
    view.finish()
    found = nbviz.sanity.randomisation(model, images[2:3], "gradient")
    ranks, likeness = view.curve.series
    assert ranks["y"] == pytest.approx([1.0, *found.rank[:, 0].tolist()])
    assert likeness["y"] == pytest.approx([1.0, *found.ssim[:, 0].tolist()])
    assert view.header.note == found.verdict
    out = nbviz.sanity.deletion_insertion(model, images[2:3], nbviz.gradient(model, images[2:3]), steps=24)
    assert view.pixels.series[0]["y"] == pytest.approx(out.deletion[0].tolist())
    view.method = "guided_backprop"
    view.finish()
    assert view.header.note.startswith("guided_backprop hardly changes")
    assert view.panels.is_current(view.panels.slot("film_7"))
    with pytest.raises((ValueError, TraitError), match="no method 'lime'. Accepted: gradient"):
        view.method = "lime"


# The explorer


def test_the_explorer_opens_each_on_its_own_picture(model: nn.Module, images: Tensor, snapshot: Any) -> None:
    with snapshot(model):
        view = nbviz.explore(model, images, picture=2)
        view.finish()
        for name in VIEWS[1:]:
            view.view = name
            other = view._others[name]
            other.finish()
            assert other.picture == 2
            assert view.children[1] is other
            assert other.header.error == ""
        assert view.figure() is not None
        view.view = "channels"
        assert view.children[1] is view.header
        view.close()
    with pytest.raises((ValueError, TraitError), match="no view 'channel'; did you mean 'channels'"):
        nbviz.explore(model, images).view = "channel"


def test_an_instrument_that_fails_is_a_line_and_the_channels_stay(images: Tensor) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head, self.calls = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            if self.calls:
                raise RuntimeError("no more")
            return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]

    model = Strange()
    view = nbviz.explore(model, images, layer="features")
    view.finish()
    model.calls = 1
    view.view = "occlusion"
    assert view.view == "channels"
    assert "no more" in view.header.error
    model.calls = 0
    view.view = "occlusion"
    assert view.view == "occlusion"


def test_a_network_without_classes_has_no_other_views(images: Tensor) -> None:
    view = nbviz.explore(nn.Sequential(nn.Conv2d(1, 2, 3)), images)
    assert view.children[0] is view.header


# Pictures whose answers hang on each other


def test_pictures_that_hang_on_each_other_stay_together(images: Tensor) -> None:
    """The widgets show what the functions give for all pictures, not for the chosen one alone."""

    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model, options = Weighted(1).eval(), {"inputs": lambda x: (x, weights)}

    activation = nbviz.ClassActivation(model, images, "bn", 1, "score_cam", picture=2, **options)
    activation.finish()
    assert activation.header.error == ""
    for slot, method in (("large", nbviz.cams.score_cam), ("layer_cam", nbviz.cams.layer_cam)):
        expected = steps(method(model, images, "bn", 1, **options)[2:3])
        assert np.abs(over(activation, slot).astype(int) - expected).max() <= 1

    occlusion = nbviz.Occlusion(model, images, 1, 8, 8, picture=2, **options)
    occlusion.finish()
    assert occlusion.header.error == ""
    found = nbviz.occlusion(model, images, 1, 8, 8, **options).probability[2]
    expected = 255 * (found - found.min()) / (found.max() - found.min())
    assert np.abs(over(occlusion, "probability").astype(float) - expected.numpy()).max() <= 1

    sanity = nbviz.Sanity(model, images, "input_x_gradient", picture=2, **options)
    sanity.finish()
    assert sanity.header.error == ""
    chosen = int(model(images / 255, weights)[2].argmax())
    maps = nbviz.attribution.input_x_gradient(model, images, chosen, **options)
    curves = nbviz.sanity.deletion_insertion(model, images, maps, target=None, steps=24, **options)
    assert sanity.pixels.series[0]["name"] == f"deleted, area {float(curves.deletion_area[2]):.2f}"
