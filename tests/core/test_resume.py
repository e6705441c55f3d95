"""Going on from a layer gives what the whole model gives with the layer's output replaced by a hook."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbviz.core import resume as intervene
from nbviz.core.errors import ModelError
from nbviz.core.resume import Resumable

X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def by_hook(model: nn.Module, x: Tensor, layer: str, activation: Tensor, call: int = 0) -> Any:
    calls = 0

    def at(_m: Any, _args: Any, value: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return activation.clone() if calls == call + 1 else value

    handle = dict(model.named_modules())[layer].register_forward_hook(at)
    try:
        with torch.no_grad():
            return model(x)
    finally:
        handle.remove()


class Net(nn.Module):
    """Around ``middle`` goes what a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.after, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rest(self.before(x), x).mean((2, 3)))

    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        return self.after(self.middle(first).relu())


class Around(Net):
    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        return self.after(self.middle(first).relu() + first) + x.mean((1, 2, 3))[:, None, None, None]


class Parts(Net):
    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        low, high = first.chunk(2, 1)
        values, places = first.flatten(2).max(2)
        middle = self.middle(torch.cat([high, low], 1)).sigmoid_()
        return self.after(middle * values[..., None, None] + low.repeat(1, 2, 1, 1)) + places.view(-1, 4, 1, 1)[:, :1]


class Flows(Net):
    """Takes another way where the picture is dark, counts in Python, and reads a number."""

    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        if x.mean() < 0.1:
            return self.after(first)
        for i in range(int(x.shape[0] > 0) + 1):
            first = F.relu(first, inplace=True) * (i + first.mean().item())
        return self.after(self.middle(first).relu_())


class Twice(Net):
    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        return self.after(self.middle(self.middle(first).relu()))


class NotWide(Net):
    """The number of pictures is read before the layer and used after it."""

    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        n = x.shape[0]
        found = self.after(self.middle(first).relu())
        return found.reshape(n, 6, -1).mean(2)[..., None, None]


class Writes(Net):
    """What follows the layer writes to what was before it."""

    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        return self.after(first.add_(self.middle(first)))


class Counts(Net):
    """Gives another answer each time."""

    times = 0

    def rest(self, first: Tensor, x: Tensor) -> Tensor:
        Counts.times += 1
        return super().rest(first, x) * Counts.times


class Dict(Net):
    def forward(self, x: Tensor) -> Any:
        first = self.before(x)
        return {"out": self.head(self.rest(first, x).mean((2, 3))), "first": first}


KINDS = {kind.__name__: kind for kind in (Net, Around, Parts, Flows, Twice, NotWide, Writes, Dict)}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_a_hook_gives(kind: str, snapshot: Any) -> None:
    net = KINDS[kind]().eval()
    with snapshot(net):
        one = Resumable(net, X, "middle")
        without = one.activation.clone()
        without[:, 1] = 0
        variants = [without, one.activation, one.activation * 2]
        for activation in variants:
            found, expected = one.go_on(activation), by_hook(net, X, "middle", activation)
            if kind == "Dict":
                assert torch.equal(found["first"], expected["first"])
                found, expected = found["out"], expected["out"]
            assert torch.equal(found, expected)
    assert one.skips == (kind != "Writes")
    assert one.widens == (kind not in ("Writes", "NotWide"))
    if one.widens:
        wide, expected = one.go_on(torch.cat(variants)), [by_hook(net, X, "middle", a) for a in variants]
        for name in ("out", "first") if kind == "Dict" else (None,):
            found = wide if name is None else wide[name]
            torch.testing.assert_close(found, torch.cat([one if name is None else one[name] for one in expected]))


def test_each_call_of_a_module() -> None:
    net = Twice().eval()
    for call, layer in enumerate(["middle", "middle:1"]):
        one = Resumable(net, X, layer)
        activation = one.activation * 0.5
        assert torch.equal(one.go_on(activation), by_hook(net, X, "middle", activation, call))
    with pytest.raises(ValueError, match="'middle' is called 2 time.* Accepted: middle, middle:1$"):
        Resumable(net, X, "middle:2")


def test_a_model_that_answers_differently_each_time_runs_whole() -> None:
    one = Resumable(Counts().eval(), X, "middle")
    assert (one.skips, one.widens) == (False, False)


class Finalized:
    """As a widget that Python's garbage collector takes in the middle of a forward pass."""

    def __del__(self) -> None:
        with suppress(RuntimeError):
            torch.zeros(3)


def test_what_a_finalizer_calls_is_not_the_models() -> None:
    passes: list[Finalized] = []

    class Collected(Net):
        def forward(self, x: Tensor) -> Any:
            passes.clear()
            return super().forward(x)

    net = Collected().eval()
    one = Resumable(net, X, "middle")
    assert one.skips
    passes.append(Finalized())
    activation = one.activation * 0.5
    assert torch.equal(one.go_on(activation), by_hook(net, X, "middle", activation))


class Convolutions(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("layer", "after"), [("before", 2), ("middle", 1), ("after", 0)])
def test_nothing_before_the_layer_is_computed_again(layer: str, after: int) -> None:
    one = Resumable(Net().eval(), X, layer)
    with Convolutions() as mode:
        one.go_on(one.activation)
    assert mode.count == after


def test_what_is_before_the_layer_is_let_go_of() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)), nn.Flatten(), nn.Linear(432, 5)).eval()
    one = Resumable(net, X, "4")
    assert one.skips
    assert one._calls._alive == {}
    assert sum(ref() is not None for ref in one._calls._tensors) == 0


def test_inputs_made_from_the_pictures() -> None:
    class Two(Net):
        def forward(self, x: Tensor, weight: float) -> Any:  # type: ignore[override]
            return super().forward(x) * weight

    net = Two().eval()
    one = Resumable(net, X, "middle", lambda x: (x, 2.0))
    assert (one.skips, one.widens) == (True, False)  # what is made may belong to the batch
    assert torch.equal(one.go_on(one.activation), net(X, 2.0))


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        ("resnet18", "layer3.0.bn1"),
        ("densenet121", "features.denseblock4.denselayer3.conv1"),
        ("googlenet", "conv3"),
    ],
)
def test_networks_of_torchvision(build: str, layer: str) -> None:
    import torchvision

    options = {"init_weights": False} if build == "googlenet" else {}
    net = getattr(torchvision.models, build)(weights=None, **options).eval()
    x = torch.rand(2, 3, 64, 64)
    one = Resumable(net, x, layer)
    assert (one.skips, one.widens) == (True, True)
    without = one.activation * 0
    expected = by_hook(net, x, layer, without)
    assert torch.equal(one.go_on(without), expected)
    assert not torch.equal(expected, one.output)
    wide = one.go_on(torch.cat([one.activation, without]))
    torch.testing.assert_close(wide, torch.cat([one.output, expected]), rtol=1e-4, atol=1e-5)


def test_a_layer_that_gives_no_tensor_or_is_not_there() -> None:
    with pytest.raises(TypeError, match="layer '0' gives a tuple; expected a layer that gives a tensor"):
        Resumable(nn.Sequential(nn.LSTM(12, 2)), torch.rand(2, 3, 12), "0")
    with pytest.raises(ValueError, match="no layer 'midle'; did you mean 'middle'"):
        Resumable(Net(), X, "midle")
    with pytest.raises(ModelError, match="failed in its forward pass"):
        Resumable(Net(), X[:, :, :, :, None], "middle")


def test_an_activation_that_does_not_fit_is_the_models_error(snapshot: Callable[..., Any]) -> None:
    net = Net().eval()
    one = Resumable(net, X, "middle")
    with snapshot(net), pytest.raises(ModelError, match="failed in its forward pass"):
        one.go_on(one.activation[:, :2])


def test_the_answers_are_given_in_the_kind_in_which_they_came() -> None:
    assert intervene._alike({"a": torch.ones(2)}, {"a": torch.ones(2)}, 1)
    assert not intervene._alike(torch.ones(2), torch.ones(3), 1)
    assert not intervene._alike(torch.ones(2), torch.ones(2) * 1.1, 1)
