"""Which channels a network needs: switch them off and see how its answers change."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_channels
from nbviz.core.checks import check_choice, check_indices, check_whole
from nbviz.core.documented import documented
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.state import device_aside
from nbviz.core.types import Channels, Dataset, Images, ModelInputs, Preprocessing, ScoresIn, SubjectOptions
from nbviz.methods.subject import Subject, as_method, evenly_spaced
from nbviz.scanning.answers import Ablation, AblationResult
from nbviz.scanning.scan import scan
from nbviz.scanning.statistics import Moments

#: How a channel is switched off, or, for "keep", that all others are.
MODES = ("zero", "mean", "keep")
_SHOWN = 12  # rows of a table
_RANDOM = 3  # orders


@dataclass(frozen=True)
class AblateResult(AblationResult):
    """How well the model does without each channel; shows as a table, most redundant channel first.

    Has the fields of :class:`nbviz.results.AblationResult`, and:

    Parameters
    ----------
    layer, mode
        The arguments.
    steps
        int64 (P,): how many channels are off at each point of the curves; empty without curves.
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
        """Channel, accuracy, loss and fall of accuracy: a pandas DataFrame, or a list of dicts without pandas.

        The most redundant channel comes first.
        """
        accuracy, loss = self.accuracy.tolist(), self.loss.tolist()
        rows = [
            {"channel": c, "accuracy": accuracy[c], "loss": loss[c], "fall": self.baseline - accuracy[c]}
            for c in self.ranking.tolist()
        ]
        try:
            return importlib.import_module("pandas").DataFrame(rows)
        except ImportError:
            return rows

    def __repr__(self) -> str:
        rows = [f"{c:7}  {self.accuracy[c]:8.4f}  {self.loss[c]:6.4f}" for c in self.ranking.tolist()]
        pictures = f"{self.pictures:,} pictures{'' if self.complete else ' (not complete)'}"
        scores = f"accuracy {self.baseline:.4f}, loss {self.baseline_loss:.4f}"
        head = [f"{len(rows)} channels, mode {self.mode!r}, {pictures}: {scores}", "channel  accuracy    loss"]
        if len(rows) > _SHOWN:
            rows[_SHOWN // 2 : -_SHOWN // 2] = ["      …"]
        return "\n".join(head + rows)


@documented
@device_aside()
def ablate(
    model: nn.Module,
    dataset: Dataset,
    layer: str,
    mode: str = "zero",
    *,
    points: int = 16,
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
    **options: Any,
) -> AblateResult:
    """Accuracy and loss with each channel of a layer switched off in turn, or kept alone.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.3, remove
    layers to see what they are for; here it is channels. For each channel only what follows the layer is run.

    Channels that are redundant one by one may replace each other: together they can matter more than as many others.
    The curves show that. They take a pass of their own after the table's, and mode ``"mean"`` one before. The options
    ``checkpoint`` and ``watch`` apply to the table's pass only.

    Parameters
    ----------
    dataset
        Pictures with labels, of any kind that :func:`nbviz.scan` takes. It is read once for each pass.
    mode
        ``"zero"`` sets the channel to zero; ``"mean"`` to its mean over the dataset, which holds no information about
        the picture but is a usual value for what follows; ``"keep"`` sets all other channels to zero.
    points
        In how many steps the curves switch off more and more channels, in the order of the ranking and in three random
        orders; 0 for no curves.
    seed
        Seed of the random orders.

    Returns
    -------
    AblateResult
        ``accuracy``, ``loss`` (C,), ``baseline``, ``per_class`` (C, classes), ``ranking`` (C,), most redundant first,
        and the curves ``steps``, ``ranked`` and ``random``.

    Raises
    ------
    ValueError
        When ``mode`` is unknown. When ``dataset`` has no labels.
    TypeError
        When ``dataset`` is an iterator and several passes are needed.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the table covers the pictures seen so far, and has no curves. Without a table, it
        raises KeyboardInterrupt, too.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> result = ablate(nbviz.bundled.load("fashion"), dataset, "features.13", progress=False)
    >>> result.accuracy.shape, result.per_class.shape, len(result.table()) == 128
    (torch.Size([128]), torch.Size([128, 10]), True)
    """
    check_choice("mode", mode, MODES)
    points, seed = check_whole("points", points, 0), check_whole("seed", seed, 0)
    if isinstance(dataset, Iterator) and (points or mode == "mean"):
        raise TypeError(
            "an iterator can be read only once; expected a dataset with a length and items (or points=0 and another "
            "mode than 'mean')"
        )
    options |= {"preprocess": preprocess, "inputs": inputs, "output": output}
    other_passes = {name: value for name, value in options.items() if name not in ("checkpoint", "watch")}
    value = None
    if mode == "mean":
        moments = scan(model, dataset, {"mean": Moments(layer)}, **other_passes)
        if not moments.complete:
            raise KeyboardInterrupt
        value = moments["mean"].mean
    scanned = scan(model, dataset, {"off": Ablation(layer, "keep" if mode == "keep" else "zero", value)}, **options)
    table: AblationResult | None = scanned["off"]
    if table is None:
        if not scanned.complete:
            raise KeyboardInterrupt
        raise ValueError(
            "no picture of the dataset has a label that is a whole number; expected (picture, label), "
            "or a folder for each class"
        )
    steps = torch.empty(0, dtype=torch.int64)
    curves = torch.empty(1 + _RANDOM, 0, dtype=torch.float64)
    if points and scanned.complete:
        channels, generator = len(table.accuracy), torch.Generator().manual_seed(seed)
        counts = torch.tensor(evenly_spaced(range(channels + 1), points + 1))
        orders = [table.ranking, *(torch.randperm(channels, generator=generator) for _ in range(_RANDOM))]
        # For each order and step, whether the channel is among the first ones.
        chosen = torch.cat([order.argsort()[None] < counts[:, None] for order in orders])
        trials = Ablation(layer, value=value, off=~chosen if mode == "keep" else chosen)
        trial_scan = scan(model, dataset, {"off": trials}, **other_passes)
        if trial_scan.complete:
            steps, curves = counts, trial_scan["off"].accuracy.view(len(orders), -1)
    return AblateResult(
        **vars(table),
        layer=layer,
        mode=mode,
        steps=steps,
        ranked=curves[0],
        random=curves[1:],
        complete=scanned.complete,
    )


@as_method()
def switched_off(
    model: nn.Module,
    images: Images,
    layer: str,
    channels: Channels,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """The model's answer with some channels of a layer set to zero.

    Parameters
    ----------
    channels
        Which channels are switched off together.

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
    subject = Subject.of(model, images, **options)

    def answer(part: Subject) -> Tensor:
        resumable = Resumable(part.model, part.inputs, layer, part.feed)
        maps = check_channels(layer, resumable.activation, resumable.layout, len(part))
        off = torch.zeros(1, maps.shape[1], dtype=torch.bool, device=maps.device)
        off[0, check_indices("channel", channels, maps.shape[1])] = True
        return part.scores(resumable.go_on(switch_off(maps, off)))

    return subject.in_parts(answer)
