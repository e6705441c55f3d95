"""Bars stand where their values are; rows of pictures have the pictures' pixels."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from nbviz.imaging.charts import MOST_BARS, bars, interval, percent, picture_row


def rectangles(chart: str) -> list[dict[str, float]]:
    found = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', chart)
    return [dict(zip(("x", "y", "width", "height"), map(float, row), strict=True)) for row in found]


def test_bars_reach_from_zero_to_their_values() -> None:
    high, low, none = rectangles(bars([3, -1, float("nan")], "three", height=40))
    assert (high["y"], high["height"]) == (0, 30)
    assert (low["y"], low["height"]) == (30, 10)
    assert none["height"] == 1
    assert high["x"] + high["width"] < low["x"]


def test_bars_stay_within_the_chart_however_many() -> None:
    for count in (1, 7, 100, MOST_BARS, 3000):
        found = rectangles(bars([1.0] * count, "many"))
        assert len(found) == min(count, MOST_BARS)
        assert max(one["x"] + one["width"] for one in found) <= 240.1
    assert rectangles(bars([], "none")) == []


def test_bars_are_named_and_text_is_escaped() -> None:
    chart = bars([1, 2], "<b>", orange={1}, names=["<i>", "b"])
    assert "<b>" not in chart
    assert "<i>" not in chart
    assert [colour == "#ef6c00" for colour in re.findall('fill="(.*?)"', chart)] == [False, True]


def test_an_interval_is_a_line_between_its_ends() -> None:
    (ends,) = re.findall('x1="(.*?)" x2="(.*?)"', interval(0.5, 0.25, 0.75, width=200))
    assert ends == ("50.0", "150.0")
    assert "50.0 %, from 25.0 % to 75.0 %" in interval(0.5, 0.25, 0.75)
    assert percent(1 / 3) == "33.3 %"


def pixels(html: str) -> Any:
    (data,) = re.findall('base64,(.*?)"', html)
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_row_has_each_picture_at_one_height_with_nothing_between() -> None:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    found = pixels(picture_row([first, second[:, :2]], "a", side=4, gap=1))
    assert found.shape == (8, 8 + 2 + 4, 4)
    np.testing.assert_array_equal(found[::2, 0:8:2, :3], first)
    np.testing.assert_array_equal(found[::2, 10::2, :3], second[:, :2])
    assert not found[:, 8:10, 3].any()


def test_large_pictures_are_averaged() -> None:
    picture = np.zeros((160, 160, 3), np.uint8)
    picture[::2] = 200
    assert (pixels(picture_row([picture], "a"))[..., :3] == 100).all()
