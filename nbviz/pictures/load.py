"""Pictures of every kind to a model's input."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from nbviz.core.checks import FLOATS, check_tensor
from nbviz.core.chunks import in_chunks
from nbviz.core.errors import CompiledWarning, PictureError, PictureNotFoundError, line, shown, warn
from nbviz.core.state import check_model, device_aside, is_compiled
from nbviz.pictures.preprocess import Preprocess, find_preprocess, input_shape
from nbviz.pictures.random_numbers import left_alone

Array = np.ndarray[Any, Any]
_ACCEPTED = "a path, a PIL picture, a NumPy array, a tensor, or a list of these"


@dataclass(frozen=True)
class Pictures:
    """Pictures as a model takes them.

    Parameters
    ----------
    inputs
        (N, C, H, W), or (N, C, L), (N, C, D, H, W), in the model's dtype and on its device.
    preprocess
        What made them, and undoes them for display.
    names
        For each picture its file name, or "picture 1" and so on.
    """

    inputs: Tensor
    preprocess: Preprocess
    names: tuple[str, ...]

    def display(self, bands: Sequence[int] | None = None) -> Tensor:
        """The pictures as a person sees them, at the model's input size: uint8 (N, 3, H, W) on the CPU.

        Of signals, a curve for each channel that is shown: (N, 1 to 3, L).

        Parameters
        ----------
        bands
            Which three of the channels are shown as red, green and blue; of another number their mean is shown in
            grey. None takes the first three, or all where there are fewer.
        """
        undo, count = self.preprocess.undoing(self.inputs), self.inputs.shape[1]
        chosen = list(bands) if bands is not None else [0, 1, 2] if count > 3 else list(range(count))
        grey = len(chosen) > 3 or (len(chosen) < 3 and self.inputs.ndim > 3)
        sides = self.inputs.shape[2:]
        result = torch.empty((len(self.inputs), 3 if grey else len(chosen), *sides), dtype=torch.uint8)
        # Of a large picture only some rows are fractions at a time: each step makes a copy of them.
        rows = max(1, _AT_ONCE * sides[0] // max(self.inputs.numel(), 1))
        for start in range(0, sides[0], rows):
            part = slice(start, start + rows)
            shown = undo(self.inputs[:, :, part])[:, chosen]
            shown = shown.mean(1, keepdim=True) if grey else shown
            result[:, :, part] = (shown * 255).round().to(torch.uint8)
        return result


_AT_ONCE = 1 << 22  # numbers


def load(model: nn.Module, images: Any, preprocess: Any = None) -> Pictures:
    """Make a model's input from pictures.

    Parameters
    ----------
    model
        Gives the device, the dtype and, where it is known, the preprocessing.
    images
        One of these, or a list of them:

        - a path of a picture file (its EXIF rotation is applied, transparency laid over white, 16
          bits brought to 8);
        - a PIL picture;
        - a NumPy array (H, W), (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels: uint8, uint16, bool,
          or float in [0, 1];
        - a uint8 tensor (C, H, W) or (N, C, H, W) with 1, 3 or 4 channels (C = 3 or 4 for a grey model
          only in the latter: it could be three or four grey pictures);
        - a float tensor (C, H, W) or (N, C, H, W): taken as the model's input as it is.

        A model whose first convolution takes other than 1 or 3 channels (multispectral) takes arrays (H, W, C) and
        tensors of just so many; one that takes signals (Conv1d) or volumes (Conv3d), arrays and tensors (C, L),
        (N, C, L) or (C, D, H, W), (N, C, D, H, W), without C where there is one channel. uint8, uint16 and bool
        become [0, 1], float stays as it is.
    preprocess
        A callable from a PIL picture to a float tensor (C, H, W); for a model of the second kind, from a tensor as
        it was given. None takes the model's own, see :func:`nbviz.pictures.preprocess.find_preprocess`.

    Returns
    -------
    Pictures
        With ``inputs`` (N, C, H, W).

    Raises
    ------
    PictureNotFoundError
        When there is no file at a path (a FileNotFoundError and a ValueError).
    PictureError
        When a file is no picture, an array has no picture's shape or range, a value is not finite, or
        pictures differ in size after preprocessing (a ValueError).
    ModelError
        When the model's device has no memory for them (a RuntimeError).
    TypeError
        For anything that is no picture, or a model that is scripted or exported.

    Warns
    -----
    CompiledWarning
        When the model or a part of it is compiled: nbviz runs the eager one that it was made from.

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
    # A preprocess that crops at random draws from numbers of its own; a tensor of floats is not prepared.
    prepares = not all(isinstance(item, Tensor) and item.dtype in FLOATS for item in items)
    with device_aside(), left_alone() if prepares else nullcontext():
        for given in items:
            for name, x in reader.read(given, len(inputs)):
                inputs.append(x)
                names.append(name)
    if not inputs:
        raise PictureError(f"images is empty; expected {_ACCEPTED}")
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise PictureError(
            f"the pictures have different sizes: {', '.join(map(str, sorted(shapes)[:4]))}; "
            "give preprocess= with a resize and a crop to one size"
        )

    def batch(part: Sequence[Tensor]) -> Tensor:
        return torch.stack([x.to(reader.device) for x in part])

    n, what = len(inputs), f"picture(s) of shape {tuple(inputs[0].shape)} on {reader.device}"
    (result,) = in_chunks(batch, inputs, n, f"{n} {what}", least=n)
    return Pictures(result, reader.preprocess, tuple(names))


@dataclass(frozen=True)
class Reader:
    """What makes one model's inputs of pictures.

    Parameters
    ----------
    preprocess
        From one picture to the model's input.
    channels, axes
        Of that input; see :func:`nbviz.pictures.preprocess.input_shape`.
    dtype, device
        The model's.
    """

    preprocess: Preprocess
    channels: int
    axes: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, preprocess: Any = None) -> Reader:
        """The one that belongs to a model, which is checked; see :func:`load`."""
        eager = check_model(model)
        if is_compiled(model):
            said = "the model is compiled, which hides its layers: it runs as the eager one it was made from"
            warn(said, CompiledWarning)
        weight = next((p for p in eager.parameters() if p.is_floating_point()), None)
        dtype, device = (weight.dtype, weight.device) if weight is not None else (torch.float32, torch.device("cpu"))
        return cls(find_preprocess(eager, preprocess), *input_shape(eager), dtype, device)

    def read(self, given: Any, number: int) -> Iterator[tuple[str, Tensor]]:
        """Of each picture in one item, the first of which has this number, the name and the input (C, H, W)."""
        item = as_path(given) if isinstance(given, (str, os.PathLike)) else given
        if self.axes == 2:
            _check_not_several(item, self.preprocess.mode)
            pictures = _split(item, self.channels)
        else:
            pictures = _split_others(item, self.channels, self.axes)
        for i, picture in enumerate(pictures, number + 1):
            name = item.name if isinstance(item, Path) else f"picture {i}"
            yield name, _prepare(picture, self.preprocess, line(name, 80), self.dtype)


def _prepare(picture: Image.Image | Array | Tensor, preprocess: Preprocess, name: str, dtype: torch.dtype) -> Tensor:
    """One picture's input (C, H, W) in the model's dtype."""
    if isinstance(picture, Tensor):
        result = picture
    else:
        try:
            result = preprocess(torch.from_numpy(picture.copy()) if isinstance(picture, np.ndarray) else picture)
        except Exception as error:
            said = f"{type(error).__name__}: {line(error, 1000)}"
            raise PictureError(f"preprocess failed on {name}: {said}") from error
        ndim = picture.ndim if isinstance(picture, np.ndarray) else 3
        if not isinstance(result, Tensor) or not _is_input(result, ndim):
            what = f"a {result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            shape = {2: "(C, L)", 3: "(C, H, W)", 4: "(C, D, H, W)"}[ndim]
            raise PictureError(f"preprocess gives {what} for {name}; expected a float tensor {shape}")
    result = result.to(dtype)  # in which a large number may be infinite
    # Their sum tells at once, unless it is too large itself.
    if not torch.isfinite(result.sum()) and not torch.isfinite(result).all():
        raise PictureError(f"{name} has values that are not finite (NaN or infinity); expected finite ones")
    return result


def _is_input(result: Tensor, ndim: int) -> bool:
    strange = result.is_nested or result.layout is not torch.strided or result.is_meta
    return not strange and result.dtype in FLOATS and result.ndim == ndim and 0 not in result.shape


def _check_not_several(item: Any, mode: str) -> None:
    if not isinstance(item, Tensor) or item.is_floating_point() or item.ndim != 3 or mode != "L" or len(item) <= 1:
        return
    raise PictureError(
        f"a tensor of shape {tuple(item.shape)} for a model of grey pictures: for {len(item)} pictures give "
        "images[:, None], which is (N, 1, H, W); for one in colour images[None], which is (1, C, H, W)"
    )


def _split(item: Any, channels: int) -> Iterator[Image.Image | Array | Tensor]:
    """The pictures in one item: PIL pictures, arrays (C, H, W) of bands, or float tensors that are inputs already."""
    if isinstance(item, Path):
        yield _open(item, channels)
    elif isinstance(item, Image.Image):
        with _reading(f"a PIL picture of mode {item.mode}"):
            item.load()  # of one that was opened and not yet read
            flat = _bands(item, channels)
        yield flat
    elif isinstance(item, Tensor):
        check_tensor("images", item, "(C, H, W) or (N, C, H, W)")
        if item.ndim not in (3, 4) or 0 in item.shape:
            raise PictureError(
                f"a tensor of shape {tuple(item.shape)} is no picture; expected (C, H, W) or (N, C, H, W)"
            )
        batch = item if item.ndim == 4 else item[None]
        if item.dtype in FLOATS:
            yield from batch.detach().unbind()
        elif item.dtype in _WHOLE:
            yield from _split(batch.permute(0, 2, 3, 1).cpu().numpy(), channels)
        else:
            raise TypeError(f"a tensor of {item.dtype} is no picture; expected uint8, uint16, bool or a float dtype")
    elif isinstance(item, np.ndarray):
        if channels not in (1, 3) and item.ndim in (3, 4) and item.shape[-1] == channels and item.size:
            numbers = _numbers(item)
            yield from np.moveaxis(numbers if item.ndim == 4 else numbers[None], -1, 1)
        elif item.ndim == 4:
            wide = _is_wide(item)
            for part in item:
                yield _from_array(part, wide)
        else:
            yield _from_array(item)
    else:
        raise TypeError(f"images: got {type(item).__name__}; expected {_ACCEPTED}")


def _split_others(item: Any, channels: int, axes: int) -> Iterator[Array | Tensor]:
    """The signals or volumes in one item: arrays, or float tensors that are inputs already."""
    if not isinstance(item, (np.ndarray, Tensor)):
        what = "a path" if isinstance(item, Path) else type(item).__name__
        raise TypeError(f"images: got {what}; the model takes {_KINDS[axes]}")
    if isinstance(item, Tensor):
        check_tensor("images", item, _KINDS[axes].partition("a tensor ")[2])
    if item.ndim == axes and channels == 1:
        item = item[None]
    if item.ndim not in (axes + 1, axes + 2) or 0 in item.shape:
        raise PictureError(f"images has shape {tuple(item.shape)}; the model takes {_KINDS[axes]}")
    batch = item if item.ndim == axes + 2 else item[None]
    if isinstance(batch, np.ndarray):
        yield from _numbers(batch)
    elif batch.dtype in FLOATS:
        yield from batch.detach().unbind()
    elif batch.dtype in _WHOLE:
        yield from _numbers(batch.cpu().numpy())
    else:
        raise TypeError(f"images: a tensor of {batch.dtype}; expected uint8, uint16, bool or a float dtype")


_KINDS = {
    1: "signals; expected an array or a tensor (C, L) or (N, C, L), or a list of these",
    3: "volumes; expected an array or a tensor (C, D, H, W) or (N, C, D, H, W), or a list of these",
}


def _numbers(array: Array) -> Array:
    """In a dtype that torch has, and in this machine's order of bytes."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.newbyteorder("=") in (np.uint8, np.uint16, np.bool_):
        return array.astype(array.dtype.newbyteorder("="))
    raise TypeError(f"an array of {array.dtype}; expected uint8, uint16, bool or float")


_WHOLE = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


def as_path(given: str | os.PathLike[str]) -> Path:
    """The path given, if it is one, and not an address."""
    try:
        text = os.fspath(given)
        if "://" not in text:
            return Path(text)
    except Exception:  # bytes, or an object of the person's own that fails
        raise TypeError(f"images: the path {shown(given)} is no text; expected {_ACCEPTED}") from None
    given = shown(text, 200)
    raise PictureError(f"{given} is an address; only files are loaded: download it and give the file's path")


def _open(path: Path, channels: int) -> Image.Image | Array:
    """The picture in a file, 8 bits, grey or RGB; or its bands (C, H, W) where they are what the model takes."""
    with _reading(shown(str(path), 200)):
        try:
            path = path.expanduser()
            if not path.is_file() and path.exists():  # a pipe would be waited for, a device may have no end
                raise OSError("it is a folder, pipe or device")
            with Image.open(path) as file:
                if file.format == "EPS":  # a program, which Pillow would have Ghostscript run
                    raise UnidentifiedImageError
                return _bands(ImageOps.exif_transpose(file), channels)
        except FileNotFoundError:
            near = ", ".join(sorted(p.name for p in path.parent.glob(f"{glob.escape(path.stem[:3])}*"))[:3])
            near = f"; near it: {line(near, 200)}" if near else ""
            raise PictureNotFoundError(f"there is no file {shown(str(path), 200)}{near}") from None


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """A picture that cannot be read inside, for whatever reason, is a PictureError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow remarks on a file that it can read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{what} is no picture that can be read; expected PNG, JPEG or the like") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise PictureError(f"{what} cannot be read as a picture: it is too large; expected at most {most}") from None
    except Exception as error:  # a broken file has Pillow fail in many ways
        said = line(error, 200)
        raise PictureError(f"{what} cannot be read as a picture: {said}; expected a whole one") from error


def _bands(picture: Image.Image, channels: int) -> Image.Image | Array:
    """The bands (C, H, W) of a picture that has as many as a model of other than 1 or 3 takes; else it is flattened."""
    if channels in (1, 3) or len(picture.getbands()) != channels:
        return _flatten(picture)
    return np.moveaxis(np.asarray(picture), -1, 0)


def _flatten(picture: Image.Image) -> Image.Image:
    """An 8-bit grey or RGB picture, transparency laid over white."""
    if picture.mode.startswith(("I", "F")):
        return _from_array(np.asarray(picture))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _is_wide(array: Array) -> bool:
    """Whether numbers have 16 bits: by their dtype, or in a wider one by the largest."""
    return array.dtype.kind in "ui" and (array.dtype.str[1:] == "u2" or bool(array.size and array.max() > 255))


def _from_array(array: Array, wide: bool = False) -> Image.Image:
    """A PIL picture, 8 bits, from (H, W) or (H, W, C), which may belong with others of 16 bits."""
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"an array of shape {array.shape} is no picture; expected (H, W), (H, W, C) or (N, H, W, C) "
            "with 1, 3 or 4 channels"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise PictureError("an array has values that are not finite (NaN or infinity); expected finite ones")
        if array.min() < 0 or array.max() > 1:
            raise PictureError(
                f"a float array has values from {array.min():.3g} to {array.max():.3g}; expected [0, 1] for a picture "
                "(a torch tensor is taken as the model's input as it is)"
            )
        array = np.round(array * 255)
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype.kind in "ui":
        if array.min() < 0 or array.max() > 65535:
            raise PictureError(f"an array has values from {array.min()} to {array.max()}; expected 0 to 255 or 65535")
        if wide or _is_wide(array):
            array = np.round(array / 257)
    else:
        raise TypeError(f"an array of {array.dtype} is no picture; expected uint8, uint16, bool or float in [0, 1]")
    array = array.astype(np.uint8)
    return _flatten(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
