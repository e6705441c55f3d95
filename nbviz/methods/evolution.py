"""How a channel came to be what it is: over checkpoints, or recorded while training (figure 4 of the paper)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.backward import RULES
from nbviz.core.checks import check_choice, check_indices
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.shadow import shadow_of
from nbviz.core.state import check_model
from nbviz.core.trace import Trace, find_module, run, submodule
from nbviz.core.weights import steady
from nbviz.methods.reconstruct import project, traced_channels
from nbviz.methods.subject import Subject


@dataclass(frozen=True, repr=False)
class CheckpointResult:
    """What some channels answered to at one time of the training.

    Parameters
    ----------
    name
        Of the checkpoint or the epoch.
    pictures
        The model's inputs (M, C, H, W): of a recording one for each channel, which excited it most since the last.
    values
        (M, K): the channels' strongest activations; of a recording (K, 1), when the picture was seen.
    positions
        int64 (M, K, 2): where.
    maps
        (M, K, h, w): the channels' feature maps; of a recording (K, 1, h, w), at the end of the epoch.
    reconstructions
        (M, K, C, H, W): what of the picture they answered to; of a recording (K, 1, C, H, W).
    channels
        Which K channels.
    """

    name: str
    pictures: Tensor
    values: Tensor
    positions: Tensor
    maps: Tensor
    reconstructions: Tensor
    channels: tuple[int, ...]

    def __repr__(self) -> str:
        return f"CheckpointResult {self.name}: {len(self.channels)} channels in {len(self.pictures)} pictures"


@steady
def evolution(
    model: nn.Module,
    checkpoints: Any,
    images: Any,
    layer: str,
    channels: Sequence[int] | int | None = None,
    *,
    rule: str = "deconvnet",
    preprocess: Any = None,
    inputs: Any = None,
) -> list[CheckpointResult]:
    """What channels answer to in some pictures, at each of several times of the training.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 4: lower layers
    converge within a few epochs, upper ones only after many.

    Parameters
    ----------
    model
        Any PyTorch model, for its architecture; it is left as it was, the checkpoints are loaded into a copy.
    checkpoints
        A list, in order of time, of state dicts, or of files: safetensors, or what ``torch.save`` wrote, which is
        loaded with ``weights_only=True``. A dict from names to these gives the names. A file may hold the state dict
        under ``"state_dict"``, ``"model_state_dict"`` or ``"model"``, and each key may begin with ``"module."`` or
        ``"_orig_mod."``, as those of a parallel or a compiled model do.
    layer
        A module's name, of a layer with feature maps.
    channels
        Which channels; None takes all.
    rule
        Of the reconstructions, see :func:`nbviz.reconstruct`.

    Returns
    -------
    list of CheckpointResult
        In the same order, on the model's device.

    Raises
    ------
    ValueError
        For a checkpoint that does not fit the model, an unknown layer, a channel out of range.
    FileNotFoundError
        When there is no file at a path.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> first = {name: value.clone() for name, value in net.state_dict().items()}
    >>> _ = nn.init.ones_(net[0].weight)
    >>> found = evolution(net, {"before": first, "after": net.state_dict()}, torch.rand(1, 1, 8, 8), "1", 0)
    >>> [moment.name for moment in found], found[0].reconstructions.shape
    (['before', 'after'], torch.Size([1, 1, 1, 8, 8]))
    """
    check_choice("rule", rule, RULES)
    subject = Subject.of(model, images, preprocess, inputs)
    find_module(subject.model, layer)
    named = _named(checkpoints)
    copied, found = replace(subject, model=shadow_of(subject.model, own_weights=True)), []
    for name, given in named:
        _load_into(copied.model, name, given)
        trace = copied.run([layer], grad=True)
        found.append(_moment(name, trace, layer, traced_channels(trace, layer, channels), rule))
    return found


def _moment(name: str, trace: Trace, layer: str, channels: list[int], rule: str) -> CheckpointResult:
    maps = trace.activations[layer].detach()[:, channels]
    values, places = maps.flatten(2).max(2)
    positions = torch.stack(torch.unravel_index(places, maps.shape[2:]), -1)
    signals, _ = project(trace, layer, channels, rule)
    return CheckpointResult(name, trace.inputs.detach(), values, positions, maps, signals, tuple(channels))


def _named(given: Any) -> list[tuple[str, Any]]:
    """Each checkpoint with its name."""
    if isinstance(given, Mapping) and not any(isinstance(value, Tensor) for value in given.values()):
        named = [(line(name, 80), one) for name, one in given.items()]
    elif isinstance(given, (list, tuple)):
        paths = [_path(one) if isinstance(one, (str, os.PathLike)) else None for one in given]
        named = [
            (line(path.stem, 80) if path else f"{i}", one)
            for i, (path, one) in enumerate(zip(paths, given, strict=True))
        ]
    else:
        raise TypeError(
            f"checkpoints is a {type(given).__name__}; expected a list of state dicts or files, or a dict of these"
        )
    if not named:
        raise ValueError("checkpoints is empty; expected at least one")
    return named


_INSIDE = ("state_dict", "model_state_dict", "model")


_PREFIXES = ("module.", "_orig_mod.", "module.")  # one may lie in the other


def _load_into(model: nn.Module, name: str, given: Any) -> None:
    state = _read(given) if isinstance(given, (str, os.PathLike)) else given
    inner = next((state[key] for key in _INSIDE if key in state), state) if isinstance(state, Mapping) else state
    if not isinstance(inner, Mapping) or not all(isinstance(key, str) for key in inner):
        raise TypeError(f"checkpoint {name} is a {type(inner).__name__}; expected a state dict, or a file of one")
    own = model.state_dict().keys()
    for prefix in _PREFIXES:
        if inner and all(key.startswith(prefix) for key in inner) and not all(key in own for key in inner):
            inner = {key.removeprefix(prefix): value for key, value in inner.items()}
    try:
        model.load_state_dict(dict(inner))
    except Exception as error:
        said = " ".join(line(error, 600).split())
        raise ValueError(f"checkpoint {name} does not fit the model: {said}; expected its own state dict") from error


def _path(given: str | os.PathLike[str]) -> Path:
    try:
        return Path(given).expanduser()
    except Exception:  # bytes, a home that is nobody's, or an object of the person's own that fails
        raise TypeError(f"{shown(given, 200)} is no path; expected that of a checkpoint's file") from None


def _read(given: str | os.PathLike[str]) -> Any:
    path = _path(given)
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise FileNotFoundError(f"there is no file {shown(str(path), 200)}; expected a checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = line(error, 400)
        if isinstance(error, pickle.UnpicklingError):  # torch's words recommend to read it all the same
            said = "it is broken, or holds more than tensors and plain values, which could run code"
        raise ValueError(
            f"{shown(str(path), 200)} cannot be read: {said}; expected safetensors, or a state dict that torch.save "
            "wrote"
        ) from error


class Recorder:
    """Keeps, while a model is trained, the picture that excited each of some channels most.

    As a context around the training loop; it sees the model's own forward passes in train mode, and :meth:`mark` ends
    an epoch. What it costs: for each training step one maximum over the layer's activation and one copy of a picture
    for each channel, on the model's device and without waiting for it; for each ``mark`` one forward and one backward
    pass for as many pictures as there are channels. It holds two pictures for each channel, and what is in ``moments``
    on the CPU.

    Parameters
    ----------
    model
        The model that is trained, on which two hooks lie while inside.
    layer
        A module's name, of a layer with feature maps.
    channels
        Which channels.
    rule
        Of the reconstructions, see :func:`nbviz.reconstruct`.

    Attributes
    ----------
    moments
        A list of :class:`CheckpointResult`, one for each ``mark``.

    Raises
    ------
    ValueError, TypeError
        For an unknown layer or rule, or channels that are no whole numbers.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> with Recorder(net, "1", [0, 3]) as recorder:
    ...     for epoch in range(2):
    ...         scores = net(torch.rand(5, 1, 8, 8))  # and the rest of the training step
    ...         recorder.mark(f"epoch {epoch}")
    >>> [moment.name for moment in recorder.moments], recorder.moments[0].reconstructions.shape
    (['epoch 0', 'epoch 1'], torch.Size([2, 1, 1, 8, 8]))
    """

    def __init__(self, model: nn.Module, layer: str, channels: Sequence[int] | int, *, rule: str = "deconvnet") -> None:
        self.model, self.layer = check_model(model), layer
        self._module, self._call = find_module(self.model, layer)
        self.channels = check_indices("channel", channels, 1 << 30)
        if not self.channels:
            raise ValueError("channels is empty; expected at least one")
        self.rule = check_choice("rule", rule, RULES)
        self.moments: list[CheckpointResult] = []
        self._handles: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._values: Tensor | None = None  # (K,) on the model's device
        self._pictures: Tensor | None = None  # (K, C, H, W)
        self._seen: Tensor | None = None  # the inputs of the forward pass at hand
        self._calls = 0

    def __enter__(self) -> Recorder:
        module = submodule(self.model, self._module)
        if module is None:
            raise ValueError(
                f"layer {shown(self.layer)} is no part of the model any more; expected the model as it was"
            )
        if not self._handles:  # of a context within a context
            self._handles = [
                self.model.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((given for given in (*args, *kwargs.values()) if isinstance(given, Tensor)), None)
        self._seen = None
        if self.model.training and isinstance(first, Tensor) and not first.is_meta:
            self._seen = first.detach()
        self._calls = 0

    def _after(self, _module: nn.Module, _args: Any, activation: Any) -> None:
        call, self._calls = self._calls, self._calls + 1
        if self._seen is None or call != self._call or not isinstance(activation, Tensor):
            return
        if activation.ndim < 3 or len(activation) != len(self._seen) or max(self.channels) >= activation.shape[1]:
            raise ValueError(
                f"layer {shown(self.layer)} gives {tuple(activation.shape)} for {len(self._seen)} picture(s); expected "
                f"feature maps with more than {max(self.channels)} channels"
            )
        if self._pictures is not None and self._pictures.shape[1:] != self._seen.shape[1:]:
            raise ValueError(
                f"the model is given pictures of shape {tuple(self._seen.shape[1:])} after ones of "
                f"{tuple(self._pictures.shape[1:])}; expected one shape between two marks"
            )
        with torch.no_grad():
            values, which = activation.detach()[:, self.channels].flatten(2).amax(2).max(0)
            pictures = self._seen[which]
            if self._values is None or self._pictures is None:
                self._values, self._pictures = values.clone(), pictures
                return
            better = (values > self._values) | self._values.isnan()
            self._values = torch.where(better, values, self._values)
            wide = better.view(-1, *[1] * (pictures.ndim - 1))
            self._pictures = torch.where(wide, pictures, self._pictures)

    def mark(self, name: str) -> None:
        """End an epoch: reconstruct what excited the channels most since the last, with the weights of now.

        Raises
        ------
        ModelError
            When no picture went through the model in train mode since.
        """
        if self._values is None or self._pictures is None:
            raise ModelError(
                "no picture went through the model in train mode since the last mark; expected one at least"
            )
        values, pictures, own = self._values, self._pictures, []
        self._reset()
        for i, channel in enumerate(self.channels):  # each in its own picture
            trace = run(self.model, pictures[i : i + 1], [self.layer], grad=True)
            own.append(_moment(name, trace, self.layer, traced_channels(trace, self.layer, [channel]), self.rule))
        seen, strongest = (tensor.cpu() for tensor in (pictures, values[:, None]))
        positions, maps, signals = (
            torch.cat([getattr(one, part) for one in own]).cpu() for part in ("positions", "maps", "reconstructions")
        )
        moment = CheckpointResult(line(name, 80), seen, strongest, positions, maps, signals, tuple(self.channels))
        self.moments.append(moment)
