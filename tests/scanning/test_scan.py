"""A scan gives the same wherever it runs and however it is shared out, loses nothing and doubles nothing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import nbviz
from nbviz.errors import InterruptedWarning, ModelError, PictureError
from nbviz.pictures.load import Reader
from nbviz.results import ScanResult
from nbviz.scanning import executors
from nbviz.scanning import jobs as core
from nbviz.scanning.checkpoint import key_of
from nbviz.scanning.dataset import Inputs
from nbviz.scanning.labels import Label
from nbviz.scanning.statistic import Batch, Statistic
from nbviz.scanning.statistics import Ablation, Accuracy, Correlation, Histogram, Moments, Sparsity, TopK
from tests.rounds import long, rounds
from tests.scanning.test_statistics import same
from tests.small import Small, labelled, pictures

LAYER = "features.8"


def statistics() -> dict[str, Statistic]:
    return {
        "top": TopK(LAYER),
        "early": TopK("features.1", 2),
        "moments": Moments(LAYER),
        "sparsity": Sparsity(LAYER),
        "histogram": Histogram(LAYER),
        "accuracy": Accuracy(),
        "correlation": Correlation(LAYER),
    }


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nbviz.bundled.load("fashion")


@pytest.fixture(scope="module")
def dataset() -> TensorDataset:
    """With a tie: some pictures come twice, far apart."""
    images, labels = nbviz.bundled.fashion_test()
    order = [*range(200), *range(20)]
    return TensorDataset(images[order, None], labels[order])


@pytest.fixture(scope="module")
def expected(net: nn.Module, dataset: TensorDataset) -> ScanResult:
    """From one part, in this process."""
    return nbviz.scan(net, dataset, statistics(), progress=False)


def equal(found: ScanResult, expected: ScanResult) -> None:
    assert found.pictures == expected.pictures
    assert found.complete
    assert [name for name in expected if not same(found[name], expected[name])] == []


def test_against_the_functions(net: nn.Module, dataset: TensorDataset, expected: ScanResult, snapshot: Any) -> None:
    maps = nbviz.feature_maps(net, dataset.tensors[0], LAYER)
    values = maps.flatten(2).amax(2).T
    torch.testing.assert_close(expected["top"].values, values.sort(1, descending=True).values[:, :9])
    assert (expected["top"].indices.sort(1).values.diff() > 0).all()  # each another picture
    torch.testing.assert_close(expected["moments"].mean.float(), maps.mean((0, 2, 3)))
    with torch.no_grad():
        right = net(dataset.tensors[0] / 255).argmax(1) == dataset.tensors[1]
    assert expected["accuracy"].accuracy == float(right.double().mean())
    first = expected["top"].indices[:, 0]
    assert not (first >= 200).any()  # of the same picture twice, the first comes first


# Where it runs


@contextmanager
def dask(processes: bool = True) -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": processes, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client, client.get_executor() as executor:
        yield executor


def dask_here() -> AbstractContextManager[Executor]:
    return dask(processes=False)


@contextmanager
def parallel() -> Iterator[Executor]:
    import ipyparallel

    with ipyparallel.Cluster(n=2, log_level=40) as client:
        client.wait_for_engines(2, timeout=120)
        yield client.load_balanced_view().executor


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@contextmanager
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


EXECUTORS = {
    "processes": processes,
    "threads": threads,
    "dask": dask,
    "dask in this process": dask_here,
    "ipyparallel": parallel,
}


@pytest.mark.filterwarnings("ignore")  # those engines' own remarks
@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("threads", [1, 2, 7, None]),
        ("dask in this process", [7]),
        *(pytest.param(kind, [1, 2, 7, None], marks=long) for kind in ("processes", "dask in this process")),
        *(pytest.param(kind, [1, 2, 7, None], marks=long) for kind in ("dask", "ipyparallel")),
    ],
)
def test_each_executor_gives_the_same(
    kind: str, shares: list[int | None], net: nn.Module, dataset: TensorDataset, expected: Any, snapshot: Any
) -> None:
    # dask draws from Python's random numbers for itself
    with EXECUTORS[kind]() as executor, nullcontext() if "dask" in kind else snapshot(net):
        for parts in shares:
            found = nbviz.scan(net, dataset, statistics(), executor=executor, parts=parts, progress=False)
            equal(found, expected)


class Shuffled(Executor):
    """Does what it was given when it likes, with copies of what it was given, in this process."""

    def __init__(self, seed: int, has_file: bool = True) -> None:
        self.random, self.has_file, self.sent = random.Random(seed), has_file, 0
        self.waiting: list[tuple[Future[Any], bytes]] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        key, path, data, *rest = args
        self.sent += data is not None
        future: Future[Any] = Future()
        self.waiting.append((future, pickle.dumps((work, key, path if self.has_file else "none", data, *rest))))
        threading.Timer(0.001, self.do_one).start()
        return future

    def do_one(self) -> None:
        future, call = self.waiting.pop(self.random.randrange(len(self.waiting)))
        work, *args = pickle.loads(call)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(pickle.loads(pickle.dumps(work(*args))))
            except BaseException as error:
                future.set_exception(error)


@settings(max_examples=rounds(4, 12), deadline=None)
@given(st.sampled_from([1, 2, 3, 7, 50]), st.integers(0, 1000))
def test_any_parts_in_any_order(net: nn.Module, dataset: Any, expected: Any, parts: int, seed: int) -> None:
    found = nbviz.scan(net, dataset, statistics(), executor=Shuffled(seed), parts=parts, progress=False)
    equal(found, expected)


@long
def test_an_executors_workers_run_under_the_autocast_of_the_scan(net: Any, dataset: Any, expected: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        here = nbviz.scan(net, dataset, statistics(), progress=False)
        there = nbviz.scan(net, dataset, statistics(), executor=Shuffled(0), progress=False)
    equal(there, here)
    assert not same(here["moments"], expected["moments"])


def test_the_model_travels_once_to_a_worker_that_does_not_see_the_file(net: Any, dataset: Any, expected: Any) -> None:
    executors._jobs.clear()
    executor = Shuffled(0, has_file=False)
    equal(nbviz.scan(net, dataset, statistics(), executor=executor, parts=7, progress=False), expected)
    assert executor.sent == 1  # though all parts had been handed out before the first came back


def test_threads_of_the_workers_are_put_back(net: nn.Module, dataset: TensorDataset) -> None:
    before = torch.get_num_threads()
    dataset = TensorDataset(*(t[:64] for t in dataset.tensors))
    nbviz.scan(net, dataset, {"top": TopK(LAYER)}, executor=Shuffled(0), threads=2, progress=False)
    assert torch.get_num_threads() == before


# Workers that are lost


class Deadly(TensorDataset):
    """Has its process killed when a certain picture is read for the first time."""

    def __init__(self, dataset: TensorDataset, flag: str) -> None:
        super().__init__(*dataset.tensors)
        self.flag = flag

    def __getitem__(self, i: Any) -> Any:
        if i == 150 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@long
@pytest.mark.filterwarnings("ignore")
def test_a_dask_worker_killed_in_the_middle_changes_nothing(
    net: Any, dataset: Any, expected: Any, tmp_path: Path
) -> None:
    with dask() as executor:
        deadly = Deadly(dataset, str(tmp_path / "killed"))
        found = nbviz.scan(net, deadly, statistics(), executor=executor, parts=7, progress=False)
    assert (tmp_path / "killed").exists()
    equal(found, expected)


def test_a_pool_says_what_its_workers_cannot_unpickle_and_leaves_a_checkpoint_when_it_breaks(
    net: Any, dataset: Any, expected: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """A process pool does nothing again: what is done is kept, and another pool goes on."""
    deadly, checkpoint = Deadly(dataset, str(tmp_path / "killed")), tmp_path / "scan.pt"
    options: dict[str, Any] = {"parts": 7, "progress": False, "checkpoint": checkpoint}
    main = type("Main", (nn.Sequential,), {"__module__": "__main__"})
    monkeypatch.setattr("__main__.Main", main, raising=False)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # as where it is not installed
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(TypeError, match="cannot be unpickled in the executor's worker: .*[Ee]xpected "):
            nbviz.scan(main(net), dataset, {"a": Accuracy()}, executor=pool, progress=False)
        with pytest.raises(
            BrokenProcessPool, match="workers have died .*: they were killed, .*; with checkpoint= a scan can"
        ):
            nbviz.scan(net, deadly, statistics(), executor=pool, **options)
    assert torch.load(checkpoint, weights_only=True)["pictures"] > 0
    equal(nbviz.scan(net, deadly, statistics(), **options), expected)


def test_an_executor_that_was_shut_down_is_refused_as_that(net: Any, dataset: Any) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    said = "executor was shut down and takes no more work; expected one that is running, or None"
    with pytest.raises(ValueError, match=said):
        nbviz.scan(net, dataset, statistics(), executor=pool, progress=False)

    class Cancels(Executor):  # as shutdown(cancel_futures=True) does with what has not begun
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(ValueError, match=said):
        nbviz.scan(net, dataset, statistics(), executor=Cancels(), progress=False)


@long
@pytest.mark.filterwarnings("ignore")
def test_an_ipyparallel_engine_killed_in_the_middle_changes_nothing(
    net: Any, dataset: Any, expected: Any, tmp_path: Path
) -> None:
    with parallel() as executor:
        deadly = Deadly(dataset, str(tmp_path / "killed"))
        found = nbviz.scan(net, deadly, statistics(), executor=executor, parts=7, progress=False)
    assert (tmp_path / "killed").exists()
    equal(found, expected)


def test_a_reader_that_is_killed_is_said_and_leaves_a_checkpoint(
    net: Any, dataset: Any, expected: Any, tmp_path: Path
) -> None:
    deadly, options = Deadly(dataset, str(tmp_path / "killed")), {"progress": False, "checkpoint": tmp_path / "scan.pt"}
    with pytest.raises(RuntimeError, match=r"that read pictures \(workers=2\) has died: .*; with checkpoint="):
        nbviz.scan(net, deadly, statistics(), workers=2, **options)
    equal(nbviz.scan(net, deadly, statistics(), workers=2, **options), expected)


SPAWN = """
import multiprocessing, sys, torch, nbviz
from concurrent.futures import ProcessPoolExecutor
from torch import nn
sys.modules["cloudpickle"] = None  # as where it is not installed
class Net(nn.Sequential):
    pass
def scanned():
    class Local(Net):
        pass
    kind = Local if sys.argv[1] == "local" else Main if sys.argv[1] == "main" else Net
    net = kind(nn.Flatten(), nn.Linear(12, 3))
    dataset = torch.utils.data.TensorDataset(torch.rand(8, 3, 2, 2), torch.arange(8) % 3)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            print(nbviz.scan(net, dataset, {"a": nbviz.statistics.Accuracy()}, executor=pool, progress=False).pictures)
        except Exception as error:
            print(type(error).__name__, error)
if __name__ == "__main__":
    class Main(Net):
        pass
    scanned()
elif sys.argv[1] == "unguarded":  # in a worker, which may not
    multiprocessing.get_context("spawn").Process(target=print).start()
"""


@long
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fine", "8"),
        ("local", "TypeError the model, the dataset or a statistic cannot be sent to the executor's workers: "),
        ("main", "TypeError the model, the dataset or a statistic cannot be unpickled in the executor's worker: "),
        ("unguarded", "BrokenProcessPool the executor's workers have died "),
    ],
)
def test_what_a_spawned_worker_cannot_have_is_said(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWN)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    call = [sys.executable, str(tmp_path / "script.py"), kind]
    done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1].startswith(said)
    assert kind == "fine" or "expected " in done.stdout.lower()


# Checkpoints


@long
def test_a_scan_killed_at_60_percent_goes_on(net: nn.Module, tmp_path: Path) -> None:
    script = tmp_path / "scan.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, torch, nbviz
            from nbviz.scanning import checkpoint
            from tests.scanning.test_scan import statistics
            torch.set_num_threads(1)
            checkpoint.SAVE_SECONDS = 0.05
            images, labels = nbviz.bundled.fashion_test()
            read = []
            class Counted(torch.utils.data.TensorDataset):
                def __getitem__(self, i):
                    read.append(i)
                    if len(read) == 600 and sys.argv[2] == "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    return super().__getitem__(i)
            dataset = Counted(images[:, None], labels)
            net = nbviz.bundled.load("fashion")
            found = nbviz.scan(net, dataset, statistics(), checkpoint=sys.argv[1], progress=False)
            torch.save({"read": len(read), "pictures": found.pictures, "top": found["top"].indices}, sys.argv[3])
            """
        )
    )
    checkpoint, report = tmp_path / "scan.pt", tmp_path / "report.pt"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = [sys.executable, str(script), str(checkpoint)]
    killed = subprocess.run([*run, "killed", str(report)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.tmp")) == []
    subprocess.run([*run, "again", str(report)], env=environment, check=True)
    found = torch.load(report)
    assert found["pictures"] == 1000
    assert found["read"] - 400 < 300  # of the 600 that were done, less than half again
    images, labels = nbviz.bundled.fashion_test()
    whole = nbviz.scan(net, TensorDataset(images[:, None], labels), statistics(), progress=False)
    assert torch.equal(found["top"], whole["top"].indices)
    again = nbviz.scan(
        net, TensorDataset(images[:, None], labels), statistics(), checkpoint=tmp_path / "x", progress=False
    )
    equal(again, whole)


def test_a_finished_checkpoint_is_read_and_nothing_is_run(
    net: Any, dataset: Any, expected: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scan.pt"
    equal(nbviz.scan(net, dataset, statistics(), checkpoint=path, progress=False), expected)
    unread = Deadly(dataset, str(tmp_path / "none"))
    read: list[int] = []
    kept = TensorDataset.__getitem__
    reads = {"__getitem__": lambda self, i: read.append(i) or kept(self, i)}
    unread.__class__ = type("TensorDataset", (TensorDataset,), reads)
    equal(nbviz.scan(net, unread, statistics(), checkpoint=path, progress=False), expected)
    assert len(read) == 3  # which tell it from another dataset


@pytest.mark.parametrize(
    "other",
    ["weights", "statistics", "a long value", "batches", "dataset", "pictures", "labels", "preprocess", "activation"],
)
def test_another_scans_checkpoint_is_refused(other: str, net: Any, dataset: Any, tmp_path: Path) -> None:
    path, dataset = tmp_path / "scan.pt", TensorDataset(*(t[:64] for t in dataset.tensors))
    arguments: dict[str, Any] = {"model": net, "dataset": dataset, "statistics": {"top": TopK(LAYER)}, "batch_size": 32}
    nbviz.scan(**arguments, checkpoint=path, progress=False)
    if other == "weights":
        arguments["model"] = nbviz.bundled.load("fashion")
        arguments["model"].classifier.bias.data[0] += 1
    elif other == "statistics":
        arguments["statistics"] = {"top": TopK(LAYER, 3)}
    elif other == "a long value":  # whose text would be the same
        values = torch.zeros(2, 2000)
        values[1, 1000] = 1
        kinds = [{"off": Ablation(LAYER, value=value)} for value in values]
        source = Inputs(torch.zeros(1, 1, 28, 28), Reader.of(net), 1)
        keys = {key_of(core.Job(net, source, kind, torch.device("cpu"))) for kind in kinds}
        assert len(keys) == 2
        return
    elif other == "batches":
        arguments["batch_size"] = 16
    elif other == "pictures":
        arguments["dataset"] = TensorDataset(dataset.tensors[0].flip(0), dataset.tensors[1])
    elif other == "labels":
        arguments["dataset"] = TensorDataset(dataset.tensors[0], (dataset.tensors[1] + 1) % 10)
    elif other == "preprocess":
        pictures = [Image.fromarray(one) for one in torch.randint(0, 255, (40, 30, 30), dtype=torch.uint8).numpy()]
        path = tmp_path / "pictures.pt"
        arguments["dataset"] = pictures
        nbviz.scan(**arguments, checkpoint=path, progress=False)
        arguments["preprocess"] = lambda picture: torch.from_numpy(np.array(picture))[None, :28, :28].float()
    elif other == "activation":
        arguments["model"] = nbviz.bundled.load("fashion")
        arguments["model"].features[1] = nn.Tanh()
    else:
        arguments["dataset"] = TensorDataset(*(t[:40] for t in dataset.tensors))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to another scan: .* differs?; expected"):
        nbviz.scan(**arguments, checkpoint=path, progress=False)
    assert path.read_bytes() == before


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_a_checkpoint_that_would_run_code_does_not(net: Any, dataset: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"nbviz scan": Evil()}, "scan.pt")
    with pytest.raises(ValueError, match="cannot be read as one: .*; expected a file that a scan has written"):
        nbviz.scan(net, dataset, {"top": TopK(LAYER)}, checkpoint="scan.pt", progress=False)
    assert not Path("evil").exists()


# Labels

CLOTHES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "boot"]


class Named(TensorDataset):
    """With names for labels."""

    def __init__(self, dataset: TensorDataset, names: list[str], classes: list[str] | None) -> None:
        super().__init__(*dataset.tensors)
        self.names = names
        if classes is not None:
            self.classes = classes

    def __getitem__(self, i: Any) -> Any:
        picture, label = super().__getitem__(i)
        return picture, self.names[label]


FORMS: dict[str, Any] = {
    "floats": lambda x, y: TensorDataset(x, y.double()),
    "scalars of NumPy's": lambda x, y: [(one, label) for one, label in zip(x, y.numpy(), strict=True)],
    "one-hot": lambda x, y: TensorDataset(x, nn.functional.one_hot(y, 10)),
    "one-hot lists": lambda x, y: [(a, b.tolist()) for a, b in zip(x, nn.functional.one_hot(y, 10), strict=True)],
    "digits": lambda x, y: [(x[i], str(label) if i % 2 else label) for i, label in enumerate(y.tolist())],
    "names": lambda x, y: [(one, f"class {label}") for one, label in zip(x, y, strict=True)],
    "names of the dataset's": lambda x, y: Named(TensorDataset(x, y), CLOTHES, CLOTHES),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["here", pytest.param("readers", marks=long), "executor"])
def test_a_class_is_one_in_whichever_form(form: str, where: str, net: Any, dataset: Any) -> None:
    x, y = (t[:64] for t in dataset.tensors)
    how = {"here": {}, "readers": {"workers": 1}, "executor": {"executor": Shuffled(0)}}[where]
    options: dict[str, Any] = {"batch_size": 16, "progress": False}
    expected = nbviz.scan(net, TensorDataset(x, y), {"a": Accuracy()}, **options)
    found = nbviz.scan(net, FORMS[form](x, y), {"a": Accuracy()}, **how, **options)
    equal(found, expected)
    assert found.no_class == ()


@pytest.mark.parametrize("executor", [None, Shuffled(0)])
def test_what_is_no_class_is_counted_and_said(executor: Any, net: Any, dataset: Any, tmp_path: Path) -> None:
    x, y = dataset.tensors
    labels: list[Any] = y.tolist()
    labels[3:7] = [0.5, float("nan"), -5, None]
    labels[60:62] = [10, [0, 1]]
    mixed = list(zip(x, labels, strict=True))
    options: dict[str, Any] = {"progress": False, "checkpoint": tmp_path / "scan.pt"}
    for _ in range(2):  # as the checkpoint has it, too
        with pytest.warns(UserWarning, match="no class") as told:
            found = nbviz.scan(net, mixed, {"a": Accuracy()}, executor=executor, **options)
        assert found["a"].pictures == len(x) - 6
        counted = [(one.reason, one.count, one.index, one.label) for one in found.no_class]
        assert counted == [
            ("no whole number", 2, 3, "0.5"),
            ("negative", 1, 5, "-5"),
            ("no class where the model has 10", 1, 60, "10"),
            ("one-hot for 2 classes where the model has 10", 1, 61, "1"),
        ]
        (said,) = (str(one.message) for one in told)
        assert said.startswith("5 of 220 pictures have a label that is no class, and count as unlabelled: 2 are")
        assert "(0.5, of picture 3); " in said
        assert "5 with a label that is no class:\n  2: no whole number (3: 0.5)" in repr(found)


def test_names_whose_order_is_not_known_are_refused_where_they_count(net: Any, dataset: Any) -> None:
    nameless, two = Small(10), [(one, "bag" if i % 2 else "coat") for i, one in enumerate(pictures(12))]
    unknown = Named(labelled(12, 10), CLOTHES, None)
    for executor in (None, Shuffled(0)):
        options: dict[str, Any] = {"progress": False, "executor": executor}
        with pytest.raises(ValueError, match="picture 0 has the label 'T-shirt', a name, and the order .*; expected "):
            nbviz.scan(nameless, unknown, {"a": Accuracy()}, **options)
        with pytest.raises(ValueError, match="the labels are 2 names and the model has 10 classes: .*; expected whole"):
            nbviz.scan(nameless, two, {"a": Accuracy()}, **options)
    with pytest.warns(UserWarning, match="12 are a name, and the order of the classes is not known .'T-shirt', of"):
        assert nbviz.scan(nameless, unknown, {"top": TopK("0")}, progress=False).pictures == 12
    wrong = Named(dataset, CLOTHES, [*CLOTHES[:9], "boots"])
    with pytest.warns(UserWarning, match="of no known class .'boot', of picture 0.*; did you mean 'boots'"):
        nbviz.scan(net, wrong, {"a": Accuracy()}, progress=False)


# Interrupts, errors, what is left behind


def test_an_interrupt_keeps_what_is_done(net: nn.Module, dataset: TensorDataset, snapshot: Any) -> None:
    class Interrupted(TensorDataset):
        def __getitem__(self, i: Any) -> Any:
            if i == 100:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(i)

    with snapshot(net), pytest.warns(InterruptedWarning, match="interrupted after 96 pictures"):
        found = nbviz.scan(net, Interrupted(*dataset.tensors), statistics(), progress=False)
    assert not found.complete
    part = nbviz.scan(net, TensorDataset(*(t[:96] for t in dataset.tensors)), statistics(), progress=False)
    assert [name for name in part if not same(found[name], part[name])] == []


def test_the_statistics_given_and_the_model_stay_as_they_are(net: Any, dataset: Any, snapshot: Any) -> None:
    given_here = statistics()
    before = {name: repr(vars(one)) for name, one in given_here.items()}
    with snapshot(net):
        nbviz.scan(net, dataset, given_here, progress=False)
    assert {name: repr(vars(one)) for name, one in given_here.items()} == before


def test_what_cannot_be_read_is_skipped_and_named(tmp_path: Path, dataset: TensorDataset, net: nn.Module) -> None:
    for i in range(5):
        Image.fromarray(dataset.tensors[0][i, 0].numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"none")
    found = nbviz.scan(net, tmp_path, {"top": TopK(LAYER, 1)}, progress=False)
    assert (found.pictures, found.complete) == (4, True)
    assert [(one.index, Path(one.name).name) for one in found.skipped] == [(3, "3.png")]
    assert "1 skipped, which could not be read:\n  3 " in repr(found)
    assert set(found["top"].indices.unique().tolist()) <= {0, 1, 2, 4}
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    with pytest.raises(
        PictureError,
        match="none of 5 pictures can be read, expected at least one that can; the first, .*: .*expected PNG",
    ):
        nbviz.scan(net, tmp_path, {"top": TopK(LAYER, 1)}, progress=False)


def test_a_model_that_fails(dataset: TensorDataset) -> None:
    class Fails(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no")

    for executor in (None, Shuffled(0)):
        with pytest.raises(ModelError, match="failed in its forward pass"):
            nbviz.scan(Fails(), dataset, {"a": Accuracy()}, executor=executor, progress=False)


def test_a_model_that_works_in_place(dataset: TensorDataset) -> None:
    """The activations are those that the layer gave, not what an in-place ReLU makes of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2704, 10)).eval()
    found = nbviz.scan(model, dataset, {"m": Moments("0"), "r": Moments("1"), "a": Accuracy()}, progress=False)
    maps = nbviz.feature_maps(model, dataset.tensors[0], "0").double()
    assert found["m"].low.min() < 0
    torch.testing.assert_close(found["m"].mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(found["r"].mean, maps.relu().mean((0, 2, 3)))


def test_a_stream(net: nn.Module, dataset: TensorDataset, expected: ScanResult) -> None:
    equal(nbviz.scan(net, iter(dataset), statistics(), progress=False), expected)


def test_it_tells_what_it_knows(net: nn.Module, dataset: TensorDataset, monkeypatch: Any, capsys: Any) -> None:
    from nbviz.scanning import scan as module

    monkeypatch.setattr(module, "_WATCH_SECONDS", 0)
    told: list[ScanResult] = []
    nbviz.scan(net, dataset, {"accuracy": Accuracy()}, watch=told.append)
    assert [one.pictures for one in told] == [32, 64, 96, 128, 160, 192, 220, 220]
    assert [one.complete for one in told] == [False] * 7 + [True]
    assert told[3]["accuracy"].pictures == 128
    assert "220/220" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"statistics": {}}, ValueError, "statistics is empty; expected at least one"),
        ({"statistics": [TopK(LAYER)]}, TypeError, "statistics is list; expected a dict from names to statistics"),
        ({"statistics": {"a": 3}}, TypeError, "statistics has 'a': 3; expected a name and an"),
        ({"statistics": {"a": TopK("features.99")}}, ValueError, "no layer 'features.99'; did you mean"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; expected at least 1"),
        ({"workers": -1}, ValueError, "workers is -1; expected at least 0"),
        ({"parts": 0}, ValueError, "parts is 0; expected at least 1"),
        ({"threads": "2"}, TypeError, "threads is '2'; expected a whole number"),
        ({"executor": 3}, TypeError, "executor is 3; expected a concurrent.futures.Executor"),
        ({"watch": 3}, TypeError, "watch is int; expected a callable"),
        ({"checkpoint": 3}, TypeError, "checkpoint is 3; expected the path of a file"),
        ({"checkpoint": "/none/scan.pt"}, ValueError, "expected the path of a file in an existing folder"),
        ({"progress": None}, TypeError, "progress is None; expected True or False"),
        ({"dataset": 3}, TypeError, "dataset is int; expected a folder's path"),
        ({"dataset": []}, ValueError, "the dataset is empty; expected"),
        ({"dataset": iter([]), "executor": Shuffled(0)}, TypeError, "the work on an iterable dataset cannot be"),
        ({"dataset": iter([]), "checkpoint": "x"}, TypeError, "an iterable dataset has no checkpoints"),
        ({"statistics": {"a": TopK("classifier")}, "dataset": [torch.rand(1, 28, 28)]}, None, ""),
    ],
)
def test_arguments(arguments: dict[str, Any], error: Any, message: str, net: Any, dataset: Any, snapshot: Any) -> None:
    arguments = {"dataset": dataset, "statistics": {"top": TopK(LAYER)}, "progress": False, **arguments}
    with snapshot(net):
        if error is None:
            nbviz.scan(net, **arguments)
        else:
            with pytest.raises(error, match=message):
                nbviz.scan(net, **arguments)


def test_what_cannot_be_sent(net: nn.Module, dataset: TensorDataset) -> None:
    unsendable = TensorDataset(*dataset.tensors)
    unsendable.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="cannot be sent to the executor's workers: .*; expected what pickle takes"):
        nbviz.scan(net, unsendable, {"top": TopK(LAYER)}, executor=Shuffled(0), progress=False)
    equal(
        nbviz.scan(net, unsendable, {"top": TopK(LAYER)}, progress=False),
        nbviz.scan(net, dataset, {"top": TopK(LAYER)}, progress=False),
    )


def test_memory_does_not_grow_with_the_dataset() -> None:
    """What is kept after 64 times as many batches: the sums' trees have one value more for each doubling."""
    sizes = []
    for n in (40, 40 * 64):
        x = torch.rand(1, 4, 2, 2).expand(n, -1, -1, -1)
        job = core.Job(nn.Sequential(nn.Identity()), None, {}, torch.device("cpu"))  # type: ignore[arg-type]
        found = core.PartialResult({"m": Moments("0"), "c": Correlation("0"), "t": TopK("0")})
        for number in range(n // 2):
            part = x[2 * number : 2 * number + 2]
            indices = torch.arange(2 * number, 2 * number + 2)
            for statistic in found.statistics.values():
                statistic.update(statistic.measure(Batch(number, indices, part, indices * 0, {"0": part}, None)))
            found.add(core.LoadedBatch(number, indices.tolist(), part, [Label(0), Label(0)], []))
        assert job.fresh().pictures == 0
        sizes.append(
            sum(len(pickle.dumps(vars(one))) for one in found.statistics.values()) + len(pickle.dumps(found.done))
        )
    assert sizes[1] - sizes[0] < 6 * 1000


def test_widgets_may_work_between_batches(net: nn.Module, dataset: TensorDataset) -> None:
    """The model is not held for the whole scan."""
    done = threading.Event()

    def other() -> None:
        nbviz.feature_maps(net, torch.rand(1, 1, 28, 28), LAYER)
        done.set()

    class UntilDone(IterableDataset[Any]):
        def __iter__(self) -> Any:
            thread.start()
            for i in range(100_000):
                if done.is_set():
                    return
                yield dataset[i % len(dataset)]

    thread = threading.Thread(target=other)
    found = nbviz.scan(net, UntilDone(), {"top": TopK(LAYER)}, progress=False)
    assert done.is_set()
    assert found.pictures < 100_000
    thread.join()


def test_a_model_that_is_trained_meanwhile_is_refused_and_its_checkpoint_holds_nothing_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    pictures = torch.rand(24, 1, 8, 8)

    class Trains(Dataset):
        changes = True

        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> torch.Tensor:
            if i == 13 and self.changes:
                net[0].weight.data.add_(1)
            return pictures[i]

    dataset, path = Trains(), tmp_path / "scan"
    before = net[0].weight.detach().clone()
    options = {"batch_size": 4, "progress": False, "checkpoint": path}
    with pytest.raises(ModelError, match="were changed while it was scanned"):
        nbviz.scan(net, dataset, {"moments": nbviz.statistics.Moments("1")}, **options)
    net[0].weight.data.copy_(before)
    Trains.changes = False
    found = nbviz.scan(net, dataset, {"moments": nbviz.statistics.Moments("1")}, **options)
    again = nbviz.scan(net, dataset, {"moments": nbviz.statistics.Moments("1")}, batch_size=4, progress=False)
    assert repr(found) == repr(again)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it has several threads
def test_readers_that_are_forked_while_another_thread_is_in_nbviz_read() -> None:
    model = nbviz.bundled.load("fashion")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            nbviz.feature_maps(model, torch.rand(2, 1, 28, 28), "features.8")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        dataset = [(torch.rand(1, 28, 28), 0)] * 64
        for _ in range(rounds(3, 50)):
            found = nbviz.scan(model, dataset, {"right": nbviz.statistics.Accuracy()}, workers=2, progress=False)
            assert found.pictures == 64
    finally:
        stop.set()
        for thread in threads:
            thread.join()
