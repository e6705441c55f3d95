"""Models that switch gradients on and off within their forward pass: as the same network without that, or refused."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import nbviz
from nbviz.errors import ModelError
from tests.conftest import unchanged
from tests.rounds import few

X = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.back = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.back(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.features(x).mean((2, 3)))
        return scores


class On(Plain):
    def features(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().features(x)


class SwitchedOn(Plain):
    def features(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        return super().features(x)


class OffAfterwards(Plain):
    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        torch.set_grad_enabled(False)
        return found


class Off(Plain):
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return super().features(x)


class Recomputed(Plain):
    def features(self, x: Tensor) -> Tensor:
        found: Tensor = torch.utils.checkpoint.checkpoint(super().features, x, use_reentrant=True)
        return found


class RecomputedTwice(Plain):
    def features(self, x: Tensor) -> Tensor:
        found: Tensor = torch.utils.checkpoint.checkpoint_sequential(self.back, 2, x, use_reentrant=True)
        return found


class WithItsOwnGradient(Plain):
    """Whose picture is moved along a gradient, which is taken as a number."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.fc(y.mean((2, 3)).expand(-1, 6)).sum(), y)
        return super().forward(x + 0 * slope)


@pytest.mark.parametrize("kind", [On, SwitchedOn, Off, Recomputed, RecomputedTwice, WithItsOwnGradient])
@pytest.mark.parametrize("layer", few(["back.1", "back.2", "back.3"], 0))
def test_class_activation_is_as_without_it(kind: type[Plain], layer: str) -> None:
    if kind is RecomputedTwice and layer == "back.2":
        pytest.skip("in the same part")
    model, plain = kind().eval(), Plain().eval()
    with unchanged(model):
        for cam in (nbviz.grad_cam, nbviz.cams.hires_cam):
            torch.testing.assert_close(cam(model, X, layer, 1, raw=True), cam(plain, X, layer, 1, raw=True))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [On, SwitchedOn, Recomputed, RecomputedTwice, WithItsOwnGradient])
def test_reconstructions_are_as_without_it(kind: type[Plain]) -> None:
    model, plain = kind().eval(), Plain().eval()
    with unchanged(model):
        for given in ({"layer": "back.3", "channels": [0, 4]}, {"target": 2}):
            torch.testing.assert_close(
                nbviz.guided_backprop(model, X, **given), nbviz.guided_backprop(plain, X, **given)
            )


@pytest.mark.parametrize("kind", [Off, OffAfterwards])
def test_what_no_gradient_can_reach_names_no_grad(kind: type[Plain]) -> None:
    with pytest.raises(ModelError, match=r"no gradient reaches the picture: .* torch\.no_grad\(\)"):
        nbviz.guided_backprop(kind().eval(), X, target=1)


class Detached(Plain):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x).detach()


@pytest.mark.parametrize("kind", [Detached, OffAfterwards])
def test_a_class_that_does_not_depend_on_the_layer_names_no_grad(kind: type[Plain]) -> None:
    with pytest.raises(ModelError, match=r"from the class scores to layer 'back\.1': .* torch\.no_grad\(\)"):
        nbviz.grad_cam(kind().eval(), X, "back.1", 1)


def test_checkpoints_of_other_threads_are_left_alone() -> None:
    original = torch.utils.checkpoint.CheckpointFunction
    seen: list[str] = []

    class Looking(Recomputed):
        def features(self, x: Tensor) -> Tensor:
            def other() -> None:
                y = torch.ones(3, requires_grad=True)
                seen.append(torch.utils.checkpoint.checkpoint(torch.exp, y, use_reentrant=True).grad_fn.name())

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return super().features(x)

    nbviz.grad_cam(Looking().eval(), X, "back.1", 1)
    assert seen
    assert set(seen) == {"CheckpointFunctionBackward"}
    assert torch.utils.checkpoint.CheckpointFunction is original
