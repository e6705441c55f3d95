"""The kernels of a convolution: what they look for, in pixels and in frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.calls import find_module, submodule
from nbviz.core.checks import check_indices, check_number, check_tensor, check_whole
from nbviz.core.documented import documented
from nbviz.core.errors import line, shown
from nbviz.core.shadow import in_shadow
from nbviz.core.state import check_model
from nbviz.core.types import Channels
from nbviz.core.weights import steady
from nbviz.imaging.charts import STYLE

_Convolution = nn.modules.conv._ConvNd


def convolutions(model: nn.Module) -> dict[str, _Convolution]:
    """The convolutions of a model by name, in the order of the model.

    Examples
    --------
    >>> list(convolutions(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))))
    ['0', '2']
    """
    modules = check_model(model).named_modules()
    return {name: module for name, module in modules if isinstance(module, _Convolution)}


def check_kernels_layer(model: nn.Module, layer: Any) -> str:
    """The name of a convolution, by default the first."""
    found = convolutions(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution (Conv1d, Conv2d, Conv3d); expected one that has")
    if layer is None or (isinstance(layer, str) and not layer and "" in found):  # a model that is a convolution itself
        return next(iter(found))
    name = find_module(check_model(model), layer)[0]
    if not isinstance(submodule(check_model(model), name), _Convolution):
        accepted = ", ".join(list(found)[:12])
        raise ValueError(f"layer {shown(layer)} is not a convolution and has no kernels. Accepted: {accepted}")
    return name


@documented
@steady
def kernels(model: nn.Module, layer: str | None = None, channels: Channels | None = None) -> Tensor:
    """The kernels of a convolution.

    Those of a first layer can be shown as small pictures: :func:`nbviz.imaging.pixels.centre` converts them to bytes
    with zero as grey, up to a scale such as ``kernels.abs().amax()``, and :func:`nbviz.grid` arranges them in one
    picture. In later layers, each channel of each kernel is a picture, ``kernels(model, layer, channel)[0]``.

    Parameters
    ----------
    layer
        The name of a Conv1d, Conv2d or Conv3d (or a transposed one); None takes the first convolution.
    channels
        Which output channels of the layer; None takes all.

    Returns
    -------
    Tensor
        (K, I, h, w), for signals (K, I, l), for volumes (K, I, d, h, w): for each output channel its I input channels
        (in a grouped convolution those of its group). A copy, in the model's dtype and on its device; of a parametrised
        weight, the resulting values.

    Raises
    ------
    ValueError
        When ``layer`` is not a convolution.
    TypeError
        When ``channels`` are not whole numbers.

    Examples
    --------
    >>> import nbviz
    >>> kernels(nbviz.bundled.load("fashion"), "features.2", [3, 7]).shape
    torch.Size([2, 32, 3, 3])
    >>> nbviz.grid(kernels(nbviz.bundled.load("fashion")), nrow=8, padding=1).shape
    torch.Size([3, 17, 33])
    """
    _, weight = _read(model, check_kernels_layer(model, layer))
    chosen = range(len(weight)) if channels is None else check_indices("channel", channels, len(weight))
    return weight[list(chosen)]


def _read(model: nn.Module, name: str) -> tuple[Any, Tensor]:
    """A convolution, and a copy of its kernels (O, I, ...)."""

    def read(shadow: nn.Module) -> tuple[Any, Tensor]:  # in the shadow, since a parametrisation may change its module
        module: Any = submodule(shadow, name) if name else shadow
        with torch.no_grad():
            return module, check_tensor("the convolution's weight", module.weight, "(O, I, h, w)").detach().clone()

    module, weight = in_shadow(check_model(model), read)
    if module.transposed:  # (inputs, outputs / groups, ...)
        weight = torch.cat([part.transpose(0, 1) for part in weight.chunk(module.groups)])
    return module, weight


@documented
def frequency_response(kernels: Tensor, size: int = 32) -> Tensor:
    """How strongly each kernel responds to each frequency: the absolute value of its Fourier transform.

    Parameters
    ----------
    kernels
        (K, I, h, w), from :func:`nbviz.kernels`.
    size
        How many frequencies along each side: at least the kernel's pixels, at most 1,024 (101 for volumes).

    Returns
    -------
    Tensor
        (K, size, size), float32, the root mean square over the input channels. Frequency zero is in the middle (row and
        column size // 2), the highest, half a cycle per pixel, at the border. For signals (K, size).

    Raises
    ------
    ValueError
        When ``kernels`` does not have this shape, or is empty. When ``size`` is out of range.
    TypeError
        When ``kernels`` is not a tensor.

    Examples
    --------
    An average passes constant values, a difference passes changes:

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
_AT_ONCE = 2**24  # frequencies of all kernels in one transform


@dataclass(frozen=True, repr=False)
class KernelReportResult:
    """What is wrong with the kernels of a layer; shows as a table.

    Parameters
    ----------
    layer
        The name of the layer.
    norms
        float32 (K,): the L2 norm of each kernel.
    dead
        Channels whose norm is below a hundredth of the median of the nonzero norms.
    duplicates
        (channel, channel, cosine): pairs of living kernels that are similar, or negatives of each other (cosine near
        -1). None for kernels with one pixel and one channel.
    aliased
        float32 (K,): the fraction of each kernel's energy at frequencies that the layer's stride aliases, above
        1 / (2 * stride) cycles per pixel along a side. Zero with stride 1.
    rough
        float32 (K,): the fraction of its energy in the upper half of the frequencies along a side, above a quarter of a
        cycle per pixel.
    stride
        The stride of the layer.
    """

    layer: str
    norms: Tensor
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int, float], ...]
    aliased: Tensor
    rough: Tensor
    stride: tuple[int, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The rows of its table."""
        pairs = ", ".join(f"{i} and {j} ({cosine:+.3f})" for i, j, cosine in self.duplicates[:8])
        more = f", … ({len(self.duplicates)} pairs)" if len(self.duplicates) > 8 else ""
        aliased = "none (stride 1)"
        if max(self.stride) > 1:
            aliased = f"{float(self.aliased.mean()):.2f} on average; most: {_largest(self.aliased)}"
        return [
            ("kernels", f"{len(self.norms)}, stride {'×'.join(map(str, self.stride))}"),
            ("dead (almost zero)", ", ".join(map(str, self.dead)) or "none"),
            ("alike", pairs + more or "none"),
            ("energy that the stride aliases", aliased),
            ("roughest", _largest(self.rough)),
        ]

    def __repr__(self) -> str:
        rows = [f"  {name}: {text}" for name, text in self.rows()]
        return "\n".join([f"KernelReportResult of {line(self.layer)}", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.rows())
        table = f"<table><caption>Kernels of {escape(line(self.layer))}</caption>{rows}</table>"
        return f'{STYLE}<div class="nbviz-table">{table}</div>'


def _largest(values: Tensor) -> str:
    """The five channels with the largest values."""
    return ", ".join(f"{i} ({float(values[i]):.2f})" for i in values.argsort(descending=True)[:5].tolist())


@documented
@steady
def kernel_report(model: nn.Module, layer: str | None = None, alike: float = 0.98) -> KernelReportResult:
    """Dead, duplicate and aliasing kernels of a layer, which Zeiler and Fergus looked for in AlexNet's first layer.

    M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.1: dead
    features, and aliasing by the stride of 4, made them use smaller kernels and a stride of 2.

    Parameters
    ----------
    layer
        The name of a convolution; None takes the first.
    alike
        The absolute cosine, from 0 to 1, from which two kernels count as duplicates.

    Returns
    -------
    KernelReportResult
        ``norms``, ``dead``, ``duplicates``, ``aliased`` and ``rough``; shows as a table.

    Raises
    ------
    ValueError
        When ``layer`` is not a convolution. When ``alike`` is out of range.

    Examples
    --------
    >>> net = nn.Conv2d(1, 3, 2, stride=2)
    >>> net.weight.data = torch.tensor([[[[1.0, -1], [0, 0]]], [[[2.0, -2], [0, 0]]], [[[0.0, 0], [0, 0]]]])
    >>> report = kernel_report(nn.Sequential(net))
    >>> report.dead, report.duplicates
    ((2,), ((0, 1, 1.0),))
    """
    name, alike = check_kernels_layer(model, layer), check_number("alike", alike, 0, 1)
    module, weight = _read(model, name)
    weight = torch.nan_to_num(weight.float().cpu()).double()
    flat = weight.flatten(1)
    norms = flat.norm(dim=1)
    living = norms > 0.01 * norms[norms > 0].median() if bool((norms > 0).any()) else norms > 0
    cosines = torch.nn.functional.normalize(flat, dim=1)
    cosines = (cosines @ cosines.T).round(decimals=6)
    similar = (cosines.abs() >= alike) & (living[:, None] & living).triu(1)
    stride = tuple(1 for _ in module.stride) if module.transposed else tuple(module.stride)
    return KernelReportResult(
        name,
        norms.float(),
        tuple((~living).nonzero().flatten().tolist()),
        strongest_first(cosines, similar) if flat.shape[1] > 1 else (),
        _energy_above(weight, [0.5 / step for step in stride]),
        _energy_above(weight, [0.25] * len(stride)),
        stride,
    )


def strongest_first(values: Tensor, chosen: Tensor) -> tuple[tuple[int, int, float], ...]:
    """(row, column, value) of the chosen entries of a matrix, by decreasing absolute value."""
    entries = [(i, j, float(values[i, j])) for i, j in chosen.nonzero().tolist()]
    return tuple(sorted(entries, key=lambda entry: -abs(entry[2])))


def _energy_above(kernels: Tensor, limits: Sequence[float]) -> Tensor:
    """The fraction of each kernel's energy at frequencies above a limit along any side.

    It is one minus the fraction that a low-pass filter along all sides leaves, which takes no Fourier transform.
    """
    passed = kernels
    for side, limit in zip(kernels.shape[2:], limits, strict=True):
        low_pass = torch.eye(side, dtype=kernels.dtype)
        if limit < 0.5:
            size = max(_FREQUENCIES, side)
            frequencies = torch.arange(size, dtype=kernels.dtype).sub(size // 2) / size
            pixels = torch.arange(side, dtype=kernels.dtype)
            offsets = pixels[:, None, None] - pixels[:, None]
            low_pass = (2 * torch.pi * offsets * frequencies[frequencies.abs() <= limit]).cos().sum(2) / size
        passed = torch.tensordot(passed, low_pass, ([2], [0]))  # moves this side to the end, so that the next follows
    total = kernels.square().flatten(1).sum(1)
    return ((total - (passed * kernels).flatten(1).sum(1)) / total.clamp(min=1e-30)).clamp(0, 1).float()


_FREQUENCIES = 64  # along each side
