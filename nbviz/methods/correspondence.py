"""Whether a network relates the same part in different pictures (table 1 of Zeiler and Fergus)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_features
from nbviz.core.checks import check_choice, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.types import Images, InputOptions
from nbviz.imaging.charts import STYLE
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.fill import FILLS, filling


@dataclass(frozen=True, repr=False)
class CorrespondenceResult:
    """How consistently masking a part changes a layer's features in different pictures.

    Two measures, each a mean over all pairs of pictures. The paper's, ``part``, also falls where few features change at
    all, such as with an empty corner; ``agreement`` does not, and the verdict follows it.

    Parameters
    ----------
    part
        For each layer the fraction of features whose changes differ in sign: the paper's measure.
    error
        For each layer its standard error over the pairs, as if these were independent; NaN for two pictures.
    random
        For each layer the same with parts of the same size at random places, float64 (R,).
    changed
        For each layer the fraction of features that change in both pictures.
    agreement
        For each layer the fraction of features that change alike in both pictures, less that of those that change in
        opposite directions, from -1 to 1: the higher, the more the network relates the part.
    random_agreement
        For each layer the agreement with random parts, float64 (R,).
    """

    part: dict[str, float]
    error: dict[str, float]
    random: dict[str, Tensor]
    changed: dict[str, float]
    agreement: dict[str, float]
    random_agreement: dict[str, Tensor]

    @property
    def verdict(self) -> str:
        """In a sentence, which layers relate the part: with an agreement 2 standard deviations above random parts'."""
        if any(len(drawn) < 2 for drawn in self.random_agreement.values()):
            return "no verdict: expected at least 2 random parts to compare with"
        bounds = {name: float(drawn.mean() + 2 * drawn.std()) for name, drawn in self.random_agreement.items()}
        related = [line(name, 60) for name, value in self.agreement.items() if value > bounds[name]]
        if not related:
            return "no layer relates the part more than random parts"
        return f"the part is related more than random parts in {', '.join(related)}"

    def _repr_html_(self) -> str:
        """A table."""
        rows = []
        for name in self.part:
            cells = "".join(f"<td>{cell}</td>" for cell in self._numbers(name))
            rows.append(f"<tr><th>{escape(line(name, 60))}</th>{cells}</tr>")
        head = "".join(f"<th>{title}</th>" for title in ("layer", *_COLUMNS))
        table = f"<table><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
        return f'{STYLE}<div class="nbviz-table">{table}</div><p>{escape(self.verdict)}</p>'

    def __repr__(self) -> str:
        lines = [self.verdict, f"  layer: {', '.join(_COLUMNS)}"]
        return "\n".join([*lines, *(f"  {name}: {', '.join(self._numbers(name))}" for name in self.part)])

    def _numbers(self, name: str) -> tuple[str, ...]:
        """The numbers of a layer, for the part and for random parts."""
        error = f" ± {self.error[name]:.3f}" if math.isfinite(self.error[name]) else ""
        return (
            f"{self.agreement[name]:+.3f}",
            _spread(self.random_agreement[name], "+"),
            f"{100 * self.changed[name]:.1f} %",
            f"{self.part[name]:.3f}{error}",
            _spread(self.random[name]),
        )


_COLUMNS = (
    "agreement (higher: the part corresponds)",
    "of random parts",
    "features that change",
    "change of sign (the paper's)",
    "of random parts",
)


def _spread(values: Tensor, sign: str = "") -> str:
    """The mean and the standard deviation."""
    spread = f" ± {float(values.std()):.3f}" if len(values) > 1 else ""
    return f"{float(values.mean()):{sign}.3f}{spread}" if len(values) else "–"


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

    Features that do not change have no sign to differ in: this also rewards a part that changes few of them. They add
    nothing to the agreement, the mean of sign(ε_i)·sign(ε_j). Neither measure can tell a part that the network relates
    from pixels that are the same in all pictures, such as those of an empty background.

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
        ``part``, ``error``, ``random``, ``changed``, ``agreement`` and ``random_agreement`` for each layer, and
        ``verdict``.

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
    >>> result.agreement["0"], result.changed["0"]  # of 4 × 16 features, 4 change
    (0.0625, 0.0625)
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
        return {name: check_features(name, trace.activations[name], len(part)).flatten(1) for name in names}

    original = subject.in_parts(features)

    def measured(boxes: Tensor) -> dict[str, Tensor]:
        masked = pictures.clone()
        for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
            masked[i, :, top:bottom, left:right] = replacement[i, :, top:bottom, left:right]
        changed = subject.with_inputs(masked).in_parts(features)
        return {name: _compared((original[name] - changed[name]).sign()) for name in names}

    pairs = measured(boxes)
    generator = torch.Generator().manual_seed(seed)
    at_random = []
    sizes = boxes[:, 2:] - boxes[:, :2]
    for _ in range(random):
        # All boxes move by the same distance, so that they overlap as much as the given ones: features that neither
        # of two masks changes count as equal, which would favour masks at the same place.
        room = torch.tensor([height, width]) - sizes + 1
        shift = (torch.rand(2, generator=generator, dtype=torch.float64) * torch.tensor([height, width])).long()
        corner = (boxes[:, :2] + shift) % room
        moved = measured(torch.cat([corner, corner + sizes], 1))
        at_random.append({name: of_pairs.mean(0) for name, of_pairs in moved.items()})
    means = {name: of_pairs.mean(0).tolist() for name, of_pairs in pairs.items()}
    drawn = {
        name: torch.stack([found[name] for found in at_random], 1) if at_random else torch.empty(3, 0).double()
        for name in names
    }
    return CorrespondenceResult(
        part={name: differ for name, (differ, _, _) in means.items()},
        error={
            name: float(of_pairs[:, 0].std()) / len(of_pairs) ** 0.5 if len(of_pairs) > 1 else math.nan
            for name, of_pairs in pairs.items()
        },
        random={name: differ for name, (differ, _, _) in drawn.items()},
        changed={name: changed for name, (_, changed, _) in means.items()},
        agreement={name: agreement for name, (_, _, agreement) in means.items()},
        random_agreement={name: agreement for name, (_, _, agreement) in drawn.items()},
    )


def _compared(signs: Tensor) -> Tensor:
    """For each pair of pictures the fraction of features whose signs differ, that change in both, and the agreement.

    float64 (pairs, 3).
    """
    pairs = []
    for one, other in itertools.combinations(signs, 2):
        products = (one * other).double()
        measures = (one != other).double().mean(), products.abs().mean(), products.mean()
        pairs.append(torch.stack(measures))
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
