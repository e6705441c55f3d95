"""From files, PIL pictures, arrays and tensors to single pictures."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nbviz.core.checks import FLOATS, check_tensor
from nbviz.core.errors import PictureError, PictureNotFoundError, line, shown

Array = np.ndarray[Any, Any]
ACCEPTED = "a path, a PIL picture, a NumPy array, a tensor, or a list of these"


def decoded(item: Any, channels: int) -> Iterator[Image.Image | Array | Tensor]:
    """The pictures in an item: PIL pictures, arrays (C, H, W) of bands, or float tensors that are inputs already."""
    if isinstance(item, Path):
        yield _open(item, channels)
    elif isinstance(item, Image.Image):
        with _reading(f"a PIL picture of mode {item.mode}"):
            item.load()  # PIL opens files lazily
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
            yield from decoded(batch.permute(0, 2, 3, 1).cpu().numpy(), channels)
        else:
            raise TypeError(f"a tensor of {item.dtype} is no picture; expected uint8, uint16, bool or a float dtype")
    elif isinstance(item, np.ndarray):
        if channels not in (1, 3) and item.ndim in (3, 4) and item.shape[-1] == channels and item.size:
            numbers = _numbers(item)
            yield from np.moveaxis(numbers if item.ndim == 4 else numbers[None], -1, 1)
        else:
            wide = _is_wide(item)
            for picture in item if item.ndim == 4 else [item]:
                yield _from_array(picture, wide)
    else:
        raise TypeError(f"images: got {type(item).__name__}; expected {ACCEPTED}")


def decoded_arrays(item: Any, channels: int, axes: int) -> Iterator[Array | Tensor]:
    """The signals or volumes in an item: arrays, or float tensors that are inputs already."""
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
    """The array in a dtype that torch has, and in native byte order."""
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
    """The given path, which must not be a URL."""
    try:
        text = os.fspath(given)
        if "://" not in text:
            return Path(text)
    except Exception:  # bytes, or a failing __fspath__
        raise TypeError(f"images: the path {shown(given)} is no text; expected {ACCEPTED}") from None
    raise PictureError(f"{shown(text, 200)} is a URL; only files are loaded: download it and give the file's path")


def _open(path: Path, channels: int) -> Image.Image | Array:
    """The picture in a file, in 8 bits, grey or RGB; or its bands (C, H, W), if the model takes that many channels."""
    with _reading(shown(str(path), 200)):
        try:
            path = path.expanduser()
            if not path.is_file() and path.exists():  # reading a pipe may block, and a device may have no end
                raise OSError("it is a folder, pipe or device")
            with Image.open(path) as file:
                if file.format == "EPS":  # a program, which Pillow would run in Ghostscript
                    raise UnidentifiedImageError
                return _bands(ImageOps.exif_transpose(file), channels)
        except FileNotFoundError:
            similar = ", ".join(sorted(p.name for p in path.parent.glob(f"{glob.escape(path.stem[:3])}*"))[:3])
            hint = f"; near it: {line(similar)}" if similar else ""
            raise PictureNotFoundError(f"there is no file {shown(str(path), 200)}{hint}") from None


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn any failure to read a picture within the block into a PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{what} is no picture that can be read; expected PNG, JPEG or the like") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise PictureError(f"{what} cannot be read as a picture: it is too large; expected at most {most}") from None
    except Exception as error:  # Pillow fails on broken files in many ways
        raise PictureError(f"{what} cannot be read as a picture: {line(error)}; expected an intact file") from error


def _bands(picture: Image.Image, channels: int) -> Image.Image | Array:
    """The bands (C, H, W) of a picture, if a multispectral model takes this number of them; else it is flattened."""
    if channels in (1, 3) or len(picture.getbands()) != channels:
        return _flatten(picture)
    return np.moveaxis(np.asarray(picture), -1, 0)


def _flatten(picture: Image.Image) -> Image.Image:
    """The picture in 8 bits, grey or RGB, with transparent pixels blended with white."""
    if picture.mode.startswith(("I", "F")):
        array = np.asarray(picture)
        return _from_array(array, _is_wide(array))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _is_wide(array: Array) -> bool:
    """Whether the values have 16 bits: by their dtype, or for a wider dtype by the largest value."""
    return array.dtype.kind in "ui" and (array.dtype.str[1:] == "u2" or bool(array.size and array.max() > 255))


def _from_array(array: Array, wide: bool) -> Image.Image:
    """An 8-bit PIL picture from (H, W) or (H, W, C); ``wide`` if its values have 16 bits."""
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
        if wide:
            array = np.round(array / 257)
    else:
        raise TypeError(f"an array of {array.dtype} is no picture; expected uint8, uint16, bool or float in [0, 1]")
    array = array.astype(np.uint8)
    return _flatten(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
