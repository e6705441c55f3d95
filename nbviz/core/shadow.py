"""A model's shadow: its modules copied, its weights shared, for nbviz's own forward passes.

Whatever a pass does to a model (eval mode, hooks, updated buffers, attributes that modules set) it does to the shadow.
The user's model is never touched, whatever fails and whichever thread uses it meanwhile, and nothing has to be
restored.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import nn

from nbviz.core.copier import Copier
from nbviz.core.errors import EndlessError
from nbviz.core.generators import OwnGenerators, States, generator_states, restore_generators
from nbviz.core.state import alone, eagerly

Result = TypeVar("Result")

#: Whether a model draws random numbers in its forward pass, for models where this had to be found out.
_draws: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
#: How deeply forward passes may be nested: a hook that asks nbviz for another pass in each of its own would never end.
_DEEPEST = 8
_depth = 0


def in_shadow(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """The result of ``work`` on a shadow of the model, usually a forward pass. It may change the shadow freely.

    The states of torch's generators are restored, except for what other threads have drawn.

    Parameters
    ----------
    model
        A module that :func:`nbviz.core.state.check_model` accepts.
    work
        Takes a new shadow in eval mode. It may be called up to three times.

    Raises
    ------
    ModelError
        When the work calls itself without end.
    """
    global _depth  # noqa: PLW0603 - only the thread that holds the lock writes to it
    with alone(), torch.inference_mode(False), eagerly():
        if _depth >= _DEEPEST:
            raise EndlessError(
                f"{type(model).__name__} calls nbviz on itself in its own forward pass (in a hook, inputs= or the "
                "like), and so without end; expected hooks that do not, or that are disabled meanwhile"
            )
        _depth += 1
        try:
            return _with_own_generators(model, work)
        finally:
            _depth -= 1


def _with_own_generators(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """The result of the work, in whose passes random numbers are drawn from private generators.

    These slow down every operation, so they are used only where torch's generators have moved in a first pass. That may
    also be the doing of another thread, or of a model that sets the seed: a second pass tells.
    """
    if _draws.get(model):
        with OwnGenerators():
            return work(shadow_of(model))
    before = generator_states(model)
    try:
        result = work(shadow_of(model))
    except BaseException as error:
        if model not in _draws and (after := generator_states(model)) != before:
            _restore_after(error, model, work, before, after)
        raise
    after = generator_states(model)
    if after == before or model in _draws:
        return result
    # Did this pass draw, or another thread? A pass with private generators tells.
    with OwnGenerators(states=before) as own:
        again = work(shadow_of(model))
    ended = generator_states(model)
    if own.used and ended != after:
        # Another thread is still drawing; or the model sets torch's seed, to the same value each time.
        with OwnGenerators(states=before):
            work(shadow_of(model))
        if generator_states(model) == ended:
            restore_generators(before)
            return result
    _draws[model] = own.used
    if own.used and generator_states(model) == after:
        restore_generators(before)
    return again if own.used else result


def _restore_after(
    error: BaseException, model: nn.Module, work: Callable[[nn.Module], Result], before: States, after: States
) -> None:
    """Restore the generators after a pass that failed, unless it was another thread that has drawn."""
    # Not after an interrupt: the pass may never end.
    if isinstance(error, Exception) and len(sys._current_frames()) > 1:
        with OwnGenerators(states=before) as own, suppress(Exception):
            work(shadow_of(model))
        if not own.used or generator_states(model) != after:
            return
    restore_generators(before)


def held_by(model: nn.Module) -> list[Any]:
    """All that a shadow of the model has its own copy of (modules, containers, functions, objects), and the weights."""
    with torch.inference_mode(False), torch.no_grad():
        return Copier(model, own_weights=False).originals


def shadow_of(model: nn.Module, own_weights: bool = False) -> nn.Module:
    """A shadow in eval mode.

    Parameters
    ----------
    model
        A module that :func:`nbviz.core.state.check_model` accepts.
    own_weights
        Copy the weights as well, so that training the model does not change the shadow.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> shadow = shadow_of(net)
    >>> shadow[0].weight is net[0].weight, shadow[0] is net[0], shadow.training, net.training
    (True, False, False, True)
    """
    with torch.inference_mode(False), torch.no_grad():
        shadow: nn.Module = Copier(model, own_weights).shadows[0]
    return shadow
