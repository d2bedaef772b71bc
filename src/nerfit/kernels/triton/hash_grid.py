"""Hash-grid encoding on GPUs: a program takes a block of positions and one level, all blocks of a level before the next level's."""

# pyright: reportGeneralTypeIssues=false

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfit.kernels.layouts import FEATURES, PRIMES, GridLayout
from nerfit.kernels.triton.runtime import jit, launch

BLOCK = 128
PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1] - 2**32), tl.constexpr(PRIMES[2])


def encode(x: Tensor, table: Tensor, layout: GridLayout, depth: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features [n, depth]; zeros after the 4·levels that there are."""
    channels = FEATURES * layout.levels
    out = (torch.empty if depth in (None, channels) else torch.zeros)(len(x), depth or channels, dtype=dtype, device=x.device)
    _launch_levels(_encode, x, layout, out, table)
    return out


def encode_backward(
    x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wants_x: bool, wants_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of positions and table."""
    g_table = torch.zeros_like(table) if wants_table else None
    if g_table is not None:
        scatter(x, gradient, layout, g_table)
    return position_gradient(x, gradient, table, layout) if wants_x else None, g_table


def scatter(x: Tensor, g_features: Tensor, layout: GridLayout, into: Tensor) -> None:
    """Add the table's gradient to ``into``; the order of the sums, so their last bits, change from call to call."""
    _launch_levels(_scatter, x, layout, g_features, into)


def position_gradient(x: Tensor, g_features: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """dL/dx [n, 3] from the gradients of the features [n, depth]."""
    out, (n, depth) = torch.empty_like(x), g_features.shape
    args = (x, _levels(layout, x.device), n, depth, layout.entries, g_features, table, out, layout.levels)
    launch(_position_gradient, (triton.cdiv(n, BLOCK),), *args, BLOCK=BLOCK)
    return out


def _launch_levels(kernel: Any, x: Tensor, layout: GridLayout, features: Tensor, table: Tensor) -> None:
    n, depth = features.shape
    args = (x, _levels(layout, x.device), n, depth, layout.entries, features, table)
    launch(kernel, (triton.cdiv(n, BLOCK), layout.levels), *args, BLOCK=BLOCK)


@lru_cache
def _levels(layout: GridLayout, device: torch.device) -> Tensor:
    """Of each level: resolution, first entry, and vertices in a row, or 0 where they are hashed."""
    rows = [
        (r, first, r + 1 if (r + 1) ** 3 <= layout.entries else 0)
        for r, first in zip(layout.resolutions.tolist(), layout.offsets.tolist(), strict=False)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@jit
def _encode(x, levels, n, depth, entries, out, table, BLOCK: tl.constexpr):
    level, s, c = tl.program_id(1), tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 4)[None, :]
    i, fx, j, fy, k, fz, _ = _cell(x, s, n, levels, level)
    found = tl.zeros([BLOCK, 4], tl.float32)
    for corner in tl.static_range(8):
        weight = _side(fx, corner & 1) * _side(fy, corner >> 1 & 1) * _side(fz, corner >> 2)
        found += weight[:, None] * tl.load(table + _entry(i, j, k, levels, level, entries, corner)[:, None] + c)
    tl.store(out + s[:, None] * depth + 4 * level + c, found, s[:, None] < n)


@jit
def _scatter(x, levels, n, depth, entries, gradient, into, BLOCK: tl.constexpr):
    level, s, c = tl.program_id(1), tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 4)[None, :]
    i, fx, j, fy, k, fz, _ = _cell(x, s, n, levels, level)
    g = tl.load(gradient + s[:, None] * depth + 4 * level + c, s[:, None] < n, 0.0)
    for corner in tl.static_range(8):
        weight = _side(fx, corner & 1) * _side(fy, corner >> 1 & 1) * _side(fz, corner >> 2)
        to = into + _entry(i, j, k, levels, level, entries, corner)[:, None] + c
        tl.atomic_add(to, weight[:, None] * g, s[:, None] < n, sem="relaxed")


@jit
def _position_gradient(x, levels, n, depth, entries, gradient, table, out, count, BLOCK: tl.constexpr):
    s, c = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 4)[None, :]
    gx, gy, gz = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for level in range(count):
        i, fx, j, fy, k, fz, resolution = _cell(x, s, n, levels, level)
        g = tl.load(gradient + s[:, None] * depth + 4 * level + c, s[:, None] < n, 0.0) * resolution
        for corner in tl.static_range(8):
            value = tl.sum(g * tl.load(table + _entry(i, j, k, levels, level, entries, corner)[:, None] + c), 1)
            wx, wy, wz = _side(fx, corner & 1), _side(fy, corner >> 1 & 1), _side(fz, corner >> 2)
            gx += value * wy * wz * (2 * (corner & 1) - 1)
            gy += value * wx * wz * (2 * (corner >> 1 & 1) - 1)
            gz += value * wx * wy * (2 * (corner >> 2) - 1)
    _store_inside(x, s, n, out, gx, 0)
    _store_inside(x, s, n, out, gy, 1)
    _store_inside(x, s, n, out, gz, 2)


@jit
def _store_inside(x, s, n, out, g, AXIS: tl.constexpr):
    """Beyond the faces of the cube positions are clamped, so their gradient is zero."""
    p = tl.load(x + 3 * s + AXIS, s < n, 0.0)
    tl.store(out + 3 * s + AXIS, tl.where((p >= 0) & (p < 1), g, 0.0), s < n)


@jit
def _cell(x, s, n, levels, level):
    """Cells and fractions of the positions s along x, y, z, and the level's resolution."""
    resolution = tl.load(levels + 3 * level)
    i, fx = _axis(x, s, n, resolution, 0)
    j, fy = _axis(x, s, n, resolution, 1)
    k, fz = _axis(x, s, n, resolution, 2)
    return i, fx, j, fy, k, fz, resolution


@jit
def _axis(x, s, n, resolution, AXIS: tl.constexpr):
    p = tl.minimum(tl.maximum(tl.load(x + 3 * s + AXIS, s < n, 0.0), 0.0), 1 - 2**-24) * resolution
    cell = p.to(tl.int32)
    return cell, p - cell.to(tl.float32)


@jit
def _side(fraction, FAR: tl.constexpr):
    """Linear weight of the near or far end of a cell."""
    if FAR:
        return fraction
    else:
        return 1 - fraction


@jit
def _entry(i, j, k, levels, level, entries, CORNER: tl.constexpr):
    """Where in the table the entry of a cell's corner begins."""
    i, j, k = i + (CORNER & 1), j + (CORNER >> 1 & 1), k + (CORNER >> 2)
    first, row = tl.load(levels + 3 * level + 1), tl.load(levels + 3 * level + 2)
    hashed = (i ^ j * PRIME_Y ^ k * PRIME_Z) & (entries - 1)
    return (first + tl.where(row > 0, i + row * (j + row * k), hashed)).to(tl.int64) * 4
