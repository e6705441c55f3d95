"""Class activation maps that need no gradient: from the head's weights, the strongest pattern, masks and ablation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.checks import check_real, check_whole
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.errors import shown
from nbviz.core.resume import Resumable, switch_off
from nbviz.core.types import Images, SubjectOptions, Target
from nbviz.methods.cam import CamFunction, enlarged, finished
from nbviz.methods.cam_layers import Arrange, checked
from nbviz.methods.subject import Subject, as_method


@as_method(CamFunction.__call__)
def cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    raw: bool = False,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """CAM: the channels, weighted by the classifier's weights, for networks that end in global average pooling.

    B. Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016: the map is the sum of the
    channels of the last layer, each times its weight for the class in the linear layer after the pooling (equation 2).

    Parameters
    ----------
    layer
        The layer that is averaged for the classifier (a functional ReLU after it is recognised). None takes the last
        that gives feature maps with more than one position.

    Raises
    ------
    ValueError
        When the class scores are not a linear function of the average of ``layer`` over its positions.

    Examples
    --------
    >>> import nbviz
    >>> maps = cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None])
    >>> maps.shape, maps.max().item() <= 1
    (torch.Size([2, 28, 28]), True)
    """
    subject, layer, arrange = checked(model, images, layer, raw, None, **options)

    def work(part: Subject) -> Tensor:
        trace = part.run([layer], output=True)
        maps, scores = arrange(trace.activations[layer], trace.layouts[layer]), part.scores(trace.output)
        classes = part.targets(target, scores)
        maps, weights = _head(part.model, layer, maps, scores)
        return torch.einsum("nc,nc...->n...", weights[classes], maps).relu()

    return finished(subject.in_parts(work), subject, raw)


def _head(model: nn.Module, layer: str, maps: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The averaged maps and the classifier's weights (classes, C), if these two reproduce the logits."""
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    heads = [(m.weight.detach().flatten(1), m.bias) for m in reversed(linear)]
    identity = torch.eye(logits.shape[1], dtype=maps.dtype, device=maps.device)  # one map per class, as in NIN
    for weights, bias in [(identity, None), *heads]:
        if tuple(weights.shape) != (logits.shape[1], maps.shape[1]):
            continue
        for averaged in (maps, maps.relu()):
            computed = averaged.flatten(2).mean(2) @ weights.T
            expected = logits if bias is None else logits - bias.detach()  # a large bias would hide a difference
            tolerance = 1e-2 * expected.abs().amax(1) + 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
            if bool(((computed - expected).abs().amax(1) <= tolerance).all()):
                return averaged, weights
    raise ValueError(
        f"the answer of {type(model).__name__} is not a linear layer of the average of layer {shown(layer)} over its "
        "positions, as CAM needs it; expected a network that ends so, or grad_cam, which works for any network"
    )


@as_method(CamFunction.__call__)
def eigen_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Any = None,
    *,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Eigen-CAM: the strongest pattern of the layer's channels, whatever the class.

    M. Muhammad and M. Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020: the
    activations as a matrix O of positions by channels, projected on its first right singular vector, O · V₁ (equation
    4), with the sign that makes the larger part of it positive. As in the paper, O is not centred.

    Parameters
    ----------
    target
        Ignored; it is accepted so that all class activation maps are called alike.

    Examples
    --------
    >>> import nbviz
    >>> eigen_cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:2, None], raw=True).shape
    torch.Size([2, 7, 7])
    """
    subject, layer, arrange = checked(model, images, layer, raw, reshape, **options)

    def work(part: Subject) -> Tensor:
        trace = part.run([layer])
        maps = arrange(trace.activations[layer], trace.layouts[layer])
        rows = torch.nan_to_num(maps.float().flatten(2).transpose(1, 2))  # (N, positions, channels)
        # The first right singular vector comes from the first eigenvector of the smaller Gram matrix.
        if rows.shape[1] < rows.shape[2]:
            values, vectors = torch.linalg.eigh(rows @ rows.mT)
            projected = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
        else:
            projected = (rows @ torch.linalg.eigh(rows.mT @ rows)[1][..., -1:])[..., 0]
        projected = projected * projected.sum(1, keepdim=True).sign()
        positive: Tensor = projected.view(len(maps), *maps.shape[2:]).relu().to(maps.dtype)
        return positive

    return finished(subject.in_parts(work), subject, raw)


@as_method(CamFunction.__call__)
def score_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    at_once: int = 32,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Score-CAM: each channel's weight is the class score of the picture masked by that channel.

    H. Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR workshops
    2020. Each channel is enlarged to the picture's size, scaled to [0, 1] and multiplied with the picture (equation 6).
    The softmax over the channels of the resulting class logits gives the weights (algorithm 1; the score of the empty
    picture, the same for all, cancels out). It costs a forward pass for each channel.

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
    subject, layer, arrange = checked(model, images, layer, raw, reshape, **options)

    def work(part: Subject) -> Tensor:
        pictures, trace = part.inputs, part.run([layer], output=True)
        maps = check_real(arrange(trace.activations[layer], trace.layouts[layer]), f"layer {shown(layer)}")
        classes, axes = part.targets(target, part.scores(trace.output)), tuple(range(2, maps.ndim))

        def score_masked(channels: Sequence[int]) -> Tensor:
            masks = enlarged(maps[:, list(channels)], pictures.shape[2:])
            low, high = masks.amin(axes, keepdim=True), masks.amax(axes, keepdim=True)
            masks = (masks - low) / (high - low).clamp(min=torch.finfo(masks.dtype).tiny)
            masked = (masks.transpose(0, 1)[:, :, None] * pictures[None]).flatten(0, 1)  # channel by channel
            logits: Tensor = part.with_inputs(masked).answer().unflatten(0, (len(channels), len(pictures)))
            return logits[:, range(len(pictures)), classes].T.float().cpu()

        channels_at_once = max(1, at_once // len(pictures)) if subject.apart else 1
        scores = in_chunks(score_masked, range(maps.shape[1]), channels_at_once, "one masked picture")
        weights = torch.cat(scores, 1).softmax(1).to(maps)
        return torch.einsum("nc,nc...->n...", weights, maps).relu()

    return finished(subject.in_parts(work), subject, raw)


@as_method(CamFunction.__call__)
def ablation_cam(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    target: Target | None = None,
    *,
    at_once: int = 64,
    raw: bool = False,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **options: Unpack[SubjectOptions],
) -> Tensor:
    """Ablation-CAM: each channel's weight is the fraction of the class score that is lost without it.

    H. Ramaswamy et al., "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020: with the score y and the score y_k when channel k is set to zero, its weight is
    (y - y_k) / y (equation 4). For each channel only what follows the layer is run. By this equation, the map of a
    class with a negative score shows what speaks against it. Where the score is exactly zero, the weight is y - y_k.

    Parameters
    ----------
    at_once
        How many ablated activations pass through the rest of the network at once.

    Examples
    --------
    >>> import nbviz
    >>> ablation_cam(nbviz.bundled.load("fashion"), nbviz.bundled.fashion_test()[0][:1, None], "features.13").shape
    torch.Size([1, 28, 28])
    """
    at_once = check_whole("at_once", at_once, 1)
    subject, layer, arrange = checked(model, images, layer, raw, reshape, **options)

    def work(part: Subject) -> Tensor:
        resumable, n = Resumable(part.model, part.inputs, layer, part.feed), len(part)
        maps = arrange(resumable.activation, resumable.layout)
        axis = _channel_axis(resumable, maps, arrange)  # class tokens lose the channel, too
        logits = part.scores(resumable.output)
        classes = part.targets(target, logits)
        score = logits.gather(1, classes[:, None])

        def lost_without(channels: Sequence[int]) -> Tensor:
            off = nn.functional.one_hot(torch.tensor(channels), maps.shape[1]).bool().to(maps.device)
            variants = switch_off(resumable.activation.movedim(axis, 1), off).movedim(1, axis)
            batches = [variants] if resumable.widens else variants.split(n)
            logits = joined([part.scores(resumable.go_on(batch), len(batch)) for batch in batches])
            scores = logits.gather(1, classes.repeat(len(channels))[:, None]).view(len(channels), n)
            return (score - scores.T).to(maps.dtype)

        lost = in_chunks(lost_without, range(maps.shape[1]), max(1, at_once // n), "one ablated activation")
        divisor = torch.where(score != 0, score, 1).to(maps.dtype)
        return torch.einsum("nc,nc...->n...", torch.cat(lost, 1) / divisor, maps).relu()

    return finished(subject.in_parts(work), subject, raw)


def _channel_axis(resumable: Resumable, maps: Tensor, arrange: Arrange) -> int:
    """The axis of the activation that becomes the channels of its maps (N, C, ...)."""
    activation = resumable.activation
    numbers = torch.arange(maps.shape[1], dtype=torch.float32, device=maps.device)
    for axis in range(1, activation.ndim):
        if activation.shape[axis] == len(numbers):
            numbered = numbers.view(-1, *[1] * (activation.ndim - 1 - axis)).expand_as(activation)
            arranged = arrange(numbered, resumable.layout)
            if torch.equal(arranged, numbers.view(-1, *[1] * (maps.ndim - 2)).expand_as(arranged)):
                return axis
    raise ValueError(
        f"reshape= makes {tuple(maps.shape)} of {tuple(activation.shape)}; expected one that only moves the channels"
    )
