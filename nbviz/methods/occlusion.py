"""Which regions decide: a square slid over the picture, and parts of it cut away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_maps
from nbviz.core.checks import check_index, check_whole
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import shown
from nbviz.core.trace import Feed, Trace, find_module
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject
from nbviz.pictures.fill import filling
from nbviz.pictures.load import Pictures

_AT_ONCE = 16  # pictures in one forward pass


class Variants:
    """What a model gives for variants of one of some pictures.

    Several at once, unless the answer to a picture hangs on the others of its batch: then each in its place among them.
    """

    def __init__(self, subject: Subject, layers: Sequence[str] = ()) -> None:
        self._subject, self._layers, self._apart = subject, layers, subject.apart
        self.at_once = _AT_ONCE if self._apart else 1

    def run(self, i: int, variants: Tensor) -> tuple[Trace, slice]:
        """One pass with variants of picture i (K, C, H, W), at most :attr:`at_once`, and which rows of it they are."""
        given, rows = variants, slice(None)
        if not self._apart:
            given, rows = self._subject.inputs.clone(), slice(i, i + 1)
            given[rows] = variants
        return self._subject.at(given).run(self._layers, output=True), rows


@dataclass(frozen=True, repr=False)
class OcclusionResult:
    """What becomes of the answer as a square is slid over the picture; each map is (N, R, S), one entry a position.

    Parameters
    ----------
    probability
        Of the class.
    named
        int64: the most probable class.
    activity
        The sum of the chosen channel's feature map; None where no layer was given.
    target
        int64 (N,): the class.
    channel
        int64 (N,): of which channel the activity is; None where no layer was given.
    tops, lefts
        Where the squares begin, in pixels.
    patch
        Their height and width.
    """

    probability: Tensor
    named: Tensor
    activity: Tensor | None
    target: Tensor
    channel: Tensor | None
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    patch: tuple[int, int]

    def __repr__(self) -> str:
        n, rows, columns = self.probability.shape
        low, high = float(self.probability.amin()), float(self.probability.amax())
        size = "×".join(map(str, self.patch))
        return f"OcclusionResult: {n} pictures, {rows}×{columns} squares of {size}, probability {low:.3f} to {high:.3f}"


@steady
def occlusion(
    model: nn.Module,
    images: Any,
    target: Sequence[int] | int | None = None,
    patch: int | Sequence[int] | None = None,
    stride: int | None = None,
    fill: str = "grey",
    *,
    layer: str | None = None,
    channel: int | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> OcclusionResult:
    """Which regions decide: the answer with a square of the picture covered, for each position of the square.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2 and figure
    7: the probability of the class, the most probable class, and the summed activity of a feature map.

    Parameters
    ----------
    model
        Any PyTorch model that gives class scores; it is left as it was.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`.
    target
        The class, or one for each picture; None takes the one predicted for the whole picture.
    patch
        Height and width of the square in pixels of the model's input, or one number for both; None takes a seventh
        of the picture's longer side.
    stride
        By how many pixels neighbouring squares are apart; None takes half of the square's shorter side.
    fill
        What covers it: ``"grey"``, as in the paper, ``"mean"``, the picture's mean colour, or ``"blur"``, the picture
        itself, blurred.
    layer, channel
        Of which feature map the activity is summed; with a layer and ``channel=None``, of each picture's strongest,
        as in the paper.
    preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    OcclusionResult
        ``probability``, ``named`` and ``activity`` (N, R, S), on the model's device.

    Raises
    ------
    ValueError
        For an unknown layer or fill, a class out of range, a square larger than the picture, or no pictures but
        signals or volumes.
    TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    A network that looks at the left half alone:

    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> net[2].weight.data = torch.tensor([[10.0, 0.0], [0.0, 0.0]])
    >>> occlusion(net, torch.ones(1, 1, 4, 4), 0, patch=2, stride=2).probability.round(decimals=3)
    tensor([[[0.9990, 1.0000],
             [0.9990, 1.0000]]])
    """
    subject = Subject.of(model, images, preprocess, inputs, output)
    squares = Squares(
        subject.model, subject.pictures, target, patch, stride, fill, layer, channel, subject.feed, output
    )
    found = [squares.gathered(list(squares.over(i)), i) for i in range(len(subject))]
    probability, named, activity = (
        None if one[0] is None else torch.stack([part for part in one if part is not None])
        for one in zip(*found, strict=True)
    )
    assert probability is not None
    assert named is not None
    channels = None if squares.channels is None else torch.tensor(squares.channels)
    where = squares.tops, squares.lefts, squares.size
    return OcclusionResult(probability, named, activity, torch.tensor(squares.classes), channels, *where)


#: Of some positions of the square: their numbers, the probabilities, the classes and the activity.
Piece = tuple[list[int], Tensor, Tensor, Tensor | None]


class Squares:
    """A square slid over pictures; the arguments are those of :func:`occlusion`, checked here."""

    def __init__(
        self,
        model: nn.Module,
        loaded: Pictures,
        target: Any,
        patch: Any,
        stride: int | None,
        fill: str,
        layer: str | None,
        channel: int | None,
        feed: Feed,
        output: Any,
    ) -> None:
        self._subject, self.pictures = Subject(model, loaded, feed, output), loaded.inputs
        self._subject.require_pictures()
        if layer is None and channel is not None:
            raise ValueError("channel belongs to a layer; name the layer")
        self.layer = layer
        sides = self.pictures.shape[-2:]
        self.size = _size(patch, sides)
        step = max(1, min(self.size) // 2) if stride is None else check_whole("stride", stride, 1)
        self.tops, self.lefts = (_places(side, one, step) for side, one in zip(sides, self.size, strict=True))
        self._fill = filling(self.pictures, fill, loaded.preprocess)
        if layer is not None:
            find_module(model, layer)
        self._variants = Variants(self._subject, [] if layer is None else [layer])
        self.classes: list[int] = []
        self.channels: list[int] | None = None if layer is None else []
        for i in range(len(self.pictures)):
            logits, maps = self._run(i, self.pictures[i : i + 1])
            self.classes.append(int(self._subject.part([i]).targets(target, logits)[0]))
            if maps is not None and self.channels is not None:
                strongest = int(torch.nan_to_num(maps).flatten(2).amax(2)[0].argmax())
                self.channels.append(strongest if channel is None else check_index("channel", channel, maps.shape[1]))

    def _run(self, i: int, variants: Tensor) -> tuple[Tensor, Tensor | None]:
        trace, rows = self._variants.run(i, variants)
        maps = None if self.layer is None else check_maps(trace, self.layer)[rows]
        return self._subject.scores(trace.output)[rows], maps

    def over(self, i: int) -> Iterator[Piece]:
        """The answers for one picture, a few positions at a time, row by row."""
        places = [(top, left) for top in self.tops for left in self.lefts]

        def work(part: Sequence[int]) -> Piece:
            covered = self.pictures[i].repeat(len(part), 1, 1, 1)
            for row, place in enumerate(part):
                (top, left), (h, w) = places[place], self.size
                inside = (slice(None), slice(top, top + h), slice(left, left + w))
                covered[row][inside] = self._fill[i][inside]
            logits, maps = self._run(i, covered)
            chances = logits.float().softmax(1)
            activity = None
            if maps is not None and self.channels is not None:
                activity = maps[:, self.channels[i]].float().flatten(1).sum(1)
            return list(part), chances[:, self.classes[i]], chances.argmax(1), activity

        for start in range(0, len(places), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(places)))
            yield from in_chunks(work, part, self._variants.at_once, "one covered picture")

    def gathered(self, pieces: Sequence[Piece], i: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What was found of a picture as maps (R, S); NaN and -1 where it is not known yet."""
        shape = (len(self.tops), len(self.lefts))
        probability = self.pictures.new_full((shape[0] * shape[1],), torch.nan, dtype=torch.float32)
        named = torch.full_like(probability, -1, dtype=torch.int64)
        activity = None if self.layer is None else probability.clone()
        for places, chances, classes, active in pieces:
            probability[places], named[places] = chances, classes
            if activity is not None and active is not None:
                activity[places] = active
        return probability.view(shape), named.view(shape), None if activity is None else activity.view(shape)


def _size(patch: Any, sides: Sequence[int]) -> tuple[int, int]:
    if patch is None:
        side = max(1, round(max(sides) / 7))
        return min(side, sides[0]), min(side, sides[1])
    pair = list(patch) if isinstance(patch, (tuple, list)) else [patch, patch]
    if len(pair) != 2:
        raise ValueError(f"patch is {shown(patch)}; expected one whole number, or height and width")
    height, width = (check_whole("patch", one, 1, side) for one, side in zip(pair, sides, strict=True))
    return height, width


def _places(side: int, size: int, step: int) -> tuple[int, ...]:
    """Where squares begin such that the last one ends at the border."""
    places = list(range(0, side - size + 1, step))
    return tuple(places if places[-1] == side - size else [*places, side - size])


@dataclass(frozen=True, repr=False)
class RegionEffectResult:
    """The answer before and after a part of each picture was cut away.

    Parameters
    ----------
    before, after
        float32 (N, classes): probabilities.
    inputs
        (N, C, H, W): what the model was given afterwards.
    """

    before: Tensor
    after: Tensor
    inputs: Tensor

    def __repr__(self) -> str:
        lines = []
        for i, (p, q) in enumerate(zip(self.before, self.after, strict=True)):
            was, now = int(p.argmax()), int(q.argmax())
            change = f"{float(p[was]):.3f} → {float(q[was]):.3f}"
            lines.append(f"picture {i}: class {was} {change}; now class {now} {float(q[now]):.3f}")
        return "\n".join(lines)


@steady
def region_effect(
    model: nn.Module,
    images: Any,
    mask: Any,
    keep: bool = True,
    fill: str = "grey",
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> RegionEffectResult:
    """The answer when a region of the picture is all that is kept, or is cut away.

    Cut the desk away, and see whether "computer" survives.

    Parameters
    ----------
    model
        Any PyTorch model that gives class scores; it is left as it was.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`.
    mask
        The region: bool (H, W) or (N, H, W) at the size of the model's input, or a box (top, left, bottom, right) in
        its pixels, ends excluded.
    keep
        Keep the region and cut the rest away; False cuts the region away.
    fill
        What is put in the place of what is cut away: ``"grey"``, ``"mean"`` or ``"blur"``.
    preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    RegionEffectResult
        ``before`` and ``after`` (N, classes), ``inputs``; on the model's device.

    Raises
    ------
    ValueError
        For a mask or box that does not fit, an unknown fill, or no pictures but signals or volumes.
    TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> import nbviz
    >>> model, (images, _) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    >>> effect = region_effect(model, images[:1, None], (0, 0, 14, 28), keep=False)
    >>> effect.before.shape, effect.after.shape
    (torch.Size([1, 10]), torch.Size([1, 10]))
    """
    if not isinstance(keep, bool):
        raise TypeError(f"keep is {shown(keep)}; expected True or False")
    subject = Subject.of(model, images, preprocess, inputs, output)
    subject.require_pictures()
    pictures = subject.inputs
    region = check_region(mask, pictures).to(pictures.device)
    altered = torch.where(region[:, None] == keep, pictures, filling(pictures, fill, subject.pictures.preprocess))
    before, after = (some.answer().float().softmax(1) for some in (subject, subject.at(altered)))
    return RegionEffectResult(before, after, altered)


def check_region(mask: Any, pictures: Tensor) -> Tensor:
    """The region as bool (N, H, W) or (1, H, W), of a mask or a box."""
    height, width = pictures.shape[-2:]
    expected = f"a mask ({height}, {width}) of truth values, or a box (top, left, bottom, right) within it"
    try:
        given = torch.as_tensor(mask, device="cpu")
    except Exception:  # of an object's own making as well
        raise TypeError(f"mask is {shown(mask)}; expected {expected}") from None
    if given.shape == (4,) and given.dtype != torch.bool and not given.is_floating_point():
        top, left, bottom, right = given.tolist()
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(f"box is {shown(mask)}; expected {expected}")
        region = torch.zeros(1, height, width, dtype=torch.bool, device="cpu")
        region[:, top:bottom, left:right] = True
        return region
    if given.dtype != torch.bool:
        raise TypeError(f"mask is {shown(mask)}; expected {expected}")
    region = given[None] if given.ndim == 2 else given
    if region.ndim != 3 or region.shape[1:] != (height, width) or len(region) not in (1, len(pictures)):
        raise ValueError(f"mask has shape {tuple(given.shape)}; expected {expected}, or one for each picture")
    return region
