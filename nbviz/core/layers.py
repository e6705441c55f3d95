"""Find, name, order and describe the layers of a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.errors import line
from nbviz.core.receptive_field import Field, FieldTracker
from nbviz.core.state import alone, check_model, interruptible, untouched
from nbviz.core.trace import call_model, hooked


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
        Of its output for one picture: (C, H, W) for a layer with feature maps.
    field
        Where each position of the output looks in the picture, or None for the whole picture.
    leaf
        False for a module that is made of other modules, such as ``layer2`` of a ResNet.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    field: Field | None
    leaf: bool = True

    @property
    def has_maps(self) -> bool:
        """Whether the output is (N, C, H, W), as far as can be told: rows and columns last."""
        return len(self.shape) == 3 and (self.field is None or self.field.axes == (2, 3))

    @property
    def stride(self) -> tuple[float, float] | None:
        """By how many pixels of the picture neighbouring positions are apart, down and across."""
        return None if self.field is None else self.field.stride

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """Height and width in pixels of what one position sees away from the border, or None: all of it."""
        return None if self.field is None else self.field.size

    @property
    def sees(self) -> str:
        """The receptive field and stride in words."""
        if self.field is None:
            return "sees the whole picture"
        (h, w), (y, x) = self.field.size, self.field.stride
        step = f"{y:g}" if y == x else f"{y:g}×{x:g}"
        gate = ", gated by the whole" if self.field.gated else ""
        return f"sees {h}×{w} px, step {step}{gate}"

    def __str__(self) -> str:
        return f"{line(self.name)} · {line(self.type)} · {'×'.join(map(str, self.shape))} · {self.sees}"


class Layers(list[Layer]):
    """A list of layers that prints as a table."""

    def __repr__(self) -> str:
        rows = [("layer", "type", "output", "")]
        rows += [(line(layer.name), line(layer.type), "×".join(map(str, layer.shape)), layer.sees) for layer in self]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in rows
        )


def trace_layers(model: nn.Module, inputs: Tensor) -> tuple[Layers, Any]:
    """The layers of one forward pass in order of completion, and the model's output.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
    >>> trace_layers(net, torch.zeros(1, 1, 13, 13))[0]
    layer  type       output
    0      Conv2d     4×6×6   sees 3×3 px, step 2
    1      ReLU       4×6×6   sees 3×3 px, step 2
    2      MaxPool2d  4×3×3   sees 5×5 px, step 4
    """
    check_model(model)
    found = Layers()
    calls: Counter[str] = Counter()
    modules = dict(model.named_modules())
    with alone(), torch.inference_mode(False), torch.no_grad():
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
                )
            )

        with untouched(model), hooked(model, None, describe), tracker:
            output = call_model(model, picture)
    return found, output
