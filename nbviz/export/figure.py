"""A view as a matplotlib figure, through the object interface: no pyplot, so nothing of the person's is touched."""

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
        (H, W) values to colour, or uint8 (H, W, 3).
    caption
        Below it.
    cmap
        The matplotlib colour map for values.
    box
        Top, left, bottom, right of a frame to draw on it, in its pixels.
    bars
        In place of pixels: (label, share) rows.
    width
        Its share of the row's width.
    plot
        The pixels (1, L, C) are C curves.
    zero
        The value at which a line is drawn under curves.
    series
        In place of pixels: name, x and y of curves over one axis.
    labels
        Of the two axes.
    """

    pixels: np.ndarray[Any, Any] | None
    caption: str = ""
    cmap: str = "viridis"
    box: Sequence[int] | None = None
    bars: Sequence[tuple[str, float]] = ()
    width: float = 1.0
    plot: bool = False
    zero: float | None = None
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
    labels: tuple[str, str] = ("", "")


def draw_figure(heading: str, rows: Sequence[Sequence[Panel]], foot: str = "", width: float = 10.0) -> Figure:
    """Rows of panels under a heading, and a note below.

    Parameters
    ----------
    heading
        The line on top.
    rows
        Panels, row by row; each row fills the width.
    foot
        What must be read with them.
    width
        Of the figure, in inches.

    Examples
    --------
    >>> figure = draw_figure("a net", [[Panel(np.eye(4), "eye"), Panel(None, bars=[("cat", 0.9)])]])
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['eye', '']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    foot = "\n".join(textwrap.fill(_plain(text, 1000), round(17 * width)) for text in foot.splitlines())
    heights = [max(_height(panel, row) for panel in row) * width * 0.94 + 0.35 for row in rows]
    figure = Figure(
        figsize=(width, sum(heights) + 0.4 + 0.13 * len(foot.splitlines())), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(heading), fontsize=11, x=0.01, ha="left", weight="bold")
    if foot:
        figure.supxlabel(foot, fontsize=7.5, x=0.01, ha="left", color="0.3")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(rows), 1, height_ratios=heights)))
    for part, row in zip(parts, rows, strict=True):
        grid = part.add_gridspec(1, len(row), width_ratios=[panel.width for panel in row])
        for place, panel in zip(grid, row, strict=True):
            axes = part.add_subplot(place)
            if panel.series:
                _draw_series(axes, panel)
                continue
            if panel.pixels is None:
                _draw_bars(axes, panel.bars)
                continue
            if panel.plot:
                _draw_curves(axes, panel)
                continue
            axes.imshow(panel.pixels, cmap=panel.cmap, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(_plain(panel.caption), fontsize=8, color="0.3")
            axes.spines[:].set_visible(False)
            if panel.box is not None:
                top, left, bottom, right = panel.box
                frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec="#ff9800", lw=1.5)
                axes.add_patch(frame)
    return figure


def save_figure(figure: Figure, file: Path | BytesIO, **options: Any) -> None:
    """Write a figure, for whose text a box stands where the font has no such letter.

    Raises
    ------
    ValueError
        When there is no writing to this file.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(file, **options)
    except (OSError, ValueError) as error:
        said = line(error, 200)
        raise ValueError(f"the figure cannot be written: {said}; expected a path that can be written to") from error


def check_figure_path(given: Any) -> Path:
    """The path, if its ending says how a figure is written and it can be a file."""
    try:
        path = Path(given)
        usable = path.is_file() or not path.exists()  # a pipe would be waited for
    except Exception as error:  # no path, or one that no file can have
        kind = ValueError if isinstance(error, (OSError, ValueError)) else TypeError
        raise kind(f"path is {shown(given)}; expected the path of a file to write") from None
    if not usable or path.suffix.lower().removeprefix(".") not in _ENDINGS:
        raise ValueError(f"path is {shown(given)}; expected a file that ends with {', '.join(_ENDINGS)}")
    return path


_ENDINGS = ("png", "svg", "pdf", "jpg", "webp")


def _height(panel: Panel, row: Sequence[Panel]) -> float:
    """A panel's height as a share of the figure's width."""
    share = panel.width / sum(p.width for p in row)
    if panel.series:
        return share * 0.55
    if panel.pixels is None:
        return 0.0
    return share * (0.5 if panel.plot else panel.pixels.shape[0] / panel.pixels.shape[1])


def _draw_curves(axes: Any, panel: Panel) -> None:
    curves = np.asarray(panel.pixels)[0].T
    if panel.zero is not None:
        axes.axhline(panel.zero, color="0.7", lw=0.6)
    for curve, colour in zip(curves, _CURVES[: len(curves)] if len(curves) > 1 else ["0.2"], strict=True):
        axes.plot(curve, color=colour, lw=0.8)
    if panel.box is not None:
        axes.axvspan(panel.box[1] - 0.5, panel.box[3] - 0.5, color="#ff9800", alpha=0.25, lw=0)
    axes.set(yticks=[], xmargin=0.01)
    if curves.dtype == np.uint8:  # as in the page: all panels on one scale, zero of what is signed in the middle
        axes.set_ylim(0, 255)
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel(_plain(panel.caption), fontsize=8, color="0.3")
    axes.spines[["top", "right", "left"]].set_visible(False)


_CURVES = ("#c62828", "#2e7d32", "#1565c0")


def _draw_series(axes: Any, panel: Panel) -> None:
    for name, x, y in panel.series:
        axes.plot(x, y, lw=1.2, label=_plain(name, 40))
    axes.legend(fontsize=7, frameon=False)
    axes.set_title(_plain(panel.caption), fontsize=8, color="0.3", loc="left")
    axes.set_xlabel(_plain(panel.labels[0]), fontsize=8, color="0.3")
    axes.set_ylabel(_plain(panel.labels[1]), fontsize=8, color="0.3")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(axes: Any, bars: Sequence[tuple[str, float]]) -> None:
    axes.barh([_plain(label[:28]) for label, _ in bars], [share for _, share in bars], color="#1976d2", height=0.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for i, (_, share) in enumerate(bars):
        axes.text(min(share + 0.02, 0.8), i, f"{share:.2f}", va="center", fontsize=8, color="0.3")
    axes.set_box_aspect(0.6)


def _plain(text: str, most: int = 200) -> str:
    """Text on one line, in which no dollar sign starts mathematics."""
    return " ".join(line(text, most).split()).replace("$", r"\$")
