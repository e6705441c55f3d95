"""Working in a person's model without leaving a mark."""

import threading
import warnings

import pytest
import torch
from torch import nn

from nbviz.core.state import check_model, fingerprint, lock, untouched


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
    with pytest.raises(TypeError, match="^the model is scripted .* give the model it was made from"):
        check_model(make(net))
    with pytest.raises(TypeError, match="^its part '1' is scripted"):
        check_model(nn.Sequential(nn.ReLU(), make(net)))


def test_a_compiled_model_is_an_error(net):
    with pytest.raises(TypeError, match=r"^the model is compiled, .* give the original, compiled\._orig_mod"):
        check_model(torch.compile(net))
    check_model(torch.compile(net)._orig_mod)
    net[2] = torch.compile(net[2])
    with pytest.raises(TypeError, match="^its part '2' is compiled"):
        check_model(net)


def test_a_model_compiled_in_place_is_an_error(net):
    net[2].compile()
    with pytest.raises(TypeError, match=r"^its part '2' is compiled in place.* give a model before \.compile\(\)"):
        check_model(net)
    net.compile()
    with pytest.raises(TypeError, match="^the model is compiled in place"):
        check_model(net)


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
