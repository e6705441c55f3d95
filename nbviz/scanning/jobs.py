"""The work of a scan: one pass over a dataset in numbered batches, from which statistics are collected.

The batches do not depend on how the work is divided. A worker processes a part, that is some of the batches, with
statistics of its own, which are merged into the total. The result does not depend on the parts or their order: counts
and extremes never do, and floating-point sums are made along a fixed tree over the batches, see
:func:`nbviz.scanning.statistic.merge_trees`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.answers import answer_of
from nbviz.core.arguments import check_channels, check_logits
from nbviz.core.calls import Feed
from nbviz.core.chunks import out_of_memory, too_large
from nbviz.core.errors import ModelError, line
from nbviz.core.layout import Layout
from nbviz.core.resume import Resumable
from nbviz.core.trace import run
from nbviz.core.weights import fingerprint
from nbviz.scanning.dataset import Inputs
from nbviz.scanning.labels import Label
from nbviz.scanning.records import LoadedBatch, PartialResult
from nbviz.scanning.statistic import NAMELESS, Batch, Statistic

_ACCEPTED_LABELS = (
    "whole numbers, or a dataset with an attribute classes: the names in the order of the model's outputs"
)


def _within(label: Label, classes: int) -> Label:
    """The label, if it can be one of ``classes`` classes, else a label of no class."""
    length = label.classes or classes
    if label.number < classes and length == classes:
        return label
    reason = f"one-hot for {length} classes" if length != classes else "no class"
    return Label(reason=f"{reason} where the model has {classes}", given=str(label.number))


@dataclass
class Job:
    """Everything a worker needs; sent to each worker once."""

    model: nn.Module
    source: Inputs
    statistics: dict[str, Statistic]
    device: torch.device
    feed: Feed = None
    pick: Any = None  # the argument ``output=``, see check_logits
    _resumable: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # by layer, see Resumable's ``known``

    def __post_init__(self) -> None:
        kind = self.device.type if torch.amp.is_autocast_available(self.device.type) else "cpu"
        #: The autocast state of the thread that starts the scan, for the executor's workers.
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def fresh(self) -> PartialResult:
        """An empty result."""
        return PartialResult(copy.deepcopy(self.statistics))

    def process(self, loaded: LoadedBatch, result: PartialResult) -> None:
        """Run the model on a batch and update the statistics."""
        nameless = next((labels for labels in loaded.no_class if labels.reason == NAMELESS), None)
        if nameless is not None and self._needs_labels():
            raise ValueError(
                f"picture {nameless.index} has the label {nameless.label}, {NAMELESS}; expected {_ACCEPTED_LABELS}"
            )
        with torch.no_grad():
            measured = self._measure(loaded, result.statistics) if loaded.inputs is not None else {}
            with result.updating():
                for name, value in measured.items():
                    result.statistics[name].update(value)
                result.add(loaded)

    def _needs_labels(self) -> bool:
        return any(statistic.needs_labels for statistic in self.statistics.values())

    def _measure(self, loaded: LoadedBatch, statistics: dict[str, Statistic]) -> dict[str, Any]:
        """What each statistic measures of a batch."""
        assert loaded.inputs is not None
        inputs, indices = loaded.inputs.to(self.device), torch.tensor(loaded.indices)
        activations: dict[str, Tensor] = {}
        go_on = self._make_go_on(inputs)
        batch = Batch(loaded.number, indices, inputs, self._numbers(loaded), activations, None, go_on)
        measured: dict[str, Any] = {}
        late = {name: s for name, s in statistics.items() if not (s.early and len(s.layers) == 1)}
        reduced: dict[str, dict[str, Tensor]] = {name: {} for name in late}

        def use(layer: str, activation: Tensor, layout: Layout | None) -> bool:
            """Measure or reduce the activation; whether it has to be kept as it is."""
            activation = check_channels(layer, activation, layout, len(inputs)).detach()
            activations[layer] = activation
            keep = False
            for name, statistic in statistics.items():
                if name not in late and statistic.layers == (layer,):
                    measured[name] = statistic.measure(batch)
                elif name in late and layer in statistic.layers:
                    smaller = statistic.reduce(activation)
                    if smaller is activation:
                        keep = True
                    else:
                        reduced[name][layer] = smaller
            del activations[layer]
            return keep

        layers = list(dict.fromkeys(layer for statistic in statistics.values() for layer in statistic.layers))
        logits = any(statistic.logits for statistic in statistics.values())
        grad = any(statistic.grad for statistic in statistics.values())
        try:
            if layers or logits:
                trace = run(self.model, inputs, layers, feed=self.feed, output=logits, grad=grad, use=use)
                if logits:
                    batch.logits = self._logits(trace.output)
                    classes = batch.logits.shape[1] // max(s.side_by_side for s in statistics.values())
                    loaded.labels = [_within(label, classes) for label in loaded.labels]
                    batch.labels = self._numbers(loaded)
                    names, alphabetic = self.source.names if self._needs_labels() else (None, False)
                    if names and alphabetic and len(names) != classes:
                        raise ValueError(
                            f"the labels are {len(names)} names and the model has {classes} classes: which is which is "
                            f"not known; expected {_ACCEPTED_LABELS}"
                        )
                activations.update(trace.activations)
            for name, statistic in late.items():
                measured[name] = statistic.measure(replace(batch, activations={**activations, **reduced[name]}))
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, ModelError):
                raise
            raise too_large(f"a batch of {len(inputs)} pictures (batch_size=)", error) from error
        return measured

    def _logits(self, output: Any) -> Tensor:
        """The class scores before the softmax (N, classes), from those or from probabilities in a model's output."""
        scores = check_logits(output, self.pick)
        return answer_of(scores).logits(scores)

    def _numbers(self, loaded: LoadedBatch) -> Tensor:
        """The pictures' classes (N,)."""
        return torch.tensor([label.number for label in loaded.labels], device=self.device)

    def _make_go_on(self, inputs: Tensor) -> Callable[[str, Tensor], Tensor]:
        @cache
        def resumable(layer: str) -> Resumable:
            made = Resumable(self.model, inputs, layer, self.feed, self._resumable.get(layer))
            self._resumable.setdefault(layer, (made.skips, made.widens))
            return made

        def go_on(layer: str, activation: Tensor) -> Tensor:
            variants = [activation] if resumable(layer).widens else activation.split(len(inputs))
            return torch.cat([self._logits(resumable(layer).go_on(variant)) for variant in variants])

        return go_on


def scan_here(job: Job, total: PartialResult, workers: int, weights: Hashable) -> Generator[None, None, None]:
    """Process the batches that are not done in this process, as long as the model's weights stay the same."""
    batches = None if job.source.batches is None else total.missing(job.source.batches)
    try:
        for loaded in job.source.load(batches, workers):
            job.process(loaded, total)
            if fingerprint(job.model) != weights:
                total.torn = True  # the last batch may have seen other weights
                raise ModelError(
                    f"the weights of {type(job.model).__name__} were changed while it was scanned, by another thread "
                    "or the dataset; expected a model at rest, or a copy of it (copy.deepcopy)"
                )
            yield
    except Exception as error:
        if not (reason := _dead_reader(error)):
            raise
        raise RuntimeError(
            f"one of the processes that read pictures (workers={workers}) has died: {reason}; it was killed, as when "
            "memory runs out, or crashed on a file. Expected fewer workers, or 0; with checkpoint= a scan can be "
            "resumed"
        ) from error


def _dead_reader(error: BaseException | None) -> str:
    """Torch's message about a reader process that has died, if one caused the error."""
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            return line(error)
        error = error.__cause__ or error.__context__
    return ""
