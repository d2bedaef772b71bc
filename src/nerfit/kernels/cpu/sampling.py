"""Where rays meet matter, on CPUs: marching through an occupancy grid and keeping the samples that can be seen."""

import numpy as np

from nerfit.kernels.cpu.field import density_of_blocks
from nerfit.kernels.cpu.matmul import LANES, begin, end, round16
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel
from nerfit.kernels.cpu.vectors import exp16, load16, splat16, store16

FARTHEST = 15
"""Largest distance to matter, in blocks of 2x2x2 cells, that the march knows of."""
POOL = 256
"""Rays that a thread follows at a time."""
WAVE = 8
"""Samples that each of them takes before their light is looked at."""
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


@part_of_kernel
def march_ray(ox, oy, oz, dx, dy, dz, now, stop, bits, distance, cascades, resolution, step, cone, limit, t0, t1, x, out):
    """Up to ``limit`` next samples of one ray inside occupied cells, from index ``out`` on; returns (how far, how many).

    The unit cube is cascade 0, each further cascade is twice as large around the same centre. ``x`` ([block, 3, LANES], flat) are
    positions within the outermost cascade, as [0, 1]³.
    """
    r = np.float32(resolution)
    norm = np.sqrt(dx * dx + dy * dy + dz * dz)
    tiny = np.float32(1e-12)
    ix = _ONE / (dx if abs(dx) > tiny else tiny)
    iy = _ONE / (dy if abs(dy) > tiny else tiny)
    iz = _ONE / (dz if abs(dz) > tiny else tiny)
    coarsest = np.float32(1 << (cascades - 1))
    inner = _ONE / coarsest
    least = step / norm
    most = max(coarsest / (r * norm), least)
    found = 0
    dt = least
    half = resolution // 2
    while now < stop and found < limit:
        if cone > _ZERO:
            dt = min(max(now * cone, least), most)
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
                x[row], x[row + LANES], x[row + 2 * LANES] = px * inner + _HALF, py * inner + _HALF, pz * inner + _HALF
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
        if cone > _ZERO:
            target = middle + leap
            now += dt
            dt = min(max(now * cone, least), most)
            while now + _HALF * dt < target and (level == cascades - 1 or dt * norm * r <= scale):
                now += dt
                dt = min(max(now * cone, least), most)
        else:
            now += (np.floor(leap / dt) + _ONE) * dt
    return now, found


@kernel
def march(
    part, parts, origins, directions, near, far, jitter, box, bits, distance, cascades, resolution, step, cone, limit, t0, t1, x, count
):
    """All samples inside occupied cells, at most ``limit`` a ray, ray i's from i·limit on; ``count`` [rays] says how many."""
    n = origins.shape[0]
    for i in range(n * part // parts, n * (part + 1) // parts):
        o, d = origins[i], directions[i]
        norm = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        first, last = enter(origins, directions, i, box, near[i], far[i])
        first += jitter[i] * max(step / norm, first * cone)
        _, count[i] = march_ray(
            o[0], o[1], o[2], d[0], d[1], d[2], first, last, bits, distance, cascades, resolution, step, cone, limit, t0, t1, x, i * limit
        )


@kernel
def visible_samples(
    part,
    parts,
    origins,
    directions,
    near,
    far,
    jitter,
    box,
    bits,
    distance,
    cascades,
    resolution,
    step,
    cone,
    table,
    resolutions,
    offsets,
    entries,
    weights,
    depth,
    width,
    tiles,
    least_weight,
    least_light,
    ray,
    t0,
    t1,
    x,
    count,
):
    """March, ask the field for densities, follow the light: the samples whose weight reaches ``least_weight``, by ray.

    A pool of rays takes ``WAVE`` samples each, those whose light has gone below ``least_light`` or that left the box make
    room for new ones. Part p writes to row p of the outputs. Returns (samples kept, densities evaluated, whether a sample
    found no room).
    """
    n = origins.shape[0]
    low, high = n * part // parts, n * (part + 1) // parts
    capacity = ray.shape[1]
    mine = np.empty(POOL, np.int64)
    at, stop, light = np.empty(POOL, np.float32), np.empty(POOL, np.float32), np.empty(POOL, np.float32)
    got = np.empty(POOL, np.int64)
    room = POOL * WAVE
    a, b, p, sigma = np.empty(room, np.float32), np.empty(room, np.float32), np.zeros(3 * room, np.float32), np.empty(room, np.float32)
    features = np.zeros(room * depth, np.float32)
    hidden, code = np.empty(width * LANES, np.float32), np.empty(16 * LANES, np.float32)
    scratch = np.empty(max(depth, width) * LANES, np.float32)
    w16 = np.empty(weights.size // 2, np.int32)
    round16(weights, w16)
    kept_ray, kept_t0, kept_t1 = np.empty(capacity, np.int32), np.empty(capacity, np.float32), np.empty(capacity, np.float32)
    kept_x = np.empty((3, capacity), np.float32)
    kept, evaluated, alive, next_ray, full = 0, 0, 0, low, False
    zero = splat16(_ZERO)
    count[low:high] = 0
    begin(tiles)
    while True:
        while alive < POOL and next_ray < high:
            first, last = enter(origins, directions, next_ray, box, near[next_ray], far[next_ray])
            if first < last:
                d = directions[next_ray]
                norm = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
                at[alive] = first + jitter[next_ray] * max(step / norm, first * cone)
                mine[alive], stop[alive], light[alive] = next_ray, last, _ONE
                alive += 1
            next_ray += 1
        if alive == 0:
            break
        limit = room // alive if next_ray >= high else WAVE
        total = 0
        for k in range(alive):
            i = mine[k]
            o, d = origins[i], directions[i]
            at[k], got[k] = march_ray(
                o[0], o[1], o[2], d[0], d[1], d[2], at[k], stop[k], bits, distance, cascades, resolution, step, cone, limit, a, b, p, total
            )
            total += got[k]
        evaluated += total
        density_of_blocks(
            p,
            (total + LANES - 1) // LANES,
            table,
            resolutions,
            offsets,
            entries,
            weights,
            w16,
            depth,
            width,
            tiles,
            features,
            hidden,
            code,
            scratch,
            sigma,
        )
        s, left = 0, 0
        for k in range(alive):
            d = directions[mine[k]]
            norm = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            for q in range(s, s + got[k]):
                sigma[q] *= (b[q] - a[q]) * norm
            s += got[k]
        for q in range(0, total, 16):
            store16(sigma, q, exp16(zero - load16(sigma, q)))
        s = 0
        for k in range(alive):
            t = light[k]
            for q in range(s, s + got[k]):
                w = t * (_ONE - sigma[q])
                if w >= least_weight and t >= least_light:
                    if kept < capacity:
                        kept_ray[kept], kept_t0[kept], kept_t1[kept] = mine[k], a[q], b[q]
                        row = (q // LANES) * 3 * LANES + q % LANES
                        kept_x[0, kept], kept_x[1, kept], kept_x[2, kept] = p[row], p[row + LANES], p[row + 2 * LANES]
                        count[mine[k]] += 1
                        kept += 1
                    else:
                        full = True
                t *= sigma[q]
            s += got[k]
            if t >= least_light and at[k] < stop[k]:
                mine[left], at[left], stop[left], light[left] = mine[k], at[k], stop[k], t
                left += 1
        alive = left
    end(tiles)
    begins = np.empty(high - low, np.int64)
    total = 0
    for i in range(low, high):
        begins[i - low] = total
        total += count[i]
    for s in range(kept):
        to = begins[kept_ray[s] - low]
        begins[kept_ray[s] - low] += 1
        ray[part, to], t0[part, to], t1[part, to] = kept_ray[s], kept_t0[s], kept_t1[s]
        x[part, to, 0], x[part, to, 1], x[part, to, 2] = kept_x[0, s], kept_x[1, s], kept_x[2, s]
    return kept, evaluated, full


@kernel
def decay_occupancy(part, parts, grid, decay):
    """Let the remembered densities fade."""
    n = grid.size
    for i in range(n * part // parts, n * (part + 1) // parts):
        grid[i] *= decay


@kernel
def raise_occupancy(grid, cells, density):
    """grid[cell] = max(grid[cell], density)."""
    for i in range(cells.size):
        grid[cells[i]] = max(grid[cells[i]], density[i])


@kernel
def pack_occupancy(grid, threshold, bits, distance):
    """One bit per cell, x fastest, set above ``threshold``; and each 2x2x2 block's (Chebyshev) distance to one that holds any.

    A row of 64 blocks is one word, so growing all matter by a block takes a few operations on words.
    """
    matter, grown = np.zeros(distance.size // 64, np.uint64), np.empty(distance.size // 64, np.uint64)
    one = np.uint64(1)
    for byte in range(bits.size):
        eight = 0
        for k in range(8):
            eight |= int(grid[byte * 8 + k] > threshold) << k
        bits[byte] = eight
        if eight:
            row, x = byte >> 4, np.uint64((byte & 15) * 4)
            pairs = np.uint64(0)
            for k in range(4):
                if (eight >> (2 * k)) & 3:
                    pairs |= one << np.uint64(k)
            matter[(row >> 8) * 64 + ((row & 127) >> 1)] |= pairs << x
    for word in range(matter.size):
        for k in range(64):
            distance[word * 64 + k] = np.uint8(0) if (matter[word] >> np.uint64(k)) & one else np.uint8(FARTHEST)
    for away in range(1, FARTHEST):
        for word in range(matter.size):
            w = matter[word]
            grown[word] = w | (w << one) | (w >> one)
        matter[:] = grown
        for word in range(matter.size):
            y = word & 63
            grown[word] = matter[word] | matter[word - (y > 0)] | matter[word + (y < 63)]
        changed = False
        for word in range(matter.size):
            z = (word >> 6) & 63
            w = grown[word] | grown[word - 64 * (z > 0)] | grown[word + 64 * (z < 63)]
            matter[word] = w
            for k in range(64):
                if distance[word * 64 + k] > away and (w >> np.uint64(k)) & one:
                    distance[word * 64 + k] = away
                    changed = True
        if not changed:
            break
