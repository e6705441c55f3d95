"""`import nbviz` is light, and the rooms below know no widgets."""

import re
import subprocess
import sys

import pytest

import nbviz

HEAVY = {"torchvision", "matplotlib", "ipywidgets", "anywidget", "timm", "IPython", "safetensors", "h5py"}
WIDGETS = {"ipywidgets", "anywidget", "IPython", "jupyterlab", "traitlets", "comm"}


def loaded_after(*codes):
    """Modules that a fresh interpreter has loaded after each of these in turn."""
    program = "import sys\n" + "".join(f"{code}\nprint(*sorted(sys.modules))\n" for code in codes)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in result.stdout.splitlines()]


def test_importing_nbviz_loads_nothing_heavy():
    (loaded,) = loaded_after("import nbviz; nbviz.__version__; dir(nbviz)")
    assert "nbviz" in loaded
    assert loaded & (HEAVY | {"torch", "numpy", "PIL"}) == set()


ROOMS = [
    "nbviz.core.backward, nbviz.core.layers, nbviz.core.receptive_field, nbviz.core.state, nbviz.core.trace",
    "nbviz.methods.deconvnet, nbviz.methods.feature_maps, nbviz.methods.gradient, nbviz.methods.guided_backprop",
    "nbviz.methods.layers, nbviz.methods.reconstruct, nbviz.pictures.load, nbviz.imaging.pixels",
    "nbviz.pictures.preprocess",
]


def test_the_rooms_below_and_a_reconstruction_load_no_widget_library():
    rooms, reconstruction = loaded_after(
        "\n".join(f"import {modules}" for modules in ROOMS),
        "import torch, nbviz\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())\n"
        "maps = nbviz.guided_backprop(net, torch.rand(1, 8, 8), '1')\n"
        "nbviz.grid(maps[0])\n"
        "nbviz.overlay(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), maps[:, 0, 0])",
    )
    assert "torch" in rooms
    assert rooms & (HEAVY | WIDGETS) == set()
    assert "torchvision" in reconstruction
    assert reconstruction & (WIDGETS | {"matplotlib.pyplot"}) == set()


@pytest.mark.parametrize("name", nbviz.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nbviz, name) is not None
    assert name in dir(nbviz)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nbviz' has no attribute 'deconv'"):
        nbviz.deconv  # noqa: B018


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(AttributeError, match=r"no attribute 'gradcam'; did you mean nbviz\.grad_cam\?"):
        nbviz.gradcam  # noqa: B018
    with pytest.raises(AttributeError, match=r"'integrated_gradient'; did you mean nbviz\.attribution\.integrated_gr"):
        nbviz.integrated_gradient  # noqa: B018
    assert not hasattr(nbviz, "_repr_html_")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("eigen_cam", "cams.eigen_cam"),
        ("smooth_grad", "attribution.smooth_grad"),
        ("ModelError", "errors.ModelError"),
        ("ScanResult", "results.ScanResult"),
        ("Comparison", "results.CompareResult"),
    ],
)
def test_a_name_that_moved_says_where_it_is(name, place):
    with pytest.raises(AttributeError, match=f"no attribute {name!r}; it is nbviz.{place}$"):
        getattr(nbviz, name)
    namespace, _, inside = place.partition(".")
    assert hasattr(getattr(nbviz, namespace), inside)


def test_every_result_of_a_function_is_in_results():
    returned = set()
    for place in (nbviz, nbviz.cams, nbviz.attribution, nbviz.sanity):
        for function in (getattr(place, name) for name in dir(place)):
            annotation = getattr(function, "__annotations__", {}).get("return", "")
            returned |= set(re.findall(r"\w+(?:Result|Found)\b", str(annotation)))
    assert returned
    assert returned <= set(vars(nbviz.results))
