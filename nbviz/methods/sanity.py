"""Whether a map can be trusted: randomise the weights, and see whether it changes.

J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. The other checks of maps are gathered here, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.checks import check_choice, check_flag, check_tensor, check_whole
from nbviz.core.errors import ModelError, line
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.attribution import input_x_gradient, integrated, smooth_grad
from nbviz.methods.cam import GRADIENT_CAMS
from nbviz.methods.deconvnet import deconvnet
from nbviz.methods.deletion_insertion import DeletionInsertionResult as DeletionInsertionResult
from nbviz.methods.deletion_insertion import deletion_insertion as deletion_insertion
from nbviz.methods.gradient import gradient
from nbviz.methods.guided_backprop import guided_backprop
from nbviz.methods.guided_grad_cam import guided_grad_cam
from nbviz.methods.randomise import layers_with_weights, randomised_copies
from nbviz.methods.similarity import spearman as spearman
from nbviz.methods.similarity import ssim as ssim
from nbviz.methods.subject import Subject, as_method

Method = Callable[..., Tensor]


def _integrated_gradients(model: nn.Module, images: Images, target: Target | None = None, **options: Any) -> Tensor:
    """With 64 steps, where the default may take 512: near enough to compare maps, and so without a warning."""
    return integrated(model, images, target, 0.0, 64, **options)[0]


#: The methods that may be given by name: (model, images, target=) to a map for each picture.
METHODS: dict[str, Method] = {
    "gradient": gradient,
    "deconvnet": deconvnet,
    "guided_backprop": guided_backprop,
    "input_x_gradient": input_x_gradient,
    "smooth_grad": smooth_grad,
    "integrated_gradients": _integrated_gradients,
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
            changes, how = mean < _DOUBTFUL, f"with a layer randomised (mean rank correlation {mean:.2f})"
        else:
            kept = next((i for i, mean in enumerate(means) if mean < _DOUBTFUL), count)
            changes = 2 * kept < count
            randomised = kept + 1 if changes else kept
            how = f"with {randomised} of {count} layers randomised (rank correlation {means[randomised - 1]:.2f})"
        if changes:
            return f"{self.method} changes {how}, as it should"
        return f"{self.method} hardly changes {how}: it shows what is in the picture rather than what was learned"

    def __repr__(self) -> str:
        lines = [self.verdict, f"{self.mode}, from the top: rank correlation, SSIM"]
        for name, rank, structural in zip(self.layers, self.rank, self.ssim, strict=True):
            lines.append(f"  {name}: {float(rank.nanmean()):.3f}, {float(structural.nanmean()):.3f}")
        return "\n".join(lines)


@as_method()
def randomisation(
    model: nn.Module,
    images: Images,
    method: str | Method = "guided_backprop",
    *,
    mode: str = "cascading",
    target: Target | None = None,
    absolute: bool = True,
    seed: int = 0,
    **options: Unpack[SubjectOptions],
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
    >>> result = randomisation(nbviz.bundled.load("fashion"), images, "gradient")
    >>> result.layers[0], result.rank.shape, bool(result.rank[-1].mean() < 0.7)
    ('classifier', torch.Size([7, 4]), True)
    """
    name, apply = _method(method)
    check_choice("mode", mode, ("cascading", "independent"))
    seed = check_whole("seed", seed, 0, 2**63 - 1)
    check_flag("absolute", absolute)
    subject = Subject.of(model, images, **options)
    classes = subject.targets(target, subject.answer()).tolist()
    ours = str(getattr(apply, "__module__", "")).startswith("nbviz.") or any(apply is own for own in METHODS.values())
    accepted = inspect.signature(apply).parameters if ours else {}
    passed = {key: value for key, value in options.items() if key in accepted and key != "preprocess"}

    def maps(network: nn.Module) -> Tensor:
        try:
            given = apply(network, subject.inputs, target=classes, **passed)
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
    steps = randomisation_steps(name, subject.model, layers, maps, mode=mode, seed=seed, absolute=absolute)
    *_, result = (result for result, _ in steps)
    return result


def randomisation_steps(
    method: str,
    model: nn.Module,
    layers: Sequence[str],
    maps: Callable[[nn.Module], Tensor],
    before: Tensor | None = None,
    *,
    mode: str = "cascading",
    seed: int = 0,
    absolute: bool = True,
) -> Iterator[tuple[RandomisationResult, Tensor]]:
    """Randomise a copy of the model layer by layer, and give the result so far and the maps after each step.

    Parameters
    ----------
    method
        The method's name.
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
    ranks: list[Tensor] = []
    ssims: list[Tensor] = []
    for _, changed in randomised_copies(model, layers, mode, seed):
        after = maps(changed)
        compared = (before.abs(), after.abs()) if absolute else (before, after)
        ranks.append(spearman(*compared))
        ssims.append(ssim(*compared))
        done = tuple(layers[: len(ranks)])
        yield RandomisationResult(method, done, torch.stack(ranks), torch.stack(ssims), mode), after


def _method(given: Any) -> tuple[str, Method]:
    """A method's name and the method."""
    if not callable(given):
        return check_choice("method", given, METHODS), METHODS[given]
    name = "the method"
    with suppress(Exception):  # raised by an object of the user's
        name = line(getattr(given, "__name__", name), 60)
    return next((known for known, method in METHODS.items() if method is given), name), given
