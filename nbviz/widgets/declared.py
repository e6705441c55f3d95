"""What follows from a widget's declarations: its signature, its controls in the page, their links, the copied code."""

from __future__ import annotations

import difflib
import inspect
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ClassVar, TypeVar

import ipywidgets
import traitlets as t

from nbviz.core.state import device_aside
from nbviz.widgets.controls import Choice, Control, Part
from nbviz.widgets.pickers import ClassPicker, LayerPicker
from nbviz.widgets.views import Boxes, ChannelGrid, Header, Region, Strip

Function = TypeVar("Function", bound=Callable[..., Any])


class Declared(ipywidgets.VBox):  # type: ignore[misc]
    """A widget whose class declares what a person sets in it and what it draws.

    What a person sets are its *controls*, see :mod:`nbviz.widgets.controls`. What it draws are its *parts*: generator
    methods ``_show_<part>``, each decorated with ``@draws``. An argument of the constructor that has the name of a
    control sets it. Other arguments are the constructor's own business; the copied code repeats them. Where a
    constructor takes ``**options``, its signature lists the arguments of the function that they are passed to:
    ``options_of`` where the class names one, else the constructor of the base class.
    """

    _kind: ClassVar[str]  # the style sheet lays out the columns by it
    _arguments: tuple[str, ...] = ("model", "images")  # the first arguments of the copied code
    _by_name: ClassVar[tuple[str, ...]] = (
        *("images", "preprocess", "labels", "inputs", "output", "answer"),
        *("table", "comparison"),
    )
    _not_in_code: ClassVar[tuple[str, ...]] = ()
    _parts: ClassVar[tuple[str, ...]] = ()  # in the order in which they are drawn; by default as they are declared
    # In the order of their declarations, a base class's first, and settings of the views last.
    _controls: ClassVar[dict[str, Control]] = {}
    _declared: ClassVar[dict[str, Part]] = {}
    _movers: ClassVar[dict[str, tuple[str, str]]] = {}  # for a control: what moves it, and the method that computes it
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, options_of: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("nbviz."):  # a person's subclass looks like the widget that it is made of
            cls._kind = cls.__name__.lower()
        if "__init__" in vars(cls):
            cls.__init__ = _outermost(spelled_out(options_of or cls.__base__)(cls.__init__))  # type: ignore[method-assign]
        members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        controls = {n: m for n, m in members.items() if isinstance(m, Control)}
        settings = {n: control for n, control in controls.items() if control.in_views}
        cls._controls = {n: control for n, control in controls.items() if n not in settings} | settings
        parameters = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name not in settings]
        for name, control in settings.items():  # which no constructor has to name
            default = control.default_argument
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
        cls.__signature__ = inspect.Signature(sorted(parameters[1:], key=lambda p: p.kind))  # without self
        cls._declared = {n.removeprefix("_show_"): m.part for n, m in members.items() if hasattr(m, "part")}
        cls._movers = {m.moves[0]: (m.moves[1], n) for n, m in members.items() if hasattr(m, "moves")}
        if "_parts" not in vars(cls):
            cls._parts = tuple(cls._declared)

    def _note_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the constructor's arguments: the values of controls, and the sources of the others."""
        signature = type(self).__signature__
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}() {error}") from None
        bound.apply_defaults()
        arguments = {**bound.arguments, **bound.arguments.get("options", {})}
        self._values = {name: value for name, value in arguments.items() if name in self._controls}
        self._sources: dict[str, str] = {}
        for name, value in arguments.items():
            default = signature.parameters[name].default if name in signature.parameters else None
            if value is None or name == "options" or name in (*self._controls, *self._not_in_code):
                continue
            with suppress(Exception):  # a person's object may not compare; the constructor will refuse it
                if not (type(value) is type(default) and value == default):
                    self._sources[name] = repr(value) if _is_plain(value) and name not in self._by_name else name

    def __init__(self, header: Header) -> None:
        self.header = header
        self._to_move = set[str]()  # controls that will take a value of their own
        self._to_fit = set[str]()  # controls whose accepted values have changed
        self._links: dict[str, Any] = {}  # between controls and those in the page
        self._open = False  # whether it is complete
        self._group = uuid.uuid4().hex  # the views that share their settings
        super().__init__()
        self.add_class("nbviz")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse unknown names: a misspelt control would change nothing, and nobody would notice."""
        is_new = not name.startswith("_") and name not in vars(self) and not hasattr(type(self), name)
        if is_new and vars(self).get("_open", False):
            near = difflib.get_close_matches(name, [*self._controls, *vars(self)], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f". Controls: {', '.join(self._controls)}"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")
        super().__setattr__(name, value)

    def _set_controls(self, **computed: Any) -> None:
        """Set the controls to the constructor's arguments, or to computed values, and make those in the page.

        An argument of None that is the default stands for a control's own first value.
        """
        parameters, given = type(self).__signature__.parameters, self._values | computed
        for name in [name for name in self._controls if name in given]:
            value = given[name]
            if value is None and parameters[name].default is None:
                value = self._controls[name].first(self)
                self._to_move |= {name} & self._movers.keys()
            setattr(self, name, value)
        for name, control in self._controls.items():
            if control.label:
                setattr(self, f"{name}_control", control.make(self))
        self._values.clear()

    def _show_columns(self, columns: Sequence[Sequence[ipywidgets.Widget]]) -> None:
        """Put the header above the columns, and link the controls to those in the page."""
        for name, control in self._controls.items():
            if control.label:
                self._links[name] = t.link((self, name), (getattr(self, f"{name}_control"), "value"))
            elif control.drawn_in is not None:
                t.link((self, name), (getattr(self, control.drawn_in), name))
        for part in self._declared:
            for view in self._views(part):
                view.part = view.part or part
        for view in {view for part in self._declared for view in self._views(part)}:
            if view.has_trait("group"):
                view.group = self._group
            for name, control in self._controls.items():
                if control.in_views and view.has_trait(name):
                    t.link((self, name), (view, name))
        boxes = [ipywidgets.VBox(list(column)) for column in columns]
        self._show_below(ipywidgets.Box(boxes).add_class("nbviz-columns"))

    def _show_below(self, content: ipywidgets.Box) -> None:
        """Put the header above the content; from now on it says when a control waits for the kernel."""
        self.header.controls = [self.header, *_inputs_in(content)]
        self.children = [self.header, content]
        self.add_class(f"nbviz-{self._kind}")

    def _views(self, part: str) -> Iterator[Any]:
        """The views into which a part is drawn."""
        for name in self._declared[part].views:
            held = getattr(self, name)
            yield from held if isinstance(held, (list, tuple)) else [held]

    def _fit(self, name: str) -> None:
        """Make the page's control offer the values that are accepted now."""
        if (link := self._links.get(name)) is None:
            return
        control, in_page = self._controls[name], getattr(self, f"{name}_control")
        if not isinstance(control, Choice):
            control.fit(self, in_page)
            return
        link.unlink()  # with new options a dropdown selects the first, which nobody has chosen
        try:
            control.fit(self, in_page)
        finally:
            link.link()

    @property
    def code(self) -> str:
        """The call that gives this view, with the person's own names for the model and the like."""
        sources = {name: control.source(self) for name, control in self._controls.items()}
        options = {**{name: source for name, source in sources.items() if source is not None}, **self._sources}
        first = [options.pop(name, name) for name in self._arguments]
        keywords = [f"{name}={source}" for name, source in options.items()]
        return f"nbviz.{type(self).__name__}({', '.join([*first, *keywords])})"

    def close(self) -> None:
        """End the widget and everything in it; each inner widget has a comm of its own."""
        self._open = False
        # Some controls and views are in no box, because this kind of view does not show them.
        inner: list[Any] = [self, *(held for held in vars(self).values() if isinstance(held, ipywidgets.Widget))]
        for widget in inner:
            within = (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None))
            inner.extend(found for found in within if isinstance(found, ipywidgets.Widget))
        for widget in inner[1:]:
            widget.close()
        super().close()


def spelled_out(options_of: Any) -> Callable[[Function], Function]:
    """Replace ``**options`` in a function's signature by the optional arguments of what they are passed to."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in kept}
        if len(kept) < len(signature.parameters):
            passed = [p for p in inspect.signature(options_of).parameters.values() if p.name not in names]
            kept += [p.replace(kind=p.KEYWORD_ONLY) for p in passed if p.default is not p.empty]
            kept += [p for p in passed if p.kind is p.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return function

    return decorate


def _outermost(make: Callable[..., None]) -> Callable[..., None]:
    """A constructor that notes its arguments, runs without the person's default device, and closes what fails."""

    @wraps(make)
    def init(self: Declared, *args: Any, **kwargs: Any) -> None:
        try:
            with device_aside():
                if "_sources" not in vars(self):  # else a subclass's constructor calls this one
                    self._note_arguments(args, kwargs)
                    settings = {name for name, control in self._controls.items() if control.in_views}
                    kwargs = {name: value for name, value in kwargs.items() if name not in settings}
                make(self, *args, **kwargs)
        except BaseException:
            with suppress(Exception):
                self.close()  # nobody else has it to close it
            raise

    return init


def _is_plain(value: Any) -> bool:
    """Whether a value's ``repr`` is code that gives it again."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, float, str)


_SLIDERS = ipywidgets.IntSlider, ipywidgets.FloatSlider
_INPUTS = (ipywidgets.Dropdown, *_SLIDERS, LayerPicker, ClassPicker, ChannelGrid, Strip, Region, Boxes)


def _inputs_in(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    """The widgets in a layout whose changes the kernel must answer."""
    for child in box.children:
        if isinstance(child, ipywidgets.Box):
            yield from _inputs_in(child)
        elif isinstance(child, _INPUTS):
            yield child
