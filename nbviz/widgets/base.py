"""The base of all widgets: work in chunks that the page pulls, one thread at a time; a picture for when it is gone."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets

from nbviz.core.checks import check_number
from nbviz.core.errors import line
from nbviz.core.state import device_aside
from nbviz.core.weights import WeightsChanged
from nbviz.export.figure import Panel, check_figure_path, draw_figure, save_figure
from nbviz.widgets.cells import between_cells, cells_run, watch_cells
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

    A change of state marks parts as stale (``_stales``) and starts over with them, in the order of
    ``_parts``; so nothing queues up, and a newer state drops what is left of an older one. For each
    part there is a generator method ``_show_<part>`` which yields where a chunk may end, and True where it
    must: so much is on its way to the page that more would queue up.
    """

    _parts: ClassVar[tuple[str, ...]] = ()
    _stales: ClassVar[dict[str, set[str]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = device_aside()(cls.__init__)  # type: ignore[method-assign]

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
        super().__init__(**kwargs)
        self.add_class("nbviz")

    def _lay_out(self, shown: ipywidgets.Box, kind: str) -> None:
        """Put the header above the rest; from now on it says so when a control there waits for the kernel."""
        self.header.controls = [f"IPY_MODEL_{w.model_id}" for w in (self.header, *_controls(shown))]
        self.children = [self.header, shown]
        self.add_class(f"nbviz-{kind}")

    def _start(self) -> None:
        """Draw the first chunk, and from now on what changes. The first errors are the caller's."""
        self.observe(self._changed, names=list(self._stales))
        self.header.observe(self._painted, names="painted")
        self._open = True
        try:
            with self._turn():
                self._begin()
                if (strip := getattr(self, "strip", None)) is not None:
                    strip.send(0)
                self._step(raise_errors=True)
        except BaseException:  # nobody has it, to close it
            self.close()
            raise

    def _answers(self) -> Sequence[Answers]:
        """The models that it looks at, with what they answer."""
        one = getattr(self, "session", None)
        return getattr(self, "sessions", ()) if one is None else (one,)

    def _settle(self, is_trained: bool = False) -> bool:
        """Take the weights as they are now; whether they have changed, and with them all that is shown."""
        before, self._cells = self._cells, cells_run()
        # All of them where code has run that may have changed any, a glance while the page alone is at work.
        in_full = before != self._cells
        found = [answers.settle(in_full, is_trained) for answers in self._answers()]
        if changed := any(found):
            self._stale = set(self._parts)
        return changed

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

    def _work(self) -> Iterator[bool]:
        failed: Exception | None = None
        for part in self._parts:
            if part in self._stale:
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

    def _changed(self, change: Any) -> None:
        self._renew(self._stales[change.name])

    def _renew(self, parts: set[str]) -> None:
        """Draw parts again."""
        if not self._open:
            return
        with self._turn():
            self._stale |= parts & set(self._parts)
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
            self._stale = set(self._parts)
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


_MOVED = (ipywidgets.Dropdown, ipywidgets.IntSlider, ipywidgets.FloatSlider, ChannelGrid, Strip, Region, Boxes)


def _controls(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    """The widgets in a layout whose changes the kernel must answer."""
    for child in box.children:
        if isinstance(child, ipywidgets.Box):
            yield from _controls(child)
        elif isinstance(child, _MOVED):
            yield child
