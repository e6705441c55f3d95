"""Pictures of every kind to a model's input."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from nbviz.core.errors import PictureError, PictureNotFoundError, line, shown
from nbviz.core.state import check_model, interruptible, uninterrupted
from nbviz.imaging.pixels import FLOATS, check_tensor
from nbviz.imaging.preprocess import Preprocess, find_preprocess

_ACCEPTED = "a path, a PIL picture, a NumPy array, a tensor, or a list of these"


@dataclass(frozen=True)
class Pictures:
    """Pictures as a model takes them.

    Parameters
    ----------
    inputs
        (N, C, H, W) in the model's dtype and on its device.
    preprocess
        What made them, and undoes them for display.
    names
        For each picture its file name, or "picture 1" and so on.
    """

    inputs: Tensor
    preprocess: Preprocess
    names: tuple[str, ...]

    def display(self) -> Tensor:
        """The pictures as a person sees them, at the model's input size: uint8 (N, 3, H, W) on the CPU."""
        shown = self.preprocess.undo(self.inputs)
        if shown.shape[1] != 3:  # grey, or channels that are no colours
            shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return (shown * 255).round().to(torch.uint8).cpu()


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
    preprocess
        A callable from a PIL picture to a float tensor (C, H, W). None takes the model's own, see
        :func:`nbviz.imaging.preprocess.find_preprocess`.

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
    TypeError
        For anything that is no picture, or a model that is scripted or compiled.

    Examples
    --------
    >>> net = nn.Conv2d(3, 4, 3)
    >>> load(net, [Image.new("L", (8, 6)), np.zeros((6, 8, 3), np.uint8)]).inputs.shape
    torch.Size([2, 3, 6, 8])
    """
    check_model(model)
    found = find_preprocess(model, preprocess)
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    device, dtype = (weight.device, weight.dtype) if weight is not None else (torch.device("cpu"), torch.float32)
    inputs: list[Tensor] = []
    names: list[str] = []
    # A preprocess that crops at random draws from numbers of its own.
    with uninterrupted(), torch.random.fork_rng(devices=[]), interruptible():
        for given in images if isinstance(images, (list, tuple)) else [images]:
            item = _as_path(given) if isinstance(given, (str, os.PathLike)) else given
            name = item.name if isinstance(item, Path) else ""
            _check_not_several(item, found.mode)
            for picture in _split(item):
                name_here = name or f"picture {len(inputs) + 1}"
                inputs.append(_prepare(picture, found, line(name_here, 80), dtype))
                names.append(name_here)
    if not inputs:
        raise PictureError(f"images is empty; expected {_ACCEPTED}")
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise PictureError(
            f"the pictures have different sizes: {', '.join(map(str, sorted(shapes)[:4]))}; "
            "give preprocess= with a resize and a crop to one size"
        )
    return Pictures(torch.stack([x.to(device) for x in inputs]), found, tuple(names))


def _prepare(picture: Image.Image | Tensor, preprocess: Preprocess, name: str, dtype: torch.dtype) -> Tensor:
    """One picture's input (C, H, W) in the model's dtype."""
    if isinstance(picture, Tensor):
        result = picture
    else:
        try:
            result = preprocess(picture)
        except Exception as error:
            said = f"{type(error).__name__}: {line(error, 1000)}"
            raise PictureError(f"preprocess failed on {name}: {said}") from error
        if not isinstance(result, Tensor) or not _is_input(result):
            what = f"a {result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise PictureError(f"preprocess gives {what} for {name}; expected a float tensor (C, H, W)")
    result = result.to(dtype)  # in which a large number may be infinite
    if not torch.isfinite(result).all():
        raise PictureError(f"{name} has values that are not finite (NaN or infinity); expected finite ones")
    return result


def _is_input(result: Tensor) -> bool:
    strange = result.is_nested or result.layout is not torch.strided or result.is_meta
    return not strange and result.dtype in FLOATS and result.ndim == 3 and 0 not in result.shape


def _check_not_several(item: Any, mode: str) -> None:
    if not isinstance(item, Tensor) or item.is_floating_point() or item.ndim != 3 or mode != "L" or len(item) <= 1:
        return
    raise PictureError(
        f"a tensor of shape {tuple(item.shape)} for a model of grey pictures: for {len(item)} pictures give "
        "images[:, None], which is (N, 1, H, W); for one in colour images[None], which is (1, C, H, W)"
    )


def _split(item: Any) -> Iterator[Image.Image | Tensor]:
    """The pictures in one item: PIL pictures, or float tensors (C, H, W) that are inputs already."""
    if isinstance(item, Path):
        yield _open(item)
    elif isinstance(item, Image.Image):
        with _reading(f"a PIL picture of mode {item.mode}"):
            item.load()  # of one that was opened and not yet read
            flat = _flatten(item)
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
            yield from _split(batch.permute(0, 2, 3, 1).cpu().numpy())
        else:
            raise TypeError(f"a tensor of {item.dtype} is no picture; expected uint8, uint16, bool or a float dtype")
    elif isinstance(item, np.ndarray):
        if item.ndim == 4:
            for part in item:
                yield _from_array(part)
        else:
            yield _from_array(item)
    else:
        raise TypeError(f"images: got {type(item).__name__}; expected {_ACCEPTED}")


_WHOLE = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


def _as_path(given: str | os.PathLike[str]) -> Path:
    try:
        text = os.fspath(given)
        if "://" not in text:
            return Path(text)
    except Exception:  # bytes, or an object of the person's own that fails
        raise TypeError(f"images: the path {shown(given)} is no text; expected {_ACCEPTED}") from None
    given = shown(text, 200)
    raise PictureError(f"{given} is an address; only files are loaded: download it and give the file's path")


def _open(path: Path) -> Image.Image:
    """The picture in a file, 8 bits, grey or RGB."""
    with _reading(shown(str(path), 200)):
        try:
            path = path.expanduser()
            if not path.is_file() and path.exists():  # a pipe would be waited for, a device may have no end
                raise OSError("it is a folder, pipe or device")
            with Image.open(path) as file:
                if file.format == "EPS":  # a program, which Pillow would have Ghostscript run
                    raise UnidentifiedImageError
                return _flatten(ImageOps.exif_transpose(file))
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


def _flatten(picture: Image.Image) -> Image.Image:
    """An 8-bit grey or RGB picture, transparency laid over white."""
    if picture.mode.startswith(("I", "F")):
        return _from_array(np.asarray(picture))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """A PIL picture from (H, W) or (H, W, C), 8 bits."""
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
        if array.dtype.str[1:] == "u2" or array.max() > 255:
            array = np.round(array / 257)
    else:
        raise TypeError(f"an array of {array.dtype} is no picture; expected uint8, uint16, bool or float in [0, 1]")
    array = array.astype(np.uint8)
    return _flatten(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
