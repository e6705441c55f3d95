"""The table: one line for each model, in Markdown, which is read back where only some of them run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchvision

PATH = Path(__file__).with_name("README.md")
VERDICTS = ("right", "refused", "wrong")
_TITLES = {
    "torchvision": "torchvision: classification",
    "timm": "timm",
    "segmentation": "torchvision: segmentation",
    "detection": "torchvision: detection",
    "video": "torchvision: video",
}


class Row(NamedTuple):
    """One model; its cells as they are printed."""

    model: str
    px: str = ""
    layers: str = ""
    maps: str = ""
    channels: str = ""
    gradient: str = ""
    deconvnet: str = ""
    guided: str = ""
    grad_cam: str = ""
    activations: str = ""
    verdict: str = ""
    note: str = ""


_INTRODUCTION = """# Right everywhere?

Written by `make coverage`; do not edit. {versions}.

**{summary}**

Each model has random weights. *px*: the side of its picture. *layers*: how many `nbviz.layers` lists, each with the
shape that a plain forward hook sees, channels first. *maps*: how many of these are feature maps, equal to the hook's
bit for bit (or else by how much they differ). *channels*: how many layers have as many channels as their module says
that it gives (`out_channels`, `out_features`, `num_features`, …); of no layer is it another number. *gradient*,
*deconvnet*, *guided*: the largest difference from plain autograd through the same forward pass with the backward pass
of every activation function written out ([reference.py](../reference.py)), over three channels each of an early layer
and a deep one and over an output class. *Grad-CAM*: that from hooks and autograd, at the deep layer. All in units of
the largest value; at most 1e-4, or, where the note says float64, 1e-7. After all that the model is bit for bit as it
was. *activations*: functions met, those that follow the rules and gates. *note*: whether the backward pass from an
early layer worked only where the signal is ("local").
"""


def write(rows: list[tuple[str, Row]], path: Path = PATH) -> None:
    """All lines, under a title for each kind of model."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    text = _INTRODUCTION.format(versions=versions, summary=summary([row for _, row in rows]))
    for kind, title in _TITLES.items():
        lines = [" | ".join(row) for of, row in rows if of == kind]
        if lines:
            heads = " | ".join(Row._fields).replace("grad_cam", "Grad-CAM")
            text += f"\n## {title}\n\n| {heads} |\n|{'---|' * len(Row._fields)}\n"
            text += "".join(f"| {line} |\n" for line in lines)
    path.write_text(text)


def read(path: Path = PATH) -> dict[str, Row]:
    """The lines under ``kind/model``."""
    found: dict[str, Row] = {}
    kinds = {title: kind for kind, title in _TITLES.items()}
    kind = ""
    for line in path.read_text().splitlines() if path.exists() else []:
        kind = kinds.get(line.removeprefix("## "), kind)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == len(Row._fields) and cells[0] != "model":
            found[f"{kind}/{cells[0]}"] = Row(*cells)
    return found


def summary(rows: list[Row]) -> str:
    """How many of each verdict."""
    counts = [f"{sum(row.verdict == verdict for row in rows)} {verdict}" for verdict in VERDICTS]
    return f"{len(rows)} models: {', '.join(counts)}"
