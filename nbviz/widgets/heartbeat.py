"""A heartbeat for the page: a killed kernel sends nothing, and its host may not notice for seconds."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from IPython.core.getipython import get_ipython

if TYPE_CHECKING:
    from nbviz.widgets.views import Header

#: The display id by which the page knows the message. No output has it, so that hosts only pass the message on.
NAME = "nbviz-alive"
_PERIOD = 0.2  # seconds; the page waits for a little more than two of them

_heard_by: weakref.WeakSet[Header] = weakref.WeakSet()
_started = threading.Lock()


def beat_for(header: Header) -> None:
    """Send a heartbeat from now on, as long as a page shows a header."""
    kernel = getattr(get_ipython(), "kernel", None)
    _heard_by.add(header)
    # One thread at a time; a thread that is already running sees the header.
    if kernel is not None and _started.acquire(blocking=False):
        threading.Thread(target=_beat, args=(kernel,), name="nbviz-heartbeat", daemon=True).start()


def _beat(kernel: object) -> None:
    # A message of this type is neither output nor activity that would keep a server from culling an idle kernel.
    content = {"data": {}, "metadata": {}, "transient": {"display_id": NAME}}
    try:
        while any(header.comm is not None for header in list(_heard_by)):
            kernel.session.send(kernel.iopub_socket, "update_display_data", content)  # type: ignore[attr-defined]
            time.sleep(_PERIOD)
    finally:
        _started.release()
