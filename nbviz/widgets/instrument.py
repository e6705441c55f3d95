"""What the widgets of this room share: a model and pictures, the state of the view, its controls and its parts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import torch
import traitlets as t
from torch import nn

from nbviz.core.backward import PAPERS, RULES
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import check_choice, line
from nbviz.core.state import fingerprint, is_compiled, lock
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.arguments import check_index, check_indices
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.reconstruct import SEEDS
from nbviz.widgets.base import Pulled
from nbviz.widgets.memory import forget_beyond_limit, too_large
from nbviz.widgets.session import LARGE, RULE_CAPTIONS, TILES, Look, Session, fitted
from nbviz.widgets.views import ChannelGrid, Header, Panels, Strip

_FIRST = 16  # channels that are drawn before the rest
_AT_ONCE, _MOST_TILES = 2, 64  # reconstructions in one go, at first and at most
_TILES_SECONDS = 0.1  # that one go should take
_FIRST_SECONDS = 0.5  # after which the picked channel's panels come before more tiles
_NOUNS = {1: "signal", 2: "picture", 3: "volume"}
_FIRST_BYTES = 1 << 18  # of tiles in the first message, which are more than are in view
CAUTION = (
    "Deconvnet and guided backprop change little when the weights are randomised: read them as what the picture "
    "contains where the channel fires, not as proof of what was learned."
)


class Instrument(Pulled):
    """The base of the widgets that show one layer of a model at work on one of some pictures.

    Its state is in plain traits, set by the controls in the page or by code in a cell.

    Parameters
    ----------
    model, images, layer, channel, preprocess, labels, inputs, output
        As in :func:`nbviz.explore`.
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

    picture = t.Int(0, help="Which of the pictures is shown, from 0.")
    layer = t.Unicode(help="The layer's name.")
    channel = t.Int(0, help="The picked channel.")
    seed = t.Unicode("max", help="What a reconstruction starts from.")
    how = t.Unicode("l2", help="How all channels are fused into one map.")
    tiles = t.Unicode(TILES[0], help="What the grid shows of each channel.")

    plane = t.Int(0, help="Which slice of a volume is shown, from 0.")
    bands = t.Any(
        (),
        allow_none=False,
        help="Which channels of the pictures are shown: one in grey, or three as red, green and blue.",
    )

    _kind: ClassVar[str]
    _grad: ClassVar[bool] = True  # whether there are reconstructions, for which more is kept
    _stales: ClassVar[dict[str, set[str]]] = {
        "picture": {"trace", "grid", "fused", "channel", "first", "predictions", "rest"},
        "layer": {"trace", "grid", "fused", "channel", "first", "predictions", "rest"},
        "how": {"fused"},
        "channel": {"channel"},
        "seed": {"channel", "grid", "first", "rest"},
        "tiles": {"grid", "first", "rest"},
        "plane": {"grid", "fused", "channel", "rest"},
        "bands": {"grid", "fused", "channel", "first", "rest"},
    }

    def __init__(
        self,
        model: nn.Module,
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
        if tiles != TILES[0] and not self._grad:
            self._valid_tiles({"value": tiles})
        self.session = Session(model, images, preprocess, labels, self._grad, inputs, output)
        start = self.session.start_layer() if layer is None else self.session.check_layer(layer)
        count = self.session.layers[start].shape[0]
        own = {"preprocess": preprocess, "labels": labels, "inputs": inputs, "output": output}
        self._given = [name for name, value in own.items() if value is not None]
        picture = check_index("picture", picture, len(self.session.display))
        plane = check_index("plane", self.session.depth // 2 if plane is None else plane, self.session.depth)
        chosen = self._valid_bands({"value": bands})
        if chosen != self.session.bands:
            self.session.show_bands(chosen)
        if channel is not None:
            channel = check_index("channel", channel, count)
        self._pick_strongest = channel is None
        self._costs: dict[str, float | None] = {}
        self._notes: dict[str, str] = {}
        self._begun: tuple[Any, ...] | None = None  # the layer, seed and so on that the tiles are of
        self._side, self._at_once, self._most, self._spent = 0, _AT_ONCE, _MOST_TILES, 0.0
        self._compiled = is_compiled(model)
        super().__init__(Header(title=line(type(self.session.model).__name__), info=self._info()))
        group = uuid.uuid4().hex
        self.strip = Strip(thumbs=_thumbs(self.session))
        self.grid = ChannelGrid(group=group)
        plots = self.session.axes == 1
        self.panels = Panels(self._rows(), group=group, controls=["contrast"], note=CAUTION, plots=plots)
        fused = [{"title": "", "cells": [{"slot": "fused"}]}]
        self.fused = Panels(fused, group=group, controls=[] if plots else ["opacity"], plots=plots)
        self.layer_control = ipywidgets.Dropdown(
            options=[(str(found), name) for name, found in self.session.layers.items()],
            value=start,
            description="Layer",
            tooltip="The layer whose maps are shown: type, output shape, receptive field",
        )
        self.channel_control = ipywidgets.IntSlider(
            max=count - 1, description="Channel", tooltip="The picked channel; so does a click on its tile"
        )
        self.seed_control = ipywidgets.Dropdown(
            options=[("strongest position", "max"), ("whole map", "map"), ("one at that position", "unit")],
            description="From",
            tooltip="What is passed down from the channel to the picture",
        )
        self.how_control = ipywidgets.Dropdown(
            options=FUSIONS, description="Fused", tooltip="How all channels of the layer become one map"
        )
        self.tiles_control = ipywidgets.Dropdown(
            options=[(RULE_CAPTIONS.get(name, name), name) for name in TILES],
            description="Tiles",
            tooltip="What the grid shows of each channel: its map, or its reconstruction, cut to what it sees",
        )
        self.plane_control = ipywidgets.IntSlider(
            max=self.session.depth - 1, description="Slice", tooltip="Which slice of the volume is shown"
        )
        channels = range(self.session.pictures.inputs.shape[1])
        choices = dict.fromkeys((self.session.usual_bands, chosen, *((i,) for i in channels)))
        self.bands_control = ipywidgets.Dropdown(
            options=[_choice(choice) for choice in choices],
            value=chosen,
            description="Bands",
            tooltip="Which channels of the pictures are shown: one in grey, or three as red, green and blue",
        )
        self.layer, self.picture, self.seed, self.how, self.tiles = start, picture, seed, how, tiles
        self.plane, self.bands = plane, chosen
        for name in ("layer", "channel", "seed", "how", "tiles", "plane"):
            t.link((self, name), (getattr(self, f"{name}_control"), "value"))
        t.dlink((self.bands_control, "value"), (self, "bands"))  # the other way it may need a new option first
        t.link((self, "picture"), (self.strip, "picture"))
        self.channel = channel or 0
        shown = self._layout()
        self.header.controls = [f"IPY_MODEL_{control.model_id}" for control in _controls(shown)]
        self.children = [self.header, shown]
        self.add_class(f"nbviz-{self._kind}")
        self.grid.observe(self._zoomed, names="side")
        self._start()

    def _layout(self) -> ipywidgets.Box:
        """The widgets below the header."""
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
        rules, noun = [{"slot": rule} for rule in RULES], _NOUNS[self.session.axes]
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

    @t.validate("layer")
    def _valid_layer(self, proposal: Any) -> str:
        return self.session.check_layer(proposal["value"])

    @t.validate("channel")
    def _valid_channel(self, proposal: Any) -> int:
        count = self.session.layers[self.layer].shape[0] if self.layer else 1
        return check_index("channel", proposal["value"], count)

    @t.validate("picture")
    def _valid_picture(self, proposal: Any) -> int:
        return check_index("picture", proposal["value"], len(self.session.display))

    @t.validate("plane")
    def _valid_plane(self, proposal: Any) -> int:
        return check_index("plane", proposal["value"], self.session.depth)

    @t.validate("bands")
    def _valid_bands(self, proposal: Any) -> tuple[int, ...]:
        if proposal["value"] is None:
            return self.session.usual_bands
        bands = tuple(check_indices("band", proposal["value"], self.session.pictures.inputs.shape[1]))
        if not bands:
            raise ValueError("bands is empty; expected one channel of the pictures, or three")
        return bands

    @t.validate("tiles")
    def _valid_tiles(self, proposal: Any) -> str:
        tiles = check_choice("tiles", proposal["value"], TILES)
        if tiles != TILES[0] and not self._grad:
            what = f"{type(self).__name__} shows activations"
            raise ValueError(f"tiles is {tiles!r}; {what}, expected 'activation' (see nbviz.explore)")
        return tiles

    @t.validate("seed")
    def _valid_seed(self, proposal: Any) -> str:
        return check_choice("seed", proposal["value"], SEEDS)

    @t.validate("how")
    def _valid_how(self, proposal: Any) -> str:
        return check_choice("way to fuse", proposal["value"], FUSIONS)

    def _changed(self, change: Any) -> None:
        if change.name == "layer":  # has other channels: the slider ends at its last, and its strongest is picked
            with self._turn():
                self._stepping = True
                try:
                    self.channel_control.max = self.session.layers[self.layer].shape[0] - 1
                finally:
                    self._stepping = False
            self._pick_strongest = True
        elif change.name == "channel" and not self._stepping:
            self._pick_strongest = False
        elif change.name == "bands":
            if self.bands is None:  # which traitlets passes by what validates
                self.bands = self.session.usual_bands
                return
            self._choose_bands()
        stale = self._stales[change.name]
        if change.name == "plane" and self.tiles != TILES[0]:  # which are where each channel is strongest
            stale = {"fused", "channel"}
        if change.name == "seed" and self.tiles == TILES[0]:  # which start from nothing
            stale = {"channel"}
        self._renew(stale)

    def _choose_bands(self) -> None:
        with self._turn():
            if self.bands in dict(self.bands_control.options).values():
                self.bands_control.value = self.bands
            else:  # new options choose their first
                self.bands_control.options = [_choice(self.bands), *self.bands_control.options]
            self.session.show_bands(self.bands)
            self.strip.thumbs = _thumbs(self.session)

    def _zoomed(self, change: Any) -> None:
        """The page has larger tiles than before: send them with more pixels, if there are more."""
        whole = max(self.grid.tiles.get("shape", [1])[1:], default=1)  # no shape yet where nothing was drawn
        if max(1, whole // change.new) < max(1, whole // change.old):
            self._renew({"grid", "first", "rest"})

    # Parts.

    def _ended(self) -> None:
        self.header.code = self.code
        self._note("memory", too_large(self.session))
        forget_beyond_limit()

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
        return self.layer, self.seed, self.plane, self.bands, fingerprint(self.session.model)

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
            what = f"slice {self.plane}" if volume else _NOUNS[self.session.axes]
            what += ", receptive field" if self.plane in slices else f"; it sees slices {slices[0]} to {slices[-1]}"
            part = f"patch of slice {at}" if volume else f"patch of the {_NOUNS[self.session.axes]}"
            self._show_panel("picture", "picture", picture, None, box, at, what, part, mark=self.plane in slices)
            self.panels.show(
                "activation", "map", steps[..., None], caption=f"#{channel}: {shape}, {low:.3g} to {high:.3g}"
            )
        yield False
        met, spent = frozenset[str](), 0.0
        for rule in RULES:
            start = time.perf_counter()
            maps, met = self.session.reconstruction(self.picture, self.layer, channel, rule, self.seed)
            largest = torch.nan_to_num(maps[0].float(), 0.0, 0.0, 0.0).abs().amax()
            nothing = "" if bool(largest > 0) else ": zero everywhere"
            part = caption = RULE_CAPTIONS[rule] + nothing
            if self.session.depth > 1 and not nothing and not bool(self.session.plane(maps, self.plane).any()):
                caption += ": zero in this slice"
            self._show_panel(rule, "signed", maps[0], largest, box, at, caption, part)
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

    @property
    def code(self) -> str:
        """The call that gives this view."""
        usual = {"picture": 0, "seed": "max", "how": "l2", "tiles": TILES[0]}
        usual |= {"plane": self.session.depth // 2, "bands": self.session.usual_bands}
        state = {name: getattr(self, name) for name in ("layer", "channel", *usual)}
        given = [f"{name}={value!r}" for name, value in state.items() if usual.get(name) != value]
        given += [f"{name}={name}" for name in self._given]
        return f"nbviz.{type(self).__name__}(model, images, {', '.join(given)})"

    def _note(self, about: str, text: str) -> None:
        self._notes[about] = text
        self.header.note = "; ".join(filter(None, self._notes.values()))

    def _cost(self, what: str, milliseconds: float | None) -> None:
        self._costs[what] = milliseconds
        known = ((name, value) for name, value in self._costs.items() if value is not None)
        times = ((name, f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s") for name, ms in known)
        self.header.cost = " · ".join(f"{name} {time}" for name, time in times)

    def _info(self) -> str:
        model, pictures = self.session.model, self.session.pictures
        dtype = str(pictures.inputs.dtype).removeprefix("torch.")
        mode = "train mode, shown in eval" if model.training else "eval"
        mode += " · compiled, shown eager" if self._compiled else ""
        count = len(self.session.layers)
        return (
            f"{count} layers · {pictures.inputs.device} · {dtype} · {mode} · input: {line(pictures.preprocess.source)}"
        )

    def close(self) -> None:
        """End the widget, and let go of what it keeps of the model's activations."""
        with lock:  # what another thread draws of it ends first
            super().close()
            session = getattr(self, "session", None)  # a widget whose making failed is closed as well
            if session is not None:
                session.forget()

    def _heading(self) -> str:
        return f"{self.header.title} · {self.session.layers[self.layer]}"


def _choice(bands: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Bands as a dropdown has them."""
    return ", ".join(map(str, bands)), bands


def _controls(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    """The widgets in a layout whose changes the kernel must answer."""
    for child in box.children:
        if isinstance(child, ipywidgets.Box):
            yield from _controls(child)
        elif isinstance(child, (ipywidgets.Dropdown, ipywidgets.IntSlider, Strip)):
            yield child


def _thumbs(session: Session, size: int = 96) -> list[dict[str, Any]]:
    """The pictures in small; of volumes the slice in the middle, of signals all that a curve can show."""
    small = session.plane(session.display, session.depth // 2)
    scale = min(1.0, size / max(small.shape[-2:]))
    if session.axes == 1:
        small = fitted(small)
    elif scale < 1:
        shape = [max(1, round(scale * side)) for side in small.shape[-2:]]
        small = torch.nn.functional.interpolate(small.float(), shape, mode="bilinear", antialias=True)
    pixels = small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [
        {"name": line(name), "shape": list(p.shape), "data": p.tobytes(), "plot": session.axes == 1}
        for name, p in zip(session.pictures.names, pixels, strict=True)
    ]
