"""The strongest patches of each channel (Zeiler and Fergus 2014, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_feed, check_maps
from nbviz.core.backward import RULES
from nbviz.core.checks import check_choice, check_index, check_indices, check_real, check_whole
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import PictureError, shown
from nbviz.core.layers import Layer, trace_layers
from nbviz.core.regions import Start
from nbviz.core.state import check_model, device_aside
from nbviz.core.trace import Feed, first_name, run
from nbviz.imaging.pixels import cut
from nbviz.methods.reconstruct import project, warn_without_rectifiers
from nbviz.pictures.load import Pictures, Reader
from nbviz.scanning.dataset import Inputs, check_dataset
from nbviz.scanning.records import Skipped
from nbviz.scanning.scan import scan
from nbviz.scanning.statistics import TopK, TopKResult


@dataclass(frozen=True, repr=False)
class TopPatchesResult(TopKResult):
    """For each channel its strongest activations, each in another picture, and what is to be seen there.

    Beside the fields ``values``, ``indices``, ``positions`` and ``labels`` of
    :class:`nbviz.scanning.statistics.TopKResult`, whose rows are those of ``channels``:

    Parameters
    ----------
    layer
        What the layer is, its receptive field among it.
    channels
        int64 (K,): which channels.
    skipped
        The pictures that could not be read.
    complete
        Whether the whole dataset was seen.
    """

    layer: Layer
    channels: Tensor
    skipped: tuple[Skipped, ...]
    complete: bool
    _model: nn.Module = field(repr=False)
    _inputs: Inputs = field(repr=False)
    _feed: Feed = field(repr=False)
    _sides: tuple[int, ...] = field(repr=False)  # of the model's input
    _read: dict[int, Tensor] = field(repr=False)  # the pictures last asked for

    @property
    def model(self) -> nn.Module:
        """The model that was looked at."""
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, where they are known."""
        return self._inputs.reader.preprocess.labels or ()

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of a patch: the receptive field, no larger than the picture."""
        return self.layer.patch((0,) * len(self._sides), self._sides)[1]

    @device_aside()
    def patches(self, channel: int) -> Tensor:
        """A channel's patches, strongest first: what each of its positions sees of the picture.

        Parameters
        ----------
        channel
            One of ``channels``.

        Returns
        -------
        Tensor
            uint8 (k, 3, h, w) on the CPU; for signals (k, 1 to 3, l). Grey beyond the border of the picture, and
            where there were fewer pictures.
        """
        row, pictures = self._row(channel)
        whole = Pictures(pictures, self._inputs.reader.preprocess, ("",) * len(pictures)).display()
        return self._cut(row, whole, 128)

    @device_aside()
    def reconstructions(self, channel: int, rule: str = "deconvnet") -> Tensor:
        """What of these patches the channel answers to, aligned with them to the pixel.

        Parameters
        ----------
        channel
            One of ``channels``.
        rule
            ``"deconvnet"``, ``"guided"`` or ``"gradient"``, see :func:`nbviz.reconstruct`. Each starts from the
            strongest position alone, as in the paper.

        Returns
        -------
        Tensor
            (k, C, h, w) in the model's dtype and on its device; zero where there were fewer pictures.

        Raises
        ------
        PictureError
            When the dataset no longer gives the pictures that it gave in the scan (a ValueError).
        """
        check_choice("rule", rule, RULES)
        row, pictures = self._row(channel)
        channel = int(self.channels[row])
        inputs, places = pictures.to(self._inputs.reader.device), self.positions[row].tolist()

        def of(part: Sequence[int]) -> tuple[Tensor, frozenset[str]]:
            trace = run(self._model, inputs[part[0] : part[-1] + 1], [self.layer.name], feed=self._feed, grad=True)
            maps = check_real(check_maps(trace, self.layer.name), f"layer {shown(self.layer.name)}").detach()
            starts = []
            for i, k in enumerate(part):
                value = float(maps[(i, channel, *places[k])])
                expected = float(self.values[row, k])
                if value != expected and not abs(value - expected) <= _near(maps[i], expected):
                    raise PictureError(
                        f"picture {int(self.indices[row, k])} gave {expected:.5g} in the scan and gives {value:.5g} "
                        "now; expected a dataset that gives the same picture each time (no random crops), and the "
                        "model as it was"
                    )
                starts.append(Start(i, channel, tuple(places[k]), expected))
            maps, met = project(trace, self.layer.name, [channel], rule, starts=starts)
            return maps[:, 0], met

        pieces = in_chunks(of, range(len(inputs)), len(inputs), "one picture")
        warn_without_rectifiers(rule, pieces[0][1])
        return self._cut(row, torch.cat([maps for maps, _ in pieces]), 0)

    def _row(self, channel: int) -> tuple[int, Tensor]:
        """The channel's row, and the model's inputs (n, C, H, W) for its pictures."""
        channel = check_index("channel", channel, self.layer.shape[0])
        found = (self.channels == channel).nonzero().flatten().tolist()
        if not found:
            said = f"the patches are those of {shown(self.channels.tolist())}"
            raise ValueError(f"no channel {channel}: {said}; expected one of these")
        wanted = [i for i in self.indices[found[0]].tolist() if i >= 0]
        if not wanted:
            raise ValueError(f"channel {channel} is no number in any picture (NaN); expected one that is")
        read = {i: self._read[i] if i in self._read else self._load(i) for i in wanted}
        self._read.clear()
        self._read.update(read)
        return found[0], torch.stack(list(read.values()))

    def _load(self, i: int) -> Tensor:
        item = self._inputs[i]
        if isinstance(item, Skipped):
            raise PictureError(f"picture {i} cannot be read any more: {item.reason}; expected what was there before")
        if item[1].shape[1:] != self._sides:
            raise PictureError(
                f"picture {i} has the sides {tuple(item[1].shape[1:])}; expected those of the others, {self._sides}"
            )
        return item[1]

    def _patch(self, row: int, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Corner and size of a patch."""
        return self.layer.patch(self.positions[row, k].tolist(), self._sides)

    def _cut(self, row: int, whole: Tensor, fill: int) -> Tensor:
        parts = [cut(one, *self._patch(row, k), fill) for k, one in enumerate(whole)]
        missing = [torch.full_like(parts[0], fill)] * (self.values.shape[1] - len(parts))
        return torch.stack([*parts, *missing])

    def __repr__(self) -> str:
        k = self.values.shape[1]
        return (
            f"TopPatchesResult of {self.layer}: {len(self.channels)} channels, the {k} strongest pictures of each"
            f"{'' if self.complete else ', not complete'}"
        )


def _near(maps: Tensor, expected: float) -> float:
    """How far an activation may be from what it was in a batch of another size."""
    eps = torch.finfo(maps.dtype).eps
    near = max(1e-3, 8 * eps)
    # What was added up to it may be as large as any of the layer's, and on a GPU have been of fewer digits (TF32).
    rough = near if maps.is_cuda or eps > 1e-6 else 1e-5
    return max(near * abs(expected), rough * float(maps.abs().amax()))


_MOST = 1000  # pictures for each channel


@device_aside()
def top_patches(
    model: nn.Module,
    dataset: Any,
    layer: str,
    channels: Sequence[int] | int | None = None,
    k: int = 9,
    *,
    preprocess: Any = None,
    inputs: Any = None,
    **options: Any,
) -> TopPatchesResult:
    """For each channel the patches of a dataset that excite it most, and their reconstructions.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 2: the top 9
    activations of a feature map, each from another picture, projected down to pixel space beside the patches.

    The dataset is scanned once; patches are cut out and reconstructed when asked for.

    Parameters
    ----------
    model
        Any PyTorch model; it is left as it was.
    dataset
        Of any kind that :func:`nbviz.scan` takes, with a length; pictures of one size. It is read from again for the
        patches, and must give the same pictures then.
    layer
        A module's name, of a layer with feature maps.
    channels
        Which channels; None takes all.
    k
        How many pictures for each, 1,000 at most.
    preprocess, inputs
        As in :func:`nbviz.scan`.
    **options
        As in :func:`nbviz.scan`: ``batch_size``, ``workers``, ``executor``, ``parts``, ``threads``, ``checkpoint``,
        ``progress`` and ``watch``.

    Returns
    -------
    TopPatchesResult
        ``values``, ``indices``, ``labels`` (K, k) and ``positions`` (K, k, 2), strongest first; of equal ones that of
        the lower index comes first, and within a picture the first position. ``patches(channel)`` gives uint8
        (k, 3, h, w), ``reconstructions(channel, rule)`` (k, C, h, w), aligned to the pixel.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.scan`, and for a layer without feature maps.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the patches are those of the pictures seen so far.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> found = top_patches(nbviz.bundled.load("fashion"), dataset, "features.8", [3, 41], progress=False)
    >>> found.values.shape, found.size, found.patches(41).shape, found.reconstructions(41).shape
    (torch.Size([2, 9]), (14, 14), torch.Size([9, 3, 14, 14]), torch.Size([9, 1, 14, 14]))
    """
    reader, feed = Reader.of(model, preprocess), check_feed(inputs)
    model, k = check_model(model), check_whole("k", k, 1, _MOST)
    layer = first_name(model, layer)
    source = Inputs(check_dataset(dataset), reader, 1)
    if source.count is None:
        raise TypeError("an iterable dataset cannot be read again; expected one with a length and items")
    first = source.first()
    found = {one.name: one for one in trace_layers(model, first, feed)[0]}
    if layer not in found or not found[layer].has_maps:
        maps = [name for name, one in found.items() if one.has_maps]
        raise ValueError(f"layer {shown(layer)} gives no feature maps. Accepted: {', '.join(maps[:12])}")
    count = found[layer].shape[0]
    rows = range(count) if channels is None else check_indices("channel", channels, count)
    chosen = torch.tensor(rows, dtype=torch.int64)
    scanned = scan(model, source.dataset, {"top": TopK(layer, k)}, preprocess=preprocess, inputs=inputs, **options)
    if not scanned.pictures:
        raise KeyboardInterrupt  # which ended it before there was anything
    top: TopKResult = scanned["top"]
    return TopPatchesResult(
        top.values[chosen],
        top.indices[chosen],
        top.positions[chosen],
        top.labels[chosen],
        found[layer],
        chosen,
        scanned.skipped,
        scanned.complete,
        model,
        source,
        feed,
        tuple(first.shape[2:]),
        {},
    )
