"""Weights are found in what trainers write, and what was stripped is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbviz
from nbviz.methods.checkpoints import load_into
from tests.small import Small, pictures

State = dict[str, Tensor]


def prefixed(prefix: str) -> Callable[[nn.Module], State]:
    return lambda model: {prefix + key: value for key, value in model.state_dict().items()}


class Lightning(nn.Module):
    """A model beside a loss that has weights, too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net, self.criterion = model, nn.Linear(3, 3)


#: What is written, and what is said of it.
WRITTEN: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "plain": (lambda model: model.state_dict(), ""),
    "in parallel": (prefixed("module."), "without 'module.'"),
    "compiled in parallel": (prefixed("module._orig_mod."), "without 'module._orig_mod.'"),
    "of a trainer": (lambda model: Lightning(model).state_dict(), "without 'net.'"),
    "Lightning's": (
        lambda model: {"epoch": 3, "state_dict": Lightning(model).state_dict(), "optimizer_states": [{"state": {}}]},
        "['state_dict'], without 'net.'",
    ),
    "under a name": (lambda model: {"net": model.state_dict(), "acc": 0.9}, "['net']"),
    "under a strange name": (lambda model: {"weights of tuesday": model.state_dict()}, "['weights of tuesday']"),
    "two deep": (
        lambda model: {"trainer": {"model": prefixed("model.")(model)}},
        "['trainer']['model'], without 'model.'",
    ),
    "averaged": (lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(), "without 'module.'"),
    "beside an average": (
        lambda model: {"ema": Small(seed=5).state_dict(), "model": model.state_dict()},
        "['model']",
    ),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_the_weights_are_found(how: str) -> None:
    write, taken = WRITTEN[how]
    model, other = Small(seed=1).eval(), Small(seed=2).eval()
    assert load_into(other, "a", write(model)) == taken
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_what_was_stripped_is_said() -> None:
    model = Small().eval()
    (found,) = nbviz.evolution(model, {"end": prefixed("model.")(model)}, pictures(), "2", [0])
    assert found.taken == "without 'model.'"
    assert repr(found) == "CheckpointResult end (without 'model.'): 1 channels in 3 pictures"


def test_a_teacher_and_a_student_are_not_guessed() -> None:
    given = prefixed("teacher.")(Small(seed=3)) | prefixed("student.")(Small(seed=4))
    with pytest.raises(ValueError, match=r"checkpoint a holds several models: 'teacher\.…', 'student\.…'"):
        load_into(Small(), "a", given)


@pytest.mark.parametrize("given", [5, [1], {"state_dict": 5}, {3: torch.zeros(1)}, {"a": {"b": {"c": {"d": {}}}}}])
def test_what_is_no_state_dict_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="checkpoint a is a .*; expected a state dict, or a file of one"):
        load_into(Small(), "a", given)


def test_another_model_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ValueError, match="checkpoint a does not fit the model: .*Missing key"):
        load_into(Small(), "a", prefixed("model.")(nn.Linear(2, 2)))
