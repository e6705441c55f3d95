"""What every method works on: a model, pictures as its input, how it is called and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from nbviz.core.answers import KINDS, Answer, answer_of, is_sigmoid
from nbviz.core.arguments import check_feed, check_logits, check_target
from nbviz.core.calls import Feed
from nbviz.core.checks import check_choice, check_tensor
from nbviz.core.chunks import in_chunks, joined, kept_together
from nbviz.core.documented import documented_like
from nbviz.core.errors import ModelError
from nbviz.core.layers import Layers, layers_of, trace_layers
from nbviz.core.state import check_model, eager
from nbviz.core.trace import Graph, Trace, run
from nbviz.core.types import Dataset, Images, ModelInputs, Preprocessing, ScoresIn
from nbviz.core.weights import steady
from nbviz.pictures.load import Pictures, Reader, load
from nbviz.scanning.dataset import Inputs, check_dataset

#: Results of a method: a tensor with a row for each picture, or several such tensors by name.
Rows = TypeVar("Rows", Tensor, dict[str, Tensor])
Item = TypeVar("Item")
P = ParamSpec("P")
Result = TypeVar("Result")


def as_method(*like: object) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Make a function of a model a method: it works on one state of the weights, and its docstring is completed.

    Parameters
    ----------
    like
        Functions from whose docstrings it is completed first; see :func:`nbviz.core.documented.documented_like`.
    """
    return lambda function: documented_like(*like)(steady(function))


@dataclass(frozen=True)
class Subject:
    """A model and pictures as its input.

    Parameters
    ----------
    model
        The model, checked. For a compiled model, the eager one inside it.
    pictures
        The pictures as the model takes them.
    feed
        From the pictures to what the model is called with; see :func:`nbviz.core.calls.call_model`.
    output
        Where the class scores are in what the model returns; see :func:`nbviz.core.arguments.check_logits`.
    kind
        What they mean, as it was given; see :func:`nbviz.core.answers.answer_of`.
    start, count
        For a part of a larger subject: the index of its first picture there, and how many pictures there are in all.

    Examples
    --------
    >>> import torch
    >>> subject = Subject.of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2))
    >>> subject.answer().shape, subject.in_parts(lambda part: part.answer(), at_once=2).shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    model: nn.Module
    pictures: Pictures
    feed: Feed = None
    output: Any = None
    kind: str | None = None
    start: int = 0
    count: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Images,
        preprocess: Preprocessing | None = None,
        inputs: ModelInputs | None = None,
        output: ScoresIn | None = None,
        answer: str | None = None,
        *,
        values: bool = True,
    ) -> Subject:
        """From the arguments that all methods share, checked.

        ``values=False`` accepts a model on the meta device, whose layers have shapes but no values.

        Raises
        ------
        TypeError, PictureError, ModelError
            What :func:`nbviz.load` raises; TypeError also for ``inputs`` that is not callable.
        """
        if answer is not None:
            check_choice("answer", answer, KINDS)
        feed, pictures = check_feed(inputs), load(model, images, preprocess)  # which checks the model
        if values:
            check_tensor("the model's input", pictures.inputs, "on a device that holds values")
        return cls(eager(model), pictures, feed, output, answer)

    @classmethod
    def of_dataset(
        cls,
        model: nn.Module,
        dataset: Dataset,
        preprocess: Preprocessing | None = None,
        inputs: ModelInputs | None = None,
    ) -> tuple[Subject, Inputs]:
        """The model with the first readable picture of a dataset, which shows what its layers are; and the dataset.

        Raises
        ------
        TypeError
            For a dataset without a length.
        """
        reader, feed = Reader.of(model, preprocess), check_feed(inputs)
        source = Inputs(check_dataset(dataset), reader, 1)
        if source.count is None:
            raise TypeError("an iterable dataset can be read only once; expected one with a length and items")
        return cls(check_model(model), Pictures(source.first(), reader.preprocess, ("",)), feed), source

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def inputs(self) -> Tensor:
        """The pictures as a batch (N, C, H, W), or (N, C, L), (N, C, D, H, W), on the model's device."""
        return self.pictures.inputs

    @property
    def first(self) -> Tensor:
        """As many pictures as one pass needs to find the layers."""
        # With inputs=, the model's other arguments may belong to the whole batch.
        return self.inputs if self.feed is not None else self.inputs[:1]

    @property
    def numbers(self) -> range:
        """The indices of these pictures among all pictures."""
        return range(self.start, self.start + len(self))

    def layers(self) -> Layers:
        """The model's layers in the order in which they finish, from one pass."""
        return trace_layers(self.model, self.first, self.feed)[0]

    def layer_names(self, given: Any) -> list[str]:
        """The names given, checked. For None, the first and the last layer that give feature maps."""
        return layers_of(self.model, self.first, self.feed, given)

    def require_pictures(self) -> None:
        """Raise a ValueError for signals and volumes."""
        if self.inputs.ndim != 4:
            raise ValueError(f"the model takes {tuple(self.inputs.shape)}; expected pictures (N, C, H, W)")

    # One pass, and what it returns.

    def run(self, layers: Sequence[str] = (), *, output: bool = False, grad: Graph = False) -> Trace:
        """One forward pass; see :func:`nbviz.core.trace.run`."""
        return run(self.model, self.inputs, layers, feed=self.feed, output=output, grad=grad)

    def scores(self, output: Any, count: int | None = None) -> Tensor:
        """The scores (N, K) in the model's output for these pictures, or for ``count`` variants of them."""
        return check_logits(output, self.output, len(self) if count is None else count)

    def reading(self, scores: Tensor) -> Answer:
        """How the scores (N, K) of unchanged pictures, and of variants of them, are read."""
        return answer_of(scores, self.kind, self._ends_in_sigmoid)

    def _ends_in_sigmoid(self) -> bool:
        """Whether a sigmoid makes the scores, from a pass of its own; no, for a model that has no gradients."""
        whole = self.with_inputs(self.first)
        try:
            with torch.enable_grad():
                return is_sigmoid(whole.scores(whole.run(output=True, grad=True).output))
        except ModelError:
            return False

    def answer(self) -> Tensor:
        """The class scores (N, classes), from one pass."""
        return self.scores(self.run(output=True).output)

    def targets(self, target: Any, scores: Tensor) -> Tensor:
        """The class of each picture, int64 (N,): the given one, or the predicted one where ``target`` is None."""
        return check_target(target, scores, self.numbers, self.count or len(self))

    def selector(self, target: Any, scores: Tensor) -> Tensor:
        """One-hot classes (N, classes), from which a backward pass starts."""
        return nn.functional.one_hot(self.targets(target, scores), scores.shape[1]).to(scores.dtype)

    # Parts of the pictures, and other inputs.

    @property
    def apart(self) -> bool:
        """Whether the answer to a picture does not depend on the others in its batch."""
        return kept_together(self.model, 2, self.feed) == 1

    def part(self, numbers: Sequence[int]) -> Subject:
        """Neighbouring pictures by their indices, from 0."""
        chosen = slice(numbers[0], numbers[-1] + 1)
        pictures = replace(self.pictures, inputs=self.inputs[chosen], names=self.pictures.names[chosen])
        return replace(self, pictures=pictures, start=self.start + chosen.start, count=self.count or len(self))

    def with_inputs(self, inputs: Tensor) -> Subject:
        """The model with other inputs, numbered from 0."""
        return replace(self, pictures=replace(self.pictures, inputs=inputs), start=0, count=None)

    def with_variants(self, i: int, variants: Tensor) -> tuple[Subject, slice]:
        """The model with variants of picture i (K, C, H, W), and the rows of its answer that are theirs.

        Where pictures must share a batch, see :attr:`apart`, the one variant takes the place of its picture in it.
        """
        if self.apart:
            return self.with_inputs(variants), slice(None)
        batch, rows = self.inputs.clone(), slice(i, i + 1)
        batch[rows] = variants
        return self.with_inputs(batch), rows

    def in_parts(self, work: Callable[[Subject], Rows], at_once: int | None = None) -> Rows:
        """Call a function on parts of the pictures and join the results; a part too large for memory is halved.

        Parameters
        ----------
        work
            From a part to a tensor with a row for each of its pictures, or a dict of such tensors. It may be called
            again for pictures on which it failed.
        at_once
            How many pictures a part has at most; None takes all. Pictures that must share a batch are not separated.

        Raises
        ------
        ModelError
            When memory does not suffice for the smallest part.
        """
        n = len(self)
        least = kept_together(self.model, n, self.feed)
        at_once = max(at_once or n, least)
        pieces = in_chunks(lambda numbers: work(self.part(numbers)), range(n), at_once, "one picture", least)
        rows: Rows = _joined(pieces)
        return rows


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, evenly spaced from the first to the last.

    Examples
    --------
    >>> evenly_spaced("abcdefg", 3)
    ['a', 'd', 'g']
    """
    places = torch.linspace(0, len(items) - 1, min(count, len(items)), dtype=torch.float32).round().long()
    return [items[place] for place in places.tolist()]


def _joined(pieces: list[Any]) -> Any:
    """Tensors, or dicts of tensors with the same names, as one."""
    if isinstance(pieces[0], Tensor):
        return joined(pieces)
    return {name: joined([piece[name] for piece in pieces]) for name in pieces[0]}
