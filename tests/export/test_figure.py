"""Figures: what is drawn is what was given, and nothing of the person's is touched."""

from __future__ import annotations

import io
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
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


def test_curves_are_drawn_as_they_were_given() -> None:
    nan = float("nan")
    series = [("a $ sign", [0, 1, 2], [3.0, nan, 1.0]), ("random", [0.0, 1.0], [2.0, 2.0])]
    panel = Panel(None, "$5", series=series, labels=("step$", "loss"), dashed=["random"], ends=(0, 4), marker=1.5)
    axes = draw_figure("a net", [[panel]]).axes[0]
    first, second, marker = axes.lines
    np.testing.assert_array_equal(first.get_ydata(), [3.0, nan, 1.0])
    np.testing.assert_array_equal(second.get_xdata(), [0.0, 1.0])
    assert [line.get_linestyle() for line in (first, second)] == ["-", "--"]
    assert list(marker.get_xdata()) == [1.5, 1.5]
    assert axes.get_ylim() == (0, 4)
    assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")] == [r"step\$", "loss", r"\$5"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [r"a \$ sign", "random"]


@pytest.mark.parametrize("ends", [(None, None), (0, None), (None, 9)])
def test_an_end_that_is_not_given_is_that_of_the_curves(ends: tuple[int | None, int | None]) -> None:
    axes = draw_figure("a net", [[Panel(None, series=[("a", [0, 1], [2, 6])], ends=ends)]]).axes[0]
    low, high = axes.get_ylim()
    assert (low == 0) == (ends[0] == 0)
    assert (high == 9) == (ends[1] == 9)
    assert low <= 2
    assert high >= 6


@pytest.mark.parametrize("name", ["_conv_stem", "", "__", "x" * 500, "\ud83d", "$\\frac{"])
def test_every_curve_has_its_name_beside_it(name: str) -> None:
    """Matplotlib would leave out what begins with an underscore, as EfficientNet's layers do, and warn of it."""
    figure = draw_figure("a net", [[Panel(None, series=[(name, [0], [1]), (name, [0], [2])])]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert len(figure.axes[0].get_legend().get_texts()) == 2


def test_whole_numbers_have_whole_ticks() -> None:
    def ticks(x: list[float]) -> list[float]:
        axes = draw_figure("a net", [[Panel(None, series=[("a", x, x)])]]).axes[0]
        return [float(tick) for tick in axes.get_xticks() if min(x) <= tick <= max(x)]

    assert ticks([0, 1]) == [0, 1]
    assert not all(tick.is_integer() for tick in ticks([0, 0.5, 1]))


def test_curves_alone_do_not_fill_the_page() -> None:
    wide = draw_figure("a net", [[Panel(None, series=[("a", [0], [1])])]]).get_size_inches()[1]
    two = draw_figure("a net", [[Panel(None, series=[("a", [0], [1])])] * 2]).get_size_inches()[1]
    assert two <= wide < 4


def test_a_long_caption_goes_on_in_the_next_line() -> None:
    panels = [Panel(np.eye(4), f"checkpoint {i} of a training that took a while") for i in range(8)]
    figure = draw_figure("heading " * 40, [panels])
    figure.canvas.draw()
    places = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    assert all("\n" in axes.get_xlabel() for axes in figure.axes)
    assert all(a.x1 < b.x0 for a, b in pairwise(places))
    assert min(place.y0 for place in places) >= 0
    (heading,) = figure.texts
    assert heading.get_text().count("\n") == 1
    assert heading.get_window_extent().x1 <= figure.bbox.width


def test_an_empty_panel_keeps_its_place() -> None:
    figure = draw_figure("a net", [[Panel(np.eye(4)), Panel(None)], [Panel(np.eye(4)), Panel(np.eye(4))]])
    first, empty, below, _ = figure.axes
    assert not empty.axison
    assert first.get_position().width == pytest.approx(below.get_position().width, rel=0.05)
    assert draw_figure("a net", []).axes[0].axison is False  # nothing at all


def test_bytes_are_on_a_scale_already() -> None:
    steps = np.array([[0, 10]], np.uint8)
    byte, number = draw_figure("a net", [[Panel(steps), Panel(steps.astype(float))]]).axes
    assert byte.images[0].get_clim() == (0, 255)
    assert number.images[0].get_clim() == (0, 10)


def test_bars_of_one_name_stand_apart_and_long_names_are_cut() -> None:
    bars = [("crane", 0.9), ("crane", 0.05), ("x" * 300, 0.05)]
    figure = draw_figure("a net", [[Panel(None, "now", bars=bars)] * 3])
    figure.canvas.draw()
    for axes in figure.axes:
        assert len({bar.get_y() for bar in axes.patches}) == 3
        assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["crane", "crane"]
        assert axes.get_xlabel() == "now"
        assert axes.get_position().width > 0.1
        assert [text.get_text() for text in axes.texts] == ["0.90", "0.05", "0.05"]
