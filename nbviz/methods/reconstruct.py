"""What in the picture a channel or a class responds to: all three backward rules from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from typing_extensions import Unpack

from nbviz.core.arguments import check_units
from nbviz.core.backward import RULES, UNPOOLING, pull
from nbviz.core.checks import check_choice, check_index, check_indices, check_real
from nbviz.core.chunks import in_chunks, joined
from nbviz.core.errors import NoRectifierWarning, NoSwitchWarning, shown, warn
from nbviz.core.local_backward import pull_local
from nbviz.core.regions import Start
from nbviz.core.state import alone, interruptible
from nbviz.core.switches import has_switches
from nbviz.core.trace import Trace
from nbviz.core.types import Channels, Images, SubjectOptions, Target
from nbviz.methods.subject import Subject, as_method

#: Where a reconstruction starts in a channel's map.
SEEDS = ("max", "map", "unit")
#: What is said where nothing on a deconvnet's way back depends on the picture.
NO_SWITCH = (
    "there is no max-pooling, nor anything else that routes by the picture, below this layer: the deconvnet depends on "
    "the picture only by the position and strength that it starts with"
)
_CHANNELS_AT_ONCE = 8


@as_method()
def reconstruct(
    model: nn.Module,
    images: Images,
    layer: str | None = None,
    channels: Channels | None = None,
    target: Target | None = None,
    seed: str = "max",
    rules: Sequence[str] = RULES,
    *,
    position: Sequence[int] | None = None,
    unpool: str = "sum",
    **options: Unpack[SubjectOptions],
) -> dict[str, Tensor]:
    """Reconstructions of a layer's channels, or of an output class, under several rules from one forward pass.

    All other activations of the layer are set to zero, and what is left is passed down to the picture
    (Zeiler and Fergus 2014, section 2.1). A rule says what a rectifier does to the signal on its way, see
    :func:`nbviz.gradient`, :func:`nbviz.deconvnet` and :func:`nbviz.guided_backprop`. Rectifiers are ReLU, threshold
    and clamp(min=0), however they are called. A rectifier built from other operations, such as
    ``torch.maximum(x, zero)``, follows the plain gradient.

    The papers consider only the ReLU. For ReLU6 (hardtanh from 0), LeakyReLU, PReLU, RReLU, ELU, CELU, SELU, SiLU,
    GELU, Hardswish, Softplus and Mish, both rules are extended: the deconvnet passes max(R, 0), as through a ReLU, and
    guided backprop max(R, 0) · f'(z), with the activation's own slope in place of [z > 0]. :func:`nbviz.layers` lists
    which of them a model has.

    Parameters
    ----------
    layer
        The name of a module (``"name:1"`` for its second call) that gives feature maps, or (N, C) numbers, as a linear
        layer does; None starts from an output class.
    target
        With ``layer=None``: the class, or one for each picture; None takes the predicted class. The signal starts as
        a one at the score of the class.
    seed
        With a layer, what is passed down: ``"max"``, the activation at the channel's strongest position, as in the
        paper; ``"map"``, the whole channel; ``"unit"``, a one at the strongest position, which under the gradient rule
        gives the gradient of the channel's maximum.
    rules
        Any of ``"gradient"``, ``"deconvnet"``, ``"guided"``.
    position
        Row and column in the layer's map to start from in place of the strongest position.
    unpool
        Where overlapping pooling windows (AlexNet's 3×3, stride 2) share a switch: ``"sum"`` their values, as the
        gradient and Captum do, or ``"overwrite"`` with the last, as ``max_unpool2d`` does.

    Returns
    -------
    dict of str to Tensor
        For each rule (N, K, C, H, W) with a layer, (N, C, H, W) with a class (for signals and volumes, with L or
        D, H, W in place of H, W). The values are signed, in units of activation per unit of the model's input (times
        the activation for ``"max"`` and ``"map"``), in the model's dtype and on its device. Under autocast, the forward
        pass has the precision of autocast's dtype.

    Raises
    ------
    ValueError
        When ``target`` is given with a ``layer``, or ``channels`` or a ``position`` without one. When ``layer`` gives
        no feature maps. When ``position`` is not within them, or is given for whole maps.
        When ``seed`` is unknown. When one of ``rules`` is unknown. When ``unpool`` is unknown.
    ModelError
        When no gradient reaches the picture.

    Warns
    -----
    NoRectifierWarning
        When the deconvnet or guided rule met no rectifier, so that the result equals the gradient.
    NoSwitchWarning
        When nothing between the layer and the picture makes the deconvnet's way back depend on the picture (no
        max-pooling, no gate): it then gives every picture the same reconstruction, but for where, and how strongly, it
        starts. The gradient and guided backprop depend on the picture through their rectifiers.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    >>> maps = reconstruct(net, torch.rand(2, 1, 8, 8), "2", channels=[3, 0])
    >>> {rule: tuple(m.shape) for rule, m in maps.items()}["guided"]
    (2, 2, 1, 8, 8)
    >>> reconstruct(net, torch.rand(2, 1, 8, 8), target=4, rules=["gradient"])["gradient"].shape
    torch.Size([2, 1, 8, 8])
    """
    if not isinstance(rules, (str, list, tuple, set)):
        raise TypeError(f"rules is {shown(rules)}; expected a list of {', '.join(RULES)}")
    rules = [check_choice("rule", rule, RULES) for rule in ([rules] if isinstance(rules, str) else rules)]
    check_choice("seed", seed, SEEDS)
    check_choice("unpooling", unpool, UNPOOLING)
    check_layer_or_target(layer, channels, target)
    if position is not None and (layer is None or seed == "map"):
        what = "a class" if layer is None else 'seed="map"'
        raise ValueError(f"position is a place in a layer's maps; {what} has none: expected None")
    subject = Subject.of(model, images, **options)
    met: dict[str, frozenset[str]] = {}
    is_routed: list[bool] = []

    def work(part: Subject) -> dict[str, Tensor]:
        if layer is None:
            trace = part.run(output=True, grad=True)
            scores = part.scores(trace.output)
            signal = part.selector(target, scores)[None]
            pulled = {rule: pull(rule, scores, signal, trace.inputs, unpool) for rule in rules}
        else:
            trace = part.run([layer], grad=True)
            chosen = traced_channels(trace, layer, channels)
            starts = None if position is None else _starts_at(position, check_units(trace, layer), chosen, seed)
            pulled = {rule: project(trace, layer, chosen, rule, seed, unpool, starts) for rule in rules}
        for rule, (_, rectifiers) in pulled.items():
            met.setdefault(rule, rectifiers)
        if "deconvnet" in pulled and not is_routed:
            is_routed.append(has_switches(scores if layer is None else trace.activations[layer], trace.inputs))
        return {rule: maps[0] if layer is None else maps for rule, (maps, _) in pulled.items()}

    result = subject.in_parts(work)
    for rule, maps in result.items():
        if maps.numel():
            warn_without_rectifiers(rule, met[rule])
            warn_without_switches(rule, is_routed)
    return result


def check_layer_or_target(layer: str | None, channels: Any, target: Any) -> None:
    """Raise a ValueError if channels are given without a layer, or a class with one."""
    if layer is not None and target is not None:
        raise ValueError("target is a class of the model's output and goes with layer=None; give channels for a layer")
    if layer is None and channels is not None:
        raise ValueError("channels belong to a layer; name the layer, or give target for an output class")


def traced_channels(trace: Trace, layer: str, given: Any) -> list[int]:
    """The given channels of a traced layer, checked; None takes all."""
    count = check_real(check_units(trace, layer), f"layer {shown(layer)}").shape[1]
    return list(range(count)) if given is None else check_indices("channel", given, count)


def project(
    trace: Trace,
    layer: str,
    channels: Sequence[int],
    rule: str,
    seed: str = "max",
    unpool: str = "sum",
    starts: list[Start] | None = None,
) -> tuple[Tensor, frozenset[str]]:
    """Send channels of a traced layer back to the picture: (N, K, C, H, W), and the names of the rectifiers met.

    ``starts`` gives, for each picture and each channel of it, a start other than the strongest position.
    """
    if not channels:
        return trace.inputs.new_empty(len(trace.inputs), 0, *trace.inputs.shape[1:]), frozenset()
    activation = check_units(trace, layer)
    starts = strongest(activation, channels, seed) if starts is None and seed != "map" else starts
    with alone(), interruptible():
        if starts is not None and unpool == "sum":  # one position: compute only its receptive field
            local = pull_local(rule, activation, starts, trace.inputs)
            if local is not None:
                return local[0].unflatten(0, (len(activation), len(channels))), local[1]

        def send(part: Sequence[int]) -> tuple[Tensor, frozenset[str]]:
            own = None
            if starts is not None:
                own = [starts[i * len(channels) + k] for i in range(len(activation)) for k in part]
            signals = seeds(activation, [channels[k] for k in part], own)
            return pull(rule, activation, signals, trace.inputs, unpool)

        sent = in_chunks(
            send, range(len(channels)), _CHANNELS_AT_ONCE, "the way of one channel's signal back to the picture"
        )
    return joined([maps for maps, _ in sent]).transpose(0, 1), sent[0][1]


def strongest(activation: Tensor, channels: Sequence[int], seed: str) -> list[Start]:
    """For each picture and each channel, the strongest position with its activation or a one."""
    chosen = activation.detach()[:, list(channels)].flatten(2)
    values, places = (t.flatten().tolist() for t in (chosen.amax(2), chosen.argmax(2)))
    positions = np.stack(np.unravel_index(places, activation.shape[2:]), 1).tolist()
    k = len(channels)
    return [
        Start(i // k, channels[i % k], tuple(position), value if seed == "max" else 1.0)
        for i, (value, position) in enumerate(zip(values, positions, strict=True))
    ]


def _starts_at(position: Any, maps: Tensor, channels: Sequence[int], seed: str) -> list[Start]:
    """For each picture and each channel the given position."""
    sides = maps.shape[2:]
    if not isinstance(position, (tuple, list)) or len(position) != len(sides):
        raise ValueError(
            f"position is {shown(position)}; expected {len(sides)} whole numbers, within maps of {_by(sides)}"
        )
    place: tuple[int, ...] = tuple(check_index("position", at, side) for at, side in zip(position, sides, strict=True))
    number = int(np.ravel_multi_index(place, tuple(sides)))
    values = maps.detach()[:, list(channels)].flatten(2)[..., number].tolist()
    return [
        Start(i, channel, place, value if seed == "max" else 1.0)
        for i, row in enumerate(values)
        for channel, value in zip(channels, row, strict=True)
    ]


def _by(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))


def seeds(activation: Tensor, channels: Sequence[int], starts: list[Start] | None) -> Tensor:
    """The activation with all but one channel, or all but one position of it, set to zero.

    Parameters
    ----------
    activation
        (N, C, H, W), or (N, C, L), (N, C, D, H, W).
    channels
        K indices.
    starts
        For each picture and each channel, the position that is kept and its value; None keeps the whole channel.

    Returns
    -------
    Tensor
        (K, *activation.shape).
    """
    activation = activation.detach()
    result = activation.new_zeros(len(channels), *activation.shape)
    if starts is None:
        for k, channel in enumerate(channels):
            result[k, :, channel] = activation[:, channel]
    else:
        for i, start in enumerate(starts):
            result[(i % len(channels), start.picture, start.channel, *start.position)] = start.value
    return result


def warn_without_rectifiers(rule: str, met: frozenset[str]) -> None:
    """Warn if no rectifier was met, so that the rule equals the gradient."""
    if rule != "gradient" and not met:
        warn(
            f"the {rule} rule met no rectifier (ReLU or the like) on its way to the picture: "
            "deconvnet and guided backprop equal the plain gradient here",
            NoRectifierWarning,
        )


def warn_without_switches(rule: str, is_routed: Sequence[bool]) -> None:
    """Warn if nothing on a deconvnet's way back depends on the picture, as ``is_routed`` says."""
    if rule == "deconvnet" and not all(is_routed):
        warn(NO_SWITCH, NoSwitchWarning)
