"""A copy whose weights are randomised: in which order, all of them, and no others."""

import torch
from torch import nn
from torch.nn.utils import prune

from nbviz.methods.randomise import layers_with_weights, randomised_copies
from nbviz.methods.sanity import randomisation

X = torch.rand(2, 3, 10, 9, generator=torch.Generator().manual_seed(0))


def test_layers_are_randomised_in_the_order_in_which_they_run_and_all_their_weights():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x):
            return self.head(self.first(x).mean((2, 3)) * self.scale)

    model = Own().eval()
    before = {name: value.clone() for name, value in nn.Module.named_parameters(model)}
    order = layers_with_weights(model, X, None)
    assert order == ["head", "", "first", "first.parametrizations.weight"]
    *_, (_, changed) = randomised_copies(model, order, "cascading", 0)
    assert not torch.equal(changed.first.weight, model.first.weight)
    assert not torch.equal(changed.scale, model.scale)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_layers_are_ordered_by_the_use_of_their_weights_whoever_takes_them():
    """Attention takes the weights of a layer that it never calls; the part for training alone is not used at all."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(9, 3)
            self.last = nn.Linear(8, 3)
            self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
            self.first = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = self.first(x.to(self.last.weight.dtype)).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = block(x, x, x)[0]
            return self.last(x.mean(1))

    model = Attends().eval()
    order = layers_with_weights(model, X, None)
    assert order == ["last", "blocks.1.out_proj", "blocks.1", "blocks.0.out_proj", "blocks.0", "first"]
    found = randomisation(model.requires_grad_(False), X, "gradient", mode="independent")
    assert found.layers == tuple(order)
    assert (found.rank < 0.999).all()


def test_what_a_forward_pass_left_in_the_model_may_be_copied(snapshot):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.kept = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(224, 3)), {"all": []}

        def forward(self, x):
            self.kept["all"].append(self.net(x))
            return self.kept["all"][-1]

    model = Keeps().eval()
    model(X)
    prune.random_unstructured(model.net[0], "weight", 0.5)
    with snapshot(model):
        found = randomisation(model, X, "gradient")
    assert len(found.layers) == 2
    assert model.kept["all"][0].grad_fn is not None


def test_only_the_layers_own_weights_are_drawn_anew():
    class Resets(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.net[1].running_mean.fill_(0.3)

        def reset_parameters(self):
            self.net[0].reset_parameters()
            self.net[1].reset_running_stats()

        def forward(self, x):
            return self.net(x).mean((2, 3)) * self.scale.sum()

    model = Resets().eval()
    found = randomisation(model, X, "gradient", mode="independent")
    assert found.rank[found.layers.index("")].min() > 1 - 1e-9  # two ones, drawn from as wide a distribution, are ones
    assert found.rank[found.layers.index("net.0")].max() < 0.9
