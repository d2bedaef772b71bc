"""The surfaces that views of a field show: depth maps, the points on them, and the space around them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerfit.cameras import Cameras, Rays
from nerfit.cameras.lenses import project
from nerfit.cameras.ndc import ndc_rays, to_ndc
from nerfit.errors import ConfigError, RunError
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.views import render_view
from nerfit.scenes.scene import Scene

_INFINITE = 1e-3
"""NDC depths nearer than this to 1 count as infinite."""


@dataclass
class Surfaces:
    """The surfaces that some cameras show: depths in units of its pixels' ray directions, infinite where the field is
    transparent, and colours."""

    cameras: Cameras
    depths: list[Float[Tensor, "height width"]]
    colors: list[Float[Tensor, "height width 3"]]

    def __len__(self) -> int:
        return len(self.depths)

    def points(self, view: int) -> Float[Tensor, "height width 3"]:
        """The scene points that a view's pixels see, infinite or NaN where they see none."""
        depth = self.depths[view]
        return at(_pixel_rays(self.cameras, view), depth.flatten()).reshape(*depth.shape, 3)

    def behind(self, view: int, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
        """Distance from points to the surface behind them, along the rays of a view, and which points lie in its picture."""
        depth, c = self.depths[view], self.cameras
        local = (points - c.c2w[view, :, 3]) @ c.c2w[view, :, :3]
        lens = None if c.lens is None else c.lens[view].expand(len(local))
        u, v, visible = project(local, lens, None if c.distortion is None else c.distortion[view].expand(len(local), -1))
        x = (u * c.fx[view] + c.cx[view] - c.pixel_offset).round()
        y = (v * c.fy[view] + c.cy[view] - c.pixel_offset).round()
        visible = visible & (x >= 0) & (x < depth.shape[1]) & (y >= 0) & (y < depth.shape[0])
        pixel = torch.where(visible, y * depth.shape[1] + x, 0).long()
        along = -local[:, 2] if lens is None or int(lens[0]) == 0 else local.norm(dim=-1)
        return depth.flatten()[pixel] - along, visible


@dataclass
class WarpedSurfaces(Surfaces):
    """The same in normalised device coordinates: depths run from 0 at the near plane to 1 at infinity, points lie in NDC.

    ``lens`` holds the focal lengths, width and height that make those coordinates.
    """

    lens: tuple[Tensor, Tensor, Tensor, Tensor]

    def points(self, view: int) -> Float[Tensor, "height width 3"]:
        """The points in NDC that a view's pixels see, infinite or NaN where they see none."""
        depth = self.depths[view]
        return at(ndc_rays(_pixel_rays(self.cameras, view), *self.lens), depth.flatten()).reshape(*depth.shape, 3)


def at(rays: Rays, t: Float[Tensor, "rays"]) -> Float[Tensor, "rays 3"]:
    """Points along rays."""
    return rays.origins + t[:, None] * rays.directions


def _pixel_rays(cameras: Cameras, view: int) -> Rays:
    pixels = torch.arange(int(cameras.width[view] * cameras.height[view]))
    y = torch.div(pixels, cameras.width[view], rounding_mode="floor")
    return cameras.rays(torch.full_like(pixels, view), pixels % cameras.width[view], y, 0.0, 1.0)


def see_surfaces(
    method: Method,
    scene: Scene,
    most_views: int,
    longest_side: int,
    chunk: int,
    report: Callable[[int, int], None] = lambda *_: None,
    warped: bool = False,
) -> Surfaces:
    """Render the training views, at most ``most_views`` of them and evenly chosen, at most ``longest_side`` pixels large.

    A ray's depth is its expected one where its opacity is at least a half; ``warped`` leaves those of a scene in NDC in NDC.
    Raises ConfigError for a method without depth.
    """
    train = torch.tensor(scene.splits["train"])
    chosen = train[torch.linspace(0, len(train) - 1, min(most_views, len(train))).round().long()]
    cameras = scene.cameras[chosen]
    cameras = cameras.rescale(min(1.0, longest_side / int(torch.maximum(cameras.width, cameras.height).max())))
    warped = warped and scene.ndc
    found = WarpedSurfaces(cameras, [], [], scene.ndc_by(torch.device("cpu"))) if warped else Surfaces(cameras, [], [])
    for view in range(len(cameras)):
        rendered = render_view(method, scene, cameras, view, chunk)
        if rendered.depth is None or rendered.opacity is None:
            raise ConfigError("this method renders colour only: meshes and points need a radiance field.")
        t = rendered.depth / rendered.opacity.clamp(min=1e-6)
        if scene.ndc and not warped:
            t = _from_ndc_depth(t, _pixel_rays(cameras, view))
        found.depths.append(torch.where(rendered.opacity >= 0.5, t, torch.inf))
        found.colors.append(rendered.rgb)
        report(view + 1, len(cameras))
    if not any(depth.isfinite().any() for depth in found.depths):
        raise RunError("the field is transparent from all training views: train it longer before exporting it.")
    return found


def clip_to_box(rays: Rays, low: Tensor, high: Tensor) -> tuple[Rays, Bool[Tensor, "rays"]]:
    """The rays between where they enter and leave a box (corners [3]), and which of them meet it at all (slab method)."""
    d = torch.where(rays.directions.abs() < 1e-12, 1e-12, rays.directions)
    a, b = (low - rays.origins) / d, (high - rays.origins) / d
    near = torch.maximum(rays.near, torch.minimum(a, b).amax(-1))
    far = torch.minimum(rays.far, torch.maximum(a, b).amin(-1))
    return replace(rays, near=near, far=far), near < far


def _from_ndc_depth(t: Float[Tensor, "height width"], rays: Rays) -> Float[Tensor, "height width"]:
    """Depth along the world's rays of NDC depth: the point has z = -1/(1 - t) (NeRF, appendix C)."""
    z = -1 / (1 - t.flatten()).clamp(min=_INFINITE)
    along = (z - rays.origins[:, 2]) / rays.directions[:, 2]
    return torch.where(t.flatten() < 1 - _INFINITE, along, torch.inf).reshape(t.shape)


def surface_colors(
    method: Method, scene: Scene, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], reach: float, chunk: int
) -> Float[Tensor, "n 3"]:
    """Colours of surface points (scene coordinates, outward unit normals): what a short ray down the normal sees.

    It begins ``reach`` above the surface and ends as far below.
    """
    return torch.cat([_colors(method, scene, p, n, reach) for p, n in _pieces(points, normals, chunk)])


def _pieces(points: Tensor, normals: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(points.split(size), normals.split(size), strict=True)


@torch.no_grad()
def _colors(method: Method, scene: Scene, points: Tensor, normals: Tensor, reach: float) -> Tensor:
    above, below = points + reach * normals, points - reach * normals
    if scene.ndc:
        lens = scene.ndc_by(points.device)
        above, below = to_ndc(above, *lens), to_ndc(below, *lens)
    zero = torch.zeros(len(points))
    rays = Rays(above, below - above, -normals, zero, zero + 1, zero + 0.25 * reach, zero.long())
    rendered = method.render(Batch(rays=rays.to(method.device), background=0.0))
    opacity = torch.ones_like(rendered.rgb[:, 0]) if rendered.opacity is None else rendered.opacity
    return (rendered.rgb / opacity.clamp(min=1e-3)[:, None]).clamp(0, 1).float().cpu()
