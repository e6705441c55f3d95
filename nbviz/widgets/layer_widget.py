"""The base of the widgets that show one layer of a model at work on one of several pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np
from torch import nn
from typing_extensions import Unpack

from nbviz.core.checks import check_choice, check_indices
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.reconstruct import SEEDS
from nbviz.widgets.channel_panels import channel_rows, show_channel
from nbviz.widgets.controls import Choice, Index, draws, moves
from nbviz.widgets.figure_panels import grid_panel
from nbviz.widgets.layer_choice import LayerChoice
from nbviz.widgets.memory import too_large
from nbviz.widgets.picture_widget import PictureOptions, PictureWidget
from nbviz.widgets.session import MEASURES, RULE_CAPTIONS, TILES, Look, Session
from nbviz.widgets.settings import GridSettings
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.tiles import FIRST, Tiles
from nbviz.widgets.views import ChannelGrid, Panels, picture_row

CAUTION = (
    "Deconvnet and guided backprop change little when the weights are randomised: read them as what the picture "
    "contains where the channel fires, not as proof of what was learned."
)
_FIRST_SECONDS = 0.5  # after which the picked channel's panels come before more tiles


class LayerOptions(PictureOptions, total=False):
    """The keyword arguments that all widgets on a layer share."""

    seed: str
    how: str
    tiles: str
    plane: int | None
    bands: Sequence[int] | int | None


class LayerWidget(PictureWidget, GridSettings):
    """A widget that shows one layer of a model at work on one of several pictures; a subclass lays out the views.

    Parameters
    ----------
    layer
        The layer at first. None takes the deepest whose maps still show shapes.
    channel
        The channel at first. None takes the one that is strongest away from the border, but not one that a ReLU6
        clamps there: no gradient passes back from it.
    seed
        What a reconstruction starts from: ``"max"``, the channel's strongest position; ``"map"``, all of its map; or
        ``"one"``, a one at the strongest position.
    how
        How all channels are fused into one map; see :func:`nbviz.fuse`.
    tiles
        What the grid shows of each channel: ``"activation"``, its map; or ``"gradient"``, ``"deconvnet"`` or
        ``"guided"``, its reconstruction under this rule, cut to its receptive field.
    plane
        The slice of a volume that is shown at first, from 0. None takes the middle.
    bands
        Which channels of the pictures are shown: three as red, green and blue, or one in grey. None takes the first
        three.

    Raises
    ------
    ValueError
        When the model has no such ``layer``. When ``channel``, ``picture`` or ``plane`` is out of range. When
        ``labels`` do not fit the model's outputs.
    """

    _needs_maps = True
    _grad = True

    layer = LayerChoice(
        "Layer",
        "The layer whose maps are shown",
        options=lambda widget: widget.session.layers,
        check=lambda widget, value: widget.session.check_layer(value),
    )
    channel = Index(
        "Channel",
        "The picked channel; a click on its tile picks it too",
        count=lambda widget: widget.count,
        follows=("layer",),
    )
    seed = Choice(
        "From",
        "What is passed down from the channel to the picture",
        options=dict(zip(SEEDS, ("strongest position", "whole map", "one at that position"), strict=True)),
        default="max",
    )
    how = Choice(
        "Fused", "How all channels of the layer become one map", kind="way to fuse", options=FUSIONS, default="l2"
    )
    tiles = Choice(
        "Tiles",
        "What the grid shows of each channel: its map, or its reconstruction, cut to its receptive field",
        options={name: RULE_CAPTIONS.get(name, name) for name in TILES},
        check=lambda widget, value: widget._valid_tiles(value),
        default=TILES[0],
    )
    plane = Index(
        "Slice",
        "Which slice of the volume is shown",
        count=lambda widget: widget.session.depth,
        default=lambda widget: widget.session.depth // 2,
    )
    bands = Choice(
        "Bands",
        "Which channels of the pictures are shown: one in grey, or three as red, green and blue",
        options=lambda widget: {choice: ", ".join(map(str, choice)) for choice in widget._band_choices()},
        label_of=lambda _, value: ", ".join(map(str, value)),
        check=lambda widget, value: widget._valid_bands(value),
        default=lambda widget: widget.session.usual_bands,
        start=(),
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        layer: str | None = None,
        channel: int | None = None,
        *,
        seed: str = "max",
        how: str = "l2",
        tiles: str = TILES[0],
        plane: int | None = None,
        bands: Sequence[int] | int | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        super().__init__(model, images, **options)
        session = self.session
        self._costs: dict[str, float | None] = {}
        self._notes: dict[str, str] = {}
        self._set_controls(layer=session.start_layer() if layer is None else layer)
        if self.bands != session.bands:
            self._show_bands()
        plots = session.axes == 1
        self.grid = ChannelGrid()
        self._tiles = Tiles(self)
        rows = channel_rows(session.axes)
        self.panels = Panels(rows, controls=["contrast"], note=CAUTION, plots=plots)
        opacity = [] if plots else ["opacity"]
        self.fused = Panels([picture_row("", "fused")], controls=opacity, plots=plots)
        self.grid.observe(self._zoomed, names="side")
        self._arrange()

    def _check_session(self) -> None:
        """Signals, volumes, and models without class scores are welcome."""

    def _arrange(self) -> None:
        """Lay out the views below the header."""
        raise NotImplementedError

    def _picture_column(self) -> list[ipywidgets.Widget]:
        """The pictures, and which of their channels are shown."""
        is_usual = self.session.subject.inputs.shape[1] in (1, 3) and self.bands == self.session.usual_bands
        return [self.strip] if is_usual else [self.strip, self.bands_control]

    def _layer_controls(self) -> list[ipywidgets.Widget]:
        """The layer, and which slice is shown."""
        return [self.layer_control, *([self.plane_control] if self.session.depth > 1 else [])]

    def _grid_panel(self) -> Panel:
        what = "channels" if self.tiles == TILES[0] else f"channels, {RULE_CAPTIONS[self.tiles]}"
        measure = "activation" if self.tiles == TILES[0] else MEASURES[self.tiles]
        return grid_panel(self.grid, what, self.channel, self.grid.off, measure=measure)

    # State.

    @property
    def count(self) -> int:
        """How many channels the layer has."""
        return self.session.layers[self.layer].shape[0]

    def look(self, side: int | None = None) -> Look:
        """What the page shows of the layer's maps, each about ``side`` pixels wide."""
        return self.session.look(self.picture, self.layer, self.how, side or self.grid.side, self.plane)

    def _band_choices(self) -> list[tuple[int, ...]]:
        usual, channels = self.session.usual_bands, range(self.session.subject.inputs.shape[1])
        return [usual, *((i,) for i in channels if (i,) != usual)]

    def _valid_bands(self, value: Any) -> tuple[int, ...]:
        if value is None:
            return self.session.usual_bands
        bands = tuple(check_indices("band", value, self.session.subject.inputs.shape[1]))
        if not bands:
            raise ValueError("bands is empty; expected one channel of the pictures, or three")
        return bands

    def _valid_tiles(self, value: Any) -> str:
        tiles = check_choice("tiles", value, TILES)
        if tiles != TILES[0] and not self._grad:
            what = f"{type(self).__name__} shows activations"
            raise ValueError(f"tiles is {tiles!r}; {what}, expected 'activation' (see nbviz.explore)")
        return tiles

    def _changed(self, change: Any) -> None:
        if change.name == "bands":
            with self._turn():
                self._show_bands()
                self._fit("bands")
        super()._changed(change)

    def _show_bands(self) -> None:
        self.session.show_bands(self.bands)
        self.strip.show(Thumbs(self.session))

    def _zoomed(self, change: Any) -> None:
        if self.grid.wants_more(change):
            self._renew({"grid", "first", "rest"})

    # Parts.

    @moves("channel", when="layer")
    def _strongest(self) -> int:
        """The channel that is strongest away from the border, of those that a reconstruction can start from."""
        look = self.look()
        return int(np.where(look.clamped & ~look.clamped.all(), -np.inf, look.inner).argmax())

    @draws("picture", "layer")
    def _show_trace(self) -> Iterator[bool]:
        look = self.look()
        self.cost("layer", self.session.milliseconds)
        strange = int((~self.session.maps(self.picture, self.layer).isfinite()).sum()) if look.strange.any() else 0
        self.note("finite", f"{strange} of the layer's values are not finite (NaN or infinity)" if strange else "")
        yield from ()  # the next part belongs to the same chunk

    @draws("picture", "layer", "tiles", "bands", into="grid", also=lambda widget: widget._tiles_follow())
    def _show_grid(self) -> Iterator[bool]:
        """The maps that are in view; reconstructions take longer, and come later."""
        must_draw = self._tiles.begin()
        if self.tiles == TILES[0]:  # else the part is done, however long it took
            yield must_draw

    def _tiles_follow(self) -> tuple[str, ...]:
        """The control on which the tiles depend besides: maps show a slice, reconstructions start from a seed."""
        return ("plane",) if self.tiles == TILES[0] else ("seed",)

    @draws("picture", "layer", "how", "plane", "bands", into="fused")
    def _show_fused(self) -> None:
        fused = self.look().fused
        over = fused.transpose(1, 2, 0) if fused.ndim == 3 else fused
        caption = f"all {self.count} channels fused ({self.how})"
        if self.session.axes == 1:
            kind = "picture" if fused.ndim == 3 else "map"
            self.fused.show("fused", kind, over if fused.ndim == 3 else over[..., None], caption=caption)
        else:
            picture = channels_last(self.session.rendered(self.picture, self.plane))
            ends = {} if fused.ndim == 3 else {"ends": self.look().fused_ends.tolist(), "measure": self.how}
            self.fused.show("fused", "overlay", picture, over, caption=f"{caption} over the picture", **ends)

    @draws("picture", "layer", "tiles", "bands", also=lambda widget: widget._tiles_follow())
    def _show_first(self) -> Iterator[bool]:
        """The strongest tiles come before the picked channel's panels, unless they take too long."""
        end = time.monotonic() + _FIRST_SECONDS
        for must_pause in self._tiles.send(FIRST):
            yield must_pause
            if time.monotonic() > end:
                return

    @draws("picture", "layer", "channel", "seed", "plane", "bands", into="panels")
    def _show_channel(self) -> Iterator[bool]:
        return show_channel(self)

    @draws("picture", "layer", "tiles", "bands", also=lambda widget: widget._tiles_follow())
    def _show_rest(self) -> Iterator[bool]:
        return self._tiles.send()

    # Notes and costs in the header.

    def note(self, about: str, text: str) -> None:
        """Show a note about something in the header; an empty one removes it."""
        self._notes[about] = text
        self.header.note = "; ".join(filter(None, self._notes.values()))

    def cost(self, what: str, milliseconds: float | None) -> None:
        """Show in the header what something has cost; None removes it."""
        self._costs[what] = milliseconds
        known = ((name, value) for name, value in self._costs.items() if value is not None)
        times = ((name, f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s") for name, ms in known)
        self.header.cost = " · ".join(f"{name} {time}" for name, time in times)

    def _ended(self) -> None:
        self.note("memory", too_large(self.session))
        super()._ended()

    def _failed(self, error: Exception) -> None:
        self.session.forget()  # the kept graph may contain what failed, such as a backward hook
        super()._failed(error)

    def _heading(self) -> str:
        return f"{self.header.title} · {self.session.layers[self.layer]}"

    def _foot(self) -> str:
        return "\n".join(filter(None, (super()._foot(), CAUTION if self._grad else "")))
