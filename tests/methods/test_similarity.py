"""Rank correlation and structural similarity: against SciPy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from nbviz.methods.similarity import spearman, ssim


def test_spearman_is_scipys():
    """With ties, of which maps after a ReLU are full."""
    one, other = torch.randn(5, 2, 9, 8), torch.randn(5, 2, 9, 8)
    other[2] = one[2] ** 3
    other[3] = -one[3]
    maps = [(one, other), (one.relu(), other.relu()), (one.round(), other.round()), (one.round(), one)]
    for a, b in maps:
        expected = [spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(a.numpy(), b.numpy(), strict=True)]
        found = spearman(a, b)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert spearman(one, other)[2:4].tolist() == pytest.approx([1, -1])


def test_spearman_of_a_map_of_one_value_is_not_known():
    found = spearman(torch.stack([torch.ones(3, 4), torch.rand(3, 4)]), torch.rand(2, 3, 4))
    assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(12, 9), (7, 7), (30, 30), (3, 12), (5, 5)])
@pytest.mark.parametrize("channels", [None, 3])
def test_ssim_is_scikit_images(shape, channels):
    """Of maps brought to [0, 1]; its window, 7 pixels wide, is as large as the map where this is smaller."""
    whole = (4, *([channels] if channels else []), *shape)
    one, other = torch.randn(whole), torch.randn(whole)
    other[1] = one[1] + 0.3 * other[1]
    other[2] = one[2]
    window = min(7, *shape)

    def unit(maps):
        return (maps - maps.min()) / (maps.max() - maps.min())

    found = ssim(one, other)
    for i in range(4):
        options = {"data_range": 1, "win_size": window - 1 + window % 2, "channel_axis": 0 if channels else None}
        a, b = (unit(maps[i].double().numpy()) for maps in (one, other))
        assert float(found[i]) == pytest.approx(structural_similarity(a, b, **options), abs=1e-9)
    assert float(found[2]) == pytest.approx(1)
    assert ssim(torch.ones(1, 8, 8), torch.ones(1, 8, 8)).tolist() == [1]
