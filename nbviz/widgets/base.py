"""The base of all widgets: work in chunks that the page pulls, one thread at a time; a still picture for later."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from torch import nn

from nbviz.core.checks import check_flag, check_number
from nbviz.core.documented import documented_like
from nbviz.core.errors import line, shown
from nbviz.core.state import device_aside, lock
from nbviz.core.weights import WeightsChanged
from nbviz.export.figure import WIDTH, check_figure_path, draw_alone, draw_figure, save_figure
from nbviz.export.panel import Panel
from nbviz.widgets.cells import between_cells, cells_run, watch_cells
from nbviz.widgets.declared import Declared
from nbviz.widgets.figure_panels import filled_panels, named_panel, plot_panel
from nbviz.widgets.memory import forget_beyond_limit
from nbviz.widgets.reruns import watch_reruns
from nbviz.widgets.session import Session
from nbviz.widgets.views import Header, Panels, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

watch_reruns()  # before the first widget: its inner widgets are made before it

_CHUNK = 0.05  # seconds of work before the page is shown what there is
_BEFORE_DISPLAY = 1.5  # the most seconds of work before the first picture is shown
_ON_THE_WAY = 0.15  # seconds in which the page should paint a chunk
_ROOM = (1 << 16, 1 << 22)  # the least and the most bytes of a chunk


class Pulled(Declared):
    """A widget that draws its parts in chunks: the page asks for the next chunk once it has painted the last.

    A control that changes marks the parts that depend on it as stale, and work starts over with these, in the order of
    ``_parts``. So nothing queues up: a newer state drops what is left of an older one.

    Parameters
    ----------
    model
        The model that the header names.
    info
        What the header says about it.
    """

    _sessions: Sequence[Session] = ()  # the models, whose weights are watched

    def __init__(self, model: nn.Module, info: str) -> None:
        watch_cells()
        self._stale = set(self._parts)
        self._job: Iterator[bool] | None = None  # the work that is left
        self._is_working = False  # while it is the widget itself that sets its controls
        self._chunk_ended = 0.0
        self._cells = cells_run()
        self._room = 1 << 18  # bytes that a chunk should not exceed; grows where the page answers soon
        self._weights: tuple[int, ...] = ()  # the state of each model's weights that was drawn last
        super().__init__(Header(title=line(type(model).__name__), info=info))

    # The start, and changes of the controls.

    def _lay_out(self, *columns: Sequence[ipywidgets.Widget]) -> None:
        """Show these columns, draw the first chunk, and from now on whatever changes. Raises the first errors."""
        self._show_columns(columns)
        self.observe(self._changed, names=list(self._controls))
        self.header.observe(self._painted, names="painted")
        self._open = True
        with self._turn():
            self._begin()
            if (strip := getattr(self, "strip", None)) is not None:
                strip.send(0)
            self._step(raise_errors=True)

    def _changed(self, change: Any) -> None:
        name = change.name
        if self._controls[name].in_views:  # the page has drawn it
            self.header.code = self.code
            return
        with self._turn():
            if not self._is_working:  # the person has set it
                self._to_move.discard(name)
            self._to_move |= {moved for moved, (trigger, _) in self._movers.items() if trigger == name}
            self._to_fit |= {other for other, control in self._controls.items() if name in control.follows}
            parts = {part for part in self._parts if name in self._declared[part].depends(self)}
            if parts or self._to_move or self._to_fit:
                self._renew(parts)
            else:
                self.header.code = self.code

    def _renew(self, parts: set[str]) -> None:
        """Draw parts again."""
        if not self._open:
            return
        with self._turn():
            self._mark(parts)
            with self.header.hold_sync():  # in one message, before a forward pass that may take long
                self.header.stale = sorted(self._stale)
                self.header.state = "working"
            if self._is_working:  # the chunk that made this change goes on to what it made stale
                return
            # At once, and while the front end waits: it sends a control's next change only when this one is handled.
            # So a flood of changes becomes a few, and the last of them is the latest.
            self._again()
            self._step()

    def _mark(self, parts: Iterable[str]) -> None:
        """Mark parts as stale."""
        for part in parts:
            if part in self._parts:
                self._stale.add(part)
                for view in self._views(part):
                    view.is_to_come(part)

    def _follow(self) -> None:
        """Make the page offer the values that are accepted now, and move the controls that are waiting for it."""
        before, self._is_working = self._is_working, True
        try:
            for name in sorted(self._to_fit):
                self._fit(name)
            self._to_fit.clear()
            for name in sorted(self._to_move):
                setattr(self, name, getattr(self, self._movers[name][1])())
            self._to_move.clear()
        finally:
            self._is_working = before

    # The state of the weights.

    def _settle(self, is_trained: bool = False) -> bool:
        """Look at the weights as they are now; whether they have changed, and with them everything that is shown."""
        before, self._cells = self._cells, cells_run()
        # In full where code has run that may have changed any weight; a glance while the page alone is at work.
        in_full = before != self._cells
        for session in self._sessions:
            session.settle(in_full, is_trained)
        last, self._weights = self._weights, tuple(session.weights for session in self._sessions)
        # Not what settle() returns: another widget on the same model may have called it before.
        if has_changed := last not in ((), self._weights):
            self._mark(self._parts)
        return has_changed

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Within it, everything is computed from one state of the weights."""
        with ExitStack() as stack:
            for session in self._sessions:
                stack.enter_context(session.settled())
            yield

    def _key(self, part: str) -> str:
        """The state that a part shows: the values of its controls, and the weights."""
        values = [getattr(self, name) for name in self._declared[part].depends(self)]
        return line(" ".join(map(str, [*values, *(session.weights for session in self._sessions)])), 1000)

    # The work.

    def _begin(self, is_trained: bool = False) -> None:
        """Start on what is stale."""
        self._settle(is_trained)
        self._job = self._work()

    def _again(self, is_trained: bool = False) -> None:
        """Start over; an error is shown in the page."""
        try:
            self._begin(is_trained)
        except Exception as error:
            self._failed(error)
        else:
            self.header.state = "working"

    def _work(self) -> Iterator[bool]:
        failed: Exception | None = None
        self._follow()
        for part in self._parts:
            if part in self._stale:
                for view in self._views(part):
                    view.draw_for(part, self._key(part))
                try:
                    drawing = getattr(self, f"_show_{part}")()
                    yield from (False,) if drawing is None else drawing
                    self._stale.discard(part)
                except Exception as error:
                    if part == self._parts[0]:  # all others need it
                        raise
                    failed = failed or error
        if failed is not None:
            raise failed

    def _step(self, raise_errors: bool = False) -> None:
        """Do one chunk of the work and tell the page, which asks for the next."""
        if self._job is None:
            return
        with self.header.hold_sync():  # one message about this chunk, after the pictures
            self._do_chunk(self._job, raise_errors)

    def _do_chunk(self, job: Iterator[bool], raise_errors: bool) -> None:
        self._is_working = True
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
        except WeightsChanged:  # another thread trains the model: start over, on a copy
            self._mark(self._parts)
            self._again(is_trained=True)
        except Exception as error:
            if raise_errors and self._parts[0] in self._stale:  # nothing can be shown
                raise
            self._failed(error)
        except BaseException:  # interrupted: stale parts are drawn when the page next asks
            self._job = self._work()
            self.header.state = "interrupted"
            raise
        finally:
            self._is_working = False
            self.header.stale = sorted(self._stale)
        self._chunk_ended = time.monotonic()
        self.header.chunk += 1

    def _painted(self, change: Any) -> None:
        with self._turn():
            if change.new == self.header.chunk:
                seconds = max(time.monotonic() - self._chunk_ended, 1e-3)
                self._room = int(min(max(self._room * _ON_THE_WAY / seconds, _ROOM[0]), _ROOM[1]))
                self._step()

    def _ended(self) -> None:
        """Called when the work is done, or an error has ended it."""
        self.header.code = self.code
        forget_beyond_limit()

    def _failed(self, error: Exception) -> None:
        """Show an error in the page: nobody sees an observer's traceback, which goes to JupyterLab's log."""
        self._job = None
        self._ended()
        self.header.error = f"{line(type(error).__name__)}: {line(error, 1000)}"
        self.header.state = "error"

    def finish(self, seconds: float = float("inf")) -> None:
        """Do the work that is left without waiting for a page, for about ``seconds`` at most."""
        end = time.monotonic() + check_number("seconds", seconds)
        with self._turn():
            if self._job is None and self._open and (self._stale or self.header.error):  # the cause may be gone
                self._again()
            while self._job is not None and time.monotonic() < end:
                self._step()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock on all models; the header says so while that has to wait."""
        before = self.header.state

        def say_waiting() -> None:
            self.header.state = "waiting: a cell is running"

        with between_cells(say_waiting), device_aside():
            self.header.state = before
            yield

    # What is left without a kernel.

    def _heading(self) -> str:
        """The line above the figure."""
        raise NotImplementedError

    def _figure_rows(self) -> list[list[Panel]]:
        """What the figure shows, row by row: the panels, then the curves in one row, in the order of the parts."""
        views = list(dict.fromkeys(view for part in self._parts for view in self._views(part)))
        rows = [row for view in views if isinstance(view, Panels) for row in filled_panels(view)]
        names = {id(view): name for name, view in vars(self).items()}
        plots = [plot_panel(view, name=names[id(view)]) for view in views if isinstance(view, Plot)]
        return [*rows, *([plots] if plots else [])]

    def _foot(self) -> str:
        """What a reader of the figure must know."""
        return "\n".join(filter(None, (self.header.warning, self.header.note)))

    def _draw(
        self,
        width: float = WIDTH,
        title: str | None = None,
        note: bool = True,
        panel: str | None = None,
        ax: Axes | None = None,
        dpi: float = 90,
    ) -> Figure:
        rows = self._figure_rows()
        if panel is not None:
            rows = [[named_panel(rows, panel)]]
        if ax is not None:
            return draw_alone(ax, rows[0][0])
        return draw_figure(self._heading() if title is None else title, rows, self._foot() if note else "", width, dpi)

    def figure(
        self,
        *,
        width: float = WIDTH,
        title: str | None = None,
        note: bool = True,
        panel: str | None = None,
        ax: Axes | None = None,
        dpi: float = 150,
    ) -> Figure:
        """The current view as a matplotlib figure, made without pyplot.

        Parameters
        ----------
        width
            The width in inches, from 2 to 40; 3.4 is one column of a paper. A figure is at most 1.1 times as high, as a
            page is, or 9 inches, as a column is.
        title
            The heading; ``""`` leaves it out. None takes the model and what is shown of it.
        note
            Whether what a reader must know stands below.
        panel
            The name of one picture, which is drawn alone, such as ``"guided"``; a wrong one is answered by the list.
        ax
            The axes of a figure of your own, into which the panel is drawn with its caption and its colour bar.
            Width, title, note and dpi are then that figure's own.
        dpi
            Pixels of an inch, from 10 to 2400.

        Returns
        -------
        matplotlib.figure.Figure
            The figure; with ``ax``, that of these axes.

        Raises
        ------
        ValueError
            When there is no ``panel`` of this name; the message lists the names. When ``width`` or ``dpi`` is out of
            range.
        TypeError
            When ``title`` is no text, ``ax`` no axes, or there is no ``panel`` for them.

        Examples
        --------
        >>> import nbviz
        >>> view = nbviz.explore()
        >>> figure = view.figure(width=3.4, title="", note=False)
        >>> float(figure.get_figwidth())
        3.4
        >>> alone = view.figure(panel="guided", width=2)
        """
        check_number("width", width, 2, 40)
        check_number("dpi", dpi, 10, 2400)
        check_flag("note", note)
        if title is not None and not isinstance(title, str):
            raise TypeError(f"title is {shown(title)}; expected text, or None for the usual one")
        if ax is not None and (panel is None or not hasattr(ax, "get_window_extent")):
            raise TypeError(f"ax is {shown(ax)} and panel {shown(panel)}; expected axes and the name of a panel")
        with self._turn():
            self._settle()  # outside of the loop: the caller gets its errors
            while True:
                self.finish()
                try:
                    with self._settled():
                        figure = self._draw(width, title, note, panel, ax, dpi)
                except WeightsChanged:
                    self._again(is_trained=True)
                else:
                    self._ended()
                    return figure

    @documented_like(figure)
    def save(
        self,
        path: str | Path,
        *,
        width: float = WIDTH,
        title: str | None = None,
        note: bool = True,
        panel: str | None = None,
        dpi: float = 150,
    ) -> None:
        """Write the current view as a figure; the file name's ending chooses the format (png, svg, pdf, jpg or webp).

        Text stays text: fonts are embedded as TrueType in a PDF, and an SVG names them.

        Parameters
        ----------
        path
            The file to write.

        Raises
        ------
        ValueError
            When ``path`` cannot be written, or has another ending.
        TypeError
            When ``path`` is not a path.

        Examples
        --------
        >>> import nbviz, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "view.png"
        >>> nbviz.explore().save(path)
        >>> path.stat().st_size > 10_000
        True
        """
        path = check_figure_path(path)
        save_figure(self.figure(width=width, title=title, note=note, panel=panel, dpi=dpi), path)

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
                            save_figure(self._draw(), png, format="png")
                    except Exception as error:  # the live view works without it
                        self._failed(error)
                    else:
                        bundle["image/png"] = base64.b64encode(png.getvalue()).decode()
                        if self._job is None:
                            self._ended()
        return bundle

    def close(self) -> None:
        """End the widget, everything in it, the work that is left, and what is kept of the model's activations."""
        with lock:  # another thread that draws for it ends first
            self._job = None
            super().close()
            for session in self._sessions:
                session.forget()
