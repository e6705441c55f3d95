"""The widget that asks whether a map can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.checks import check_choice, check_index, check_whole
from nbviz.core.errors import line
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.destroy import layers_with_weights
from nbviz.methods.sanity import (
    METHODS,
    Similarity,
    deletion_insertion,
    randomisation_result,
    randomisation_steps,
)
from nbviz.widgets.controls import Choice, draws
from nbviz.widgets.figure_panels import filled_panels, plot_panel
from nbviz.widgets.picture_widget import ClassWidget
from nbviz.widgets.views import Panels, Plot

_FILM, _ROW = 10, 5  # maps, in all and in a row


class Sanity(ClassWidget):
    """Whether a method's map can be believed: it should change when the network's weights are destroyed.

    The weights of a copy are destroyed layer by layer from the top, and the map drawn again each time (Adebayo et al.
    2018); below, the pixels that the map calls important are deleted, and brought back (Petsiuk et al. 2018).

    Parameters
    ----------
    model, images, method, target, seed, preprocess, inputs, output
        As in :func:`nbviz.sanity.randomisation`; ``method`` is a name.
    labels
        The names of the model's outputs; found for torchvision's and timm's ImageNet models.
    picture
        Which of the pictures is shown at first, from 0.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.sanity.randomisation`.

    Examples
    --------
    >>> import nbviz
    >>> view = Sanity(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None], "gradient")
    >>> view.finish()
    >>> view.header.note.startswith("gradient changes")
    True
    """

    _kind = "sanity"
    _parts = ("destroyed", "deleted", "predictions")

    method = Choice(
        "Method", "The method whose map is looked at", options=list(METHODS), usual="guided_backprop", start="gradient"
    )

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        method: str = "guided_backprop",
        target: int | None = None,
        *,
        seed: int = 0,
        preprocess: Any = None,
        labels: Sequence[str] | None = None,
        inputs: Any = None,
        output: Any = None,
        picture: int = 0,
    ) -> None:
        check_choice("method", method, METHODS)
        self._seed = check_whole("seed", seed, 0, 2**62)
        super().__init__(model, images, preprocess, labels, inputs, output)
        session = self.session
        if target is not None:
            target = check_index("class", target, len(session.labels or ()))
        self._note_values({"seed": 0}, seed=seed)
        self._layers = layers_with_weights(session.model, session.pictures.inputs, session.feed)
        self._count = len(self._layers)
        self._begin_with(picture=picture, target=target, method=method)
        most = min(_FILM, self._count + 1)
        # Rows of equal length, the last of which ends with what is never filled.
        film = [{"slot": f"film_{i}"} for i in range(-(-most // _ROW) * _ROW)]
        rows = [film[i : i + _ROW] for i in range(0, len(film), _ROW)]
        title = "The map, trained and with more and more layers destroyed, from the top"
        self.panels = Panels([{"title": title if i == 0 else "", "cells": row} for i, row in enumerate(rows)])
        self.curve = Plot(
            title="Likeness to the map of the trained network",
            xlabel="layers destroyed",
            ylabel="likeness",
            range=[-0.2, 1],
        )
        self.pixels = Plot(
            title="Probability as the pixels go that the map calls important, or come back alone",
            xlabel="share of the pixels",
            ylabel="probability",
            range=[0, 1],
        )
        controls = [self.method_control, self.target_control]
        self._lay_out([self.strip], [*controls, self.panels, self.curve, self.pixels])
        self._start()

    def _map(self, model: nn.Module | None = None) -> Tensor:
        """The method's maps (N, H, W) or (N, C, H, W) of the chosen picture's batch, of a model, or the trained one."""
        with self.session.under_autocast():
            batch = self.session.batch(self.picture)
            method, given = METHODS[self.method], {"target": self.target, **self.options}
            found = self.session.ask(lambda trained: method(trained if model is None else model, batch, **given))
            return found.detach().float().cpu()

    @draws("picture", "target", "method", into=("panels", "curve"))
    def _show_destroyed(self) -> Iterator[bool]:
        session, name = self.session, self.method
        self.header.note = ""
        self._before = self._map()
        row = session.row(self.picture)
        before = self._before[row : row + 1]
        places = (
            torch.linspace(0, self._count, min(_FILM, self._count + 1), dtype=torch.float32).round().long().tolist()
        )
        self._show_map(0, before, "trained")
        steps: list[Similarity] = []

        def maps(changed: nn.Module) -> Tensor:
            return self._map(changed)[row : row + 1]

        for step, after in randomisation_steps(session.subject, self._layers, maps, before, seed=self._seed):
            steps.append(step)
            if len(steps) in places:
                caption = f"{line(step.layer, 40)}: {float(step.rank):.2f}"
                self._show_map(places.index(len(steps)), after, caption)
            curves = {"rank correlation": [s.rank for s in steps], "SSIM": [s.ssim for s in steps]}
            x = range(len(steps) + 1)
            self.curve.show((kind, x, [1.0, *map(float, values)]) for kind, values in curves.items())
            self.header.cost = f"{len(steps)} of {self._count} layers destroyed"
            yield True
        self.header.note = randomisation_result(name, steps, "cascading").verdict
        yield False

    def _show_map(self, i: int, maps: Tensor, caption: str) -> None:
        """A map of the film: signed ones on grey, others in colours."""
        if maps.ndim == 3:
            (steps,) = to_host(quantise(maps[0])[0])
            self.panels.show(f"film_{i}", "map", steps[..., None], caption=caption)
        else:
            signed = maps[0] if maps.shape[1] in (1, 3) else maps[0].sum(0, keepdim=True)
            self.panels.show(f"film_{i}", "signed", channels_last(centre(signed)), caption=caption)

    @draws("picture", "target", "method", into="pixels")
    def _show_deleted(self) -> Iterator[bool]:
        session = self.session
        batch, row = session.batch(self.picture), session.row(self.picture)
        with session.under_autocast():
            found = session.ask(
                lambda model: deletion_insertion(
                    model, batch, self._before, target=self.target, steps=24, **self.options
                )
            )
        shares = found.shares.tolist()
        areas = float(found.deletion_area[row]), float(found.insertion_area[row])
        deleted = (f"deleted, area {areas[0]:.2f}", shares, found.deletion[row].tolist())
        self.pixels.show([deleted, (f"brought back, area {areas[1]:.2f}", shares, found.insertion[row].tolist())])
        yield False

    def _heading(self) -> str:
        return f"{self.header.title} · {self.method}"

    def _figure_rows(self) -> list[list[Panel]]:
        return [*filled_panels(self.panels), [plot_panel(self.curve), plot_panel(self.pixels)]]
