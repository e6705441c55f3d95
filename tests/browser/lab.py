"""A real JupyterLab, and a notebook open in it: what the browser tests drive.

``lab_server`` starts the server, ``Notebook`` is one open notebook. Each wait is for a state of the page or of the
kernel and has a time limit; none is for a time to pass.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page

from tests.browser.record import KernelMessage, Record

STARTUP_S = 120.0
TIMEOUT_S = 60.0
POLL_MS = 20  # between two looks: to look at each frame takes much of a core from the kernel that is waited for
TOKEN = "nbviz-tests"

SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    # Every cell stays in the page, so that a cell's number is its place among the page's cells.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
COMMS_ON_MAIN_THREAD = {"@jupyterlab/apputils-extension/kernels-settings": {"commsOverSubshells": "disabled"}}

PANEL = """
    const panel = window.jupyterapp?.shell?.currentWidget;
    const kernel = panel?.context?.sessionContext?.session?.kernel;
"""
#: Forget the notebook that was open: its widgets, its names, and then its panel.
CLEAR_KERNEL = """
import ipywidgets
ipywidgets.Widget.close_all()
get_ipython().reset(new_session=True)
"""
CLEAR = (
    PANEL
    + """
    if (kernel?.status !== "idle") return false;
    return kernel.requestExecute({code, silent: true}).done.then(reply => reply.content.status === "ok");
"""
)
CLOSE_PANELS = """() => {
    for (const widget of [...jupyterapp.shell.widgets("main")]) {
        if (widget.context) widget.context.model.dirty = false;
        widget.dispose();
    }
}"""
TWO_FRAMES = """
    return new Promise(done =>
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(true)))));
"""


def chromium() -> str:
    """The browser on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise RuntimeError(f"no browser: put one of {', '.join(names)} on the PATH")
    return found


# The server


@dataclass
class LabServer:
    """A running JupyterLab."""

    url: str
    folder: Path  # the notebooks
    settings: Path
    subshells: bool  # whether comm messages go to a subshell of the kernel, JupyterLab's default
    kept: str | None = None  # a session whose cleared kernel the next notebook gets

    def reset_settings(self) -> None:
        """Forget what the last page has saved, such as its theme."""
        shutil.rmtree(self.settings, ignore_errors=True)
        for name, values in (SETTINGS if self.subshells else SETTINGS | COMMS_ON_MAIN_THREAD).items():
            path = self.settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def request(self, method: str, path: str, content: Any = None) -> Any:
        """The answer of the server's REST interface."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            headers={"Authorization": f"token {TOKEN}"},
            data=None if content is None else json.dumps(content).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def stop_kernels(self) -> None:
        """End every kernel, a busy one too."""
        self.kept = None
        for session in self.request("GET", "/api/sessions"):
            self.request("DELETE", f"/api/sessions/{session['id']}")

    def hand_on_kernel(self, notebook: str) -> None:
        """Give the kept kernel, if there is one, to a notebook that is about to be opened."""
        if self.kept is not None:
            self.request("PATCH", f"/api/sessions/{self.kept}", {"path": notebook, "name": notebook})


@contextmanager
def lab_server(home: Path, *, subshells: bool) -> Iterator[LabServer]:
    """Run JupyterLab with all its files under ``home``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LabServer(f"http://127.0.0.1:{port}", home / "notebooks", home / "settings", subshells)
    server.folder.mkdir(parents=True)
    server.reset_settings()
    environment = os.environ | {
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(server.settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    arguments = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={server.folder}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
    ]
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            cwd=server.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_up(server, process, log)
            yield server
            server.stop_kernels()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(server: LabServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTUP_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            server.request("GET", "/api/status")
            return
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start; its log ends with\n{log.read_text()[-3000:]}")


# A notebook in the page


class CellError(AssertionError):
    """A cell that a test ran has raised."""


#: The pictures in README.md.
SHOWN = Path(__file__).parents[2] / "notebooks" / "screenshots"


def likeness(one: Path, other: Path) -> float:
    """The correlation of two pictures' outlines: 1 for the same, near 0 for another arrangement, picture or theme."""
    edges = []
    for path in (one, other):
        with Image.open(path) as picture:
            small = np.asarray(picture.convert("L").resize((160, 160), Image.Resampling.BOX), float)
        edges.append(np.concatenate([np.diff(small, axis=0).ravel(), np.diff(small, axis=1).ravel()]))
    return float(np.corrcoef(edges)[0, 1])


class Notebook:
    """A notebook that is open in JupyterLab. Cells are numbered from 0, Markdown cells included."""

    place = "lab/tree"  # where the server shows a notebook

    def __init__(self, page: Page, server: LabServer, screenshots: Path) -> None:
        self.page = page
        self.server = server
        self.screenshots = screenshots
        self.record = Record(urlsplit(server.url).netloc)
        self.record.follow(page)

    def open(self, source: Sequence[str] | Path) -> None:
        """Put the cells (Python source), or a copy of a notebook file, before the server, and open it."""
        if isinstance(source, Path):
            document = nbformat.read(source, as_version=4)
        else:
            document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in source])
        # Without a kernel's name JupyterLab would ask for one.
        document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        self.name = f"{time.monotonic_ns()}.ipynb"
        nbformat.write(document, self.server.folder / self.name)
        self.server.hand_on_kernel(self.name)
        if self.page.url == "about:blank":
            self.reopen()
        else:
            self.page.evaluate("path => void jupyterapp.commands.execute('docmanager:open', {path})", self.name)
            self._wait_until_open()

    def reopen(self) -> None:
        """Load the page, with the notebook as it was last saved, and the kernel that it has or a new one."""
        self.page.goto(f"{self.server.url}/{self.place}/{self.name}?token={TOKEN}&reset")
        self._wait_until_open()

    def _wait_until_open(self) -> None:
        count = len(nbformat.read(self.server.folder / self.name, as_version=4).cells)
        self.wait_for(
            PANEL + "return panel?.context?.path === name && panel.content.widgets.length === count"
            " && kernel?.status === 'idle'",
            name=self.name,
            count=count,
        )

    def clear(self) -> None:
        """Leave the page, and the kernel if it is at rest, for another notebook to be opened with."""
        cleared = self.page.evaluate(f"code => {{ {CLEAR} }}", CLEAR_KERNEL)
        self.page.evaluate(CLOSE_PANELS)
        sessions = self.server.request("GET", "/api/sessions")
        if cleared and len(sessions) == 1:
            self.server.kept = sessions[0]["id"]
        else:
            self.server.stop_kernels()
        self.record.clear()

    def save(self) -> nbformat.NotebookNode:
        """Write the notebook to its file; what is in there."""
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
        return nbformat.read(self.server.folder / self.name, as_version=4)

    # What was said

    @property
    def kernel_messages(self) -> list[KernelMessage]:
        """Every message that the page has sent to the kernel."""
        return self.record.sent

    @property
    def kernel_replies(self) -> list[KernelMessage]:
        """Every message that the page has had from the kernel."""
        return self.record.received

    @property
    def external_requests(self) -> list[str]:
        """Requests to any host but JupyterLab's: the fixture fails a test that leaves one here."""
        return self.record.external

    @property
    def console_errors(self) -> list[str]:
        """The console's errors and uncaught exceptions: the fixture fails a test that leaves one here."""
        return self.record.errors

    @contextmanager
    def widget_messages(self) -> Iterator[list[KernelMessage]]:
        """Collect what the page's widgets send to the kernel within the block; the list is complete after it.

        JupyterLab's own messages, such as its debugger's, are in ``kernel_messages`` only.
        """
        self.settle()
        before = len(self.record.sent)
        collected: list[KernelMessage] = []
        yield collected
        self.settle()
        collected += [message for message in self.record.sent[before:] if message.msg_type.startswith("comm_")]

    # Waiting

    def wait_for(self, body: str, *, timeout: float = TIMEOUT_S, **arguments: Any) -> Any:
        """Wait until a JavaScript function body returns something true; ``arguments`` are its variables."""
        names = ", ".join(arguments)
        return self.page.wait_for_function(
            f"({{ {names} }}) => {{ {body} }}", arg=arguments, timeout=timeout * 1000, polling=POLL_MS
        ).json_value()

    def settle(self) -> None:
        """Let the page handle its events and paint: two frames and what they have scheduled."""
        self.page.evaluate(f"() => {{ {TWO_FRAMES} }}")

    def wait_idle(self, timeout: float = TIMEOUT_S) -> None:
        """Wait until the kernel is through with every message of the page, and the page with every answer."""
        end = time.monotonic() + timeout
        self.settle()
        while waiting := self.record.unanswered:
            if time.monotonic() > end:
                raise TimeoutError(f"after {timeout} s the kernel has yet to answer {waiting}")
            self.page.wait_for_timeout(POLL_MS)  # in which messages come in
            if not self.record.unanswered:
                self.settle()

    # Cells

    def cell(self, number: int) -> Locator:
        """The cell in the page, where a test looks for its widgets."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def run_all(self, timeout: float = 300.0, *, wait: bool = True) -> None:
        """Run every cell and, unless told otherwise, wait until all is quiet; a cell's error is an error here."""
        self._run("notebook:run-all-cells", timeout, wait)

    def run_cell(self, number: int, timeout: float = 120.0, *, wait: bool = True) -> None:
        """Run one cell."""
        self._select(number)
        self._run("notebook:run-cell", timeout, wait)

    def add_and_run(self, source: str, timeout: float = 120.0, *, wait: bool = True) -> str:
        """Run a new cell at the end; its text, unless it is left running."""
        number = self.page.evaluate(
            f"source => {{ {PANEL} const cells = panel.content.model.sharedModel;"
            "return cells.insertCell(cells.cells.length, {cell_type: 'code', source}) && cells.cells.length - 1 }",
            source,
        )
        self.run_cell(number, timeout, wait=wait)
        return self.cell_output_text(number) if wait else ""

    def wait_run(self, timeout: float = 120.0) -> None:
        """Wait for cells that were started with ``wait=False``."""
        self.wait_for("return window.nbvizRun.done", timeout=timeout)
        self.wait_idle(timeout)
        for number in range(self.page.locator(".jp-Notebook .jp-Cell").count()):
            for output in self._outputs(number):
                if output["output_type"] == "error":
                    raise CellError(f"cell {number}: {_plain(output)}")

    def cell_output_text(self, number: int) -> str:
        """What a cell has printed, returned as text, or raised."""
        return "".join(map(_plain, self._outputs(number)))

    def _outputs(self, number: int) -> list[dict[str, Any]]:
        return self.page.evaluate(
            f"number => {{ {PANEL} return panel.content.widgets[number].model.outputs?.toJSON() ?? [] }}", number
        )

    def _select(self, number: int) -> None:
        self.page.evaluate(
            f"number => {{ {PANEL} panel.content.deselectAll(); panel.content.activeCellIndex = number }}", number
        )

    def _run(self, command: str, timeout: float, wait: bool) -> None:
        self.page.evaluate(
            "command => { const run = window.nbvizRun = {done: false};"
            "window.jupyterapp.commands.execute(command).finally(() => { run.done = true }) }",
            command,
        )
        if wait:
            self.wait_run(timeout)

    # Looks

    def pixels(self, canvas: Locator) -> np.ndarray:
        """A canvas's own pixels as (H, W, 4) uint8."""
        width, height, data = canvas.evaluate(
            """canvas => {
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
                copy.drawImage(canvas, 0, 0);
                const bytes = copy.getImageData(0, 0, canvas.width, canvas.height).data;
                let text = "";
                for (let i = 0; i < bytes.length; i += 32768)
                    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
                return [canvas.width, canvas.height, btoa(text)];
            }"""
        )
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def screenshot(self, name: str, of: Locator | None = None) -> Path:
        """Write the page, or one element of it, as a PNG into the folder NBVIZ_SCREENSHOTS."""
        path = self.screenshots / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.settle()
        (of or self.page).screenshot(path=path)
        shown = SHOWN / name
        if shown.exists() and "NBVIZ_RENEW" in os.environ:
            shutil.copy(path, shown)
        elif shown.exists():
            alike = likeness(path, shown)
            assert alike > 0.6, f"README.md shows another {name} (likeness {alike:.2f}): look at both, make screenshots"
        return path

    def set_theme(self, theme: str) -> None:
        """Change to the "light", the "dark" or the "contrast" theme."""
        name = f"JupyterLab {'Dark High Contrast' if theme == 'contrast' else theme.title()}"
        self.page.evaluate("theme => void jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        splash = "!document.getElementById('jupyterlab-splash')"  # which lies over the page while the theme loads
        self.wait_for(f"return document.body.dataset.jpThemeName === name && {splash}", name=name)
        self.settle()


class Notebook7(Notebook):
    """A notebook that is open in Notebook 7, which the same server shows."""

    place = "notebooks"

    @property
    def console_errors(self) -> list[str]:
        """The console's errors, but for those of Notebook 7 itself, which looks for settings that it lacks."""
        return [error for error in super().console_errors if "/static/notebook/" not in error]


def slider_moves(handle: Locator, n: int, key: str = "ArrowRight", seconds: float = 1.0) -> float:
    """Press a key n times on a slider's handle, evenly over about a second; how long it really took, in seconds.

    The page itself makes the key events: sent one by one from here they take twice the time on a busy machine.
    """
    handle.focus()
    return handle.evaluate(
        """async (handle, {n, key, seconds}) => {
            const start = performance.now();
            for (let i = 0; i < n; i++) {
                const early = start + 1000 * seconds * i / n - performance.now();
                if (early > 0) await new Promise(done => setTimeout(done, early));
                for (const type of ["keydown", "keyup"])
                    handle.dispatchEvent(new KeyboardEvent(type, {key, code: key, bubbles: true, cancelable: true}));
            }
            return (performance.now() - start) / 1000;
        }""",
        {"n": n, "key": key, "seconds": seconds},
    )


def _plain(output: dict[str, Any]) -> str:
    """The text of one output of a cell."""
    if output["output_type"] == "stream":
        text = output["text"]
    elif output["output_type"] == "error":
        text = "\n".join(output["traceback"])
    else:
        text = output["data"].get("text/plain", "")
    return re.sub(r"\x1b\[[0-9;]*m", "", text if isinstance(text, str) else "".join(text))
