"""`import nbviz` is light, and the rooms below know no widgets."""

import subprocess
import sys

import pytest

import nbviz

HEAVY = {"torchvision", "matplotlib", "ipywidgets", "anywidget", "timm", "IPython", "safetensors", "h5py"}
WIDGETS = {"ipywidgets", "anywidget", "IPython", "jupyterlab", "traitlets", "comm"}


def loaded_after(code):
    """Modules that a fresh interpreter has loaded."""
    program = f"{code}\nimport sys\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_nbviz_loads_nothing_heavy():
    loaded = loaded_after("import nbviz; nbviz.__version__; dir(nbviz)")
    assert "nbviz" in loaded
    assert loaded & (HEAVY | {"torch", "numpy", "PIL"}) == set()


ROOMS = [
    "nbviz.core.backward, nbviz.core.layers, nbviz.core.receptive_field, nbviz.core.state, nbviz.core.trace",
    "nbviz.methods.deconvnet, nbviz.methods.feature_maps, nbviz.methods.gradient, nbviz.methods.guided_backprop",
    "nbviz.methods.layers, nbviz.methods.reconstruct, nbviz.pictures.load, nbviz.imaging.pixels",
    "nbviz.pictures.preprocess",
]


def test_the_rooms_below_load_no_widget_library():
    loaded = loaded_after("\n".join(f"import {modules}" for modules in ROOMS))
    assert "torch" in loaded
    assert loaded & (HEAVY | WIDGETS) == set()


def test_a_reconstruction_needs_no_widget_library():
    loaded = loaded_after(
        "import torch, nbviz\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())\n"
        "maps = nbviz.guided_backprop(net, torch.rand(1, 8, 8), '1')\n"
        "nbviz.grid(maps[0])\n"
        "nbviz.overlay(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), maps[:, 0, 0])"
    )
    assert "torchvision" in loaded
    assert loaded & (WIDGETS | {"matplotlib.pyplot"}) == set()


@pytest.mark.parametrize("name", nbviz.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nbviz, name) is not None
    assert name in dir(nbviz)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nbviz' has no attribute 'deconv'"):
        nbviz.deconv  # noqa: B018


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(AttributeError, match="no attribute 'gradcam'; did you mean 'grad_cam'"):
        nbviz.gradcam  # noqa: B018
    assert not hasattr(nbviz, "_repr_html_")
