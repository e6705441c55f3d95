"""Anything given to any public function is answered, or refused with an error that says what is accepted.

``make test-all`` calls each function 1,000 times, those that go through a dataset more than once less often;
``make test`` a fortieth of that. What only passes its arguments on is called in turn with what it passes them to.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import random
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn
from traitlets import TraitError

import nbviz
from nbviz.core.backward import RULES, UNPOOLING
from nbviz.core.errors import PictureNotFoundError, shown
from nbviz.core.state import lock
from nbviz.errors import CompiledWarning, ModelError, NoRectifierWarning, PictureError
from nbviz.methods.cam import GRADIENT_CAMS
from nbviz.methods.correspondence import FILLS
from nbviz.methods.feature_maps import FUSIONS
from nbviz.methods.invariance import TRANSFORMS
from nbviz.methods.maximise import OBJECTIVES
from nbviz.methods.reconstruct import SEEDS
from nbviz.pictures.fill import FILLS as FILLED
from nbviz.pictures.load import Pictures
from nbviz.results import (
    AblateResult,
    CheckpointResult,
    CompareResult,
    MaximiseResult,
    ReportResult,
    ScanResult,
    TopPatchesResult,
)
from nbviz.scanning.statistic import Statistic
from nbviz.scanning.statistics import Ablation, Accuracy, Correlation, Histogram, Moments, Sparsity, TopK
from nbviz.widgets.layer_widget import LayerWidget
from nbviz.widgets.session import TILES
from nbviz.widgets.view import View
from tests.rounds import TIMES, rounds
from tests.widgets.every_widget import EVERY, make

CALLS = rounds(25, 1000)
SECONDS = 20  # after which a call hangs

#: What an error says of what would have been right: of a model or a transform that failed, how it did.
SAYS_WHAT_IS_ACCEPTED = re.compile(
    r"expected|Accepted: |[Gg]ive |numbered 0 to|there is no file|failed |goes? with|name "
)
pytestmark = pytest.mark.filterwarnings(
    "ignore::nbviz.errors.NoRectifierWarning",
    "ignore::nbviz.errors.CompiledWarning",
    "ignore:picture .*steps= takes more",
)


@dataclass
class Values:
    """Arguments by name, which can be shown though one of them cannot show itself."""

    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return ", ".join(f"{name}={shown(value, 300)}" for name, value in self.arguments.items())

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # hypothesis would look into a dataclass's fields
        printer.text(repr(self))


def fuzz(
    of_a_thousand: int = 1000, /, **arguments: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with each of many arguments; with fewer of them where a call takes long."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def run(values: Values) -> None:
            test(**values.arguments)

        run.__name__ = test.__name__.strip("<>") + "_of_values"  # not "<lambda>", which hypothesis cannot describe
        options = settings(
            max_examples=max(1, CALLS * of_a_thousand // 1000),
            derandomize=TIMES <= 1,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        return options(given(values=st.fixed_dictionaries(arguments).map(Values))(run))

    return decorate


# What a call must keep to


def marks(model: Any) -> list[Any]:
    """What a call could leave behind, as far as it is quickly looked at (tests/conftest.py looks at everything)."""
    found: list[Any] = [
        torch.get_rng_state().sum().item(),
        np.random.get_state()[2],  # noqa: NPY002
        hash(random.getstate()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        lock._is_owned(),
        signal.getsignal(signal.SIGINT),
    ]
    if isinstance(model, nn.Module) and "_modules" in vars(model):
        for module in model.modules():
            held = vars(module)
            hooks = [len(value) for name, value in held.items() if name.endswith("hooks")]
            tensors = [(id(t), t._version) for kind in ("_parameters", "_buffers") for t in held[kind].values()]
            found += [type(module), module.training, hooks, tensors, list(held)]
    return found


@contextmanager
def in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        pytest.fail(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


REFUSED = object()


def answer(call: Callable[[], Any], model: Any = None, also: tuple[type[Exception], ...] = ()) -> Any:
    """What a call gives, or ``REFUSED`` where it is refused as it should be."""
    before = marks(model)
    kinds = (TypeError, ValueError, ModelError, PictureError, PictureNotFoundError, *also)
    try:
        with in_time():
            result = call()
    except (TypeError, ValueError, ModelError, *also) as error:
        refusal, result = error, REFUSED
    assert marks(model) == before
    if result is REFUSED and type(refusal) is TraitError:  # in traitlets' own words
        assert " trait " in str(refusal)
    elif result is REFUSED:
        message = str(refusal)
        assert type(refusal) in kinds, repr(refusal)
        assert SAYS_WHAT_IS_ACCEPTED.search(message), repr(refusal)
        assert len(message) < 5000
        message.encode()  # a message with half a surrogate pair cannot be printed
    return result


# Values


class Raises:
    """An object that fails however it is looked at."""

    def fail(self, *_: Any, **__: Any) -> Any:
        raise OSError("not to be looked at")

    __index__ = __len__ = __iter__ = __array__ = __fspath__ = __str__ = __repr__ = fail
    __int__ = __float__ = __bool__ = __eq__ = __lt__ = __getitem__ = __contains__ = __call__ = fail
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise OSError("not to be looked at")


class RaisesEverywhere(Raises):
    def __getattr__(self, name: str) -> Any:
        raise OSError("not to be looked at")


class AsPath(os.PathLike):  # type: ignore[type-arg]
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


class LikeTransforms:
    """What has the attributes of a torchvision transform, and none of their kind."""

    mean, std = "mean", {}

    @property
    def transforms(self) -> Any:
        return [self]

    def __call__(self, picture: Any) -> Any:
        return picture


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def within_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def endless() -> Iterator[int]:
    while True:
        yield 0


STRINGS = [
    *("", " ", "\0", "a\0b", "\ud800", "caf\udcc3", "\u202egnp.tac", "x" * 100_000, "1:1", "1:99999999999999999999"),
    *("<img src=x onerror=alert(1)>", "$x^$", "../" * 50, "~", "~nobody/x.png", "/dev/zero", "/dev/null", "/proc/self"),
    *("http://127.0.0.1/x.png", "a" * 300 + ".png", ".", "*", "\n", "max\0", "MAX", "%s{0}", "\U0001f600"),
]
OBJECTS: list[Callable[[], Any]] = [
    *(Raises, RaisesEverywhere, LikeTransforms, within_itself, endless, object, dict, set, frozenset, bytearray),
    *(lambda: deep(3), lambda: deep(5000), lambda: iter([1]), lambda: (i for i in [0]), lambda: range(10**12)),
    *(lambda: Raises, lambda: nn.Module, lambda: nn.ReLU, lambda: torch.Tensor, lambda: np.ndarray, lambda: Path),
    *(lambda: nbviz.Preprocess, Exception, lambda: np, lambda: len, lambda: lambda: None, lambda: ...),
    *(lambda: {0: 1}, lambda: {"a": Raises()}, lambda: {0, 1}, lambda: [Raises()], lambda: [None], lambda: [1, "a"]),
    *(lambda: memoryview(b"ab"), lambda: AsPath(b"a"), lambda: AsPath("a"), lambda: AsPath(3), lambda: b"\xff" * 9),
    *(lambda: [0] * 1000, lambda: ["a"] * 1_000_000, lambda: Fraction(1, 3), lambda: 10**5000, lambda: -(10**400)),
    *(lambda: Path("a\0"), Path, lambda: slice(3), lambda: NotImplemented, lambda: 1j),
    *(lambda: torch.device("cpu"), lambda: torch.float32, lambda: torch.Size([2]), torch.Generator),
]
DTYPES = sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)
SHAPES: list[tuple[int, ...]] = [
    *((), (0,), (1,), (3,), (2, 2), (3, 0, 4), (1, 8, 8), (2, 8, 8), (3, 8, 8), (3, 1, 1), (4, 8, 8), (8, 8, 3)),
    *((1, 3, 8, 8), (2, 3, 8, 8), (1, 1, 8, 8), (0, 3, 8, 8), (1, 3, 8, 0), (2, 4, 5, 6), (1, 5, 8, 8), (5, 1, 2, 3)),
    *((1,) * 5, (1,) * 7, (2, 1, 3, 8, 8)),
]


def made(make: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kind is not finished, or will go
            return make(shape)
    except (RuntimeError, IndexError):  # a kind of tensor that has no such shape
        return torch.rand(shape)


def tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return made(lambda shape: torch.ones(shape).to(dtype), shape)


def filled(value: float, dtype: torch.dtype = torch.float32) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: torch.full(shape, value, dtype=dtype)


def inference(shape: tuple[int, ...]) -> Tensor:
    with torch.inference_mode():
        return torch.rand(shape)


def expanded(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(()).expand(shape)


TENSORS: list[Callable[[tuple[int, ...]], Tensor]] = [
    *(torch.rand, torch.rand, torch.rand, inference, expanded, filled(math.nan), filled(math.inf), filled(-3e38)),
    *(filled(1e300, torch.float64), filled(6e4, torch.float16), filled(-1, torch.int64), filled(2**40, torch.int64)),
    *(lambda shape: torch.rand(shape, device="meta"), lambda shape: torch.rand(shape).to_sparse()),
    *(lambda shape: torch.quantize_per_tensor(torch.rand(shape), 0.1, 0, torch.quint8),),
    *(lambda shape: torch.rand(shape, requires_grad=True) * 2, lambda shape: torch.rand(shape, requires_grad=True)),
    *(lambda shape: torch.randn(shape, dtype=torch.complex64).conj(), lambda shape: torch.rand(shape).mT),
    *(lambda shape: torch.view_as_real(torch.rand(shape, dtype=torch.complex64).conj())[..., 1],),
    *(lambda shape: nn.Parameter(torch.rand(shape)), lambda shape: 9 * torch.randn(shape)),
    lambda shape: torch.randint(0, 256, shape, dtype=torch.uint8),
]
KINDS = ["u1", "i1", "u2", ">u2", "i4", "u8", "f2", "f4", "f8", ">f8", "longdouble", "c8", "?", "O", "U3", "S3"]
KINDS += ["M8[s]", "m8[ns]", "V4", "u1,f4"]
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]


def picture(mode: str, size: tuple[int, int], transparency: Any = None) -> Image.Image:
    made = Image.new(mode, size)
    if transparency is not None:
        made.info["transparency"] = transparency
    return made


def closed(mode: str, size: tuple[int, int], _: Any) -> Image.Image:
    made = Image.new(mode, size)
    made.close()
    return made


def array(kind: str, shape: tuple[int, ...], how: str) -> Any:
    made = np.zeros(shape, kind)
    if how == "flipped" and shape:
        return made[::-1]
    if how == "masked":
        return np.ma.masked_all(shape, kind)
    if how == "expanded":
        return np.broadcast_to(np.zeros((), kind), shape)
    if how == "one":
        return made.reshape(-1)[0] if made.size else made
    return made


@st.composite
def either(draw: st.DrawFn, *strategies: st.SearchStrategy[Any]) -> Any:
    """Each as often as the others, however many kinds it is made of itself (unlike ``st.one_of``)."""
    return draw(strategies[draw(st.integers(0, len(strategies) - 1))])


numbers = st.one_of(
    st.integers(-3, 12),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [True, False, 2**31, -(2**63), 10**30, np.int8(1), np.float32("nan"), np.bool_(True), np.uint64(0)]
    ),
)
strings = st.one_of(
    st.integers(0, len(STRINGS) - 1).map(lambda i: STRINGS[i]),
    st.text(max_size=20),
    st.text(st.characters(), max_size=5),
)
tensors = st.one_of(
    st.builds(made, st.sampled_from(TENSORS), st.sampled_from(SHAPES)),
    st.builds(tensor, st.sampled_from(DTYPES), st.sampled_from(SHAPES)),
)
ndarrays = st.one_of(
    st.builds(
        array,
        st.sampled_from(KINDS),
        st.sampled_from(SHAPES),
        st.sampled_from(["", "flipped", "masked", "one", "expanded"]),
    ),
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)),
)
pil = st.builds(
    lambda make, *args: make(*args),
    st.sampled_from([picture, picture, picture, closed]),
    st.sampled_from(MODES),
    st.sampled_from([(8, 8), (1, 1), (1, 9), (8, 8), (0, 0), (0, 3)]),
    st.sampled_from([None, None, 0, -1, 300, b"\0", b"", (1, 2, 3), (1,), "x", Raises]),
)
objects = st.builds(lambda make: make(), st.sampled_from(OBJECTS))
scalars = either(st.none(), numbers, numbers, strings, strings, st.binary(max_size=8), objects)
anything = either(
    scalars,
    objects,
    tensors,
    ndarrays,
    pil,
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=5),
    st.dictionaries(st.text(max_size=3), scalars, max_size=2),
)


# Models


class Weird(nn.Module):
    """A convolution, a rectifier, and then whatever is given."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.relu, self.then = nn.Conv2d(3, 4, 3), nn.ReLU(), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.relu(self.conv(x)))


class Incomplete(nn.Module):
    def __init__(self) -> None:
        pass


class Holds(nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.part(x)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        raise KeyError("no way back")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise OSError("not to be looked at")


class Stop(BaseException):
    pass


def raises(error: BaseException) -> Callable[[Tensor], Any]:
    def forward(x: Tensor) -> Any:
        raise error

    return forward


def recursive(x: Tensor) -> Tensor:
    return recursive(x)


def in_place(x: Tensor) -> Tensor:
    y = x.exp()
    z = y * y
    y.add_(1)
    return z


def net() -> nn.Sequential:
    """Takes (N, 3, 8, 8)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(20, 3)),
    )


torch.manual_seed(0)
NET = net().eval()
MODELS: list[Any] = [
    *(net(), nn.Sequential(), nn.Identity(), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Conv2d(1, 2, 3), nn.Linear(8, 2)),
    *(nn.Module(), nn.ModuleList([nn.ReLU()]), nn.LazyConv2d(2, 3), Holds(nn.LazyLinear(2)), Incomplete()),
    *(
        nn.Conv3d(3, 2, 1),
        nn.Conv1d(3, 2, 1),
        nn.Conv2d(4, 2, 3),
        nn.Conv2d(3, 2, 9),
        torch.compile(net(), backend="eager"),
    ),
    *(
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.MaxPool3d((1, 2, 2))),
    ),
    *(nn.LSTM(8, 2), nn.Embedding(2, 2), nn.Softmax(1)),
    *(net().double(), net().to(torch.bfloat16), net().half(), net().to("meta"), nn.DataParallel(net()), net().train()),
    *(
        Weird(lambda x: None),
        Weird(lambda x: (x, x)),
        Weird(lambda x: {"a": x}),
        Weird(lambda x: "text"),
        Weird(Raises),
    ),
    *(Weird(lambda x: 3), Weird(lambda x: x.detach()), Weird(lambda x: x.round().long()), Weird(lambda x: x.mean())),
    *(
        Weird(torch.fft.fft2),
        Weird(lambda x: torch.fft.fft2(x).flatten(1)),
        Weird(lambda x: x.to_sparse()),
    ),
    *(Weird(lambda x: x > 0), Weird(lambda x: x / 0), Weird(lambda x: x[:0]), Weird(lambda x: x.to("meta"))),
    *(Weird(lambda x: x.numpy()), Weird(in_place), Weird(Backward.apply), Weird(recursive), Weird(lambda x: x.T)),
    *(Weird(nn.Sequential(nn.Flatten(), nn.Linear(144, 4))), Weird(lambda x: x.flatten(1) > 0)),
    *(
        Weird(raises(error))
        for error in (KeyError("x"), Unprintable(), MemoryError(), AssertionError(), StopIteration())
    ),
    *(Weird(raises(error)) for error in (UnicodeError(), OverflowError("x" * 10**6), RuntimeError("\ud800\0"))),
    type("<img src=x onerror=alert(1)>", (nn.ReLU,), {})(),
]
models = either(st.sampled_from(MODELS), st.sampled_from(MODELS), anything)


# Arguments

PICTURES: list[Any] = [torch.rand(1, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.randint(0, 256, (3, 8, 8)).byte()]
PICTURES += [np.zeros((8, 8, 3)), Image.new("RGB", (8, 8)), [Image.new("L", (8, 8))] * 2]
good = {
    "images": st.sampled_from(PICTURES),
    "layer": st.sampled_from(["0", "1", "2", "3", "4", "5", None]),
    "channels": st.sampled_from([None, 0, 3, [1, 0], torch.tensor([2]), ()]),
    "channel": st.sampled_from([None, 0, 3, np.int64(1)]),
    "target": st.sampled_from([None, 0, [2], torch.tensor(1)]),
    "seed": st.sampled_from(SEEDS),
    "rules": st.sampled_from([*RULES, list(RULES), ()]),
    "unpool": st.sampled_from(UNPOOLING),
    "preprocess": st.sampled_from([None, lambda picture: torch.rand(3, 8, 8), lambda picture: picture]),
    "labels": st.sampled_from([None, ["a", "b", "<b>"], np.array(["a", "b", "c"]), (1, 2, 3)]),
    "picture": st.just(0),
    "how": st.sampled_from(FUSIONS),
    "tiles": st.sampled_from(TILES),
    "raw": st.booleans(),
    "inputs": st.sampled_from([None, None, lambda x: x, lambda x: (x,), lambda x: {"input": x}]),
    "output": st.sampled_from([None, None, lambda scores: scores]),
    "plane": st.sampled_from([None, 0]),
    "bands": st.sampled_from([None, 1, (2, 0, 1), [0]]),
}


@dataclass
class Call(Values):
    """A model and the arguments by name, all good but for those that are named."""

    model: Any
    hostile: frozenset[str]

    def __repr__(self) -> str:
        return f"{shown(self.model, 300)}, {super().__repr__()}"


@st.composite
def calls(draw: st.DrawFn, *names: str, least: int = 0) -> Call:
    """One argument or two are anything, the others good."""
    bad = frozenset(draw(st.sampled_from(["model", *names])) for _ in range(draw(st.integers(least, 2))))
    arguments = {name: draw(anything if name in bad else good[name]) for name in names}
    if (
        "target" in names and "channels" in names and not {"layer", "target", "channels"} & bad
    ):  # which do not go together
        arguments["channels" if arguments["layer"] is None else "target"] = None
    return Call(arguments, draw(models) if "model" in bad else NET, bad)


# The functions


def public(name: str) -> Any:
    """A public function or widget."""
    places = (nbviz, nbviz.cams, nbviz.attribution, nbviz.sanity)
    return next(getattr(place, name) for place in places if hasattr(place, name))


STATISTICS: dict[str, Any] = {
    kind.__name__: kind for kind in (Ablation, Accuracy, Correlation, Histogram, Moments, Sparsity, TopK)
}


def test_every_public_name_is_fuzzed() -> None:
    tested = {
        *FUNCTIONS,
        *WIDGETS,
        *DECIDES,
        *INSTRUMENTS,
        "explore",
        "fuse",
        "grid",
        "overlay",
        "Preprocess",
        "bundled",
    }
    tested |= {"set_memory_limit", "scan", "ScanView", "statistics", "kernels", "frequency_response", "kernel_report"}
    tested |= {"ablate", "switched_off", "top_patches", "compare", "report", "maximise", "invariance", "correspondence"}
    tested |= {"evolution", "Recorder", "log", "sanity"}
    names = {name for place in (nbviz.cams, nbviz.attribution) for name in vars(place) if not name.startswith("_")}
    names |= {*nbviz.__all__} - {"cams", "attribution", "results", "errors"}
    assert tested - {"randomisation", "deletion_insertion"} == names


_OTHERS = ("preprocess", "inputs", "output")
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "load": ("images", "preprocess"),
    "layers": ("images", "preprocess", "inputs"),
    "feature_maps": ("images", "layer", "channels", "preprocess", "inputs"),
    "gradient": ("images", "layer", "channels", "target", "seed", *_OTHERS),
    "deconvnet": ("images", "layer", "channels", "target", "seed", "unpool", *_OTHERS),
    "guided_backprop": ("images", "layer", "channels", "target", "seed", *_OTHERS),
    "reconstruct": ("images", "layer", "channels", "target", "seed", "rules", "unpool", *_OTHERS),
    "grad_cam": ("images", "layer", "target", "raw", *_OTHERS),
}
_SHOWN = ("picture", "seed", "how", "plane", "bands")
WIDGETS = {
    "Explorer": ("images", "layer", "channel", "labels", *_OTHERS, *_SHOWN, "tiles"),
    "FeatureMaps": ("images", "layer", "channel", "labels", *_OTHERS, *_SHOWN),
    "Reconstruction": ("images", "layer", "channel", "labels", *_OTHERS, *_SHOWN, "tiles"),
}


def check(name: str, call: Call) -> None:
    result = answer(lambda: public(name)(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    images, layer = call.arguments["images"], call.arguments.get("layer")
    if name == "load":
        assert isinstance(result, Pictures)
        assert result.inputs.ndim in (3, 4, 5)
        assert result.inputs.is_meta or result.inputs.isfinite().all()
        assert len(result.names) == len(result.inputs)
    elif name == "layers":
        assert len({one.name for one in result}) == len(result)
        assert call.model is not NET or [one.name for one in result] == list("01234567")
        repr(result)
    elif call.hostile & {"model", "images", "preprocess", "inputs"}:
        for maps in result.values() if name == "reconstruct" else [result]:
            assert isinstance(maps, Tensor)
    elif name == "feature_maps":
        expected = NET[: int(layer) + 1](nbviz.load(NET, images, call.arguments["preprocess"]).inputs)
        channels = call.arguments["channels"]
        assert result.shape[0] == expected.shape[0]
        assert channels is not None or torch.equal(result, expected)
        assert not result.requires_grad
    elif name == "grad_cam":
        inputs = nbviz.load(NET, images, call.arguments["preprocess"]).inputs
        assert len(result) == len(inputs)
        assert call.arguments["raw"] is not False or (result.shape == inputs[:, 0].shape and result.max() <= 1.0001)
        assert result.min() >= 0
    else:
        for maps in result.values() if name == "reconstruct" else [result]:
            inputs = nbviz.load(NET, images, call.arguments["preprocess"]).inputs
            assert maps.ndim == (4 if layer is None else 5)
            assert (maps.shape[0], *maps.shape[-3:]) == inputs.shape
            assert maps.dtype == inputs.dtype
            assert maps.isfinite().all()


@fuzz(call=calls(*FUNCTIONS["load"]))
def test_load(call: Call) -> None:
    check("load", call)


@fuzz(call=calls(*FUNCTIONS["layers"]))
def test_layers(call: Call) -> None:
    check("layers", call)


@fuzz(call=calls(*FUNCTIONS["feature_maps"]))
def test_feature_maps(call: Call) -> None:
    check("feature_maps", call)


@fuzz(call=calls(*FUNCTIONS["grad_cam"]))
def test_grad_cam(call: Call) -> None:
    check("grad_cam", call)


_RECONSTRUCTIONS = ["reconstruct", "gradient", "deconvnet", "guided_backprop"]


@fuzz(name=st.sampled_from(_RECONSTRUCTIONS), data=st.data())
def test_reconstruct_and_its_three_rules(name: str, data: st.DataObject) -> None:
    check(name, data.draw(calls(*FUNCTIONS[name])))


maps_given = either(st.builds(torch.rand, st.sampled_from(SHAPES)), tensors, anything)


@fuzz(
    maps=either(st.builds(torch.randn, st.sampled_from([(2, 3, 4, 5), (1, 1, 3, 3)])), maps_given),
    how=either(good["how"], good["how"], anything),
)
def test_fuse(maps: Any, how: Any) -> None:
    result = answer(lambda: nbviz.fuse(maps, how))
    if result is REFUSED:
        return
    assert result.shape == (len(maps), *([3] if how == "pca" else []), *maps.shape[2:])
    assert (result.dtype, result.device) == (maps.dtype, maps.device)
    wide = maps.detach().double()
    plain = {"mean": wide.mean(1), "max": wide.amax(1), "sum": wide.sum(1), "l2": wide.square().sum(1).sqrt()}
    if how == "pca":
        assert result.isfinite().all()
        assert result.numel() == 0 or (result.min() >= 0 and result.max() <= 1)
    elif wide.abs().nan_to_num().sum() < 1e4:
        torch.testing.assert_close(result.double(), plain[how], rtol=0.02, atol=1e-2, equal_nan=True)


@fuzz(
    maps=either(st.builds(torch.rand, st.sampled_from([(3, 4, 5), (9, 1, 4, 4), (2, 3, 5, 4)])), maps_given),
    options=st.fixed_dictionaries(
        {},
        optional={
            "nrow": either(st.integers(1, 9), anything),
            "padding": either(st.integers(0, 9), numbers, anything),
            "normalize": either(st.booleans(), st.booleans(), anything),
            "value_range": either(st.none(), st.tuples(numbers, numbers), anything),
            "scale_each": either(st.booleans(), anything),
            "pad_value": either(numbers, anything),
        },
    ),
)
def test_grid(maps: Any, options: dict[str, Any]) -> None:
    from torchvision.utils import make_grid

    result = answer(lambda: nbviz.grid(maps, **options))
    if result is REFUSED:
        return
    options = {"normalize": True, **options}
    if options.get("value_range") is not None:
        options["value_range"] = tuple(map(float, options["value_range"]))
    if maps.is_floating_point():
        options["pad_value"] = float(options.get("pad_value", 0))
    expected = make_grid(maps[:, None] if maps.ndim == 3 else maps, **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@fuzz(
    pictures=either(st.just(torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)), tensors, anything),
    maps=either(st.just(torch.rand(2, 8, 8)), tensors, anything),
    opacity=either(st.floats(0, 1), st.just(0), anything),
    cmap=either(st.sampled_from(["viridis", "gray"]), anything),
)
def test_overlay(pictures: Any, maps: Any, opacity: Any, cmap: Any) -> None:
    result = answer(lambda: nbviz.overlay(pictures, maps, opacity, cmap))
    if result is not REFUSED:
        assert (result.shape, result.dtype) == (pictures.shape, torch.uint8)
        assert opacity != 0 or torch.equal(result, pictures)


@fuzz(
    options=st.fixed_dictionaries(
        {"transform": either(st.just(lambda picture: picture), anything)},
        optional={
            "mode": either(st.sampled_from(["L", "RGB"]), anything),
            "mean": either(st.lists(numbers, max_size=3), anything),
            "std": either(st.lists(st.floats(0.1, 1), max_size=3), anything),
            "labels": either(st.lists(strings, max_size=3), anything),
            "source": either(strings, anything),
        },
    ),
    given_picture=either(pil, anything),
    inputs=either(st.just(torch.randn(2, 3, 4, 4)), tensors, anything),
)
def test_preprocess(options: dict[str, Any], given_picture: Any, inputs: Any) -> None:
    preprocess = answer(lambda: nbviz.Preprocess(**options))
    if preprocess is REFUSED:
        return
    assert preprocess.labels is None or all(isinstance(label, str) for label in preprocess.labels)
    plain = nbviz.Preprocess(lambda picture: picture, preprocess.mode)
    picture_given = answer(lambda: plain(given_picture))
    if isinstance(given_picture, Tensor):  # as signals, volumes and pictures of many bands come
        assert picture_given is given_picture
    else:
        assert picture_given is REFUSED or picture_given.mode == preprocess.mode
    undone = answer(lambda: preprocess.undo(inputs))
    assert undone is REFUSED or undone.shape == inputs.shape


@fuzz(name=either(st.just("fashion"), anything))
def test_bundled_load(name: Any) -> None:
    assert nbviz.bundled.__all__ == ["fashion_test", "load", "pictures"]  # the others take nothing
    result = answer(lambda: nbviz.bundled.load(name))
    assert result is REFUSED or isinstance(result, nn.Module)


@fuzz(limit=either(st.integers(0, 1 << 40), numbers, anything))
def test_set_memory_limit(limit: Any) -> None:
    assert answer(lambda: nbviz.set_memory_limit(limit)) in (None, REFUSED)
    nbviz.set_memory_limit(512 << 20)


@fuzz(
    kind=st.sampled_from(
        [
            ModelError,
            PictureError,
            NoRectifierWarning,
            CompiledWarning,
        ]
    ),
    said=anything,
)
def test_errors_and_warnings(kind: Any, said: Any) -> None:
    assert answer(lambda: kind(said)).args[0] is said


# Scans


@fuzz(
    kind=st.sampled_from(sorted(STATISTICS)),
    layer=either(st.sampled_from(["0", "5", "7"]), anything),
    more=st.dictionaries(st.sampled_from(["k", "mode", "value", "at_once"]), anything, max_size=1),
)
def test_statistics(kind: str, layer: Any, more: dict[str, Any]) -> None:
    takes = inspect.signature(STATISTICS[kind]).parameters
    arguments = {name: value for name, value in {"layer": layer, **more}.items() if name in takes}
    one = answer(lambda: STATISTICS[kind](**arguments))
    assert one is REFUSED or isinstance(one, Statistic)


def no_folder(given: Any) -> bool:
    """Whether it is no path of a folder, in which there may be very many pictures, and has an end."""
    if isinstance(given, Iterator):
        return False
    try:
        return not Path(given).expanduser().is_dir()
    except Exception:
        return True


LABELLED = [(torch.rand(3, 8, 8), 2), (np.zeros((8, 8, 3), np.uint8), 0), ("none.png", 1)]
COLLECTED: list[Any] = [{"top": TopK("2", 2), "accuracy": Accuracy()}, {"off": Ablation("4")}]
COLLECTED += [{"m": Moments("7"), "": Histogram("0")}, {"c": Correlation("5"), "s": Sparsity("1")}]
UNSEEN = nbviz.ScanView()
UNSEEN._displayed = True  # else a thousand of them are printed
SCANNED = {
    "dataset": either(st.sampled_from([*PICTURES, LABELLED, torch.rand(4, 3, 8, 8)]), anything.filter(no_folder)),
    "statistics": either(
        st.sampled_from(COLLECTED), anything, st.dictionaries(st.text(max_size=3) | st.integers(), anything, max_size=2)
    ),
    "preprocess": either(good["preprocess"], anything),
    "inputs": either(good["inputs"], anything),
    "output": either(good["output"], anything),
    "batch_size": either(st.integers(1, 5), numbers, anything),
    "workers": either(st.just(0), st.just(-1), st.just(10**9), st.just("1")),
    "executor": either(st.none(), anything),
    "parts": either(st.none(), st.integers(1, 10**12), anything),
    "threads": either(st.integers(1, 10**9), anything),
    "checkpoint": either(st.none(), st.sampled_from([3, "", "/none/x", b"x", [], Path("/")])),
    "progress": either(st.just(value=False), anything),
    "watch": either(st.none(), st.just(UNSEEN), anything),
}


@pytest.mark.filterwarnings("ignore:watch failed")
@fuzz(model=either(st.just(NET), models), hostile=st.sets(st.sampled_from(sorted(SCANNED)), max_size=2), data=st.data())
def test_scan(model: Any, hostile: set[str], data: st.DataObject) -> None:
    arguments: dict[str, Any] = {"dataset": LABELLED, "statistics": COLLECTED[0], "progress": False}
    arguments |= {name: data.draw(SCANNED[name]) for name in sorted(hostile)}
    result = answer(lambda: nbviz.scan(model, **arguments), model)
    if result is not REFUSED:
        assert result.pictures + len(result.skipped) > 0
        assert list(result) == list(arguments["statistics"])
        repr(result)
        assert ScanResult(result.results, result.pictures).complete
        result._repr_html_().encode()
        assert UNSEEN._displayed


# What is found in scans


def soon_read(given: Any) -> bool:
    """Whether it is no folder, and no long list of what cannot be read."""
    try:
        return no_folder(given) and len(given) < 1000
    except Exception:
        return no_folder(given)


_EACH = {"preprocess": good["preprocess"], "inputs": good["inputs"], "output": good["output"]}
_DATASETS = st.sampled_from(
    [LABELLED, LABELLED, torch.rand(4, 3, 8, 8), [(torch.rand(3, 8, 8), i % 3) for i in range(5)]]
)
_DATASET = {"dataset": _DATASETS, "batch_size": st.sampled_from([1, 2, 32])}
RESULTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "ablate": {
        **_DATASET,
        **_EACH,
        "layer": st.sampled_from(["1", "5", "7"]),
        "mode": st.sampled_from(["zero", "mean", "keep"]),
        "points": st.sampled_from([0, 3, 16]),
        "seed": st.integers(0, 3),
    },
    "top_patches": {
        **_DATASET,
        "preprocess": good["preprocess"],
        "inputs": good["inputs"],
        "layer": st.sampled_from(["0", "1", "2", "5"]),
        "channels": good["channels"],
        "k": st.integers(1, 9),
    },
    "compare": {
        **_DATASET,
        **_EACH,
        "layers": st.sampled_from([None, ["1", "5"], ("7",)]),
        "most": st.integers(1, 9),
    },
    "report": {
        **_DATASET,
        **_EACH,
        "layers": st.sampled_from([None, ["1", "5"], ("7",)]),
        "alike": st.sampled_from([0, 0.5, 1]),
        "most": st.integers(0, 9),
    },
}


@st.composite
def results(draw: st.DrawFn, name: str) -> Call:
    """One argument or two of these are anything, the others good."""
    takes = RESULTS[name]
    bad = frozenset(draw(st.sampled_from(["model", *takes])) for _ in range(draw(st.integers(0, 2))))
    hostile = {"dataset": anything.filter(soon_read)}
    arguments = {one: draw(hostile.get(one, anything) if one in bad else takes[one]) for one in takes}
    return Call({**arguments, "progress": False}, draw(models) if "model" in bad else NET, bad)


@fuzz(200, call=results("ablate"))
def test_ablate(call: Call) -> None:
    result = answer(lambda: nbviz.ablate(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    assert isinstance(result, AblateResult)
    channels = len(result.accuracy)
    assert sorted(result.ranking.tolist()) == list(range(channels))
    assert ((result.accuracy >= 0) & (result.accuracy <= 1)).all()
    assert result.random.shape == (3, len(result.steps))
    assert len(result.table()) == channels
    repr(result).encode()


@fuzz(
    images=either(good["images"], good["images"], anything),
    layer=either(st.sampled_from(["1", "5", "7"]), anything),
    channels=either(st.sampled_from([0, [2, 1], ()]), anything),
    model=either(st.just(NET), st.just(NET), models),
    more=st.dictionaries(st.sampled_from(["preprocess", "inputs", "output"]), anything, max_size=1),
)
def test_switched_off(images: Any, layer: Any, channels: Any, model: Any, more: dict[str, Any]) -> None:
    result = answer(lambda: nbviz.switched_off(model, images, layer, channels, **more), model)
    if result is REFUSED or model is not NET or more:
        return
    maps = NET[: int(layer) + 1](nbviz.load(NET, images).inputs)
    off = channels.tolist() if hasattr(channels, "tolist") else channels
    maps[:, [off] if isinstance(off, int) else list(off)] = 0
    torch.testing.assert_close(result, NET[int(layer) + 1 :](maps).detach())


@fuzz(
    300,
    call=results("top_patches"),
    channel=either(st.integers(0, 4), anything),
    rule=either(st.sampled_from(RULES), anything),
)
def test_top_patches(call: Call, channel: Any, rule: Any) -> None:
    result = answer(lambda: nbviz.top_patches(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    assert isinstance(result, TopPatchesResult)
    assert result.values.shape == (len(result.channels), result.values.shape[1])
    repr(result).encode()
    for what in (lambda: result.patches(channel), lambda: result.reconstructions(channel, rule)):
        parts = answer(what, call.model)
        if parts is not REFUSED:
            assert (len(parts), tuple(parts.shape[2:])) == (result.values.shape[1], result.size)


@fuzz(200, call=results("compare"), other=either(st.just(NET), models))
def test_compare(call: Call, other: Any) -> None:
    before = marks(other)
    result = answer(lambda: nbviz.compare(call.model, other, **call.arguments), call.model)
    assert marks(other) == before
    if result is REFUSED:
        return
    assert isinstance(result, CompareResult)
    assert 0 <= result.agree <= 1
    assert result.accuracy is None or 0 <= result.accuracy.p_value <= 1
    assert result.cka is None or result.cka.shape == (len(result.layers_a), len(result.layers_b))
    (repr(result) + result.verdict).encode()


@fuzz(200, call=results("report"))
def test_report(call: Call) -> None:
    result = answer(lambda: nbviz.report(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    assert isinstance(result, ReportResult)
    for name, one in result.layers.items():
        assert result[name] is one
        assert set(one.redundant) <= set(range(len(one.importance)))
    repr(result).encode()
    result._repr_html_().encode()


@fuzz(
    model=either(st.just(NET), models),
    layer=either(st.sampled_from([None, "0", "3"]), anything),
    channels=either(good["channels"], anything),
    alike=either(st.floats(0, 1), numbers, anything),
)
def test_kernels(model: Any, layer: Any, channels: Any, alike: Any) -> None:
    result = answer(lambda: nbviz.kernels(model, layer, channels), model)
    assert result is REFUSED or model is not NET or tuple(result.shape[2:]) == (3, 3)
    report = answer(lambda: nbviz.kernel_report(model, layer, alike), model)
    if report is not REFUSED:
        assert ((report.aliased >= 0) & (report.aliased <= 1)).all()
        repr(report).encode()
        report._repr_html_().encode()


@fuzz(
    kernels=either(
        st.builds(torch.randn, st.sampled_from([(2, 3, 3, 3), (1, 1, 5), (2, 1, 2, 2, 2)])), tensors, anything
    ),
    size=either(st.integers(5, 40), st.integers(5, 40), numbers, anything),
)
def test_frequency_response(kernels: Any, size: Any) -> None:
    result = answer(lambda: nbviz.frequency_response(kernels, size))
    if result is not REFUSED:
        assert result.shape == (len(kernels), *[size] * (kernels.ndim - 2))
        assert (result.nan_to_num() >= 0).all()


# What is grown, moved, masked and trained


class Logged:
    def add_image(self, tag: str, picture: Tensor, step: int) -> None:
        assert (len(picture), picture.ndim, picture.is_meta) == (3, 3, False)
        tag.encode()


def soon_done(given: Any) -> bool:
    """Whether it asks for no number of steps, pixels or the like that takes long."""
    return not isinstance(given, numbers_given) or not 9 < given < 10**18


numbers_given = (int, np.integer)
_LAYERS = st.sampled_from([None, ["1", "5"], ("7",), ["0"]])
_SOME = st.sampled_from([0, 3, [1, 0], torch.tensor([2])])
MORE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "maximise": {
        **_EACH,
        "layer": st.sampled_from(["0", "1", "2", "5"]),
        "channels": st.sampled_from([None, 0, [2, 3, 2]]),
        "objective": st.sampled_from(OBJECTIVES),
        "steps": st.integers(1, 2),
        "rate": st.sampled_from([0.05, 1]),
        "size": st.just(8),
        "robust": st.booleans(),
        "seed": st.integers(0, 3),
        "watch": st.sampled_from([None, lambda found: None]),
    },
    "invariance": {
        **_EACH,
        "images": good["images"],
        "layers": _LAYERS,
        "transform": st.sampled_from(list(TRANSFORMS)),
        "values": st.sampled_from([[1, 2.5], np.array([0.5]), torch.tensor([3, 1])]),
        "target": st.sampled_from([None, 2, torch.tensor(1)]),
    },
    "correspondence": {
        "images": st.sampled_from([torch.rand(2, 3, 8, 8), [Image.new("L", (8, 8))] * 2]),
        "boxes": st.sampled_from([[[0, 1, 3, 8]] * 2, np.array([[0, 0, 1, 1], [4, 4, 8, 8]])]),
        "layers": _LAYERS,
        "random": st.integers(0, 2),
        "fill": st.sampled_from(FILLS),
        "seed": st.integers(0, 3),
        "preprocess": good["preprocess"],
        "inputs": good["inputs"],
    },
    "evolution": {
        "checkpoints": st.sampled_from([[NET.state_dict()], {"a": NET.state_dict(), "b": {"model": NET.state_dict()}}]),
        "images": good["images"],
        "layer": st.sampled_from(["1", "2", "5"]),
        "channels": good["channels"],
        "rule": st.sampled_from(RULES),
        "preprocess": good["preprocess"],
        "inputs": good["inputs"],
    },
    "Recorder": {"layer": st.sampled_from(["1", "2", "5"]), "channels": _SOME, "rule": st.sampled_from(RULES)},
    "log": {
        "writer": st.just(Logged()),
        "step": st.integers(0, 9),
        "images": good["images"],
        "layers": st.sampled_from([None, ["1", "5"], ("0",)]),
        "channels": st.sampled_from([0, [1, 99], ()]),
        "rule": st.sampled_from(RULES),
        "tag": st.sampled_from(["nbviz", "", "a/b"]),
        "preprocess": good["preprocess"],
        "inputs": good["inputs"],
    },
}


@st.composite
def more(draw: st.DrawFn, name: str) -> Call:
    """One argument or two of these are anything, the others good."""
    takes = MORE[name]
    bad = frozenset(draw(st.sampled_from(["model", *takes])) for _ in range(draw(st.integers(0, 2))))
    hostile = anything.filter(soon_done)
    arguments = {one: draw(hostile if one in bad else takes[one]) for one in takes}
    return Call(arguments, draw(models) if "model" in bad else NET, bad)


@fuzz(500, call=more("maximise"), target=st.sampled_from([None, None, 0, [1, 2]]))
def test_maximise(call: Call, target: Any) -> None:
    if target is not None and not {"layer", "channels"} & call.hostile:
        call.arguments |= {"layer": None, "channels": None, "target": target}
    result = answer(lambda: nbviz.maximise(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    assert isinstance(result, MaximiseResult)
    assert len(result.pictures) == len(result.inputs) == len(result.values) == len(result.start) == len(result.channels)
    assert result.step == call.arguments["steps"]
    assert ((result.pictures >= 0) & (result.pictures <= 1)).all()
    if not call.hostile & {"model", "preprocess", "inputs", "output"}:
        assert result.values.isfinite().all()
        assert result.pictures.shape[1:] == (3, 8, 8) or "size" in call.hostile


@fuzz(500, call=more("invariance"))
def test_invariance(call: Call) -> None:
    result = answer(lambda: nbviz.invariance(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    n, t = result.probability.shape
    assert (result.target.shape, result.values.shape) == ((n,), (t,))
    assert all(distances.shape == (n, t) for distances in result.distances.values())
    repr(result).encode()
    if not call.hostile & {"model", "preprocess", "inputs", "output"}:
        assert ((result.probability >= 0) & (result.probability <= 1)).all()
        assert all((distances >= 0).all() for distances in result.distances.values())


@fuzz(500, call=more("correspondence"))
def test_correspondence(call: Call) -> None:
    result = answer(lambda: nbviz.correspondence(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    for name, part in result.part.items():
        assert 0 <= part <= 1
        assert result.random[name].shape == (call.arguments["random"],)
        assert ((result.random[name] >= 0) & (result.random[name] <= 1)).all()
    repr(result).encode()
    result._repr_html_().encode()


@fuzz(500, call=more("evolution"))
def test_evolution(call: Call) -> None:
    also = (FileNotFoundError,)
    result = answer(lambda: nbviz.evolution(call.model, **call.arguments), call.model, also)
    if result is REFUSED:
        return
    for moment in result:
        assert isinstance(moment, CheckpointResult)
        m, k = moment.values.shape
        assert (len(moment.pictures), len(moment.channels)) == (m, k)
        assert moment.reconstructions.shape == (m, k, *moment.pictures.shape[1:])
        repr(moment).encode()


@fuzz(
    400, call=more("Recorder"), images=either(st.just(torch.rand(2, 3, 8, 8)), tensors), name=either(strings, anything)
)
def test_recorder(call: Call, images: Any, name: Any) -> None:
    recorder = answer(lambda: nbviz.Recorder(call.model, **call.arguments), call.model)
    if recorder is REFUSED:
        return
    model = copy.deepcopy(NET).train()
    recorder = answer(lambda: nbviz.Recorder(model, **call.arguments))
    if recorder is REFUSED:
        return
    with suppress(Exception), recorder:  # the model's own
        model(images)
    assert not model._forward_pre_hooks
    answer(lambda: recorder.mark(name), model)
    for moment in recorder.moments:
        assert moment.reconstructions.shape == (len(moment.channels), 1, 3, 8, 8)
        repr(moment).encode()


@fuzz(500, call=more("log"))
def test_log(call: Call) -> None:
    writer, step = call.arguments.pop("writer"), call.arguments.pop("step")
    images = call.arguments.pop("images")
    result = answer(lambda: nbviz.log(writer, step, call.model, images, **call.arguments), call.model)
    assert result is None or result is REFUSED


# What decided

_MAPS = {**_EACH, "layer": st.sampled_from(["0", "1", "2", "5", None]), "images": good["images"]}
_TARGET = {"target": good["target"]}
_RAW = {"raw": st.booleans()}
_SQUARE = st.sampled_from([lambda maps: maps, lambda maps: maps.flatten(2).unflatten(2, (-1, 1))])
_RESHAPE = {"reshape": either(st.none(), _SQUARE)}
_FEW = {"samples": st.integers(1, 3), "noise": st.sampled_from([0, 0.2, 1]), "seed": st.integers(0, 3)}
_FILL = {"fill": st.sampled_from(FILLED)}
_CAM = {**_MAPS, **_TARGET, **_RAW, **_RESHAPE}
_OTHER_CAMS = [name for name in GRADIENT_CAMS if name != "grad_cam"]
_PIXELS = {**_EACH, "images": good["images"], **_TARGET}
DECIDES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    **dict.fromkeys(_OTHER_CAMS, _CAM),
    "class_activation": {
        **_CAM,
        "methods": st.sampled_from([["grad_cam"], ("layer_cam", "xgrad_cam"), [*GRADIENT_CAMS]]),
    },
    "guided_grad_cam": {**_MAPS, **_TARGET, **_RESHAPE},
    "smooth_grad_cam_pp": {**_CAM, **_FEW},
    "cam": {**_MAPS, **_TARGET, **_RAW},
    "eigen_cam": {**_MAPS, **_RAW, **_RESHAPE},
    "score_cam": {**_CAM, "at_once": st.integers(1, 9)},
    "ablation_cam": {**_MAPS, **_TARGET, **_RAW, "at_once": st.integers(1, 9)},
    "input_x_gradient": _PIXELS,
    "smooth_grad": {**_PIXELS, **_FEW},
    "integrated_gradients": {
        **_PIXELS,
        "baseline": st.sampled_from([0, 0.5, torch.rand(3, 8, 8), torch.rand(1, 3, 8, 8)]),
        "steps": st.integers(1, 3),
    },
    "occlusion": {
        **_PIXELS,
        **_FILL,
        "patch": st.sampled_from([4, (8, 5), None]),
        "stride": st.sampled_from([3, 9]),
        "layer": st.sampled_from([None, "1", "5"]),
        "channel": st.sampled_from([None, 0, 3]),
    },
    "region_effect": {
        **_EACH,
        **_FILL,
        "images": good["images"],
        "mask": st.sampled_from([(0, 1, 3, 8), torch.rand(8, 8) > 0.5, np.ones((1, 8, 8), bool)]),
        "keep": st.booleans(),
    },
    "randomisation": {
        **_PIXELS,
        "method": st.sampled_from(["gradient", "grad_cam", "guided_backprop", lambda model, inputs, target: inputs]),
        "mode": st.sampled_from(["cascading", "independent"]),
        "absolute": st.booleans(),
        "seed": st.integers(0, 3),
    },
    "deletion_insertion": {
        **_PIXELS,
        **_FILL,
        "maps": st.sampled_from([torch.rand(1, 8, 8), torch.rand(2, 8, 8), torch.rand(2, 3, 8, 8)]),
        "steps": st.integers(1, 4),
    },
}
MORE |= DECIDES


def check_maps(name: str, call: Call) -> None:
    """Maps not below 0, at the size of the pictures and not above 1 unless they are raw, or signed ones of pixels."""
    result = answer(lambda: public(name)(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    found = result if isinstance(result, dict) else {name: result}
    assert all(isinstance(maps, Tensor) and not maps.requires_grad for maps in found.values())
    if call.hostile & {"model", "images", "preprocess", "inputs", "output", "reshape"}:
        return
    inputs = nbviz.load(NET, call.arguments["images"], call.arguments["preprocess"]).inputs
    for maps in found.values():
        assert maps.isfinite().all()
        assert (len(maps), maps.dtype) == (len(inputs), inputs.dtype)
        if "raw" not in call.arguments:
            assert maps.shape == inputs.shape
        else:
            assert maps.min() >= 0
            assert call.arguments["raw"] is True or (maps.shape == inputs[:, 0].shape and maps.max() <= 1.0001)


@fuzz(300, call=more("class_activation"))
def test_class_activation(call: Call) -> None:
    check_maps("class_activation", call)


@fuzz(300, call=more("grad_cam_pp"), name=st.sampled_from(_OTHER_CAMS))
def test_each_of_the_gradient_maps(call: Call, name: str) -> None:
    check_maps(name, call)


@fuzz(200, call=more("guided_grad_cam"))
def test_guided_grad_cam(call: Call) -> None:
    check_maps("guided_grad_cam", call)


@fuzz(200, call=more("smooth_grad_cam_pp"))
def test_smooth_grad_cam_pp(call: Call) -> None:
    check_maps("smooth_grad_cam_pp", call)


@fuzz(300, call=more("cam"))
def test_cam(call: Call) -> None:
    check_maps("cam", call)


@fuzz(300, call=more("eigen_cam"))
def test_eigen_cam(call: Call) -> None:
    check_maps("eigen_cam", call)


@fuzz(300, call=more("score_cam"))
def test_score_cam(call: Call) -> None:
    check_maps("score_cam", call)


@fuzz(200, call=more("ablation_cam"))
def test_ablation_cam(call: Call) -> None:
    check_maps("ablation_cam", call)


@fuzz(300, call=more("input_x_gradient"))
def test_input_x_gradient(call: Call) -> None:
    check_maps("input_x_gradient", call)


@fuzz(300, call=more("smooth_grad"))
def test_smooth_grad(call: Call) -> None:
    check_maps("smooth_grad", call)


@fuzz(300, call=more("integrated_gradients"))
def test_integrated_gradients(call: Call) -> None:
    check_maps("integrated_gradients", call)


@fuzz(300, call=more("occlusion"))
def test_occlusion(call: Call) -> None:
    result = answer(lambda: nbviz.occlusion(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    repr(result).encode()
    n, shape = len(result.target), (len(result.tops), len(result.lefts))
    assert result.probability.shape == result.named.shape == (n, *shape)
    assert (result.activity is None) == (call.arguments["layer"] is None) == (result.channel is None)
    if not call.hostile & {"model", "images", "preprocess", "inputs", "output"}:
        assert ((result.probability >= 0) & (result.probability <= 1)).all()
        assert ((result.named >= 0) & (result.named < 3)).all()
        assert (result.tops[-1] + result.patch[0], result.lefts[-1] + result.patch[1]) == (8, 8)


@fuzz(200, call=more("region_effect"))
def test_region_effect(call: Call) -> None:
    result = answer(lambda: nbviz.region_effect(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    repr(result).encode()
    assert result.before.shape == result.after.shape
    assert len(result.inputs) == len(result.before)


@fuzz(200, call=more("randomisation"))
def test_randomisation(call: Call) -> None:
    result = answer(lambda: nbviz.sanity.randomisation(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    repr(result).encode()
    assert result.rank.shape == result.ssim.shape
    assert len(result.rank) == len(result.layers)
    assert (result.rank.nan_to_num().abs() <= 1.0001).all()


@fuzz(300, call=more("deletion_insertion"))
def test_deletion_insertion(call: Call) -> None:
    result = answer(lambda: nbviz.sanity.deletion_insertion(call.model, **call.arguments), call.model)
    if result is REFUSED:
        return
    repr(result).encode()
    assert result.deletion.shape == result.insertion.shape == (len(result.deletion), len(result.shares))
    assert (result.shares[0], result.shares[-1]) == (0, 1)


# The widgets


def sendable(view: LayerWidget) -> None:
    """What is sent to a page is JSON, in UTF-8, and short but for the pictures."""
    waiting: list[Any] = [view]
    for widget in waiting:
        waiting.extend(getattr(widget, "children", ()))
        state = {name: value for name, value in widget.get_state().items() if name not in ("_esm", "_css")}
        text = json.dumps(state, ensure_ascii=False, allow_nan=False, default=len).encode()
        assert len(text) < 50_000 or isinstance(widget, View)


def check_widget(name: str, call: Call) -> None:
    result = answer(lambda: public(name)(call.model, **call.arguments), call.model)
    if result is not REFUSED:
        assert isinstance(result, LayerWidget)
        answer(lambda: result.finish(10), call.model)
        assert result.layer in result.session.layers
        if "model" not in call.hostile:
            assert result.header.error == ""
            assert result.header.state == "ready"
        sendable(result)
        result.close()


@fuzz(name=st.sampled_from(["Explorer", "explore"]), call=calls(*WIDGETS["Explorer"], least=1))
def test_explorer(name: str, call: Call) -> None:
    check_widget(name, call)


@fuzz(call=calls(*WIDGETS["FeatureMaps"], least=1))
def test_feature_maps_widget(call: Call) -> None:
    check_widget("FeatureMaps", call)


@fuzz(call=calls(*WIDGETS["Reconstruction"], least=1))
def test_reconstruction_widget(call: Call) -> None:
    check_widget("Reconstruction", call)


@cache
def view() -> LayerWidget:
    made = nbviz.Explorer(NET, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), layer="1")
    made.finish()
    return made


def can_be_shown(value: Any) -> bool:
    try:
        return repr(value) is not None
    except Exception:
        return False


@fuzz(
    name=st.sampled_from(["layer", "channel", "picture", "seed", "how", "tiles", "plane", "bands"]),
    value=either(
        anything.filter(can_be_shown),  # as traitlets must, before nbviz is asked
        st.integers(0, 4),
        st.sampled_from(["0", "4", *TILES, *FUSIONS, *SEEDS]),
    ),
)
def test_what_is_set_on_a_widget(name: str, value: Any) -> None:
    before = getattr(view(), name)
    result = answer(lambda: setattr(view(), name, value), NET, also=(TraitError,))
    if result is REFUSED:
        assert getattr(view(), name) == before
    view().finish()
    assert view().header.error == ""
    assert view().header.state == "ready"


@fuzz(seconds=either(numbers, anything))
def test_finish(seconds: Any) -> None:
    assert answer(lambda: view().finish(seconds), NET) in (None, REFUSED)


@fuzz(path=anything)
def test_save(path: Any) -> None:
    assert answer(lambda: view().save(path), NET) in (None, REFUSED)


# The instruments


@cache
def _found(how: str) -> Any:
    if how == "compare":
        return nbviz.compare(NET, NET, torch.rand(4, 3, 8, 8), progress=False)
    return nbviz.ablate(NET, LABELLED, "5", how, progress=False)


_TABLES = st.sampled_from(["zero", "keep"]).map(_found)
_LABELS = {"labels": good["labels"]}
_PICTURES = {**_LABELS, "picture": good["picture"]}
INSTRUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Ablation": {
        **_EACH,
        **_PICTURES,
        "images": good["images"],
        "layer": st.sampled_from([None, "1", "5"]),
        "channel": good["channel"],
        "table": st.none() | _TABLES,
        "off": st.sampled_from([(), [0, 3], 2, torch.tensor([1])]),
    },
    "Invariance": {**MORE["invariance"], **_PICTURES, "target": st.sampled_from([None, 2])},
    "Evolution": MORE["evolution"],
    "TopPatches": RESULTS["top_patches"],
    "Kernels": {"layer": st.sampled_from([None, "0", "3"]), "channel": st.sampled_from([0, 3, np.int64(1)])},
    "Compare": {
        **_EACH,
        **_PICTURES,
        "model_b": st.just(NET),
        "images": good["images"],
        "layer": st.sampled_from([None, "1", "5"]),
        "comparison": st.none() | st.just("compare").map(_found),
    },
    "Maximise": {name: takes for name, takes in MORE["maximise"].items() if name != "watch"}
    | {"labels": good["labels"]},
    "Correspondence": MORE["correspondence"],
    "ClassActivation": {
        **_EACH,
        **_PICTURES,
        "images": good["images"],
        "layer": st.sampled_from([None, "1", "5"]),
        "target": st.sampled_from([None, 2]),
        "method": st.sampled_from(["grad_cam", "hires_cam", "eigen_cam", "score_cam", "ablation_cam"]),
    },
    "Occlusion": {
        **_EACH,
        **_PICTURES,
        "images": good["images"],
        "target": st.sampled_from([None, 2]),
        "patch": st.sampled_from([None, 3]),
        "stride": st.sampled_from([None, 2]),
        "fill": st.sampled_from(FILLS),
        "layer": st.sampled_from([None, "1"]),
    },
    "Regions": {
        **_EACH,
        **_PICTURES,
        "images": good["images"],
        "mask": st.sampled_from([None, (0, 0, 4, 5), torch.ones(8, 8, dtype=torch.bool)]),
        "keep": st.booleans(),
        "fill": st.sampled_from(FILLS),
    },
    "Sanity": {
        **_EACH,
        **_PICTURES,
        "images": good["images"],
        "method": st.sampled_from(["gradient", "guided_backprop", "grad_cam"]),
        "seed": st.sampled_from([0, 5]),
    },
}


def others(name: str) -> dict[str, st.SearchStrategy[Any]]:
    """The arguments of a widget for which nothing is said above."""
    _, *parameters = inspect.signature(public(name)).parameters.values()
    return {p.name: {**good, **_PICTURES}.get(p.name, st.just(p.default)) for p in parameters}


INSTRUMENTS |= {name: others(name) for name in EVERY if name not in {*INSTRUMENTS, *WIDGETS}}


@st.composite
def instruments(draw: st.DrawFn, name: str) -> Call:
    """One argument or two of an instrument are anything, the others good."""
    takes = INSTRUMENTS[name]
    bad = frozenset(draw(st.sampled_from(["model", *takes])) for _ in range(draw(st.integers(1, 2))))
    hostile = anything.filter(soon_done).filter(soon_read)
    arguments = {one: draw(hostile if one in bad else takes[one]) for one in takes}
    arguments |= {"progress": False} if name == "TopPatches" else {}
    arguments |= {"model_a": draw(models) if "model" in bad else NET} if name == "Compare" else {}
    return Call(arguments, draw(models) if "model" in bad else NET, bad)


def check_instrument(name: str, call: Call) -> None:
    """As :func:`check_widget`, of those that show more than a layer."""
    given = () if name == "Compare" else (call.model,)
    model = call.arguments.get("model_a", call.model)
    result = answer(lambda: public(name)(*given, **call.arguments), model, (FileNotFoundError,))
    if result is not REFUSED:
        answer(lambda: result.finish(10), model)
        if not call.hostile & {"model", "model_b", "dataset", "inputs", "output"}:
            assert (result.header.error, result.header.state) == ("", "ready")
        sendable(result)
        result.close()


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_instrument(name: str) -> None:
    fuzz(240 if name == "Kernels" else 120, call=instruments(name))(lambda call: check_instrument(name, call))()


@cache
def instrument(name: str) -> Any:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, tuple[Any, ...]] = {
        "Ablation": (images, "1"),
        "Invariance": (images, ["1"], "across", [-1, 0, 2]),
        "Evolution": ([NET.state_dict()] * 2, images, "1"),
        "Kernels": (),
        "Compare": (NET, images, "1"),
        "Maximise": ("1", [0, 1]),
        "Correspondence": (images, None, ["1"]),
        "ClassActivation": (images, "1"),
        "Occlusion": (images, None, 4, 4),
        "Regions": (images,),
        "Sanity": (images, "gradient"),
    }
    if name == "TopPatches":
        return nbviz.TopPatches(NET, LABELLED, "1", k=2, progress=False)
    if name not in given:
        return make(name, NET, images)
    options: dict[str, Any] = {"Maximise": {"steps": 1, "size": 8}, "Correspondence": {"random": 1}}.get(name, {})
    return public(name)(NET, *given[name], **options)


TRAITS = {
    "Ablation": ["off", "layer", "picture", "channel"],
    "Invariance": ["picture", "transform", "value"],
    "Evolution": ["moment", "channel", "picture"],
    "TopPatches": ["first"],
    "Kernels": ["layer", "channel"],
    "Compare": ["picture", "layer_a", "layer_b"],
    "Maximise": ["steps"],
    "Correspondence": ["boxes"],
    "ClassActivation": ["picture", "layer", "target", "method"],
    "Occlusion": ["picture", "patch", "stride", "fill"],
    "Regions": ["picture", "box", "mask", "mode", "keep", "fill"],
    "Sanity": ["picture", "method"],
}
TRAITS |= {name: [*public(name)._controls] for name in INSTRUMENTS if name not in TRAITS}


@fuzz(
    700,
    trait=st.sampled_from([(name, trait) for name in TRAITS for trait in TRAITS[name]]),
    value=either(
        anything.filter(can_be_shown).filter(soon_done),  # as traitlets must, before nbviz is asked
        st.integers(0, 4),
        st.lists(st.integers(-1, 5), max_size=4),
        st.sampled_from(["0", "3", "5", *TRANSFORMS, 0.5, [[0, 1, 3, 8]] * 2, [[0, 0, 1, 1], [4, 4, 8, 8]]]),
    ),
)
def test_what_is_set_on_an_instrument(trait: tuple[str, str], value: Any) -> None:
    made, name = instrument(trait[0]), trait[1]
    before = getattr(made, name)
    result = answer(lambda: setattr(made, name, value), NET, also=(TraitError,))
    if result is REFUSED:
        assert getattr(made, name) == before
    made.finish()
    assert (made.header.error, made.header.state) == ("", "ready")
