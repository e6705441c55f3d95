"""The widget that shows two models side by side."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from nbviz.core.checks import check_index
from nbviz.core.errors import line, shown
from nbviz.core.state import is_compiled, lock
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.compare import CompareResult
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws, moves
from nbviz.widgets.figure_panels import filled_panels, tiles_panel
from nbviz.widgets.memory import forget_beyond_limit
from nbviz.widgets.predictions import compared
from nbviz.widgets.session import Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import ChannelGrid, Header, Panels, Strip

_SIDES = ("a", "b")


class Compare(Pulled):
    """Two models on the same picture: a layer of each on one scale, the difference, and both answers.

    With the ``comparison`` of :func:`nbviz.compare`, its verdict over a dataset and how alike the layers are stand
    below.

    Parameters
    ----------
    model_a, model_b, preprocess, inputs, output
        As in :func:`nbviz.compare`.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`.
    layer
        The layer at first, of the first model; None starts where maps still show shapes.
    comparison
        What :func:`nbviz.compare` found of these models.
    labels
        The names of the models' outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.

    layer_b
        The layer at first of the second model; None takes that of the same name, or the most alike, or as deep.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.compare`.

    Examples
    --------
    >>> import copy, nbviz
    >>> model = nbviz.bundled.load("fashion")
    >>> other = copy.deepcopy(model)
    >>> _ = nn.init.zeros_(other.features[12].weight)
    >>> view = Compare(model, other, nbviz.bundled.fashion_test()[0][:2, None])
    >>> view.picture = 1
    """

    _kind = "compare"
    _arguments = ("model_a", "model_b", "images")
    _parts = ("maps", "predictions", "grids")

    picture = Index(
        help="Which of the pictures is shown, from 0.",
        count=lambda view: len(view.sessions[0].display),
        usual=0,
        drawn_in="strip",
    )
    layer_a = Choice(
        "Layer of a",
        "The layer of the first model",
        options=lambda view: {name: str(layer) for name, layer in view.sessions[0].layers.items()},
        check=lambda view, value: view.sessions[0].check_layer(value),
        start="",
    )
    layer_b = Choice(
        "Layer of b",
        "The layer of the second model",
        options=lambda view: {name: str(layer) for name, layer in view.sessions[1].layers.items()},
        check=lambda view, value: view.sessions[1].check_layer(value),
        usual=lambda view: view._counterpart(),
        start="",
    )

    def __init__(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        images: Any,
        layer: str | None = None,
        *,
        comparison: CompareResult | None = None,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
        layer_b: str | None = None,
    ) -> None:
        if comparison is not None and not isinstance(comparison, CompareResult):
            raise TypeError(f"comparison is {shown(comparison)}; expected what nbviz.compare gives, or None")
        self.comparison = comparison
        models = (model_a, model_b)
        self.sessions = _sessions([Session(m, images, preprocess, labels, False, inputs, output) for m in models])
        a = self.sessions[0]
        start = a.start_layer() if layer is None else a.check_layer(layer)
        picture = check_index("picture", picture, len(a.display))
        super().__init__(_header(self.sessions, models))
        self._note_given(comparison=comparison, preprocess=preprocess, labels=labels, inputs=inputs, output=output)
        group = uuid.uuid4().hex
        self.strip = Strip(thumbs=Thumbs(a), caption="Prediction: a → b")
        self.grids = [ChannelGrid(group=group, scale="shared", order="index", large=False) for _ in _SIDES]
        self.panels = Panels(
            [{"title": "All channels fused, on one scale", "cells": [{"slot": s} for s in (*_SIDES, "difference")]}],
            group=group,
            controls=["opacity"],
        )
        self.alike = Panels([{"title": "", "cells": [{"slot": "cka"}]}], group=group)
        if comparison is not None and comparison.cka is not None:
            _show_alike(self.alike, comparison)
        self._begin_with(picture=picture, layer_a=start, layer_b=layer_b)
        self.header.note = _note(self.sessions, comparison)
        halves = [
            ipywidgets.VBox([control, grid])
            for control, grid in zip((self.layer_a_control, self.layer_b_control), self.grids, strict=True)
        ]
        self._lay_out([self.strip, self.alike], [self.panels, ipywidgets.Box(halves).add_class("nbviz-halves")])
        for grid in self.grids:
            grid.observe(self._zoomed, names="side")
        self._start()

    @moves("layer_b", when="layer_a")
    def _counterpart(self) -> str:
        return _counterpart(self.layer_a, self.sessions[0], self.sessions[1], self.comparison)

    def _maps(self) -> list[Tensor]:
        """The layer's maps (C, H, W) in each model."""
        pairs = zip(self.sessions, (self.layer_a, self.layer_b), strict=True)
        return [torch.nan_to_num(session.maps(self.picture, layer).float()) for session, layer in pairs]

    def _fused(self) -> list[Tensor]:
        return [fuse(maps[None])[0] for maps in self._maps()]

    @draws("picture", "layer_a", "layer_b", into="panels")
    def _show_maps(self) -> Iterator[bool]:
        a, b = fused = self._fused()
        ends = min(f.amin() for f in fused), max(f.amax() for f in fused)
        for side, one, session in zip(_SIDES, fused, self.sessions, strict=True):
            (over,) = to_host(quantise(one, None, ends)[0])
            picture = channels_last(session.shown(self.picture))
            caption = f"{side}: {float(one.amin()):.3g} to {float(one.amax()):.3g}"
            self.panels.show(side, "overlay", picture, over, caption=caption)
        b = b if a.shape == b.shape else torch.nn.functional.interpolate(b[None, None], a.shape, mode="bilinear")[0, 0]
        caption = "b less a: white where b is stronger, black where a is"
        self.panels.show("difference", "signed", channels_last(centre((b - a)[None])), caption=caption)
        yield False

    @draws("picture", into="strip")
    def _show_predictions(self) -> Iterator[bool]:
        answers = [session.scores_of(self.picture) for session in self.sessions]
        labels = self.sessions[0].labels
        a, b = answers
        if labels is not None and a is not None and b is not None and a.shape == b.shape:
            self.strip.predictions = compared(labels, a, b)
        yield False

    @draws("picture", "layer_a", "layer_b", into="grids")
    def _show_grids(self) -> Iterator[bool]:
        ends, layers = self._ends(), (self.layer_a, self.layer_b)
        for view, maps, session, layer in zip(self.grids, self._maps(), self.sessions, layers, strict=True):
            view.title = str(session.layers[layer])
            _fill(view, maps, ends)
            yield True

    def _zoomed(self, change: Any) -> None:
        """The page has larger tiles than before: send them with more pixels, if there are more."""
        whole = max(change.owner.tiles.get("shape", [1])[1:], default=1)
        if max(1, whole // change.new) < max(1, whole // change.old):
            self._renew({"grids"})

    def _ends(self) -> tuple[float, float]:
        """Lowest and highest of both layers' values."""
        maps = self._maps()
        return min(float(m.amin()) for m in maps), max(float(m.amax()) for m in maps)

    def _ended(self) -> None:
        forget_beyond_limit()
        super()._ended()

    @property
    def code(self) -> str:
        """The call that gives this view."""
        return super().code.replace("layer_a=", "layer=", 1)

    def _heading(self) -> str:
        return f"{self.header.title} · {self.layer_a}, {self.layer_b}"

    def _figure_rows(self) -> list[list[Panel]]:
        answers = [] if "predictions" in self._stale else self.strip.predictions
        bars = [[(label, a) for label, _, a in answers], [(label, b) for label, b, _ in answers]]
        last = [Panel(None, side, bars=rows) for side, rows in zip(_SIDES, bars, strict=True) if rows]
        last += [panel for row in filled_panels(self.alike) for panel in row]
        ends, cmap = self._ends(), self.grids[0].cmap
        tiles = [_tiles(maps, side, ends, cmap) for side, maps in zip(_SIDES, self._maps(), strict=True)]
        return [*filled_panels(self.panels), tiles, *filter(None, [last])]

    def close(self) -> None:
        """End the widget, and let go of what it keeps of the models' activations."""
        with lock:
            super().close()
            for session in getattr(self, "sessions", ()):
                session.forget()


def _sessions(sessions: list[Session]) -> list[Session]:
    """Both models with the pictures, if they can be seen side by side."""
    if any(session.axes != 2 for session in sessions):
        raise ValueError("a model takes signals or volumes; expected two that take pictures (N, C, H, W)")
    a, b = (session.pictures.inputs.device for session in sessions)
    if a != b:
        raise ValueError(f"model_a is on {a}, model_b on {b}; expected both on one device")
    return sessions


def _header(sessions: Sequence[Session], models: Sequence[nn.Module]) -> Header:
    """Which models, and what runs where."""
    a, b = (line(type(session.model).__name__, 60) for session in sessions)
    infos = [information(one, is_compiled(m)) for one, m in zip(sessions, models, strict=True)]
    info = infos[0] if infos[0] == infos[1] else f"a: {infos[0]} · b: {infos[1]}"
    return Header(title=f"a: {a}, b: {b}", info=info)


def _note(sessions: Sequence[Session], comparison: CompareResult | None) -> str:
    """The verdict, and why no answers are shown where there are none."""
    notes = [line(comparison.verdict, 300)] if comparison is not None else []
    a, b = (len(session.labels or ()) for session in sessions)
    if a != b:
        notes.append(f"a gives {a} classes and b {b}: their answers are not compared")
    return "; ".join(notes)


def _counterpart(layer: str, a: Session, b: Session, found: CompareResult | None) -> str:
    """The layer of the second model: of the same name, or the most alike, or as deep."""
    names = list(b.layers)
    if layer in names:
        return layer
    if found is not None and found.cka is not None and layer in found.layers_a:
        row = found.cka[found.layers_a.index(layer)].nan_to_num(-1.0)
        known = [i for i, name in enumerate(found.layers_b) if name in names]
        if known:
            return found.layers_b[max(known, key=lambda i: float(row[i]))]
    return names[round(list(a.layers).index(layer) * (len(names) - 1) / max(1, len(a.layers) - 1))]


def _show_alike(panels: Panels, found: CompareResult) -> None:
    """How alike the layers of both are."""
    assert found.cka is not None
    steps = (255 * found.cka.nan_to_num(0.0).clamp(0, 1)).round().byte().numpy()
    caption = f"CKA: layers of a down, {len(found.layers_a)}, of b across, {len(found.layers_b)}; 0 dark, 1 bright"
    panels.show("cka", "map", steps[..., None], caption=caption)


def _fill(view: ChannelGrid, maps: Tensor, ends: tuple[float, float]) -> None:
    """All of a layer's maps (C, H, W), as large as the page wants them."""
    flat = maps.flatten(1)
    steps, low, high = quantise(maps, view.side, (flat.amin(1), flat.amax(1)))
    pixels, lows, highs, spread = to_host(steps, low, high, flat.std(1, correction=0))
    view.begin("map", tuple(maps.shape), highs, spread, ends=ends)
    order = view.waiting(len(pixels))
    view.add(pixels[order], lows[order], highs[order])


def _tiles(maps: Tensor, side: str, ends: tuple[float, float], cmap: str) -> Panel:
    """The first maps between two values."""
    low, high = (maps.new_tensor(end).expand(len(maps)) for end in ends)
    caption = f"{side}: {min(64, len(maps))} of {len(maps)} channels, on one scale"
    return tiles_panel(quantise(maps, None, (low, high))[0][:64], caption, cmap)
