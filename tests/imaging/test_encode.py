"""Tensors come to the host in one piece, and go to the page in few bytes, with no number changed."""

import zlib

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given

import nbviz
from nbviz.imaging.encode import _unpack, decode, encode, to_host
from nbviz.imaging.pixels import quantise

MIXED = [
    torch.arange(5, dtype=torch.uint8),
    torch.tensor(2.5),
    torch.tensor([[True], [False]]),
    torch.tensor([-(2**40), 3]),
    torch.zeros(0, 3),
    torch.randn(3, 4).t(),
]


def test_what_comes_to_the_host_is_what_was_there(device):
    found = to_host(*(tensor.to(device) for tensor in MIXED))
    assert len(found) == len(MIXED)
    for array, tensor in zip(found, MIXED, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


def test_one_piece_comes_apart_as_it_was():
    # How a GPU's tensors arrive, here without one: floats at odd places too.
    packed = b"".join(tensor.contiguous().numpy().tobytes() for tensor in MIXED)
    for array, tensor in zip(_unpack(np.frombuffer(packed, np.uint8), MIXED), MIXED, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


def test_no_graph_comes_along():
    (array,) = to_host(torch.ones(2, requires_grad=True) * 2)
    assert array.tolist() == [2, 2]


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0)))
def test_encoding_loses_nothing(pixels):
    np.testing.assert_array_equal(decode(encode(pixels)), pixels, strict=True)


@pytest.mark.parametrize("size", [1, 1000, 1 << 13, (1 << 13) + 1, 100_000])
def test_it_is_deflated_where_that_is_smaller(size):
    for pixels, smaller in [
        (np.zeros(size, np.uint8), size > 10),
        (np.random.default_rng(0).integers(0, 256, size, np.uint8), False),
    ]:
        encoded = encode(pixels)
        assert encoded["deflated"] == smaller
        assert len(encoded["data"]) <= size
        np.testing.assert_array_equal(decode(encoded), pixels)


def test_browsers_can_inflate_it():
    # "deflate" in a browser's DecompressionStream is zlib's format.
    assert zlib.decompress(encode(np.zeros(5000, np.uint8))["data"]) == bytes(5000)


def test_a_relu_layers_grid_takes_at_most_six_tenths_of_its_bytes():
    model, picture = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None]
    rectified = [layer.name for layer in nbviz.layers(model, picture) if layer.type == "ReLU"]
    assert len(rectified) > 2
    for name in rectified:
        maps = nbviz.feature_maps(model, picture, name)[0]
        assert len(encode(quantise(maps)[0].numpy())["data"]) <= 0.6 * maps.numel()


def test_an_array_that_is_not_contiguous_is_sent_as_it_looks():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6).T
    np.testing.assert_array_equal(decode(encode(pixels)), pixels)
