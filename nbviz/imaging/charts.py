"""Small charts and pictures for HTML tables: bars, an interval, a row of pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from PIL import Image

from nbviz.imaging.encode import Array

#: For tables in a notebook's output: in the colours of JupyterLab's theme, or in those of the page elsewhere.
STYLE = """<style>
.nbviz-table.nbviz-table { line-height: 1.4; padding: 0 4px; overflow-x: auto; }
.nbviz-table.nbviz-table { color: var(--jp-content-font-color1, inherit); }
.nbviz-table.nbviz-table table { border-collapse: collapse; margin: 4px 0 10px; font-size: 12px; table-layout: auto; }
.nbviz-table.nbviz-table caption { text-align: left; font-weight: 600; white-space: nowrap; }
.nbviz-table.nbviz-table :is(th, td) { padding: 2px 14px 2px 0; text-align: left; vertical-align: middle; }
.nbviz-table.nbviz-table th { font-weight: 400; max-width: none; white-space: nowrap; }
.nbviz-table.nbviz-table thead th { font-weight: 600; white-space: normal; vertical-align: bottom; }
.nbviz-table.nbviz-table td { font-variant-numeric: tabular-nums; max-width: none; }
.nbviz-table.nbviz-table td.nbviz-note { min-width: 30ch; max-width: 60ch; }
.nbviz-table.nbviz-table td.nbviz-note { color: var(--jp-content-font-color2, inherit); }
.nbviz-table.nbviz-table :is(img, svg) { display: inline-block; max-width: none; vertical-align: middle; margin: 0; }
.nbviz-table.nbviz-table img { height: 40px; width: auto; image-rendering: pixelated; }
.nbviz-table.nbviz-table span { display: inline-block; white-space: nowrap; margin-right: 8px; }
.nbviz-table details { font-size: 12px; max-width: 90ch; }
.nbviz-table dt { font-weight: 600; }
.nbviz-table dd { margin: 0 0 4px 16px; }
</style>"""
_BLUE, _ORANGE, _GREY = "#1976d2", "#ef6c00", "#808080"
MOST_BARS = 240


def bars(
    values: Sequence[float],
    label: str,
    orange: Collection[int] = (),
    names: Sequence[str] | None = None,
    width: int = 240,
    height: int = 32,
) -> str:
    """Values as SVG bars in the given order, each with its number and value as a tooltip.

    Parameters
    ----------
    values
        Numbers of either sign; those that are not finite have no bar.
    label
        What the chart shows, for screen readers.
    orange
        The indices of bars to highlight.
    names
        What the tooltips call them; None takes their numbers.
    width, height
        In pixels. Of more than ``MOST_BARS`` values the first are drawn.

    Examples
    --------
    >>> bars([1, 2], "two").count("<rect")
    2
    """
    numbers = np.nan_to_num(np.asarray(values, dtype=float), nan=0.0, posinf=0.0, neginf=0.0)[:MOST_BARS]
    high, low = max(0.0, numbers.max(initial=0)), min(0.0, numbers.min(initial=0))
    step, scale = min(12.0, width / max(len(numbers), 1)), height / max(high - low, 1e-30)
    drawn, gap = [], 0.5 if step >= 1.5 else 0
    for i, value in enumerate(numbers.tolist()):
        tall = max(1.0, abs(value) * scale)
        top = min((high - max(value, 0)) * scale, height - tall)
        drawn.append(
            f'<rect x="{i * step:.1f}" y="{top:.1f}" width="{step - gap:.1f}" height="{tall:.1f}" '
            f'fill="{_ORANGE if i in orange else _BLUE}">'
            f"<title>{escape(names[i]) if names else i}: {values[i]:.4g}</title></rect>"
        )
    return _svg(width, height, label, drawn)


def interval(value: float, low: float, high: float, width: int = 240, height: int = 16) -> str:
    """A fraction from 0 to 1 as an SVG bar, with its confidence interval as a line.

    Examples
    --------
    >>> interval(0.9, 0.85, 0.94).count("<line")
    1
    """
    middle = height / 2
    drawn = [
        f'<rect width="{width}" height="{height}" fill="{_GREY}" fill-opacity="0.25"/>',
        f'<rect width="{value * width:.1f}" height="{height}" fill="{_BLUE}"/>',
        f'<line x1="{low * width:.1f}" x2="{high * width:.1f}" y1="{middle}" y2="{middle}" stroke="{_ORANGE}" '
        'stroke-width="4"/>',
    ]
    return _svg(width, height, f"{percent(value)}, from {percent(low)} to {percent(high)}", drawn)


def percent(fraction: float) -> str:
    """A fraction in percent.

    Examples
    --------
    >>> percent(0.5)
    '50.0 %'
    """
    return f"{100 * fraction:.1f} %"


def _svg(width: int, height: int, label: str, drawn: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def picture_row(pictures: Sequence[Array], label: str, side: int = 40, gap: int = 2) -> str:
    """Pictures beside each other, of one height, as an image for HTML.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3), at least one.
    label
        What they show, for screen readers.
    side
        The height in pixels at which they are displayed, and an eighth of the largest width. The image has twice that,
        for sharp displays.
    gap
        Between two of them, in pixels.

    Examples
    --------
    >>> picture_row([np.zeros((4, 4, 3), np.uint8)], "black").startswith('<img alt="black" src="data:image/png;base64,')
    True
    """
    scaled = []
    for picture in pictures:
        height, width = picture.shape[:2]
        size = min(16 * side, max(1, round(width * 2 * side / height))), 2 * side  # one row of pixels is squeezed
        method = Image.Resampling.NEAREST if height < 2 * side else Image.Resampling.BOX
        scaled.append(Image.fromarray(picture).resize(size, method))
    row = Image.new("RGBA", (sum(p.width + 2 * gap for p in scaled) - 2 * gap, 2 * side))
    left = 0
    for picture_at_size in scaled:
        row.paste(picture_at_size, (left, 0))
        left += picture_at_size.width + 2 * gap
    file = io.BytesIO()
    row.save(file, "PNG")
    return f'<img alt="{escape(label)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
