"""Spherical harmonics on GPUs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfit.kernels.triton.runtime import jit, launch

BLOCK = 128


def spherical_harmonics(d: Tensor) -> Tensor:
    """The 16 values of unit directions [n, 3]."""
    out = torch.empty(len(d), 16, device=d.device)
    launch(_spherical_harmonics, (triton.cdiv(len(d), BLOCK),), d, out, len(d), BLOCK=BLOCK)
    return out


@jit
def _spherical_harmonics(d, out, n, BLOCK: tl.constexpr):
    s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + 16 * s[:, None] + tl.arange(0, 16)[None, :], harmonics(d, s, n), s[:, None] < n)


@jit
def harmonics(d, s, n):
    """Values [block, 16] of the directions s of d [n, 3]."""
    x, y, z = tl.load(d + 3 * s, s < n, 0.0), tl.load(d + 3 * s + 1, s < n, 0.0), tl.load(d + 3 * s + 2, s < n, 0.0)
    xx, yy, zz = x * x, y * y, z * z
    out = tl.full([s.shape[0], 16], 0.28209479177387814, tl.float32)
    out = _put(out, 1, -0.4886025119029199 * y)
    out = _put(out, 2, 0.4886025119029199 * z)
    out = _put(out, 3, -0.4886025119029199 * x)
    out = _put(out, 4, 1.0925484305920792 * x * y)
    out = _put(out, 5, -1.0925484305920792 * y * z)
    out = _put(out, 6, 0.31539156525252005 * (2 * zz - xx - yy))
    out = _put(out, 7, -1.0925484305920792 * x * z)
    out = _put(out, 8, 0.5462742152960396 * (xx - yy))
    out = _put(out, 9, -0.5900435899266435 * y * (3 * xx - yy))
    out = _put(out, 10, 2.890611442640554 * x * y * z)
    out = _put(out, 11, -0.4570457994644658 * y * (4 * zz - xx - yy))
    out = _put(out, 12, 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy))
    out = _put(out, 13, -0.4570457994644658 * x * (4 * zz - xx - yy))
    out = _put(out, 14, 1.445305721320277 * z * (xx - yy))
    return _put(out, 15, -0.5900435899266435 * x * (xx - 3 * yy))


@jit
def _put(tile, COLUMN: tl.constexpr, values):
    return tl.where(tl.arange(0, 16)[None, :] == COLUMN, values[:, None], tile)
