"""Two models: whether one is better, against counts by hand and SciPy, and what their layers share, against loops."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision import transforms

import nbviz
from nbviz.errors import InterruptedWarning, PictureError
from nbviz.methods.cka import CKA
from nbviz.methods.paired import PairedAccuracyResult
from tests.methods.test_ablation import Interrupting, Stream, changed
from tests.rounds import long
from tests.scanning.test_statistics import same


@cache
def pictures() -> tuple[Tensor, Tensor]:
    images, labels = nbviz.bundled.fashion_test()
    return images[:, None] / 255, labels


def some(start: int, stop: int) -> TensorDataset:
    return TensorDataset(*(t[start:stop] for t in pictures()))


@cache
def pair() -> tuple[nn.Module, nn.Module]:
    """The bundled network, and one that knows less: most of its last weights are lost."""
    good, bad = nbviz.bundled.load("fashion"), nbviz.bundled.load("fashion")
    with torch.no_grad():
        bad.classifier.weight[:, 16:] = 0
    return bad, good


def untrained(seed: int, block: bool = True) -> nn.Sequential:
    """A small network, with a block or without."""
    torch.manual_seed(seed)
    middle = [nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()] if block else []
    net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return net.append(nn.Linear(64 if block else 32, 10)).eval()


def trained(seed: int, block: bool = True) -> nn.Module:
    """On 700 pictures."""
    generator = torch.Generator().manual_seed(seed)
    net = untrained(seed, block)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    x, labels = (t[:700] for t in pictures())
    for _ in range(12):
        for part in torch.randperm(700, generator=generator).split(50):
            optimiser.zero_grad()
            F.cross_entropy(net(x[part]), labels[part]).backward()
            optimiser.step()
    return net.eval()


def right(net: nn.Module, dataset: TensorDataset) -> Any:
    x, labels = dataset.tensors
    with torch.no_grad():
        return (net(x).argmax(1) == labels).numpy()


# Which is better


def test_the_better_of_two_is_named_with_an_interval(snapshot: Any) -> None:
    (a, b), dataset = pair(), some(0, 100)
    with snapshot(a), snapshot(b):
        found = nbviz.compare(a, b, dataset, ["features.8"], progress=False)
        back = nbviz.compare(b, a, dataset, ["features.8"], progress=False)
    assert found.accuracy is not None
    assert back.accuracy is not None
    of_a, of_b = right(a, dataset), right(b, dataset)
    counts = (of_a & of_b).sum(), (of_a & ~of_b).sum(), (~of_a & of_b).sum(), (~of_a & ~of_b).sum()
    one = found.accuracy
    assert (one.both, one.only_a, one.only_b, one.neither) == counts
    assert (one.accuracy_a, one.accuracy_b) == (of_a.mean(), of_b.mean())
    assert one.difference == pytest.approx(of_b.mean() - of_a.mean())
    with torch.no_grad():
        named = [net(dataset.tensors[0]).argmax(1) for net in (a, b)]
    assert found.agree == one.agree == float((named[0] == named[1]).double().mean())
    low, high = one.interval
    assert 0 < low < one.difference < high
    assert found.verdict.startswith(f"b is better on 100 pictures: a {100 * of_a.mean():.1f} %, b ")
    assert f"(95 %: {100 * low:+.1f} to {100 * high:+.1f}; McNemar's p = " in found.verdict
    assert back.verdict.startswith("a is better on 100 pictures")
    assert back.accuracy.interval == pytest.approx((-high, -low))
    assert back.accuracy.p_value == one.p_value
    assert repr(found).startswith(found.verdict)


def test_the_same_model_twice_shows_no_difference(snapshot: Any) -> None:
    net = pair()[1]
    with snapshot(net):
        found = nbviz.compare(net, net, some(0, 40), progress=False)
    assert found.verdict.startswith("no difference is shown on 40 pictures")
    assert found.accuracy is not None
    assert (found.agree, found.accuracy.p_value, found.accuracy.difference) == (1, 1, 0)
    assert found.cka is not None
    torch.testing.assert_close(found.cka.diagonal(), torch.ones(len(found.layers_a), dtype=torch.float64))


@pytest.mark.parametrize(
    ("only_a", "only_b", "finding"),
    [(10, 12, "no difference is shown"), (3, 11, "not conclusive"), (4, 20, "b is better"), (20, 4, "a is better")],
)
def test_the_verdict_is_one_that_both_tests_bear(only_a: int, only_b: int, finding: str) -> None:
    found = PairedAccuracyResult(150, only_a, only_b, 30, 0.9)
    low, high = found.interval
    assert (found.p_value < 0.05) == (finding[1:] == " is better"), found.p_value
    assert (low > 0 or high < 0) == (finding != "no difference is shown")
    assert found.verdict.startswith(f"{finding} on ")


def test_two_seeds_of_one_training_show_no_difference() -> None:
    found = nbviz.compare(trained(1), trained(101), some(700, 1000), ["4"], progress=False)
    assert found.verdict.startswith("no difference is shown on 300 pictures")
    assert found.agree < 0.9  # though they are two


@long
def test_a_block_that_helps_is_said_to_help() -> None:
    """Trained the same; that it helps is known from three other seeds, too."""
    test = some(700, 1000)
    gains = [right(trained(seed), test).mean() - right(trained(seed, block=False), test).mean() for seed in (1, 3, 4)]
    assert min(gains) > 0.03
    found = nbviz.compare(trained(2, block=False), trained(2), test, ["0", "1"], progress=False)
    assert found.verdict.startswith("b is better on 300 pictures")
    assert found.accuracy is not None
    assert found.accuracy.p_value < 0.01


def test_where_there_are_no_labels_only_agreement_is_told() -> None:
    a, b = pair()
    x, labels = (t[:60] for t in pictures())
    found = nbviz.compare(a, b, x, ["features.8"], progress=False)
    assert found.accuracy is None
    with torch.no_grad():
        agree = float((a(x).argmax(1) == b(x).argmax(1)).double().mean())
    assert found.agree == agree
    said = f"the pictures have no labels; both predict the same class for {100 * agree:.1f} % of them"
    assert found.verdict == said
    mixed = [(one, int(label) if i < 20 else None) for i, (one, label) in enumerate(zip(x, labels, strict=True))]
    part = nbviz.compare(a, b, mixed, ["features.8"], progress=False)
    assert part.accuracy is not None
    assert (part.accuracy.pictures, part.pictures, part.agree) == (20, 60, agree)


# The figures


@pytest.mark.parametrize("only_a", [0, 1, 4, 17, 400])
@pytest.mark.parametrize("only_b", [0, 1, 5, 17, 381, 3000])
def test_mcnemars_p_is_scipys_of_a_fair_coin(only_a: int, only_b: int) -> None:
    from scipy.stats import binomtest

    n = only_a + only_b
    expected = binomtest(only_a, n).pvalue if n else 1.0
    assert PairedAccuracyResult(90, only_a, only_b, 7, 0.5).p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, table III
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake 2017, chapter 8
    ],
)
def test_the_interval_is_that_of_published_examples(counts: tuple[int, ...], low: float, high: float) -> None:
    both, only_a, only_b, neither = counts
    digits = len(str(high)) - 2 - (high < 0)
    assert [round(end, digits) for end in PairedAccuracyResult(both, only_b, only_a, neither, 0).interval] == [
        low,
        high,
    ]
    mirrored = PairedAccuracyResult(both, only_a, only_b, neither, 0).interval
    assert [round(end, digits) for end in mirrored] == [-high, -low]


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Method 10, from SciPy's intervals by Wilson."""
    from scipy.stats import binomtest

    n, a, b = both + only_a + only_b + neither, both + only_a, both + only_b
    wilson = [binomtest(k, n).proportion_ci(method="wilson") for k in (b, a)]
    p = [k / n for k in (b, a)]
    margins = a * b * (n - a) * (n - b)
    cross = both * neither - only_a * only_b
    corrected = cross if cross <= 0 else cross - n / 2 if cross > n / 2 else 0
    phi = corrected / math.sqrt(margins) if margins else 0
    steps = [(p[0] - wilson[0].low, wilson[1].high - p[1]), (wilson[0].high - p[0], p[1] - wilson[1].low)]
    down, up = (math.sqrt(max(s * s - 2 * phi * s * t + t * t, 0)) for s, t in steps)
    return p[0] - p[1] - down, p[0] - p[1] + up


@pytest.mark.parametrize(
    "counts",
    [(36, 12, 2, 0), (50, 3, 9, 38), (0, 0, 5, 0), (100, 0, 0, 0), (1, 30, 30, 2), (0, 9, 0, 4), (9000, 1, 2, 3)],
)
def test_the_interval_is_newcombes_from_scipys_wilson_intervals(counts: tuple[int, ...]) -> None:
    found = PairedAccuracyResult(*counts, 0.5)
    assert found.interval == pytest.approx(newcombe(*counts), abs=1e-9)
    assert -1 <= found.interval[0] <= found.difference <= found.interval[1] <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    shares, n = [0.7, 0.1, 0.15, 0.05], 80
    truth = shares[2] - shares[1]
    draws = generator.multinomial(n, shares, 2000)
    intervals = [PairedAccuracyResult(*map(int, draw), 0.0).interval for draw in draws]
    assert 0.93 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


# What their layers share


def gram(activation: Tensor) -> Any:
    flat = activation.flatten(1).double().numpy()
    return np.array([[float(np.dot(one, other)) for other in flat] for one in flat])


def hsic(k: Any, m: Any) -> float:
    """The unbiased estimate as Nguyen et al. write it, equation 3, by loops."""
    n = len(k)
    k, m = (np.array([[0 if i == j else one[i, j] for j in range(n)] for i in range(n)]) for one in (k, m))
    trace = sum(k[i, j] * m[j, i] for i in range(n) for j in range(n))
    sums = sum(k[i, j] for i in range(n) for j in range(n)) * sum(m[i, j] for i in range(n) for j in range(n))
    chain = sum(k[i, j] * m[j, q] for i in range(n) for j in range(n) for q in range(n))
    return float((trace + sums / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3)))


def hsic_by_quadruples(k: Any, m: Any) -> float:
    """What it estimates without bias: a mean over all four different pictures (Song et al. 2012, theorem 2)."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def activations(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), changed(net, layer, lambda maps: seen.append(maps.clone()) or maps):
        net(x)
    return seen[0]


def expected_cka(a: list[Tensor], b: list[Tensor], how: Callable[[Any, Any], float] = hsic) -> float:
    """Of batches: the sum of their cross terms over the roots of the sums of their own."""
    cross, own_a, own_b = (
        sum(how(gram(one), gram(other)) for one, other in zip(first, second, strict=True))
        for first, second in ((a, b), (a, a), (b, b))
    )
    return cross / math.sqrt(own_a * own_b)


def test_cka_of_one_batch_is_the_formula_by_loops() -> None:
    a, b = untrained(1), untrained(101)
    x = pictures()[0][700:720]
    found = nbviz.compare(a, b, x, ["0", "1", "3"], progress=False)
    assert found.cka is not None
    assert found.layers_a == found.layers_b == ("0", "1", "3")
    for (i, one), (j, other) in itertools.product(enumerate(found.layers_a), enumerate(found.layers_b)):
        expected = expected_cka([activations(a, x, one)], [activations(b, x, other)])
        assert float(found.cka[i, j]) == pytest.approx(expected, abs=1e-5)


def test_cka_of_eight_pictures_is_the_mean_over_all_quadruples() -> None:
    a, b = pair()[1], untrained(1)
    x = pictures()[0][:8]
    found = nbviz.compare(a, b, x, most=3, preprocess=a.nbviz_preprocess, progress=False)
    assert found.cka is not None
    one, other = found.layers_a[1], found.layers_b[-1]
    expected = expected_cka([activations(a, x, one)], [activations(b, x, other)], hsic_by_quadruples)
    assert float(found.cka[1, -1]) == pytest.approx(expected, abs=1e-5)


def test_cka_of_several_batches_is_that_of_their_sums_however_bright_they_are() -> None:
    """Equation 2: a batch of faint pictures weighs less, and one of fewer than four not at all."""
    a, b = untrained(1), untrained(101)
    x = pictures()[0][700:726].clone()
    x[8:16] *= 0.05
    parts = [x[:8], x[8:16], x[16:24]]
    found = nbviz.compare(a, b, x, ["3"], batch_size=8, progress=False)
    expected = expected_cka([activations(a, p, "3") for p in parts], [activations(b, p, "3") for p in parts])
    assert float(found.cka) == pytest.approx(expected, abs=1e-5)
    faint = [float(nbviz.compare(a, b, p, ["3"], batch_size=8, progress=False).cka) for p in parts]
    assert abs(np.mean(faint) - expected) > 1e-3  # which a mean over the batches is not


class Given(nn.Module):
    """Two layers that are given by hand, side by side in the input."""

    def __init__(self, split: int) -> None:
        super().__init__()
        self.split, self.one, self.other = split, nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[:, : self.split]).flatten(1).sum(1, keepdim=True) + self.other(x[:, self.split :]).sum()


def cka(one: Tensor, other: Tensor, batch_size: int = 1000) -> float:
    net, x = Given(one.shape[1]), torch.cat([one, other], 1)[..., None, None]
    statistic = CKA(["one"], ["other"])
    return float(nbviz.scan(net, x, {"cka": statistic}, batch_size=batch_size, progress=False)["cka"])


def test_turned_scaled_and_shifted_it_is_the_same_and_noise_is_nothing() -> None:
    one = torch.randn(200, 12, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert cka(one, 7 * one @ turn + 3) == pytest.approx(1, abs=1e-5)
    assert abs(cka(one, torch.randn(200, 30, dtype=torch.float64))) < 0.05  # without bias, though of many channels
    mixed = cka(one, torch.cat([one[:, :6], torch.randn(200, 6, dtype=torch.float64)], 1))
    assert 0.3 < mixed < 0.9


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_very_small_and_very_large_activations_are_as_any(scale: float) -> None:
    one, other = torch.randn(50, 5), torch.randn(50, 5)
    assert cka(scale * one, one + other) == pytest.approx(cka(one, one + other), abs=1e-5)


def test_a_layer_that_never_changes_is_like_no_other() -> None:
    assert math.isnan(cka(torch.zeros(20, 3), torch.randn(20, 3)))


def test_too_few_pictures_for_cka_leave_the_rest() -> None:
    a, b = pair()
    found = nbviz.compare(a, b, some(0, 3), ["features.8"], progress=False)
    assert found.cka is None
    assert found.accuracy is not None
    assert "CKA" not in repr(found)


# Which layers


def test_layers_are_spread_evenly_over_those_with_maps() -> None:
    net = pair()[1]
    found = nbviz.compare(net, untrained(1), some(0, 8), most=3, preprocess=net.nbviz_preprocess, progress=False)
    assert found.layers_a == ("features.0", "features.7", "pool")
    assert found.layers_b == ("0", "2", "4")
    assert found.cka is not None
    assert found.cka.shape == (3, 3)
    assert len(nbviz.compare(net, net, some(0, 8), progress=False).layers_a) == 15


def test_two_models_of_the_same_modules_are_two() -> None:
    """As one makes one without a block out of one with it: a module's second call is not that of the first model."""
    whole = untrained(1)
    without = nn.Sequential(whole[0], whole[1], nn.Conv2d(8, 16, 3, stride=2), nn.Sigmoid(), *list(whole)[4:])
    without[2].weight.data = whole[2].weight.data.roll(5, 0)
    x = pictures()[0][:12]
    found = nbviz.compare(whole, without, x, ["1", "4"], progress=False)
    for i, j in itertools.product(range(2), range(2)):
        one, other = ["1", "4"][i], ["1", "4"][j]
        expected = expected_cka([activations(whole, x, one)], [activations(without, x, other)])
        assert found.cka is not None
        assert float(found.cka[i, j]) == pytest.approx(expected, abs=1e-5)
    assert float(found.cka[1, 1]) < 0.99
    separate = nbviz.compare(whole, copy.deepcopy(without), x, ["1", "4"], progress=False)
    assert same(found.cka, separate.cka)


def test_models_without_layers_are_compared_by_their_answers() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    x = torch.rand(6, 3, 2, 2)
    found = nbviz.compare(Bare(), Bare(), TensorDataset(x, torch.zeros(6).long()), progress=False)
    assert (found.cka, found.layers_a, found.layers_b) == (None, (), ())
    assert found.accuracy is not None
    assert found.accuracy.pictures == 6


def test_names_are_text() -> None:
    net = nn.Sequential()
    net.add_module("\x1b[31mred", nn.Conv2d(1, 2, 3))
    net.append(nn.Flatten()).append(nn.Linear(8, 2))
    found = nbviz.compare(net, net, torch.rand(6, 1, 4, 4), progress=False)
    assert "\x1b" not in repr(found)
    assert "[31mred" in repr(found)


# However it is worked through


def test_an_executor_gives_the_same() -> None:
    (a, b), dataset = pair(), some(0, 40)
    expected = nbviz.compare(a, b, dataset, ["features.3", "features.13"], batch_size=8, progress=False)
    with ThreadPoolExecutor(2) as executor:
        options: dict[str, Any] = {"executor": executor, "parts": 3, "batch_size": 8, "progress": False}
        found = nbviz.compare(a, b, dataset, ["features.3", "features.13"], **options)
    assert same(found, expected)


def test_an_interrupt_gives_what_the_pictures_seen_so_far_say() -> None:
    a, b = pair()
    with pytest.warns(InterruptedWarning, match="after 32 pictures"):
        found = nbviz.compare(a, b, Interrupting(some(0, 60), 40), ["features.8"], progress=False)
    assert (found.complete, found.pictures) == (False, 32)
    whole = nbviz.compare(a, b, some(0, 32), ["features.8"], progress=False)
    assert found.verdict == whole.verdict
    assert same(found.cka, whole.cka)
    assert "(not complete)" in repr(found)


def test_an_iterable_is_taken_with_layers_named() -> None:
    a, b = pair()
    expected = nbviz.compare(a, b, some(0, 40), ["features.8"], progress=False)
    assert same(nbviz.compare(a, b, Stream(some(0, 40)), ["features.8"], progress=False), expected)
    with pytest.raises(TypeError, match="^an iterable dataset is not looked into beforehand; expected layers= with it"):
        nbviz.compare(a, b, Stream(some(0, 40)), progress=False)


def test_what_a_model_is_given_and_gives_besides() -> None:
    class Deep(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"scores": self.net(image)}

    (a, b), dataset = pair(), some(0, 40)
    expected = nbviz.compare(a, b, dataset, ["features.8"], progress=False)
    found = nbviz.compare(
        *(Deep(net) for net in (a, b)),
        dataset,
        ["net.features.8"],
        inputs=lambda x: {"image": x},
        output="scores",
        progress=False,
    )
    assert found.verdict == expected.verdict
    assert same(found.cka, expected.cka)


# What cannot be compared


def test_models_that_prepare_pictures_differently_are_refused_until_it_is_said_how() -> None:
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    for net, mean in zip(nets, (0.5, 0.4), strict=True):
        steps = [transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize([mean] * 3, [0.2] * 3)]
        net.nbviz_preprocess = nbviz.Preprocess(transforms.Compose(steps), source=f"mean {mean}")
    dataset = [Image.effect_noise((20, 20), 50).convert("RGB") for _ in range(5)]
    message = r"^the models prepare pictures differently \(mean 0.5, mean 0.4\); expected preprocess=, which says how"
    with pytest.raises(ValueError, match=message):
        nbviz.compare(*nets, dataset, progress=False)
    found = nbviz.compare(*nets, dataset, preprocess=nets[0].nbviz_preprocess, progress=False)
    x = torch.stack([nets[0].nbviz_preprocess(one) for one in dataset])
    with torch.no_grad():
        assert found.agree == float((nets[0](x).argmax(1) == nets[1](x).argmax(1)).double().mean())
    nets[1].nbviz_preprocess = copy.deepcopy(nets[0].nbviz_preprocess)  # another that does the same
    assert nbviz.compare(*nets, dataset, progress=False).agree == found.agree


@pytest.mark.parametrize(
    "other",
    [
        transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(), lambda x: x.flip(0)]),  # BGR
        transforms.Compose([transforms.Resize((16, 16), Image.Resampling.NEAREST), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(), lambda x: x.flip(2)]),
        transforms.Compose([transforms.Resize((17, 16)), transforms.ToTensor()]),
    ],
)
def test_another_order_of_colours_resampling_side_or_size_is_another_preparation(other: Any) -> None:
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    one = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])
    for net, transform in zip(nets, (one, other), strict=True):
        net.nbviz_preprocess = nbviz.Preprocess(transform)
    with pytest.raises(ValueError, match="prepare pictures differently"):
        nbviz.compare(*nets, [Image.new("RGB", (20, 20))], progress=False)


def small(classes: int = 4, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (small(5), "^model_a gives 4 classes and model_b 5; expected two models of the same classes$"),
        (
            small().double(),
            "^model_a is on cpu in torch.float32, model_b on cpu in torch.float64; expected both on one",
        ),
        (small().to("meta"), "^model_a is on cpu in torch.float32, model_b on meta in torch.float32; expected both on"),
        (small(channels=1), "^model_a takes 3 channels and model_b 1; expected as many$"),
    ],
)
def test_models_of_other_classes_device_dtype_or_channels_are_refused(b: nn.Module, message: str) -> None:
    for layers in (None, ["0"]):
        with pytest.raises(ValueError, match=message):
            nbviz.compare(small(), b, torch.rand(5, 3, 8, 8), layers, progress=False)


def test_a_label_that_neither_model_has_is_left_out_and_said() -> None:
    net = small()
    dataset = TensorDataset(torch.rand(3, 3, 8, 8), torch.tensor([0, 4, 7]))  # of four classes, side by side eight
    with pytest.warns(UserWarning, match="2 of 3 pictures .*: 2 are no class where the model has 4 .4, of picture 1"):
        found = nbviz.compare(net, net, dataset, ["0"], progress=False)
    assert found.accuracy is not None
    assert (found.accuracy.pictures, found.pictures) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": ["9"]}, ValueError, "^no layer '9'"),
        ({"layers": "0"}, TypeError, "^layers is '0'; expected a list of modules' names, or None$"),
        ({"layers": []}, TypeError, r"^layers is \[\]; expected a list"),
        ({"most": 0}, ValueError, "^most is 0; expected at least 1$"),
        ({"dataset": []}, PictureError, "^the dataset is empty; expected at least one picture"),
        ({"output": 3}, ValueError, "^no output 3: the model gives a Tensor"),
    ],
)
def test_arguments(arguments: Any, error: Any, message: str) -> None:
    net = small()
    with pytest.raises(error, match=message):
        nbviz.compare(net, net, **{"dataset": torch.rand(5, 3, 8, 8), "progress": False, **arguments})


def test_random_numbers_and_both_models_stay_as_they_are(snapshot: Any) -> None:
    """Also where they are made of the same modules, one of which draws numbers and writes to its buffers."""

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    first = small().train()
    second = nn.Sequential(first[0], nn.BatchNorm2d(4), Drawing(), *first[1:]).train()
    dataset = [transforms.RandomCrop(8)(torch.rand(3, 9, 9)) for _ in range(6)]
    with snapshot(first), snapshot(second):
        nbviz.compare(first, second, dataset, progress=False)
        with pytest.raises(ValueError, match="no layer"):
            nbviz.compare(first, second, dataset, ["4"], progress=False)
