"""Brown's lens distortion, forwards in closed form and backwards by Newton's method."""

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_STEPS = 12


def distort(u: Tensor, v: Tensor, k: Float[Tensor, "*rays 5"]) -> tuple[Tensor, Tensor]:
    """Where the lens moves the ideal image point (u, v), in units of the focal length.

    ``k`` is OpenCV's k1 k2 p1 p2 k3: radial factor 1 + k1 r² + k2 r⁴ + k3 r⁶ and tangential p1, p2 (v points down).
    """
    k1, k2, p1, p2, k3 = k.unbind(-1)
    r2 = u * u + v * v
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    ud = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    vd = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
    return ud, vd


def undistort(ud: Tensor, vd: Tensor, k: Float[Tensor, "*rays 5"], iterations: int = NEWTON_STEPS) -> tuple[Tensor, Tensor]:
    """The ideal image point that the lens shows at (ud, vd): inverse of `distort` by Newton steps from (ud, vd)."""
    k1, k2, p1, p2, k3 = k.unbind(-1)
    u, v = ud, vd
    for _ in range(iterations):
        r2 = u * u + v * v
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        slope = 2 * (k1 + r2 * (2 * k2 + r2 * 3 * k3))  # d radial / d r², times 2
        fu, fv = distort(u, v, k)
        eu, ev = fu - ud, fv - vd
        a = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u
        b = u * v * slope + 2 * p1 * u + 2 * p2 * v
        d = radial + v * v * slope + 6 * p1 * v + 2 * p2 * u
        det = a * d - b * b
        det = torch.where(det.abs() < 1e-9, torch.full_like(det, 1e-9), det)
        u, v = u - (d * eu - b * ev) / det, v - (a * ev - b * eu) / det
    return u, v
