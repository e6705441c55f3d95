"""Class activation maps: which positions of a layer speak for a class."""

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
from nbviz.methods.guided_grad_cam import guided_grad_cam as guided_grad_cam
from nbviz.methods.smooth_grad_cam import smooth_grad_cam_pp as smooth_grad_cam_pp
