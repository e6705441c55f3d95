"""Maps to pixels: the grid against torchvision's, the rest against arithmetic."""

import inspect
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.utils import make_grid

import nbviz
from nbviz.imaging.pixels import centre, colour_table, cut, quantise, shrink, signed_scale

many = settings(max_examples=120, deadline=None, derandomize=True)
numbers = st.floats(-3, 3)
dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

options = st.fixed_dictionaries(
    {},
    optional={
        "nrow": st.integers(1, 12),
        "padding": st.integers(0, 5),
        "normalize": st.booleans(),
        "value_range": st.none() | st.tuples(numbers, numbers).map(lambda ends: (min(ends), max(ends))),
        "scale_each": st.booleans(),
        "pad_value": numbers,
    },
)


@st.composite
def maps_of_any_shape(draw):
    shape = (
        draw(st.integers(1, 20)),
        *draw(st.sampled_from([(), (1,), (3,)])),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    )
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    maps = maps.to(draw(st.sampled_from(dtypes)))
    return draw(st.sampled_from([maps, 0 * maps, 1000 * maps, maps.transpose(-1, -2)]))


@many
@given(maps_of_any_shape(), options)
def test_a_grid_is_torchvisions_to_the_last_bit(maps, options):
    before = maps.clone()
    expected = make_grid(maps[:, None] if maps.ndim == 3 else maps, **{"normalize": True, **options})
    result = nbviz.grid(maps, **options)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    assert torch.equal(maps, before)


@many
@given(st.integers(1, 9), st.sampled_from([torch.uint8, torch.int64, torch.bool]), st.integers(1, 5))
def test_a_grid_of_whole_numbers_is_torchvisions_too(count, dtype, nrow):
    maps = torch.randint(0, 2, (count, 4, 5)).to(dtype)
    expected = make_grid(maps[:, None], nrow, normalize=False)
    assert torch.equal(nbviz.grid(maps, nrow, normalize=False), expected)


def test_the_options_are_torchvisions_but_normalised_unless_asked():
    ours, theirs = (inspect.signature(f).parameters for f in (nbviz.grid, make_grid))
    assert list(ours)[1:] == list(theirs)[1:]
    differs = [name for name in list(ours)[1:] if ours[name].default != theirs[name].default]
    assert differs == ["normalize"]


def test_a_grid_stays_on_its_device(device):
    assert nbviz.grid(torch.rand(3, 4, 4, device=device)).device.type == device.type


def test_a_grid_of_a_layers_maps_is_one_call_away(vgg_like):
    maps = nbviz.feature_maps(vgg_like, torch.rand(3, 32, 32), "7")
    assert nbviz.grid(maps[0]).shape == (3, 2 * 18 + 2, 8 * 18 + 2)
    reconstructions = nbviz.guided_backprop(vgg_like, torch.rand(3, 32, 32), "7", range(4))
    assert nbviz.grid(reconstructions[0]).shape == (3, 36, 4 * 34 + 2)


def test_a_grid_has_no_graph():
    assert not nbviz.grid(torch.rand(3, 4, 4, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("maps", "options", "error", "message"),
    [
        (np.ones((2, 3, 3)), {}, TypeError, r"^maps is ndarray; expected a tensor \(K, H, W\), \(K, 1, H, W\) or"),
        (torch.rand(3, 3), {}, ValueError, r"^maps has shape \(3, 3\); expected \(K, H, W\), \(K, 1, H, W\) or"),
        (torch.rand(1, 7, 3, 3), {}, ValueError, r"^maps has shape \(1, 7, 3, 3\); .*take one picture: maps\[0\]"),
        (torch.rand(1, 2, 3, 3, 3), {}, ValueError, r"^maps has shape \(1, 2, 3, 3, 3\)"),
        (torch.rand(0, 3, 3), {}, ValueError, r"^maps has shape \(0, 3, 3\); .*none of them empty"),
        (torch.rand(2, 3, 3), {"nrow": 0}, ValueError, "^nrow is 0; expected at least 1$"),
        (torch.rand(2, 3, 3), {"nrow": 2.0}, TypeError, "^nrow is 2.0; expected a whole number$"),
        (torch.rand(2, 3, 3), {"padding": -1}, ValueError, "^padding is -1; expected at least 0$"),
        (torch.rand(2, 3, 3), {"value_range": (1, 0)}, ValueError, r"^value_range is \(1, 0\); expected \(low, high\)"),
        (torch.rand(2, 3, 3), {"value_range": (1,)}, ValueError, r"^value_range is \(1,\); expected \(low, high\)"),
        (torch.rand(2, 3, 3), {"value_range": 1.0}, ValueError, r"^value_range is 1.0; expected \(low, high\)"),
        (torch.ones(2, 3, 3).byte(), {}, TypeError, "^maps is torch.uint8; expected a float dtype .* normalize=False"),
    ],
)
def test_what_makes_no_grid(maps, options, error, message):
    with pytest.raises(error, match=message):
        nbviz.grid(maps, **options)


def test_a_range_may_be_a_list():
    maps = torch.rand(4, 3, 3)
    assert torch.equal(nbviz.grid(maps, value_range=[0, 2]), nbviz.grid(maps, value_range=(0, 2)))


# 256 steps


@many
@given(maps_of_any_shape(), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_quantised_maps_are_within_half_a_step(maps, shift, factor):
    maps = maps.double() * factor + shift
    q, low, high = quantise(maps)
    assert q.dtype == torch.uint8
    assert q.shape == maps.shape
    assert low.shape == high.shape == maps.shape[:-2]
    assert low.dtype == high.dtype == torch.float32
    single = maps.float()
    assert torch.equal(low, single.amin((-2, -1)))
    assert torch.equal(high, single.amax((-2, -1)))
    low, high = low[..., None, None].double(), high[..., None, None].double()
    off = (low + q.double() / 255 * (high - low) - single.double()).abs()
    step = (high - low) / 255
    assert (off <= 0.5 * step + 1e-6 * single.abs().amax()).all()


@pytest.mark.parametrize("dtype", dtypes)
def test_every_map_uses_all_steps(dtype, device):
    maps = torch.randn(5, 20, 20, device=device).to(dtype)
    q, _, _ = quantise(maps)
    assert q.device == maps.device
    assert q.amin((1, 2)).tolist() == [0] * 5
    assert q.amax((1, 2)).tolist() == [255] * 5


def test_a_constant_map_is_step_0_of_its_value():
    q, low, high = quantise(torch.full((2, 3, 3), -7.5))
    assert not q.any()
    assert low.tolist() == high.tolist() == [-7.5, -7.5]


def test_values_that_are_not_finite_are_shown_as_0():
    q, low, high = quantise(torch.tensor([[[-1.0, float("nan"), float("inf"), -float("inf"), 4.0]]]))
    assert q.tolist() == [[[0, 51, 51, 51, 255]]]
    assert (low.item(), high.item()) == (-1, 4)


@pytest.mark.parametrize("dtype", dtypes)
def test_centred_maps_have_grey_at_0(dtype, device):
    maps = torch.tensor([[[[0.0, 2.0, -4.0]]], [[[0.5, -0.25, 0.0]]], [[[0.0, 0.0, 0.0]]]], device=device).to(dtype)
    assert centre(maps).tolist() == [[[[128, 192, 1]]], [[[255, 64, 128]]], [[[128, 128, 128]]]]
    assert centre(maps).device == maps.device


def test_centred_colours_share_one_scale_within_a_picture():
    maps = torch.tensor([[[[1.0]], [[-2.0]], [[0.5]]]])
    assert centre(maps).flatten().tolist() == [192, 1, 160]
    assert centre(torch.tensor([[[float("nan")]], [[1.0]]])).flatten().tolist() == [128, 255]


def percentile(values):
    """What one value in 200 exceeds, of those that are not zero."""
    sizes = np.abs(values.double().cpu().numpy())
    sizes = np.sort(sizes[sizes > 0])
    return float(sizes[-1 - len(sizes) // 200])


@pytest.mark.parametrize("dtype", dtypes)
def test_one_extreme_pixel_does_not_turn_a_map_grey(dtype, device):
    maps = torch.randn(2, 3, 23, 17, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    maps[0, 1, 4, 5] = -1000
    scales = signed_scale(maps)
    assert scales.tolist() == [percentile(m) for m in maps]
    assert scales.tolist() == [
        pytest.approx(np.percentile(m.float().abs().cpu(), 99.5, method="inverted_cdf")) for m in maps
    ]
    ratios = (maps.double() / scales[:, None, None, None].double()).clamp(-1, 1)
    assert (centre(maps).double() - (128 + 127 * ratios)).abs().max() < 0.501
    assert centre(maps)[0, 1, 4, 5] == 1


def test_zeros_do_not_count():
    maps = torch.zeros(2, 1, 100, 100)
    maps[0, 0, :3] = torch.arange(1.0, 301).view(3, 100)  # of 300 values one may lie beyond
    maps[1, 0, 0] = torch.arange(1.0, 101)
    assert signed_scale(maps).tolist() == [299, 100]
    assert signed_scale(torch.zeros(1, 3, 3)) == 0
    assert signed_scale(torch.tensor([[[float("nan"), float("inf"), -3.0]]])) == 3


def test_of_a_very_large_map_a_part_of_the_values_gives_the_scale():
    maps = torch.randn(3, 1400, 1400, generator=torch.Generator().manual_seed(0))
    assert float(signed_scale(maps)) == pytest.approx(percentile(maps), rel=0.01)


def test_what_lies_beyond_a_given_scale_is_clipped():
    maps = torch.tensor([[[[-3.0, -1.0, 0.5, 1e30]]], [[[-3.0, -1.0, 0.5, 1e30]]]])
    assert centre(maps, torch.tensor([1.0, 2.0])).flatten(1).tolist() == [[1, 1, 192, 255], [1, 64, 160, 255]]
    assert centre(maps, torch.tensor(1.0))[1].flatten().tolist() == [1, 1, 192, 255]


@pytest.mark.parametrize("f", [quantise, centre])
def test_pixels_leave_their_input_alone(f):
    maps = torch.tensor([[[1.0, float("nan"), -2.0]]], requires_grad=True)
    before = maps.detach().clone()
    f(maps)
    torch.testing.assert_close(maps.detach(), before, rtol=0, atol=0, equal_nan=True)


# Colours


@pytest.mark.parametrize("name", ["viridis", "gray", "jet", "RdBu_r", "tab10"])
def test_a_colour_table_is_matplotlibs(name):
    table = colour_table(name)
    assert table.dtype == np.uint8
    assert table.shape == (256, 3)
    expected = mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255
    assert np.abs(table - expected).max() <= 0.5


def test_an_unknown_colour_map_has_the_nearest():
    with pytest.raises(ValueError, match=r"^no colour map 'virdis'; did you mean 'viridis'\?"):
        colour_table("virdis")


@pytest.mark.parametrize("opacity", [0, 0.25, 0.5, 1])
def test_an_overlay_mixes_picture_and_colours(opacity, device):
    pictures = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, device=device)
    maps = torch.rand(2, 4, 5, device=device)
    result = nbviz.overlay(pictures, maps, opacity, "jet")
    assert (result.dtype, result.shape, result.device) == (torch.uint8, pictures.shape, pictures.device)
    colours = torch.from_numpy(colour_table("jet")).to(device)[quantise(maps)[0].long()].permute(0, 3, 1, 2)
    expected = (1 - opacity) * pictures.double() + opacity * colours.double()
    assert (result.double() - expected).abs().max() <= 0.5 + 1e-4


def test_an_overlay_brings_the_map_to_the_pictures_size():
    pictures = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    result = nbviz.overlay(pictures, torch.tensor([[[0.0, 1.0]]]), 1, "gray")[0, 0]
    assert result[:, 0].tolist() == [0] * 8
    assert result[:, -1].tolist() == [255] * 8
    assert (result.diff(dim=1).int() >= 0).all()


def test_each_map_of_an_overlay_is_stretched_alone():
    pictures = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    maps = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 9.0], [4.5, 4.5]]])
    result = nbviz.overlay(pictures, maps, 1)
    assert torch.equal(result[0], result[1])


@pytest.mark.parametrize("opacity", [-0.1, 1.5, float("nan")])
def test_opacity_lies_between_0_and_1(opacity):
    with pytest.raises(ValueError, match=r"^opacity is .*; expected 0 to 1$"):
        nbviz.overlay(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.rand(1, 2, 2), opacity)


@pytest.mark.parametrize(
    ("pictures", "maps", "message"),
    [
        (
            (3, 4, 4),
            (1, 2, 2),
            r"^pictures has shape \(3, 4, 4\) and maps \(1, 2, 2\); expected \(N, 3, H, W\) and \(N, h, w\)",
        ),
        ((1, 3, 4, 4), (1, 1, 2, 2), r"maps \(1, 1, 2, 2\); expected"),
        ((2, 3, 4, 4), (3, 2, 2), r"maps \(3, 2, 2\); expected"),
    ],
)
def test_an_overlay_says_what_does_not_fit(pictures, maps, message):
    with pytest.raises(ValueError, match=message):
        nbviz.overlay(torch.zeros(pictures, dtype=torch.uint8), torch.rand(maps))


def test_an_overlay_of_arrays_is_an_error():
    pictures, maps = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.rand(1, 2, 2)
    with pytest.raises(TypeError, match="^pictures is ndarray; expected a tensor"):
        nbviz.overlay(pictures.numpy(), maps)
    with pytest.raises(TypeError, match="^maps is ndarray; expected a tensor"):
        nbviz.overlay(pictures, maps.numpy())


@pytest.mark.parametrize("value_range", [("a", "b"), (1, "b"), "01", (None, 1), 3])
def test_a_range_is_of_numbers(value_range):
    with pytest.raises((ValueError, TypeError), match="^value_range is .*; expected .low, high. with low at most high"):
        nbviz.grid(torch.rand(2, 3, 3), value_range=value_range)


@pytest.mark.parametrize("shape", [(56, 56), (57, 31), (7, 7), (1, 64), (224, 100)])
@pytest.mark.parametrize("side", [1, 8, 48, 64, 300])
def test_smaller_maps_are_the_means_of_blocks(shape, side, device):
    maps = torch.randn(2, 3, *shape, device=device, dtype=torch.float64)
    small = shrink(maps, side)
    block = max(1, max(shape) // side)
    assert max(small.shape[2:]) >= min(side, max(shape))
    assert max(small.shape[2:]) < 2 * side + 1 or block == 1
    expected = torch.empty_like(small)
    for row in range(small.shape[2]):
        for column in range(small.shape[3]):
            part = maps[..., row * block : (row + 1) * block, column * block : (column + 1) * block]
            expected[..., row, column] = part.mean((-2, -1))
    torch.testing.assert_close(small, expected)


def test_smaller_maps_are_on_the_scale_of_the_whole(device):
    maps = torch.randn(4, 60, 60, device=device).relu()
    whole, low, high = quantise(maps)
    small, low_too, high_too = quantise(maps, side=15)
    assert torch.equal(low, low_too)
    assert torch.equal(high, high_too)
    means = torch.nn.functional.avg_pool2d(whole.float(), 4)
    assert (small.float() - means).abs().max() <= 1  # either is rounded


def test_channels_last_gives_the_same_bytes(device):
    maps = torch.randn(2, 8, 12, 12, device=device)
    for a, b in zip(quantise(maps, 6), quantise(maps.to(memory_format=torch.channels_last), 6), strict=True):
        torch.testing.assert_close(a, b, atol=1, rtol=0)


def test_a_grid_takes_any_number_that_its_dtype_holds_between_the_maps():
    maps = torch.rand(2, 3, 3)
    assert nbviz.grid(maps, pad_value=-(2**70)).min() == -(2.0**70)
    assert nbviz.grid(maps, pad_value=float("nan")).isnan().any()
    for value in (10**400, "a", None, 1j, np.timedelta64(1, "s")):
        with pytest.raises(ValueError, match=r"^pad_value is .*; expected a number that torch.float32 can hold$"):
            nbviz.grid(maps, pad_value=value)
    with pytest.raises(ValueError, match="^pad_value is 256; expected a number that torch.uint8 can hold"):
        nbviz.grid(maps.byte(), normalize=False, pad_value=256)
    with pytest.raises(ValueError, match="^padding is 1000000; expected at most 1000$"):
        nbviz.grid(maps, padding=10**6)


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantised"])
def test_maps_whose_numbers_cannot_be_looked_at_are_an_error(kind):
    maps = torch.rand(2, 3, 3)
    if kind == "quantised":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch will do without
            maps = torch.quantize_per_tensor(maps, 0.1, 0, torch.quint8)
    else:
        maps = maps.to("meta") if kind == "meta" else maps.to_sparse()
    for call in (nbviz.grid, nbviz.fuse, lambda maps: nbviz.overlay(torch.zeros(2, 3, 3, 3).byte(), maps)):
        with pytest.raises(
            TypeError, match="^maps is a sparse, nested, quantised or meta tensor; expected a dense one"
        ):
            call(maps)


@many
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    corner=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fill=st.sampled_from([0, 128]),
)
def test_a_part_is_the_map_pixel_by_pixel_and_filled_beyond_its_border(shape, corner, size, fill):
    maps = torch.randint(1, 100, (2, *shape), dtype=torch.uint8)
    part = cut(maps, corner, size, fill)
    assert (part.shape, part.dtype) == ((2, *size), torch.uint8)
    for k, row, column in np.ndindex(2, *size):
        y, x = corner[0] + row, corner[1] + column
        inside = 0 <= y < shape[0] and 0 <= x < shape[1]
        assert part[k, row, column] == (maps[k, y, x] if inside else fill)


def test_parts_of_signals_and_volumes(device):
    signal = torch.arange(6.0, device=device).view(1, 2, 3)
    assert cut(signal, (-1,), (3,)).tolist() == [[[0, 0, 1], [0, 3, 4]]]
    assert cut(signal, (1,), (4,), 9).tolist() == [[[1, 2, 9, 9], [4, 5, 9, 9]]]
    volume = torch.randn(2, 4, 5, 6, device=device)
    assert torch.equal(cut(volume, (1, -2, 3), (2, 5, 3))[:, :, 2:], volume[:, 1:3, :3, 3:])


def test_a_part_is_a_copy():
    maps = torch.zeros(3, 3)
    cut(maps, (0, 0), (2, 2)).fill_(1)
    assert not maps.any()
