"""Two models side by side: whether their layers show the same, and whether one of them is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from nbviz.core.arguments import check_feed, check_logits
from nbviz.core.checks import check_whole
from nbviz.core.errors import line, shown
from nbviz.core.layers import Layers, trace_layers
from nbviz.core.shadow import shadow_of
from nbviz.core.state import check_model, device_aside
from nbviz.core.trace import find_module
from nbviz.methods.cka import CKA
from nbviz.methods.paired import PairedAccuracy, PairedAccuracyResult
from nbviz.pictures.load import Reader
from nbviz.pictures.random_numbers import random_state_restored
from nbviz.scanning.dataset import Inputs, check_dataset
from nbviz.scanning.scan import scan
from nbviz.scanning.statistic import Statistic


class Pair(nn.Module):
    """Two models that see the same pictures."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What both give."""
        return self.a(*args, **kwargs), self.b(*args, **kwargs)


def _both(given: tuple[Any, Any], output: Any) -> Tensor:
    """The logits of both models side by side."""
    a, b = (check_logits(one, output) for one in given)
    if a.shape != b.shape:
        raise ValueError(
            f"model_a gives {a.shape[1]} classes and model_b {b.shape[1]}; expected two models of the same classes"
        )
    return torch.cat([a, b], 1)


@dataclass(frozen=True, repr=False)
class CompareResult:
    """What two models have in common, and which is better; shows as a table.

    Parameters
    ----------
    accuracy
        How often each is right, with ``difference``, ``interval``, ``p_value`` and ``verdict``; None where the dataset
        has no labels.
    agree
        The share of pictures for which both name the same class.
    cka
        float64 (A, B): how alike what each layer of the first and each of the second show is, from 0 to 1; None
        where there were too few pictures.
    layers_a, layers_b
        The layers' names.
    pictures
        How many were seen.
    complete
        Whether that was the whole dataset.
    """

    accuracy: PairedAccuracyResult | None
    agree: float
    cka: Tensor | None
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    pictures: int
    complete: bool

    @property
    def verdict(self) -> str:
        """In a sentence, whether one model is better."""
        if self.accuracy is None:
            return f"the pictures have no labels; both name the same class for {100 * self.agree:.1f} % of them"
        return self.accuracy.verdict

    def __repr__(self) -> str:
        lines = [self.verdict, f"the same class for {100 * self.agree:.1f} % of {self.pictures:,} pictures"]
        lines += [] if self.complete else ["(not complete)"]
        if self.cka is not None:
            lines.append("layer of a → the layer of b that shows most the same (CKA)")
            for name, row in zip(self.layers_a, self.cka.nan_to_num(-1.0), strict=True):
                best = int(row.argmax())
                lines.append(f"  {line(name)} → {line(self.layers_b[best])} ({float(row[best]):.3f})")
        return "\n".join(lines)


@device_aside()
def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    dataset: Any,
    layers: Sequence[str] | None = None,
    *,
    most: int = 16,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
    **options: Any,
) -> CompareResult:
    """Whether a change to a model does what is claimed: two models on the same pictures.

    Both see each batch. Their answers are counted picture by picture, so that McNemar's test can say whether one is
    better (:attr:`nbviz.results.PairedAccuracyResult.p_value`); what their layers show is compared by centred kernel
    alignment (:class:`nbviz.methods.cka.CKA`), which does not ask for the same channels, or for as many.

    The uncertainty is that of the pictures, not of the training: whether a change helps, rather than one training of
    it, is seen with several seeds of each.

    Parameters
    ----------
    model_a, model_b
        PyTorch models that give scores of the same classes, on one device; they are left as they were. With and
        without a block, before and after training, ...
    dataset
        Of any kind that :func:`nbviz.scan` takes; with labels for the accuracy.
    layers
        Names of layers that both have; None, for a dataset with a length, takes of each those with feature maps, evenly
        spread.
    most
        How many of each at most.
    preprocess
        A callable from a PIL picture to the input of both; None takes the one of the models, which must be the same.
    inputs, output
        As in :func:`nbviz.reconstruct`, for both models.
    **options
        As in :func:`nbviz.scan`: ``batch_size``, ``workers``, ``executor``, ``parts``, ``threads``, ``checkpoint``,
        ``progress`` and ``watch``. CKA is that of batches: use the same ``batch_size`` for figures to be compared.

    Returns
    -------
    CompareResult
        ``accuracy``, ``verdict``, ``agree``, ``cka`` (A, B), ``layers_a``, ``layers_b``.

    Raises
    ------
    ValueError
        For an unknown layer, models that prepare pictures differently, are on two devices or give other classes.
    PictureError, ModelError, TypeError
        As in :func:`nbviz.scan`.

    Examples
    --------
    >>> import copy, nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:200, None], labels[:200])
    >>> model = nbviz.bundled.load("fashion")
    >>> worse = copy.deepcopy(model)
    >>> _ = nn.init.zeros_(worse.features[12].weight)
    >>> found = compare(worse, model, dataset, ["features.3", "features.8"], progress=False)
    >>> found.verdict
    "b is better on 200 pictures: a 8.0 %, b 94.5 %, +86.5 points (95 %: +80.3 to +90.4; McNemar's p = 7.4e-51)"
    >>> found.cka.diagonal().round(decimals=6).tolist()
    [1.0, 1.0]
    """
    readers = [Reader.of(one, preprocess) for one in (model_a, model_b)]
    a, b = check_model(model_a), check_model(model_b)
    feed, most = check_feed(inputs), check_whole("most", most, 1)
    _check_alike(readers, preprocess is None)
    b = _apart(a, b)
    source = Inputs(check_dataset(dataset), readers[0], 1)
    names = [_layers(one, layers) for one in (a, b)]
    if source.count is not None:
        first = source.first()
        traced = [trace_layers(one, first, feed) for one in (a, b)]
        _both((traced[0][1], traced[1][1]), output)
        names = names if layers is not None else [_evenly(every, most) for every, _ in traced]
    elif layers is None:
        raise TypeError(
            "an iterable dataset is not looked into beforehand; expected layers= with it, or one with a length"
        )
    sides = [[f"{side}.{name}" for name in some] for side, some in zip("ab", names, strict=True)]
    statistics: dict[str, Statistic] = {"cka": CKA(*sides)} if all(sides) else {}
    found = scan(
        Pair(a, b),
        source.dataset,
        {**statistics, "accuracy": PairedAccuracy()},
        preprocess=readers[0].preprocess,
        inputs=inputs,
        output=partial(_both, output=output),
        **options,
    )
    accuracy, agree = found["accuracy"]
    a_names, b_names = map(tuple, names)
    return CompareResult(accuracy, agree, found.get("cka"), a_names, b_names, found.pictures, found.complete)


def _apart(a: nn.Module, b: nn.Module) -> nn.Module:
    """The second model, with modules of its own where it shares some with the first: else one would hide the other.

    The weights stay shared.
    """
    if not {id(one) for one in a.modules()} & {id(one) for one in b.modules()}:
        return b
    return shadow_of(b)


def _check_alike(readers: Sequence[Reader], own: bool) -> None:
    """Whether two models can be given the same inputs, prepared in their own way."""
    one, other = readers
    if (one.device, one.dtype) != (other.device, other.dtype):
        raise ValueError(
            f"model_a is on {one.device} in {one.dtype}, model_b on {other.device} in {other.dtype}; "
            "expected both on one device in one dtype"
        )
    if (one.channels, one.axes) != (other.channels, other.axes):
        raise ValueError(f"model_a takes {one.channels} channels and model_b {other.channels}; expected as many")
    if own and one.axes == 2 and one.preprocess is not other.preprocess and one.channels in (1, 3):
        made = [_prepared(reader) for reader in readers]
        if made[0].shape != made[1].shape or not torch.allclose(made[0], made[1], atol=1e-4):
            raise ValueError(
                f"the models prepare pictures differently ({line(one.preprocess.source)}, "
                f"{line(other.preprocess.source)}); expected preprocess=, which says how both are to see them"
            )


def _prepared(reader: Reader) -> Tensor:
    """What a model's own preprocessing makes of a picture with details, in which no two colours or sides are alike."""
    grey = Image.effect_mandelbrot((301, 257), (-2.0, -1.0, 0.5, 1.25), 64)
    probe = Image.merge("RGB", (grey, ImageOps.mirror(grey), ImageOps.flip(grey)))
    with random_state_restored():
        return next(reader.read(probe, 0))[1]


def _layers(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """The layers that are named, if the model has them."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
    for name in given:
        find_module(model, name)
    return list(given)


def _evenly(layers: Layers, most: int) -> list[str]:
    """So many layers, evenly spread over those with maps."""
    found = [one.name for one in layers if one.has_maps and one.leaf]
    found = found or [one.name for one in layers if one.shape and one.pictures]
    places = (
        torch.linspace(0, len(found) - 1, min(most, len(found)), dtype=torch.float32).round().long().unique().tolist()
    )
    return [found[place] for place in places]
