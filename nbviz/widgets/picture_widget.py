"""The base of the widgets that ask what a model answers to one of some pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import traitlets as t
from torch import nn

from nbviz.core.checks import check_index
from nbviz.core.errors import line
from nbviz.core.state import is_compiled
from nbviz.widgets.base import Pulled
from nbviz.widgets.session import Session, information
from nbviz.widgets.thumbs import Thumbs
from nbviz.widgets.views import Header, Strip


def answering(
    model: nn.Module, images: Any, preprocess: Any, labels: Sequence[str] | None, inputs: Any, output: Any
) -> Session:
    """A session, if the model gives class scores for pictures.

    Raises
    ------
    ValueError
        If it does not.
    """
    session = Session(model, images, preprocess, labels, False, inputs, output, maps=False)
    if session.axes != 2:
        raise ValueError(f"the model takes {tuple(session.pictures.inputs.shape)}; expected pictures (N, C, H, W)")
    if session.labels is None:
        raise ValueError("the model gives no class scores; expected (N, classes): say with output= where they are")
    return session


class OfPictures(Pulled):
    """A widget with a strip of pictures, of which one is looked at, and what the model answers to it."""

    picture = t.Int(0, help="Which of the pictures is shown, from 0.")

    def __init__(self, session: Session, model: nn.Module, picture: int, caption: str = "Prediction") -> None:
        self.session = session
        picture = check_index("picture", picture, len(session.display))
        info = information(session, is_compiled(model))
        super().__init__(Header(title=line(type(session.model).__name__), info=info))
        self.strip = Strip(thumbs=Thumbs(session), caption=caption)
        self.picture = picture
        t.link((self, "picture"), (self.strip, "picture"))

    @t.validate("picture")
    def _valid_picture(self, proposal: Any) -> int:
        return check_index("picture", proposal["value"], len(self.session.display))

    def _show_predictions(self) -> Iterator[bool]:
        self.strip.predictions = self.session.predictions(self.picture)
        yield False
