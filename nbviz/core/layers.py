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
from nbviz.core.field_tracker import FieldTracker
from nbviz.core.receptive_field import Field
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, interruptible
from nbviz.core.trace import Feed, call_model, find_module, hooked


@dataclass(frozen=True)
class Layer:
    """One call of one module in a forward pass.

    Parameters
    ----------
    name
        The module's name in the model; ``"name:1"`` is the second call of a module that runs more than once.
    type
        The class of the module.
    shape
        The shape of the output for one picture, such as (C, H, W) for feature maps.
    field
        Which pixels each position of the output sees; None if it sees the whole picture.
    leaf
        False for a module made of other modules, such as ``layer2`` of a ResNet.
    rectifiers
        The activations between the picture and the output that deconvnet and guided backprop act on.
    axes
        The spatial axes of the input: 2 for pictures, 1 for signals, 3 for volumes.
    pictures
        Whether the output has one entry per picture; False where it has one per window, crop or region.
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
        """Whether the output appears to be (N, C, H, W); (N, C, L) for signals, (N, C, D, H, W) for volumes."""
        return (
            self.pictures
            and len(self.shape) == self.axes + 1
            and (self.field is None or self.field.axes == tuple(range(2, 2 + self.axes)))
        )

    @property
    def stride(self) -> tuple[float, ...] | None:
        """The distance of neighbouring positions in pixels of the picture, down and across."""
        return None if self.field is None else self.field.stride

    @property
    def receptive_field(self) -> tuple[int, ...] | None:
        """The height and width in pixels of what a position sees away from the border; None: the whole picture."""
        return None if self.field is None else self.field.size

    def patch(self, position: Sequence[int], sides: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The corner and size of the patch that a position sees of an input with these sides.

        The size is the same for all positions, so a patch may reach beyond the border, and its corner be negative.
        Along a side no longer than the receptive field the patch is the whole side.
        """
        if self.field is None:
            return (0,) * len(sides), tuple(sides)
        size = tuple(map(min, self.field.size, sides))
        corner = self.field.corner(position)
        return tuple(0 if n == side else c for c, n, side in zip(corner, size, sides, strict=True)), size

    @property
    def sees(self) -> str:
        """The receptive field and stride in words."""
        if self.field is None:
            return f"sees the whole {_WHOLE[self.axes]}"
        steps = self.field.stride
        step = f"{steps[0]:g}" if len(set(steps)) == 1 else "×".join(f"{y:g}" for y in steps)
        gate = "; its squeeze-and-excite gate sees the whole picture" if self.field.gated else ""
        return f"sees {'×'.join(map(str, self.field.size))} {_UNIT[self.axes]}, step {step}{gate}"

    def __str__(self) -> str:
        return f"{line(self.name)} · {line(self.type)} · {'×'.join(map(str, self.shape))} · {self.sees}"


_WHOLE = {1: "signal", 2: "picture", 3: "volume"}
_UNIT = {1: "samples", 2: "px", 3: "voxels"}


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
        return "\n".join(map(str.rstrip, lines))


def trace_layers(model: nn.Module, inputs: Tensor, feed: Feed = None) -> tuple[Layers, Any]:
    """The layers of one forward pass in order of completion, and the model's output.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.
    feed
        Makes the model's arguments from the inputs; see :func:`nbviz.core.trace.call_model`.

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
        layers = Layers()
        calls: Counter[str] = Counter()
        modules = dict(shadow.named_modules())
        picture = inputs.detach().clone()
        tracker = FieldTracker(picture)

        def describe(name: str, value: Any) -> None:
            with interruptible():  # between operations: within one, an interrupt would leave the tracker disabled
                pass
            call, calls[name] = calls[name], calls[name] + 1
            if not isinstance(value, Tensor):
                return
            module = modules[name]
            layers.append(
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
        tracker.forget()  # while Ctrl-C is deferred: in a weak reference's callback it would be lost
        return layers, output

    return in_shadow(model, forward)


def layers_of(model: nn.Module, inputs: Tensor, feed: Feed, given: Any) -> list[str]:
    """The given layers' names, which must exist; None takes the first and the last layer with feature maps."""
    if given is not None:
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"layers is {shown(given)}; expected a list of modules' names, or None")
        for name in given:
            find_module(model, name)
        return list(dict.fromkeys(given))
    layers = trace_layers(model, inputs, feed)[0]
    names = [layer.name for layer in layers if layer.has_maps and layer.leaf] or [layer.name for layer in layers]
    if not names:
        raise ValueError(f"{type(model).__name__} has no layers; expected a model with at least one")
    return list(dict.fromkeys([names[0], names[-1]]))
