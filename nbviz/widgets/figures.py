"""A widget's view as the panels of a figure, for where no widget can live and for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, decode
from nbviz.imaging.pixels import grid, overlay
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.session import RULE_CAPTIONS, TILES

if TYPE_CHECKING:
    from nbviz.widgets.instrument import Instrument


def picture_panel(view: Instrument) -> Panel:
    """The chosen picture."""
    return Panel(channels_last(view.session.display[view.picture]), view.session.pictures.names[view.picture])


def predictions_panel(view: Instrument) -> Panel:
    """What the network says of it."""
    known = view.session.predictions(view.picture) if view.session.knows(view.picture) else []
    return Panel(None, bars=known) if known else picture_panel(view)


def fused_panel(view: Instrument) -> Panel:
    """All channels in one map over the picture."""
    fused = fuse(view.session.maps(view.picture, view.layer)[None], view.how)
    picture = view.session.display[view.picture : view.picture + 1]
    if view.how == "pca":
        over = torch.nn.functional.interpolate(fused.cpu().float(), picture.shape[-2:], mode="bilinear")
        pixels = (0.4 * picture + 0.6 * 255 * over).to(torch.uint8)
    else:
        pixels = overlay(picture, fused.cpu(), view.fused.opacity, view.fused.cmap)
    return Panel(channels_last(pixels[0]), f"all channels fused ({view.how}) over the picture")


def grid_panel(view: Instrument) -> Panel:
    """The strongest of the grid's tiles."""
    if view.tiles != TILES[0] and view.grid.sent and view.grid.tiles["of"] == view.tiled:
        _, pixels = view.grid.pixels()
        colours = torch.from_numpy(pixels[:64]).permute(0, 3, 1, 2).float() / 255
        count = f"{len(colours)} of {view.channel_control.max + 1} channels"
        caption = f"{count}, {RULE_CAPTIONS[view.tiles]}, strongest first"
        tiles = grid(colours, normalize=False, padding=1, pad_value=1.0)
        return Panel(channels_last((tiles * 255).round().to(torch.uint8)), caption, width=2.0)
    maps = view.session.maps(view.picture, view.layer).float().cpu()
    shown = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:64]
    alone = maps[0].numel() > 1
    tiles = grid(maps[shown], scale_each=alone, padding=1, pad_value=float("nan"))[0]
    count = f"{len(shown)} strongest of {len(maps)} channels" if len(shown) < len(maps) else f"{len(maps)} channels"
    scale = "each on its own scale" if alone else "on one scale"
    return Panel(tiles.numpy(), f"{count}, strongest first, {scale}", view.grid.cmap, width=2.0)


def reconstruction_panels(view: Instrument) -> list[list[Panel]]:
    """The panels' rows as they were last sent; those of an earlier state are left out."""
    rows = []
    for row in view.panels.rows:
        slots = [(cell, view.panels.slot(cell["slot"])) for cell in row["cells"]]
        rows.append([_panel(cell, slot, view.panels.cmap) for cell, slot in slots if slot.get("key") == view.picked])
    return [row for row in rows if row]


def _panel(cell: dict[str, Any], slot: dict[str, Any], cmap: str) -> Panel:
    """A filled slot as a panel of the figure."""
    pixels = decode(slot)
    box: Sequence[int] | None = slot.get("box")
    caption = cell.get("caption") or slot.get("caption", "")
    if slot["kind"] == "map":
        return Panel(pixels[..., 0], caption, cmap)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    if cell.get("crop") and box is not None:
        top, left, bottom, right = box
        return Panel(pixels[top:bottom, left:right], caption)
    return Panel(pixels, caption, box=box if slot["kind"] == "picture" else None)
