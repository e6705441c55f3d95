"""What nbviz.bundled promises as a whole."""

import pytest
import torch

from nbviz import bundled


@pytest.mark.parametrize("name", [None, 3, b"fashion", ["fashion"]])
def test_a_name_that_is_no_string_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"name is {type(name).__name__}; expected a string"):
        bundled.load(name)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("Fashion", "fashion"),
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("vgg16_edge", "vgg16_edges"),
        ("VGG16", "vgg16"),
        ("alexnett", "alexnet"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(given, nearest, no_network):
    with pytest.raises(ValueError, match=f"no network {given!r}; did you mean {nearest!r}") as error:
        bundled.load(given)
    for name in bundled.OFFLINE:
        assert name in str(error.value).split("Accepted: ")[1]


def test_a_name_like_nothing_gets_no_guess(no_network):
    with pytest.raises(ValueError, match=r"no network '§§'\. Accepted: "):
        bundled.load("§§")


def test_pictures_are_four_small_rgb_photographs():
    pictures = bundled.pictures()
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.mode == "RGB"
        assert max(picture.size) <= 512
        assert min(picture.size) >= 300
    files = list((bundled.HERE / "pictures").glob("*.jpg"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) < 300_000


def test_every_picture_has_its_licence_recorded():
    text = (bundled.HERE / "pictures" / "LICENCES.md").read_text(encoding="utf-8")
    assert all(f"`{name}.jpg`" in text for name in bundled.PICTURES)


def test_fashion_test_has_the_promised_shapes():
    images, labels = bundled.fashion_test()
    assert images.shape == (1000, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape == (1000,)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))
