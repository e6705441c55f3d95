"""A widget's view as the panels of a figure, for a paper and for places where no widget can live."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, decode
from nbviz.imaging.pixels import colour_table, grid, overlay
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.session import RULE_CAPTIONS, TILES

if TYPE_CHECKING:
    from nbviz.widgets.layer_widget import LayerWidget
    from nbviz.widgets.picture_widget import PictureWidget
    from nbviz.widgets.views import Panels, Plot


def picture_panel(widget: LayerWidget) -> Panel:
    """The chosen picture."""
    pixels = channels_last(widget.session.rendered(widget.picture, widget.plane))
    return Panel(pixels, widget.session.subject.pictures.names[widget.picture], plot=widget.session.axes == 1)


def predictions_panel(widget: LayerWidget) -> Panel:
    """The predictions for it, if they are known."""
    known = widget.session.predictions(widget.picture) if widget.session.knows(widget.picture) else []
    return Panel(None, bars=known) if known else picture_panel(widget)


def bars_panels(widget: PictureWidget, before: str, after: str, part: str = "predictions") -> list[Panel]:
    """The predictions before and after a change, under these captions; the second is left out without a caption."""
    known = [] if part in widget._stale else widget.strip.predictions
    bars = [(before, [(label, p) for label, _, p in known]), (after, [(label, q) for label, q, _ in known])]
    return [Panel(None, caption, bars=rows) for caption, rows in bars if caption and rows]


def plot_panel(plot: Plot) -> Panel:
    """Curves over one axis, with a mark where the slider stands."""
    nan, marker = float("nan"), None if plot.slider is None else plot.slider.value
    series = [(curve["name"], curve["x"], [nan if y is None else y for y in curve["y"]]) for curve in plot.series]
    dashed = [curve["name"] for curve in plot.series if curve["dashed"]]
    labels = plot.xlabel, plot.ylabel
    return Panel(None, plot.title, series=series, labels=labels, dashed=dashed, ends=plot.range, marker=marker)


def filled_panels(panels: Panels) -> list[list[Panel]]:
    """The rows of panels, as far as they show the current state."""
    rows = [[(cell, panels.slot(cell["slot"])) for cell in row["cells"]] for row in panels.rows]
    known = [[_as_panel(cell, slot, panels) for cell, slot in row if panels.is_current(slot)] for row in rows]
    return [row for row in known if row]


def _as_panel(cell: dict[str, Any], slot: dict[str, Any], panels: Panels) -> Panel:
    """A filled slot as a panel of the figure."""
    pixels, plot = decode(slot), panels.plots
    box: list[int] | None = None
    caption = (cell.get("crop") and slot.get("part")) or slot.get("caption", "")
    if slot["kind"] == "map":
        return Panel(pixels if plot else pixels[..., 0], caption, panels.cmap, plot=plot)
    if cell.get("crop") and "box" in slot:
        top, left, bottom, right = slot["box"]
        pixels = decode(slot["patch"]) if slot["patch"] else pixels[top:bottom, left:right]
    elif slot["kind"] == "picture" and slot.get("mark"):  # in pixels of the input, of which fewer may have been sent
        box = [side * pixels.shape[i % 2] // slot["size"][i % 2] for i, side in enumerate(slot["box"])]
    if pixels.shape[2] == 1 and not plot:
        pixels = pixels.repeat(3, 2)
    if slot["kind"] == "overlay":
        over = decode(slot["over"])
        colours = colour_table(panels.cmap)[over] if over.ndim == 2 else over
        wide = torch.from_numpy(colours.copy()).permute(2, 0, 1)[None].float()
        wide = torch.nn.functional.interpolate(wide, pixels.shape[:2], mode="bilinear")[0]
        mixed = (1 - panels.opacity) * pixels + panels.opacity * channels_last(wide)
        pixels = mixed.round().astype("uint8")
    return Panel(pixels, caption, box=box, plot=plot, zero=128.0 if slot["kind"] == "signed" else None)


def tiles_panel(tiles: torch.Tensor, caption: str, cmap: str | None = None, width: float = 1.0) -> Panel:
    """Tiles side by side: uint8 (K, h, w), which ``cmap`` colours, or (K, C, h, w)."""
    colours = tiles
    if cmap is not None:
        colours = torch.from_numpy(colour_table(cmap)[tiles.cpu().numpy()]).permute(0, 3, 1, 2)
    pixels = grid(colours.cpu(), math.ceil(math.sqrt(len(tiles))), 1, normalize=False, pad_value=255)
    return Panel(channels_last(pixels), caption, width=width)


def fused_panel(widget: LayerWidget) -> Panel:
    """All channels in one map over the picture."""
    fused = fuse(widget.session.maps(widget.picture, widget.layer)[None], widget.how)[0].float().cpu()
    plane, caption = widget.session.plane(fused, widget.plane), f"all channels fused ({widget.how})"
    if widget.session.axes == 1:
        return Panel(channels_last(plane.reshape(-1, *plane.shape[-2:])), caption, plot=True)
    picture = widget.session.rendered(widget.picture, widget.plane)[None]
    if widget.how == "pca":
        over = torch.nn.functional.interpolate(plane[None], picture.shape[-2:], mode="bilinear")
        pixels = (0.4 * picture + 0.6 * 255 * over).to(torch.uint8)
    else:
        pixels = overlay(picture, plane[None], widget.fused.opacity, widget.fused.cmap)
    return Panel(channels_last(pixels[0]), caption)


def grid_panel(widget: LayerWidget) -> Panel:
    """The grid's strongest tiles."""
    plot = widget.session.axes == 1
    if widget.tiles != TILES[0] and widget.grid.sent and widget.grid.tiles["state"] == widget._key("grid"):
        _, pixels = widget.grid.pixels()
        colours = torch.from_numpy(pixels[:64]).permute(0, 3, 1, 2).float() / 255
        if plot:
            colours = _raised(colours.mean(1), 0.5).nan_to_num(1.0)[:, None]
        caption = f"{len(colours)} of {widget.count} channels, {RULE_CAPTIONS[widget.tiles]}, strongest first"
        tiles = grid(colours, _nrow(colours), normalize=False, padding=1, pad_value=1.0)
        return Panel(channels_last((tiles * 255).round().to(torch.uint8)), caption, width=2.0)
    maps = widget.session.maps(widget.picture, widget.layer).float().cpu()
    chosen = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:64]
    own_scale, planes = maps[0].numel() > 1, widget.session.plane(maps[chosen], widget.plane)
    is_raised = plot and own_scale
    if is_raised:
        low, high = planes.amin(2, keepdim=True), planes.amax(2, keepdim=True)
        planes = _raised((planes - low) / (high - low).clamp(min=1e-12), 0.0)
    tiles = grid(planes, _nrow(planes), 1, not is_raised, scale_each=own_scale, pad_value=float("nan"))[0]
    count = f"{len(chosen)} strongest of {len(maps)} channels" if len(chosen) < len(maps) else f"{len(maps)} channels"
    scale = "each on its own scale" if own_scale else "on one scale"
    return Panel(tiles.numpy(), f"{count}, strongest first, {scale}", widget.grid.cmap, width=2.0)


def _nrow(tiles: torch.Tensor) -> int:
    """How many tiles (K, ..., H, W) in a row make the whole twice as wide as high."""
    return max(1, math.ceil(math.sqrt(2 * len(tiles) * tiles.shape[-2] / tiles.shape[-1])))


def _raised(tiles: torch.Tensor, base: float, rows: int = 24) -> torch.Tensor:
    """Signals (K, 1, L) in [0, 1] as curves (K, rows, L) filled from ``base``; NaN where nothing is filled."""
    if tiles.shape[2] > 4 * rows:
        tiles = torch.nn.functional.adaptive_max_pool1d(tiles, 4 * rows)
    row = 1 - (torch.arange(rows, dtype=torch.float32)[:, None] + 0.5) / rows
    inside = ((row <= tiles) & (row >= base)) | ((row >= tiles) & (row <= base))
    return torch.where(inside, tiles, float("nan"))
