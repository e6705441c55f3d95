"""Which channels a network needs: switch them off and see what becomes of its answers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_channels
from nbviz.core.checks import check_choice, check_indices, check_whole
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.state import device_aside
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject
from nbviz.scanning.answers import Ablation, AblationResult
from nbviz.scanning.scan import scan
from nbviz.scanning.statistics import Moments

#: What a channel that is switched off becomes, or that all others are switched off.
MODES = ("zero", "mean", "keep")


@dataclass(frozen=True)
class AblateResult(AblationResult):
    """How well the model does without each channel; shows as a table, most redundant channel first.

    Beside the fields of :class:`nbviz.scanning.answers.AblationResult`:

    Parameters
    ----------
    layer, mode
        As they were given.
    steps
        int64 (P,): numbers of channels, of which the curves are; empty if none were asked for.
    ranked
        float64 (P,): accuracy with so many channels switched off (``"keep"``: left on), in the order of ``ranking``.
    random
        float64 (R, P): the same in R random orders.
    complete
        Whether all pictures were seen.
    """

    layer: str
    mode: str
    steps: Tensor
    ranked: Tensor
    random: Tensor
    complete: bool = True

    def table(self) -> Any:
        """Channel, accuracy, loss, and by how much accuracy falls: a pandas DataFrame, or a list of dicts without it.

        The most redundant channel comes first.
        """
        rows = [
            {
                "channel": channel,
                "accuracy": float(self.accuracy[channel]),
                "loss": float(self.loss[channel]),
                "fall": self.baseline - float(self.accuracy[channel]),
            }
            for channel in self.ranking.tolist()
        ]
        try:
            return importlib.import_module("pandas").DataFrame(rows)
        except ImportError:
            return rows

    def __repr__(self) -> str:
        rows = self.ranking.tolist()
        lines = [
            f"{len(rows)} channels, mode {self.mode!r}, {self.pictures:,} pictures"
            f"{'' if self.complete else ' (not complete)'}: "
            f"accuracy {self.baseline:.4f}, loss {self.baseline_loss:.4f}",
            "channel  accuracy    loss",
        ]
        middle = ["      …"] if len(rows) > _SHOWN else []
        told = [f"{c:7}  {self.accuracy[c]:8.4f}  {self.loss[c]:6.4f}" for c in rows]
        half = _SHOWN // 2
        return "\n".join(lines + (told[:half] + middle + told[-half:] if middle else told))


_SHOWN = 12  # rows


@device_aside()
def ablate(
    model: nn.Module,
    dataset: Any,
    layer: str,
    mode: str = "zero",
    *,
    points: int = 16,
    seed: int = 0,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
    **options: Any,
) -> AblateResult:
    """Accuracy and loss with each channel of a layer switched off in turn, or kept alone.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.3, remove
    layers to see what they are for; here it is channels. For each channel only what follows the layer is run.

    Channels that are redundant one by one may stand in for each other: together they can be worth more than as many
    others. The curves show that.

    Parameters
    ----------
    dataset
        Pictures with labels, of any kind that :func:`nbviz.scan` takes. It is gone through once for each pass.
    layer
        A module's name.
    mode
        ``"zero"`` sets the channel to zero; ``"mean"`` to its mean over the dataset (in a pass of its own before),
        which tells what follows nothing of the picture, but nothing unheard-of either; ``"keep"`` sets all others to
        zero.
    points
        In how many steps the curves go that show what becomes of the accuracy as more and more channels go, in the
        order of the ranking and in three random orders (in a pass of its own afterwards); 0 for no curves.
    seed
        Of the random orders.
    **options
        As in :func:`nbviz.scan`: ``batch_size``, ``workers``, ``executor``, ``parts``, ``threads``, ``checkpoint``,
        ``progress`` and ``watch``; the last but one's file and what is watched are those of the pass that gives
        the table.

    Returns
    -------
    AblateResult
        ``accuracy``, ``loss`` (C,), ``baseline``, ``per_class`` (C, classes), ``ranking`` (C,), most redundant first,
        and the curves ``steps``, ``ranked`` and ``random``.

    Raises
    ------
    ValueError
        For an unknown layer or mode, or a dataset without labels.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the table is that of the pictures seen so far, and has no curves. Before there is a
        table, the interrupt itself comes as well.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> found = ablate(nbviz.bundled.load("fashion"), dataset, "features.13", progress=False)
    >>> found.accuracy.shape, found.per_class.shape, len(found.table()) == 128
    (torch.Size([128]), torch.Size([128, 10]), True)
    """
    check_choice("mode", mode, MODES)
    points, seed = check_whole("points", points, 0), check_whole("seed", seed, 0)
    if isinstance(dataset, Iterator) and (points or mode == "mean"):
        raise TypeError(
            "an iterator can be gone through only once; expected a dataset with a length and items (or points=0 and "
            "another mode than 'mean')"
        )
    given = {"preprocess": preprocess, "inputs": inputs, "output": output}
    aside = {name: value for name, value in options.items() if name not in ("checkpoint", "watch")}
    value = None
    if mode == "mean":
        moments = scan(model, dataset, {"mean": Moments(layer)}, **given, **aside)
        if not moments.complete:
            raise KeyboardInterrupt
        value = moments["mean"].mean
    one = "keep" if mode == "keep" else "zero"
    first = scan(model, dataset, {"off": Ablation(layer, one, value)}, **given, **options)
    found: AblationResult | None = first["off"]
    if found is None and not first.complete:
        raise KeyboardInterrupt
    if found is None:
        raise ValueError(
            "no picture of the dataset has a label that is a whole number; expected (picture, label), "
            "or a folder for each class"
        )
    channels, draw = len(found.accuracy), torch.Generator().manual_seed(seed)
    points = min(points, channels)
    steps = torch.linspace(0, channels, points + 1, dtype=torch.float32).round().long().unique()
    curves: Tensor | None = None
    if points and first.complete:
        orders = [found.ranking, *(torch.randperm(channels, generator=draw) for _ in range(_RANDOM))]
        gone = torch.cat([_first(order, steps) for order in orders])
        trials = Ablation(layer, value=value, off=~gone if mode == "keep" else gone)
        last = scan(model, dataset, {"off": trials}, **given, **aside)
        curves = last["off"].accuracy.view(len(orders), -1) if last.complete else None
    if curves is None:
        steps, curves = steps[:0], torch.empty(1 + _RANDOM, 0, dtype=torch.float64)
    table = {field.name: getattr(found, field.name) for field in fields(found)}
    return AblateResult(
        **table, layer=layer, mode=mode, steps=steps, ranked=curves[0], random=curves[1:], complete=first.complete
    )


_RANDOM = 3  # orders


def _first(order: Tensor, steps: Tensor) -> Tensor:
    """The first so many of an order, for each step: bool (P, C)."""
    place = order.argsort()
    return place[None] < steps[:, None]


@steady
def switched_off(
    model: nn.Module,
    images: Any,
    layer: str,
    channels: Sequence[int] | int,
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """The model's answer with some channels of a layer set to zero.

    Parameters
    ----------
    layer
        A module's name.
    channels
        Which channels are switched off, together.

    Returns
    -------
    Tensor
        Class scores (N, classes), in the model's dtype and on its device.

    Examples
    --------
    >>> net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[2].weight.data = torch.tensor([[10.0, 1.0]])
    >>> switched_off(net, torch.ones(1, 2, 1, 1), "0", [0]).item()
    1.0
    """
    subject = Subject.of(model, images, preprocess, inputs, output)

    def answer(part: Subject) -> Tensor:
        resumable = Resumable(part.model, part.inputs, layer, part.feed)
        maps = check_channels(layer, resumable.activation, len(part))
        off = torch.zeros(1, maps.shape[1], dtype=torch.bool, device=maps.device)
        off[0, check_indices("channel", channels, maps.shape[1])] = True
        return part.scores(resumable.go_on(switch_off(maps, off)))

    return subject.in_parts(answer)
