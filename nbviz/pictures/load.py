"""From pictures of every kind to a model's input."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nbviz.core.checks import FLOATS
from nbviz.core.chunks import in_chunks
from nbviz.core.documented import documented
from nbviz.core.errors import CompiledWarning, PictureError, line, warn, with_class
from nbviz.core.state import check_model, device_aside, is_compiled
from nbviz.core.types import Images, Preprocessing
from nbviz.pictures.decode import ACCEPTED, Array, as_path, decoded, decoded_arrays
from nbviz.pictures.preprocess import Preprocess, find_preprocess, input_shape
from nbviz.pictures.random_numbers import random_state_restored


@dataclass(frozen=True)
class Pictures:
    """Pictures as a model's input.

    Parameters
    ----------
    inputs
        (N, C, H, W), or (N, C, L), (N, C, D, H, W), in the model's dtype and on its device.
    preprocess
        The preprocessing that made them, which can undo them for display.
    names
        The file name of each picture, or "picture 1" and so on.
    as_given
        Whether they are float tensors, which are not preprocessed.
    """

    inputs: Tensor
    preprocess: Preprocess
    names: tuple[str, ...]
    as_given: bool = False

    def display(self, bands: Sequence[int] | None = None) -> Tensor:
        """The pictures for display, at the size of the model's input: uint8 (N, 3, H, W) on the CPU.

        Signals have one curve per displayed channel: (N, 1 to 3, L).

        Parameters
        ----------
        bands
            The three channels displayed as red, green and blue; of another number of channels, the mean is displayed in
            grey. None takes the first three, or all if there are fewer.
        """
        undo, count = self.preprocess.undoing(self.inputs), self.inputs.shape[1]
        chosen = list(bands) if bands is not None else [0, 1, 2] if count > 3 else list(range(count))
        grey = len(chosen) > 3 or (len(chosen) < 3 and self.inputs.ndim > 3)
        sides = self.inputs.shape[2:]
        result = torch.empty((len(self.inputs), 3 if grey else len(chosen), *sides), dtype=torch.uint8)
        # In blocks of rows, because each step makes a float copy.
        rows = max(1, _AT_ONCE * sides[0] // max(self.inputs.numel(), 1))
        for start in range(0, sides[0], rows):
            block = slice(start, start + rows)
            values = undo(self.inputs[:, :, block])[:, chosen]
            values = values.mean(1, keepdim=True) if grey else values
            result[:, :, block] = (values * 255).round().to(torch.uint8)
        return result


_AT_ONCE = 1 << 22  # values of a block


@documented
def load(model: nn.Module, images: Images, preprocess: Preprocessing | None = None) -> Pictures:
    """Make a model's input from pictures.

    Parameters
    ----------
    model
        The model. It determines the device, the dtype and, if known, the preprocessing.
    images
        One of these, or a list of them:

        - the path of a picture file (its EXIF rotation is applied, transparent pixels are blended
          with white, and 16 bits reduced to 8);
        - a PIL picture;
        - a NumPy array (H, W), (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels: uint8, uint16, bool,
          or float in [0, 1];
        - a uint8 tensor (C, H, W) or (N, C, H, W) with 1, 3 or 4 channels (for a grey model, (C, H, W)
          with 3 or 4 channels is refused, because it could also be 3 or 4 grey pictures);
        - a float tensor (C, H, W) or (N, C, H, W), which is the model's input already.

        A model whose first convolution takes neither 1 nor 3 channels (multispectral) takes arrays (H, W, C) and
        tensors with that number of channels. A model of signals (Conv1d) or volumes (Conv3d) takes arrays and tensors
        (C, L), (N, C, L) or (C, D, H, W), (N, C, D, H, W), without C if there is one channel. Of these, uint8, uint16
        and bool are scaled to [0, 1], and float is not changed.
    preprocess
        A callable from a PIL picture to a float tensor (C, H, W); for a model that is not of pictures, from the given
        tensor. None takes the model's own, see :func:`nbviz.pictures.preprocess.find_preprocess`.

    Returns
    -------
    Pictures
        With ``inputs`` (N, C, H, W).

    Raises
    ------
    PictureNotFoundError
        When there is no file at a path (a FileNotFoundError and a ValueError).
    PictureError
        When a file is no picture, an array has the wrong shape or range, a value is not finite, or
        pictures differ in size after preprocessing (a ValueError).
    ModelError
        When the pictures do not fit into the memory of the model's device (a RuntimeError).

    Warns
    -----
    CompiledWarning
        When the model or one of its modules is compiled: nbviz runs the eager model that it was made from.

    Examples
    --------
    >>> net = nn.Conv2d(3, 4, 3)
    >>> load(net, [Image.new("L", (8, 6)), np.zeros((6, 8, 3), np.uint8)]).inputs.shape
    torch.Size([2, 3, 6, 8])
    """
    reader = Reader.of(model, preprocess)
    inputs: list[Tensor] = []
    names: list[str] = []
    items = images if isinstance(images, (list, tuple)) else [images]
    # Preprocessing may draw random numbers, such as for a random crop; float tensors are not preprocessed.
    preprocessed = not all(isinstance(item, Tensor) and item.dtype in FLOATS for item in items)
    with device_aside(), random_state_restored() if preprocessed else nullcontext():
        for item in items:
            for name, x in reader.read(item, len(inputs)):
                inputs.append(x)
                names.append(name)
    if not inputs:
        raise PictureError(f"images is empty; expected {ACCEPTED}")
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise PictureError(
            f"the pictures have different sizes: {', '.join(map(str, sorted(shapes)[:4]))}; "
            "give preprocess= with a resize and a crop to one size"
        )

    def stacked(chunk: Sequence[Tensor]) -> Tensor:
        return torch.stack([x.to(reader.device) for x in chunk])

    n, what = len(inputs), f"picture(s) of shape {tuple(inputs[0].shape)} on {reader.device}"
    (batch,) = in_chunks(stacked, inputs, n, f"{n} {what}", least=n)
    return Pictures(batch, reader.preprocess, tuple(names), not preprocessed)


@dataclass(frozen=True)
class Reader:
    """Makes a model's inputs from pictures.

    Parameters
    ----------
    preprocess
        The model's preprocessing.
    channels, axes
        The channels and spatial axes of the input; see :func:`nbviz.pictures.preprocess.input_shape`.
    dtype, device
        Those of the model.
    """

    preprocess: Preprocess
    channels: int
    axes: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, preprocess: Any = None) -> Reader:
        """The reader for a model, which is checked; see :func:`load`."""
        eager = check_model(model)
        if is_compiled(model):
            message = "the model is compiled, which hides its layers: it runs as the eager one it was made from"
            warn(message, CompiledWarning)
        weight = next((p for p in eager.parameters() if p.is_floating_point()), None)
        dtype, device = (weight.dtype, weight.device) if weight is not None else (torch.float32, torch.device("cpu"))
        return cls(find_preprocess(eager, preprocess), *input_shape(eager), dtype, device)

    def read(self, item: Any, number: int) -> Iterator[tuple[str, Tensor]]:
        """The name and the input (C, H, W) of each picture in an item; ``number`` is that of the first."""
        item = as_path(item) if isinstance(item, (str, os.PathLike)) else item
        if self.axes == 2:
            _check_unambiguous(item, self.preprocess.mode)
            pictures = decoded(item, self.channels)
        else:
            pictures = decoded_arrays(item, self.channels, self.axes)
        for i, picture in enumerate(pictures, number + 1):
            name = item.name if isinstance(item, Path) else f"picture {i}"
            yield name, _prepare(picture, self.preprocess, line(name, 80), self.dtype)


def _prepare(picture: Image.Image | Array | Tensor, preprocess: Preprocess, name: str, dtype: torch.dtype) -> Tensor:
    """The input (C, H, W) for a picture, in the model's dtype."""
    if isinstance(picture, Tensor):
        result = picture
    else:
        try:
            result = preprocess(torch.from_numpy(picture.copy()) if isinstance(picture, np.ndarray) else picture)
        except Exception as error:
            raise PictureError(f"preprocess failed on {name}: {with_class(error)}") from error
        ndim = picture.ndim if isinstance(picture, np.ndarray) else 3
        if not isinstance(result, Tensor) or not _is_input(result, ndim):
            what = f"a {result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            shape = {2: "(C, L)", 3: "(C, H, W)", 4: "(C, D, H, W)"}[ndim]
            raise PictureError(f"preprocess gives {what} for {name}; expected a float tensor {shape}")
    result = result.to(dtype)  # large values may become infinite
    # The sum is a quick test, but may overflow.
    if not torch.isfinite(result.sum()) and not torch.isfinite(result).all():
        raise PictureError(f"{name} has values that are not finite (NaN or infinity); expected finite ones")
    return result


def _is_input(result: Tensor, ndim: int) -> bool:
    dense = result.layout is torch.strided and not (result.is_nested or result.is_meta)
    return dense and result.dtype in FLOATS and result.ndim == ndim and 0 not in result.shape


def _check_unambiguous(item: Any, mode: str) -> None:
    """Refuse a tensor (C, H, W) for a grey model: it may be one picture or several."""
    if not isinstance(item, Tensor) or item.is_floating_point() or item.ndim != 3 or mode != "L" or len(item) <= 1:
        return
    raise PictureError(
        f"a tensor of shape {tuple(item.shape)} for a model of grey pictures: for {len(item)} pictures give "
        "images[:, None], which is (N, 1, H, W); for one in colour images[None], which is (1, C, H, W)"
    )
