"""A widget's view as the panels of a figure, for where no widget can live and for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, decode
from nbviz.imaging.pixels import colour_table, grid, overlay
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.session import RULE_CAPTIONS, TILES

if TYPE_CHECKING:
    from nbviz.widgets.layer_widget import LayerWidget
    from nbviz.widgets.views import Panels, Plot


def picture_panel(view: LayerWidget) -> Panel:
    """The chosen picture."""
    pixels = channels_last(view.session.shown(view.picture, view.plane))
    return Panel(pixels, view.session.pictures.names[view.picture], plot=view.session.axes == 1)


def predictions_panel(view: LayerWidget) -> Panel:
    """What the network says of it."""
    known = view.session.predictions(view.picture) if view.session.knows(view.picture) else []
    return Panel(None, bars=known) if known else picture_panel(view)


def plot_panel(plot: Plot, marker: float | None = None) -> Panel:
    """Curves over one axis, on which the slider's value may be marked."""
    nan = float("nan")
    series = [(one["name"], one["x"], [nan if y is None else y for y in one["y"]]) for one in plot.series]
    dashed = [one["name"] for one in plot.series if one["dashed"]]
    labels = plot.xlabel, plot.ylabel
    return Panel(None, plot.title, series=series, labels=labels, dashed=dashed, ends=plot.range, marker=marker)


def filled_panels(panels: Panels) -> list[list[Panel]]:
    """What the rows of panels were last filled with, as far as it is of the current state."""
    rows = [[panels.slot(cell["slot"]) for cell in row["cells"]] for row in panels.rows]
    known = [[slot for slot in row if panels.is_current(slot)] for row in rows]
    return [[_as_panel(slot, panels) for slot in row] for row in known if row]


def _as_panel(slot: dict[str, Any], panels: Panels) -> Panel:
    pixels = decode(slot)
    if slot["kind"] == "map":
        return Panel(pixels[..., 0], slot["caption"], panels.cmap)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    if slot["kind"] == "overlay":
        over = decode(slot["over"])
        colours = colour_table(panels.cmap)[over] if over.ndim == 2 else over
        wide = torch.from_numpy(colours.copy()).permute(2, 0, 1)[None].float()
        wide = torch.nn.functional.interpolate(wide, pixels.shape[:2], mode="bilinear")[0]
        mixed = (1 - panels.opacity) * pixels + panels.opacity * channels_last(wide)
        pixels = mixed.round().astype("uint8")
    return Panel(pixels, slot["caption"])


def tiles_panel(tiles: torch.Tensor, caption: str, cmap: str | None = None, width: float = 1.0) -> Panel:
    """Tiles uint8 (K, h, w) to colour, or (K, C, h, w), side by side."""
    colours = tiles
    if cmap is not None:
        colours = torch.from_numpy(colour_table(cmap)[tiles.cpu().numpy()]).permute(0, 3, 1, 2)
    pixels = grid(colours.cpu(), math.ceil(math.sqrt(len(tiles))), 1, normalize=False, pad_value=255)
    return Panel(channels_last(pixels), caption, width=width)


def fused_panel(view: LayerWidget) -> Panel:
    """All channels in one map over the picture."""
    fused = fuse(view.session.maps(view.picture, view.layer)[None], view.how)[0].float().cpu()
    shown, caption = view.session.plane(fused, view.plane), f"all channels fused ({view.how})"
    if view.session.axes == 1:
        return Panel(channels_last(shown.reshape(-1, *shown.shape[-2:])), caption, plot=True)
    picture = view.session.shown(view.picture, view.plane)[None]
    if view.how == "pca":
        over = torch.nn.functional.interpolate(shown[None], picture.shape[-2:], mode="bilinear")
        pixels = (0.4 * picture + 0.6 * 255 * over).to(torch.uint8)
    else:
        pixels = overlay(picture, shown[None], view.fused.opacity, view.fused.cmap)
    return Panel(channels_last(pixels[0]), caption)


def grid_panel(view: LayerWidget) -> Panel:
    """The strongest of the grid's tiles."""
    plot = view.session.axes == 1
    if view.tiles != TILES[0] and view.grid.sent and view.grid.tiles["of"] == view._key("grid"):
        _, pixels = view.grid.pixels()
        colours = torch.from_numpy(pixels[:64]).permute(0, 3, 1, 2).float() / 255
        if plot:
            colours = _raised(colours.mean(1), 0.5).nan_to_num(1.0)[:, None]
        count = f"{len(colours)} of {view.count} channels"
        caption = f"{count}, {RULE_CAPTIONS[view.tiles]}, strongest first"
        tiles = grid(colours, _nrow(colours), normalize=False, padding=1, pad_value=1.0)
        return Panel(channels_last((tiles * 255).round().to(torch.uint8)), caption, width=2.0)
    maps = view.session.maps(view.picture, view.layer).float().cpu()
    chosen = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:64]
    alone, shown = maps[0].numel() > 1, view.session.plane(maps[chosen], view.plane)
    if plot and alone:
        low, high = shown.amin(2, keepdim=True), shown.amax(2, keepdim=True)
        tiles = _raised((shown - low) / (high - low).clamp(min=1e-12), 0.0)
        tiles = grid(tiles, _nrow(tiles), normalize=False, padding=1, pad_value=float("nan"))[0]
    else:
        tiles = grid(shown, _nrow(shown), scale_each=alone, padding=1, pad_value=float("nan"))[0]
    count = f"{len(chosen)} strongest of {len(maps)} channels" if len(chosen) < len(maps) else f"{len(maps)} channels"
    scale = "each on its own scale" if alone else "on one scale"
    return Panel(tiles.numpy(), f"{count}, strongest first, {scale}", view.grid.cmap, width=2.0)


def _nrow(tiles: torch.Tensor) -> int:
    """How many tiles (K, ..., H, W) in a row make them twice as wide as high."""
    return max(1, math.ceil(math.sqrt(2 * len(tiles) * tiles.shape[-2] / tiles.shape[-1])))


def _raised(tiles: torch.Tensor, base: float, rows: int = 24) -> torch.Tensor:
    """Signals (K, 1, L) in [0, 1] as curves (K, rows, L) filled from ``base``; NaN where nothing is filled."""
    if tiles.shape[2] > 4 * rows:
        tiles = torch.nn.functional.adaptive_max_pool1d(tiles, 4 * rows)
    row = 1 - (torch.arange(rows, dtype=torch.float32)[:, None] + 0.5) / rows
    inside = ((row <= tiles) & (row >= base)) | ((row >= tiles) & (row <= base))
    return torch.where(inside, tiles, float("nan"))


def reconstruction_panels(view: LayerWidget) -> list[list[Panel]]:
    """The panels' rows as they were last sent; those of an earlier state are left out."""
    rows = []
    for row in view.panels.rows:
        slots = [(cell, view.panels.slot(cell["slot"])) for cell in row["cells"]]
        rows.append([_panel(cell, slot, view) for cell, slot in slots if view.panels.is_current(slot)])
    return [row for row in rows if row]


def _panel(cell: dict[str, Any], slot: dict[str, Any], view: LayerWidget) -> Panel:
    """A filled slot as a panel of the figure."""
    pixels, plot = decode(slot), view.session.axes == 1
    box: Sequence[int] | None = slot.get("box")
    caption = (cell.get("crop") and slot.get("part")) or slot.get("caption", "")
    if slot["kind"] == "map":
        return Panel(pixels if plot else pixels[..., 0], caption, view.panels.cmap, plot=plot)
    if cell.get("crop") and box is not None:
        top, left, bottom, right = box
        pixels, box = decode(slot["patch"]) if slot["patch"] else pixels[top:bottom, left:right], None
    if pixels.shape[2] == 1 and not plot:
        pixels = pixels.repeat(3, 2)
    if box is not None:  # the pixels may be fewer than those that it counts
        box = [side * pixels.shape[i % 2] // slot["size"][i % 2] for i, side in enumerate(box)]
    zero = 128.0 if slot["kind"] == "signed" else None
    mark = slot["kind"] == "picture" and slot["mark"]
    return Panel(pixels, caption, box=box if mark else None, plot=plot, zero=zero)
