"""A view as a matplotlib figure, made without pyplot, whose state belongs to the user.

All sizes are known, so the axes are placed by hand, in inches: a layout engine would draw everything twice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbviz.core.errors import line, shown
from nbviz.export.panel import Panel, caption_depth, caption_of, draw_panel, left_margin, margins
from nbviz.export.text import Sizes, height, sizes, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The width of a figure, in inches.
WIDTH = 10.0
# Inches: at the border of the figure, and between its panels.
_EDGE, _GAP = 0.06, 0.1


def draw_figure(
    heading: str, rows: Sequence[Sequence[Panel]], foot: str = "", width: float = WIDTH, dpi: float = 150
) -> Figure:
    """Rows of panels under a heading, and a note below.

    Parameters
    ----------
    heading
        The title; none if it is empty.
    rows
        Panels, row by row, all of a row equally high. A row goes on in the next one where its panels would be too
        small to read.
    foot
        The note below.
    width
        The width of the figure in inches. It is at most 1.1 times as high, as a page is, or 9 inches, as a column is:
        the panels become smaller where there are many.
    dpi
        Pixels of an inch.

    Examples
    --------
    >>> import numpy as np
    >>> figure = draw_figure("a net", [[Panel(np.eye(4), "eye"), Panel(None, bars=[("cat", 0.9)])]])
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['eye', '']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = sizes(width)
    title = wrapped(heading, width - 2 * _EDGE, size.title, lines=2, bold=True)
    note = "\n".join(wrapped(text, width - 2 * _EDGE, size.small, 1000, 100) for text in foot.splitlines())
    above = height(title, size.title) + 0.1 if title else _EDGE
    below = height(note, size.small) + 2 * _EDGE if note else _EDGE
    placed = _arranged(rows or [[Panel(None)]], width, max(1.1 * width, 9.0) - above - below, size)
    tall = above + sum(row.height for row in placed) + below
    with _plain_style():
        figure = Figure(figsize=(width, tall), dpi=dpi, facecolor="white")
        figure.set_layout_engine("none")  # which a person may have set
        FigureCanvasAgg(figure)
        left = _EDGE / width
        if title:
            figure.text(left, 1 - _EDGE / tall, title, fontsize=size.title, va="top", weight="bold", color="black")
        if note:
            figure.text(left, _EDGE / tall, note, fontsize=size.small, va="bottom", color="0.3")
        top = tall - above
        for row in placed:
            for panel, caption, (x, wide) in zip(row.panels, row.captions, row.places, strict=True):
                box = x / width, (top - row.above - row.side) / tall, wide / width, row.side / tall
                draw_panel(figure.add_axes(box), panel, caption, row.depth, size)
            top -= row.height
    return figure


def draw_alone(axes: Any, panel: Panel) -> Figure:
    """Draw a panel into a person's axes; returns their figure."""
    wide = axes.get_window_extent().width / axes.figure.dpi
    size = sizes(axes.figure.get_figwidth())
    with _plain_style():
        draw_panel(axes, panel, caption_of(panel, wide, wide, size), caption_depth(panel, size), size)
    figure: Figure = axes.get_figure(root=True)
    return figure


# The arrangement.


@dataclass(frozen=True)
class _Row:
    """A row of panels and where they stand, in inches."""

    panels: Sequence[Panel]
    captions: Sequence[str]
    places: Sequence[tuple[float, float]]  # the left end and the width of each panel's axes
    side: float  # the height of the axes
    above: float  # the room for titles
    depth: float  # from the axes to the captions
    height: float  # of all, with captions and the distance to the next row


def _arranged(rows: Sequence[Sequence[Panel]], width: float, most: float, size: Sizes) -> list[_Row]:
    """The rows, with panels as large as they can be where all of them may be ``most`` inches high."""
    broken = [_broken(row, width) for row in rows]
    is_alone = sum(map(len, rows)) == 1
    tallest = width if is_alone else width / 2
    while True:
        placed = [row for parts in broken for row in _placed(parts, width, tallest, size)]
        if sum(row.height for row in placed) <= most or tallest < 0.3:
            return placed
        tallest *= 0.95


def _broken(row: Sequence[Panel], width: float) -> list[list[Panel]]:
    """A row as one or more rows whose panels are wide enough to be read."""
    parts: list[list[Panel]] = [[]]
    for panel in row:
        together = [*parts[-1], panel]
        if parts[-1] and sum(p.least + _GAP for p in together) - _GAP > width - 2 * _EDGE:
            parts.append([])
        parts[-1].append(panel)
    if len(parts) > 1 and len({panel.least for panel in row}) == 1:  # evenly, and all of one size
        most = math.ceil(len(row) / len(parts))
        parts = [[*row[i : i + most]] for i in range(0, len(row), most)]
        parts[-1] += [Panel(None)] * (most - len(parts[-1]))
    return parts


def _placed(parts: list[list[Panel]], width: float, tallest: float, size: Sizes) -> Iterator[_Row]:
    """The parts of one row, of which all panels are equally high."""
    sides = [_side(part, width, tallest, size) for part in parts]
    for part, side in zip(parts, sides, strict=True):
        are_alike = len({len(other) for other in parts}) == 1
        yield _place(part, width, min(sides) if are_alike else side, size)


def _side(row: Sequence[Panel], width: float, tallest: float, size: Sizes) -> float:
    """The height of a row's axes."""
    room = _room(row, width, size)
    limit = min(
        tallest * (1.4 if len(row) == 1 else 1.0),
        max((panel.tallest for panel in row if not panel.is_empty), default=0.5),
    )
    return max(0.2, min(limit, room / sum(_aspects(row))))


def _room(row: Sequence[Panel], width: float, size: Sizes) -> float:
    """The width that is left for a row's axes."""
    beside = sum(left_margin(panel, size) for panel in row)
    return width - 2 * _EDGE - _GAP * (len(row) - 1) - beside


def _aspects(row: Sequence[Panel]) -> list[float]:
    """Width through height of each panel; an empty one keeps the place of one like the first."""
    return [row[0].aspect if panel.is_empty else panel.aspect for panel in row]


def _place(row: Sequence[Panel], width: float, side: float, size: Sizes) -> _Row:
    """A row with axes of this height; what is left of the width goes between the panels, or into curves."""
    room, aspects = _room(row, width, size), _aspects(row)
    widths = [side * aspect for aspect in aspects]
    if all(panel.series for panel in row):
        widths = [room / len(row)] * len(row)
    extra = max(0.0, room - sum(widths)) / len(row)
    x, places, captions, around = _EDGE, [], [], []
    for panel, wide in zip(row, widths, strict=True):
        left = left_margin(panel, size)
        cell = left + wide + extra
        caption = caption_of(panel, wide, cell - 0.03, size)
        places.append((x + left, wide))
        captions.append(caption)
        around.append(margins(panel, caption, wide, size))
        x += cell + _GAP
    depth = max(caption_depth(panel, size) for panel in row)
    above = max(margin.above for margin in around)
    below = max(
        margin.below + (0 if panel.series else depth - caption_depth(panel, size))
        for panel, margin in zip(row, around, strict=True)
    )
    return _Row(row, captions, places, side, above, depth, above + side + below + _GAP)


# Files.


def save_figure(figure: Figure, file: Path | BytesIO, **options: Any) -> None:
    """Write a figure to a file, with its text as text. Letters that the font lacks become boxes.

    Raises
    ------
    ValueError
        When the file cannot be written.
    """
    import matplotlib as mpl

    try:
        with warnings.catch_warnings(), mpl.rc_context(_AS_TEXT):
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(file, **{"dpi": figure.dpi, **options})
    except (OSError, ValueError) as error:
        cause = line(error, 200)
        raise ValueError(f"the figure cannot be written: {cause}; expected a path that can be written to") from error


#: Fonts are embedded as TrueType (publishers refuse Type 3), and the figure is as wide as was asked for.
_AS_TEXT: Any = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.bbox": None,
    "savefig.facecolor": "auto",
}
_STYLES = ("axes", "xtick", "ytick", "lines", "patch", "image", "legend", "text", "grid")


@contextmanager
def _plain_style() -> Iterator[None]:
    """Within it, matplotlib's own style, whatever a person has set; their font stays."""
    import matplotlib as mpl

    plain: Any = {key: value for key, value in mpl.rcParamsDefault.items() if key.split(".")[0] in _STYLES}
    changed: Any = {key: value for key, value in plain.items() if mpl.rcParams[key] != value}
    with mpl.rc_context(changed):
        yield


def check_figure_path(given: Any) -> Path:
    """The path, if it can be a file and has a known suffix."""
    try:
        path = Path(given)
        usable = path.is_file() or not path.exists()  # writing to a pipe would block
    except Exception as error:  # not a path, or not a possible one
        kind = ValueError if isinstance(error, (OSError, ValueError)) else TypeError
        raise kind(f"path is {shown(given)}; expected the path of a file to write") from None
    if not usable or path.suffix.lower().removeprefix(".") not in _SUFFIXES:
        raise ValueError(f"path is {shown(given)}; expected a file that ends with {', '.join(_SUFFIXES)}")
    return path


_SUFFIXES = ("png", "svg", "pdf", "jpg", "webp")
