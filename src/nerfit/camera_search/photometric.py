"""Photometric bundle adjustment of cameras and depths (Alismail et al. 2016; Engel et al. 2018)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras.cameras import Cameras
from nerfit.cameras.rotations import axis_angle_to_matrix

LEVELS = (4, 2, 1)
"""Factors by which pictures are reduced, one after another."""
ITERATIONS = 12
"""Levenberg-Marquardt steps on each of them."""
SPREAD = 0.05
"""Difference of grey levels (0 to 1) above which a pixel counts less: the scale of Cauchy's weights."""
_PATCH = torch.cartesian_prod(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0]))


def adjust_photometrically(
    pictures: Float[Tensor, "views height width"],
    cameras: Cameras,
    hosts: Int[Tensor, "points"],
    pixels: Float[Tensor, "points 2"],
    inverse_depth: Float[Tensor, "points"],
    learn_focal: bool = False,
) -> tuple[Cameras, Float[Tensor, "points"], float]:
    """The cameras and inverse depths for which surface points have the same grey levels in all pictures, and the likeness they reach.

    ``cameras`` are perspective cameras of one size. A point is a patch of 3x3 pixels around ``pixels`` (column and row from the corner) in
    the picture of view ``hosts``, at one axial depth. Unknown pixels of ``pictures`` are NaN. Gauss-Newton steps move all poses, all
    inverse depths and, with ``learn_focal``, the logarithm of the focal length together: motions of poses and depths that only work
    together cost gradient descent thousands of steps. The world's place and scale stay near their start. The likeness is 1 if all
    patches agree, and 0 if they differ as those of different points do. Computed in float64 on the CPU.
    """
    given, rho = cameras.to("cpu")._map(lambda t: t.double() if t.is_floating_point() else t), inverse_depth.double()
    cameras, likeness = given, 0.0
    for level in LEVELS:
        small, start = cameras.rescale(1 / level), given.rescale(1 / level)
        size = int(small.height[0]), int(small.width[0])
        known = F.adaptive_avg_pool2d((~pictures.isnan())[:, None].double(), size)
        images = F.adaptive_avg_pool2d(pictures.nan_to_num()[:, None].double(), size) / known.clamp(min=1e-9)
        at = pixels.double() * torch.tensor([size[1] / pictures.shape[2], size[0] / pictures.shape[1]], dtype=torch.float64)
        small, rho, likeness = _descend(_layers(images, known), small, hosts, at, rho, learn_focal)
        stretch = small.fx / start.fx
        cameras = replace(given, c2w=small.c2w, fx=given.fx * stretch, fy=given.fy * stretch)
    return cameras._map(lambda t: t.float() if t.is_floating_point() else t), rho.float(), likeness


def _layers(images: Tensor, known: Tensor) -> Float[Tensor, "views 4 height width"]:
    """Grey levels, their derivatives along columns and rows, and whether a pixel is known."""
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    along_x, along_y = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2], wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]
    return torch.cat([images, along_x / 2, along_y / 2, known], 1)


def _descend(
    layers: Tensor, cameras: Cameras, hosts: Tensor, pixels: Tensor, rho: Tensor, learn_focal: bool
) -> tuple[Cameras, Tensor, float]:
    """The Levenberg-Marquardt method at one picture size; cameras, inverse depths and likeness."""
    own = torch.empty(len(hosts), len(_PATCH), dtype=torch.float64)
    for h in range(len(layers)):
        own[hosts == h] = _sample(layers[h], pixels[hosts == h, None] + _PATCH)[..., 0]
    damping = 1e-3
    cost, system = _linearise(layers, own, cameras, hosts, pixels, rho)
    for _ in range(ITERATIONS):
        step, sink = _solve(*system, damping, learn_focal)
        moved, nearer = _moved(cameras, step), (rho + sink).clamp(min=1e-3)
        new_cost, new_system = _linearise(layers, own, moved, hosts, pixels, nearer)
        if new_cost < cost:
            cameras, rho, damping = moved, nearer, damping / 5
            done = new_cost > (1 - 1e-4) * cost
            cost, system = new_cost, new_system
            if done:
                break
        else:
            damping *= 10
    return cameras, rho, 1 - cost / max(float(_cost(own - own.roll(len(own) // 2, 0)).mean()), 1e-12)


def _cost(r: Tensor) -> Tensor:
    """Cauchy's cost of grey-level differences."""
    return SPREAD**2 * torch.log1p((r / SPREAD).square())


def _sample(layers: Tensor, at: Tensor) -> Tensor:
    """Bilinear values [..., layers] of ``layers`` [layers, height, width] at columns and rows [..., 2] from the corner."""
    height, width = layers.shape[-2:]
    grid = 2 * at / torch.tensor([width, height], dtype=at.dtype) - 1
    found = F.grid_sample(layers[None], grid.reshape(1, 1, -1, 2), align_corners=False, padding_mode="border")
    return found[0, :, 0].T.reshape(*at.shape[:-1], len(layers))


def _linearise(
    layers: Tensor, own: Tensor, cameras: Cameras, hosts: Tensor, pixels: Tensor, rho: Tensor
) -> tuple[float, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Mean cost of a visible pixel, and the normal equations: blocks of cameras and focal length, mixed, of depths; both gradients."""
    n, points = len(cameras), len(hosts)
    size = 6 * n + 1
    h_cc, h_cp, h_pp = (torch.zeros(s, dtype=torch.float64) for s in ((size, size), (points, size), (points,)))
    g_c, g_p = torch.zeros(size, dtype=torch.float64), torch.zeros(points, dtype=torch.float64)
    total, visible = 0.0, 0
    for j in range(n):
        at, jacobian, shown = _project_points(cameras, j, hosts, pixels, rho)
        inside = shown & (hosts != j) & (at > 2).all(-1) & (at < torch.tensor(layers.shape[:1:-1]) - 2).all(-1)
        rows = inside.nonzero()[:, 0]
        if not len(rows):
            continue
        values = _sample(layers[j], _patches(cameras, j, hosts[rows], pixels[rows], rho[rows]))
        r, slope, known = values[..., 0] - own[rows], values[..., 1:3], values[..., 3] > 0.99
        weight = known / (1 + (r / SPREAD).square())
        total += float((_cost(r) * known).sum())
        visible += int(known.sum())
        s = torch.einsum("pk,pka,pkb->pab", weight, slope, slope)
        b = torch.einsum("pk,pka,pk->pa", weight, slope, r)
        jac = jacobian[rows]
        m, g = torch.einsum("pak,pab,pbl->pkl", jac, s, jac), torch.einsum("pak,pa->pk", jac, b)
        host = 6 * hosts[rows, None] + torch.arange(6)
        index = torch.cat([host, (6 * j + torch.arange(6)).expand_as(host), torch.full_like(host[:, :1], size - 1)], 1)
        h_cc.index_put_((index[:, :, None], index[:, None, :]), m[:, :13, :13], accumulate=True)
        h_cp.index_put_((rows[:, None], index), m[:, :13, 13], accumulate=True)
        h_pp[rows] += m[:, 13, 13]
        g_c.index_put_((index,), g[:, :13], accumulate=True)
        g_p[rows] += g[:, 13]
    return total / max(visible, 1), (h_cc, h_cp, h_pp, g_c, g_p)


def _project_points(cameras: Cameras, j: int, hosts: Tensor, pixels: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [p, 2] of points in camera j, their derivatives [p, 2, 14] by host pose, own pose, log f and inverse depth, and visibility.

    A pose moves by a translation and a rotation about its own centre, both in the world's axes. A point is visible if it is in front of
    the camera, less than 45 degrees from the direction of its host.
    """
    directions, along = _rays(cameras, hosts, pixels)
    along = along / rho[:, None]
    turn, off = cameras.c2w[j, :, :3], cameras.c2w[hosts, :, 3] + along - cameras.c2w[j, :, 3]
    x, y, z = (off @ turn).unbind(-1)
    at, zero = _projected(cameras, j, x, y, z), torch.zeros_like(z)
    across = torch.stack([-cameras.fx[j] / z, zero, cameras.fx[j] * x / z**2], -1)
    down = torch.stack([zero, cameras.fy[j] / z, -cameras.fy[j] * y / z**2], -1)
    by_point = torch.stack([across, down], -2) @ turn.T
    wider = (directions * torch.tensor([-1.0, -1.0, 0.0], dtype=directions.dtype))[..., None]
    of_focal = (cameras.c2w[hosts, :, :3] @ wider)[..., 0] / rho[:, None]
    focal = (by_point @ of_focal[..., None])[..., 0] + at - torch.stack([cameras.cx[j], cameras.cy[j]])
    by_depth = (by_point @ (-along / rho[:, None])[..., None])[..., 0]
    parts = [by_point, -by_point @ _cross(along), -by_point, by_point @ _cross(off), focal[..., None], by_depth[..., None]]
    shown = (z < -1e-6) & (torch.cosine_similarity(along, off, dim=-1) > 0.7)
    return at, torch.cat(parts, -1), shown


def _patches(cameras: Cameras, j: int, hosts: Tensor, pixels: Tensor, rho: Tensor) -> Tensor:
    """Pixels [p, 9, 2] in camera j of the patches' pixels, all at the depth of their point."""
    owners = hosts.repeat_interleave(len(_PATCH))
    _, along = _rays(cameras, owners, (pixels[:, None] + _PATCH).reshape(-1, 2))
    off = cameras.c2w[owners, :, 3] + along / rho.repeat_interleave(len(_PATCH))[:, None] - cameras.c2w[j, :, 3]
    return _projected(cameras, j, *(off @ cameras.c2w[j, :, :3]).unbind(-1)).reshape(len(hosts), -1, 2)


def _rays(cameras: Cameras, hosts: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [p, 3] of pixels at unit axial depth, in their camera's axes and in the world's."""
    x, y = (pixels[:, 0] - cameras.cx[hosts]) / cameras.fx[hosts], (pixels[:, 1] - cameras.cy[hosts]) / cameras.fy[hosts]
    directions = torch.stack([x, -y, -torch.ones_like(x)], -1)
    return directions, (cameras.c2w[hosts, :, :3] @ directions[..., None])[..., 0]


def _projected(cameras: Cameras, j: int, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Column and row [p, 2] of points in camera j's axes."""
    return torch.stack([cameras.cx[j] - cameras.fx[j] * x / z, cameras.cy[j] + cameras.fy[j] * y / z], -1)


def _cross(v: Tensor) -> Tensor:
    """The matrices [..., 3, 3] of v × ·."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape, 3)


def _solve(h_cc: Tensor, h_cp: Tensor, h_pp: Tensor, g_c: Tensor, g_p: Tensor, damping: float, learn_focal: bool) -> tuple[Tensor, Tensor]:
    """The step of cameras and focal length, and that of inverse depths, by Schur's complement."""
    v = h_pp * (1 + damping) + 1e-9
    h = h_cc + damping * h_cc.diagonal().diag() + 1e-9 * torch.eye(len(h_cc), dtype=h_cc.dtype) - h_cp.T @ (h_cp / v[:, None])
    g = g_c - h_cp.T @ (g_p / v)
    keep = slice(None) if learn_focal else slice(-1)
    step = torch.zeros_like(g)
    step[keep] = -torch.linalg.solve(h[keep, keep], g[keep])
    return step, -(g_p + h_cp @ step) / v


def _moved(cameras: Cameras, step: Tensor) -> Cameras:
    motion, stretch = step[:-1].reshape(-1, 6), step[-1].exp()
    rotation = axis_angle_to_matrix(motion[:, 3:]) @ cameras.c2w[:, :, :3]
    c2w = torch.cat([rotation, cameras.c2w[:, :, 3:] + motion[:, :3, None]], -1)
    return replace(cameras, c2w=c2w, fx=cameras.fx * stretch, fy=cameras.fy * stretch)
