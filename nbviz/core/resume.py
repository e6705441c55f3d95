"""Replace a layer's activation and compute the model's output by running only what follows the layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbviz.core.calls import Feed, call_model, find_module, hooked, is_transformed, no_tensor, not_reached
from nbviz.core.errors import ModelError
from nbviz.core.field_tracker import tensors_in
from nbviz.core.layers import Layouts, Unclear
from nbviz.core.layout import Layout
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model, interruptible


class Resumable:
    """A forward pass that can be resumed from one of its layers with other activations, any number of times.

    On resuming, the model's code runs again, so control flow and connections around the layer are followed; but every
    torch function called before the layer returns its recorded result, so nothing is computed there. Where that fails
    (later operations write to earlier tensors, or the output is not reproduced), the whole model runs.

    Parameters
    ----------
    model
        The model; it is left as it was.
    inputs
        Its input (N, C, H, W), on its device.
    layer
        A module's name; ``"name:1"`` is the second call of one that runs more than once.
    feed
        Makes the model's arguments from the inputs; see :func:`nbviz.core.calls.call_model`.
    known
        ``skips`` and ``widens`` from an earlier pass of this model and layer; None tests for them, which runs what
        follows the layer on three times as many pictures.

    Attributes
    ----------
    activation, output
        Those of the layer, channels first, and of the model.
    skips
        Whether resuming skips what comes before the layer.
    widens
        Whether several variants of the activation may be resumed as one batch (K * N, C, H, W).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    >>> resumable = Resumable(net, torch.rand(1, 1, 2, 2), "1")
    >>> torch.equal(resumable.go_on(resumable.activation), resumable.output), resumable.skips, resumable.widens
    (True, True, True)
    >>> torch.equal(resumable.go_on(resumable.activation * 0), net[3](torch.zeros(1, 8)))
    True
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, layer: str, feed: Feed = None, known: tuple[bool, bool] | None = None
    ) -> None:
        self.model, self.inputs, self.feed, self.layer = check_model(model), inputs.detach(), feed, layer
        self._module, self._call = find_module(self.model, layer)
        self._layouts = Layouts(self.model, self.inputs, feed)
        self.layout: Layout | None = None
        self.skips = self.widens = self._is_unclear = False
        self.output, self.activation, calls = self._run(_Calls, None)
        if self._is_unclear:
            self._layouts.find()
            self.output, self.activation, calls = self._run(_Calls, None)
        assert isinstance(calls, _Calls)
        calls.end(self.inputs, self.output)
        self._calls = calls
        if known is not None and not calls.written:
            self.skips, self.widens = known
        elif not calls.written:
            self.skips = True  # go_on reads both flags
            self.skips = self._reproduces(1)
            if self.skips and self.feed is None:
                self.widens = True
                self.widens = self._reproduces(2)

    def _reproduces(self, times: int) -> bool:
        """Whether resuming with the layer's own activation, repeated, gives the model's output, repeated."""
        try:
            output = self.go_on(_repeat(self.activation, times))
        except ModelError:
            return False
        return _alike(output, self.output, times)

    def go_on(self, activation: Tensor) -> Any:
        """The model's output with this activation (N, C, ...), or (K * N, C, ...), in place of the layer's."""
        times = len(activation) // max(len(self.activation), 1)
        if not self.skips or (times > 1 and not self.widens):
            return self._run(lambda: None, activation)[0]
        return self._run(lambda: _Replay(self._calls, times), activation, times)[0]

    def _run(
        self, make_mode: Callable[[], _Calls | _Replay | None], activation: Tensor | None, times: int = 1
    ) -> tuple[Any, Tensor, _Calls | _Replay | None]:
        def forward(shadow: nn.Module) -> tuple[Any, Any, int, _Calls | _Replay | None]:
            count, seen, mode = 0, None, make_mode()
            wide = times > 1 and self._calls.uses_inputs
            inputs = _repeat(self.inputs, times) if wide else self.inputs

            def on_output(name: str, value: Any) -> Any:
                nonlocal count, seen
                call, count = count, count + 1
                if call != self._call:
                    return None
                seen = value
                if not isinstance(value, Tensor) or is_transformed(value):
                    return None
                with torch._C.DisableTorchFunction():  # not calls of the model
                    if activation is None:
                        try:
                            self.layout = self._layouts.of(name, call, value)
                        except Unclear:
                            self._is_unclear = True
                            return None
                    if mode is not None:
                        mode.pass_layer()
                    layout = self.layout
                    if activation is None:
                        seen = (value if layout is None else layout.channels(value)).clone()
                    else:
                        seen = activation
                    return (seen if layout is None else layout.restored(seen)).clone()  # later layers may write to it

            with torch.no_grad(), hooked(shadow, {self._module}, on_output), mode or nullcontext(), interruptible():
                output = call_model(shadow, inputs, self.feed)
            return output, seen, count, mode

        output, seen, count, mode = in_shadow(self.model, forward)
        if count <= self._call:
            raise not_reached(self.layer, self._module, count)
        if not isinstance(seen, Tensor) or is_transformed(seen):
            raise no_tensor(self.layer, seen)
        return output, seen, mode


class _Calls(TorchFunctionMode):
    """Records the results of torch functions before the layer, and which of them are used after it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[_Record] = []
        self._tensors: list[weakref.ref[Tensor]] = []
        # By id, the tensors still alive at the layer, and their version.
        self._alive: dict[int, tuple[Tensor, int]] = {}
        self._used: set[int] = set()
        self._after_layer = False
        self.written = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._after_layer:
            self._used |= {id(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        if not self._after_layer:
            self.records.append((func, self._replay_of(result)))
        return result

    def _replay_of(self, value: Any) -> Callable[[int], Any]:
        """A function that returns a result again, repeated; tensors freed before the layer are not kept alive."""
        if isinstance(value, Tensor):
            ref = weakref.ref(value)
            self._tensors.append(ref)
            return lambda times: self._replayed(ref(), times)
        if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
            replays, kind = [self._replay_of(item) for item in value], type(value)
            return lambda times: kind([replay(times) for replay in replays])
        return lambda times: value

    def _replayed(self, tensor: Tensor | None, times: int) -> Tensor:
        if tensor is None:  # used by skipped calls only
            return _FREED
        return _repeat(tensor, times) if times > 1 and id(tensor) in self._used else tensor

    def pass_layer(self) -> None:
        """Stop recording results; note what is used instead."""
        self._after_layer = True
        alive = [tensor for ref in self._tensors if (tensor := ref()) is not None]
        self._alive = {id(tensor): (tensor, tensor._version) for tensor in alive if not tensor.is_inference()}

    def end(self, inputs: Tensor, output: Any) -> None:
        """Of the tensors made before the layer, keep only those used after it."""
        self._used |= {id(tensor) for tensor in tensors_in(output)}
        self.written = any(tensor._version != version for tensor, version in self._alive.values())
        self._alive = {i: kept for i, kept in self._alive.items() if i in self._used}
        self.uses_inputs = id(inputs) in self._used


class _Replay(TorchFunctionMode):
    """Replays the recorded results of the calls before the layer."""

    def __init__(self, calls: _Calls, times: int) -> None:
        super().__init__()
        self._records, self._times = calls.records, times
        self._next, self._after_layer = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._after_layer:
            return func(*args, **(kwargs or {}))
        recorded, replay = self._records[self._next] if self._next < len(self._records) else (None, None)
        if replay is None or recorded != func:
            raise RuntimeError("the forward pass differs from the first one")
        self._next += 1  # not after a call that differs, which may be a finalizer's
        return replay(self._times)

    def pass_layer(self) -> None:
        """Stop replaying: from here on calls are made."""
        self._after_layer = True


#: A torch function that was called, and what returns its result again, repeated a number of times.
_Record = tuple[Any, Callable[[int], Any]]
_FREED = torch.empty(0, dtype=torch.float32, device="cpu")


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 or not tensor.ndim else tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _alike(output: Any, expected: Any, times: int) -> bool:
    """Whether an output equals another one, repeated, but for rounding."""
    tensors, others = tensors_in(output), tensors_in(expected)
    return len(tensors) == len(others) and all(
        _close(a, _repeat(b, times)) for a, b in zip(tensors, others, strict=True)
    )


def _close(tensor: Tensor, expected: Tensor) -> bool:
    same_kind = tensor.shape == expected.shape and tensor.dtype == expected.dtype
    if not same_kind or tensor.is_meta or {tensor.layout, expected.layout} != {torch.strided}:
        return False
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(tensor, expected)
    largest = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    return torch.allclose(tensor, expected, 1e-4, 1e-5 * (largest or 1), equal_nan=True)


def switch_off(maps: Tensor, off: Tensor, value: Tensor | None = None) -> Tensor:
    """A layer's activation with channels switched off, for each of S trials.

    Parameters
    ----------
    maps
        The activation (N, C, ...).
    off
        bool (S, C): the channels that each trial switches off.
    value
        (C,) that these channels are set to; None sets them to zero.

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
