"""The network that ships with nbviz."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from nbviz import bundled
from nbviz.bundled.fashion import CLASSES
from nbviz.bundled.train_fashion import accuracy, read_idx
from tests.rounds import rounds

WEIGHTS = bundled.HERE / "fashion.safetensors"
DATA = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


@pytest.fixture
def model(no_network):
    return bundled.load("fashion")


def test_it_is_right_on_most_of_the_bundled_pictures(model):
    images, labels = bundled.fashion_test()
    tried = rounds(300, 1_000)
    assert accuracy(model, images[:tried, None] / 255, labels[:tried]) >= 0.91


@pytest.mark.skipif(not DATA.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_it_is_right_on_93_of_100_test_pictures(model):
    images = read_idx(DATA / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(DATA / "t10k-labels-idx1-ubyte.gz").long()
    tried = rounds(500, 10_000)
    assert accuracy(model, images[:tried, None] / 255, labels[:tried]) >= 0.93
    bundled_images, bundled_labels = bundled.fashion_test()
    assert torch.equal(bundled_images, images[:1000])
    assert torch.equal(bundled_labels, labels[:1000])


def test_the_weights_file_is_small_and_states_its_accuracy():
    assert WEIGHTS.stat().st_size < 2_000_000
    with safe_open(WEIGHTS, "pt") as file:
        assert json.loads(file.metadata()["test_accuracy"]) >= 0.93


def test_it_is_plain_convolution_relu_and_pooling_in_eval_mode(model):
    kinds = {type(module) for module in model.features}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d}
    assert not model.training
    for parameter in model.parameters():
        assert parameter.device.type == "cpu"
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    bundled.load("fashion")
    assert torch.equal(torch.get_rng_state(), before)


def test_it_loads_to_the_cpu_whatever_the_default_device():
    torch.set_default_device("meta")
    try:
        model = bundled.load("fashion")
    finally:
        torch.set_default_device(None)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_its_preprocessing_takes_pictures_as_they_are(model):
    images, _ = bundled.fashion_test()
    preprocess = model.nbviz_preprocess
    assert preprocess.labels == CLASSES
    assert torch.equal(preprocess(Image.fromarray(images[0].numpy())), images[0][None] / 255)
    assert preprocess(bundled.pictures()[0]).shape == (1, 28, 28)
    inputs = images[:2, None] / 255
    assert torch.equal(preprocess.undo(inputs), inputs)
