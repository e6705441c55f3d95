"""Which layers of a network tell most: the last of each stage, and those after an activation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from nbviz.core.layers import Layer

# Activations, by the names of their classes
_ACTIVATION = re.compile(r"(ReLU|ELU|SiLU|Swish|Mish|Tanh|Sigmoid|Softplus|GLU)", re.IGNORECASE)


def shows(layer: Layer) -> bool:
    """Whether there is something to see in a layer's maps: not where they are single pixels, or only handed on."""
    return max(layer.shape[1:], default=1) > 1 and layer.type != "Identity"


def stage_ends(layers: Sequence[Layer]) -> list[str]:
    """The last layer of each stage, in which all maps have one size.

    A layer within a block that gives maps of another size, such as the first convolution of a block with a stride,
    ends no stage.
    """
    sizes = {layer.name: layer.shape[1:] for layer in layers}
    within: dict[str, set[tuple[int, ...]]] = {}  # the sizes in each module
    for layer in layers:
        for module in _modules_around(layer.name):
            within.setdefault(module, set()).add(layer.shape[1:])

    # A module with maps of three sizes and more holds several stages, and is none itself.
    several = {module for module, own in within.items() if len(own) > 2}

    def is_on_the_way(layer: Layer) -> bool:
        around = (module for module in _modules_around(layer.name) if module in sizes)
        same = all(sizes[module] == layer.shape[1:] or module in several for module in around)
        return same and layer.name not in several

    main = [layer for layer in layers if is_on_the_way(layer)]
    ends = [list(stage)[-1] for _, stage in groupby(main, key=lambda layer: layer.shape[1:])]
    missing = set(sizes.values()) - {layer.shape[1:] for layer in ends}
    ends += [[layer for layer in layers if layer.shape[1:] == size][-1] for size in missing]
    names = {layer.name for layer in ends}
    return [layer.name for layer in layers if layer.name in names]


def after_activation(layers: Sequence[Layer]) -> set[str]:
    """The layers whose values come from an activation: itself, the pooling after it, the module that ends with it."""
    found: set[str] = set()
    before = ""
    for layer in layers:
        is_activation = layer.leaf and _ACTIVATION.search(layer.type)
        goes_on = "Pool" in layer.type or (not layer.leaf and before.startswith(f"{layer.name}."))
        if is_activation or (before in found and goes_on):
            found.add(layer.name)
        before = layer.name
    return found


def _modules_around(name: str) -> list[str]:
    """The names of the modules that a layer is in."""
    parts = name.partition(":")[0].split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
