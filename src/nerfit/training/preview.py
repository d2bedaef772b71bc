"""A held-out view during training."""

import math

from torch import Tensor

from nerfit.methods.base import Method
from nerfit.methods.views import render_view
from nerfit.metrics.psnr_ssim import psnr
from nerfit.scenes.scene import Scene


def preview(method: Method, scene: Scene, chunk: int, pixels: int) -> tuple[float, float, dict[str, Tensor]]:
    """PSNR in dB of the first held-out view, that of its mean colour, and its pictures ([height, width, channels]) by name.

    At most ``pixels`` of its pixels are rendered, evenly spaced.
    """
    view = (scene.splits.get("val") or scene.splits.get("test") or scene.splits["train"])[0]
    placed = method.place(scene)
    camera = placed.cameras[view]
    width, height = int(camera.width[0]), int(camera.height[0])
    every = min(math.ceil((width * height / pixels) ** 0.5), width, height)
    rendering = render_view(method, placed, camera, 0, chunk, every=every)
    middles = (slice(every // 2, None, every),) * 2
    truth, known = scene.image(view, scene.backdrop)[middles], scene.visible(view)[middles]
    images = {"holdout/rgb": rendering.rgb, "holdout/truth": truth}
    if rendering.disparity is not None and rendering.opacity is not None:
        images["holdout/disparity"] = (rendering.disparity / rendering.disparity.max().clamp(min=1e-9))[..., None]
        images["holdout/opacity"] = rendering.opacity[..., None]
    return psnr(rendering.rgb[known], truth[known]), psnr(truth[known].mean(0), truth[known]), images
