"""How much of what a network says stays when the picture is shifted, scaled or turned (figure 5 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_channels
from nbviz.core.checks import check_choice, check_number
from nbviz.core.chunks import in_chunks, kept_together
from nbviz.core.errors import shown
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject
from nbviz.pictures.warp import warp

#: What is done to the picture, and in which units.
TRANSFORMS = {"down": "pixels", "across": "pixels", "scale": "times", "angle": "degrees"}
_AT_ONCE = 8  # pictures in one forward pass
_POINTS = 25
_MOST = 10_000  # values


@dataclass(frozen=True, repr=False)
class InvarianceResult:
    """What becomes of features and answer as a picture is transformed.

    Parameters
    ----------
    transform
        Which.
    values
        float64 (T,): by how much, in pixels, times or degrees.
    distances
        For each layer (N, T): the distance of its features from those of the picture as it is, over the length of
        the latter: 0 where nothing changes.
    probability
        (N, T): of the target.
    target
        int64 (N,): the class.
    """

    transform: str
    values: Tensor
    distances: dict[str, Tensor]
    probability: Tensor
    target: Tensor

    def __repr__(self) -> str:
        lines = [f"Invariance to {self.transform}, {len(self.values)} values in {TRANSFORMS[self.transform]}"]
        lines += [
            f"  {name}: distance {float(d.amin()):.2f} to {float(d.amax()):.2f}" for name, d in self.distances.items()
        ]
        low, high = float(self.probability.amin()), float(self.probability.amax())
        return "\n".join([*lines, f"  probability of the class: {low:.2f} to {high:.2f}"])


@steady
def invariance(
    model: nn.Module,
    images: Any,
    layers: Sequence[str] | None = None,
    transform: str = "angle",
    values: Sequence[float] | None = None,
    target: Sequence[int] | int | None = None,
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> InvarianceResult:
    """Distance of features, and probability of a class, against how far a picture is shifted, scaled or turned.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 5: the first
    layers change at once, the last ones slowly; an answer is stable where the network is invariant.

    Parameters
    ----------
    layers
        Names of the layers whose features are looked at; None takes the first and the last that give feature maps.
    transform
        ``"down"`` or ``"across"``, a shift in pixels; ``"scale"``, around the middle, above 1 things become larger;
        ``"angle"`` in degrees, counter-clockwise. What comes in at the border goes on as its last pixels.
    values
        By how much; None takes 25 values: a quarter of the side either way, half to double, or a full turn.
    target
        The class, or one for each picture; None takes the one predicted for the picture as it is.

    Returns
    -------
    InvarianceResult
        ``values`` (T,), ``distances``, for each layer (N, T), ``probability`` (N, T), ``target`` (N,).

    Raises
    ------
    ValueError
        For an unknown layer or transform, a class out of range, a scale that is not above 0, or no pictures but
        signals or volumes.

    Examples
    --------
    The mean over all positions does not change when a picture is turned by a quarter:

    >>> net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    >>> found = invariance(net, torch.rand(1, 1, 4, 4), ["0", "1"], "angle", [0, 90])
    >>> found.distances["0"][0, 1] > 0.1, found.distances["1"][0, 1] < 1e-5, found.distances["0"][0, 0]
    (tensor(True), tensor(True), tensor(0.))
    """
    check_choice("transform", transform, TRANSFORMS)
    subject = Subject.of(model, images, preprocess, inputs, output)
    subject.require_pictures()
    amounts = amounts_of(transform, values, subject.inputs.shape[-2:])
    names = subject.layer_names(layers)

    distances: dict[str, list[Tensor]] = {name: [] for name in names}
    probability, targets = [], []
    for i in range(len(subject)):
        pieces = list(along(subject, i, names, transform, amounts, target))
        for name in names:
            distances[name].append(torch.cat([piece.distances[name] for piece in pieces]))
        probability.append(torch.cat([piece.probability for piece in pieces]))
        targets.append(pieces[0].target)
    found = {name: torch.stack(rows) for name, rows in distances.items()}
    by = torch.tensor(amounts, dtype=torch.float64)
    return InvarianceResult(transform, by, found, torch.stack(probability), torch.stack(targets))


def along(
    subject: Subject, i: int, names: Sequence[str], transform: str, amounts: Sequence[float], target: Any
) -> Iterator[InvarianceResult]:
    """The same for one of the pictures, piece by piece: of a few values each, without the dimension of pictures."""
    picture = subject.part([i])

    def work(values: Sequence[float]) -> tuple[Sequence[float], dict[str, Tensor], Tensor]:
        moved = subject.with_inputs(torch.cat([moved_by(picture.inputs, transform, value) for value in values]))
        trace = moved.run(names, output=True)
        maps = {name: check_channels(name, trace.activations[name], len(moved)).flatten(1) for name in names}
        return values, maps, moved.scores(trace.output).float().softmax(1)

    _, own, answer = work([_NOTHING[transform]])
    chosen = picture.targets(target, answer)[0]
    length = {name: own[name].float().norm().clamp(min=1e-30) for name in names}
    # None is normalised by how others are moved.
    at_once = _AT_ONCE if kept_together(subject.model, 2, None) == 1 else 1
    for start in range(0, len(amounts), at_once):
        some = amounts[start : start + at_once]
        for part, maps, answers in in_chunks(work, some, at_once, "one picture"):
            values = torch.tensor(part, dtype=torch.float64)
            away = {name: (maps[name] - own[name]).float().norm(dim=1) / length[name] for name in names}
            # A picture in a batch of several may differ from itself alone by rounding.
            still = (values == _NOTHING[transform]).to(answers.device)
            distances = {name: distance.masked_fill(still, 0.0) for name, distance in away.items()}
            yield InvarianceResult(transform, values, distances, answers[:, int(chosen)], chosen)


_NOTHING = {"down": 0.0, "across": 0.0, "scale": 1.0, "angle": 0.0}


def moved_by(pictures: Tensor, transform: str, value: float) -> Tensor:
    """Pictures (N, C, H, W) after one of ``TRANSFORMS``."""
    half = pictures.dtype in (torch.float16, torch.bfloat16)
    how: dict[str, Any] = {transform: value}
    return warp(pictures.float() if half else pictures, **how).to(pictures.dtype)


def amounts_of(transform: str, given: Any, sides: Sequence[int]) -> list[float]:
    """The values given, checked, or 25 of them for pictures with these sides."""
    if given is None:
        half, steps = _POINTS // 2, range(-(_POINTS // 2), _POINTS // 2 + 1)
        if transform == "scale":
            return [2 ** (step / half) for step in steps]
        if transform == "angle":
            return [180 * step / half for step in steps]
        reach = sides[0 if transform == "down" else 1] / 4
        return list(dict.fromkeys(float(round(reach * step / half)) for step in steps))
    least = 0.01 if transform == "scale" else -1e6
    try:
        listed = given.tolist() if hasattr(given, "tolist") else given
        numbers = [float(one) for one in listed[: _MOST + 1]]
    except Exception:  # of an object's own making as well
        raise TypeError(f"values is {shown(given)}; expected a list of numbers, or None") from None
    if not 0 < len(numbers) <= _MOST:
        raise ValueError(f"values has {len(listed)} numbers; expected 1 to {_MOST:,}")
    return [check_number(transform, one, least, 1e6) for one in numbers]
