"""Which of two models is right more often on the same pictures, and how certain that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import add
from typing import Any, ClassVar

import torch

from nbviz.scanning.answers import check_classes, wilson
from nbviz.scanning.statistic import Batch, Combined


@dataclass(frozen=True)
class PairedAccuracyResult:
    """How often each of two models is right on the same pictures.

    Parameters
    ----------
    both, only_a, only_b, neither
        On how many pictures both models are right, only one of them, or neither.
    agree
        The fraction of pictures, with or without labels, for which both predict the same class.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    agree: float

    @property
    def pictures(self) -> int:
        """How many had a label."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracy_a(self) -> float:
        """The accuracy of the first model."""
        return (self.both + self.only_a) / self.pictures

    @property
    def accuracy_b(self) -> float:
        """The accuracy of the second model."""
        return (self.both + self.only_b) / self.pictures

    @property
    def difference(self) -> float:
        """By how much the second model is more accurate than the first."""
        return (self.only_b - self.only_a) / self.pictures

    @property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test: how likely so uneven a split is if both models are equally good.

        Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 1947. Exact and two-sided: for the n pictures on which only one model is right, twice the
        probability that n fair coins split at least so unevenly.

        Examples
        --------
        >>> round(PairedAccuracyResult(90, 1, 9, 0, 0.9).p_value, 5)
        0.02148
        """
        n, least = self.only_a + self.only_b, min(self.only_a, self.only_b)
        log_half = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(least + 1)]
        return min(1.0, 2 * sum(math.exp(term - n * math.log(2)) for term in log_half))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference.

        R. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
        data", Statistics in Medicine 1998, method 10: from Wilson's intervals of both accuracies and their correlation.

        Examples
        --------
        Newcombe's example of 36, 12, 2 and 0:

        >>> low, high = PairedAccuracyResult(36, 2, 12, 0, 0.7).interval
        >>> round(low, 4), round(high, 4)
        (0.0569, 0.3404)
        """
        a, b, n = self.accuracy_a, self.accuracy_b, self.pictures
        (low_a, high_a), (low_b, high_b) = wilson(a, n), wilson(b, n)
        phi = self._phi()
        down, up = _spread(b - low_b, high_a - a, phi), _spread(high_b - b, a - low_a, phi)
        return self.difference - down, self.difference + up

    def _phi(self) -> float:
        """The correlation of both, with Newcombe's continuity correction."""
        right_a, right_b = self.both + self.only_a, self.both + self.only_b
        product = float(right_a) * (self.pictures - right_a) * right_b * (self.pictures - right_b)
        if product == 0:
            return 0.0
        cross = self.both * self.neither - self.only_a * self.only_b
        return (max(cross - self.pictures / 2, 0) if cross > 0 else cross) / math.sqrt(product)

    @property
    def verdict(self) -> str:
        """In a sentence, whether one model is better; "not conclusive" where interval and test differ."""
        low, high = (100 * end for end in self.interval)
        shows_difference = {self.p_value < 0.05, low > 0 or high < 0}
        if len(shows_difference) > 1:
            finding = "not conclusive"
        elif shows_difference == {True}:
            finding = "b is better" if self.difference > 0 else "a is better"
        else:
            finding = "no difference is shown"
        return (
            f"{finding} on {self.pictures:,} pictures: "
            f"a {100 * self.accuracy_a:.1f} %, b {100 * self.accuracy_b:.1f} %, "
            f"b minus a {_with_sign(100 * self.difference)} points "
            f"(95 %: {_with_sign(low)} to {_with_sign(high)}; McNemar's p = {self.p_value:.2g})"
        )


def _with_sign(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _spread(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


class PairedAccuracy(Combined):
    """On which pictures each of two models is right, from their logits side by side (N, 2 * classes).

    Memory: 48 bytes.
    """

    logits = needs_labels = True
    side_by_side = 2
    combine: ClassVar = {"counts": add, "agree": add, "pictures": add}

    def __init__(self) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64, device="cpu")  # neither, only b, only a, both
        self.agree = self.pictures = 0

    def measure(self, batch: Batch) -> dict[str, Any]:
        """The counts of one batch; pictures without a label count only for the agreement."""
        assert batch.logits is not None
        predicted, labelled = batch.logits.unflatten(1, (2, -1)).argmax(2), batch.labels >= 0
        check_classes(batch.labels, batch.logits.shape[1] // 2)
        right = (predicted == batch.labels[:, None])[labelled]
        counts = (2 * right[:, 0].long() + right[:, 1]).bincount(minlength=4).cpu()
        agree = int((predicted[:, 0] == predicted[:, 1]).sum())
        return {"counts": counts, "agree": agree, "pictures": len(predicted)}

    def result(self) -> tuple[PairedAccuracyResult | None, float]:
        """The counts, None where no picture has a label; and how often both models agree."""
        neither, only_b, only_a, both = self.counts.tolist()
        agree = self.agree / max(self.pictures, 1)
        return PairedAccuracyResult(both, only_a, only_b, neither, agree) if self.counts.sum() else None, agree
