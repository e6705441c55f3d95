"""The widget that shows how channels came to be what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nbviz.core.checks import check_index
from nbviz.core.documented import documented_like
from nbviz.core.errors import line, shown
from nbviz.core.state import check_model
from nbviz.core.types import Channels, Images, ModelInputs, Preprocessing
from nbviz.imaging.encode import Array, channels_last, to_host
from nbviz.imaging.pixels import around_zero, centre, quantise
from nbviz.methods.evolution import CheckpointResult, evolution
from nbviz.pictures.load import Pictures
from nbviz.pictures.preprocess import find_preprocess
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws
from nbviz.widgets.session import fitted, shared_ends
from nbviz.widgets.settings import MapSettings, SignedSettings
from nbviz.widgets.views import Panels, Plot, picture_row

_FILM = 8  # times in the row from first to last
_CURVES = 6  # channels with a curve


@documented_like(evolution)
class Evolution(Pulled, MapSettings, SignedSettings):
    """What channels answer to at each time of the training; a slider moves through it (figure 4 of the paper).

    Parameters
    ----------
    checkpoints
        A list, in order of time, of state dicts or files: safetensors, or what ``torch.save`` wrote. A dict also names
        them. A list of :class:`nbviz.results.CheckpointResult`, such as the ``moments`` of a :class:`nbviz.Recorder`,
        needs no pictures and no layer.
    moment
        The time that is shown at first, from 0; None takes the last.
    channel
        Which of the channels is shown at first, from 0.

    Examples
    --------
    >>> import nbviz
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> states = {"before": {name: 0.1 * value for name, value in net.state_dict().items()}, "after": net.state_dict()}
    >>> view = Evolution(net, states, torch.rand(1, 1, 8, 8), "1")
    >>> view.moment = 0
    """

    _arguments = ("model", "checkpoints")

    moment = Index(
        "Checkpoint",
        "Which checkpoint of the training",
        count=lambda widget: len(widget.moments),
        default=lambda widget: len(widget.moments) - 1,
    )
    channel = Choice(
        "Channel",
        "Which of the channels that were asked for, from 0",
        options=lambda widget: {i: f"#{number}" for i, number in enumerate(widget.moments[0].channels)},
        check=lambda widget, value: check_index("channel", value, len(widget.moments[0].channels)),
        default=0,
    )
    picture = Index(
        "Picture",
        "Which picture, from 0",
        count=lambda widget: 1 if widget._recorded else len(widget.moments[0].pictures),
        default=0,
    )

    def __init__(
        self,
        model: nn.Module,
        checkpoints: Any,
        images: Images | None = None,
        layer: str | None = None,
        channels: Channels | None = None,
        *,
        rule: str = "deconvnet",
        preprocess: Preprocessing | None = None,
        inputs: ModelInputs | None = None,
        moment: int | None = None,
        channel: int = 0,
        picture: int = 0,
    ) -> None:
        if isinstance(checkpoints, (list, tuple)) and checkpoints and isinstance(checkpoints[0], CheckpointResult):
            check_model(model)
            self.moments = _check_alike(checkpoints)
        else:
            if layer is None or images is None:
                missing = " and ".join(name for name, value in (("images", images), ("layer", layer)) if value is None)
                raise TypeError(
                    f"no {missing}; expected images= and layer=, or a list of nbviz.results.CheckpointResult as "
                    "checkpoints"
                )
            self.moments = evolution(
                model, checkpoints, images, layer, channels, rule=rule, preprocess=preprocess, inputs=inputs
            )
        self._preprocess = find_preprocess(model, preprocess)
        first = self.moments[0]
        if first.pictures.ndim != 4:
            raise ValueError(f"the model takes {tuple(first.pictures.shape)}; expected pictures (N, C, H, W)")
        if not first.channels:
            raise ValueError("channels is empty; expected at least one")
        # A recording has a picture of its own for each channel.
        self._recorded = first.values.shape[1] != len(first.channels)
        super().__init__(model, f"{line(layer) + ' · ' if layer else ''}{len(self.moments)} checkpoints")
        self._set_controls()
        row = picture_row("", "picture", "activation", "signal")
        self.panels = Panels([row], controls=["cmap", "contrast"])
        film = [f"film_{i}" for i in range(min(_FILM, len(self.moments)))]
        self.film = Panels([picture_row("From first to last", *film)])
        self.values = Plot(
            title="Strongest activation of each channel",
            xlabel="checkpoint",
            ylabel="activation",
            slider=self.moment_control,
        )
        has_choice = not self._recorded and len(first.pictures) > 1
        controls = [self.moment_control, self.channel_control, *([self.picture_control] if has_choice else [])]
        self._lay_out([*controls, self.panels, self.film, self.values])

    def _place(self, channel: int) -> tuple[int, int]:
        """The place of the picture and of a channel in a moment's tensors."""
        return (channel, 0) if self._recorded else (self.picture, channel)

    def _signal(self, moment: CheckpointResult) -> tuple[Array, tuple[float, float]]:
        """The reconstruction, and the ends of its scale."""
        signal = moment.reconstructions[self._place(self.channel)].float().cpu()
        signal = fitted(signal if len(signal) in (1, 3) else signal.mean(0, keepdim=True))
        return channels_last(centre(signal)), around_zero(signal)

    @draws("moment", "channel", "picture", into="panels")
    def _show_moment(self) -> None:
        moment, place = self.moments[self.moment], self._place(self.channel)
        # On one scale for all checkpoints.
        finite = [torch.nan_to_num(m.maps[place].float().cpu(), 0.0, 0.0, 0.0) for m in self.moments]
        (steps,) = to_host(quantise(moment.maps[place].cpu(), None, shared_ends(finite))[0])
        pictures = Pictures(moment.pictures[place[0] : place[0] + 1], self._preprocess, ("",))
        which = "the picture that excited it most" if self._recorded else "picture"
        number, strongest = moment.channels[self.channel], float(moment.values[place])
        caption = f"#{number}, strongest {strongest:.3g}; one scale for all checkpoints"
        if self._recorded and strongest == 0:  # the highest of all pictures
            caption = f"#{number} is silent: never above zero in {line(moment.name, 60)}"
        picture = channels_last(fitted(pictures.display()[0]))
        self.panels.show("picture", "picture", picture, caption=f"{line(moment.name, 60)}: {which}")
        scale: dict[str, Any] = {"ends": list(map(float, shared_ends(finite))), "measure": "activation"}
        self.panels.show("activation", "map", steps[..., None], caption=caption, **scale)
        answers = "what it answers to there" if moment.reconstructions[place].any() else "it answers to nothing there"
        pixels, ends = self._signal(moment)
        self.panels.show("signal", "signed", pixels, caption=answers, ends=ends, measure="signal")

    @draws("channel", "picture", into=("film", "values"))
    def _show_film(self) -> None:
        count, numbers = len(self.moments), self.moments[0].channels
        for i, place in enumerate(np.linspace(0, count - 1, min(_FILM, count)).round()):
            moment = self.moments[int(place)]
            pixels, ends = self._signal(moment)
            self.film.show(f"film_{i}", "signed", pixels, caption=line(moment.name, 30), ends=ends)
        others = (k for k in range(len(numbers)) if k != self.channel)
        values = {k: [float(m.values[self._place(k)]) for m in self.moments] for k in [self.channel, *others][:_CURVES]}
        self.values.show((f"#{numbers[k]}", range(count), values[k]) for k in sorted(values))

    def _heading(self) -> str:
        moment = self.moments[self.moment]
        return f"{self.header.title} · #{moment.channels[self.channel]} · {moment.name}"


def _check_alike(moments: Sequence[Any]) -> list[CheckpointResult]:
    """The moments, if they have the same channels and the same number of pictures."""
    if not all(isinstance(moment, CheckpointResult) for moment in moments):
        raise TypeError(
            f"checkpoints is {shown(moments)}; expected a list of nbviz.results.CheckpointResult alone, or none of them"
        )
    first = moments[0]
    for moment in moments:
        if (moment.channels, moment.values.shape) != (first.channels, first.values.shape):
            what = f"channels {shown(moment.channels)} in {len(moment.pictures)} picture(s)"
            of_first = f"{shown(first.channels)} in {len(first.pictures)}"
            raise ValueError(
                f"moment {line(moment.name, 60)} is of {what}, the first of {of_first}; "
                "expected moments of the same channels, made alike"
            )
    return list(moments)
