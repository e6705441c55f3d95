"""Random numbers of nbviz's own: what is drawn is what torch would have drawn, and torch's own are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nbviz.core.generators import OwnGenerators

X = torch.linspace(0.1, 0.9, 20).view(4, 5)
DRAWS = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(3, 2),
    "randint": lambda: torch.randint(0, 9, (3,)),
    "randperm": lambda: torch.randperm(5),
    "rand_like": lambda: torch.rand_like(X),
    "normal": lambda: torch.normal(X, X),
    "bernoulli": lambda: torch.bernoulli(X),
    "bernoulli_": lambda: X.clone().bernoulli_(0.3),
    "multinomial": lambda: torch.multinomial(X, 2),
    "poisson": lambda: torch.poisson(X),
    "exponential_": lambda: X.clone().exponential_(),
    "gamma": lambda: torch.distributions.Gamma(X, X).sample(),
    "dropout": lambda: F.dropout(X, 0.5, True),
    "alpha_dropout": lambda: F.alpha_dropout(X, 0.5, True),
    "rrelu": lambda: F.rrelu(X - 0.5, training=True),
    "attention": lambda: F.scaled_dot_product_attention(*[torch.ones(1, 1, 4, 8)] * 3, dropout_p=0.5),
    "fractional": lambda: F.fractional_max_pool2d(torch.ones(1, 1, 8, 8), 2, output_size=(3, 3)),
    "native dropout": lambda: torch.native_dropout(X, 0.5, True)[0],
    "init": lambda: nn.init.kaiming_normal_(torch.empty(3, 4)),
    "given": lambda: torch.rand(3, generator=torch.Generator().manual_seed(3)),
    "vmap": lambda: torch.func.vmap(lambda x: F.dropout(x, 0.5, True), randomness="different")(X),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_what_is_drawn_is_what_torch_would_draw_and_torch_draws_it_still(draw):
    before = torch.get_rng_state()
    with OwnGenerators() as draws:
        found = DRAWS[draw]()
    assert draws.used
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, DRAWS[draw]())


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_gives_what_it_gives_torch(draw):
    with OwnGenerators(3):
        found = DRAWS[draw]()
    torch.manual_seed(3)
    assert torch.equal(found, DRAWS[draw]())


def test_what_does_not_draw_is_not_said_to():
    with OwnGenerators() as draws:
        F.dropout(X, 0.5, False).relu().sum()
    assert not draws.used


def test_one_draw_goes_on_from_the_other(device):
    torch.manual_seed(1)
    expected = torch.rand(3, device=device), torch.rand(3, device=device)
    torch.manual_seed(1)
    with OwnGenerators():
        found = torch.rand(3, device=device), torch.rand(3, device=device)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_dropout_draws_the_same_on_each_device(device):
    x = torch.ones(50, device=device)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.5, True), F.dropout(x, 0.5, True)
    torch.manual_seed(1)
    with OwnGenerators():
        found = F.dropout(x, 0.5, True), F.dropout(x, 0.5, True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
