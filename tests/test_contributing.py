"""The recipes of CONTRIBUTING.md, followed to the letter in a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.rounds import few

ROOT = Path(__file__).parents[1]
_STEP = re.compile(
    r"^In `([^`]+)`, (above|at the end|a new file)(?: `([^`]+)`)?[^\n]*:\n\n```python\n(.*?)```",
    re.MULTILINE | re.DOTALL,
)
#: Of each recipe, the files in which it should have made tests, which tests those are, and what is in their names.
RECIPES = {
    "a class activation map from a gradient": (
        ("tests/methods/test_cam.py",),
        "test_cam and (positive_cam or formula)",
        "positive_cam",
    ),
    "a statistic of a dataset": (("tests/scanning/test_statistics.py",), "test_statistics and largest", "largest"),
    "a widget": (
        ("tests/widgets/test_code.py", "tests/widgets/test_promises.py", "tests/test_docs.py", "tests/test_fuzz.py"),
        "Distribution or control or every_public_name",
        "Distribution",
    ),
}


@pytest.mark.parametrize(
    "recipes", few([[*RECIPES], *([recipe] for recipe in RECIPES)]), ids=["all together", *RECIPES]
)
def test_a_recipe_works_as_it_stands(recipes: list[str], tmp_path: Path) -> None:
    for name in ("nbviz", "tests", "setup.cfg", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    for recipe in recipes:
        follow(recipe, tmp_path)
    run_in(tmp_path, "ruff", "check", "nbviz", "tests")
    files, which, names = zip(*(RECIPES[recipe] for recipe in recipes), strict=True)
    found = run_in(tmp_path, "pytest", "-v", "-p", "no:cacheprovider", *chain(*files), "-k", " or ".join(which))
    for name in names:
        assert re.search(rf"::test_.*{name}.* PASSED", found), name


def follow(recipe: str, folder: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text.partition(f"## Recipe: {recipe}\n")[2].partition("\n## ")[0]
    steps = _STEP.findall(part)
    assert len(steps) == part.count("```python") > 0
    assert len(steps) <= 4
    for place, where, anchor, code in steps:
        path = folder / place
        if where == "a new file":
            assert not path.exists()
            path.write_text(code, encoding="utf-8")
            continue
        before = path.read_text(encoding="utf-8")
        if where == "above":
            assert before.count(f"\n{anchor}\n") == 1, anchor
            path.write_text(before.replace(f"\n{anchor}\n", f"\n{code}{anchor}\n"), encoding="utf-8")
        else:
            path.write_text(before + code, encoding="utf-8")


def run_in(folder: Path, module: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout
