"""How much each input pixel contributes to a class score: the usual baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.backward import pull
from nbviz.core.checks import check_number, check_tensor, check_whole
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import warn
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.subject import Subject, as_method
from nbviz.pictures.noise import noisy

#: From a function that gives the i-th point (N, C, H, W), and a weight for each point, to the weighted sum over the
#: points of the gradients of the class scores.
GradientSum = Callable[[Callable[[int], Tensor], Sequence[float]], Tensor]
#: From inputs (N, C, H, W) to the scores (N,) of their classes.
Score = Callable[[Tensor], Tensor]
_STEPS, _COMPLETE = (32, 64, 128, 256, 512), 0.01  # how near the sum must come to the change of the score
_AT_ONCE = 16  # inputs in one pass


def _attributions(
    subject: Subject,
    target: Any,
    attribute: Callable[[Subject, GradientSum, Score], Tensor],
    pictures_at_once: int | None = None,
) -> Tensor:
    """The attributions of all pictures, computed in parts. The class is that of the original picture."""

    def work(part: Subject) -> Tensor:
        selector = part.selector(target, part.answer())

        def gradient_sum(point: Callable[[int], Tensor], weights: Sequence[float]) -> Tensor:
            def gradients(indices: Sequence[int]) -> Tensor:
                points = part.with_inputs(torch.cat([point(i) for i in indices]))
                trace = points.run(output=True, grad=True)
                signal = selector.repeat(len(indices), 1)[None]
                gradient = pull("gradient", points.scores(trace.output), signal, trace.inputs)[0][0]
                factors = gradient.new_tensor([weights[i] for i in indices]).view(-1, *[1] * gradient.ndim)
                return (factors * gradient.view(len(indices), *part.inputs.shape)).sum(0)

            at_once = max(1, _AT_ONCE // len(part)) if subject.apart else 1
            return torch.stack(in_chunks(gradients, range(len(weights)), at_once, "one picture")).sum(0)

        return attribute(part, gradient_sum, lambda inputs: (part.with_inputs(inputs).answer() * selector).sum(1))

    return subject.in_parts(work, pictures_at_once)


@as_method()
def input_x_gradient(
    model: nn.Module,
    images: Images,
    target: Target | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """The input times the gradient of the class score: what each pixel would add if the network were linear.

    A. Shrikumar et al., "Not Just a Black Box", 2016.

    Returns
    -------
    Tensor
        (N, C, H, W), in units of the score, signed, in the model's dtype and on its device.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> input_x_gradient(net, torch.tensor([[[[3.0, 5.0]]]]), 0).flatten().tolist()
    [6.0, -5.0]
    """
    subject = Subject.of(model, images, **options)
    return _attributions(
        subject, target, lambda part, gradient_sum, _: part.inputs * gradient_sum(lambda _: part.inputs, [1.0])
    )


@as_method()
def smooth_grad(
    model: nn.Module,
    images: Images,
    target: Target | None = None,
    *,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """SmoothGrad: the gradient of the class score, averaged over noisy copies of the picture.

    D. Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.

    Returns
    -------
    Tensor
        (N, C, H, W), signed, in the model's dtype and on its device.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> smooth_grad(net, torch.tensor([[[[3.0, 5.0]]]]), 0, samples=4).flatten().tolist()
    [2.0, -1.0]
    """
    samples, noise = check_whole("samples", samples, 1), check_number("noise", noise, 0, 10)
    seed = check_whole("seed", seed, 0, 2**63 - 1)

    def attribute(part: Subject, gradient_sum: GradientSum, _: Score) -> Tensor:
        copies = noisy(part.inputs, samples, noise, seed, part.numbers)
        return gradient_sum(copies.__getitem__, [1 / samples] * samples)

    return _attributions(Subject.of(model, images, **options), target, attribute)


@as_method()
def integrated_gradients(
    model: nn.Module,
    images: Images,
    target: Target | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Integrated gradients: the change of the score from a baseline to the picture, distributed over the pixels.

    M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017: (x - x') times the
    integral of the gradient along the straight line from x' to x (equation 1), by Gauss-Legendre quadrature. With
    enough steps, the attributions sum to the change of the score (completeness, proposition 1).

    Parameters
    ----------
    baseline
        The input x' to start from: a number, or a tensor that broadcasts to (N, C, H, W), in units of the model's
        input. Zero is the mean colour where the preprocessing normalises.
    steps
        How many gradients, each of which costs a forward and a backward pass. None starts with 32 and doubles them, to
        at most 512, until the attributions sum to the change of the score to within 1 %.

    Returns
    -------
    Tensor
        (N, C, H, W), in units of the score, signed, in the model's dtype and on its device.

    Raises
    ------
    ValueError
        When ``baseline`` does not broadcast to the model's input, or is not finite.

    Warns
    -----
    UserWarning
        When the attributions of a picture do not sum to the change of the score to within 1 %: after 512 steps, or
        after ``steps``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[2.0, -1.0]])
    >>> integrated_gradients(net, torch.tensor([[[[3.0, 5.0]]]]), 0).flatten().round(decimals=4).tolist()
    [6.0, -5.0]
    """
    result, errors = integrated(model, images, target, baseline, steps, **options)
    if errors:
        worst = max(errors, key=errors.__getitem__)
        # Rounded up, since what is just beyond 1 % must not read as that.
        percent = math.ceil(1e4 * errors[worst]) / 100 if errors[worst] < 1e6 else math.inf
        more = f" (and of {len(errors) - 1} more by less)" if len(errors) > 1 else ""
        count = _STEPS[-1] if steps is None else steps
        warn(
            f"picture {worst}: after {count} steps the sum is {percent:.3g} % off the change of the score{more}: "
            "steps= takes more",
            UserWarning,
        )
    return result


def integrated(
    model: nn.Module, images: Images, target: Target | None, baseline: Any, steps: int | None, **options: Any
) -> tuple[Tensor, dict[int, float]]:
    """Integrated gradients, and by how much those of some pictures miss the change of the score, as a fraction of it.

    Only the pictures that miss it by more than 1 % are in the dict.
    """
    steps = None if steps is None else check_whole("steps", steps, 1, 10_000)
    start = _check_baseline(baseline)
    subject = Subject.of(model, images, **options)
    start = start.to(subject.inputs)
    try:
        start = start.expand_as(subject.inputs)
    except RuntimeError:
        shapes = f"{tuple(start.shape)}; expected one that broadcasts to {tuple(subject.inputs.shape)}"
        raise ValueError(f"baseline has shape {shapes}") from None

    errors: dict[int, float] = {}
    tolerance = max(_COMPLETE, 4 * torch.finfo(subject.inputs.dtype).eps)

    def attribute(part: Subject, gradient_sum: GradientSum, score: Score) -> Tensor:
        x, x0 = part.inputs, start[part.start : part.start + len(part)]
        change = score(x) - score(x0)
        for count in _STEPS if steps is None else (steps,):
            attributions = _integrated(gradient_sum, x0, x, count)
            error = ((attributions.flatten(1).sum(1) - change).abs() / change.abs()).tolist()
            missed = {i: value for i, value in zip(part.numbers, error, strict=True) if value > tolerance}
            if not missed:
                break
        errors.update(missed)
        return attributions

    # One by one, since each picture takes as many steps as it needs.
    return _attributions(subject, target, attribute, pictures_at_once=1 if steps is None else None), errors


def _check_baseline(baseline: Any) -> Tensor:
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


def _integrated(gradient_sum: GradientSum, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """The difference times the mean gradient along the line from start to end, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    change = end - start
    return change * gradient_sum(lambda i: start + float(nodes[i] + 1) / 2 * change, (weights / 2).tolist())
