"""Rendering whole views of a method, chunk by chunk."""

import torch
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.errors import RunError
from nerfit.methods.base import Method
from nerfit.rendering.volume import Rendering, join
from nerfit.scenes.scene import Scene


@torch.no_grad()
def render_view(
    method: Method, scene: Scene, cameras: Cameras, view: int, chunk: int, look: Cameras | None = None, every: int = 1
) -> Rendering:
    """A view of ``cameras`` as tensors [height, width, …] on the CPU, without the samples' weights.

    ``chunk`` rays are rendered at a time, fewer where a GPU's memory ends. ``look`` replaces the cameras that view directions start from.
    ``every`` > 1 renders the middle pixel of each square of ``every`` x ``every`` pixels alone.
    """
    wide, rows = int(cameras.width[view]), torch.arange(every // 2, int(cameras.height[view]), every)
    columns = torch.arange(every // 2, wide, every)
    pixels, height, width = (rows[:, None] * wide + columns).flatten(), len(rows), len(columns)
    parts: list[Rendering] = []
    while len(pixels):
        try:
            parts.append(method.render(method.view_batch(scene, cameras, view, pixels[:chunk], look)))
            pixels = pixels[chunk:]
        except torch.cuda.OutOfMemoryError:
            chunk = smaller_chunk(chunk)
    joined = join(parts)

    def as_image(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.float().cpu().reshape(height, width, *value.shape[1:])

    rgb = joined.rgb.float().cpu().reshape(height, width, 3)
    return Rendering(rgb, as_image(joined.depth), as_image(joined.opacity), as_image(joined.disparity))


def smaller_chunk(chunk: int) -> int:
    """Half the chunk after a GPU ran out of memory; a RunError where little more can be saved."""
    torch.cuda.empty_cache()
    if chunk <= 64:
        raise RunError("the GPU has too little free memory even for 64 rays at a time.")
    return chunk // 2
