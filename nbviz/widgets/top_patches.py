"""The widget that shows each channel's strongest patches, as the paper prints them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from nbviz.core.documented import documented_like
from nbviz.core.errors import NoRectifierWarning, NoSwitchWarning, line, shown
from nbviz.core.types import Channels, Dataset
from nbviz.imaging.encode import Array, channels_last
from nbviz.imaging.pixels import centre, grid
from nbviz.methods.top_patches import TopPatchesResult, top_patches
from nbviz.pictures.load import Reader
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Index, draws
from nbviz.widgets.predictions import current_autocast
from nbviz.widgets.settings import SignedSettings
from nbviz.widgets.views import Panels, picture_row

_ROWS = 4  # channels on a page
_K = 9  # pictures for each, as in the paper
_RULES = {"deconvnet": "deconvnet", "guided": "guided backprop"}


@documented_like(top_patches)
class TopPatches(Pulled, SignedSettings, options_of=top_patches):
    """For each channel the patches that excite it most, and beside them what of them it answers to (figure 2).

    Parameters
    ----------
    model
        Any PyTorch model, which is left unchanged; or what :func:`nbviz.top_patches` found, and then nothing else.
    first
        The first channel on the page at first, as its place among those that were asked for.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> view = TopPatches(nbviz.bundled.load("fashion"), dataset, "features.8", progress=False)
    >>> view.first = 40  # channels 40 to 43
    """

    _arguments: tuple[str, ...] = ("model", "dataset", "layer")
    _not_in_code = ("progress",)

    first = Index(
        "From channel",
        "The first of the channels on this page, as its place among those that were asked for",
        count=lambda widget: len(widget.found.channels) - widget.pages + 1,
        default=0,
    )

    def __init__(
        self,
        model: nn.Module | TopPatchesResult,
        dataset: Dataset | None = None,
        layer: str | None = None,
        channels: Channels | None = None,
        k: int = _K,
        *,
        first: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(model, TopPatchesResult):
            if options or k != _K or any(given is not None for given in (dataset, layer, channels)):
                raise TypeError("the patches are found already; expected nothing beside them")
            self.found = model
        elif layer is None or dataset is None:
            raise TypeError(
                f"dataset is {shown(dataset)} and layer {shown(layer)}; expected both, or what nbviz.top_patches found"
            )
        else:
            self.found = top_patches(model, dataset, layer, channels, k, **options)
        found = self.found
        if len(found.size) != 2:
            raise ValueError(f"the model takes signals or volumes: patches are {found.size}; expected pictures")
        if not len(found.channels):
            raise ValueError("channels is empty; expected at least one")
        self._under_autocast = current_autocast(Reader.of(found.model).device)
        super().__init__(found.model, line(found.layer))
        if model is found:
            self._arguments = ("patches",)
            self._sources.pop("model", None)
        self.pages = min(_ROWS, len(found.channels))
        rows = [picture_row("", *(f"{what}_{row}" for what in ("patches", *_RULES))) for row in range(self.pages)]
        self.panels = Panels(rows, controls=["contrast"])
        self._notes: dict[type[Warning], str] = {}
        self._set_controls()
        self._lay_out([self.first_control, self.panels])

    @draws("first", into="panels")
    def _show_rows(self) -> Iterator[bool]:
        found = self.found
        for row in range(self.pages):
            place = self.first + row
            channel, seen = int(found.channels[place]), int((found.indices[place] >= 0).sum())
            if not seen:  # all its values are NaN
                for what, caption in {"patches": f"#{channel}: no number in any picture", **_RULES}.items():
                    self.panels.show(f"{what}_{row}", "picture", np.full((1, 1, 3), 128, np.uint8), caption=caption)
                continue
            if not found.values[place, :seen].any():  # dead: any picture is as strong as another
                for what, caption in {
                    "patches": f"#{channel}: 0 in every picture, answers to nothing",
                    **_RULES,
                }.items():
                    self.panels.show(f"{what}_{row}", "picture", np.full((1, 1, 3), 128, np.uint8), caption=caption)
                continue
            ends = f"{float(found.values[place, 0]):.3g} to {float(found.values[place, seen - 1]):.3g}"
            caption = f"#{channel}: {ends}{self._labels(place)}"
            self.panels.show(f"patches_{row}", "picture", tiled(found.patches(channel)), caption=caption)
            yield False
            for rule, name in _RULES.items():
                signals = self._reconstructions(channel, rule)
                signals = signals if signals.shape[1] in (1, 3) else signals.mean(1, keepdim=True)
                self.panels.show(
                    f"{rule}_{row}", "signed", tiled(centre(signals), 128), caption=f"{name}, each on its own scale"
                )
                yield False

    def _reconstructions(self, channel: int, rule: str) -> torch.Tensor:
        """The patches' reconstructions; a warning, which nobody would see here, becomes a note."""
        noted = NoRectifierWarning, NoSwitchWarning
        with warnings.catch_warnings(record=True) as caught:
            for category in noted:
                warnings.simplefilter("always", category)
            with self._under_autocast():
                signals = self.found.reconstructions(channel, rule)
        for warning in caught:
            if issubclass(warning.category, noted):
                self._notes.setdefault(warning.category, line(warning.message))
                self.header.note = "; ".join(self._notes.values())
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return signals

    def _labels(self, place: int) -> str:
        """The classes of the pictures, the most frequent first."""
        names = self.found.names
        counts = Counter(label for label in self.found.labels[place].tolist() if label >= 0)
        texts = [f"{line(names[i]) if i < len(names) else f'class {i}'} ×{n}" for i, n in counts.most_common(3)]
        return f" · {', '.join(texts)}" if texts else ""

    def _heading(self) -> str:
        return f"{self.header.title} · {self.found.layer}"


def tiled(pictures: torch.Tensor, pad: int = 255) -> Array:
    """Pictures uint8 (k, C, h, w) as one picture (H, W, 3), about as many in a row as there are rows."""
    nrow = max(1, round(len(pictures) ** 0.5))
    return channels_last(grid(pictures.cpu(), nrow, 1, normalize=False, pad_value=pad))
