"""Activation maximisation: a picture that excites a channel or a class as strongly as possible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.answers import KINDS
from nbviz.core.arguments import check_channels, check_feed
from nbviz.core.backward import pull
from nbviz.core.checks import check_choice, check_flag, check_indices, check_number, check_tensor, check_whole
from nbviz.core.generators import OwnGenerators
from nbviz.core.state import check_model
from nbviz.core.types import Channels, ModelInputs, Preprocessing, ScoresIn, SubjectOptions, Target
from nbviz.core.weights import Watch, WeightsChanged
from nbviz.methods.reconstruct import check_layer_or_target
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.load import Pictures, Reader
from nbviz.pictures.warp import warp

#: What is maximised: the mean over a channel's positions, or its position in the middle.
OBJECTIVES = ("channel", "neuron")
_WATCH_SECONDS = 0.5
_FIRST = 8  # channels, where none are named
_PROBE = 224  # height and width of the picture that shows what size the preprocessing gives


@dataclass(frozen=True)
class MaximiseResult:
    """Pictures that excite channels or classes.

    Parameters
    ----------
    pictures
        float32 (K, C, H, W) in [0, 1], for display.
    inputs
        The pictures as the model takes them.
    values
        (K,): the objective for these pictures.
    start
        (K,): the objective for the noise at the start.
    channels
        The channels or classes.
    step
        The number of steps taken.
    """

    pictures: Tensor
    inputs: Tensor
    values: Tensor
    start: Tensor
    channels: tuple[int, ...]
    step: int


@as_method()
def maximise(
    model: nn.Module,
    layer: str | None = None,
    channels: Channels | None = None,
    target: Target | None = None,
    *,
    objective: str = "channel",
    steps: int = 256,
    rate: float = 0.05,
    size: int | tuple[int, int] | None = None,
    robust: bool = True,
    seed: int = 0,
    watch: Callable[[MaximiseResult], None] | None = None,
    **options: Unpack[SubjectOptions],
) -> MaximiseResult:
    """Pictures that maximise the value of a channel or a class, made from noise by gradient ascent.

    C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill 2017, as in their library Lucid: the
    picture is parametrised by its Fourier transform, each frequency scaled by its wavelength, and by decorrelated
    colours, so that no direction dominates. Before each step it is shifted, scaled and rotated a little, so that the
    result does not depend on single pixels. The optimiser is Adam.

    Where the layer's own rectifier is closed, it passes a tenth of the signal, so that a channel that is silent in most
    of the picture becomes active there, too. Where no gradient arrives at all, that of the deconvnet is used.

    Parameters
    ----------
    model
        Any PyTorch model that takes pictures. It is left unchanged.
    layer
        The name of a module (``"name:1"`` for its second call), or None for an output class.
    channels
        Which channels of the layer; each gets a picture. None takes the first eight.
    target
        With ``layer=None``: the class, or several; each gets a picture.
    objective
        ``"channel"``, the mean over a channel's positions, or ``"neuron"``, the position in the middle.
    steps
        The number of steps.
    rate
        Adam's learning rate.
    size
        Height and width of the pictures, or one number for both, from 8 to 4096; None takes the size that the model's
        preprocessing gives.
    robust
        Shift, scale and rotate before each step (not for a single neuron, which would lose its place).
    watch
        Called about twice a second with the result so far.
    preprocess
        A callable from a PIL picture to the model's input (C, H, W), whose mean, std and size are used. None takes the
        model's own, which is known for torchvision's weights and timm's configurations.

    Returns
    -------
    MaximiseResult
        ``pictures`` (K, C, H, W) in [0, 1], ``inputs``, ``values`` and ``start`` (K,).

    Raises
    ------
    ValueError
        When ``target`` is given with a ``layer``, or ``channels`` without one. When ``model`` takes signals or volumes.
        When ``objective`` is unknown.
    ModelError
        When the model fails, or no gradient reaches the picture.

    Examples
    --------
    >>> import nbviz
    >>> result = maximise(nbviz.bundled.load("fashion"), target=[1, 9], steps=16)
    >>> result.pictures.shape, bool((result.values > result.start).all())
    (torch.Size([2, 1, 28, 28]), True)
    """
    if watch is not None and not callable(watch):
        raise TypeError(f"watch is {type(watch).__name__}; expected a callable that takes a MaximiseResult, or None")
    steps = check_whole("steps", steps, 1)
    growing = Growing(model, layer, channels, target, objective, rate, size, robust, seed, **options)
    last_call = time.monotonic()
    for _ in range(steps):
        growing.step()
        if watch is not None and time.monotonic() - last_call > _WATCH_SECONDS:
            watch(growing.found())
            last_call = time.monotonic()
    return growing.found()


class Growing:
    """The pictures during the ascent. Takes and checks the arguments of :func:`maximise`."""

    @torch.inference_mode(False)  # which would allow no gradients
    def __init__(
        self,
        model: nn.Module,
        layer: str | None,
        channels: Channels | None,
        target: Target | None,
        objective: str = "channel",
        rate: float = 0.05,
        size: int | tuple[int, int] | None = None,
        robust: bool = True,
        seed: int = 0,
        preprocess: Preprocessing | None = None,
        inputs: ModelInputs | None = None,
        output: ScoresIn | None = None,
        answer: str | None = None,
    ) -> None:
        if answer is not None:
            check_choice("answer", answer, KINDS)
        reader = Reader.of(model, preprocess)
        self.model, self.layer, feed = check_model(model), layer, check_feed(inputs)
        self._neuron = check_choice("objective", objective, OBJECTIVES) == "neuron"
        check_flag("robust", robust)
        if reader.axes != 2:
            raise ValueError("the model takes signals or volumes; expected one that takes pictures (N, C, H, W)")
        check_layer_or_target(layer, channels, target)
        if layer is None and target is None:
            raise ValueError("name a layer, or give target for output classes")
        self.robust, self.preprocess, self.steps = robust and not self._neuron, reader.preprocess, 0
        sides = _input_sides(reader) if size is None else _check_size(size)
        self._generator = torch.Generator().manual_seed(check_whole("seed", seed, 0, 2**63 - 1))
        probe = self.preprocess.redo(torch.full((1, reader.channels, *sides), 0.5, dtype=torch.float32)).to(
            reader.device, reader.dtype
        )
        check_tensor("the model's input", probe, "on a device that holds values")
        self._subject = Subject(self.model, Pictures(probe, self.preprocess, ()), feed, output, answer)
        count = self._run(probe)[1].shape[1]
        kind, given = ("class", target) if layer is None else ("channel", channels)
        self.channels = list(range(min(count, _FIRST))) if given is None else check_indices(kind, given, count)
        if not self.channels:
            raise ValueError("channels is empty; expected at least one")
        self._basis = Basis((len(self.channels), reader.channels, *sides), self._generator, reader.device)
        self._adam = torch.optim.Adam([self._basis.spectrum], check_number("rate", rate, 1e-6, 10))
        self._watch = Watch(self.model)
        with torch.no_grad():
            self.start = self._values(self._prepared(self._basis.pictures()))

    @torch.inference_mode(False)
    def step(self) -> None:
        """One step of gradient ascent.

        Raises
        ------
        WeightsChanged
            When the weights of the model have changed since the start.
        """
        try:
            inputs, gradient = self._gradient()
        except Exception:
            if self._watch.is_past():
                raise WeightsChanged from None
            raise
        if self._watch.is_past():
            raise WeightsChanged
        self._adam.zero_grad()
        inputs.backward(-gradient)
        self._adam.step()
        self.steps += 1

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """The model's inputs, and the gradient of the objective with respect to them."""
        with torch.enable_grad():
            pictures = self._basis.pictures()
            inputs = self._prepared(self._moved(pictures) if self.robust else pictures)
        trace, activation = self._run(inputs.detach(), grad=True)
        seeds = torch.zeros_like(activation)[None]
        for places in self._maximised(activation):
            # The sum has the direction of the mean, whose gradient may be too small for Adam or half precision.
            seeds[(0, *places)] = 1.0
        for node in _own_rectifiers(activation):
            node.register_hook(_leak)
        gradient = pull("gradient", activation, seeds, trace.inputs)[0][0]
        blocked = gradient.flatten(1).abs().amax(1) == 0
        if blocked.any():
            deconvnet = pull("deconvnet", activation, seeds, trace.inputs)[0][0]
            gradient = torch.where(blocked.view(-1, 1, 1, 1), deconvnet, gradient)
        return inputs, gradient

    @torch.inference_mode(False)
    def found(self) -> MaximiseResult:
        """The result so far."""
        with torch.no_grad():
            pictures = self._basis.pictures()
            inputs = self._prepared(pictures)
        return MaximiseResult(pictures, inputs, self._values(inputs), self.start, tuple(self.channels), self.steps)

    def _prepared(self, pictures: Tensor) -> Tensor:
        """Pictures in [0, 1] as the model takes them."""
        return self.preprocess.redo(pictures).to(self._subject.inputs.dtype)

    def _run(self, inputs: Tensor, grad: bool = False) -> tuple[Any, Tensor]:
        """The trace, and the values that the objective is made of: (N, C, ...)."""
        subject = self._subject.with_inputs(inputs)
        if self.layer is None:
            trace = subject.run(output=True, grad=grad)
            return trace, subject.scores(trace.output)
        trace = subject.run([self.layer], grad=grad)
        return trace, check_channels(self.layer, trace.activations[self.layer], trace.layouts[self.layer], len(inputs))

    def _maximised(self, activation: Tensor) -> list[tuple[Any, ...]]:
        """Where an activation is maximised: of each picture its channel, in the middle or at all positions."""
        places = [side // 2 if self._neuron else slice(None) for side in activation.shape[2:]]
        return [(i, channel, *places) for i, channel in enumerate(self.channels)]

    def _values(self, inputs: Tensor) -> Tensor:
        activation = self._run(inputs)[1].detach()
        return torch.stack([activation[places].mean() for places in self._maximised(activation)])

    def _moved(self, pictures: Tensor) -> Tensor:
        """Shifted by up to a sixteenth of a side, scaled by up to a twentieth and rotated by up to 8 degrees."""
        down, across, scale, angle = (2 * torch.rand(4, generator=self._generator, dtype=torch.float32) - 1).tolist()
        height, width = pictures.shape[-2:]
        shift = round(down * height / 16), round(across * width / 16)
        return warp(pictures, *shift, 1 + scale / 20, 8 * angle, padding="reflection")


_RECTIFIERS = ("Relu", "Threshold", "Hardtanh", "Clamp")  # names of autograd nodes that can block a gradient
_WEIGHTED = ("Convolution", "Addmm", "Mm", "Bmm")  # nodes below which a rectifier belongs to another layer
_LEAK = 0.1


def _own_rectifiers(activation: Tensor) -> Iterator[Any]:
    """The rectifiers' autograd nodes between a layer's activation and the last convolutions or matrix products."""
    seen, waiting = {None}, [activation.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node not in seen:
            seen.add(node)
            if node.name().startswith(_RECTIFIERS):
                yield node
            elif not node.name().startswith(_WEIGHTED):
                waiting.extend(below for below, _ in node.next_functions)


def _leak(sent: tuple[Tensor | None, ...], received: tuple[Tensor, ...]) -> tuple[Tensor | None, ...] | None:
    """A hook of a rectifier's node: where it is closed, let a part of the positive gradient through."""
    if sent[0] is None or sent[0].shape != received[0].shape:  # no gradient needed; a clamp between tensors
        return None
    return torch.where(sent[0] == 0, _LEAK * received[0].clamp(min=0), sent[0]), *sent[1:]


class Basis:
    """Pictures in [0, 1], parametrised by their Fourier transform in decorrelated colours.

    Parameters
    ----------
    shape
        (K, C, H, W).
    generator
        The source of the noise at the start.
    device
        The device of the pictures.

    Examples
    --------
    >>> Basis((1, 3, 6, 8), torch.Generator().manual_seed(0), torch.device("cpu")).pictures().shape
    torch.Size([1, 3, 6, 8])
    """

    # The square root of the covariance of colours in ImageNet, as in Lucid, divided by the norm of its longest column.
    _COLOURS = torch.tensor(
        [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype=torch.float32, device="cpu"
    )
    _COLOURS = _COLOURS / _COLOURS.norm(dim=0).max()

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> None:
        height, width = self._sides = shape[-2:]
        y, x = torch.fft.fftfreq(height, dtype=torch.float32), torch.fft.rfftfreq(width, dtype=torch.float32)
        wavelength = 1 / (x[None].square() + y[:, None].square()).sqrt().clamp(min=1 / max(height, width))
        self._scale = (wavelength * math.sqrt(height * width)).to(device)
        noise = 0.01 * torch.randn(*shape[:2], *wavelength.shape, 2, generator=generator, dtype=torch.float32)
        self.spectrum = noise.to(device).requires_grad_()

    def pictures(self) -> Tensor:
        """The pictures (K, C, H, W)."""
        waves = torch.view_as_complex(self.spectrum) * self._scale
        values = torch.fft.irfft2(waves, s=self._sides) / 4
        if values.shape[1] == 3:
            values = torch.einsum("kchw,dc->kdhw", values, self._COLOURS.to(values))
        pictures: Tensor = values.sigmoid()
        return pictures


def _check_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)):
        size = (size, size)
    if len(size) != 2:
        raise ValueError(f"size has {len(size)} numbers; expected height and width, or one number for both")
    height, width = (check_whole("size", side, 8, 4096) for side in size)
    return height, width


def _input_sides(reader: Reader) -> tuple[int, int]:
    """Height and width of the model's input after preprocessing."""
    with OwnGenerators():
        if reader.channels in (1, 3):
            prepared = next(iter(reader.read(Image.new("RGB", (_PROBE, _PROBE)), 0)))[1]
            return prepared.shape[-2], prepared.shape[-1]
    return _PROBE, _PROBE
