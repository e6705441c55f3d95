"""How much each pixel of the input counts for a class: the usual baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbviz.core.backward import pull
from nbviz.core.checks import check_number, check_tensor, check_whole
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import warn
from nbviz.core.weights import steady
from nbviz.methods.subject import Subject
from nbviz.pictures.noise import noisy

#: From what gives each of some points (N, C, H, W), and a weight for each, to the weighted sum of the gradients of the
#: classes' scores at them.
Summed = Callable[[Callable[[int], Tensor], Sequence[float]], Tensor]
#: From inputs (N, C, H, W) to the scores (N,) of their classes.
Score = Callable[[Tensor], Tensor]
_STEPS, _COMPLETE = (32, 64, 128, 256, 512), 0.01  # how near the sum must come to the change of the score
_AT_ONCE = 16  # pictures in one pass, where there are several points for each


def _over(
    subject: Subject,
    target: Any,
    attribute: Callable[[Subject, Summed, Score], Tensor],
    one_by_one: bool = False,
) -> Tensor:
    """Attributions of all pictures, some at a time; the class is that of the picture as it is."""
    apart = subject.apart

    def work(part: Subject) -> Tensor:
        selector = part.selector(target, part.answer())

        def summed(point: Callable[[int], Tensor], weights: Sequence[float]) -> Tensor:
            def gradients(numbers: Sequence[int]) -> Tensor:
                points = part.at(torch.cat([point(i) for i in numbers]))
                trace = points.run(output=True, grad=True)
                wanted = selector.repeat(len(numbers), 1)[None]
                found = pull("gradient", points.scores(trace.output), wanted, trace.inputs)[0][0]
                own = found.new_tensor([weights[i] for i in numbers]).view(-1, *[1] * found.ndim)
                return (own * found.view(len(numbers), *part.inputs.shape)).sum(0)

            at_once = max(1, _AT_ONCE // len(part)) if apart else 1
            pieces = in_chunks(gradients, range(len(weights)), at_once, "one picture")
            return torch.stack(pieces).sum(0)

        return attribute(part, summed, lambda inputs: (part.at(inputs).answer() * selector).sum(1))

    return subject.each(work, 1 if one_by_one and apart else None)


def _broadcasts(start: Tensor, pictures: Tensor) -> bool:
    sizes = zip(reversed(start.shape), reversed(pictures.shape), strict=False)
    return start.ndim <= pictures.ndim and all(one in (1, other) for one, other in sizes)


@steady
def input_x_gradient(
    model: nn.Module,
    images: Any,
    target: Sequence[int] | int | None = None,
    *,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """The input times the gradient of the class's score: what each pixel adds, were the network linear.

    A. Shrikumar et al., "Not Just a Black Box", 2016.

    Parameters
    ----------
    model, images, target, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    Tensor
        (N, C, H, W), in units of the score, signed, in the model's dtype and on its device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> input_x_gradient(net, torch.tensor([[[[3.0, 5.0]]]]), 0).flatten().tolist()
    [6.0, -5.0]
    """
    subject = Subject.of(model, images, preprocess, inputs, output)
    return _over(subject, target, lambda part, summed, _: part.inputs * summed(lambda _: part.inputs, [1.0]))


@steady
def smooth_grad(
    model: nn.Module,
    images: Any,
    target: Sequence[int] | int | None = None,
    *,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """SmoothGrad: the gradient of the class's score, averaged over noisy copies of the picture.

    D. Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.

    Parameters
    ----------
    model, images, target, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.
    samples
        How many noisy copies.
    noise
        The standard deviation of the noise, as a share of the range of the picture's values.
    seed
        Of the noise; the person's random numbers are left alone.

    Returns
    -------
    Tensor
        (N, C, H, W), signed, in the model's dtype and on its device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> smooth_grad(net, torch.tensor([[[[3.0, 5.0]]]]), 0, samples=4).flatten().tolist()
    [2.0, -1.0]
    """
    samples, noise = check_whole("samples", samples, 1), check_number("noise", noise, 0, 10)
    seed = check_whole("seed", seed, 0, 2**63 - 1)

    def attribute(part: Subject, summed: Summed, _: Score) -> Tensor:
        return summed(noisy(part.inputs, samples, noise, seed, part.numbers).__getitem__, [1 / samples] * samples)

    return _over(Subject.of(model, images, preprocess, inputs, output), target, attribute)


@steady
def integrated_gradients(
    model: nn.Module,
    images: Any,
    target: Sequence[int] | int | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> Tensor:
    """Integrated gradients: the score's change from a baseline to the picture, shared out over the pixels.

    M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017: (x - x') times the
    integral of the gradient along the straight line from x' to x (equation 1), by Gauss and Legendre's rule. What the
    pixels are given sums to the change of the score (completeness, proposition 1), as far as the steps suffice.

    Parameters
    ----------
    model, images, target, preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.
    baseline
        The input x' to start from: a number, or a tensor that broadcasts to (N, C, H, W), in units of the model's
        input. Zero is the mean colour where the preprocessing normalises.
    steps
        How many gradients, each of which costs a forward and a backward pass. None doubles 32 until what the pixels are
        given sums to the change of the score to 1 %, 512 at most.

    Returns
    -------
    Tensor
        (N, C, H, W), in units of the score, signed, in the model's dtype and on its device.

    Raises
    ------
    ValueError, TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Warns
    -----
    UserWarning
        When 512 steps did not suffice.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> integrated_gradients(net, torch.tensor([[[[3.0, 5.0]]]]), 0).flatten().round(decimals=4).tolist()
    [6.0, -5.0]
    """
    steps = None if steps is None else check_whole("steps", steps, 1, 10_000)
    start = _start(baseline)
    subject = Subject.of(model, images, preprocess, inputs, output)
    if not _broadcasts(start, subject.inputs):
        shapes = f"{tuple(start.shape)}; expected one that broadcasts to {tuple(subject.inputs.shape)}"
        raise ValueError(f"baseline has shape {shapes}")

    def attribute(part: Subject, summed: Summed, score: Score) -> Tensor:
        x = part.inputs
        own = start if start.ndim < x.ndim or len(start) == 1 else start[list(part.numbers)]
        whole = own.to(x).expand_as(x)
        away = x - whole
        if steps is not None:
            return away * _along(summed, whole, away, steps)
        change = score(x) - score(whole)
        for count in _STEPS:
            found = away * _along(summed, whole, away, count)
            off = (found.flatten(1).sum(1) - change).abs() / change.abs()
            if not bool((off > max(_COMPLETE, 4 * torch.finfo(x.dtype).eps)).any()):
                return found
        share = 100 * float(off.nan_to_num(0, torch.inf).max())
        warn(
            f"after {_STEPS[-1]} steps the sum is {share:.0f} % off the change of the score: steps= takes more",
            UserWarning,
        )
        return found

    # Each picture by itself: it takes as many steps as it needs.
    return _over(subject, target, attribute, one_by_one=steps is None)


def _start(baseline: Any) -> Tensor:
    if isinstance(baseline, Real):
        return torch.tensor(check_number("baseline", baseline, -1e6, 1e6), dtype=torch.float32)
    start = check_tensor(
        "baseline", baseline, "that broadcasts to the model's input (N, C, H, W), or a number"
    ).detach()
    if start.is_complex():
        raise TypeError(f"baseline has {start.dtype} values; expected real ones")
    if not bool(start.isfinite().all()):
        raise ValueError("baseline has values that are not finite (NaN or infinity); expected finite ones")
    return start


def _along(summed: Summed, start: Tensor, away: Tensor, steps: int) -> Tensor:
    """The mean gradient on the way from the start, by Gauss and Legendre's rule."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return summed(lambda i: start + float(places[i] + 1) / 2 * away, (weights / 2).tolist())
