"""The base of the widgets that show one layer of a model at work on one of some pictures."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import torch
from torch import nn

from nbviz.core.backward import PAPERS, RULES
from nbviz.core.checks import check_choice, check_index, check_indices
from nbviz.core.errors import line
from nbviz.core.state import is_compiled, lock
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.reconstruct import SEEDS
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws, moves
from nbviz.widgets.memory import forget_beyond_limit, too_large
from nbviz.widgets.session import LARGE, RULE_CAPTIONS, TILES, Look, Session, fitted, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.tiles import FIRST, Tiles
from nbviz.widgets.views import ChannelGrid, Header, Panels, Strip

CAUTION = (
    "Deconvnet and guided backprop change little when the weights are randomised: read them as what the picture "
    "contains where the channel fires, not as proof of what was learned."
)
_FIRST_SECONDS = 0.5  # after which the picked channel's panels come before more tiles
#: What a person reads for the input, by how many axes it has.
NOUNS = {1: "signal", 2: "picture", 3: "volume"}


class LayerWidget(Pulled):
    """A widget that shows one layer of a model at work on one of some pictures; a subclass chooses and lays out views.

    Parameters
    ----------
    model, images, layer, channel, preprocess, labels, inputs, output
        As in :func:`nbviz.explore`; in place of the model another widget's session.
    picture
        Which of the pictures is shown at first, from 0.
    seed
        What a reconstruction starts from, as in :func:`nbviz.reconstruct`.
    how
        How all channels are fused into one map, as in :func:`nbviz.fuse`.
    tiles, plane, bands
        What the grid shows of each channel, which slice of a volume and which channels of the pictures are shown
        at first, as in :func:`nbviz.explore`.
    """

    _grad: ClassVar[bool] = True  # whether there are reconstructions, for which more is kept

    picture = Index(
        help="Which of the pictures is shown, from 0.",
        count=lambda view: len(view.session.display),
        usual=0,
        drawn_in="strip",
    )
    layer = Choice(
        "Layer",
        "The layer whose maps are shown: type, output shape, receptive field",
        options=lambda view: {name: str(layer) for name, layer in view.session.layers.items()},
        check=lambda view, value: view.session.check_layer(value),
        start="",
    )
    channel = Index(
        "Channel",
        "The picked channel; so does a click on its tile",
        count=lambda view: view.count,
        follows=("layer",),
    )
    seed = Choice(
        "From",
        "What is passed down from the channel to the picture",
        options=dict(zip(SEEDS, ("strongest position", "whole map", "one at that position"), strict=True)),
        usual="max",
        start="max",
    )
    how = Choice(
        "Fused",
        "How all channels of the layer become one map",
        kind="way to fuse",
        options=FUSIONS,
        usual="l2",
        start="l2",
    )
    tiles = Choice(
        "Tiles",
        "What the grid shows of each channel: its map, or its reconstruction, cut to what it sees",
        options={name: RULE_CAPTIONS.get(name, name) for name in TILES},
        check=lambda view, value: view._valid_tiles(value),
        usual=TILES[0],
        start=TILES[0],
    )
    plane = Index(
        "Slice",
        "Which slice of the volume is shown",
        count=lambda view: view.session.depth,
        usual=lambda view: view.session.depth // 2,
    )
    bands = Choice(
        "Bands",
        "Which channels of the pictures are shown: one in grey, or three as red, green and blue",
        options=lambda view: {choice: ", ".join(map(str, choice)) for choice in view._choices()},
        label_of=lambda _, value: ", ".join(map(str, value)),
        check=lambda view, value: view._valid_bands(value),
        usual=lambda view: view.session.usual_bands,
        start=(),
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Any,
        layer: str | None = None,
        channel: int | None = None,
        *,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
        seed: str = "max",
        how: str = "l2",
        tiles: str = TILES[0],
        plane: int | None = None,
        bands: Sequence[int] | int | None = None,
    ) -> None:
        for kind, given, accepted in (("seed", seed, SEEDS), ("way to fuse", how, FUSIONS), ("tiles", tiles, TILES)):
            check_choice(kind, given, accepted)
        self._valid_tiles(tiles)
        given_model = model
        if not isinstance(model, Session):
            model = Session(model, images, preprocess, labels, self._grad, inputs, output)
        self.session: Session = model
        start = self.session.start_layer() if layer is None else self.session.check_layer(layer)
        picture = check_index("picture", picture, len(self.session.display))
        plane = check_index("plane", self.session.depth // 2 if plane is None else plane, self.session.depth)
        chosen = self._valid_bands(bands)
        if chosen != self.session.bands:
            self.session.show_bands(chosen)
        if channel is not None:
            channel = check_index("channel", channel, self.session.layers[start].shape[0])
        self._check_given(start)
        info = information(self.session, isinstance(given_model, nn.Module) and is_compiled(given_model))
        super().__init__(Header(title=line(type(self.session.model).__name__), info=info))
        self._note_given(preprocess=preprocess, labels=labels, inputs=inputs, output=output)
        self._costs: dict[str, float | None] = {}
        self._notes: dict[str, str] = {}
        group = uuid.uuid4().hex
        self.strip = Strip(thumbs=Thumbs(self.session))
        self.grid = ChannelGrid(group=group)
        self._tiles = Tiles(self)
        plots = self.session.axes == 1
        self.panels = Panels(self._rows(), group=group, controls=["contrast"], note=CAUTION, plots=plots)
        fused = [{"title": "", "cells": [{"slot": "fused"}]}]
        self.fused = Panels(fused, group=group, controls=[] if plots else ["opacity"], plots=plots)
        values = {"seed": seed, "how": how, "tiles": tiles, "plane": plane, "bands": chosen}
        self._begin_with(picture=picture, layer=start, channel=channel, **values)
        self._arrange()
        self.grid.observe(self._zoomed, names="side")
        self._start()

    def _check_given(self, layer: str) -> None:
        """Whether what a subclass was given fits the model, before any widget is made."""

    def _arrange(self) -> None:
        """Lay out the widgets below the header."""
        raise NotImplementedError

    def _of_the_picture(self) -> list[ipywidgets.Widget]:
        """The pictures and which of their channels are shown."""
        usual = self.session.pictures.inputs.shape[1] in (1, 3) and self.bands == self.session.usual_bands
        return [self.strip] if usual else [self.strip, self.bands_control]

    def _of_the_layer(self) -> list[ipywidgets.Widget]:
        """The layer and which slice is shown."""
        return [self.layer_control, *([self.plane_control] if self.session.depth > 1 else [])]

    def _rows(self) -> list[dict[str, Any]]:
        """What the panels show: the strongest patch and its reconstructions, then the same on the whole picture."""
        rules, noun = [{"slot": rule} for rule in RULES], NOUNS[self.session.axes]
        return [
            {
                "title": f"What excites it most here, and what that part of the {noun} is made of",
                "cells": [{**cell, "crop": True} for cell in ({"slot": "picture"}, *rules)],
            },
            {
                "title": "In the chosen slice" if self.session.axes == 3 else f"On the whole {noun}",
                "cells": [{"slot": "picture"}, {"slot": "activation"}, *rules[1:]],
            },
        ]

    # State.

    @property
    def count(self) -> int:
        """How many channels the layer has."""
        return self.session.layers[self.layer].shape[0]

    @property
    def room(self) -> int:
        """Bytes that a chunk of the work should not exceed."""
        return self._room

    def look(self, side: int | None = None) -> Look:
        """All that is shown of the layer's maps, each about ``side`` pixels wide."""
        return self.session.look(self.picture, self.layer, self.how, side or self.grid.side, self.plane)

    def _choices(self) -> list[tuple[int, ...]]:
        channels = range(self.session.pictures.inputs.shape[1])
        return [self.session.usual_bands, *((i,) for i in channels if (i,) != self.session.usual_bands)]

    def _valid_bands(self, value: Any) -> tuple[int, ...]:
        if value is None:
            return self.session.usual_bands
        bands = tuple(check_indices("band", value, self.session.pictures.inputs.shape[1]))
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
                self.session.show_bands(self.bands)
                self.strip.thumbs = Thumbs(self.session)
                self._fit("bands")
        super()._changed(change)

    def _zoomed(self, change: Any) -> None:
        """The page has larger tiles than before: send them with more pixels, if there are more."""
        whole = max(self.grid.tiles.get("shape", [1])[1:], default=1)  # no shape yet where nothing was drawn
        if max(1, whole // change.new) < max(1, whole // change.old):
            self._renew({"grid", "first", "rest"})

    # Parts.

    @moves("channel", when="layer")
    def _strongest(self) -> int:
        return int(self.look().inner.argmax())

    @draws("picture", "layer")
    def _show_trace(self) -> Iterator[bool]:
        look = self.look()
        self.cost("layer", self.session.milliseconds)
        strange = int((~self.session.maps(self.picture, self.layer).isfinite()).sum()) if look.strange.any() else 0
        self._note("finite", f"{strange} of the layer's values are not finite (NaN or infinity)" if strange else "")
        yield from ()  # goes with the next part, in one chunk

    @draws("picture", "layer", "tiles", "bands", into="grid", also=lambda view: view._tiles_follow())
    def _show_grid(self) -> Iterator[bool]:
        """The layer's maps, as far as they are in view; reconstructions, which take their time, come later."""
        yield self._tiles.begin()

    def _tiles_follow(self) -> tuple[str, ...]:
        """Maps are of a slice; reconstructions start somewhere, and are cut to where the channel is strongest."""
        return ("plane",) if self.tiles == TILES[0] else ("seed",)

    @draws("picture", "layer", "how", "plane", "bands", into="fused")
    def _show_fused(self) -> Iterator[bool]:
        fused = self.look().fused
        over = fused.transpose(1, 2, 0) if fused.ndim == 3 else fused
        caption = f"all {self.count} channels fused ({self.how})"
        if self.session.axes == 1:
            kind = "picture" if fused.ndim == 3 else "map"
            self.fused.show("fused", kind, over if fused.ndim == 3 else over[..., None], caption=caption)
        else:
            picture = channels_last(self.session.shown(self.picture, self.plane))
            self.fused.show("fused", "overlay", picture, over, caption=f"{caption} over the picture")
        yield False

    @draws("picture", "layer", "tiles", "bands", also=lambda view: view._tiles_follow())
    def _show_first(self) -> Iterator[bool]:
        """The strongest before the picked channel's panels, unless these would have to wait too long for them."""
        end = time.monotonic() + _FIRST_SECONDS
        for much in self._send_tiles(FIRST):
            yield much
            if time.monotonic() > end:
                return

    @draws("picture", "layer", "channel", "seed", "plane", "bands", into="panels")
    def _show_channel(self) -> Iterator[bool]:
        layer, channel, look = self.session.layers[self.layer], self.channel, self.look()
        place = int(look.place[channel])
        (box, slices), at = self.session.box(layer, place), self.session.corner(layer, place)[0]
        if self.seed == "map":  # starts from everywhere
            box, slices = (0, 0, *self.session.size), range(self.session.depth)
        maps = self.session.plane(self.session.maps(self.picture, self.layer)[channel], self.plane)
        low, high = look.low[channel], look.high[channel]
        (steps,) = to_host(quantise(maps, LARGE, (maps.new_tensor(low).float(), maps.new_tensor(high).float()))[0])
        if low == high:  # nothing to stretch (a global pooling): where its value lies among the layer's
            lowest, highest = look.low.min(), look.high.max()
            steps = np.full_like(steps, round(255 * float((low - lowest) / max(highest - lowest, 1e-12))))
        shape = "×".join(map(str, layer.shape[1:]))
        with self.panels.hold_sync():
            picture = self.session.display[self.picture]
            volume = self.session.depth > 1
            what = f"slice {self.plane}" if volume else NOUNS[self.session.axes]
            what += ", receptive field" if self.plane in slices else f"; it sees slices {slices[0]} to {slices[-1]}"
            part = f"patch of slice {at}" if volume else f"patch of the {NOUNS[self.session.axes]}"
            self._show_panel("picture", "picture", picture, None, box, at, what, part, mark=self.plane in slices)
            self.panels.show(
                "activation", "map", steps[..., None], caption=f"#{channel}: {shape}, {low:.3g} to {high:.3g}"
            )
        yield False
        met, spent = frozenset[str](), 0.0
        for rule in RULES:
            start = time.perf_counter()
            maps, met = self.session.reconstruction(self.picture, self.layer, channel, rule, self.seed)
            largest = _largest(maps[0])
            nothing = "" if bool(largest > 0) else ": zero everywhere"
            part = caption = RULE_CAPTIONS[rule] + nothing
            if self.session.depth > 1 and not nothing and not bool(self.session.plane(maps, self.plane).any()):
                caption += ": zero in this slice"
            self._show_panel(rule, "signed", maps[0], largest, box, at, caption, part)
            del maps  # as large as the picture: not beside the next one
            spent += 1000 * (time.perf_counter() - start)
            if rule != RULES[-1]:
                yield False
        self.cost("reconstructions", spent)
        note = "no rectifier (ReLU or the like) was met: deconvnet and guided backprop equal the plain gradient here"
        if met:
            extended = ", ".join(sorted(met - PAPERS))
            note = f"through {extended}, deconvnet and guided backprop extend their papers" if extended else ""
        self._note("rectifiers", note)
        yield False

    def _show_panel(
        self,
        slot: str,
        kind: str,
        values: torch.Tensor,
        largest: torch.Tensor | None,
        box: tuple[int, ...],
        at: int,
        caption: str,
        part_caption: str = "",
        mark: bool = True,
    ) -> None:
        """Values (C, *sides), and those in the box, of a volume in the slice ``at``: colours, or up to ``largest``."""
        top, left, bottom, right = box

        def pixels(values: torch.Tensor) -> Array:
            return channels_last(values if largest is None else centre(values, largest))

        whole, patch = self.session.plane(values, self.plane), self.session.plane(values, at)
        own = fitted(whole)
        apart = self.session.axes == 3 or own is not whole  # else the page cuts it out
        part = pixels(fitted(patch[:, top:bottom, left:right])) if apart else None
        label = {
            "caption": caption,
            "part": part_caption,
            "box": list(box),
            "size": list(self.session.size),
            "mark": mark,
        }
        self.panels.show(slot, kind, pixels(own), None, part, **label)

    @draws("picture", into="strip")
    def _show_predictions(self) -> Iterator[bool]:
        self.strip.predictions = self.session.predictions(self.picture)
        yield False

    @draws("picture", "layer", "tiles", "bands", also=lambda view: view._tiles_follow())
    def _show_rest(self) -> Iterator[bool]:
        yield from self._send_tiles()

    def _send_tiles(self, count: int | None = None) -> Iterator[bool]:
        if "grid" in self._stale:
            raise RuntimeError("the grid was not begun")
        yield from self._tiles.send(count)

    # What is said of the work.

    def _note(self, about: str, text: str) -> None:
        self._notes[about] = text
        self.header.note = "; ".join(filter(None, self._notes.values()))

    def cost(self, what: str, milliseconds: float | None) -> None:
        """Say in the header what something has cost; None for nothing."""
        self._costs[what] = milliseconds
        known = ((name, value) for name, value in self._costs.items() if value is not None)
        times = ((name, f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s") for name, ms in known)
        self.header.cost = " · ".join(f"{name} {time}" for name, time in times)

    def _ended(self) -> None:
        super()._ended()
        self._note("memory", too_large(self.session))
        forget_beyond_limit()

    def _failed(self, error: Exception) -> None:
        self.session.forget()  # what failed may be in the graph that is kept, as a backward hook is
        super()._failed(error)

    def close(self) -> None:
        """End the widget, and let go of what it keeps of the model's activations."""
        with lock:  # what another thread draws of it ends first
            super().close()
            session = getattr(self, "session", None)  # a widget whose making failed is closed as well
            if session is not None:
                session.forget()

    def _heading(self) -> str:
        return f"{self.header.title} · {self.session.layers[self.layer]}"

    def _foot(self) -> str:
        return "\n".join(filter(None, (super()._foot(), CAUTION if self._grad else "")))


def _largest(maps: torch.Tensor) -> torch.Tensor:
    """The largest absolute value that is finite; of a large picture, without a copy of it."""
    low, high = maps.aminmax()
    largest = torch.maximum(-low, high).float()
    return largest if bool(largest.isfinite()) else torch.nan_to_num(maps.float(), 0.0, 0.0, 0.0).abs().amax()
