"""Class activation maps of transformers: which layer is taken, and how its tokens become maps."""

import copy

import pytest
import pytorch_grad_cam
import torch
from torch import nn
from torchvision.models import SwinTransformer, swin_t
from torchvision.models.vision_transformer import VisionTransformer

import nbviz
from nbviz.core.layers import trace_layers
from nbviz.errors import ModelError
from nbviz.methods.cam import GRADIENT_CAMS
from tests.methods.test_cam import distance, peers_maps
from tests.rounds import TIMES, few

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PEERS = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "layer_cam": pytorch_grad_cam.LayerCAM,
    "xgrad_cam": pytorch_grad_cam.XGradCAM,
    "hires_cam": pytorch_grad_cam.HiResCAM,
}


@pytest.fixture(scope="module")
def vit():
    """As torchvision's vit_b_16, of which the last tokens of the picture have no part in the answer."""
    torch.manual_seed(0)
    net = VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=7).eval()
    nn.init.normal_(net.heads.head.weight)
    return net


@pytest.fixture(scope="module")
def swin():
    """Of torchvision's class, whose maps have their channels last."""
    torch.manual_seed(0)
    if TIMES:
        return swin_t(weights=None, num_classes=7).eval()
    return SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [4, 4], num_classes=7).eval()


@pytest.fixture(scope="module")
def timms():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=7).eval()


class Tokens(nn.Module):
    """A grid of tokens, some others before them, a mix of all, and the answer of the mean."""

    def __init__(self, before):
        super().__init__()
        self.before, self.patch = nn.Parameter(torch.randn(1, before, 6)), nn.Conv2d(3, 6, 16, 16)
        self.first, self.mix, self.head = nn.Linear(6, 6), nn.Linear(16 + before, 16 + before), nn.Linear(6, 20)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.first(torch.cat([self.before.expand(len(x), -1, -1), x], 1)).tanh()
        return self.head(self.mix(x.transpose(1, 2)).tanh().mean(2))


def grid(tokens, before, side):
    """One by one."""
    maps = torch.zeros(len(tokens), tokens.shape[2], side, side)
    for i in range(side * side):
        maps[:, :, i // side, i % side] = tokens[:, before + i]
    return maps


def by_hand(net, layer, target, reshape, x=X):
    """Grad-CAM by a hook of one's own."""
    kept = []

    def keep(_module, _given, value):
        kept.append(value.detach().clone().requires_grad_())
        return kept[0]

    handle = net.get_submodule(layer).register_forward_hook(keep)
    logits = net(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(x)), target].sum(), kept[0])
    weights = reshape(gradient).mean((2, 3), keepdim=True)
    return (weights * reshape(kept[0].detach())).sum(1).relu()


def tokens_of_vit(value):
    return grid(value, 1, 4)


def channels_last(value):
    return value.permute(0, 3, 1, 2)


def seen(net, layer, reshape, x=X, methods=tuple(GRADIENT_CAMS)):
    """For each picture a class for which each method's map shows something."""
    classes = range(net(x).shape[1])
    found = [nbviz.class_activation(net, x, layer, one, methods, raw=True, reshape=reshape) for one in classes]
    least = torch.stack([torch.stack([one.flatten(1).amax(1) for one in maps.values()]).amin(0) for maps in found])
    assert (least.amax(0) > 0).all()
    return least.argmax(0).tolist()


# Which layer, and which grid


def test_the_last_tokens_of_a_vit_that_have_a_gradient(vit, snapshot):
    """Those that go into the last attention, which the class token reads; what it gives of the others is dropped."""
    layer = "encoder.layers.encoder_layer_2.ln_1"
    target = seen(vit, layer, tokens_of_vit)
    with snapshot(vit):
        found = nbviz.grad_cam(vit, X, target=target, raw=True)
    assert found.shape == (2, 4, 4)
    assert torch.equal(found, nbviz.grad_cam(vit, X, layer, target, raw=True))
    assert distance(found, by_hand(vit, layer, target, tokens_of_vit)) < 1e-4
    assert nbviz.grad_cam(vit, X).shape == (2, 64, 64)


def test_the_last_maps_of_a_swin(swin, snapshot):
    """Those of the module that brings the channels to the front; channels last are found to be so before it."""
    target = seen(swin, "norm", channels_last)
    with snapshot(swin):
        found = nbviz.grad_cam(swin, X, target=target, raw=True)
    assert distance(found, by_hand(swin, "norm", target, channels_last)) < 1e-4
    for name in ("permute", "norm"):
        assert distance(found, nbviz.grad_cam(swin, X, name, target, raw=True)) < 1e-4


@pytest.mark.parametrize(
    "layer", few(["features.0", "features.1", "features.4", "features.5.0.attn", "features.7.1"], 0, 3)
)
def test_channels_last_are_found_at_any_depth(layer, swin):
    x = torch.rand(2, 3, 64, 96)
    for given in (X, x):
        shape = swin.get_submodule(layer), nbviz.class_activation(swin, given, layer, 0, ["layer_cam"], raw=True)
        maps = shape[1]["layer_cam"]
        same = nbviz.class_activation(swin, given, layer, 0, ["layer_cam"], raw=True, reshape=channels_last)
        assert torch.equal(maps, same["layer_cam"])
        assert maps.shape[1] * given.shape[3] == maps.shape[2] * given.shape[2]


def test_timms_vit(timms, snapshot):
    target = seen(timms, "blocks.2.norm1", tokens_of_vit)
    with snapshot(timms):
        found = nbviz.grad_cam(timms, X, target=target, raw=True)
    assert found.shape == (2, 4, 4)
    assert distance(found, by_hand(timms, "blocks.2.norm1", target, tokens_of_vit)) < 1e-4


def test_timms_swin_which_has_channels_last_to_its_end(snapshot):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    small = {} if TIMES else {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    net = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=7, **small).eval()
    target = seen(net, "norm", channels_last)
    with snapshot(net):
        found = nbviz.grad_cam(net, X, target=target, raw=True)
    assert found.shape == (2, 2, 2)
    assert distance(found, by_hand(net, "norm", target, channels_last)) < 1e-4


@pytest.mark.parametrize("before", [0, 1, 2, 4, 5])
def test_class_tokens_before_those_of_the_picture_are_left_out(before):
    def apart(value):
        return grid(value, before, 4)

    net = Tokens(before)
    target = seen(net, "first", apart, methods=["grad_cam"])
    found = nbviz.class_activation(net, X, "first", target, raw=True)
    assert distance(found["grad_cam"], by_hand(net, "first", target, apart)) < 1e-4
    given = nbviz.class_activation(net, X, "first", target, raw=True, reshape=apart)
    for name, maps in given.items():
        torch.testing.assert_close(maps, found[name], rtol=1e-4, atol=1e-6)


def test_the_grid_has_the_pictures_proportion():
    """12 tokens of a picture of 64×48 are 4×3, and not 3×3 after three others."""
    net, x = Tokens(0), torch.rand(2, 3, 64, 48)
    net.mix = nn.Linear(12, 12)

    def oblong(value):
        return value.transpose(1, 2).unflatten(2, (4, 3))

    target = seen(net, "first", oblong, x, ["grad_cam"])
    found = nbviz.grad_cam(net, x, "first", target, raw=True)
    assert found.shape == (2, 4, 3)
    assert distance(found, by_hand(net, "first", target, oblong, x)) < 1e-4
    assert nbviz.grad_cam(net, x, target=1).shape == (2, 64, 48)


def test_tokens_on_no_such_grid_need_reshape():
    """A picture whose sides are no whole number of patches."""
    net, x = Tokens(0), torch.rand(2, 3, 70, 48)
    net.mix = nn.Linear(12, 12)
    with pytest.raises(ValueError, match=r"layer 'first' gives \(2, 12, 6\); .* tokens on a grid of .*, or reshape="):
        nbviz.grad_cam(net, x, "first", 1)

    def oblong(value):
        return value.transpose(1, 2).unflatten(2, (4, 3))

    target = seen(net, "first", oblong, x, ["grad_cam"])
    found = nbviz.grad_cam(net, x, "first", target, raw=True, reshape=oblong)
    assert distance(found, by_hand(net, "first", target, oblong, x)) < 1e-4
    assert nbviz.grad_cam(net, x, target=1).shape == (2, 70, 48)  # the last with maps: the patches


# Against a peer


@pytest.mark.parametrize("name", few(PEERS, 1, 2))
def test_maps_of_a_vit_are_its_peers(name, vit):
    layer = "encoder.layers.encoder_layer_2.ln_1"
    target = seen(vit, layer, tokens_of_vit)
    found = getattr(nbviz.cams, name)(vit, X, layer, target, raw=True)
    assert distance(found, of_peer(PEERS[name], vit, layer, target, tokens_of_vit)) < 1e-4


@pytest.mark.parametrize("name", few(PEERS, 0, 3))
def test_maps_of_a_swin_are_its_peers(name, swin):
    target = seen(swin, "features.1", channels_last)
    found = getattr(nbviz.cams, name)(swin, X, "features.5", target, raw=True)
    assert found.shape == (2, 4, 4)
    assert distance(found, of_peer(PEERS[name], swin, "features.5", target, channels_last)) < 1e-4


def of_peer(kind, net, layer, target, reshape):
    class Reshaped(kind):
        def __init__(self, net, layers):
            super().__init__(net, layers, reshape_transform=reshape)

    return peers_maps(Reshaped, net, layer, X, target)


# Without a gradient, and the rest


@pytest.mark.parametrize("name", ["eigen_cam", "score_cam", "smooth_grad_cam_pp"])
def test_the_other_methods_take_tokens_too(name, vit, snapshot):
    options = {} if name == "eigen_cam" else {"target": [3, 5]}
    layer = "encoder.layers.encoder_layer_1"
    with snapshot(vit):
        found = getattr(nbviz.cams, name)(vit, X, layer, raw=True, **options)
    assert found.shape == (2, 4, 4)
    assert found.any()
    same = getattr(nbviz.cams, name)(vit, X, layer, raw=True, reshape=tokens_of_vit, **options)
    torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-5)
    assert getattr(nbviz.cams, name)(vit, X, **options).shape == (2, 64, 64)


def test_guided_grad_cam_of_tokens(vit):
    guided, where = nbviz.guided_backprop(vit, X, target=3), nbviz.grad_cam(vit, X, target=3)
    assert torch.equal(nbviz.cams.guided_grad_cam(vit, X, target=3), guided * where[:, None])


def test_ablation_switches_a_channel_of_all_tokens_off(vit):
    swin = SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=7).eval()
    for net, layer, arrange in [
        (vit, "encoder.layers.encoder_layer_1", tokens_of_vit),
        (swin, "features.1", channels_last),
    ]:
        found = nbviz.cams.ablation_cam(net, X, layer, [3, 5], raw=True)
        maps, scores = ablated_by_hand(net, layer, arrange, [3, 5])
        weights = (scores[:, :1] - scores[:, 1:]) / scores[:, :1]
        expected = torch.einsum("nc,nchw->nhw", weights, maps).relu()
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        same = nbviz.cams.ablation_cam(net, X, layer, [3, 5], raw=True, reshape=arrange)
        torch.testing.assert_close(same, found, rtol=1e-3, atol=1e-4)


def ablated_by_hand(net, layer, arrange, classes):
    """The maps, and each picture's score with all channels and without each (N, 1 + C), of full passes."""
    kept = []

    def scores(factors):
        def hook(_module, _args, output):
            kept.append(output)
            return output * factors

        handle = net.get_submodule(layer).register_forward_hook(hook)
        with torch.no_grad():
            found = net(X)[[0, 1], classes]
        handle.remove()
        return found

    whole = scores(1)
    without = [scores(row) for row in 1 - torch.eye(kept[0].shape[-1])]
    return arrange(kept[0]), torch.stack([whole, *without], 1)


def test_ablation_of_what_mixes_channels_says_so(vit):
    with pytest.raises(ValueError, match="only moves the channels"):
        nbviz.cams.ablation_cam(vit, X, "encoder.layers.encoder_layer_1", 3, reshape=lambda a: tokens_of_vit(a).flip(1))


def test_cam_says_that_a_class_token_is_no_average(vit):
    with pytest.raises(ValueError, match="is not a linear layer of the average"):
        nbviz.cams.cam(vit, X, "encoder.layers.encoder_layer_1", 3)


def test_what_is_within_attention_is_no_map(timms):
    every, _ = trace_layers(timms, X[:1])
    named = {one.name for one in every if one.has_maps}
    assert {"patch_embed.proj", "blocks.0.norm1", "blocks.2"} <= named

    class Normed(nn.Module):
        """As attention whose queries are normalised: (N, heads, T, C)."""

        def __init__(self):
            super().__init__()
            self.conv, self.q_norm, self.head = nn.Conv2d(3, 24, 16, 16), nn.LayerNorm(8), nn.Linear(24, 7)

        def forward(self, x):
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            q = self.q_norm(tokens.unflatten(2, (3, 8)).transpose(1, 2))
            mixed = (q @ q.mT).softmax(-1) @ q
            return self.head(mixed.transpose(1, 2).flatten(2).mean(1))

    net = Normed()
    every, _ = trace_layers(net, X[:1])
    assert [one.name for one in every if one.has_maps] == ["conv"]
    assert nbviz.grad_cam(net, X).shape == (2, 64, 64)
    assert torch.equal(nbviz.grad_cam(net, X, raw=True), nbviz.grad_cam(net, X, "conv", raw=True))


def test_the_layer_of_timms_vit_is_a_block_also_where_the_head_is_zero(timms):
    assert torch.equal(nbviz.grad_cam(timms, X), nbviz.grad_cam(timms, X, "blocks.2.norm1"))
    zero = copy.deepcopy(timms)
    nn.init.zeros_(zero.head.weight)
    assert torch.equal(nbviz.cams.eigen_cam(zero, X), nbviz.cams.eigen_cam(zero, X, "norm"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_layer_is_found_in_any_mode(mode, vit, snapshot):
    expected = nbviz.class_activation(vit, X, target=3)
    with mode(), snapshot(vit):
        found = nbviz.class_activation(vit, X, target=3)
    assert list(found) == list(GRADIENT_CAMS)
    for name, maps in found.items():
        torch.testing.assert_close(maps, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("reshape", "error", "message"),
    [
        (3, TypeError, "reshape is 3; expected a callable from an activation to"),
        (lambda value: value[:, 0, 0, 0], ModelError, r"reshape= failed on \(2, 17, 64\): IndexError"),
        (lambda value: value, ValueError, r"gives \(2, 17, 64\); expected feature maps \(N, C, H, W\), one for each"),
        (lambda value: tokens_of_vit(value)[:1], ValueError, r"gives \(1, 64, 4, 4\); expected feature maps"),
        (lambda value: None, TypeError, "what reshape= gives"),
        (lambda value: tokens_of_vit(value).long(), TypeError, "expected a dense float tensor"),
    ],
)
def test_what_reshape_gives_is_checked(reshape, error, message, vit, snapshot):
    with snapshot(vit), pytest.raises(error, match=message):
        nbviz.grad_cam(vit, X, "encoder.layers.encoder_layer_1", 3, reshape=reshape)


def test_a_layer_may_go_by_any_of_its_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.b = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.same, self.fc = self.b, nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.same(self.b(self.p(x).flatten(2).transpose(1, 2))).mean(1))

    net = Twice().eval()
    first, second = nbviz.grad_cam(net, X, "b", 1), nbviz.grad_cam(net, X, "b:1", 1)
    assert torch.equal(nbviz.grad_cam(net, X, "same", 1), first)
    assert torch.equal(nbviz.grad_cam(net, X, "b:0", 1), first)
    assert torch.equal(nbviz.grad_cam(net, X, "same:1", 1), second)
    assert not torch.equal(first, second)
    assert nbviz.ClassActivation(net, X, "same:1").layer == "b:1"
