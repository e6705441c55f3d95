"""Figures: what is drawn is what was given, and nothing of the person's is touched."""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image

from nbviz.export.figure import Panel, draw_figure


def test_panels_show_their_pixels_captions_and_frames() -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    figure = draw_figure("$5 for a net", [[Panel(red, "costs $5", box=(1, 1, 3, 5)), Panel(np.eye(3), cmap="gray")]])
    first, second = figure.axes
    assert first.get_xlabel() == r"costs \$5"
    np.testing.assert_array_equal(first.images[0].get_array(), red)
    (frame,) = first.patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (0.5, 0.5, 4, 2)
    assert second.images[0].get_cmap().name == "gray"
    png = io.BytesIO()
    figure.savefig(png, format="png")
    pixels = np.asarray(Image.open(png).convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).sum() > 1000


def test_bars_carry_their_labels() -> None:
    figure = draw_figure("a net", [[Panel(None, bars=[("tabby", 0.7), ("a $ sign", 0.2)])]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["tabby", r"a \$ sign"]
    assert [round(bar.get_width(), 3) for bar in figure.axes[0].patches] == [0.7, 0.2]


def test_pyplot_is_not_needed() -> None:
    before = "matplotlib.pyplot" in sys.modules
    draw_figure("a net", [[Panel(np.eye(3))]])
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_what_must_be_read_stands_below_whole_line_by_line() -> None:
    caution = " ".join(["word"] * 60)
    figure = draw_figure("a net", [[Panel(np.eye(3))]], f"$1 of it\n{caution}")
    figure.canvas.draw()
    (text,) = (t for t in figure.texts if "word" in t.get_text())
    assert text.get_text().startswith(r"\$1 of it" + "\nword")
    assert text.get_text().split("\n", 1)[1].replace("\n", " ") == caution
    assert text.get_window_extent().x1 <= figure.bbox.width
    assert draw_figure("a net", [[Panel(np.eye(3))]]).get_size_inches()[1] < figure.get_size_inches()[1]


def test_zero_is_drawn_under_signed_curves() -> None:
    curves = np.zeros((1, 9, 2), np.uint8)
    figure = draw_figure("a net", [[Panel(curves, plot=True), Panel(curves, plot=True, zero=128)]])
    assert [len(axes.lines) for axes in figure.axes] == [2, 3]
