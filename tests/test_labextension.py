"""JupyterLab finds nbviz's extension, an editable installation included."""

from pathlib import Path

from jupyter_core.paths import jupyter_path

import nbviz

EXTENSION = Path(nbviz.__file__).parent / "labextension"


def test_it_is_installed_where_jupyterlab_looks() -> None:
    found = next(path for place in jupyter_path("labextensions") if (path := Path(place, "nbviz")).is_dir())
    names = {path.relative_to(EXTENSION) for path in EXTENSION.rglob("*") if path.is_file()}
    assert {path.name for path in names} == {"install.json", "package.json", "remoteEntry.js"}
    assert all((found / name).read_bytes() == (EXTENSION / name).read_bytes() for name in names)
