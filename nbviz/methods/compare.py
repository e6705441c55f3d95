"""Two models side by side: whether their layers are similar, and whether one of them is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from nbviz.core.answers import answer_of
from nbviz.core.arguments import check_feed, check_logits
from nbviz.core.calls import find_module
from nbviz.core.checks import check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import line, shown
from nbviz.core.layers import Layers, trace_layers
from nbviz.core.shadow import shadow_of
from nbviz.core.state import check_model, device_aside
from nbviz.core.types import Dataset, ModelInputs, Preprocessing, ScoresIn
from nbviz.methods.cka import CKA
from nbviz.methods.paired import PairedAccuracy, PairedAccuracyResult
from nbviz.methods.subject import evenly_spaced
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
        """The outputs of both models."""
        return self.a(*args, **kwargs), self.b(*args, **kwargs)


def _both(given: tuple[Any, Any], output: Any) -> Tensor:
    """The logits of both models side by side."""
    a, b = (answer_of(scores).logits(scores) for scores in (check_logits(answer, output) for answer in given))
    if a.shape != b.shape:
        raise ValueError(
            f"model_a gives {a.shape[1]} classes and model_b {b.shape[1]}; expected two models of the same classes"
        )
    return torch.cat([a, b], 1)


@dataclass(frozen=True, repr=False)
class CompareResult:
    """How similar two models are, and which is better; shows as a table.

    Parameters
    ----------
    accuracy
        The accuracies, with ``difference``, ``interval``, ``p_value`` and ``verdict``; None where the dataset has no
        labels.
    agree
        The fraction of pictures for which both predict the same class.
    cka
        float64 (A, B): the similarity of each layer of the first model and each of the second, from 0 to 1; None for
        too few pictures.
    layers_a, layers_b
        The names of the layers.
    pictures
        How many pictures were seen.
    complete
        Whether the whole dataset was seen.
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
            return f"the pictures have no labels; both predict the same class for {100 * self.agree:.1f} % of them"
        return self.accuracy.verdict

    def __repr__(self) -> str:
        lines = [self.verdict, f"the same class for {100 * self.agree:.1f} % of {self.pictures:,} pictures"]
        lines += [] if self.complete else ["(not complete)"]
        if self.cka is not None:
            lines.append("layer of a → the most similar layer of b (CKA)")
            for name, row in zip(self.layers_a, self.cka.nan_to_num(-1.0), strict=True):
                best = int(row.argmax())
                lines.append(f"  {line(name)} → {line(self.layers_b[best])} ({float(row[best]):.3f})")
        return "\n".join(lines)


@documented
@device_aside()
def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    dataset: Dataset,
    layers: Sequence[str] | None = None,
    *,
    most: int = 16,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
    **options: Any,
) -> CompareResult:
    """Whether a change to a model has the claimed effect: two models on the same pictures.

    Both see each batch. Their answers are compared picture by picture, so that McNemar's test can tell whether one is
    better (:attr:`nbviz.results.PairedAccuracyResult.p_value`). Their layers are compared by centred kernel alignment
    (:class:`nbviz.methods.cka.CKA`), which does not require the same channels, or as many. Its values depend on
    ``batch_size``: compare only values from the same one.

    The uncertainty comes from the choice of pictures, not from the training. Whether a change helps in general takes
    several trainings of each model, with different seeds.

    Parameters
    ----------
    model_a, model_b
        PyTorch models with the same classes on one device, such as with and without a block, or before and after
        training. They are left unchanged.
    dataset
        Pictures of any kind that :func:`nbviz.scan` takes; with labels for the accuracy.
    layers
        Names of layers that both models have. None takes layers with feature maps, evenly spaced in each model; the
        dataset must have a length.
    most
        How many layers of each model are compared at most.
    preprocess
        A callable from a PIL picture to the input of both models. None takes the models' own, which must be the same.

    Returns
    -------
    CompareResult
        ``accuracy``, ``verdict``, ``agree``, ``cka`` (A, B), ``layers_a``, ``layers_b``.

    Raises
    ------
    ValueError
        When ``model_a`` and ``model_b`` preprocess pictures differently, are on two devices, or have different classes.
    TypeError
        When ``dataset`` has no length and ``layers`` is None.

    Examples
    --------
    >>> import copy, nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:200, None], labels[:200])
    >>> model = nbviz.bundled.load("fashion")
    >>> worse = copy.deepcopy(model)
    >>> _ = nn.init.zeros_(worse.features[12].weight)
    >>> result = compare(worse, model, dataset, ["features.3", "features.8"], progress=False)
    >>> result.verdict.partition(" (95 %")[0]
    'b is better on 200 pictures: a 8.0 %, b 94.5 %, b minus a +86.5 points'
    >>> result.cka.diagonal().round(decimals=6).tolist()
    [1.0, 1.0]
    """
    readers = [Reader.of(model, preprocess) for model in (model_a, model_b)]
    a, b = check_model(model_a), check_model(model_b)
    feed, most = check_feed(inputs), check_whole("most", most, 1)
    _check_same_inputs(readers, preprocess is None)
    if not set(a.modules()).isdisjoint(b.modules()):
        b = shadow_of(b)  # since a module can have only one name in the pair; the weights stay shared
    source = Inputs(check_dataset(dataset), readers[0], 1)
    names = [_check_layers(model, layers) for model in (a, b)]
    if source.count is not None:
        first = source.first()
        traced, outputs = zip(*(trace_layers(model, first, feed) for model in (a, b)), strict=True)
        _both(outputs, output)
        names = names if layers is not None else [_spread_layers(found, most) for found in traced]
    elif layers is None:
        raise TypeError(
            "an iterable dataset is not looked into beforehand; expected layers= with it, or one with a length"
        )
    sides = [[f"{side}.{name}" for name in chosen] for side, chosen in zip("ab", names, strict=True)]
    statistics: dict[str, Statistic] = {"cka": CKA(*sides)} if all(sides) else {}
    scanned = scan(
        Pair(a, b),
        source.dataset,
        {**statistics, "accuracy": PairedAccuracy()},
        preprocess=readers[0].preprocess,
        inputs=inputs,
        output=partial(_both, output=output),
        **options,
    )
    accuracy, agree = scanned["accuracy"]
    a_names, b_names = map(tuple, names)
    return CompareResult(accuracy, agree, scanned.get("cka"), a_names, b_names, scanned.pictures, scanned.complete)


def _check_same_inputs(readers: Sequence[Reader], own: bool) -> None:
    """Raise a ValueError unless both models can take the same inputs; with ``own``, preprocessed by themselves."""
    a, b = readers
    if (a.device, a.dtype) != (b.device, b.dtype):
        raise ValueError(
            f"model_a is on {a.device} in {a.dtype}, model_b on {b.device} in {b.dtype}; "
            "expected both on one device in one dtype"
        )
    if (a.channels, a.axes) != (b.channels, b.axes):
        raise ValueError(f"model_a takes {a.channels} channels and model_b {b.channels}; expected as many")
    if own and a.axes == 2 and a.preprocess is not b.preprocess and a.channels in (1, 3):
        input_a, input_b = map(_preprocessed, readers)
        if input_a.shape != input_b.shape or not torch.allclose(input_a, input_b, atol=1e-4):
            raise ValueError(
                f"the models prepare pictures differently ({line(a.preprocess.source)}, "
                f"{line(b.preprocess.source)}); expected preprocess=, which says how both are to see them"
            )


def _preprocessed(reader: Reader) -> Tensor:
    """The input from a model's own preprocessing, for a detailed picture without symmetry in its colours or sides."""
    grey = Image.effect_mandelbrot((301, 257), (-2.0, -1.0, 0.5, 1.25), 64)
    probe = Image.merge("RGB", (grey, ImageOps.mirror(grey), ImageOps.flip(grey)))
    with random_state_restored():
        return next(reader.read(probe, 0))[1]


def _check_layers(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """The given layers, if the model has them."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
    for name in given:
        find_module(model, name)
    return list(given)


def _spread_layers(layers: Layers, most: int) -> list[str]:
    """Evenly spaced layers among those with feature maps, or else among all."""
    names = [layer.name for layer in layers if layer.has_maps and layer.leaf]
    names = names or [layer.name for layer in layers if layer.shape and layer.pictures]
    return evenly_spaced(names, most)
