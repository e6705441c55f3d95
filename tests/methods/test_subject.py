"""A model and pictures: checked once, cut into parts that know who they are, put together again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbviz.core.layers import trace_layers
from nbviz.errors import CompiledWarning, ModelError
from nbviz.methods import subject as its_module
from nbviz.methods.subject import Subject

X = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)).eval()


def test_it_is_checked_in_one_order(net: nn.Module) -> None:
    """First inputs=, then the model, then the pictures, then whether there are values."""
    wrong: Any = 3
    with pytest.raises(TypeError, match="inputs is int; expected a callable"):
        Subject.of(wrong, wrong, inputs=wrong)
    with pytest.raises(TypeError, match=r"model is int; expected a torch\.nn\.Module"):
        Subject.of(wrong, wrong)
    with pytest.raises(TypeError, match="images: got int"):
        Subject.of(net, wrong)
    with pytest.raises(TypeError, match="the model's input is a sparse, nested, quantised or meta tensor"):
        Subject.of(net.to("meta"), X)
    assert Subject.of(net, X, values=False).inputs.is_meta


def test_of_a_compiled_model_it_has_the_eager_one(net: nn.Module) -> None:
    with pytest.warns(CompiledWarning):
        assert Subject.of(torch.compile(net, backend="eager"), X).model is net


def test_only_pictures_where_they_are_required() -> None:
    signals = Subject.of(nn.Conv1d(1, 2, 3), torch.rand(2, 1, 8))
    with pytest.raises(ValueError, match=r"the model takes \(2, 1, 8\); expected pictures \(N, C, H, W\)"):
        signals.require_pictures()


@pytest.mark.parametrize("most", [7, 3, 1])
def test_parts_are_halved_and_joined_and_know_their_numbers(net: nn.Module, most: int) -> None:
    subject, seen = Subject.of(net, X), []

    def work(part: Subject) -> dict[str, Tensor]:
        if len(part) > most:
            raise torch.OutOfMemoryError
        seen.extend(part.numbers)
        assert torch.equal(part.inputs, X[part.numbers.start : part.numbers.stop])
        assert part.pictures.names == subject.pictures.names[part.numbers.start : part.numbers.stop]
        return {"scores": part.answer(), "numbers": torch.tensor(part.numbers)}

    found = subject.in_parts(work)
    assert seen == found["numbers"].tolist() == list(range(7))
    torch.testing.assert_close(found["scores"], net(X))


def test_a_part_of_a_part_has_its_place_in_the_whole(net: nn.Module) -> None:
    part = Subject.of(net, X).part(range(2, 6)).part(range(1, 3))
    assert list(part.numbers) == [3, 4]
    scores = part.answer()
    assert part.targets([0, 1, 2, 3, 4, 0, 1], scores).tolist() == [3, 4]
    assert part.targets(2, scores).tolist() == [2, 2]
    assert torch.equal(part.targets(None, scores), scores.argmax(1))
    with pytest.raises(ValueError, match=r"target has 2 classes for 7 picture\(s\)"):
        part.targets([0, 1], scores)


def test_other_inputs_are_pictures_of_their_own(net: nn.Module) -> None:
    other = Subject.of(net, X).part([5]).with_inputs(X[:2])
    assert list(other.numbers) == [0, 1]
    assert other.targets([3, 1], other.answer()).tolist() == [3, 1]


@pytest.mark.parametrize("why", ["inputs=", "normalised by each other"])
def test_pictures_that_belong_together_stay_so(net: nn.Module, why: str) -> None:
    if why == "inputs=":
        subject = Subject.of(net, X, inputs=lambda pictures: pictures - pictures.mean(0))
        assert torch.equal(subject.first, X)
    else:
        subject = Subject.of(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), net), X)
        assert torch.equal(subject.first, X[:1])
    assert not subject.apart

    def work(part: Subject) -> Tensor:
        assert len(part) == 7
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="out of memory for one picture"):
        subject.in_parts(work)


def test_the_selector_is_a_one_at_each_pictures_class(net: nn.Module) -> None:
    subject = Subject.of(net.double(), X[:2])
    selector = subject.selector([4, 0], subject.answer())
    assert selector.dtype == torch.float64
    assert selector.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_scores_are_where_output_says(net: nn.Module) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": net(x), "other": None}

    assert torch.equal(Subject.of(Several(), X, output="logits").answer(), net(X))
    with pytest.raises(TypeError, match="the model gives a dict; expected class scores"):
        Subject.of(Several(), X).answer()


def test_layers_are_learned_from_one_picture(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(model: nn.Module, inputs: Tensor, *more: Any) -> Any:
        seen.append(len(inputs))
        return trace_layers(model, inputs, *more)

    monkeypatch.setattr(its_module, "trace_layers", noted)
    subject = Subject.of(net, X)
    assert [layer.name for layer in subject.layers()] == ["0", "1", "2", "3"]
    assert seen == [1]
    assert subject.layer_names(None) == ["0", "1"]
    assert subject.layer_names(["3", "0", "3"]) == ["3", "0"]


def test_of_a_dataset_it_has_the_first_picture_that_can_be_read(net: nn.Module) -> None:
    dataset = torch.utils.data.TensorDataset(X, torch.arange(7))
    subject, source = Subject.of_dataset(net, dataset)
    assert torch.equal(subject.inputs, X[:1])
    assert [layer.name for layer in subject.layers()] == ["0", "1", "2", "3"]
    assert source.count == 7
    with pytest.raises(TypeError, match="an iterable dataset can be read only once; expected one with a length"):
        Subject.of_dataset(net, iter(dataset))
