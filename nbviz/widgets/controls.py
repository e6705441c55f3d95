"""What a person sets in a widget, declared once: the control in the page, its checks and the copied code follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ipywidgets
import traitlets as t

from nbviz.core.checks import check_choice, check_index, check_number, check_whole

Method = TypeVar("Method", bound=Callable[..., Any])
#: A value, or a function that computes it from the widget.
Computed = Any

_UNSET = object()


def value_for(widget: Any, computed: Computed) -> Any:
    """A value that may depend on the widget."""
    return computed(widget) if callable(computed) else computed


class Control(t.TraitType[Any, Any]):
    """A trait that a person sets, in the page or from code.

    Parameters
    ----------
    label
        The text beside it in the page.
    help
        What it does, in one sentence: its tooltip.
    default
        The value, or a function from the widget to the value, that it has unless a person sets another. The copied code
        leaves out a control that has its default. Without a default, the control is always in the code.
    start
        The trait's value until the constructor sets it; the default, where this does not depend on the widget.
    drawn_in
        The attribute that holds the view in which a person sets it, such as the strip of pictures. It is linked to the
        view's trait of the same name. None makes a control of its own, ``<name>_control``.
    in_views
        Whether it is a setting of the widget's views: it is linked to each view that has a trait of this name. The page
        changes it without the kernel. No constructor has to name it as an argument.
    follows
        The controls on which the accepted values depend.
    in_code
        Whether the copied code has it.
    check
        A function from the widget and a value to the value to be set, or an error.
    """

    default_value: Any = None

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002 - the name that all traits use
        *,
        default: Computed = _UNSET,
        start: Any = _UNSET,
        drawn_in: str | None = None,
        in_views: bool = False,
        follows: Sequence[str] = (),
        in_code: bool = True,
        check: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if start is _UNSET:
            start = self.default_value if default is _UNSET or callable(default) else default
        super().__init__(start, help=help)
        self.label, self.default_argument, self.drawn_in, self.in_views = label, default, drawn_in, in_views
        self.follows, self.in_code, self.check = tuple(follows), in_code, check

    def _cross_validate(self, obj: Any, value: Any) -> Any:
        return super()._cross_validate(obj, self.checked(obj, value))

    def checked(self, widget: Any, value: Any) -> Any:
        """The value, if it is accepted.

        Raises
        ------
        ValueError, TypeError
            If it is not.
        """
        return value if self.check is None else self.check(widget, value)

    def source(self, widget: Any) -> str | None:
        """The value as an argument in the copied code; None where it may be left out."""
        value, default = self.get(widget), value_for(widget, self.default_argument)
        is_default = default is not _UNSET and default == value
        return repr(value) if self.in_code and not is_default else None

    def first(self, widget: Any) -> Any:
        """The value for an argument of None: the default, or any accepted value until a ``@moves`` method sets it."""
        default = value_for(widget, self.default_argument)
        return self.get(widget) if default is _UNSET else default

    def make(self, widget: Any) -> ipywidgets.Widget:
        """Make the control in the page."""
        raise NotImplementedError

    def fit(self, widget: Any, control: ipywidgets.Widget) -> None:
        """Make the control in the page offer the values that are accepted now."""


class Choice(Control):
    """One of several values, in a dropdown.

    Parameters
    ----------
    options
        The accepted values, or a dict from each value to its label, or a function from the widget to either.
    kind
        What an error message calls it; its name by default.
    label_of
        A function from the widget and a value to a label, for values that ``check`` accepts beyond the options.
    """

    default_value = ""

    def __init__(
        self,
        *texts: str,
        options: Computed = (),
        kind: str = "",
        label_of: Callable[[Any, Any], str] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(*texts, **rest)
        self.options, self.kind, self.label_of = options, kind, label_of

    def labels(self, widget: Any) -> dict[Any, str]:
        """The label of each value that is offered."""
        options = value_for(widget, self.options)
        return dict(options) if isinstance(options, Mapping) else {value: str(value) for value in options}

    def checked(self, widget: Any, value: Any) -> Any:
        """The value, if it is offered."""
        if self.check is not None:
            return self.check(widget, value)
        labels = self.labels(widget)
        if all(isinstance(option, str) for option in labels):
            return check_choice(self.kind or str(self.name), value, labels)
        if not any(type(option) is type(value) and option == value for option in labels):
            accepted = ", ".join(map(repr, labels))
            raise TypeError(f"{self.name} is {value!r}; expected {accepted}")
        return value

    def first(self, widget: Any) -> Any:
        """The default, or the first option."""
        if self.label_of is not None or self.default_argument is not _UNSET:
            return super().first(widget)
        if not (labels := self.labels(widget)):
            raise ValueError(f"there is nothing to choose for {self.name}")
        return next(iter(labels))

    def make(self, widget: Any) -> ipywidgets.Widget:
        """Make a dropdown."""
        pairs, value = self._pairs(widget), self.get(widget)
        return ipywidgets.Dropdown(options=pairs, value=value, description=self.label, tooltip=self.help)

    def fit(self, widget: Any, control: ipywidgets.Widget) -> None:
        """Offer the values that are accepted now."""
        pairs = self._pairs(widget)
        if list(control.options) != pairs:
            control.options = pairs  # which selects the first of them
        control.value = self.get(widget)

    def _pairs(self, widget: Any) -> list[tuple[str, Any]]:
        labels, value = self.labels(widget), self.get(widget)
        if self.label_of is not None and value not in labels:
            labels[value] = self.label_of(widget, value)
        return [(label, value) for value, label in labels.items()]


class Number(Control):
    """A number, on a slider.

    Parameters
    ----------
    ends
        The lowest and the highest number and the slider's step, or a function from the widget to these.
    """

    default_value: float = 0.0
    slider: type[ipywidgets.Widget] = ipywidgets.FloatSlider
    readout = ".4"  # four digits, without zeros at the end

    def __init__(self, *texts: str, ends: Computed, **rest: Any) -> None:
        super().__init__(*texts, **rest)
        self.ends = ends

    def checked(self, widget: Any, value: Any) -> float:
        """The number, if it lies between the ends."""
        low, high, _ = value_for(widget, self.ends)
        return check_number(str(self.name), value, low, high)

    def make(self, widget: Any) -> ipywidgets.Widget:
        """Make a slider."""
        low, high, step = value_for(widget, self.ends)
        texts = {"description": self.label, "tooltip": self.help, "readout_format": self.readout}
        return self.slider(min=low, max=high, step=step, value=self.get(widget), **texts)

    def fit(self, widget: Any, control: ipywidgets.Widget) -> None:
        """Set the slider's ends and its step, in the order that never has the lower end above the upper."""
        low, high, control.step = value_for(widget, self.ends)
        if low > control.max:
            control.max, control.min = high, low
        else:
            control.min, control.max = low, high


class Whole(Number):
    """A whole number, on a slider.

    Parameters
    ----------
    least, most
        The smallest and the largest number, or functions from the widget to them.
    """

    default_value = 0
    slider = ipywidgets.IntSlider
    readout = "d"

    def __init__(self, *texts: str, least: Computed = 0, most: Computed = 100, **rest: Any) -> None:
        super().__init__(*texts, ends=lambda widget: (value_for(widget, least), value_for(widget, most), 1), **rest)

    def checked(self, widget: Any, value: Any) -> int:
        """The number, if it lies between the ends."""
        low, high, _ = value_for(widget, self.ends)
        return check_whole(str(self.name), value, low, high)


class Index(Whole):
    """A place among several, from 0.

    Parameters
    ----------
    count
        How many there are, or a function from the widget to this.
    """

    def __init__(self, *texts: str, count: Computed, **rest: Any) -> None:
        super().__init__(*texts, most=lambda widget: value_for(widget, count) - 1, **rest)
        self.count = count

    def checked(self, widget: Any, value: Any) -> int:
        """The place, if there is one."""
        return check_index(str(self.name), value, value_for(widget, self.count))


@dataclass(frozen=True)
class Part:
    """What :func:`draws` declares."""

    controls: tuple[str, ...]
    views: tuple[str, ...]
    also: Callable[[Any], Iterable[str]] | None

    def depends(self, widget: Any) -> tuple[str, ...]:
        """The controls on which the part depends at this moment."""
        return (*self.controls, *(() if self.also is None else self.also(widget)))


def draws(
    *controls: str, into: Iterable[str] | str = (), also: Callable[[Any], Iterable[str]] | None = None
) -> Callable[[Method], Method]:
    """Declare that a method draws a part of the widget, and on which controls the part depends.

    A part is drawn again when one of its controls changes. A part that takes long is a generator method, which yields
    wherever a chunk of work may end: True where the chunk must end, because so many bytes are on their way to the page
    that more would queue up. After any other method a chunk may end.

    Parameters
    ----------
    *controls
        The names of the controls.
    into
        The attributes that hold the views it draws into.
    also
        A function from the widget to further controls, for a part whose dependencies change.
    """

    def declare(method: Method) -> Method:
        views = (into,) if isinstance(into, str) else tuple(into)
        method.part = Part(controls, views, also)  # type: ignore[attr-defined]
        return method

    return declare


def moves(control: str, when: str) -> Callable[[Method], Method]:
    """Declare that a method computes the value of a control when another control changes.

    A new layer, for example, moves the channel to the layer's strongest one. The person may change it afterwards. The
    method also computes the first value where the constructor's argument is None.
    """

    def declare(method: Method) -> Method:
        method.moves = (control, when)  # type: ignore[attr-defined]
        return method

    return declare
