"""What the widgets draw of their state, part by part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np
import torch
import traitlets as t

from nbviz.core.backward import PAPERS, RULES
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import line
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.widgets.base import Pulled
from nbviz.widgets.memory import forget_beyond_limit, too_large
from nbviz.widgets.session import LARGE, RULE_CAPTIONS, TILES, Look, Session, fitted
from nbviz.widgets.views import ChannelGrid, Header, Panels, Strip

_FIRST = 16  # channels that are drawn before the rest
_AT_ONCE, _MOST_TILES = 2, 64  # reconstructions in one go, at first and at most
_TILES_SECONDS = 0.1  # that one go should take
_FIRST_SECONDS = 0.5  # after which the picked channel's panels come before more tiles
_FIRST_BYTES = 1 << 18  # of tiles in the first message, which are more than are in view
#: What a person reads for the input, by how many axes it has.
NOUNS = {1: "signal", 2: "picture", 3: "volume"}


class Parts(Pulled):
    """What is drawn of a layer of a model at work on a picture, in views that a subclass makes and lays out."""

    picture = t.Int(0, help="Which of the pictures is shown, from 0.")
    layer = t.Unicode(help="The layer's name.")
    channel = t.Int(0, help="The picked channel.")
    seed = t.Unicode("max", help="What a reconstruction starts from.")
    how = t.Unicode("l2", help="How all channels are fused into one map.")
    tiles = t.Unicode(TILES[0], help="What the grid shows of each channel.")

    plane = t.Int(0, help="Which slice of a volume is shown, from 0.")
    bands = t.Any((), help="Which channels of the pictures are shown: one in grey, or three as red, green and blue.")

    session: Session
    strip: Strip
    grid: ChannelGrid
    panels: Panels
    fused: Panels
    channel_control: ipywidgets.IntSlider

    def __init__(self, header: Header) -> None:
        self._pick_strongest = False
        self._costs: dict[str, float | None] = {}
        self._notes: dict[str, str] = {}
        self._begun: tuple[Any, ...] | None = None  # the layer, seed and so on that the tiles are of
        self._side, self._at_once, self._most, self._spent = 0, _AT_ONCE, _MOST_TILES, 0.0
        super().__init__(header)

    def _ended(self) -> None:
        self._note("memory", too_large(self.session))
        forget_beyond_limit()

    def _failed(self, error: Exception) -> None:
        self.session.forget()  # what failed may be in the graph that is kept, as a backward hook is
        super()._failed(error)

    def _look(self, side: int | None = None) -> Look:
        return self.session.look(self.picture, self.layer, self.how, side or self.grid.side, self.plane)

    def _show_trace(self) -> Iterator[bool]:
        look = self._look()
        self._cost("layer", self.session.milliseconds)
        if self._pick_strongest:
            self._pick_strongest = False
            self.channel = int(look.inner.argmax())
        strange = int((~self.session.maps(self.picture, self.layer).isfinite()).sum()) if look.strange.any() else 0
        self._note("finite", f"{strange} of the layer's values are not finite (NaN or infinity)" if strange else "")
        yield from ()  # goes with the next part, in one chunk

    def _show_grid(self) -> Iterator[bool]:
        """The layer's maps, as far as they are in view; reconstructions, which take their time, come later."""
        look, layer = self._look(), self.session.layers[self.layer]
        maps = self.tiles == TILES[0]
        kind, size = ("map", (1, *layer.shape[1:])[-2:]) if maps else ("signed", self.session.patch(layer, self.seed))
        if self._begun is None or self._begun[:2] != (self.layer, self.seed):  # others take another time
            self._at_once, self._most = _AT_ONCE, _MOST_TILES
        # What the tiles to come are of as well, whatever changes meanwhile.
        self._side, self._begun, self._spent = self.grid.side, self._state(), 0.0
        with self.grid.hold_sync():
            self.grid.title = str(layer)
            plots = self.session.axes == 1
            self.grid.begin(kind, self.tiled, (layer.shape[0], *size), look.high, look.spread, plots)
            much = maps and self._add_maps(_FIRST_BYTES)
        if maps:
            self._cost("tiles", None)
        yield much

    def _show_first(self) -> Iterator[bool]:
        """The strongest before the picked channel's panels, unless these would have to wait too long for them."""
        end = time.monotonic() + _FIRST_SECONDS
        for much in self._show_tiles(_FIRST):
            yield much
            if time.monotonic() > end:
                return

    def _show_rest(self) -> Iterator[bool]:
        yield from self._show_tiles(self.grid.tiles["shape"][0])

    def _show_tiles(self, count: int) -> Iterator[bool]:
        """Tiles until there are so many of them, or all."""
        if "grid" in self._stale:
            raise RuntimeError("the grid was not begun")
        while self.grid.sent < count and self.grid.waiting(1):
            if self._begun != self._state():  # a cell has trained the model meanwhile
                yield from self._show_grid()
            yield self._add_maps(self._room) if self.tiles == TILES[0] else self._add_reconstructions()

    def _state(self) -> tuple[Any, ...]:
        return self.layer, self.seed, self.tiled, self.session.weights

    def _add_maps(self, room: int) -> bool:
        """Send some maps, of about so many bytes; whether the page should draw them before it is sent more."""
        look = self._look(self._side)
        channels = self.grid.waiting(max(_FIRST, room // look.pixels[0].size))
        return self.grid.add(look.pixels[channels], look.low[channels], look.high[channels]) > room // 4

    def _add_reconstructions(self) -> bool:
        """The same with reconstructions, of which each takes its time."""
        start = time.perf_counter()
        layer, places = self.session.layers[self.layer], self._look(self._side).place

        def of(part: Sequence[int]) -> tuple[Array, Array]:
            maps, _ = self.session.reconstructions(self.picture, self.layer, part, self.tiles, self.seed)
            return self.session.patches(layer, maps, places[part].tolist(), self.seed, self._side)

        pieces = in_chunks(of, self.grid.waiting(self._at_once), self._at_once, "one channel's reconstruction")
        if len(pieces) > 1:  # memory did not suffice for all
            self._most = len(pieces[0][1])
        pixels, scales = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        sent = self.grid.add(pixels, -scales, scales)
        spent = time.perf_counter() - start
        self._spent += spent
        self._cost("tiles", 1000 * self._spent)
        # As many as take about one chunk: few where each needs a backward pass over the whole picture.
        self._at_once = max(1, min(self._most, _MOST_TILES, round(self._at_once * _TILES_SECONDS / spent)))
        return sent > self._room // 4

    def _show_fused(self) -> Iterator[bool]:
        fused = self._look().fused
        over = fused.transpose(1, 2, 0) if fused.ndim == 3 else fused
        caption = f"all {self.channel_control.max + 1} channels fused ({self.how})"
        if self.session.axes == 1:
            kind = "picture" if fused.ndim == 3 else "map"
            self.fused.show("fused", kind, over if fused.ndim == 3 else over[..., None], caption=caption)
        else:
            picture = channels_last(self.session.shown(self.picture, self.plane))
            self.fused.show("fused", "overlay", picture, over, caption=f"{caption} over the picture")
        yield False

    def _show_predictions(self) -> Iterator[bool]:
        self.strip.predictions = self.session.predictions(self.picture)
        yield False

    def _show_channel(self) -> Iterator[bool]:
        layer, channel, look = self.session.layers[self.layer], self.channel, self._look()
        place = int(look.place[channel])
        (box, slices), at = self.session.box(layer, place), self.session.corner(layer, place)[0]
        if self.seed == "map":  # starts from everywhere
            box, slices = (0, 0, *self.session.size), range(self.session.depth)
        self.panels.current = self.picked
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
        self._cost("reconstructions", spent)
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

    @property
    def tiled(self) -> str:
        """What the grid's tiles should be of."""
        plane = self.plane if self.tiles == TILES[0] else ""
        return f"{self.picture} {line(self.layer)} {self.tiles} {self.seed} {plane} {self.bands}"

    @property
    def picked(self) -> str:
        """What the panels of the picked channel should be of."""
        return f"{self.picture} {line(self.layer)} {self.channel} {self.seed} {self.plane} {self.bands}"

    def _note(self, about: str, text: str) -> None:
        self._notes[about] = text
        self.header.note = "; ".join(filter(None, self._notes.values()))

    def _cost(self, what: str, milliseconds: float | None) -> None:
        self._costs[what] = milliseconds
        known = ((name, value) for name, value in self._costs.items() if value is not None)
        times = ((name, f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s") for name, ms in known)
        self.header.cost = " · ".join(f"{name} {time}" for name, time in times)


def _largest(maps: torch.Tensor) -> torch.Tensor:
    """The largest absolute value that is finite; of a large picture, without a copy of it."""
    low, high = maps.aminmax()
    largest = torch.maximum(-low, high).float()
    return largest if bool(largest.isfinite()) else torch.nan_to_num(maps.float(), 0.0, 0.0, 0.0).abs().amax()
