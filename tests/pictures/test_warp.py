"""Shifted, scaled and turned pictures against torchvision and scipy, and against slices and quarter turns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from nbviz.pictures.warp import warp

# down, across, scale and angle
SOME = [
    *((0.0, 0.0, 1.0, 30.0), (0.0, 0.0, 1.3, 0.0), (0.0, 0.0, 0.7, 0.0), (2.5, -1.25, 1.0, 0.0)),
    *((-3.0, 2.0, 1.2, -75.0), (1.5, 4.0, 0.8, 200.0)),
]


@pytest.fixture
def pictures() -> Tensor:
    """Not square, of an even and an odd side."""
    return torch.rand(2, 3, 24, 31, dtype=torch.float64)


@pytest.mark.parametrize("padding", ["border", "reflection"])
@pytest.mark.parametrize("how", [*SOME, (40.0, -70.0, 0.3, 10.0)])
def test_every_pixel_comes_from_where_scipy_takes_it(how: Any, padding: str, pictures: Tensor) -> None:
    """The border too, and what lies far beyond it."""
    down, across, scale, angle = how
    height, width = pictures.shape[-2:]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Counter-clockwise as one sees it: rows point down, so that what is to the right of the middle goes up.
    forward = scale * np.array([[cos, -sin], [sin, cos]])  # from (row, column) to (row, column)
    places = np.stack(np.mgrid[:height, :width].astype(float)).reshape(2, -1)
    shifted = places - middle[:, None] - np.array([[down], [across]])
    sources = np.linalg.inv(forward) @ shifted + middle[:, None]
    mode = {"border": "nearest", "reflection": "reflect"}[padding]
    moved = warp(pictures, down, across, scale, angle, padding)
    for n, c in np.ndindex(2, 3):
        expected = ndimage.map_coordinates(pictures[n, c].numpy(), sources, order=1, mode=mode)
        np.testing.assert_allclose(moved[n, c].numpy().ravel(), expected, atol=1e-9)


@pytest.mark.parametrize("how", SOME)
def test_inside_it_is_torchvisions_affine(how: Any, pictures: Tensor) -> None:
    """Which turns clockwise and fills with black: where that mixes in, white pictures are no longer white."""
    down, across, scale, angle = how

    def affine(of: Tensor) -> Tensor:
        moved = TF.affine(of, -angle, [across, down], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        assert isinstance(moved, Tensor)
        return moved

    inside = affine(torch.ones_like(pictures)) > 1 - 1e-9
    assert inside.double().mean() > 0.3
    torch.testing.assert_close(warp(pictures, down, across, scale, angle)[inside], affine(pictures)[inside])


@pytest.mark.parametrize("turns", [1, 2, 3, -1, 4, 5])
@pytest.mark.parametrize("side", [1, 6, 7])
def test_a_quarter_turn_is_exact(turns: int, side: int) -> None:
    pictures = torch.rand(2, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(warp(pictures, angle=90 * turns), torch.rot90(pictures, turns, (-2, -1)))


@pytest.mark.parametrize("padding", ["border", "reflection"])
@pytest.mark.parametrize(("down", "across"), [(3, 0), (-2, 0), (0, 5), (0, -1), (2, -4), (50, 0)])
def test_a_shift_by_whole_pixels_is_a_slice(down: int, across: int, padding: str, pictures: Tensor) -> None:
    pad = {"border": "edge", "reflection": "symmetric"}[padding]
    wide = np.pad(pictures.numpy(), [(0, 0), (0, 0), (60, 60), (60, 60)], pad)  # type: ignore[call-overload]
    height, width = pictures.shape[-2:]
    expected = wide[:, :, 60 - down : 60 - down + height, 60 - across : 60 - across + width]
    torch.testing.assert_close(warp(pictures, down, across, padding=padding), torch.from_numpy(expected))


def test_above_one_things_become_larger_around_the_middle() -> None:
    pictures = torch.zeros(1, 1, 40, 40)
    pictures[..., 16:24, 12:28] = 1
    larger = warp(pictures, scale=2)[0, 0] > 0.5
    assert larger.nonzero().amin(0).tolist() == [12, 4]
    assert larger.nonzero().amax(0).tolist() == [27, 35]


def test_first_the_turn_and_then_the_shift(pictures: Tensor) -> None:
    square = pictures[..., :24]
    both = warp(square, down=3, angle=90)
    torch.testing.assert_close(both, warp(torch.rot90(square, 1, (-2, -1)), down=3))


@pytest.mark.parametrize("angle", [0, 360, -720.0])
def test_where_nothing_is_to_be_done_it_gives_the_very_same(angle: float, pictures: Tensor) -> None:
    assert warp(pictures, 0, 0.0, 1, angle) is pictures


@pytest.mark.parametrize("padding", ["border", "reflection"])
@pytest.mark.parametrize("how", SOME[2:])
def test_it_is_differentiable(how: Any, padding: str) -> None:
    small = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: warp(x, *how, padding=padding), (small,))


def test_dtype_and_device_stay(device: torch.device, dtype: torch.dtype) -> None:
    moved = warp(torch.rand(1, 2, 6, 5, dtype=dtype, device=device), 1, scale=1.1)
    assert (moved.dtype, moved.device.type, moved.shape) == (dtype, device.type, (1, 2, 6, 5))
