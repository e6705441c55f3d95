"""The control that picks a layer among hundreds: by stage, after an activation, or among all, in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets

from nbviz.core.errors import line
from nbviz.core.layers import Layer
from nbviz.core.stages import after_activation, shows, stage_ends
from nbviz.widgets.controls import Choice
from nbviz.widgets.pickers import LayerPicker

_LONGEST = 36  # characters of a name in the list; of a longer one, its end


class LayerChoice(Choice):
    """One of a model's layers. ``options`` gives each layer, or a text that describes it, by its name."""

    def make(self, widget: Any) -> LayerPicker:
        """Make the picker."""
        layers, texts = self.labels(widget), {"label": self.label, "help": self.help}
        return LayerPicker(list(layers), layers=entries(layers), value=self.get(widget), **texts)

    def fit(self, widget: Any, control: ipywidgets.Widget) -> None:
        """Offer the layers that there are now."""
        layers = self.labels(widget)
        control.offer(list(layers), entries(layers), self.get(widget))


def entries(layers: Mapping[str, Layer | str]) -> list[dict[str, Any]]:
    """What the page shows of each layer, in the order of the pass.

    Its ``short`` and its full ``text``; the ``group`` that it is listed in; the ``kinds`` of layers that it belongs to:
    ``"stages"``, ``"after activation"``, ``"hidden"``.
    """
    known = [layer for layer in layers.values() if isinstance(layer, Layer)]
    shown = [layer for layer in known if shows(layer)]
    names = {"stages": stage_ends(shown), "after activation": after_activation(shown)}
    names["hidden"] = [layer.name for layer in known if not shows(layer)]
    found = []
    for name, layer in layers.items():
        short, group = (_short(layer), _group(layer)) if isinstance(layer, Layer) else (layer, name.rpartition(".")[0])
        found.append(
            {
                "short": line(short, 80),
                "text": str(layer),
                "group": line(group, 60),
                "kinds": [kind for kind, members in names.items() if name in members],
            }
        )
    return found


def _short(layer: Layer) -> str:
    """The name, of a long one the end, and the type."""
    name = layer.name if len(layer.name) <= _LONGEST else f"…{layer.name[1 - _LONGEST :]}"
    return f"{name} · {layer.type}"


def _group(layer: Layer) -> str:
    """The block that a layer is in, and the size of its maps, so that a module of many layers makes several groups.

    In a list of blocks that is the number of a block; what is within it belongs to it.
    """
    steps = layer.name.partition(":")[0].split(".")
    steps = steps[:-1] if layer.leaf else steps
    ends = [i for i, step in enumerate(steps, 1) if step.isdecimal()]
    block = ".".join(steps[: ends[-1]] if ends else steps)
    size = "×".join(map(str, layer.shape[1:]))
    return f"{block} · {size}" if block else size
