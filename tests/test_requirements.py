"""What the code and the notebooks import is named where it is installed from: setup.cfg, and Binder's own list."""

from __future__ import annotations

import ast
import configparser
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The packages whose module has another name, and what conda calls them.
PACKAGES = {"PIL": "pillow", "IPython": "ipython"}
CONDA = {"pytorch-cpu": "torch"}


def requirements(lines: list[str]) -> dict[str, tuple[int, ...]]:
    """By name the lowest version."""
    named = (re.fullmatch(r"([\w.-]+)(?:[>=]=?([\d.]+))?.*", line.strip()) for line in lines)
    return {one[1].lower(): tuple(map(int, (one[2] or "0").split("."))) for one in named if one is not None}


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


INSTALLED = requirements(setup()["options"]["install_requires"].split())
ASIDE = [setup()["options.extras_require"][some] for some in ("imagenet", "edges")]
EXTRAS = requirements([line for some in ASIDE for line in some.split()])
LISTED = re.findall(r"^  - (.*)$", (ROOT / "binder" / "environment.yml").read_text(), re.MULTILINE)
BINDER = {CONDA.get(name, name): low for name, low in requirements(LISTED).items()}
LINKS = re.findall(r"https://mybinder\.org/v2/\S+urlpath=lab/tree/([^)\s]+)", (ROOT / "README.md").read_text())


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def packages(sources: list[str]) -> set[str]:
    modules = {name for source in sources for name in imported(source)} - set(sys.stdlib_module_names) - {"nbviz"}
    return {PACKAGES.get(name, name) for name in modules}


def cells(path: Path) -> str:
    code = [one["source"] for one in json.loads(path.read_text())["cells"] if one["cell_type"] == "code"]
    lines = [line for one in code for line in "".join(one).splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


def test_binder_has_what_is_installed_elsewhere() -> None:
    assert sorted(INSTALLED.keys() - BINDER.keys()) == []
    assert [name for name, low in INSTALLED.items() if BINDER[name] < low] == []


def test_all_that_the_code_imports_is_installed() -> None:
    found = packages([path.read_text() for path in (ROOT / "nbviz").rglob("*.py")])
    assert sorted(found - INSTALLED.keys() - EXTRAS.keys()) == []


def test_all_that_the_notebooks_import_is_on_binder() -> None:
    found = packages([cells(path) for path in (ROOT / "notebooks").glob("*.ipynb")])
    assert "torch" in found
    assert sorted(found - BINDER.keys()) == []


@pytest.mark.parametrize("link", LINKS)
def test_binders_link_opens_a_notebook_that_there_is(link: str) -> None:
    assert (ROOT / link).is_file()
