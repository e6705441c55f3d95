"""The kernels themselves: what a convolution looks for, in pixels and in frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.checks import check_indices, check_number, check_tensor, check_whole
from nbviz.core.errors import line, shown
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model
from nbviz.core.trace import find_module, submodule
from nbviz.core.weights import steady

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def convolutions(model: nn.Module) -> dict[str, nn.modules.conv._ConvNd]:
    """The convolutions of a model by name, in the order of the model.

    Examples
    --------
    >>> list(convolutions(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))))
    ['0', '2']
    """
    return {name: one for name, one in check_model(model).named_modules() if isinstance(one, _CONVOLUTIONS)}


def _convolution(model: nn.Module, layer: str | None) -> tuple[str, nn.modules.conv._ConvNd]:
    every = convolutions(model)
    if not every:
        raise ValueError(f"{type(model).__name__} has no convolution (Conv1d, Conv2d, Conv3d); expected one that has")
    if layer is None or (isinstance(layer, str) and not layer and "" in every):  # a model that is a convolution itself
        return next(iter(every.items()))
    name = find_module(check_model(model), layer)[0]
    module = submodule(check_model(model), name)
    if not isinstance(module, _CONVOLUTIONS):
        near = ", ".join(list(every)[:12])
        raise ValueError(f"layer {shown(layer)} is no convolution and has no kernels. Accepted: {near}")
    return name, module


@steady
def kernels(model: nn.Module, layer: str | None = None, channels: Sequence[int] | int | None = None) -> Tensor:
    """The kernels of a convolution.

    Those of a first layer can be seen as small pictures: bring them to bytes with
    :func:`nbviz.imaging.pixels.centre`, zero in grey, or all into one picture with :func:`nbviz.grid`. Of those
    further up, each channel of each kernel is a picture, ``kernels(model, layer, channel)[0]``.

    Parameters
    ----------
    layer
        The name of a Conv1d, Conv2d or Conv3d (or a transposed one); None takes the first.
    channels
        Which of the layer's output channels; None takes all.

    Returns
    -------
    Tensor
        (K, I, h, w), for signals (K, I, l), for volumes (K, I, d, h, w): for each output channel the I input
        channels that it looks at (in a grouped convolution those of its group). A copy, in the model's dtype, on its
        device; what a parametrisation gives, where there is one.

    Raises
    ------
    ValueError
        For an unknown layer, one that is no convolution, or a channel out of range.
    TypeError
        For channels that are no whole numbers, or a scripted model.

    Examples
    --------
    >>> import nbviz
    >>> kernels(nbviz.bundled.load("fashion"), "features.2", [3, 7]).shape
    torch.Size([2, 32, 3, 3])
    >>> nbviz.grid(kernels(nbviz.bundled.load("fashion")), nrow=8, padding=1).shape
    torch.Size([3, 17, 33])
    """
    weight = _weight(model, _convolution(model, layer)[0])
    chosen = range(len(weight)) if channels is None else check_indices("channel", channels, len(weight))
    return weight[list(chosen)]


def _weight(model: nn.Module, name: str) -> Tensor:
    """The kernels (O, I, ...) of one of the model's convolutions, a copy."""

    def of(shadow: nn.Module) -> tuple[Any, Tensor]:  # a parametrisation may note something when it is asked
        module: Any = submodule(shadow, name) if name else shadow
        with torch.no_grad():
            return module, check_tensor("the convolution's weight", module.weight, "(O, I, h, w)").detach().clone()

    module, weight = in_shadow(check_model(model), of)
    if module.transposed:  # (inputs, outputs / groups, ...)
        weight = torch.cat([part.transpose(0, 1) for part in weight.chunk(module.groups)])
    return weight


def frequency_response(kernels: Tensor, size: int = 32) -> Tensor:
    """How strongly each kernel answers to each frequency: the absolute value of its Fourier transform.

    Parameters
    ----------
    kernels
        (K, I, h, w), as from :func:`kernels`.
    size
        How many frequencies along each side: no fewer than the kernel's pixels, 1,024 at most (of volumes 101).

    Returns
    -------
    Tensor
        (K, size, size), float32, the root of the mean square over the input channels; frequency zero is in the middle
        (row and column size // 2), the highest, half a cycle for each pixel, at the border. For signals (K, size).

    Examples
    --------
    An average lets through what is even, a difference what changes:

    >>> both = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
    >>> frequency_response(both, 4)
    tensor([[0.0000, 1.4142, 2.0000, 1.4142],
            [2.0000, 1.4142, 0.0000, 1.4142]])
    """
    check_tensor("kernels", kernels, "(K, I, h, w), as nbviz.kernels gives")
    if kernels.ndim not in (3, 4, 5) or 0 in kernels.shape or not kernels.is_floating_point():
        what = f"{kernels.dtype} {tuple(kernels.shape)}"
        raise ValueError(f"kernels is {what}; expected real (K, I, h, w), none of them empty, as nbviz.kernels gives")
    axes = tuple(range(2, kernels.ndim))
    size = check_whole("size", size, max(kernels.shape[2:]), max(_MOST[len(axes)], *kernels.shape[2:]))
    sizes, at_once = [size] * len(axes), max(1, _AT_ONCE // (kernels.shape[1] * size ** len(axes)))
    pieces = [
        torch.fft.fftn(part, sizes, axes).abs().square().mean(1).sqrt()
        for part in kernels.detach().float().split(at_once)
    ]
    response: Tensor = torch.fft.fftshift(torch.cat(pieces), tuple(axis - 1 for axis in axes))
    return response


_MOST = {1: 1024, 2: 1024, 3: 101}  # frequencies along each side
_AT_ONCE = 2**24  # frequencies of all kernels in one go


@dataclass(frozen=True, repr=False)
class KernelReportResult:
    """What is wrong with the kernels of a layer; shows as a table.

    Parameters
    ----------
    layer
        Its name.
    norms
        float32 (K,): the root of the sum of squares of each kernel.
    dead
        Channels whose norm is below a hundredth of the median of those that are not zero.
    duplicates
        (channel, channel, cosine): kernels that are alike, or each other's negative (cosine near -1), of those that
        are not dead; none for the kernels of one pixel and one channel.
    aliased
        float32 (K,): the share of each kernel's energy at frequencies that the layer's stride cannot carry, above
        1 / (2 * stride) cycles for each pixel along a side: these come out as lower ones. Zero with stride 1.
    rough
        float32 (K,): the share of its energy in the upper half of the frequencies along a side, above a quarter of a
        cycle for each pixel.
    stride
        Of the layer.
    """

    layer: str
    norms: Tensor
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int, float], ...]
    aliased: Tensor
    rough: Tensor
    stride: tuple[int, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What a table says of it."""
        pairs = ", ".join(f"{i} and {j} ({cosine:+.3f})" for i, j, cosine in self.duplicates[:8])
        more = f", … ({len(self.duplicates)} pairs)" if len(self.duplicates) > 8 else ""
        worst = self.aliased.argsort(descending=True)[:5].tolist()
        worst_aliased = ", ".join(f"{i} ({float(self.aliased[i]):.2f})" for i in worst)
        rough = self.rough.argsort(descending=True)[:5].tolist()
        return [
            ("kernels", f"{len(self.norms)}, stride {'×'.join(map(str, self.stride))}"),
            ("dead (almost zero)", ", ".join(map(str, self.dead)) or "none"),
            ("alike", pairs + more or "none"),
            (
                "energy that the stride aliases",
                f"{float(self.aliased.mean()):.2f} on average; most: {worst_aliased}"
                if max(self.stride) > 1
                else "none (stride 1)",
            ),
            ("roughest", ", ".join(f"{i} ({float(self.rough[i]):.2f})" for i in rough)),
        ]

    def __repr__(self) -> str:
        return "\n".join(
            [f"KernelReportResult of {line(self.layer)}", *(f"  {name}: {said}" for name, said in self.rows())]
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>" for name, said in self.rows())
        return f"<table><caption>Kernels of {escape(line(self.layer))}</caption>{rows}</table>"


@steady
def kernel_report(model: nn.Module, layer: str | None = None, alike: float = 0.98) -> KernelReportResult:
    """Dead, duplicate and aliasing kernels of a layer, which is what Zeiler and Fergus looked for in AlexNet's first.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.1: dead
    features, and aliasing by the stride of 4, made them use smaller kernels and a stride of 2.

    Parameters
    ----------
    layer
        The name of a convolution; None takes the first.
    alike
        From which absolute cosine on two kernels are called alike, 0 to 1.

    Returns
    -------
    KernelReportResult
        ``norms``, ``dead``, ``duplicates``, ``aliased`` and ``rough``; shows as a table.

    Examples
    --------
    >>> net = nn.Conv2d(1, 3, 2, stride=2)
    >>> net.weight.data = torch.tensor([[[[1.0, -1], [0, 0]]], [[[2.0, -2], [0, 0]]], [[[0.0, 0], [0, 0]]]])
    >>> report = kernel_report(nn.Sequential(net))
    >>> report.dead, report.duplicates
    ((2,), ((0, 1, 1.0),))
    """
    name, module = _convolution(model, layer)
    alike = check_number("alike", alike, 0, 1)
    weight = torch.nan_to_num(_weight(model, name).float().cpu()).double()
    flat = weight.flatten(1)
    norms = flat.norm(dim=1)
    living = norms > 0.01 * norms[norms > 0].median() if bool((norms > 0).any()) else norms > 0
    cosines = torch.nn.functional.normalize(flat, dim=1)
    cosines = (cosines @ cosines.T).round(decimals=6)
    found = (cosines.abs() >= alike) & (living[:, None] & living).triu(1)
    pairs = found.nonzero().tolist() if flat.shape[1] > 1 else []
    pairs.sort(key=lambda pair: (-abs(float(cosines[tuple(pair)])), pair))
    stride = tuple(1 for _ in module.stride) if module.transposed else tuple(module.stride)
    return KernelReportResult(
        name,
        norms.float(),
        tuple((~living).nonzero().flatten().tolist()),
        tuple((i, j, float(cosines[i, j])) for i, j in pairs),
        _above(weight, [0.5 / step for step in stride]),
        _above(weight, [0.25] * len(stride)),
        stride,
    )


def _above(kernels: Tensor, limits: Sequence[float]) -> Tensor:
    """The share of each kernel's energy at frequencies above a limit along any side.

    That is one less the share that a low-pass along all sides leaves, for which no kernel need be transformed.
    """
    passed = kernels
    for side, limit in zip(kernels.shape[2:], limits, strict=True):
        low_pass = torch.eye(side, dtype=kernels.dtype)
        if limit < 0.5:
            size = max(_FREQUENCIES, side)
            frequencies = torch.arange(size, dtype=kernels.dtype).sub(size // 2) / size
            pixels = torch.arange(side, dtype=kernels.dtype)
            apart = pixels[:, None, None] - pixels[:, None]
            low_pass = (2 * torch.pi * apart * frequencies[frequencies.abs() <= limit]).cos().sum(2) / size
        passed = torch.tensordot(passed, low_pass, ([2], [0]))  # which puts this side last, and so all in turn
    total = kernels.square().flatten(1).sum(1)
    return ((total - (passed * kernels).flatten(1).sum(1)) / total.clamp(min=1e-30)).clamp(0, 1).float()


_FREQUENCIES = 64  # along each side


def check_kernels_layer(model: nn.Module, layer: Any) -> str:
    """The name of the convolution, checked."""
    return _convolution(model, layer)[0]
