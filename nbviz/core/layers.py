"""Find, name, order and describe the layers of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.backward import PAPERS
from nbviz.core.errors import line, shown
from nbviz.core.receptive_field import Field, FieldTracker
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, interruptible
from nbviz.core.trace import Feed, call_model, find_modules, hooked


@dataclass(frozen=True)
class Layer:
    """One call of one module in a forward pass.

    Parameters
    ----------
    name
        Its name in the model; ``"name:1"`` is the second call of a module that runs more than once.
    type
        The class of the module.
    shape
        Of its output for one picture: (C, H, W) for a layer with feature maps of a picture.
    field
        Where each position of the output looks in the picture, or None for the whole picture.
    leaf
        False for a module that is made of other modules, such as ``layer2`` of a ResNet.
    rectifiers
        The activations between the picture and the output that deconvnet and guided backprop act on.
    axes
        Of the input: 2 for pictures, 1 for signals, 3 for volumes.
    pictures
        Whether the output has one entry for each picture; False where it has one for each window, crop or region.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    field: Field | None
    leaf: bool = True
    rectifiers: tuple[str, ...] = ()
    axes: int = 2
    pictures: bool = True

    @property
    def has_maps(self) -> bool:
        """Whether the output is (N, C, H, W), as far as can be told: rows and columns last.

        (N, C, L) for a signal, (N, C, D, H, W) for a volume.
        """
        return (
            self.pictures
            and len(self.shape) == self.axes + 1
            and (self.field is None or self.field.axes == _last(self.axes))
        )

    @property
    def stride(self) -> tuple[float, ...] | None:
        """By how many pixels of the picture neighbouring positions are apart, down and across."""
        return None if self.field is None else self.field.stride

    @property
    def receptive_field(self) -> tuple[int, ...] | None:
        """Height and width in pixels of what one position sees away from the border, or None: all of it."""
        return None if self.field is None else self.field.size

    def patch(self, position: Sequence[int], sides: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Corner and size of what a position sees of an input with these sides, the same size for all positions.

        Along a side on which it sees as much as there is, or all, that is the whole side. Elsewhere the corner may be
        negative, and the part reach beyond the border.
        """
        if self.field is None:
            return (0,) * len(sides), tuple(sides)
        size = tuple(min(seen, side) for seen, side in zip(self.field.size, sides, strict=True))
        corner = self.field.corner(position)
        return tuple(0 if n == side else c for c, n, side in zip(corner, size, sides, strict=True)), size

    @property
    def sees(self) -> str:
        """The receptive field and stride in words."""
        if self.field is None:
            return f"sees the whole {_WHOLE[self.axes]}"
        steps = self.field.stride
        step = f"{steps[0]:g}" if len(set(steps)) == 1 else "×".join(f"{y:g}" for y in steps)
        gate = ", gated by the whole" if self.field.gated else ""
        return f"sees {'×'.join(map(str, self.field.size))} {_UNIT[self.axes]}, step {step}{gate}"

    def __str__(self) -> str:
        return f"{line(self.name)} · {line(self.type)} · {'×'.join(map(str, self.shape))} · {self.sees}"


_WHOLE = {1: "signal", 2: "picture", 3: "volume"}
_UNIT = {1: "samples", 2: "px", 3: "voxels"}


def _last(axes: int) -> tuple[int, ...]:
    """Where rows and columns are in (N, C, H, W)."""
    return tuple(range(2, 2 + axes))


class Layers(list[Layer]):
    """A list of layers that prints as a table."""

    def __repr__(self) -> str:
        rows = [("layer", "type", "output", "rectified by", "")]
        for layer in self:
            names = ", ".join(name if name in PAPERS else f"{name}*" for name in layer.rectifiers)
            rows.append((line(layer.name), line(layer.type), "×".join(map(str, layer.shape)), names, layer.sees))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
        if any("*" in row[3] for row in rows):
            lines.append("* An extension of the papers of deconvnet and guided backprop: see nbviz.reconstruct.")
        return "\n".join(one.rstrip() for one in lines)


def trace_layers(model: nn.Module, inputs: Tensor, feed: Feed = None) -> tuple[Layers, Any]:
    """The layers of one forward pass in order of completion, and the model's output.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.
    feed
        From the pictures to what the model is called with; see :func:`nbviz.core.trace.call_model`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
    >>> trace_layers(net, torch.zeros(1, 1, 13, 13))[0]
    layer  type       output  rectified by
    0      Conv2d     4×6×6                 sees 3×3 px, step 2
    1      ReLU       4×6×6   ReLU          sees 3×3 px, step 2
    2      MaxPool2d  4×3×3   ReLU          sees 5×5 px, step 4
    """
    model = check_model(model)

    def forward(shadow: nn.Module) -> tuple[Layers, Any]:
        found = Layers()
        calls: Counter[str] = Counter()
        modules = dict(shadow.named_modules())
        picture = inputs.detach().clone()
        tracker = FieldTracker(picture)

        def describe(name: str, value: Any) -> None:
            with interruptible():  # not within an operation, where torch has put the tracker aside
                pass
            call, calls[name] = calls[name], calls[name] + 1
            if not isinstance(value, Tensor):
                return
            module = modules[name]
            found.append(
                Layer(
                    f"{name}:{call}" if call else name,
                    type(module).__name__,
                    tuple(value.shape[1:]),
                    tracker.fields.get(value),
                    not any(True for _ in module.children()),
                    tuple(sorted(tracker.rectified(value))),
                    picture.ndim - 2,
                    value.shape[:1] == picture.shape[:1],
                )
            )

        with torch.no_grad(), hooked(shadow, None, describe), tracker:
            output = call_model(shadow, picture, feed)
        tracker.forget()  # while Ctrl-C waits: it would be lost in a weak reference's callback
        return found, output

    return in_shadow(model, forward)


def layers_of(model: nn.Module, inputs: Tensor, feed: Feed, given: Any) -> list[str]:
    """The layers named, if there are such; None takes the first and the last that give feature maps."""
    if given is not None:
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
        find_modules(model, given)
        return list(dict.fromkeys(given))
    found = trace_layers(model, inputs if feed is not None else inputs[:1], feed)[0]
    maps = [layer.name for layer in found if layer.has_maps and layer.leaf] or [layer.name for layer in found]
    if not maps:
        raise ValueError(f"{type(model).__name__} has no layers; expected one that has")
    return list(dict.fromkeys([maps[0], maps[-1]]))
