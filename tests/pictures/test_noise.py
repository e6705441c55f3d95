"""The noise on copies of pictures, and what it depends on."""

import numpy as np
import pytest
import torch

from nbviz.pictures.noise import noisy

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))


def test_the_noise_is_normal_and_a_share_of_each_pictures_range():
    x = torch.stack([torch.linspace(-1, 3, 3 * 64 * 64).view(3, 64, 64), torch.full((3, 64, 64), 2.0)])
    copies = torch.stack(noisy(x, 8, 0.15, 0, range(2)))
    noise = copies - x
    assert float(noise[:, 0].std()) == pytest.approx(0.15 * 4, rel=0.01)
    assert abs(float(noise[:, 0].mean())) < 0.01
    assert float((noise[:, 0].abs() < 0.6).double().mean()) == pytest.approx(0.6827, abs=0.005)
    assert not noise[:, 1].any()  # a picture of one colour has no range
    between = np.corrcoef(noise[:, 0].flatten(1).numpy())
    assert np.abs(between - np.eye(8)).max() < 0.05


def test_the_noise_depends_on_seed_and_number_alone():
    one, other = (torch.stack(noisy(X, 3, 1, seed, range(2))) for seed in (0, 1))
    assert not torch.isclose(one, other).any()
    assert not torch.equal(one[:, 0] - X[0], one[:, 1] - X[1])
    alone = torch.stack(noisy(X[1:], 3, 1, 0, [1]))
    assert torch.equal(alone[:, 0], one[:, 1])
    assert len(noisy(X, 1, 1, 2**63 - 1, range(2))) == 1
