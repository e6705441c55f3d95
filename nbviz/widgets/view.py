"""The base of the views in the page: each view is one ES module, with what it imports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

STATIC = Path(__file__).parent / "static"


def _modules(name: str, before: dict[str, str]) -> dict[str, str]:
    """The sources of a module and of those that it imports, each once and after the modules it needs itself."""
    text = (STATIC / name).read_text(encoding="utf-8")
    for imported in _IMPORT.findall(text):
        if imported not in before:
            _modules(imported, before)
    before[name] = _EXPORT.sub("", _IMPORT.sub("", text))
    return before


# As these files write them: no renaming by "as", no import from elsewhere.
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


class View(anywidget.AnyWidget):
    """Base of the views: joins the view's module with those that it imports, since anywidget takes a single file."""

    _script: str
    part = t.Unicode().tag(sync=True)  # the widget's part that is drawn here, with which the view is dimmed
    _drawn = ("", "")  # the part that is being drawn, and the state that it shows

    def draw_for(self, part: str, key: str) -> None:
        """From now on, this part is drawn here, and shows this state."""
        self._drawn = part, key

    def is_to_come(self, part: str) -> None:
        """Note that this part will be drawn again."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_script" in cls.__dict__:
            cls._esm = "\n".join(_modules(cls._script, {}).values())
        super().__init_subclass__(**kwargs)
