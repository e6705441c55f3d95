"""What a scan has found, in a file from which it can go on."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbviz.core.errors import line, shown, warn
from nbviz.core.state import uninterrupted
from nbviz.core.trace import run
from nbviz.scanning.digest import digest, hooks_of
from nbviz.scanning.found import Found, NoClass, Skipped
from nbviz.scanning.jobs import Job

Key = tuple[tuple[str, str | None], ...]


def key_of(job: Job) -> Key:
    """What must be the same for a scan to go on from a checkpoint, part by part: model, statistics, batches, pictures.

    A part of the dataset that changes as pictures are read, such as a count or a cache, is None and tells nothing; so
    is a hook that changes as the model runs.

    Warns
    -----
    UserWarning
        Where a part holds what no other process could know again.
    """
    key: dict[str, str | None] = {}
    not_known: dict[str, list[str]] = {}
    key["model"], not_known["model"] = digest(job.model, hooks=False)
    fixed = {"statistics": job.statistics, "inputs=": job.feed, "output=": job.check_logits}
    for name, value in {**fixed, **_precision(job)}.items():
        key[name], not_known[name] = digest(value)
    known: dict[int, Any] = {}
    before = {name: (value, _version(value), *digest(value)) for name, value in job.source.parts(known)}
    pictures = list(job.source.sample())
    key["the first, middle or last picture"], _ = digest(pictures)
    for name, (found, kinds) in _hooks(job, pictures).items():
        key[name], not_known[name] = found, kinds
    for name, value in job.source.parts(known):
        was, version, key[name], not_known[name] = before.get(name, (None, None, None, []))
        unchanged = value is was and version is not None and version == _version(value)
        if not unchanged and digest(value)[0] != key[name]:
            key[name], not_known[name] = None, []
    if said := [f"{name} ({', '.join(kinds)})" for name, kinds in not_known.items() if kinds]:
        warn(
            f"the checkpoint cannot tell whether this is the same when the scan goes on: {'; '.join(said)}; when you "
            "change it, give another path",
            UserWarning,
        )
    return tuple(sorted(key.items()))


def _precision(job: Job) -> dict[str, Any]:
    """What of torch's state makes other numbers of the same model, beyond the rounding of another algorithm."""
    kind, dtype, enabled = job.autocast
    found: dict[str, Any] = {
        "torch.autocast": dtype if enabled else None,
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.set_float32_matmul_precision": None,
    }
    with suppress(RuntimeError):  # torch gives none to who has set the newer fp32_precision
        found["torch.set_float32_matmul_precision"] = torch.get_float32_matmul_precision()
    for name in _PRECISIONS.get(kind, ()):
        with suppress(AttributeError):  # an older torch
            found[f"torch.backends.{name}"] = attrgetter(name)(torch.backends)
    return found


_PRECISIONS = {
    "cpu": ("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision"),
    "cuda": (
        *("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.allow_tf32"),
        *("cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_bf16_reduced_precision_reduction"),
    ),
}


def _hooks(job: Job, pictures: list[Any]) -> dict[str, tuple[str | None, list[str]]]:
    """What each of the model's hooks holds.

    One that notes down what it sees holds something else after each pass, which tells no scan from another: it is known
    by what happens to it as the model is run on the pictures. Its code is part of the model's digest in any case.
    """
    before = {name: digest(hook) for name, hook in hooks_of(job.model)}
    inputs = next((one[1] for one in pictures if len(one) > 1), None)
    if before and inputs is not None:
        with suppress(Exception), torch.no_grad():  # of the model's own: the scan says it better
            run(job.model, inputs[None].to(job.device), [], feed=job.feed, output=True)
    after = {name: digest(hook)[0] for name, hook in hooks_of(job.model)}
    changes = (None, ["it changes as it runs"])
    return {name: found if found[0] == after.get(name) else changes for name, found in before.items()}


def _version(value: Any) -> int | None:
    """What is another when a value has changed, if that is known: not to look twice at all that a dataset holds."""
    if isinstance(value, tuple):
        return 0
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _differences(key: Key, other: Any) -> list[str]:
    """The parts in which two keys differ, as far as both know them; a file may have come since, or gone."""
    one, two = dict(key), dict(other)
    found = []
    for name in sorted(one.keys() | two.keys()):
        absent = None if name.endswith("'s file") else ""
        a, b = one.get(name, absent), two.get(name, absent)
        found += [name] if a != b and None not in (a, b) else []
    return found


def save_found(found: Found, key: Key, path: Path) -> None:
    """Write what was found, all or nothing: to a file beside it, which then takes its place."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        content = {
            "nbviz scan": key,
            "version": _VERSION,
            "python": _PYTHON,
            "done": found.done,
            "pictures": found.pictures,
            "skipped": [astuple(one) for one in found.skipped],
            "no class": [astuple(one) for one in found.no_class.values()],
            "statistics": {name: vars(statistic) for name, statistic in found.statistics.items()},
        }
        written = io.BytesIO()
        torch.save(content, written)
        with beside.open("wb") as file:
            file.write(written.getbuffer())
            file.write(_seal(written.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


#: Whose bytecode the digests of functions are of.
_PYTHON = platform.python_version()


def _other_python(wrote: str) -> str:
    if wrote.split(".")[:2] == _PYTHON.split(".")[:2]:
        return ""
    return f" (it was written under Python {wrote}, and the same code looks different to this one, {_PYTHON})"


#: Of the content of a checkpoint; one of another is refused.
_VERSION = 3
_SEAL_BYTES = 32


def _seal(content: Any) -> bytes:
    """What stands at the end of the file, by which it is known whether a bit of it has changed."""
    return hashlib.sha256(content).digest()


def _content(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if _seal(memoryview(data)[:-_SEAL_BYTES]) != data[-_SEAL_BYTES:]:
        raise ValueError("it is damaged, cut short, or was not written by this version")
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if content["version"] != _VERSION:
        raise ValueError("it was written by another version")
    return content


def load_found(found: Found, key: Key, path: Path) -> None:
    """Read what a scan found before it ended, if it has written anything."""
    if not path.exists():
        return
    try:
        content = _content(path)
        others = _differences(key, content["nbviz scan"])
        done, pictures, skipped, no_class = (content[name] for name in ("done", "pictures", "skipped", "no class"))
        states: Mapping[str, dict[str, Any]] = content["statistics"]
    except Exception as error:
        said = line(error, 200)
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which cannot be read as one: {said}; expected a file that a scan has "
            "written, or a path where there is none"
        ) from error
    if others:
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which belongs to another scan: {line(', '.join(others), 300)} "
            f"{'differs' if len(others) == 1 else 'differ'}{_other_python(content['python'])}; expected the checkpoint "
            "of this scan, or a path where there is no file"
        )
    found.done, found.pictures = [(a, b) for a, b in done], pictures
    found.skipped = [Skipped(*one) for one in skipped]
    found.no_class = {one[0]: NoClass(*one) for one in no_class}
    for name, statistic in found.statistics.items():
        vars(statistic).update(states[name])


class Saver:
    """Writes a checkpoint from time to time: so seldom that it takes a twentieth of the time at most."""

    def __init__(self, key: Key, path: Path) -> None:
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
