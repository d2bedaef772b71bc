"""A field baked into a sparse grid that a browser can march through, and the march itself, which `page.html` repeats in its shader."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.ndc import from_ndc, ndc_rays
from nerfit.errors import RunError, require_min
from nerfit.methods.base import Method
from nerfit.metrics.psnr_ssim import psnr
from nerfit.outputs.grids import Grid, make_grid, near_surfaces
from nerfit.outputs.surfaces import clip_to_box, see_surfaces
from nerfit.scenes.scene import Scene

BLOCK = 4
"""Nodes along a block's side."""
STEP = 0.5
"""March step, in grid spacings."""
CHANNELS = 13
"""Bytes of a node: opacity, three colours, and the three components of each colour's slope."""
EARLY_STOP = 0.01
"""Transmittance below which a ray stops."""
_PIECE = 1 << 16
_DIRECTIONS, _RIDGE, _BACK = 16, 0.02, 0.05
"""View directions that a node's colour is fitted to, pull of the slope to 0, and weight of directions from behind."""


@dataclass(kw_only=True)
class BakeConfig:
    """Options of a baked field."""

    resolution: int = 384
    """Grid nodes along the longest side of the box."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Two corners of the part to keep, in the coordinates nerfit trains in (NDC too); none = the part that the views show, or -1 to 1 in
    unbounded scenes."""
    views: int = 100
    """Largest number of training views whose depth finds the surfaces."""

    def check(self) -> None:
        """Raise ConfigError for numbers without sense."""
        require_min("--", self, views=1)


@dataclass
class Baked:
    """A field at the nodes of a grid, in those blocks of 4³ nodes that hold any matter, in order of their flat index.

    A node's bytes are its opacity α over one grid spacing, its colour times α, and α times the colour's slopes along the view
    direction's x, y and z (red, green, blue each; `slope` times (byte - 128)/127). With a ``lens`` (focal lengths, width and height
    in pixels) the grid lies in normalised device coordinates; view directions are those of the world all the same.
    """

    grid: Grid
    blocks: Int[Tensor, "blocks 3"]
    nodes: UInt8[Tensor, "blocks 4 4 4 13"]
    slope: float
    lens: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def sides(self) -> tuple[int, int, int]:
        """Blocks along x, y and z that hold all nodes."""
        nx, ny, nz = (-(-n // BLOCK) for n in self.grid.shape)
        return nx, ny, nz


@torch.no_grad()
def bake(method: Method, scene: Scene, config: BakeConfig, chunk: int, report: Any = lambda *_: None) -> Baked:
    """Opacity and colour of a trained field near the surfaces that training views see; ``report(done, of)`` after each of those."""
    config.check()
    lens = scene.ndc_by(torch.device("cpu")) if scene.ndc else None
    surfaces = see_surfaces(method, scene, config.views, config.resolution, chunk, report, warped=True)
    grid = make_grid(scene, surfaces, config.resolution, config.box, original=False)
    nodes = near_surfaces(surfaces, grid)
    alpha = torch.zeros(len(grid))
    for piece in nodes.split(_PIECE):
        alpha[piece] = _opacity(method, grid, piece)
    alpha = (alpha * 255).round()
    solid = alpha.nonzero()[:, 0]
    if not len(solid):
        raise RunError("there is no matter in the box: train longer, or choose another --box.")
    outwards = _outwards(alpha.reshape(grid.shape))
    centers = surfaces.cameras.centers[torch.linspace(0, len(surfaces) - 1, _DIRECTIONS).round().long()]
    if lens is not None:
        outwards = torch.zeros_like(outwards)  # all cameras look from in front
    fitted = [_colors(method, grid, piece, outwards[piece], centers, lens) for piece in solid.split(_PIECE)]
    colors = torch.cat(fitted) * (alpha[solid] / 255)[:, None, None]
    slope = float(colors[:, 1:].abs().max()) or 1.0
    table = torch.zeros(len(grid), CHANNELS, dtype=torch.uint8)
    table[:, 0] = alpha.to(torch.uint8)
    table[:, 4:] = 128
    table[solid, 1:4] = (colors[:, 0] * 255).round().clamp(0, 255).to(torch.uint8)
    table[solid, 4:] = (colors[:, 1:] / slope * 127 + 128).round().clamp(0, 255).to(torch.uint8).flatten(1)
    return _in_blocks(grid, table.reshape(*grid.shape, CHANNELS), slope, lens)


def _opacity(method: Method, grid: Grid, flat: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Mean opacity over one grid spacing at eight positions in the cells around nodes."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25])] * 3)
    positions = (grid.index(flat)[:, None] + corners).reshape(-1, 3)
    density = method.density(grid.scene_points(positions).to(method.device)).float().cpu()
    return (1 - torch.exp(-density * grid.scene_spacing)).reshape(-1, 8).mean(1)


def _outwards(alpha: Float[Tensor, "nx ny nz"]) -> Float[Tensor, "n 3"]:
    """Unit vectors from matter to where there is less of it; zero where it is even."""
    return torch.nn.functional.normalize(-torch.stack(torch.gradient(alpha), -1).reshape(-1, 3), dim=-1)


def _colors(
    method: Method, grid: Grid, flat: Int[Tensor, "n"], outwards: Float[Tensor, "n 3"], centers: Float[Tensor, "k 3"], lens: Any
) -> Float[Tensor, "n 4 3"]:
    """Colours at nodes as linear functions (1, x, y, z) of the view direction: least squares over views from the cameras.

    Views from the side that a node faces weigh most.
    """
    points = grid.scene_points(grid.index(flat))
    positions = points if lens is None else in_world(points, lens)
    towards = torch.nn.functional.normalize(positions[:, None] - centers, dim=-1)
    device = method.device
    _, rgb = method.radiance(points.repeat_interleave(len(centers), 0).to(device), towards.reshape(-1, 3).to(device))
    rgb = rgb.float().cpu().reshape(len(points), len(centers), 3)
    weight = (-(towards * outwards[:, None]).sum(-1)).clamp(min=0) + _BACK
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    basis = torch.cat([torch.ones_like(towards[..., :1]), towards], -1)
    ridge = torch.diag(torch.tensor([0.0, *[_RIDGE] * 3]))
    return torch.linalg.solve(basis.mT @ (weight * basis) + ridge, basis.mT @ (weight * rgb))


def in_world(points: Float[Tensor, "n 3"], lens: Any) -> Float[Tensor, "n 3"]:
    """World points of points in NDC, those at infinity very far away."""
    return from_ndc(torch.cat([points[:, :2], points[:, 2:].clamp(max=1 - 1e-4)], -1), *lens)


def _in_blocks(grid: Grid, table: UInt8[Tensor, "nx ny nz channels"], slope: float, lens: Any) -> Baked:
    """The blocks that have matter at one of their nodes or at a node just beyond, between which colours are interpolated."""
    short = [-n % BLOCK for n in grid.shape]
    padded = torch.nn.functional.pad(table, (0, 0, 0, short[2], 0, short[1], 0, short[0]))
    matter = torch.nn.functional.pad((padded[..., 0] > 0).float(), (0, 1) * 3)
    blocks = torch.nn.functional.max_pool3d(matter[None, None], BLOCK + 1, BLOCK)[0, 0].nonzero()
    tiles = padded.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK)
    return Baked(grid, blocks, tiles[blocks.unbind(-1)].permute(0, 2, 3, 4, 1).contiguous(), slope, lens)


def dense(baked: Baked) -> UInt8[Tensor, "nx ny nz channels"]:
    """All nodes of the blocks' grid."""
    out = torch.zeros(*baked.sides, BLOCK, BLOCK, BLOCK, CHANNELS, dtype=torch.uint8)
    out[..., 4:] = 128
    out[baked.blocks.unbind(-1)] = baked.nodes
    nx, ny, nz = (BLOCK * n for n in baked.sides)
    return out.permute(0, 3, 1, 4, 2, 5, 6).reshape(nx, ny, nz, CHANNELS)


def draw(baked: Baked, cameras: Cameras, view: int, background: Tensor | float) -> Float[Tensor, "height width 3"]:
    """The shader's picture of a perspective view: steps at odd halves of `STEP` from the eye, trilinear in the nodes' bytes."""
    table = dense(baked)
    busy = torch.nn.functional.max_pool3d((table[..., 0] > 0).float()[None, None], 2, 1)[0, 0] > 0
    width, height = int(cameras.width[view]), int(cameras.height[view])
    pixels = torch.arange(width * height)
    rays = cameras.rays(torch.full_like(pixels, view), pixels % width, torch.div(pixels, width, rounding_mode="floor"), 0.0, 1.0)
    straight = rays if baked.lens is None else ndc_rays(rays, *baked.lens)
    along = torch.nn.functional.normalize(straight.directions, dim=-1)
    origins = baked.grid.nodes_of(straight.origins)
    pieces = zip(*(v.split(_PIECE) for v in (origins, along, rays.viewdirs)), strict=True)
    return torch.cat([_march(table, busy, baked.slope, o, d, v, background) for o, d, v in pieces]).reshape(height, width, 3)


def likeness(method: Method, scene: Scene, baked: Baked, chunk: int, pictures: int = 3, longest_side: int = 400) -> list[float]:
    """PSNR of `draw` against the field's own pictures of what is in the box, of a few test views (else training views) made small."""
    views = scene.splits.get("test") or scene.splits["train"]
    count = min(pictures, len(views))
    cameras = scene.cameras[[views[i * len(views) // count] for i in range(count)]]
    cameras = cameras.rescale(min(1.0, longest_side / int(torch.maximum(cameras.width, cameras.height).max())))
    background = scene.backdrop
    return [psnr(draw(baked, cameras, i, background), _own(method, scene, cameras, i, baked.grid, chunk)) for i in range(len(cameras))]


@torch.no_grad()
def _own(method: Method, scene: Scene, cameras: Cameras, view: int, grid: Grid, chunk: int) -> Float[Tensor, "height width 3"]:
    """The field's picture of what is in a grid's box."""
    width, height = int(cameras.width[view]), int(cameras.height[view])
    ends = grid.scene_points(torch.tensor([[0, 0, 0], [n - 1 for n in grid.shape]])).to(method.device)
    parts = []
    for pixels in torch.arange(width * height).split(chunk):
        batch = method.view_batch(scene, cameras, view, pixels)
        assert batch.rays is not None
        rays, meets = clip_to_box(batch.rays, *ends)
        rgb = scene.backdrop.to(method.device).repeat(len(pixels), 1)
        if meets.any():
            batch.rays = rays[meets]
            rgb[meets] = method.render(batch).rgb.float()
        parts.append(rgb.cpu())
    return torch.cat(parts).reshape(height, width, 3)


def _march(
    table: Tensor, busy: Tensor, slope: float, origins: Tensor, directions: Tensor, viewdirs: Tensor, background: Tensor | float
) -> Float[Tensor, "n 3"]:
    """Colours of rays in grid coordinates (unit directions); ``busy`` says which cells have matter at a corner."""
    last = torch.tensor(busy.shape)
    planes = torch.stack([-origins / directions, (last - origins) / directions])
    near, far = planes.amin(0).amax(-1).clamp(min=0), planes.amax(0).amin(-1)
    color, light = torch.zeros_like(origins), torch.ones(len(origins))
    first, final = (near / STEP - 0.5).ceil(), (far / STEP - 0.5).floor()
    for step in range(int((final - first).max()) + 1):
        t = (first + step + 0.5) * STEP
        points = origins + t[:, None] * directions
        cell = points.floor().long()
        inside = (first + step <= final) & ((cell >= 0) & (cell < last)).all(-1) & (light >= EARLY_STOP)
        rays = inside.nonzero()[:, 0]
        rays = rays[busy[cell[rays].unbind(-1)]]
        value = _interpolated(table, cell[rays], points[rays] - cell[rays])
        alpha = (value[:, 0] / 255).clamp(max=1)
        slopes = (value[:, 4:].reshape(-1, 3, 3) - 128) / 127 * slope
        rgb = value[:, 1:4] / 255 + (slopes * viewdirs[rays][:, :, None]).sum(1)
        opacity = 1 - (1 - alpha) ** STEP
        color[rays] += (light[rays] * opacity / alpha.clamp(min=1e-3))[:, None] * rgb
        light[rays] *= 1 - opacity
    return (color + light[:, None] * background).clamp(0, 1)


def _interpolated(table: UInt8[Tensor, "nx ny nz channels"], cell: Int[Tensor, "n 3"], inside: Float[Tensor, "n 3"]) -> Tensor:
    """Trilinear values [n, channels] at positions ``inside`` cells."""
    out = torch.zeros(len(cell), table.shape[-1])
    for corner in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        share = torch.where(corner == 1, inside, 1 - inside).prod(-1, keepdim=True)
        out += share * table[(cell + corner).unbind(-1)]
    return out
