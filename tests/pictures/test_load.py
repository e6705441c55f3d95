"""Pictures of every kind become a model's input."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

import nbviz
from nbviz.errors import PictureError
from nbviz.pictures.load import Pictures


@pytest.fixture
def net():
    return nn.Conv2d(3, 4, 3)


@pytest.fixture
def grey():
    return nn.Conv2d(1, 4, 3)


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def levels(net, images, **options):
    """The inputs of a model without preprocessing of its own, in steps of 1/255."""
    inputs = nbviz.load(net, images, **options).inputs * 255
    assert (inputs - inputs.round()).abs().max() < 1e-3
    return inputs.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# Files


@pytest.mark.parametrize(
    "kind", [str, Path, lambda path: type("Where", (os.PathLike,), {"__fspath__": lambda _: str(path)})()]
)
def test_a_path(kind, net, rgb, tmp_path):
    path = tmp_path / "a cat.png"
    Image.fromarray(rgb).save(path)
    pictures = nbviz.load(net, kind(path))
    assert isinstance(pictures, Pictures)
    assert pictures.names == ("a cat.png",)
    assert np.array_equal(levels(net, kind(path))[0], rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_that_a_camera_noted_is_applied(orientation, net, rgb, tmp_path):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"  # lossless, so that pixels can be compared
    Image.fromarray(rgb).save(path, exif=exif)
    assert np.array_equal(levels(net, path)[0], turns[orientation](rgb))


def test_a_file_is_closed_again(net, rgb, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    nbviz.load(net, [path] * 5)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before if before else True


def test_a_grey_16_bit_file(net, grey, tmp_path):
    values = np.array([[0, 257, 128 * 257], [129 * 257 + 100, 65535, 40]], np.uint16)
    expected = [[0, 1, 128], [129, 255, 0]]
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert levels(grey, tmp_path / name)[0, :, :, 0].tolist() == expected
        assert (levels(net, tmp_path / name)[0] == np.array(expected)[:, :, None]).all()


def test_a_moving_picture_gives_its_first_frame(net, tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert levels(net, tmp_path / "a.gif")[0, 0, 0].tolist() == [255, 0, 0]


def test_a_missing_file_names_those_near(net, tmp_path):
    for name in ("cat1.png", "cat2.png", "dog.png"):
        (tmp_path / name).touch()
    with pytest.raises(PictureError, match=r"^there is no file '.*cat\.jpg'; near it: cat1.png, cat2.png$") as raised:
        nbviz.load(net, tmp_path / "cat.jpg")
    assert isinstance(raised.value, FileNotFoundError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", ["**cat.jpg", "[cat.jpg", "*.png", "?", "missing/cat.jpg"])
def test_a_missing_file_of_any_name_is_the_same_error(name, net, tmp_path):
    (tmp_path / "cat.png").touch()
    with pytest.raises(PictureError, match="^there is no file '"):
        nbviz.load(net, f"{tmp_path}/{name}")


def broken(tmp_path, rgb):
    Image.fromarray(rgb.repeat(30, 0).repeat(30, 1)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    return ["cut.png", "text.jpg", "empty.png", "folder.png"]


def test_a_tilde_is_home(net, rgb, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    assert np.array_equal(levels(net, "~/photo.png"), levels(net, tmp_path / "photo.png"))
    assert np.array_equal(levels(net, Path("~/photo.png")), levels(net, tmp_path / "photo.png"))
    with pytest.raises(PictureError):
        nbviz.load(net, "~nobody-of-this-name/photo.png")


def test_an_address_is_not_loaded(net):
    with pytest.raises(PictureError, match="^'https://example.org/cat.jpg' is a URL; only files are loaded"):
        nbviz.load(net, "https://example.org/cat.jpg")


def test_a_file_that_is_no_picture_is_an_error(net, rgb, tmp_path):
    for name in broken(tmp_path, rgb):
        with pytest.raises(PictureError, match=f"^'.*{name}' (is no picture that can be read|cannot be read)"):
            nbviz.load(net, tmp_path / name)


@pytest.mark.parametrize("path", ["", "nul\0.png"])
def test_a_path_that_no_file_can_have_is_an_error(path, net):
    with pytest.raises(PictureError):
        nbviz.load(net, path)


# PIL's modes


def over_white(colour, alpha):
    return np.round(colour * (alpha / 255) + 255 * (1 - alpha / 255))


def test_black_and_white(net):
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert levels(net, picture)[0, :, :, 1].tolist() == [[0, 255], [255, 0]]


def test_grey(net, grey, rgb):
    picture = Image.fromarray(rgb[:, :, 0])
    assert np.array_equal(levels(net, picture)[0], rgb[:, :, :1].repeat(3, 2))
    assert np.array_equal(levels(grey, picture)[0], rgb[:, :, :1])


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBA", "RGBa"])
def test_transparency_is_laid_over_white(mode, net, grey):
    """Opaque, half transparent and fully transparent, one beside the other."""
    alpha = np.array([[255, 128, 0]], np.uint8)
    pixels = np.dstack([np.full((1, 3, 3), 100, np.uint8), alpha])
    picture = Image.fromarray(pixels)
    if mode == "PA":
        picture = Image.new("P", (3, 1))
        picture.putpalette([100, 100, 100])
        picture = picture.convert("PA")
        picture.putalpha(Image.fromarray(alpha))
    elif mode != "RGBA":
        picture = picture.convert("LA").convert(mode) if mode == "La" else picture.convert(mode)
    assert picture.mode == mode
    expected = over_white(100.0, alpha.astype(float))[0]
    assert np.abs(levels(net, picture)[0, 0, :, 0] - expected).max() <= 1
    assert np.abs(levels(grey, picture)[0, 0, :, 0] - expected).max() <= 1


def test_a_palette(net):
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert levels(net, picture)[0, 0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    picture.info["transparency"] = 1
    assert levels(net, picture)[0, 0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    picture.info["transparency"] = bytes([255, 0, 128])
    expected = [[10, 20, 30], [255, 255, 255], over_white(np.array([70.0, 80, 90]), 128)]
    assert np.abs(levels(net, picture)[0, 0] - np.array(expected)).max() <= 1


def test_a_transparent_colour(net):
    picture = Image.new("RGB", (2, 1), (9, 8, 7))
    picture.putpixel((1, 0), (1, 2, 3))
    picture.info["transparency"] = (1, 2, 3)
    assert levels(net, picture)[0, 0].tolist() == [[9, 8, 7], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colours_are_as_pil_converts_them(mode, net, grey):
    values = np.random.default_rng(1).integers(0, 256, (3, 4, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    picture = Image.frombytes(mode, (4, 3), values.tobytes())
    assert np.array_equal(levels(net, picture)[0], np.asarray(picture.convert("RGB")))
    assert np.array_equal(levels(grey, picture)[0, :, :, 0], np.asarray(picture.convert("RGB").convert("L")))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
@pytest.mark.parametrize("values", [[0, 257, 32896, 65535], [0, 40, 200, 255]])
def test_16_bits_are_brought_to_8(mode, values, grey):
    array = np.array([values])
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "i4"}[mode]
    picture = Image.frombytes(mode, (4, 1), array.astype(kind).tobytes())
    # Whole numbers without a width, none of them above 255, are a picture of 8 bits.
    expected = values if mode == "I" and max(values) < 256 else np.round(array / 257)[0].tolist()
    assert levels(grey, picture)[0, 0, :, 0].tolist() == expected


def test_fractions_are_of_1(grey):
    picture = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert picture.mode == "F"
    assert levels(grey, picture)[0, 0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(PictureError, match=r"^a float array has values from 0 to 9; expected \[0, 1\]"):
        nbviz.load(grey, Image.fromarray(np.array([[0.0, 9.0]], np.float32)))


# Arrays


SHAPES = {
    "(H, W)": (5, 7),
    "(H, W, 1)": (5, 7, 1),
    "(H, W, 3)": (5, 7, 3),
    "(N, H, W, 3)": (2, 5, 7, 3),
    "(N, H, W, 1)": (4, 5, 7, 1),
}


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "i1", "u2", ">u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">f4"]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_array_of_any_type_and_shape(dtype, shape, net):
    """The same picture, in all ways to write its values."""
    steps = np.random.default_rng(2).integers(0, 128, shape)
    if dtype == "bool":
        array, expected = steps > 60, (steps > 60) * 255
    elif np.dtype(dtype).kind == "f":
        array, expected = steps / 255, steps
    elif np.dtype(dtype).kind == "u" and np.dtype(dtype).itemsize == 2:
        array, expected = steps * 257, steps
    else:
        array, expected = steps, steps
    loaded = levels(net, array.astype(dtype))
    expected = expected.reshape(-1, 5, 7, 3 if shape[-1] == 3 else 1)
    assert np.array_equal(loaded, np.broadcast_to(expected, loaded.shape))
    assert loaded.shape[1:] == (5, 7, 3)


def test_wide_whole_numbers_above_255_are_16_bits(grey):
    assert levels(grey, np.array([[0, 257, 65535]]))[0, 0, :, 0].tolist() == [0, 1, 255]


def test_the_fourth_channel_is_transparency(net):
    array = np.array([[[100, 100, 100, 255], [100, 100, 100, 0]]], np.uint8)
    assert levels(net, array)[0, 0].tolist() == [[100] * 3, [255] * 3]
    assert levels(net, array / 255)[0, 0].tolist() == [[100] * 3, [255] * 3]


def test_arrays_may_lie_in_memory_as_they_like(net, rgb):
    for view in (rgb[::-1], rgb[:, ::-1], rgb[..., ::-1], rgb[::2, ::3], np.asfortranarray(rgb), rgb.swapaxes(0, 1)):
        assert np.array_equal(levels(net, view)[0], view)
    frozen = rgb.copy()
    frozen.flags.writeable = False
    assert np.array_equal(levels(net, frozen)[0], rgb)


@pytest.mark.parametrize(
    "shape", [(), (5,), (5, 7, 2), (5, 7, 5), (3, 5, 7), (2, 3, 5, 7), (1, 2, 5, 7, 3), (0, 7), (5, 0, 3), (0, 5, 7, 3)]
)
def test_an_array_of_another_shape_is_an_error(shape, net):
    with pytest.raises(PictureError, match=r"(is no picture; expected \(H, W\), \(H, W, C\) or)|(^images is empty)"):
        nbviz.load(net, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_array_that_is_not_finite_is_an_error(value, net):
    array = np.zeros((5, 7, 3))
    array[1, 2, 0] = value
    with pytest.raises(PictureError, match=r"not finite \(NaN or infinity\); expected finite ones"):
        nbviz.load(net, array)


@pytest.mark.parametrize(
    "array", [np.array([[0.0, 1.5]]), np.array([[-0.1, 0.0]]), np.array([[0, 70000]]), np.array([[-1, 5]])]
)
def test_an_array_out_of_range_is_an_error(array, net):
    with pytest.raises(PictureError, match="array has values from .* to .*; expected"):
        nbviz.load(net, array)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), complex), np.array([["a", "b"]]), np.array([[None, 1]]), np.zeros((2, 2), "M8[s]")]
)
def test_an_array_of_no_numbers_is_an_error(array, net):
    with pytest.raises(TypeError, match="^an array of .* is no picture; expected uint8, uint16, bool or float"):
        nbviz.load(net, array)


# Tensors


def test_a_float_tensor_is_the_models_input_as_it_is(net):
    x = 10 * torch.randn(2, 3, 5, 7)
    assert torch.equal(nbviz.load(net, x).inputs, x)
    assert torch.equal(nbviz.load(net, x[0]).inputs, x[:1])
    assert torch.equal(nbviz.load(net, x, preprocess=lambda _: pytest.fail("called")).inputs, x)


def test_values_are_finite_though_their_sum_is_not(net):
    largest = torch.full((1, 3, 8, 8), torch.finfo(torch.float32).max)
    assert torch.equal(nbviz.load(net, largest).inputs, largest)


def test_a_float_tensor_is_copied(net):
    x = torch.rand(1, 3, 5, 7, requires_grad=True)
    inputs = nbviz.load(net, x).inputs
    assert inputs.data_ptr() != x.data_ptr()
    assert not inputs.requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_a_whole_number_tensor_is_a_picture(dtype, net, grey):
    x = torch.randint(0, 2, (2, 3, 5, 7)).to(dtype)
    factor = 255 if dtype == torch.bool else 1
    assert np.array_equal(levels(net, x), x.permute(0, 2, 3, 1).int().numpy() * factor)
    assert levels(net, x[0]).shape == (1, 5, 7, 3)
    assert levels(grey, x[:, :1]).shape == (2, 5, 7, 1)
    assert levels(net, x[:, :1]).shape == (2, 5, 7, 3)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_grey_models_whole_numbers_without_channels_are_ambiguous(count, grey, net):
    x = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
    with pytest.raises(PictureError, match=rf"^a tensor of shape \({count}, 28, 28\) .* give images\[:, None\]"):
        nbviz.load(grey, x)
    assert nbviz.load(grey, x[:, None]).inputs.shape == (count, 1, 28, 28)
    assert nbviz.load(grey, x[:1]).inputs.shape == (1, 1, 28, 28)
    if count == 3:
        assert nbviz.load(grey, x[None]).inputs.shape == (1, 1, 28, 28)
        assert nbviz.load(net, x).inputs.shape == (1, 3, 28, 28)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_have_the_models_dtype_and_device(dtype, net, rgb, device):
    net.to(device, dtype)
    for image in (rgb, torch.rand(3, 5, 7), Image.fromarray(rgb)):
        inputs = nbviz.load(net, image).inputs
        assert inputs.dtype == dtype
        assert inputs.device.type == device.type


def test_a_model_without_parameters_gets_float32(rgb):
    assert nbviz.load(nn.ReLU(), rgb).inputs.dtype == torch.float32


# Several


def test_a_list_of_different_kinds(net, rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "cat.png")
    images = [
        tmp_path / "cat.png",
        Image.fromarray(rgb),
        rgb,
        TF.to_tensor(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
    ]
    for several in (images, tuple(images)):
        pictures = nbviz.load(net, several)
        assert pictures.inputs.shape == (5, 3, 5, 7)
        for inputs in pictures.inputs:
            assert torch.equal(inputs, TF.to_tensor(rgb))
        assert pictures.names == ("cat.png", "picture 2", "picture 3", "picture 4", "picture 5")


def test_batches_in_a_list_are_joined(net):
    pictures = nbviz.load(net, [torch.rand(2, 3, 5, 7), np.zeros((5, 7, 3), np.uint8)])
    assert pictures.inputs.shape == (3, 3, 5, 7)
    assert pictures.names == ("picture 1", "picture 2", "picture 3")


def test_pictures_of_different_sizes_are_an_error(net, rgb):
    message = r"^the pictures have different sizes: \(3, 4, 7\), \(3, 5, 7\); give preprocess= with a resize and a crop"
    with pytest.raises(PictureError, match=message):
        nbviz.load(net, [rgb, rgb[1:]])


@pytest.mark.parametrize("images", [[], (), [[]], [None], [3], "", {"a": 1}, iter([1]), 7, None, b"cat.png"])
def test_what_is_no_picture_is_an_error(images, net):
    with pytest.raises((TypeError, PictureError), match="expected a path, a PIL picture|cannot be read"):
        nbviz.load(net, images)


def test_an_error_says_which_of_several(net, rgb):
    with pytest.raises(PictureError, match="^picture 2 has values that are not finite"):
        nbviz.load(net, [rgb, torch.full((3, 5, 7), torch.nan)])


# Display


def test_pictures_are_shown_as_they_were(net, grey, rgb):
    shown = nbviz.load(net, [rgb, rgb]).display()
    assert (shown.dtype, shown.device.type) == (torch.uint8, "cpu")
    assert np.array_equal(shown.permute(0, 2, 3, 1).numpy(), np.stack([rgb, rgb]))
    shown = nbviz.load(grey, rgb).display()
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.array_equal(shown[0].numpy(), np.stack([expected] * 3))


def test_inputs_of_many_channels_can_be_shown():
    shown = nbviz.load(nn.Conv2d(5, 1, 1), torch.rand(1, 5, 4, 4)).display()
    assert shown.shape == (1, 3, 4, 4)


def test_loading_leaves_model_and_picture_as_they_were(net, rgb, snapshot):
    picture, x, before = Image.fromarray(rgb), torch.rand(1, 3, 5, 7), rgb.copy()
    x_before = x.clone()
    with snapshot(net):
        nbviz.load(net, [picture, rgb, x])
    assert np.array_equal(rgb, before)
    assert np.array_equal(np.asarray(picture), before)
    assert torch.equal(x, x_before)


# Bands, signals and volumes


@pytest.mark.parametrize("channels", [2, 4, 5, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.dtype(">u2"), bool, np.float16, np.float64])
def test_pictures_of_other_than_one_or_three_bands(channels, dtype):
    net = nn.Conv2d(channels, 1, 1)
    top = {"u": np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 0, "b": 1, "f": 7}[np.dtype(dtype).kind]
    array = (np.random.default_rng(0).random((6, 5, channels)) * top).astype(dtype)
    expected = torch.from_numpy(np.moveaxis(array.astype(np.float32), -1, 0).copy())
    expected = expected / top if np.dtype(dtype).kind == "u" else expected
    torch.testing.assert_close(nbviz.load(net, array).inputs, expected[None])
    torch.testing.assert_close(nbviz.load(net, [array, array[None]]).inputs, torch.stack([expected] * 2))
    if dtype is np.uint8:
        torch.testing.assert_close(nbviz.load(net, torch.from_numpy(array).permute(2, 0, 1)).inputs, expected[None])


def test_a_picture_with_transparency_for_a_model_of_four_bands(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    Image.fromarray(array).save(tmp_path / "four.png")
    for given in (array, Image.fromarray(array), tmp_path / "four.png"):
        loaded = nbviz.load(nn.Conv2d(4, 1, 1), given)
        assert torch.equal((255 * loaded.inputs[0]).round().byte(), torch.from_numpy(array).permute(2, 0, 1))
        assert torch.equal(loaded.display()[0], torch.from_numpy(array[..., :3]).permute(2, 0, 1))


def test_which_bands_are_shown():
    x = torch.rand(2, 6, 4, 5)
    loaded = nbviz.load(nn.Conv2d(6, 1, 1), x)
    for bands in ((4, 0, 2), (5,), (1, 3)):
        shown = (255 * x[:, list(bands)]).round()
        expected = (
            shown if len(bands) == 3 else (255 * x[:, list(bands)].mean(1, keepdim=True)).round().expand(-1, 3, -1, -1)
        )
        assert torch.equal(loaded.display(bands).float(), expected)
    assert torch.equal(loaded.display(), loaded.display((0, 1, 2)))


@pytest.mark.parametrize("kind", ["signals", "volumes"])
def test_signals_and_volumes(kind):
    conv, sides = (nn.Conv1d, (9,)) if kind == "signals" else (nn.Conv3d, (3, 4, 5))
    one, two = conv(1, 1, 1), conv(2, 1, 1)
    whole = np.random.default_rng(0).integers(0, 256, (4, 2, *sides), np.uint8)
    expected = torch.from_numpy(whole) / 255
    assert torch.equal(nbviz.load(two, whole).inputs, expected)
    assert torch.equal(nbviz.load(two, whole[1]).inputs, expected[1:2])
    assert torch.equal(nbviz.load(two, torch.from_numpy(whole)).inputs, expected)
    assert torch.equal(nbviz.load(two, list(expected)).inputs, expected)
    assert torch.equal(nbviz.load(two, whole.astype(np.float64) * 3 - 50).inputs, torch.from_numpy(whole) * 3.0 - 50)
    assert torch.equal(nbviz.load(one, whole[0, 0]).inputs, expected[:1, :1])
    assert torch.equal(nbviz.load(one, expected[0, 0]).inputs, expected[:1, :1])
    curves = kind == "signals"  # one for each channel
    assert nbviz.load(two, whole).display().shape == (4, 2 if curves else 3, *sides)
    assert torch.equal(nbviz.load(one, whole[:, :1]).display()[:, 0 if curves else 1], torch.from_numpy(whole[:, 0]))


def test_a_preprocess_for_volumes_takes_tensors():
    def frames_first(volume):
        assert volume.dtype == torch.uint8
        return volume.permute(1, 0, 2, 3).float()

    clip = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), np.uint8)
    loaded = nbviz.load(nn.Conv3d(3, 1, 1), clip, preprocess=frames_first)
    assert torch.equal(loaded.inputs[0], torch.from_numpy(clip).permute(1, 0, 2, 3).float())


def test_torchvisions_own_preprocessing_of_videos():
    from torchvision.models.video import R3D_18_Weights, r3d_18

    net, clip = r3d_18(weights=None), torch.randint(0, 256, (6, 3, 130, 180), dtype=torch.uint8)
    loaded = nbviz.load(net, clip)
    assert torch.equal(loaded.inputs[0], R3D_18_Weights.DEFAULT.transforms()(clip))
    assert loaded.inputs.shape == (1, 3, 6, 112, 112)
    assert loaded.preprocess.labels is not None
    assert loaded.display().shape == (1, 3, 6, 112, 112)


@pytest.mark.parametrize(
    ("conv", "given", "error", "message"),
    [
        (
            nn.Conv1d,
            "a.wav",
            TypeError,
            r"^images: got a path; the model takes signals; expected an array or a tensor \(C, L\)",
        ),
        (
            nn.Conv3d,
            Image.new("L", (4, 4)),
            TypeError,
            "^images: got Image; the model takes volumes; expected an array",
        ),
        (nn.Conv1d, torch.rand(4), PictureError, r"^images has shape \(4,\); the model takes signals"),
        (
            nn.Conv1d,
            torch.rand(1, 1, 2, 4),
            PictureError,
            r"^images has shape \(1, 1, 2, 4\); the model takes signals",
        ),
        (
            nn.Conv1d,
            np.zeros((2, 0)),
            PictureError,
            r"^images has shape \(2, 0\); the model takes signals",
        ),
        (
            nn.Conv3d,
            np.zeros((2, 3, 4)),
            PictureError,
            r"^images has shape \(2, 3, 4\); the model takes volumes",
        ),
        (nn.Conv1d, np.zeros((2, 4), np.int32), TypeError, "^an array of int32; expected uint8, uint16, bool or float"),
        (nn.Conv1d, np.full((2, 4), np.nan), PictureError, "^picture 1 has values that are not finite"),
        (nn.Conv1d, torch.zeros(2, 4, dtype=torch.int64), TypeError, "^an array of int64; expected uint8"),
    ],
)
def test_what_is_no_signal_or_volume(conv, given, error, message):
    with pytest.raises(error, match=message):
        nbviz.load(conv(2, 1, 1), given)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_the_pictures_of_one_array_have_one_scale(dtype):
    dark, light = np.full((2, 4, 4, 3), 100, dtype), np.full((2, 4, 4, 3), 60000, dtype)
    net = nn.Conv2d(3, 1, 1)
    alone = nbviz.load(net, np.stack([light[0], light[1]])).display()
    both = nbviz.load(net, np.stack([dark[0], light[0]])).display()
    assert both[0].unique().tolist() == [round(100 / 257)]
    assert torch.equal(both[1], alone[0])
    assert nbviz.load(net, torch.from_numpy(np.stack([dark[0], light[0]])).permute(0, 3, 1, 2)).display().equal(both)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.float64])
def test_a_preprocess_that_draws_leaves_torchs_random_numbers(net, dtype):
    before = torch.get_rng_state()
    nbviz.load(net, torch.zeros(3, 4, 5, dtype=dtype), preprocess=lambda _: torch.rand(3, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
