"""The table of all class activation maps."""

from __future__ import annotations

from nbviz.methods.cam import GRADIENT_CAMS, Cam
from nbviz.methods.cam_without_gradient import ablation_cam, cam, eigen_cam, score_cam
from nbviz.methods.smooth_grad_cam import smooth_grad_cam_pp

#: All class activation maps by the names of their functions, in the order in which menus list them.
CAMS: dict[str, Cam] = {
    **GRADIENT_CAMS,
    "cam": Cam("CAM", cam),
    "eigen_cam": Cam("Eigen-CAM", eigen_cam),
    "smooth_grad_cam_pp": Cam("Smooth Grad-CAM++", smooth_grad_cam_pp),
    "score_cam": Cam("Score-CAM", score_cam),
    "ablation_cam": Cam("Ablation-CAM", ablation_cam),
}
