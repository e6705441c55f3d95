"""Where the channels are after each operation, by what happens to a tensor whose channels are numbered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbviz.core.field_tracker import FieldTracker

C = 7  # unlike any other length


def numbered() -> Tensor:
    """Each channel has its number as all values: (1, C, 4, 6)."""
    return torch.arange(C, dtype=torch.float32).view(1, C, 1, 1).expand(1, C, 4, 6).clone()


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute, a list": lambda x: torch.permute(x, [0, 3, 1, 2]),
    "transpose": lambda x: x.transpose(1, -1),
    "swapaxes": lambda x: torch.swapaxes(x, axis0=1, axis1=2),
    "movedim": lambda x: x.movedim(1, -1),
    "movedim, several": lambda x: x.movedim((1, 2), (3, 1)),
    "flatten": lambda x: x.flatten(2),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "view": lambda x: x.view(1, C, 24),
    "reshape": lambda x: x.permute(0, 2, 3, 1).reshape(1, 24, C),
    "windows": lambda x: x.permute(0, 2, 3, 1).view(1, 2, 2, 3, 2, C).permute(0, 1, 3, 2, 4, 5).reshape(6, 4, C),
    "unflatten": lambda x: x.flatten(2).unflatten(2, (3, 8)),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "stack": lambda x: torch.stack([x, x], 1),
    "cat": lambda x: torch.cat([x, x], 2),
    "chunk": lambda x: x.chunk(2, 3)[1],
    "select": lambda x: x.select(2, 0),
    "unbind": lambda x: x.unbind(3)[0],
    "a number": lambda x: x[:, :, 1],
    "a number first": lambda x: x[0],
    "an ellipsis": lambda x: x[..., 2],
    "None": lambda x: x[:, None],
    "None and a number": lambda x: x[:, None, :, 2],
    "lists": lambda x: x[:, :, [0, 2], [1, 3]],
    "slices": lambda x: x[:, :, 1:3, ::2],
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    "sum first": lambda x: x.permute(0, 2, 3, 1).sum(1),
    "amax": lambda x: x.amax(-1),
    "max": lambda x: x.max(2).values,
    "relu": lambda x: x.relu(),
    "plus": lambda x: x + torch.zeros(1, C, 1, 1),
    "plus, broadcast": lambda x: torch.zeros(3, 1, 1, 1, 1) + x,
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "roll": lambda x: x.permute(0, 2, 3, 1).roll((1, 1), (1, 2)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "pool": lambda x: F.max_pool2d(x, 2),
    "copy": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "in place": lambda x: x.permute(0, 2, 3, 1).add_(0),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_axis_is_where_the_numbers_rise(name: str) -> None:
    x = numbered()
    with torch.no_grad(), FieldTracker(x) as tracker:
        y = MOVES[name](x)
        axis = tracker.channels[y]
    assert y.shape[axis] == C
    others = [a for a in range(y.ndim) if a != axis]
    numbers = y.permute(axis, *others).flatten(1).amax(1)
    assert numbers.argsort().tolist() == list(range(C))


NEW: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "convolution": (nn.Conv2d(C, 5, 1), 1),
    "linear": (nn.Linear(6, 5), 3),
    "linear after windows": (lambda x: nn.Linear(C, 5)(x.permute(0, 2, 3, 1).reshape(2, 12, C)), 2),
    "matrix": (lambda x: x.permute(0, 2, 3, 1) @ torch.ones(C, 5), 3),
    "batch norm": (nn.BatchNorm2d(C).eval(), 1),
    "self-attention": (
        lambda x: nn.MultiheadAttention(C, 1, batch_first=True)(*[x.flatten(2).transpose(1, 2)] * 3)[0],
        2,
    ),
    "LSTM": (lambda x: nn.LSTM(C, 5, batch_first=True)(x.flatten(2).transpose(1, 2))[0], 2),
    "layer norm of what was lost": (lambda x: nn.LayerNorm(8)(x.reshape(1, 21, 8)), 2),
}


@pytest.mark.parametrize("name", NEW)
def test_operations_that_make_channels(name: str) -> None:
    function, axis = NEW[name]
    x = numbered()
    with torch.no_grad(), FieldTracker(x) as tracker:
        assert tracker.channels[function(x)] == axis


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "pairs": lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "einsum": lambda x: torch.einsum("nchw,ncij->nhwij", x, x),
    "all in one": lambda x: x.flatten(1),
    "heads": lambda x: x.transpose(1, 3).reshape(1, 3, 2, 28),
    "sum over channels": lambda x: x.sum(1),
    "one channel": lambda x: x[:, 3],
}


@pytest.mark.parametrize("name", LOST)
def test_what_mixes_channels_with_positions_has_none(name: str) -> None:
    x = numbered()
    with torch.no_grad(), FieldTracker(x) as tracker:
        assert not tracker.channels[LOST[name](x)]
