"""The batch that most methods train on: random pixels of one image or of all images, with their rays."""

import torch

from nerfit.kernels.pixels import draw_pixels
from nerfit.methods.base import Batch
from nerfit.sampling.pixels import epoch_indices, permute
from nerfit.scenes.scene import Scene, composite


def pixel_batch(
    scene: Scene,
    count: int,
    batching: str,
    step: int,
    seed: int,
    generator: torch.Generator,
    device: torch.device,
    crop: float = 1.0,
) -> Batch:
    """``count`` training pixels with rays and target colours, drawn without replacement.

    ``batching`` "image": from one random view (fewer if the view is smaller). "all": a shuffled walk through all
    training pixels in the order of ``seed``; ``crop`` < 1 keeps to each image's central part (rows H/2 ± H/2·crop, the same for columns).
    """
    views = torch.tensor(scene.splits["train"])
    width, height = scene.cameras.width[views], scene.cameras.height[views]
    half_w, half_h = (width * crop / 2).long().clamp(min=1), (height * crop / 2).long().clamp(min=1)
    left, top = torch.zeros_like(width), torch.zeros_like(height)
    if crop < 1:
        left, top = (width // 2 - half_w).clamp(min=0), (height // 2 - half_h).clamp(min=0)
        width, height = torch.minimum(2 * half_w, width), torch.minimum(2 * half_h, height)
    sizes = width * height
    key = generator.initial_seed()
    if batching == "image":
        chosen = torch.randint(len(views), (1,), generator=torch.Generator().manual_seed(key))
        size = int(sizes[chosen])
        inside = permute(torch.arange(min(count, size)), size, key)
        chosen = chosen.expand(len(inside))
    else:
        ends = sizes.cumsum(0)
        index = epoch_indices(step, count, int(ends[-1]), seed)
        chosen = torch.searchsorted(ends, index, right=True)
        inside = index - (ends - sizes)[chosen]
    x = left[chosen] + inside % width[chosen]
    y = top[chosen] + torch.div(inside, width[chosen], rounding_mode="floor")
    view = views[chosen]
    return _batch(scene, view, x, y, scene.colors(view, x, y), generator, device)


def random_pixels(scene: Scene, count: int, empty: float, generator: torch.Generator, device: torch.device) -> Batch:
    """``count`` training pixels drawn with replacement; of the fully transparent ones about the share ``empty``."""
    views = torch.tensor(scene.splits["train"])
    cameras = scene.cameras
    view, x, y, colors = draw_pixels(
        scene.stored_pixels, scene.starts, cameras.width, cameras.height, views, count, generator.initial_seed(), empty
    )
    return _batch(scene, view, x, y, colors, generator, device)


def _batch(
    scene: Scene,
    view: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    colors: torch.Tensor,
    generator: torch.Generator,
    device: torch.device,
) -> Batch:
    """Rays and colours of pixels over the scene's background, or over a random one each."""
    colors = colors.to(device)
    if scene.background == "random":
        background = torch.rand((len(colors), 3), generator=generator, device=device)
    else:
        background = 1.0 if scene.background == "white" else 0.0
    rays = scene.rays(view, x, y).to(device)
    return Batch(rays=rays, target=composite(colors, background), background=background, generator=generator)
