"""Checkpoints of scans: files with the results so far, from which a scan is resumed."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import time
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbviz.core.arguments import check_logits
from nbviz.core.errors import line, shown, warn
from nbviz.core.state import uninterrupted
from nbviz.core.trace import run
from nbviz.scanning.digest import digest, hooks_of
from nbviz.scanning.jobs import Job
from nbviz.scanning.records import PartialResult

Key = tuple[tuple[str, str | None], ...]
#: A digest, None where it does not count, and the types of what could not be digested.
Digest = tuple[str | None, list[str]]
_ANY: Digest = (None, [])


def key_of(job: Job) -> Key:
    """What must be the same to resume a scan from a checkpoint: digests of model, statistics, batches and pictures.

    The digest is None, which matches anything, for attributes of the dataset that change as pictures are read, such as
    a count or a cache, and for hooks that change as the model runs.

    Warns
    -----
    UserWarning
        If something cannot be compared with its counterpart in another process.
    """
    fixed = {"statistics": job.statistics, "inputs=": job.feed, "output=": partial(check_logits, pick=job.pick)}
    digests: dict[str, Digest] = {"model": digest(job.model, hooks=False)}
    digests |= {name: digest(value) for name, value in {**fixed, **_precision(job)}.items()}
    known: dict[int, Any] = {}
    before = {name: (value, _version(value), digest(value)) for name, value in job.source.parts(known)}
    pictures = list(job.source.sample())
    digests["the first, middle or last picture"] = digest(pictures)[0], []
    digests |= _hooks(job, pictures)
    for name, value in job.source.parts(known):
        old_value, version, digests[name] = before.get(name, (None, None, _ANY))
        unchanged = value is old_value and version is not None and version == _version(value)
        if not unchanged and digest(value)[0] != digests[name][0]:
            digests[name] = _ANY
    if names := [f"{name} ({', '.join(kinds)})" for name, (_, kinds) in digests.items() if kinds]:
        warn(
            f"the checkpoint cannot tell whether this is the same when the scan is resumed: {'; '.join(names)}; when "
            "you change it, give another path",
            UserWarning,
        )
    return tuple(sorted((name, value) for name, (value, _) in digests.items()))


def _precision(job: Job) -> dict[str, Any]:
    """Torch's settings that change a model's results beyond rounding."""
    kind, dtype, enabled = job.autocast
    settings: dict[str, Any] = {
        "torch.autocast": dtype if enabled else None,
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.set_float32_matmul_precision": None,
    }
    with suppress(RuntimeError):  # raised where the newer fp32_precision has been set
        settings["torch.set_float32_matmul_precision"] = torch.get_float32_matmul_precision()
    for name in _PRECISIONS.get(kind, ()):
        with suppress(AttributeError):  # an older torch
            settings[f"torch.backends.{name}"] = attrgetter(name)(torch.backends)
    return settings


_PRECISIONS = {
    "cpu": ("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision"),
    "cuda": (
        *("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.allow_tf32"),
        *("cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_bf16_reduced_precision_reduction"),
    ),
}


def _hooks(job: Job, pictures: list[Any]) -> dict[str, Digest]:
    """The digests of the model's hooks.

    Hooks that record what they see change with every pass, so their state cannot identify a scan. They are recognised
    by running the model on the pictures. The code of all hooks is part of the model's digest.
    """
    before = {name: digest(hook) for name, hook in hooks_of(job.model)}
    inputs = next((picture[1] for picture in pictures if len(picture) > 1), None)
    if before and inputs is not None:
        with suppress(Exception), torch.no_grad():  # the scan will report the model's errors
            run(job.model, inputs[None].to(job.device), [], feed=job.feed, output=True)
    after = {name: digest(hook)[0] for name, hook in hooks_of(job.model)}
    changes: Digest = (None, ["it changes as it runs"])
    return {name: entry if entry[0] == after.get(name) else changes for name, entry in before.items()}


def _version(value: Any) -> int | None:
    """A number that changes whenever the value does, if there is one: it saves a second digest of large values."""
    if isinstance(value, tuple):
        return 0
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _differences(key: Key, other: Any) -> list[str]:
    """The names under which two keys differ; None matches anything, and files may have appeared or gone."""
    ours, theirs = dict(key), dict(other)

    def differs(name: str) -> bool:
        absent = None if name.endswith("'s file") else ""
        a, b = ours.get(name, absent), theirs.get(name, absent)
        return a != b and None not in (a, b)

    return sorted(filter(differs, ours.keys() | theirs.keys()))


#: Digests of functions depend on the bytecode of this version.
_PYTHON = platform.python_version()


def _other_python(version: str) -> str:
    if version.split(".")[:2] == _PYTHON.split(".")[:2]:
        return ""
    return f" (it was written under Python {version}, whose bytecode differs from that of this Python, {_PYTHON})"


#: The version of the file format; checkpoints of other versions are refused.
_VERSION = 3
_SEAL_BYTES = 32


def _seal(content: Any) -> bytes:
    """The checksum at the end of the file."""
    return hashlib.sha256(content).digest()


def _content(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if _seal(memoryview(data)[:-_SEAL_BYTES]) != data[-_SEAL_BYTES:]:
        raise ValueError("it is damaged, cut short, or was not written by this version")
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if content["version"] != _VERSION:
        raise ValueError("it was written by another version")
    return content


class Saver:
    """Reads a checkpoint, and writes it from time to time, taking at most a twentieth of the scan's time."""

    def __init__(self, key: Key, path: Path) -> None:
        self._key, self._path = key, path
        self._next = time.monotonic() + SAVE_SECONDS

    def load(self, result: PartialResult) -> None:
        """Read the result of an earlier scan, if there is one."""
        if not self._path.exists():
            return
        try:
            content = _content(self._path)
            differences = _differences(self._key, content["nbviz scan"])
        except Exception as error:
            raise ValueError(
                f"checkpoint is {shown(str(self._path))}, which cannot be read as one: {line(error)}; expected a file "
                "that a scan has written, or a path where there is none"
            ) from error
        if differences:
            raise ValueError(
                f"checkpoint is {shown(str(self._path))}, which belongs to another scan: "
                f"{line(', '.join(differences), 300)} {'differs' if len(differences) == 1 else 'differ'}"
                f"{_other_python(content['python'])}; expected the checkpoint of this scan, or a path where there is "
                "no file"
            )
        result.restore(content)

    def save(self, result: PartialResult, now: bool = False) -> None:
        """Write if it is time, or now."""
        start = time.monotonic()
        if now or start >= self._next:
            try:
                with uninterrupted():
                    self._write(result)
            except OSError as error:  # go on: the scan's result matters more
                warn(f"the checkpoint {shown(str(self._path))} cannot be written: {line(error)}", UserWarning)
            end = time.monotonic()
            self._next = end + max(SAVE_SECONDS, 20 * (end - start))

    def _write(self, result: PartialResult) -> None:
        """Write the file atomically: to a temporary file, which then replaces it."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            written = io.BytesIO()
            torch.save({"nbviz scan": self._key, "version": _VERSION, "python": _PYTHON, **result.state()}, written)
            with temporary.open("wb") as file:
                file.write(written.getbuffer())
                file.write(_seal(written.getbuffer()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


#: The least number of seconds between two checkpoints.
SAVE_SECONDS = 10.0
