"""The batch that most methods train on: random pixels of one image or of all images, with their rays; and its colour error."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.errors import SceneError
from nerfit.kernels.pixels import draw_pixels
from nerfit.methods.base import Batch, Part
from nerfit.sampling.share import WHOLE, Share
from nerfit.sampling.shuffle import epoch_indices, mix, permute
from nerfit.scenes.scene import Scene, composite

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""View, column, row and stored colour of pixels."""
Draw = Callable[[int, int, Share], tuple[Drawn, int]]
"""What is drawn with a key and a seed: a device's share of the pixels, and how many all are."""
_TRIES = 100
_POINTS = 4
"""For so many pixels one more is drawn in which a point is seen."""


def pixel_batch(
    scene: Scene,
    count: int,
    batching: str,
    step: int,
    seed: int,
    generator: torch.Generator,
    device: torch.device,
    crop: float = 1.0,
    cameras: Cameras | None = None,
    depths: bool = False,
    share: Share = WHOLE,
) -> Batch:
    """``count`` training pixels with rays and target colours, drawn without replacement.

    ``batching`` "image": from one random view (fewer if the view is smaller). "all": a shuffled walk through all
    training pixels in the order of ``seed``; ``crop`` < 1 keeps to each image's central part (rows H/2 ± H/2·crop, the same for columns).
    Pixels hidden by masks are drawn but left out. ``cameras`` (`Method.training_cameras`) replace the scene's own, and ``depths`` asks for
    the depths that are known, those of maps, else of a quarter as many pixels more in which points are seen. Of all that a device takes
    its ``share``. So it is in `random_pixels`.
    """
    views = torch.tensor(scene.splits["train"])
    width, height = scene.cameras.width[views], scene.cameras.height[views]
    half_w, half_h = (width * crop / 2).long().clamp(min=1), (height * crop / 2).long().clamp(min=1)
    left, top = torch.zeros_like(width), torch.zeros_like(height)
    if crop < 1:
        left, top = (width // 2 - half_w).clamp(min=0), (height // 2 - half_h).clamp(min=0)
        width, height = torch.minimum(2 * half_w, width), torch.minimum(2 * half_h, height)
    sizes = width * height

    def draw(key: int, seed: int, share: Share) -> tuple[Drawn, int]:
        whole = count
        if batching == "image":
            chosen = torch.randint(len(views), (1,), generator=torch.Generator().manual_seed(key))
            size = int(sizes[chosen])
            whole = min(count, size)
            inside = permute(share.indices(whole), size, key)
            chosen = chosen.expand(len(inside))
        else:
            ends = sizes.cumsum(0)
            index = epoch_indices(step, count, int(ends[-1]), seed, share)
            chosen = torch.searchsorted(ends, index, right=True)
            inside = index - (ends - sizes)[chosen]
        x = left[chosen] + inside % width[chosen]
        y = top[chosen] + torch.div(inside, width[chosen], rounding_mode="floor")
        return (views[chosen], x, y, scene.colors(views[chosen], x, y)), whole

    return _batch(scene, draw, seed, generator, device, cameras, depths, share)


def random_pixels(
    scene: Scene,
    count: int,
    empty: float,
    generator: torch.Generator,
    device: torch.device,
    cameras: Cameras | None = None,
    depths: bool = False,
    share: Share = WHOLE,
) -> Batch:
    """``count`` training pixels drawn with replacement; of the fully transparent ones about the share ``empty``.

    Pixels hidden by masks are passed over, and left out where twelve in a row are hidden.
    """
    views = torch.tensor(scene.splits["train"])
    width, height, empty = scene.cameras.width, scene.cameras.height, 0.0 if scene.masked else empty

    def draw(key: int, seed: int, share: Share) -> tuple[Drawn, int]:
        return draw_pixels(scene.stored_pixels, scene.starts, width, height, views, count, key, empty, share.rank, share.world_size), count

    return _batch(scene, draw, 0, generator, device, cameras, depths, share)


def rays_for_samples(samples: int, rays: int, kept: int) -> int:
    """How many rays give about ``samples`` where so many gave ``kept``; more or fewer by a half at most, from 64 to 2¹⁶, or to 4
    for each sample where that is more.
    """
    return int(min(max(rays * samples / max(kept, 1), 0.5 * rays, 64), 1.5 * rays, max(2**16, 4 * samples)))


def mean_area(scene: Scene) -> float:
    """Mean over the training pixels of their cone's squared radius."""
    views = torch.tensor(scene.splits["train"])
    corner = torch.zeros_like(views)
    pixels = (scene.cameras.width * scene.cameras.height)[views]
    return float((scene.rays(views, corner, corner).pixel_radius.square() * pixels).sum() / pixels.sum())


def colour_error(rgb: Tensor, batch: Batch, area: float | None = None) -> Tensor:
    """Mean squared error of a batch's colours [rays, 3]; with a mean ``area`` each pixel counts by its own (mip-NeRF, section 4.1)."""
    assert batch.target is not None
    if area is None:
        return F.mse_loss(rgb, batch.target)
    assert batch.rays is not None
    weight = batch.rays.pixel_radius.detach().square() / area
    return (weight * (rgb - batch.target).square().mean(-1)).mean()


def _batch(
    scene: Scene,
    draw: Draw,
    seed: int,
    generator: torch.Generator,
    device: torch.device,
    cameras: Cameras | None,
    depths: bool,
    share: Share,
) -> Batch:
    """Rays and colours of a share of the pixels that ``draw`` takes, over the scene's background or a random one each."""
    key = generator.initial_seed()
    if scene.masked:  # all are drawn, for only then is it known how many are not hidden
        drawn = _known(scene, draw, seed, key)
        whole = len(drawn[0])
        if share.world_size > 1:
            view, x, y, colors = (value[share.indices(whole)] for value in drawn)
            drawn = view, x, y, colors
    else:
        drawn, whole = draw(key, seed, share)
    part = Part(share.indices(whole), whole)
    depth = weight = None
    if depths:
        drawn, part, depth, weight = _with_depths(scene, drawn, part, share, key, cameras)
        depth, weight = depth.to(device), weight.to(device)
    view, x, y, colors = drawn
    colors = colors.to(device)
    batch = Batch(generator=generator, depth=depth, depth_weight=weight, part=part if share.world_size > 1 else None)
    background = 1.0 if scene.background == "white" else 0.0
    if scene.background == "random":
        background = batch.uniform(len(colors), 3)
        assert background is not None
    where = view.device if cameras is None else cameras.c2w.device
    rays = scene.rays(view.to(where), x.to(where), y.to(where), cameras).to(device)
    return replace(batch, rays=rays, target=composite(colors, background), background=background)


def _with_depths(
    scene: Scene, drawn: Drawn, part: Part, share: Share, key: int, cameras: Cameras | None
) -> tuple[Drawn, Part, Tensor, Tensor]:
    """The pixels and, where they are few, a share of others in which points are seen; distances t of all, and what their errors are
    multiplied by.
    """
    view, x, y, colors = drawn
    if scene.depths is not None:
        depth = scene.depths[scene.starts[view] + y * scene.cameras.width[view] + x]
        trust = (depth > 0).float()
    else:
        assert scene.points is not None
        more = -(-part.whole // _POINTS)
        chosen = torch.randint(len(scene.points), (more,), generator=torch.Generator().manual_seed(mix(key, 0xDE)))
        seen = scene.points[chosen[share.indices(more)]]
        part = Part(torch.cat([part.places, part.whole + share.indices(more)]), part.whole + more)
        none = torch.zeros(len(view))
        depth, trust = torch.cat([none, seen.depth]), torch.cat([none, seen.trust])
        view, x, y = (torch.cat(pair) for pair in ((view, seen.view), (x, seen.x), (y, seen.y)))
        colors = torch.cat([colors, scene.colors(seen.view, seen.x, seen.y)])
    distance, weight = scene.distances(view, x, y, depth, cameras)
    return (view, x, y, colors), part, distance, trust * weight


def _known(scene: Scene, draw: Draw, seed: int, key: int) -> Drawn:
    """Pixels without those that masks hide; drawn again with another key and seed where none is left."""
    drawn, _ = draw(key, seed, WHOLE)
    for attempt in range(_TRIES):
        known = drawn[3][:, 3] > 0
        if known.any():
            return drawn[0][known], drawn[1][known], drawn[2][known], drawn[3][known]
        drawn, _ = draw(mix(key, attempt), mix(seed, attempt), WHOLE)
    raise SceneError(f"{scene.name}: the masks hide nearly everything; do they show what to hide in black?")
