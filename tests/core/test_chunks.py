"""Work that memory does not suffice for is done in halves, with the same result; one item too large is said to be."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import nbviz
from nbviz.core import local_backward as local
from nbviz.core.chunks import in_chunks, out_of_memory
from nbviz.core.errors import ModelError
from nbviz.methods import reconstruct as methods

#: What allocators and libraries say, word for word.
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400000000000 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.00 MB)"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:20])
def test_a_chunk_is_halved_until_it_fits_and_later_ones_are_no_larger(error):
    sizes = []

    def work(part):
        sizes.append(len(part))
        if len(part) > 3:
            raise error
        return [10 * i for i in part]

    pieces = in_chunks(work, range(20), 16, "a number")
    assert [i for piece in pieces for i in piece] == list(range(0, 200, 10))
    assert sizes == [16, 8, 4, *[2] * 10]


def test_one_item_too_large_is_said_to_be_and_so_are_many_that_belong_together():
    def work(part):
        raise SHORTAGES[0]

    with pytest.raises(ModelError, match=r"^out of memory for one picture; give fewer or .*GPU 0 has") as told:
        in_chunks(work, range(20), 16, "one picture")
    assert told.value.__cause__ is SHORTAGES[0]
    with pytest.raises(ModelError, match="^out of memory for one picture"):
        in_chunks(work, range(20), 20, "one picture", least=20)


def test_an_inner_items_error_halves_the_outer_chunk_and_is_not_said_twice():
    def outer(most):
        def work(part):
            return in_chunks(lambda _: inner(part, most), [0], 1, "one channel")

        return work

    def inner(part, most):
        if len(part) > most:
            raise SHORTAGES[1]
        return len(part)

    assert in_chunks(outer(1), range(4), 4, "one picture") == [[1]] * 4
    with pytest.raises(ModelError, match="^out of memory for one channel;"):
        in_chunks(outer(0), range(4), 4, "one picture")


@pytest.mark.parametrize("error", [RuntimeError("out of tune"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_come_through_at_once(error):
    calls = []

    def work(part):
        calls.append(part)
        raise error

    with pytest.raises(type(error)) as raised:
        in_chunks(work, range(4), 4, "a number")
    assert raised.value is error
    assert len(calls) == 1
    assert not out_of_memory(error)


def test_what_a_chunk_held_when_it_failed_is_freed_before_it_is_tried_again():
    held, alive = [], []

    def work(part):
        alive.append([ref for ref in held if ref() is not None])
        large = torch.zeros(len(part))
        held.append(weakref.ref(large))
        try:
            if len(part) > 1:
                raise MemoryError
        except MemoryError as error:
            kept = error  # a circle: the error holds this frame
            raise ModelError("the model's own words") from kept
        return len(part)

    gc.disable()
    try:
        assert in_chunks(work, range(4), 4, "a number") == [1] * 4
    finally:
        gc.enable()
    assert alive == [[]] * 6


# The places that work in chunks, each made to fail for more than so many items.


@pytest.fixture
def scarce(monkeypatch):
    """``scarce(what, most)`` lets an operation fail for more than ``most`` items; gives the sizes that were tried."""

    def make(what, most):
        sizes = []

        def check(count):
            sizes.append(count)
            if count > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")

        if what == "starts":
            run = local._Walk.run
            monkeypatch.setattr(
                local._Walk, "run", lambda walk, order: check(len(walk.regions.starts)) or run(walk, order)
            )
        else:
            pull = methods.pull

            def counted(rule, start, seeds, *more):
                check(len(seeds) if what == "channels" else seeds.shape[1])
                return pull(rule, start, seeds, *more)

            monkeypatch.setattr(methods, "pull", counted)
        return sizes

    return make


@pytest.fixture
def x():
    return torch.randn(5, 3, 32, 32)


@pytest.mark.parametrize("what", ["starts", "channels", "pictures"])
def test_a_reconstruction_in_halves_is_the_same(what, vgg_like, x, scarce, close, snapshot, monkeypatch):
    seed = "max" if what == "starts" else "map"
    monkeypatch.setattr(local, "_WORTH_IT", 2.0)
    whole = nbviz.reconstruct(vgg_like, x[:3], "6", range(5), seed=seed)
    sizes = scarce(what, 2)
    with snapshot(vgg_like):
        halves = nbviz.reconstruct(vgg_like, x[:3], "6", range(5), seed=seed)
    assert max(sizes) > 2
    for rule, maps in whole.items():
        close(halves[rule], maps)


@pytest.mark.parametrize("target", [None, 3, [3, 1, 4, 1, 5]])
def test_classes_stay_with_their_pictures(target, vgg_like, x, scarce, close):
    whole = nbviz.reconstruct(vgg_like, x, target=target)
    scarce("pictures", 2)
    for rule, maps in nbviz.reconstruct(vgg_like, x, target=target).items():
        close(maps, whole[rule])
    with pytest.raises(ValueError, match=r"target has 2 classes for 5 picture\(s\)"):
        nbviz.reconstruct(vgg_like, x, target=[3, 1])


def scarce_forward(model, most):
    def fail(_module, args):
        if len(args[0]) > most:
            raise SHORTAGES[1]

    model.register_forward_pre_hook(fail)


def test_a_forward_pass_in_halves_is_the_same(vgg_like, x, close, snapshot):
    maps = nbviz.feature_maps(vgg_like, x, "6", [3, 0])
    back = nbviz.guided_backprop(vgg_like, x, "6", [3, 0])
    scarce_forward(vgg_like[3], 2)
    with snapshot(vgg_like):
        close(nbviz.feature_maps(vgg_like, x, "6", [3, 0]), maps)
        close(nbviz.guided_backprop(vgg_like, x, "6", [3, 0]), back)


def test_a_picture_too_large_is_an_error_that_says_what_to_do(vgg_like, x, snapshot):
    scarce_forward(vgg_like[3], 0)
    for call in (
        lambda: nbviz.feature_maps(vgg_like, x, "6"),
        lambda: nbviz.reconstruct(vgg_like, x, "6"),
        lambda: nbviz.layers(vgg_like, x),
        lambda: nbviz.explore(vgg_like, x),
        lambda: nbviz.Explorer(vgg_like, x, "6"),
    ):
        with (
            snapshot(vgg_like),
            pytest.raises(
                ModelError,
                match=r"^out of memory for the forward pass of Sequential on an input of shape "
                r"\(1, 3, 32, 32\), float32, cpu; give fewer or smaller pictures, or move the model to another device",
            ),
        ):
            call()


def test_pictures_that_the_device_has_no_memory_for(vgg_like, x, monkeypatch):
    def stack(tensors):
        raise SHORTAGES[0]

    monkeypatch.setattr(torch, "stack", stack)
    with pytest.raises(ModelError, match=r"out of memory for 5 picture\(s\) of shape \(3, 32, 32\) on cpu"):
        nbviz.load(vgg_like, x)


def test_pictures_that_are_normalised_by_each_other_stay_together(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    scarce_forward(net[2], 2)
    with pytest.raises(ModelError, match=r"out of memory .* \(5, 3, 32, 32\)"):
        nbviz.feature_maps(net, x, "2")


# Without pretence.

REAL = """
import gc, resource, torch
from torch import nn
import nbviz
from nbviz.core import chunks

gc.freeze()
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(16))
x = torch.rand(12, 3, 96, 96)
maps, back = nbviz.feature_maps(net, x, "2"), nbviz.guided_backprop(net, x, "2", 3, seed="map")
shortages = []
collect = chunks.gc.collect
chunks.gc.collect = lambda: shortages.append(collect())
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20), resource.RLIM_INFINITY))
torch.testing.assert_close(nbviz.feature_maps(net, x, "2"), maps)
assert shortages
shortages.clear()
torch.testing.assert_close(nbviz.guided_backprop(net, x, "2", 3, seed="map"), back)
assert shortages
try:
    nbviz.feature_maps(net, torch.rand(1, 3, 16, 10_000), "0")
except nbviz.errors.ModelError as error:
    assert "out of memory" in str(error), error
else:
    raise AssertionError("fits")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the process's memory as Linux does")
def test_a_processor_that_is_short_of_memory():
    # Memory that is let go of goes back at once, as far as the C library can.
    subprocess.run([sys.executable, "-c", REAL], check=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})


def test_a_graphics_card_that_is_short_of_memory(vgg_like):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net, x = vgg_like.cuda(), torch.randn(256, 3, 256, 256)

    def calls():
        return nbviz.feature_maps(net, x, "6", [3]), nbviz.guided_backprop(net, x, "6", [3], seed="map")

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        whole = calls()
        torch.cuda.empty_cache()
        before, shortages = torch.cuda.memory_allocated(), torch.cuda.memory_stats()["num_ooms"]
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 30)) / total)
        try:
            halves = calls()
            assert torch.cuda.memory_stats()["num_ooms"] > shortages
            for a, b in zip(halves, whole, strict=True):  # a ReLU at the very edge may be open in one of them
                assert float((a - b).abs().mean()) <= 1e-4 * float(b.abs().mean())
            del halves, a, b
            assert torch.cuda.memory_allocated() == before
            with pytest.raises(ModelError, match="out of memory"):
                nbviz.feature_maps(net, torch.zeros(1, 3, 8192, 8192), "6")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
