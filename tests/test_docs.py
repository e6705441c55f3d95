"""What help() and Shift-Tab show of each public function and class is complete, and sends nobody elsewhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import nbviz

PLACES = (nbviz, nbviz.cams, nbviz.attribution, nbviz.sanity, nbviz.statistics)
#: Every public function, widget and statistic by its name. Results are made by functions, not by people.
PUBLIC = {
    name: thing
    for place in PLACES
    for name, thing in ((name, getattr(place, name)) for name in getattr(place, "__all__", None) or vars(place))
    if callable(thing)
    and not name.startswith("_")
    and getattr(thing, "__module__", "").startswith("nbviz.")
    and not name.endswith("Result")
    and (inspect.isclass(thing) or place is not nbviz.statistics)
    and not (place is nbviz.sanity and thing.__module__ != "nbviz.methods.sanity")
}


def section(thing, title):
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]*\n---|\Z)", inspect.getdoc(thing), re.MULTILINE | re.DOTALL)
    return found and found.group(1)


def described(thing):
    heads = re.findall(r"^(\S.*)$", section(thing, "Parameters") or "", re.MULTILINE)
    return [name for head in heads for name in head.split(", ")]


def parameters(thing):
    signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{stars.get(p.kind, '')}{p.name}" for p in signature.parameters.values() if p.name != "self"]


def test_the_list_is_not_empty():
    assert {"grad_cam", "reconstruct", "randomisation", "smooth_grad", "scan", "Explorer", "TopK"} <= PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_each_parameter_is_described_once_in_the_order_of_the_signature(name):
    assert described(PUBLIC[name]) == parameters(PUBLIC[name])


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_returns_and_raises_and_shows_an_example(name):
    thing = PUBLIC[name]
    if not inspect.isclass(thing) and inspect.signature(thing).return_annotation != "None":
        assert section(thing, "Returns")
    if parameters(thing):
        assert section(thing, "Raises")
    assert ">>> " in (section(thing, "Examples") or "")


SOURCES = [path for path in sorted(Path(nbviz.__file__).parent.rglob("*.py")) if not path.name.startswith("train_")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_docstring_sends_the_reader_elsewhere(path):
    docs = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    assert [text for text in docs if re.search(r"\bAs in :(func|class|mod)", text)] == []
