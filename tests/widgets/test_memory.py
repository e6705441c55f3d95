"""What widgets keep of forward passes stays within a limit; what is let go of is run again when asked."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import nbviz
from nbviz.widgets import memory
from tests.small import Small, pictures


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small().eval()


def explore(model: nn.Module, **given: Any) -> nbviz.Explorer:
    return nbviz.explore(model, pictures(), **given)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    gc.collect()
    yield
    nbviz.set_memory_limit(512 << 20)


def keeps(view: nbviz.Explorer) -> bool:
    return view.session._trace is not None


def test_the_widgets_used_longest_ago_let_go(model: nn.Module) -> None:
    first = explore(model)
    first.finish()
    assert first.session.trace_bytes > 0
    nbviz.set_memory_limit(int(3.5 * first.session.trace_bytes))
    views = [first]
    for _ in range(4):  # one after the other, so that the order in which they were last used does not hang on the load
        views.append(explore(model))
        views[-1].finish()
    assert [keeps(view) for view in views] == [False, False, True, True, True]
    passes = first.session.forward_passes
    first.channel = 1
    first.finish()
    assert first.header.state == "ready"
    assert first.session.forward_passes == passes + 1
    assert [keeps(view) for view in views] == [True, False, False, True, True]
    nbviz.set_memory_limit(0)
    assert not any(map(keeps, views))


def test_a_pass_beyond_the_limit_is_run_again_and_the_widget_says_so(model: nn.Module) -> None:
    nbviz.set_memory_limit(1000)
    view = explore(model, layer="4", channel=3)
    view.finish()
    assert not keeps(view)
    assert "runs again at each change (nbviz.set_memory_limit)" in view.header.note
    passes = view.session.forward_passes
    view.channel = 4
    view.finish()
    assert view.session.forward_passes == passes + 1  # once, for all three rules
    nbviz.set_memory_limit(512 << 20)
    view.channel = 5
    view.finish()
    assert "set_memory_limit" not in view.header.note
    assert keeps(view)


def test_a_view_without_reconstructions_keeps_only_its_maps(model: nn.Module) -> None:
    images = pictures(1)
    view = nbviz.FeatureMaps(model, images, layer="4")
    view.finish()
    maps = nbviz.feature_maps(model, images, "4")
    assert view.session.trace_bytes == maps.numel() * 4
    explorer = nbviz.Explorer(model, images, layer="4")
    assert explorer.session.trace_bytes > 3 * view.session.trace_bytes


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, r"limit \(bytes, such as 512 << 20\) is -1; expected at least 0"),
        ("1 GB", TypeError, "expected a whole number"),
        (1.5, TypeError, "expected a whole number"),
        (True, TypeError, "expected a whole number"),
    ],
)
def test_a_bad_limit_is_refused(limit: object, error: type[Exception], message: str) -> None:
    before = memory._limit
    with pytest.raises(error, match=message):
        nbviz.set_memory_limit(limit)  # type: ignore[arg-type]
    assert memory._limit == before


def test_a_widget_that_is_gone_is_forgotten(model: nn.Module) -> None:
    view = explore(model)
    view.close()
    del view
    gc.collect()
    view = explore(model)
    assert list(memory._keepers)[-1] is view.session


class NoCalls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(func)


def test_letting_go_calls_nothing_of_torchs(model: nn.Module) -> None:
    """The garbage collector may close a widget in the middle of a forward pass whose calls are counted."""
    views = [explore(model), nbviz.Ablation(model, pictures())]
    for view in views:
        view.finish()
        with NoCalls():
            view.close()


def test_the_limit_is_no_part_of_the_result(model: nn.Module) -> None:
    views = []
    for limit in (0, 512 << 20):
        nbviz.set_memory_limit(limit)
        view = explore(model, layer="5", channel=3, tiles="guided")
        view.finish()
        views.append(view)
    for a, b in zip(views[0].grid.pixels(), views[1].grid.pixels(), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_pictures_and_errors_are_kept_no_longer_than_the_limit_says(model: nn.Module) -> None:
    nbviz.set_memory_limit(0)
    view = explore(model, layer="5", channel=3)
    view._repr_mimebundle_()
    assert view.session.trace_bytes == 0
    view.figure()
    assert view.session.trace_bytes == 0
    handle = model.get_submodule("0").register_forward_hook(lambda *_: 1 / 0)
    try:
        view.layer = "4"
        view.finish()
    finally:
        handle.remove()
    assert view.header.state == "error"
    assert view.session.trace_bytes == 0
