"""Rotations: matrices, quaternions (w, x, y, z) and axis-angle vectors, and the check that what a file holds is one."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import SceneError


def project_to_so3(matrix: Float[Tensor, "*n 3 3"]) -> tuple[Float[Tensor, "*n 3 3"], Float[Tensor, "*n"]]:
    """The rotations nearest to ``matrix`` (least squares, Schönemann 1966), and the largest change of any entry."""
    u, _, vh = torch.linalg.svd(matrix.to(torch.float64))
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
    rotation = u @ vh
    return rotation.to(matrix), (rotation - matrix).abs().amax((-2, -1)).to(matrix)


def checked_rotations(c2w: Float[Tensor, "views rows 4"], what: str, names: Sequence[str] | None = None) -> Float[Tensor, "views rows 4"]:
    """Poses (3×4 or 4×4) whose rotation part is a rotation to working precision.

    ``what`` (a file) and the view's name, or else its number, go into messages. A change beyond 1e-3 is warned of once,
    for the worst view. Raises SceneError for numbers that are not finite, for a matrix that is singular or mirrors,
    and for a 4×4 whose last row isn't 0 0 0 1.
    """

    def refuse_if(bad: Tensor, why: str) -> None:
        if bad.any():
            raise SceneError(f"{what}: the pose of {_view(int(bad.nonzero()[0]), names)} {why}.")

    refuse_if(~c2w.isfinite().flatten(1).all(1), "holds numbers that are not finite; estimate it again or leave the view out")
    matrix = c2w[:, :3, :3].to(torch.float64)
    stretch = torch.linalg.svdvals(matrix)
    refuse_if(stretch[:, 2] <= 1e-3 * stretch[:, 0], "has no rotation: its matrix is zero or flat")
    refuse_if(torch.linalg.det(matrix) < 0, "mirrors the world: the sign or order of its axes is wrong")
    bottom = (c2w[:, 3:] - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(c2w)).abs()
    refuse_if((bottom > 1e-4).flatten(1).any(1), "is a 4x4 matrix whose last row is not 0 0 0 1; is it transposed?")
    rotation, deviation = project_to_so3(matrix)
    worst = int(deviation.argmax())
    if deviation[worst] > 1e-3:
        count = int((deviation > 1e-3).sum())
        warnings.warn(
            f"{what}: {count} of {len(c2w)} poses are not rotations and were replaced by the nearest ones; "
            f"{_view(worst, names)} is off by {float(deviation[worst]):.2g}.",
            stacklevel=2,
        )
    result = c2w.clone()
    result[:, :3, :3] = rotation.to(c2w)
    return result


def _view(index: int, names: Sequence[str] | None) -> str:
    return f"view {index}" if names is None else f"{names[index]} (view {index})"


def axis_angle_to_matrix(vector: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation by ‖vector‖ radians about ``vector`` (Rodrigues); smooth, with exact gradients, at zero too."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    square = (vector * vector).sum(-1)[..., None, None]
    small = square < 1e-8
    angle = torch.where(small, 1.0, square).sqrt()
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - square / 24, 2 * ((angle / 2).sin() / angle) ** 2)
    return torch.eye(3).to(vector) + a * k + b * (k @ k)


def matrix_to_axis_angle(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Inverse of `axis_angle_to_matrix`, of length at most π."""
    q = matrix_to_quaternion(matrix)
    w, v = q[..., :1], q[..., 1:]
    sine = v.norm(dim=-1, keepdim=True)
    return v * torch.where(sine < 1e-12, 2.0, 2 * torch.atan2(sine, w) / sine.clamp(min=1e-12))


def quaternion_to_matrix(q: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation of a quaternion (w, x, y, z) of any length but zero."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def six_to_matrix(six: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation whose first two columns are, orthonormalised, the halves of ``six`` (Zhou et al. 2019, equation 15)."""
    x = torch.nn.functional.normalize(six[..., :3], dim=-1)
    y = six[..., 3:]
    y = torch.nn.functional.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def matrix_to_quaternion(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit quaternion (w ≥ 0, x, y, z): the longest row of 4·q·qᵀ, whose entries are sums of the matrix's."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    rows = [
        1 + a + e + i, h - f, c - g, d - b,
        h - f, 1 + a - e - i, b + d, c + g,
        c - g, b + d, 1 - a + e - i, f + h,
        d - b, c + g, f + h, 1 - a - e + i,
    ]  # fmt: skip
    outer = torch.stack(rows, -1).unflatten(-1, (4, 4))
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = torch.nn.functional.normalize(outer.take_along_dim(best[..., None, None], -2).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def slerp(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*n 4"], t: Float[Tensor, "*n"] | float) -> Float[Tensor, "*n 4"]:
    """Unit quaternions on the shorter arc from ``a`` (t = 0) to ``b`` (t = 1), at constant speed (Shoemake 1985)."""
    b = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)
    t = torch.as_tensor(t).to(a)[..., None]
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    small = angle < 1e-6
    sine = torch.where(small, 1.0, angle.sin())
    wa = torch.where(small, 1 - t, ((1 - t) * angle).sin() / sine)
    wb = torch.where(small, t, (t * angle).sin() / sine)
    return torch.nn.functional.normalize(wa * a + wb * b, dim=-1)
