"""What stands in the place of what is taken away: by hand, and against SciPy's Gaussian."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision import transforms

import nbviz
from nbviz.pictures.fill import FILLS, blurred, filling
from nbviz.pictures.preprocess import Preprocess

PLAIN = Preprocess(lambda picture: torch.zeros(1, 2, 2))
X = torch.randn(2, 3, 20, 14, generator=torch.Generator().manual_seed(0))


def test_grey_is_half_of_what_a_pixel_can_be_as_the_model_sees_it():
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.5]
    preprocess = Preprocess(lambda picture: picture, mean=mean, std=std)
    found = filling(X, "grey", preprocess)
    expected = (0.5 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand(2, 3, 20, 14))
    assert torch.equal(filling(X, "grey", PLAIN), torch.full_like(X, 0.5))
    back = preprocess.undo(found)
    torch.testing.assert_close(back, torch.full_like(back, 0.5))


def test_grey_of_torchvisions_preprocessing():
    given = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])])
    loaded = nbviz.load(torch.nn.Conv2d(3, 2, 1), nbviz.bundled.pictures()[0].resize((20, 14)), given)
    found = filling(loaded.inputs, "grey", loaded.preprocess)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_mean_is_each_pictures_own_colour():
    found = filling(X, "mean", PLAIN)
    for i in range(2):
        for channel in range(3):
            np.testing.assert_allclose(found[i, channel], X[i, channel].double().numpy().mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(20, 14), (9, 31), (40, 40), (1, 12), (1, 1), (3, 2)])
def test_blur_is_scipys(shape):
    """Down to 0.1 of the longer side, cut off at three standard deviations; the border's pixels go on beyond it."""
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    found = filling(x, "blur", PLAIN)
    sigma = max(shape) / 10
    radius = max(1, round(3 * sigma))
    expected = gaussian_filter(x.numpy(), sigma, mode="nearest", axes=(2, 3), radius=(radius, radius))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fill", FILLS)
def test_dtype_and_shape_are_the_pictures(fill, dtype):
    found = filling(X.to(dtype), fill, PLAIN)
    assert (found.shape, found.dtype) == (X.shape, dtype)
    torch.testing.assert_close(found.float(), filling(X, fill, PLAIN), rtol=0.02, atol=0.02)


def test_a_picture_of_one_colour_stays_so():
    torch.testing.assert_close(blurred(torch.full((1, 2, 8, 9), 3.0), 2.5), torch.full((1, 2, 8, 9), 3.0))
    assert torch.equal(filling(X, "blur", PLAIN)[0], filling(X[:1], "blur", PLAIN)[0])


def test_the_pictures_are_left_alone():
    before = X.clone()
    for fill in FILLS:
        filling(X, fill, PLAIN)
    assert torch.equal(before, X)


@pytest.mark.parametrize("fill", ["gray", None, True, [1.0, 2.0]])
def test_another_fill_is_refused(fill):
    with pytest.raises((TypeError, ValueError), match="expected|Accepted: grey, mean, blur"):
        filling(X, fill, PLAIN)
