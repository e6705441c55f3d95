"""The weights in a checkpoint: wherever a trainer has put them, and whatever it has put before their names."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbviz.core.errors import line, shown

_DEEP = 2  # how deep in a checkpoint a state dict may lie
#: Where several state dicts of a checkpoint fit the model, the first of these.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "module")


def named_checkpoints(given: Any) -> list[tuple[str, Any]]:
    """Each checkpoint with its name: a dict's key, a file's name, or a number."""
    if isinstance(given, Mapping) and not any(isinstance(value, Tensor) for value in given.values()):
        named = list(given.items())
    elif isinstance(given, (list, tuple)):
        named = [(_path(c).stem if isinstance(c, (str, os.PathLike)) else i, c) for i, c in enumerate(given)]
    else:
        raise TypeError(
            f"checkpoints is a {type(given).__name__}; expected a list of state dicts or files, or a dict of these"
        )
    if not named:
        raise ValueError("checkpoints is empty; expected at least one")
    return [(line(name, 80), checkpoint) for name, checkpoint in named]


def load_into(model: nn.Module, name: str, given: Any) -> str:
    """Load a checkpoint's weights into a model; returns where they lay and what was stripped from their names.

    Raises
    ------
    TypeError
        When ``given`` is no state dict, nor holds one.
    ValueError
        When no state dict in it fits the model, when two do, or when the file cannot be read.
    """
    whole = _read(given) if isinstance(given, (str, os.PathLike)) else given
    found = list(_state_dicts(whole))
    if not found:
        raise TypeError(f"checkpoint {name} is a {type(whole).__name__}; expected a state dict, or a file of one")
    own = model.state_dict().keys()
    fits = [(path, prefix, state) for path, state in found for prefix in _prefixes(state, own)]
    # The usual key first; of equals the one that does not lie within another.
    order = {key: place for place, key in enumerate(_USUAL_KEYS)}
    fits.sort(key=lambda fit: (order.get(fit[0][0], len(order)) if fit[0] else -1, len(fit[0])))
    if not fits:  # load_state_dict says what is missing
        path, prefix, state = *found[0][:1], "", found[0][1]
    else:
        path, prefix, state = fits[0]
        rivals = [other for place, other, _ in fits[1:] if place == path and other != prefix]
        if rivals:
            names = ", ".join(shown(f"{one}…") for one in (prefix, *rivals))
            raise ValueError(f"checkpoint {name} holds several models: {names}; expected the state dict of one of them")
    try:
        model.load_state_dict(
            {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        )
    except Exception as error:
        cause = " ".join(line(error, 600).split())
        raise ValueError(f"checkpoint {name} does not fit the model: {cause}; expected its own state dict") from error
    places = "".join(f"[{key!r}]" for key in path)
    return ", ".join(filter(None, (places, prefix and f"without {prefix!r}")))


def _state_dicts(given: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The state dicts in a checkpoint, and the keys under which they lie."""
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        return
    if any(isinstance(value, Tensor) for value in given.values()) or not given:
        yield path, given
    if len(path) < _DEEP:
        for key, value in given.items():
            yield from _state_dicts(value, (*path, key))


def _prefixes(state: Mapping[str, Any], own: Any) -> list[str]:
    """What may be stripped from a state dict's names so that all of the model's are there."""
    last = next(iter(own), "")
    prefixes = [key[: len(key) - len(last)] for key in state if key.endswith(last)]
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    return [prefix for prefix in dict.fromkeys(prefixes) if all(prefix + key in state for key in own)]


def _path(given: str | os.PathLike[str]) -> Path:
    try:
        return Path(given).expanduser()
    except Exception:  # bytes, an unknown user's home, or an object of the user's that fails
        raise TypeError(f"{shown(given, 200)} is not a path; expected that of a checkpoint's file") from None


def _read(given: str | os.PathLike[str]) -> Any:
    path = _path(given)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file fails for a name that is too long
        raise FileNotFoundError(f"there is no file {shown(str(path), 200)}; expected a checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        cause = line(error, 400)
        if isinstance(error, pickle.UnpicklingError):  # torch's message recommends weights_only=False
            cause = "it is broken, or holds more than tensors and plain values, which could run code"
        raise ValueError(
            f"{shown(str(path), 200)} cannot be read: {cause}; expected safetensors, or a state dict that torch.save "
            "wrote"
        ) from error
