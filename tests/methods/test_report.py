"""A report names what was planted and nothing that is well; its figures against differences and arithmetic by hand."""

from __future__ import annotations

import base64
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import nbviz
from nbviz.errors import InterruptedWarning, PictureError
from nbviz.methods.report import Importance, LayerReport
from tests.methods.test_ablation import Interrupting, Stream, changed
from tests.rounds import TIMES, few
from tests.scanning.test_statistics import same

LAYERS = [f"features.{i}" for i in (1, 3, 6, 8, 11, 13)]


@pytest.fixture(scope="module")
def dataset() -> TensorDataset:
    images, labels = nbviz.bundled.fashion_test()
    return TensorDataset(images[:96, None] / 255, labels[:96])


@pytest.fixture(scope="module")
def planted() -> nn.Module:
    """The bundled network with a dead, a useless, a constant channel and two twins, in its first and fourth layer."""
    net = nbviz.bundled.load("fashion")
    with torch.no_grad():
        for here, after in ((0, 2), (7, 10)):
            conv, then = net.features[here], net.features[after]
            conv.weight[2], conv.bias[2] = 0, -1
            then.weight[:, 3] = 0
            conv.weight[9], conv.bias[9] = 3 * conv.weight[4], 3 * conv.bias[4]
            conv.weight[12], conv.bias[12] = 0, 0.5
    return net


@pytest.fixture(scope="module")
def found(planted: nn.Module, dataset: TensorDataset) -> Any:
    return nbviz.report(planted, dataset, progress=False)


def activations(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), changed(net, layer, lambda maps: seen.append(maps.clone()) or maps):
        net(x)
    return seen[0]


def all_equal(one: Any, other: Any) -> bool:
    assert list(one.layers) == list(other.layers)
    names = ("dead", "constant", "duplicates", "useless", "dimensions", "importance")
    layers = all(same(getattr(a, n), getattr(other[name], n)) for name, a in one.layers.items() for n in names)
    return layers and (one.accuracy, one.pictures, one.complete) == (other.accuracy, other.pictures, other.complete)


def test_what_was_planted_is_named_and_nothing_that_is_well(found: Any) -> None:
    assert list(found.layers) == LAYERS
    for name in LAYERS:
        one = found[name]
        assert isinstance(one, LayerReport)
        here = name in ("features.1", "features.8")
        assert one.dead == ((2,) if here else ())
        assert one.useless == ((3,) if here else ())
        assert one.constant == ((12,) if here else ())
        assert one.duplicates == (((4, 9, 1.0),) if here else ())
        assert one.redundant == ((2, 3, 9, 12) if here else ())


class Functional(nn.Module):
    """Calls its rectifiers as functions, so that the layers known to it are convolutions and their normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 10)
        with torch.no_grad():
            for conv in (self.a, self.c):
                conv.bias.fill_(1)
                conv.weight[2], conv.bias[2] = 0, -1
            self.norm.bias.fill_(1)
            self.norm.weight[4], self.norm.bias[4] = 1e-3, -1

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.norm(self.b(x)).clamp(min=0)
        found: Tensor = self.fc(F.relu6(self.c(x), inplace=True).mean((2, 3)))
        return found


def test_a_channel_before_a_functional_rectifier_is_dead_where_it_is_zero_after_it(dataset: TensorDataset) -> None:
    found = nbviz.report(Functional().eval(), dataset, progress=False)
    assert {name: one.dead for name, one in found.layers.items()} == {"a": (2,), "b": (4,), "c": (2,)}
    assert not any(set(one.dead) & set(one.useless) for one in found.layers.values())


def test_a_layer_that_does_not_go_to_a_rectifier_alone_is_taken_as_it_is(dataset: TensorDataset) -> None:
    class Both(Functional):
        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            found: Tensor = self.fc((F.relu(a) + a).mean((2, 3)))
            return found

    assert nbviz.report(Both().eval(), dataset, ["a"], progress=False)["a"].dead == ()


def test_nothing_is_named_in_a_network_that_is_well(dataset: TensorDataset, snapshot: Any) -> None:
    net = nbviz.bundled.load("fashion")
    with snapshot(net):
        found = nbviz.report(net, dataset, progress=False)
    assert [one.redundant for one in found.layers.values()] == [()] * 6


def test_what_is_named_is_so_by_plain_hooks(planted: nn.Module, dataset: TensorDataset, found: Any) -> None:
    x, labels = dataset.tensors
    with torch.no_grad():
        before = planted(x)
    loss = float(F.cross_entropy(before, labels))
    assert found.accuracy == float((before.argmax(1) == labels).double().mean())
    for layer in ("features.1", "features.8"):
        maps = activations(planted, x, layer)
        assert not maps[:, 2].any()
        assert maps[:, 12].unique().numel() == 1
        torch.testing.assert_close(maps[:, 9], 3 * maps[:, 4])
        important = found[layer].importance.topk(3 if TIMES else 1).indices.tolist()
        for channel, healthy in ((3, False), *((i, True) for i in important)):
            keep = (torch.arange(maps.shape[1]) != channel)[:, None, None]
            with torch.no_grad(), changed(planted, layer, lambda given, keep=keep: given * keep):
                after = planted(x)
            off = abs(float(F.cross_entropy(after, labels)) - loss) > 1e-3 * loss
            assert (off or not torch.equal(after.argmax(1), before.argmax(1))) == healthy


def test_kernels_are_those_of_the_first_convolution(planted: nn.Module, found: Any) -> None:
    assert found.kernels.layer == "features.0"
    assert found.kernels.dead == (2, 12)
    assert found.kernels.duplicates == ((4, 9, 1.0),)


class Ignored(nn.Module):
    """Three channels, each the score of a class, and one that no one looks at; so sure that no gradient is left."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.head = nn.ReLU(), nn.Linear(4, 3, bias=False)
        self.head.weight.data = torch.eye(3, 4) * 1e4

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(x).mean((2, 3)))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_that_is_sure_of_itself_is_not_called_useless(labelled: bool) -> None:
    """Its gradients are zero, and what is useless is found by switching off, with labels or without."""
    x = torch.rand(30, 4, 2, 2) * 0.1
    labels = torch.arange(30) % 3
    x[torch.arange(30), labels] += 1
    dataset = TensorDataset(x, labels) if labelled else x
    found = nbviz.report(Ignored(), dataset, ["relu"], progress=False)
    assert not found["relu"].importance.any()
    assert found["relu"].useless == (3,)
    assert found.accuracy == (1.0 if labelled else None)
    assert found.kernels is None


def test_no_more_channels_are_tried_than_asked_for(planted: nn.Module, dataset: TensorDataset) -> None:
    with torch.no_grad():
        net = copy.deepcopy(planted)
        net.features[10].weight[:, [3, 5, 6]] = 0
    some = TensorDataset(*(t[:32] for t in dataset.tensors))
    useless = {
        m: nbviz.report(net, some, ["features.8"], most=m, progress=False)["features.8"].useless for m in (0, 2, 64)
    }
    assert useless[64] == (3, 5, 6)
    assert len(useless[2]) == 2
    assert useless[0] == ()


# Figures


def test_importance_is_the_softmax_by_hand_where_the_network_is_linear() -> None:
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 3))
    x, labels = torch.randn(7, 3, 2, 2), torch.tensor([0, 2, 1, 1, -1, 0, -1])
    dataset = [(one, int(label)) for one, label in zip(x, labels, strict=True)]
    found = nbviz.scan(net, dataset, {"i": Importance(["0"])}, batch_size=3, progress=False)["i"]["0"]
    weight, bias = (p.detach().double().numpy() for p in (net[2].weight, net[2].bias))
    expected = np.zeros(3)
    for one, label in zip(x.double().numpy(), labels.tolist(), strict=True):
        z = weight @ one.ravel() + bias
        share = np.exp(z) / np.exp(z).sum()
        share[label if label >= 0 else z.argmax()] -= 1  # without a label the predicted class
        change = one * (share @ weight).reshape(3, 2, 2)
        expected += np.abs(change.sum((1, 2))) / 7
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("layer", ["0", "1", "2", "4"])
def test_importance_is_the_difference_that_a_little_less_of_a_channel_makes(layer: str) -> None:
    """For each picture alone; a rectifier in place behind the layer makes no difference."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2)
    )
    net.append(nn.ReLU(inplace=True)).append(nn.Flatten()).append(nn.Linear(20, 3))
    net = net.double().eval()
    x, labels = torch.rand(6, 1, 8, 8).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    found = nbviz.report(net, TensorDataset(x, labels), [layer], most=0, batch_size=4, progress=False)[layer].importance
    for channel in range(len(found)):
        losses = []
        for factor in (1 - 1e-5, 1 + 1e-5):
            scale = torch.ones(len(found), 1, 1).double()
            scale[channel] = factor
            with torch.no_grad(), changed(net, layer, lambda maps, scale=scale: maps * scale):
                losses.append(F.cross_entropy(net(x), labels, reduction="none"))
        expected = float(((losses[1] - losses[0]) / 2e-5).abs().mean())
        assert float(found[channel]) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert found.any()


def test_importance_of_a_layer_without_positions_and_of_one_that_leads_nowhere() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.head = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x.flatten(1))
            return self.head(self.used(x.flatten(1)))

    net, x, labels = Net(), torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1])
    found = nbviz.scan(net, TensorDataset(x, labels), {"i": Importance(["used", "unused"])}, progress=False)["i"]
    assert not found["unused"].any()
    hidden = net.used(x.flatten(1)).detach().requires_grad_()
    F.cross_entropy(net.head(hidden), labels, reduction="sum").backward()
    torch.testing.assert_close(found["used"].float(), (hidden * hidden.grad).detach().abs().mean(0))


def test_dimensions_and_duplicates_are_those_of_numpys_correlations(
    planted: nn.Module, dataset: Any, found: Any
) -> None:
    x, _ = dataset.tensors
    for layer in ("features.1", "features.8"):
        maps = activations(planted, x, layer).double().transpose(0, 1).flatten(1).numpy()
        living = [i for i in range(len(maps)) if maps[i].std() > 1e-6]
        correlations = np.corrcoef(maps[living])
        values = np.linalg.eigvalsh(correlations)
        assert found[layer].dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum())
        loose = nbviz.report(planted, dataset, [layer], alike=0.8, most=0, progress=False)[layer].duplicates
        rows, columns = np.nonzero(np.triu(correlations, 1) >= 0.8)
        assert {(i, j) for i, j, _ in loose} == {(living[i], living[j]) for i, j in zip(rows, columns, strict=True)}
        for i, j, value in loose:
            assert value == pytest.approx(correlations[living.index(i), living.index(j)], abs=1e-6)
        assert [one[2] for one in loose] == sorted((one[2] for one in loose), reverse=True)


@pytest.mark.parametrize("alike", [0, 1])
def test_how_alike_is_alike(alike: float, planted: nn.Module, dataset: Any) -> None:
    pairs = nbviz.report(planted, dataset, ["features.1"], alike=alike, most=0, progress=False)["features.1"].duplicates
    assert all(i < j for i, j, _ in pairs)
    assert pairs[0] == (4, 9, 1.0)
    assert len(pairs) == 1 if alike else 30 < len(pairs) <= 30 * 29 / 2
    assert not {2, 12} & {channel for i, j, _ in pairs for channel in (i, j)}  # they do not vary


# How it shows


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_it_says_what_it_found(found: Any) -> None:
    text = repr(found)
    assert text.startswith(
        "ReportResult of 6 layers, 96 pictures, accuracy 90.6 % (95 % interval from 83.1 % to 95.0 %)\n"
    )
    part = text[text.index("features.8 ") :].splitlines()
    assert part[0] == f"features.8 · 64 channels, {found['features.8'].dimensions:.0f} effective"
    assert [one.strip() for one in part[1:5]] == ["dead: 2", "constant: 12", "duplicates: 4 = 9", "useless: 3"]
    assert "KernelReportResult of features.0" in text


def test_its_table_has_a_row_for_each_layer_and_a_bar_for_each_channel(found: Any) -> None:
    page = Tags(found._repr_html_())
    assert not {tag for tag, _ in page.tags} & {"script", "a", "iframe", "link"}
    assert sum(tag == "svg" for tag, _ in page.tags) == 1 + 6  # the accuracy's interval, and each layer's importances
    bars = [attributes for tag, attributes in page.tags if tag == "rect"][2:]
    assert len(bars) == 32 + 32 + 64 + 64 + 2 * 128
    orange = [i for i, one in enumerate(bars) if one["fill"] == "#ef6c00"]
    assert len(orange) == 8
    assert float(bars[0]["height"]) == 32
    first = [float(one["height"]) for one in bars[:32]]
    assert first == sorted(first, reverse=True)
    assert "4 = 9" in page.text


def test_its_table_has_the_strongest_patches_of_the_most_important_channels(found: Any, dataset: TensorDataset) -> None:
    """The patches are those that the layer's receptive field gives, beside the numbers of the channels."""
    page = Tags(found._repr_html_())
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == 2 * 6
    entry, strongest = found["features.8"], found.strongest["features.8"]
    order = entry.importance.argsort(descending=True).tolist()
    channel = next(channel for channel in order if channel not in entry.redundant)
    assert f"#{channel} " in page.text
    row = np.array(Image.open(io.BytesIO(base64.b64decode(shown[6].split(",")[1]))).convert("L"))
    size = entry.layer.field.size[0]
    index, position = int(strongest.indices[channel, 0]), strongest.positions[channel, 0].tolist()
    top, left = entry.layer.field.corner(position)
    picture = np.pad((dataset.tensors[0][index, 0] * 255).round().numpy().astype(np.uint8), 50, constant_values=128)
    patch = picture[top + 50 : top + 50 + size, left + 50 : left + 50 + size]
    expected = Image.fromarray(patch).resize((80, 80), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(row[:, :80], np.array(expected))


def test_it_says_what_its_columns_mean(found: Any) -> None:
    text = Tags(found._repr_html_()).text
    assert (
        "Channels that are zero in all pictures; of a layer before a ReLU, those that are always zero after it." in text
    )
    assert "Channels that are not dead, but without effect" in text


def test_a_report_is_pickled_without_its_pictures(found: Any) -> None:
    again = pickle.loads(pickle.dumps(found))
    assert all_equal(found, again)
    assert "<img" not in again._repr_html_()


def test_names_are_text(dataset: TensorDataset) -> None:
    name = "<img src=x onerror=alert(1)>\x1b[31m\u202e"
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(1, 2, 3))
    net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(2, 10))
    found = nbviz.report(net, dataset, progress=False)
    page = Tags(found._repr_html_())
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("<img src=x onerror=alert(1)>") == 2  # of the layer and of its kernels
    for text in (repr(found), found._repr_html_()):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_long_lists_are_cut_short(dataset: TensorDataset) -> None:
    net = nbviz.bundled.load("fashion")
    with torch.no_grad():
        net.features[0].weight[:20] = 0
        net.features[0].bias[:20] = -1
    found = nbviz.report(net, dataset, ["features.1"], progress=False)
    assert "dead: 0, 1, 2, 3, 4, 5, 6, 7, … (20)\n" in repr(found)
    assert found["features.1"].dead == tuple(range(20))


# Which layers, and of what


def test_without_rectifiers_the_convolutions_are_taken_and_else_they_are_to_be_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))

    x = torch.rand(4, 1, 8, 8)
    assert list(nbviz.report(Functional(), x, progress=False).layers) == ["first", "second"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"^no layer of Sequential is a rectifier or a convolution; name layers=$"):
        nbviz.report(flat, x, progress=False)
    assert nbviz.report(flat, x, ["1"], progress=False)["1"].importance.shape == (3,)


def test_of_resnet18_each_call_of_a_rectifier_is_a_layer(snapshot: Any) -> None:
    import torchvision

    net = torchvision.models.resnet18(weights=None, num_classes=3).eval()
    with torch.no_grad():
        net.layer4[1].conv1.weight[7] = 0  # through batch normalisation, zero
    x = torch.rand(4, 3, 33, 33)
    with snapshot(net):
        found = nbviz.report(net, TensorDataset(x, torch.tensor([0, 1, 2, 0])), most=2, progress=False)
    blocks = [f"layer{i}.{j}.relu{call}" for i in range(1, 5) for j in range(2) for call in ("", ":1")]
    assert list(found.layers) == ["relu", *blocks]
    assert 7 in found["layer4.1.relu"].dead
    assert found.kernels is not None
    assert found.kernels.stride == (2, 2)


def test_what_cannot_be_read_is_left_out(tmp_path: Path, planted: nn.Module, dataset: TensorDataset) -> None:
    (tmp_path / "0.png").write_bytes(b"none")
    for i in range(1, 4):
        Image.fromarray((dataset.tensors[0][i, 0] * 255).byte().numpy()).save(tmp_path / f"{i}.png")
    found = nbviz.report(planted, tmp_path, ["features.1"], progress=False)
    assert found.pictures == 3
    assert 2 in found["features.1"].dead


# However it is worked through


def test_an_executor_gives_the_same(planted: nn.Module, dataset: TensorDataset) -> None:
    options: dict[str, Any] = {"layers": ["features.8"], "most": 4, "batch_size": 16, "progress": False}
    some = TensorDataset(*(t[:48] for t in dataset.tensors))
    expected = nbviz.report(planted, some, **options)
    with ThreadPoolExecutor(2) as executor:
        assert all_equal(nbviz.report(planted, some, executor=executor, parts=3, **options), expected)
    assert expected["features.8"].useless == (3,)


def test_an_interrupt_gives_what_was_seen_so_far_and_calls_nothing_useless(planted: nn.Module, dataset: Any) -> None:
    with pytest.warns(InterruptedWarning, match="after 64 pictures"):
        found = nbviz.report(planted, Interrupting(dataset, 1 + 70), ["features.8"], progress=False)
    assert (found.complete, found.pictures) == (False, 64)
    assert "64 pictures (not complete)" in repr(found)
    assert found["features.8"].useless == ()
    part = TensorDataset(*(t[:64] for t in dataset.tensors))
    whole = nbviz.report(planted, part, ["features.8"], progress=False)["features.8"]
    assert same(found["features.8"].importance, whole.importance)
    assert found["features.8"].duplicates == whole.duplicates


@pytest.mark.parametrize("at", few([1, 70]))
def test_an_interrupt_while_channels_are_switched_off_keeps_the_rest(at: int, planted: Any, dataset: Any) -> None:
    with pytest.warns(InterruptedWarning):
        found = nbviz.report(planted, Interrupting(dataset, 1 + 96 + at), ["features.8"], progress=False)
    assert (found.complete, found.pictures) == (False, 96)
    assert (found["features.8"].dead, found["features.8"].useless) == ((2,), ())


def test_an_interrupt_before_there_is_anything_comes_through(planted: nn.Module, dataset: Any) -> None:
    with pytest.warns(InterruptedWarning), pytest.raises(KeyboardInterrupt):
        nbviz.report(planted, Interrupting(dataset, 5), ["features.8"], progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": ["features.99"]}, ValueError, "^no layer 'features.99'"),
        ({"layers": "features.8"}, TypeError, "^layers is 'features.8'; expected a list of modules' names, or None$"),
        (
            {"layers": ["features.8:1"]},
            ValueError,
            "^layer 'features.8:1' gives no channels; expected one that nbviz.lay",
        ),
        ({"alike": 1.5}, ValueError, "^alike is 1.5; expected 0 to 1$"),
        ({"most": -1}, ValueError, "^most is -1; expected at least 0$"),
        ({"dataset": []}, PictureError, "^the dataset is empty; expected at least one picture"),
        (
            {"dataset": Stream([])},
            TypeError,
            "^an iterable dataset can be read only once; expected one with a leng",
        ),
    ],
)
def test_arguments(planted: nn.Module, dataset: Any, arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        nbviz.report(planted, **{"dataset": dataset, "layers": ["features.8"], "progress": False, **arguments})


def test_a_channel_that_is_never_positive_is_not_dead_where_negative_values_pass() -> None:
    """Behind a LeakyReLU one that is always negative may decide."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.LeakyReLU(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(2, 2, bias=False))
    net[0].weight.data = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    net[4].weight.data = torch.tensor([[8.0, 0.0], [-8.0, 0.0]])
    net[4].register_parameter("bias", nn.Parameter(torch.tensor([2.0, -2.0])))
    pictures = torch.cat([torch.full((8, 1, 4, 4), 0.1), torch.full((8, 1, 4, 4), 0.9)])
    dataset = TensorDataset(pictures, torch.tensor([0] * 8 + [1] * 8))
    found = nbviz.report(net, dataset, progress=False)["1"]
    assert found.dead == ()
    assert found.useless == (1,)
    with torch.inference_mode():
        assert nbviz.report(net, dataset, progress=False)["1"].useless == (1,)
