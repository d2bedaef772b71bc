"""Even grids of points in a box of the coordinates that an export is written in."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras.poses import scale_of
from nerfit.errors import ConfigError
from nerfit.outputs.surfaces import Surfaces, WarpedSurfaces
from nerfit.scenes.scene import Scene

_TAIL, _MARGIN = 0.001, 0.02
"""Share of the visible points that a box may leave out at each face, and what is added there, in sides."""
_SAMPLE = 2_000_000


@dataclass
class Grid:
    """``shape`` nodes along x, y, z from the corner ``low``, ``spacing`` apart; ``to_scene`` takes output coordinates to the scene's."""

    low: Float[Tensor, "3"]
    spacing: float
    shape: tuple[int, int, int]
    to_scene: Float[Tensor, "4 4"]

    def __len__(self) -> int:
        return math.prod(self.shape)

    @property
    def scene_spacing(self) -> float:
        """The spacing in scene units."""
        return self.spacing * scale_of(self.to_scene)

    def positions(self, nodes: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Output coordinates (float64) of positions counted in nodes."""
        return self.low + self.spacing * nodes.double()

    def scene_points(self, nodes: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Scene coordinates of positions counted in nodes."""
        return transformed(self.to_scene, self.positions(nodes)).float()

    def index(self, flat: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
        """The three indices of nodes by their flat one (z fastest)."""
        _, ny, nz = self.shape
        return torch.stack([flat // (ny * nz), flat // nz % ny, flat % nz], -1)

    def nodes_of(self, scene_points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Positions counted in nodes of scene points."""
        return ((transformed(torch.linalg.inv(self.to_scene), scene_points.double()) - self.low) / self.spacing).float()


def transformed(transform: Float[Tensor, "4 4"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Points carried along by an affine map, float64."""
    return points.double() @ transform[:3, :3].T + transform[:3, 3]


def make_grid(scene: Scene, surfaces: Surfaces, resolution: int, box: tuple[float, ...] | None, original: bool) -> Grid:
    """``resolution`` nodes along the longest side of a box in original or scene coordinates.

    Without one it holds what the views see; of an unbounded scene, the scene's cube from -1 to 1. Of `WarpedSurfaces` the
    coordinates are NDC, which end at the near plane and at infinity.
    """
    if resolution < 8:
        raise ConfigError(f"--resolution must be at least 8, not {resolution}.")
    to_output = scene.to_original.double() if original else torch.eye(4, dtype=torch.float64)
    if box is not None:
        low, high = torch.tensor(box[:3], dtype=torch.float64), torch.tensor(box[3:], dtype=torch.float64)
        if not (high > low).all():
            raise ConfigError("--box needs x0 y0 z0 x1 y1 z1, the second corner beyond the first along every axis.")
    else:
        if scene.bounds == "unbounded" and not scene.ndc:
            points = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
            tail, margin = 0.0, 0.0
        else:
            points, tail, margin = visible_points(surfaces, _SAMPLE), _TAIL, _MARGIN
        ends = torch.quantile(transformed(to_output, points)[:: -(-len(points) // 1_000_000)], torch.tensor([tail, 1 - tail]).double(), 0)
        low, high = ends[0] - margin * (ends[1] - ends[0]).max(), ends[1] + margin * (ends[1] - ends[0]).max()
        if isinstance(surfaces, WarpedSurfaces):
            low[2], high[2] = low[2].clamp(min=-1), high[2].clamp(max=1)
    spacing = float((high - low).max()) / (resolution - 1)
    nx, ny, nz = (max(2, math.floor(float(side) / spacing + 1e-6) + 1) for side in high - low)
    return Grid(low, spacing, (nx, ny, nz), torch.linalg.inv(to_output))


def visible_points(surfaces: Surfaces, most: int) -> Float[Tensor, "n 3"]:
    """Some of the points that views see, at most ``most``, evenly chosen."""
    points = torch.cat([p.reshape(-1, 3) for p in map(surfaces.points, range(len(surfaces)))])
    points = points[points.isfinite().all(-1)]
    return points[:: max(1, -(-len(points) // most))]


def near_surfaces(surfaces: Surfaces, grid: Grid, margin: int = 4) -> Int[Tensor, "n"]:
    """Flat indices of the nodes within ``margin`` spacings of a visible point, and some more: whole blocks with a side of ``margin``."""
    blocks = [-(-n // margin) for n in grid.shape]
    marked = torch.zeros(blocks)
    for view in range(len(surfaces)):
        points = surfaces.points(view).reshape(-1, 3)
        block = (grid.nodes_of(points[points.isfinite().all(-1)]) / margin).floor().long()
        block = block[((block >= 0) & (block < torch.tensor(blocks))).all(-1)]
        marked[block.unbind(-1)] = 1
    grown = torch.nn.functional.max_pool3d(marked[None, None], 3, 1, 1)[0, 0] > 0
    nodes = grown
    for axis, n in enumerate(grid.shape):
        nodes = nodes.repeat_interleave(margin, axis).narrow(axis, 0, n)
    return nodes.flatten().nonzero()[:, 0]
