"""Statistics of a model's answers: its accuracy, also with channels switched off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nbviz.core.checks import check_choice, check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import shown
from nbviz.core.resume import switch_off
from nbviz.scanning.statistic import Batch, Combined, LayerStatistic, Tree, leaf, merge_trees, tree_sum


@dataclass(frozen=True)
class AccuracyResult:
    """The accuracy over the pictures that have a label.

    Parameters
    ----------
    accuracy
        The fraction of pictures whose class has the highest score.
    top5
        The fraction of pictures whose class has one of the five highest scores.
    loss
        The mean cross-entropy.
    pictures
        The number of pictures with a label.
    per_class
        float64 (classes,): the accuracy on each class; NaN for classes without pictures.
    counts
        int64 (classes, classes): the confusion matrix, true classes as rows and predicted ones as columns.
    """

    accuracy: float
    top5: float
    loss: float
    pictures: int
    per_class: Tensor
    counts: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy; see :func:`wilson`."""
        return wilson(self.accuracy, self.pictures)


def wilson(proportion: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion found among n.

    E. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    Examples
    --------
    >>> low, high = wilson(0.9, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    middle, half = proportion + _Z**2 / (2 * n), _Z * math.sqrt(proportion * (1 - proportion) / n + _Z**2 / (4 * n * n))
    return (middle - half) / (1 + _Z**2 / n), (middle + half) / (1 + _Z**2 / n)


_Z = 1.959963984540054  # the normal quantile for 95 %, two-sided


class Accuracy(Combined):
    """Accuracy, also per class, loss and confusion matrix.

    Memory: 8 bytes for each pair of classes.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:200, None], labels[:200])
    >>> found = nbviz.scan(nbviz.bundled.load("fashion"), dataset, {"a": Accuracy()}, progress=False)["a"]
    >>> 0.9 < found.accuracy < 1, found.pictures
    (True, 200)
    """

    logits = needs_labels = True
    combine: ClassVar = {"losses": merge_trees, "in_five": add, "counts": add}

    def __init__(self) -> None:
        self.losses: Tree = {}
        self.in_five = 0
        self.counts = torch.zeros(1, 1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The accuracy on one batch; pictures without a label do not count."""
        assert batch.logits is not None
        labelled, classes = batch.labels >= 0, batch.logits.shape[1]
        logits, labels = batch.logits[labelled].double(), batch.labels[labelled]
        if not len(labels):
            return {}
        check_classes(labels, classes)
        pairs = (labels * classes + logits.argmax(1)).bincount(minlength=classes * classes).view(classes, classes)
        best = logits.topk(min(5, classes), 1).indices
        # Among equal scores, topk and argmax may differ.
        in_five = (best == labels[:, None]).any(1) | (logits.argmax(1) == labels)
        loss = F.cross_entropy(logits, labels, reduction="sum").cpu()
        return {"losses": leaf(batch, loss), "in_five": int(in_five.sum()), "counts": pairs.cpu()}

    def result(self) -> AccuracyResult | None:
        """The accuracy; None before the first picture with a label."""
        n = int(self.counts.sum())
        if not n:
            return None
        correct, loss = self.counts.diagonal(), float(tree_sum(self.losses)) / n
        per_class = correct.double() / self.counts.sum(1)
        return AccuracyResult(int(correct.sum()) / n, self.in_five / n, loss, n, per_class, self.counts.clone())


def check_classes(labels: Tensor, classes: int) -> None:
    """Check that all labels are classes of the model, or -1."""
    if int(labels.max()) >= classes:
        raise ValueError(f"a picture has the label {int(labels.max())}; expected 0 to {classes - 1}")


#: Which channels are switched off in a trial: one, or all but one.
ABLATIONS = ("zero", "keep")


@dataclass(frozen=True)
class AblationResult:
    """Accuracy and loss with channels switched off, for each of S trials; by default one for each of C channels.

    Parameters
    ----------
    accuracy, loss
        float64 (S,): over the pictures with a label.
    baseline, baseline_loss
        The same with all channels.
    per_class
        float64 (S, classes): the accuracy on each class; NaN for classes without pictures.
    ranking
        int64 (S,): the trials by increasing loss. With single channels switched off, the most redundant come first.
    pictures
        The number of pictures with a label.
    """

    accuracy: Tensor
    loss: Tensor
    baseline: float
    baseline_loss: float
    per_class: Tensor
    ranking: Tensor
    pictures: int


@documented
class Ablation(LayerStatistic):
    """Accuracy and loss with each channel of a layer switched off in turn, or kept alone.

    For each batch and channel, only what follows the layer runs. Memory: 8 bytes for each channel and class, and for
    each channel and doubling of the number of batches.

    Parameters
    ----------
    mode
        ``"zero"`` sets the channel to zero, ``"keep"`` sets all other channels to zero.
    value
        A value for each channel (C,) in place of zero, such as the mean from :class:`Moments`.
    off
        bool (S, C), in place of ``mode``: the channels that each of S trials switches off.
    at_once
        How many pictures go through what follows the layer at once.

    Examples
    --------
    Of two channels, the second decides:

    >>> import nbviz
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten(), torch.nn.Linear(2, 2))
    >>> net[2].weight.data = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> _ = torch.nn.init.zeros_(net[2].bias)
    >>> x = torch.tensor([[5.0, 1.0], [5.0, -1.0]]).view(2, 2, 1, 1)
    >>> dataset = torch.utils.data.TensorDataset(x, torch.tensor([0, 1]))
    >>> found = nbviz.scan(net, dataset, {"off": Ablation("0")}, progress=False)["off"]
    >>> found.baseline, found.accuracy.tolist(), found.ranking.tolist()
    (1.0, [1.0, 0.5], [0, 1])
    """

    logits, needs_labels, early = True, True, False
    combine: ClassVar = {"right": add, "pictures": add, "losses": merge_trees}

    def __init__(
        self,
        layer: str,
        mode: str = "zero",
        value: Tensor | None = None,
        off: Tensor | None = None,
        at_once: int = 256,
    ) -> None:
        super().__init__(layer)
        self.mode, self.at_once = check_choice("mode", mode, ABLATIONS), check_whole("at_once", at_once, 1)
        if value is not None and (not isinstance(value, Tensor) or value.ndim != 1):
            raise TypeError(f"value is {shown(value)}; expected a tensor (C,), or None for zero")
        if off is not None and (not isinstance(off, Tensor) or off.ndim != 2 or off.dtype != torch.bool):
            raise TypeError(f"off is {shown(off)}; expected a bool tensor (S, C), or None for each channel in turn")
        if off is not None and not len(off):
            raise ValueError("off has no trials; expected a bool tensor (S, C) of at least one")
        self.value, self.off = value, off
        self.right = torch.zeros(1, 1, dtype=torch.int64, device="cpu")  # (S + 1, classes), the last with all channels
        self.pictures = torch.zeros(1, dtype=torch.int64, device="cpu")  # of each class
        self.losses: Tree = {}

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The ablation on one batch; pictures without a label do not count."""
        assert batch.logits is not None
        assert batch.go_on is not None
        labelled = batch.labels >= 0
        labels, classes = batch.labels[labelled], batch.logits.shape[1]
        if not len(labels):
            return {}
        check_classes(labels, classes)
        maps, go_on = batch.activations[self.layers[0]], batch.go_on
        off, n = self._trials(maps), len(maps)
        right = torch.zeros(len(off) + 1, classes, dtype=torch.int64, device="cpu")
        loss = torch.zeros(len(off) + 1, dtype=torch.float64, device="cpu")

        def note(row: int, logits: Tensor) -> None:
            logits = logits[labelled].double()
            right[row] = labels[logits.argmax(1) == labels].bincount(minlength=classes).cpu()
            loss[row] = F.cross_entropy(logits, labels, reduction="sum").cpu()

        note(len(off), batch.logits)
        for trials in torch.arange(len(off)).split(max(1, self.at_once // n)):
            variants = switch_off(maps, off[trials.to(off.device)], self.value)
            for trial, logits in zip(trials.tolist(), go_on(self.layers[0], variants).split(n), strict=True):
                note(trial, logits)
        return {"right": right, "pictures": labels.bincount(minlength=classes).cpu(), "losses": leaf(batch, loss)}

    def _trials(self, maps: Tensor) -> Tensor:
        """The channels that each trial switches off, bool (S, C)."""
        channels = maps.shape[1]
        if self.off is None:
            single = torch.eye(channels, dtype=torch.bool, device=maps.device)
            return single if self.mode == "zero" else ~single
        if self.off.shape[1] != channels:
            raise ValueError(f"off has shape {tuple(self.off.shape)}; expected (S, {channels}): the layer's channels")
        return self.off.to(maps.device)

    def result(self) -> AblationResult | None:
        """Accuracy and loss of each trial; None before the first picture with a label."""
        n = int(self.pictures.sum())
        if not n:
            return None
        accuracy, loss = self.right.sum(1).double() / n, tree_sum(self.losses) / n
        per_class = self.right.double() / self.pictures
        baselines = float(accuracy[-1]), float(loss[-1])
        return AblationResult(accuracy[:-1], loss[:-1], *baselines, per_class[:-1], loss[:-1].argsort(stable=True), n)
