"""Small pictures for the strip, made when they are asked for: a page shows few of thousands at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from nbviz.core.errors import line
from nbviz.imaging.encode import Array
from nbviz.widgets.session import Session, fitted


class Thumbs:
    """Small versions of a session's pictures, with the bands that it shows now; of volumes, the middle slice.

    Parameters
    ----------
    session
        The session with the pictures.
    size
        The most pixels of the longer side; signals keep all samples that a curve can show.
    """

    def __init__(self, session: Session, size: int = 96) -> None:
        self.names = [line(name) for name in session.subject.pictures.names]
        self.plot = session.axes == 1
        self._session, self._display, self._size = session, session.display, size

    def pixels(self, places: slice) -> Array:
        """Some of the pictures, uint8 (N, h, w, C)."""
        small = fitted(self._session.plane(self._display[places], self._session.depth // 2))
        scale = min(1.0, self._size / max(small.shape[-2:]))
        if not self.plot and scale < 1:
            shape = [max(1, round(scale * side)) for side in small.shape[-2:]]
            small = torch.nn.functional.interpolate(small.float(), shape, mode="bilinear", antialias=True)
        pixels: Array = small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return pixels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        (pixels,) = self.pixels(slice(i, i + 1))
        return {"name": self.names[i], "shape": list(pixels.shape), "data": pixels.tobytes(), "plot": self.plot}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
