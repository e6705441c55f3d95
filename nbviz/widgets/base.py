"""The base of all widgets: work in chunks that the page pulls, one thread at a time; a picture for when it is gone."""

from __future__ import annotations

import base64
import difflib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets
import traitlets as t

from nbviz.core.checks import check_number
from nbviz.core.errors import line
from nbviz.core.state import device_aside
from nbviz.core.weights import WeightsChanged
from nbviz.export.figure import Panel, check_figure_path, draw_figure, save_figure
from nbviz.widgets.cells import between_cells, cells_run, watch_cells
from nbviz.widgets.controls import Choice, Part, controls_of
from nbviz.widgets.predictions import Answers
from nbviz.widgets.reruns import watch_reruns
from nbviz.widgets.views import Boxes, ChannelGrid, Header, Region, Strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

watch_reruns()  # before the first widget is made, as parts of it are before it

_CHUNK = 0.05  # seconds of work, at least, before the page is shown what there is
_BEFORE_DISPLAY = 1.5  # seconds of work at most before the first picture is shown
_ON_THE_WAY = 0.15  # seconds that a chunk should take to be painted
_ROOM = (1 << 16, 1 << 22)  # bytes of a chunk, at least and at most


class Pulled(ipywidgets.VBox):  # type: ignore[misc]
    """A widget whose parts are drawn in chunks, each asked for by the page once it has painted the last.

    What a person sets are its *controls*, see :mod:`nbviz.widgets.controls`. What it draws are its *parts*: generator
    methods ``_show_<part>`` that declare by ``@draws`` on which controls they depend. A change of a control marks parts
    as stale and starts over with them, in the order of ``_parts``; so nothing queues up, and a newer state drops what
    is left of an older one.
    """

    _kind: ClassVar[str] = ""  # after which the style sheet tells its columns
    _arguments: tuple[str, ...] = ("model", "images")  # that the copied code begins with
    _parts: ClassVar[tuple[str, ...]] = ()  # all that are declared, unless a class names fewer, or another order
    _declared: ClassVar[dict[str, Part]] = {}
    _movers: ClassVar[dict[str, tuple[str, str]]] = {}  # of a control: when it moves, and the method that has its value

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _all_or_nothing(cls.__init__)  # type: ignore[method-assign]
        methods = {name: value for kind in reversed(cls.__mro__) for name, value in vars(kind).items()}
        cls._declared = {n.removeprefix("_show_"): m.part for n, m in methods.items() if hasattr(m, "part")}
        cls._movers = {m.moves[0]: (m.moves[1], n) for n, m in methods.items() if hasattr(m, "moves")}
        if "_parts" not in vars(cls):
            cls._parts = tuple(cls._declared)

    def __init__(self, header: Header, **kwargs: Any) -> None:
        watch_cells()
        self.header = header
        self._stale = set(self._parts)
        self._job: Iterator[bool] | None = None
        self._stepping = False
        self._open = False
        self._chunk_ended = 0.0
        self._cells = cells_run()
        self._room = 1 << 18  # bytes that a chunk should not exceed: more where the page answers soon
        self._controls = controls_of(type(self))
        self._to_move = set[str]()  # controls that are to take a value of their own
        self._to_fit = set[str]()  # and those whose accepted values have changed
        self._links: dict[str, Any] = {}  # between controls and those in the page
        self._given: dict[str, str] = {}  # other arguments that the person gave, as they stand in the copied code
        self._weights: tuple[int, ...] = ()  # of the models, which state was drawn
        super().__init__(**kwargs)
        self.add_class("nbviz")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what there is: a control whose name is misspelt would change nothing, without a word."""
        is_new = not name.startswith("_") and name not in vars(self) and not hasattr(type(self), name)
        if is_new and vars(self).get("_open", False):
            near = difflib.get_close_matches(name, [*self._controls, *vars(self)], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f". Controls: {', '.join(self._controls)}"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")
        super().__setattr__(name, value)

    def _note_given(self, **given: Any) -> None:
        """Arguments beside the controls, for the copied code: those that the person gave, by their names."""
        self._given |= {name: name for name, value in given.items() if value is not None}

    def _note_values(self, usual: dict[str, Any], **given: Any) -> None:
        """The same of plain values, which are left out where they are the usual ones."""
        for name, value in given.items():
            with suppress(Exception):  # of an object's own making, which will be refused
                if value is not None and not (type(value) is type(usual.get(name)) and value == usual[name]):
                    self._given[name] = repr(value) if _is_plain(value) else name

    def _begin_with(self, **values: Any) -> None:
        """Set the controls, in the page as well; None has one take a value of its own."""
        for name, value in values.items():
            if value is None and name in self._movers:
                self._to_move.add(name)
                setattr(self, name, self._controls[name].first(self))
            else:
                setattr(self, name, value)
        for name, control in self._controls.items():
            if control.label:
                setattr(self, f"{name}_control", control.make(self))

    def _lay_out(self, *columns: Sequence[ipywidgets.Widget]) -> None:
        """Put the header above the columns, and have the page's controls follow the widget's, and these those.

        From now on the header says so when a control waits for the kernel.
        """
        for name, control in self._controls.items():
            if control.label:
                self._links[name] = t.link((self, name), (getattr(self, f"{name}_control"), "value"))
            elif control.drawn_in is not None:
                t.link((self, name), (getattr(self, control.drawn_in), name))
        for part, declared in self._declared.items():
            for view in self._views(declared):
                view.part = view.part or part
        boxes = [ipywidgets.VBox(list(column)) for column in columns]
        self._show_below(ipywidgets.Box(boxes).add_class("nbviz-columns"))

    def _views(self, declared: Part) -> Iterator[Any]:
        """The views in which a part is drawn."""
        for name in declared.views:
            held = getattr(self, name)
            yield from held if isinstance(held, (list, tuple)) else [held]

    def _show_below(self, shown: ipywidgets.Box) -> None:
        self.header.controls = [f"IPY_MODEL_{w.model_id}" for w in (self.header, *_controls(shown))]
        self.children = [self.header, shown]
        self.add_class(f"nbviz-{self._kind}")

    def _start(self) -> None:
        """Draw the first chunk, and from now on what changes. The first errors are the caller's."""
        self.observe(self._changed, names=list(self._controls))
        self.header.observe(self._painted, names="painted")
        self._open = True
        with self._turn():
            self._begin()
            if (strip := getattr(self, "strip", None)) is not None:
                strip.send(0)
            self._step(raise_errors=True)

    def _answers(self) -> Sequence[Answers]:
        """The models that it looks at, with what they answer."""
        one = getattr(self, "session", None)
        return getattr(self, "sessions", ()) if one is None else (one,)

    def _settle(self, is_trained: bool = False) -> bool:
        """Take the weights as they are now; whether they have changed, and with them all that is shown."""
        before, self._cells = self._cells, cells_run()
        # All of them where code has run that may have changed any, a glance while the page alone is at work.
        in_full = before != self._cells
        for answers in self._answers():
            answers.settle(in_full, is_trained)
        seen = tuple(answers.weights for answers in self._answers())
        # Not what settling says: another widget on the same model may have asked before.
        before_that, self._weights = self._weights, seen
        if changed := before_that not in ((), seen):
            self._mark(self._parts)
        return changed

    def _mark(self, parts: Iterable[str]) -> None:
        """Parts are to be drawn again."""
        for part in parts:
            if part in self._parts:
                self._stale.add(part)
                for view in self._views(self._declared[part]):
                    view.is_to_come(part)

    def _begin(self, is_trained: bool = False) -> None:
        """Start on what is stale."""
        self._settle(is_trained)
        self._job = self._work()

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """While inside, everything is of one state of the weights."""
        with ExitStack() as stack:
            for answers in self._answers():
                stack.enter_context(answers.settled())
            yield

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """While inside, it is the widget itself that sets its controls."""
        before, self._stepping = self._stepping, True
        try:
            yield
        finally:
            self._stepping = before

    def _follow(self) -> None:
        """Have the page offer what is accepted now, and move the controls that are to take a value of their own."""
        with self._moving():
            for name in sorted(self._to_fit):
                self._fit(name)
            self._to_fit.clear()
            for name in sorted(self._to_move):
                setattr(self, name, getattr(self, self._movers[name][1])())
            self._to_move.clear()

    def _fit(self, name: str) -> None:
        """Have the page's control offer what is accepted now."""
        if (link := self._links.get(name)) is None:
            return
        control, shown = self._controls[name], getattr(self, f"{name}_control")
        if not isinstance(control, Choice):
            control.fit(self, shown)
            return
        link.unlink()  # new options choose their first, as nobody has
        try:
            control.fit(self, shown)
        finally:
            link.link()

    def _key(self, part: str) -> str:
        """What a part is of: the values of the controls on which it depends, and the state of the weights."""
        values = [getattr(self, name) for name in self._declared[part].depends(self)]
        return line(" ".join(map(str, [*values, *(answers.weights for answers in self._answers())])), 1000)

    def _work(self) -> Iterator[bool]:
        failed: Exception | None = None
        self._follow()
        for part in self._parts:
            if part in self._stale:
                for view in self._views(self._declared[part]):
                    view.draw_for(part, self._key(part))
                try:
                    yield from getattr(self, f"_show_{part}")()
                    self._stale.discard(part)
                except Exception as error:
                    if part == self._parts[0]:  # on which all others stand
                        raise
                    failed = failed or error
        if failed is not None:
            raise failed

    def _ended(self) -> None:
        """Called when there is nothing more to do, or an error has ended it."""
        self.header.code = self.code

    @property
    def code(self) -> str:
        """The call that gives this view, with the names that the person has for the model and the like."""
        sources = {name: control.source(self, getattr(self, name)) for name, control in self._controls.items()}
        options = {**{name: source for name, source in sources.items() if source is not None}, **self._given}
        given = [f"{name}={source}" for name, source in options.items() if name not in self._arguments]
        first = [options.get(name, name) for name in self._arguments]
        return f"nbviz.{type(self).__name__}({', '.join([*first, *given])})"

    def _changed(self, change: Any) -> None:
        name = change.name
        with self._turn():
            if not self._stepping:  # the person has set it
                self._to_move.discard(name)
            self._to_move |= {moved for moved, (when, _) in self._movers.items() if when == name}
            self._to_fit |= {other for other, control in self._controls.items() if name in control.follows}
            self._renew({part for part in self._parts if name in self._declared[part].depends(self)})

    def _renew(self, parts: set[str]) -> None:
        """Draw parts again."""
        if not self._open:
            return
        with self._turn():
            self._mark(parts)
            with self.header.hold_sync():  # in one message, before a pass that may be long
                self.header.stale = sorted(self._stale)
                self.header.state = "working"
            if self._stepping:  # the chunk that made this change goes on to what it made stale
                return
            # At once and in full view of the front end, which sends a control's next change only when
            # this one is done with: so a flood of changes becomes a few, of which the last is the latest.
            self._again()
            self._step()

    def _again(self, is_trained: bool = False) -> None:
        """Start over; what keeps it from that is said in the page."""
        try:
            self._begin(is_trained)
        except Exception as error:
            self._failed(error)
        else:
            self.header.state = "working"

    def _painted(self, change: Any) -> None:
        with self._turn():
            if change.new == self.header.chunk:
                took = max(time.monotonic() - self._chunk_ended, 1e-3)
                self._room = int(min(max(self._room * _ON_THE_WAY / took, _ROOM[0]), _ROOM[1]))
                self._step()

    def _step(self, raise_errors: bool = False) -> None:
        """Do one chunk of the work and tell the page, which asks for the next."""
        if self._job is None:
            return
        with self.header.hold_sync():  # what it says of this chunk goes in one message, after the pictures
            self._do_chunk(self._job, raise_errors)

    def _do_chunk(self, job: Iterator[bool], raise_errors: bool) -> None:
        self._stepping = True
        end = time.monotonic() + _CHUNK
        try:
            with self._settled():
                while not next(job) and time.monotonic() < end:
                    pass
            self.header.error = ""
            self.header.state = "working"
        except StopIteration:
            self._job = None
            self._ended()
            self.header.error = ""
            self.header.state = "ready"
        except WeightsChanged:  # by another thread: from the start, on a copy that is not trained
            self._mark(self._parts)
            self._again(is_trained=True)
        except Exception as error:
            if raise_errors and self._parts[0] in self._stale:  # nothing can be shown
                raise
            self._failed(error)
        except BaseException:  # interrupted: what is stale is drawn when next asked for
            self._job = self._work()
            self.header.state = "interrupted"
            raise
        finally:
            self._stepping = False
            self.header.stale = sorted(self._stale)
        self._chunk_ended = time.monotonic()
        self.header.chunk += 1

    def _failed(self, error: Exception) -> None:
        """Say so in the page: an observer's traceback is seen by nobody, it goes to JupyterLab's log."""
        self._job = None
        self._ended()
        self.header.error = f"{line(type(error).__name__)}: {line(error, 1000)}"
        self.header.state = "error"

    def finish(self, seconds: float = float("inf")) -> None:
        """Do the work that is left without waiting for a page, for about ``seconds`` at most."""
        end = time.monotonic() + check_number("seconds", seconds)
        with self._turn():
            if self._job is None and self._open and (self._stale or self.header.error):  # its cause may be gone
                self._again()
            while self._job is not None and time.monotonic() < end:
                self._step()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock on all models; say so if that means to wait."""
        before = self.header.state

        def say() -> None:
            self.header.state = "waiting: a cell is running"

        with between_cells(say), device_aside():
            self.header.state = before
            yield

    def _heading(self) -> str:
        """One line above the figure."""
        raise NotImplementedError

    def _figure_rows(self) -> list[list[Panel]]:
        """What the figure shows, row by row."""
        raise NotImplementedError

    def _foot(self) -> str:
        """What must be read with it."""
        return self.header.note

    def _draw(self) -> Figure:
        return draw_figure(self._heading(), self._figure_rows(), self._foot())

    def figure(self) -> Figure:
        """The current view as a matplotlib figure, made without pyplot."""
        with self._turn():
            self._settle()  # whose error is the caller's
            while True:
                self.finish()
                try:
                    with self._settled():
                        figure = self._draw()
                except WeightsChanged:
                    self._again(is_trained=True)
                else:
                    self._ended()
                    return figure

    def save(self, path: str | Path) -> None:
        """Write the current view as a figure; the ending of the name says how (png, svg, pdf, jpg or webp).

        Examples
        --------
        >>> import nbviz, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "view.png"
        >>> nbviz.explore().save(path)
        >>> path.stat().st_size > 10_000
        True
        """
        path = check_figure_path(path)
        save_figure(self.figure(), path, dpi=150)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, and a PNG of it for where no widget can live."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            with self._turn():
                if self._job is None and self._open:  # code that has run meanwhile may have trained the model
                    self._again()
                self.finish(_BEFORE_DISPLAY)
                if not self.header.error:
                    png = io.BytesIO()
                    try:
                        with self._settled():
                            save_figure(self._draw(), png, format="png", dpi=90)
                    except Exception as error:  # the live view is none the worse
                        self._failed(error)
                    else:
                        bundle["image/png"] = base64.b64encode(png.getvalue()).decode()
                        if self._job is None:
                            self._ended()
        return bundle

    def close(self) -> None:
        """End the widget and all in it, of which each part has a comm of its own."""
        self._open, self._job = False, None
        # Those that this kind of view does not show are in no box.
        parts: list[Any] = [self, *(held for held in vars(self).values() if isinstance(held, ipywidgets.Widget))]
        for widget in parts:
            inner = (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None))
            parts.extend(part for part in inner if isinstance(part, ipywidgets.Widget))
        for widget in parts[1:]:
            widget.close()
        super().close()


def _all_or_nothing(make: Callable[..., None]) -> Callable[..., None]:
    """Make a widget, without the person's default device; one that fails is closed, as nobody has it to do so."""

    @wraps(make)
    def init(self: Pulled, *args: Any, **kwargs: Any) -> None:
        try:
            with device_aside():
                make(self, *args, **kwargs)
        except BaseException:
            with suppress(Exception):
                self.close()
            raise

    return init


def _is_plain(value: Any) -> bool:
    """Whether a value's ``repr`` gives it again."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, float, str)


_MOVED = (ipywidgets.Dropdown, ipywidgets.IntSlider, ipywidgets.FloatSlider, ChannelGrid, Strip, Region, Boxes)


def _controls(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    """The widgets in a layout whose changes the kernel must answer."""
    for child in box.children:
        if isinstance(child, ipywidgets.Box):
            yield from _controls(child)
        elif isinstance(child, _MOVED):
            yield child
