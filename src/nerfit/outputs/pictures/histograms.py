"""Pictures of where a method looks along rays: the weights of proposals behind those of the field."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.methods.base import Method
from nerfit.scenes.scene import Scene

WIDTH, HEIGHT = 512, 64
_FIELD, _PROPOSALS = (0.85, 0.33, 0.1), ((0.75, 0.85, 0.95), (0.5, 0.68, 0.88))


@torch.no_grad()
def draw_histograms(method: Method, scene: Scene, view: int, rays: int = 8) -> Float[Tensor, "height width 3"] | None:
    """A band for each of some rays along a view's diagonal, near on the left; None for a method without histograms.

    Bars are as high as the square root of the weight per length, each level's over its own greatest: proposals in blue, the field
    in orange in front of them.
    """
    width, height = int(scene.cameras.width[view]), int(scene.cameras.height[view])
    share = (torch.arange(rays) + 0.5) / rays
    pixels = (share * height).long() * width + (share * width).long()
    levels = method.histograms(method.view_batch(scene, scene.cameras, view, pixels))
    if not levels:
        return None
    picture = torch.ones(rays, HEIGHT, WIDTH, 3)
    colours = [_PROPOSALS[min(i, len(_PROPOSALS) - 1)] for i in range(len(levels) - 1)] + [_FIELD]
    for (edges, weights), colour in zip(levels, colours, strict=True):
        picture[_bars(edges.float().cpu(), weights.float().cpu())] = torch.tensor(colour)
    picture[:, -1] = 0.0
    return picture.flatten(0, 1)


def _bars(edges: Float[Tensor, "rays bins+1"], weights: Float[Tensor, "rays bins"]) -> Tensor:
    """Which pixels [rays, HEIGHT, WIDTH] a histogram's bars cover."""
    columns = ((torch.arange(WIDTH) + 0.5) / WIDTH).expand(len(edges), WIDTH).contiguous()
    bins = torch.searchsorted(edges.contiguous(), columns, right=True) - 1
    inside = (bins >= 0) & (bins < weights.shape[1])
    density = (weights / edges.diff().clamp(min=1e-6)).gather(-1, bins.clamp(0, weights.shape[1] - 1)) * inside
    level = (density / density.amax(-1, keepdim=True).clamp(min=1e-9)).sqrt()
    return level[:, None] > 1 - (torch.arange(HEIGHT)[:, None] + 0.5) / HEIGHT
