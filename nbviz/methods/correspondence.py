"""Whether a network relates the same part in different pictures (table 1 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.arguments import check_channels
from nbviz.core.checks import check_choice, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject
from nbviz.pictures.fill import FILLS, filling


@dataclass(frozen=True, repr=False)
class CorrespondenceResult:
    """How alike the change is that masking a part makes to a layer's features in different pictures.

    Parameters
    ----------
    part
        For each layer the mean, over all pairs of pictures, of the share of features whose change has another sign:
        the lower, the more the network relates the part.
    error
        For each layer its standard error over the pairs, as if these were independent; NaN for two pictures.
    random
        For each layer the same with parts of the same size at random places, float64 (R,).
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
        """The part's and the random parts'."""
        drawn = self.random[name]
        spread = f" ± {float(drawn.std()):.3f}" if len(drawn) > 1 else ""
        error = f" ± {self.error[name]:.3f}" if math.isfinite(self.error[name]) else ""
        return f"{self.part[name]:.3f}{error}", f"{float(drawn.mean()):.3f}{spread}" if len(drawn) else "–"


@steady
def correspondence(
    model: nn.Module,
    images: Any,
    boxes: Any,
    layers: Sequence[str] | None = None,
    *,
    random: int = 10,
    fill: str = "grey",
    seed: int = 0,
    preprocess: Any = None,
    inputs: Any = None,
) -> CorrespondenceResult:
    """Whether masking the same part, an eye or a collar, changes a layer's features alike in different pictures.

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
    layers
        Names of the layers; None takes the first and the last that give feature maps.
    random
        With how many sets of random parts it is compared: the same boxes, all moved by the same random way (what would
        leave a picture comes in again on its other side).
    fill
        What is put in the part's place: ``"grey"``, ``"mean"``, the picture's mean colour, or ``"blur"``, the
        picture itself, blurred.
    seed
        Of the random places.

    Returns
    -------
    CorrespondenceResult
        ``part``, ``error`` and ``random`` for each layer.

    Raises
    ------
    ValueError
        For fewer than two pictures, boxes that do not lie within them, or an unknown layer.

    Examples
    --------
    The same square in two pictures, which differ elsewhere:

    >>> pictures = torch.rand(2, 1, 8, 8)
    >>> pictures[:, :, 2:4, 2:4] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> found = correspondence(nn.Sequential(nn.Conv2d(1, 4, 2, stride=2)), pictures, [[2, 2, 4, 4]] * 2, ["0"])
    >>> found.part["0"], bool(found.random["0"].mean() > 0)
    (0.0, True)
    """
    check_choice("fill", fill, FILLS)
    random, seed = check_whole("random", random, 0), check_whole("seed", seed, 0)
    subject = Subject.of(model, images, preprocess, inputs)
    pictures = subject.inputs
    if pictures.ndim != 4 or len(pictures) < 2:
        raise ValueError(f"images gives {tuple(pictures.shape)}; expected at least two pictures (N, C, H, W)")
    n, (height, width) = len(pictures), pictures.shape[-2:]
    given = check_boxes(boxes, n, height, width)
    names = subject.layer_names(layers)
    instead = filling(pictures, fill, subject.pictures.preprocess)

    def features(part: Subject) -> dict[str, Tensor]:
        trace = part.run(names)
        return {name: check_channels(name, trace.activations[name], len(part)).flatten(1) for name in names}

    own = subject.in_parts(features)

    def signs(places: Tensor) -> dict[str, Tensor]:
        masked = pictures.clone()
        for i, (top, left, bottom, right) in enumerate(places.tolist()):
            masked[i, :, top:bottom, left:right] = instead[i, :, top:bottom, left:right]
        return {
            name: (own[name] - changed).sign()
            for name, changed in subject.with_inputs(masked).in_parts(features).items()
        }

    apart = {name: _apart(sign) for name, sign in signs(given).items()}
    draw = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    sizes = given[:, 2:] - given[:, :2]
    for _ in range(random):
        # All by the same way, so that they lie to each other as the given ones do: features that neither of two masks
        # changes count as alike, and masks at one place would be alike for that alone.
        room = torch.tensor([height, width]) - sizes + 1
        way = (torch.rand(2, generator=draw, dtype=torch.float64) * torch.tensor([height, width])).long()
        corner = (given[:, :2] + way) % room
        for name, sign in signs(torch.cat([corner, corner + sizes], 1)).items():
            drawn[name].append(float(_apart(sign).mean()))
    return CorrespondenceResult(
        {name: float(one.mean()) for name, one in apart.items()},
        {name: float(one.std()) / len(one) ** 0.5 if len(one) > 1 else math.nan for name, one in apart.items()},
        {name: torch.tensor(values, dtype=torch.float64) for name, values in drawn.items()},
    )


def _apart(signs: Tensor) -> Tensor:
    """For each pair of pictures the share of features whose signs differ, float64."""
    n = len(signs)
    pairs = [(signs[i] != signs[j]).double().mean() for i in range(n) for j in range(i + 1, n)]
    return torch.stack(pairs).cpu()


def check_boxes(given: Any, n: int, height: int, width: int) -> Tensor:
    """Boxes (n, 4) as int64 on the CPU, if they lie within pictures of this size."""
    try:
        rows = given.tolist() if hasattr(given, "tolist") else given
        usable = len(rows) == n and all(len(row) == 4 for row in rows)
        boxes = torch.as_tensor([list(row) for row in rows] if usable else [], device="cpu")
        whole = not (boxes.is_floating_point() or boxes.is_complex() or boxes.dtype == torch.bool)
        usable = usable and whole and boxes.shape == (n, 4)
    except Exception:  # of an object's own making as well
        usable = False
    if not usable:
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
