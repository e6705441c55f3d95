"""What a scan has found, in a file from which it can go on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbviz.core.errors import line, shown, warn
from nbviz.core.scan import Found, Job, Skipped
from nbviz.core.state import uninterrupted


def key_of(job: Job) -> str:
    """What must be the same for a scan to go on from a checkpoint: model, statistics, batches, and what is in them.

    Of the pictures the first, the last and one between are looked at, as the model gets them.
    """
    digest = hashlib.blake2b(digest_size=16)

    def note(*values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor):  # whose text leaves out most of a long one
                note(f"{value.dtype} {tuple(value.shape)}")
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                digest.update(f"{value}\0".encode(errors="replace"))

    for name, value in job.model.state_dict().items():
        note(name, value)
    note(repr(job.model), *(getattr(one, "keywords", None) or one for one in (job.check_logits,)))
    note(getattr(job.feed, "__qualname__", job.feed))
    for name, statistic in sorted(job.statistics.items()):
        note(name, type(statistic).__qualname__, *(part for item in vars(statistic).items() for part in item))
    note(job.source)
    for picture in job.source.sample():
        note(*picture)
    return digest.hexdigest()


def save_found(found: Found, key: str, path: Path) -> None:
    """Write what was found, all or nothing: to a file beside it, which then takes its place."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        content = {
            "nbviz scan": key,
            "done": found.done,
            "pictures": found.pictures,
            "skipped": [(one.index, one.name, one.reason) for one in found.skipped],
            "statistics": {name: vars(statistic) for name, statistic in found.statistics.items()},
        }
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def load_found(found: Found, key: str, path: Path) -> None:
    """Read what a scan found before it ended, if it has written anything."""
    if not path.exists():
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        of = content["nbviz scan"]
        done, pictures, skipped = content["done"], content["pictures"], content["skipped"]
        states: Mapping[str, dict[str, Any]] = content["statistics"]
    except Exception as error:
        said = line(error, 200)
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which cannot be read as one: {said}; expected a file that a scan has "
            "written, or a path where there is none"
        ) from error
    if of != key:
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which belongs to a scan with another model, other statistics or "
            "pictures; expected that of this scan, or a path where there is none"
        )
    found.done, found.pictures = [(a, b) for a, b in done], pictures
    found.skipped = [Skipped(*one) for one in skipped]
    for name, statistic in found.statistics.items():
        vars(statistic).update(states[name])


class Saver:
    """Writes a checkpoint from time to time: so seldom that it takes a twentieth of the time at most."""

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path
        self._next = time.monotonic() + SAVE_SECONDS

    def save(self, found: Found, now: bool = False) -> None:
        """Write if it is time."""
        start = time.monotonic()
        if now or start >= self._next:
            try:
                with uninterrupted():
                    save_found(found, self.key, self.path)
            except OSError as error:  # for which what was found is not to be lost
                warn(f"the checkpoint {shown(str(self.path))} cannot be written: {line(error, 200)}", UserWarning)
            end = time.monotonic()
            self._next = end + max(SAVE_SECONDS, 20 * (end - start))


#: The least time between two checkpoints.
SAVE_SECONDS = 10.0
