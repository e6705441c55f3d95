"""A layer's channels are its channels wherever the module has them: against the same network with channels first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbviz
from nbviz.errors import ModelError
from nbviz.scanning.statistics import Correlation, Histogram, Moments, Sparsity, TopK
from tests.conftest import unchanged
from tests.rounds import few

X = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1])
LAYER = "body"


class Arranged(nn.Module):
    """A convolution and a rectifier whose output is arranged in some way."""

    def __init__(self, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.arrange = nn.Conv2d(4, 6, 3, padding=1), arrange

    def forward(self, x: Tensor) -> Tensor:
        return self.arrange(self.conv(x).relu())


class Net(nn.Module):
    """The weights are the same whatever the arrangement."""

    def __init__(self, arrange: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2)
        self.body, self.restore = Arranged(arrange), restore
        self.head = nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.restore(self.body(self.pool(self.first(x).relu())))
        scores: Tensor = self.head(y.flatten(1))
        return scores


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (6, 6))


def with_a_class_token(maps: Tensor) -> Tensor:
    found = tokens(maps)
    return torch.cat([found.new_zeros(len(found), 1, 6), found], 1)


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "channels last": (lambda maps: maps.permute(0, 2, 3, 1), lambda maps: maps.permute(0, 3, 1, 2)),
    "channels last, in their own memory": (
        lambda maps: maps.movedim(1, -1).contiguous(),
        lambda maps: maps.movedim(-1, 1),
    ),
    "channels in the middle": (lambda maps: maps.transpose(1, 2), lambda maps: maps.transpose(1, 2)),
    "tokens": (tokens, maps_of),
    "tokens after a class token": (with_a_class_token, lambda found: maps_of(found[:, 1:])),
}


def first() -> nn.Module:
    return Net(lambda maps: maps, lambda maps: maps).eval()


def statistics() -> dict[str, Any]:
    return {
        "moments": Moments(LAYER),
        "correlation": Correlation(LAYER),
        "sparsity": Sparsity(LAYER),
        "histogram": Histogram(LAYER),
    }


def scanned(net: nn.Module) -> dict[str, Any]:
    found = nbviz.scan(net, dataset(), statistics(), progress=False)
    return {name: vars(found[name]) if is_dataclass(found[name]) else found[name] for name in statistics()}


def dataset() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(X, LABELS)


#: Every function that reads a layer, to tensors.
FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "feature_maps": lambda net: nbviz.feature_maps(net, X, LAYER),
    "some feature_maps": lambda net: nbviz.feature_maps(net, X, LAYER, [5, 1]),
    "gradient": lambda net: nbviz.gradient(net, X, LAYER, [5, 1]),
    "deconvnet": lambda net: nbviz.deconvnet(net, X, LAYER, [5, 1]),
    "guided_backprop": lambda net: nbviz.guided_backprop(net, X, LAYER),
    "all positions": lambda net: nbviz.guided_backprop(net, X, LAYER, 2, seed="map"),
    "grad_cam": lambda net: nbviz.grad_cam(net, X, LAYER, 1),
    "hires_cam": lambda net: nbviz.cams.hires_cam(net, X, LAYER, 1, raw=True),
    "score_cam": lambda net: nbviz.cams.score_cam(net, X, LAYER, 1),
    "ablation_cam": lambda net: nbviz.cams.ablation_cam(net, X, LAYER, 1, raw=True),
    "eigen_cam": lambda net: nbviz.cams.eigen_cam(net, X, LAYER),
    "smooth_grad_cam_pp": lambda net: nbviz.cams.smooth_grad_cam_pp(net, X, LAYER, 1, samples=2),
    "switched_off": lambda net: nbviz.switched_off(net, X, LAYER, [4, 2]),
    "maximise": lambda net: nbviz.maximise(net, LAYER, [3], steps=3, size=12).inputs,
    "occlusion": lambda net: nbviz.occlusion(net, X, layer=LAYER, channel=2).activity,
    "ablate": lambda net: nbviz.ablate(net, dataset(), LAYER, progress=False).loss,
    "ablate, by the mean": lambda net: nbviz.ablate(net, dataset(), LAYER, mode="mean", progress=False).loss,
    "evolution": lambda net: nbviz.evolution(net, [net.state_dict()], X, LAYER, [1, 5])[0].reconstructions,
    "invariance": lambda net: nbviz.invariance(net, X, layers=[LAYER]).distances[LAYER],
    "report": lambda net: nbviz.report(net, dataset(), [LAYER], progress=False)[LAYER].importance,
}


@pytest.mark.parametrize("kind", few(KINDS, 0, 4))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_with_channels_first(kind: str, name: str) -> None:
    if "class token" in kind and "mean" in name:
        pytest.skip("the mean is over the class token, too")
    net, function = Net(*KINDS[kind]).eval(), FUNCTIONS[name]
    with unchanged(net):
        found = function(net)
    torch.testing.assert_close(found, function(first()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "class" not in kind])
def test_statistics_are_as_with_channels_first(kind: str) -> None:
    """A class token has channels, too, and counts as a position."""
    found, expected = scanned(Net(*KINDS[kind]).eval()), scanned(first())
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["channels last", "channels in the middle"])
def test_the_strongest_patches_are_as_with_channels_first(kind: str) -> None:
    found, expected = (
        nbviz.top_patches(net, dataset(), LAYER, [1, 4], progress=False) for net in (Net(*KINDS[kind]).eval(), first())
    )
    torch.testing.assert_close(
        (found.values, found.indices, found.positions, found.patches(4), found.reconstructions(4)),
        (expected.values, expected.indices, expected.positions, expected.patches(4), expected.reconstructions(4)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_listed_with_its_channels_first(kind: str) -> None:
    net = Net(*KINDS[kind]).eval()
    listed = {layer.name: layer for layer in nbviz.layers(net, X)}
    assert listed[LAYER].shape == (6, 6, 6)
    assert listed[LAYER].has_maps
    if "token" not in kind:
        expected = {layer.name: layer for layer in nbviz.layers(first(), X)}
        assert listed[LAYER].field == expected[LAYER].field


@pytest.mark.parametrize("kind", KINDS)
def test_the_explorer_shows_it_as_with_channels_first(kind: str) -> None:
    views = [nbviz.explore(net, X, layer=LAYER, channel=3) for net in (Net(*KINDS[kind]).eval(), first())]
    for view in views:
        view.finish()
        assert view.header.error == ""
    tiles = [dict(zip(*view.grid.pixels(), strict=True)) for view in views]
    assert tiles[0].keys() == tiles[1].keys() == set(range(6))
    for channel, pixels in tiles[1].items():
        torch.testing.assert_close(torch.from_numpy(tiles[0][channel]), torch.from_numpy(pixels))
    assert views[0].channel == views[1].channel


def test_channels_that_are_nowhere_are_refused() -> None:
    """Pairs of positions, as attention gives: neither axis holds channels."""

    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = tokens(x)
            return (found @ found.transpose(1, 2)).softmax(-1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pairs, self.head = nn.Conv2d(2, 5, 3), Pairs(), nn.Linear(100 * 100, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.pairs(self.conv(x)).flatten(1))
            return scores

    net = Attention().eval()
    assert [layer.name for layer in nbviz.layers(net, X) if layer.has_maps] == ["conv"]
    for call in (
        lambda: nbviz.feature_maps(net, X, "pairs"),
        lambda: nbviz.guided_backprop(net, X, "pairs", 0),
        lambda: nbviz.switched_off(net, X, "pairs", 0),
        lambda: nbviz.ablate(net, dataset(), "pairs", progress=False),
        lambda: nbviz.scan(net, dataset(), {"m": Moments("pairs")}, progress=False),
        lambda: nbviz.grad_cam(net, X, "pairs"),
        lambda: nbviz.maximise(net, "pairs", 0, steps=1, size=12),
        lambda: nbviz.top_patches(net, dataset(), "pairs", progress=False),
    ):
        with pytest.raises((ValueError, ModelError), match="'pairs' gives|gives no feature maps"):
            call()


def test_strongest_patches_of_tokens_say_why_not() -> None:
    net = Net(*KINDS["tokens after a class token"]).eval()
    with pytest.raises(ValueError, match="layer 'body' gives tokens. Accepted: first, pool, body.conv"):
        nbviz.top_patches(net, dataset(), LAYER, progress=False)
    found = nbviz.scan(net, dataset(), {"top": TopK(LAYER, 2)}, progress=False)
    expected = nbviz.scan(first(), dataset(), {"top": TopK(LAYER, 2)}, progress=False)
    torch.testing.assert_close(found["top"].values, expected["top"].values)
    assert "<img" in found._repr_html_()
