"""The widget that shows the kernels of a convolution."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nbviz.core.errors import line, shown
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model
from nbviz.core.weights import Watch
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.kernels import check_kernels_layer, convolutions, frequency_response, kernel_report, kernels
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws
from nbviz.widgets.figure_panels import filled_panels, tiles_panel
from nbviz.widgets.views import ChannelGrid, Header, Panels


class Kernels(Pulled):
    """The kernels of a convolution: all of them, and of the picked one its slices and its frequencies.

    Kernels that look at grey or colour are small pictures, zero in grey. Those further up are shown as the root of the
    mean square over their input channels, and the picked one slice by slice, one for each input channel.

    Parameters
    ----------
    model, layer
        As in :func:`nbviz.kernels`.
    channel
        The kernel that is picked at first.

    Raises
    ------
    ValueError, TypeError
        As in :func:`nbviz.kernels`.

    Examples
    --------
    >>> import nbviz
    >>> view = Kernels(nbviz.bundled.load("fashion"), "features.2")
    >>> view.channel = 5
    """

    _kind = "kernels"
    _arguments = ("model",)

    layer = Choice(
        "Layer",
        "The convolution whose kernels are shown",
        options=lambda view: view._layers,
        check=lambda view, value: check_kernels_layer(view.model, value if isinstance(value, str) else shown(value)),
        start="",
    )
    channel = Index(
        "Kernel",
        "The picked kernel; so does a click on its tile",
        count=lambda view: len(view._kernels()),
        follows=("layer",),
        usual=0,
    )

    def __init__(self, model: nn.Module, layer: str | None = None, channel: int = 0) -> None:
        self.model = check_model(model)
        self._watch = Watch(self.model)
        start = check_kernels_layer(self.model, layer)
        self._layers = _options(self.model)
        super().__init__(Header(title=line(type(self.model).__name__), info=f"{len(self._layers)} convolutions"))
        self._begin_with(layer=start, channel=channel)
        group = uuid.uuid4().hex
        # Zero in grey, and the largest weight, not half of it, in black or white.
        self.grid = ChannelGrid(group=group, contrast=1.0)
        self.slices = ChannelGrid(group=group, contrast=1.0)
        self.panels = Panels(
            [{"title": "The picked kernel", "cells": [{"slot": "kernel"}, {"slot": "response"}]}],
            group=group,
            contrast=1.0,
            controls=["contrast"],
        )
        self.grid.slider = f"IPY_MODEL_{self.channel_control.model_id}"
        self._lay_out([self.layer_control, self.channel_control, self.grid], [self.panels, self.slices])
        self._start()

    def _kernels(self) -> Tensor:
        """(K, I, h, w), of a signal's with height 1, of a volume's its slices side by side."""
        found = torch.nan_to_num(kernels(self.model, self.layer).float())
        if found.ndim == 3:
            return found[:, :, None]
        return found if found.ndim == 4 else found.transpose(2, 3).flatten(3)

    @draws("layer", into="grid")
    def _show_all(self) -> Iterator[bool]:
        found = self._kernels()
        if self.channel_control.max != len(found) - 1:  # a layer that was made wider, or narrower
            self._fit("channel")
        norms, spread = found.flatten(1).norm(dim=1), found.flatten(1).std(1, correction=0)
        strength, spreads = to_host(norms, spread)
        self.grid.title = f"{len(found)} kernels of {'×'.join(map(str, found.shape[1:]))}"
        if found.shape[1] in (1, 3):
            self.grid.begin("signed", (len(found), *found.shape[2:]), strength, spreads)
            self._fill_signed(self.grid, found)
        else:
            steps, low, high = _strengths(found)
            self.grid.begin("map", tuple(steps.shape), strength, spreads)
            self._fill(self.grid, steps, low, high)
        report = kernel_report(self.model, self.layer)
        self.header.note = "; ".join(f"{name}: {said}" for name, said in report.rows()[1:])
        yield False

    def _fill(self, view: ChannelGrid, pixels: Tensor, low: Tensor, high: Tensor) -> None:
        """All tiles of a grid, in its own order."""
        tiles, bottom, top = to_host(pixels, low, high)
        order = view.waiting(len(tiles))
        view.add(tiles[order], bottom[order], top[order])

    def _fill_signed(self, view: ChannelGrid, kernels: Tensor) -> None:
        """The same with (K, 1 or 3, h, w), zero in grey."""
        largest = _largest(kernels)
        self._fill(view, centre(kernels, largest.view(-1, 1, 1, 1)).permute(0, 2, 3, 1), -largest, largest)

    @draws("layer", "channel", into=("panels", "slices"))
    def _show_picked(self) -> Iterator[bool]:
        kernel = self._kernels()[self.channel : self.channel + 1]
        colours = kernel.shape[1] in (1, 3)
        name = f"#{self.channel}, norm {float(kernel.norm()):.3g}"
        shown = kernel[0] if colours else kernel[0].mean(0, keepdim=True)
        caption = name if colours else f"{name}: mean over its {kernel.shape[1]} inputs"
        self.panels.show("kernel", "signed", channels_last(centre(shown)), caption=caption)
        own = kernels(self.model, self.layer, self.channel)
        if own.ndim == 4:
            response = frequency_response(torch.nan_to_num(own.float()), max(32, *own.shape[2:]))
            ends = response.new_zeros(1), response.amax((1, 2))
            (steps,) = to_host(quantise(response, None, ends)[0][0])
            middle = "frequency response: 0 in the middle, half a cycle for each pixel at the border"
            self.panels.show("response", "map", steps[..., None], caption=middle)
        slices = kernel[0][:, None]
        self.slices.layout.display = "none" if len(slices) == 1 else ""
        strength, spread = to_host(slices.flatten(1).norm(dim=1), slices.flatten(1).std(1, correction=0))
        self.slices.title = f"#{self.channel}: what it looks for in each of {len(slices)} inputs"
        self.slices.begin("signed", (len(slices), *slices.shape[2:]), strength, spread)
        self._fill_signed(self.slices, slices)
        yield False

    def _key(self, part: str) -> str:
        """As for all widgets, and the state of the weights, of which there is no session here."""
        return f"{super()._key(part)} {self._watch.look(in_full=True)}"

    def _heading(self) -> str:
        return f"{self.header.title} · kernels of {self.layer}"

    def _figure_rows(self) -> list[list[Panel]]:
        found = self._kernels()
        tiles = found[found.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:64]]
        caption = f"{len(tiles)} of {len(found)} kernels, strongest first"
        if found.shape[1] in (1, 3):
            every = tiles_panel(centre(tiles, _largest(tiles).view(-1, 1, 1, 1)), caption, width=2.0)
        else:
            caption += ": root of the mean square over the inputs"
            every = tiles_panel(_strengths(tiles)[0], caption, self.grid.cmap, 2.0)
        return [[every, *(panel for row in filled_panels(self.panels) for panel in row)]]


def _options(model: nn.Module) -> dict[str, str]:
    """The convolutions, and what is said of each."""
    every = convolutions(model)
    # A parametrisation may note something when it is asked for a weight.
    shapes = in_shadow(
        model, lambda shadow: ["×".join(map(str, m.weight.shape)) for m in convolutions(shadow).values()]
    )
    return {
        name: f"{line(name)} · {line(type(module).__name__)} · {shape}"
        for (name, module), shape in zip(every.items(), shapes, strict=True)
    }


def _strengths(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The root of the mean square over the input channels, from zero: steps (K, h, w), low and high (K,)."""
    maps = kernels.square().mean(1).sqrt()
    return quantise(maps, None, (maps.new_zeros(len(maps)), _largest(maps[:, None])))


def _largest(kernels: Tensor) -> Tensor:
    """The largest absolute value of each, or where they are single pixels of all: (K,)."""
    each = kernels.flatten(1).abs().amax(1)
    return each if kernels[0, 0].numel() > 1 else each.amax().expand(len(each))
