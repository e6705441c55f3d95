"""The look at a model before and after, which the other tests lean on, sees every kind of mark."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from nbviz.core.state import lock


def keep_grad_mode_off(model):
    torch.set_grad_enabled(False)


def replace_weight(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def flip_the_sign_of_zero(model):
    with torch.no_grad():
        model[0].bias[0] *= -1


MARKS = {
    "weight": lambda model: model[0].weight.data.mul_(1.5),
    "sign of zero": flip_the_sign_of_zero,
    "weight replaced": replace_weight,
    "grad": lambda model: model(torch.rand(1, 1, 4, 4)).sum().backward(),
    "requires_grad": lambda model: model[0].requires_grad_(False),
    "buffer": lambda model: model[1].running_mean.add_(1),
    "buffer replaced": lambda model: setattr(model[1], "running_mean", model[1].running_mean.clone()),
    "new buffer": lambda model: model[0].register_buffer("extra", torch.zeros(1)),
    "training": lambda model: model[1].train(),
    "child": lambda model: setattr(model, "1", nn.Identity()),
    "attribute": lambda model: setattr(model[0], "note", 1),
    "forward hook": lambda model: model[0].register_forward_hook(print),
    "forward pre-hook": lambda model: model[0].register_forward_pre_hook(print),
    "backward hook": lambda model: model[0].register_full_backward_hook(print),
    "backward pre-hook": lambda model: model[0].register_full_backward_pre_hook(print),
    "state dict hook": lambda model: model[0].register_state_dict_pre_hook(print),
    "tensor hook": lambda model: model[0].weight.register_hook(print),
    "accumulate hook": lambda model: model[0].weight.register_post_accumulate_grad_hook(print),
    "torch random": lambda model: torch.rand(1),
    "numpy random": lambda model: np.random.rand(),  # noqa: NPY002
    "python random": lambda model: random.random(),
    "grad mode": keep_grad_mode_off,
    "default device": lambda model: torch.set_default_device("meta"),
    "lock": lambda model: lock.acquire(),
}


@pytest.fixture
def model():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    nn.init.zeros_(net[0].bias)
    nn.init.constant_(net[1].running_var, float("nan"))  # equals itself here
    yield net
    torch.set_grad_enabled(True)
    torch.set_default_device(None)
    while lock._is_owned():
        lock.release()


def test_a_model_left_alone_passes(model, snapshot):
    with snapshot(model), torch.no_grad():
        model(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_seen(mark, model, snapshot):
    with pytest.raises(AssertionError), snapshot(model):
        MARKS[mark](model)


def test_a_mark_is_seen_after_an_exception_too(model, snapshot):
    with pytest.raises(AssertionError), snapshot(model):
        model[0].requires_grad_(False)
        raise KeyError


def test_a_global_hook_is_seen(model, snapshot):
    handles = []
    with pytest.raises(AssertionError), snapshot(model):
        handles.append(nn.modules.module.register_module_forward_hook(print))
    handles[0].remove()
