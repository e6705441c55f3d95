"""The widget that shows the kernels of a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.documented import documented_like
from nbviz.core.errors import line, shown
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model
from nbviz.core.weights import Watch
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.kernels import check_kernels_layer, convolutions, frequency_response, kernel_report, kernels
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Index, draws
from nbviz.widgets.figure_panels import filled_panels, grid_panel
from nbviz.widgets.layer_choice import LayerChoice
from nbviz.widgets.settings import GridSettings, contrast
from nbviz.widgets.views import ChannelGrid, Panels, picture_row


@documented_like(kernels)
class Kernels(Pulled, GridSettings):
    """The kernels of a convolution: all of them, and of the picked one its slices and its frequencies.

    Kernels that look at grey or colour are small pictures, with zero as grey. Those further up are shown as the root
    mean square over their input channels, and the picked one slice by slice, one for each input channel.

    Parameters
    ----------
    channel
        The kernel that is picked at first.

    Examples
    --------
    >>> import nbviz
    >>> view = Kernels(nbviz.bundled.load("fashion"), "features.2")
    >>> view.channel = 5
    """

    _arguments = ("model",)

    layer = LayerChoice(
        "Layer",
        "The convolution whose kernels are shown",
        options=lambda widget: widget._layers,
        check=lambda widget, value: check_kernels_layer(
            widget.model, value if isinstance(value, str) else shown(value)
        ),
    )
    channel = Index(
        "Kernel",
        "The picked kernel; a click on its tile picks it too",
        count=lambda widget: len(widget._kernels()),
        follows=("layer",),
        default=0,
    )

    contrast = contrast(default=1.0)  # the largest weight, not half of it, is black or white

    def __init__(self, model: nn.Module, layer: str | None = None, channel: int = 0) -> None:
        self.model = check_model(model)
        self._watch = Watch(self.model)
        start = check_kernels_layer(self.model, layer)
        self._layers = _layer_labels(self.model)
        super().__init__(self.model, f"{len(self._layers)} convolutions")
        self._set_controls(layer=start)
        self.grid = ChannelGrid(slider=self.channel_control)
        self.slices = ChannelGrid()
        row = picture_row("The picked kernel", "kernel", "response")
        self.panels = Panels([row], controls=["contrast"])
        self._lay_out([self.layer_control, self.channel_control, self.grid], [self.panels, self.slices])

    def _kernels(self) -> Tensor:
        """All kernels (K, I, h, w); a signal's have height 1, a volume's their slices side by side."""
        weights = torch.nan_to_num(kernels(self.model, self.layer).float())
        if weights.ndim == 3:
            return weights[:, :, None]
        return weights if weights.ndim == 4 else weights.transpose(2, 3).flatten(3)

    @draws("layer", into="grid")
    def _show_all(self) -> None:
        weights = self._kernels()
        if self.channel_control.max != len(weights) - 1:  # the layer was made wider or narrower
            self._fit("channel")
        self.grid.title = f"{len(weights)} kernels of {'×'.join(map(str, weights.shape[1:]))}"
        if weights.shape[1] in (1, 3):
            _show_signed(self.grid, weights)
        else:
            self.grid.show("map", _strengths(weights), _ranks(weights))
        rows = kernel_report(self.model, self.layer).rows()[1:]
        self.header.note = "; ".join(f"{name}: {text}" for name, text in rows)

    @draws("layer", "channel", into=("panels", "slices"))
    def _show_picked(self) -> None:
        kernel = self._kernels()[self.channel]
        caption = f"#{self.channel}, norm {float(kernel.norm()):.3g}"
        colours = kernel
        if len(kernel) not in (1, 3):
            colours, caption = kernel.mean(0, keepdim=True), f"{caption}: mean over its {len(kernel)} inputs"
        largest = colours.abs().amax()
        scale: dict[str, Any] = {"ends": [-float(largest), float(largest)], "measure": "weight"}
        self.panels.show("kernel", "signed", channels_last(centre(colours, largest)), caption=caption, **scale)
        own = kernels(self.model, self.layer, self.channel)
        if own.ndim == 4:
            response = frequency_response(torch.nan_to_num(own.float()), max(32, *own.shape[2:]))
            ends = response.new_zeros(1), response.amax((1, 2))
            (steps,) = to_host(quantise(response, None, ends)[0][0])
            scale = {"ends": (0.0, float(ends[1])), "measure": "gain"}
            middle = "frequency response: 0 in the middle, half a cycle for each pixel at the border"
            self.panels.show("response", "map", steps[..., None], caption=middle, **scale)
        slices = kernel[:, None]
        self.slices.layout.display = "none" if len(slices) == 1 else ""
        self.slices.title = f"#{self.channel}: what it looks for in each of {len(slices)} inputs"
        _show_signed(self.slices, slices)

    def _key(self, part: str) -> str:
        """The state that a part shows; no session knows the weights here."""
        return f"{super()._key(part)} {self._watch.look(in_full=True)}"

    def _heading(self) -> str:
        return f"{self.header.title} · kernels of {self.layer}"

    def _figure_rows(self) -> list[list[Panel]]:
        picked = [panel for row in filled_panels(self.panels) for panel in row]
        measure = "weight" if self.grid.tiles.get("kind") == "signed" else "root mean square weight"
        rows = [[grid_panel(self.grid, "kernels", self.channel, name="kernels", measure=measure), *picked]]
        if self.slices.layout.display != "none":
            what = f"slices of kernel {self.channel}"
            rows.append([grid_panel(self.slices, what, name="slices", measure="weight")])
        return rows


def _layer_labels(model: nn.Module) -> dict[str, str]:
    """The convolutions by name, each with its type and its shape."""
    # In the shadow: a parametrised module may change its state when its weight is read.
    shapes = in_shadow(model, lambda shadow: {name: m.weight.shape for name, m in convolutions(shadow).items()})
    return {
        name: f"{line(name)} · {line(type(module).__name__)} · {'×'.join(map(str, shapes[name]))}"
        for name, module in convolutions(model).items()
    }


def _show_signed(grid: ChannelGrid, kernels: Tensor) -> None:
    """Show kernels (K, 1 or 3, h, w) with zero as grey."""
    largest = _largest(kernels)
    pixels = centre(kernels, largest).permute(0, 2, 3, 1)
    grid.show("signed", (pixels, -largest, largest), _ranks(kernels))


def _ranks(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Each kernel's norm and its spread, by which the page orders them."""
    return kernels.flatten(1).norm(dim=1), kernels.flatten(1).std(1, correction=0)


def _strengths(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The root mean square over the input channels, from zero: steps (K, h, w), low and high (K,)."""
    maps = kernels.square().mean(1).sqrt()
    return quantise(maps, None, (maps.new_zeros(len(maps)), _largest(maps[:, None])))


def _largest(kernels: Tensor) -> Tensor:
    """Each kernel's largest absolute value (K,); that of all kernels where each is a single pixel."""
    values = kernels.flatten(1).abs().amax(1)
    return values if kernels[0, 0].numel() > 1 else values.amax().expand(len(values))
