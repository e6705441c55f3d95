"""Statistics of a model's answers: whether they are right, and what becomes of them without a channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nbviz.core.checks import check_choice, check_whole
from nbviz.core.errors import shown
from nbviz.core.resume import switch_off
from nbviz.scanning.statistic import Batch, Measured, OfLayer, Tree, add_along_tree, merge_trees, tree_sum


@dataclass(frozen=True)
class AccuracyResult:
    """How well the model names the pictures that have a label.

    Parameters
    ----------
    accuracy, top5
        Share of pictures whose class has the highest score, and one of the five highest.
    loss
        Mean cross-entropy.
    pictures
        How many had a label.
    per_class
        float64 (classes,): the accuracy on each class; NaN where there were no pictures of it.
    counts
        int64 (classes, classes): how many pictures of a class (row) were taken for which.
    """

    accuracy: float
    top5: float
    loss: float
    pictures: int
    per_class: Tensor
    counts: Tensor


class Accuracy(Measured):
    """Accuracy, also on each class, loss and confusions.

    Memory: 8 bytes for each pair of classes.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:, None], labels)
    >>> found = nbviz.scan(nbviz.bundled.load("fashion"), dataset, {"a": Accuracy()}, progress=False)["a"]
    >>> 0.9 < found.accuracy < 1, found.pictures
    (True, 1000)
    """

    logits = needs_labels = True

    def __init__(self) -> None:
        self.losses: Tree = {}
        self.in_five = 0
        self.counts = torch.zeros(1, 1, dtype=torch.int64, device="cpu")

    def measure(self, batch: Batch) -> Accuracy:
        """That of one batch; pictures without a label do not count."""
        assert batch.logits is not None
        one, classes = Accuracy(), batch.logits.shape[1]
        labelled = batch.labels >= 0
        logits, labels = batch.logits[labelled].double(), batch.labels[labelled]
        if not len(labels):
            return one
        check_classes(labels, classes)
        pairs = (labels * classes + logits.argmax(1)).bincount(minlength=classes * classes).view(classes, classes)
        one.counts = pairs.cpu()
        best = logits.topk(min(5, classes), 1).indices
        # Of equal scores topk may take others than argmax.
        in_five = (best == labels[:, None]).any(1) | (logits.argmax(1) == labels)
        one.in_five = int(in_five.sum())
        add_along_tree(one.losses, batch.number, F.cross_entropy(logits, labels, reduction="sum").cpu())
        return one

    def merge(self, other: Accuracy) -> None:
        """Take in what another has seen."""
        merge_trees(self.losses, other.losses)
        self.in_five += other.in_five
        self.counts = self.counts + other.counts

    def result(self) -> AccuracyResult | None:
        """The accuracy; None before the first picture with a label."""
        n = int(self.counts.sum())
        if not n:
            return None
        right, loss = self.counts.diagonal(), float(tree_sum(self.losses)) / n
        per_class = right.double() / self.counts.sum(1)
        return AccuracyResult(int(right.sum()) / n, self.in_five / n, loss, n, per_class, self.counts.clone())


def check_classes(labels: Tensor, classes: int) -> None:
    """Whether all labels are classes of the model's, or -1.

    Raises
    ------
    ValueError
        Where one is not.
    """
    if int(labels.max()) >= classes:
        raise ValueError(f"a picture has the label {int(labels.max())}; expected 0 to {classes - 1}")


#: Which channels are switched off in turn: each alone, or all but each.
ABLATIONS = ("zero", "keep")


@dataclass(frozen=True)
class AblationResult:
    """How well the model does without each channel, or with it alone, or without each of some sets of channels.

    Parameters
    ----------
    accuracy, loss
        float64 (C,), or (S,) where ``off`` names sets: of the pictures with a label.
    baseline, baseline_loss
        With all channels.
    per_class
        float64 (C, classes): the accuracy on each class; NaN where there were no pictures of it.
    ranking
        int64 (C,): the channels, the one whose loss is lowest first: the most redundant where each was switched off.
    pictures
        How many had a label.
    """

    accuracy: Tensor
    loss: Tensor
    baseline: float
    baseline_loss: float
    per_class: Tensor
    ranking: Tensor
    pictures: int


class Ablation(OfLayer):
    """Accuracy and loss with each channel of a layer switched off in turn, or left on alone.

    For each batch and channel only what follows the layer is run. Memory: 8 bytes for each channel and class, and for
    each channel and doubling of the number of batches.

    Parameters
    ----------
    layer
        A module's name.
    mode
        ``"zero"`` sets the channel to zero, ``"keep"`` all others.
    value
        In place of zero, a value for each channel (C,), such as the mean that :class:`Moments` found.
    off
        In place of ``mode``, bool (S, C): the channels that are switched off together, for each of S trials.
    at_once
        How many pictures go through what follows the layer at once.

    Examples
    --------
    Two channels, of which the second decides:

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

    def measure(self, batch: Batch) -> Ablation:
        """The table of one batch; pictures without a label do not count."""
        one = Ablation(self.layers[0], self.mode, self.value, self.off, self.at_once)
        assert batch.logits is not None
        assert batch.go_on is not None
        labelled = batch.labels >= 0
        labels, classes = batch.labels[labelled], batch.logits.shape[1]
        if not len(labels):
            return one
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
        for some in torch.arange(len(off)).split(max(1, self.at_once // n)):
            variants = switch_off(maps, off[some.to(off.device)], self.value)
            for row, logits in zip(some.tolist(), go_on(self.layers[0], variants).split(n), strict=True):
                note(row, logits)
        one.right, one.pictures = right, labels.bincount(minlength=classes).cpu()
        add_along_tree(one.losses, batch.number, loss)
        return one

    def _trials(self, maps: Tensor) -> Tensor:
        """Which channels are off in each trial (S, C)."""
        channels = maps.shape[1]
        if self.off is None:
            each = torch.eye(channels, dtype=torch.bool, device=maps.device)
            return each if self.mode == "zero" else ~each
        if self.off.shape[1] != channels:
            raise ValueError(f"off has shape {tuple(self.off.shape)}; expected (S, {channels}): the layer's channels")
        return self.off.to(maps.device)

    def merge(self, other: Ablation) -> None:
        """Take in what another has seen."""
        self.right, self.pictures = self.right + other.right, self.pictures + other.pictures
        merge_trees(self.losses, other.losses)

    def result(self) -> AblationResult | None:
        """The table; None before the first picture with a label."""
        n = int(self.pictures.sum())
        if not n:
            return None
        accuracy, loss = self.right.sum(1).double() / n, tree_sum(self.losses) / n
        per_class = self.right.double() / self.pictures
        ranking = loss[:-1].argsort(stable=True)
        rest = float(accuracy[-1]), float(loss[-1]), per_class[:-1], ranking, n
        return AblationResult(accuracy[:-1], loss[:-1], *rest)
