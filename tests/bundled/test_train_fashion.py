"""The training of the bundled network, on a few steps of noise."""

import gzip
import struct
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from nbviz.bundled import train_fashion
from nbviz.bundled.fashion import FashionNet
from tests.rounds import long


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_read_idx_gives_back_what_was_written(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    write_idx(tmp_path / "x.gz", array)
    read = train_fashion.read_idx(tmp_path / "x.gz")
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


def test_augment_only_mirrors_and_shifts_by_up_to_two_pixels():
    images = torch.rand(64, 1, 28, 28)
    out = train_fashion.augment(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    seen = set()
    for before, after in zip(images, out, strict=True):
        padded = nn.functional.pad(before, (2, 2, 2, 2))
        fits = [
            (flip, y, x)
            for flip, source in ((False, padded), (True, padded.flip(-1)))
            for y in range(5)
            for x in range(5)
            if torch.equal(source[:, y : y + 28, x : x + 28], after)
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {y for _, y, _ in seen} == {x for _, _, x in seen} == {0, 1, 2, 3, 4}


def test_fold_keeps_the_function():
    torch.manual_seed(0)
    model = FashionNet(batch_norm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    plain = train_fashion.fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    images = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), model(images), atol=1e-5, rtol=1e-5)


def test_accuracy_counts_the_right_answers():
    logits = nn.functional.one_hot(torch.arange(1200) % 10, 10).float()
    labels = torch.arange(1200) % 10
    labels[:300] = (labels[:300] + 1) % 10
    assert train_fashion.accuracy(nn.Identity(), logits, labels) == 0.75


@long
def test_training_twice_gives_the_same_weights(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, count in (("train", 256 + 8), ("t10k", 1010)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, count, np.uint8))
    monkeypatch.setattr(train_fashion, "HELD_OUT", 8)
    states = []
    for out in (tmp_path / "first", tmp_path / "second"):
        monkeypatch.setattr(sys, "argv", ["train_fashion", str(tmp_path), "--epochs", "5", "--out", str(out)])
        train_fashion.main()
        states.append(load_file(out / "fashion.safetensors"))
        with np.load(out / "fashion_test.npz") as file:
            assert file["images"].shape == (1000, 28, 28)
    assert states[0].keys() == FashionNet().state_dict().keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
