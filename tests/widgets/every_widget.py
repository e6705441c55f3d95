"""All widgets, a row each: what "every widget" means wherever a test promises it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import numpy as np
import pytest
from torch import Tensor, nn

import nbviz
from nbviz.widgets.base import Pulled
from nbviz.widgets.views import ChannelGrid
from tests.rounds import few, long
from tests.small import labelled


@dataclass(frozen=True)
class Row:
    """What is passed beside models and data; two changes, each of which draws anew; where drawing may fail.

    ``layer`` and ``layers`` are names in :class:`tests.small.Small`. ``places`` are names in modules of nbviz.widgets.
    """

    options: dict[str, Any] = field(default_factory=dict)
    changes: tuple[dict[str, Any], dict[str, Any]] = ({"picture": 1}, {"picture": 2})
    places: tuple[str, ...] = ()
    runs: bool = True  # the model, when it changes


EVERY: dict[str, Row] = {
    "Ablation": Row(
        {"layer": "2", "off": [2]},
        places=("session.run", "predictions.switch_off", "session.to_host", "views.encode"),
    ),
    "ClassActivation": Row({"layer": "2"}, places=("views.encode",)),
    "Compare": Row({"layer": "2"}, places=("compare.fuse", "compare.to_host", "views.encode")),
    "Correspondence": Row(
        {"layers": ["2"], "random": 2},
        ({"boxes": [[0, 0, 3, 3]] * 3}, {"boxes": [[2, 2, 9, 9]] * 3}),
        ("correspondence.correspondence",),
    ),
    "Evolution": Row(
        {"layer": "2", "channels": [0, 3]},
        ({"channel": 1, "moment": 0}, {"channel": 0, "moment": 1}),
        ("evolution.quantise", "views.encode"),
        runs=False,
    ),
    "Explorer": Row({"layer": "2"}, places=("views.encode",)),
    "FeatureMaps": Row({"layer": "2"}, places=("views.encode",)),
    "Invariance": Row(
        {"layers": ["2"], "transform": "across", "values": [-1, 0, 2]},
        places=("predictions.run", "invariance.moved_by", "views.encode"),
    ),
    "Kernels": Row(
        {},
        ({"layer": "4"}, {"layer": "0"}),
        ("kernels.kernel_report", "kernels.to_host", "views.encode"),
        runs=False,
    ),
    "Maximise": Row(
        {"target": [1, 2], "steps": 2, "size": 16},
        ({"steps": 4}, {"steps": 6}),
        ("maximise.channels_last", "views.encode"),
    ),
    "Occlusion": Row({"patch": 8, "stride": 8}, places=("views.encode",)),
    "Reconstruction": Row({"layer": "2"}, places=("views.encode",)),
    "Regions": Row(places=("views.encode",)),
    "Sanity": Row({"method": "gradient", "seed": 2}, places=("views.encode",)),
    "TopPatches": Row(
        {"layer": "2", "k": 2, "progress": False},
        ({"first": 1}, {"first": 0}),
        ("top_patches.tiled", "views.encode"),
    ),
}


#: The widgets of most parts, of two models and of a long run: with which ``make test`` tries what costs or says less.
TELLING = ("Compare", "Explorer", "Occlusion")

every = pytest.mark.parametrize("name", EVERY)
telling = pytest.mark.parametrize("name", few(EVERY, *map(list(EVERY).index, TELLING)))


def every_with(argument: str, variants: Mapping[str, Any], *throughout: str) -> pytest.MarkDecorator:
    """Each widget with each variant; ``make test`` tries all widgets ``throughout`` these, with the others TELLING."""
    rows = [
        pytest.param(name, value, id=f"{name}-{key}", marks=() if key in throughout or name in TELLING else long)
        for key, value in variants.items()
        for name in EVERY
    ]
    return pytest.mark.parametrize(("name", argument), rows)


def make(name: str, model: nn.Module, images: Any, **given: Any) -> Pulled:
    """A widget with its row's options, some of which may be given otherwise."""
    kind = getattr(nbviz, name)
    own = {
        "model": model,
        "model_a": model,
        "model_b": copy.deepcopy(model),
        "images": images,
        "dataset": labelled(),
        "checkpoints": checkpoints(model),
    }
    own |= {key: value for key, value in given.items() if key in own}
    options = {**EVERY[name].options, **{key: value for key, value in given.items() if key not in own}}
    if name == "Evolution":
        options["images"] = own["images"]
    view: Pulled = kind(*(own[argument] for argument in kind._arguments if argument in own), **options)
    return view


def parts(view: ipywidgets.Widget) -> list[Any]:
    """All widgets of a view."""
    waiting: list[Any] = [view]
    for widget in waiting:
        waiting.extend(getattr(widget, "children", ()))
    return waiting


def state(view: Pulled) -> list[tuple[str, str]]:
    """All that the page is sent, but for counters and keys that only grow."""
    found: list[tuple[str, str]] = []
    for widget in parts(view):
        if isinstance(widget, ChannelGrid) and widget.sent:  # in as many blocks as its reconstructions took time
            channels, pixels = widget.pixels()
            found.append(("pixels", repr(pixels[np.argsort(channels)].tobytes())))
        for key, value in widget.get_state().items():
            counted = "chunk", "cost", "painted", "current"
            skip = key in ("layout", "style", "children", "slider", "controls", "group", *counted)
            skip |= isinstance(widget, ChannelGrid) and key.startswith("block_")
            if not skip and not key.startswith("_"):
                own = (
                    {k: v for k, v in value.items() if k not in ("key", "state")} if isinstance(value, dict) else value
                )
                found.append((key, repr(own)))
    return found


def checkpoints(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Of two moments."""
    return {
        when: {name: factor * value for name, value in model.state_dict().items()}
        for when, factor in (("before", 0.5), ("after", 1))
    }
