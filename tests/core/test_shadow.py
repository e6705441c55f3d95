"""A shadow shares the weights and nothing else: what happens to it does not happen to the model."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import queue
import random
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from nbviz.core.errors import ModelError
from nbviz.core.shadow import in_shadow, shadow_of
from nbviz.core.trace import run
from tests.rounds import few

X = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CNNS = ["resnet18", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v3_small", "alexnet"]
TRANSFORMERS = ["a small ViT", "swin_t", "vit_b_32"]

CALLED: list[Any] = []


class Counting(nn.Module):
    """Notes down all that a forward pass can note down."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout()
        self.calls, self.seen, self.kept = 0, [], {}
        self.sizes, self.last = set(), None
        self.record = types.SimpleNamespace(passes=0, shapes=[])
        self.past = deque(maxlen=2)
        self.by_name = defaultdict(list)
        self.table = np.zeros(3)
        self.register_buffer("total", torch.zeros(1))
        self.scale = torch.ones(1)  # a plain tensor
        self.draw = torch.Generator().manual_seed(0)

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.kept["x"] = x
        self.sizes.add(x.shape)
        self.record.passes += 1
        self.record.shapes.append(x.shape)
        self.past.append(x)
        self.by_name["x"].append(x)
        self.table += 1
        self.total += x.sum()
        self.scale.add_(1)
        self.last = x = self.drop(self.norm(self.conv(x)))
        return x + 0 * torch.rand(1, generator=self.draw)


def test_a_pass_leaves_nothing_in_the_model(snapshot):
    net = Counting()
    with snapshot(net):
        in_shadow(net, lambda shadow: shadow(X))
        run(net, X, ["norm"], grad=True)
    assert (net.calls, net.seen, net.kept, net.sizes, net.last) == (0, [], {}, set(), None)
    assert (net.record.passes, net.record.shapes, list(net.past), dict(net.by_name)) == (0, [], [], {})
    assert (net.table.sum(), float(net.total), float(net.scale)) == (0, 0, 1)
    assert torch.equal(net.draw.get_state(), torch.Generator().manual_seed(0).get_state())


def test_a_pass_that_fails_or_is_interrupted_leaves_nothing_in_the_model(snapshot):
    net = Counting()

    def everything(shadow):
        shadow.train()
        shadow.norm.running_mean.add_(1)
        shadow.norm.running_var = torch.ones(3) * 7
        shadow.note = "new"
        del shadow.norm.eps
        shadow.register_forward_hook(lambda *_: None)
        shadow.conv = nn.Identity()
        torch.rand(3)
        raise KeyboardInterrupt

    with snapshot(net), pytest.raises(KeyboardInterrupt):
        in_shadow(net, everything)


def torchvisions(name: str) -> nn.Module:
    if name == "a small ViT":
        return torchvision.models.VisionTransformer(224, 32, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    options = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", [*few(CNNS, 0, 1, 2, 3, 4), *few(TRANSFORMERS, 0, 1)])
def test_of_torchvisions_networks_all_is_equal_to_the_bit_and_no_module_of_theirs_is_called(name, snapshot):
    net, side = torchvisions(name).eval(), 224 if name in TRANSFORMERS else 96
    x = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected = net(x)
    CALLED.clear()

    def noted(forward):
        def call(self, *args, **options):
            CALLED.append(self)
            return forward(self, *args, **options)

        return call

    for module in net.modules():
        module.forward = types.MethodType(noted(type(module).forward), module)
    own = set(map(id, net.modules()))
    with torch.no_grad():
        assert torch.equal(in_shadow(net, lambda shadow: shadow(x)), expected)
    assert CALLED
    assert not own & set(map(id, CALLED))
    CALLED.clear()
    shadow = shadow_of(net)
    assert all(a is b for a, b in zip(net.parameters(), shadow.parameters(), strict=True))
    assert all(a is not b for a, b in zip(net.buffers(), shadow.buffers(), strict=True))
    assert [n for n, _ in net.named_modules()] == [n for n, _ in shadow.named_modules()]


def train_mode(make):
    """A model in train mode whose every module that is called is noted down, and what it gives in eval mode."""
    torch.manual_seed(0)
    net = make()
    net.eval()
    with torch.no_grad():
        expected = net(X)
    return net.train(), expected


class Blocks(nn.Module):
    """Its parts are in a list, a tuple, a dict, a plain object, a bound method and a partial."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 2, 1)
        self.b, self.c, self.d, self.e = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.drop = nn.Dropout(0.5)
        self.blocks, self.pair, self.named = [self.a], (self.b, "b"), {"c": self.c}
        self.held = types.SimpleNamespace(part=self.d, inner=types.SimpleNamespace(parts=[self.drop]))
        self.call, self.later = self.e.forward, partial(self.apply_all, flag=True)

    def apply_all(self, x, flag):
        x = self.held.part(self.named["c"](self.pair[0](self.blocks[0](x))))
        return self.held.inner.parts[0](self.call(x)) if flag else x

    def forward(self, x):
        return self.later(x)


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = [parent]
        self.of = weakref.ref(parent)

    def forward(self, x):
        return self.of().drop(self.parent[0].conv(x))


def with_parent():
    net = nn.Module()
    net.conv, net.drop = nn.Conv2d(1, 2, 1), nn.Dropout()
    net.child = Child(net)
    net.forward = types.MethodType(lambda self, x: self.child(x), net)
    return net


def patched_by_a_closure():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout())
    net.forward = lambda x: net[2](net[1](net[0](x)))
    return net


def patched_around_the_old():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout())
    before = net.forward

    def forward(x, *, parts=[net[1]]):  # noqa: B006 - a default that holds a part
        return parts[0](before(x))

    net.forward = forward
    return net


def patched_by_a_global_name():
    space = {"nn": nn, "__name__": "__main__"}
    source = (
        "net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout())\n"
        "def last(x):\n    return net[2](x)\n"
        "def forward(x):\n    return last(net[1](net[0](x)))\n"
        "net.forward = forward\n"
    )
    exec(source, space)
    return space["net"]


def hooked_by_a_closure():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(), nn.BatchNorm2d(2))
    net[0].register_forward_hook(lambda _module, _args, y: net[2](y))
    return net


def decorated():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout())

    def twice(f):
        def call(x):
            return f(x) + f(x)

        return call

    net[0].forward = twice(net[0].forward)
    return net


def locked():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lock, self.file = nn.Conv2d(1, 2, 1), threading.Lock(), open(__file__)  # noqa: SIM115, PTH123
            self.log, self.steps = logging.getLogger("nbviz"), iter(range(10**9))
            self.held = types.SimpleNamespace(lock=threading.RLock(), part=nn.Dropout())

        def forward(self, x):
            with self.lock, self.held.lock:
                return self.held.part.eval()(self.conv(x)) if not self.training else self.conv(x)

        def __del__(self):
            self.file.close()

    return Locked()


def that_logs():
    class Logs(nn.Module):
        """Hands what it sees to a thread, through a queue that is soon full."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.writer = types.SimpleNamespace(queue=queue.Queue(1), done=threading.Event())
            threading.Thread(target=self.follow, args=[self.writer], daemon=True).start()

        @staticmethod
        def follow(writer):
            for _ in range(40):
                writer.queue.get()
            writer.done.set()

        def forward(self, x):
            for _ in range(20):
                self.writer.queue.put(x.shape, timeout=20)
            return self.conv(x)

    return Logs()


def with_containers_of_its_own():
    class Frozen(dict):
        def __setitem__(self, key, value):
            raise TypeError("frozen")

        def __copy__(self):
            raise TypeError("frozen")

    class Few(list):
        def __init__(self, a, b):
            super().__init__([a, b])

    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout())
    net.frozen, net.few = Frozen(a=[1]), Few([1], [2])
    return net


def tied():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(), nn.Conv2d(1, 1, 1))
    net[2].weight = net[0].weight
    return net


def with_a_keyed_dict():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(1, 2, 1), nn.Dropout()
            self.gains = OrderedDict({self.conv: 2.0})
            self.parts = {self.drop}

        def forward(self, x):
            (drop,) = self.parts
            return drop(self.conv(x)) * self.gains[self.conv]

    return Keyed()


def pruned():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout())
    prune.ln_structured(net[0], "weight", 0.5, 2, 0)
    return net


def spectral():
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)), nn.Dropout())


def old_spectral():
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)), nn.Dropout())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def old_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 2, 3)), nn.Dropout())


def with_slots():
    class Slotted:
        __slots__ = ("part",)

        def __init__(self, part):
            self.part = part

    class Holder:
        def __init__(self, part):
            self.inner = Slotted(part)
            self.parts = (Slotted(part),)

    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout())
    net.holder = Holder(net[1])
    net.forward = types.MethodType(lambda self, x: self.holder.parts[0].part(self[0](x)), net)
    return net


def in_parallel():
    return nn.DataParallel(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout()))


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout())


ODD = [
    *(Counting, Blocks, with_parent, patched_by_a_closure, patched_around_the_old, patched_by_a_global_name),
    *(
        hooked_by_a_closure,
        decorated,
        locked,
        that_logs,
        with_containers_of_its_own,
        tied,
        with_a_keyed_dict,
        pruned,
        spectral,
        old_spectral,
    ),
    *(old_weight_norm, with_slots, in_parallel, made_in_inference_mode),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_of_an_odd_model_no_module_is_called_and_the_answer_is_that_of_eval_mode(make, snapshot):
    net, expected = train_mode(make)
    if make is Counting:
        net.draw.manual_seed(0)
    called: list[nn.Module] = []
    own = {id(module) for module in net.modules()}
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, _: called.append(module))
    try:
        with torch.no_grad(), snapshot(net):
            actual = in_shadow(net, lambda shadow: (shadow.module if make is in_parallel else shadow)(X))
    finally:
        handle.remove()
    assert torch.allclose(actual, expected, atol=1e-6)
    assert called
    assert [type(module) for module in called if id(module) in own] == []


def test_what_is_large_and_no_part_of_the_model_is_shared():
    trainer = types.SimpleNamespace(items=[types.SimpleNamespace(i=i) for i in range(5000)])
    net = nn.Sequential(nn.ReLU())
    trainer.model = net
    net.trainer = trainer
    assert shadow_of(net).trainer is trainer


def test_with_its_own_weights_a_shadow_does_not_change_with_the_model():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    copied = shadow_of(net, own_weights=True)
    before = [p.clone() for p in copied.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), before, strict=True))
    assert all(p.requires_grad for p in copied.parameters())
    assert {type(p) for p in copied.parameters()} == {nn.Parameter}


def test_weights_that_are_shared_within_the_model_are_so_in_a_copy():
    copied = shadow_of(tied(), own_weights=True)
    assert copied[0].weight is copied[2].weight


def test_a_hook_that_calls_nbviz_on_the_model_is_answered():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    asks = [True]

    def hook(_module, args, _output):
        if asks and asks.pop():
            CALLED.append(run(net, args[0] + 1, ["0", "1"]).activations["0"])

    expected, other = (run(net, x, ["0"]).activations["0"] for x in (X, X + 1))
    net[0].register_forward_hook(hook)
    assert torch.equal(run(net, X, ["1"]).activations["1"], expected.relu())
    assert torch.equal(CALLED.pop(), other)


def test_inputs_that_call_nbviz_on_the_model_are_answered():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    first = run(net, X, ["1"]).activations["1"]
    second = run(net, X, ["1"], feed=lambda x: run(net, x, ["1"]).activations["1"]).activations["1"]
    assert torch.equal(second, run(net, first, ["1"]).activations["1"])


def test_a_hook_that_calls_nbviz_without_end_is_refused(snapshot):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    net[1].register_forward_hook(lambda *_: run(net, X, ["0"], output=True))
    with snapshot(net), pytest.raises(ModelError, match="^Sequential calls nbviz on itself in its own forward pass"):
        run(net, X, ["1"], output=True)


def test_a_model_that_draws_draws_what_it_would_and_the_numbers_go_on_as_if_it_had_not(snapshot):
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True) + torch.rand_like(x)

    net = Noisy()
    for _ in range(3):
        state = torch.get_rng_state()
        expected = net(X)
        torch.set_rng_state(state)
        with snapshot(net):
            assert torch.equal(in_shadow(net, lambda shadow: shadow(X)), expected)
        torch.rand(1)


def test_what_another_thread_draws_meanwhile_is_not_drawn_again():
    net, drawn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()), []
    torch.manual_seed(5)
    expected = torch.cat([torch.rand(1) for _ in range(300)])
    torch.manual_seed(5)
    begun, done = threading.Event(), threading.Event()

    def draw():
        begun.set()
        for _ in range(300):
            drawn.append(torch.rand(1))  # noqa: PERF401 - one after the other
        done.set()

    thread = threading.Thread(target=draw)
    thread.start()
    begun.wait(10)
    while not done.is_set():
        run(net, X, ["0"])
    thread.join()
    assert torch.equal(torch.cat(drawn), expected)


def test_what_another_thread_draws_beside_a_pass_that_fails_is_not_drawn_again():
    drawn = []

    class Failing(nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=lambda: drawn.append(torch.rand(1)))
            thread.start()
            thread.join()
            raise RuntimeError("on purpose")

    stop = threading.Event()
    other = threading.Thread(target=stop.wait)  # so that this is not the only thread
    other.start()
    torch.manual_seed(5)
    with pytest.raises(ModelError, match="on purpose"):
        run(Failing(), X, output=True)
    drawn.append(torch.rand(1))
    stop.set()
    other.join()
    torch.manual_seed(5)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(1) for _ in drawn]))


class Odd:
    """Modules that a shadow has to follow by other ways than attributes; what each notes down is its own."""

    @staticmethod
    def one_shot_hook():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        handle = net[0].register_forward_hook(lambda _m, _i, o: (handle.remove(), 2 * o)[1])
        return net, lambda: len(net[0]._forward_hooks)

    @staticmethod
    def one_shot_hook_of_a_later_module():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        handle = net[1].register_forward_hook(lambda _m, _i, o: 3 * o)
        net[0].register_forward_hook(lambda _m, _i, _o: handle.remove())
        return net, lambda: len(net[1]._forward_hooks)

    @staticmethod
    def iterators():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        net.signs, net.random = itertools.cycle([1, -1]), random.Random(0)
        net.numbers, net.bytes = np.random.default_rng(0), bytearray(b"a")
        forward = nn.Sequential.forward

        def patched(self, x):
            self.bytes.extend(b"b")
            return forward(self, x) * next(self.signs) + self.random.random() + self.numbers.random()

        net.forward = types.MethodType(patched, net)
        return net, lambda: (net.random.getstate(), net.numbers.bit_generator.state, bytes(net.bytes))

    @staticmethod
    def buffers_in_one_memory():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        net.register_buffer("all", torch.ones(4))
        net.part = net.all[:2]
        forward = nn.Sequential.forward

        def patched(self, x):
            self.part.mul_(5)
            return forward(self, x) * self.all[0]

        net.forward = types.MethodType(patched, net)
        return net, net.all.tolist

    @staticmethod
    def deep_in_containers():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9))
        holder = {"a": {"b": [{"c": net[1]}]}}
        net[0].register_forward_hook(lambda _m, _i, o: holder["a"]["b"][0]["c"](o))
        return net.train(), lambda: net.training

    @staticmethod
    def object_in_a_closure():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9))
        trainer = types.SimpleNamespace(net=net)
        net.forward = lambda x: trainer.net[1](trainer.net[0](x))
        return net.train(), lambda: net.training

    @staticmethod
    def own_train():
        class Net(nn.Sequential):
            def train(self, mode=True):
                self.noisy = mode
                return super().train(mode)

            def forward(self, x):
                return super().forward(x) * (7 if self.noisy else 1)

        net = Net(nn.Conv2d(1, 2, 1), nn.ReLU())
        return net.train(), lambda: net.noisy

    @staticmethod
    def references():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9))
        net.first, net.second = [weakref.proxy(net[0])], weakref.WeakMethod(net[1].forward)
        net.forward = functools.lru_cache(types.MethodType(lambda self, x: self.second()(self.first[0](x)), net))
        return net.train(), lambda: net.training

    @staticmethod
    def slots():
        class Scaled(nn.Module):
            __slots__ = ("scale",)

            def forward(self, x):
                self.scale += 1
                return x * self.scale

        net = nn.Sequential(nn.Conv2d(1, 2, 1), Scaled())
        net[1].scale = 1
        return net, lambda: net[1].scale

    @staticmethod
    def attributes_of_a_tensor_and_a_dict():
        class Settings(dict):
            pass

        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9))
        net.register_buffer("by", torch.ones(1))
        net.by.extra, net.settings = [2.0], Settings()
        net.settings.last = net[1]
        net.forward = types.MethodType(lambda self, x: self.settings.last(self[0](x)) * self.by.extra[0], net)
        return net.train(), lambda: net.training

    @staticmethod
    def keys_that_are_ids():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        net.factors = {id(net[0]): 3}
        net.forward = types.MethodType(lambda self, x: self[0](x) * self.factors[id(self[0])], net)
        return net, lambda: net.training

    @staticmethod
    def seeds():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())

        def patched(self, x):
            torch.manual_seed(7)
            return self[0](x) + torch.rand(1)

        net.forward = types.MethodType(patched, net)
        return net, lambda: torch.get_rng_state().tolist()

    @staticmethod
    def sets_the_state():
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        net.state = torch.get_rng_state()

        def patched(self, x):
            torch.set_rng_state(self.state)
            return self[0](x) + torch.rand(1)

        net.forward = types.MethodType(patched, net)
        torch.rand(1)
        return net, lambda: torch.get_rng_state().tolist()


ODD = [name for name in vars(Odd) if not name.startswith("_")]


@pytest.mark.parametrize("name", ODD)
def test_whatever_hangs_on_a_model_is_the_shadows_own_and_the_answer_that_of_eval_mode(name):
    net, notes = getattr(Odd, name)()
    x = torch.rand(1, 1, 3, 3)
    before = copy.deepcopy(notes())
    answers = [in_shadow(net, lambda shadow: shadow(x)).detach() for _ in range(3)]
    assert notes() == before
    expected = net.eval()(x).detach()
    for answer in answers:
        assert torch.equal(answer, expected)
