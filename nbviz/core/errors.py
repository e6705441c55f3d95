"""The exceptions and warnings of nbviz, and helpers for their messages."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable


class ModelError(RuntimeError):
    """The model cannot do what was asked: its forward pass failed, or no gradient reaches the picture."""


class EndlessError(ModelError):
    """Endless recursion: every forward pass of the model calls nbviz on the model itself."""


class PictureError(ValueError):
    """A picture that cannot be read, or does not fit the model."""


class PictureNotFoundError(FileNotFoundError, PictureError):
    """No file exists at the path given for a picture."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoRectifierWarning(UserWarning):
    """A backward rule met no rectifier: deconvnet and guided backprop equal the plain gradient."""


class NoSwitchWarning(UserWarning):
    """A deconvnet met no max-pooling switch or the like: it goes back in the same way for every picture."""


class CompiledWarning(UserWarning):
    """The model is compiled, which hides its layers: the eager model it was made from runs instead."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn, pointing at the line that called nbviz."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("nbviz."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def unknown(kind: str, given: object, accepted: Iterable[str]) -> ValueError:
    """A ValueError with the given name, the nearest valid choice and the accepted names.

    Examples
    --------
    >>> print(unknown("layer", "layer5", ["layer3", "layer4"]))
    no layer 'layer5'; did you mean 'layer4'? Accepted: layer3, layer4
    """
    names = [line(name) for name in accepted]
    near = difflib.get_close_matches(line(given), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    first = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return ValueError(f"no {kind} {line(given)!r}{hint} Accepted: {first}")


def shown(given: object, most: int = 80) -> str:
    """The repr of a value for an error message: shortened, and never raising.

    Examples
    --------
    >>> shown([1, "a"]), shown("cat.png", 5)
    ("[1, 'a']", "'cat…")
    """
    return line(given, most, repr)


def line(given: object, most: int = 200, how: Callable[[object], str] = str) -> str:
    r"""Text from a model, a file or a user, shortened and safe to display.

    Layer names and labels may hold anything. Control characters, characters that change the direction of text, and
    lone surrogates, which cannot be encoded, are replaced.

    Examples
    --------
    >>> line("cat\0"), line("<b>", 2)
    ('cat\ufffd', '<…')
    """
    try:
        text = how(given)
    except Exception:  # a failing __repr__, or an int of more than 4,300 digits
        text = f"a {type(given).__name__}"
    return _NOT_PRINTABLE.sub("\ufffd", text if len(text) <= most else f"{text[: most - 1]}…")


def with_class(error: Exception) -> str:
    """An exception's class and message, for the message of another one.

    Examples
    --------
    >>> with_class(ZeroDivisionError("division by zero"))
    'ZeroDivisionError: division by zero'
    """
    return f"{type(error).__name__}: {line(error, 1000)}"


_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
