"""A checkpoint goes on with its own scan in whichever process; another's, or one with a bit changed, is refused."""

from __future__ import annotations

import functools
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets as torchvision_datasets

import nbviz
from nbviz.results import ScanResult
from nbviz.scanning.checkpoint import _precision
from nbviz.scanning.statistics import Accuracy, Moments, TopK
from tests.rounds import long, rounds
from tests.scanning.test_statistics import same
from tests.small import Small, labelled, pictures

FLIPS = rounds(100, 1000)
ROOT = Path(__file__).parents[2]


def scanned(path: Path, model: nn.Module | None = None, dataset: Any = None, **options: Any) -> ScanResult:
    statistics = {"accuracy": Accuracy(), "top": TopK("0", 2), "moments": Moments("2")}
    dataset = labelled() if dataset is None else dataset
    options = {"batch_size": 4, "progress": False, **options}
    return nbviz.scan(model or Small(), dataset, statistics, checkpoint=path, **options)


def refused(path: Path, what: str, *arguments: Any, **options: Any) -> None:
    """What differs, or what it begins with."""
    what = what[:-1] if what.endswith("$") else f"{what}.*"
    with pytest.raises(ValueError, match=f"belongs to another scan: {what} differs?; expected the checkpoint of this"):
        scanned(path, *arguments, **options)


# The file


def test_a_flipped_bit_or_a_cut_is_refused(tmp_path: Path) -> None:
    path, draw = tmp_path / "scan.pt", random.Random(0)
    expected = scanned(path)
    whole = path.read_bytes()
    for n in range(FLIPS):
        data = bytearray(whole)
        if n % 10 == 9:
            data = data[: draw.randrange(len(data))]
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as one: .*; expected a file that a scan has written"):
            scanned(path)
    path.write_bytes(whole)
    found = scanned(path)
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", [b"", b"none", b"PK\3\4", bytes(100)])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scan.pt").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as one: it is damaged, cut short, or was not written by this"):
        scanned(tmp_path / "scan.pt")


# The same scan in a new process

SCRIPT = """
import functools, os, signal, sys, threading, torch, nbviz
from torch import nn
from nbviz.scanning import checkpoint
torch.set_num_threads(1)
checkpoint.SAVE_SECONDS = 0.01
WEIGHT = torch.linspace(1, 2, 4)

class Net(nn.Module):  # whose repr holds an address
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.out = nn.Conv2d(3, 4, 3), (lambda x: x.relu()), nn.Linear(4, 4)
    def forward(self, x):
        return {"out": self.out(self.act(self.conv(x)).mean((2, 3)))}
    def __repr__(self):
        return object.__repr__(self)

class Pictures(torch.utils.data.TensorDataset):
    read, lock = 0, threading.Lock()
    def __getitem__(self, i):
        self.read += 1
        if self.read == 600 and sys.argv[2] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)

def weighted(output, weight):
    return output["out"] * weight

class Preprocess:
    def __call__(self, picture):
        return picture

x = torch.rand(1000, 3, 8, 8, generator=torch.Generator().manual_seed(1))
given = {
    "lambda": {"output": lambda output: output["out"] * WEIGHT},
    "partial": {"output": functools.partial(weighted, weight=WEIGHT)},
    "preprocess": {"output": "out", "inputs": lambda x: (x,), "preprocess": Preprocess()},
}[sys.argv[3]]
reports = []
for path in (sys.argv[1], sys.argv[1] + ".new"):
    dataset, options = Pictures(x, torch.arange(1000) % 4), {"batch_size": 8, "progress": False, **given}
    found = nbviz.scan(Net(), dataset, {"a": nbviz.statistics.Accuracy()}, checkpoint=path, **options)
    reports.append({"read": dataset.read, "loss": found["a"].loss, "pictures": found.pictures})
"""


@pytest.mark.parametrize(
    "kind", ["preprocess", pytest.param("lambda", marks=long), pytest.param("partial", marks=long)]
)
def test_a_scan_with_code_of_the_scripts_own_goes_on_in_a_new_process(
    kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    script, checkpoint = tmp_path / "scan.py", str(tmp_path / "scan.pt")
    script.write_text(SCRIPT)
    call = [sys.executable, str(script), checkpoint, "killed", kind]
    killed = subprocess.run(call, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.tmp")) == []
    monkeypatch.setattr(sys, "argv", [str(script), checkpoint, "again", kind])
    monkeypatch.setattr("nbviz.scanning.checkpoint.SAVE_SECONDS", 0.01)  # as the script does, and put back
    again, whole = runpy.run_path(str(script), run_name="__main__")["reports"]
    assert again["pictures"] == whole["pictures"] == 1000
    assert again["loss"] == whole["loss"]
    assert again["read"] < whole["read"] == 1003  # how much less hangs on how long the disk took to write


def test_what_differs_is_named_and_so_is_another_python(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "scan.pt"
    scanned(path)
    refused(path, "preprocess=$", preprocess=lambda picture: picture)  # of which tensors have no need
    refused(path, "batch_size=$", batch_size=3)
    refused(path, "inputs=$", inputs=lambda x: (x,))
    monkeypatch.setattr("nbviz.scanning.checkpoint._PYTHON", "3.99.1")
    with pytest.raises(ValueError, match=r"another scan: inputs= differs \(it was written under Python 3\.\d+.*3.99.1"):
        scanned(path, inputs=lambda x: (x,))
    scanned(path)


def test_the_same_code_written_twice_is_the_same(tmp_path: Path) -> None:
    def feed(scale: float) -> Any:
        return lambda x: (x * scale,)

    path = tmp_path / "scan.pt"
    scanned(path, inputs=feed(2.0), output=lambda output: output + 1)
    scanned(path, inputs=feed(2.0), output=lambda output: output + 1)


# Another scan


class Scaled:
    def __init__(self, scale: float) -> None:
        self.scale, self.lock = scale, threading.Lock()

    def __call__(self, x: Any) -> Any:
        return (x * self.scale,)

    def twice(self, x: Any) -> Any:
        return (x * self.scale * 2,)


def scaled(x: Any, scale: float = 1.0) -> Any:
    return (x * scale,)


def within(scale: float) -> Any:
    return lambda x: (x * scale,)


def applied(act: nn.Module) -> Any:
    return lambda x: (act(x),)


SCALE, TABLE = 1.0, {"scale": 1.0}
FEEDS: dict[str, tuple[Any, Any]] = {
    "constants": (lambda x: (x * 1.0,), lambda x: (x * 2.0,)),
    "operations": (lambda x: (x * 1.5,), lambda x: (x + 1.5,)),
    "globals": (lambda x: (x * SCALE,), lambda x: (x * TABLE["scale"],)),
    "defaults": (lambda x, scale=1.0: (x * scale,), lambda x, scale=2.0: (x * scale,)),
    "closures": (within(1.0), within(2.0)),
    "inner functions": (lambda x: ((lambda y: y * 1.0)(x),), lambda x: ((lambda y: y * 2.0)(x),)),
    "partials": (functools.partial(scaled, scale=1.0), functools.partial(scaled, scale=2.0)),
    "objects": (Scaled(1.0), Scaled(2.0)),
    "methods": (Scaled(1.0).twice, Scaled(2.0).twice),
    "other methods": (Scaled(1.0).twice, Scaled(1.0).__call__),
    "modules": (applied(nn.Identity()), applied(nn.ReLU())),
}


@pytest.mark.parametrize("kind", FEEDS)
def test_another_callable_is_refused(kind: str, tmp_path: Path) -> None:
    one, other = FEEDS[kind]
    scanned(tmp_path / "scan.pt", inputs=one)
    scanned(tmp_path / "scan.pt", inputs=one)
    refused(tmp_path / "scan.pt", "inputs=$", inputs=other)
    scanned(tmp_path / "output.pt", output=lambda output: one(output)[0])
    refused(tmp_path / "output.pt", "output=$", output=lambda output: other(output)[0])


def test_a_global_that_a_callable_uses_is_part_of_it(tmp_path: Path, monkeypatch: Any) -> None:
    feed = FEEDS["globals"]
    for i, one in enumerate(feed):
        scanned(tmp_path / f"{i}.pt", inputs=one)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    monkeypatch.setitem(TABLE, "scale", 2.0)
    for i, one in enumerate(feed):
        refused(tmp_path / f"{i}.pt", "inputs=$", inputs=one)


class WithFactor(Small):
    def __init__(self, factor: float, act: Any = None) -> None:
        super().__init__()
        self.factor, self.act = factor, act

    def forward(self, x: Any) -> Any:
        return super().forward(x) * self.factor


def test_what_a_model_holds_beside_its_weights_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "scan.pt"
    scanned(path, WithFactor(1.0, lambda x: x))
    scanned(path, WithFactor(1.0, lambda x: x).eval())
    refused(path, "model$", WithFactor(2.0, lambda x: x))
    refused(path, "model$", WithFactor(1.0, lambda x: -x))
    hooked = WithFactor(1.0, lambda x: x)
    hooked[2].register_forward_hook(lambda _module, _inputs, output: output * 2)
    refused(path, "hook 0 of '2', model$", hooked)


class Times:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> Any:
        return output * self.factor

    def before(self, _module: Any, inputs: Any) -> Any:
        return (inputs[0] * self.factor,)


def times(factor: float) -> Any:
    return lambda _module, _inputs, output: output * factor


def times_by_default(factor: float) -> Any:
    return lambda _module, _inputs, output, factor=factor: output * factor


def times_first(factor: float, _module: Any, _inputs: Any, output: Any) -> Any:
    return output * factor


def with_hook(hook: Any, kind: str = "register_forward_hook") -> Small:
    model = Small()
    getattr(model[2], kind)(hook)
    return model


HOOKS: dict[str, Any] = {
    "closure": lambda k: with_hook(times(k)),
    "default": lambda k: with_hook(times_by_default(k)),
    "partial": lambda k: with_hook(functools.partial(times_first, k)),
    "object": lambda k: with_hook(Times(k)),
    "pre-hook, method": lambda k: with_hook(Times(k).before, "register_forward_pre_hook"),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_what_a_hook_holds_is_part_of_the_model(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.pt"
    scanned(path, HOOKS[kind](1.0))
    scanned(path, HOOKS[kind](1.0))
    refused(path, "hook 0 of '2'$", HOOKS[kind](2.0))


def test_a_hook_that_notes_down_what_it_sees_is_known_by_its_code_and_that_is_said(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        seen["last"] = output.detach()

    def note_more(_module: Any, _inputs: Any, output: Any) -> None:
        seen["shape"] = output.shape
        seen["passes"] = seen.get("passes", 0) + 1

    model, path = with_hook(note), tmp_path / "scan.pt"
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"cannot tell whether this .*: hook 0 of '2' \(it changes as it runs\)"):
            scanned(path, model)
    with pytest.warns(UserWarning, match="cannot tell"):
        refused(path, "model$", with_hook(note_more))


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def matmul_precision() -> Iterator[None]:
    # "highest" is not what was there before: it also sets the precision of each backend, which was "none".
    backends = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
    before = [backend.fp32_precision for backend in backends if hasattr(backend, "fp32_precision")]
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, before, strict=False):
            backend.fp32_precision = precision


@pytest.mark.parametrize(
    ("under", "what"),
    [
        (autocast, "torch.autocast$"),
        (default_dtype, "torch.set_default_dtype$"),
        (matmul_precision, ".*torch.set_float32_matmul_precision$"),
    ],
)
def test_another_precision_is_refused(under: Any, what: str, tmp_path: Path) -> None:
    path, model, dataset = tmp_path / "scan.pt", Small(), labelled()
    scanned(path, model, dataset)
    with under():
        refused(path, what, model, dataset)
        scanned(tmp_path / "other.pt", model, dataset)
        scanned(tmp_path / "other.pt", model, dataset)
    refused(tmp_path / "other.pt", what, model, dataset)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "meta"])
def test_the_precision_is_known_of_each_kind_of_device(kind: str) -> None:
    job = SimpleNamespace(autocast=(kind, torch.bfloat16, True))
    found = _precision(job)  # type: ignore[arg-type]
    assert found["torch.autocast"] == torch.bfloat16
    assert ("torch.backends.cudnn.allow_tf32" in found) == (kind == "cuda")


def files_of(folder: Path, changed: int | None = None, kind: str = "bmp", many: int = 12) -> Path:
    """Pictures in a folder for each of four classes, of which one may be another of the same size."""
    for i in range(many):
        place = folder / "abcd"[i % 4]
        place.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(i + 1000 * (i == changed))
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.{kind}")
    return folder


class Listed:
    """Names of files relative to a folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.names = str(folder), [str(one.relative_to(folder)) for one in sorted(folder.rglob("*.bmp"))]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Any:
        return Path(self.root) / self.names[i], "abcd".index(self.names[i][0])


def opened(path: Path) -> Image.Image:
    """Of a file, which is closed by now."""
    picture = Image.open(path)
    picture.load()
    return picture


DATASETS: dict[str, Any] = {
    "a folder": lambda folder: folder,
    "ImageFolder": torchvision_datasets.ImageFolder,
    "a subset": lambda folder: Subset(torchvision_datasets.ImageFolder(folder), range(12)),
    "paths": lambda folder: sorted(folder.rglob("*.bmp")),
    "pairs": lambda folder: [(str(one), 1) for one in sorted(folder.rglob("*.bmp"))],
    "opened": lambda folder: [opened(one) for one in sorted(folder.rglob("*.bmp"))],
    "arrays": lambda folder: [np.asarray(Image.open(one)) for one in sorted(folder.rglob("*.bmp"))],
    "relative names": Listed,
}


@pytest.mark.parametrize("kind", DATASETS)
def test_another_picture_among_them_is_refused_and_the_same_files_elsewhere_are_not(kind: str, tmp_path: Path) -> None:
    """Not one of the three that are looked at, of as many bytes, under the same name."""
    make = DATASETS[kind]
    scanned(tmp_path / "scan.pt", dataset=make(files_of(tmp_path / "one")))
    if kind not in ("paths", "pairs"):  # which name no folder that could have moved
        scanned(tmp_path / "scan.pt", dataset=make(files_of(tmp_path / "copy")))
    scanned(tmp_path / "scan.pt", dataset=make(files_of(tmp_path / "one")))  # written again
    refused(tmp_path / "scan.pt", "dataset", dataset=make(files_of(tmp_path / "one", changed=4)))


def test_large_files_are_told_apart_by_when_they_were_written(tmp_path: Path, monkeypatch: Any) -> None:
    from nbviz.scanning import digest

    monkeypatch.setattr(digest, "_READ", 100)
    folder = files_of(tmp_path / "one")
    scanned(tmp_path / "scan.pt", dataset=folder)
    scanned(tmp_path / "scan.pt", dataset=folder)
    os.utime(folder / "a" / "4.bmp", (1, 1))
    refused(tmp_path / "scan.pt", "dataset.samples", dataset=folder)


def test_other_tensors_labels_and_transforms_are_refused(tmp_path: Path) -> None:
    path, folder, x = tmp_path / "scan.pt", files_of(tmp_path / "one"), pictures(12)
    scanned(path, dataset=TensorDataset(x, torch.arange(12) % 4))
    other = x.clone()
    other[4, 1, 2, 3] += 0.1
    refused(path, "dataset.tensors", dataset=TensorDataset(other, torch.arange(12) % 4))
    refused(path, "dataset.tensors", dataset=TensorDataset(x, (torch.arange(12) % 4).index_fill(0, torch.tensor(4), 3)))
    make, path = torchvision_datasets.ImageFolder, tmp_path / "folder.pt"
    scanned(path, dataset=make(folder, target_transform=lambda y: y))
    scanned(path, dataset=make(folder, target_transform=lambda y: y))
    refused(path, "dataset.target_transform", dataset=make(folder, target_transform=lambda y: {2: 3}.get(y, y)))


class WithSettings:
    """Of which one picture depends on a setting, and others change as it is read."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.table, self.lock = str(root), root / "none", threading.Lock()
        self.reads, self.last, self.opened = 0, None, False
        self.file: Any = None
        self.cache: dict[int, Any] = {}
        self.factor, self.name, self.sizes = 1.0, "train", (3, 4)
        vars(self).update(settings)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        self.file = self.file or (letter for letter in "ab")
        self.reads, self.last, self.opened = self.reads + 1, i, True
        if i not in self.cache:
            self.cache[i] = pictures(12)[i]
        changed = (self.factor, self.name, self.sizes) != (1.0, "train", (3, 4))
        return self.cache[i] * (1 + (i == 4 and changed)), i % 4


def test_a_plain_setting_of_a_dataset_counts_and_what_reading_changes_does_not(tmp_path: Path) -> None:
    path, dataset = tmp_path / "scan.pt", WithSettings(tmp_path)
    scanned(path, dataset=dataset)
    with pytest.warns(UserWarning, match=r"dataset.file \(generator\)"):  # which is open by now
        scanned(path, dataset=dataset)
    for root in (tmp_path, tmp_path / "elsewhere", tmp_path.parent):
        scanned(path, dataset=WithSettings(root))
    for name, value in {"factor": 2.0, "name": "test", "sizes": (4, 3)}.items():
        refused(path, f"dataset.{name}$", dataset=WithSettings(tmp_path, **{name: value}))


def test_what_no_other_process_could_know_again_is_said_before_the_work(tmp_path: Path) -> None:
    letters = (letter for letter in "ab")
    with pytest.warns(UserWarning, match=r"cannot tell whether this .*: inputs= \(generator\); when you"):
        scanned(tmp_path / "scan.pt", inputs=lambda x: (x, letters)[:1])


def test_a_statistic_that_fails_half_way_leaves_no_half_in_the_checkpoint(tmp_path: Path) -> None:
    class Fails(Moments):
        def update(self, batch: Any) -> None:
            if self.count > 1500:
                raise RuntimeError("no")
            super().update(batch)

    options: dict[str, Any] = {"batch_size": 4, "progress": False, "checkpoint": tmp_path / "scan.pt"}
    statistics = {"accuracy": Accuracy(), "fails": Fails("2")}
    with pytest.raises(RuntimeError, match="no"):
        nbviz.scan(Small(), labelled(), statistics, **options)
    assert not (tmp_path / "scan.pt").exists()  # the accuracy has a batch that the other has not
