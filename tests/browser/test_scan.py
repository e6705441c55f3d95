"""A scan in a real JupyterLab: its bar moves, and what it has found so far grows below it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.browser.lab import Notebook

SCAN = """
import nbviz, time, torch

class Slow(torch.utils.data.TensorDataset):
    def __getitem__(self, i):
        time.sleep(0.012)
        return super().__getitem__(i)

images, labels = (whole[:500] for whole in nbviz.bundled.fashion_test())
statistics = {"strongest": nbviz.statistics.TopK("features.8"), "accuracy": nbviz.statistics.Accuracy(),
              "silent": nbviz.statistics.Sparsity("features.8")}
found = nbviz.scan(nbviz.bundled.load("fashion"), Slow(images[:, None], labels), statistics, watch=nbviz.ScanView())
"""


@pytest.mark.parametrize("subshells", [True], indirect=True)
def test_the_bar_moves_and_the_results_grow(notebook: Callable[..., Notebook]) -> None:
    book = notebook([SCAN, "print(found.pictures, found.complete, found['accuracy'].accuracy)"], run=False)
    book.run_all(wait=False)
    bar, view = book.cell(0).locator(".jupyter-widgets.widget-hbox"), book.cell(0).locator(".nbviz-table")
    view.wait_for(timeout=60_000)
    seen: list[tuple[int, float, int]] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and (not seen or seen[-1][0] < 500):
        done = re.search(r"(\d+)/500\s\[\S+<\S+,\s+[\d.]+", bar.inner_text())
        if done:
            width = bar.locator(".progress-bar").evaluate("bar => bar.getBoundingClientRect().width")
            seen.append((int(done[1]), width, int(view.get_attribute("data-pictures") or 0)))
        if len(seen) == 3:
            book.screenshot("scan-under-way.png")
        time.sleep(0.3)
    counts, widths, found = (list(column) for column in zip(*seen, strict=True))
    for growing in (counts, widths, found):
        assert growing == sorted(growing)
        assert len(set(growing)) >= 5
    book.wait_idle()
    assert view.get_attribute("data-pictures") == "500"
    assert "500 True 0.9" in book.cell_output_text(1)
    book.screenshot("scan-done.png")
    assert book.console_errors == []
