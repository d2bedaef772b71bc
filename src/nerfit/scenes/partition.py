"""A scene too large for one field, cut into blocks by where its cameras stand.

After Block-NeRF (Tancik et al. 2022), whose blocks overlap, are trained apart, and are blended by the distance of the camera
(section 4.3.2), and Mega-NeRF (Turki et al. 2022), whose blocks are the cells of a grid (section 3.1).
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.poses import scale_of, transform_poses, world_up
from nerfit.errors import ConfigError, SceneError
from nerfit.scenes.scene import Scene


@dataclass
class BlocksConfig:
    """How a scene is cut into blocks (`nerfit blocks`), and which block is trained."""

    grid: tuple[int, int] = (1, 1)
    """Blocks along the longer and the shorter side of the ground that the cameras cover; all hold about the same number of cameras."""
    overlap: float = 0.25
    """How far a block reaches into its neighbours, as a share of the mean block width (0.25 in Block-NeRF)."""
    index: int | None = None
    """The block to train; none = the whole scene."""

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.grid)

    def check_one(self) -> None:
        """Raise ConfigError where a training would be of all blocks at once."""
        if self.count > 1 and self.index is None:
            raise ConfigError(
                "a scene in blocks is trained block by block: nerfit blocks trains all, --blocks.index K the one of that number."
            )

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return {"overlap": "blocks.grid is 1 1"} if self.count == 1 else {}


@dataclass
class Partition:
    """Blocks as cells of the ground: intervals from low to high along two axes, endless at the outside, that reach beyond by a margin."""

    axes: Float[Tensor, "2 3"]
    low: Float[Tensor, "blocks 2"]
    high: Float[Tensor, "blocks 2"]
    margin: Float[Tensor, "2"]

    def __len__(self) -> int:
        return len(self.low)

    def weights(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n blocks"]:
        """The weight of each block at points of the scene; weights sum to 1.

        1 in its cell, falling to 0 at the margin's end, before they are divided by their sum: so what is blended never jumps, and
        away from the borders one block is enough. (Block-NeRF's inverse distances jump where a block is left out.)
        """
        flat = (points.to(self.axes) @ self.axes.T)[:, None]
        outside = torch.maximum(self.low - flat, flat - self.high).clamp(min=0) / self.margin
        near = (1 - outside.norm(dim=-1)).clamp(min=0)
        return (near / near.sum(-1, keepdim=True)).to(points)


def partition(cameras: Cameras, config: BlocksConfig) -> Partition:
    """The blocks of training cameras: slabs of as many of them across the longer axis, each cut the same way across the shorter.

    Raises ConfigError for a grid or an overlap without sense.
    """
    columns, rows = config.grid
    if columns < 1 or rows < 1 or config.overlap <= 0 or len(cameras) < 2 * config.count:
        raise ConfigError(
            f"blocks.grid {columns} {rows} with overlap {config.overlap} can't be made of {len(cameras)} cameras: "
            "it takes positive numbers, and two cameras for each block."
        )
    centers = cameras.centers.double()
    up = world_up(cameras.c2w)
    spread = centers - centers.mean(0)
    spread = spread - (spread @ up)[:, None] * up
    axes = torch.linalg.eigh(spread.T @ spread)[1].flip(-1).T[:2]
    flat = centers @ axes.T
    low, high = [], []
    for slab in _cells(flat[:, 0], columns):
        inside = (flat[:, 0] >= slab[0]) & (flat[:, 0] <= slab[1])
        for cell in _cells(flat[inside, 1], rows):
            low.append([slab[0], cell[0]])
            high.append([slab[1], cell[1]])
    width = (flat.amax(0) - flat.amin(0)) / torch.tensor(config.grid)
    margin = (config.overlap * width).clamp(min=1e-12)
    return Partition(axes, torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), margin)


def _cells(x: Float[Tensor, "n"], count: int) -> list[tuple[float, float]]:
    """Neighbouring intervals that hold as many of the numbers each, with borders midway between two."""
    x, ends = x.sort().values, [len(x) * k // count for k in range(1, count)]
    edges = [-math.inf, *((x[end - 1] + x[end]).item() / 2 for end in ends), math.inf]
    return list(itertools.pairwise(edges))


@dataclass
class Block:
    """A block's training views, and the similarity from the scene to its own coordinates, in which it lies in the unit box."""

    views: list[int]
    to_block: Float[Tensor, "4 4"]

    @property
    def scale(self) -> float:
        """Lengths in the block's coordinates over those in the scene's."""
        return scale_of(self.to_block)


def blocks_of(scene: Scene, config: BlocksConfig) -> tuple[Partition, list[Block]]:
    """How a scene is cut, and its blocks; ConfigError where it can't be."""
    if scene.ndc:
        raise ConfigError(f"{scene.name} is in normalised device coordinates, which can't be cut into blocks: add --scene.no-ndc.")
    train = torch.tensor(scene.splits["train"])
    parts = partition(scene.cameras[train], config)
    weights = parts.weights(scene.cameras.centers[train])
    return parts, [_block(scene, train[weights[:, k] > 0].tolist()) for k in range(len(parts))]


def _block(scene: Scene, views: list[int]) -> Block:
    """The block of some views: its box holds the cameras and, where the scene's depths are known, what is midway of them in view."""
    cameras = scene.cameras[views]
    held = [cameras.centers.double()]
    if scene.depth_range is not None:
        held.append(held[0] - sum(scene.depth_range) / 2 * cameras.c2w[:, :, 2].double())
    low, high = torch.cat(held).amin(0), torch.cat(held).amax(0)
    half = float((high - low).max()) / 2
    if half <= 0:
        raise SceneError(f"{scene.name}: the cameras of a block all stand in one point; choose fewer blocks.")
    to_block = torch.eye(4, dtype=torch.float64) / half
    to_block[:3, 3], to_block[3, 3] = -(low + high) / 2 / half, 1
    return Block(views, to_block)


def cut(scene: Scene, config: BlocksConfig) -> Scene:
    """The scene of one block: in the block's coordinates, unbounded, with its own training and test views.

    A scene that isn't cut stays as it is.
    """
    if config.index is None:
        return scene
    if not 0 <= config.index < config.count:
        raise ConfigError(f"blocks.index must be 0 to {config.count - 1}, not {config.index}.")
    parts, blocks = blocks_of(scene, config)
    block = blocks[config.index]
    home = parts.weights(scene.cameras.centers).argmax(-1)
    splits = {split: [view for view in views if home[view] == config.index] for split, views in scene.splits.items()}
    points = scene.points
    if points is not None:
        points = points[torch.isin(points.view, torch.tensor(block.views))]
        points = replace(points, depth=points.depth * block.scale)
    return replace(
        scene,
        name=f"{scene.name}-block{config.index}",
        cameras=replace(scene.cameras, c2w=transform_poses(scene.cameras.c2w, block.to_block).to(scene.cameras.c2w)),
        near=scene.near * block.scale,
        far=scene.far * block.scale,
        splits=splits | {"train": block.views},
        bounds="unbounded",
        to_original=scene.to_original @ torch.linalg.inv(block.to_block),
        depth_range=scene.depth_range and (scene.depth_range[0] * block.scale, scene.depth_range[1] * block.scale),
        depths=None if scene.depths is None else scene.depths * block.scale,
        points=points,
    )
