"""The base of the widgets that ask what a model answers to one of some pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nbviz.core.checks import check_index
from nbviz.core.errors import line
from nbviz.core.state import is_compiled
from nbviz.widgets.base import Pulled
from nbviz.widgets.controls import Choice, Index, draws, moves
from nbviz.widgets.session import Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import Header, Strip

_MOST_CLASSES = 100  # in the dropdown, the most probable first


class PictureWidget(Pulled):
    """A widget with a strip of pictures, of which one is looked at, and what the model answers to it.

    Parameters
    ----------
    model, images, preprocess, labels, inputs, output
        As in :func:`nbviz.explore`; in place of the model another widget's session.
    caption
        Above the predictions.
    """

    picture = Index(
        help="Which of the pictures is shown, from 0.",
        count=lambda view: len(view.session.display),
        usual=0,
        drawn_in="strip",
    )

    def __init__(
        self,
        model: nn.Module | Session,
        images: Any,
        preprocess: Any,
        labels: Sequence[str] | None,
        inputs: Any,
        output: Any,
        caption: str = "Prediction",
    ) -> None:
        self.session = answering(model, images, preprocess, labels, inputs, output)
        info = information(self.session, is_compiled(model) if isinstance(model, nn.Module) else False)
        super().__init__(Header(title=line(type(self.session.model).__name__), info=info))
        self._note_given(preprocess=preprocess, labels=labels, inputs=inputs, output=output)
        self.strip = Strip(thumbs=Thumbs(self.session), caption=caption)

    @property
    def options(self) -> dict[str, Any]:
        """How the model is called and its answer read, for the methods."""
        return {"inputs": self.session.feed, "output": self.session.output}

    @draws("picture", into="strip")
    def _show_predictions(self) -> Iterator[bool]:
        self.strip.predictions = self.session.predictions(self.picture)
        yield False


class ClassWidget(PictureWidget):
    """One that looks at what speaks for a class: that which is predicted for the picture, unless a person names one."""

    target = Choice(
        "Class",
        "The class; the most probable first",
        options=lambda view: view._classes(),
        label_of=lambda view, value: view._label(value),
        check=lambda view, value: check_index("class", value, len(view.session.labels or ())),
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
        return [] if scores is None else torch.nan_to_num(scores[0].float()).argsort(descending=True).tolist()

    def _classes(self) -> dict[int, str]:
        return {number: self._label(number) for number in self._order()[:_MOST_CLASSES]}

    def _label(self, number: int) -> str:
        return f"{line((self.session.labels or ())[number], 60)} ({number})"

    @property
    def class_name(self) -> str:
        """The class in words, for captions."""
        return line((self.session.labels or ())[self.target], 40)


def answering(
    model: nn.Module | Session,
    images: Any,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    inputs: Any = None,
    output: Any = None,
) -> Session:
    """A session, if the model gives class scores for pictures.

    Raises
    ------
    ValueError
        If it does not.
    """
    session = (
        model
        if isinstance(model, Session)
        else Session(model, images, preprocess, labels, False, inputs, output, maps=False)
    )
    if session.axes != 2:
        raise ValueError(f"the model takes {tuple(session.pictures.inputs.shape)}; expected pictures (N, C, H, W)")
    if session.labels is None:
        raise ValueError("the model gives no class scores; expected (N, classes): say with output= where they are")
    return session
