"""What a model answers to pictures, as they are or changed: its class scores, with their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nbviz.core.errors import line
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.state import device_aside, user_device
from nbviz.core.trace import run
from nbviz.core.weights import Watch, WeightsChanged, is_being_changed
from nbviz.methods.subject import Subject
from nbviz.pictures.load import Pictures
from nbviz.pictures.preprocess import check_labels
from nbviz.widgets.memory import remember

Result = TypeVar("Result")


class Answers:
    """A model, some pictures and what it answers to them.

    Parameters
    ----------
    model, images, preprocess
        As in :func:`nbviz.load`.
    inputs, output
        As in :func:`nbviz.reconstruct`.

    Attributes
    ----------
    labels
        The names of the classes; None for a model that gives no class scores.
    trace_bytes
        What is kept of the model's forward passes, see :mod:`nbviz.widgets.memory`.
    forward_passes
        How many were run, for people who count.
    under_autocast
        Gives a context: the autocast under which the widget was made.
    """

    labels: tuple[str, ...] | None

    def __init__(
        self, model: nn.Module, images: Any, preprocess: Any = None, inputs: Any = None, output: Any = None
    ) -> None:
        self._asked = asked = Subject.of(model, images, preprocess, inputs, output)
        self.model, self.pictures, self.feed, self.output = asked.model, asked.pictures, asked.feed, asked.output
        # Where a picture's answers hang on the others of its batch, all go together, as in the functions.
        self._together = len(asked) > 1 and not asked.apart
        self.under_autocast = context_of_now(self.pictures.inputs.device)
        self.trace_bytes = self.forward_passes = 0
        #: What the passes run on: the model, or a copy while another thread trains it.
        self.subject = self.model
        self._watch, self._is_settled = Watch(self.model), False
        self._resumable: tuple[tuple[Any, ...], Resumable] | None = None
        self._answer: tuple[Any, Tensor | None] | None = None
        self._predictions: dict[tuple[Any, ...], list[tuple[str, float]]] = {}

    def name_classes(self, given: Any, labels: Sequence[str] | None) -> None:
        """Take the classes' names, given or found, and the first answer, from what the model gives."""
        scores = self._scores(given)
        classes = scores.shape[1] if scores is not None and scores.shape[1] > 1 else None
        self.labels = _names(classes, labels, self.pictures.preprocess.labels)
        if self.labels is not None and not self._watch.is_past():
            self._predictions[0, self.weights] = self._top(scores, 0)

    @property
    def weights(self) -> int:
        """Which state of the weights is shown: a number that grows when they have changed."""
        if not self._is_settled:
            self.settle(in_full=False)
        return self._watch.state

    @contextmanager
    def settled(self) -> Iterator[None]:
        """While inside, all answers are of one state of the weights, that of the last :meth:`settle`.

        Raises
        ------
        WeightsChanged
            When that is no more to be had; :meth:`settle` again.
        """
        self._is_settled = True
        try:
            if self.subject is self.model and self._watch.is_past():
                raise WeightsChanged
            yield
        finally:
            self._is_settled = False

    def settle(self, in_full: bool, is_trained: bool = False) -> bool:
        """Take the weights as they are now; whether they have changed.

        Parameters
        ----------
        in_full
            Look at all of them.
        is_trained
            Another thread was seen to change them: take a copy.
        """
        before = self._watch.state
        self._watch.look(in_full)
        if is_trained or is_being_changed(self.model):
            self.subject = self._watch.copy()
        elif self._watch.state != before:
            self.subject = self.model
        return self._watch.state != before

    def ask(self, work: Callable[[nn.Module], Result]) -> Result:
        """What some work gives for the model, with the weights that are shown.

        Raises
        ------
        WeightsChanged
            When another thread has changed them meanwhile.
        """
        subject = self.subject
        try:
            result = work(subject)
        except Exception:
            if subject is self.model and self._watch.is_past():
                raise WeightsChanged from None
            raise
        if subject is self.model and self._watch.is_past():
            raise WeightsChanged
        return result

    def _scores(self, given: Any) -> Tensor | None:
        """The class scores (N, classes) in what the model gives; None where there are none and none were asked for."""
        try:
            return self._asked.scores(given)
        except (TypeError, ValueError):
            if self.output is not None:
                raise
            return None

    def only(self, picture: int) -> Pictures:
        """One of the pictures."""
        part = slice(picture, picture + 1)
        return replace(self.pictures, inputs=self.pictures.inputs[part], names=self.pictures.names[part])

    def batch(self, picture: int) -> Tensor:
        """What a picture goes through the model in: alone, or all of them."""
        return self.pictures.inputs if self._together else self.pictures.inputs[picture : picture + 1]

    def row(self, picture: int) -> int:
        """Where a picture is in its batch."""
        return picture if self._together else 0

    def forget(self) -> None:
        """Let go of what is kept of forward passes; the next question runs them again."""
        self._resumable, self.trace_bytes = None, 0

    def knows(self, picture: int) -> bool:
        """Whether the predictions for a picture need no pass any more."""
        return self.labels is None or (picture, self.weights) in self._predictions

    def predictions(self, picture: int) -> list[tuple[str, float]]:
        """The five most probable classes; empty for a model that gives no class scores.

        They need the whole network: a pass of their own, so that the layer's maps need not wait for what
        comes after them. It is run once for each picture.
        """
        if self.labels is None:
            return []
        key = picture, self.weights
        if key not in self._predictions:
            scores = self._scores(self._run(self.batch(picture)))
            self._predictions = {k: v for k, v in self._predictions.items() if k[1] == key[1]}
            self._predictions[key] = self._top(scores, self.row(picture))
        return self._predictions[key]

    def without(self, picture: int, layer: str, off: Sequence[int]) -> list[tuple[str, float, float]]:
        """The most probable classes with some channels of a layer at zero: label, probability, and that with all.

        The five most probable with all channels, and what is the most probable without. Only what follows the layer
        is run.
        """
        if self.labels is None:
            return []
        key = (None if self._together else picture, layer, self.weights)
        if self._resumable is not None and self._resumable[0] != key:
            self.forget()  # the old one's memory first
        with self.under_autocast():
            if self._resumable is None:
                batch = self.batch(picture)
                self._resumable = key, self.ask(lambda model: Resumable(model, batch, layer, self.feed))
                self.forward_passes += 1
                self.trace_bytes += self._resumable[1].activation.nbytes  # the most of what it keeps
            remember(self)
            one = self._resumable[1]
            mask = torch.zeros(1, one.activation.shape[1], dtype=torch.bool, device=one.activation.device)
            mask[0, list(off)] = True
            after = self.ask(lambda _: self._scores(one.go_on(switch_off(one.activation, mask))))
        before, row = self._scores(one.output), self.row(picture)
        return [] if before is None or after is None else compared(self.labels, before[row][None], after[row][None])

    def scores_of(self, picture: int) -> Tensor | None:
        """The class scores (1, classes) of a picture, if the model gives any; kept for the last one."""
        key = picture, self.weights
        if self._answer is None or self._answer[0] != key:
            self._answer = key, self._scores(self._run(self.batch(picture)))
        scores = self._answer[1]
        return None if scores is None else scores[self.row(picture)][None]

    def changed(self, picture: int, inputs: Tensor) -> list[tuple[str, float, float]]:
        """The most probable classes of another input (1, C, H, W) in a picture's place, as :meth:`without` has them."""
        if self.labels is None:
            return []
        batch, row = self.batch(picture), self.row(picture)
        before = self.scores_of(picture)
        after = self._scores(self._run(torch.cat([batch[:row], inputs, batch[row + 1 :]])))
        return [] if after is None else compared(self.labels, before, after[row][None])

    def _run(self, batch: Tensor) -> Any:
        """The model's output."""
        with self.under_autocast():
            output = self.ask(lambda model: run(model, batch, feed=self.feed, output=True).output)
        self.forward_passes += 1
        return output

    def _top(self, given: Tensor | None, row: int) -> list[tuple[str, float]]:
        if given is None:
            return []
        probabilities = _probabilities(given.detach()[row].float())
        if not bool(probabilities.isfinite().all()):
            return []
        values, classes = probabilities.topk(min(5, len(probabilities)))
        names = self.labels or ()
        return [(line(names[c]), v) for v, c in zip(values.tolist(), classes.tolist(), strict=True)]


def context_of_now(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Gives today's autocast and default device as a context, for the threads on which widgets answer."""
    kind, default = device.type, user_device()
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @contextmanager
    def again() -> Iterator[None]:
        with torch.autocast(kind, dtype, enabled), device_aside(default):
            yield

    return again


def compared(labels: Sequence[str], before: Tensor | None, after: Tensor | None) -> list[tuple[str, float, float]]:
    """From two class scores (1, classes) the five most probable classes before, and the most probable after.

    Label, probability after and before.
    """
    if before is None or after is None:
        return []
    p, q = (_probabilities(scores.detach()[0].float()) for scores in (before, after))
    if not (bool(p.isfinite().all()) and bool(q.isfinite().all())):
        return []
    chosen = p.topk(min(5, len(p))).indices.tolist()
    chosen += [] if int(q.argmax()) in chosen else [int(q.argmax())]
    return [(line(labels[c]), float(q[c]), float(p[c])) for c in chosen]


def _probabilities(scores: Tensor) -> Tensor:
    """Of class scores (classes,), which may be probabilities already."""
    already = bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-3
    return scores if already else scores.softmax(0)


def _names(classes: int | None, given: Sequence[str] | None, found: Sequence[str] | None) -> tuple[str, ...] | None:
    """A name for each output of the model, or None for a model that gives no class scores."""
    if given is not None:
        names = check_labels(given)
        if classes is not None and len(names) != classes:
            raise ValueError(f"labels has {len(names)} names for the model's {classes} outputs; expected one for each")
        return names if classes is not None else None
    if classes is None:
        return None
    if found is not None and len(found) == classes:
        return tuple(found)
    return tuple(f"class {i}" for i in range(classes))
