"""nbviz shows, inside a notebook, what a trained convolutional network has learned."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

# Where each public name lives: lines such as "from nbviz.methods.cam import grad_cam as grad_cam". A name is loaded
# when it is first used, so that `import nbviz` stays light.
_STUB = (pkgutil.get_data(__name__, "__init__.pyi") or b"").decode()
_HOMES = {words[3]: words[1] for words in map(str.split, _STUB.splitlines()) if words[:1] == ["from"]}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        near = [] if name.startswith("_") else difflib.get_close_matches(name, __all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'nbviz' has no attribute {name!r}{hint}")
    home = importlib.import_module(_HOMES[name])
    value = vars(home)[name] if name in vars(home) else importlib.import_module(f"{_HOMES[name]}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
