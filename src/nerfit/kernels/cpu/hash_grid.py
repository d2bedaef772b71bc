"""Hash-grid encoding on CPUs: blocks of LANES samples, features channel-major, 4 features per entry."""

# Level by level over many blocks, so that a level's table stays in cache; the corners of a block are fetched ahead. The
# gradient is scattered by one thread per level: no atomics, the same sums every time.

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.blocks import LANES, aligned
from nerfit.kernels.cpu.runtime import kernel, part_of_kernel, run_parallel
from nerfit.kernels.cpu.tensors import array, blocks_of, grid
from nerfit.kernels.cpu.vectors import (
    fma,
    join4,
    load4,
    load16,
    maximum,
    minimum,
    prefetch,
    splat4,
    splat16,
    splat16i,
    split4,
    store4,
    store16,
    store16i,
    to_float,
    truncate,
)
from nerfit.kernels.layouts import FactoredGradient, GridLayout

_PRIME_Y, _PRIME_Z = np.int32(2654435761 - 2**32), np.int32(805459861)
CHUNK = 128
"""Blocks that are encoded together."""


@part_of_kernel
def positions(x, first, blocks, rows):
    """Positions x [n, 3] from block ``first`` on as ``rows`` ([blocks, 3, LANES], flat); lanes past the last sample repeat it."""
    last = x.shape[0] - 1
    for block in range(blocks):
        for i in range(LANES):
            s = min((first + block) * LANES + i, last)
            for axis in range(3):
                rows[(3 * block + axis) * LANES + i] = x[s, axis]


@kernel
def _all_positions(part, parts, x, rows):
    """`positions` of all blocks."""
    blocks = (x.shape[0] + LANES - 1) // LANES
    low, high = blocks * part // parts, blocks * (part + 1) // parts
    positions(x, low, high - low, rows[3 * LANES * low :])


@part_of_kernel
def corners(p, resolution, offset, entries, index, weight):
    """Entry numbers and trilinear weights ([8, LANES], x fastest) of the cells around positions p ([3, LANES])."""
    dense = (np.int64(resolution) + 1) ** 3 <= entries
    n, one, zero = splat16(np.float32(resolution)), splat16(np.float32(1)), splat16(np.float32(0))
    inside = splat16(np.float32(1 - 2**-24))
    step = splat16i(np.int32(1))
    first = splat16i(np.int32(offset))
    row, slab = splat16i(np.int32(resolution + 1)), splat16i(np.int32((resolution + 1) * (resolution + 1)))
    mask = splat16i(np.int32(entries - 1))
    prime_y, prime_z = splat16i(_PRIME_Y), splat16i(_PRIME_Z)
    for i in range(0, LANES, 16):
        x = maximum(minimum(load16(p, i), inside), zero) * n
        y = maximum(minimum(load16(p, LANES + i), inside), zero) * n
        z = maximum(minimum(load16(p, 2 * LANES + i), inside), zero) * n
        ix, iy, iz = truncate(x), truncate(y), truncate(z)
        fx, fy, fz = x - to_float(ix), y - to_float(iy), z - to_float(iz)
        gx, gy, gz = one - fx, one - fy, one - fz
        if dense:
            a = first + ix + iy * row + iz * slab
            b, c, d = a + row, a + slab, a + row + slab
            store16i(index, i, a)
            store16i(index, LANES + i, a + step)
            store16i(index, 2 * LANES + i, b)
            store16i(index, 3 * LANES + i, b + step)
            store16i(index, 4 * LANES + i, c)
            store16i(index, 5 * LANES + i, c + step)
            store16i(index, 6 * LANES + i, d)
            store16i(index, 7 * LANES + i, d + step)
        else:
            hy, hz, jx = iy * prime_y, iz * prime_z, ix + step
            ky, kz = hy + prime_y, hz + prime_z
            a, b, c, d = hy ^ hz, ky ^ hz, hy ^ kz, ky ^ kz
            store16i(index, i, ((ix ^ a) & mask) + first)
            store16i(index, LANES + i, ((jx ^ a) & mask) + first)
            store16i(index, 2 * LANES + i, ((ix ^ b) & mask) + first)
            store16i(index, 3 * LANES + i, ((jx ^ b) & mask) + first)
            store16i(index, 4 * LANES + i, ((ix ^ c) & mask) + first)
            store16i(index, 5 * LANES + i, ((jx ^ c) & mask) + first)
            store16i(index, 6 * LANES + i, ((ix ^ d) & mask) + first)
            store16i(index, 7 * LANES + i, ((jx ^ d) & mask) + first)
        a, b, c, d = gy * gz, fy * gz, gy * fz, fy * fz
        store16(weight, i, gx * a)
        store16(weight, LANES + i, fx * a)
        store16(weight, 2 * LANES + i, gx * b)
        store16(weight, 3 * LANES + i, fx * b)
        store16(weight, 4 * LANES + i, gx * c)
        store16(weight, 5 * LANES + i, fx * c)
        store16(weight, 6 * LANES + i, gx * d)
        store16(weight, 7 * LANES + i, fx * d)


@part_of_kernel
def encode_blocks(rows, blocks, table, resolutions, offsets, entries, features, depth):
    """``features`` ([block, depth, LANES], flat) of blocks of positions, ``rows`` ([block, 3, LANES], flat)."""
    index, weight = aligned(8 * LANES).view(np.int32), aligned(8 * LANES)
    found = aligned(4 * LANES)
    for level in range(resolutions.size):
        for block in range(blocks):
            p = rows[3 * block * LANES :]
            corners(p, resolutions[level], offsets[level], entries, index, weight)
            for k in range(8 * LANES):
                prefetch(table, 4 * np.int64(index[k]))
            for i in range(LANES):
                sum = splat4(np.float32(0))
                for k in range(8):
                    sum = fma(load4(table, 4 * np.int64(index[k * LANES + i])), splat4(weight[k * LANES + i]), sum)
                store4(found, 4 * i, sum)
            at = (block * depth + 4 * level) * LANES
            for i in range(0, LANES, 16):
                split4(found, 4 * i, features, at + i, LANES)


@kernel
def _encode(part, parts, x, table, layout, features, depth):
    """``features`` ([blocks, depth, LANES], flat) of positions x [n, 3] in [0, 1]; table flat, 4 floats an entry; layout: `grid`."""
    resolutions, offsets, entries = layout
    blocks = (x.shape[0] + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows = aligned(3 * CHUNK * LANES)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        encode_blocks(rows, many, table, resolutions, offsets, entries, features[first * depth * LANES :], depth)


@part_of_kernel
def scatter_level(level, rows, count, gradient, resolution, offset, entries, depth, table_gradient, marks):
    """Add a level's gradient to ``table_gradient`` from entry ``offset`` on.

    Row r of ``gradient`` ([rows, blocks, depth, LANES], flat after the first) belongs to ``count[r]`` samples, whose positions are in
    row r of ``rows`` ([rows, blocks, 3, LANES]); it is zero past the last sample. ``marks``, if not empty, becomes 1 for every 4 entries
    of which one may have been touched.
    """
    index, weight = aligned(8 * LANES).view(np.int32), aligned(8 * LANES)
    each = aligned(4 * LANES)
    for r in range(count.size):
        for block in range((count[r] + LANES - 1) // LANES):
            corners(rows[r, 3 * block * LANES :], resolution, offset, entries, index, weight)
            for k in range(8 * LANES):
                prefetch(table_gradient, 4 * np.int64(index[k]))
            if marks.size:
                for k in range(8 * LANES):
                    marks[index[k] >> 2] = 1
            at = (block * depth + 4 * level) * LANES
            for i in range(0, LANES, 16):
                join4(gradient[r], at + i, LANES, each, 4 * i)
            for i in range(min(LANES, count[r] - block * LANES)):
                g = load4(each, 4 * i)
                for k in range(8):
                    to = 4 * np.int64(index[k * LANES + i])
                    store4(table_gradient, to, fma(g, splat4(weight[k * LANES + i]), load4(table_gradient, to)))


@part_of_kernel
def is_mine(level, levels, part, parts):
    """Whether a level's gradient is for this part to sum: levels go to parts in a snake from the finest on, the one that takes longest."""
    turn = (levels - 1 - level) % (2 * parts)
    return part == (turn if turn < parts else 2 * parts - 1 - turn)


@kernel
def _scatter(part, parts, samples, layout, table_gradient):
    """Add the table's gradient for feature gradients, level by level.

    ``samples`` are `scatter_level`'s (rows, count, gradient, depth), ``layout`` is `grid`.
    """
    rows, count, gradient, depth = samples
    resolutions, offsets, entries = layout
    unmarked = np.empty(0, np.uint8)
    for level in range(resolutions.size):
        if is_mine(level, resolutions.size, part, parts):
            scatter_level(level, rows, count, gradient, resolutions[level], offsets[level], entries, depth, table_gradient, unmarked)


@part_of_kernel
def _fractions(p, resolution, out):
    """Where positions p ([3, LANES]) lie in their cells, from 0 to 1."""
    n, zero, inside = splat16(np.float32(resolution)), splat16(np.float32(0)), splat16(np.float32(1 - 2**-24))
    for i in range(0, 3 * LANES, 16):
        x = maximum(minimum(load16(p, i), inside), zero) * n
        store16(out, i, x - to_float(truncate(x)))


@part_of_kernel
def _slopes(entry, i, fraction, table):
    """The derivatives of the features of position i along x, y, z, in cells: 3 vectors of 4 features.

    Differences along one axis, interpolated along the others.
    """
    fx, fy, fz = splat4(fraction[i]), splat4(fraction[LANES + i]), splat4(fraction[2 * LANES + i])
    a, b = load4(table, 4 * np.int64(entry[i])), load4(table, 4 * np.int64(entry[2 * LANES + i]))
    c, d = load4(table, 4 * np.int64(entry[4 * LANES + i])), load4(table, 4 * np.int64(entry[6 * LANES + i]))
    xa, xb = load4(table, 4 * np.int64(entry[LANES + i])) - a, load4(table, 4 * np.int64(entry[3 * LANES + i])) - b
    xc, xd = load4(table, 4 * np.int64(entry[5 * LANES + i])) - c, load4(table, 4 * np.int64(entry[7 * LANES + i])) - d
    low, high = fma(fx, xa, a), fma(fx, xc, c)
    y_low, y_high = fma(fx, xb, b) - low, fma(fx, xd, d) - high
    x_low, x_high = fma(fy, xb - xa, xa), fma(fy, xd - xc, xc)
    return fma(fz, x_high - x_low, x_low), fma(fz, y_high - y_low, y_low), fma(fy, y_high, high) - fma(fy, y_low, low)


@kernel
def _position_gradient(part, parts, samples, table, layout, out):
    """``out`` of the shape of the positions' rows is dL/dx; zero outside [0, 1). ``samples`` and ``layout`` are `_scatter`'s."""
    rows, count, gradient, depth = samples
    resolutions, offsets, entries = layout
    index, weight = aligned(8 * LANES).view(np.int32), aligned(8 * LANES)
    each, fraction, sums = aligned(4 * LANES), aligned(3 * LANES), aligned(12 * LANES)
    for r in range(count.size):
        blocks = (count[r] + LANES - 1) // LANES
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            p, to = rows[r, 3 * block * LANES :], out[r, 3 * block * LANES :]
            sums[:] = np.float32(0)
            for level in range(resolutions.size):
                corners(p, resolutions[level], offsets[level], entries, index, weight)
                _fractions(p, resolutions[level], fraction)
                for k in range(8 * LANES):
                    prefetch(table, 4 * np.int64(index[k]))
                at = (block * depth + 4 * level) * LANES
                for i in range(0, LANES, 16):
                    join4(gradient[r], at + i, LANES, each, 4 * i)
                n = splat4(np.float32(resolutions[level]))
                for i in range(LANES):
                    g = load4(each, 4 * i) * n
                    x, y, z = _slopes(index, i, fraction, table)
                    store4(sums, 12 * i, fma(x, g, load4(sums, 12 * i)))
                    store4(sums, 12 * i + 4, fma(y, g, load4(sums, 12 * i + 4)))
                    store4(sums, 12 * i + 8, fma(z, g, load4(sums, 12 * i + 8)))
            for axis in range(3):
                for i in range(LANES):
                    s = sums[12 * i + 4 * axis : 12 * i + 4 * axis + 4]
                    inside = 0 <= p[axis * LANES + i] < 1
                    to[axis * LANES + i] = s[0] + s[1] + s[2] + s[3] if inside else np.float32(0)


def encode(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Features [n, 4·levels]."""
    channels = 4 * layout.levels
    rows = torch.empty(blocks_of(len(x)), channels, LANES)
    if len(x):
        run_parallel(_encode, array(x), array(table), grid(layout), rows.view(-1).numpy(), channels)
    return rows.transpose(1, 2).reshape(-1, channels)[: len(x)].contiguous()


def encode_backward(x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wants_x: bool, wants_table: bool) -> Any:
    """Gradients of positions and table."""
    channels = 4 * layout.levels
    padded = torch.zeros(blocks_of(len(x)) * LANES, channels)
    padded[: len(x)] = gradient
    rows = padded.reshape(-1, LANES, channels).transpose(1, 2).contiguous()
    g_table = torch.zeros_like(table) if wants_table else None
    if g_table is not None and len(x):
        run_parallel(_scatter, (*_one_row(x, rows), channels), grid(layout), array(g_table))
    return position_gradient(x, rows.view(-1), table, layout, channels) if wants_x else None, g_table


def position_gradient(x: Tensor, g_features: Tensor, table: Tensor, layout: GridLayout, channels: int | None = None) -> Tensor:
    """dL/dx [n, 3] from the gradients of blocked features."""
    if not len(x):
        return torch.zeros_like(x)
    depth = layout.depth if channels is None else channels
    return gradients_by_place(*_one_row(x, g_features), table, layout, depth)[0]


def gradients_by_place(rows: Any, count: Any, g_features: Any, table: Tensor, layout: GridLayout, depth: int) -> list[Tensor]:
    """dL/dx [n, 3] of each row of blocked positions, ``count`` of which are samples."""
    out = torch.empty(rows.shape)
    run_parallel(_position_gradient, (rows, count, g_features, depth), array(table), grid(layout), array(out))
    return [out[r].view(-1, 3, LANES).transpose(1, 2).reshape(-1, 3)[:n] for r, n in enumerate(count.tolist())]


def scatter(x: Tensor, g_features: Tensor, layout: GridLayout, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    if len(x):
        run_parallel(_scatter, (*_one_row(x, g_features), layout.depth), grid(layout), array(into))


def _one_row(x: Tensor, g_features: Tensor) -> tuple[Any, Any, Any]:
    """Blocked positions, number of samples and gradients, as one row of each."""
    rows = torch.empty(3 * LANES * blocks_of(len(x))).numpy()
    run_parallel(_all_positions, array(x), rows)
    return rows.reshape(1, -1), np.array([len(x)]), array(g_features).reshape(1, -1)


def scatter_rows(g: FactoredGradient, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    run_parallel(_scatter, (g.positions, np.array(g.count), g.features, g.layout.depth), grid(g.layout), array(into))
