"""The text of figures: its sizes, how wide it is, and where it is broken into lines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from nbviz.core.errors import line


class Sizes(NamedTuple):
    """The sizes of a figure's text by its role, in points. None is smaller than 6, which is legible in print."""

    title: float  # the heading, in bold
    caption: float  # captions, and the labels of axes and bars
    small: float  # numbers, legends and the note


_COLUMN, _PAGE = Sizes(8.5, 6.5, 6.0), Sizes(11.0, 8.0, 7.0)


def sizes(width: float) -> Sizes:
    """The sizes that suit a figure of this width in inches."""
    return _COLUMN if width < 6 else _PAGE


def height(text: str, points: float) -> float:
    """The height of a text in inches."""
    return 1.22 * points / 72 * (text.count("\n") + 1) if text else 0.0


def wrapped(text: str, inches: float, points: float, most: int = 200, lines: int = 7, bold: bool = False) -> str:
    """Text of at most so many letters, in lines of at most this width; what has no room is left out."""
    inches *= 0.98  # a line is drawn a little wider, since its letters are placed on whole pixels
    rows, left = [""], inches
    for word in line(text, most).split():
        for part in _parts(word, inches, points, bold):
            needed = width(part, points, bold) + 0.36 * points / 72  # with a space
            if rows[-1] and needed > left:
                rows.append("")
                left = inches
            rows[-1] += f" {part}" if rows[-1] else part
            left -= needed
    if len(rows) > lines:
        rows = [*rows[: lines - 1], _cut(f"{rows[lines - 1]}…", inches, points, bold)]
    # Escape after wrapping, so that no line break separates a dollar sign from its backslash.
    return _escaped("\n".join(rows))


def _parts(word: str, inches: float, points: float, bold: bool) -> Iterator[str]:
    """A word, in parts if it is wider than a line."""
    while len(word) > 1 and (wide := width(word, points, bold)) > inches:
        letters = max(1, int(0.95 * len(word) * inches / wide))
        while letters > 1 and width(word[:letters], points, bold) > inches:
            letters -= 1
        yield word[:letters]
        word = word[letters:]
    yield word


def _cut(text: str, inches: float, points: float, bold: bool) -> str:
    """Text that ends with an ellipsis, without so many letters before it as have no room."""
    while len(text) > 2 and width(text, points, bold) > inches:
        text = f"{text[:-2]}…"
    return text


def plain(text: str, most: int = 200) -> str:
    """Text on one line."""
    return _escaped(" ".join(line(text, most).split()))


@lru_cache(maxsize=1024)
def width(text: str, points: float, bold: bool = False) -> float:
    """The width in inches of a text on one line."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    font.set_size(points, 720)  # at 72, hinting rounds the letters' widths to whole points
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 720


def _escaped(text: str) -> str:
    """Text whose dollar signs do not start mathematics."""
    return text.replace("$", r"\$")
