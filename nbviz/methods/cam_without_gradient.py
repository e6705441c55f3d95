"""Class activation maps that need no gradient: from the head's weights, the strongest pattern, masks and ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.checks import check_real, check_whole
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.documented import documented_like
from nbviz.core.errors import shown
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.types import Images, ModelInputs, Preprocessing, ScoresIn, Target
from nbviz.core.weights import steady
from nbviz.methods.cam import CamFunction, finished
from nbviz.methods.cam_layers import Arrange, checked
from nbviz.methods.subject import Subject


@documented_like(CamFunction.__call__)
@steady
def cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    raw: bool = False,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> Tensor:
    """CAM: the channels, weighted by what the classifier gives each, for networks that end in a global average.

    B. Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016: the map is the sum of the
    channels of the last layer, each times its weight for the class in the linear layer that follows the average
    (equation 2).

    Parameters
    ----------
    layer
        The layer whose average the classifier takes (a ReLU that follows it as a function is found); None takes the
        last that gives feature maps with more than one position.

    Raises
    ------
    ValueError
        When the answer is no linear function of the layer's average over its positions.

    Examples
    --------
    >>> import nbviz
    >>> maps = cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> maps.shape, maps.max().item() <= 1
    (torch.Size([2, 28, 28]), True)
    """
    subject, layer, arrange = checked(model, images, layer, raw, None, preprocess, inputs, output)

    def work(part: Subject) -> Tensor:
        trace = part.run([layer], output=True)
        maps, scores = arrange(trace.activations[layer], len(part)), part.scores(trace.output)
        classes = part.targets(target, scores)
        maps, weights = _head(part.model, layer, maps, scores)
        return torch.einsum("nc,nc...->n...", weights[classes], maps).relu()

    return finished(subject.each(work), subject, raw)


def _head(model: nn.Module, layer: str, maps: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The maps that are averaged and the classifier's weights (classes, C), if that is how the logits come about."""
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    heads = [(m.weight.detach().flatten(1), m.bias) for m in reversed(linear)]
    own = torch.eye(logits.shape[1], dtype=maps.dtype, device=maps.device)  # a map of each class, as in NIN
    for weights, bias in [(own, None), *heads]:
        if tuple(weights.shape) != (logits.shape[1], maps.shape[1]):
            continue
        for averaged in (maps, maps.relu()):
            found = averaged.flatten(2).mean(2) @ weights.T
            wanted = logits if bias is None else logits - bias.detach()  # which may be all that is large
            least = 1e-2 * wanted.abs().amax(1) + 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
            if bool(((found - wanted).abs().amax(1) <= least).all()):
                return averaged, weights
    raise ValueError(
        f"the answer of {type(model).__name__} is not a linear layer of the average of layer {shown(layer)} over its "
        "positions, as CAM needs it; expected a network that ends so, or grad_cam, which needs no such end"
    )


@documented_like(CamFunction.__call__)
@steady
def eigen_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Any = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> Tensor:
    """Eigen-CAM: the strongest pattern of the layer's channels, whatever the class.

    M. Muhammad and M. Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020: the
    activations as a matrix O of positions by channels, projected on its first right singular vector, O · V₁ (equation
    4), with the sign that makes the larger part of it positive. As in the paper, O is not centred.

    Parameters
    ----------
    target
        Has no part in it; it is there so that all class activation maps are called alike.

    Examples
    --------
    >>> import nbviz
    >>> eigen_cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None], raw=True).shape
    torch.Size([2, 7, 7])
    """
    subject, layer, arrange = checked(model, images, layer, raw, reshape, preprocess, inputs, output)

    def work(part: Subject) -> Tensor:
        trace = part.run([layer])
        maps = arrange(trace.activations[layer], len(part))
        rows = torch.nan_to_num(maps.float().flatten(2).transpose(1, 2))  # (N, positions, channels)
        # Its first right singular vector is the first eigenvector of the smaller of two matrices.
        if rows.shape[1] < rows.shape[2]:
            values, vectors = torch.linalg.eigh(rows @ rows.mT)
            projected = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
        else:
            projected = (rows @ torch.linalg.eigh(rows.mT @ rows)[1][..., -1:])[..., 0]
        projected = projected * projected.sum(1, keepdim=True).sign()
        found: Tensor = projected.view(len(maps), *maps.shape[2:]).relu().to(maps.dtype)
        return found

    return finished(subject.each(work), subject, raw)


@documented_like(CamFunction.__call__)
@steady
def score_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    at_once: int = 32,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> Tensor:
    """Score-CAM: each channel's weight is the class's score of the picture masked by that channel.

    H. Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR workshops
    2020. Each channel is brought to the picture's size and to [0, 1] and multiplied with the picture (equation 6); the
    softmax over the channels of the class's logits (algorithm 1; the score of the empty picture, the same for all,
    falls out of it) gives the weights. It costs a forward pass for each channel.

    Parameters
    ----------
    at_once
        How many masked pictures go through the model at once.

    Examples
    --------
    >>> import nbviz
    >>> score_cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None], "features.8").shape
    torch.Size([1, 28, 28])
    """
    at_once = check_whole("at_once", at_once, 1)
    subject, layer, arrange = checked(model, images, layer, raw, reshape, preprocess, inputs, output)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[subject.inputs.ndim]
    apart = subject.apart

    def work(part: Subject) -> Tensor:
        some, trace = part.inputs, part.run([layer], output=True)
        maps = check_real(arrange(trace.activations[layer], len(part)), f"layer {shown(layer)}")
        classes = part.targets(target, part.scores(trace.output))
        scores = torch.empty(maps.shape[:2], dtype=torch.float32)

        def masked(channels: Sequence[int]) -> None:
            own = maps[:, list(channels)]
            wide = nn.functional.interpolate(own, some.shape[2:], mode=mode)
            low, high = (t.view(*own.shape[:2], *[1] * (own.ndim - 2)) for t in _ends(wide))
            masks = (wide - low) / (high - low).clamp(min=torch.finfo(wide.dtype).tiny)
            seen = (masks.transpose(0, 1)[:, :, None] * some[None]).flatten(0, 1)  # channel by channel
            own_logits = part.at(seen).answer().unflatten(0, (len(channels), len(some)))
            for row, k in enumerate(channels):
                scores[:, k] = own_logits[row].gather(1, classes[:, None])[:, 0].float().cpu()

        most = at_once // len(some) if apart else 1
        in_chunks(masked, range(maps.shape[1]), max(1, most), "one masked picture")
        weights = scores.softmax(1).to(maps)
        return torch.einsum("nc,nc...->n...", weights, maps).relu()

    return finished(subject.each(work), subject, raw)


def _ends(maps: Tensor) -> Iterator[Tensor]:
    """The lowest and the highest value of each channel."""
    yield maps.flatten(2).amin(2)
    yield maps.flatten(2).amax(2)


@documented_like(CamFunction.__call__)
@steady
def ablation_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    at_once: int = 64,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    preprocess: Preprocessing | None = None,
    inputs: ModelInputs | None = None,
    output: ScoresIn | None = None,
) -> Tensor:
    """Ablation-CAM: each channel's weight is the share of the class's score that is lost without it.

    H. Ramaswamy et al., "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020: with the score y and the score y_k when channel k is set to zero, its weight is
    (y - y_k) / y (equation 4). For each channel only what follows the layer is run. As the equation has it, the map of
    a class whose score is below zero shows what speaks against it. A score of just zero has no shares: there the weight
    is what is lost.

    Parameters
    ----------
    at_once
        How many ablated activations go through what follows the layer at once.

    Examples
    --------
    >>> import nbviz
    >>> ablation_cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None], "features.13").shape
    torch.Size([1, 28, 28])
    """
    at_once = check_whole("at_once", at_once, 1)
    subject, layer, arrange = checked(model, images, layer, raw, reshape, preprocess, inputs, output)

    def work(part: Subject) -> Tensor:
        resumable, n = Resumable(part.model, part.inputs, layer, part.feed), len(part)
        maps = arrange(resumable.activation, n)
        axis = _channel_axis(resumable.activation, maps, arrange)  # of tokens, those of no place lose the channel too
        logits = part.scores(resumable.output)
        classes = part.targets(target, logits)
        score = logits.gather(1, classes[:, None])
        lost = torch.empty_like(maps.flatten(2)[..., 0])

        def without(channels: Sequence[int]) -> None:
            off = nn.functional.one_hot(torch.tensor(channels), maps.shape[1]).bool().to(maps.device)
            variants = switch_off(resumable.activation.movedim(axis, 1), off).movedim(1, axis)
            outputs = [variants] if resumable.widens else variants.split(n)
            found = joined([part.scores(resumable.go_on(some)) for some in outputs])
            scores = found.gather(1, classes.repeat(len(channels))[:, None]).view(len(channels), n)
            lost[:, list(channels)] = (score - scores.T).to(lost.dtype)

        in_chunks(without, range(maps.shape[1]), max(1, at_once // n), "one ablated activation")
        whole = torch.where(score != 0, score, 1).to(lost.dtype)
        return torch.einsum("nc,nc...->n...", lost / whole, maps).relu()

    return finished(subject.each(work), subject, raw)


def _channel_axis(activation: Tensor, maps: Tensor, arrange: Arrange) -> int:
    """Along which axis of the activation the channels of its maps (N, C, ...) lie."""
    numbers = torch.arange(maps.shape[1], dtype=torch.float32, device=maps.device)
    for axis in range(1, activation.ndim):
        if activation.shape[axis] == len(numbers):
            marked = numbers.view(-1, *[1] * (activation.ndim - 1 - axis)).expand_as(activation)
            found = arrange(marked, len(maps))
            if torch.equal(found, numbers.view(-1, *[1] * (maps.ndim - 2)).expand_as(found)):
                return axis
    raise ValueError(
        f"reshape= makes {tuple(maps.shape)} of {tuple(activation.shape)}; expected one that only moves the channels"
    )
