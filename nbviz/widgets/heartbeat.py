"""A sign of life for the page: a kernel that was killed says nothing, and its host may not notice for seconds."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from IPython.core.getipython import get_ipython

if TYPE_CHECKING:
    from nbviz.widgets.views import Header

#: Of what name the page looks out for. No output has it, so that hosts pass the message on and do nothing else.
NAME = "nbviz-alive"
_PERIOD = 0.2  # seconds between two; the page waits a little longer than for two

_heard_by: weakref.WeakSet[Header] = weakref.WeakSet()
_started = threading.Lock()


def beat_for(header: Header) -> None:
    """Give a sign of life from now on, as long as there is a header that a page shows."""
    kernel = getattr(get_ipython(), "kernel", None)
    _heard_by.add(header)
    # Not two at once; the one that is at work sees the header.
    if kernel is not None and _started.acquire(blocking=False):
        threading.Thread(target=_beat, args=(kernel,), name="nbviz-heartbeat", daemon=True).start()


def _beat(kernel: object) -> None:
    # Of this type a message is no output, and no activity for which a server would keep an idle kernel.
    content = {"data": {}, "metadata": {}, "transient": {"display_id": NAME}}
    try:
        while any(header.comm is not None for header in list(_heard_by)):
            kernel.session.send(kernel.iopub_socket, "update_display_data", content)  # type: ignore[attr-defined]
            time.sleep(_PERIOD)
    finally:
        _started.release()
