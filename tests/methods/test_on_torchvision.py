"""The three rules on networks with functional, in-place and six-capped rectifiers, where hooks on nn.ReLU go wrong.

The reference runs the same forward pass with every rectifier replaced by one whose backward pass is written out.
"""

import pytest
import torch
from torch import nn
from torchvision import models

import nbviz
from nbviz.core.backward import RULES
from nbviz.core.layout import Layout
from nbviz.core.trace import run
from nbviz.methods.reconstruct import project
from tests.rounds import few

# Builder, size of the picture, a layer, and how many rectifiers lie on the way to the output.
NETWORKS = {
    "densenet121": (lambda: models.densenet121(num_classes=11), 64, "features.transition2.conv", 121),
    "googlenet": (
        lambda: models.googlenet(num_classes=11, aux_logits=False, init_weights=False),
        64,
        "inception4a",
        57,
    ),
    "inception_v3": (
        lambda: models.inception_v3(num_classes=11, aux_logits=False, init_weights=False),
        75,
        "Mixed_5d",
        94,
    ),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=11), 64, "features.7", 35),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=11), 64, "features.4", 33),
}


CASES = [(name, rule) for name in NETWORKS for rule in RULES]


@pytest.fixture(scope="module")
def case(request):
    build, side, layer, count = NETWORKS[request.param]
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 96, 96))  # running statistics that keep the signal alive
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)  # rectifiers shut and open by more than rounding
    return net, torch.randn(1, 3, side, side), layer, count


@pytest.mark.parametrize(("case", "rule"), few(CASES, 4, 9), indirect=["case"])
def test_a_layers_channel_follows_the_rule(rule, case, by_hand, strongest, close, snapshot):
    net, x, layer, _ = case
    with snapshot(net):
        maps = nbviz.reconstruct(net, x, layer, [6, 2, 0], rules=[rule])[rule]
    net.eval()
    for k, channel in enumerate([6, 2, 0]):
        close(maps[:, k], by_hand(net, x, layer, rule, strongest(channel))[0])
    net.train()


@pytest.mark.parametrize(("case", "rule"), few(CASES, 5, 10, 12), indirect=["case"])
def test_a_class_follows_the_rule_and_meets_every_rectifier(rule, case, by_hand, close, snapshot):
    net, x, _, count = case
    with snapshot(net):
        maps = nbviz.reconstruct(net, x, target=7, rules=[rule])[rule]
    net.eval()
    expected, calls = by_hand(net, x, None, rule, lambda logits: torch.eye(11)[None, 7])
    close(maps, expected)
    trace = run(net.train(), x, output=True, grad=True)
    trace.activations["output"], trace.layouts["output"] = trace.output[:, :, None, None], Layout((0, 1, 2, 3))
    _, met = project(trace, "output", [0, 1], rule)
    assert met
    assert calls == count


@pytest.mark.parametrize("case", few(NETWORKS, 3), indirect=True)
def test_the_rules_differ(case):
    net, x, layer, _ = case
    maps = nbviz.reconstruct(net, x, layer, [0])
    for a, b in (("gradient", "deconvnet"), ("gradient", "guided"), ("deconvnet", "guided")):
        assert (maps[a] - maps[b]).abs().max() > 0.01 * maps[a].abs().max()
