"""What a cell that is run again leaves of its earlier run."""

from __future__ import annotations

import builtins
import gc
import weakref
from collections.abc import Iterator

import comm
import ipywidgets
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets.widgets.widget import _instances

import nbviz
from nbviz.widgets import reruns
from tests.rounds import few
from tests.small import Small, pictures

MAKE = """
images = pictures(2)
model = Small()
models.add(model)
"""
VIEW = MAKE + "view = nbviz.explore(model, images)\n"
LAST = MAKE + "nbviz.FeatureMaps(model, images)"


class Shell(InteractiveShell):
    def run(self, source: str, cell: str | None = "a", fails: bool = False) -> None:
        result = self.run_cell(source, store_history=True, cell_id=cell)
        assert result.success != fails


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # of another environment, it would be warned of
    monkeypatch.delattr(builtins, "_", raising=False)  # doctests leave it, and then IPython does not set its own
    gc.freeze()  # what was there before is not searched again in each re-run
    shell = Shell()
    monkeypatch.setattr(reruns, "get_ipython", lambda: shell)
    monkeypatch.setattr(reruns, "_made", {})
    monkeypatch.setattr(reruns, "_numbers", {})
    monkeypatch.setattr(reruns, "_watched", [])
    reruns.watch_reruns()
    reruns._begun.clear()
    own = {"Small": Small, "pictures": pictures, "models": weakref.WeakSet()}
    shell.user_ns.update(nbviz=nbviz, torch=torch, ipywidgets=ipywidgets, **own)
    yield shell
    for widget in list(_instances.values()):
        widget.close()


def models(shell: Shell) -> int:
    gc.collect()
    return len(shell.user_ns["models"])


@pytest.mark.parametrize(
    "source",
    few(
        [
            VIEW,
            LAST,
            f"{VIEW}view",
            f"{VIEW}view.view = 'class activation'\nview.view = 'occlusion'",
            f"{MAKE}nbviz.FeatureMaps(model, images), nbviz.Reconstruction(model, images)",
            f"{MAKE}ipywidgets.VBox([ipywidgets.IntSlider(), nbviz.explore(model, images)])",
            f"{MAKE}box = ipywidgets.HBox([ipywidgets.VBox([nbviz.FeatureMaps(model, images)])])\nbox",
            f"{MAKE}def show():\n    display(nbviz.FeatureMaps(model, images))\nshow()",
            f"{VIEW}view.observe(lambda change: print(view.channel), 'channel')",
            f"{VIEW}slider = ipywidgets.IntSlider()\n"
            "slider.observe(lambda change, view=view: setattr(view, 'channel', change.new), 'value')\nslider",
            f"{MAKE}a = nbviz.explore(model, images)\nb = nbviz.FeatureMaps(model, images)\n"
            "ipywidgets.jslink((a.channel_control, 'value'), (b.channel_control, 'value'))\n"
            "ipywidgets.link((a, 'channel'), (b, 'channel'))",
        ],
        *(1, 6, 8, 10),
    ),
    ids=[
        "bound",
        "last",
        "bound-and-last",
        "other-views",
        "tuple",
        "box",
        "nested-box",
        "displayed",
        "observed",
        "tied",
        "linked",
    ],
)
def test_a_cell_run_again_holds_one_model(shell: Shell, source: str) -> None:
    for _ in range(3):
        shell.run(source)
    widgets, comms = len(_instances), len(comm.get_comm_manager().comms)
    for _ in range(3):
        shell.run(source)
    assert models(shell) == 1
    assert len(_instances) == widgets
    assert len(comm.get_comm_manager().comms) == comms


def test_a_model_of_another_cell_keeps_one_widget(shell: Shell) -> None:
    shell.run(MAKE, "model")
    for source in ("nbviz.FeatureMaps(model, images)", "view = nbviz.explore(model, images)"):
        for _ in range(3):
            shell.run(source, source)
        widgets = len(_instances)
        shell.run(source, source)
        assert len(_instances) == widgets


def test_an_error_in_the_middle_leaves_what_is_held_and_closes_the_rest(shell: Shell) -> None:
    shell.run(VIEW)
    view = weakref.ref(shell.user_ns["view"])
    shell.run("1 / 0\n" + VIEW, fails=True)
    assert view().comm is not None  # type: ignore[union-attr]
    for _ in range(3):
        shell.run(VIEW + "1 / 0", fails=True)
    assert view() is None
    shell.run(VIEW)
    assert models(shell) == 1
    widgets = len(_instances)
    shell.run(LAST, "b")
    shell.run("1 / 0\n" + LAST, "b", fails=True)
    assert len(_instances) == widgets  # of the last expression nothing is left


@pytest.mark.parametrize(
    "hold",
    ["held = view", "held = [view]", "class Holder: held = view", "held = lambda: view.layer\nheld = [view.grid]"],
)
def test_what_someone_holds_lives_on(shell: Shell, hold: str) -> None:
    shell.run(VIEW)
    shell.run(hold, "b")
    view = shell.user_ns["view"]
    before = len(_instances)
    view = weakref.ref(view)
    shell.run(VIEW)
    assert view() is not None
    assert view().comm is not None
    assert view().grid.comm is not None
    assert len(_instances) == 2 * before
    view().channel = 4
    view().finish()
    assert view().panels.current["channel"].split()[2] == "4"
    assert view().header.comm.comm_id in _instances
    # From the next run on after that is no longer so, it is gone.
    shell.run("held = Holder = None", "b")
    shell.run(VIEW)
    assert view() is None
    assert models(shell) == 1


def test_an_attribute_of_another_object_holds(shell: Shell) -> None:
    shell.run("class Box: pass\nbox = Box()", "b")
    shell.run(f"{VIEW}box.views = getattr(box, 'views', []) + [view]")
    shell.run(f"{VIEW}box.views = getattr(box, 'views', []) + [view]")
    assert [view.comm is not None for view in shell.user_ns["box"].views] == [True, True]


def test_other_cells_and_widgets_are_left_alone(shell: Shell) -> None:
    shell.run(LAST, "b")
    shell.run("ipywidgets.IntSlider()", "c")
    shell.run(f"slider = ipywidgets.IntSlider()\n{VIEW}ipywidgets.FloatSlider()")
    others = set(_instances)
    shell.run(VIEW)
    kinds = sorted(type(_instances[name]).__name__ for name in others & set(_instances))
    assert "FloatSlider" in kinds
    assert kinds.count("IntSlider") >= 2
    shell.run("ipywidgets.IntSlider()", "c")
    assert models(shell) == 2


def test_what_was_closed_by_hand_is_closed(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        shell.run(f"{VIEW}view.close()")
    assert models(shell) == 1
    assert "Error" not in capsys.readouterr().err


def test_without_cells_nothing_is_replaced(shell: Shell) -> None:
    for _ in range(2):
        shell.run(LAST, None)
    assert models(shell) == 2


def test_the_history_forgets_what_was_replaced_and_no_more(shell: Shell) -> None:
    shell.run(LAST)
    first = shell.execution_count - 1
    shell.run("'kept'", "b")
    shell.run(LAST)
    out = shell.user_ns["Out"]
    assert first not in out
    assert f"_{first}" not in shell.user_ns
    assert out[first + 1] == shell.user_ns["__"] == "kept"
    assert type(out[first + 2]) is type(shell.user_ns["_"]) is nbviz.FeatureMaps
    shell.run("_ = 3\n" + LAST)
    assert shell.user_ns["_"] == 3
