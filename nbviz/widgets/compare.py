"""The widget that shows two models side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.documented import documented_like
from nbviz.core.errors import line, shown
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import around_zero, centre, quantise
from nbviz.methods.compare import CompareResult, compare
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.controls import Choice, draws, moves
from nbviz.widgets.figure_panels import bars_panels, filled_panels, grid_panel
from nbviz.widgets.memory import forget_beyond_limit
from nbviz.widgets.picture_widget import PictureOptions, PictureWidget
from nbviz.widgets.predictions import compared
from nbviz.widgets.session import Session, information
from nbviz.widgets.settings import GridSettings, tile_order, tile_scale
from nbviz.widgets.views import ChannelGrid, Panels, picture_row

_SIDES = ("a", "b")


def _layer_control(number: int, **rest: Any) -> Choice:
    return Choice(
        f"Layer of {_SIDES[number]}",
        f"The layer of the {('first', 'second')[number]} model",
        options=lambda widget: {name: str(layer) for name, layer in widget.sessions[number].layers.items()},
        check=lambda widget, value: widget.sessions[number].check_layer(value),
        **rest,
    )


@documented_like(compare)
class Compare(PictureWidget, GridSettings):
    """Two models on the same picture: a layer of each on one scale, the difference, and both predictions.

    With the ``comparison`` of :func:`nbviz.compare`, its verdict over a dataset and how alike the layers are stand
    below.

    Parameters
    ----------
    layer
        The layer of the first model at first. None starts where maps still show shapes.
    comparison
        What :func:`nbviz.compare` found of these models.
    layer_b
        The layer of the second model at first. None takes the one of the same name, or the most alike, or as deep.

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
    _not_in_code = ("layer",)  # it is layer_a's
    _needs_maps = True
    _caption = "Prediction: a → b"
    _parts = ("maps", "predictions", "grids")

    layer_a = _layer_control(0)
    order, scale = tile_order(default="index"), tile_scale(default="shared")
    layer_b = _layer_control(1, default=lambda widget: widget._counterpart())

    def __init__(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        images: Images,
        layer: str | None = None,
        *,
        comparison: CompareResult | None = None,
        layer_b: str | None = None,
        **options: Unpack[PictureOptions],
    ) -> None:
        if comparison is not None and not isinstance(comparison, CompareResult):
            raise TypeError(f"comparison is {shown(comparison)}; expected what nbviz.compare gives, or None")
        self.comparison = comparison
        super().__init__(model_a, images, **options)
        a, subject = self.session, self.session.subject
        labels = options.get("labels")
        b = Session(model_b, images, options.get("preprocess"), labels, False, subject.feed, subject.output)
        self.sessions = [a, b]
        self._sessions = self.sessions
        _check_sessions(a, b)
        self._describe(a, b)
        self._set_controls(layer_a=a.start_layer() if layer is None else layer)
        self.grids = [ChannelGrid() for _ in _SIDES]
        row = picture_row("All channels fused, on one scale", *_SIDES, "difference")
        self.panels = Panels([row], controls=["opacity"])
        self.alike = Panels([picture_row("", "cka")])
        self._show_alike()
        controls = (self.layer_a_control, self.layer_b_control)
        halves = [ipywidgets.VBox(list(pair)) for pair in zip(controls, self.grids, strict=True)]
        for grid in self.grids:
            grid.observe(self._zoomed, names="side")
        self._lay_out([self.strip, self.alike], [self.panels, ipywidgets.Box(halves).add_class("nbviz-halves")])

    def _check_session(self) -> None:
        if self.session.axes != 2:
            raise ValueError("a model takes signals or volumes; expected two that take pictures (N, C, H, W)")

    def _describe(self, a: Session, b: Session) -> None:
        """Show in the header which models run where, the verdict, and why predictions are not compared."""
        names = [line(type(session.subject.model).__name__, 60) for session in (a, b)]
        infos = [information(session) for session in (a, b)]
        self.header.title = f"a: {names[0]}, b: {names[1]}"
        self.header.info = infos[0] if infos[0] == infos[1] else f"a: {infos[0]} · b: {infos[1]}"
        notes = [line(self.comparison.verdict, 300)] if self.comparison is not None else []
        classes = [len(session.labels or ()) for session in (a, b)]
        if classes[0] != classes[1]:
            notes.append(f"a gives {classes[0]} classes and b {classes[1]}: their predictions are not compared")
        self.header.note = "; ".join(notes)

    def _show_alike(self) -> None:
        """How alike the layers of both models are."""
        found = self.comparison
        if found is None or found.cka is None:
            return
        steps = (255 * found.cka.nan_to_num(0.0).clamp(0, 1)).round().byte().numpy()
        caption = f"CKA: layers of a down, {len(found.layers_a)}, of b across, {len(found.layers_b)}; 0 dark, 1 bright"
        self.alike.show("cka", "map", steps[..., None], caption=caption, ends=(0.0, 1.0), measure="CKA")

    @moves("layer_b", when="layer_a")
    def _counterpart(self) -> str:
        """The layer of the second model with the same name, or the most alike, or as deep."""
        layer: str = self.layer_a
        (a, b), found = self.sessions, self.comparison
        names = list(b.layers)
        if layer in names:
            return layer
        if found is not None and found.cka is not None and layer in found.layers_a:
            row = found.cka[found.layers_a.index(layer)].nan_to_num(-1.0)
            known = [i for i, name in enumerate(found.layers_b) if name in names]
            if known:
                return found.layers_b[max(known, key=lambda i: float(row[i]))]
        return names[round(list(a.layers).index(layer) * (len(names) - 1) / max(1, len(a.layers) - 1))]

    def _maps(self) -> list[Tensor]:
        """The layer's maps (C, H, W) in each model."""
        pairs = zip(self.sessions, (self.layer_a, self.layer_b), strict=True)
        return [torch.nan_to_num(session.maps(self.picture, layer).float()) for session, layer in pairs]

    @draws("picture", "layer_a", "layer_b", into="panels")
    def _show_maps(self) -> Iterator[bool]:
        a, b = fused = [fuse(maps[None])[0] for maps in self._maps()]
        ends = min(maps.amin() for maps in fused), max(maps.amax() for maps in fused)
        for side, maps, session in zip(_SIDES, fused, self.sessions, strict=True):
            (over,) = to_host(quantise(maps, None, ends)[0])
            picture = channels_last(session.rendered(self.picture))
            caption = f"{side}: {float(maps.amin()):.3g} to {float(maps.amax()):.3g}"
            scale: dict[str, Any] = {"ends": list(map(float, ends)), "measure": "l2"}
            self.panels.show(side, "overlay", picture, over, caption=caption, **scale)
        b = b if a.shape == b.shape else torch.nn.functional.interpolate(b[None, None], a.shape, mode="bilinear")[0, 0]
        caption = "b less a: white where b is stronger, black where a is"
        scale = {"ends": around_zero(b - a), "measure": "difference"}
        self.panels.show("difference", "signed", channels_last(centre((b - a)[None])), caption=caption, **scale)
        yield False

    @draws("picture", into="strip")
    def _show_predictions(self) -> Iterator[bool]:
        a, b = (session.scores_of(self.picture) for session in self.sessions)
        labels = self.sessions[0].labels
        if labels is not None and a is not None and b is not None and a.shape == b.shape:
            self.strip.predictions = compared(labels, a, b)
        yield False

    @draws("picture", "layer_a", "layer_b", into="grids")
    def _show_grids(self) -> Iterator[bool]:
        ends, layers = self._ends(), (self.layer_a, self.layer_b)
        for grid, maps, session, layer in zip(self.grids, self._maps(), self.sessions, layers, strict=True):
            grid.title = str(session.layers[layer])
            flat = maps.flatten(1)
            steps, low, high = quantise(maps, grid.side, (flat.amin(1), flat.amax(1)))
            strength, spread = to_host(high, flat.std(1, correction=0))
            grid.begin("map", tuple(maps.shape), strength, spread, ends=ends)
            grid.fill(steps, low, high)
            yield True

    def _zoomed(self, change: Any) -> None:
        if change.owner.wants_more(change):
            self._renew({"grids"})

    def _ends(self) -> tuple[float, float]:
        """The lowest and the highest value of both layers."""
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
        tiles = [
            grid_panel(grid, f"channels of {side}", name=f"channels {side}", measure="activation")
            for side, grid in zip(_SIDES, self.grids, strict=True)
        ]
        last = [*bars_panels(self, *_SIDES), *(panel for row in filled_panels(self.alike) for panel in row)]
        return [*filled_panels(self.panels), tiles, *filter(None, [last])]


def _check_sessions(a: Session, b: Session) -> None:
    if b.axes != 2:
        raise ValueError("a model takes signals or volumes; expected two that take pictures (N, C, H, W)")
    devices = a.subject.inputs.device, b.subject.inputs.device
    if devices[0] != devices[1]:
        raise ValueError(f"model_a is on {devices[0]}, model_b on {devices[1]}; expected both on one device")
