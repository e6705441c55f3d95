"""Shared by all tests: devices, small seeded networks, and a look at a model before and after."""

import gc
import hashlib
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from xdist.scheduler import LoadScopeScheduling

from nbviz.core.state import lock
from tests import reference

# A shell that runs the tests in the background has them ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # the networks are so small that threads would only wait for each other

Snapshot = Callable[[nn.Module], AbstractContextManager[None]]


class OneByOne(LoadScopeScheduling):  # type: ignore[misc]
    """Tests go one by one to the process that is free; those in the browser first, to one, which has a JupyterLab."""

    def _split_scope(self, nodeid: str) -> str:
        return "browser" if nodeid.startswith("tests/browser/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneByOne:
    return OneByOne(config, log)


def pytest_collection_finish() -> None:
    """The half a million objects of the imported libraries are not searched again in each collection of the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; one that is not there is skipped, and said to be."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for each test, whatever ran before."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """``with snapshot(model):`` fails if what is inside, whether it raises or not, leaves a mark."""
    return unchanged


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state(model)
    try:
        yield
    finally:
        after = state(model)
        assert [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)] == []


def state(model: nn.Module) -> dict[str, Any]:
    """All that a call could leave behind, in the model and around it, in a form that compares bit for bit."""
    found: dict[str, Any] = {
        "torch's random state": bits(torch.get_rng_state()),
        "NumPy's random state": repr(np.random.get_state()),  # noqa: NPY002
        "Python's random state": random.getstate(),
        "default device": torch.empty(0).device,  # torch 2.6 cannot say it once it was set and unset
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "modes": (len(_get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack())),
        "lock": lock._is_owned(),
        "global hooks": hooks(vars(module_globals)),
    }
    if torch.cuda.is_initialized():
        found["CUDA's random state"] = [bits(s) for s in torch.cuda.get_rng_state_all()]
    for name, module in model.named_modules():
        found[f"{name} class"] = type(module)
        found[f"{name} training"] = module.training
        found[f"{name} hooks"] = hooks(vars(module))
        found[f"{name} attributes"] = {key: id(value) for key, value in vars(module).items()}
        found[f"{name} children"] = {key: id(value) for key, value in module._modules.items()}
        for key, tensor in {**module._parameters, **module._buffers}.items():
            found[f"{name}.{key}"] = None if tensor is None else described(tensor)
    return found


def described(tensor: Tensor) -> tuple[Any, ...]:
    """A parameter or buffer: which object, where, its bits and all that hangs on it."""
    return (
        *(id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device, tuple(tensor.shape), bits(tensor)),
        *(tensor.requires_grad, tensor.grad is None or bits(tensor.grad), tensor.grad_fn),
        *(len(tensor._backward_hooks or ()), len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())),
    )


def bits(tensor: Tensor) -> bytes:
    """So that a NaN equals itself and -0 differs from 0; a digest, because two copies of a large model take long."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(values).digest() if tensor.numel() else b""


def hooks(attributes: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Every hook of every kind, in order."""
    return {
        name: [(key, id(hook)) for key, hook in value.items()]
        for name, value in attributes.items()
        if "hooks" in name and isinstance(value, dict)
    }


@pytest.fixture
def vgg_like() -> nn.Sequential:
    """Convolutions in pairs and 2×2 pooling, which does not overlap; takes (N, 3, 32, 32)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10)),
    ).eval()


@pytest.fixture
def alexnet_like() -> Callable[[int], nn.Sequential]:
    """A wide first filter with a stride, then max-pooling of the given size with stride 2: 3 overlaps, 2 does not."""

    def build(pool: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(pool, 2)),
            *(nn.Conv2d(8, 12, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(pool, 2)),
            *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(pool, 2),
        ).eval()

    return build


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., tuple[Tensor, int]]:
    """Plain autograd through a forward pass in which every activation function has its rule written out.

    ``by_hand(model, inputs, layer, rule, seed)`` with ``seed`` from the layer's activation (or, for None, the output)
    to the signal that starts there gives the signal at the input, and how many activation functions were called.
    """

    def signal(
        model: nn.Module, inputs: Tensor, layer: str | None, rule: str, seed: reference.Seed
    ) -> tuple[Tensor, int]:
        signals, mode = reference.by_hand(model, inputs, rule, {layer: [seed]})
        return signals[layer][0], mode.calls

    return signal


@pytest.fixture(scope="session")
def strongest() -> Callable[..., reference.Seed]:
    """``strongest(channel, seed)``: from an activation to its seed, position by position."""
    return reference.strongest


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """``close(a, b)``: equal to 1e-5 of the largest value, and that value is not 0."""

    def check(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        largest = float(expected.abs().max())
        assert largest > 0
        assert float((actual - expected).abs().max()) <= tolerance * largest

    return check
