"""Working in a person's model without leaving a mark."""

import os
import random
import signal
import sys
import threading
import time
import warnings

import pytest
import torch
import torchvision
from torch import nn

from nbviz.core.layers import trace_layers
from nbviz.core.state import check_model, fingerprint, interruptible, is_compiled, lock, parts, uninterrupted, untouched
from nbviz.core.trace import run
from nbviz.methods.reconstruct import project


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's own handler, which a run in the background does not begin with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Dropout()))


def scripted(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        return torch.jit.script(net)


def traced(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        return torch.jit.trace(net.eval(), torch.rand(1, 1, 4, 4))


def test_an_ordinary_model_passes(net):
    check_model(net)


@pytest.mark.parametrize("make", [scripted, traced])
def test_a_scripted_model_is_an_error(make, net):
    with pytest.raises(TypeError, match="^the model is scripted .* give the one it was made from"):
        check_model(make(net))
    with pytest.raises(TypeError, match="^its part '1' is scripted"):
        check_model(nn.Sequential(nn.ReLU(), make(net)))


def test_a_compiled_model_is_taken_apart(net):
    compiled = torch.compile(net, backend="eager")
    assert check_model(compiled) is net
    assert is_compiled(compiled)
    assert not is_compiled(net)
    net[2] = torch.compile(net[2], backend="eager")
    assert check_model(net) is net
    assert is_compiled(net)


def test_a_model_compiled_in_place_is_known(net):
    net[2].compile(backend="eager")
    assert check_model(net) is net
    assert is_compiled(net)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch looks at while it compiles
def test_what_is_compiled_runs_eagerly_inside_and_compiled_afterwards(net):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    net[0] = torch.compile(net[0], backend=backend)
    net.eval()
    x = torch.rand(1, 1, 4, 4)
    seen = []
    with untouched(net):
        handle = net[0]._orig_mod.register_forward_hook(lambda *_: seen.append(1))
        expected = net(x)
        handle.remove()
    assert (len(seen), len(graphs)) == (1, 0)
    assert torch.equal(net(x), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("model", [None, "vgg16", nn.ReLU, torch.rand(3), lambda x: x])
def test_what_is_no_module_is_an_error(model):
    with pytest.raises(TypeError, match=f"^model is {type(model).__name__}; expected a torch.nn.Module"):
        check_model(model)


def test_inside_everything_is_in_eval_mode(net, snapshot):
    net[2].eval()
    with snapshot(net), untouched(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == [True, True, True, False, False, False]


def test_train_and_eval_of_a_subclass_are_not_called():
    class Loud(nn.ReLU):
        def train(self, mode=True):
            raise AssertionError("called")

    with untouched(nn.Sequential(Loud())):
        pass


def test_inside_no_other_thread_is_let_in(net):
    got = []
    with untouched(net):
        thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert got == [False]
    assert lock.acquire(blocking=False)
    lock.release()


def test_one_inside_another(net, snapshot):
    with snapshot(net), untouched(net), untouched(net):
        net[1].running_mean.add_(1)


def test_what_happens_inside_is_undone_after_an_exception(net, snapshot):
    def everything():
        net.train()
        net[1].running_mean.add_(1)
        net[1].running_var = torch.ones(2) * 7
        net[0].note = "new"
        del net[1].eps
        torch.rand(3)
        raise KeyboardInterrupt

    with snapshot(net), pytest.raises(KeyboardInterrupt), untouched(net):
        everything()


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.counts, self.seen = ["a"], {"a": 1, "b": 2}, {"a"}
        self.first, self.second = nn.ReLU(), nn.Tanh()

    def forward(self, x):
        self.calls.append(x)
        self.calls[0] = "b"
        self.counts["a"] += 1
        self.counts["c"] = 3
        self.seen.add("b")
        self.seen.discard("a")
        self.first, first = nn.Sigmoid(), self.first
        del self.first
        self.first = first  # now after the second
        self.register_forward_hook(lambda *_: None)
        return x


def test_what_lists_dicts_and_sets_of_the_model_hold_is_put_back(snapshot):
    net = Remembers()
    held = net.calls, net.counts, net.seen
    with snapshot(net), untouched(net):
        net(torch.rand(3))
        net(torch.rand(3))
    assert held == (["a"], {"a": 1, "b": 2}, {"a"})
    assert all(a is b for a, b in zip(held, (net.calls, net.counts, net.seen), strict=True))
    assert [name for name, _ in net.named_children()] == ["first", "second"]


def test_the_parts_of_a_model_are_its_modules(net):
    net.add_module("none", None)
    net.add_module("again", net[2])
    net[2].add_module("inner", nn.Sequential(net[0], nn.Tanh()))
    assert list(map(id, parts(net))) == list(map(id, net.modules()))
    densenet = torchvision.models.densenet121()
    assert list(map(id, parts(densenet))) == list(map(id, densenet.modules()))


def reconstruct(net):
    trace = run(net, torch.rand(1, 1, 6, 6), ["2"], grad=True)
    project(trace, "2", [0, 1], "guided")
    project(trace, "2", [0, 1], "deconvnet", "map")


INTERRUPTED = {
    "trace": lambda net: run(net, torch.rand(1, 1, 6, 6), ["1"]),
    "layers": lambda net: trace_layers(net, torch.rand(1, 1, 6, 6)),
    "reconstruct": reconstruct,
}


def at_step(number, act):
    """A trace function that acts at one step of the interpreter; ``steps[0]`` counts them."""
    steps = [0]

    def follow(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps[0] += 1
            if steps[0] == number:
                sys.settrace(None)
                act()
        return follow

    return follow, steps


@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_at_any_step_leaves_no_mark(call, net, snapshot):
    """Ctrl-C between any two instructions of nbviz, torch and the standard library, 150 of them picked at random."""
    net[2].eval()
    traced, draw, interrupted = sys.gettrace(), random.Random(0), 0

    def attempt(number):
        follow, steps = at_step(number, lambda: signal.raise_signal(signal.SIGINT))
        state = torch.get_rng_state()
        with snapshot(net):
            try:
                sys.settrace(follow)
                INTERRUPTED[call](net)
                ended = False
            except KeyboardInterrupt:
                ended = True
            finally:
                sys.settrace(traced)
                torch.set_rng_state(state)  # which the pictures drawn have moved
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return ended, steps[0]

    attempt(0)
    ended, count = attempt(0)
    assert not ended
    for _ in range(150):
        interrupted += attempt(draw.randint(1, count))[0]
    assert interrupted > 140  # at the very last steps it comes after the call


def test_interrupts_at_any_moment_leave_no_mark(net, snapshot):
    draw = random.Random(0)
    x = torch.rand(1, 1, 6, 6)
    with snapshot(net):
        for _ in range(300):
            wait = draw.uniform(0, 0.004)
            killer = threading.Thread(target=lambda wait=wait: (time.sleep(wait), os.kill(os.getpid(), signal.SIGINT)))
            with pytest.raises(KeyboardInterrupt):
                killer.start()
                while True:
                    run(net, x, ["1"])
            killer.join()


def test_interrupts_wait_outside_of_what_is_interruptible():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("waited")
        with uninterrupted(), interruptible():
            done.append("not reached")
    assert done == ["waited"]
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
        done.append("one more comes while things are put back")
        signal.raise_signal(signal.SIGINT)
        done.append("waited")
    assert len(done) == 3
    with pytest.raises(KeyboardInterrupt), uninterrupted(), interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # on its way out a second one is not let through
            signal.raise_signal(signal.SIGINT)
            done.append("waited")
    assert len(done) == 4
    with interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_forward_pass_can_be_interrupted_and_other_threads_never_are(net):
    class Long(nn.Module):
        def forward(self, x):
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(Long(), torch.rand(1), output=True)
    kept = []
    thread = threading.Thread(target=lambda: kept.append(run(net, torch.rand(1, 1, 6, 6), ["1"])))
    thread.start()
    thread.join()
    assert list(kept[0].activations) == ["1"]


def test_a_handler_of_ones_own_is_called_and_stays():
    called = []
    before = signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        mine = signal.getsignal(signal.SIGINT)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert called == []
            with interruptible():
                assert called == [1]
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            assert called == [1, 1, 1]
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_buffers_are_not_so_much_as_written_to(net):
    before = fingerprint(net)
    with untouched(net):
        net[1].num_batches_tracked += 1
        net[1](torch.rand(1, 2, 4, 4))
    assert fingerprint(net) == before


def test_a_fingerprint_changes_with_every_write(net):
    seen = {fingerprint(net)}
    assert fingerprint(net) in seen
    for change in (
        lambda: net[0].weight.detach().mul_(2),
        lambda: net[1].running_mean.add_(0),
        lambda: setattr(net[0], "bias", nn.Parameter(net[0].bias.detach().clone())),
        lambda: setattr(net[0].weight, "data", net[0].weight.data.clone()),
        lambda: net.register_buffer("more", torch.zeros(1)),
        lambda: net.load_state_dict(net.state_dict()),
    ):
        change()
        assert fingerprint(net) not in seen
        seen.add(fingerprint(net))


def test_a_model_made_in_inference_mode_has_a_fingerprint():
    with torch.inference_mode():
        net = nn.Linear(2, 2)
    assert fingerprint(net) == fingerprint(net)


def test_within_itself_it_does_nothing_more() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    before = net[0].running_mean
    with untouched(net):
        own = net[0].running_mean
        with untouched(net):
            assert net[0].running_mean is own
            net[0].running_mean += 1
        assert not net.training
        assert float(net[0].running_mean.sum()) == 3
    assert net.training
    assert net[0].running_mean is before
    assert not before.any()


def test_dictionaries_that_were_empty_are_so_again() -> None:
    net = nn.Sequential(nn.ReLU())
    net[0].notes, net[0].seen, net[0].order = {}, set(), []
    kept = net[0].notes, net[0].seen, net[0].order
    with untouched(net):
        net[0].notes["a"] = 1
        net[0].seen.add(1)
        net[0].order.append(1)
    assert (net[0].notes, net[0].seen, net[0].order) == ({}, set(), [])
    assert all(a is b for a, b in zip(kept, (net[0].notes, net[0].seen, net[0].order), strict=True))
