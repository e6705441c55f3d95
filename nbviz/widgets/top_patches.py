"""The widget that shows each channel's strongest patches, as the paper prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ipywidgets
import torch
import traitlets as t
from torch import nn

from nbviz.core.errors import line, shown
from nbviz.export.figure import Panel
from nbviz.imaging.encode import Array, channels_last, decode
from nbviz.imaging.pixels import centre, grid
from nbviz.methods.arguments import check_index
from nbviz.methods.top_patches import StrongestPatches, top_patches
from nbviz.widgets.base import Pulled
from nbviz.widgets.views import Header, Panels

_ROWS = 4  # channels on a page
_RULES = {"deconvnet": "deconvnet", "guided": "guided backprop"}


class TopPatches(Pulled):
    """For each channel the patches that excite it most, and beside them what of them it answers to (figure 2).

    Parameters
    ----------
    model, dataset, layer, channels, k
        As in :func:`nbviz.top_patches`, which is run first; further keywords are its own. In place of the model what it
        has found may be given, and then nothing else.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.top_patches`.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> view = TopPatches(nbviz.bundled.load("fashion"), dataset, "features.8", progress=False)
    >>> view.first = 40  # channels 40 to 43
    """

    _parts: ClassVar[tuple[str, ...]] = ("rows",)
    _stales: ClassVar[dict[str, set[str]]] = {"first": {"rows"}}

    first = t.Int(0, help="The first of the channels on the page, as its place among those that were asked for.")

    def __init__(
        self,
        model: nn.Module | StrongestPatches,
        dataset: Any = None,
        layer: str | None = None,
        channels: Sequence[int] | int | None = None,
        k: int = 9,
        **options: Any,
    ) -> None:
        if isinstance(model, StrongestPatches):
            self.found = model
        elif layer is None or dataset is None:
            raise TypeError(
                f"dataset is {shown(dataset)} and layer {shown(layer)}; expected both, or what nbviz.top_patches found"
            )
        else:
            self.found = top_patches(model, dataset, layer, channels, k, **options)
        found = self.found
        super().__init__(Header(title=line(type(found.model).__name__), info=line(found.layer)))
        count = len(found.channels)
        self.first_control = ipywidgets.IntSlider(
            max=count - min(_ROWS, count), description="From channel", tooltip="The first of the channels on this page"
        )
        self.pages = min(_ROWS, count)
        self.panels = Panels(
            [
                {"title": "", "cells": [{"slot": f"{what}_{row}"} for what in ("patches", *_RULES)]}
                for row in range(self.pages)
            ],
            controls=["contrast"],
        )
        t.link((self, "first"), (self.first_control, "value"))
        shown_here = ipywidgets.VBox([self.first_control, self.panels])
        self._lay_out(ipywidgets.Box([shown_here]).add_class("nbviz-columns"), "patches")
        self._start()

    @t.validate("first")
    def _valid_first(self, proposal: Any) -> int:
        return check_index("first", proposal["value"], len(self.found.channels) - self.pages + 1)

    def _show_rows(self) -> Iterator[bool]:
        found = self.found
        self.panels.current = str(self.first)
        for row in range(self.pages):
            place = self.first + row
            channel = int(found.channels[place])
            values = found.values[place]
            labels = self._labels(place)
            caption = f"#{channel}: {float(values[0]):.3g} to {float(values[-1]):.3g}{labels}"
            if int(found.indices[place, 0]) < 0:
                continue
            self.panels.show(f"patches_{row}", "picture", tiled(found.patches(channel)), caption=caption)
            yield False
            for rule, name in _RULES.items():
                signals = found.reconstructions(channel, rule)
                signals = signals if signals.shape[1] in (1, 3) else signals.mean(1, keepdim=True)
                self.panels.show(f"{rule}_{row}", "signed", tiled(centre(signals), 128), caption=name)
                yield False

    def _labels(self, place: int) -> str:
        """What the pictures are, the most frequent first."""
        names = self.found.names
        counted = Counter(label for label in self.found.labels[place].tolist() if label >= 0)
        told = [f"{line(names[i]) if i < len(names) else f'class {i}'} ×{n}" for i, n in counted.most_common(3)]
        return f" · {', '.join(told)}" if told else ""

    def _ended(self) -> None:
        self.header.code = f"nbviz.TopPatches(model, dataset, {self.found.layer.name!r})"

    def _heading(self) -> str:
        return f"{self.header.title} · {self.found.layer}"

    def _figure_rows(self) -> list[list[Panel]]:
        rows = []
        for row in self.panels.rows:
            slots = [self.panels.slot(cell["slot"]) for cell in row["cells"]]
            rows.append([Panel(_colours(decode(slot)), slot["caption"]) for slot in slots if slot])
        return [row for row in rows if row]


def tiled(pictures: torch.Tensor, pad: int = 255) -> Array:
    """Pictures uint8 (k, C, h, w) in one, as square as may be, (H, W, 3)."""
    nrow = max(1, round(len(pictures) ** 0.5))
    return channels_last(grid(pictures.cpu(), nrow, 1, normalize=False, pad_value=pad))


def _colours(pixels: Array) -> Array:
    return pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
