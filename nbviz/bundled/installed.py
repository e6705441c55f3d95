"""Weights that other packages carry: their files are read, their code never runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed_file(package: str, file: str) -> Path | None:
    """Where an installed package keeps a file; None if either is missing.

    Finding a top-level package does not import it.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder, file)).is_file():
            return path
    return None
