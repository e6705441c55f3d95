"""What an open page says to the kernel, to the network and to its console."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, WebSocket


@dataclass(frozen=True)
class KernelMessage:
    """One message on the page's web socket to the kernel; of its buffers only the sizes."""

    channel: str
    msg_type: str
    content: dict[str, Any]
    msg_id: str
    parent_id: str | None
    date: str
    subshell_id: str | None
    buffer_sizes: tuple[int, ...]

    @property
    def state(self) -> dict[str, Any]:
        """The traits that a widget message sets."""
        data = self.content.get("data", {})
        return data.get("state", {}) if isinstance(data, dict) else {}


def decode(frame: str | bytes) -> KernelMessage:
    """Read a frame of the protocol v1.kernel.websocket.jupyter.org, or of the older one if it is plain JSON.

    In v1 a frame is a table of little-endian 64-bit numbers (how many offsets, then the offsets) and the parts they
    bound: channel, header, parent header, metadata, content, then the buffers.
    """
    if isinstance(frame, str):
        message = json.loads(frame)
        channel, buffers = message["channel"], []
        header, parent, content = message["header"], message["parent_header"], message["content"]
    else:
        (count,) = struct.unpack_from("<Q", frame)
        offsets = struct.unpack_from(f"<{count}Q", frame, 8)
        name, *parts = (frame[start:end] for start, end in pairwise(offsets))
        channel, buffers = name.decode(), parts[4:]
        header, parent, _, content = map(json.loads, parts[:4])
    return KernelMessage(
        channel=channel,
        msg_type=header["msg_type"],
        content=content,
        msg_id=header["msg_id"],
        parent_id=parent.get("msg_id"),
        date=str(header.get("date")),
        subshell_id=header.get("subshell_id"),
        buffer_sizes=tuple(map(len, buffers)),
    )


@dataclass
class Record:
    """What an open page has said to the kernel, to the network and to its console."""

    host: str
    sent: list[KernelMessage] = field(default_factory=list)
    received: list[KernelMessage] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Listen from now on: call it before the page goes anywhere."""
        page.on("request", self._on_request)
        page.on("websocket", self._on_websocket)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"{error.name}: {error.message}\n{error.stack}"))

    def clear(self) -> None:
        """Forget all that was said."""
        for said in (self.sent, self.received, self.external, self.errors):
            said.clear()

    @property
    def unanswered(self) -> list[KernelMessage]:
        """Messages to the kernel that it is not through with."""
        done = {
            message.parent_id
            for message in self.received
            if message.msg_type == "status" and message.content.get("execution_state") == "idle"
        }
        return [message for message in self.sent if message.channel == "shell" and message.msg_id not in done]

    def _on_request(self, request: Request) -> None:
        self._note_if_external(request.url)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _on_websocket(self, socket: WebSocket) -> None:
        self._note_if_external(socket.url)
        if re.search(r"/api/kernels/[^/]+/channels", socket.url):
            socket.on("framesent", lambda frame: self.sent.append(decode(frame)))
            socket.on("framereceived", lambda frame: self.received.append(decode(frame)))

    def _note_if_external(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self.host:
            self.external.append(url)
