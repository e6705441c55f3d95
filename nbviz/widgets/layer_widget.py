"""What the widgets of this room share: a model and pictures, the state of the view, its controls and its parts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets
import traitlets as t
from torch import nn

from nbviz.core.backward import RULES
from nbviz.core.checks import check_choice, check_index, check_indices
from nbviz.core.errors import line
from nbviz.core.state import is_compiled, lock
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.reconstruct import SEEDS
from nbviz.widgets.parts import NOUNS, Parts
from nbviz.widgets.session import RULE_CAPTIONS, TILES, Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import ChannelGrid, Header, Panels, Strip

CAUTION = (
    "Deconvnet and guided backprop change little when the weights are randomised: read them as what the picture "
    "contains where the channel fires, not as proof of what was learned."
)


class Instrument(Parts):
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
        self._check_given(start)
        info = information(self.session, is_compiled(model))
        super().__init__(Header(title=line(type(self.session.model).__name__), info=info))
        self._pick_strongest = channel is None
        group = uuid.uuid4().hex
        self.strip = Strip(thumbs=Thumbs(self.session))
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
        self._lay_out(self._layout(), self._kind)
        self.grid.observe(self._zoomed, names="side")
        self._start()

    def _check_given(self, layer: str) -> None:
        """Whether what a subclass was given fits the model, before any widget is made."""

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
            self.strip.thumbs = Thumbs(self.session)

    def _zoomed(self, change: Any) -> None:
        """The page has larger tiles than before: send them with more pixels, if there are more."""
        whole = max(self.grid.tiles.get("shape", [1])[1:], default=1)  # no shape yet where nothing was drawn
        if max(1, whole // change.new) < max(1, whole // change.old):
            self._renew({"grid", "first", "rest"})

    def _ended(self) -> None:
        self.header.code = self.code
        super()._ended()

    @property
    def code(self) -> str:
        """The call that gives this view."""
        usual = {"picture": 0, "seed": "max", "how": "l2", "tiles": TILES[0]}
        usual |= {"plane": self.session.depth // 2, "bands": self.session.usual_bands}
        state = {name: getattr(self, name) for name in ("layer", "channel", *usual)}
        given = [f"{name}={value!r}" for name, value in state.items() if usual.get(name) != value]
        given += [f"{name}={name}" for name in self._given]
        return f"nbviz.{type(self).__name__}(model, images, {', '.join(given)})"

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


def _choice(bands: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Bands as a dropdown has them."""
    return ", ".join(map(str, bands)), bands
