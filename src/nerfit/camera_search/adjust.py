"""Photometric bundle adjustment of all training cameras, which starts from the surfaces of the field."""

from dataclasses import replace

import torch
from torch import Tensor

from nerfit.camera_search.photometric import adjust_photometrically
from nerfit.cameras import Cameras
from nerfit.cameras.ndc import from_ndc
from nerfit.cameras.poses import align, recentre, transform_poses
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene

POINTS = 3400
"""Number of surface points of all views together: in each view the pixels of largest gradient, out of eight times as many."""
LONGEST = 512
"""Longest side in pixels that pictures are reduced to."""
NEAREST = 0.8
"""Inverse depth of the nearest surfaces, with the near plane at 1, in a world in NDC that is placed again."""
OPAQUE = 0.8
"""Opacity above which the field's depth is that of a surface."""


@torch.no_grad()
def adjust(method: Method, scene: Scene, step: int, replace_world: bool) -> float:
    """Adjust the training cameras to each other; returns the likeness of their pictures (`adjust_photometrically`).

    The similarity that fits the new positions best to the old ones keeps the world in place. With ``replace_world``, for a field that is
    initialised again, a world in NDC is placed around the cameras' average pose instead, at a scale that takes surfaces beyond the near
    plane. The result depends on the method's state, its seed and ``step`` alone.
    """
    learned = method.cameras
    assert learned is not None
    views = learned.views.tolist()
    everywhere = learned(1.0).to("cpu")
    cameras = everywhere[views]
    longest = int(torch.maximum(cameras.width, cameras.height).max())
    small = cameras.rescale(min(1.0, LONGEST / longest))
    pictures = torch.stack([_grey(scene, view, small) for view in views])
    generator = torch.Generator().manual_seed(mix(method.seed, step, 0xADD))
    found = [_points(method, scene, small, i, pictures[i], max(POINTS // len(views), 16), generator) for i in range(len(views))]
    hosts = torch.cat([torch.full((len(rho),), i) for i, (_, rho) in enumerate(found)])
    pixels, rho = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(hosts) < 6 * len(views):  # too few to hold the poses
        return 0.0
    moved, rho, likeness = adjust_photometrically(pictures, small, hosts, pixels, rho, learned.config.focal != "given")
    c2w = everywhere.c2w.clone()
    if replace_world and scene.ndc:
        scale = float(rho.quantile(0.99)) / NEAREST
        c2w[views] = (recentre(moved.c2w)[0] * torch.tensor([1.0, 1.0, 1.0, scale])).float()
    else:
        c2w[views] = transform_poses(moved.c2w, align(moved.centers, cameras.centers)).float()
    stretch = (moved.fx / small.fx).mean()
    learned.begin_at(replace(everywhere, c2w=c2w, fx=everywhere.fx * stretch, fy=everywhere.fy * stretch))
    return likeness


def _grey(scene: Scene, view: int, cameras: Cameras) -> Tensor:
    """A view's grey levels ([height, width]) at the cameras' size, NaN for unknown pixels."""
    size = int(cameras.height[0]), int(cameras.width[0])
    known = scene.visible(view)[None].float()
    grey = scene.image(view, scene.backdrop).mean(-1)[None] * known
    shown, share = (torch.nn.functional.adaptive_avg_pool2d(v, size)[0] for v in (grey, known))
    return torch.where(share > 0.99, shown, torch.nan)


def _points(
    method: Method, scene: Scene, cameras: Cameras, view: int, picture: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pixel positions (column and row from the corner, [n, 2]) and inverse axial depths ([n]) of surface points in a view."""
    height, width = picture.shape
    x = torch.randint(2, width - 2, (8 * count,), generator=generator)
    y = torch.randint(2, height - 2, (8 * count,), generator=generator)
    change = (picture[y, x + 1] - picture[y, x - 1]).square() + (picture[y + 1, x] - picture[y - 1, x]).square()
    best = change.nan_to_num(-1.0).argsort(descending=True)[:count]
    x, y = x[best], y[best]
    owner = torch.full_like(x, view)
    rays = scene.rays(owner, x, y, cameras)
    rendering = method.render(Batch(rays.to(method.device), background=1.0))
    assert rendering.opacity is not None and rendering.depth is not None
    t = (rendering.depth / rendering.opacity.clamp(min=1e-6)).cpu()
    points = rays.origins + t[:, None] * rays.directions
    if scene.ndc:
        points = from_ndc(torch.cat([points[:, :2], points[:, 2:].clamp(max=0.998)], 1), *scene.ndc_by(points.device))
    depth = cameras.depths(owner, points)
    keep = (rendering.opacity.cpu() > OPAQUE) & (depth > 1e-3) & (change[best] > 0)
    return torch.stack([x, y], -1)[keep] + 0.5, 1 / depth[keep]
