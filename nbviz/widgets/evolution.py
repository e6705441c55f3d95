"""The widget that shows how channels came to be what they are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nbviz.core.checks import check_index
from nbviz.core.errors import line, shown
from nbviz.core.state import check_model
from nbviz.export.figure import Panel
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.evolution import CheckpointResult, evolution
from nbviz.pictures.load import Pictures
from nbviz.pictures.preprocess import find_preprocess
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws
from nbviz.widgets.figure_panels import filled_panels, plot_panel
from nbviz.widgets.session import fitted
from nbviz.widgets.views import Header, Panels, Plot

_FILM = 8  # times in the row that shows all
_CURVES = 6  # channels whose values are drawn


class Evolution(Pulled):
    """What channels answer to, at each time of the training, by a slider (figure 4 of the paper).

    Parameters
    ----------
    model, checkpoints, images, layer, channels, rule, preprocess, inputs
        As in :func:`nbviz.evolution`. ``checkpoints`` may be a list of
        :class:`nbviz.results.CheckpointResult` instead, such as the ``moments`` of a
        :class:`nbviz.Recorder`; then the rest is not needed.

    moment, channel, picture
        Which time (None takes the last), which of the channels and which picture are shown at first, from 0.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, PictureError, ModelError
        As in :func:`nbviz.evolution`.

    Examples
    --------
    >>> import nbviz
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> states = {"before": {name: 0.1 * value for name, value in net.state_dict().items()}, "after": net.state_dict()}
    >>> view = Evolution(net, states, torch.rand(1, 1, 8, 8), "1")
    >>> view.moment = 0
    """

    _kind = "evolution"
    _arguments = ("model", "checkpoints")

    moment = Index(
        "Time",
        "Which time of the training",
        count=lambda view: len(view.moments),
        usual=lambda view: len(view.moments) - 1,
    )
    channel = Choice(
        "Channel",
        "Which of the channels that were asked for, from 0",
        options=lambda view: {i: f"#{number}" for i, number in enumerate(view._numbers)},
        check=lambda view, value: check_index("channel", value, len(view._numbers)),
        usual=0,
        start=0,
    )
    picture = Index(
        "Picture",
        "Which picture, from 0",
        count=lambda view: 1 if view._own else len(view.moments[0].pictures),
        usual=0,
    )

    def __init__(
        self,
        model: nn.Module,
        checkpoints: Any,
        images: Any = None,
        layer: str | None = None,
        channels: Sequence[int] | int | None = None,
        *,
        rule: str = "deconvnet",
        preprocess: Any = None,
        inputs: Any = None,
        moment: int | None = None,
        channel: int = 0,
        picture: int = 0,
    ) -> None:
        if isinstance(checkpoints, (list, tuple)) and checkpoints and isinstance(checkpoints[0], CheckpointResult):
            check_model(model)
            self.moments = _alike(checkpoints)
        else:
            if layer is None or images is None:
                raise TypeError(
                    f"images is {shown(images)} and layer {shown(layer)}; expected both, or a list of "
                    "nbviz.results.CheckpointResult as checkpoints"
                )
            given = {"rule": rule, "preprocess": preprocess, "inputs": inputs}
            self.moments = evolution(model, checkpoints, images, layer, channels, **given)
        self._preprocess = find_preprocess(model, preprocess)
        first = self.moments[0]
        if first.pictures.ndim != 4:
            raise ValueError(f"the model takes {tuple(first.pictures.shape)}; expected pictures (N, C, H, W)")
        if not first.channels:
            raise ValueError("channels is empty; expected at least one")
        # A recording has for each channel a picture of its own.
        self._own = first.values.shape[1] != len(first.channels)
        self._numbers = list(first.channels)
        title = line(type(model).__name__)
        super().__init__(Header(title=title, info=f"{line(layer) + ' · ' if layer else ''}{len(self.moments)} times"))
        self._note_given(images=images, layer=layer, channels=channels, preprocess=preprocess, inputs=inputs)
        self._note_values({"rule": "deconvnet"}, layer=layer, channels=channels, rule=rule)
        last = len(self.moments) - 1
        self._begin_with(moment=last if moment is None else moment, channel=channel, picture=picture)
        group = uuid.uuid4().hex
        pictures = 1 if self._own else len(first.pictures)
        self.panels = Panels(
            [{"title": "", "cells": [{"slot": "picture"}, {"slot": "activation"}, {"slot": "signal"}]}],
            group=group,
            controls=["contrast"],
        )
        film = [{"slot": f"film_{i}"} for i in range(min(_FILM, last + 1))]
        self.film = Panels([{"title": "From first to last", "cells": film}], group=group)
        self.values = Plot(
            title="Strongest activation of each channel",
            xlabel="time",
            ylabel="activation",
            slider=f"IPY_MODEL_{self.moment_control.model_id}",
        )
        controls = [self.moment_control, self.channel_control, *([self.picture_control] if pictures > 1 else [])]
        self._lay_out([*controls, self.panels, self.film, self.values])
        self._start()

    def _place(self) -> tuple[int, int]:
        """Picture and channel in a moment's tensors."""
        return (self.channel, 0) if self._own else (self.picture, self.channel)

    def _shown(self, moment: CheckpointResult) -> tuple[Array, Array, Array]:
        """The picture, the map (on the scale of all times) and the signal, as bytes (h, w, C)."""
        i, k = self._place()
        whole = Pictures(moment.pictures[i : i + 1], self._preprocess, ("",)).display()[0]
        every = [torch.nan_to_num(one.maps[i, k].float().cpu(), 0.0, 0.0, 0.0) for one in self.moments]
        ends = min(maps.amin() for maps in every), max(maps.amax() for maps in every)
        (steps,) = to_host(quantise(moment.maps[i, k].cpu(), None, ends)[0])
        return channels_last(fitted(whole)), steps[..., None], self._signal(moment)

    def _signal(self, moment: CheckpointResult) -> Array:
        i, k = self._place()
        signal = moment.reconstructions[i, k].float().cpu()
        return channels_last(centre(fitted(signal if len(signal) in (1, 3) else signal.mean(0, keepdim=True))))

    @draws("moment", "channel", "picture", into="panels")
    def _show_moment(self) -> Iterator[bool]:
        moment, number = self.moments[self.moment], self._numbers[self.channel]
        picture, steps, signal = self._shown(moment)
        value = float(moment.values[self._place()])
        which = "the picture that excited it most" if self._own else "picture"
        self.panels.show("picture", "picture", picture, caption=f"{line(moment.name, 60)}: {which}")
        caption = f"#{number}, strongest {value:.3g}; one scale for all times"
        self.panels.show("activation", "map", steps, caption=caption)
        self.panels.show("signal", "signed", signal, caption="what it answers to there")
        yield False

    @draws("channel", "picture", into=("film", "values"))
    def _show_film(self) -> Iterator[bool]:
        for i, place in enumerate(self._film()):
            moment = self.moments[place]
            self.film.show(f"film_{i}", "signed", self._signal(moment), caption=line(moment.name, 30))
        times, curves = range(len(self.moments)), []
        others = (k for k in range(len(self._numbers)) if k != self.channel)
        for k in sorted([self.channel, *others][:_CURVES]):
            at = (k, 0) if self._own else (self.picture, k)
            curves.append((f"#{self._numbers[k]}", times, [float(one.values[at]) for one in self.moments]))
        self.values.show(curves)
        yield False

    def _heading(self) -> str:
        return f"{self.header.title} · #{self._numbers[self.channel]} · {self.moments[self.moment].name}"

    def _figure_rows(self) -> list[list[Panel]]:
        return [*filled_panels(self.panels), *filled_panels(self.film), [plot_panel(self.values, self.moment)]]

    def _film(self) -> list[int]:
        """The times in the row that shows all."""
        times = np.linspace(0, len(self.moments) - 1, min(_FILM, len(self.moments)))
        return [int(one) for one in times.round()]


def _alike(moments: Sequence[Any]) -> list[CheckpointResult]:
    """The moments, if they are of the same channels, and all recorded or none."""
    if not all(isinstance(one, CheckpointResult) for one in moments):
        raise TypeError(
            f"checkpoints is {shown(moments)}; expected a list of nbviz.results.CheckpointResult alone, or none of them"
        )
    first = moments[0]
    for one in moments:
        if (one.channels, one.values.shape) != (first.channels, first.values.shape):
            what = f"{shown(one.channels)} in {len(one.pictures)} picture(s)"
            said = f"moment {line(one.name, 60)} is of channels {what}, the first of {shown(first.channels)}"
            raise ValueError(f"{said} in {len(first.pictures)}; expected moments of the same channels, made alike")
    return list(moments)
