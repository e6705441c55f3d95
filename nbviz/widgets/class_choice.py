"""The control that picks one of a model's classes, of which there may be thousands, by typing its name."""

from __future__ import annotations

from typing import Any

import ipywidgets

from nbviz.core.errors import line
from nbviz.widgets.controls import Choice
from nbviz.widgets.pickers import ClassPicker


class ClassChoice(Choice):
    """One of the classes that a widget's ``_labels`` name; ``options`` gives those that are offered first."""

    def first(self, widget: Any) -> Any:
        """Any class, until the most probable one is known."""
        return self.get(widget)

    def make(self, widget: Any) -> ClassPicker:
        """Make the picker."""
        texts = {"label": self.label, "help": self.help, "names": [line(name, 60) for name in widget._labels]}
        return ClassPicker(first=list(self.labels(widget)), value=self.get(widget), **texts)

    def fit(self, widget: Any, control: ipywidgets.Widget) -> None:
        """Offer the classes first that are the most probable now."""
        control.first = list(self.labels(widget))
        control.value = self.get(widget)
