"""Change a layer's activation and see what comes of it, by running only what follows the layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbviz.core.errors import ModelError, shown
from nbviz.core.field_tracker import tensors_in
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, interruptible
from nbviz.core.trace import Feed, call_model, find_module, hooked, not_reached


class Resumable:
    """A forward pass that goes on from one of its layers, as often as wanted, with other activations.

    All calls of torch's functions before the layer are answered with what they gave the first time: the model's own
    code runs again, so that any control flow and any connection around the layer is followed, but nothing is computed.
    Where that does not work (what follows writes to what was before, or what comes out is not what came out the first
    time), the whole model runs.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.
    layer
        A module's name; ``"name:1"`` is the second call of one that runs more than once.
    feed
        As in :func:`nbviz.core.trace.run`.
    known
        ``skips`` and ``widens`` as they were found before, of this model and layer; None finds them out, at the cost of
        what follows the layer, for three times as many pictures.

    Attributes
    ----------
    activation, output
        What the layer and the model gave.
    skips
        Whether what is before the layer is not run again.
    widens
        Whether the activations of several variants may go on in one batch (K * N, C, H, W).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    >>> one = Resumable(net, torch.rand(1, 1, 2, 2), "1")
    >>> torch.equal(one.go_on(one.activation), one.output), one.skips, one.widens
    (True, True, True)
    >>> torch.equal(one.go_on(one.activation * 0), net[3](torch.zeros(1, 8)))
    True
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, layer: str, feed: Feed = None, known: tuple[bool, bool] | None = None
    ) -> None:
        self.model, self.inputs, self.feed, self.layer = check_model(model), inputs.detach(), feed, layer
        self._module, self._call = find_module(self.model, layer)
        self.skips = self.widens = False
        self.output, self.activation, calls = self._run(_Calls, None)
        assert isinstance(calls, _Calls)
        calls.end(self.inputs, self.output)
        self._calls = calls
        if calls.written:
            return
        if known is None:
            self._check()
        else:
            self.skips, self.widens = known

    def _check(self) -> None:
        self.skips = True
        if not self._gives(1):
            self.skips = False
        elif self.feed is None:
            self.widens = True
            self.widens = self._gives(2)

    def _gives(self, times: int) -> bool:
        """Whether the layer's own activation, so many times, leads to the model's own output."""
        try:
            found = self.go_on(_repeat(self.activation, times))
        except ModelError:
            return False
        return _alike(found, self.output, times)

    def go_on(self, activation: Tensor) -> Any:
        """The model's output with this activation (N, C, H, W), or (K * N, C, H, W), in place of the layer's."""
        times = len(activation) // max(len(self.activation), 1)
        if not self.skips or (times > 1 and not self.widens):
            return self._run(lambda: None, activation)[0]
        return self._run(lambda: self._calls.again(times), activation, times)[0]

    def _run(
        self, make_mode: Callable[[], _Calls | _Again | None], activation: Tensor | None, times: int = 1
    ) -> tuple[Any, Tensor, _Calls | _Again | None]:
        def forward(shadow: nn.Module) -> tuple[Any, Tensor | None, type, int, _Calls | _Again | None]:
            count, seen, kind, mode = 0, None, Tensor, make_mode()
            wide = mode is not None and times > 1 and mode.uses_inputs
            inputs = _repeat(self.inputs, times) if wide else self.inputs

            def at(name: str, value: Any) -> Any:
                nonlocal count, seen, kind
                call, count = count, count + 1
                if call != self._call:
                    return None
                kind = type(value)
                if not isinstance(value, Tensor):
                    return None
                with torch._C.DisableTorchFunction():  # these are no calls of the model's
                    if mode is not None:
                        mode.pass_layer()
                    seen = value.clone() if activation is None else activation
                    return seen.clone()  # what follows may write to it

            with torch.no_grad(), hooked(shadow, {self._module}, at), mode or nullcontext(), interruptible():
                output = call_model(shadow, inputs, self.feed)
            return output, seen, kind, count, mode

        output, seen, kind, count, mode = in_shadow(self.model, forward)
        if not issubclass(kind, Tensor):
            raise TypeError(f"layer {shown(self.layer)} gives a {kind.__name__}; expected a layer that gives a tensor")
        if seen is None:
            raise not_reached(self.layer, self._module, count)
        return output, seen, mode


class _Calls(TorchFunctionMode):
    """Notes what torch's functions give up to the layer, and which of it is used after it."""

    uses_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self._held: list[tuple[Any, Callable[[int], Any]]] = []
        self._tensors: list[weakref.ref[Tensor]] = []
        self._alive: dict[int, tuple[Tensor, int]] = {}  # by their id, those that the model still has at the layer
        self._used: set[int] = set()
        self._behind = False
        self.written = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._behind:
            self._used |= {id(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        if not self._behind:
            self._held.append((func, self._hold(result)))
        return result

    def _hold(self, value: Any) -> Callable[[int], Any]:
        """How to give a result again, so many times as wide; what the model has let go of at the layer is gone."""
        if isinstance(value, Tensor):
            ref = weakref.ref(value)
            self._tensors.append(ref)
            return lambda times: self._again(ref(), times)
        if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
            parts, kind = [self._hold(part) for part in value], type(value)
            return lambda times: kind([part(times) for part in parts])
        return lambda times: value

    def _again(self, tensor: Tensor | None, times: int) -> Tensor:
        if tensor is None:  # only given to calls that are not made again
            return _GONE
        return _repeat(tensor, times) if times > 1 and id(tensor) in self._used else tensor

    def pass_layer(self) -> None:
        """From here on calls are made."""
        self._behind = True
        alive = [tensor for ref in self._tensors if (tensor := ref()) is not None]
        self._alive = {id(tensor): (tensor, tensor._version) for tensor in alive if not tensor.is_inference()}

    def end(self, inputs: Tensor, output: Any) -> None:
        """Keep of what is before the layer only what is used after it."""
        self._used |= {id(tensor) for tensor in tensors_in(output)}
        self.written = any(tensor._version != version for tensor, version in self._alive.values())
        self._alive = {i: held for i, held in self._alive.items() if i in self._used}
        self.uses_inputs = id(inputs) in self._used

    def again(self, times: int) -> _Again:
        """A mode that gives it all again."""
        return _Again(self._held, times, self.uses_inputs)


class _Again(TorchFunctionMode):
    """Answers the calls up to the layer with what they gave."""

    def __init__(self, held: list[tuple[Any, Callable[[int], Any]]], times: int, uses_inputs: bool) -> None:
        super().__init__()
        self._held, self._times, self.uses_inputs = held, times, uses_inputs
        self._next, self._behind = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._behind:
            return func(*args, **(kwargs or {}))
        first, again = self._held[self._next] if self._next < len(self._held) else (None, None)
        if again is None or first != func:
            raise RuntimeError("the forward pass is another one than the first time")
        self._next += 1
        return again(self._times)

    def pass_layer(self) -> None:
        """From here on calls are made."""
        self._behind = True


_GONE = torch.empty(0, dtype=torch.float32, device="cpu")


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 or not tensor.ndim else tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _alike(found: Any, expected: Any, times: int) -> bool:
    found, expected = tensors_in(found), tensors_in(expected)
    if len(found) != len(expected):
        return False
    for one, other in zip(found, expected, strict=True):
        wide = _repeat(other, times)
        if one.shape != wide.shape or one.dtype != wide.dtype:
            return False
        if one.is_meta or one.layout is not torch.strided or wide.layout is not torch.strided:
            return False
        if not (wide.is_floating_point() or wide.is_complex()):
            if not torch.equal(one, wide):
                return False
            continue
        largest = float(wide.abs().nan_to_num(0, 0, 0).max()) if wide.numel() else 0.0
        if not torch.allclose(one, wide, 1e-4, 1e-5 * (largest or 1), equal_nan=True):
            return False
    return True


def switch_off(maps: Tensor, off: Tensor, value: Tensor | None = None) -> Tensor:
    """A layer's activation with some channels switched off, trial by trial.

    Parameters
    ----------
    maps
        (N, C, ...).
    off
        bool (S, C).
    value
        (C,) that the channels are set to; None takes zero.

    Returns
    -------
    Tensor
        (S * N, C, ...).

    Examples
    --------
    >>> switch_off(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[True, False], [True, True]])).flatten(1).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    value = maps.new_zeros(maps.shape[1]) if value is None else value.to(maps)
    if value.shape != maps.shape[1:2]:
        raise ValueError(f"value has shape {tuple(value.shape)}; expected ({maps.shape[1]},), one for each channel")
    sides = [1] * (maps.ndim - 2)
    return torch.where(off.view(len(off), 1, -1, *sides), value.view(1, 1, -1, *sides), maps).flatten(0, 1)
