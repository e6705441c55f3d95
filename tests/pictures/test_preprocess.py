"""A model's preprocessing is found, is exactly its own, and is undone for display."""

import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

import nbviz
from nbviz.errors import PictureError
from nbviz.pictures.preprocess import Preprocess, find_preprocess, input_shape
from tests.rounds import long


@pytest.fixture(scope="module")
def photo():
    """Smooth with edges, and not square, so that resizing and cropping show."""
    rows, columns = np.mgrid[:300, :400] / 400
    waves = np.stack([np.sin(9 * rows + 5 * columns * c) for c in (1, 2, 3)], 2)
    waves[100:150, 200:320] = 1
    return Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8))


# Builder, and the weights it would have: the default ones of its size.
TORCHVISION = {
    "resnet18": (models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1),
    "mobilenet_v3_small": (models.mobilenet_v3_small, models.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
    "vit_b_16": (models.vit_b_16, models.ViT_B_16_Weights.IMAGENET1K_V1),
    "squeezenet1_0": (models.squeezenet1_0, models.SqueezeNet1_0_Weights.IMAGENET1K_V1),
    "squeezenet1_1": (models.squeezenet1_1, models.SqueezeNet1_1_Weights.IMAGENET1K_V1),
    "mobilenet_v3_large": (models.mobilenet_v3_large, models.MobileNet_V3_Large_Weights.IMAGENET1K_V2),
    "resnet50": (models.resnet50, models.ResNet50_Weights.IMAGENET1K_V2),
    "googlenet": (
        lambda: models.googlenet(aux_logits=False, init_weights=False),
        models.GoogLeNet_Weights.IMAGENET1K_V1,
    ),
    "inception_v3": (
        lambda: models.inception_v3(aux_logits=False, init_weights=False),
        models.Inception_V3_Weights.IMAGENET1K_V1,
    ),
    "efficientnet_b1": (models.efficientnet_b1, models.EfficientNet_B1_Weights.IMAGENET1K_V2),
}


LARGE = "vit_b_16", "resnet50", "mobilenet_v3_large"  # each has a smaller one of its kind beside it
BUILT = [pytest.param(name, marks=long) if name in LARGE else name for name in TORCHVISION]
TIMM = ["test_resnet", "test_efficientnet", "test_vit"]


@pytest.fixture(scope="module", params=BUILT)
def from_torchvision(request):
    build, weights = TORCHVISION[request.param]
    return build(), weights


def test_torchvisions_is_found_and_exactly_that_of_the_weights(from_torchvision, photo):
    net, weights = from_torchvision
    found = find_preprocess(net)
    assert torch.equal(found(photo), weights.transforms()(photo))
    assert found.labels == tuple(weights.meta["categories"])
    assert found.source == f"torchvision's {weights}"
    assert torch.equal(nbviz.load(net, photo).inputs[0], weights.transforms()(photo))


def test_torchvisions_is_undone_for_display(from_torchvision, photo):
    net, weights = from_torchvision
    preset = weights.transforms()
    resized = TF.resize(photo, preset.resize_size, preset.interpolation, antialias=preset.antialias)
    cropped = TF.pil_to_tensor(TF.center_crop(resized, preset.crop_size))
    shown = nbviz.load(net, photo).display()
    assert shown.dtype == torch.uint8
    assert (shown[0].int() - cropped.int()).abs().max() <= 1


def test_labels_are_not_given_to_another_head(photo):
    net = models.squeezenet1_1(num_classes=7)
    found = find_preprocess(net)
    assert found.labels is None
    assert torch.equal(found(photo), models.SqueezeNet1_1_Weights.DEFAULT.transforms()(photo))


@pytest.fixture(scope="module", params=TIMM)
def from_timm(request):
    return timm.create_model(request.param, pretrained=False)


@pytest.fixture(scope="module", params=[*BUILT, *TIMM])
def from_either(request):
    if request.param in TORCHVISION:
        return TORCHVISION[request.param][0]()
    return timm.create_model(request.param, pretrained=False)


def test_timms_is_found_and_exactly_that_of_its_configuration(from_timm, photo):
    net = from_timm
    config = timm.data.resolve_data_config(model=net)
    expected = timm.data.create_transform(**config, is_training=False)
    found = find_preprocess(net)
    assert torch.equal(found(photo), expected(photo))
    assert found.source == "timm's configuration"
    assert torch.equal(nbviz.load(net, photo).inputs[0], expected(photo))


def test_timms_is_undone_for_display(from_timm, photo):
    config = timm.data.resolve_data_config(model=from_timm)
    *before, normalise = timm.data.create_transform(**config, is_training=False).transforms
    assert isinstance(normalise, transforms.Normalize)
    expected = transforms.Compose(before)(photo)
    shown = nbviz.load(from_timm, photo).display()[0]
    assert (shown / 255 - expected).abs().max() <= 1 / 255


def test_timms_thousand_labels_are_imagenets():
    net = timm.create_model("test_resnet", pretrained=False, num_classes=1000)
    assert find_preprocess(net).labels[281] == "tabby"
    assert find_preprocess(timm.create_model("test_resnet", num_classes=9)).labels is None


def test_a_grey_timm_model_takes_grey(photo):
    net = timm.create_model("test_resnet", pretrained=False, in_chans=1)
    config = timm.data.resolve_data_config(model=net)
    *before, _ = timm.data.create_transform(**config, is_training=False).transforms
    pictures = nbviz.load(net, photo)
    mean, std = (sum(config[name]) / 3 for name in ("mean", "std"))
    expected = (transforms.Compose(before)(photo.convert("L")) - mean) / std
    torch.testing.assert_close(pictures.inputs[0], expected)
    net(pictures.inputs)
    shown = transforms.Compose(before)(photo.convert("L")).expand(3, -1, -1)
    assert (pictures.display()[0] / 255 - shown).abs().max() <= 1 / 255


def test_a_model_that_only_looks_like_timms(monkeypatch):
    net = nn.Conv2d(3, 4, 3)
    net.pretrained_cfg = {"mean": (0.5,)}
    monkeypatch.setitem(sys.modules, "timm.data", None)  # as if it were not installed
    assert find_preprocess(net).source.startswith("none known")


def test_nothing_is_downloaded(from_either, photo, monkeypatch):
    import socket

    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    nbviz.load(from_either, photo)


# A model of one's own


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L"), (4, "RGB")])
def test_a_model_of_nobodys_takes_pictures_as_they_are(channels, mode, photo):
    net = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 2, 3))
    found = find_preprocess(net)
    assert torch.equal(found(photo), TF.to_tensor(photo.convert(mode)))
    assert (found.mean, found.std, found.labels) == (None, None, None)
    assert input_shape(net)[0] == channels


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.DataParallel(nn.DataParallel(net))])
def test_a_parallel_model_is_what_it_wraps(wrap, photo):
    net = models.squeezenet1_1()
    assert find_preprocess(wrap(net)).source == find_preprocess(net).source != "given"
    assert len(find_preprocess(wrap(net)).labels) == 1000
    net.nbviz_preprocess = own = Preprocess(TF.to_tensor)
    assert find_preprocess(wrap(net)) is own


def test_a_distributed_model_is_what_it_wraps():
    net = models.squeezenet1_1()
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)  # without the processes that it works with
    nn.Module.__init__(wrapped)
    wrapped.module = net
    assert find_preprocess(wrapped).source == find_preprocess(net).source


def test_a_subclass_of_torchvisions_is_a_model_of_ones_own(photo):
    class Mine(models.SqueezeNet):
        pass

    assert find_preprocess(Mine()).source.startswith("none known")


def test_a_model_may_carry_its_own(photo):
    net = nn.Conv2d(3, 2, 1)
    net.nbviz_preprocess = own = Preprocess(lambda picture: torch.ones(3, 2, 2), labels=("a", "b"), source="mine")
    assert find_preprocess(net) is own
    assert nbviz.load(net, photo).inputs.tolist() == torch.ones(1, 3, 2, 2).tolist()
    net.nbviz_preprocess = "something else"
    assert find_preprocess(net).source.startswith("none known")


# Given


STEPS = {
    "Compose": lambda: transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.2, 0.3, 0.4], [0.5, 0.6, 0.7]),
        ]
    ),
    "Compose in Compose": lambda: transforms.Compose(
        [
            transforms.Resize(40),
            transforms.Compose([transforms.CenterCrop(32), transforms.ToTensor()]),
            transforms.Compose([transforms.Normalize([0.2, 0.3, 0.4], [0.5, 0.6, 0.7])]),
        ]
    ),
    "v2": lambda: v2.Compose(
        [
            v2.Resize(40),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.2, 0.3, 0.4], [0.5, 0.6, 0.7]),
        ]
    ),
    "one value for all": lambda: transforms.Compose(
        [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
    ),
}


@pytest.mark.parametrize("steps", STEPS)
def test_what_is_given_is_used_and_undone(steps, photo):
    given = STEPS[steps]()
    net = models.squeezenet1_1()
    pictures = nbviz.load(net, photo, given)
    assert torch.equal(pictures.inputs[0], given(photo))
    assert pictures.preprocess.source == "given"
    cropped = TF.pil_to_tensor(TF.center_crop(TF.resize(photo, 40), 32))
    assert (pictures.display()[0].int() - cropped.int()).abs().max() <= 1


def test_what_is_given_keeps_the_labels_found():
    net = models.squeezenet1_1()
    assert find_preprocess(net, transforms.ToTensor()).labels == find_preprocess(net).labels
    assert find_preprocess(net, Preprocess(transforms.ToTensor())).labels == find_preprocess(net).labels
    assert find_preprocess(net, Preprocess(transforms.ToTensor(), labels=("a",))).labels == ("a",)


def test_a_given_one_for_a_grey_model_gets_grey_pictures(photo):
    modes = []
    given = transforms.Compose([lambda picture: modes.append(picture.mode) or picture, transforms.ToTensor()])
    assert nbviz.load(nn.Conv2d(1, 1, 1), photo, given).inputs.shape == (1, 1, 300, 400)
    assert modes == ["L"]


def test_without_a_known_normalisation_each_pictures_range_is_stretched():
    preprocess = Preprocess(lambda picture: torch.zeros(3, 1, 1))
    inside = torch.rand(2, 3, 4, 4)
    assert torch.equal(preprocess.undo(inside), inside)
    shown = preprocess.undo(5 * torch.randn(2, 3, 4, 4))
    assert shown.amin((1, 2, 3)).tolist() == [0, 0]
    assert shown.amax((1, 2, 3)).tolist() == [1, 1]
    assert preprocess.undo(torch.full((1, 3, 2, 2), 7.0)).unique().tolist() == [0]


def test_undoing_stays_between_0_and_1():
    preprocess = Preprocess(lambda picture: torch.zeros(3, 1, 1), mean=(0.5,), std=(0.5,))
    assert preprocess.undo(torch.tensor([-9.0, 0.0, 9.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 0.5, 1]


# Redone: from a picture in [0, 1] to the model's input


def test_what_torchvision_makes_is_made_again_from_the_picture(from_torchvision, photo):
    net, weights = from_torchvision
    preset = weights.transforms()
    resized = TF.resize(photo, preset.resize_size, preset.interpolation, antialias=preset.antialias)
    cropped = TF.to_tensor(TF.center_crop(resized, preset.crop_size))
    torch.testing.assert_close(find_preprocess(net).redo(cropped[None])[0], weights.transforms()(photo))


@pytest.mark.parametrize("steps", STEPS)
def test_what_was_given_is_made_again_from_the_picture(steps, photo):
    given = STEPS[steps]()
    cropped = TF.to_tensor(TF.center_crop(TF.resize(photo, 40), 32))[None].expand(2, -1, -1, -1)
    torch.testing.assert_close(
        find_preprocess(nn.Conv2d(3, 1, 1), given).redo(cropped), given(photo).expand_as(cropped)
    )


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.2,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.1,), (2, 3, 4))])
@pytest.mark.parametrize("sides", [(7,), (4, 5), (2, 3, 4)])
def test_redoing_and_undoing_are_each_others_inverse(mean, std, sides, dtype):
    preprocess = Preprocess(lambda picture: picture, mean=mean, std=std)
    pictures = torch.rand(2, 3, *sides, dtype=dtype)
    made = preprocess.redo(pictures)
    assert made.dtype == dtype
    for c in range(3):
        expected = (pictures[:, c] - mean[c % len(mean)]) / std[c % len(std)]
        torch.testing.assert_close(made[:, c], expected)
    torch.testing.assert_close(preprocess.undo(made), pictures.float())


@pytest.mark.parametrize("known", [{}, {"mean": (0.5,)}, {"std": (0.5,)}, {"mean": (0.5, 0.5), "std": (1, 1)}])
def test_redoing_without_a_fitting_normalisation_gives_the_pictures_themselves(known):
    pictures = torch.rand(2, 3, 4, 4)
    assert Preprocess(lambda picture: picture, **known).redo(pictures) is pictures


def test_redoing_lets_the_gradient_through():
    pictures = torch.rand(1, 3, 2, 2, requires_grad=True)
    Preprocess(lambda picture: picture, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.125)).redo(pictures).sum().backward()
    assert pictures.grad[0].flatten(1).tolist() == [[2.0] * 4, [4.0] * 4, [8.0] * 4]


@pytest.mark.parametrize("preprocess", [3, "resize", [transforms.ToTensor()]])
def test_what_cannot_be_called_is_an_error(preprocess, photo):
    message = rf"^preprocess is {type(preprocess).__name__}; expected a callable .* such as weights.transforms\(\)$"
    with pytest.raises(TypeError, match=message):
        nbviz.load(nn.Conv2d(3, 1, 1), photo, preprocess)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda picture: 1 / 0, "^preprocess failed on picture 1: ZeroDivisionError: division by zero$"),
        (lambda picture: picture, "^preprocess gives Image for picture 1; expected a float tensor"),
        (lambda picture: torch.zeros(3, 4), r"^preprocess gives a torch.float32 \(3, 4\) for picture 1; expected"),
        (lambda picture: torch.zeros(1, 3, 4, 4), r"^preprocess gives a torch.float32 \(1, 3, 4, 4\) for picture 1"),
        (transforms.PILToTensor(), r"^preprocess gives a torch.uint8 \(3, 300, 400\) for picture 1; expected"),
        (lambda picture: torch.full((3, 2, 2), torch.nan), "^picture 1 has values that are not finite"),
    ],
)
def test_a_given_one_that_fails_is_an_error(given, message, photo, snapshot):
    net = nn.Conv2d(3, 1, 1)
    with snapshot(net), pytest.raises(PictureError, match=message):
        nbviz.load(net, photo, given)


def test_a_random_one_draws_from_nobodys_numbers(photo, snapshot):
    """And so gives the same picture to every method."""
    given = transforms.Compose([transforms.RandomCrop(16), transforms.ToTensor()])
    net = nn.Conv2d(3, 1, 1)
    with snapshot(net):
        first = nbviz.load(net, photo, given).inputs
        second = nbviz.load(net, photo, given).inputs
    assert torch.equal(first, second)


def test_finding_leaves_the_model_as_it_was(from_either, photo, snapshot):
    with snapshot(from_either):
        nbviz.load(from_either, photo)
