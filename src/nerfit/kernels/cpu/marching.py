"""Occupancy grids on CPUs: their update, their bits and distances, and the march of rays through them."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel, run_parallel
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, f32, march_arrays
from nerfit.kernels.layouts import March, Occupancy, RaySet, Samples

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


@inlined
def _bit(bits, cell):
    return (bits[cell >> 3] >> (cell & 7)) & 1


@part_of_kernel
def enter(origins, directions, i, box, near, far):
    """Where ray i enters and leaves a box [2, 3], within near and far; entry beyond exit if it misses."""
    first, last = near, far
    for axis in range(3):
        o, d = origins[i, axis], directions[i, axis]
        if abs(d) < np.float32(1e-12):
            if o < box[0, axis] or o > box[1, axis]:
                return _ONE, _ZERO
        else:
            a, b = (box[0, axis] - o) / d, (box[1, axis] - o) / d
            first, last = max(first, min(a, b)), min(last, max(a, b))
    return first, last


@inlined
def contraction(px, py, pz):
    """What takes a position, seen from the centre, into the field's cube: see `contract`."""
    reach = np.float32(2) * max(abs(px), max(abs(py), abs(pz)))
    return _HALF if reach <= _ONE else _HALF * (np.float32(2) - _ONE / reach) / reach


@part_of_kernel
def march_ray(ox, oy, oz, dx, dy, dz, now, stop, bits, distance, cascades, resolution, step, cone_angle, limit, t0, t1, x, out):
    """Up to ``limit`` next samples of one ray inside occupied cells, from index ``out`` on; returns (how far, how many).

    The unit cube is cascade 0, each further cascade is twice as large around the same centre. ``x`` ([block, 3, LANES], flat) are
    positions in the field's cube (`contract`).
    """
    r = np.float32(resolution)
    norm = np.sqrt(dx * dx + dy * dy + dz * dz)
    tiny = np.float32(1e-12)
    ix = _ONE / (dx if abs(dx) > tiny else tiny)
    iy = _ONE / (dy if abs(dy) > tiny else tiny)
    iz = _ONE / (dz if abs(dz) > tiny else tiny)
    coarsest = np.float32(1 << (cascades - 1))
    least = step / norm
    most = max(coarsest / (r * norm), least)
    found = 0
    dt = least
    half = resolution // 2
    while now < stop and found < limit:
        if cone_angle > _ZERO:
            dt = min(max(now * cone_angle, least), most)
        middle = now + _HALF * dt
        px, py, pz = ox + middle * dx - _HALF, oy + middle * dy - _HALF, oz + middle * dz - _HALF
        level, scale, inverse = 0, _ONE, _ONE
        if cascades > 1:
            reach = max(abs(px), max(abs(py), abs(pz)))
            while level < cascades - 1 and (reach >= _HALF * scale or dt * norm * r > scale):
                level += 1
                scale *= np.float32(2)
                inverse *= _HALF
        gx, gy, gz = (px * inverse + _HALF) * r, (py * inverse + _HALF) * r, (pz * inverse + _HALF) * r
        cx = np.int64(min(max(np.int32(gx), np.int32(0)), np.int32(resolution - 1)))
        cy = np.int64(min(max(np.int32(gy), np.int32(0)), np.int32(resolution - 1)))
        cz = np.int64(min(max(np.int32(gz), np.int32(0)), np.int32(resolution - 1)))
        bx, by, bz = cx >> 1, cy >> 1, cz >> 1
        away = np.int64(distance[((level * half + bz) * half + by) * half + bx])
        if away == 0:
            if _bit(bits, ((level * resolution + cz) * resolution + cy) * resolution + cx):
                at = out + found
                t0[at], t1[at] = now, now + dt
                row = (at // LANES) * 3 * LANES + at % LANES
                squeeze = contraction(px, py, pz) if cascades > 1 else _ONE
                x[row], x[row + LANES], x[row + 2 * LANES] = px * squeeze + _HALF, py * squeeze + _HALF, pz * squeeze + _HALF
                found += 1
                now += dt
                continue
            width = 1
        else:
            cx, cy, cz = 2 * (bx - away + 1), 2 * (by - away + 1), 2 * (bz - away + 1)
            width = 4 * away - 2
        # leave the empty cell, or cube around it, in whole steps: samples stay on the ray's own lattice
        ex = (np.float32(min(cx + width, resolution) if ix > _ZERO else max(cx, 0)) - gx) * ix
        ey = (np.float32(min(cy + width, resolution) if iy > _ZERO else max(cy, 0)) - gy) * iy
        ez = (np.float32(min(cz + width, resolution) if iz > _ZERO else max(cz, 0)) - gz) * iz
        leap = min(ex, min(ey, ez))
        if level > 0 and dt * norm * r <= _HALF * scale:  # no further than to where a finer cascade begins
            low, high = np.float32(half // 2), np.float32(half // 2 + half)
            ex = ((low if ix > _ZERO else high) - gx) * ix
            ey = ((low if iy > _ZERO else high) - gy) * iy
            ez = ((low if iz > _ZERO else high) - gz) * iz
            border = max(ex, max(ey, ez))
            if border > _ZERO:
                leap = min(leap, border)
        leap = max(leap * scale / r, _ZERO)
        if cone_angle > _ZERO:
            target = middle + leap
            now += dt
            dt = min(max(now * cone_angle, least), most)
            while now + _HALF * dt < target and (level == cascades - 1 or dt * norm * r <= scale):
                now += dt
                dt = min(max(now * cone_angle, least), most)
        else:
            now += (np.floor(leap / dt) + _ONE) * dt
    return now, found


@kernel
def _march(part, parts, rays, marching, limit, out):
    """All samples inside occupied cells, at most ``limit`` a ray, ray i's from i·limit on.

    ``rays`` are origins, directions, near, far and jitter; ``marching`` is `march_arrays`; ``out`` is (t0, t1, x, count), count [rays].
    """
    origins, directions, near, far, jitter = rays
    box, bits, distance, cascades, resolution, step, cone_angle = marching
    t0, t1, x, count = out
    n = origins.shape[0]
    for i in range(n * part // parts, n * (part + 1) // parts):
        o, d = origins[i], directions[i]
        norm = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        first, last = enter(origins, directions, i, box, near[i], far[i])
        first += jitter[i] * max(step / norm, first * cone_angle)
        _, count[i] = march_ray(
            o[0],
            o[1],
            o[2],
            d[0],
            d[1],
            d[2],
            first,
            last,
            bits,
            distance,
            cascades,
            resolution,
            step,
            cone_angle,
            limit,
            t0,
            t1,
            x,
            i * limit,
        )


@kernel
def _fade_and_raise(part, parts, grid, decay, cells, found):
    """grid *= decay, then grid[cell] = max(grid[cell], found); returns the sum of this part's cells."""
    low, high = grid.size * part // parts, grid.size * (part + 1) // parts
    for i in range(low, high):
        grid[i] *= decay
    for k in range(cells.size):
        if low <= cells[k] < high:
            grid[cells[k]] = max(grid[cells[k]], found[k])
    total = np.float64(0)
    for i in range(low, high):
        total += grid[i]
    return total


@kernel
def _pack_bits(part, parts, grid, threshold, bits, matter):
    """One bit per cell, x fastest, set above ``threshold``; one per 2x2x2 block that holds any, 64 blocks of a row in a word."""
    for word in range(matter.size * part // parts, matter.size * (part + 1) // parts):
        row = 2 * (word >> 6 << 7 | (word & 63))  # of cells, the first of the blocks' four
        blocks = np.uint64(0)
        for k in range(4):
            first = 16 * (row + (k & 1) + 128 * (k >> 1))
            for byte in range(first, first + 16):
                eight = 0
                for bit in range(8):
                    eight |= int(grid[byte * 8 + bit] > threshold) << bit
                bits[byte] = eight
                pairs = (eight | (eight >> 1)) & 0x55
                pairs = (pairs | (pairs >> 1)) & 0x33
                blocks |= np.uint64((pairs | (pairs >> 2)) & 0x0F) << np.uint64(4 * (byte - first))
        matter[word] = blocks


@kernel
def _block_distances(part, parts, matter, farthest, distance):
    """Each block's (Chebyshev) distance to one with matter, at most ``farthest``; growing all matter by a block takes few operations."""
    one = np.uint64(1)
    cascades = matter.size // 4096
    wide, tall = np.empty(4096, np.uint64), np.empty(4096, np.uint64)
    for cascade in range(part, cascades, parts):
        grown = matter[4096 * cascade : 4096 * (cascade + 1)].copy()
        away_from = distance[64 * 4096 * cascade : 64 * 4096 * (cascade + 1)]
        away_from[:] = farthest
        for word in range(4096):
            _mark(away_from, word, grown[word], 0)
        for away in range(1, farthest):
            for word in range(4096):
                w = grown[word]
                wide[word] = w | (w << one) | (w >> one)
            for word in range(4096):
                y = word & 63
                tall[word] = wide[word] | wide[word - (y > 0)] | wide[word + (y < 63)]
            changed = False
            for word in range(4096):
                z = word >> 6
                w = tall[word] | tall[word - 64 * (z > 0)] | tall[word + 64 * (z < 63)]
                fresh = w & ~grown[word]
                _mark(away_from, word, fresh, away)
                grown[word] = w
                changed |= fresh != 0
            if not changed:
                break


@inlined
def _mark(distance, word, blocks, away):
    """Write a distance to the blocks whose bits are set."""
    if blocks:
        for k in range(64):
            if (blocks >> np.uint64(k)) & np.uint64(1):
                distance[64 * word + k] = np.uint8(away)


def fade_and_raise(grid: Tensor, decay: float, cells: Tensor, found: Tensor) -> float:
    """Sum of all cells afterwards."""
    return sum(run_parallel(_fade_and_raise, array(grid), f32(decay), array(cells), array(found)))


def pack_occupancy(grid: Tensor, threshold: float) -> Occupancy:
    """Bits, distances and box."""
    cascades = grid.numel() // layouts.RESOLUTION**3
    bits = torch.empty(grid.numel() // 8, dtype=torch.uint8)
    distance = torch.empty(cascades * layouts.BLOCKS**3, dtype=torch.uint8)
    matter = np.empty(len(distance) // 64, np.uint64)
    run_parallel(_pack_bits, array(grid), f32(threshold), array(bits), matter)
    run_parallel(_block_distances, matter, layouts.FARTHEST, array(distance))
    return Occupancy(bits, distance, layouts.occupied_box(distance))


def march_rays(rays: RaySet, march: March, limit: int) -> Samples:
    """All samples in occupied cells."""
    n = len(rays)
    room = blocks_of(max(n * limit, 1)) * LANES
    t0, t1, x = np.empty(room, f32), np.empty(room, f32), np.empty(3 * room, f32)
    count = torch.zeros(n, dtype=torch.long)
    given = arrays(rays.origins, rays.directions, rays.near, rays.far, rays.jitter)
    run_parallel(_march, given, march_arrays(march), limit, (t0, t1, x, array(count)))
    ray = torch.repeat_interleave(torch.arange(n), count)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    at = (torch.arange(len(ray)) - offsets[ray] + ray * limit).numpy()
    positions = x.reshape(-1, 3, LANES)[at // LANES, :, at % LANES]
    return Samples(ray.int(), torch.from_numpy(t0[at]), torch.from_numpy(t1[at]), torch.from_numpy(positions), offsets)
