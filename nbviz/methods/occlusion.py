"""Which regions decide the answer: a square slid over the picture, and regions cut away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_maps
from nbviz.core.checks import check_flag, check_index, check_whole
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import line, shown
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.fill import Fill, filling

_AT_ONCE = 16  # pictures in one forward pass


@dataclass(frozen=True, repr=False)
class OcclusionResult:
    """How the answer changes as a square slides over the picture. Each map (N, R, S) has one value per position.

    Parameters
    ----------
    probability
        The probability of the class or label; the value, where the model's answer is one (``measure``).
    named
        int64: the most probable class.
    activity
        The sum of the chosen channel's feature map; None without a layer.
    target
        int64 (N,): the class.
    channel
        int64 (N,): the channel of the activity; None without a layer.
    tops, lefts
        The top and left edges of the squares, in pixels.
    patch
        Height and width of the squares.
    whole
        (N,): what ``probability`` is for the whole picture.
    measure
        ``"probability"`` or ``"value"``: what ``probability`` and ``whole`` are.
    score
        (N, R, S): the model's own score of the class, before any softmax.
    """

    probability: Tensor
    named: Tensor
    activity: Tensor | None
    target: Tensor
    channel: Tensor | None
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    patch: tuple[int, int]
    whole: Tensor
    measure: str = "probability"
    score: Tensor | None = None

    def __repr__(self) -> str:
        n, rows, columns = self.probability.shape
        low, high = float(self.probability.amin()), float(self.probability.amax())
        size = "×".join(map(str, self.patch))
        return (
            f"OcclusionResult: {n} pictures, {rows}×{columns} squares of {size}, {self.measure} {low:.3f} to {high:.3f}"
        )


@as_method()
def occlusion(
    model: nn.Module,
    images: Images,
    target: Target | None = None,
    patch: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: Fill = "grey",
    *,
    layer: str | None = None,
    channel: int | None = None,
    **options: Unpack[SubjectOptions],
) -> OcclusionResult:
    """Which regions decide the answer: a square covers a part of the picture, for each position of the square.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2 and figure
    7: the probability of the class, the most probable class, and the summed activity of a feature map.

    Parameters
    ----------
    target
        The class, or one for each picture; None takes the class predicted for the whole picture.
    patch
        Height and width of the square in pixels of the model's input, or one number for both. None takes a seventh of
        the picture's longer side.
    stride
        The distance between neighbouring squares in pixels, down and across, or one number for both; None takes half
        of the square's shorter side.
    layer, channel
        The feature map whose activity is summed. With a layer and ``channel=None``, the strongest in each picture, as
        in the paper.

    Returns
    -------
    OcclusionResult
        ``probability``, ``named`` and ``activity`` (N, R, S), on the model's device.

    Raises
    ------
    ValueError
        When the square is larger than the picture. When ``images`` has signals or volumes. When ``channel`` is out of
        range, or given without a ``layer``.

    Examples
    --------
    A network that looks only at the left half:

    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> net[2].weight.data = torch.tensor([[10.0, 0.0], [0.0, 0.0]])
    >>> occlusion(net, torch.ones(1, 1, 4, 4), 0, patch=2, stride=2).probability.round(decimals=3)
    tensor([[[0.9990, 1.0000],
             [0.9990, 1.0000]]])
    """
    subject = Subject.of(model, images, **options)
    squares = Squares(subject, target, patch, stride, fill, layer, channel)
    found = [squares.gathered(list(squares.over(i))) for i in range(len(subject))]
    maps = {name: torch.stack([of_picture[name] for of_picture in found]) for name in found[0]}
    return OcclusionResult(
        maps["probability"],
        maps["named"],
        maps.get("activity"),
        torch.tensor(squares.classes),
        None if layer is None else torch.tensor(squares.channels),
        squares.tops,
        squares.lefts,
        squares.size,
        squares.whole,
        squares.answer.measure,
        maps["score"],
    )


#: For several positions of the square their indices, and what was found there by the names of the maps.
Piece = tuple[list[int], dict[str, Tensor]]


class Squares:
    """A square that slides over pictures. Takes and checks the arguments of :func:`occlusion`."""

    def __init__(
        self,
        subject: Subject,
        target: Any,
        patch: Any,
        stride: Any,
        fill: Fill,
        layer: str | None,
        channel: int | None,
    ) -> None:
        subject.require_pictures()
        if layer is None and channel is not None:
            raise ValueError("channel belongs to a layer; name the layer")
        self._subject, self._layer = subject, layer
        sides = subject.inputs.shape[-2:]
        self.size = _size(patch, sides)
        steps = zip(sides, self.size, _steps(stride, self.size), strict=True)
        self.tops, self.lefts = (_edges(side, size, step) for side, size, step in steps)
        self._fill = filling(subject.inputs, fill, subject.pictures.preprocess)
        self.classes: list[int] = []
        self.channels: list[int] = []  # none without a layer
        whole = []
        for i in range(len(subject)):
            scores, maps = self._run(i, subject.inputs[i : i + 1])
            self.classes.append(int(subject.part([i]).targets(target, scores)[0]))
            whole.append(scores)
            if maps is not None:
                strongest = int(torch.nan_to_num(maps).flatten(2).amax(2)[0].argmax())
                self.channels.append(strongest if channel is None else check_index("channel", channel, maps.shape[1]))

        scores = torch.cat(whole)
        self.answer = subject.reading(scores)
        self.whole = self.answer.read(scores)[range(len(scores)), self.classes]

    def _run(self, i: int, variants: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class scores of variants of picture i, and the layer's maps."""
        subject, rows = self._subject.with_variants(i, variants)
        trace = subject.run([] if self._layer is None else [self._layer], output=True)
        maps = None if self._layer is None else check_maps(trace, self._layer)[rows]
        return subject.scores(trace.output)[rows], maps

    def over(self, i: int) -> Iterator[Piece]:
        """The answers for picture i, a few positions at a time, row by row."""
        corners = [(top, left) for top in self.tops for left in self.lefts]

        def answers(positions: Sequence[int]) -> Piece:
            covered = self._subject.inputs[i].repeat(len(positions), 1, 1, 1)
            for row, position in enumerate(positions):
                (top, left), (h, w) = corners[position], self.size
                inside = (slice(None), slice(top, top + h), slice(left, left + w))
                covered[row][inside] = self._fill[i][inside]
            scores, maps = self._run(i, covered)
            read = self.answer.read(scores).float()
            found = {"probability": read[:, self.classes[i]], "named": read.argmax(1)}
            found["score"] = scores[:, self.classes[i]].float()
            if maps is not None:
                found["activity"] = maps[:, self.channels[i]].float().flatten(1).sum(1)
            return list(positions), found

        at_once = _AT_ONCE if self._subject.apart else 1
        for start in range(0, len(corners), _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, len(corners)))
            yield from in_chunks(answers, positions, at_once, "one covered picture")

    def gathered(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Pieces of one picture as maps (R, S); NaN, or -1 for a class, where not yet known."""
        shape, maps = (len(self.tops), len(self.lefts)), dict[str, Tensor]()
        for positions, found in pieces:
            for name, values in found.items():
                unknown = torch.nan if values.is_floating_point() else -1
                maps.setdefault(name, values.new_full(shape, unknown)).view(-1)[positions] = values
        return maps


def _size(patch: Any, sides: Sequence[int]) -> tuple[int, int]:
    """Height and width of the square."""
    if patch is None:
        side = max(1, round(max(sides) / 7))
        return min(side, sides[0]), min(side, sides[1])
    pair = list(patch) if isinstance(patch, (tuple, list)) else [patch, patch]
    if len(pair) != 2:
        raise ValueError(f"patch is {shown(patch)}; expected one whole number, or height and width")
    height, width = (check_whole("patch", given, 1, side) for given, side in zip(pair, sides, strict=True))
    return height, width


def _steps(stride: Any, size: tuple[int, int]) -> tuple[int, int]:
    """From one square to the next, down and across."""
    given = max(1, min(size) // 2) if stride is None else stride
    pair = list(given) if isinstance(given, (tuple, list)) else [given, given]
    if len(pair) != 2:
        raise ValueError(f"stride is {shown(stride)}; expected one whole number, or one down and one across")
    down, across = (check_whole("stride", step, 1) for step in pair)
    return down, across


def _edges(side: int, size: int, step: int) -> tuple[int, ...]:
    """Where squares begin, so that the last one ends at the border."""
    edges = list(range(0, side - size + 1, step))
    return tuple(edges if edges[-1] == side - size else [*edges, side - size])


@dataclass(frozen=True, repr=False)
class RegionEffectResult:
    """The answer before and after a region of each picture was cut away.

    Parameters
    ----------
    before, after
        float32 (N, classes): probabilities; values, where the model's answer is one (``measure``).
    inputs
        (N, C, H, W): the pictures after the cut, as the model takes them.
    names
        The names of the classes, where they are known.
    measure
        ``"probability"`` or ``"value"``.
    """

    before: Tensor
    after: Tensor
    inputs: Tensor
    names: tuple[str, ...] = ()
    measure: str = "probability"

    def __repr__(self) -> str:
        lines = []
        for i, (p, q) in enumerate(zip(self.before, self.after, strict=True)):
            was, now = int(p.argmax()), int(q.argmax())
            change = f"{float(p[was]):.3f} → {float(q[was]):.3f}"
            if self.measure == "value":
                lines.append(f"picture {i}: {change}")
                continue
            lines.append(f"picture {i}: {self._name(was)} {change}; now {self._name(now)} {float(q[now]):.3f}")
        return "\n".join(lines)

    def _name(self, number: int) -> str:
        return line(self.names[number], 60) if number < len(self.names) else f"class {number}"


@as_method()
def region_effect(
    model: nn.Module,
    images: Images,
    mask: Any,
    keep: bool = True,
    fill: Fill = "grey",
    **options: Unpack[SubjectOptions],
) -> RegionEffectResult:
    """The answer when only a region of the picture is kept, or when it is cut away.

    For example, cut the desk away and see whether the answer is still "computer".

    Parameters
    ----------
    mask
        The region: bool (H, W) or (N, H, W) at the size of the model's input, or a box (top, left, bottom, right) in
        its pixels, ends excluded.
    keep
        Keep the region and cut the rest away; False cuts the region away.

    Returns
    -------
    RegionEffectResult
        ``before`` and ``after`` (N, classes), ``inputs``; on the model's device.

    Raises
    ------
    ValueError
        When ``mask`` does not fit the pictures. When ``images`` has signals or volumes.
    TypeError
        When ``mask`` is neither a mask nor a box. When ``keep`` is neither True nor False.

    Examples
    --------
    >>> import nbviz
    >>> model, (images, _) = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()
    >>> effect = region_effect(model, images[:1, None], (0, 0, 14, 28), keep=False)
    >>> effect.before.shape, effect.after.shape
    (torch.Size([1, 10]), torch.Size([1, 10]))
    """
    check_flag("keep", keep)
    subject = Subject.of(model, images, **options)
    subject.require_pictures()
    pictures = subject.inputs
    region = check_region(mask, pictures).to(pictures.device)
    altered = torch.where(region[:, None] == keep, pictures, filling(pictures, fill, subject.pictures.preprocess))
    whole = subject.answer()
    answer = subject.reading(whole)
    before, after = (answer.read(scores).float() for scores in (whole, subject.with_inputs(altered).answer()))
    names = subject.pictures.preprocess.labels or ()
    return RegionEffectResult(before, after, altered, names if len(names) == before.shape[1] else (), answer.measure)


def check_region(mask: Any, pictures: Tensor) -> Tensor:
    """The region as bool (N, H, W) or (1, H, W), from a mask or a box."""
    height, width = pictures.shape[-2:]
    expected = f"a mask ({height}, {width}) of truth values, or a box (top, left, bottom, right) within it"
    try:
        given = torch.as_tensor(mask, device="cpu")
    except Exception:  # an object of the user's can raise anything
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
