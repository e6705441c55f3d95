"""The views in which a person picks one of many: a tab, a layer, a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets as t

from nbviz.widgets.view import View


class Tabs(View):
    """The names of several views in a row, one of which is shown."""

    _script = "tabs.js"
    label = t.Unicode().tag(sync=True)  # for screen readers
    options: t.List[Any] = t.List().tag(sync=True)  # each name and its tooltip
    value = t.Unicode().tag(sync=True)  # written by both


class LayerPicker(View):
    """One of a model's layers: a list that a filter makes short, and steps to the layers before and after."""

    _script = "layers.js"
    label = t.Unicode().tag(sync=True)
    help = t.Unicode().tag(sync=True)
    layers: t.List[Any] = t.List().tag(sync=True)  # see nbviz.widgets.layer_choice.entries
    index = t.Int().tag(sync=True)  # written by both
    value = t.Unicode()  # the layer's name, which a message may not be able to carry

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        self._names = list(names)
        super().__init__(index=self._names.index(kwargs["value"]), **kwargs)

    def offer(self, names: Sequence[str], layers: Sequence[dict[str, Any]], value: str) -> None:
        """From now on, offer these layers."""
        with self.hold_sync():
            self._names, self.layers, self.value = list(names), list(layers), value
            self.index = self._names.index(value)

    @t.validate("index")
    def _valid_index(self, proposal: Any) -> int:
        return _checked(proposal.value, len(self._names))

    @t.observe("index")
    def _picked(self, change: Any) -> None:
        self.value = self._names[change.new]

    @t.observe("value")
    def _set(self, change: Any) -> None:
        self.index = self._names.index(change.new)


class ClassPicker(View):
    """One of a model's classes, found by typing a part of its name."""

    _script = "classes.js"
    label = t.Unicode().tag(sync=True)
    help = t.Unicode().tag(sync=True)
    names: t.List[Any] = t.List().tag(sync=True)  # of all classes
    first: t.List[Any] = t.List().tag(sync=True)  # the most probable classes, which are offered first
    value = t.Int().tag(sync=True)  # written by both

    @t.validate("value")
    def _valid_value(self, proposal: Any) -> int:
        return _checked(proposal.value, len(self.names))


def _checked(place: int, count: int) -> int:
    """A place that the page may have sent; a TraitError, after which the trait is as it was, if there is none such."""
    if not 0 <= place < count:
        raise t.TraitError(f"no {place}: there are {count}")
    return place
