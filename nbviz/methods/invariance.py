"""How features and answer change when the picture is shifted, scaled or turned (figure 5 of Zeiler and Fergus)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_features
from nbviz.core.checks import check_choice, check_number
from nbviz.core.chunks import in_chunks, kept_together
from nbviz.core.errors import shown
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.warp import warp

#: The transformations of the picture, with their units.
TRANSFORMS = {"down": "pixels", "across": "pixels", "scale": "times", "angle": "degrees"}
_AT_ONCE = 8  # pictures in one forward pass
_POINTS = 25  # values, where none are given
_MOST = 10_000  # values
_IDENTITY = {"down": 0.0, "across": 0.0, "scale": 1.0, "angle": 0.0}


@dataclass(frozen=True, repr=False)
class InvarianceResult:
    """How features and answer change as a picture is transformed.

    Parameters
    ----------
    transform
        The transformation.
    values
        float64 (T,): by how much, in pixels, times or degrees.
    distances
        For each layer (N, T): the distance of its features from those of the original picture, relative to the norm
        of the latter; 0 where nothing changes.
    probability
        (N, T): the probability of the target; the value, where the model's answer is one (``measure``).
    target
        int64 (N,): the class.
    measure
        ``"probability"`` or ``"value"``: what ``probability`` is.
    """

    transform: str
    values: Tensor
    distances: dict[str, Tensor]
    probability: Tensor
    target: Tensor
    measure: str = "probability"

    def __repr__(self) -> str:
        lines = [f"Invariance to {self.transform}, {len(self.values)} values in {TRANSFORMS[self.transform]}"]
        for name, distance in self.distances.items():
            lines.append(f"  {name}: distance {float(distance.amin()):.2f} to {float(distance.amax()):.2f}")
        low, high = float(self.probability.amin()), float(self.probability.amax())
        return "\n".join([*lines, f"  {self.measure} of the class: {low:.2f} to {high:.2f}"])


@as_method()
def invariance(
    model: nn.Module,
    images: Images,
    layers: Sequence[str] | None = None,
    transform: str = "angle",
    values: Sequence[float] | None = None,
    target: Target | None = None,
    **options: Unpack[SubjectOptions],
) -> InvarianceResult:
    """How features and the probability of a class change as a picture is shifted, scaled or turned.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 5: the first
    layers change at once, the last ones slowly; an answer is stable where the network is invariant.

    Parameters
    ----------
    transform
        ``"down"`` or ``"across"``, a shift in pixels; ``"scale"``, about the centre, where values above 1 enlarge; or
        ``"angle"``, in degrees, counter-clockwise. Pixels from beyond the border repeat the last ones inside.
    values
        By how much. None takes 25 values: up to a quarter of the side either way, half to double, or a full turn.
    target
        The class, or one for each picture; None takes the class predicted for the original picture.

    Returns
    -------
    InvarianceResult
        ``values`` (T,), ``distances``, for each layer (N, T), ``probability`` (N, T), ``target`` (N,).

    Raises
    ------
    ValueError
        When ``transform`` is unknown. When one of ``values`` is out of range, such as a scale below 0.01. When
        ``images`` has signals or volumes.

    Examples
    --------
    The mean over all positions does not change with a quarter turn:

    >>> net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    >>> result = invariance(net, torch.rand(1, 1, 4, 4), ["0", "1"], "angle", [0, 90])
    >>> result.distances["0"][0, 1] > 0.1, result.distances["1"][0, 1] < 1e-5, result.distances["0"][0, 0]
    (tensor(True), tensor(True), tensor(0.))
    """
    check_choice("transform", transform, TRANSFORMS)
    subject = Subject.of(model, images, **options)
    subject.require_pictures()
    amounts = amounts_of(transform, values, subject.inputs.shape[-2:])
    names = subject.layer_names(layers)

    found = [list(along(subject, i, names, transform, amounts, target)) for i in range(len(subject))]
    return InvarianceResult(
        transform,
        torch.tensor(amounts, dtype=torch.float64),
        {name: torch.stack([torch.cat([p.distances[name] for p in pieces]) for pieces in found]) for name in names},
        torch.stack([torch.cat([piece.probability for piece in pieces]) for pieces in found]),
        torch.stack([pieces[0].target for pieces in found]),
        found[0][0].measure,
    )


def along(
    subject: Subject, i: int, names: Sequence[str], transform: str, amounts: Sequence[float], target: Any
) -> Iterator[InvarianceResult]:
    """The result for picture i in pieces of a few values each, without the dimension of pictures."""
    picture = subject.part([i])

    def answers(values: Sequence[float]) -> tuple[Sequence[float], dict[str, Tensor], Tensor]:
        moved = subject.with_inputs(torch.cat([moved_by(picture.inputs, transform, value) for value in values]))
        trace = moved.run(names, output=True)
        maps = {name: check_features(name, trace.activations[name], len(moved)).flatten(1) for name in names}
        return values, maps, moved.scores(trace.output)

    _, original, scores = answers([_IDENTITY[transform]])
    answer, chosen = picture.reading(scores), picture.targets(target, scores)[0]
    norms = {name: original[name].float().norm().clamp(min=1e-30) for name in names}
    # With batch statistics, a moved picture would be normalised by the others in its batch.
    at_once = _AT_ONCE if kept_together(subject.model, 2, None) == 1 else 1
    for start in range(0, len(amounts), at_once):
        for part, maps, scores in in_chunks(answers, amounts[start : start + at_once], at_once, "one picture"):
            values = torch.tensor(part, dtype=torch.float64)
            # The same picture may give slightly different numbers alone and in a batch.
            unchanged = (values == _IDENTITY[transform]).to(scores.device)
            distances = {
                name: ((maps[name] - original[name]).float().norm(dim=1) / norms[name]).masked_fill(unchanged, 0.0)
                for name in names
            }
            read = answer.read(scores).float()[:, int(chosen)]
            yield InvarianceResult(transform, values, distances, read, chosen, answer.measure)


def moved_by(pictures: Tensor, transform: str, value: float) -> Tensor:
    """Pictures (N, C, H, W), transformed."""
    half = pictures.dtype in (torch.float16, torch.bfloat16)
    amount: dict[str, Any] = {transform: value}
    return warp(pictures.float() if half else pictures, **amount).to(pictures.dtype)


def amounts_of(transform: str, given: Any, sides: Sequence[int]) -> list[float]:
    """The given values, checked; for None, 25 values for pictures of this height and width."""
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
        numbers = [float(number) for number in listed[: _MOST + 1]]
    except Exception:  # an object of the user's can raise anything
        raise TypeError(f"values is {shown(given)}; expected a list of numbers, or None") from None
    if not 0 < len(numbers) <= _MOST:
        raise ValueError(f"values has {len(listed)} numbers; expected 1 to {_MOST:,}")
    return [check_number(transform, number, least, 1e6) for number in numbers]
