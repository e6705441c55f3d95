"""JupyterLab's extension comes with the package, an editable installation included."""

from importlib.metadata import files


def test_it_is_installed_with_the_package() -> None:
    installed = {path.name: path.locate() for path in files("nbviz") or () if "labextensions" in path.parts}
    assert set(installed) == {"install.json", "package.json", "remoteEntry.js"}
    assert all(path.exists() for path in installed.values())
