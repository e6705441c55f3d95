"""The exceptions and warnings of nbviz, and the words they share."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class ModelError(RuntimeError):
    """The model itself cannot do what was asked: its forward pass failed, or no gradient reaches the picture."""


class PictureError(ValueError):
    """A picture that cannot be read, or does not fit the model."""


class PictureNotFoundError(FileNotFoundError, PictureError):
    """There is no file at the path given for a picture."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoRectifierWarning(UserWarning):
    """A backward rule met no rectifier: deconvnet and guided backprop equal the plain gradient there."""


class CompiledWarning(UserWarning):
    """The model is compiled, which hides its layers: it runs as the eager one that it was made from."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called nbviz."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("nbviz."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def unknown(kind: str, given: object, accepted: Iterable[str]) -> ValueError:
    """A ValueError which says what was given, the nearest valid choice and what is accepted.

    Examples
    --------
    >>> print(unknown("layer", "layer5", ["layer3", "layer4"]))
    no layer 'layer5'; did you mean 'layer4'? Accepted: layer3, layer4
    """
    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(given)[:200], names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return ValueError(f"no {kind} {str(given)[:200]!r}{hint} Accepted: {shown}")
