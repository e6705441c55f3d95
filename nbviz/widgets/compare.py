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
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.compare import CompareResult, compare
from nbviz.methods.feature_maps import fuse
from nbviz.widgets.controls import draws, moves
from nbviz.widgets.figure_panels import bars_panels, filled_panels, grid_panel
from nbviz.widgets.layer_choice import LayerChoice
from nbviz.widgets.picture_widget import PictureOptions, PictureWidget
from nbviz.widgets.session import Session, information, shared_ends
from nbviz.widgets.settings import GridSettings, contrast, tile_order, tile_scale
from nbviz.widgets.views import ChannelGrid, Panels, picture_row

_SIDES = ("a", "b")


def _layer_control(number: int, **rest: Any) -> LayerChoice:
    return LayerChoice(
        f"Layer of {_SIDES[number]}",
        f"The layer of the {('first', 'second')[number]} model",
        options=lambda widget: widget.sessions[number].layers,
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

    _arguments = ("model_a", "model_b", "images")
    _not_in_code = ("layer",)  # it is layer_a's
    _needs_maps = True
    _caption = "Prediction: a → b"
    _parts = ("maps", "predictions", "grids")

    layer_a = _layer_control(0)
    order, scale = tile_order(default="index"), tile_scale(default="shared")
    contrast = contrast(default=1.0)  # the largest difference, not half of it, is black or white
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
        subject, given = self.session.subject, (options.get("preprocess"), options.get("labels"))
        other = Session(model_b, images, *given, self._grad, subject.feed, subject.output, subject.kind)
        self._sessions = self.sessions = [self.session, other]
        self._check_session()
        devices = [session.subject.inputs.device for session in self.sessions]
        if devices[0] != devices[1]:
            raise ValueError(f"model_a is on {devices[0]}, model_b on {devices[1]}; expected both on one device")
        self._describe()
        self._set_controls(layer_a=self.session.start_layer() if layer is None else layer)
        self.grids = [ChannelGrid() for _ in _SIDES]
        row = picture_row("All channels fused, on one scale", *_SIDES, "difference")
        self.panels = Panels([row], controls=["opacity", "contrast"])
        self.alike = Panels([picture_row("", "cka")])
        self._show_alike()
        controls = (self.layer_a_control, self.layer_b_control)
        halves = [ipywidgets.VBox(list(pair)) for pair in zip(controls, self.grids, strict=True)]
        for grid in self.grids:
            grid.observe(self._zoomed, names="side")
        self._lay_out([self.strip, self.alike], [self.panels, ipywidgets.Box(halves).add_class("nbviz-halves")])

    def _check_session(self) -> None:
        if any(session.axes != 2 for session in self._sessions):
            raise ValueError("a model takes signals or volumes; expected two that take pictures (N, C, H, W)")

    def _describe(self) -> None:
        """Show in the header which models run where, the verdict, and why predictions are not compared."""
        names = [line(type(session.subject.model).__name__, 60) for session in self.sessions]
        infos = [information(session) for session in self.sessions]
        self.header.title = f"a: {names[0]}, b: {names[1]}"
        self.header.info = infos[0] if infos[0] == infos[1] else f"a: {infos[0]} · b: {infos[1]}"
        notes = [line(self.comparison.verdict, 300)] if self.comparison is not None else []
        classes = [len(session.labels or ()) for session in self.sessions]
        if classes[0] != classes[1]:
            notes.append(f"a gives {classes[0]} classes and b {classes[1]}: their predictions are not compared")
        self.header.note = "; ".join(notes)

    def _show_alike(self) -> None:
        """How alike the layers of both models are."""
        if (found := self.comparison) is not None and found.cka is not None:
            steps = (255 * found.cka.nan_to_num(0.0).clamp(0, 1)).round().byte().numpy()
            sides = f"{len(found.layers_a)} layers of a (rows) and {len(found.layers_b)} of b (columns)"
            caption = f"CKA of {sides}, from 0 (dark) to 1 (bright)"
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
    def _show_maps(self) -> None:
        a, b = fused = [fuse(maps[None])[0] for maps in self._maps()]
        ends = shared_ends(fused)
        for side, maps, session in zip(_SIDES, fused, self.sessions, strict=True):
            (over,) = to_host(quantise(maps, None, ends)[0])
            picture = channels_last(session.rendered(self.picture))
            caption = f"{side}: {float(maps.amin()):.3g} to {float(maps.amax()):.3g}"
            scale: dict[str, Any] = {"ends": list(map(float, ends)), "measure": "l2"}
            self.panels.show(side, "overlay", picture, over, caption=caption, **scale)
        b = b if a.shape == b.shape else torch.nn.functional.interpolate(b[None, None], a.shape, mode="bilinear")[0, 0]
        difference = (b - a)[None]
        largest = difference.abs().amax()
        caption = f"b minus a: white where b is stronger, up to {float(largest):.3g}, black where a is"
        caption = caption if largest > 0 else "b minus a: no difference"
        scale = {"ends": [-float(largest), float(largest)], "measure": "difference"}
        self.panels.show("difference", "signed", channels_last(centre(difference, largest)), caption=caption, **scale)

    @draws("picture", into="strip")
    def _show_predictions(self) -> None:
        a, b = (session.scores_of(self.picture) for session in self.sessions)
        if a is not None and b is not None and a.shape == b.shape:
            self.strip.predictions = self.session.compared(a, b)

    @draws("picture", "layer_a", "layer_b", into="grids")
    def _show_grids(self) -> Iterator[bool]:
        both = self._maps()
        lowest, highest = map(float, shared_ends(both))
        for grid, maps in zip(self.grids, both, strict=True):
            flat = maps.flatten(1)
            tiles = quantise(maps, grid.side, (flat.amin(1), flat.amax(1)))
            grid.show("map", tiles, (tiles[2], flat.std(1, correction=0)), maps.shape, (lowest, highest))
            yield True

    def _zoomed(self, change: Any) -> None:
        if change.owner.wants_more(change):
            self._renew({"grids"})

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
