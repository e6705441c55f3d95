"""torchvision's models, with and without a network."""

import pickle
import threading
import time
import urllib.error

import pytest
import torch
from torchvision import models

from nbviz import bundled
from nbviz.bundled import torchvision_models

NAME = "squeezenet1_1"  # the smallest
FILE = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for torch's downloads: its folder of checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


def left_over(cache):
    return [path for path in cache.parent.parent.rglob("*") if path.is_file()]


def test_weights_in_the_cache_need_no_network(cache, no_network):
    expected = models.get_model(NAME).eval()
    cache.mkdir(parents=True)
    torch.save(expected.state_dict(), cache / FILE)
    before = torch.get_rng_state()
    model = bundled.load(NAME)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(images), expected(images))


def test_without_a_network_one_error_says_what_works(cache, no_network, capsys):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=f"the weights of {NAME!r}") as error:
        bundled.load(NAME)
    assert time.perf_counter() - start < 5
    assert no_network
    no_network.clear()
    for name in bundled.OFFLINE:
        assert repr(name) in str(error.value)
    assert str(cache / FILE) in str(error.value)
    assert left_over(cache) == []
    assert capsys.readouterr().out == ""


def test_a_server_that_never_answers_does_not_hold_anybody_up(cache, monkeypatch):
    release = threading.Event()

    def silent(*_, **__):
        release.wait(60)
        raise TimeoutError

    monkeypatch.setattr(torchvision_models, "urlopen", silent)
    monkeypatch.setattr(torchvision_models, "PATIENCE", 0.1)
    start = time.perf_counter()
    try:
        with pytest.raises(ConnectionError):
            bundled.load(NAME)
    finally:
        release.set()
    assert time.perf_counter() - start < 5


def test_a_download_that_breaks_off_leaves_nothing_behind(cache, monkeypatch):
    def broken(*_, **__):
        raise urllib.error.URLError("connection reset")

    monkeypatch.setattr(torchvision_models, "reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "urlopen", broken)
    with pytest.raises(ConnectionError) as error:
        bundled.load(NAME)
    assert isinstance(error.value.__cause__, urllib.error.URLError)
    assert left_over(cache) == []


class Harm:
    def __reduce__(self):
        return print, ("harm done",)


def test_a_weights_file_that_would_run_code_is_refused(cache, no_network, capsys):
    cache.mkdir(parents=True)
    torch.save({"features.0.weight": Harm()}, cache / FILE)
    with pytest.raises(pickle.UnpicklingError):
        bundled.load(NAME)
    assert "harm done" not in capsys.readouterr().out


def test_the_names_are_torchvisions_classification_models():
    names = torchvision_models.names()
    assert {"alexnet", "vgg16", "resnet50", "googlenet"} <= set(names)
    assert not any("rcnn" in name or name.startswith("quantized") for name in names)
