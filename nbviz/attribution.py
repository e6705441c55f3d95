"""Attributions: how much each pixel counts for a class or a channel."""

from nbviz.methods.attribution import input_x_gradient as input_x_gradient
from nbviz.methods.attribution import integrated_gradients as integrated_gradients
from nbviz.methods.attribution import smooth_grad as smooth_grad
from nbviz.methods.deconvnet import deconvnet as deconvnet
from nbviz.methods.gradient import gradient as gradient
from nbviz.methods.guided_backprop import guided_backprop as guided_backprop
