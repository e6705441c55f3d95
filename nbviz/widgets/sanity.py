"""The widget that asks whether a map can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import ipywidgets
import torch
import traitlets as t
from torch import Tensor, nn

from nbviz.core.checks import check_choice, check_whole
from nbviz.core.errors import line
from nbviz.export.figure import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import centre, quantise
from nbviz.methods.destroy import destroyed, layers_with_weights
from nbviz.methods.sanity import (
    METHODS,
    Randomisation,
    deletion_insertion,
    spearman,
    ssim,
)
from nbviz.widgets.figure_panels import filled_panels, plot_panel
from nbviz.widgets.picture_widget import OfPictures, answering
from nbviz.widgets.views import Panels, Plot

_FILM, _ROW = 10, 5  # maps, in all and in a row


class Sanity(OfPictures):
    """Whether a method's map can be believed: it should change when the network's weights are destroyed.

    The weights of a copy are destroyed layer by layer from the top, and the map drawn again each time (Adebayo et al.
    2018); below, the pixels that the map calls important are deleted, and brought back (Petsiuk et al. 2018).

    Parameters
    ----------
    model, images, method, seed, preprocess, inputs, output
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

    _parts: ClassVar[tuple[str, ...]] = ("destroyed", "deleted", "predictions")
    _stales: ClassVar[dict[str, set[str]]] = {
        "picture": {"destroyed", "deleted", "predictions"},
        "method": {"destroyed", "deleted"},
    }

    method = t.Unicode(help="The method whose map is looked at.")

    def __init__(
        self,
        model: nn.Module,
        images: Any,
        method: str = "guided_backprop",
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
        session = answering(model, images, preprocess, labels, inputs, output)
        self._given = {"inputs": inputs, "output": output}
        self._layers = layers_with_weights(session.model, session.pictures.inputs, session.feed)
        self._count = len(self._layers)
        super().__init__(session, model, picture)
        self.method_control = ipywidgets.Dropdown(options=list(METHODS), value=method, description="Method")
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
        self.method = method
        t.link((self, "method"), (self.method_control, "value"))
        left = ipywidgets.VBox([self.strip])
        right = ipywidgets.VBox([self.method_control, self.panels, self.curve, self.pixels])
        self._lay_out(ipywidgets.Box([left, right]).add_class("nbviz-columns"), "sanity")
        self._start()

    @t.validate("method")
    def _valid_method(self, proposal: Any) -> str:
        return check_choice("method", proposal["value"], METHODS)

    def _map(self, model: nn.Module | None = None) -> Tensor:
        """The method's maps (N, H, W) or (N, C, H, W) of the chosen picture's batch, for the class predicted for it.

        Of a model, or the trained one.
        """
        scores = self.session.scores_of(self.picture)
        target = 0 if scores is None else int(torch.nan_to_num(scores[0].float()).argmax())
        with self.session.under_autocast():
            batch = self.session.batch(self.picture)
            method, given = METHODS[self.method], {"target": target, **self._given}
            found = self.session.ask(lambda trained: method(trained if model is None else model, batch, **given))
            return found.detach().float().cpu()

    def _show_destroyed(self) -> Iterator[bool]:
        session, name = self.session, self.method
        self.header.note = ""
        self.panels.current = f"{self.picture} {name}"
        self._before = self._map()
        row = session.row(self.picture)
        before = self._before[row : row + 1]
        places = (
            torch.linspace(0, self._count, min(_FILM, self._count + 1), dtype=torch.float32).round().long().tolist()
        )
        self._show_map(0, before, "trained")
        layers: list[str] = []
        ranks, ssims = [torch.ones(1, dtype=torch.float64)], [torch.ones(1, dtype=torch.float64)]
        for layer, changed in destroyed(session.subject, self._layers, "cascading", self._seed):
            after = self._map(changed)[row : row + 1]
            layers.append(layer)
            ranks.append(spearman(before.abs(), after.abs()))
            ssims.append(ssim(before.abs(), after.abs()))
            if len(layers) in places:
                caption = f"{line(layer, 40)}: {float(ranks[-1]):.2f}"
                self._show_map(places.index(len(layers)), after, caption)
            x = range(len(ranks))
            curves = {"rank correlation": ranks, "SSIM": ssims}
            self.curve.show((kind, x, [float(one) for one in values]) for kind, values in curves.items())
            self.header.cost = f"{len(layers)} of {self._count} layers destroyed"
            yield True
        found = Randomisation(name, tuple(layers), torch.stack(ranks[1:]), torch.stack(ssims[1:]), "cascading")
        self.header.note = found.verdict
        yield False

    def _show_map(self, i: int, maps: Tensor, caption: str) -> None:
        """A map of the film: signed ones on grey, others in colours."""
        if maps.ndim == 3:
            (steps,) = to_host(quantise(maps[0])[0])
            self.panels.show(f"film_{i}", "map", steps[..., None], caption=caption)
        else:
            signed = maps[0] if maps.shape[1] in (1, 3) else maps[0].sum(0, keepdim=True)
            self.panels.show(f"film_{i}", "signed", channels_last(centre(signed)), caption=caption)

    def _show_deleted(self) -> Iterator[bool]:
        session = self.session
        batch, row = session.batch(self.picture), session.row(self.picture)
        with session.under_autocast():
            found = session.ask(lambda model: deletion_insertion(model, batch, self._before, steps=24, **self._given))
        shares = found.shares.tolist()
        areas = float(found.deletion_area[row]), float(found.insertion_area[row])
        deleted = (f"deleted, area {areas[0]:.2f}", shares, found.deletion[row].tolist())
        self.pixels.show([deleted, (f"brought back, area {areas[1]:.2f}", shares, found.insertion[row].tolist())])
        yield False

    def _ended(self) -> None:
        call = f"{self.method!r}, seed={self._seed}, picture={self.picture}"
        self.header.code = f"nbviz.Sanity(model, images, {call})"

    def _heading(self) -> str:
        return f"{self.header.title} · {self.method}"

    def _figure_rows(self) -> list[list[Panel]]:
        return [*filled_panels(self.panels), [plot_panel(self.curve), plot_panel(self.pixels)]]
