"""Whether the pixels that a map calls important are so: delete them, or insert only them.

V. Petsiuk, A. Das and K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.checks import check_choice, check_tensor, check_whole
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.fill import FILLS, filling

_AT_ONCE = 16  # pictures in one forward pass


@dataclass(frozen=True, repr=False)
class DeletionInsertionResult:
    """How the probability of the class changes as pixels are deleted, or inserted, the most important first.

    Parameters
    ----------
    shares
        float64 (S,): fractions of the pixels, from 0 to 1.
    deletion, insertion
        float64 (N, S): the probability with this fraction deleted, or with only this fraction present; the value, where
        the model's answer is one (``measure``).
    deletion_area, insertion_area
        float64 (N,): the area under the curve; a good map has a small one for deletion and a large one for insertion.
    measure
        ``"probability"`` or ``"value"``.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor
    measure: str = "probability"

    def __repr__(self) -> str:
        areas = f"deletion {float(self.deletion_area.mean()):.3f}, insertion {float(self.insertion_area.mean()):.3f}"
        return f"DeletionInsertionResult of {len(self.deletion)} pictures: {areas}"


@as_method()
def deletion_insertion(
    model: nn.Module,
    images: Images,
    maps: Tensor,
    *,
    target: Target | None = None,
    steps: int = 32,
    fill: str | None = None,
    **options: Unpack[SubjectOptions],
) -> DeletionInsertionResult:
    """Whether the pixels that a map calls important are so: delete them, or insert only them, most important first.

    V. Petsiuk, A. Das and K. Saenko, "RISE", BMVC 2018, section 4: the area under the curve of the probability.

    Parameters
    ----------
    maps
        One map for each picture: (N, H, W), or (N, C, H, W), of which the absolute values are summed over the channels.
    steps
        In how many steps the pixels are deleted or inserted.
    fill
        What replaces missing pixels: ``"grey"``, ``"mean"`` (the mean colour of the picture) or ``"blur"`` (the picture
        itself, blurred). None takes grey for deletion and blur for insertion, as in the paper, so that neither adds
        edges.

    Returns
    -------
    DeletionInsertionResult
        ``shares`` (S,), ``deletion``, ``insertion`` (N, S), and the areas (N,).

    Raises
    ------
    ValueError
        When ``maps`` has another size than the model's input, or values that are not finite.

    Examples
    --------
    >>> import nbviz
    >>> model, images = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None]
    >>> result = deletion_insertion(model, images, nbviz.grad_cam(model, images), steps=8)
    >>> result.deletion.shape, bool((result.insertion_area > result.deletion_area).all())
    (torch.Size([2, 9]), True)
    """
    fills = ("grey", "blur") if fill is None else (check_choice("fill", fill, FILLS),) * 2
    steps = check_whole("steps", steps, 1, 10_000)
    subject = Subject.of(model, images, values=False, **options)
    pictures = subject.inputs
    places = _order_of_pixels(maps, pictures)
    count = places.shape[1]
    counts = torch.linspace(0, count, steps + 1, dtype=torch.float64).round().long()
    deleted, canvas = (filling(pictures, name, subject.pictures.preprocess) for name in fills)
    at_once = _AT_ONCE if subject.apart else 1

    def curve(i: int, chosen: int, before: Tensor, after: Tensor) -> Tensor:
        place = places[i].view(pictures.shape[-2:]).to(pictures.device)

        def probability(part: Sequence[int]) -> Tensor:
            changed = torch.stack([torch.where(place < int(counts[step]), after, before) for step in part])
            variants, rows = subject.with_variants(i, changed)
            return answer.read(variants.answer()[rows].double())[:, chosen].cpu()

        return joined(in_chunks(probability, range(len(counts)), at_once, "one picture"))

    scores = []
    for i, picture in enumerate(pictures):
        whole, rows = subject.with_variants(i, picture[None])
        scores.append(whole.answer()[rows])
    answer, curves = subject.reading(torch.cat(scores)), []
    for i, picture in enumerate(pictures):
        chosen = int(subject.part([i]).targets(target, scores[i])[0])
        curves.append((curve(i, chosen, picture, deleted[i]), curve(i, chosen, canvas[i], picture)))
    deletion, insertion = (torch.stack(rows) for rows in zip(*curves, strict=True))
    shares = counts.double() / count
    areas = torch.trapezoid(deletion, shares), torch.trapezoid(insertion, shares)
    return DeletionInsertionResult(shares, deletion, insertion, *areas, answer.measure)


def _order_of_pixels(maps: Tensor, pictures: Tensor) -> Tensor:
    """For each picture and pixel, its place in the order of importance: int64 (N, H * W)."""
    check_tensor("maps", maps, "(N, H, W) or (N, C, H, W)")
    if pictures.ndim != 4 or maps.ndim not in (3, 4) or maps.shape[-2:] != pictures.shape[-2:]:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected (N, H, W) or (N, C, H, W) at the size of the model's input, "
            f"{tuple(pictures.shape)}"
        )
    if len(maps) != len(pictures):
        raise ValueError(f"maps has {len(maps)} maps for {len(pictures)} pictures; expected one for each")
    if maps.is_complex():
        raise TypeError(f"maps has {maps.dtype} values; expected real ones")
    if not bool(maps.isfinite().all()):
        raise ValueError("maps has values that are not finite (NaN or infinity); expected finite ones")
    weights = maps.detach().float() if maps.ndim == 3 else maps.detach().float().abs().sum(1)
    return weights.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
