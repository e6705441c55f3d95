"""A view as a matplotlib figure, made without pyplot, whose state belongs to the user."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbviz.core.errors import line, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), or values (H, W) for the colour map: bytes from 0 to 255, others from lowest to highest.
    caption
        The text below.
    cmap
        The matplotlib colour map for values.
    box
        A frame to draw: top, left, bottom and right, in pixels.
    inner
        A frame within it, drawn more lightly; not drawn where it is the same.
    bars
        In place of pixels: a label and a fraction for each bar. Without pixels, bars or series, nothing is drawn.
    width
        The relative width in its row.
    plot
        Draw the pixels (1, L, C) as C curves.
    zero
        The value of a horizontal line behind the curves.
    series
        In place of pixels: name, x and y of each curve.
    labels
        The labels of both axes.
    dashed
        The names of dashed curves.
    ends
        The limits of the y axis; None finds them.
    marker
        The x value of a vertical line.
    """

    pixels: np.ndarray[Any, Any] | None
    caption: str = ""
    cmap: str = "viridis"
    box: Sequence[int] | None = None
    inner: Sequence[int] | None = None
    bars: Sequence[tuple[str, float]] = ()
    width: float = 1.0
    plot: bool = False
    zero: float | None = None
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
    labels: tuple[str, str] = ("", "")
    dashed: Sequence[str] = ()
    ends: Sequence[float | None] = (None, None)
    marker: float | None = None


def draw_figure(heading: str, rows: Sequence[Sequence[Panel]], foot: str = "", width: float = 10.0) -> Figure:
    """Rows of panels under a heading, and a note below.

    Parameters
    ----------
    heading
        The title.
    rows
        Panels, row by row; each row fills the width.
    foot
        The note below.
    width
        The width of the figure in inches.

    Examples
    --------
    >>> figure = draw_figure("a net", [[Panel(np.eye(4), "eye"), Panel(None, bars=[("cat", 0.9)])]])
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['eye', '']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = rows or [[Panel(None)]]
    title = _wrapped(heading, width - 0.3, _TITLE, lines=2)
    foot = "\n".join(_wrapped(text, width - 0.3, _NOTE, 1000, 100) for text in foot.splitlines())
    captions = [[_wrapped(panel.caption, 0.9 * width * _share(panel, row)) for panel in row] for row in rows]
    heights = [
        max(_height(panel, row) for panel in row) * width * 0.97 + 0.22 + 0.14 * max(map(_lines, texts))
        for row, texts in zip(rows, captions, strict=True)
    ]
    above, below = 0.2 + 0.2 * _lines(title), 0.13 * _lines(foot) if foot else 0.0
    figure = Figure(figsize=(width, sum(heights) + above + below), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=_TITLE, x=0.01, ha="left", weight="bold")
    if foot:
        figure.supxlabel(foot, fontsize=_NOTE, x=0.01, ha="left", color="0.3")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(rows), 1, height_ratios=heights)))
    for part, row, texts in zip(parts, rows, captions, strict=True):
        grid = part.add_gridspec(1, len(row), width_ratios=[panel.width for panel in row])
        for place, panel, caption in zip(grid, row, texts, strict=True):
            axes = part.add_subplot(place)
            if panel.series:
                _draw_series(axes, panel, caption)
            elif panel.pixels is None:
                _draw_bars(axes, panel.bars, caption, 0.5 * width * _share(panel, row))
            else:
                axes.set_xlabel(caption, fontsize=8, color="0.3")
                (_draw_curves if panel.plot else _draw_pixels)(axes, panel)
    engine = figure.get_layout_engine()
    if engine is not None and any("\n" in text for texts in captions for text in texts):
        engine.execute(figure)  # a single layout pass does not make room for captions of several lines
    return figure


def save_figure(figure: Figure, file: Path | BytesIO, **options: Any) -> None:
    """Write a figure to a file. Letters that the font lacks become boxes.

    Raises
    ------
    ValueError
        When the file cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(file, **options)
    except (OSError, ValueError) as error:
        cause = line(error, 200)
        raise ValueError(f"the figure cannot be written: {cause}; expected a path that can be written to") from error


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


def _share(panel: Panel, row: Sequence[Panel]) -> float:
    """A panel's fraction of the figure's width."""
    return panel.width / sum(other.width for other in row)


def _height(panel: Panel, row: Sequence[Panel]) -> float:
    """A panel's height as a fraction of the figure's width."""
    share = _share(panel, row)
    if panel.series:
        return min(0.55 * share, 0.3)
    if panel.pixels is None:
        return 0.018 * len(panel.bars)
    return share * (0.5 if panel.plot else panel.pixels.shape[0] / panel.pixels.shape[1])


def _draw_pixels(axes: Any, panel: Panel) -> None:
    from matplotlib.patches import Rectangle

    pixels = np.asarray(panel.pixels)
    low, high = (0, 255) if pixels.dtype == np.uint8 else (None, None)
    axes.imshow(pixels, cmap=panel.cmap, interpolation="nearest", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for (top, left, bottom, right), width in zip(_frames(panel), (1.5, 0.7), strict=False):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec="#ff9800", lw=width))


def _frames(panel: Panel) -> list[Sequence[int]]:
    """The frames to draw: none, the box, or the box and the inner one."""
    inner = [] if panel.inner is None or panel.inner == panel.box else [panel.inner]
    return [] if panel.box is None else [panel.box, *inner]


def _draw_curves(axes: Any, panel: Panel) -> None:
    curves = np.asarray(panel.pixels)[0].T
    if panel.zero is not None:
        axes.axhline(panel.zero, color="0.7", lw=0.6)
    for curve, colour in zip(curves, _CURVES[: len(curves)] if len(curves) > 1 else ["0.2"], strict=True):
        axes.plot(curve, color=colour, lw=0.8)
    for _, left, _, right in _frames(panel):  # one over the other
        axes.axvspan(left - 0.5, right - 0.5, color="#ff9800", alpha=0.25, lw=0)
    axes.set(yticks=[], xmargin=0.01)
    if curves.dtype == np.uint8:  # one scale for all panels, with the zero of signed values in the middle
        axes.set_ylim(0, 255)
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)


_CURVES = ("#c62828", "#2e7d32", "#1565c0")


def _draw_series(axes: Any, panel: Panel, caption: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, x, y in panel.series:
        label = _plain(name, 40)
        # Matplotlib hides labels that are empty or start with an underscore.
        label = f" {label}" if label[:1] in ("", "_") else label
        axes.plot(x, y, lw=1.2, ls="--" if name in panel.dashed else "-", label=label)
    if all(float(place).is_integer() for _, x, _ in panel.series for place in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.marker is not None:
        axes.axvline(panel.marker, color="#ff9800", lw=1)
    axes.set_ylim(*panel.ends)
    axes.legend(fontsize=7, frameon=False)
    axes.set_title(caption, fontsize=8, color="0.3", loc="left")
    axes.set_xlabel(_plain(panel.labels[0]), fontsize=8, color="0.3")
    axes.set_ylabel(_plain(panel.labels[1]), fontsize=8, color="0.3")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(axes: Any, bars: Sequence[tuple[str, float]], caption: str, inches: float) -> None:
    if not bars:
        axes.set_axis_off()
        return
    axes.barh(range(len(bars)), [share for _, share in bars], color="#1976d2", height=0.7)
    # Numbers as positions, since two labels may be equal.
    axes.set_yticks(range(len(bars)), [_wrapped(label, inches, lines=1) for label, _ in bars])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=[], box_aspect=0.6)
    axes.set_xlabel(caption, fontsize=8, color="0.3")
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for i, (_, share) in enumerate(bars):
        place, side, colour = (share + 0.02, "left", "0.3") if share < 0.8 else (share - 0.02, "right", "white")
        axes.text(place, i, f"{share:.2f}", va="center", ha=side, fontsize=8, color=colour)


_TITLE, _CAPTION, _NOTE = 11.0, 8.0, 7.5  # points


def _wrapped(text: str, inches: float, size: float = _CAPTION, most: int = 200, lines: int = 3) -> str:
    """Text wrapped into lines of about this width."""
    spaced = " ".join(line(text, most).split())
    letters = max(4, int(0.95 * len(spaced) * inches / max(_inches(spaced, size), 1e-3)))
    # Escape after wrapping, so that no line break separates a dollar sign from its backslash.
    if lines == 1:
        return _escaped(line(spaced, letters))
    return _escaped(textwrap.fill(spaced, letters, max_lines=lines, placeholder="…"))


def _inches(text: str, size: float) -> float:
    """The width of a text on one line; titles are bold."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight="bold" if size == _TITLE else "normal")))
    font.set_size(size, 72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _plain(text: str, most: int = 200) -> str:
    """Text on one line, with dollar signs escaped, which would start mathematics."""
    return _escaped(" ".join(line(text, most).split()))


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")
