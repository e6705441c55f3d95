"""The coverage table: it runs, what it compares with is right by itself, and it finds what is wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nbviz
from nbviz.core import backward
from tests.reference import ACTIVATIONS, ByHand
from tests.zoo import table
from tests.zoo.check import check
from tests.zoo.models import Case, cases

SPELLED = {
    "relu": (),
    "relu6": (),
    "hardtanh": (0.0, 2.0),
    "threshold": (1.0, 0.0),
    "leaky_relu": (0.1,),
    "prelu": (torch.tensor([0.2, 0.3], dtype=torch.float64),),
    "rrelu": (0.1, 0.3),
    "elu": (1.5,),
    "celu": (0.7,),
    "selu": (),
    "silu": (),
    "gelu": (),
    "hardswish": (),
    "softplus": (2.0, 5.0),
    "mish": (),
}


@pytest.mark.parametrize("name", SPELLED)
def test_slopes_written_out_are_those_of_the_function(name):
    defaults, derivative = ACTIVATIONS[name]
    given = {**defaults, **dict(zip(list(defaults)[1:], SPELLED[name], strict=False))}
    given = {key: value for key, value in given.items() if key not in ("input", "inplace")}
    z = torch.tensor([-8.0, -2.5, -1.5, -0.9, -0.3, 0.2, 0.8, 1.7, 5.0, 8.0], dtype=torch.float64).repeat(1, 2, 1)
    measured = (getattr(F, name)(z + 1e-6, *SPELLED[name]) - getattr(F, name)(z - 1e-6, *SPELLED[name])) / 2e-6
    torch.testing.assert_close(derivative(z, **given), measured, rtol=1e-6, atol=1e-8)


def test_gelu_by_tanh():
    z = torch.linspace(-4, 4, 20, dtype=torch.float64)
    measured = (F.gelu(z + 1e-6, approximate="tanh") - F.gelu(z - 1e-6, approximate="tanh")) / 2e-6
    torch.testing.assert_close(ACTIVATIONS["gelu"][1](z, approximate="tanh"), measured, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rule", "expected"), [("gradient", [-6, 6]), ("deconvnet", [0, 2]), ("guided", [0, 6])])
def test_the_rules_written_out(rule, expected):
    z = torch.zeros(2, requires_grad=True)
    ByHand.apply(z, rule, torch.clone, torch.tensor([3.0, 3.0])).backward(torch.tensor([-2.0, 2.0]))
    assert z.grad.tolist() == expected


@pytest.mark.parametrize("key", ["torchvision/mobilenet_v3_small", "timm/test_resnet", "timm/test_convnext"])
def test_models_of_the_table_are_right(key):
    (case,) = [case for case in cases() if case.key == key]
    row = check(case)
    assert row.verdict == "right", row
    assert int(row.layers) >= int(row.maps) > 20
    assert max(map(float, (row.gradient, row.deconvnet, row.guided, row.grad_cam))) < 1e-4


def small(*more):
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *more
    return Case(
        "small", "timm", lambda: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    )


def test_a_wrong_rule_is_found(monkeypatch):
    assert check(small()).verdict == "right"
    monkeypatch.setattr(backward, "_RECTIFIERS", {})
    assert check(small()).verdict == "wrong"


def test_a_mark_on_the_model_is_found(monkeypatch):
    def layers(model, images):
        model[0].register_forward_hook(print)
        return original(model, images)

    original = nbviz.layers
    monkeypatch.setattr(nbviz, "layers", layers)
    row = check(small())
    assert row.verdict == "wrong"
    assert "hooks" in row.note


class Rounded(nn.Module):
    def forward(self, x):
        return x.detach()


class Fragile(nn.Module):
    """Fails in other hands."""

    def forward(self, x):
        if x.requires_grad:
            raise ValueError("no")
        return x


def test_a_refusal_is_none_if_the_model_runs_elsewhere():
    assert check(small(Rounded())).verdict == "refused"
    assert check(small(Fragile())).verdict == "wrong"


def test_the_table_is_read_back(tmp_path):
    rows = [("timm", table.Row("a", "64", note="so")), ("video", table.Row("b", verdict="right"))]
    table.write(rows, tmp_path / "table.md")
    assert table.read(tmp_path / "table.md") == {"timm/a": rows[0][1], "video/b": rows[1][1]}
    assert "2 models: 1 right, 0 refused, 0 wrong" in (tmp_path / "table.md").read_text()
