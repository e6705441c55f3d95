"""Whether weights are what they were, and one state of them while another thread trains."""

from __future__ import annotations

import gc
import threading
import types
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nbviz
from nbviz.core.errors import ModelError
from nbviz.core.shadow import shadow_of
from nbviz.core.weights import Watch, fingerprint, is_being_changed, own_copy, steadily, steady
from tests.rounds import few, rounds

ROUNDS = rounds(10, 40)
X = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))


def large() -> nn.Module:
    """Of more weights than are looked at each time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 900))


def step(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def act(net: nn.Module) -> None:
        optimizer = make(list(net.parameters()))
        net(X).square().sum().backward()
        optimizer.step()

    return act


def numpy_writes(net: nn.Module) -> None:
    net[4].weight.detach().numpy()[1, 3] += 1


#: Ways to change weights that torch counts, or a glance at some of the values sees.
SEEN = {
    "in place": lambda net: net[0].weight.detach().mul_(2),
    "a buffer": lambda net: net[1].running_mean.add_(0.1),
    "another parameter": lambda net: setattr(net[0], "bias", nn.Parameter(net[0].bias.detach().clone() + 1)),
    "other data": lambda net: setattr(net[0].weight, "data", net[0].weight.data.clone() + 1),
    "a new buffer": lambda net: net.register_buffer("more", torch.ones(1)),
    "a state dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "SGD": step(lambda p: torch.optim.SGD(p, 0.1)),
    "fused SGD": step(lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "fused Adam": step(lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "fused AdamW": step(lambda p: torch.optim.AdamW(p, 0.1, fused=True)),
    "data of all": lambda net: [p.data.mul_(0.5) for p in net.parameters()],
    "another layer": lambda net: net.__setitem__(0, nn.Conv2d(1, 4, 3)),
}
#: And those that a glance at large weights may miss.
HIDDEN = {
    "data of one": lambda net: net[4].weight.data[1, 3].add_(1),
    "NumPy": numpy_writes,
    "an exchange": lambda net: net[4].weight.data.copy_(net[4].weight.data[[0, 2, 1, *range(3, len(net[4].weight))]]),
    "a last bit": lambda net: (
        net[4].weight.data[2, 5].copy_(torch.nextafter(net[4].weight.data[2, 5], torch.tensor(9.0)))
    ),
}


@pytest.mark.parametrize("make", [small, large])
@pytest.mark.parametrize("change", SEEN)
def test_a_glance_sees_every_usual_way_of_changing_weights(make, change):
    net = make()
    before = fingerprint(net)
    assert fingerprint(net) == before
    SEEN[change](net)
    assert fingerprint(net) != before


@pytest.mark.parametrize("make", [small, large])
@pytest.mark.parametrize("change", {**SEEN, **HIDDEN})
def test_in_full_every_change_is_seen(make, change):
    net = make()
    before, watch = fingerprint(net, in_full=True), Watch(net)
    assert fingerprint(net, in_full=True) == before
    assert watch.look(in_full=True) == 0
    {**SEEN, **HIDDEN}[change](net)
    assert fingerprint(net, in_full=True) != before
    assert watch.look(in_full=True) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(2, 2)).to(torch.bfloat16),
        lambda: nn.Linear(2, 2, dtype=torch.complex64),
        lambda: nn.Linear(2, 2, device="meta"),
        lambda: nn.Embedding(3, 0),
        nn.ReLU,
        lambda: nn.Linear(3000, 500).to(torch.float64),
    ],
)
def test_weights_of_every_kind_have_a_fingerprint(make):
    net = make()
    assert fingerprint(net) == fingerprint(net)
    assert fingerprint(net, in_full=True) == fingerprint(net, in_full=True)


def test_a_model_made_in_inference_mode_has_a_fingerprint():
    with torch.inference_mode():
        net = nn.Linear(2, 2)
    assert fingerprint(net) == fingerprint(net)


def test_weights_that_are_views_of_one_tensor_have_a_fingerprint():
    whole = torch.rand(6)
    net = nn.Linear(2, 2)
    net.weight = nn.Parameter(whole[2:].view(2, 2))
    net.register_buffer("wide", torch.ones(1).expand(5))
    before = fingerprint(net, in_full=True)
    net.weight.data[1, 1] += 1
    assert fingerprint(net, in_full=True) != before


@pytest.fixture
def another_thread():
    """Without which nobody could change the weights meanwhile."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


class Settings:
    k = 1.0


class Everything(nn.Module):
    """A model whose answer depends on all kinds of things."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.c, self.by, self.items, self.named = nn.Conv2d(1, 3, 3), torch.ones(1), [1.0], {"k": 1.0}
        self.settings, self.array, self.how = Settings(), np.ones(1, np.float32), torch.relu
        self.space, self.hidden, self.last = types.SimpleNamespace(a=[1.0]), [nn.Conv2d(3, 3, 1)], nn.Identity()

    def forward(self, x):
        return self.last(self.hidden[0](self.how(self.c(x)) * self.by))


class Twice(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


#: Ways to change a model's answer beside its weights.
BESIDE = {
    "a plain tensor in place": lambda net: net.by.data.fill_(-3),
    "another plain tensor": lambda net: setattr(net, "by", torch.zeros(1)),
    "a list": lambda net: net.items.__setitem__(0, 2.0),
    "a dict": lambda net: net.named.update(k=2.0),
    "an object": lambda net: setattr(net.settings, "k", 2.0),
    "in an object's list": lambda net: net.space.a.__setitem__(0, 2.0),
    "an array": lambda net: net.array.__setitem__(0, 2.0),
    "a function": lambda net: setattr(net, "how", torch.sigmoid),
    "a class attribute": lambda net: setattr(type(net), "factor", 2.0),
    "a method of the class": lambda net: setattr(type(net), "forward", lambda self, x: self.c(x)),
    "another class": lambda net: setattr(net.c, "__class__", Twice),
    "a module in a list": lambda net: net.hidden[0].weight.data.mul_(2),
    "a patched forward": lambda net: setattr(net.c, "forward", types.MethodType(Twice.forward, net.c)),
    "a stride": lambda net: setattr(net.c, "stride", (2, 2)),
    "a hook": lambda net: net.last.register_forward_hook(lambda _m, _i, o: -o),
}


@pytest.mark.parametrize("change", BESIDE)
def test_in_full_what_else_an_answer_depends_on_is_seen(change):
    own = type("Own", (Everything,), {})  # whose attributes no other test sees
    net = own()
    watch = Watch(net)
    assert watch.look(in_full=True) == 0
    BESIDE[change](net)
    assert watch.look(in_full=True) == 1
    assert watch.look(in_full=True) == 1


def test_work_that_nobody_disturbs_is_done_once_and_on_the_model():
    net, seen = small(), []
    steadily(net, seen.append)
    assert len(seen) == 1
    assert seen[0] is net


def test_work_on_weights_that_change_meanwhile_is_done_again_on_a_copy(another_thread):
    net, seen = small(), []

    def work(model: nn.Module) -> Tensor:
        seen.append(model)
        before = model[0].weight.detach().clone()
        net[0].weight.data.add_(1)
        return model[0].weight.detach() - before

    assert not steadily(net, work).any()
    assert [one is net for one in seen] == [True, False]


def test_an_error_of_weights_that_change_meanwhile_is_no_error(another_thread):
    net = small()

    def work(model: nn.Module) -> str:
        if model is net:
            net[0].weight.data.add_(1)
            raise ModelError("modified by an inplace operation")
        return "done"

    assert steadily(net, work) == "done"
    with pytest.raises(ValueError, match="mine"):
        steadily(net, lambda _: (_ for _ in ()).throw(ValueError("mine")))


def test_weights_that_never_rest_are_refused():
    net, stop = large(), threading.Event()

    def change() -> None:
        while not stop.is_set():
            net[4].weight.data.add_(1)

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    said = "another thread changes the weights"
    try:
        said = str(nbviz.feature_maps(net, X, "0").shape and said)  # answered, or refused as that
    except ModelError as error:
        said = str(error)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "changes the weights" in said


def test_a_step_of_an_optimizer_in_another_thread_is_known():
    net = small()
    inside, leave = threading.Event(), threading.Event()

    class Slow(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=Slow(net.parameters(), 0.1).step)
    assert not is_being_changed(net)
    thread.start()
    inside.wait(20)
    assert is_being_changed(net)
    assert not is_being_changed(small())  # which is another model
    assert not is_being_changed(own_copy(small()))
    leave.set()
    thread.join()
    assert not is_being_changed(net)


def test_functions_are_documented_and_called_as_they_were():
    @steady
    def double(model: nn.Module, by: int = 2) -> tuple[nn.Module, int]:
        """Twice."""
        return model, by

    net = small()
    assert double(net, 3) == (net, 3)
    assert double(model=net, by=4) == (net, 4)
    assert double.__doc__ == "Twice."
    with pytest.raises(TypeError):
        double()


def test_a_copy_is_of_one_state():
    net = small()
    copied = own_copy(net)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(net.parameters(), copied.parameters(), strict=True))


# One thread trains, others look.


def convolutional(norm: bool) -> nn.Module:
    torch.manual_seed(1)
    first = [nn.Conv2d(1, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]
    rest = [nn.Dropout(0.3), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*first, *rest)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "fused AdamW": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
}


def train(net: nn.Module, optimizer: str, steps: int, note: Callable[[], None] = lambda: None) -> None:
    """With dropout; ``note`` is called whenever weights or statistics have changed."""
    pictures = torch.Generator().manual_seed(3)
    torch.manual_seed(7)
    chosen = OPTIMIZERS[optimizer](net.parameters())
    net.train()
    for _ in range(steps):
        x, y = torch.rand(32, 1, 16, 16, generator=pictures), torch.randint(5, (32,), generator=pictures)
        scores = net(x)
        note()
        chosen.zero_grad()
        nn.functional.cross_entropy(scores, y).backward()
        chosen.step()
        note()


LOOKS: dict[str, Callable[[nn.Module, str], Tensor]] = {
    "maps": lambda net, layer: nbviz.feature_maps(net, X, layer),
    "cam": lambda net, layer: nbviz.grad_cam(net, X, layer, 1, raw=True),
    "guided": lambda net, layer: nbviz.guided_backprop(net, X, layer, [1]),
    "covered": lambda net, _: nbviz.occlusion(net, X, 1, 8, 8).probability,
}


@pytest.mark.parametrize(
    ("optimizer", "norm"), few([(one, norm) for one in OPTIMIZERS for norm in (False, True)], 1, 2, 5)
)
def test_training_beside_is_as_it_is_alone_and_all_that_is_seen_is_of_weights_that_it_had(optimizer, norm):
    alone, net, layer = convolutional(norm), convolutional(norm), "3" if norm else "2"
    train(alone, optimizer, ROUNDS)
    states: list[nn.Module] = [shadow_of(net, own_weights=True)]
    found: dict[str, list[Tensor]] = {name: [] for name in LOOKS}
    failed: list[Exception] = []
    stop = threading.Event()

    def look(name: str) -> None:
        try:
            while not stop.is_set():
                found[name].append(LOOKS[name](net, layer))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=look, args=[name]) for name in LOOKS]
    for thread in threads:
        thread.start()
    train(net, optimizer, ROUNDS, lambda: states.append(shadow_of(net, own_weights=True)))
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), net.state_dict().values(), strict=True))
    for name, maps in found.items():
        expected = [LOOKS[name](state, layer) for state in states]
        assert maps
        for one in maps:
            assert min(float((one - other).abs().max()) for other in expected) < 1e-6


def test_another_thread_that_uses_the_model_is_not_disturbed():
    net = convolutional(norm=True).eval()
    with torch.no_grad():
        expected = net(X)
    stop, calls, wrong, failed = threading.Event(), [0], [0], []

    def use() -> None:
        try:
            while not stop.is_set():
                with torch.no_grad():
                    wrong[0] += not torch.equal(net(X), expected)
                calls[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    maps = nbviz.feature_maps(net, X, "3")
    for _ in range(5 * ROUNDS):
        assert torch.equal(nbviz.feature_maps(net, X, "3"), maps)
    stop.set()
    thread.join()
    assert failed == []
    assert calls[0] > 0
    assert wrong == [0]


def test_a_look_at_other_threads_keeps_nothing_alive():
    """A frame that refers to itself would keep all that its callers have."""

    class Large:
        pass

    def work() -> weakref.ref[Large]:
        large = Large()
        is_being_changed(small())
        return weakref.ref(large)

    gc.disable()
    try:
        assert work()() is None
    finally:
        gc.enable()
