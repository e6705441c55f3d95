"""A traced run keeps what is asked for, stops early, and leaves nothing behind."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import nbviz
from nbviz.core.calls import call_model, find_module, hooked
from nbviz.core.errors import ModelError, PictureError
from nbviz.core.trace import run

PICTURE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
SMALL = PICTURE[..., :4, :4]


@pytest.fixture
def net():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 12, 12, device=device)


def steps(net, x):
    """The output of each layer of a plain chain, in eval mode, one after the other and with nothing in place."""
    net.eval()
    with torch.no_grad():
        results = [x := module(x.clone()) for module in net]
    net.train()
    return results


def test_only_what_is_asked_is_kept(net, x, device):
    net.to(device)
    expected = steps(net, x)
    trace = run(net, x, ["4", "1"])
    assert set(trace.activations) == {"4", "1"}
    assert trace.output is None
    for name, activation in trace.activations.items():
        assert torch.equal(activation, expected[int(name)])
        assert activation.device == x.device


def test_the_output_is_kept_when_asked(net, x, device):
    net.to(device)
    trace = run(net, x, ["0"], output=True)
    assert torch.equal(trace.output, steps(net, x)[-1])
    assert list(trace.activations) == ["0"]
    assert torch.equal(run(net, x, output=True).output, trace.output)


def test_the_run_stops_right_after_the_last_layer(net):
    called = []
    for name, module in net.named_children():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    run(net, PICTURE, ["2", "0"])
    assert called == ["0", "1", "2"]
    called.clear()
    run(net, PICTURE, ["2"], output=True)
    assert called == [str(i) for i in range(9)]


def test_one_forward_pass_serves_all_layers(net):
    passes = []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    run(net, PICTURE, [str(i) for i in range(9)], output=True, grad=True)
    assert len(passes) == 1


def test_a_model_that_catches_exceptions_is_stopped_all_the_same():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            try:
                x = self.a(x)
            except Exception:
                x = torch.zeros(1, 4, 4, 4)
            called.append("b")
            return self.b(x)

    called = []
    run(Careful(), torch.randn(1, 3, 8, 8), ["a"])
    assert called == []


class Aliases(nn.Module):
    """Hands its tensors on and works in place on them afterwards."""

    def __init__(self):
        super().__init__()
        self.conv, self.same, self.flat, self.relu = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Flatten(0, 1), nn.ReLU(True)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.conv(x)
        y = self.same(x)
        z = self.drop(x)
        flat = self.flat(x)
        self.relu(x)  # changes y, z and flat too
        return x + y + z + flat.view_as(x)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layers", [["conv"], ["same"], ["drop"], ["flat"], ["conv", "same", "drop", "flat"]])
def test_later_work_in_place_does_not_reach_what_was_kept(layers, grad):
    net, x = Aliases(), torch.randn(1, 3, 5, 5)
    expected = net.conv(x)
    assert (expected < 0).any()
    trace = run(net, x, layers, output=True, grad=grad)
    for layer in layers:
        assert torch.equal(trace.activations[layer], expected if layer != "flat" else expected.flatten(0, 1))


@pytest.mark.parametrize("grad", [False, True])
def test_keeping_does_not_change_what_the_model_computes(net, grad):
    x = PICTURE
    expected = steps(net, x)[-1]
    assert torch.equal(run(net, x, [str(i) for i in range(9)], output=True, grad=grad).output, expected)


def test_what_is_kept_lies_on_the_way_to_the_output(net):
    """So that the output can be asked about a layer, as CAM methods do."""
    trace = run(net, PICTURE, ["2"], output=True, grad=True)
    (signal,) = torch.autograd.grad(trace.output[0, 0], trace.activations["2"])
    assert signal.abs().sum() > 0


def test_a_layer_that_gives_its_own_state_does_not_hand_it_out(snapshot):
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 2, 3, 3))
            self.register_buffer("count", torch.zeros(1, 1, 3, 3))

        def forward(self):
            self.count += 1
            return self.weight if self.returns == "weight" else self.count

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = Position()

        def forward(self, x):
            return x + self.position()

    net = Net()
    for net.position.returns, value in (("weight", 0.0), ("count", 1.0)):
        with snapshot(net):
            kept = run(net, PICTURE[:, :2, :3, :3], ["position"]).activations["position"]
            assert kept.unique().tolist() == [value]
            kept.add_(5)


def test_calls_of_a_reused_module_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1))

        def forward(self, x):
            return self.block(self.block(x))

    net, x = Twice(), SMALL
    first, second = net.block(x), net.block(net.block(x))
    trace = run(net, x, ["block:1", "block.0", "block", "block:0"])
    assert list(trace.activations) == ["block:1", "block.0", "block", "block:0"]
    for name in ("block", "block.0", "block:0"):
        assert torch.equal(trace.activations[name], first)
    assert torch.equal(trace.activations["block:1"], second)
    with pytest.raises(ValueError, match=r"'block' is called 2 time\(s\).* Accepted: block, block:1$"):
        run(net, x, ["block:2"])


def test_a_module_under_two_names_has_both():
    net = nn.Sequential()
    net.add_module("a", nn.Conv2d(3, 3, 1))
    net.add_module("b", net.a)
    x = SMALL
    trace = run(net, x, ["a", "b", "b:1"])
    assert torch.equal(trace.activations["a"], net.a(x))
    assert torch.equal(trace.activations["b"], net.a(x))
    assert torch.equal(trace.activations["b:1"], net.a(net.a(x)))


def test_a_name_with_a_colon_of_its_own_is_a_name():
    net = nn.Sequential()
    net.add_module("stage:1", nn.Conv2d(3, 3, 1))
    assert find_module(net, "stage:1") == ("stage:1", 0)
    assert find_module(net, "stage:1:2") == ("stage:1", 2)
    with pytest.raises(ValueError, match=r"^no layer 'stage:99999.*did you mean|Accepted: "):
        find_module(net, "stage:" + "9" * 5000)  # more digits than Python makes a number of


@pytest.mark.parametrize("name", ["", ":", ":1", "5", "layer4", "0:x", "0:", "0.weight"])
def test_an_unknown_layer_is_an_error_before_the_forward_pass(name, net, snapshot):
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with snapshot(net), pytest.raises(ValueError, match="no layer .*Accepted: 0, 1"):
        run(net[:2] if name == "5" else net, PICTURE, [name])


def test_an_unknown_layer_has_the_nearest_choice():
    net = nn.ModuleDict({"layer3": nn.ReLU(), "layer4": nn.ReLU(), "stem": nn.ReLU()})
    with pytest.raises(
        ValueError, match=r"^no layer 'layer5'; did you mean 'layer[34]'\? Accepted: layer3, layer4, stem$"
    ):
        run(net, PICTURE, ["layer5"])


@pytest.mark.parametrize("name", [None, 3, ["0"]])
def test_a_layer_is_named_by_text(name, net):
    with pytest.raises(TypeError, match=f"layer is {type(name).__name__}; expected a module's name"):
        run(net, PICTURE, [name])


def test_a_layer_that_takes_no_part_is_an_error(snapshot):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.used(x)

    net = Part()
    with snapshot(net), pytest.raises(ValueError, match="'unused' takes no part in the forward pass"):
        run(net, SMALL, ["unused"])


def test_a_layer_that_gives_no_tensor_is_an_error(snapshot):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    net = nn.Sequential(nn.Conv2d(3, 3, 1), Two())
    with snapshot(net), pytest.raises(TypeError, match="layer '1' gives a tuple; expected a layer that gives a tensor"):
        run(net, SMALL, ["1"])


# What a run leaves behind: nothing


def test_hooks_of_the_person_run_and_stay(net, snapshot):
    seen = []
    handles = [
        net[0].register_forward_hook(lambda *_: seen.append("forward")),
        net[0].register_forward_pre_hook(lambda *_: seen.append("pre")),
        net[0].register_forward_hook(lambda _m, _a, out: seen.append("changes") or out + 1),
        net[2].register_forward_hook(lambda *_: seen.append("at the layer"), always_call=True),
        net[5].register_forward_hook(lambda *_: seen.append("too late")),
    ]
    x = PICTURE
    with snapshot(net):
        changed = run(net, x, ["0", "2"]).activations["0"]
    assert seen == ["pre", "forward", "changes", "at the layer"]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(changed, run(net, x, ["0"]).activations["0"] + 1)


class Breaks(Exception):
    pass


@pytest.mark.parametrize("error", [Breaks, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("where", ["layer", "hook", "pre-hook"])
def test_nothing_is_left_after_an_exception(error, where, net, snapshot):
    def fail(*_):
        torch.rand(1)
        net[1].running_mean.add_(1)
        raise error("on purpose")

    register = {
        "hook": net[4].register_forward_hook,
        "pre-hook": net[4].register_forward_pre_hook,
        "layer": lambda function: setattr(net[4], "forward", function),
    }[where]
    register(fail)
    net[4].requires_grad_(False)
    x = PICTURE
    expected = ModelError if issubclass(error, Exception) else error
    for layers, output, grad in ((["5"], False, True), (["0", "5"], True, False)):
        with snapshot(net), pytest.raises(expected, match="on purpose"):
            run(net, x, layers, output=output, grad=grad)


def test_the_hooks_are_gone_after_an_exception_inside(net, snapshot):
    with snapshot(net), pytest.raises(Breaks), hooked(net, None, lambda *_: None):
        assert sum(len(module._forward_hooks) for module in net.modules()) == 9
        raise Breaks


def test_a_failing_model_says_what_went_in(net):
    net[4] = nn.Conv2d(7, 4, 3)  # does not fit what comes before
    with pytest.raises(
        ModelError, match=r"^Sequential failed in its forward pass on an input of shape \(1, 3, 12, 12\), "
    ):
        run(net, PICTURE, ["5"])
    with pytest.raises(ModelError, match="float32, cpu: RuntimeError: .*to have 7 channels") as raised:
        run(net, PICTURE, ["5"])
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_wrong_number_of_channels_is_the_pictures_fault(net):
    with pytest.raises(
        PictureError, match=r"input has 1 channel\(s\), .* convolution '0' takes 3; expected \(1, 3, 12, 12\)"
    ):
        run(net, torch.randn(1, 1, 12, 12), ["0"])


def test_another_failure_is_not_put_down_to_the_channels():
    """A model that adds channels of its own before its first convolution."""

    class Coordinates(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(5, 4, 1), nn.Linear(7, 2)

        def forward(self, x):
            return self.head(self.conv(torch.cat([x, x[:, :2]], 1)).mean((2, 3)))

    net = Coordinates()
    assert run(net, SMALL, ["conv"]).activations["conv"].shape == (1, 4, 4, 4)
    with pytest.raises(ModelError, match="shapes cannot be multiplied"):
        call_model(net, SMALL)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_train_mode_is_put_back_and_takes_no_part(train, grad, net, snapshot):
    net.train(train)
    net[0].eval()
    net[1].train()
    x = torch.randn(2, 3, 12, 12)
    with snapshot(net):
        first = run(net, x, output=True, grad=grad).output
        second = run(net, x, output=True, grad=grad).output
    assert torch.equal(first, second)  # no dropout
    assert torch.equal(first, net.eval()(x))


def test_random_numbers_drawn_in_a_forward_pass_are_given_back(snapshot):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) + F.dropout(x)

    net = Noise()
    with snapshot(net):
        a = run(net, torch.zeros(1, 3, 4, 4), output=True).output
    assert a.std() > 0


class Mutable(nn.Module):
    """Changes its buffers in all the ways there are, and notes beside one of them what it belongs to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))
        self.register_buffer("averaged", torch.full((3,), float("nan")))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("cache", None)
        self.register_buffer("grid", torch.arange(4.0), persistent=False)
        self.size = 4

    def forward(self, x):
        self.counted += 1
        self.averaged.copy_(x.mean((0, 2, 3)))
        self.replaced = self.replaced + 1
        if self.cache is None:
            self.cache = torch.ones(1)
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(2))
            self.made = True
        if self.size != x.shape[-1]:
            self.size, self.grid = x.shape[-1], torch.arange(float(x.shape[-1]))
        return x + self.grid + self.late[0]


@pytest.mark.parametrize("grad", [True, False])
def test_buffers_changed_in_a_forward_pass_are_put_back(grad, snapshot):
    net = nn.Sequential(Mutable(), nn.Conv2d(3, 2, 1))
    keys = list(net.state_dict())
    for size in (4, 6):
        with snapshot(net):
            run(net, PICTURE[..., :size, :size], ["1"], grad=grad)
    assert list(net.state_dict()) == keys
    # and the model works on as before
    assert net(torch.rand(1, 3, 4, 4)).shape == (1, 2, 4, 4)
    assert net(torch.rand(1, 3, 6, 6)).shape == (1, 2, 6, 6)


def test_a_buffer_written_to_before_it_is_used_does_not_break_the_graph(snapshot):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            self.scale.mul_(0.5).add_(x.mean())
            return x * self.scale

    net = nn.Sequential(Scale(), nn.ReLU())
    with snapshot(net):
        trace = run(net, PICTURE, ["1"], output=True, grad=True)
        (signal,) = torch.autograd.grad(trace.output.sum(), trace.inputs)
    assert signal.any()


def test_tied_buffers_stay_tied(snapshot):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("a", torch.zeros(4))
            self.register_buffer("b", self.a)

        def forward(self, x):
            self.a.add_(1)
            return x + self.b.sum()

    net = Tied()
    with snapshot(net):
        output = run(net, PICTURE, output=True).output
    assert torch.equal(output, PICTURE + 4)
    net(PICTURE)
    assert net.b.tolist() == [1] * 4


class InPlace(nn.Module):
    """Works in place on the picture itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.conv(x.sub_(0.5).relu_())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_persons_input_is_left_alone(grad, requires_grad, snapshot):
    x = torch.rand(1, 3, 4, 4, requires_grad=requires_grad)
    before = x.detach().clone()
    net = InPlace()
    with snapshot(net):
        trace = run(net, x, ["conv"], output=True, grad=grad)
    assert torch.equal(x, before)
    assert x.requires_grad is requires_grad
    assert x.grad is None
    assert x.grad_fn is None
    assert torch.equal(trace.inputs, before)
    assert trace.inputs.requires_grad is grad
    assert trace.inputs is not x
    assert torch.equal(trace.output, net.conv((before - 0.5).relu()))


def test_no_gradient_reaches_a_graph_of_the_person():
    base = torch.rand(1, 3, 4, 4, requires_grad=True)
    trace = run(InPlace(), base * 2, ["conv"], grad=True)
    trace.activations["conv"].sum().backward()
    assert base.grad is None
    assert trace.inputs.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("grad", [True, False])
def test_the_persons_grad_mode_plays_no_part(mode, grad, net, snapshot):
    x = PICTURE
    expected = run(net, x, ["4"], grad=grad).activations["4"]
    with mode():
        inside = PICTURE.clone()  # an inference tensor, in inference mode
        with snapshot(net):
            activation = run(net, inside, ["4"], grad=grad).activations["4"]
        assert not activation.is_inference()
        assert activation.requires_grad is grad
    assert torch.equal(activation, expected)


def test_a_frozen_model_stays_frozen_and_has_a_graph(net, snapshot):
    net.requires_grad_(False)
    with snapshot(net):
        trace = run(net, PICTURE, ["4"], grad=True)
        (signal,) = torch.autograd.grad(trace.activations["4"].sum(), trace.inputs)
    assert signal.abs().sum() > 0


def test_without_grad_there_is_no_graph(net):
    trace = run(net, PICTURE, ["4"], output=True)
    assert trace.activations["4"].grad_fn is None
    assert trace.output.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_the_models(dtype, net, device, snapshot):
    net.to(device, dtype)
    with snapshot(net):
        trace = run(net, PICTURE.to(device, dtype), ["2"], output=True, grad=True)
    assert trace.activations["2"].dtype == trace.output.dtype == dtype


def test_the_default_device_is_the_persons(net, snapshot):
    torch.set_default_device("meta")
    try:
        with snapshot(net):
            trace = run(net, PICTURE, ["2"])
        assert trace.activations["2"].device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_nothing_is_left_after_a_run_many_times_over(net):
    """No reference to a trace outlives it."""
    import gc
    import weakref

    trace = run(net, PICTURE, ["4"], grad=True)
    kept = weakref.ref(trace.activations["4"])
    del trace
    gc.collect()
    assert kept() is None


def test_two_threads_take_turns_in_a_model():
    inside, most = [], []

    class Slow(nn.Module):
        def forward(self, x):
            inside.append(threading.get_ident())
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
            return x * 2

    net = nn.Sequential(Slow(), nn.Conv2d(3, 2, 1))
    threads = [threading.Thread(target=run, args=(net, torch.rand(1, 3, 4, 4), ["1"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_what_a_trace_keeps_is_counted():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Conv2d(2, 4, 3, bias=False))
    x = torch.randn(1, 1, 10, 10)
    maps = {"0": 2 * 8 * 8 * 4, "1": 2 * 8 * 8 * 4, "2": 4 * 6 * 6 * 4}
    assert run(net, x, ["2"]).nbytes == maps["2"]
    assert run(net, x, ["1"]).nbytes == maps["1"]
    # For the backward pass: the picture's copy, what the ReLU gave, and what was kept.
    assert run(net, x, ["2"], grad=True).nbytes == x.numel() * 4 + maps["1"] + maps["2"]


def test_counting_does_not_run_a_checkpoint_again(snapshot):
    part = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.last = part, nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return self.last(checkpoint(self.part, x, use_reentrant=False))

    net, x, calls = Net().train(), torch.randn(1, 1, 10, 10), []
    trace = run(net, x, ["last"], grad=True)
    part.register_forward_hook(lambda *_: calls.append(1))
    with snapshot(net):
        kept = trace.nbytes
    assert calls == []
    assert kept >= trace.activations["last"].numel() * 4


# A graph of what comes after the layer alone


def gradients(trace, names, column=1):
    kept = [trace.activations[name] for name in names]
    return torch.autograd.grad(trace.output[:, column].sum(), kept, retain_graph=True)


@pytest.mark.parametrize("layers", [["0"], ["2"], ["4"], ["5", "1"], ["6", "0", "4"]])
def test_after_gives_the_gradients_that_the_whole_graph_gives(layers, net, x, device, snapshot):
    net.to(device)
    with snapshot(net):
        whole, after = (run(net, x, layers, output=True, grad=grad) for grad in (True, "after"))
        for one, other in zip(gradients(whole, layers), gradients(after, layers), strict=True):
            assert one.any()
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert torch.equal(after.output, whole.output)
    for name in layers:
        assert torch.equal(after.activations[name], whole.activations[name])
        assert after.activations[name].requires_grad


def nodes(tensor):
    """The kinds of all nodes of the graph below a tensor."""
    found, waiting = [], [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.append(node)
            waiting.extend(below for below, _ in node.next_functions)
    return [type(node).__name__ for node in found]


def test_after_keeps_no_graph_before_the_layer(net):
    whole, after = (run(net, PICTURE, ["2", "5"], output=True, grad=grad) for grad in (True, "after"))
    assert nodes(whole.output).count("ConvolutionBackward0") == 2
    assert nodes(after.output).count("ConvolutionBackward0") == 1
    assert after.activations["2"].is_leaf
    assert not after.inputs.requires_grad
    assert after.activations["5"].grad_fn is not None  # which depends on the first of them
    assert after.nbytes < whole.nbytes
    assert run(net, PICTURE, ["8"], output=True, grad="after").output.grad_fn is not None


def test_what_runs_before_the_layer_runs_without_grad(net):
    modes = {}
    for name, module in net.named_children():
        module.register_forward_pre_hook(lambda *_, name=name: modes.update({name: torch.is_grad_enabled()}))
    run(net, PICTURE, ["4"], output=True, grad="after")
    assert modes == {str(i): i > 4 for i in range(9)}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_after_in_any_mode_of_the_persons(mode, frozen, net, snapshot):
    (expected,) = gradients(run(net, PICTURE, ["4"], output=True, grad=True), ["4"])
    net.requires_grad_(not frozen)
    with mode():
        inside = PICTURE.clone()
        with snapshot(net):
            trace = run(net, inside, ["4"], output=True, grad="after")
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert not trace.activations["4"].is_inference()
    (found,) = gradients(trace, ["4"])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_after_leaves_nothing_after_an_exception(error, mode, net, snapshot):
    def fails(*_):
        assert torch.is_grad_enabled()
        raise error

    net[7].register_forward_pre_hook(fails)
    with mode(), snapshot(net), pytest.raises((ModelError, KeyboardInterrupt)):
        run(net, PICTURE, ["4"], output=True, grad="after")


def test_after_of_a_second_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))

    net = Twice()
    for names in (["conv:1"], ["conv"], ["conv", "conv:1"]):
        whole, after = (run(net, PICTURE, names, output=True, grad=grad) for grad in (True, "after"))
        for one, other in zip(gradients(whole, names), gradients(after, names), strict=True):
            torch.testing.assert_close(other, one)
    assert nodes(run(net, PICTURE, ["conv:1"], output=True, grad="after").output).count("ConvolutionBackward0") == 0


@pytest.mark.parametrize("layer", ["part", "part.0", "part.2", "first"])
def test_after_with_a_checkpoint_around_the_layer_and_behind_it(layer, snapshot):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.part = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))

        def forward(self, x):
            return checkpoint(self.part, self.first(x), use_reentrant=False).mean((2, 3))

    net = Net().eval()
    expected = gradients(run(net, PICTURE, [layer], output=True, grad=True), [layer])
    net.requires_grad_(False)
    with snapshot(net):
        found = gradients(run(net, PICTURE, [layer], output=True, grad="after"), [layer])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layers", [["conv"], ["same"], ["drop"], ["flat"]])
def test_after_and_later_work_in_place(layers):
    net, x = Aliases().eval(), torch.randn(1, 3, 5, 5)
    whole, after = (run(net, x, layers, output=True, grad=grad) for grad in (True, "after"))
    assert torch.equal(after.activations[layers[0]], whole.activations[layers[0]])
    assert torch.equal(after.output, whole.output)
    (one,), (other,) = (
        torch.autograd.grad(trace.output.sum(), [trace.activations[layers[0]]]) for trace in (whole, after)
    )
    torch.testing.assert_close(other, one)


def test_after_a_layer_of_whole_numbers_there_is_no_gradient():
    class Rounds(nn.Module):
        def forward(self, x):
            return x.round().long()

    net = nn.Sequential(Rounds(), nn.Flatten())
    trace = run(net, PICTURE, ["0"], output=True, grad="after")
    assert not trace.activations["0"].requires_grad
    assert trace.output.grad_fn is None


class Dotted(nn.Module):
    """Parts whose names have dots of their own, and one whose name a property shadows."""

    def __init__(self):
        super().__init__()
        setattr(self, "block.0", nn.Conv2d(3, 4, 3))
        self._modules["inner"] = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 3))

    @property
    def inner(self):
        return nn.Identity()

    def forward(self, x):
        return self._modules["inner"](getattr(self, "block.0")(x)).mean((2, 3))


def test_names_are_those_of_named_modules():
    net = Dotted().eval()
    trace = run(net, PICTURE, ["block.0", "inner.1", "inner"], output=True)
    assert torch.equal(trace.activations["block.0"], getattr(net, "block.0")(PICTURE))
    assert torch.equal(trace.activations["inner.1"].mean((2, 3)), trace.output)
    assert torch.equal(trace.activations["inner"], trace.activations["inner.1"])
    assert [layer.name for layer in nbviz.layers(net, PICTURE)] == ["block.0", "inner.0", "inner.1", "inner"]
    assert nbviz.grad_cam(net, PICTURE).shape == nbviz.grad_cam(net, PICTURE, "block.0").shape == (1, 12, 12)
    assert nbviz.kernels(net, "block.0").shape == (4, 3, 3, 3)
    for name in ("", ".", "block", "inner.2", "block.0.x"):
        with pytest.raises(ValueError, match="^no layer"):
            run(net, PICTURE, [name])
