"""Which models are tried, at random weights that keep signals alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import models

SIZES = (64, 96, 128, 224, 256, 288)


@dataclass(frozen=True)
class Case:
    """A model to try."""

    name: str
    kind: str
    build: Callable[[], nn.Module]
    sizes: tuple[int, ...] = SIZES
    frames: int | None = None  # of a video
    output: Callable[[Any], Tensor] | None = None  # from what it gives to class scores

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


def cases() -> Iterator[Case]:
    for name in models.list_models(module=models):
        options: dict[str, Any] = {}
        sizes = SIZES
        if name.startswith("vit_"):
            patch = int(name.rpartition("_")[2])
            sizes = (64 // patch * patch,)
            options["image_size"] = sizes[0]
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # which takes a minute
        yield Case(name, "torchvision", partial(models.get_model, name, weights=None, **options), sizes=sizes)
    for name in TIMM.split():
        yield Case(name, "timm", partial(timm.create_model, name))
    for name in models.list_models(module=models.segmentation):
        build = partial(models.get_model, name, weights=None, weights_backbone=None)
        yield Case(name, "segmentation", build, output=averaged)
    for name in models.list_models(module=models.detection):
        build = partial(models.get_model, name, weights=None, weights_backbone=None, **_resized(name))
        yield Case(name, "detection", build)
    for name in models.list_models(module=models.video):
        frames = 16 if name.startswith(("mvit", "s3d")) else 8
        sizes = (224,) if frames == 16 else SIZES
        yield Case(name, "video", partial(models.get_model, name, weights=None), sizes, frames)


def averaged(output: dict[str, Tensor]) -> Tensor:
    """A score for each class of a segmentation."""
    return output["out"].mean((2, 3))


def _resized(name: str) -> dict[str, int]:
    """Detection models resize their pictures; most to 800 pixels, unless told otherwise."""
    return {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}


def prepare(case: Case) -> tuple[nn.Module, Tensor]:
    """The model, and one picture of the smallest size that it takes."""
    torch.manual_seed(0)
    model = case.build().eval()
    for parameter in model.parameters():
        _vary(parameter)
    for side in case.sizes:
        torch.manual_seed(0)
        pictures = torch.randn(4, 3, side, side) if case.frames is None else torch.randn(2, 3, case.frames, side, side)
        try:
            settle(model, pictures)
        except Exception:
            if side == case.sizes[-1]:
                raise
        else:
            break
    return model, pictures[:1]


@torch.no_grad()
def _vary(parameter: Tensor) -> None:
    """What starts as all ones or all zeros would leave rectifiers open or a branch dead."""
    first = parameter.flatten()[0]
    if not parameter.is_floating_point() or not torch.all(parameter == first):
        return
    if first == 1:
        parameter.uniform_(0.5, 1.5)
    else:  # biases, layer scales of 1e-6, the last normalisation of a residual branch
        parameter.normal_(0, 0.3)


@torch.no_grad()
def settle(model: nn.Module, pictures: Tensor) -> None:
    """Running statistics of the pictures, which keep the signal alive through any number of layers."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    try:
        for module in norms:
            module.momentum, module.training = 1.0, True
        model(pictures)
    finally:
        for module, momentum in zip(norms, before, strict=True):
            module.momentum, module.training = momentum, False
    for module in norms:
        if module.running_var is not None:  # a channel that hardly varied would be blown up
            module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))


# By family, the smaller members.
TIMM = """
resnet18 resnet18d resnet34 resnet26t resnet10t resnet14t resnet50 resnet50_gn resnet50c resnet50s resnetaa34d
resnetaa50 resnetblur18 resnetblur50 resnetrs50 wide_resnet50_2 resnext50_32x4d resnext50d_32x4d seresnet18
seresnet50 seresnext26t_32x4d seresnextaa101d_32x8d ecaresnet26t ecaresnet50d_pruned ecaresnetlight
ecaresnext26t_32x4d test_resnet
resnetv2_18 resnetv2_50 resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn resnetv2_50x1_bit
res2net50_14w_8s res2net50d res2next50 resnest14d resnest26d resnest50d_4s2x40d skresnet18 skresnet50d
skresnext50_32x4d legacy_seresnet18 legacy_seresnet50 legacy_seresnext26_32x4d legacy_senet154 selecsls42
selecsls60b tresnet_m tresnet_v2_l
regnetx_002 regnetx_004_tv regnetx_016 regnety_002 regnety_004 regnety_040_sgn regnetv_040 regnetz_005 regnetz_040_h
regnetz_b16 regnetz_c16_evos regnetz_d8 regnetz_d32 gernet_s gernet_m
repvgg_a0 repvgg_b1g4 repvgg_d2se mobileone_s0 mobileone_s4 test_byobnet resnet32ts resnet33ts eca_resnet33ts
seresnet33ts gcresnet33ts gcresnext26ts eca_resnext26ts bat_resnext26ts resnet51q resnet61q resnet50_clip
resnet50_mlp botnet26t_256 halonet26t lambda_resnet26t
efficientnet_b0 efficientnet_b2_pruned efficientnet_b0_gn efficientnet_b0_g16_evos efficientnet_cc_b0_4e
efficientnet_es efficientnet_lite0 efficientnet_blur_b0 efficientnet_x_b3 efficientnetv2_rw_t
gc_efficientnetv2_rw_t tf_efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_mixnet_s mixnet_s
mnasnet_050 mnasnet_small semnasnet_075 spnasnet_100 fbnetc_100 tinynet_e tinynet_a mobilenet_edgetpu_100
mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_035 mobilenetv2_110d test_efficientnet test_efficientnet_ln
mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv3_rw tf_mobilenetv3_small_minimal_100 mobilenetv4_conv_small
mobilenetv4_conv_aa_medium mobilenetv4_conv_blur_medium mobilenetv4_hybrid_medium mobilenetv5_base
fbnetv3_b lcnet_035 lcnet_100 lcnetv2_small hardcorenas_a hardcorenas_f
ghostnet_050 ghostnetv2_100 ghostnetv3_050 repghostnet_050 rexnet_100 rexnetr_130
densenet121 densenetblur121d rdnet_tiny dla34 dla46x_c dla60_res2net dla60_res2next dpn48b dpn68 dpn68b
hrnet_w18_small hrnet_w18_ssld vgg11 vgg11_bn vovnet39a ese_vovnet19b_slim_dw ese_vovnet39b_evos eca_vovnet39b
inception_v3 inception_v4 inception_resnet_v2 legacy_xception xception41 xception41p nasnetalarge pnasnet5large
nfnet_l0 eca_nfnet_l0 dm_nfnet_f0 nf_regnet_b0 nf_resnet26 nf_seresnet26 nf_ecaresnet26 test_nfnet
cspresnet50 cspresnet50w cspresnext50 cspdarknet53 darknet17 darknet53 darknetaa53 sedarknet21 cs3darknet_s
cs3darknet_focus_s cs3sedarknet_l cs3edgenet_x cspnext_tiny
convnext_atto convnext_femto_ols convnext_zepto_rms convnext_tiny_hnf convnextv2_atto test_convnext
convmixer_1024_20_ks9_p14 inception_next_atto mambaout_femto starnet_s050 starnet_s1 fasternet_t0
poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18
hgnet_tiny hgnetv2_b0 repvit_m0_9 repvit_m1 shvit_s1 edgenext_xx_small edgenext_small_rw
fastvit_t8 fastvit_sa12 fastvit_mci0 efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_l1
efficientvit_m0 efficientvim_m1 swiftformer_xs lowformer_b0 iformer_t csatv2 cpubone_nano nextvit_small
coat_tiny coat_lite_mini coatnet_nano_rw_224 coatnet_bn_0_rw_224 coatnext_nano_rw_224 maxvit_pico_rw_256
maxxvit_rmlp_nano_rw_256 mobilevit_xxs mobilevitv2_050 levit_conv_128s levit_128s visformer_tiny focalnet_tiny_srf
convit_tiny crossvit_9_240 cait_xxs24_224 davit_tiny gcvit_xxtiny hiera_tiny_224 mixer_s32_224 mvitv2_tiny
nest_tiny pit_ti_224 pvt_v2_b0 sequencer2d_s swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_patch16_224 twins_svt_small vit_tiny_r_s16_p8_224 test_vit vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224
"""
