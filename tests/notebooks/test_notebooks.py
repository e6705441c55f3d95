"""Every tutorial runs from top to bottom without the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.rounds import TIMES

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="function" if TIMES else "module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel, which imports the libraries once, for all notebooks; in ``make test-all`` one for each."""
    started = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path_factory.mktemp("notebooks")}},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        patch.delenv("no_proxy", raising=False)
        patch.delenv("NO_PROXY", raising=False)
        started.execute(cleanup_kc=False)
    yield started
    started._cleanup_kernel()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_offline(path: Path, client: NotebookClient) -> None:
    client.nb = notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # no name is left of the notebook before
    client.execute(cleanup_kc=False)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
    errors = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    assert errors == []
