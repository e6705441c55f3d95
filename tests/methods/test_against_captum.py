"""The three rules against Captum, where it is right: networks whose rectifiers are nn.ReLU modules, each used once."""

import warnings

import pytest
import torch
from captum import attr
from torch import nn
from torchvision import models

import nbviz
from tests.rounds import few

# Captum's spelling of each rule: of a layer's neuron, and of the output.
PEERS = {
    nbviz.gradient: (attr.NeuronGradient, attr.Saliency),
    nbviz.deconvnet: (attr.NeuronDeconvolution, attr.Deconvolution),
    nbviz.guided_backprop: (attr.NeuronGuidedBackprop, attr.GuidedBackprop),
}
RULES = {method.__name__: method for method in PEERS}


CASES = [(name, rule) for name in ("vgg", "alexnet", "resnet") for rule in RULES]


@pytest.fixture
def case(request, vgg_like, alexnet_like):
    """A network, pictures, and layers of it (one of them a rectifier's own output)."""
    if request.param == "vgg":
        return vgg_like, torch.randn(2, 3, 32, 32), ["2", "3", "9", "12"]
    if request.param == "alexnet":
        features = alexnet_like(3)
        net = nn.Sequential(*features, nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7)).eval()
        return net, torch.randn(2, 3, 79, 79), ["3", "5", "9", "10"]
    torch.manual_seed(3)
    net = models.resnet18(num_classes=7)
    net.train()(torch.randn(4, 3, 40, 40))  # running statistics that keep the signal alive
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    # In a ResNet's blocks one module is called twice, which Captum gets wrong: two modules instead.
    for block in net.modules():
        if isinstance(block, models.resnet.BasicBlock):
            block.forward = two_rectifiers(block)
    return net.eval(), torch.randn(2, 3, 40, 40), ["layer1.1.conv2", "layer2", "layer3.0.downsample"]


def two_rectifiers(block):
    block.second = nn.ReLU()

    def forward(x):
        out = block.relu(block.bn1(block.conv1(x)))
        out = block.bn2(block.conv2(out))
        return block.second(out + (x if block.downsample is None else block.downsample(x)))

    return forward


def captum(method, *arguments, **options):
    """Without its warnings that it sets hooks and gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.attribute(*arguments, **options).detach()


@pytest.mark.parametrize(("case", "rule"), few(CASES, 0, 1, 2, 4, 8), indirect=["case"])
def test_a_layers_channel_equals_captums_neuron(rule, case, close):
    net, x, layers = case
    method = RULES[rule]
    for layer in layers:
        activation = nbviz.feature_maps(net, x, layer)
        alive = activation.amax((2, 3)).amin(0).topk(2).indices.tolist()  # in both pictures
        maps = method(net, x, layer, alive, seed="unit")
        for k, channel in enumerate(alive):
            for n in range(len(x)):
                position = divmod(int(activation[n, channel].argmax()), activation.shape[3])
                peer = PEERS[method][0](net, net.get_submodule(layer))
                expected = captum(peer, x[n : n + 1].clone(), (channel, *position))
                close(maps[n : n + 1, k], expected)


@pytest.mark.parametrize(("case", "rule"), few(CASES, 0, 1, 2, 3, 4, 5, 7), indirect=["case"])
def test_an_output_class_equals_captums(rule, case, close):
    net, x, _ = case
    method = RULES[rule]
    options = {"abs": False} if method is nbviz.gradient else {}
    close(method(net, x, target=[3, 0]), captum(PEERS[method][1](net), x.clone(), target=[3, 0], **options))
    predicted = net(x).argmax(1).tolist()
    close(method(net, x), captum(PEERS[method][1](net), x.clone(), target=predicted, **options))


@pytest.mark.parametrize(("case", "rule"), few(CASES, 0, 1, 5, 6), indirect=["case"])
def test_rectifiers_in_place_change_nothing(rule, case):
    net, x, layers = case
    method = RULES[rule]
    expected = [method(net, x, layer, [0, 2], seed="map") for layer in layers]
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    for layer, maps in zip(layers, expected, strict=True):
        assert torch.equal(method(net, x, layer, [0, 2], seed="map"), maps)
