"""One picture of a figure: what it shows, how much room it needs, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nbviz.export.text import Sizes, height, plain, width, wrapped
from nbviz.imaging.pixels import as_levels, colour_table


@dataclass(frozen=True)
class Scale:
    """The colour bar below a map.

    Parameters
    ----------
    low, high
        The values at its ends.
    measure
        What is measured, with its unit.
    cmap
        The matplotlib colour map; for signed values grey.
    contrast
        For values around zero, by how much they are spread around grey.
    """

    low: float
    high: float
    measure: str = ""
    cmap: str = "viridis"
    contrast: float | None = None

    def colours(self) -> np.ndarray[Any, Any]:
        """The colours from the lowest to the highest value, uint8 (256, 3)."""
        if self.contrast is None:
            return colour_table(self.cmap)
        return as_levels(128 + self.contrast * np.linspace(-127, 127, 256))[:, None].repeat(3, 1)

    def labels(self, inches: float, points: float) -> tuple[str, str, str]:
        """The text below a bar of this width, as far as it has room: low, what is measured, and high."""
        low, high = (f"{end:.3g}".replace("-", "\N{MINUS SIGN}") for end in (self.low, self.high))
        left = inches - 2 * max(width(low, points), width(high, points))
        if left > width(self.measure, points) + 0.2:
            return low, self.measure, high
        if left < 0.08 and self.contrast is not None:
            return "", f"±{high}", ""
        return low, "", high


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), or values (H, W) for the colour map: bytes from 0 to 255, others from lowest to highest.
    caption
        The text below.
    name
        By which a person asks for this picture alone.
    cmap
        The matplotlib colour map for values.
    scale
        The colour bar below; None draws none.
    box
        A frame to draw: top, left, bottom and right, in pixels.
    inner
        A frame within it, drawn more lightly; not drawn where it is the same.
    numbers
        Text on the tiles of a grid: left and top of each in pixels, and the number.
    tile
        The width of a grid's tile in pixels.
    bars
        In place of pixels: a label and a fraction for each bar. Without pixels, bars or series, nothing is drawn.
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
    name: str = ""
    cmap: str = "viridis"
    scale: Scale | None = None
    box: Sequence[int] | None = None
    inner: Sequence[int] | None = None
    numbers: Sequence[tuple[int, int, int]] = ()
    tile: int = 0
    bars: Sequence[tuple[str, float]] = ()
    plot: bool = False
    zero: float | None = None
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
    labels: tuple[str, str] = ("", "")
    dashed: Sequence[str] = ()
    ends: Sequence[float | None] = (None, None)
    marker: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is drawn."""
        return self.pixels is None and not self.bars and not self.series

    @property
    def aspect(self) -> float:
        """Width through height."""
        if self.series or self.plot:
            return 2.0
        if self.pixels is None:
            return 0.8
        return min(max(float(self.pixels.shape[1] / self.pixels.shape[0]), 0.25), 8.0)

    @property
    def least(self) -> float:
        """The least width in inches, with labels beside it, at which it is legible."""
        if self.series:
            return 2.3
        if self.bars:
            return 1.0
        tiles = self.pixels.shape[1] / self.tile if self.pixels is not None and self.tile else 0
        return max(1.2 if self.plot else 0.57, 0.195 * tiles)

    @property
    def tallest(self) -> float:
        """The most height in inches that suits it."""
        if self.pixels is not None and self.tile:
            return float(0.9 * self.pixels.shape[0] / self.tile)  # a tile is no poster
        return 2.4 if self.series or self.plot else math.inf


# Inches.
_GAP, _BAR, _TICKS = 0.04, 0.06, 0.17  # between things, the height of a colour bar, the room of ticks' numbers
_CURVES = ("#c62828", "#2e7d32", "#1565c0")
_INK, _MARK = "0.3", "#ff9800"


class Margins(NamedTuple):
    """The room around a panel's axes for its labels, in inches."""

    left: float
    above: float
    below: float


def left_margin(panel: Panel, size: Sizes) -> float:
    """The room in inches for the labels on the left."""
    if panel.series:
        return 0.58 if size.small > 6.5 else 0.5
    longest = max((width(label, size.caption) for label in _bar_labels(panel, size)), default=0.0)
    return longest + 2 * _GAP if panel.bars else 0.0


def margins(panel: Panel, caption: str, inches: float, size: Sizes) -> Margins:
    """The room around axes of this width, with a caption that is wrapped already."""
    left = left_margin(panel, size)
    if panel.series:
        above = height(caption, size.caption) + _legend(panel, inches, size)[1] + 2 * _GAP
        return Margins(left, above, _TICKS + height("x", size.caption) + _GAP)
    return Margins(left, 0.0, caption_depth(panel, size) + height(caption, size.caption))


def caption_depth(panel: Panel, size: Sizes) -> float:
    """From the lower end of the axes to the caption, in inches."""
    if panel.scale is not None:
        return 2 * _GAP + _BAR + height("0", size.small) + _GAP
    return _TICKS if panel.plot else 2 * _GAP


def caption_of(panel: Panel, axes_width: float, inches: float, size: Sizes) -> str:
    """The caption, wrapped to so many inches; it says what the colour bar measures where that has no room beside it."""
    scale, text = panel.scale, panel.caption
    if scale is not None and scale.measure not in (*scale.labels(axes_width, size.small), *text.split()):
        text = f"{text} ({scale.measure})" if text else scale.measure
    return wrapped(text, axes_width if panel.series else inches, size.caption)


def draw_panel(axes: Any, panel: Panel, caption: str, depth: float, size: Sizes) -> None:
    """Draw a panel into axes, with its caption so many inches below them."""
    if panel.series:
        _draw_series(axes, panel, caption, size)
        return
    if panel.is_empty:
        axes.set_axis_off()
        return
    if panel.bars:
        _draw_bars(axes, panel, size)
    elif panel.plot:
        _draw_curves(axes, panel, size)
    else:
        _draw_pixels(axes, panel, size)
    if panel.scale is not None:
        _draw_scale(axes, panel.scale, size)
    axes.set_xlabel(caption, fontsize=size.caption, color=_INK, ha="left", va="top")
    wide, tall = _inches_of(axes)
    axes.xaxis.set_label_coords(-left_margin(panel, size) / wide, -depth / tall)


def _inches_of(axes: Any) -> tuple[float, float]:
    place = axes.get_window_extent()
    return max(place.width, 1) / axes.figure.dpi, max(place.height, 1) / axes.figure.dpi


def _draw_pixels(axes: Any, panel: Panel, size: Sizes) -> None:
    from matplotlib.patches import Rectangle

    pixels = np.asarray(panel.pixels)
    low, high = (0, 255) if pixels.dtype == np.uint8 else (None, None)
    axes.imshow(pixels, cmap=panel.cmap, interpolation="nearest", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _draw_numbers(axes, panel, size)
    for (top, left, bottom, right), thick in zip(_frames(panel), (1.5, 0.7), strict=False):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec=_MARK, lw=thick))


def _frames(panel: Panel) -> list[Sequence[int]]:
    """The frames to draw: none, the box, or the box and the inner one."""
    inner = [] if panel.inner is None or panel.inner == panel.box else [panel.inner]
    return [] if panel.box is None else [panel.box, *inner]


def _draw_numbers(axes: Any, panel: Panel, size: Sizes) -> None:
    """The channels' numbers, where a tile is so wide that they hide little of it."""
    if not panel.numbers or panel.pixels is None:
        return
    from matplotlib.collections import PolyCollection

    pixel = _inches_of(axes)[0] / panel.pixels.shape[1]  # inches
    tall = size.small / 72 / pixel
    wide = [(width(str(number), size.small) + 0.02) / pixel for *_, number in panel.numbers]
    if panel.tile < 2.2 * max(wide):
        return
    corners = [(x - 0.5, y - 0.5) for x, y, _ in panel.numbers]
    backs = [[(x, y), (x + w, y), (x + w, y + tall), (x, y + tall)] for (x, y), w in zip(corners, wide, strict=True)]
    axes.add_collection(PolyCollection(backs, facecolor=(0, 0, 0, 0.55), linewidth=0), autolim=False)
    for (x, y), (*_, number) in zip(corners, panel.numbers, strict=True):
        axes.text(x + 0.01 / pixel, y + 0.45 * tall, str(number), fontsize=size.small, color="white", va="center")


def _draw_scale(axes: Any, scale: Scale, size: Sizes) -> None:
    """The colour bar below the axes, with its lowest and its highest value."""
    from matplotlib.image import BboxImage
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Bbox, TransformedBbox

    wide, tall = _inches_of(axes)
    place = Bbox([[0, -(2 * _GAP + _BAR) / tall], [1, -2 * _GAP / tall]])
    bar = BboxImage(TransformedBbox(place, axes.transAxes), interpolation="bilinear")  # axes would take far longer
    bar.set_data(scale.colours()[None])
    frame = Rectangle(place.p0, 1, _BAR / tall, fill=False, ec="0.6", lw=0.5, transform=axes.transAxes)
    for artist in (bar, frame):
        axes.add_artist(artist).set_clip_on(False)
    below = -(2 * _GAP + _BAR + 0.02) / tall
    for x, side, text in zip((0, 0.5, 1), ("left", "center", "right"), scale.labels(wide, size.small), strict=True):
        if text:
            style = {"fontsize": size.small, "color": _INK, "ha": side, "va": "top"}
            axes.text(x, below, plain(text, 60), transform=axes.transAxes, **style)


def _draw_curves(axes: Any, panel: Panel, size: Sizes) -> None:
    curves = np.asarray(panel.pixels)[0].T
    if panel.zero is not None:
        axes.axhline(panel.zero, color="0.7", lw=0.6)
    for curve, colour in zip(curves, _CURVES[: len(curves)] if len(curves) > 1 else ["0.2"], strict=True):
        axes.plot(curve, color=colour, lw=0.8)
    for _, left, _, right in _frames(panel):  # one over the other
        axes.axvspan(left - 0.5, right - 0.5, color=_MARK, alpha=0.25, lw=0)
    axes.set(yticks=[], xmargin=0.01)
    if curves.dtype == np.uint8:  # one scale for all panels, with the zero of signed values in the middle
        axes.set_ylim(0, 255)
    _few_ticks(axes, is_whole=True)
    axes.tick_params(labelsize=size.small, length=2, pad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _few_ticks(axes: Any, is_whole: bool) -> None:
    """As many ticks as have room; whole numbers where all values are."""
    from matplotlib.ticker import MaxNLocator

    wide, tall = _inches_of(axes)
    axes.xaxis.set_major_locator(MaxNLocator(min(9, max(2, int(wide / 0.35))), integer=is_whole))
    if axes.yaxis.get_ticklocs().size:
        axes.yaxis.set_major_locator(MaxNLocator(min(6, max(2, int(tall / 0.3)))))


def _draw_series(axes: Any, panel: Panel, caption: str, size: Sizes) -> None:
    names, room, columns = _legend(panel, _inches_of(axes)[0], size)
    for (name, x, y), label in zip(panel.series, names, strict=True):
        axes.plot(x, y, lw=1.2, ls="--" if name in panel.dashed else "-", label=label)
    if panel.marker is not None:
        axes.axvline(panel.marker, color=_MARK, lw=1)
    axes.set_ylim(*panel.ends)
    _few_ticks(axes, all(float(place).is_integer() for _, x, _ in panel.series for place in x))
    # Above the axes, where no curve is.
    style = {"fontsize": size.small, "frameon": False, "borderpad": 0.2, "handlelength": 1.6, "labelspacing": 0.25}
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "columnspacing": 1.2}
    axes.legend(ncol=columns, **style, **place)
    axes.set_title(caption, fontsize=size.caption, color=_INK, loc="left", pad=72 * room + 2)
    axes.set_xlabel(plain(panel.labels[0]), fontsize=size.caption, color=_INK, labelpad=1)
    axes.set_ylabel(plain(panel.labels[1]), fontsize=size.caption, color=_INK, labelpad=2)
    axes.tick_params(labelsize=size.small, length=2, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(panel: Panel, inches: float, size: Sizes) -> tuple[list[str], float, int]:
    """The curves' names, the height in inches of their legend, and its columns."""
    line_and_gaps = 0.045 * size.small  # inches
    names = [wrapped(name, inches - line_and_gaps, size.small, 40, 1) for name, *_ in panel.series]
    # Matplotlib hides labels that are empty or start with an underscore.
    names = [f" {name}" if name[:1] in ("", "_") else name for name in names]
    longest = max(width(name, size.small) for name in names) + line_and_gaps
    columns = min(len(names), max(1, int(inches // longest)))
    return names, math.ceil(len(names) / columns) * 1.45 * size.small / 72 + 0.03, columns


def _draw_bars(axes: Any, panel: Panel, size: Sizes) -> None:
    count, (wide, tall) = len(panel.bars), _inches_of(axes)
    thick = min(0.7, 0.2 * count / tall)  # of the distance between two bars
    axes.barh(range(count), [share for _, share in panel.bars], color="#1976d2", height=thick)
    # Numbers as positions, since two labels may be equal.
    axes.set_yticks(range(count), _bar_labels(panel, size))
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(labelsize=size.caption, length=0, pad=2)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    inside = 1 - (width("0.00", size.small) + 0.1) / wide
    for i, (_, share) in enumerate(panel.bars):
        gap = 0.03 / wide
        place, side, colour = (share - gap, "right", "white") if share > inside else (share + gap, "left", _INK)
        axes.text(place, i, f"{share:.2f}", va="center", ha=side, fontsize=size.small, color=colour)


def _bar_labels(panel: Panel, size: Sizes) -> list[str]:
    most = 1.25 if size.small > 6.5 else 0.6  # inches
    return [wrapped(label, most, size.caption, lines=1) for label, _ in panel.bars]
