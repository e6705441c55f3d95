"""Random numbers of nbviz's own: torch's generators are the process's, and another thread may be drawing from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: For each device, the state of its generator.
States = dict[torch.device, bytes]


class OwnDraws(TorchDispatchMode):
    """While active, this thread's random operations draw from generators of its own, one for each device.

    Parameters
    ----------
    seed
        Of the generators; None begins where torch's own are, so that what is drawn is what would have been drawn, and
        is drawn again by whoever draws next.
    states
        Where to begin instead, as :func:`drawn_so_far` has it.

    Attributes
    ----------
    used
        Whether anything was drawn.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> with OwnDraws():
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
        """As in :class:`nbviz.core.backward.BackwardRule`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (takes := _TAKES[func]) is None:
            return func(*args, **kwargs)
        self.used = True
        given = kwargs.get("generator") or next((one for one in args if isinstance(one, torch.Generator)), None)
        if given is not None:
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if takes:
            return func(*args, **{**kwargs, "generator": self._generator(device)})
        # One that only torch's own generator serves, such as a fused dropout of a GPU.
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


class _Takes(dict[Any, "bool | None"]):
    """Whether a random operation takes a generator; None for one that is not random."""

    def __missing__(self, func: Any) -> bool | None:
        random = torch.Tag.nondeterministic_seeded in func.tags
        self[func] = any(a.name == "generator" for a in func._schema.arguments) if random else None
        return self[func]


_TAKES = _Takes()


def _device(args: Any, kwargs: Any) -> torch.device:
    """Where an operation draws."""
    tensor = next((one for one in args if isinstance(one, torch.Tensor)), None)
    device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def _default(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def drawn_so_far(model: nn.Module) -> States:
    """Where torch's generators are, of the CPU and of a model's GPUs: tells whether anyone has drawn from them."""
    found = {_CPU: bytes(torch.default_generator.get_state().numpy())}
    if torch.cuda.is_initialized():
        for index in {p.device.index or 0 for p in model.parameters() if p.is_cuda}:
            device = torch.device("cuda", index)
            found[device] = bytes(_default(device).get_state().numpy())
    return found


def draw_again(states: States) -> None:
    """Put torch's generators where they were."""
    for device, state in states.items():
        _default(device).set_state(_tensor(state))


_CPU = torch.device("cpu")


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
