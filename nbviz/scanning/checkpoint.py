"""Checkpoints of scans: files with the results so far, from which a scan is resumed."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple
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
from nbviz.scanning.records import NoClass, PartialResult, Skipped

Key = tuple[tuple[str, str | None], ...]


def key_of(job: Job) -> Key:
    """What must be the same to resume a scan from a checkpoint: digests of model, statistics, batches and pictures.

    The digest is None, which matches anything, for attributes of the dataset that change as pictures are read, such as
    a count or a cache, and for hooks that change as the model runs.

    Warns
    -----
    UserWarning
        If something cannot be compared with its counterpart in another process.
    """
    key: dict[str, str | None] = {}
    unknown: dict[str, list[str]] = {}
    key["model"], unknown["model"] = digest(job.model, hooks=False)
    fixed = {"statistics": job.statistics, "inputs=": job.feed, "output=": partial(check_logits, pick=job.pick)}
    for name, value in {**fixed, **_precision(job)}.items():
        key[name], unknown[name] = digest(value)
    known: dict[int, Any] = {}
    before = {name: (value, _version(value), *digest(value)) for name, value in job.source.parts(known)}
    pictures = list(job.source.sample())
    key["the first, middle or last picture"], _ = digest(pictures)
    for name, (hook_digest, kinds) in _hooks(job, pictures).items():
        key[name], unknown[name] = hook_digest, kinds
    for name, value in job.source.parts(known):
        old_value, version, key[name], unknown[name] = before.get(name, (None, None, None, []))
        unchanged = value is old_value and version is not None and version == _version(value)
        if not unchanged and digest(value)[0] != key[name]:
            key[name], unknown[name] = None, []
    if names := [f"{name} ({', '.join(kinds)})" for name, kinds in unknown.items() if kinds]:
        warn(
            f"the checkpoint cannot tell whether this is the same when the scan is resumed: {'; '.join(names)}; when "
            "you change it, give another path",
            UserWarning,
        )
    return tuple(sorted(key.items()))


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


def _hooks(job: Job, pictures: list[Any]) -> dict[str, tuple[str | None, list[str]]]:
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
    changes = (None, ["it changes as it runs"])
    return {name: entry if entry[0] == after.get(name) else changes for name, entry in before.items()}


def _version(value: Any) -> int | None:
    """A number that changes whenever the value does, if there is one: it saves a second digest of large values."""
    if isinstance(value, tuple):
        return 0
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _differences(key: Key, other: Any) -> list[str]:
    """The names under which two keys differ; None matches anything, and files may have appeared or gone."""
    ours, theirs = dict(key), dict(other)
    names = []
    for name in sorted(ours.keys() | theirs.keys()):
        absent = None if name.endswith("'s file") else ""
        a, b = ours.get(name, absent), theirs.get(name, absent)
        names += [name] if a != b and None not in (a, b) else []
    return names


def save_result(result: PartialResult, key: Key, path: Path) -> None:
    """Write a checkpoint atomically: to a temporary file, which then replaces it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        content = {
            "nbviz scan": key,
            "version": _VERSION,
            "python": _PYTHON,
            "done": result.done,
            "pictures": result.pictures,
            "skipped": list(map(astuple, result.skipped)),
            "no class": list(map(astuple, result.no_class.values())),
            "statistics": {name: vars(statistic) for name, statistic in result.statistics.items()},
        }
        written = io.BytesIO()
        torch.save(content, written)
        with temporary.open("wb") as file:
            file.write(written.getbuffer())
            file.write(_seal(written.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


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


def load_result(result: PartialResult, key: Key, path: Path) -> None:
    """Read the result of an earlier scan from a checkpoint, if there is one."""
    if not path.exists():
        return
    try:
        content = _content(path)
        differences = _differences(key, content["nbviz scan"])
        done, pictures, skipped, no_class = (content[name] for name in ("done", "pictures", "skipped", "no class"))
        states: Mapping[str, dict[str, Any]] = content["statistics"]
    except Exception as error:
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which cannot be read as one: {line(error)}; expected a file that a "
            "scan has written, or a path where there is none"
        ) from error
    if differences:
        raise ValueError(
            f"checkpoint is {shown(str(path))}, which belongs to another scan: {line(', '.join(differences), 300)} "
            f"{'differs' if len(differences) == 1 else 'differ'}{_other_python(content['python'])}; expected the "
            "checkpoint of this scan, or a path where there is no file"
        )
    result.done, result.pictures = [(a, b) for a, b in done], pictures
    result.skipped = [Skipped(*fields) for fields in skipped]
    result.no_class = {fields[0]: NoClass(*fields) for fields in no_class}
    for name, statistic in result.statistics.items():
        vars(statistic).update(states[name])


class Saver:
    """Writes a checkpoint from time to time, taking at most a twentieth of the scan's time."""

    def __init__(self, key: Key, path: Path) -> None:
        self.key, self.path = key, path
        self._next = time.monotonic() + SAVE_SECONDS

    def save(self, result: PartialResult, now: bool = False) -> None:
        """Write if it is time, or now."""
        start = time.monotonic()
        if now or start >= self._next:
            try:
                with uninterrupted():
                    save_result(result, self.key, self.path)
            except OSError as error:  # go on: the scan's result matters more
                warn(f"the checkpoint {shown(str(self.path))} cannot be written: {line(error)}", UserWarning)
            end = time.monotonic()
            self._next = end + max(SAVE_SECONDS, 20 * (end - start))


#: The least number of seconds between two checkpoints.
SAVE_SECONDS = 10.0
