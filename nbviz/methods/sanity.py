"""Whether a map can be believed: destroy the weights, delete the pixels, and see.

J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; V. Petsiuk, A. Das and K. Saenko, "RISE: Randomized
Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.checks import check_choice, check_tensor, check_whole
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.weights import steady
from nbviz.methods.attribution import input_x_gradient, integrated_gradients, smooth_grad
from nbviz.methods.cam import GRADIENT_CAMS
from nbviz.methods.deconvnet import deconvnet
from nbviz.methods.destroy import destroyed, layers_with_weights
from nbviz.methods.gradient import gradient
from nbviz.methods.guided_backprop import guided_backprop
from nbviz.methods.guided_grad_cam import guided_grad_cam
from nbviz.methods.occlusion import Variants
from nbviz.methods.subject import Subject
from nbviz.pictures.fill import FILLS, filling

Method = Callable[..., Tensor]
#: The methods that may be given by name: (model, images, target=) to a map for each picture.
METHODS: dict[str, Method] = {
    "gradient": gradient,
    "deconvnet": deconvnet,
    "guided_backprop": guided_backprop,
    "input_x_gradient": input_x_gradient,
    "smooth_grad": smooth_grad,
    "integrated_gradients": partial(integrated_gradients, steps=64),  # a destroyed network may need any number
    **{name: cam.function for name, cam in GRADIENT_CAMS.items()},
    "guided_grad_cam": guided_grad_cam,
}
_DOUBTFUL = 0.5  # the rank correlation from which on a map is said to hardly change


@dataclass(frozen=True, repr=False)
class RandomisationResult:
    """How alike a method's maps are before and after layers' weights were destroyed.

    Parameters
    ----------
    method
        Its name.
    layers
        From the top of the network down.
    rank
        float64 (L, N): Spearman's rank correlation with the map of the trained network; for ``"cascading"``, with this
        layer and all above it destroyed.
    ssim
        float64 (L, N): structural similarity.
    mode
        ``"cascading"`` or ``"independent"``.
    """

    method: str
    layers: tuple[str, ...]
    rank: Tensor
    ssim: Tensor
    mode: str

    @property
    def verdict(self) -> str:
        """In a sentence, whether the map depends on what was learned."""
        if bool(self.rank.isnan().all()):
            return f"the map of {self.method} is constant, so that nothing can be said of it"
        # A map that was none before, and is constant with a layer destroyed, has changed.
        means, count = self.rank.nanmean(1).nan_to_num(0.0).tolist(), len(self.layers)
        doubt = "it shows what is in the picture rather than what was learned"
        if self.mode == "independent":
            mean = sum(means) / count
            said = f"(mean rank correlation {mean:.2f})"
            alike = f"{self.method} hardly changes with a layer destroyed {said}: {doubt}"
            return alike if mean >= _DOUBTFUL else f"{self.method} changes with a layer destroyed {said}, as it should"
        kept = next((i for i, mean in enumerate(means) if mean < _DOUBTFUL), count)
        if 2 * kept >= count:
            said = f"with {kept} of {count} layers destroyed (rank correlation {means[kept - 1]:.2f})"
            return f"{self.method} hardly changes {said}: {doubt}"
        said = f"with {kept + 1} of {count} layers destroyed (rank correlation {means[kept]:.2f})"
        return f"{self.method} changes {said}, as it should"

    def __repr__(self) -> str:
        lines = [self.verdict, f"{self.mode}, from the top: rank correlation, SSIM"]
        for name, rank, ssim in zip(self.layers, self.rank, self.ssim, strict=True):
            lines.append(f"  {name}: {float(rank.nanmean()):.3f}, {float(ssim.nanmean()):.3f}")
        return "\n".join(lines)


@steady
def randomisation(
    model: nn.Module,
    images: Any,
    method: str | Method = "guided_backprop",
    *,
    mode: str = "cascading",
    target: Sequence[int] | int | None = None,
    absolute: bool = True,
    seed: int = 0,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> RandomisationResult:
    """Whether a method's maps change when the network's weights are destroyed, layer by layer from the top.

    J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3: a map that stays the same says
    nothing of what was learned. It is done on a copy; the model is left as it was.

    Parameters
    ----------
    model
        Any PyTorch model that gives class scores.
    images
        A path, PIL picture, array or tensor, or a list of these; see :func:`nbviz.load`.
    method
        The name of one of nbviz's methods (``"gradient"``, ``"deconvnet"``, ``"guided_backprop"``,
        ``"input_x_gradient"``, ``"smooth_grad"``, ``"integrated_gradients"``, ``"guided_grad_cam"``, or a class
        activation map of the gradient family such as ``"grad_cam"``), or a callable from a model, inputs (N, C, H, W)
        and ``target=``, the classes, to a tensor (N, ...).
    mode
        ``"cascading"`` destroys one layer after the other, from the top down; ``"independent"`` each alone.
    target
        The class, or one for each picture; None takes the one that the trained network predicts.
    absolute
        Compare absolute values, as the paper does at first; False compares signed ones.
    seed
        Of the new weights: those that the module's own ``reset_parameters`` draws, or else from a normal distribution
        as wide as the old ones.
    preprocess, inputs, output
        As in :func:`nbviz.reconstruct`.

    Returns
    -------
    RandomisationResult
        ``layers``, ``rank`` and ``ssim`` (L, N), and a ``verdict`` in a sentence.

    Raises
    ------
    ValueError
        For an unknown method or mode, or a model without layers whose weights can be drawn anew.
    TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> import nbviz
    >>> images = nbviz.bundled.fashion_test()[0][:4, None]
    >>> found = randomisation(nbviz.bundled.load("fashion"), images, "gradient")
    >>> found.layers[0], found.rank.shape, bool(found.rank[-1].mean() < 0.7)
    ('classifier', torch.Size([7, 4]), True)
    """
    name, apply = _method(method)
    check_choice("mode", mode, ("cascading", "independent"))
    seed = check_whole("seed", seed, 0, 2**63 - 1)
    if not isinstance(absolute, bool):
        raise TypeError(f"absolute is {shown(absolute)}; expected True or False")
    subject = Subject.of(model, images, preprocess, inputs, output)
    pictures = subject.inputs
    classes = subject.targets(target, subject.answer()).tolist()
    own = str(getattr(apply, "__module__", "")).startswith("nbviz.")
    known = own or any(apply is one for one in METHODS.values())
    accepted = inspect.signature(apply).parameters if known else {}
    options = {key: value for key, value in (("inputs", inputs), ("output", output)) if key in accepted}

    def maps(network: nn.Module) -> Tensor:
        try:
            given = apply(network, pictures, target=classes, **options)
        except Exception as error:
            if known:
                raise
            said = f"{type(error).__name__}: {line(error, 1000)}"
            raise ModelError(f"method= failed on pictures of shape {tuple(pictures.shape)}: {said}") from error
        found = check_tensor(f"what {name} gives", given, "(N, ...)")
        if found.ndim < 3 or len(found) != len(pictures):
            raise ValueError(f"{name} gives {tuple(found.shape)}; expected a map for each of {len(pictures)} pictures")
        found = found.detach().float().cpu()
        return found.abs() if absolute else found

    before, layers, ranks, ssims = maps(subject.model), [], [], []
    weighted = layers_with_weights(subject.model, pictures, subject.feed)
    for layer, changed in destroyed(subject.model, weighted, mode, seed):
        after = maps(changed)
        layers.append(layer)
        ranks.append(spearman(before, after))
        ssims.append(ssim(before, after))
    return RandomisationResult(name, tuple(layers), torch.stack(ranks), torch.stack(ssims), mode)


def _method(given: Any) -> tuple[str, Method]:
    if callable(given):
        own = "the method"
        with suppress(Exception):  # of an object's own making
            own = line(getattr(given, "__name__", own), 60)
        return next((name for name, method in METHODS.items() if method is given), own), given
    return check_choice("method", given, METHODS), METHODS[given]


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps (N, ...), for each picture: float64 (N,); NaN where one is constant.

    Examples
    --------
    >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 30.0, 20.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    a, b = (torch.stack([_ranks(row) for row in maps.flatten(1)]) for maps in (one, other))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    scale = a.norm(dim=1) * b.norm(dim=1)
    found: Tensor = torch.where(scale > 0, (a * b).sum(1) / scale, torch.nan)
    return found


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, of equal ones the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = (ends - (counts.double() - 1) / 2)[inverse]
    return ranks


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of two maps (N, H, W) or (N, C, H, W), each brought to [0, 1]: float64 (N,).

    Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, with a
    window of 7×7, or as large as the map.

    Examples
    --------
    >>> maps = torch.rand(2, 8, 8)
    >>> ssim(maps, maps)
    tensor([1., 1.], dtype=torch.float64)
    """
    a, b = (_unit(maps.reshape(len(maps), -1, *maps.shape[-2:]).double()) for maps in (one, other))
    window = min(7, *a.shape[-2:])
    window -= 1 - window % 2
    n, size = window * window, [window, window]

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, size, 1)

    u, v = mean(a), mean(b)
    unbiased = n / max(n - 1, 1)
    var_a, var_b, cov = (unbiased * (mean(x * y) - p * q) for x, y, p, q in ((a, a, u, u), (b, b, v, v), (a, b, u, v)))
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * u * v + c1) * (2 * cov + c2) / ((u**2 + v**2 + c1) * (var_a + var_b + c2))
    result: Tensor = found.flatten(1).mean(1)
    return result


def _unit(maps: Tensor) -> Tensor:
    """Each picture's maps from their lowest to their highest value."""
    flat = maps.flatten(1)
    low, high = (end.view(-1, 1, 1, 1) for end in (flat.amin(1), flat.amax(1)))
    return (maps - low) / (high - low).clamp(min=1e-30)


@dataclass(frozen=True, repr=False)
class DeletionInsertionResult:
    """What becomes of the class's probability as pixels go, or come, the most important first.

    Parameters
    ----------
    shares
        float64 (S,): of the pixels, from 0 to 1.
    deletion, insertion
        float64 (N, S): the probability with so many of them deleted, or with these alone.
    deletion_area, insertion_area
        float64 (N,): the area under the curve: of a good map small for deletion, large for insertion.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor

    def __repr__(self) -> str:
        out, back = float(self.deletion_area.mean()), float(self.insertion_area.mean())
        return f"DeletionInsertionResult of {len(self.deletion)} pictures: deletion {out:.3f}, insertion {back:.3f}"


@steady
def deletion_insertion(
    model: nn.Module,
    images: Any,
    maps: Tensor,
    *,
    target: Sequence[int] | int | None = None,
    steps: int = 32,
    fill: str | None = None,
    preprocess: Any = None,
    inputs: Any = None,
    output: Any = None,
) -> DeletionInsertionResult:
    """Whether the pixels that a map calls important are: delete them, or bring back these alone, the first ones first.

    V. Petsiuk, A. Das and K. Saenko, "RISE", BMVC 2018, section 4: the area under the curve of the probability.

    Parameters
    ----------
    model, images, target, preprocess, inputs, output
        As in :func:`nbviz.occlusion`.
    maps
        One for each picture, (N, H, W), or (N, C, H, W), of which the channels' absolute values are summed.
    steps
        In how many steps the pixels go.
    fill
        What stands in the place of those that are not there: ``"grey"``, ``"mean"`` or ``"blur"``; None takes grey for
        deletion and the blurred picture for insertion, as the paper does, so that neither brings edges of its own.

    Returns
    -------
    DeletionInsertionResult
        ``shares`` (S,), ``deletion``, ``insertion`` (N, S), and the areas (N,).

    Raises
    ------
    ValueError
        For maps of another size than the pictures, or an unknown fill.
    TypeError, PictureError, ModelError
        As in :func:`nbviz.reconstruct`.

    Examples
    --------
    >>> import nbviz
    >>> model, images = nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None]
    >>> found = deletion_insertion(model, images, nbviz.grad_cam(model, images), steps=8)
    >>> found.deletion.shape, bool((found.insertion_area > found.deletion_area).all())
    (torch.Size([2, 9]), True)
    """
    fills = ("grey", "blur") if fill is None else (check_choice("fill", fill, FILLS),) * 2
    steps = check_whole("steps", steps, 1, 10_000)
    subject = Subject.of(model, images, preprocess, inputs, output, values=False)
    pictures = subject.inputs
    check_tensor("maps", maps, "(N, H, W) or (N, C, H, W)")
    if pictures.ndim != 4 or maps.ndim not in (3, 4) or maps.shape[-2:] != pictures.shape[-2:]:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected (N, H, W) or (N, C, H, W) at the size of the model's input, "
            f"{tuple(pictures.shape)}"
        )
    if len(maps) != len(pictures):
        raise ValueError(f"maps has {len(maps)} maps for {len(pictures)} pictures; expected one for each")
    if maps.is_complex():
        raise TypeError(f"maps has {maps.dtype} values; expected real ones")
    if not bool(maps.isfinite().all()):
        raise ValueError("maps has values that are not finite (NaN or infinity); expected finite ones")
    weights = maps.detach().float() if maps.ndim == 3 else maps.detach().float().abs().sum(1)
    places = weights.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = places.shape[1]
    counts = torch.linspace(0, count, steps + 1, dtype=torch.float64).round().long()
    bare, canvas = (filling(pictures, name, subject.pictures.preprocess) for name in fills)
    deletion: list[Tensor] = []
    insertion: list[Tensor] = []
    variants = Variants(subject)
    for i in range(len(pictures)):
        trace, rows = variants.run(i, pictures[i : i + 1])
        chosen = int(subject.part([i]).targets(target, subject.scores(trace.output)[rows])[0])
        first = places[i].view(pictures.shape[-2:]).to(pictures.device)
        for curve, left, gone in ((deletion, pictures[i], bare[i]), (insertion, canvas[i], pictures[i])):
            seen = partial(_with_first, left, gone, first, counts)

            def probability(part: Sequence[int], i: int = i, seen: Any = seen, chosen: int = chosen) -> Tensor:
                trace, rows = variants.run(i, seen(part))
                return subject.scores(trace.output)[rows].double().softmax(1)[:, chosen].cpu()

            curve.append(joined(in_chunks(probability, range(len(counts)), variants.at_once, "one picture")))
    shares = counts.double() / count
    out, back = torch.stack(deletion), torch.stack(insertion)
    return DeletionInsertionResult(shares, out, back, torch.trapezoid(out, shares), torch.trapezoid(back, shares))


def _with_first(left: Tensor, gone: Tensor, first: Tensor, counts: Tensor, part: Sequence[int]) -> Tensor:
    """A picture (C, H, W) with the first so many pixels of another in it, for each of some counts."""
    return torch.stack([torch.where(first < int(counts[step]), gone, left) for step in part])
