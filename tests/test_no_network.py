"""No socket is opened in the kernel: not at import, not by a widget, not by a figure, not by the bundled network."""

from __future__ import annotations

import subprocess
import sys

import pytest

WATCHED = """
import sys
opened = []
NAMES = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
sys.addaudithook(lambda name, args: opened.append((name, args)) if name in NAMES else None)
"""
USE = """
import tempfile, warnings
import nbviz, torch
for name in nbviz.__all__:
    getattr(nbviz, name)
model = nbviz.bundled.load("fashion")
images = nbviz.bundled.fashion_test()[0][:2, None]
nbviz.bundled.pictures()
nbviz.layers(model, images)
nbviz.overlay(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), nbviz.fuse(nbviz.feature_maps(model, images, "features.1")))
nbviz.grid(nbviz.reconstruct(model, images, "features.4", [0])["guided"][0, 0])
for kind in (nbviz.explore, nbviz.FeatureMaps, nbviz.Reconstruction):
    view = kind(model, images, layer="features.4")
    view.finish()
    view.channel = 1
    view.save(tempfile.mkdtemp() + "/a.png")
    assert view._repr_mimebundle_()["image/png"]
    view.close()
for images in ("http://127.0.0.1:9/cat.png", "//host/share/cat.png", "ftp://host/cat.png"):
    try:
        nbviz.load(model, images)
    except nbviz.errors.PictureError:
        pass
"""


def opened(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", f"{WATCHED}{program}\nprint(opened)"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_no_socket_is_opened() -> None:
    assert opened(USE) == "[]"


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))",
        "import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9/')\nexcept OSError: pass",
    ],
)
def test_one_that_was_would_be_seen(program: str) -> None:
    assert opened(program) != "[]"
