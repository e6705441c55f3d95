"""What a model's answer means is found where it is beyond doubt, and else taken as it was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nbviz.core.answers import KINDS, Answer, answer_of, is_sigmoid


def test_each_kind_is_read_as_it_says() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.5]])
    torch.testing.assert_close(Answer("classes").read(scores), scores.softmax(1))
    torch.testing.assert_close(Answer("labels").read(scores), scores.sigmoid())
    for kind in ("value", "probabilities"):
        assert torch.equal(Answer(kind).read(scores), scores)
    assert [Answer(kind).measure for kind in KINDS] == ["probability", "probability", "value", "probability"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 1000])
def test_probabilities_are_found_in_each_precision(classes: int, dtype: torch.dtype) -> None:
    scores = torch.randn(3, classes)
    assert answer_of(scores.softmax(1).to(dtype)).kind == "probabilities"
    assert answer_of(scores.to(dtype)).kind == "classes"
    assert answer_of(scores.log_softmax(1).to(dtype)).kind == "classes"  # of which the softmax is the same


def test_what_is_no_probability_is_not_taken_for_one() -> None:
    for rows in ([[0.2, 0.9]], [[0.7, 0.3], [0.7, 0.4]], [[1.5, -0.5]], [[float("nan"), 1.0]], [[3.0, 4.0]]):
        assert answer_of(torch.tensor(rows)).kind == "classes"
    assert answer_of(torch.tensor([[0.5], [0.2]])).kind == "value"
    assert answer_of(torch.tensor([[0.2, 0.9]]), ends_in_sigmoid=lambda: True).kind == "probabilities"
    assert answer_of(torch.tensor([[2.0, 0.9]]), ends_in_sigmoid=lambda: True).kind == "classes"


def test_what_was_given_is_taken() -> None:
    for kind in KINDS:
        assert answer_of(torch.tensor([[0.7, 0.3]]), kind).kind == kind
    with pytest.raises(ValueError, match="no answer 'label'; did you mean 'labels'"):
        answer_of(torch.tensor([[0.7, 0.3]]), "label")


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.flatten(1)).unsqueeze(2).squeeze(2)[:, :2].float()


def test_a_sigmoid_is_seen_behind_views_and_nothing_else_is() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    assert is_sigmoid(Squeezed()(x))
    assert is_sigmoid(x.sigmoid())
    assert not is_sigmoid(x.sigmoid() * 0.5)
    assert not is_sigmoid(x)
    assert not is_sigmoid(x.detach().sigmoid())
