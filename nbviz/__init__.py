"""nbviz shows, inside a notebook, what a trained convolutional network has learned."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# A name is loaded from where the stub says when it is first used, so that `import nbviz` stays light.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_NAMESPACES = ("cams", "attribution", "results", "errors")
_RENAMED = {
    "AblationTable": "AblateResult",
    "Comparison": "CompareResult",
    "Maximised": "MaximiseResult",
    "Moment": "CheckpointResult",
    "Report": "ReportResult",
    "StrongestPatches": "TopPatchesResult",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _load(name)
    message = f"module 'nbviz' has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(message)
    if name in _RENAMED:
        raise AttributeError(f"{message}; it is nbviz.results.{_RENAMED[name]}")
    places = {name: f"nbviz.{name}" for name in __all__}
    for namespace in _NAMESPACES:
        for inside in vars(importlib.import_module(f"nbviz.{namespace}")):
            if not inside.startswith("_"):
                places.setdefault(inside, f"nbviz.{namespace}.{inside}")
    if name in places:
        raise AttributeError(f"{message}; it is {places[name]}")
    near = difflib.get_close_matches(name, places, n=1)
    raise AttributeError(f"{message}; did you mean {places[near[0]]}?" if near else message)
