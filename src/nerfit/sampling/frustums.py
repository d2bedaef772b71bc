"""Gaussians that stand for what a pixel's cone holds between two distances (mip-NeRF, section 3.1), and space contracted around them."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Rays
from nerfit.scenes.scene import Scene

Along = tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples"], Float[Tensor, "rays samples"]]
"""Mean distance, variance of the distance (both in units of t), and variance along each axis across the ray (in scene units)."""


def conical_frustums(t0: Float[Tensor, "rays samples"], t1: Float[Tensor, "rays samples"], radius: Float[Tensor, "rays 1"]) -> Along:
    """Moments of points spread evenly over the cone of ``radius`` at t = 1 between t0 and t1 (mip-NeRF, equation 7).

    In middle μ and half length h, where no small number is a difference of large ones. 0 <= t0 <= t1.
    """
    middle, half = 0.5 * (t0 + t1), 0.5 * (t1 - t0)
    h2 = half.square()
    share = h2 / (3 * middle.square() + h2).clamp(min=torch.finfo(t0.dtype).tiny)
    mean = middle + 2 * middle * share
    along = h2 / 3 - 4 / 15 * share.square() * (12 * middle.square() - h2)
    across = radius.square() * (middle.square() / 4 + 5 / 12 * h2 - 4 / 15 * share * h2)
    return mean, along, across


def cylinders(t0: Float[Tensor, "rays samples"], t1: Float[Tensor, "rays samples"], radius: Float[Tensor, "rays 1"]) -> Along:
    """The same of a cylinder, which is what a pixel sees in NDC."""
    return 0.5 * (t0 + t1), (t1 - t0).square() / 12, (radius.square() / 4).expand_as(t0)


def ray_gaussians(
    rays: Rays, edges: Float[Tensor, "rays samples+1"], cylindrical: bool = False
) -> tuple[Float[Tensor, "rays samples 3"], Float[Tensor, "rays samples 3 3"]]:
    """Mean and covariance of the pieces of rays between neighbouring distances (mip-NeRF, equation 8)."""
    moments = cylinders if cylindrical else conical_frustums
    t, along, across = moments(edges[:, :-1], edges[:, 1:], rays.pixel_radius[:, None])
    d = rays.directions
    outer = d[:, None, :, None] * d[:, None, None, :]
    norm2 = d.square().sum(-1)[:, None, None, None].clamp(min=torch.finfo(d.dtype).tiny)
    flat = torch.eye(3, device=d.device, dtype=d.dtype) - outer / norm2
    return rays.origins[:, None] + t[..., None] * d[:, None], along[..., None, None] * outer + across[..., None, None] * flat


def contract(mean: Float[Tensor, "*n 3"], covariance: Float[Tensor, "*n 3 3"]) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n 3 3"]]:
    """All of space in a ball of radius 2: x inside the unit ball stays, else (2 - 1/‖x‖) x/‖x‖ (mip-NeRF 360, equation 10).

    The covariance goes through the contraction's derivative J at the mean (equation 9): with r = max(‖x‖, 1), J stretches by 1/r² along x
    and by (2 - 1/r)/r across it, so both are the identity inside.
    """
    r = mean.square().sum(-1, keepdim=True).clamp(min=1).sqrt()
    across, along = (2 - 1 / r) / r, 1 / r.square()
    outer = mean[..., :, None] * mean[..., None, :] / r.square()[..., None]
    eye = torch.eye(3, device=mean.device, dtype=mean.dtype)
    jacobian = across[..., None] * eye + (along - across)[..., None] * outer
    return across * mean, jacobian @ covariance @ jacobian


class PointGaussians:
    """The Gaussian that a bare point of a scene is taken for: as wide as a training pixel there, seen from where the cameras stand.

    A field that learned from Gaussians doesn't know its shortest waves: a point without width would see them.
    """

    def __init__(self, scene: Scene) -> None:
        views = torch.tensor(scene.splits["train"])
        corner = torch.zeros_like(views)
        self.radius = float(scene.rays(views, corner, corner).pixel_radius.mean())
        positions = scene.cameras.centers[views]
        self.center = positions.mean(0)
        self.spread = float((positions - self.center).norm(dim=-1).mean())
        self.ndc = scene.ndc

    def __call__(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3 3"]]:
        """Points and covariances; among the cameras a point counts as far from them as they are from their middle."""
        distance = (points.detach() - self.center.to(points)).norm(dim=-1).clamp(min=self.spread)
        radius = torch.full_like(distance, self.radius) if self.ndc else self.radius * distance
        return points, 0.25 * radius.square()[:, None, None] * torch.eye(3, device=points.device, dtype=points.dtype)
