"""Files that are no pictures, or dangerous ones: one PictureError, soon, with little memory, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nbviz
from nbviz.errors import PictureError
from tests.rounds import few, rounds

NET = nn.Sequential(nn.Conv2d(3, 4, 3))
FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI", "DDS", "AVIF"]
Image.init()
FORMATS = [name for name in FORMATS if name in Image.SAVE]  # some are optional


def refused(path: object, message: str = "cannot be read as a picture|is no picture that can be read") -> str:
    """The one error, within a second, and no warning."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match=message) as raised:
            nbviz.load(NET, path)
    assert raised.type is PictureError
    assert "expected" in str(raised.value)
    assert time.monotonic() - start < 2
    return str(raised.value)


def encoded(name: str, side: int = 64) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, name)
    return file.getvalue()


# Broken


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_that_is_cut_off_is_read_or_refused(name: str, tmp_path: Path) -> None:
    whole, path = encoded(name), tmp_path / "cut"
    outcomes = []
    for end in [0, 1, 8, 20, 40, *np.linspace(50, len(whole) - 1, 20).astype(int)]:
        path.write_bytes(whole[:end])
        outcomes.append(read_or_refused(path))
    assert not outcomes[0]
    path.write_bytes(whole)
    assert read_or_refused(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_with_wrong_bytes_is_read_or_refused(name: str, tmp_path: Path) -> None:
    whole, random, path = encoded(name, 16), np.random.default_rng(1), tmp_path / "wrong"
    for _ in range(rounds(30, 60)):
        wrong = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, min(len(wrong), 200), random.integers(1, 6))
        wrong[places] = random.integers(0, 256, len(places))
        path.write_bytes(wrong.tobytes())
        read_or_refused(path)


def read_or_refused(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert nbviz.load(NET, path).inputs.isfinite().all()
        except PictureError as error:
            assert "expected" in str(error)  # noqa: PT017
            return False
    return True


def test_an_opened_picture_that_is_cut_off_or_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded("JPEG")[:1500])
    with Image.open(path) as cut:
        refused(cut, "^a PIL picture of mode RGB cannot be read")
    refused(cut, "a PIL picture of mode RGB cannot be read")


# Too large


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\2"
    )


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height)]
    tags += [(277, 3, 1), (279, 4, 100)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", [png, bmp, gif, tiff])
@pytest.mark.parametrize("side", [9_500, 12_000, 50_000])
def test_a_picture_that_claims_to_be_huge_is_refused(kind: object, side: int, tmp_path: Path) -> None:
    """On both sides of Pillow's limits for a warning and for an error."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "huge"
    path.write_bytes(kind(side, side))  # type: ignore[operator]
    refused(path, r"it is too large; expected at most 89,478,485 pixels \(PIL.Image.MAX_IMAGE_PIXELS\)$")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # kB


@pytest.mark.parametrize("name", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_many_frames_the_first_is_read(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (i % 256, 0, i // 256)) for i in range(300)]
    path = tmp_path / "many"
    frames[0].save(path, name, save_all=True, append_images=frames[1:])
    start = time.monotonic()
    assert nbviz.load(NET, path).inputs.shape == (1, 3, 8, 8)
    assert time.monotonic() - start < 1


# No pictures at all


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["a.pkl", "a.png", "a.npy", "a.npz", "a.pt", "a.pth", "a.safetensors"])
def test_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / name
    payload = Payload(target)
    if path.suffix == ".npy":
        np.save(path, np.array([payload], object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, a=np.array([payload], object))
    elif path.suffix in (".pt", ".pth"):
        torch.save({"weight": payload}, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    else:
        path.write_bytes(pickle.dumps(payload))
    refused(path)
    for call in (
        lambda: nbviz.load(path, path),
        lambda: nbviz.load(str(path), path),
        lambda: nbviz.explore(path),
        lambda: nbviz.load(NET, Image.new("RGB", (8, 8)), path),
        lambda: nbviz.load(NET, Image.new("RGB", (8, 8)), str(path)),
        lambda: nbviz.load(NET, path.read_bytes()),
        lambda: nbviz.explore(NET, torch.rand(1, 3, 8, 8), labels=str(path)),
        lambda: nbviz.bundled.load(str(path)),
    ):
        with pytest.raises((TypeError, ValueError), match=r"expected|Accepted"):
            call()
    assert not target.exists()
    pickle.loads(pickle.dumps(payload))  # which would have
    assert target.exists()


def test_no_program_is_run_to_draw_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run what an EPS file says."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    for name in ("a.eps", "a.png"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "EPS")
        (tmp_path / name).write_bytes(file.getvalue())
        refused(tmp_path / name, "is no picture that can be read")


# No files at all


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in ("pipe", "folder", "link", "socket"):
            refused(tmp_path / path, "it is a folder, pipe or device")
        for path in ("/dev/zero", "/dev/null", "/dev/stdin", "/dev/tty", "/", "/proc/self/fd", "."):
            if Path(path).exists():
                refused(path, "it is a folder, pipe or device|cannot be read")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(PictureError, match=r"there is no file|cannot be read"):
        nbviz.load(NET, tmp_path / "link")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """As another user, since root may read everything."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    path.chmod(0)
    if not os.access(path, os.R_OK):
        refused(path, "Permission denied")
    path.chmod(0o600)


def test_saving_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    view = nbviz.FeatureMaps(NET, torch.rand(1, 3, 8, 8))
    os.mkfifo(tmp_path / "pipe.png")
    for path in (
        tmp_path / "pipe.png",
        tmp_path,
        tmp_path / "a.exe",
        tmp_path / "missing" / "a.png",
        "a\0.png",
        3,
        None,
    ):
        with pytest.raises((TypeError, ValueError), match="expected"):
            view.save(path)  # type: ignore[arg-type]
    view.save(tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes()[1:4] == b"PNG"


# Names of files


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have fewer names")
@pytest.mark.parametrize(
    "name", few(["<img src=x onerror=alert(1)>", "\u202egnp.tac", "a\nb", "\x1b[31m", "$x^$", b"\xff\xfe"], 1, 4, 5)
)
def test_a_file_may_have_any_name(name: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    Image.new("RGB", (8, 8)).save(path, "PNG")
    view = nbviz.Explorer(NET, path)
    (shown,) = (thumb["name"] for thumb in view.strip.thumbs)
    shown.encode()
    assert not {"\u202e", "\x1b", "\udcff"} & set(shown)
    assert isinstance(view._repr_mimebundle_()["image/png"], str)
    path.write_bytes(b"none")
    refused(path).encode()
