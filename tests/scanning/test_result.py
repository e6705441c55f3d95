"""What a scan's result shows: the accuracy with its interval, bars, the strongest patches, what each value is."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import nbviz
from nbviz.results import ScanResult
from nbviz.scanning.statistics import Ablation, Accuracy, Correlation, Histogram, Moments, Sparsity, TopK
from tests.small import Small, labelled

LAYER = "features.8"


@pytest.fixture(scope="module")
def found() -> ScanResult:
    images, labels = nbviz.bundled.fashion_test()
    statistics = {
        "top": TopK(LAYER, 3),
        "answers": TopK("classifier", 3),
        "right": Accuracy(),
        "moments": Moments(LAYER),
        "sparsity": Sparsity(LAYER),
        "histogram": Histogram(LAYER),
        "correlation": Correlation(LAYER),
        "off": Ablation(LAYER),
    }
    dataset = TensorDataset(images[:32, None], labels[:32])
    return nbviz.scan(nbviz.bundled.load("fashion"), dataset, statistics, progress=False)


def table(found: ScanResult, name: str) -> str:
    """The table of one statistic."""
    (html,) = re.findall(rf"<table><caption>{name}\b.*?</table>", found._repr_html_(), re.DOTALL)
    return html  # type: ignore[no-any-return]


def test_the_accuracy_has_its_interval_and_the_classes_their_names(found: ScanResult) -> None:
    html, accuracy = table(found, "right"), found["right"]
    low, high = accuracy.interval
    assert 0 < low < accuracy.accuracy < high < 1
    assert f"{100 * accuracy.accuracy:.1f} %, 95 % interval from {100 * low:.1f} % to {100 * high:.1f} %" in html
    wrong = accuracy.counts - accuracy.counts.diagonal().diag()
    true, predicted = divmod(int(wrong.argmax()), 10)
    names = nbviz.load(nbviz.bundled.load("fashion"), torch.zeros(1, 1, 28, 28)).preprocess.labels
    assert names is not None
    assert f"{names[true]} taken for {names[predicted]}: {int(wrong.max())}" in html


def test_wilsons_interval_holds_its_promise() -> None:
    """Of many draws, the true proportion lies within it in about 95 %; at 0 and 1 it stays within its bounds."""
    from nbviz.scanning.answers import wilson

    torch.manual_seed(0)
    draws = (torch.rand(4000, 50) < 0.8).double().mean(1)
    inside = [low <= 0.8 <= high for low, high in (wilson(float(one), 50) for one in draws)]
    assert 0.93 < sum(inside) / len(inside) < 0.97
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(1, 10)[1] == pytest.approx(1, abs=1e-12)


def test_the_strongest_patches_are_shown(found: ScanResult) -> None:
    assert "top · features.8" in table(found, "top")
    assert table(found, "top").count("<img") == table(found, "answers").count("<img") == 6
    assert "and 58 more channels" in table(found, "top")


def test_values_have_bars_and_meanings(found: ScanResult) -> None:
    assert table(found, "moments").count("<rect") == 5 * 64
    assert "Mean, standard deviation, and the smallest and largest finite value" in table(found, "moments")
    assert "0 of 64" in table(found, "sparsity")
    assert "most alike: " in table(found, "correlation")
    assert "tensor" not in found._repr_html_()
    ranking = ", ".join(map(str, found["off"].ranking[:12].tolist()))
    assert f"{ranking}, …" in table(found, "off")


def test_a_result_is_pickled_without_its_pictures(found: ScanResult) -> None:
    again = pickle.loads(pickle.dumps(found))
    assert again["right"].accuracy == found["right"].accuracy
    assert "<img" not in again._repr_html_()
    assert "4." in table(again, "top")


class Odd:
    """A statistic of one's own may have any result."""


@pytest.mark.parametrize("result", [None, 3, Odd(), {"a": 0.5}, torch.zeros(0), torch.zeros(3, 4, 5), torch.tensor(2)])
def test_any_result_is_shown(result: Any) -> None:
    html = ScanResult({"<b>": result}, 1)._repr_html_()
    assert "&lt;b&gt;" in html


def test_what_cannot_be_read_again_has_no_patches() -> None:
    net, data = Small(10), labelled(12, 10)
    stream = nbviz.scan(net, iter(data), {"top": TopK("0"), "right": Accuracy()}, progress=False)
    assert "<img" not in stream._repr_html_()
    signals = nbviz.scan(nn.Sequential(nn.Conv1d(1, 2, 3)), torch.rand(4, 1, 9), {"top": TopK("0")}, progress=False)
    assert "<img" not in signals._repr_html_()


def test_a_dead_channel_has_no_strongest_patches() -> None:
    model = Small().eval()
    with torch.no_grad():
        model[4].weight[2], model[4].bias[2] = 0, -1
    found = nbviz.scan(model, labelled(), {"top": TopK("5", 2)}, progress=False)._repr_html_()
    rows = [row for row in found.split("<tr>") if "channel " in row]
    assert "0 in every picture: it answers to nothing" in rows[2]
    assert "<img" not in rows[2]
    assert "<img" in found
