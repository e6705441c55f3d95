"""The strip's pictures in small: made and sent as they come into view."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nbviz
from nbviz.imaging.encode import decode
from nbviz.widgets.thumbs import Thumbs

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def filled(strip: object) -> list[int]:
    return [i for i in range(100) if getattr(strip, f"block_{i}", None)]


@pytest.fixture
def view() -> nbviz.FeatureMaps:
    return nbviz.FeatureMaps(NET, torch.rand(40, 3, 20, 12), layer="1")


def test_the_first_block_goes_at_once_and_each_other_when_asked_for(view: nbviz.FeatureMaps) -> None:
    strip = view.strip
    assert len(strip.names) == 40
    assert filled(strip) == [0]
    strip.set_state({"wanted": [2]})
    assert filled(strip) == [0, 2]
    assert strip.block_2["shape"] == [8, 20, 12, 3]
    shown = view.session.display.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(decode(strip.block_0), shown[:16])
    np.testing.assert_array_equal(decode(strip.block_2), shown[32:])


@pytest.mark.parametrize("wanted", [[-1], [3], [10**9], ["0"], [None], ["wanted"]])
def test_what_there_is_none_of_is_not_sent(view: nbviz.FeatureMaps, wanted: list[object]) -> None:
    view.strip.set_state({"wanted": wanted})
    assert filled(view.strip) == [0]
    assert view.header.state == "ready"


def test_other_bands_are_sent_of_what_the_page_has() -> None:
    net = nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU())
    view = nbviz.FeatureMaps(net, torch.rand(40, 5, 20, 12), layer="1")
    view.strip.set_state({"wanted": [1]})
    view.bands = (4,)
    assert filled(view.strip) == [0, 1]
    np.testing.assert_array_equal(decode(view.strip.block_1)[0], view.session.display[16].permute(1, 2, 0).numpy())
    view.strip.set_state({"wanted": [1, 2]})
    np.testing.assert_array_equal(decode(view.strip.block_2)[0], view.session.display[32].permute(1, 2, 0).numpy())


def test_photographs_are_compressed_and_look_the_same() -> None:
    pictures = [np.asarray(picture.resize((256, 200))) for picture in nbviz.bundled.pictures()]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    view = nbviz.FeatureMaps(NET, batch, layer="1")
    jpegs = view.strip.block_0["jpegs"]
    raw = Thumbs(view.session).pixels(slice(0, 16))
    assert sum(map(len, jpegs)) < raw.nbytes / 4
    for one, pixels in zip(jpegs, raw, strict=True):
        with Image.open(io.BytesIO(one)) as image:
            assert np.abs(np.asarray(image).astype(float) - pixels).mean() < 6
