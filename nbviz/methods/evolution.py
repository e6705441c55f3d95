"""How channels develop during training: over checkpoints, or recorded (figure 4 of Zeiler and Fergus)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_maps
from nbviz.core.backward import RULES
from nbviz.core.calls import find_module, submodule
from nbviz.core.checks import check_choice, check_indices
from nbviz.core.documented import documented
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.shadow import shadow_of
from nbviz.core.state import check_model
from nbviz.core.trace import Trace, run
from nbviz.core.types import Channels, Images, InputOptions
from nbviz.core.weights import steady
from nbviz.methods.checkpoints import load_into, named_checkpoints
from nbviz.methods.reconstruct import project, traced_channels
from nbviz.methods.subject import Subject


@dataclass(frozen=True, repr=False)
class CheckpointResult:
    """What channels respond to at one time of the training.

    Parameters
    ----------
    name
        The name of the checkpoint or the epoch.
    pictures
        The model's inputs (M, C, H, W). In a recording, one for each channel: the one that excited it most.
    values
        (M, K): the channels' strongest activations. In a recording (K, 1), when the picture was seen.
    positions
        int64 (M, K, 2): the positions of the strongest activations.
    maps
        (M, K, h, w): the channels' feature maps. In a recording (K, 1, h, w), at the end of the epoch.
    reconstructions
        (M, K, C, H, W): what in the picture they respond to. In a recording (K, 1, C, H, W).
    channels
        The K channels.
    taken
        Where the weights lay in a checkpoint that holds more than them, and what was stripped from their names; empty
        where it is the state dict itself.
    """

    name: str
    pictures: Tensor
    values: Tensor
    positions: Tensor
    maps: Tensor
    reconstructions: Tensor
    channels: tuple[int, ...]
    taken: str = ""

    def __repr__(self) -> str:
        name = f"{self.name} ({self.taken})" if self.taken else self.name
        return f"CheckpointResult {name}: {len(self.channels)} channels in {len(self.pictures)} pictures"


@documented
@steady
def evolution(
    model: nn.Module,
    checkpoints: Any,
    images: Images,
    layer: str,
    channels: Channels | None = None,
    *,
    rule: str = "deconvnet",
    **options: Unpack[InputOptions],
) -> list[CheckpointResult]:
    """What channels respond to in pictures, at each of several checkpoints of the training.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 4: lower layers
    converge within a few epochs, upper ones only after many.

    Parameters
    ----------
    model
        Any PyTorch model, for its architecture. It is left unchanged; the checkpoints are loaded into a copy.
    checkpoints
        A list, in order of time, of state dicts or files: safetensors, or what ``torch.save`` wrote, loaded with
        ``weights_only=True``. A dict also names them. What trainers write is understood: the state dict may lie under
        any key, such as ``"state_dict"`` or ``"net"``, and its names may have a prefix, such as ``"model."`` or
        ``"module."``, beside which there may be other weights. The results' ``taken`` says what was found.
    layer
        The name of a layer with feature maps.

    Returns
    -------
    list of CheckpointResult
        One for each of ``checkpoints``, in the same order, on the model's device.

    Raises
    ------
    ValueError
        When one of ``checkpoints`` cannot be read or does not fit the model.
    FileNotFoundError
        When a file of ``checkpoints`` does not exist.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> first = {name: value.clone() for name, value in net.state_dict().items()}
    >>> _ = nn.init.ones_(net[0].weight)
    >>> results = evolution(net, {"before": first, "after": net.state_dict()}, torch.rand(1, 1, 8, 8), "1", 0)
    >>> [result.name for result in results], results[0].reconstructions.shape
    (['before', 'after'], torch.Size([1, 1, 1, 8, 8]))
    """
    check_choice("rule", rule, RULES)
    subject = Subject.of(model, images, **options)
    find_module(subject.model, layer)
    named = named_checkpoints(checkpoints)
    copied, results = replace(subject, model=shadow_of(subject.model, own_weights=True)), []
    for name, checkpoint in named:
        taken = load_into(copied.model, name, checkpoint)
        trace = copied.run([layer], grad=True)
        results.append(_result(name, trace, layer, traced_channels(trace, layer, channels), rule, taken))
    return results


def _result(name: str, trace: Trace, layer: str, channels: list[int], rule: str, taken: str = "") -> CheckpointResult:
    maps = check_maps(trace, layer).detach()[:, channels]
    values, places = maps.flatten(2).max(2)
    positions = torch.stack(torch.unravel_index(places, maps.shape[2:]), -1)
    signals, _ = project(trace, layer, channels, rule)
    return CheckpointResult(name, trace.inputs.detach(), values, positions, maps, signals, tuple(channels), taken)


@documented
class Recorder:
    """Keeps the picture that excites each of some channels most while a model is trained.

    Use it as a context around the training loop. It sees the model's own forward passes in train mode, and :meth:`mark`
    ends an epoch. Each training step costs one maximum over the layer's activation and one copy of a picture per
    channel, on the model's device and without synchronisation; each ``mark`` costs one forward and one backward pass
    per channel. It holds two pictures per channel on the device, and ``moments`` on the CPU.

    Parameters
    ----------
    model
        The model that is trained. It has two hooks inside the context.
    layer
        The name of a layer with feature maps.
    channels
        Which channels.

    Attributes
    ----------
    moments
        A list of :class:`CheckpointResult`, one for each ``mark``.

    Raises
    ------
    TypeError
        When ``channels`` are not whole numbers.

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

    def __init__(self, model: nn.Module, layer: str, channels: Channels, *, rule: str = "deconvnet") -> None:
        self.model, self.layer = check_model(model), layer
        self._module, self._call = find_module(self.model, layer)
        self.channels = check_indices("channel", channels, 1 << 30)
        if not self.channels:
            raise ValueError("channels is empty; expected at least one")
        self.rule = check_choice("rule", rule, RULES)
        self.moments: list[CheckpointResult] = []
        self._handles: list[Any] = []
        #: The strongest activations (K,) and their pictures (K, C, H, W), on the model's device.
        self._strongest: tuple[Tensor, Tensor] | None = None
        self._inputs: Tensor | None = None  # of the current forward pass
        self._calls = 0  # of the layer, in the current forward pass

    def __enter__(self) -> Recorder:
        module = submodule(self.model, self._module)
        if module is None:
            raise ValueError(f"layer {shown(self.layer)} is no longer part of the model; expected the model as it was")
        if not self._handles:  # they are there already if a context is entered twice
            self._handles = [
                self.model.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self._inputs = None if first is None or first.is_meta or not self.model.training else first.detach()
        self._calls = 0

    def _after(self, _module: nn.Module, _args: Any, activation: Any) -> None:
        call, self._calls = self._calls, self._calls + 1
        if self._inputs is None or call != self._call or not isinstance(activation, Tensor):
            return
        if activation.ndim < 3 or len(activation) != len(self._inputs) or max(self.channels) >= activation.shape[1]:
            raise ValueError(
                f"layer {shown(self.layer)} gives {tuple(activation.shape)} for {len(self._inputs)} picture(s); "
                f"expected feature maps with more than {max(self.channels)} channels"
            )
        if self._strongest is not None and self._strongest[1].shape[1:] != self._inputs.shape[1:]:
            raise ValueError(
                f"the model is given pictures of shape {tuple(self._inputs.shape[1:])} after ones of "
                f"{tuple(self._strongest[1].shape[1:])}; expected one shape between two marks"
            )
        with torch.no_grad():
            values, rows = activation.detach()[:, self.channels].flatten(2).amax(2).max(0)
            pictures = self._inputs[rows]
            if self._strongest is not None:
                known_values, known_pictures = self._strongest
                better = (values > known_values) | known_values.isnan()
                values = torch.where(better, values, known_values)
                pictures = torch.where(better.view(-1, *[1] * (pictures.ndim - 1)), pictures, known_pictures)
            self._strongest = values, pictures

    def mark(self, name: str) -> None:
        """End an epoch: reconstruct what excited the channels most since the last mark, with the current weights.

        Parameters
        ----------
        name
            The name of the epoch.

        Raises
        ------
        ModelError
            When no picture went through the model in train mode since the last mark.
        """
        if self._strongest is None:
            raise ModelError(
                "no picture went through the model in train mode since the last mark; expected one at least"
            )
        (values, pictures), results = self._strongest, []
        self._strongest = self._inputs = None
        for i, channel in enumerate(self.channels):  # each with its own picture
            trace = run(self.model, pictures[i : i + 1], [self.layer], grad=True)
            results.append(_result(name, trace, self.layer, traced_channels(trace, self.layer, [channel]), self.rule))
        found = {"pictures": pictures, "values": values[:, None]}
        for field in ("positions", "maps", "reconstructions"):
            found[field] = torch.cat([getattr(result, field) for result in results])
        on_cpu: dict[str, Any] = {field: tensor.cpu() for field, tensor in found.items()}
        self.moments.append(CheckpointResult(line(name, 80), **on_cpu, channels=tuple(self.channels)))
