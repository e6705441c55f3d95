"""Re-runs of a cell in a real kernel: memory and comms end where they were after the fifth.

With a small network, and a few re-runs; ``make test-all`` takes torchvision's ResNet-50 and a hundred.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from queue import Empty

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from tests.rounds import TIMES, long, rounds

HEAD = "import ipywidgets, nbviz, torch\nfrom torch import nn\n"
MODEL = "nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))"
IMAGES = "torch.rand(2, 3, 16, 16)"
LAST = "ipywidgets.VBox([nbviz.explore(model, images)])"  # of which no picture is drawn: what draws is long to load
if TIMES:
    MODEL, IMAGES = "torchvision.models.resnet50()", "torch.rand(2, 3, 224, 224)"
    LAST = "nbviz.explore(model, images)"
    HEAD += "import torchvision\n"
MAKE = f"{HEAD}model = {MODEL}\nimages = {IMAGES}\n"
COUNT = """
import comm, ctypes, gc, json
gc.collect()
if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/statm") as statm:
    rss = int(statm.read().split()[1])
print(json.dumps([rss, len(gc.get_objects()), len(comm.get_comm_manager().comms)]))
"""


@pytest.fixture
def run() -> Iterator[Callable[..., str]]:
    manager, client = start_new_kernel()

    def run_cell(source: str, cell: str, fails: bool = False) -> str:
        content = {
            "code": source,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "stop_on_error": False,
        }
        message = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(message)
        return printed(client, message["header"]["msg_id"], fails)

    yield run_cell
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(client: BlockingKernelClient, parent: str, fails: bool) -> str:
    """What a cell prints, once it has ended."""
    text, errors = "", []
    while True:
        try:
            message = client.get_iopub_msg(timeout=120)
        except Empty:
            raise TimeoutError("the cell has not ended") from None
        if message["parent_header"].get("msg_id") != parent:
            continue
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            text += content["text"]
        elif message["msg_type"] == "error":
            errors.append("\n".join(content["traceback"]))
        elif content.get("execution_state") == "idle":
            assert bool(errors) == fails, errors
            return text


@pytest.mark.parametrize(
    ("before", "source", "fails"),
    [
        pytest.param("", f"{MAKE}view = nbviz.explore(model, images)", False, marks=long),
        ("", f"{MAKE}{LAST}", False),
        pytest.param(MAKE, "view = nbviz.explore(model, images)\nview", False, marks=long),
        pytest.param("", f"{MAKE}view = nbviz.explore(model, images)\n1 / 0\nview", True, marks=long),
    ],
    ids=["bound", "last-expression", "model-of-another-cell", "error"],
)
def test_many_reruns_hold_no_more_than_five(run: Callable[..., str], before: str, source: str, fails: bool) -> None:
    run(before, "before")
    for _ in range(5):
        run(source, "cell", fails)
    start = json.loads(run(COUNT, "count"))
    for _ in range(rounds(3, 95)):
        run(source, "cell", fails)
    end = json.loads(run(COUNT, "count"))
    print("pages, objects, comms:", start, end)
    for first, last in zip(start, end, strict=True):
        assert last < 1.2 * first
