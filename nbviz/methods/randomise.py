"""A copy of a network whose weights are randomised, layer by layer from the top: for the sanity checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbviz.core.calls import Feed, call_model, hooked
from nbviz.core.field_tracker import tensors_in
from nbviz.core.generators import OwnGenerators
from nbviz.core.shadow import in_shadow, shadow_of


def randomised_copies(model: nn.Module, layers: Sequence[str], mode: str, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Randomise the weights of a copy of the model: one layer after the other, or each alone.

    Yields the layer's name and the copy, which later steps change further.
    """
    for i, layer in enumerate(layers):
        if i == 0 or mode == "independent":
            changed = shadow_of(model, own_weights=True)
        _randomise(dict(changed.named_modules())[layer], seed + i)
        yield layer, changed


def layers_with_weights(model: nn.Module, pictures: Tensor, feed: Feed) -> list[str]:
    """The layers with weights of their own, from the top of the network down: the layer that runs last comes first.

    The weights are looked for in calls of torch's functions, since attention uses weights of a module that it never
    calls. Layers that the forward pass does not use, such as an auxiliary classifier for training, are left out.
    """

    def forward(shadow: nn.Module) -> _Uses:
        layers = [(name, m.parameters(recurse=False)) for name, m in shadow.named_modules()]
        uses = _Uses({id(p): name for name, own in layers for p in own if p.numel() > 1})
        with torch.no_grad(), hooked(shadow, None, uses.end), uses:
            call_model(shadow, pictures[:1].clone() if feed is None else pictures.clone(), feed)
        return uses

    uses = in_shadow(model, forward)
    if not uses.last:
        raise ValueError(f"no layer of {type(model).__name__} has weights; expected convolutions or the like")
    # Of layers whose weights are used in the same call, the last one defined comes first.
    order = list(dict.fromkeys(uses.layers.values()))
    return sorted(uses.last, key=lambda name: (uses.last[name], order.index(name)), reverse=True)


class _Uses(TorchFunctionMode):
    """Notes in which call of a torch function each layer's weights were last used.

    Parameters
    ----------
    layers
        The name of the layer for the id of each weight.
    """

    def __init__(self, layers: dict[int, str]) -> None:
        super().__init__()
        self.layers, self.last, self.calls = layers, dict[str, int](), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if getattr(func, "__name__", "") != "__get__":  # which reads an attribute, such as the dtype
            used = {self.layers[id(t)] for t in tensors_in((args, kwargs or {})) if id(t) in self.layers}
            self.last.update(dict.fromkeys(used, self.calls))
        return func(*args, **(kwargs or {}))

    def end(self, name: str, _: Any) -> None:
        """Count a layer that has run as used, even if no call has been seen to use its weights."""
        if name in self.layers.values():
            self.last.setdefault(name, self.calls)


def _randomise(module: nn.Module, seed: int) -> None:
    """Reset a module's own weights as it does itself, or draw them with the mean and deviation of the old ones."""
    own = list(module.parameters(recurse=False))
    before = [weight.detach().clone() for weight in own]
    others = [t for child in module.children() for t in (*child.parameters(), *child.buffers())]
    kept = [t.detach().clone() for t in others]
    with OwnGenerators(seed), torch.no_grad():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            for other, values in zip(others, kept, strict=True):  # the module may have reset its children, too
                other.copy_(values)
        for weight, old in zip(own, before, strict=True):
            if weight.is_floating_point() and torch.equal(weight, old):
                noise = torch.randn(old.shape, device=old.device, dtype=torch.float32)
                weight.copy_(noise * old.float().std(correction=0) + old.float().mean())
