"""The base of the widgets that look at one of several pictures, and show the model's predictions for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import nn

from nbviz.core.checks import check_index
from nbviz.core.errors import line
from nbviz.core.types import Images, ModelInputs, Preprocessing, ScoresIn
from nbviz.widgets.base import Pulled
from nbviz.widgets.class_choice import ClassChoice
from nbviz.widgets.controls import Index, draws, moves
from nbviz.widgets.predictions import Result
from nbviz.widgets.session import Session, assumption, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import Strip

_FIRST_CLASSES = 100  # the most probable, which are offered before all others


class PictureOptions(TypedDict, total=False):
    """The keyword arguments that all widgets on pictures share."""

    preprocess: Preprocessing | None
    labels: Sequence[str] | None
    inputs: ModelInputs | None
    output: ScoresIn | None
    answer: str | None
    picture: int


class PictureWidget(Pulled):
    """A widget with a strip of pictures, one of which it looks at, and the model's predictions for this one.

    In place of the model it takes another widget's session.
    """

    _needs_maps: ClassVar[bool] = False  # whether some layer must have feature maps
    _grad: ClassVar[bool] = False  # whether there are reconstructions, for which the session keeps more
    _caption: ClassVar[str] = "Prediction"

    picture = Index(
        help="Which of the pictures is shown, from 0.",
        count=lambda widget: len(widget.session.display),
        default=0,
        drawn_in="strip",
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Images,
        *,
        preprocess: Preprocessing | None = None,
        labels: Sequence[str] | None = None,
        inputs: ModelInputs | None = None,
        output: ScoresIn | None = None,
        answer: str | None = None,
        picture: int = 0,
    ) -> None:
        if not isinstance(model, Session):
            model = Session(model, images, preprocess, labels, self._grad, inputs, output, answer, self._needs_maps)
        self.session: Session = model
        self._sessions = (model,)
        self._check_session()
        super().__init__(model.subject.model, information(model))
        self.header.warning = assumption(model, f"nbviz.{type(self).__name__}")
        self.strip = Strip(thumbs=Thumbs(model), caption=self._caption, measure=model.answer.measure)

    def _check_session(self) -> None:
        """Raise a ValueError unless the widget can show the model and its pictures."""
        self.session.subject.require_pictures()
        self._require_classes()

    def _require_classes(self) -> None:
        if self.session.labels is None:
            raise ValueError("the model gives no class scores; expected (N, classes): say with output= where they are")

    @property
    def options(self) -> dict[str, Any]:
        """How the model is called and where its class scores are, for the methods."""
        subject = self.session.subject
        return {"inputs": subject.feed, "output": subject.output, "answer": subject.kind}

    def _ask(self, method: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """What a method finds for the chosen picture's batch, with the weights that are shown."""
        batch = self.session.batch(self.picture)
        return self.session.ask(lambda model: method(model, batch, *arguments, **options, **self.options))

    @draws("picture", into="strip")
    def _show_predictions(self) -> None:
        self.strip.predictions = self.session.predictions(self.picture)


class ClassWidget(PictureWidget):
    """A widget that looks at one class: the predicted one, unless a person chooses another."""

    target = ClassChoice(
        "Class",
        "The class: type a part of its name; the most probable come first",
        options=lambda widget: widget._order()[:_FIRST_CLASSES],
        check=lambda widget, value: check_index("class", value, len(widget._labels)),
        follows=("picture",),
        start=0,
    )

    @moves("target", when="picture")
    def _predicted(self) -> int:
        order = self._order()
        return order[0] if order else 0

    def _order(self) -> list[int]:
        """The classes, the most probable first."""
        scores = self.session.scores_of(self.picture)
        return [] if scores is None else torch.nan_to_num(scores.float()).argsort(descending=True).tolist()

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.session.labels or ()

    @property
    def class_name(self) -> str:
        """The name of the class, for captions."""
        return line(self._labels[self.target], 40)
