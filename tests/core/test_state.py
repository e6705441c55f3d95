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
from nbviz.core.shadow import in_shadow
from nbviz.core.state import alone, check_model, interruptible, is_compiled, lock, modules_of, uninterrupted
from nbviz.core.trace import run
from nbviz.methods.reconstruct import project
from tests.rounds import rounds


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
    with pytest.raises(TypeError, match="^its module '1' is scripted"):
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

    def work(shadow):
        shadow[0]._orig_mod.register_forward_hook(lambda *_: seen.append(1))
        return shadow(x)

    expected = in_shadow(net, work)
    assert (len(seen), len(graphs)) == (1, 0)
    assert torch.equal(net(x), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("model", [None, "vgg16", nn.ReLU, torch.rand(3), lambda x: x])
def test_what_is_no_module_is_an_error(model):
    with pytest.raises(TypeError, match=f"^model is {type(model).__name__}; expected a torch.nn.Module"):
        check_model(model)


def test_inside_no_other_thread_is_let_in():
    got = []
    with alone():
        thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert got == [False]
    assert lock.acquire(blocking=False)
    lock.release()


def test_the_parts_of_a_model_are_its_modules(net):
    net.add_module("none", None)
    net.add_module("again", net[2])
    net[2].add_module("inner", nn.Sequential(net[0], nn.Tanh()))
    assert list(map(id, modules_of(net))) == list(map(id, net.modules()))
    densenet = torchvision.models.densenet121()
    assert list(map(id, modules_of(densenet))) == list(map(id, densenet.modules()))


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
        if "hypothesis" in frame.f_code.co_filename:  # it listens to the garbage collector, which swallows an interrupt
            return None
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
    """Ctrl-C between any two instructions of nbviz, torch and the standard library, some of them picked at random."""
    net[2].eval()
    traced, draw, interrupted, tried = sys.gettrace(), random.Random(0), 0, rounds(45, 150)

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
    for _ in range(tried):
        interrupted += attempt(draw.randint(1, count))[0]
    assert interrupted > tried * 14 // 15  # at the very last steps it comes after the call


def test_interrupts_at_any_moment_leave_no_mark(net, snapshot):
    draw = random.Random(0)
    x = torch.rand(1, 1, 6, 6)
    with snapshot(net):
        for _ in range(rounds(100, 300)):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it has several threads
def test_a_child_that_was_forked_while_another_thread_had_the_lock_can_take_it():
    held, leave = threading.Event(), threading.Event()

    def hold():
        with alone():
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=10) else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_was_forked_by_the_thread_that_has_the_lock_still_has_it():
    with alone():
        child = os.fork()
        if child == 0:
            os._exit(0 if lock._is_owned() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
