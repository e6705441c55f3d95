"""Checkpoints against loading each by hand, and recordings of a training against every batch looked at again."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nbviz
from nbviz.errors import ModelError
from nbviz.methods.evolution import CheckpointResult
from tests.rounds import few

State = dict[str, Tensor]


def net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3)),
        *(nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.3), nn.Linear(5 * 16, 4)),
    )


@pytest.fixture
def model() -> nn.Sequential:
    return net().train()


@pytest.fixture
def states() -> list[State]:
    """Of three times of a training, statistics of BatchNorm among them."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        one = net()
        one(torch.randn(4, 3, 12, 12))
        found.append(one.state_dict())
    return found


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 12, 12)


def check(
    found: list[CheckpointResult], states: list[State], pictures: Tensor, layer: str, channels: list[int]
) -> None:
    """Each moment is what one finds who loads the state and asks nbviz."""
    assert len(found) == len(states)
    for moment, state in zip(found, states, strict=True):
        loaded = net()
        loaded.load_state_dict(state)
        maps = nbviz.feature_maps(loaded, pictures, layer, channels)
        assert torch.equal(moment.pictures, pictures)
        assert torch.equal(moment.maps, maps)
        assert torch.equal(moment.reconstructions, nbviz.deconvnet(loaded, pictures, layer, channels))
        assert moment.channels == tuple(channels)
        for i in range(len(pictures)):
            for k in range(len(channels)):
                place = np.unravel_index(maps[i, k].numpy().argmax(), maps.shape[2:])
                assert moment.positions[i, k].tolist() == list(place)
                assert moment.values[i, k] == maps[i, k][tuple(moment.positions[i, k])] == maps[i, k].max()


@pytest.mark.parametrize(("layer", "channels"), [("5", [4, 1]), ("2", [3])])
def test_each_moment_is_that_state_loaded_by_hand(
    layer: str, channels: list[int], model: nn.Module, states: list[State], pictures: Tensor, snapshot: Any
) -> None:
    with snapshot(model):
        found = nbviz.evolution(model, states, pictures, layer, channels)
    check(found, states, pictures, layer, channels)
    assert [moment.name for moment in found] == ["0", "1", "2"]
    assert repr(found[2]) == f"CheckpointResult 2: {len(channels)} channels in 2 pictures"


def wrapped(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


SAVED: dict[str, Callable[[State, Path], Any]] = {
    "safetensors": lambda state, path: save_file(state, path.with_suffix(".safetensors")),
    "torch": lambda state, path: torch.save(state, path.with_suffix(".pt")),
    "state_dict": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path.with_suffix(".pth")),
    "model_state_dict": lambda state, path: torch.save({"model_state_dict": state, "loss": 0.1}, path),
    "model": lambda state, path: torch.save({"model": state, "optimizer": {"lr": 1}}, path.with_suffix(".ckpt")),
    "module.": lambda state, path: torch.save(wrapped(state), path.with_suffix(".pt")),
    "both": lambda state, path: torch.save({"state_dict": wrapped(state)}, path.with_suffix(".tar")),
    "safetensors of a parallel model": lambda state, path: save_file(wrapped(state), path.with_suffix(".safetensors")),
}


# Of these every kind once
FILES = itertools.product(["str", "Path", "dict"], SAVED)


@pytest.mark.parametrize(("how", "kind"), few(FILES, *range(0, 24, 3)))
def test_files_of_every_kind(
    kind: str, how: str, tmp_path: Path, model: nn.Module, states: list[State], pictures: Tensor
) -> None:
    for i, state in enumerate(states[:2]):
        SAVED[kind](state, tmp_path / f"epoch-{i}")
    files = sorted(tmp_path.iterdir())
    names = ["epoch-0", "epoch-1"]
    given: Any = files if how == "Path" else list(map(str, files))
    if how == "dict":
        names = ["first", "<b>\0"]
        given = dict(zip(names, files, strict=True))
    found = nbviz.evolution(model, given, pictures, "5", [1, 2])
    check(found, states[:2], pictures, "5", [1, 2])
    assert [moment.name for moment in found] == [name.replace("\0", "\ufffd") for name in names]


def test_states_under_a_name_in_memory_too(model: nn.Module, states: list[State], pictures: Tensor) -> None:
    given = {"a": {"state_dict": states[0]}, "b": wrapped(states[1]), "c": nn.DataParallel(model).state_dict()}
    found = nbviz.evolution(model, given, pictures, "4", 2)
    check(found, [states[0], states[1], model.state_dict()], pictures, "4", [2])


def test_a_model_that_is_parallel_itself_keeps_its_prefix(
    model: nn.Module, states: list[State], pictures: Tensor
) -> None:
    found = nbviz.evolution(nn.DataParallel(model), [wrapped(states[0])], pictures, "module.4", 2)
    check(found, states[:1], pictures, "4", [2])


def test_all_channels_where_none_are_named(model: nn.Module, states: list[State], pictures: Tensor) -> None:
    check(nbviz.evolution(model, states, pictures, "4"), states, pictures, "4", [0, 1, 2, 3, 4])


@pytest.mark.parametrize("rule", ["gradient", "guided"])
def test_other_rules(rule: str, model: nn.Module, states: list[State], pictures: Tensor) -> None:
    found = nbviz.evolution(model, states[:1], pictures, "5", [0], rule=rule)
    model.load_state_dict(states[0])
    expected = nbviz.reconstruct(model, pictures, "5", [0], rules=[rule])[rule]
    assert torch.equal(found[0].reconstructions, expected)


def test_lower_layers_of_a_checkpoint_of_double_precision_are_in_the_models(
    model: nn.Module, states: list[State], pictures: Tensor
) -> None:
    wide = {key: value.double() if value.is_floating_point() else value for key, value in states[0].items()}
    check(nbviz.evolution(model, [wide], pictures, "5", [0]), states[:1], pictures, "5", [0])


def missing(state: State) -> State:
    return {key: value for key, value in state.items() if key != "4.weight"}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (missing, 'checkpoint bad does not fit the model: .*Missing key.*"4.weight"'),
        (lambda s: {**s, "9.bias": s["0.bias"]}, 'checkpoint bad does not fit the model: .*Unexpected key.*"9.bias"'),
        (lambda s: {**s, "4.bias": torch.zeros(7)}, "does not fit the model: .*4.bias.*7.*expected its own state dict"),
        (lambda s: {}, "does not fit the model: .*Missing key"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    broken: Any, said: str, model: nn.Module, states: list[State], pictures: Tensor, snapshot: Any
) -> None:
    given = {"good": states[0], "bad": broken(states[1])}
    with snapshot(model), pytest.raises(ValueError, match=said):
        nbviz.evolution(model, given, pictures, "4")


@pytest.mark.parametrize(
    ("checkpoints", "error", "message"),
    [
        ([], ValueError, "checkpoints is empty"),
        ({}, ValueError, "checkpoints is empty"),
        ("a.pt", TypeError, "checkpoints is a str; expected a list of state dicts or files"),
        ([3], TypeError, "checkpoint 0 is a int; expected a state dict"),
        ({"x": [1]}, TypeError, "checkpoint x is a list; expected a state dict"),
        (["none.pt"], FileNotFoundError, "there is no file 'none.pt'"),
        (["x" * 300 + ".pt"], FileNotFoundError, "there is no file 'xxx"),
        (["~no-one-has-this-home/x.pt"], TypeError, "'~no-one-has-this-home/x.pt' is not a path"),
        ([b"x.pt"], TypeError, "checkpoint 0 is a bytes; expected a state dict"),
        ([{"state_dict": 5}], TypeError, "checkpoint 0 is a dict; expected a state dict"),
        ([{1: torch.zeros(2)}], TypeError, "expected a state dict"),
    ],
)
def test_what_is_no_checkpoint(
    checkpoints: Any, error: Any, message: str, model: nn.Module, pictures: Tensor, snapshot: Any
) -> None:
    with snapshot(model), pytest.raises(error, match=message):
        nbviz.evolution(model, checkpoints, pictures, "4")


def test_one_state_dict_that_is_no_list_is_refused(model: nn.Module, states: list[State], pictures: Tensor) -> None:
    with pytest.raises(TypeError, match="expected a list of state dicts or files, or a dict of these"):
        nbviz.evolution(model, states[0], pictures, "4")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pkl"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(
    suffix: str, zipped: bool, tmp_path: Path, model: nn.Module, states: list[State], pictures: Tensor
) -> None:
    file, mark = tmp_path / f"evil{suffix}", tmp_path / "mark"
    torch.save({"state_dict": states[0], "x": Malicious(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="evil.* cannot be read: .*expected safetensors, or a state dict") as refused:
        nbviz.evolution(model, [file], pictures, "4")
    assert "weights_only" not in str(refused.value)
    assert not mark.exists()
    torch.load(file.rename(tmp_path / "evil.bin"), weights_only=False)
    assert mark.exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\0" * 100])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_file_is_named(
    suffix: str, content: bytes, tmp_path: Path, model: nn.Module, pictures: Tensor
) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="broken.* cannot be read"):
        nbviz.evolution(model, [file], pictures, "4")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "11"}, ValueError, "no layer '11'"),
        ({"layer": "8"}, ValueError, "expected feature maps"),
        ({"channels": 5}, ValueError, "no channel 5: there are 5"),
        ({"rule": "grad"}, ValueError, "no rule 'grad'; did you mean 'gradient'"),
        ({"inputs": 1}, TypeError, "inputs is int"),
    ],
)
def test_wrong_arguments(
    options: Any, error: Any, message: str, model: nn.Module, states: list[State], pictures: Tensor, snapshot: Any
) -> None:
    with snapshot(model), pytest.raises(error, match=message):
        nbviz.evolution(model, states, pictures, **{"layer": "4", **options})


# Recorded while training


def trained(recorder: Callable[[nn.Module], Any] | None, watch: Callable[[str, Any], None]) -> nn.Sequential:
    """Two epochs of a real training with noise, dropout, momentum and validation; ``watch`` sees what happens."""
    torch.manual_seed(7)
    model = net()
    x = torch.randn(36, 3, 12, 12)
    labels = torch.randint(0, 4, (36,))
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    kept: list[Tensor] = []
    handle = model[5].register_forward_hook(lambda _m, _a, maps: kept.append(maps.detach().clone()))
    context = recorder(model) if recorder else None
    if context:
        context.__enter__()
    for epoch in range(2):
        model.train()
        for part in torch.randperm(36).split(8):
            batch = x[part] + 0.1 * torch.randn(len(part), 3, 12, 12)
            loss = nn.functional.cross_entropy(model(batch), labels[part])
            watch("batch", (batch, kept[-1]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            model(50 * x)  # which excites more than any training picture
        if epoch == 0:
            model.train()  # as one may forget; not so at the end of the second
        if context:
            context.mark(f"epoch {epoch}")
        watch("epoch", model)
    if context:
        context.__exit__(None, None, None)
    handle.remove()
    return model


@pytest.fixture(scope="module")
def recording() -> Any:
    """The training recorded, and the same without a recorder, of which everything is kept."""
    recorders: list[nbviz.Recorder] = []

    def record(model: nn.Module) -> nbviz.Recorder:
        recorders.append(nbviz.Recorder(model, "5", [3, 1, 4]))
        return recorders[0]

    with_it = trained(record, lambda *_: None)
    epochs: list[dict[str, Any]] = [{"batches": []}, {"batches": []}]
    done: list[int] = []

    def watch(what: str, value: Any) -> None:
        if what == "batch":
            epochs[len(done)]["batches"].append(value)
        else:
            epochs[len(done)]["model"] = copy.deepcopy(value)
            done.append(1)

    without = trained(None, watch)
    return with_it, recorders[0], without, epochs


def test_a_recorded_training_is_the_same_to_the_last_bit(recording: Any) -> None:
    with_it, _, without, _ = recording
    for (name, one), other in zip(with_it.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_what_is_kept_excited_most_of_all_that_was_seen(recording: Any) -> None:
    _, recorder, _, epochs = recording
    assert [moment.name for moment in recorder.moments] == ["epoch 0", "epoch 1"]
    for moment, epoch in zip(recorder.moments, epochs, strict=True):
        assert moment.channels == (3, 1, 4)
        for k, channel in enumerate(moment.channels):
            best, picture = -np.inf, None
            for batch, maps in epoch["batches"]:
                for i in range(len(batch)):
                    if float(maps[i, channel].max()) > best:
                        best, picture = float(maps[i, channel].max()), batch[i]
            assert float(moment.values[k, 0]) == best > 0
            assert torch.equal(moment.pictures[k], picture)
    assert not torch.equal(recorder.moments[0].pictures, recorder.moments[1].pictures)


def test_what_is_reconstructed_is_by_the_weights_at_the_end_of_the_epoch(recording: Any) -> None:
    _, recorder, _, epochs = recording
    for moment, epoch in zip(recorder.moments, epochs, strict=True):
        for k, channel in enumerate(moment.channels):
            picture, model = moment.pictures[k : k + 1], epoch["model"]
            assert torch.equal(moment.reconstructions[k : k + 1], nbviz.deconvnet(model, picture, "5", channel))
            maps = nbviz.feature_maps(model, picture, "5", channel)
            assert torch.equal(moment.maps[k : k + 1], maps)
            place = np.unravel_index(maps[0, 0].numpy().argmax(), maps.shape[2:])
            assert moment.positions[k, 0].tolist() == list(place)
    assert repr(recorder.moments[0]) == "CheckpointResult epoch 0: 3 channels in 3 pictures"


def test_marking_leaves_the_model_as_it_is(snapshot: Any) -> None:
    model = net().train()
    with nbviz.Recorder(model, "2", 1) as recorder:
        loss = model(torch.randn(4, 3, 12, 12)).sum()
        with snapshot(model):
            recorder.mark("in the middle of a step")
        loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(
        part.requires_grad
        for moment in recorder.moments
        for part in (moment.pictures, moment.values, moment.maps, moment.reconstructions)
    )


def test_hooks_are_gone_afterwards(snapshot: Any) -> None:
    model = net().train()
    with snapshot(model):
        recorder = nbviz.Recorder(model, "5", 0)
        with nbviz.Recorder(model, "5", 0):
            pass
        with pytest.raises(KeyError), nbviz.Recorder(model, "5", 0):
            raise KeyError
        with recorder, recorder:
            pass
    with recorder:
        model(torch.rand(2, 3, 12, 12))
    model(9 * torch.rand(2, 3, 12, 12))  # not seen
    recorder.mark("after")
    assert recorder.moments[0].pictures.max() <= 1


def test_a_recorder_goes_on_where_it_was_left() -> None:
    model = net().train()
    recorder = nbviz.Recorder(model, "0", 0)
    batches = torch.rand(3, 2, 3, 12, 12)
    for batch in batches:
        with recorder:
            model(batch)
    recorder.mark("all")
    maps = torch.nn.functional.conv2d(batches.flatten(0, 1), model[0].weight[:1], model[0].bias[:1], padding=1)
    assert torch.equal(recorder.moments[0].pictures[0], batches.flatten(0, 1)[maps.flatten(1).amax(1).argmax()])


def test_passes_in_eval_mode_are_not_recorded() -> None:
    model = net().eval()
    with nbviz.Recorder(model, "5", 0) as recorder:
        model(torch.rand(2, 3, 12, 12))
        nbviz.feature_maps(model.train(), torch.rand(2, 3, 12, 12), "5")
        with pytest.raises(
            ModelError, match="no picture went through the model in train mode since the last .*expected"
        ):
            recorder.mark("nothing")
    assert recorder.moments == []


def test_the_second_call_of_a_layer_and_a_recomputed_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda x: self.act(self.conv(self.act(self.conv(x)))), x, use_reentrant=False).mean()

    model, batches = Twice().train(), torch.rand(3, 4, 3, 6, 6)
    best: list[list[Tensor]] = [[], []]
    with nbviz.Recorder(model, "act", [1]) as first, nbviz.Recorder(model, "act:1", [1]) as second:
        for batch in batches:
            model(batch).backward()
        for call in (0, 1):
            with torch.no_grad():
                maps = model.conv(batches.flatten(0, 1)).relu()
                maps = model.conv(maps).relu() if call else maps
            best[call].append(batches.flatten(0, 1)[maps[:, 1].flatten(1).amax(1).argmax()])
        first.mark("first")
        second.mark("second")
    for call, recorder in enumerate((first, second)):
        assert torch.equal(recorder.moments[0].pictures[0], best[call][0])


def test_pictures_of_several_sizes_are_refused_with_words() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1)).train()
    with nbviz.Recorder(model, "0", 0):
        model(torch.rand(2, 3, 8, 8))
        with pytest.raises(ValueError, match=r"\(3, 9, 9\) .*\(3, 8, 8\).*expected"):
            model(torch.rand(2, 3, 9, 9))


@pytest.mark.parametrize(
    ("layer", "channels", "rule", "error", "message"),
    [
        ("11", 0, "deconvnet", ValueError, "no layer '11'"),
        ("5", [], "deconvnet", ValueError, "channels is empty"),
        ("5", "a", "deconvnet", TypeError, "channel: got 'a'; expected a whole number"),
        ("5", 0, "max", ValueError, "no rule 'max'"),
    ],
)
def test_wrong_arguments_of_a_recorder(layer: str, channels: Any, rule: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        nbviz.Recorder(net(), layer, channels, rule=rule)


@pytest.mark.parametrize(("layer", "channel"), [("5", 5), ("8", 0)])
def test_a_layer_without_such_maps_is_said_at_the_first_pass(layer: str, channel: int) -> None:
    model = net().train()
    message = "expected feature maps with more than"
    with pytest.raises(ValueError, match=message), nbviz.Recorder(model, layer, channel):
        model(torch.rand(2, 3, 12, 12))
    model(torch.rand(2, 3, 12, 12))


def test_a_layer_that_has_gone_is_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    recorder = nbviz.Recorder(net, "1", 0)
    del net[1]
    with pytest.raises(ValueError, match="layer '1' is no longer part of the model"), recorder:
        pass
