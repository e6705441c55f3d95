"""From the device to the page: copy tensors to the host at once, and compress pixels where that saves time."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Array = np.ndarray[Any, Any]


def to_host(*tensors: Tensor) -> list[Array]:
    """Copy tensors to the host as arrays, in one transfer.

    Parameters
    ----------
    *tensors
        Tensors on the same device, of any shape and any dtype that NumPy has.

    Returns
    -------
    list of ndarray
        The arrays. From a GPU they are copied into pinned memory, and only this transfer is waited for.

    Examples
    --------
    >>> [array.tolist() for array in to_host(torch.tensor([[1.5]]), torch.tensor([True, False]))]
    [[[1.5]], [True, False]]
    """
    detached = [tensor.detach().contiguous() for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in detached):
        return [tensor.numpy() for tensor in detached]
    packed = torch.cat([tensor.flatten().view(torch.uint8) for tensor in detached])
    if packed.device.type != "cuda":
        return _unpack(packed.cpu().numpy(), detached)
    host = torch.empty_like(packed, device="cpu", pin_memory=True)
    host.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(packed.device).synchronize()
    return _unpack(host.numpy(), detached)


def channels_last(picture: Tensor) -> Array:
    """A picture (C, H, W) as an array (H, W, C).

    Examples
    --------
    >>> channels_last(torch.zeros(3, 4, 5)).shape
    (4, 5, 3)
    """
    return to_host(picture.permute(1, 2, 0))[0]


def _unpack(packed: Array, tensors: Sequence[Tensor]) -> list[Array]:
    """Arrays with the shapes and dtypes of the tensors, from their concatenated bytes."""
    ends = np.cumsum([tensor.numel() * tensor.element_size() for tensor in tensors])
    dtypes = [torch.empty(0, dtype=tensor.dtype).numpy().dtype for tensor in tensors]
    pieces = np.split(packed, ends[:-1])
    return [p.view(d).reshape(t.shape) for p, d, t in zip(pieces, dtypes, tensors, strict=True)]


_PROBE = 1 << 13  # bytes in the middle that are compressed on trial
_WORTH_IT = 0.85  # the largest ratio of compression for which the page gains more time than it needs to inflate


def encode(pixels: Array) -> dict[str, Any]:
    """Pixels for the page, compressed if that is smaller and faster.

    Most maps have runs of one value (a ReLU's zeros, the grey around a reconstruction); with a Huffman code they shrink
    in less time than even a local connection needs for the difference. A probe detects other maps.

    Parameters
    ----------
    pixels
        uint8, of any shape.

    Returns
    -------
    dict
        ``shape``, ``data``, and whether the data is ``deflated`` (in zlib's format, which browsers inflate).

    Examples
    --------
    >>> import numpy as np
    >>> [len(encode(np.zeros(n, np.uint8))["data"]) for n in (10, 100_000)]
    [10, 120]
    """
    raw = np.ascontiguousarray(pixels).tobytes()
    middle = max(0, (len(raw) - _PROBE) // 2)
    worth_it = len(_deflate(raw[middle : middle + _PROBE])) < _WORTH_IT * min(len(raw), _PROBE)
    data = min(raw, _deflate(raw), key=len) if worth_it else raw
    return {"shape": list(pixels.shape), "data": data, "deflated": data is not raw}


def jpeg(pixels: Array) -> bytes:
    r"""A photograph for the page, at about a tenth of its size in pixels.

    Parameters
    ----------
    pixels
        uint8 (H, W, C) with 1 or 3 channels.

    Returns
    -------
    bytes
        A JPEG file, which browsers read.

    Examples
    --------
    >>> import numpy as np
    >>> jpeg(np.zeros((96, 96, 3), np.uint8))[:2]
    b'\xff\xd8'
    """
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def decode(encoded: Mapping[str, Any]) -> Array:
    """The pixels that were passed to :func:`encode`.

    Examples
    --------
    >>> import numpy as np
    >>> decode(encode(np.full((2, 3), 7, np.uint8))).tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    raw = zlib.decompress(encoded["data"]) if encoded["deflated"] else encoded["data"]
    return np.frombuffer(raw, np.uint8).reshape(encoded["shape"])


def _deflate(raw: bytes) -> bytes:
    compress = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return compress.compress(raw) + compress.flush()
