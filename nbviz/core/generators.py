"""Random generators of nbviz's own, since torch's are global and other threads may be drawing from them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: The state of the generator of each device.
States = dict[torch.device, bytes]


class OwnGenerators(TorchDispatchMode):
    """While active, this thread's random operations draw from private generators, one per device.

    Parameters
    ----------
    seed
        Of the generators; None starts them from the state of torch's global ones: the same numbers are drawn as
        without this mode, and drawn again by the next operation after it.
    states
        Start from these states instead, see :func:`generator_states`.

    Attributes
    ----------
    used
        Whether anything was drawn.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> with OwnGenerators():
    ...     first = torch.rand(3)
    >>> torch.equal(first, torch.rand(3))
    True
    """

    def __init__(self, seed: int | None = None, states: States | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.states, self.used = seed, states or {}, False
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes seconds, only to exempt this mode from compilation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (takes_generator := _takes_generator(func)) is None:
            return func(*args, **kwargs)
        self.used = True
        if kwargs.get("generator") or any(isinstance(arg, torch.Generator) for arg in args):
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if takes_generator:
            return func(*args, **{**kwargs, "generator": self._generator(device)})
        # Some operations use the global generator only, such as a fused dropout on a GPU.
        default, own = _default(device), self._generator(device)
        before = default.get_state()
        default.set_state(own.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            own.set_state(default.get_state())
            default.set_state(before)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            own = torch._C.Generator(device)
            if self.seed is not None:
                own.manual_seed(self.seed)
            else:
                state = self.states.get(device)
                own.set_state(_default(device).get_state() if state is None else _tensor(state))
            self._generators[device] = own
        return self._generators[device]


@cache
def _takes_generator(func: Any) -> bool | None:
    """Whether a random operation takes a generator; None for an operation that is not random."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _device(args: Any, kwargs: Any) -> torch.device:
    """The device on which an operation draws."""
    tensor = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
    device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def _default(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def generator_states(model: nn.Module) -> States:
    """The states of torch's global generators for the CPU and the model's GPUs; they change when anyone draws."""
    devices = {torch.device("cpu")}
    if torch.cuda.is_initialized():
        devices |= {torch.device("cuda", p.device.index or 0) for p in model.parameters() if p.is_cuda}
    return {device: bytes(_default(device).get_state().numpy()) for device in devices}


def restore_generators(states: States) -> None:
    """Set torch's global generators to these states."""
    for device, state in states.items():
        _default(device).set_state(_tensor(state))


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
