"""The space that a field fills: a box with larger cubes around it, and where in it rays are sampled."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nerfit.cameras import Rays
from nerfit.cameras.poses import rays_meet
from nerfit.kernels.layouts import March, RaySet, Samples
from nerfit.kernels.marching import march_rays
from nerfit.sampling.occupancy import OccupancyGrid, seen_blocks
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene


class OccupiedSpace(nn.Module):
    """A scene's box as the cube [0, 1]³ (cascade coordinates), the cascades around it, and which of their cells hold matter.

    March steps are ``step_length`` sides of the box long, or at distance t at least t·``cone_angle``.
    """

    origin: Tensor

    def __init__(
        self,
        scene: Scene,
        march_steps: int,
        box: float | None = None,
        cascades: int | None = None,
        cone_angle: float | None = None,
        threshold: float = 0.01,
        warmup_decay: float = 0.95,
    ) -> None:
        """``march_steps`` lie along the box's diagonal; a cell is occupied from ``threshold`` on, the optical thickness of a step.

        None is, for ``box`` (half a side): from near and far, 1 unless the scene is an object; for ``cascades``: 1, or 5 unless it
        is an object or in NDC, which is 16 sides; for ``cone_angle``: 0 with one cascade, else 1/256.
        ``warmup_decay`` as in `OccupancyGrid`.
        """
        super().__init__()
        half, center = box_of(scene)
        half = box or half
        bounded = scene.ndc or scene.bounds == "object"
        self.cascades = cascades or (1 if bounded else 5)
        self.cone_angle = (0.0 if self.cascades == 1 else 1 / 256) if cone_angle is None else cone_angle
        self.side, self.step_length = 2 * half, math.sqrt(3) / march_steps
        self.register_buffer("origin", center - half)
        cameras = scene.cameras[scene.splits["train"]]
        seen = None if bounded else seen_blocks(cameras, scene.near, self.origin, self.side, self.cascades)
        self.grid = OccupancyGrid(self.cascades, threshold, warmup_decay=warmup_decay, seen=seen)
        self.counts: tuple[int, ...] = (0, 0, 0)
        """Rays, densities evaluated and samples kept since the step began."""

    def to_grid(self, rays: Rays, jitter: Float[Tensor, "rays"] | None) -> RaySet:
        """Rays in cascade coordinates, with the same distances.

        Args:
            rays: Rays of the scene.
            jitter: March steps from 0 to 1 by which each ray's samples move; None = half a step.
        """
        jitter = torch.full_like(rays.near, 0.5) if jitter is None else jitter
        origins, directions = (rays.origins - self.origin) / self.side, rays.directions / self.side
        return RaySet(origins, directions, rays.viewdirs, rays.near, rays.far, jitter)

    def to_cascades(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, "n"]]:
        """Points of the scene in cascade coordinates, and whether they lie in the outermost cascade."""
        x = (points - self.origin) / self.side
        return x, (x - 0.5).abs().amax(-1) <= 0.5 * 2 ** (self.cascades - 1)

    def to_scene(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points of the scene from cascade coordinates."""
        return x * self.side + self.origin

    def update(self, step: int, density: Callable[[Tensor], Tensor], seed: int, every: int = 16, probes: int = 65_536) -> None:
        """Begin a step, and in every ``every``-th of them update some cells of the grid.

        Args:
            step: Number of the step.
            density: Density [n] per side of the box at cascade coordinates [n, 3].
            seed: The cells are a function of it and the step.
            every: Steps between updates.
            probes: Cells of an update with one cascade; half as many more for each further cascade.
        """
        self.counts = (0, 0, 0)
        if step % every == 0:
            generator = torch.Generator(self.origin.device).manual_seed(mix(seed, step, 0x0CC))
            self.grid.update(density, self.step_length, probes * (self.cascades + 1) // 2, generator)

    @torch.no_grad()
    def march(self, rays: Rays, jitter: Float[Tensor, "rays"] | None, most: int | None = None) -> Samples:
        """All samples of rays in occupied cells.

        More than ``most`` per ray on average are thinned out by longer steps, which suffice for a young field: it is thin everywhere.
        """
        grid_rays, occupancy = self.to_grid(rays, jitter), self.grid.occupancy()
        samples = march_rays(grid_rays, March(occupancy, self.step_length, self.cone_angle))
        if most is None or len(samples) <= most * len(rays):
            return samples
        longer = len(samples) / (most * len(rays))
        return march_rays(grid_rays, March(occupancy, longer * self.step_length, longer * self.cone_angle))

    def count(self, rays: int, evaluated: int, kept: int) -> None:
        """Add some rays, the densities evaluated along them, and their visible samples to ``counts``."""
        self.counts = self.counts[0] + rays, self.counts[1] + evaluated, self.counts[2] + kept

    def scalars(self) -> dict[str, float]:
        """Samples per ray, evaluated and kept, and the share of space that is occupied."""
        rays, evaluated, kept = self.counts
        occupied = float((self.grid.distance == 0).float().mean())
        return {"samples_per_ray": evaluated / max(rays, 1), "visible_per_ray": kept / max(rays, 1), "occupied_blocks": occupied}


def box_of(scene: Scene) -> tuple[float, Tensor]:
    """Half the side and the centre of a scene's box; in NDC that holds what its cameras see, and at least 1.25 to the sides."""
    if scene.ndc:
        cameras = scene.cameras
        view = torch.arange(len(cameras)).repeat_interleave(4)
        right, below = torch.tensor([0, 1, 0, 1]).repeat(len(cameras)), torch.tensor([0, 0, 1, 1]).repeat(len(cameras))
        rays = scene.rays(view, right * (cameras.width[view] - 1), below * (cameras.height[view] - 1))
        ends = torch.cat([rays.origins, rays.origins + rays.directions])
        return max(1.25, float(ends.abs().max())), torch.zeros(3)
    if scene.bounds == "object":
        return 0.375 * (scene.far - scene.near), rays_meet(scene.cameras).point.to(torch.float32)
    return 1.0, torch.zeros(3)


def finest_cells(scene: Scene, middle: Float[Tensor, "3"], half: float) -> int:
    """Cells along a box of half the side ``half`` around ``middle`` for a field's finest level: 5 for 4 pixels there, from 64 to 1024.

    A finer level has room for noise between the pixels, a coarser one loses detail.
    """
    cameras = scene.cameras[scene.splits["train"]]
    per_length = 0.5 * cameras.width if scene.ndc else cameras.fx / (cameras.c2w[:, :, 3] - middle).norm(dim=-1).clamp(min=1e-6)
    return max(64, min(1024, round(1.25 * 2 * half * float(per_length.float().median()))))
