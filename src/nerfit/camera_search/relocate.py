"""Poses from pictures in a known field: by gradient (iNeRF, Yen-Chen et al. 2021), and from many positions at once."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.learned import CameraConfig, LearnedCameras
from nerfit.cameras.rotations import axis_angle_to_matrix
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene, composite

LOST = 4.0
"""A view is lost if its squared error is more than this times the median view's."""
MOST = 2
"""Number of lost views relocalised at a time, the worst first."""
PIXELS = 128
"""Number of pixels that a pose is evaluated with."""
POSES = 512
"""Poses tried for a lost view with a quarter of the pixels: half of them around its present pose, half around its first. The best `KEPT`
are then moved by `STEPS` photometric steps."""
KEPT, STEPS, LR = 8, 60, 1e-2
SPREADS = (0.1, 0.2, 0.3)
"""Standard deviations of the random rotations (radians) that lead to those poses; translations have half of it."""


def photometric_poses(
    method: Method, scene: Scene, view: int, start: Cameras, steps: int, rates: tuple[float, float], pixels: int, seed: int
) -> tuple[Cameras, Float[Tensor, "starts"]]:
    """Cameras after ``steps`` steps of Adam on the poses of ``start``, and their errors.

    Each step lowers the squared error of ``pixels`` random pixels of the view's picture; the errors (mean squared colour difference) are
    those of as many other pixels. The learning rate goes from the first of ``rates`` to the second along half a cosine. The field is fixed.
    """
    count = len(start)
    pivot = 0.0 if method.cameras is None else -float(method.cameras.pivot[2])
    poses = LearnedCameras(CameraConfig(learn=True), start, list(range(count)), pivot).to(method.device)
    optimizer = torch.optim.Adam(poses.parameters(), lr=rates[0])
    with _frozen(method):
        for step in range(steps):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rates[1] + (rates[0] - rates[1]) * 0.5 * (1 + math.cos(math.pi * step / steps))
            _errors(method, scene, torch.full((count,), view), poses(), pixels, mix(seed, step)).sum().backward()
            optimizer.step()
        found = poses.eval()()
        with torch.no_grad():
            return found.to("cpu"), _errors(method, scene, torch.full((count,), view), found, pixels, mix(seed, steps))


@torch.no_grad()
def lost_views(method: Method, scene: Scene, seed: int) -> tuple[list[int], Float[Tensor, "views"]]:
    """Indices of the training views whose pictures disagree with the field, the worst first, and the errors of all training views."""
    assert method.cameras is not None
    train = method.cameras.views.cpu()
    cameras = method.cameras(1.0)[train.tolist()]
    errors = _errors(method, scene, train, cameras, PIXELS, seed)
    order = errors.argsort(descending=True)[:MOST]
    return [int(train[i]) for i in order if errors[i] > LOST * errors.median()], errors


def relocate(method: Method, scene: Scene, step: int) -> int:
    """Relocalise the cameras of lost views, from many poses around them; returns the number of relocalised cameras.

    A camera is relocalised if its picture fits as well there as those of views that are not lost. The result depends on the method's
    state, its seed and ``step`` alone.
    """
    assert method.cameras is not None
    seed = mix(method.seed, step, 0x105E)
    lost, errors = lost_views(method, scene, seed)
    found = 0
    for view in lost:
        generator = torch.Generator().manual_seed(mix(seed, view))
        with torch.no_grad():
            poses = _around(method.cameras, view, generator)
            tried = _errors(method, scene, torch.full((len(poses),), view), poses.to(method.device), PIXELS // 4, seed)
        best = poses[tried.argsort()[:KEPT].tolist()]
        cameras, left = photometric_poses(method, scene, view, best, STEPS, (LR, 0.0), PIXELS, mix(seed, view, 1))
        if left.min() < LOST * errors.median():
            method.cameras.place_at(view, cameras.c2w[int(left.argmin())])
            found += 1
    return found


def _around(learned: LearnedCameras, view: int, generator: torch.Generator) -> Cameras:
    """`POSES` cameras (on the CPU) around a view's, turned and shifted at random."""
    spread = torch.tensor(SPREADS)[torch.arange(POSES) % len(SPREADS), None]
    turn = axis_angle_to_matrix(spread * torch.randn(POSES, 3, generator=generator))
    many = learned(1.0).to("cpu")[[view] * POSES]
    near = torch.stack([many.c2w[0], learned.began[view].to(many.c2w)]).repeat(POSES // 2, 1, 1)
    return replace(many, c2w=learned.moved(turn, 0.5 * spread * torch.randn(POSES, 3, generator=generator), near))


def _errors(method: Method, scene: Scene, views: Tensor, cameras: Cameras, pixels: int, seed: int) -> Float[Tensor, "cameras"]:
    """Mean squared error of ``pixels`` random pixels of each view, rendered from its camera; pixels that masks hide don't count."""
    count = len(views)
    owner = torch.arange(count).repeat_interleave(pixels)
    width, height = scene.cameras.width[views][owner], scene.cameras.height[views][owner]
    inside = (torch.rand(count * pixels, generator=torch.Generator().manual_seed(seed)) * width * height).long()
    x, y = inside % width, torch.div(inside, width, rounding_mode="floor")
    colors = scene.colors(views[owner], x, y).to(method.device)
    known = colors[:, 3] > 0 if scene.masked else torch.ones_like(colors[:, 0], dtype=torch.bool)
    owner, x, y = (i.to(cameras.c2w.device) for i in (owner, x, y))
    rays = scene.rays(owner, x, y, cameras)
    background = scene.backdrop.to(method.device)
    rgb = torch.cat([method.render(piece).rgb for piece in Batch(rays, background=background).chunks(1 << 14)])
    errors = ((rgb - composite(colors, background)).square().mean(-1) * known).view(count, pixels)
    return errors.sum(-1) / known.view(count, pixels).sum(-1).clamp(min=1)


@contextlib.contextmanager
def _frozen(method: Method) -> Iterator[None]:
    """No gradients for the method's own parameters."""
    weights = [p for p in method.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)
