"""Fills the panels of the picked channel: the patch that excites it most, its map, and its reconstructions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from nbviz.core.backward import PAPERS, RULES
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import centre, quantise, signed_scale
from nbviz.methods.reconstruct import NO_SWITCH
from nbviz.widgets.session import LARGE, MEASURES, RULE_CAPTIONS, fitted
from nbviz.widgets.views import picture_row

if TYPE_CHECKING:
    from nbviz.widgets.layer_widget import LayerWidget

#: What a person calls the input, by its number of axes.
NOUNS = {1: "signal", 2: "picture", 3: "volume"}


@dataclass(frozen=True)
class Patch:
    """The part of the input that a reconstruction starts from."""

    box: tuple[int, ...]  # the receptive field: top, left, bottom, right
    slices: range
    inner: tuple[int, ...]  # the effective receptive field, which the cropped cells show
    inner_slices: range
    plane: int  # of a volume, the slice that the cropped cells show

    def within(self, axes: int) -> tuple[Any, ...]:
        """The index of the effective receptive field in an input of so many axes."""
        top, left, bottom, right = self.inner
        return (slice(self.inner_slices.start, self.inner_slices.stop), slice(top, bottom), slice(left, right))[-axes:]


def channel_rows(axes: int) -> list[dict[str, Any]]:
    """The strongest patch and its reconstructions, then the same on the whole picture."""
    noun = NOUNS[axes]
    patch = "Its strongest patch here, traced back to pixels"
    whole = "In the chosen slice" if axes == 3 else f"On the whole {noun}"
    return [
        picture_row(patch, "picture", *RULES, crop=True),
        picture_row(whole, "picture", "activation", *RULES[1:]),
    ]


def show_channel(widget: LayerWidget) -> Iterator[bool]:
    """Fill the panels of a widget's picked channel; yields wherever a chunk of the work may end."""
    session, patch = widget.session, _patch(widget)
    with widget.panels.hold_sync():
        _show_picture(widget, patch)
        _show_map(widget)
    yield False
    met, seconds = frozenset[str](), 0.0
    for rule in RULES:
        start = time.perf_counter()
        met = _show_reconstruction(widget, rule, patch)
        seconds += time.perf_counter() - start
        if rule != RULES[-1]:
            yield False
    widget.cost("reconstructions", 1000 * seconds)
    note = "no rectifier (ReLU or the like) was met: deconvnet and guided backprop equal the plain gradient here"
    if met:
        extended = ", ".join(sorted(met - PAPERS))
        note = f"The papers define both rules for ReLU; here they are extended to {extended}" if extended else ""
    widget.note("rectifiers", note)
    widget.note("switches", "" if session.has_switches(widget.picture, widget.layer) else NO_SWITCH)
    widget.note("saturated", _saturated(widget))
    yield False


def _saturated(widget: LayerWidget) -> str:
    """What to say where the clamp of a ReLU6 or the like stops the gradient at its start."""
    channel, look = widget.channel, widget.look()
    if widget.seed == "map" or not look.clamped[channel]:
        return ""
    what = f"#{channel} is clamped at {look.high[channel]:g} where it is strongest"
    return f"{what}: no gradient passes back from there, only the deconvnet's signal"


def _patch(widget: LayerWidget) -> Patch:
    session = widget.session
    look, layer = widget.look(), session.layers[widget.layer]
    place = int(look.place[widget.channel])
    box = inner = (0, 0, *session.size), range(session.depth)
    if widget.seed != "map":  # which starts from all positions
        box = session.box(layer, place)
        inner = session.box(session.effective(widget.picture, widget.layer, widget.seed, look), place)
    return Patch(*box, *inner, session.corner(layer, place)[0])


def _show_picture(widget: LayerWidget, patch: Patch) -> None:
    session, noun = widget.session, NOUNS[widget.session.axes]
    is_volume, is_inside = session.depth > 1, widget.plane in patch.slices
    caption = f"slice {widget.plane}" if is_volume else noun
    outlined = ", receptive field" if patch.inner == patch.box else ", receptive field and, within it, the patch"
    caption += outlined if is_inside else f"; it sees slices {patch.slices[0]} to {patch.slices[-1]}"
    part = f"patch of slice {patch.plane}" if is_volume else f"patch of the {noun}"
    _show(widget, "picture", session.display[widget.picture], None, patch, caption, part, is_inside)


def _show_map(widget: LayerWidget) -> None:
    session, look, channel = widget.session, widget.look(), widget.channel
    maps = session.plane(session.maps(widget.picture, widget.layer)[channel], widget.plane)
    low, high = look.low[channel], look.high[channel]
    (steps,) = to_host(quantise(maps, LARGE, (maps.new_tensor(low).float(), maps.new_tensor(high).float()))[0])
    if low == high:  # nothing to stretch, as after a global pooling: where its value lies among the layer's
        lowest, highest = look.low.min(), look.high.max()
        steps = np.full_like(steps, round(255 * float((low - lowest) / max(highest - lowest, 1e-12))))
    shape = "×".join(map(str, session.layers[widget.layer].shape[1:]))
    caption = f"#{channel}: {shape}, {low:.3g} to {high:.3g}"
    ends = float(low), float(high)
    widget.panels.show("activation", "map", steps[..., None], caption=caption, ends=ends, measure="activation")


def _show_reconstruction(widget: LayerWidget, rule: str, patch: Patch) -> frozenset[str]:
    """Fill a rule's slots; the names of the rectifiers that it applied to."""
    session = widget.session
    maps, met = session.reconstruction(widget.picture, widget.layer, widget.channel, rule, widget.seed)
    # The patch gives the scale of the whole picture too, so that a value looks the same in both.
    own = maps[0][(..., *patch.within(session.axes))]
    scale = signed_scale((own if own.any() else maps[0]).flatten()[None, None])
    nothing = "" if bool(maps[0].any()) else ": zero everywhere"
    part = caption = RULE_CAPTIONS[rule] + nothing
    if session.depth > 1 and not nothing and not bool(session.plane(maps, widget.plane).any()):
        caption += ": zero in this slice"
    _show(widget, rule, maps[0], scale, patch, caption, part)
    return met


def _show(
    widget: LayerWidget,
    slot: str,
    values: Tensor,
    scale: Tensor | None,
    patch: Patch,
    caption: str,
    part: str,
    mark: bool = True,
) -> None:
    """Show values (C, *sides), whole and in the patch: as colours, or around grey, up to ``scale``."""
    (top, left, bottom, right), session = patch.inner, widget.session

    def pixels(values: Tensor) -> Array:
        return channels_last(values if scale is None else centre(values, scale))

    whole, cropped = session.plane(values, widget.plane), session.plane(values, patch.plane)
    small = fitted(whole)
    is_apart = session.axes == 3 or small is not whole  # else the page can cut it out
    own = pixels(fitted(cropped[:, top:bottom, left:right])) if is_apart else None
    boxes = {"box": list(patch.box), "inner": list(patch.inner), "size": list(session.size)}
    label: dict[str, Any] = {"caption": caption, "part": part, **boxes}
    if scale is not None:
        measure = MEASURES[slot] + (" of each colour" if len(small) == 3 else "")
        label |= {"ends": [-float(scale), float(scale)], "measure": measure}
    kind = "picture" if scale is None else "signed"
    widget.panels.show(slot, kind, pixels(small), None, own, **label, mark=mark)
