"""A very large picture takes little more memory than the model's own pass and what is shown of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nbviz.imaging.load import Pictures
from nbviz.imaging.pixels import shrink
from nbviz.imaging.preprocess import Preprocess, find_preprocess

SCRIPT = """
import resource, torch, nbviz
from torch import nn
from nbviz.widgets.session import Session, thumbs
torch.set_num_threads(1)
layers = nn.Conv2d(1, 2, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
net = nn.Sequential(*layers).eval()
def used(x):
    session = Session(net, x)
    thumbs(session), session.shown(0), session.look(0, "1", "mean", 64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = used(torch.rand(1, 1, 64, 64))
x = torch.rand(1, 1, 5000, 5000)
print((used(x) - before) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another elsewhere")
def test_a_large_picture_is_not_copied_over_and_over() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    call = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True)
    # The picture itself, the model's input, what its layers keep for a backward pass, and three bytes for each pixel.
    assert float(done.stdout) < 5.5


@pytest.mark.parametrize("preprocess", [Preprocess(lambda x: x, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)), None])
def test_a_picture_shown_in_parts_is_that_shown_at_once(
    preprocess: Preprocess | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbviz.imaging import load, pixels

    preprocess = preprocess or find_preprocess(torch.nn.Conv2d(3, 2, 1))
    for shape in ((2, 3, 37, 41), (1, 1, 37, 41), (2, 2, 50), (1, 3, 9, 11, 13), (1, 5, 37, 41)):
        made = Pictures(torch.randn(shape), preprocess, ("",))
        whole, small = made.display(), shrink(made.display(), 5)
        monkeypatch.setattr(load, "_AT_ONCE", 500)
        monkeypatch.setattr(pixels, "_AT_ONCE", 500)
        assert torch.equal(made.display(), whole)
        assert torch.equal(shrink(made.display(), 5), small)
        monkeypatch.undo()
