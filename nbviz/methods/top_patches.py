"""The strongest patches of each channel (Zeiler and Fergus 2014, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_maps
from nbviz.core.backward import RULES
from nbviz.core.calls import first_name
from nbviz.core.checks import check_choice, check_index, check_indices, check_real, check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import PictureError, shown
from nbviz.core.layers import Layer
from nbviz.core.regions import Start
from nbviz.core.state import device_aside
from nbviz.core.switches import has_switches
from nbviz.core.types import Channels, Dataset, ModelInputs, Preprocessing
from nbviz.imaging.pixels import cut
from nbviz.methods.reconstruct import project, warn_without_rectifiers, warn_without_switches
from nbviz.methods.subject import Subject
from nbviz.pictures.preprocess import check_labels
from nbviz.scanning.dataset import Inputs
from nbviz.scanning.records import Skipped
from nbviz.scanning.scan import scan
from nbviz.scanning.statistics import TopK, TopKResult


@dataclass(frozen=True, repr=False)
class TopPatchesResult(TopKResult):
    """For each channel its strongest activations, each in another picture, and the patches that caused them.

    Has the fields ``values``, ``indices``, ``positions`` and ``labels`` of :class:`nbviz.results.TopKResult`, with a
    row for each of ``channels``, and:

    Parameters
    ----------
    layer
        The layer, with its receptive field.
    channels
        int64 (K,): the channels.
    skipped
        The pictures that could not be read.
    complete
        Whether the whole dataset was seen.
    """

    layer: Layer
    channels: Tensor
    skipped: tuple[Skipped, ...]
    complete: bool
    _subject: Subject  # with the first picture of the dataset
    _source: Inputs
    _read: dict[int, Tensor] = field(default_factory=dict)  # the pictures last read
    _names: tuple[str, ...] | None = None  # those given

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self._subject.model

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, where they are known."""
        return self._names or self._subject.pictures.preprocess.labels or ()

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of a patch: the receptive field, no larger than the picture."""
        return self.layer.patch((0,) * len(self._sides), self._sides)[1]

    @property
    def _sides(self) -> tuple[int, ...]:
        """Height and width of the model's input."""
        return tuple(self._subject.inputs.shape[2:])

    @device_aside()
    def patches(self, channel: int) -> Tensor:
        """A channel's patches, strongest first: what its strongest positions see of the pictures.

        Parameters
        ----------
        channel
            One of ``channels``.

        Returns
        -------
        Tensor
            uint8 (k, 3, h, w) on the CPU; for signals (k, 1 to 3, l). Grey beyond the border of the picture, and for
            missing pictures where there are fewer than k.
        """
        row, pictures = self._row(channel)
        return self._cut(row, self._subject.with_inputs(pictures).pictures.display(), 128)

    @device_aside()
    def reconstructions(self, channel: int, rule: str = "deconvnet") -> Tensor:
        """What in these patches the channel responds to, aligned with them to the pixel.

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
            (k, C, h, w) in the model's dtype and on its device; zero for missing pictures where there are fewer than k.

        Raises
        ------
        PictureError
            When the dataset no longer gives the pictures that it gave in the scan (a ValueError).

        Warns
        -----
        NoRectifierWarning
            When the rule met no rectifier, so that the result equals the gradient.
        NoSwitchWarning
            When nothing makes the deconvnet's way back depend on the picture; see :func:`nbviz.deconvnet`.
        """
        check_choice("rule", rule, RULES)
        row, pictures = self._row(channel)
        channel, name, places = int(self.channels[row]), self.layer.name, self.positions[row].tolist()
        met: list[frozenset[str]] = []
        is_routed: list[bool] = []

        def reconstruct(part: Subject) -> Tensor:
            trace = part.run([name], grad=True)
            maps = check_real(check_maps(trace, name), f"layer {shown(name)}").detach()
            starts = []
            for i, k in enumerate(part.numbers):
                value = float(maps[(i, channel, *places[k])])
                expected = float(self.values[row, k])
                if value != expected and not abs(value - expected) <= _tolerance(maps[i], expected):
                    raise PictureError(
                        f"picture {int(self.indices[row, k])} gave {expected:.5g} in the scan and gives {value:.5g} "
                        "now; expected a dataset that gives the same picture each time (no random crops), and the "
                        "model as it was"
                    )
                starts.append(Start(i, channel, tuple(places[k]), expected))
            signals, rectifiers = project(trace, name, [channel], rule, starts=starts)
            met.append(rectifiers)
            is_routed.append(has_switches(trace.activations[name], trace.inputs))
            return signals[:, 0]

        subject = self._subject.with_inputs(pictures.to(self._source.reader.device))
        signals = subject.in_parts(reconstruct)
        warn_without_rectifiers(rule, met[0])
        warn_without_switches(rule, is_routed)
        return self._cut(row, signals, 0)

    def _row(self, channel: int) -> tuple[int, Tensor]:
        """The channel's row, and the model's inputs (n, C, H, W) for its pictures."""
        channel = check_index("channel", channel, self.layer.shape[0])
        rows = (self.channels == channel).nonzero().flatten().tolist()
        if not rows:
            known = f"the patches are those of {shown(self.channels.tolist())}"
            raise ValueError(f"no channel {channel}: {known}; expected one of these")
        indices = [i for i in self.indices[rows[0]].tolist() if i >= 0]
        if not indices:
            raise ValueError(f"channel {channel} is NaN in all pictures; expected one with numbers")
        read = {i: self._read[i] if i in self._read else self._load(i) for i in indices}
        self._read.clear()
        self._read.update(read)
        return rows[0], torch.stack(list(read.values()))

    def _load(self, i: int) -> Tensor:
        item = self._source[i]
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
        """The patches of whole pictures, and patches of ``fill`` where there are fewer than k."""
        patches = [cut(picture, *self._patch(row, k), fill) for k, picture in enumerate(whole)]
        missing = [torch.full_like(patches[0], fill)] * (self.values.shape[1] - len(patches))
        return torch.stack([*patches, *missing])

    def __repr__(self) -> str:
        k = self.values.shape[1]
        return (
            f"TopPatchesResult of {self.layer}: {len(self.channels)} channels, the {k} strongest pictures of each"
            f"{'' if self.complete else ', not complete'}"
        )


def _tolerance(maps: Tensor, expected: float) -> float:
    """How much an activation may differ from that in a batch of another size."""
    eps = torch.finfo(maps.dtype).eps
    relative = max(1e-3, 8 * eps)
    # Its terms may be as large as the layer's largest activation, and a GPU may compute them with TF32.
    absolute = relative if maps.is_cuda or eps > 1e-6 else 1e-5
    return max(relative * abs(expected), absolute * float(maps.abs().amax()))


_MOST = 1000  # pictures for each channel


@documented
@device_aside()
def top_patches(
    model: nn.Module,
    dataset: Dataset,
    layer: str,
    channels: Channels | None = None,
    k: int = 9,
    *,
    labels: Sequence[str] | None = None,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    **options: Any,
) -> TopPatchesResult:
    """For each channel the patches of a dataset that excite it most, and their reconstructions.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 2: the top 9
    activations of a feature map, each from another picture, projected down to pixel space beside the patches.

    The dataset is scanned once; patches are cut out and reconstructed on request.

    Parameters
    ----------
    dataset
        Pictures of one size, of any kind that :func:`nbviz.scan` takes, with a length. They are read again for the
        patches, and must be the same then.
    layer
        The name of a layer with feature maps.
    k
        How many pictures for each channel, at most 1,000.
    labels
        The names of the classes, in order. None takes those found with the preprocessing.

    Returns
    -------
    TopPatchesResult
        ``values``, ``indices``, ``labels`` (K, k) and ``positions`` (K, k, 2), strongest first; of equal values, the
        lower index comes first, and within a picture the first position. ``patches(channel)`` gives uint8 (k, 3, h, w),
        ``reconstructions(channel, rule)`` (k, C, h, w), aligned to the pixel.

    Raises
    ------
    ValueError
        When ``layer`` gives no feature maps.
    TypeError
        When ``dataset`` has no length.

    Warns
    -----
    InterruptedWarning
        When it was interrupted: the patches are those of the pictures seen so far.

    Examples
    --------
    >>> import nbviz
    >>> images, labels = nbviz.bundled.fashion_test()
    >>> dataset = torch.utils.data.TensorDataset(images[:100, None], labels[:100])
    >>> result = top_patches(nbviz.bundled.load("fashion"), dataset, "features.8", [3, 41], progress=False)
    >>> result.values.shape, result.size, result.patches(41).shape, result.reconstructions(41).shape
    (torch.Size([2, 9]), (14, 14), torch.Size([9, 3, 14, 14]), torch.Size([9, 1, 14, 14]))
    """
    k, names = check_whole("k", k, 1, _MOST), None if labels is None else check_labels(labels)
    subject, source = Subject.of_dataset(model, dataset, preprocess, inputs)
    layer = first_name(subject.model, layer)
    layers = {entry.name: entry for entry in subject.layers()}
    # Of tokens the strongest may be a class token, which has no place in the picture.
    accepted = [name for name, entry in layers.items() if entry.has_maps and not entry.of_tokens]
    if layer not in accepted:
        gives = "tokens" if layer in layers and layers[layer].has_maps else "no feature maps"
        raise ValueError(f"layer {shown(layer)} gives {gives}. Accepted: {', '.join(accepted[:12])}")
    count = layers[layer].shape[0]
    rows = range(count) if channels is None else check_indices("channel", channels, count)
    chosen = torch.tensor(rows, dtype=torch.int64)
    statistics = {"top": TopK(layer, k)}
    scanned = scan(subject.model, source.dataset, statistics, preprocess=preprocess, inputs=inputs, **options)
    if not scanned.pictures:
        raise KeyboardInterrupt  # the scan was interrupted before its first batch
    return TopPatchesResult(
        **{name: values[chosen] for name, values in vars(scanned["top"]).items()},
        layer=layers[layer],
        channels=chosen,
        skipped=scanned.skipped,
        complete=scanned.complete,
        _subject=subject,
        _source=source,
        _names=names,
    )
