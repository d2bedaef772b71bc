"""Spherical harmonics on CPUs."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.blocks import LANES, aligned
from nerfit.kernels.cpu.hash_grid import positions
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel, run_parallel
from nerfit.kernels.cpu.tensors import array
from nerfit.kernels.cpu.vectors import load16, splat16, store16


@inlined
def _of(number):
    return splat16(np.float32(number))


@part_of_kernel
def spherical_harmonics_block(d, at, out, to):
    """The 16 real spherical harmonics of degree < 4 of a block's unit directions, 3 rows at d[at], as rows at out[to]."""
    for i in range(0, LANES, 16):
        x, y, z = load16(d, at + i), load16(d, at + LANES + i), load16(d, at + 2 * LANES + i)
        xx, yy, zz, xy = x * x, y * y, z * z, x * y
        flat, saddle = _of(4) * zz - xx - yy, xx - yy
        o = to + i
        store16(out, o, _of(0.28209479177387814))
        store16(out, o + LANES, _of(-0.4886025119029199) * y)
        store16(out, o + 2 * LANES, _of(0.4886025119029199) * z)
        store16(out, o + 3 * LANES, _of(-0.4886025119029199) * x)
        store16(out, o + 4 * LANES, _of(1.0925484305920792) * xy)
        store16(out, o + 5 * LANES, _of(-1.0925484305920792) * y * z)
        store16(out, o + 6 * LANES, _of(0.31539156525252005) * (zz + zz - xx - yy))
        store16(out, o + 7 * LANES, _of(-1.0925484305920792) * x * z)
        store16(out, o + 8 * LANES, _of(0.5462742152960396) * saddle)
        store16(out, o + 9 * LANES, _of(-0.5900435899266435) * y * (_of(3) * xx - yy))
        store16(out, o + 10 * LANES, _of(2.890611442640554) * xy * z)
        store16(out, o + 11 * LANES, _of(-0.4570457994644658) * y * flat)
        store16(out, o + 12 * LANES, _of(0.3731763325901154) * z * (zz + zz - _of(3) * xx - _of(3) * yy))
        store16(out, o + 13 * LANES, _of(-0.4570457994644658) * x * flat)
        store16(out, o + 14 * LANES, _of(1.445305721320277) * z * saddle)
        store16(out, o + 15 * LANES, _of(-0.5900435899266435) * x * (xx - _of(3) * yy))


@kernel
def _spherical_harmonics(part, parts, d, out):
    """out [n, 16] of unit directions d [n, 3]."""
    n = d.shape[0]
    rows, found = aligned(3 * LANES), aligned(16 * LANES)
    blocks = (n + LANES - 1) // LANES
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        positions(d, block, 1, rows)
        spherical_harmonics_block(rows, 0, found, 0)
        for i in range(min(LANES, n - block * LANES)):
            for c in range(16):
                out[block * LANES + i, c] = found[c * LANES + i]


def spherical_harmonics(d: Tensor) -> Tensor:
    """The 16 values of unit directions."""
    out = torch.empty(len(d), 16)
    run_parallel(_spherical_harmonics, array(d), array(out))
    return out
