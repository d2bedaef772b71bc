"""Evaluation of pictures of unknown exposure and white balance: the protocol of NeRF in the Wild (Martin-Brualla et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.rendering.appearance import photographed
from nerfit.rendering.volume import Rendering
from nerfit.scenes.scene import Scene

_STAY = 1e-5
"""Weight of staying as it is, beside that of a pixel's squared error, for what the left half doesn't show."""


def fitted_to_left_half(rendering: Rendering, scene: Scene, view: int, background: float | Tensor) -> Float[Tensor, "height width 3"]:
    """A whole rendered view after the affine colour map that fits the left half of its picture best, by least squares.

    As in training, only light in front of the background is mapped where pictures are cut out; what masks hide has no part.
    """
    height, width = rendering.rgb.shape[:2]
    opacity = rendering.opacity.flatten() if scene.has_alpha and rendering.opacity is not None else None
    seen, behind = photographed(rendering.rgb.reshape(-1, 3), opacity, background)
    truth = scene.image(view, 0.0 if opacity is not None else background).reshape(-1, 3)
    known = scene.visible(view) & (torch.arange(width) < width // 2)
    x, y = seen[known.flatten()].double(), truth[known.flatten()].double()
    start = torch.eye(4, 3, dtype=torch.float64)
    penalty = _STAY * max(len(x), 1) * torch.eye(4, dtype=torch.float64)
    colour_map = start + torch.linalg.solve(x.T @ x + penalty, x.T @ (y - x @ start))
    return (seen @ colour_map.float() + behind).reshape(height, width, 3)
