"""Activation maximisation: a picture that a channel or a class answers to as strongly as possible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nbviz.core.arguments import check_channels, check_feed
from nbviz.core.backward import pull
from nbviz.core.checks import check_choice, check_indices, check_number, check_real, check_tensor, check_whole
from nbviz.core.errors import shown
from nbviz.core.generators import OwnGenerators
from nbviz.core.state import check_model
from nbviz.core.weights import Watch, WeightsChanged, steady
from nbviz.methods.subject import Subject
from nbviz.pictures.load import Pictures, Reader
from nbviz.pictures.warp import warp

#: What is made large: a channel's mean over its positions, or the position in the middle alone.
OBJECTIVES = ("channel", "neuron")


@dataclass(frozen=True)
class MaximiseResult:
    """Pictures that channels or classes answer to.

    Parameters
    ----------
    pictures
        float32 (K, C, H, W) in [0, 1], to be looked at.
    inputs
        The same as the model takes them.
    values
        (K,): what they raise the objective to.
    start
        (K,): what it was for the noise that they started from.
    channels
        Of which channels or classes.
    step
        After how many steps.
    """

    pictures: Tensor
    inputs: Tensor
    values: Tensor
    start: Tensor
    channels: tuple[int, ...]
    step: int


@steady
def maximise(
    model: nn.Module,
    layer: str | None = None,
    channels: Sequence[int] | int | None = None,
    target: Sequence[int] | int | None = None,
    *,
    objective: str = "channel",
    steps: int = 256,
    rate: float = 0.05,
    size: int | None = None,
    robust: bool = True,
    seed: int = 0,
    watch: Callable[[MaximiseResult], None] | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> MaximiseResult:
    """Pictures that raise a channel's or a class's value as far as they can, grown from noise by gradient ascent.

    C. Olah, A. Mordvintsev and L. Schubert, "Feature Visualization", Distill 2017, as in their library Lucid: the
    picture is kept as its Fourier transform, each frequency scaled by its wavelength, and in colours that are not
    correlated in photographs, so that all directions are equally easy; before each step it is shifted, scaled and
    turned a little, so that what remains does not hang on single pixels. Adam takes the steps.

    Where the layer's own rectifier is shut it passes a tenth of the signal, so that a channel that is silent in most of
    the picture wakes there too; where nothing at all comes through, the signal passes as in the deconvnet.

    Parameters
    ----------
    model
        Any PyTorch model that takes pictures; it is left as it was.
    layer
        A module's name (``"name:1"`` for its second call), or None for an output class.
    channels
        Which channels of the layer, each of which gets a picture; None takes the first eight.
    target
        With ``layer=None``: which classes.
    objective
        ``"channel"``, the mean over a channel's positions, or ``"neuron"``, the one in the middle.
    steps
        How many.
    rate
        Adam's.
    size
        Height and width of the pictures; None takes what the model's preprocessing makes of a picture.
    robust
        Shift, scale and turn before each step (not for one neuron, which what is moved would leave).
    seed
        Of the noise and of what is drawn for each step; the person's random numbers are left alone.
    watch
        Called with what has grown so far about twice a second.
    preprocess, inputs, output
        As in :func:`nbviz.reconstruct`; of the preprocessing, mean, std and size are used.

    Returns
    -------
    MaximiseResult
        ``pictures`` (K, C, H, W) in [0, 1], ``inputs``, ``values`` and ``start`` (K,).

    Raises
    ------
    ValueError
        For an unknown layer, a channel out of range, a model of signals or volumes, or target with a layer.
    TypeError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> import nbviz
    >>> found = maximise(nbviz.bundled.load("fashion"), target=[1, 9], steps=16)
    >>> found.pictures.shape, bool((found.values > found.start).all())
    (torch.Size([2, 1, 28, 28]), True)
    """
    if watch is not None and not callable(watch):
        raise TypeError(f"watch is {type(watch).__name__}; expected a callable that takes a MaximiseResult, or None")
    steps = check_whole("steps", steps, 1)
    growing = Growing(model, layer, channels, target, objective, rate, size, robust, seed, preprocess, inputs, output)
    told = time.monotonic()
    for _ in range(steps):
        growing.step()
        if watch is not None and time.monotonic() - told > _WATCH_SECONDS:
            watch(growing.found())
            told = time.monotonic()
    return growing.found()


_WATCH_SECONDS = 0.5
_FIRST = 8  # channels, where none are named
_PROBE = 224  # pixels of what the preprocessing is tried on


class Growing:
    """The pictures while they grow; the arguments are those of :func:`maximise`."""

    @torch.inference_mode(False)  # in which nothing could grow
    def __init__(
        self,
        model: nn.Module,
        layer: str | None,
        channels: Sequence[int] | int | None,
        target: Sequence[int] | int | None,
        objective: str = "channel",
        rate: float = 0.05,
        size: int | None = None,
        robust: bool = True,
        seed: int = 0,
        preprocess: Any = None,
        inputs: Any = None,
        output: Any = None,
    ) -> None:
        reader = Reader.of(model, preprocess)
        self.model, self.layer, feed = check_model(model), layer, check_feed(inputs)
        self._neuron = check_choice("objective", objective, OBJECTIVES) == "neuron"
        if not isinstance(robust, bool):
            raise TypeError(f"robust is {shown(robust)}; expected True or False")
        if reader.axes != 2:
            raise ValueError("the model takes signals or volumes; expected one that takes pictures (N, C, H, W)")
        if layer is not None and target is not None:
            raise ValueError("target is a class of the output and goes with layer=None; give channels for a layer")
        if layer is None and channels is not None:
            raise ValueError("channels belong to a layer; name the layer, or give target for an output class")
        if layer is None and target is None:
            raise ValueError("name a layer, or give target for output classes")
        # What is moved would leave the one position.
        self.robust, self.preprocess, self.steps = robust and not self._neuron, reader.preprocess, 0
        sides = _sides(reader) if size is None else (check_whole("size", size, 8, 4096),) * 2
        self._draw = torch.Generator().manual_seed(check_whole("seed", seed, 0, 2**63 - 1))
        probe = self.preprocess.redo(torch.full((1, reader.channels, *sides), 0.5, dtype=torch.float32)).to(
            reader.device, reader.dtype
        )
        check_tensor("the model's input", probe, "on a device that holds values")
        self._subject = Subject(self.model, Pictures(probe, self.preprocess, ()), feed, output)
        count = self._run(probe)[1].shape[1]
        given = channels if layer is not None else target
        what = "channel" if layer is not None else "class"
        self.channels = list(range(min(count, _FIRST))) if given is None else check_indices(what, given, count)
        if not self.channels:
            raise ValueError("channels is empty; expected at least one")
        self._dtype, self._device = reader.dtype, reader.device
        self._basis = Basis((len(self.channels), reader.channels, *sides), self._draw, reader.device)
        self._adam = torch.optim.Adam([self._basis.spectrum], check_number("rate", rate, 1e-6, 10))
        self._watch = Watch(self.model)
        self.start = self._values(self._inputs())

    @torch.inference_mode(False)
    def step(self) -> None:
        """One step up.

        Raises
        ------
        WeightsChanged
            When the model is another one than at the start.
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
        """The pictures as the model gets them, and which way is up."""
        with torch.enable_grad():
            pictures = self._basis.pictures()
            moved = self._moved(pictures) if self.robust else pictures
            inputs = self.preprocess.redo(moved).to(self._dtype)
        trace, activation = self._run(inputs.detach(), grad=True)
        seeds = torch.zeros_like(activation)[None]
        for i, channel in enumerate(self.channels):
            # The sum, not the mean: the same way, but for numbers so small that Adam or half precision would lose them.
            seeds[(0, i, channel, *self._places(activation))] = 1.0
        for node in _own_rectifiers(activation):
            node.register_hook(_ajar)
        gradient = pull("gradient", activation, seeds, trace.inputs)[0][0]
        shut = gradient.flatten(1).abs().amax(1) == 0
        if shut.any():
            opened = pull("deconvnet", activation, seeds, trace.inputs)[0][0]
            gradient = torch.where(shut.view(-1, 1, 1, 1), opened, gradient)
        return inputs, gradient

    @torch.inference_mode(False)
    def found(self) -> MaximiseResult:
        """What has grown so far."""
        with torch.no_grad():
            pictures, inputs = self._basis.pictures(), self._inputs()
        return MaximiseResult(pictures, inputs, self._values(inputs), self.start, tuple(self.channels), self.steps)

    def _inputs(self) -> Tensor:
        with torch.no_grad():
            return self.preprocess.redo(self._basis.pictures()).to(self._dtype)

    def _run(self, inputs: Tensor, grad: bool = False) -> tuple[Any, Tensor]:
        """The trace and what is made large of it, (N, C, ...)."""
        subject = self._subject.at(inputs)
        if self.layer is None:
            trace = subject.run(output=True, grad=grad)
            return trace, subject.scores(trace.output)
        trace = subject.run([self.layer], grad=grad)
        name = f"layer {shown(self.layer)}"
        return trace, check_real(check_channels(self.layer, trace.activations[self.layer], len(inputs)), name)

    def _places(self, activation: Tensor) -> list[Any]:
        """The position in the middle, or all."""
        return [side // 2 if self._neuron else slice(None) for side in activation.shape[2:]]

    def _values(self, inputs: Tensor) -> Tensor:
        activation = self._run(inputs)[1].detach()
        own = [activation[(i, channel, *self._places(activation))].mean() for i, channel in enumerate(self.channels)]
        return torch.stack(own)

    def _moved(self, pictures: Tensor) -> Tensor:
        """Shifted by up to a sixteenth of a side, scaled by up to a twentieth and turned by up to 8 degrees."""
        down, across, scale, angle = (2 * torch.rand(4, generator=self._draw, dtype=torch.float32) - 1).tolist()
        height, width = pictures.shape[-2:]
        shift = round(down * height / 16), round(across * width / 16)
        return warp(pictures, *shift, 1 + scale / 20, 8 * angle, padding="reflection")


_RECTIFIERS = ("Relu", "Threshold", "Hardtanh", "Clamp")  # nodes of the graph that can shut
_WEIGHTED = ("Convolution", "Addmm", "Mm", "Bmm")  # beyond which a rectifier is another layer's
_AJAR = 0.1


def _own_rectifiers(activation: Tensor) -> Iterator[Any]:
    """The nodes through which a layer's activation comes from its last convolutions or matrices."""
    seen, waiting = {None}, [activation.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node not in seen:
            seen.add(node)
            if node.name().startswith(_RECTIFIERS):
                yield node
            elif not node.name().startswith(_WEIGHTED):
                waiting.extend(below for below, _ in node.next_functions)


def _ajar(sent: tuple[Tensor | None, ...], received: tuple[Tensor, ...]) -> tuple[Tensor | None, ...] | None:
    """A rectifier's node passes some of what would raise it where it is shut."""
    if sent[0] is None or sent[0].shape != received[0].shape:  # not asked for; a clamp between tensors
        return None
    return torch.where(sent[0] == 0, _AJAR * received[0].clamp(min=0), sent[0]), *sent[1:]


class Basis:
    """Pictures in [0, 1] as their Fourier transform in decorrelated colours.

    Parameters
    ----------
    shape
        (K, C, H, W).
    draw
        Of the noise that they start from.
    device
        Where.

    Examples
    --------
    >>> Basis((1, 3, 6, 8), torch.Generator().manual_seed(0), torch.device("cpu")).pictures().shape
    torch.Size([1, 3, 6, 8])
    """

    # The root of the covariance of colours in ImageNet, as in Lucid, over the length of its longest column.
    _COLOURS = torch.tensor(
        [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype=torch.float32, device="cpu"
    )
    _COLOURS = _COLOURS / _COLOURS.norm(dim=0).max()

    def __init__(self, shape: tuple[int, ...], draw: torch.Generator, device: torch.device) -> None:
        height, width = self._sides = shape[-2:]
        y, x = torch.fft.fftfreq(height, dtype=torch.float32), torch.fft.rfftfreq(width, dtype=torch.float32)
        wavelength = 1 / (x[None].square() + y[:, None].square()).sqrt().clamp(min=1 / max(height, width))
        self._scale = (wavelength * math.sqrt(height * width)).to(device)
        noise = 0.01 * torch.randn(*shape[:2], *wavelength.shape, 2, generator=draw, dtype=torch.float32)
        self.spectrum = noise.to(device).requires_grad_()

    def pictures(self) -> Tensor:
        """(K, C, H, W)."""
        waves = torch.view_as_complex(self.spectrum) * self._scale
        values = torch.fft.irfft2(waves, s=self._sides) / 4
        if values.shape[1] == 3:
            values = torch.einsum("kchw,dc->kdhw", values, self._COLOURS.to(values))
        pictures: Tensor = values.sigmoid()
        return pictures


def _sides(reader: Reader) -> tuple[int, int]:
    """Height and width of what the preprocessing makes of a picture."""
    with OwnGenerators():
        if reader.channels in (1, 3):
            made = next(iter(reader.read(Image.new("RGB", (_PROBE, _PROBE)), 0)))[1]
            return made.shape[-2], made.shape[-1]
    return _PROBE, _PROBE
