"""Random moves of a person, of the page and of misfortune, in widgets that share a model."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from ipywidgets.widgets import widget as registry
from torch import Tensor, nn

import nbviz
from nbviz.core.backward import RULES
from nbviz.core.state import lock
from nbviz.errors import ModelError
from nbviz.imaging.encode import decode
from nbviz.imaging.pixels import centre, quantise, shrink
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.reconstruct import SEEDS
from nbviz.widgets import memory
from nbviz.widgets.layer_widget import LayerWidget
from nbviz.widgets.session import TILES
from tests.rounds import TIMES, rounds

MOVES = rounds(200, 10_000)
EXAMPLES, STEPS = rounds(3, 60), 210

KINDS = [nbviz.FeatureMaps, nbviz.Reconstruction, nbviz.Explorer]
LAYERS = ["0", "1", "2", "3", "4", "5", "6"]
PICTURES = 3
VALID: dict[str, st.SearchStrategy[Any]] = {
    "picture": st.integers(0, PICTURES - 1),
    "layer": st.sampled_from(LAYERS),
    "channel": st.integers(0, 3),
    "seed": st.sampled_from(SEEDS),
    "how": st.sampled_from(FUSIONS),
    "tiles": st.sampled_from(TILES),
}
INVALID: dict[str, list[Any]] = {
    "picture": [-1, PICTURES, "1", None, 1.5, True],
    "layer": ["", "conv", "8", "0:1", 0, None, ["0"]],
    "channel": [-1, 100, "1", None, 1.5],
    "seed": ["", "middle", None, 0],
    "how": ["", "l3", None, 0],
    "tiles": ["", "deconv", None, 0],
}
#: What the page alone changes: some values for each trait of a view, and one that it does not take.
PAGE: dict[tuple[str, str], tuple[list[Any], Any]] = {
    ("grid", "cmap"): (["viridis", "magma", "gray"], "plaid"),
    ("grid", "contrast"): ([1.0, 2.0, 8.0], "much"),
    ("grid", "scale"): (["each", "shared"], "none"),
    ("grid", "order"): (["index", "strongest", "spread"], "weakest"),
    ("grid", "side"): ([4, 8, 16, 64, 128], 0),
    ("panels", "cmap"): (["turbo", "inferno"], None),
    ("panels", "contrast"): ([1.0, 4.0], None),
    ("fused", "opacity"): ([0.0, 0.5, 1.0], 1.5),
}
#: Where a chunk is interrupted or fails.
PLACES = [
    *("nbviz.widgets.session.run", "nbviz.widgets.predictions.run", "nbviz.widgets.session.project"),
    "nbviz.widgets.session.to_host",
    *("nbviz.widgets.channel_panels.centre", "nbviz.widgets.channel_panels.quantise"),
    "nbviz.widgets.layer_widget.channels_last",
    *("nbviz.widgets.views.encode", "nbviz.core.backward.torch.autograd.grad"),
]
#: How many moves lie at least between two that take long.
BETWEEN = {"open": 20, "figure": 60}


class Armed(Exception):
    """What the model raises while it is armed."""


STRIKES = [KeyboardInterrupt, Armed, torch.OutOfMemoryError]


class Small(nn.Sequential):
    """In train mode, with statistics that a pass in train mode would change; fails while it is armed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            *(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(96, 4)),
        )

    armed = False  # of the class, so that arming leaves no mark on the model

    def forward(self, x: Tensor) -> Tensor:
        for number, part in enumerate(self):
            if number == 3 and Small.armed:
                raise Armed("armed")
            x = part(x)
        return x


def data(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in model.state_dict().items()}


def counts() -> dict[str, int]:
    """What must not become more."""
    gc.collect()
    found = {
        "tensors": sum(issubclass(type(o), Tensor) for o in gc.get_objects()),
        "widgets": len(registry._instances),
        "threads": threading.active_count(),
        "traces": len(memory._keepers),
    }
    if torch.cuda.is_available():
        found["CUDA memory"] = torch.cuda.memory_allocated()
    return found


class Moves(RuleBasedStateMachine):
    """One model with widgets on it."""

    executed = 0

    def __init__(self, snapshot: Callable[[nn.Module], Any], device: torch.device) -> None:
        super().__init__()
        self.snapshot, self.device = snapshot, device
        self.before = counts()
        self.model = Small().to(device)
        self.twin = copy.deepcopy(self.model)
        self.images = torch.rand(PICTURES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        self.views: list[LayerWidget] = []
        self.old: set[int] = set()  # views that were drawn before a step of training
        self.truth: dict[Any, Any] = {}  # what the functions give, since the last step
        self.since = dict.fromkeys(BETWEEN, 1000)
        self.marks = ExitStack()

    @initialize(trains=st.booleans())
    def begin(self, trains: bool) -> None:
        self.trains = trains
        if not trains:
            self.marks.enter_context(self.snapshot(self.model))
        self.open_view(2, {})

    def moved(self, takes_long: str = "") -> None:
        Moves.executed += 1
        for name in self.since:
            self.since[name] = 0 if name == takes_long else self.since[name] + 1

    def view(self, number: int) -> LayerWidget:
        return self.views[number % len(self.views)]

    # What a person does.

    def open_view(self, kind: int, given: dict[str, Any]) -> None:
        if kind == 0:
            given.pop("tiles", None)
        self.views.append(KINDS[kind](self.model, self.images, **given))

    @precondition(lambda self: len(self.views) < 4 and self.since["open"] > BETWEEN["open"])
    @rule(
        kind=st.integers(0, 2),
        given=st.fixed_dictionaries({}, optional=VALID),
        place=st.none() | st.sampled_from(PLACES),
        error=st.sampled_from(STRIKES),
    )
    def open(self, kind: int, given: dict[str, Any], place: str | None, error: type[BaseException]) -> None:
        self.moved("open")
        widgets = len(registry._instances)
        with pytest.MonkeyPatch.context() as patch:
            struck = patched(patch, place, error) if place else []
            try:
                self.open_view(kind, given)
            except (ModelError, *STRIKES):
                assert struck or Small.armed
                assert len(registry._instances) == widgets

    @precondition(lambda self: len(self.views) > 1)
    @rule(number=st.integers(0, 3))
    def close(self, number: int) -> None:
        self.moved()
        view = self.views.pop(number % len(self.views))
        self.old.discard(id(view))
        view.close()
        assert view.comm is None
        view.channel = 0  # answers no more

    @rule(number=st.integers(0, 3), change=st.sampled_from(list(VALID)), data=st.data(), from_page=st.booleans())
    def change(self, number: int, change: str, data: st.DataObject, from_page: bool) -> None:
        self.moved()
        view, value = self.view(number), data.draw(VALID[change])
        if change == "tiles" and not view._grad and value != TILES[0]:
            with pytest.raises(ValueError, match="shows activations"):
                view.tiles = value
            return
        before = getattr(view, change)
        if from_page:
            thread = threading.Thread(target=self.change_in_page, args=(view, change, value), name="subshell-1")
            thread.start()
            thread.join()
        else:
            setattr(view, change, value)
        assert getattr(view, change) == value
        assert view.header.error == "" or Small.armed or value == before

    def change_in_page(self, view: LayerWidget, change: str, value: Any) -> None:
        """As the page's message does it."""
        if change == "picture":
            view.strip.set_state({"picture": value})
        elif change == "channel":
            view.channel_control.set_state({"value": value})
        else:
            control = getattr(view, f"{change}_control")
            values = control._names if change == "layer" else [option[1] for option in control._options_full]
            control.set_state({"index": values.index(value)})

    @rule(number=st.integers(0, 3), change=st.sampled_from(list(INVALID)), which=st.integers(0, 10))
    def refuse(self, number: int, change: str, which: int) -> None:
        self.moved()
        view = self.view(number)
        state = [getattr(view, name) for name in VALID]
        with pytest.raises((t.TraitError, ValueError, TypeError)):
            setattr(view, change, INVALID[change][which % len(INVALID[change])])
        assert [getattr(view, name) for name in VALID] == state

    @precondition(lambda self: self.since["figure"] > BETWEEN["figure"])
    @rule(number=st.integers(0, 3), way=st.sampled_from(["figure", "_repr_mimebundle_"]))
    def show(self, number: int, way: str) -> None:
        self.moved("figure")
        view = self.view(number)
        if Small.armed and way == "figure":
            with suppress(ModelError):  # where nothing that it shows is known
                view.figure()
            return
        shown = getattr(view, way)()
        if way == "_repr_mimebundle_":
            assert "application/vnd.jupyter.widget-view+json" in shown
            assert "image/png" in shown or Small.armed or view.header.error

    @precondition(lambda self: self.trains)
    @rule()
    def train(self) -> None:
        self.moved()
        armed, Small.armed = Small.armed, False
        for net in (self.model, self.twin):
            loss = net(self.images.to(self.device)).logsumexp(1).sum()
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(net.parameters(), grads, strict=True):
                    parameter.sub_(1e-3 * grad)
        Small.armed = armed
        self.old = {id(view) for view in self.views}
        self.truth.clear()

    @rule(limit=st.sampled_from([0, 1000, 50_000, 512 << 20]))
    def limit_memory(self, limit: int) -> None:
        self.moved()
        nbviz.set_memory_limit(limit)

    # What the page does.

    @rule(number=st.integers(0, 3), late=st.integers(-1, 2))
    def paint(self, number: int, late: int) -> None:
        self.moved()
        header = self.view(number).header
        header.set_state({"painted": header.chunk - late})

    @rule(number=st.integers(0, 3), where=st.sampled_from(list(PAGE)), which=st.integers(0, 5))
    def in_page(self, number: int, where: tuple[str, str], which: int) -> None:
        self.moved()
        part, values, refused = getattr(self.view(number), where[0]), *PAGE[where]
        before = getattr(part, where[1])
        if which == 5:
            with pytest.raises(t.TraitError):
                setattr(part, where[1], refused)
            assert getattr(part, where[1]) == before
        else:
            part.set_state({where[1]: values[which % len(values)]})

    # What misfortune does.

    @rule()
    def arm(self) -> None:
        self.moved()
        Small.armed = not Small.armed

    @rule(
        number=st.integers(0, 3),
        place=st.sampled_from(PLACES),
        error=st.sampled_from(STRIKES),
        change=st.sampled_from(["picture", "layer"]),
        data=st.data(),
    )
    def strike(self, number: int, place: str, error: type[BaseException], change: str, data: st.DataObject) -> None:
        """Once within the chunks that a change leads to."""
        self.moved()
        view, value = self.view(number), data.draw(VALID[change])
        with pytest.MonkeyPatch.context() as patch:
            work = patched(patch, place, error)
            try:
                setattr(view, change, value)
                view.finish()
            except KeyboardInterrupt:
                assert error is KeyboardInterrupt
                assert view.header.state == "interrupted"
        assert getattr(view, change) == value
        if work and error is Armed and not Small.armed:
            assert "on purpose" in view.header.error or view.header.error == ""  # struck before the work was taken up
            view.finish()  # which tries again
            assert view.header.error == ""

    # What is to be seen.

    @rule(number=st.integers(0, 3))
    def look(self, number: int) -> None:
        self.moved()
        view = self.view(number)
        if id(view) in self.old:  # a change of the picture draws all of it with the new weights
            view.picture = (view.picture + 1) % PICTURES
            self.old.discard(id(view))
        view.finish()
        if Small.armed:
            assert view.header.state in ("ready", "error")
            return
        self.check(view)

    def given(self, what: str, *key: Any) -> Any:
        """What a function gives, remembered until the weights change."""
        if (what, key) not in self.truth:
            picture, layer, *more = key
            image = self.images[picture : picture + 1]
            if what == "maps":
                value: Any = nbviz.feature_maps(self.model, image, layer)[0].cpu()
            elif what == "back":
                value = nbviz.reconstruct(self.model, image, layer, seed=more[0])
            else:
                self.model.eval()
                with torch.no_grad():
                    value = self.model(image.to(self.device))[0].softmax(0).topk(4)
                self.model.train()
            self.truth[what, key] = value
        return self.truth[what, key]

    def check(self, view: LayerWidget) -> None:
        """The widget shows what the functions give for its state."""
        header, parts = view.header, view._parts
        assert (header.state, header.error, header.stale) == ("ready", "", [])
        assert header.code == view.code
        assert (view.strip.picture, view.layer_control.value) == (view.picture, view.layer)
        assert (view.seed_control.value, view.how_control.value) == (view.seed, view.how)
        maps = self.given("maps", view.picture, view.layer)
        assert (view.channel_control.max, view.channel_control.value) == (len(maps) - 1, view.channel)
        labels, probabilities = zip(*view.strip.predictions, strict=True)
        top = self.given("answers", view.picture, "")
        assert labels == tuple(f"class {i}" for i in top.indices.tolist())
        np.testing.assert_allclose(probabilities, top.values.cpu(), rtol=1e-4)
        if "fused" in parts:
            expected = quantise(nbviz.fuse(maps[None], view.how)[0])[0].numpy()
            shown = decode(view.fused.over_fused)
            same(shown, expected.transpose(1, 2, 0) if expected.ndim == 3 else expected)
        if "grid" in parts:
            self.check_grid(view, maps)
        if "channel" in parts:
            back = self.given("back", view.picture, view.layer, view.seed)
            assert view.panels.current["channel"] == view._key("channel")
            for name in RULES:
                slot = view.panels.slot(name)
                assert slot["key"] == view._key("channel")
                same(decode(slot).transpose(2, 0, 1), centre(back[name][0, view.channel]).cpu().numpy())
            if float(maps[view.channel].amin()) < float(maps[view.channel].amax()):
                same(decode(view.panels.slot("activation"))[..., 0], quantise(maps[view.channel])[0].numpy())

    def check_grid(self, view: LayerWidget, maps: Tensor) -> None:
        channels, sent = view.grid.pixels()
        assert sorted(channels) == list(range(len(maps)))
        assert view.grid.tiles["state"] == view._key("grid")
        largest = max(view.grid.tiles["shape"][1:])
        assert max(1, largest // view._tiles._side) <= max(1, largest // view.grid.side)
        sent = sent[np.argsort(channels)]
        if view.tiles == TILES[0]:
            same(sent, quantise(maps, view._tiles._side)[0].numpy())
            return
        back = self.given("back", view.picture, view.layer, view.seed)[view.tiles][0].cpu()
        field = view.session.layers[view.layer].field
        assert field is not None
        h, w = (16, 16) if view.seed == "map" else (min(field.size[0], 16), min(field.size[1], 16))
        for channel, whole in enumerate(back):
            top, left = field.corner(divmod(int(maps[channel].argmax()), maps.shape[2]))
            wide = nn.functional.pad(whole, (16, 16, 16, 16))  # zero beyond the picture
            down, across = 0 if h == 16 else top, 0 if w == 16 else left
            part = wide[:, 16 + down : 16 + down + h, 16 + across : 16 + across + w]
            same(sent[channel].transpose(2, 0, 1), centre(shrink(part, view._tiles._side)).numpy())

    def teardown(self) -> None:
        Small.armed = False
        nbviz.set_memory_limit(512 << 20)
        while self.views:
            self.views.pop().close()
        self.marks.close()
        assert data(self.model) == data(self.twin)
        assert all(module.training for module in self.model.modules())
        assert not any(module._forward_hooks for module in self.model.modules())
        assert not lock._is_owned()  # type: ignore[attr-defined]
        before = self.before
        for name in ("model", "twin", "images", "views", "truth", "marks"):
            delattr(self, name)
        after = counts()
        assert {name: after[name] for name in after if after[name] > before[name]} == {}


def same(shown: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of sums in another order."""
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1


def patched(patch: pytest.MonkeyPatch, place: str, error: type[BaseException]) -> list[str]:
    """Let a function fail when it is next called, and then no more; says if it was."""
    module, name = place.rsplit(".", 1)
    home: Any = torch.autograd if "autograd" in module else sys.modules[module]
    function, struck = getattr(home, name), []

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if not struck:
            struck.append(place)
            raise error("on purpose")
        return function(*args, **kwargs)

    patch.setattr(home, name, fail_once)
    return struck


@pytest.mark.filterwarnings("ignore::nbviz.errors.NoRectifierWarning")
def test_random_moves_leave_no_mark(
    snapshot: Callable[[nn.Module], Any],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Moves, "executed", 0)
    monkeypatch.setattr(
        memory, "_keepers", weakref.WeakKeyDictionary()
    )  # other tests' widgets are not for this one's limit to touch
    nbviz.Explorer(Small().to(device), torch.rand(1, 3, 16, 16)).close()  # what is made once is made
    gc.collect()
    gc.freeze()  # what was there before is neither searched nor counted, again and again
    run_state_machine_as_test(
        lambda: Moves(snapshot, device),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=TIMES <= 1,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # to shrink what fails would take an hour
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Moves.executed >= MOVES
