"""nbviz shows, inside a notebook, what a trained convolutional network has learned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbviz import bundled as bundled
    from nbviz.core.errors import CompiledWarning as CompiledWarning
    from nbviz.core.errors import ModelError as ModelError
    from nbviz.core.errors import NoRectifierWarning as NoRectifierWarning
    from nbviz.core.errors import PictureError as PictureError
    from nbviz.export.tensorboard import log as log
    from nbviz.imaging.pixels import grid as grid
    from nbviz.imaging.pixels import overlay as overlay
    from nbviz.methods import sanity as sanity
    from nbviz.methods.ablation import AblationTable as AblationTable
    from nbviz.methods.ablation import ablate as ablate
    from nbviz.methods.ablation import switched_off as switched_off
    from nbviz.methods.attribution import input_x_gradient as input_x_gradient
    from nbviz.methods.attribution import integrated_gradients as integrated_gradients
    from nbviz.methods.attribution import smooth_grad as smooth_grad
    from nbviz.methods.cam import class_activation as class_activation
    from nbviz.methods.cam import grad_cam as grad_cam
    from nbviz.methods.cam import grad_cam_pp as grad_cam_pp
    from nbviz.methods.cam import hires_cam as hires_cam
    from nbviz.methods.cam import layer_cam as layer_cam
    from nbviz.methods.cam import xgrad_cam as xgrad_cam
    from nbviz.methods.cam_without_gradient import ablation_cam as ablation_cam
    from nbviz.methods.cam_without_gradient import cam as cam
    from nbviz.methods.cam_without_gradient import eigen_cam as eigen_cam
    from nbviz.methods.cam_without_gradient import score_cam as score_cam
    from nbviz.methods.compare import Comparison as Comparison
    from nbviz.methods.compare import compare as compare
    from nbviz.methods.correspondence import correspondence as correspondence
    from nbviz.methods.deconvnet import deconvnet as deconvnet
    from nbviz.methods.evolution import Moment as Moment
    from nbviz.methods.evolution import Recorder as Recorder
    from nbviz.methods.evolution import evolution as evolution
    from nbviz.methods.feature_maps import feature_maps as feature_maps
    from nbviz.methods.feature_maps import fuse as fuse
    from nbviz.methods.gradient import gradient as gradient
    from nbviz.methods.guided_backprop import guided_backprop as guided_backprop
    from nbviz.methods.guided_grad_cam import guided_grad_cam as guided_grad_cam
    from nbviz.methods.invariance import invariance as invariance
    from nbviz.methods.kernels import frequency_response as frequency_response
    from nbviz.methods.kernels import kernel_report as kernel_report
    from nbviz.methods.kernels import kernels as kernels
    from nbviz.methods.layers import layers as layers
    from nbviz.methods.maximise import Maximised as Maximised
    from nbviz.methods.maximise import maximise as maximise
    from nbviz.methods.occlusion import occlusion as occlusion
    from nbviz.methods.occlusion import region_effect as region_effect
    from nbviz.methods.reconstruct import reconstruct as reconstruct
    from nbviz.methods.report import Report as Report
    from nbviz.methods.report import report as report
    from nbviz.methods.smooth_grad_cam import smooth_grad_cam_pp as smooth_grad_cam_pp
    from nbviz.methods.top_patches import StrongestPatches as StrongestPatches
    from nbviz.methods.top_patches import top_patches as top_patches
    from nbviz.pictures.load import load as load
    from nbviz.pictures.preprocess import Preprocess as Preprocess
    from nbviz.scanning import statistics as statistics
    from nbviz.scanning.scan import InterruptedWarning as InterruptedWarning
    from nbviz.scanning.scan import ScanResult as ScanResult
    from nbviz.scanning.scan import scan as scan
    from nbviz.widgets.ablation import Ablation as Ablation
    from nbviz.widgets.class_activation import ClassActivation as ClassActivation
    from nbviz.widgets.compare import Compare as Compare
    from nbviz.widgets.correspondence import Correspondence as Correspondence
    from nbviz.widgets.evolution import Evolution as Evolution
    from nbviz.widgets.explorer import Explorer as Explorer
    from nbviz.widgets.explorer import explore as explore
    from nbviz.widgets.feature_maps import FeatureMaps as FeatureMaps
    from nbviz.widgets.invariance import Invariance as Invariance
    from nbviz.widgets.kernels import Kernels as Kernels
    from nbviz.widgets.maximise import Maximise as Maximise
    from nbviz.widgets.memory import set_memory_limit as set_memory_limit
    from nbviz.widgets.occlusion import Occlusion as Occlusion
    from nbviz.widgets.reconstruction import Reconstruction as Reconstruction
    from nbviz.widgets.regions import Regions as Regions
    from nbviz.widgets.sanity import Sanity as Sanity
    from nbviz.widgets.scan_view import ScanView as ScanView
    from nbviz.widgets.top_patches import TopPatches as TopPatches

__version__ = "0.1.0"

# Where each public name lives; loaded when first used, so that `import nbviz` stays light.
_HOMES = {
    "ablate": "nbviz.methods.ablation",
    "Ablation": "nbviz.widgets.ablation",
    "ablation_cam": "nbviz.methods.cam_without_gradient",
    "AblationTable": "nbviz.methods.ablation",
    "bundled": "nbviz.bundled",
    "cam": "nbviz.methods.cam_without_gradient",
    "class_activation": "nbviz.methods.cam",
    "ClassActivation": "nbviz.widgets.class_activation",
    "compare": "nbviz.methods.compare",
    "Compare": "nbviz.widgets.compare",
    "Comparison": "nbviz.methods.compare",
    "CompiledWarning": "nbviz.core.errors",
    "correspondence": "nbviz.methods.correspondence",
    "Correspondence": "nbviz.widgets.correspondence",
    "deconvnet": "nbviz.methods.deconvnet",
    "eigen_cam": "nbviz.methods.cam_without_gradient",
    "evolution": "nbviz.methods.evolution",
    "Evolution": "nbviz.widgets.evolution",
    "explore": "nbviz.widgets.explorer",
    "Explorer": "nbviz.widgets.explorer",
    "feature_maps": "nbviz.methods.feature_maps",
    "FeatureMaps": "nbviz.widgets.feature_maps",
    "frequency_response": "nbviz.methods.kernels",
    "fuse": "nbviz.methods.feature_maps",
    "grad_cam": "nbviz.methods.cam",
    "grad_cam_pp": "nbviz.methods.cam",
    "gradient": "nbviz.methods.gradient",
    "grid": "nbviz.imaging.pixels",
    "guided_backprop": "nbviz.methods.guided_backprop",
    "guided_grad_cam": "nbviz.methods.guided_grad_cam",
    "hires_cam": "nbviz.methods.cam",
    "input_x_gradient": "nbviz.methods.attribution",
    "integrated_gradients": "nbviz.methods.attribution",
    "InterruptedWarning": "nbviz.scanning.scan",
    "invariance": "nbviz.methods.invariance",
    "Invariance": "nbviz.widgets.invariance",
    "kernel_report": "nbviz.methods.kernels",
    "kernels": "nbviz.methods.kernels",
    "Kernels": "nbviz.widgets.kernels",
    "layer_cam": "nbviz.methods.cam",
    "layers": "nbviz.methods.layers",
    "load": "nbviz.pictures.load",
    "log": "nbviz.export.tensorboard",
    "maximise": "nbviz.methods.maximise",
    "Maximise": "nbviz.widgets.maximise",
    "Maximised": "nbviz.methods.maximise",
    "ModelError": "nbviz.core.errors",
    "Moment": "nbviz.methods.evolution",
    "NoRectifierWarning": "nbviz.core.errors",
    "occlusion": "nbviz.methods.occlusion",
    "Occlusion": "nbviz.widgets.occlusion",
    "overlay": "nbviz.imaging.pixels",
    "PictureError": "nbviz.core.errors",
    "Preprocess": "nbviz.pictures.preprocess",
    "reconstruct": "nbviz.methods.reconstruct",
    "Reconstruction": "nbviz.widgets.reconstruction",
    "Recorder": "nbviz.methods.evolution",
    "region_effect": "nbviz.methods.occlusion",
    "Regions": "nbviz.widgets.regions",
    "report": "nbviz.methods.report",
    "Report": "nbviz.methods.report",
    "sanity": "nbviz.methods.sanity",
    "Sanity": "nbviz.widgets.sanity",
    "scan": "nbviz.scanning.scan",
    "ScanResult": "nbviz.scanning.scan",
    "ScanView": "nbviz.widgets.scan_view",
    "score_cam": "nbviz.methods.cam_without_gradient",
    "set_memory_limit": "nbviz.widgets.memory",
    "smooth_grad": "nbviz.methods.attribution",
    "smooth_grad_cam_pp": "nbviz.methods.smooth_grad_cam",
    "statistics": "nbviz.scanning.statistics",
    "StrongestPatches": "nbviz.methods.top_patches",
    "switched_off": "nbviz.methods.ablation",
    "top_patches": "nbviz.methods.top_patches",
    "TopPatches": "nbviz.widgets.top_patches",
    "xgrad_cam": "nbviz.methods.cam",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbviz' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if home.__name__.endswith(f".{name}") and not hasattr(home, name) else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
