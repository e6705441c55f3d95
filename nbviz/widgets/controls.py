"""What a person sets in a widget, declared once: its control in the page, its checks and the copied code follow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ipywidgets
import traitlets as t

from nbviz.core.checks import check_choice, check_index, check_number, check_whole

Method = TypeVar("Method", bound=Callable[..., Any])
#: A value, or a function that has it from the widget.
Given = Any

_UNSET = object()
_numbers = itertools.count()


def value_for(view: Any, given: Given) -> Any:
    """A value that may depend on the widget."""
    return given(view) if callable(given) else given


class Control(t.TraitType[Any, Any]):
    """A trait that a person sets, in the page or by code.

    Parameters
    ----------
    label
        What stands beside it in the page.
    help
        What it is, in a sentence: its tooltip.
    usual
        The value, or from the widget the value, that it has unless a person gives another; such a value is left out of
        the copied code. Without one, the value is always in the code.
    drawn_in
        The attribute that holds the view in the page where it is set, such as the strip of pictures; a trait of the
        same name is linked. None makes a control of its own, ``<name>_control``.
    follows
        The other controls on which the accepted values depend.
    in_code
        Whether it belongs in the copied code.
    check
        From the widget and a value to the value, or an error.
    """

    default_value: Any = None

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002 - as all traits have it
        *,
        start: Any = None,
        usual: Given = _UNSET,
        drawn_in: str | None = None,
        follows: Sequence[str] = (),
        in_code: bool = True,
        check: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(start, help=help)
        self.label, self.usual, self.drawn_in = label, usual, drawn_in
        self.follows, self.in_code, self.check = tuple(follows), in_code, check
        self.number = next(_numbers)  # the order in which they are declared

    def _cross_validate(self, obj: Any, value: Any) -> Any:
        return super()._cross_validate(obj, self.checked(obj, value))

    def checked(self, view: Any, value: Any) -> Any:
        """The value given, if it is accepted.

        Raises
        ------
        ValueError, TypeError
            If it is not.
        """
        return value if self.check is None else self.check(view, value)

    def source(self, view: Any, value: Any) -> str | None:
        """The value as an argument in the copied code; None where it may be left out."""
        usual = value_for(view, self.usual)
        return None if not self.in_code or (usual is not _UNSET and usual == value) else repr(value)

    def first(self, view: Any) -> Any:
        """A value that is accepted, until the control takes one of its own."""
        return getattr(view, self.name)  # type: ignore[arg-type]

    def make(self, view: Any) -> ipywidgets.Widget:
        """The control in the page."""
        raise NotImplementedError

    def fit(self, view: Any, control: ipywidgets.Widget) -> None:
        """Have the control in the page offer what is accepted now."""


class Choice(Control):
    """One of several values, in a dropdown.

    Parameters
    ----------
    options
        The names accepted; or label by value; or either from the widget.
    kind
        What an error calls it.
    label_of
        From the widget and a value that is accepted by ``check``, but is not among the options, to its label.
    """

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002
        *,
        options: Given = (),
        kind: str = "",
        label_of: Callable[[Any, Any], str] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(label, help, **rest)
        self.options, self.kind, self.label_of = options, kind, label_of

    def labels(self, view: Any) -> dict[Any, str]:
        """The label of each value offered."""
        options = value_for(view, self.options)
        return dict(options) if isinstance(options, Mapping) else {value: str(value) for value in options}

    def checked(self, view: Any, value: Any) -> Any:
        """The value given, if it is one of those offered."""
        if self.check is not None:
            return self.check(view, value)
        labels = self.labels(view)
        if all(isinstance(one, str) for one in labels):
            return check_choice(self.kind or str(self.name), value, labels)
        if not any(type(one) is type(value) and one == value for one in labels):
            accepted = ", ".join(map(repr, labels))
            raise TypeError(f"{self.name} is {value!r}; expected {accepted}")
        return value

    def first(self, view: Any) -> Any:
        """The first of those offered."""
        return super().first(view) if self.label_of is not None else next(iter(self.labels(view)))

    def make(self, view: Any) -> ipywidgets.Widget:
        """A dropdown."""
        return ipywidgets.Dropdown(
            options=self._pairs(view, getattr(view, self.name)),  # type: ignore[arg-type]
            value=getattr(view, self.name),  # type: ignore[arg-type]
            description=self.label,
            tooltip=self.help,
        )

    def fit(self, view: Any, control: ipywidgets.Widget) -> None:
        """Offer what is accepted now."""
        value = getattr(view, self.name)  # type: ignore[arg-type]
        pairs = self._pairs(view, value)
        if list(control.options) != pairs:
            control.options = pairs  # which chooses the first
        control.value = value

    def _pairs(self, view: Any, value: Any) -> list[tuple[str, Any]]:
        labels = self.labels(view)
        if self.label_of is not None and value not in labels:
            labels[value] = self.label_of(view, value)
        return [(label, value) for value, label in labels.items()]


class Whole(Control):
    """A whole number, on a slider."""

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002
        *,
        least: Given = 0,
        most: Given = 100,
        **rest: Any,
    ) -> None:
        super().__init__(label, help, **{"start": 0, **rest})
        self.least, self.most = least, most

    def checked(self, view: Any, value: Any) -> int:
        """The number given, if it lies between the ends."""
        return check_whole(str(self.name), value, value_for(view, self.least), value_for(view, self.most))

    def make(self, view: Any) -> ipywidgets.Widget:
        """A slider."""
        least, most = value_for(view, self.least), value_for(view, self.most)
        return ipywidgets.IntSlider(
            min=least,
            max=most,
            value=getattr(view, self.name),  # type: ignore[arg-type]
            description=self.label,
            tooltip=self.help,
        )

    def fit(self, view: Any, control: ipywidgets.Widget) -> None:
        """Reach from end to end."""
        _reach(control, value_for(view, self.least), value_for(view, self.most))


class Index(Whole):
    """Which of several, from 0."""

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002
        *,
        count: Given,
        kind: str = "",
        **rest: Any,
    ) -> None:
        super().__init__(label, help, most=lambda view: value_for(view, count) - 1, **rest)
        self.count, self.kind = count, kind

    def checked(self, view: Any, value: Any) -> int:
        """The number given, if there are so many."""
        return check_index(self.kind or str(self.name), value, value_for(view, self.count))


class Number(Control):
    """A number, on a slider.

    Parameters
    ----------
    ends
        Lowest, highest and the slider's step.
    """

    def __init__(
        self,
        label: str = "",
        help: str = "",  # noqa: A002
        *,
        ends: Given,
        **rest: Any,
    ) -> None:
        super().__init__(label, help, **{"start": 0.0, **rest})
        self.ends = ends

    def checked(self, view: Any, value: Any) -> float:
        """The number given, if it lies between the ends."""
        low, high, _ = value_for(view, self.ends)
        return check_number(str(self.name), value, low, high)

    def first(self, view: Any) -> float:
        """The lowest."""
        low, _, _ = value_for(view, self.ends)
        return float(low)

    def make(self, view: Any) -> ipywidgets.Widget:
        """A slider."""
        low, high, step = value_for(view, self.ends)
        value = getattr(view, self.name)  # type: ignore[arg-type]
        given = {"description": self.label, "tooltip": self.help, "readout_format": ".4g"}
        return ipywidgets.FloatSlider(min=low, max=high, step=step, value=value, **given)

    def fit(self, view: Any, control: ipywidgets.Widget) -> None:
        """Reach from end to end."""
        low, high, control.step = value_for(view, self.ends)
        _reach(control, low, high)


def _reach(control: ipywidgets.Widget, low: float, high: float) -> None:
    """A slider's ends, of which the lower must not come above the higher on the way."""
    if low > control.max:
        control.max, control.min = high, low
    else:
        control.min, control.max = low, high


def controls_of(kind: type) -> dict[str, Control]:
    """A class's controls by name, in the order in which they are declared."""
    found = {name: trait for name, trait in kind.class_traits().items() if isinstance(trait, Control)}  # type: ignore[attr-defined]
    return dict(sorted(found.items(), key=lambda pair: pair[1].number))


def draws(
    *controls: str, into: Iterable[str] | str = (), also: Callable[[Any], Iterable[str]] | None = None
) -> Callable[[Method], Method]:
    """Declare on which controls a part depends: it is drawn again when one of them changes.

    A part is a generator method, which yields where a chunk of work may end, and True where it must: so much is on its
    way to the page that more would queue up.

    Parameters
    ----------
    *controls
        Names.
    into
        The attributes that hold the views it draws in.
    also
        From the widget to further controls, for a part that does not always depend on the same.
    """

    def declare(method: Method) -> Method:
        views = (into,) if isinstance(into, str) else tuple(into)
        method.part = Part(controls, views, also)  # type: ignore[attr-defined]
        return method

    return declare


class Part:
    """What :func:`draws` declares."""

    def __init__(
        self, controls: tuple[str, ...], views: tuple[str, ...], also: Callable[[Any], Iterable[str]] | None
    ) -> None:
        self.controls, self.views, self.also = controls, views, also

    def depends(self, view: Any) -> tuple[str, ...]:
        """The controls on which it depends at this moment."""
        return (*self.controls, *(() if self.also is None else self.also(view)))


def moves(control: str, when: str) -> Callable[[Method], Method]:
    """Declare that a method has the value that a control takes when another changes: a new layer's strongest channel.

    The person may set it afterwards. It is also taken at first, where the person gave none.
    """

    def declare(method: Method) -> Method:
        method.moves = (control, when)  # type: ignore[attr-defined]
        return method

    return declare
