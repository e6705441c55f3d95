"""Weights that are part of other packages, whose files are read without running their code."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed_file(package: str, file: str) -> Path | None:
    """The path of a file of an installed package, which is not imported; None if either is missing."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder, file)).is_file():
            return path
    return None
