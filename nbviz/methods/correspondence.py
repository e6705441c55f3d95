"""Whether a network relates the same part in different pictures (table 1 of Zeiler and Fergus)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_channels
from nbviz.core.checks import check_choice, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.types import Images, InputOptions
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.fill import FILLS, filling


@dataclass(frozen=True, repr=False)
class CorrespondenceResult:
    """How consistently masking a part changes a layer's features in different pictures.

    Parameters
    ----------
    part
        For each layer the mean, over all pairs of pictures, of the fraction of features whose changes differ in sign:
        the lower, the more the network relates the part.
    error
        For each layer its standard error over the pairs, as if these were independent; NaN for two pictures.
    random
        For each layer the mean with parts of the same size at random places, float64 (R,).
    """

    part: dict[str, float]
    error: dict[str, float]
    random: dict[str, Tensor]

    def _repr_html_(self) -> str:
        """A table."""
        rows = []
        for name in self.part:
            cells = "".join(f"<td>{cell}</td>" for cell in self._numbers(name))
            rows.append(f"<tr><th>{escape(line(name, 60))}</th>{cells}</tr>")
        head = "<tr><th>layer</th><th>the part</th><th>random parts</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"

    def __repr__(self) -> str:
        lines = ["change of sign between pictures (lower: the part corresponds)", "  layer: part, random parts"]
        return "\n".join([*lines, *(f"  {name}: {', '.join(self._numbers(name))}" for name in self.part)])

    def _numbers(self, name: str) -> tuple[str, str]:
        """The numbers of a layer, for the part and for random parts."""
        random = self.random[name]
        spread = f" ± {float(random.std()):.3f}" if len(random) > 1 else ""
        error = f" ± {self.error[name]:.3f}" if math.isfinite(self.error[name]) else ""
        return f"{self.part[name]:.3f}{error}", f"{float(random.mean()):.3f}{spread}" if len(random) else "–"


@as_method()
def correspondence(
    model: nn.Module,
    images: Images,
    boxes: Any,
    layers: Sequence[str] | None = None,
    *,
    random: int = 10,
    fill: str = "grey",
    seed: int = 0,
    **options: Unpack[InputOptions],
) -> CorrespondenceResult:
    """Whether masking the same part, such as an eye, changes a layer's features alike in different pictures.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.4: with
    ε_i = x_i - x̃_i, the change of the features of picture i when its part is masked, the sum over all pairs of
    pictures of the Hamming distance of sign(ε_i) and sign(ε_j) is lower for parts that the network relates than for
    random ones. Here it is the mean over pairs and features.

    Parameters
    ----------
    images
        At least two pictures; see :func:`nbviz.load`.
    boxes
        (N, 4): for each picture top, left, bottom and right of the part, in pixels of the model's input, ends excluded.
    random
        How many sets of random parts to compare with: the same boxes, all shifted by the same random distance (a box
        that would leave the picture re-enters on the other side).

    Returns
    -------
    CorrespondenceResult
        ``part``, ``error`` and ``random`` for each layer.

    Raises
    ------
    ValueError
        When ``images`` has fewer than two pictures. When ``boxes`` do not lie within the pictures.
    TypeError
        When ``boxes`` are not whole numbers (N, 4).

    Examples
    --------
    The same square in two pictures that differ elsewhere:

    >>> pictures = torch.rand(2, 1, 8, 8)
    >>> pictures[:, :, 2:4, 2:4] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> result = correspondence(nn.Sequential(nn.Conv2d(1, 4, 2, stride=2)), pictures, [[2, 2, 4, 4]] * 2, ["0"])
    >>> result.part["0"], bool(result.random["0"].mean() > 0)
    (0.0, True)
    """
    check_choice("fill", fill, FILLS)
    random, seed = check_whole("random", random, 0), check_whole("seed", seed, 0)
    subject = Subject.of(model, images, **options)
    pictures = subject.inputs
    if pictures.ndim != 4 or len(pictures) < 2:
        raise ValueError(f"images gives {tuple(pictures.shape)}; expected at least two pictures (N, C, H, W)")
    n, (height, width) = len(pictures), pictures.shape[-2:]
    boxes = check_boxes(boxes, n, height, width)
    names = subject.layer_names(layers)
    replacement = filling(pictures, fill, subject.pictures.preprocess)

    def features(part: Subject) -> dict[str, Tensor]:
        trace = part.run(names)
        return {name: check_channels(name, trace.activations[name], len(part)).flatten(1) for name in names}

    original = subject.in_parts(features)

    def differing(boxes: Tensor) -> dict[str, Tensor]:
        masked = pictures.clone()
        for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
            masked[i, :, top:bottom, left:right] = replacement[i, :, top:bottom, left:right]
        changed = subject.with_inputs(masked).in_parts(features)
        return {name: _differing_signs((original[name] - changed[name]).sign()) for name in names}

    fractions = differing(boxes)
    generator = torch.Generator().manual_seed(seed)
    at_random = []
    sizes = boxes[:, 2:] - boxes[:, :2]
    for _ in range(random):
        # All boxes move by the same distance, so that they overlap as much as the given ones: features that neither
        # of two masks changes count as equal, which would favour masks at the same place.
        room = torch.tensor([height, width]) - sizes + 1
        shift = (torch.rand(2, generator=generator, dtype=torch.float64) * torch.tensor([height, width])).long()
        corner = (boxes[:, :2] + shift) % room
        moved = differing(torch.cat([corner, corner + sizes], 1))
        at_random.append({name: float(pairs.mean()) for name, pairs in moved.items()})
    return CorrespondenceResult(
        {name: float(pairs.mean()) for name, pairs in fractions.items()},
        {
            name: float(pairs.std()) / len(pairs) ** 0.5 if len(pairs) > 1 else math.nan
            for name, pairs in fractions.items()
        },
        {name: torch.tensor([means[name] for means in at_random], dtype=torch.float64) for name in names},
    )


def _differing_signs(signs: Tensor) -> Tensor:
    """For each pair of pictures the fraction of features whose signs differ, float64."""
    n = len(signs)
    pairs = [(signs[i] != signs[j]).double().mean() for i in range(n) for j in range(i + 1, n)]
    return torch.stack(pairs).cpu()


def check_boxes(given: Any, n: int, height: int, width: int) -> Tensor:
    """Boxes (n, 4) as int64 on the CPU; an error unless they lie within pictures of this size."""
    boxes = torch.empty(0, dtype=torch.int64, device="cpu")
    with suppress(Exception):  # raised by an object of the user's
        rows = given.tolist() if hasattr(given, "tolist") else given
        if len(rows) == n and all(len(row) == 4 for row in rows):
            boxes = torch.as_tensor([list(row) for row in rows], device="cpu")
    if boxes.shape != (n, 4) or boxes.is_floating_point() or boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError(
            f"boxes is {shown(given)}; expected whole numbers ({n}, 4): top, left, bottom and right for each picture"
        )
    boxes = boxes.long()
    top, left, bottom, right = boxes.unbind(1)
    inside = (top >= 0) & (left >= 0) & (bottom <= height) & (right <= width) & (top < bottom) & (left < right)
    if not inside.all():
        i = int((~inside).nonzero()[0])
        raise ValueError(
            f"box {i} is {boxes[i].tolist()}; expected top < bottom and left < right within {height}×{width} pixels"
        )
    return boxes
