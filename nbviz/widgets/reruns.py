"""Cells that are run again: the widgets of their earlier run are closed, unless something else holds them.

ipywidgets holds each widget as long as the kernel lives, since a page may show it, and the widget holds the model, its
pictures and the last forward pass. So each run of a cell would keep another model in memory.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import ipywidgets
from IPython.core.getipython import get_ipython
from ipywidgets.widgets.widget import _instances

from nbviz.core.state import lock
from nbviz.widgets.views import Header

_CLOSED = "closed: its cell was run again"  # the state in the still picture that the page leaves

_watched: list[Any] = []  # the shell whose cells are followed
_begun: list[set[str]] = []  # for each cell that is running, outermost first, the widgets that existed before
_made: dict[str, list[weakref.ref[Any]]] = {}  # by the cell's id, all widgets that its runs have made
_numbers: dict[str, list[int]] = {}  # the execution counts of these runs, as in Out


def watch_reruns() -> None:
    """Follow the shell's cells from now on, including the one that is running."""
    shell = get_ipython()
    if shell is None or shell in _watched:
        return
    _watched[:] = [shell]
    _begun[:] = [set(_instances)]
    shell.events.register("pre_run_cell", _begin)
    shell.events.register("post_run_cell", _end)


def _begin(info: Any) -> None:
    _begun.append(set(_instances))


def _end(result: Any) -> None:
    before = _begun.pop() if _begun else set(_instances)
    cell = getattr(result.info, "cell_id", None)
    if cell is None:  # a front end without cells, such as a terminal, where nothing is replaced
        return
    earlier = _made.get(cell, [])
    if earlier:
        _close_unheld(earlier, _numbers.pop(cell, []))
    new = [weakref.ref(widget) for name, widget in list(_instances.items()) if name not in before]
    kept = list(filter(_lives, earlier))
    if any(_is_ours(ref()) for ref in (*kept, *new)):
        _made[cell] = kept + new
        _numbers.setdefault(cell, []).append(result.execution_count)
    else:
        _made.pop(cell, None)


def _lives(ref: weakref.ref[Any]) -> bool:
    return getattr(ref(), "comm", None) is not None


def _close_unheld(made: list[weakref.ref[Any]], numbers: list[int]) -> None:
    """Close nbviz's widgets, and the boxes around them, that only ipywidgets and IPython's history hold."""
    _part_with(_family(made), [])
    # The person's own widgets of the run, such as a slider's observer, may hold them: these were replaced as well.
    if any(_lives(ref) and _is_ours(ref()) for ref in made):
        _part_with(_family(made, alone=False), numbers)


def _part_with(family: dict[int, Any], numbers: list[int]) -> None:
    """Close the widgets that live only because they are open or in Out; forget the outputs with these numbers."""
    _forget_outputs(set(family), numbers)
    with lock:  # another thread that draws one of them ends first
        parted = []
        for widget in family.values():
            comm, waiting = widget.comm, list[Any]()
            # From here on, neither the registry nor the comm holds it: it lives only if something else does.
            comm.on_msg(waiting.append)
            _instances.pop(comm.comm_id, None)
            widget.comm = None
            parted.append((weakref.ref(widget), isinstance(widget, Header), comm, waiting))
        family.clear()
        widget = None
        gc.collect()
        closed = []
        for ref, is_header, comm, waiting in parted:
            if (alive := ref()) is None:
                closed.append((is_header, comm))
                continue
            alive.comm = comm
            for message in waiting:
                alive._handle_msg(message)
    # Headers first: they make the page leave a still picture of what is on the screen.
    for is_header, comm in sorted(closed, key=lambda entry: not entry[0]):
        if is_header:
            comm.send({"method": "update", "state": {"state": _CLOSED}, "buffer_paths": []})
        comm.close()


def _family(made: Iterable[weakref.ref[Any]], alone: bool = True) -> dict[int, Any]:
    """nbviz's widgets with their inner widgets, and the boxes that contain them with their other contents.

    With ``alone=False``, all other widgets too.
    """
    known = {id(ref()): ref() for ref in made if _lives(ref)}
    family = {key: widget for key, widget in known.items() if not alone or _is_ours(widget)}
    grown = 0
    while len(family) > grown:
        grown = len(family)
        for widget in list(family.values()):
            for inner in _widgets_in(vars(widget)):
                if inner.comm is not None and (_is_ours(widget) or id(inner) in known):
                    family[id(inner)] = inner
        for key, widget in known.items():
            if isinstance(widget, ipywidgets.Box) and any(id(child) in family for child in widget.children):
                family[key] = widget
    return family


def _is_ours(widget: Any) -> bool:
    return any(base.__module__.startswith("nbviz.") for base in type(widget).__mro__)


def _widgets_in(value: Any, depth: int = 4) -> Iterator[Any]:
    if isinstance(value, ipywidgets.Widget):
        yield value
    elif depth and isinstance(value, (dict, list, tuple, set)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _widgets_in(inner, depth - 1)


def _forget_outputs(family: set[int], numbers: list[int]) -> None:
    """Remove the outputs with these numbers, and those that hold a widget of the family, from IPython's history."""
    shell = _watched[0]
    history, hook = shell.user_ns.get("_oh", {}), shell.displayhook
    outputs = {f"_{number}": value for number, value in history.items()}
    outputs |= {name: getattr(hook, name, None) for name in ("_", "__", "___")}
    replaced = [f"_{number}" for number in numbers]
    for name, value in outputs.items():
        last = hasattr(hook, name) and any(value is outputs.get(output) for output in replaced)
        if not (last or name in replaced or any(id(widget) in family for widget in _widgets_in(value))):
            continue
        for names in (shell.user_ns, shell.user_ns_hidden):
            if names.get(name) is value:  # else the person has assigned it
                names.pop(name)
        if hasattr(hook, name):
            setattr(hook, name, None)
            shell.user_ns.setdefault(name, None)
        else:
            del history[int(name[1:])]
