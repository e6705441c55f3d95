"""Figures: what is drawn is what was given, and nothing of the person's is touched."""

from __future__ import annotations

import io
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.text import Text
from PIL import Image

from nbviz.export.figure import draw_alone, draw_figure, save_figure
from nbviz.export.panel import Panel, Scale
from nbviz.imaging.pixels import colour_table


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


# Figures that go into a paper unedited.


def test_text_in_a_file_is_text_and_no_setting_of_the_person_is_changed(tmp_path: Path) -> None:
    figure = draw_figure("a net", [[Panel(np.eye(3), "unit × 3")]])
    with mpl.rc_context({"pdf.fonttype": 3, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        save_figure(figure, tmp_path / "a.pdf")
        save_figure(figure, tmp_path / "a.svg")
        assert dict(mpl.rcParams) == before
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf
    assert "unit × 3</text>" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_persons_style_does_not_reach_the_figure() -> None:
    usual = draw_figure("a net", [[Panel(np.eye(3), "eye"), Panel(None, series=[("a", [0, 1], [1, 2])])]])
    own = {"axes.grid": True, "axes.facecolor": "black", "xtick.color": "white", "figure.autolayout": True}
    with mpl.rc_context(own):
        styled = draw_figure("a net", [[Panel(np.eye(3), "eye"), Panel(None, series=[("a", [0, 1], [1, 2])])]])
        pixels = [io.BytesIO(), io.BytesIO()]
        for figure, file in zip((usual, styled), pixels, strict=True):
            save_figure(figure, file, format="rgba")
    assert pixels[0].getvalue() == pixels[1].getvalue()


def test_a_figure_is_drawn_once() -> None:
    figure = draw_figure("a net", [[Panel(np.eye(3), "a caption of many words " * 5)] * 3])
    drawn = []
    for axes in figure.axes:
        axes.draw = lambda renderer, draw=axes.draw: (drawn.append(1), draw(renderer))
    save_figure(figure, io.BytesIO(), format="png")
    assert len(drawn) == 3


@pytest.mark.parametrize("signed", [False, True])
def test_a_bar_goes_from_the_lowest_to_the_highest_value(signed: bool) -> None:
    scale = Scale(-2.0 if signed else 0.5, 2.0, "weight", "magma", 2.0 if signed else None)
    (axes,) = draw_figure("a net", [[Panel(np.zeros((4, 4), np.uint8), "c", scale=scale)]]).axes
    assert [text.get_text() for text in axes.texts] == ["−2" if signed else "0.5", "weight", "2"]
    (bar,) = (child for child in axes.get_children() if isinstance(child, BboxImage))
    colours = np.asarray(bar.get_array())[0]
    file = io.BytesIO()
    save_figure(axes.get_figure(), file, format="png")
    place = bar.get_window_extent().extents.round().astype(int)
    drawn = np.asarray(Image.open(file).convert("RGB"))[::-1][(place[1] + place[3]) // 2, place[0] + 1 : place[2] - 1]
    assert abs(drawn[[3, -4]].astype(int) - colours[[0, -1]]).max() < 12  # it is seen, though outside of the axes
    if signed:  # black up to half of the way to the middle, as the picture with this contrast
        assert (colours[[0, 60]] == 0).all()
        assert (abs(colours[127:129].astype(int) - 128) <= 2).all()
    else:
        np.testing.assert_array_equal(colours, colour_table("magma"))


def test_what_is_measured_goes_into_the_caption_where_the_bar_is_short() -> None:
    panel = Panel(np.zeros((4, 4), np.uint8), "map", scale=Scale(0, 1.234, "activation"))
    wide, narrow = (draw_figure("", [[panel] * 5], width=width).axes[0] for width in (10, 3.4))
    assert (wide.get_xlabel(), narrow.get_xlabel().replace("\n", " ")) == ("map", "map (activation)")
    small = replace(panel, scale=Scale(-0.01234, 0.01234, contrast=1.0))
    axes = draw_figure("", [[small] * 5], width=3.4).axes[0]
    assert [text.get_text() for text in axes.texts] == ["±0.0123"]


def test_tiles_have_their_numbers_where_they_are_wide_enough() -> None:
    grid = np.zeros((80, 80, 3), np.uint8)
    panel = Panel(grid, numbers=[(10 * (i % 8), 10 * (i // 8), i) for i in range(64)], tile=10)
    assert [text.get_text() for text in draw_figure("", [[panel]]).axes[0].texts] == [str(i) for i in range(64)]
    assert not draw_figure("", [[panel] * 2], width=3.4).axes[0].texts


def sides(figure: Figure) -> list[tuple[float, float]]:
    """Width and height of all axes in inches."""
    wide, tall = figure.get_size_inches()
    return [(round(a.get_position().width * wide, 2), round(a.get_position().height * tall, 2)) for a in figure.axes]


def test_panels_of_a_row_are_equally_high_and_their_captions_in_line() -> None:
    panels = [Panel(np.zeros((4, w, 3), np.uint8), "c") for w in (2, 4, 6)]
    panels[1] = replace(panels[1], scale=Scale(0, 1))
    figure = draw_figure("", [panels])
    assert len({tall for _, tall in sides(figure)}) == 1
    figure.canvas.draw()
    assert len({round(axes.xaxis.label.get_window_extent().y1) for axes in figure.axes}) == 1


def test_a_row_that_would_be_too_small_to_read_goes_on_in_the_next() -> None:
    row = [Panel(np.eye(4))] * 8
    assert len({axes.get_position().y0 for axes in draw_figure("", [row]).axes}) == 1
    narrow = draw_figure("", [row], width=3.4)
    assert len({round(axes.get_position().y0, 3) for axes in narrow.axes}) == 2
    assert len(set(sides(narrow))) == 1


@pytest.mark.parametrize(("width", "most"), [(10, 11), (3.4, 9)])
def test_a_figure_is_at_most_a_page_high(width: float, most: float) -> None:
    figure = draw_figure("a net", [[Panel(np.eye(4), "c")] * 2] * 9, "note", width=width)
    assert figure.get_figheight() <= most + 0.01


def test_few_tiles_are_no_poster() -> None:
    figure = draw_figure("", [[Panel(np.zeros((20, 20, 3), np.uint8), tile=10)]])
    assert figure.get_figheight() < 2.2


def test_a_legend_stands_above_the_curves() -> None:
    axes = draw_figure(
        "a net", [[Panel(None, "title", series=[(f"curve {i}", [0, 1], [i, 9]) for i in range(6)])]]
    ).axes[0]
    axes.figure.canvas.draw()
    legend, title = axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()
    assert axes.get_window_extent().y1 <= legend.y0 + 1
    assert legend.y1 <= title.y0 + 1


@pytest.mark.parametrize("width", [3.4, 10])
def test_no_text_is_smaller_than_six_points(width: float) -> None:
    rows = [[Panel(np.eye(4), "c", scale=Scale(0, 1, "m"))], [Panel(None, bars=[("a", 0.5)])]]
    figure = draw_figure("a net", [*rows, [Panel(None, "t", series=[("a", [0], [1])], labels=("x", "y"))]], "n", width)
    found = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(found) > 8
    assert min(text.get_fontsize() for text in found) >= 6


def test_a_panel_is_drawn_into_a_persons_axes() -> None:
    own = Figure(figsize=(4, 3))
    axes = own.subplots(1, 2)
    panel = Panel(np.eye(4), "eye", scale=Scale(0, 1, "m"))
    assert draw_alone(axes[1], panel) is own
    assert axes[1].get_xlabel() == "eye"
    assert len(axes[1].images) == 1
    assert not axes[0].images
