"""The widget that asks whether a map can be believed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.checks import check_whole
from nbviz.core.documented import documented_like
from nbviz.core.errors import line
from nbviz.core.types import Images
from nbviz.export.panel import Panel
from nbviz.imaging.encode import channels_last, to_host
from nbviz.imaging.pixels import around_zero, centre, quantise
from nbviz.methods.randomise import layers_with_weights
from nbviz.methods.sanity import METHODS, deletion_insertion, randomisation, randomisation_steps
from nbviz.widgets.controls import Choice, draws
from nbviz.widgets.figure_panels import even, filled_panels, plot_panel
from nbviz.widgets.picture_widget import ClassWidget, PictureOptions
from nbviz.widgets.session import Session
from nbviz.widgets.settings import MapSettings, SignedSettings
from nbviz.widgets.views import Panels, Plot, picture_rows

_FILM, _ROW = 10, 5  # the number of maps, in all and in a row


@documented_like(randomisation)
class Sanity(ClassWidget, MapSettings, SignedSettings):
    """Whether a method's map can be believed: it should change when the network's weights are randomised.

    The weights of a copy are randomised layer by layer from the top, and the map drawn again each time (Adebayo et al.
    2018); below, the pixels that the map ranks highest are deleted first, or inserted first (Petsiuk et al. 2018).

    Parameters
    ----------
    method
        The name of a method: ``"gradient"``, ``"deconvnet"``, ``"guided_backprop"``, ``"input_x_gradient"``,
        ``"smooth_grad"``, ``"integrated_gradients"``, ``"guided_grad_cam"``, or a class activation map of the gradient
        family such as ``"grad_cam"``.
    target
        The class at first; None takes the class that the trained network predicts.

    Examples
    --------
    >>> import nbviz
    >>> view = Sanity(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None], "gradient")
    >>> view.finish()
    >>> view.header.note.startswith("gradient changes")
    True
    """

    _parts = ("destroyed", "deleted", "predictions")

    method = Choice("Method", "The method whose map is looked at", options=list(METHODS), default="guided_backprop")

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        method: str = "guided_backprop",
        target: int | None = None,
        *,
        seed: int = 0,
        **options: Unpack[PictureOptions],
    ) -> None:
        self._seed = check_whole("seed", seed, 0, 2**62)
        super().__init__(model, images, **options)
        subject = self.session.subject
        self._layers = layers_with_weights(subject.model, subject.inputs, subject.feed)
        self._count = len(self._layers)
        # How many layers are randomised in each map of the film.
        self._film = np.linspace(0, self._count, min(_FILM, self._count + 1)).round().tolist()
        self._set_controls()
        # All rows are equally long; the last slots may stay empty.
        slots = [f"film_{i}" for i in range(-(-len(self._film) // _ROW) * _ROW)]
        title = "The map, trained and with more and more layers randomised, from the top"
        self.panels = Panels(picture_rows(title, slots, _ROW), controls=["cmap", "contrast"])
        self.curve = Plot(
            title="Similarity to the map of the trained network",
            xlabel="layers randomised",
            ylabel="similarity",
            range=[-0.2, 1],
        )
        measure = self.session.answer.measure
        self.pixels = Plot(
            title=f"{measure.title()} as the most important pixels are deleted, or inserted into a blurred picture",
            xlabel="share of the pixels",
            ylabel=measure,
            range=[0, 1] if measure == "probability" else [None, None],
        )
        controls = [self.method_control, self.target_control]
        self._lay_out([self.strip], [*controls, self.panels, self.curve, self.pixels])

    def _map(self, model: nn.Module | None = None) -> Tensor:
        """The method's maps (N, H, W) or (N, C, H, W) for the picture's batch; without a model, of the trained one."""
        batch = self.session.batch(self.picture)
        method, options = METHODS[self.method], {"target": self.target, **self.options}
        maps = self.session.ask(lambda trained: method(trained if model is None else model, batch, **options))
        return maps.detach().float().cpu()

    @draws("picture", "target", "method", into=("panels", "curve"))
    def _show_destroyed(self) -> Iterator[bool]:
        session, name = self.session, self.method
        self.header.note = ""
        self._before = self._map()
        row = session.row(self.picture)
        before = self._before[row : row + 1]
        self._show_map(0, before, "trained")

        def maps(changed: nn.Module) -> Tensor:
            return self._map(changed)[row : row + 1]

        steps = randomisation_steps(name, session.current_model, self._layers, maps, before, seed=self._seed)
        for found, after in steps:
            done = len(found.layers)
            if done in self._film:
                caption = f"{line(found.layers[-1], 40)}: {float(found.rank[-1]):.2f}"
                self._show_map(self._film.index(done), after, caption)
            curves = {"rank correlation": found.rank, "SSIM": found.ssim}
            x = range(done + 1)
            self.curve.show((kind, x, [1.0, *map(float, values)]) for kind, values in curves.items())
            self.header.cost = f"{done} of {self._count} layers randomised"
            yield True
        self.header.note = found.verdict
        yield False

    def _show_map(self, i: int, maps: Tensor, caption: str) -> None:
        """A map of the film: signed ones on grey, others in colours."""
        if maps.ndim == 3:
            steps, low, high = to_host(*quantise(maps[0]))
            self.panels.show(f"film_{i}", "map", steps[..., None], caption=caption, ends=(float(low), float(high)))
        else:
            signed = maps[0] if maps.shape[1] in (1, 3) else maps[0].sum(0, keepdim=True)
            pixels = channels_last(centre(signed))
            self.panels.show(f"film_{i}", "signed", pixels, caption=caption, ends=around_zero(signed))

    @draws("picture", "target", "method", into="pixels")
    def _show_deleted(self) -> None:
        found = self._ask(deletion_insertion, self._before, target=self.target, steps=24)
        row = self.session.row(self.picture)
        shares = found.shares.tolist()
        areas = float(found.deletion_area[row]), float(found.insertion_area[row])
        deleted = (f"deleted, area {areas[0]:.2f}", shares, found.deletion[row].tolist())
        self.pixels.show([deleted, (f"inserted, area {areas[1]:.2f}", shares, found.insertion[row].tolist())])

    def _figure_rows(self) -> list[list[Panel]]:
        curves = {"curve": self.curve, "pixels": self.pixels}
        return [*even(filled_panels(self.panels)), [plot_panel(plot, name=name) for name, plot in curves.items()]]

    def _heading(self) -> str:
        return f"{self.header.title} · {self.method}"
