"""What a model's answer means: one of several classes, labels that may all hold, a value, or probabilities already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbviz.core.checks import check_choice

#: The kinds of answers, and what the numbers are that a model gives.
KINDS = {
    "classes": "scores of classes of which one holds, before the softmax",
    "labels": "scores of labels any of which may hold, before the sigmoid",
    "value": "values that are no scores: a regression, a distance",
    "probabilities": "probabilities already, after a softmax or a sigmoid",
}
_TOLERANCE = 1e-4  # of the sum of probabilities


@dataclass(frozen=True)
class Answer:
    """How a model's scores are read.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.

    Examples
    --------
    >>> scores = torch.tensor([[0.0, 0.0]])
    >>> Answer("classes").read(scores).tolist(), Answer("value").read(scores).tolist()
    ([[0.5, 0.5]], [[0.0, 0.0]])
    """

    kind: str

    @property
    def measure(self) -> str:
        """What :meth:`read` gives: "probability" or "value"."""
        return "value" if self.kind == "value" else "probability"

    def read(self, scores: Tensor) -> Tensor:
        """The probabilities (N, K) of classes or labels, or the values themselves; float32, or float64 as given."""
        numbers = scores if scores.dtype == torch.float64 else scores.float()
        if self.kind == "classes":
            return numbers.softmax(1)
        return numbers.sigmoid() if self.kind == "labels" else numbers

    def logits(self, scores: Tensor) -> Tensor:
        """Scores (N, K) of which the softmax gives the probabilities, for accuracy and cross-entropy.

        Raises
        ------
        ValueError
            For one score for each picture, which is of no class.
        """
        if scores.shape[1] < 2:
            raise ValueError(
                "the model gives one score for each picture; expected scores of classes (N, classes), which accuracy, "
                "loss and importance need"
            )
        if self.kind != "probabilities":
            return scores
        with torch.set_grad_enabled(scores.requires_grad):  # as the pass that made them
            return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def answer_of(scores: Tensor, given: str | None = None, ends_in_sigmoid: Callable[[], bool] = lambda: False) -> Answer:
    """How scores (N, K) of whole pictures are read: as it is given, else as it is beyond doubt, else as classes.

    Parameters
    ----------
    scores
        The answers to unchanged pictures.
    given
        The argument ``answer=`` of all methods.
    ends_in_sigmoid
        Called where the scores may be probabilities that do not add up to 1.

    Examples
    --------
    >>> [answer_of(torch.tensor(rows)).kind for rows in ([[2.0, -1.0]], [[0.3]], [[0.7, 0.3]])]
    ['classes', 'value', 'probabilities']
    """
    if given is not None:
        return Answer(check_choice("answer", given, KINDS))
    numbers = scores.detach().float()
    between = bool(((numbers >= 0) & (numbers <= 1)).all())
    if between and numbers.shape[1] > 1:
        slack = max(_TOLERANCE, numbers.shape[1] * torch.finfo(scores.dtype).eps if scores.is_floating_point() else 0)
        if bool(((numbers.sum(1) - 1).abs() <= slack).all()):
            return Answer("probabilities")
    if between and ends_in_sigmoid():
        return Answer("probabilities")
    return Answer("value" if numbers.shape[1] == 1 else "classes")


def is_sigmoid(output: Tensor) -> bool:
    """Whether a sigmoid made an output, going by its autograd graph; views of it count as it."""
    node = output.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


_VIEWS = (
    *("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "SqueezeBackward", "UnsqueezeBackward"),
    *("SelectBackward", "SliceBackward", "ToCopyBackward", "CloneBackward", "AliasBackward", "TransposeBackward"),
)
