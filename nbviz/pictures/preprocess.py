"""A model's preprocessing: found from the model, applied to pictures, and undone for display."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nbviz.core.checks import FLOATS, check_choice, check_tensor
from nbviz.core.errors import PictureError, line, shown
from nbviz.core.state import modules_of


@dataclass(frozen=True)
class Preprocess:
    """A model's preprocessing and the names of its outputs.

    Set one as the attribute ``nbviz_preprocess`` of your own model; the bundled models have it.

    Parameters
    ----------
    transform
        A callable from a PIL picture of the given mode to the model's input, a float tensor (C, H, W). For a model that
        takes neither 1 nor 3 channels, or signals or volumes: from a tensor (C, H, W), (C, L) or (C, D, H, W).
    mode
        The PIL mode that ``transform`` takes: ``"RGB"`` or ``"L"`` (grey).
    mean, std
        What ``transform`` subtracts and divides by, per channel, in units of [0, 1]; None if
        there is no such step or it is not known.
    labels
        The names of the outputs, in order.
    source
        Where the preprocessing was found, in words.

    Raises
    ------
    TypeError
        When ``transform`` is not callable, ``mean`` or ``std`` are not numbers, or ``labels`` are not a list.
    ValueError
        When ``mode`` is unknown.

    Examples
    --------
    >>> from PIL import Image
    >>> halve = Preprocess(lambda picture: torch.zeros(3, *picture.size[::-1]), source="an example")
    >>> halve(Image.new("L", (5, 4))).shape
    torch.Size([3, 4, 5])
    """

    transform: Callable[[Any], Tensor]
    mode: str = "RGB"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    source: str = "given"

    def __post_init__(self) -> None:
        transform: Any = self.transform
        if not callable(transform):
            raise TypeError(f"transform is {shown(transform)}; expected a callable from a PIL picture to (C, H, W)")
        check_choice("mode", self.mode, ("RGB", "L"))
        if not isinstance(self.source, str):
            raise TypeError(f"source is {shown(self.source)}; expected a string")
        # Lists and arrays become tuples.
        for name in ("mean", "std"):
            object.__setattr__(self, name, _check_numbers(name, getattr(self, name)))
        object.__setattr__(self, "labels", None if self.labels is None else check_labels(self.labels))

    def __call__(self, picture: Any) -> Tensor:
        """The model's input (C, H, W) for a PIL picture of any mode, or for a tensor."""
        if isinstance(picture, Tensor):
            return self.transform(picture)
        if not isinstance(picture, Image.Image):
            raise TypeError(f"picture is {type(picture).__name__}; expected a PIL picture or a tensor")
        try:
            converted = picture.convert(self.mode)
        except Exception as error:  # a truncated or closed file, an invalid palette
            raise PictureError(f"the picture cannot be read: {line(error)}; expected an intact file") from error
        return self.transform(converted)

    def undo(self, inputs: Tensor) -> Tensor:
        """Pictures (N, C, H, W), signals or volumes in [0, 1] from a model's inputs of the same shape.

        If mean and std are unknown and values lie outside [0, 1], each picture's range is scaled
        to [0, 1].
        """
        return self.undoing(inputs)(inputs)

    def undoing(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """What :meth:`undo` does for these inputs, as a function of any rows of them."""
        inputs = check_tensor("inputs", inputs, "(N, C, H, W)").detach()
        if inputs.ndim not in (3, 4, 5) or 0 in inputs.shape or inputs.is_complex():
            what = f"{inputs.dtype} {tuple(inputs.shape)}"
            raise ValueError(f"inputs is {what}; expected real (N, C, H, W), none of them empty")
        scale = self._scale(inputs[:, :, :0].float())
        if scale is not None:
            mean, std = scale
            return lambda part: (part.detach().float() * std).add_(mean).clamp_(0, 1)
        flat = inputs.flatten(1)
        flat = flat if flat.dtype in FLOATS else flat.float()
        shape = [-1, *[1] * (inputs.ndim - 1)]
        low, high = flat.amin(1).float().view(shape), flat.amax(1).float().view(shape)
        if float(low.min()) >= 0 and float(high.max()) <= 1:
            return lambda part: part.detach().float()
        return lambda part: (part.detach().float() - low).div_((high - low).clamp(min=1e-12))

    def redo(self, pictures: Tensor) -> Tensor:
        """The model's inputs (N, C, H, W) for pictures of the same shape in [0, 1].

        If mean and std are unknown, these are the pictures themselves.

        Examples
        --------
        >>> halve = Preprocess(lambda picture: torch.zeros(1, 2, 2), mean=(0.5,), std=(0.25,))
        >>> halve.redo(torch.tensor([[[[0.5, 1.0]]]])).flatten().tolist()
        [0.0, 2.0]
        """
        scale = self._scale(pictures)
        return pictures if scale is None else (pictures - scale[0]) / scale[1]

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and std in the shape (1, C, 1, 1), if known and matching the channels."""
        if self.mean is None or self.std is None or not {len(self.mean), len(self.std)} <= {1, like.shape[1]}:
            return None
        shape = [1, -1, *[1] * (like.ndim - 2)]
        return like.new_tensor(self.mean).view(shape), like.new_tensor(self.std).view(shape)


def check_labels(given: Any) -> tuple[str, ...]:
    """The given names of a model's outputs, as strings."""
    with suppress(Exception):  # foreign objects may raise anything
        names = given.tolist() if hasattr(given, "tolist") else given
        if isinstance(names, (list, tuple)):
            return tuple(map(str, names))
    raise TypeError(f"labels is a {type(given).__name__}; expected a list of names, one for each output")


def _check_numbers(name: str, given: Any) -> tuple[float, ...] | None:
    if given is None:
        return None
    with suppress(Exception):  # foreign objects may raise anything; a number may be too large for a float
        numbers = given.tolist() if hasattr(given, "tolist") else given
        if isinstance(numbers, (list, tuple)) and all(isinstance(n, Real) and math.isfinite(n) for n in numbers):
            return tuple(map(float, numbers))
    raise TypeError(f"{name} is {shown(given)}; expected a number for each channel, or None")


def find_preprocess(model: nn.Module, preprocess: Any = None) -> Preprocess:
    """The preprocessing that belongs to a model.

    Parameters
    ----------
    model
        The sources are, in this order: its attribute ``nbviz_preprocess``, its timm configuration,
        and the torchvision weights for its class and size; for a DataParallel, those of its
        ``module``. Any other model takes pictures in [0, 1] without preprocessing. A Hugging Face model names its
        classes in ``config.id2label``.
    preprocess
        A callable from a PIL picture to a tensor (C, H, W), such as ``weights.transforms()``, which
        takes precedence; the labels that were found are kept.

    Raises
    ------
    TypeError
        When ``preprocess`` is not callable.
    """
    found = _found(model)
    if preprocess is None:
        return found
    if isinstance(preprocess, Preprocess):
        return preprocess if preprocess.labels else replace(preprocess, labels=found.labels)
    if not callable(preprocess):
        raise TypeError(
            f"preprocess is {type(preprocess).__name__}; expected a callable from a PIL picture to a tensor "
            "(C, H, W), such as weights.transforms()"
        )
    mean, std = _normalisation(preprocess)
    return Preprocess(preprocess, found.mode, mean, std, found.labels)


def input_shape(model: nn.Module) -> tuple[int, int]:
    """The channels and spatial axes of a model's input, by its first convolution; 3 and 2 without one.

    Examples
    --------
    >>> input_shape(nn.Sequential(nn.ReLU(), nn.Conv1d(8, 4, 3))), input_shape(nn.Linear(2, 2))
    ((8, 1), (3, 2))
    """
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return module.in_channels, len(module.kernel_size)
    return 3, 2


def _found(model: nn.Module) -> Preprocess:
    own = getattr(model, "nbviz_preprocess", None)
    if isinstance(own, Preprocess):
        return own
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _found(model.module)
    shape = input_shape(model)
    takes_pictures = shape in ((1, 2), (3, 2))  # grey or in colour, and not more bands, signals or volumes
    found = _timm(model) if takes_pictures else None
    if takes_pictures or shape == (3, 3):
        found = found or _torchvision(model)
    found = found or _plain(*shape)
    return replace(found, labels=_labels_of_config(model)) if found.labels is None else found


def _labels_of_config(model: nn.Module) -> tuple[str, ...] | None:
    """The names of the classes in the configuration of a Hugging Face model, or of one within the model."""
    with suppress(Exception):  # foreign objects may raise anything
        configs = [getattr(m, "config", None) for m in (model, *model.children())]
        named = next(names for c in configs if isinstance(names := getattr(c, "id2label", None), Mapping))
        numbered = {int(number): str(name) for number, name in named.items()}
        # Without names of its own, a model has "LABEL_0", "LABEL_1", …
        if sorted(numbered) == list(range(len(numbered))) and set(numbered.values()) != {
            f"LABEL_{i}" for i in numbered
        }:
            return tuple(numbered[number] for number in range(len(numbered)))
    return None


#: How the source begins where no preprocessing is known.
NONE_KNOWN = "none known"


def _plain(channels: int, axes: int) -> Preprocess:
    mode = "L" if channels == 1 else "RGB"
    kind = {1: "signals", 3: "volumes"}.get(axes) or {1: "grey", 3: "RGB"}.get(channels, f"{channels} bands")
    return Preprocess(_plain_transform, mode, source=f"{NONE_KNOWN}: {kind} in [0, 1] (give preprocess= to change)")


def _plain_transform(picture: Image.Image | Tensor) -> Tensor:
    """uint8, uint16 and bool scaled to [0, 1]; float unchanged."""
    if not isinstance(picture, Tensor):
        return to_float32(picture)
    if picture.is_floating_point():
        return picture
    return picture.float() / {torch.bool: 1, torch.uint8: 255}.get(picture.dtype, 65535)


def to_float32(picture: Image.Image) -> Tensor:
    """An 8-bit picture as float32 (C, H, W) in [0, 1]; torchvision's ``to_tensor`` uses the default dtype.

    Examples
    --------
    >>> to_float32(Image.new("L", (1, 2), 255)).tolist()
    [[[1.0], [1.0]]]
    """
    from torchvision.transforms.functional import pil_to_tensor

    values: Tensor = pil_to_tensor(picture)
    return values.contiguous().float() / 255


def _timm(model: nn.Module) -> Preprocess | None:
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return None
    try:
        data = importlib.import_module("timm.data")
    except ImportError:  # a model that only looks like timm's
        return None
    config = data.resolve_data_config({}, model=model)
    if grey := input_shape(model)[0] == 1:  # the configuration may be that of the weights for three channels
        config.update({name: (sum(config[name]) / len(config[name]),) for name in ("mean", "std")})
    labels = _imagenet_labels() if getattr(model, "num_classes", None) == 1000 else None
    transform, mode = data.create_transform(**config, is_training=False), "L" if grey else "RGB"
    transform.transforms = [_in_float32(step, config) for step in transform.transforms]
    return Preprocess(transform, mode, tuple(config["mean"]), tuple(config["std"]), labels, "timm's configuration")


def _in_float32(step: Any, config: dict[str, Any]) -> Any:
    """A step of timm's transform, with replacements for the two that depend on the default dtype."""
    from torchvision import transforms

    if isinstance(step, transforms.ToTensor):
        return to_float32
    return transforms.Normalize(config["mean"], config["std"]) if isinstance(step, transforms.Normalize) else step


def _torchvision(model: nn.Module) -> Preprocess | None:
    """The preprocessing of torchvision's weights; a model does not record its own, so take those for its size."""
    module = type(model).__module__
    if not module.startswith("torchvision.models."):
        return None
    modules = modules_of(model)
    size = sum(p.numel() for p in {p for m in modules for p in m._parameters.values() if p is not None})
    outputs = [m.out_features for m in modules if isinstance(m, nn.Linear)]
    outputs = outputs or [m.out_channels for m in modules if isinstance(m, nn.Conv2d)]
    return _of_size(module, size, outputs[-1] if outputs else None)


@cache
def _of_size(module: str, size: int, outputs: int | None) -> Preprocess | None:
    if not (candidates := _weights_of(module)):
        return None
    weights = min(candidates, key=lambda weights: abs(weights.meta["num_params"] - size))
    transform = weights.transforms()
    mean, std = _normalisation(transform)
    names = tuple(weights.meta.get("categories") or ())
    labels = names if outputs == len(names) else None
    return Preprocess(transform, "RGB", mean, std, labels, f"torchvision's {weights}")


@cache
def _weights_of(module: str) -> list[Any]:
    """All weights for the networks in a module of torchvision, the default ones first."""
    from torchvision import models

    names = [name for name in models.list_models() if models.get_model_builder(name).__module__ == module]
    pairs = [(weights, kind.DEFAULT) for kind in map(models.get_model_weights, names) for weights in kind]
    return [weights for weights, _ in sorted(pairs, key=lambda pair: pair[0] is not pair[1])]


def _normalisation(transform: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std of the last normalisation in a torchvision transform, however deeply nested."""
    with suppress(Exception):  # attributes with these names and another meaning
        for step in reversed(list(getattr(transform, "transforms", None) or [])):
            if (nested := _normalisation(step)) != (None, None):
                return nested
        mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
        if mean is not None and std is not None:
            mean, std = (torch.as_tensor(values, dtype=torch.float64).flatten().tolist() for values in (mean, std))
            return tuple(mean), tuple(std)
    return None, None


def _imagenet_labels() -> tuple[str, ...]:
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.DEFAULT.meta["categories"])
