"""torch.set_default_device and set_default_dtype count for the person's own code: nbviz answers as it does without."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import nbviz
from nbviz.methods import cams
from nbviz.scanning.digest import digest
from tests.rounds import few

LAYER = "features.8"
X = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
DATASET = [(x, i) for i, x in enumerate(X)] * 4
MODEL = nbviz.bundled.load("fashion")
PLAIN = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()  # of which no preprocessing is known
TIMM = timm.create_model("test_resnet", pretrained=False).eval()


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).clamp(min=1e-9)  # no rectifier, though its bound is zero in half precision


CLAMPED = nn.Sequential(Clamped())
SIGNALS = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU()).eval()
WAVES = torch.rand(2, 2, 64, generator=torch.Generator().manual_seed(0))
ARRAYS = list(np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8))


def seen(make: Callable[[], Any]) -> Callable[[], bytes]:
    """What a widget's figure shows, after a control has moved."""

    def look() -> bytes:
        view = make()
        if "features.5" in getattr(getattr(view, "session", None), "layers", {}) and hasattr(view, "layer"):
            view.layer = "features.5"
        view.finish()
        assert view.header.error == ""
        pixels = io.BytesIO()
        view.figure().savefig(pixels, format="rgba", dpi=40)
        view.close()
        return pixels.getvalue()

    return look


CAMS = [name for name in (*cams.CAMS, "guided_grad_cam") if name not in ("cam", "eigen_cam")]
STATISTICS = "Sparsity", "Correlation", "Moments", "Histogram", "TopK"
FEATURES: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: getattr(nbviz.cams, name)(MODEL, X, LAYER, 1) for name in CAMS},
    "eigen_cam": lambda: nbviz.cams.eigen_cam(MODEL, X, LAYER),
    **{
        f"load {name}": lambda model=model: nbviz.load(model, ARRAYS)
        for name, model in {"its own": MODEL, "plain": PLAIN, "timm's": TIMM}.items()
    },
    "layers": lambda: nbviz.layers(MODEL, X),
    "feature_maps": lambda: nbviz.feature_maps(MODEL, X, LAYER),
    "fuse": lambda: nbviz.fuse(nbviz.feature_maps(MODEL, X, LAYER), "pca"),
    "grid": lambda: nbviz.grid(nbviz.feature_maps(MODEL, X, LAYER)[0][:, None]),
    "gradient": lambda: nbviz.gradient(MODEL, X, LAYER, [1]),
    "deconvnet": lambda: nbviz.deconvnet(MODEL, X, LAYER, [1], seed="map"),
    "guided_backprop": lambda: nbviz.guided_backprop(MODEL, X, LAYER, [1]),
    "clamp": lambda: nbviz.deconvnet(CLAMPED, X, "0", 0, seed="map"),
    "reconstruct": lambda: nbviz.reconstruct(MODEL, X, target=3)["guided"],
    "integrated_gradients": lambda: nbviz.attribution.integrated_gradients(MODEL, X, 1, steps=8),
    "input_x_gradient": lambda: nbviz.attribution.input_x_gradient(MODEL, X, 1),
    "smooth_grad": lambda: nbviz.attribution.smooth_grad(MODEL, X, 1, samples=3),
    "occlusion": lambda: nbviz.occlusion(MODEL, X, 1, 8, 8).probability,
    "region_effect": lambda: nbviz.region_effect(MODEL, X, [3, 3, 11, 12]),
    "invariance": lambda: nbviz.invariance(MODEL, X),
    "correspondence": lambda: nbviz.correspondence(MODEL, X, [[2, 2, 9, 9]] * 2),
    "kernels": lambda: nbviz.kernels(MODEL),
    "frequency_response": lambda: nbviz.frequency_response(nbviz.kernels(MODEL)),
    "kernel_report": lambda: nbviz.kernel_report(MODEL),
    "maximise": lambda: nbviz.maximise(MODEL, LAYER, [1], steps=3).pictures,
    "switched_off": lambda: nbviz.switched_off(MODEL, X, LAYER, [1, 2]),
    "ablate": lambda: nbviz.ablate(MODEL, DATASET, LAYER),
    "top_patches": lambda: nbviz.top_patches(MODEL, DATASET, LAYER, k=2).values,
    "reconstructions": lambda: nbviz.top_patches(MODEL, DATASET, LAYER, k=2).reconstructions(1),
    "report": lambda: nbviz.report(MODEL, DATASET),
    "compare": lambda: nbviz.compare(MODEL, nbviz.bundled.load("fashion"), DATASET),
    "scan": lambda: nbviz.scan(
        MODEL,
        DATASET,
        {name: getattr(nbviz.statistics, name)(LAYER) for name in STATISTICS},
    ),
    "evolution": lambda: nbviz.evolution(MODEL, {"a": MODEL.state_dict()}, X, LAYER, [1])[0].reconstructions,
    "randomisation": lambda: nbviz.sanity.randomisation(MODEL, X, "gradient"),
    "deletion_insertion": lambda: nbviz.sanity.deletion_insertion(MODEL, X, nbviz.grad_cam(MODEL, X), steps=4).deletion,
    "spearman": lambda: nbviz.sanity.spearman(X.round(decimals=1), X.flip(0)),
    "bundled": lambda: next(nbviz.bundled.load("fashion").parameters()).detach(),
    "FeatureMaps": seen(lambda: nbviz.FeatureMaps(MODEL, X)),
    "signals": seen(lambda: nbviz.FeatureMaps(SIGNALS, WAVES)),
    "Reconstruction": seen(lambda: nbviz.Reconstruction(MODEL, X)),
    "explore": seen(lambda: nbviz.explore(MODEL, X)),
    "ClassActivation": seen(lambda: nbviz.ClassActivation(MODEL, X)),
    "Occlusion": seen(lambda: nbviz.Occlusion(MODEL, X)),
    "Regions": seen(lambda: nbviz.Regions(MODEL, X)),
    "Sanity": seen(lambda: nbviz.Sanity(MODEL, X)),
    "Invariance": seen(lambda: nbviz.Invariance(MODEL, X)),
    "Correspondence": seen(lambda: nbviz.Correspondence(MODEL, X)),
    "Compare": seen(lambda: nbviz.Compare(MODEL, nbviz.bundled.load("fashion"), X)),
    "Evolution": seen(lambda: nbviz.Evolution(MODEL, {"a": MODEL.state_dict()}, X, LAYER, [1])),
    "Kernels": seen(lambda: nbviz.Kernels(MODEL)),
    "Maximise": seen(lambda: nbviz.Maximise(MODEL, LAYER, [1], steps=3)),
    "Ablation": seen(lambda: nbviz.Ablation(MODEL, X)),
    "TopPatches": seen(lambda: nbviz.TopPatches(MODEL, DATASET, LAYER, channels=[0, 1])),
}


#: Widgets that are built as those left are, and whose functions are among the features: for make test-all.
ALIKE = "FeatureMaps", "Reconstruction", "ClassActivation", "Regions", "Sanity", "Correspondence", "Compare", "Ablation"


@cache
def expected(feature: str) -> Any:
    return FEATURES[feature]()


@pytest.fixture
def set_defaults() -> Iterator[Callable[[torch.dtype], None]]:
    def set_both(dtype: torch.dtype) -> None:
        torch.set_default_device("meta")
        torch.set_default_dtype(dtype)

    yield set_both
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:picture .. after 8 steps:UserWarning")
@pytest.mark.filterwarnings("ignore:.*rectifier")
@pytest.mark.parametrize(
    ("feature", "dtype"),
    few(
        product(FEATURES, [torch.float16, torch.float64]),
        *(2 * i + i % 2 for i, feature in enumerate(FEATURES) if feature not in ALIKE),
    ),
    ids=str,
)
def test_no_feature_depends_on_a_default(feature: str, dtype: torch.dtype, set_defaults: Any) -> None:
    without = expected(feature)
    set_defaults(dtype)
    found = FEATURES[feature]()
    if isinstance(without, Tensor):
        assert found.dtype == without.dtype
        assert found.device == without.device
        assert torch.equal(found, without)
    else:
        assert str(found) == str(without)
        assert digest(found) == digest(without)  # to the last bit of all that it holds


def test_the_models_own_code_has_the_default_device_that_the_person_set() -> None:
    made: list[torch.device] = []

    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made.append(torch.zeros(1).device)
            return x

    def inputs(x: Tensor) -> Tensor:
        made.append(torch.zeros(1).device)
        return x

    torch.set_default_device("meta")
    try:
        nbviz.feature_maps(nn.Sequential(Makes()), X, "0", inputs=inputs)
    finally:
        torch.set_default_device(None)
    assert made
    assert {device.type for device in made} == {"meta"}
