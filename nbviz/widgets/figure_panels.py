"""A widget's view as the panels of a figure, for a paper and for places where no widget can live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nbviz.core.errors import unknown
from nbviz.export.panel import Panel, Scale
from nbviz.imaging.encode import Array, channels_last, decode
from nbviz.imaging.pixels import as_levels, colour_table
from nbviz.imaging.pixels import grid as make_grid

if TYPE_CHECKING:
    from nbviz.widgets.layer_widget import LayerWidget
    from nbviz.widgets.picture_widget import PictureWidget
    from nbviz.widgets.views import ChannelGrid, Panels, Plot


def picture_panel(widget: LayerWidget) -> Panel:
    """The chosen picture."""
    pixels = channels_last(widget.session.rendered(widget.picture, widget.plane))
    name = widget.session.subject.pictures.names[widget.picture]
    return Panel(pixels, name, "picture", plot=widget.session.axes == 1)


def predictions_panel(widget: LayerWidget) -> Panel:
    """The predictions for it, if they are known."""
    known = widget.session.predictions(widget.picture) if widget.session.knows(widget.picture) else []
    return Panel(None, name="predictions", bars=known) if known else picture_panel(widget)


def bars_panels(widget: PictureWidget, before: str, after: str, part: str = "predictions") -> list[Panel]:
    """The predictions before and after a change, under these captions; the second is left out without a caption.

    Their names are ``"before"`` and ``"after"``.
    """
    known = [] if part in widget._stale else widget.strip.predictions
    bars = [(before, [(label, p) for label, _, p in known]), (after, [(label, q) for label, q, _ in known])]
    named = zip(("before", "after"), bars, strict=True)
    return [Panel(None, caption, name, bars=rows) for name, (caption, rows) in named if caption and rows]


def plot_panel(plot: Plot, name: str = "") -> Panel:
    """Curves over one axis, with a mark where the slider stands."""
    nan, marker = float("nan"), None if plot.slider is None else plot.slider.value
    series = [(curve["name"], curve["x"], [nan if y is None else y for y in curve["y"]]) for curve in plot.series]
    dashed = [curve["name"] for curve in plot.series if curve["dashed"]]
    labels = plot.xlabel, plot.ylabel
    return Panel(None, plot.title, name, series=series, labels=labels, dashed=dashed, ends=plot.range, marker=marker)


def even(rows: list[list[Panel]]) -> list[list[Panel]]:
    """Rows as long as the first, so that all of their pictures have one size."""
    return [[*row, *[Panel(None)] * (len(rows[0]) - len(row))] for row in rows]


def named_panel(rows: Sequence[Sequence[Panel]], name: Any) -> Panel:
    """The panel of this name; a ValueError lists all names."""
    named = {panel.name: panel for row in reversed(rows) for panel in reversed(row) if not panel.is_empty}
    if not isinstance(name, str) or name not in named:
        raise unknown("panel", name, [panel.name for row in rows for panel in row if panel.name in named])
    return named[name]


def filled_panels(panels: Panels) -> list[list[Panel]]:
    """The rows of panels, as far as they show the current state."""
    rows = [[(cell, panels.slot(cell["slot"])) for cell in row["cells"]] for row in panels.rows]
    drawn = [[_as_panel(cell, slot, panels) for cell, slot in row if panels.is_current(slot)] for row in rows]
    return [row for row in drawn if row]


def _as_panel(cell: dict[str, Any], slot: dict[str, Any], panels: Panels) -> Panel:
    """A filled slot as a panel of the figure, with the page's settings."""
    pixels, kind, plot = decode(slot), slot["kind"], panels.plots
    name = f"{cell['slot']} patch" if cell.get("crop") else cell["slot"]
    scale = None if plot else _scale(slot, panels)
    caption = (cell.get("crop") and slot.get("part")) or slot.get("caption", "")
    if kind == "map":
        return Panel(pixels if plot else pixels[..., 0], caption, name, panels.cmap, scale, plot=plot)
    if cell.get("crop") and "inner" in slot:
        top, left, bottom, right = slot["inner"]
        pixels = decode(slot["patch"]) if slot["patch"] else pixels[top:bottom, left:right]
    if kind == "signed":
        pixels = as_levels(128 + (pixels - 128.0) * panels.contrast)
    if pixels.shape[2] == 1 and not plot:
        pixels = pixels.repeat(3, 2)
    if kind == "overlay":
        over = decode(slot["over"])
        colours = colour_table(panels.cmap)[over] if over.ndim == 2 else over
        wide = torch.from_numpy(colours.copy()).permute(2, 0, 1)[None].float()
        wide = torch.nn.functional.interpolate(wide, pixels.shape[:2], mode="bilinear")[0]
        pixels = as_levels((1 - panels.opacity) * pixels + panels.opacity * channels_last(wide))
    box = inner = None
    if kind == "picture" and slot.get("mark") and not cell.get("crop"):
        box, inner = (_marked(slot[name], slot["size"], pixels) for name in ("box", "inner"))
    zero = 128.0 if kind == "signed" else None
    return Panel(pixels, caption, name, scale=scale, box=box, inner=inner, plot=plot, zero=zero)


def _marked(box: Sequence[int], size: Sequence[int], pixels: Array) -> list[int]:
    """A box of the input, of which fewer pixels may have been sent."""
    return [side * pixels.shape[i % 2] // size[i % 2] for i, side in enumerate(box)]


def _scale(slot: dict[str, Any], panels: Panels) -> Scale | None:
    """The colour bar of a slot whose values are known."""
    low, high = slot.get("ends", (0.0, 0.0))
    if not low < high:
        return None
    contrast = panels.contrast if slot["kind"] == "signed" else None
    return Scale(low, high, slot.get("measure", ""), panels.cmap, contrast)


def grid_panel(
    grid: ChannelGrid,
    what: str = "channels",
    picked: int | None = None,
    off: Sequence[int] = (),
    name: str = "channels",
    measure: str = "",
) -> Panel:
    """The grid's first tiles, as many rows as make a square: in its order and on its scale, at its zoom.

    Where the picked channel, or else the first that is switched off, comes later, it is the rows around that one.

    Parameters
    ----------
    what
        What the tiles show, for the caption.
    picked
        The channel that is marked.
    off
        The channels that are switched off, which are dark.
    name
        By which a person asks for the grid alone.
    measure
        What the colours measure, for the bar of a shared scale.
    """
    if not grid.is_current():
        return Panel(None)
    channels, levels = grid.levels()
    plots, signed = grid.tiles["plots"], grid.tiles["kind"] == "signed"
    aspect = 2.0 if plots else levels.shape[2] / levels.shape[1]
    rows = max(1, round(grid.nrow * aspect))
    marked = next((channels.index(one) for one in (picked, *off) if one in channels), 0) // grid.nrow
    first = grid.nrow * (0 if marked < rows else min(marked - rows // 2, -(-len(channels) // grid.nrow) - rows))
    shown = slice(first, first + grid.nrow * rows)
    channels, levels = channels[shown], levels[shown]
    if plots:
        heights = torch.from_numpy(levels).float().div(255).reshape(len(levels), 1, levels.shape[2], -1).mean(3)
        levels = _raised(heights, 0.5 if signed else 0.0).mul(255)[..., None].numpy()
    if signed:
        colours = np.broadcast_to(levels, (*levels.shape[:3], 3)).astype(np.float32)
    else:
        steps = as_levels(np.nan_to_num(levels.reshape(levels.shape[:3])))
        colours = colour_table(grid.cmap)[steps].astype(np.float32)
    if plots:
        colours = np.where(np.isnan(levels), 255.0, colours)
    dark = np.isin(channels, list(off))
    colours[dark] = 0.2 * colours[dark] + 0.8 * _DARK
    tiles = torch.from_numpy(as_levels(colours)).permute(0, 3, 1, 2)
    enlarged = -(-_SMALLEST // tiles.shape[3])  # so that the gap between small tiles is narrow
    tiles = tiles.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    padding = tiles.shape[3] // _SMALLEST
    pixels = channels_last(make_grid(tiles, grid.nrow, padding, normalize=False, pad_value=255))
    height, width = (side + padding for side in tiles.shape[2:])
    corners = [(padding + i % grid.nrow * width, padding + i // grid.nrow * height) for i in range(len(channels))]
    box = None
    if picked in channels:
        left, top = corners[channels.index(picked)]
        box = [top, left, top + height - padding, left + width - padding]
    count = grid.tiles["shape"][0]
    number = f"{len(channels)} of {count}" if len(channels) < count else str(count)
    one_scale = grid.scale == "shared" or grid.tiles["shape"][1:] == [1, 1]
    (low, high), contrast = grid.ends(), grid.contrast if signed else None
    low = -high if signed else low
    scale = Scale(low, high, measure, grid.cmap, contrast) if one_scale and not plots and low < high else None
    caption = f"{number} {what}, {_ORDERS[grid.order]}, {'on one scale' if one_scale else 'each on its own scale'}"
    numbers = [(x, y, channel) for (x, y), channel in zip(corners, channels, strict=True)]
    return Panel(pixels, caption, name, scale=scale, box=box, numbers=numbers, tile=width)


def large_panel(grid: ChannelGrid, channel: int) -> Panel:
    """One channel of the grid from its own lowest to its own highest value, as the page shows it large."""
    if not grid.is_current() or channel not in grid.pixels()[0]:
        return Panel(None)
    levels, low, high = grid.tile(channel)
    plot = grid.tiles["plots"]
    scale = Scale(low, high, "activation", grid.cmap) if low < high and not plot else None
    caption = f"#{channel}: {low:.3g} to {high:.3g}"
    pixels = levels[..., None] if plot else levels
    return Panel(pixels, caption, "activation", grid.cmap, scale, plot=plot)


_SMALLEST = 24  # pixels across a tile, which a gap of one pixel suits
_DARK = np.array([22, 24, 26])  # over a channel that is switched off
_ORDERS = {
    "index": "in the layer's order",
    "strongest": "strongest first",
    "spread": "largest spread first",
    "redundant": "most redundant first",
}


def _raised(tiles: torch.Tensor, base: float, rows: int = 24) -> torch.Tensor:
    """Signals (K, 1, L) in [0, 1] as curves (K, rows, L) filled from ``base``; NaN where nothing is filled."""
    if tiles.shape[2] > 4 * rows:
        tiles = torch.nn.functional.adaptive_max_pool1d(tiles, 4 * rows)
    row = 1 - (torch.arange(rows, dtype=torch.float32)[:, None] + 0.5) / rows
    inside = ((row <= tiles) & (row >= base)) | ((row >= tiles) & (row <= base))
    return torch.where(inside, tiles, float("nan"))
