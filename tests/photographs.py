"""Photographs of a made-up place: the corner of a room with papered walls."""

import numpy as np
import torch
from PIL import Image

from conftest import around
from nerfit.cameras.poses import align, scale_of, to_4x4
from nerfit.scenes.scene import Scene

VIEWS, WIDTH, HEIGHT, FOCAL = 8, 320, 240, 300.0


def texture(seed: int, size: int = 512) -> np.ndarray:
    """Blots of many sizes, grey levels [size, size]."""
    rng = np.random.default_rng(seed)
    levels = [np.asarray(Image.fromarray(rng.random((n, n)).astype(np.float32)).resize((size, size))) for n in (16, 32, 64, 128)]
    mean = np.sum(levels, 0)
    return 255 * (mean - mean.min()) / np.ptp(mean)


def pose(view: int) -> np.ndarray:
    return around(0.5 + 0.12 * view, 0.55 + 0.05 * (view % 3))


def photograph(c2w: np.ndarray) -> np.ndarray:
    """The corner of a room with papered walls, seen from the room: planes x, y, z = -1.5, ray by ray."""
    j, i = np.mgrid[:HEIGHT, :WIDTH]
    camera = np.stack([(i + 0.5 - WIDTH / 2) / FOCAL, -(j + 0.5 - HEIGHT / 2) / FOCAL, -np.ones(i.shape)], -1)
    d, o = camera @ c2w[:3, :3].T, c2w[:3, 3]
    t = np.where(d < 0, (-1.5 - o) / np.where(d < 0, d, 1), np.inf)
    wall = t.argmin(-1)
    point = o + d * t.min(-1, keepdims=True)
    picture = np.zeros(i.shape)
    for axis in range(3):
        u, v = (point[..., a] * 100 + 256 for a in range(3) if a != axis)
        u0, v0 = (np.floor(w).astype(int) for w in (u, v))
        paper, fu, fv = texture(axis), u - u0, v - v0
        corners = [[paper[(v0 + b) % 512, (u0 + a) % 512] for a in (0, 1)] for b in (0, 1)]
        shade = (1 - fv) * ((1 - fu) * corners[0][0] + fu * corners[0][1]) + fv * ((1 - fu) * corners[1][0] + fu * corners[1][1])
        picture = np.where(wall == axis, shade, picture)
    return np.repeat(np.rint(picture).clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def compare(found: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrees between rotations, and distances between places as a share of the diagonal of the true ones' box, once aligned."""
    found, truth = to_4x4(found), to_4x4(truth)
    similarity = align(found[:, :3, 3], truth[:, :3, 3])
    moved = similarity @ found
    rotation = moved[:, :3, :3] / scale_of(similarity)
    cosine = ((rotation * truth[:, :3, :3]).sum((1, 2)) - 1) / 2
    extent = (truth[:, :3, 3].amax(0) - truth[:, :3, 3].amin(0)).norm()
    return torch.rad2deg(cosine.clamp(-1, 1).acos()), (moved[:, :3, 3] - truth[:, :3, 3]).norm(dim=-1) / extent


def original(scene: Scene) -> torch.Tensor:
    """The scene's poses in the world of its file."""
    moved = scene.to_original @ to_4x4(scene.cameras.c2w)
    return torch.cat([moved[:, :3, :3] / scale_of(scene.to_original), moved[:, :3, 3:]], -1)
