"""Receptive fields and strides, against what changes when a single pixel changes."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from nbviz.core.layers import trace_layers
from nbviz.core.receptive_field import Field
from tests.rounds import rounds

some = settings(max_examples=rounds(60, 150), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def reached(net, height, width, alone=False):
    """For each position of the output which pixels reach it, (h, w, height, width).

    With positive filters and pictures each pixel in turn is made so bright that all who see it change, in one batch
    or, for a network that mixes the pictures of a batch, alone.
    """
    pixels = height * width
    x = (1 + torch.rand(1, 1, height, width, dtype=torch.float64)).repeat(pixels + 1, 1, 1, 1)
    x[:-1].view(pixels, -1).diagonal().add_(1e10)
    for parameter in net.double().eval().parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        output = torch.cat([net(one) for one in x.split(1)]) if alone else net(x)
    changed = (output[:-1] - output[-1:]).abs() > 1e-4  # far above what rounding leaves of 1e10
    return changed.any(1).permute(1, 2, 0).reshape(*output.shape[2:], height, width)


def claimed(net, height, width):
    """The field of the whole network's output, by its last layer."""
    return trace_layers(nn.Sequential(net).double(), torch.rand(1, 1, height, width, dtype=torch.float64))[0][-1].field


def bounds(pixels):
    """Top, left, bottom, right (ends excluded) of what is true, or None."""
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def check(net, height, width, exact=False):
    """The claimed box of every position holds all that reaches it, and is no larger where no border is near."""
    field, pixels = claimed(net, height, width), reached(net, height, width)
    if field is None or field.gated:
        assert not exact
        return None
    compared = 0
    for row in range(pixels.shape[0]):
        for column in range(pixels.shape[1]):
            box, seen = field.box((row, column), (height, width)), bounds(pixels[row, column])
            assert 0 <= box[0] < box[2] <= height
            assert 0 <= box[1] < box[3] <= width
            if seen is None:
                continue
            assert box[0] <= seen[0]
            assert box[1] <= seen[1]
            assert box[2] >= seen[2]
            assert box[3] >= seen[3]
            inside = all(
                field.stride[i] * (row, column)[i] + field.low[i] >= 0
                and field.stride[i] * (row, column)[i] + field.high[i] < (height, width)[i]
                for i in range(2)
            )
            if exact and inside:
                assert box == seen
                assert (box[2] - box[0], box[3] - box[1]) == field.size
                compared += 1
    return compared


class Relu(nn.Module):
    def forward(self, x):
        return F.relu(x)


class Branches(nn.Module):
    """The same input through several branches that keep its size, added up or stacked."""

    def __init__(self, branches, join):
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x):
        parts = [branch(x) for branch in self.branches]
        return torch.cat(parts, 1).mean(1, keepdim=True) if self.join == "cat" else sum(parts[1:], parts[0])


class Resize(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.how = how

    def extra_repr(self):
        return str(self.how)

    def forward(self, x):
        return F.interpolate(x, **self.how)


class Shuffle(nn.Module):
    """Channels to and fro, rows and columns away from the end and back."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.repeat(1, 4, 1, 1).view(n, 2, 2 * c, h, w).transpose(1, 2).reshape(n, 4 * c, h, w)
        x = x.permute(0, 2, 3, 1) * torch.ones(4 * c, dtype=x.dtype)
        x = x.movedim(-1, 1) if h != w else x.permute(0, 3, 1, 2)
        a, b = x.chunk(2, 1)
        return (a + b)[:, :c].contiguous()


class Half(nn.Module):
    """Reads rows and columns far apart in different ways: only 'not known' or 'the whole' are right."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
odd = st.sampled_from([1, 3])


@st.composite
def convolutions(draw):
    kernel, dilation = draw(pairs), draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]))
    padding = tuple(draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True))
    if draw(st.integers(0, 4)) == 0:
        return nn.Conv2d(1, 1, draw(st.tuples(odd, odd)), padding="same", dilation=dilation)
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
    return nn.Conv2d(1, 1, kernel, stride=draw(pairs), padding=padding, dilation=dilation, padding_mode=mode)


@st.composite
def poolings(draw):
    kernel = draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride, ceil = draw(st.none() | pairs), draw(st.booleans())
    if draw(st.booleans()):
        return nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil)
    dilation = draw(st.integers(1, 2))
    return nn.MaxPool2d(kernel, stride, padding, dilation=dilation, ceil_mode=ceil)


chains = st.lists(
    convolutions()
    | poolings()
    | st.sampled_from([Relu(), nn.BatchNorm2d(1), nn.Identity(), nn.ZeroPad2d((2, 0, 1, 1))]),
    min_size=1,
    max_size=5,
)


@st.composite
def branches(draw):
    kept = st.builds(
        lambda k, d: nn.Conv2d(1, 1, k, padding=(k - 1) * d // 2, dilation=d), odd, st.integers(1, 2)
    ) | st.builds(lambda k: nn.MaxPool2d(k, 1, k // 2), odd)
    parts = draw(st.lists(kept | st.just(nn.Identity()) | st.just(Relu()), min_size=2, max_size=3))
    return Branches(parts, draw(st.sampled_from(["cat", "add"])))


@st.composite
def resizers(draw):
    kind = draw(st.sampled_from(["transposed", "upsample", "size", "factor", "adaptive"]))
    if kind == "transposed":
        kernel, stride = draw(pairs), draw(pairs)
        padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
        extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
        return nn.ConvTranspose2d(1, 1, kernel, stride, padding, output_padding=extra)
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"]))
    smooth = {"align_corners": draw(st.booleans())} if mode in ("bilinear", "bicubic") else {}
    if kind == "upsample":
        return nn.Upsample(scale_factor=draw(st.integers(1, 3)), mode=mode, **smooth)
    if kind == "size":
        return Resize(size=draw(st.tuples(st.integers(2, 12), st.integers(2, 12))), mode=mode, **smooth)
    if kind == "factor":
        factor = draw(st.sampled_from([0.4, 0.5, 0.75, 1.2, 1.3, 2.0, 2.3, (2.5, 0.6)]))
        again = {"recompute_scale_factor": draw(st.booleans())}
        return Resize(scale_factor=factor, mode=mode, **smooth, **again)
    pool = draw(st.sampled_from([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]))
    return pool(draw(st.tuples(st.integers(2, 9), st.integers(2, 9))))


graphs = st.lists(convolutions() | poolings() | branches() | resizers() | st.builds(Shuffle), min_size=1, max_size=4)


def sizes(net, height, width):
    """Whether the network takes pictures of this size, and gives something to look at that is not too large."""
    try:
        with torch.no_grad():
            output = net.double().eval()(torch.rand(1, 1, height, width, dtype=torch.float64))
    except RuntimeError:
        return False
    return 0 < output[0].numel() <= 1200


@some
@given(chains, st.integers(8, 16), st.integers(8, 16))
def test_the_field_of_a_chain_is_exact(modules, height, width):
    net = nn.Sequential(*modules)
    assume(sizes(net, height, width))
    check(net, height, width, exact=True)


@some
@given(graphs, st.integers(6, 13), st.integers(6, 13))
def test_the_field_of_any_network_holds_all_that_is_seen(modules, height, width):
    net = nn.Sequential(*modules)
    assume(sizes(net, height, width))
    check(net, height, width)


def test_the_random_networks_are_no_empty_promise():
    """The same check finds a box that is one pixel short, or one too large."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    assert check(net, 16, 15, exact=True) > 9
    right = Field.window
    for off in (-1, 1):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(
                Field,
                "window",
                lambda self, kernel, step, padding, dilation, off=off: right(
                    self, (kernel[0] + off, kernel[1]), step, padding, dilation
                ),
            )
            check(net, 16, 15, exact=True)


# By hand


CASES = {
    "conv 1x1": (nn.Conv2d(1, 1, 1), (1, 1), (1, 1)),
    "conv 3x5": (nn.Conv2d(1, 1, (3, 5)), (3, 5), (1, 1)),
    "dilated": (nn.Conv2d(1, 1, 3, dilation=(2, 3)), (5, 7), (1, 1)),
    "strided twice": (nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(1, 1, 3, stride=(2, 3))), (7, 7), (4, 6)),
    "pooled": (nn.Sequential(nn.MaxPool2d(3, 2), nn.AvgPool2d(2)), (5, 5), (4, 4)),
    "dilated pooling": (nn.MaxPool2d(2, stride=1, dilation=3), (4, 4), (1, 1)),
    "average pooling in ceil mode": (nn.AvgPool2d(2, 2, 0, True), (2, 2), (2, 2)),
    "power pooling": (nn.LPPool2d(2, 3, stride=2), (3, 3), (2, 2)),
    "even share": (nn.AdaptiveAvgPool2d(8), (2, 2), (2, 2)),
    "nearest": (nn.Upsample(scale_factor=2), (2, 2), (0.5, 0.5)),
    "down by nearest": (nn.Upsample(scale_factor=0.5), (1, 1), (2, 2)),
    "bilinear, not resized": (nn.Upsample((16, 16), mode="bilinear"), (1, 1), (1, 1)),
    "in the shape of another": (Half(lambda x: x.reshape(*x.shape, 1).view_as(x.flip(3))), (1, 1), (1, 1)),
    "in place on channels": (Half(lambda x: [x := x * 1, x[:, :1].relu_()][0]), (1, 1), (1, 1)),
    "in place": (Half(lambda x: F.max_pool2d(x, 3, 1, 1).add_(x).relu_()), (3, 3), (1, 1)),
    "skip": (Branches([nn.Conv2d(1, 1, 3, padding=1), nn.Identity()], "add"), (3, 3), (1, 1)),
    "inception": (Branches([nn.Conv2d(1, 1, k, padding=k // 2) for k in (1, 3, 5)], "cat"), (5, 5), (1, 1)),
    "channels last": (
        Half(lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(1, 1, dtype=x.dtype)).permute(0, 3, 1, 2)),
        (1, 1),
        (1, 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_known_fields(case):
    net, size, stride = CASES[case]
    layer = trace_layers(nn.Sequential(net.float()), torch.rand(1, 1, 16, 16))[0][-1]
    assert layer.receptive_field == size
    assert layer.stride == stride
    check(net, 16, 16)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 4), (5, 5), (20, 7)])
def test_antialiasing_reads_wider(mode, size):
    check(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), Resize(size=size, mode=mode, antialias=True)), 23, 19)


def chain(*steps):
    """Receptive field and stride of (kernel, stride) after (kernel, stride): Araujo et al. 2019, equation 1."""
    size, jump = 1, 1
    for kernel, stride in steps:
        size, jump = size + (kernel - 1) * jump, jump * stride
    return (size, size), (jump, jump)


VGG16 = [step for n in (2, 2, 3, 3, 3) for step in [*[(3, 1)] * n, (2, 2)]]
ALEXNET = [(11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2)]
RESNET18 = [(7, 2), (3, 2), *[(3, 1)] * 4, *[(3, 2), (3, 1), (3, 1), (3, 1)] * 3]
# The stride of a bottleneck is on its 3×3 filter.
RESNET50 = [(7, 2), (3, 2), *[(3, 1)] * 3, *[(3, 2), *[(3, 1)] * 3], *[(3, 2), *[(3, 1)] * 5], *[(3, 2), *[(3, 1)] * 2]]


@pytest.fixture(scope="module")
def known():
    def fields(features, side):
        found = trace_layers(nn.Sequential(features).eval(), torch.rand(1, 3, side, side))[0]
        return {layer.name: (layer.receptive_field, layer.stride) for layer in found}

    return fields


def test_the_fields_of_vgg16(known):
    fields = known(models.vgg.make_layers(models.vgg.cfgs["D"]), 64)
    assert fields["0.30"] == chain(*VGG16) == ((212, 212), (32, 32))
    assert fields["0.29"] == ((196, 196), (16, 16))
    assert fields["0.16"] == ((44, 44), (8, 8))
    assert fields["0.0"] == fields["0.1"] == ((3, 3), (1, 1))


def test_the_fields_of_alexnet(known):
    fields = known(models.AlexNet().features, 64)
    assert fields["0.12"] == chain(*ALEXNET) == ((195, 195), (32, 32))
    assert fields["0.0"] == ((11, 11), (4, 4))


def test_the_fields_of_resnet18_and_its_head(known):
    fields = known(models.resnet18(), 64)
    assert fields["0.layer4"] == chain(*RESNET18) == ((435, 435), (32, 32))
    assert fields["0.layer1"] == ((43, 43), (4, 4))
    assert fields["0.layer4.1.conv1"] == ((435 - 64, 435 - 64), (32, 32))
    assert fields["0.avgpool"] == fields["0.fc"] == (None, None)


def test_the_field_of_resnet50(known):
    assert known(models.resnet50(), 64)["0.layer4"] == chain(*RESNET50)


def test_the_field_of_a_densenet_is_that_of_its_longest_path(known):
    net = models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, num_classes=2)
    steps = [(7, 2), (3, 2), (3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (3, 1)]
    assert known(net, 64)["0.features.norm5"] == chain(*steps)


def test_squeeze_and_excite_is_gated_by_the_whole():
    from torchvision.ops import SqueezeExcitation

    net = nn.Sequential(nn.Conv2d(1, 4, 3), SqueezeExcitation(4, 2), nn.Conv2d(4, 1, 3))
    found = {layer.name: layer for layer in trace_layers(net, torch.rand(1, 1, 16, 16))[0]}
    assert not found["0"].field.gated
    assert found["1"].field.gated
    assert found["2"].field.gated
    assert found["2"].receptive_field == (5, 5)
    assert found["2"].sees == "sees 5×5 px, step 1; its squeeze-and-excite gate sees the whole picture"
    assert found["1.avgpool"].field is None
    assert found["1.avgpool"].sees == "sees the whole picture"


GATED = {
    "group": nn.GroupNorm(1, 1),
    "instance": nn.InstanceNorm2d(1),
    "of rows and columns": nn.LayerNorm([1, 10, 11]),
    "batch, by its own statistics": nn.BatchNorm2d(1, track_running_stats=False),
    "minus the mean": Half(lambda x: x - x.mean()),
}


@pytest.mark.parametrize("case", GATED)
def test_statistics_of_the_whole_gate(case):
    assert reached(GATED[case], 10, 11, alone=True).all()
    assert claimed(GATED[case].float(), 10, 11).gated


def test_a_normalisation_of_channels_alone_does_not_gate():
    net = Half(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (1,)).permute(0, 3, 1, 2))
    field = claimed(net, 9, 9)
    assert (field.size, field.gated, field.axes) == ((1, 1), False, (2, 3))


def picked(x):
    order = torch.arange(x.shape[2] - 1, -1, -1)
    return x[:, :, order]


def shifted(x):
    result = torch.zeros_like(x)
    result[:, :, 2:] = x[:, :, :-2]
    return result


def into_an_empty_one(x):
    result = torch.zeros(x.shape, dtype=x.dtype)
    result[:, :, 2:] = x[:, :, :-2]
    return x + result


def rows_as_pictures(x):
    """A filter along rows that only a one-dimensional convolution sees."""
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 1, 3).reshape(n * h, c, w)
    return F.conv1d(rows, torch.ones(c, c, 3, dtype=x.dtype), padding=1).reshape(n, h, c, w).permute(0, 2, 1, 3)


def written_to(write):
    """A copy of the picture, changed in place by ``write(copy, picture)``."""

    def step(x):
        result = x.clone()
        write(result, x)
        return result

    return step


def written_behind_a_view(x):
    result = x.clone()
    view = result[:, :]
    result.add_(F.max_pool2d(x, 3, 1, 1))
    return view * 1


def ones(x, *shape):
    return torch.ones(shape, dtype=x.dtype)


UNKNOWN = {
    "mixed in the shape of another": lambda x: (x.flatten(1).flip(1)).view_as(x),
    "mixed in another's shape, reshaped": lambda x: (x.flatten(1).flip(1)).reshape_as(x),
    "mixed in another's type": lambda x: x.flip(3).type_as(x) * 1,
    "torch.convolution": lambda x: torch.convolution(
        x, ones(x, 1, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    ),
    "an operation by its inner name": lambda x: torch.ops.aten.avg_pool2d.default(x, [3, 3], [1, 1], [1, 1]),
    "a group of them": lambda x: torch.ops.aten.avg_pool2d(x, [3, 3], [1, 1], [1, 1]),
    "native batch norm": lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.0, 1e-5)[0],
    "take": lambda x: x.take(torch.arange(x.numel() - 1, -1, -1).view(x.shape)),
    "as_strided": lambda x: x.as_strided(x.shape, (x.stride(0), x.stride(1), x.stride(3), x.stride(2))),
    "renorm": lambda x: x.renorm(2, 3, 1.0),
    "adjoint": lambda x: x.adjoint(),
    "slopes": lambda x: torch.gradient(x, dim=3)[0],
    "scattered by a mask": lambda x: x.masked_scatter(torch.ones_like(x, dtype=torch.bool), x.flip(3)),
    "mm": lambda x: torch.mm(x[0, 0], ones(x, x.shape[3], x.shape[3]))[None, None].expand(len(x), -1, -1, -1),
    "copied into a slice": written_to(lambda z, x: z[:, :, 2:].copy_(x[:, :, :-2])),
    "added to a slice": written_to(lambda z, x: z[:, :, 2:].add_(x[:, :, :-2])),
    "added to a slice of a slice": written_to(lambda z, x: z[:, :, 1:][:, :, 1:].add_(x[:, :, :-2])),
    "written out to a slice": written_to(lambda z, x: torch.add(x[:, :, :-2], 1, out=z[:, :, 2:])),
    "written through a view of another shape": written_to(lambda z, x: z.flatten(1).copy_(x.flatten(1).flip(1))),
    "written behind a view": written_behind_a_view,
    "flip": lambda x: x.flip(1, 3),
    "roll": lambda x: x.roll(2, 3),
    "rot90": lambda x: torch.rot90(x, 2, (2, 3)),
    "reversed by an index": picked,
    "index_select": lambda x: x.index_select(3, torch.arange(x.shape[3] - 1, -1, -1)),
    "sorted rows": lambda x: x.sort(2).values,
    "running sum": lambda x: x.cumsum(-1),
    "softmax over columns": lambda x: x.softmax(3),
    "unit rows": lambda x: F.normalize(x, dim=2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "matmul": lambda x: x @ torch.ones(x.shape[3], x.shape[3], dtype=x.dtype),
    "matmul from the right": lambda x: torch.ones(x.shape[2], x.shape[2], dtype=x.dtype) @ x,
    "einsum": lambda x: torch.einsum("nchw,hk->nckw", x, torch.ones(x.shape[2], x.shape[2], dtype=x.dtype)),
    "fourier": lambda x: torch.fft.fft2(x).real,
    "linear over columns": lambda x: F.linear(x, torch.ones(x.shape[3], x.shape[3], dtype=x.dtype)),
    "assigned elsewhere": shifted,
    "assigned elsewhere and added": into_an_empty_one,
    "conv1d over rows": rows_as_pictures,
    "maxima over three dimensions": lambda x: F.max_pool3d(x, 3, 1, 1),
    "circular padding": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1),
    "sum of two strides": lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 6, 1),
    "transposed": lambda x: x.mT,
    "whole rows": lambda x: x + x.mean(3, keepdim=True),
    "filter over channels-last": lambda x: F.conv2d(
        x.permute(0, 2, 3, 1), torch.ones(x.shape[2], x.shape[2], 3, 1, dtype=x.dtype), padding=(1, 0)
    ).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_followed_is_not_claimed(case):
    """A box that is too small would be a lie; 'the whole picture' is at worst too large."""
    net = Half(UNKNOWN[case])
    check(net, 10, 10)
    field = claimed(net, 10, 10)
    assert field is None or field.gated


def test_a_picture_on_its_side_has_rows_and_columns_told_apart():
    """After a transposition the filter's height goes along the picture's columns."""
    net = Half(lambda x: F.avg_pool2d(x.transpose(2, 3), (3, 1), (2, 1)).transpose(2, 3))
    check(net, 12, 9)


def test_boxes_stay_in_the_picture_and_hold_a_pixel():
    field = Field((2, 3), (2.0, 2.0), (-9.0, -9.0), (-7.0, -7.0))
    assert field.box((0, 0), (5, 6)) == (0, 0, 1, 1)
    assert field.box((50, 50), (5, 6)) == (4, 5, 5, 6)
    assert Field((2, 3), (0.5, 0.5), (-0.5, -0.5), (0.25, 0.25)).box((3, 4), (8, 8)) == (1, 1, 3, 4)


def test_neighbouring_boxes_are_a_stride_apart():
    field = claimed(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2)), 32, 32)
    starts = [field.box((row, 0), (32, 32))[0] for row in range(5)]
    assert {b - a for a, b in pairwise(starts)} == {4}
    assert math.prod(field.size) == 25


@pytest.mark.parametrize("name", ["view_as", "reshape_as", "expand_as", "type_as", "to"])
def test_a_tensor_that_gives_its_shape_or_type_gives_nothing_else(name):
    field = claimed(Half(lambda x: getattr(x, name)(x.flip(3)) * 1), 6, 7)
    assert (field.size, field.gated) == ((1, 1), False)
    assert claimed(Half(lambda x: getattr(x.flip(3), name)(x) * 1), 6, 7) is None


OTHER_AXES = {
    "signal": (
        (41,),
        [
            nn.Conv1d(1, 2, 5, 2, 1, 2),
            nn.AvgPool1d(3, 2),
            nn.ReLU(),
            nn.Conv1d(2, 1, 2),
        ],
    ),
    "signal, resized": (
        (24,),
        [nn.ConvTranspose1d(1, 1, 3, 2), nn.Upsample(scale_factor=2, mode="linear"), nn.AdaptiveAvgPool1d(11)],
    ),
    "volume": (
        (9, 12, 14),
        [
            nn.Conv3d(1, 2, (1, 3, 3), (1, 2, 1), (0, 1, 0)),
            nn.ReLU(),
            nn.AvgPool3d((3, 1, 2)),
            nn.Conv3d(2, 1, (2, 1, 3)),
        ],
    ),
    "volume, resized": (
        (5, 6, 4),
        [nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"), nn.AdaptiveAvgPool3d((3, 4, 4))],
    ),
}


@pytest.mark.parametrize("case", OTHER_AXES)
def test_signals_and_volumes(case):
    """Every position's box is what the gradient of the position reaches, where no border is near."""
    sides, modules = OTHER_AXES[case]
    net = nn.Sequential(*modules).double()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.rand(1, 1, *sides, dtype=torch.float64, requires_grad=True)
    layer = trace_layers(net, x.detach())[0][-1]
    assert layer.has_maps
    output, compared = net(x)[0].sum(0), 0
    for position in torch.cartesian_prod(*map(torch.arange, output.shape)).reshape(-1, len(sides)).tolist():
        (reached,) = torch.autograd.grad(output[tuple(position)], x, retain_graph=True)
        places = reached[0, 0].nonzero()
        seen = (*places.amin(0).tolist(), *(places.amax(0) + 1).tolist())
        box, count = layer.field.box(position, sides), len(sides)
        assert all(box[i] <= seen[i] < seen[count + i] <= box[count + i] for i in range(count))
        compared += box == seen and layer.field.corner(position) == box[:count]
    assert compared > 1 or "resized" in case
