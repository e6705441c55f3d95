"""Find, name, order and describe the layers of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nbviz.core.backward import PAPERS
from nbviz.core.calls import Feed, call_model, find_module, first_name, hooked, is_transformed, submodule
from nbviz.core.errors import line, shown
from nbviz.core.field_tracker import FieldTracker
from nbviz.core.layout import Layout, layout_of, plainly_first
from nbviz.core.receptive_field import Field
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, eager, interruptible


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
        The shape of the output for one picture, channels first: (C, H, W) for feature maps, wherever the module itself
        has its channels.
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
    layout
        How the module's output becomes that shape; None where it is not known which axis holds the channels. The shape
        is then the module's own.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    field: Field | None
    leaf: bool = True
    rectifiers: tuple[str, ...] = ()
    axes: int = 2
    pictures: bool = True
    layout: Layout | None = None

    @property
    def has_maps(self) -> bool:
        """Whether the output holds feature maps: channels first or last, or tokens on a grid of the picture's shape."""
        return self.layout is not None and self.layout.has_positions

    @property
    def of_tokens(self) -> bool:
        """Whether the positions are tokens on a grid, before which there may be others, such as a class token."""
        return self.layout is not None and self.layout.grid is not None

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
        Makes the model's arguments from the inputs; see :func:`nbviz.core.calls.call_model`.

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
    seen = _layouts.setdefault(model, {})

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
            if not isinstance(value, Tensor) or is_transformed(value):
                return
            module = modules[name]
            shape, field, layout = tuple(value.shape[1:]), tracker.fields.get(value), None
            if is_of_pictures := value.ndim > 1 and value.shape[:1] == picture.shape[:1] and 0 not in value.shape:
                layout = layout_of(shape, field, tracker.channels.get(value), picture.shape[2:])
            seen[_key(name, call, module, value, picture)] = layout
            if layout is not None:
                shape = layout.shape(shape)
                field = None if field is None else replace(field, axes=tuple(range(2, 2 + len(field.axes))))
            layers.append(
                Layer(
                    f"{name}:{call}" if call else name,
                    type(module).__name__,
                    shape,
                    field,
                    not any(True for _ in module.children()),
                    tuple(sorted(tracker.rectified(value))),
                    picture.ndim - 2,
                    is_of_pictures,
                    layout,
                )
            )

        with torch.no_grad(), hooked(shadow, None, describe), tracker:
            output = call_model(shadow, picture, feed)
        tracker.forget()  # while Ctrl-C is deferred: in a weak reference's callback it would be lost
        return layers, output

    return in_shadow(model, forward)


#: For each model the layouts that a forward pass has shown.
_layouts: WeakKeyDictionary[nn.Module, dict[Any, Layout | None]] = WeakKeyDictionary()


def _key(name: str, call: int, module: nn.Module, value: Tensor, inputs: Tensor) -> Any:
    return name, call, type(eager(module)), value.shape[1:], inputs.shape[1:]


class Layouts:
    """Which axis holds the channels, for the layers of one forward pass.

    Most activations show it by their shape. For others, :meth:`find` looks at a forward pass once, and remembers it.

    Parameters
    ----------
    model, inputs, feed
        As for :func:`trace_layers`.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, feed: Feed = None) -> None:
        self.model, self.inputs, self.feed = model, inputs, feed
        self.is_found = False

    def of(self, name: str, call: int, value: Tensor) -> Layout | None:
        """The layout of a module's output; None where that is not known.

        Raises
        ------
        Unclear
            When :meth:`find` has to be called first.
        """
        if value.ndim < 2 or len(value) != len(self.inputs) or 0 in value.shape:
            return None
        module = submodule(self.model, name)
        if plainly_first(eager(module), value, self.inputs):
            return Layout(tuple(range(value.ndim)), has_positions=value.ndim > 2)
        assert module is not None
        name = first_name(self.model, name)  # under which a module of several names has been seen
        seen, key = _layouts.get(self.model, {}), _key(name, call, module, value, self.inputs)
        if key not in seen and not self.is_found:
            raise Unclear
        return seen.get(key)

    def find(self) -> None:
        """Look at a forward pass of one picture; of all, where the model's other arguments may belong to the batch."""
        self.is_found = True
        trace_layers(self.model, self.inputs if self.feed is not None else self.inputs[:1], self.feed)


class Unclear(Exception):
    """A layout that has to be found first."""


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
