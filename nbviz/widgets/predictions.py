"""A model's class scores for pictures, as they are or changed, with the names of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nbviz.core.answers import Answer
from nbviz.core.errors import line
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.state import device_aside, user_device
from nbviz.core.trace import run
from nbviz.core.weights import Watch, WeightsChanged, is_being_changed
from nbviz.methods.subject import Subject
from nbviz.pictures.preprocess import check_labels
from nbviz.widgets.memory import remember

Result = TypeVar("Result")
#: A class's name, its probability after a change, and its probability before.
Compared = tuple[str, float, float]


class Predictor:
    """A model and pictures, with the class scores that the model gives for them.

    Attributes
    ----------
    subject
        The model, its pictures, how it is called and where its class scores are.
    current_model
        The model that forward passes use: the subject's, or a copy while another thread trains it.
    labels
        The names of the classes; None for a model that gives no class scores.
    trace_bytes
        The bytes kept of forward passes, see :mod:`nbviz.widgets.memory`.
    forward_passes
        How many have been run, for tests and for the curious.
    under_autocast
        Makes a context with the autocast that was active when the widget was made.
    """

    labels: tuple[str, ...] | None
    answer: Answer  # how the scores are read

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        # Where a picture's scores depend on the others of its batch, all go together, as in the functions.
        self._is_joint = len(subject) > 1 and not subject.apart
        self.under_autocast = current_autocast(subject.inputs.device)
        self.trace_bytes = self.forward_passes = 0
        self.current_model = subject.model
        self._watch, self._is_settled = Watch(subject.model), False
        self._resumable: tuple[tuple[Any, ...], Resumable] | None = None
        self._last_scores: tuple[Any, Tensor | None] | None = None
        self._predictions: dict[tuple[Any, ...], list[tuple[str, float]]] = {}

    def name_classes(self, output: Any, labels: Sequence[str] | None) -> None:
        """Take the names of the classes, given or found, and the first predictions, from the model's output."""
        scores = self._scores(output, 0)
        given = None if labels is None else check_labels(labels)  # also where they name nothing
        self.answer = Answer("classes") if scores is None else self.subject.reading(scores[None])
        found = self.subject.pictures.preprocess.labels
        self.labels = None if scores is None else _names(len(scores), given, found, self.answer)
        if self.labels is not None and not self._watch.is_past():
            self._predictions[0, self.weights] = self._top(scores)

    # The state of the weights.

    @property
    def weights(self) -> int:
        """The state of the weights that is shown: a number that grows when they change."""
        if not self._is_settled:
            self.settle(in_full=False)
        return self._watch.state

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Within it, everything is computed from one state of the weights, that of the last :meth:`settle`.

        Raises
        ------
        WeightsChanged
            When that state is gone; :meth:`settle` again.
        """
        self._is_settled = True
        try:
            if self.current_model is self.subject.model and self._watch.is_past():
                raise WeightsChanged
            yield
        finally:
            self._is_settled = False

    def settle(self, in_full: bool, is_trained: bool = False) -> bool:
        """Look at the weights as they are now; whether they have changed.

        Parameters
        ----------
        in_full
            Look at all of them.
        is_trained
            Another thread has been seen to change them: take a copy.
        """
        before = self._watch.state
        self._watch.look(in_full)
        if is_trained or is_being_changed(self.subject.model):
            self.current_model = self._watch.copy()
        elif self._watch.state != before:
            self.current_model = self.subject.model
        return self._watch.state != before

    def ask(self, work: Callable[[nn.Module], Result]) -> Result:
        """The result of some work on the model, under autocast, with the weights that are shown.

        Raises
        ------
        WeightsChanged
            When another thread has changed them meanwhile.
        """
        model = self.current_model
        may_change = model is self.subject.model
        try:
            with self.under_autocast():
                result = work(model)
        except Exception:
            if may_change and self._watch.is_past():
                raise WeightsChanged from None
            raise
        if may_change and self._watch.is_past():
            raise WeightsChanged
        return result

    def ask_each(self, pieces: Iterator[Result]) -> Iterator[Result]:
        """The pieces of a computation, each computed when it is asked for, as by :meth:`ask`."""
        while (piece := self.ask(lambda _: next(pieces, None))) is not None:
            yield piece

    # Pictures and their batches.

    def batch(self, picture: int) -> Tensor:
        """The input with which a picture goes through the model: alone, or all pictures."""
        return self.subject.inputs if self._is_joint else self.subject.inputs[picture : picture + 1]

    def row(self, picture: int) -> int:
        """The picture's place in its batch."""
        return picture if self._is_joint else 0

    def forget(self) -> None:
        """Let go of what is kept of forward passes; they are run again when they are needed."""
        self._resumable, self.trace_bytes = None, 0

    # Class scores and predictions.

    def knows(self, picture: int) -> bool:
        """Whether the predictions for a picture need no forward pass."""
        return self.labels is None or (picture, self.weights) in self._predictions

    def predictions(self, picture: int) -> list[tuple[str, float]]:
        """The five most probable classes; empty for a model that gives no class scores.

        They need the whole network, and so a forward pass of their own, once for each picture: a layer's maps need not
        wait for the layers above it.
        """
        if self.labels is None:
            return []
        key = picture, self.weights
        if key not in self._predictions:
            self._predictions = {k: v for k, v in self._predictions.items() if k[1] == key[1]}
            self._predictions[key] = self._top(self.scores_of(picture))
        return self._predictions[key]

    def without(self, picture: int, layer: str, off: Sequence[int]) -> list[Compared]:
        """The predictions with some channels of a layer at zero, as :meth:`compared` gives them.

        Only the layers above it are run.
        """
        key = (None if self._is_joint else picture, layer, self.weights)
        if self._resumable is not None and self._resumable[0] != key:
            self.forget()  # before the new pass needs memory
        if self._resumable is None:
            batch = self.batch(picture)
            self._resumable = key, self.ask(lambda model: Resumable(model, batch, layer, self.subject.feed))
            self.forward_passes += 1
            self.trace_bytes += self._resumable[1].activation.nbytes  # the largest part of it
        remember(self)
        passed = self._resumable[1]
        mask = torch.zeros(1, passed.activation.shape[1], dtype=torch.bool, device=passed.activation.device)
        mask[0, list(off)] = True
        row = self.row(picture)
        after = self.ask(lambda _: self._scores(passed.go_on(switch_off(passed.activation, mask)), row))
        return self.compared(self._scores(passed.output, row), after)

    def scores_of(self, picture: int) -> Tensor | None:
        """A picture's class scores (classes,), if the model gives any; kept for the last picture."""
        key = picture, self.weights
        if self._last_scores is None or self._last_scores[0] != key:
            self._last_scores = key, self._scores(self._run(self.batch(picture)), self.row(picture))
        return self._last_scores[1]

    def changed(self, picture: int, inputs: Tensor) -> list[Compared]:
        """The predictions for another input (1, C, H, W) in a picture's place, as :meth:`compared` gives them."""
        batch, row = self.batch(picture), self.row(picture)
        before = self.scores_of(picture)
        return self.compared(before, self._scores(self._run(torch.cat([batch[:row], inputs, batch[row + 1 :]])), row))

    def compared(self, before: Tensor | None, after: Tensor | None) -> list[Compared]:
        """The five classes that were most probable before a change, and the most probable after it.

        The scores are (classes,) each. Label, probability after, and probability before.
        """
        p, q = self._read(before), self._read(after)
        if self.labels is None or p is None or q is None:
            return []
        chosen = p.topk(min(5, len(p))).indices.tolist()
        chosen += [] if int(q.argmax()) in chosen else [int(q.argmax())]
        return [(line(self.labels[c]), float(q[c]), float(p[c])) for c in chosen]

    def _run(self, batch: Tensor) -> Any:
        """The model's output."""
        output = self.ask(lambda model: run(model, batch, feed=self.subject.feed, output=True).output)
        self.forward_passes += 1
        return output

    def _scores(self, output: Any, row: int) -> Tensor | None:
        """One row's class scores in the model's output; None where there are none and none were asked for."""
        try:
            return self.subject.scores(output, len(self.subject) if self._is_joint else 1)[row]
        except (TypeError, ValueError):
            if self.subject.output is not None:
                raise
            return None

    def _read(self, scores: Tensor | None) -> Tensor | None:
        """Probabilities or values (K,); None where any is not finite."""
        if scores is None:
            return None
        read = self.answer.read(scores.detach()[None])[0].float()
        return read if bool(read.isfinite().all()) else None

    def _top(self, scores: Tensor | None) -> list[tuple[str, float]]:
        probabilities = self._read(scores)
        if probabilities is None:
            return []
        values, classes = probabilities.topk(min(5, len(probabilities)))
        names = self.labels or ()
        return [(line(names[c]), v) for v, c in zip(values.tolist(), classes.tolist(), strict=True)]


def current_autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts with the present autocast and default device, for the threads on which widgets do their work."""
    kind, default = device.type, user_device()
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @contextmanager
    def context() -> Iterator[None]:
        with torch.autocast(kind, dtype, enabled), device_aside(default):
            yield

    return context


def _names(count: int, given: Sequence[str] | None, found: Sequence[str] | None, answer: Answer) -> tuple[str, ...]:
    """A name for each of the model's scores."""
    names = tuple(found or () if given is None else given)
    if len(names) == count:
        return names
    if given is not None:
        raise ValueError(f"labels has {len(names)} names for the model's {count} outputs; expected one for each")
    if answer.kind == "value":
        return ("value",) if count == 1 else tuple(f"value {i}" for i in range(count))
    return tuple(f"class {i}" for i in range(count))
