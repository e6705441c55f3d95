"""Whether a map can be trusted: randomise the weights, delete the pixels, and see what changes.

J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; V. Petsiuk, A. Das and K. Saenko, "RISE: Randomized
Input Sampling for Explanation of Black-box Models", BMVC 2018.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.checks import check_choice, check_tensor, check_whole
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.documented import documented
from nbviz.core.errors import ModelError, line, shown
from nbviz.core.types import Images, ModelInputs, Preprocessing, ScoresIn, Target
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
_DOUBTFUL = 0.5  # with a rank correlation of at least this, a map hardly changes


@dataclass(frozen=True, repr=False)
class RandomisationResult:
    """How similar a method's maps are before and after the weights of layers were randomised.

    Parameters
    ----------
    method
        The method's name.
    layers
        Names of layers, from the top of the network down.
    rank
        float64 (L, N): Spearman's rank correlation with the map of the trained network; for ``"cascading"``, with this
        layer and all above it randomised.
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
        # Where one of two maps is constant, the correlation is NaN: the map has changed.
        means, count = self.rank.nanmean(1).nan_to_num(0.0).tolist(), len(self.layers)
        if self.mode == "independent":
            mean = sum(means) / count
            changes, how = mean < _DOUBTFUL, f"with a layer destroyed (mean rank correlation {mean:.2f})"
        else:
            kept = next((i for i, mean in enumerate(means) if mean < _DOUBTFUL), count)
            changes = 2 * kept < count
            randomised = kept + 1 if changes else kept
            how = f"with {randomised} of {count} layers destroyed (rank correlation {means[randomised - 1]:.2f})"
        if changes:
            return f"{self.method} changes {how}, as it should"
        return f"{self.method} hardly changes {how}: it shows what is in the picture rather than what was learned"

    def __repr__(self) -> str:
        lines = [self.verdict, f"{self.mode}, from the top: rank correlation, SSIM"]
        for name, rank, ssim in zip(self.layers, self.rank, self.ssim, strict=True):
            lines.append(f"  {name}: {float(rank.nanmean()):.3f}, {float(ssim.nanmean()):.3f}")
        return "\n".join(lines)


@documented
@steady
def randomisation(
    model: nn.Module,
    images: Images,
    method: str | Method = "guided_backprop",
    *,
    mode: str = "cascading",
    target: Target | None = None,
    absolute: bool = True,
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> RandomisationResult:
    """Whether a method's maps change when the network's weights are randomised, layer by layer from the top.

    J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3: a map that stays the same says
    nothing about what was learned. The weights of a copy are randomised, not those of the model.

    Parameters
    ----------
    method
        The name of one of nbviz's methods (``"gradient"``, ``"deconvnet"``, ``"guided_backprop"``,
        ``"input_x_gradient"``, ``"smooth_grad"``, ``"integrated_gradients"``, ``"guided_grad_cam"``, or a class
        activation map of the gradient family such as ``"grad_cam"``), or a callable from a model, inputs (N, C, H, W)
        and ``target=``, the classes, to a tensor (N, ...).
    mode
        ``"cascading"`` randomises one layer after the other, from the top down; ``"independent"`` each alone.
    target
        The class, or one for each picture; None takes the class that the trained network predicts.
    absolute
        Compare absolute values, the paper's first choice; False compares signed ones.
    seed
        Seed of the new weights. A module's own ``reset_parameters`` draws them; without that, they come from a normal
        distribution with the mean and standard deviation of the old weights.

    Returns
    -------
    RandomisationResult
        ``layers``, ``rank`` and ``ssim`` (L, N), and a ``verdict`` in a sentence.

    Raises
    ------
    ValueError
        When ``method`` is unknown, or does not return a map for each picture. When ``mode`` is unknown. When no layer
        of ``model`` has weights.
    ModelError
        When ``method`` is a callable that fails.

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
    classes = subject.targets(target, subject.answer()).tolist()
    ours = str(getattr(apply, "__module__", "")).startswith("nbviz.") or any(apply is own for own in METHODS.values())
    accepted = inspect.signature(apply).parameters if ours else {}
    options = {key: value for key, value in (("inputs", inputs), ("output", output)) if key in accepted}

    def maps(network: nn.Module) -> Tensor:
        try:
            given = apply(network, subject.inputs, target=classes, **options)
        except Exception as error:
            if ours:
                raise
            cause = f"{type(error).__name__}: {line(error, 1000)}"
            raise ModelError(f"method= failed on pictures of shape {tuple(subject.inputs.shape)}: {cause}") from error
        checked = check_tensor(f"what {name} gives", given, "(N, ...)")
        if checked.ndim < 3 or len(checked) != len(subject):
            raise ValueError(f"{name} gives {tuple(checked.shape)}; expected a map for each of {len(subject)} pictures")
        return checked.detach().float().cpu()

    layers = layers_with_weights(subject.model, subject.inputs, subject.feed)
    steps = randomisation_steps(subject.model, layers, maps, mode=mode, seed=seed, absolute=absolute)
    return randomisation_result(name, [similarity for similarity, _ in steps], mode)


@dataclass(frozen=True)
class Similarity:
    """How similar a method's maps are to those of the trained network, after a layer was randomised.

    Parameters
    ----------
    layer
        The name of the layer.
    rank, ssim
        float64 (N,): Spearman's rank correlation and the structural similarity.
    """

    layer: str
    rank: Tensor
    ssim: Tensor


def randomisation_steps(
    model: nn.Module,
    layers: Sequence[str],
    maps: Callable[[nn.Module], Tensor],
    before: Tensor | None = None,
    *,
    mode: str = "cascading",
    seed: int = 0,
    absolute: bool = True,
) -> Iterator[tuple[Similarity, Tensor]]:
    """Randomise a copy of the model layer by layer, and give the maps after each step, compared with those before.

    Parameters
    ----------
    model
        The trained model.
    layers
        Names of layers with weights, from the top of the network down.
    maps
        From a network to the method's maps (N, ...), float32 on the CPU.
    before
        The maps of the trained model; None computes them.
    mode, seed, absolute
        The arguments of :func:`randomisation`.
    """
    before = maps(model) if before is None else before
    for layer, changed in destroyed(model, layers, mode, seed):
        after = maps(changed)
        compared = (before.abs(), after.abs()) if absolute else (before, after)
        yield Similarity(layer, spearman(*compared), ssim(*compared)), after


def randomisation_result(method: str, steps: Sequence[Similarity], mode: str) -> RandomisationResult:
    """The result of all steps."""
    ranks, ssims = torch.stack([step.rank for step in steps]), torch.stack([step.ssim for step in steps])
    return RandomisationResult(method, tuple(step.layer for step in steps), ranks, ssims, mode)


def _method(given: Any) -> tuple[str, Method]:
    """A method's name and the method."""
    if not callable(given):
        return check_choice("method", given, METHODS), METHODS[given]
    name = "the method"
    with suppress(Exception):  # raised by an object of the user's
        name = line(getattr(given, "__name__", name), 60)
    return next((known for known, method in METHODS.items() if method is given), name), given


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of two sets of maps, for each picture.

    Parameters
    ----------
    a, b
        Maps (N, ...) of one shape.

    Returns
    -------
    Tensor
        float64 (N,); NaN where a map is constant.

    Raises
    ------
    RuntimeError
        When the shapes differ.

    Examples
    --------
    >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 30.0, 20.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    a, b = (torch.stack([_ranks(row) for row in maps.flatten(1)]) for maps in (a, b))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    scale = a.norm(dim=1) * b.norm(dim=1)
    correlation: Tensor = torch.where(scale > 0, (a * b).sum(1) / scale, torch.nan)
    return correlation


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = (ends - (counts.double() - 1) / 2)[inverse]
    return ranks


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two sets of maps, each scaled to [0, 1].

    Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, with a
    window of 7×7, or as large as the map.

    Parameters
    ----------
    a, b
        Maps (N, H, W) or (N, C, H, W) of one shape.

    Returns
    -------
    Tensor
        float64 (N,).

    Raises
    ------
    RuntimeError
        When the shapes differ.

    Examples
    --------
    >>> maps = torch.rand(2, 8, 8)
    >>> ssim(maps, maps)
    tensor([1., 1.], dtype=torch.float64)
    """
    a, b = (_unit_range(maps.reshape(len(maps), -1, *maps.shape[-2:]).double()) for maps in (a, b))
    window = min(7, *a.shape[-2:])
    window -= 1 - window % 2
    n, size = window * window, [window, window]

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, size, 1)

    u, v = mean(a), mean(b)
    unbiased = n / max(n - 1, 1)
    var_a, var_b, cov = (unbiased * (mean(x * y) - p * q) for x, y, p, q in ((a, a, u, u), (b, b, v, v), (a, b, u, v)))
    c1, c2 = 0.01**2, 0.03**2
    local = (2 * u * v + c1) * (2 * cov + c2) / ((u**2 + v**2 + c1) * (var_a + var_b + c2))
    similarity: Tensor = local.flatten(1).mean(1)
    return similarity


def _unit_range(maps: Tensor) -> Tensor:
    """Each picture's maps scaled to [0, 1]."""
    flat = maps.flatten(1)
    low, high = (end.view(-1, 1, 1, 1) for end in (flat.amin(1), flat.amax(1)))
    return (maps - low) / (high - low).clamp(min=1e-30)


@dataclass(frozen=True, repr=False)
class DeletionInsertionResult:
    """How the probability of the class changes as pixels are deleted, or inserted, the most important first.

    Parameters
    ----------
    shares
        float64 (S,): fractions of the pixels, from 0 to 1.
    deletion, insertion
        float64 (N, S): the probability with this fraction deleted, or with only this fraction present.
    deletion_area, insertion_area
        float64 (N,): the area under the curve; a good map has a small one for deletion and a large one for insertion.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor

    def __repr__(self) -> str:
        areas = f"deletion {float(self.deletion_area.mean()):.3f}, insertion {float(self.insertion_area.mean()):.3f}"
        return f"DeletionInsertionResult of {len(self.deletion)} pictures: {areas}"


@documented
@steady
def deletion_insertion(
    model: nn.Module,
    images: Images,
    maps: Tensor,
    *,
    target: Target | None = None,
    steps: int = 32,
    fill: str | None = None,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> DeletionInsertionResult:
    """Whether the pixels that a map calls important are so: delete them, or insert only them, most important first.

    V. Petsiuk, A. Das and K. Saenko, "RISE", BMVC 2018, section 4: the area under the curve of the probability.

    Parameters
    ----------
    maps
        One map for each picture: (N, H, W), or (N, C, H, W), of which the absolute values are summed over the channels.
    steps
        In how many steps the pixels are deleted or inserted.
    fill
        What replaces missing pixels: ``"grey"``, ``"mean"`` (the mean colour of the picture) or ``"blur"`` (the picture
        itself, blurred). None takes grey for deletion and blur for insertion, as in the paper, so that neither adds
        edges.

    Returns
    -------
    DeletionInsertionResult
        ``shares`` (S,), ``deletion``, ``insertion`` (N, S), and the areas (N,).

    Raises
    ------
    ValueError
        When ``maps`` has another size than the model's input, or values that are not finite.

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
    places = _order_of_pixels(maps, pictures)
    count = places.shape[1]
    counts = torch.linspace(0, count, steps + 1, dtype=torch.float64).round().long()
    deleted, canvas = (filling(pictures, name, subject.pictures.preprocess) for name in fills)
    variants = Variants(subject)

    def curve(i: int, chosen: int, before: Tensor, after: Tensor) -> Tensor:
        place = places[i].view(pictures.shape[-2:]).to(pictures.device)

        def probability(part: Sequence[int]) -> Tensor:
            changed = torch.stack([torch.where(place < int(counts[step]), after, before) for step in part])
            trace, rows = variants.run(i, changed)
            return subject.scores(trace.output)[rows].double().softmax(1)[:, chosen].cpu()

        return joined(in_chunks(probability, range(len(counts)), variants.at_once, "one picture"))

    curves = []
    for i, picture in enumerate(pictures):
        trace, rows = variants.run(i, picture[None])
        chosen = int(subject.part([i]).targets(target, subject.scores(trace.output)[rows])[0])
        curves.append((curve(i, chosen, picture, deleted[i]), curve(i, chosen, canvas[i], picture)))
    deletion, insertion = (torch.stack(rows) for rows in zip(*curves, strict=True))
    shares = counts.double() / count
    areas = torch.trapezoid(deletion, shares), torch.trapezoid(insertion, shares)
    return DeletionInsertionResult(shares, deletion, insertion, *areas)


def _order_of_pixels(maps: Tensor, pictures: Tensor) -> Tensor:
    """For each picture and pixel, its place in the order of importance: int64 (N, H * W)."""
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
    return weights.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
