"""What help() and Shift-Tab show of each public function and class is complete, and sends nobody elsewhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import nbviz

#: Every public function, widget and statistic by its name. The classes of results are left out: functions make them.
PUBLIC = {
    name: thing
    for place in (nbviz, nbviz.cams, nbviz.attribution, nbviz.sanity)
    for name, thing in ((name, getattr(place, name)) for name in getattr(place, "__all__", None) or vars(place))
    if callable(thing)
    and thing.__module__.startswith("nbviz." if place is nbviz else "nbviz.methods.")
    and not name.startswith("_")
    and (place is not nbviz.sanity or name in ("randomisation", "deletion_insertion", "spearman", "ssim"))
}
STATISTICS = {
    name: thing
    for name, thing in vars(nbviz.statistics).items()
    if inspect.isclass(thing) and issubclass(thing, nbviz.statistics.Statistic) and not inspect.isabstract(thing)
}


def section(thing, title):
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]*\n---|\Z)", inspect.getdoc(thing), re.MULTILINE | re.DOTALL)
    return found and found.group(1)


def described(thing):
    heads = re.findall(r"^(\S.*)$", section(thing, "Parameters") or "", re.MULTILINE)
    return [name for head in heads for name in head.split(", ")]


def parameters(thing):
    signature = inspect.signature(thing)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{stars.get(p.kind, '')}{p.name}" for p in signature.parameters.values()]


def test_the_lists_are_not_empty():
    assert {"grad_cam", "reconstruct", "randomisation", "smooth_grad", "scan", "Explorer"} <= PUBLIC.keys()
    assert {"TopK", "Accuracy", "Ablation", "Moments"} <= STATISTICS.keys()


@pytest.mark.parametrize("thing", [*PUBLIC.values(), *STATISTICS.values()], ids=lambda thing: thing.__name__)
def test_each_parameter_is_described_once_in_the_order_of_the_signature(thing):
    assert described(thing) == parameters(thing)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_returns_and_raises_and_shows_an_example(name):
    thing = PUBLIC[name]
    if not inspect.isclass(thing) and inspect.signature(thing).return_annotation != "None":
        assert section(thing, "Returns")
    if any(not name.startswith("*") for name in parameters(thing)):
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


def test_the_readme_shows_the_pictures_that_the_browser_tests_compare() -> None:
    root = Path(__file__).parents[1]
    shown = re.findall(r"\(notebooks/screenshots/([\w-]+\.png)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in (root / "notebooks" / "screenshots").iterdir())
