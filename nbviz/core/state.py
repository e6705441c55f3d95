"""Working in a user's model without leaving a mark: one at a time, and everything put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

#: Held by whoever is in any model: a call, a widget's observer on its own thread, or the person's
#: running cell. Two threads in one model would mix their hooks and flags.
lock = threading.RLock()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode; afterwards flags, buffers, attributes and random state are what they were.

    Parameters
    ----------
    model
        Any module. Nothing of it may be compiled or scripted.

    Raises
    ------
    TypeError
        When the model is not a module, or is scripted or compiled.
    """
    check_model(model)
    with ExitStack() as stack:
        stack.enter_context(lock)
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)))
        modules = list(model.modules())
        attributes = [
            (now, now.copy())
            for module in modules
            for now in (vars(module), *(vars(module)[kind] for kind in ("_parameters", "_buffers", "_modules")))
        ]
        # What it writes to its buffers goes to copies, which also stay valid in the graph of the run.
        with torch.inference_mode(False):
            copies = {id(b): b.detach().clone().requires_grad_(b.requires_grad) for b in model.buffers()}
        try:
            for module in modules:
                # The flag itself, not .eval(): a subclass may do more there than can be undone.
                module.training = False
                module._buffers.update({name: copies.get(id(b)) for name, b in module._buffers.items()})
            yield
        finally:
            # All attributes: a buffer that a forward pass replaced may belong to a size noted beside it.
            for now, before in attributes:
                now.clear()
                now.update(before)


def check_model(model: object) -> None:
    """Raise TypeError unless this is a module whose operations autograd can see."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    for name, module in model.named_modules():
        what = f"its part {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{what} is scripted (torch.jit), which hides its layers; give the model it was made from")
        if hasattr(module, "_orig_mod"):
            raise TypeError(f"{what} is compiled, which hides its layers; give the original, compiled._orig_mod")
        if module._compiled_call_impl is not None:
            raise TypeError(f"{what} is compiled in place, which hides its layers; give a model before .compile()")


def fingerprint(model: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """Changes whenever a parameter or buffer is written to (``.data`` aside) or replaced; looks at no values."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
