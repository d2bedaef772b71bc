"""The march of rays through an occupancy grid on GPUs: a lane per ray."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.layouts import March, RaySet, Samples
from nerfit.kernels.triton.runtime import jit, launch

BLOCK = 32
CELLS, BLOCKS = tl.constexpr(layouts.RESOLUTION), tl.constexpr(layouts.BLOCKS)


def march_rays(rays: RaySet, march: March, limit: int) -> Samples:
    """All samples in occupied cells: marched once to count them, once more to write them down."""
    n, o, origins = len(rays), march.occupancy, rays.origins
    given = [a.contiguous() for a in (origins, rays.directions, rays.near, rays.far, rays.jitter)]
    count = torch.zeros(n, dtype=torch.int64, device=origins.device)

    def run(room: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t0, t1, x = origins.new_empty(room), origins.new_empty(room), origins.new_empty(room, 3)
        out = count.new_empty(room, dtype=torch.int32), t0, t1, x
        args = (*given, o.box, o.bits, o.distance, float(march.step), float(march.cone_angle), limit, n, room, offsets, count, *out)
        launch(_march, (triton.cdiv(n, BLOCK),), *args, CASCADES=o.cascades, BLOCK=BLOCK, num_warps=1)
        return out

    run(0, count)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return Samples(*run(int(offsets[-1]), offsets), offsets)


@jit(do_not_specialize=["room"])  # one machine code for both passes, so that they count alike to the last bit
def _march(
    origins,
    directions,
    near,
    far,
    jitter,
    box,
    bits,
    distance,
    step,
    cone_angle,
    limit,
    n,
    room,
    offsets,
    count,
    ray_indices,
    t_starts,
    t_ends,
    x,
    CASCADES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ox, oy, oz = tl.load(origins + 3 * i, i < n, 0.0), tl.load(origins + 3 * i + 1, i < n, 0.0), tl.load(origins + 3 * i + 2, i < n, 0.0)
    dx, dy, dz = (
        tl.load(directions + 3 * i, i < n, 1.0),
        tl.load(directions + 3 * i + 1, i < n, 1.0),
        tl.load(directions + 3 * i + 2, i < n, 1.0),
    )
    now, last = tl.load(near + i, i < n, 0.0), tl.load(far + i, i < n, -1.0)
    now, last = _enter(box, 0, ox, dx, now, last)
    now, last = _enter(box, 1, oy, dy, now, last)
    now, last = _enter(box, 2, oz, dz, now, last)
    norm = tl.sqrt(dx * dx + dy * dy + dz * dz)
    least = step / norm
    most = tl.maximum(2.0 ** (CASCADES - 1) / (CELLS * norm), least)
    now += tl.load(jitter + i, i < n, 0.0) * tl.maximum(least, now * cone_angle)
    first = tl.load(offsets + i, i < n, 0)
    found = tl.zeros([BLOCK], tl.int32)
    alive = (now < last) & (found < limit)
    while tl.max(alive.to(tl.int32), 0) > 0:
        dt = _step(now, cone_angle, least, most)
        middle = now + 0.5 * dt
        px, py, pz = ox + middle * dx - 0.5, oy + middle * dy - 0.5, oz + middle * dz - 0.5
        reach = tl.maximum(tl.maximum(tl.abs(px), tl.abs(py)), tl.abs(pz))
        level = tl.zeros([BLOCK], tl.int32)
        for k in tl.static_range(CASCADES - 1):
            level += ((reach >= 0.5 * 2**k) | (dt * norm * CELLS > 2**k)).to(tl.int32)
        scale = (1 << level).to(tl.float32)
        gx, gy, gz = (px / scale + 0.5) * CELLS, (py / scale + 0.5) * CELLS, (pz / scale + 0.5) * CELLS
        cx, cy, cz = _inside(gx), _inside(gy), _inside(gz)
        away = tl.load(distance + ((level * BLOCKS + cz // 2) * BLOCKS + cy // 2) * BLOCKS + cx // 2, alive, 0).to(tl.int32)
        cell = ((level * CELLS + cz) * CELLS + cy) * CELLS + cx
        bit = tl.load(bits + cell // 8, alive & (away == 0), 0).to(tl.int32) >> (cell % 8) & 1
        hit = alive & (bit == 1)
        at = first + found
        written = hit & (at < room)
        tl.store(ray_indices + at, i, written)
        tl.store(t_starts + at, now, written)
        tl.store(t_ends + at, now + dt, written)
        squeeze = _contraction(px, py, pz, CASCADES)
        tl.store(x + 3 * at, px * squeeze + 0.5, written)
        tl.store(x + 3 * at + 1, py * squeeze + 0.5, written)
        tl.store(x + 3 * at + 2, pz * squeeze + 0.5, written)
        found += hit.to(tl.int32)
        # leave the empty cell, or the cube of blocks nearer than ``away``, but stay in this cascade
        leap = tl.minimum(tl.minimum(_way_out(gx, dx, cx, away), _way_out(gy, dy, cy, away)), _way_out(gz, dz, cz, away))
        entry = tl.maximum(tl.maximum(_way_in(gx, dx), _way_in(gy, dy)), _way_in(gz, dz))
        finer = (level > 0) & (2 * dt * norm * CELLS <= scale) & (entry > 0)
        leap = tl.where(hit, 0.0, tl.maximum(tl.where(finer, tl.minimum(leap, entry), leap) * scale / CELLS, 0.0))
        # in whole steps: samples stay on the ray's own lattice
        now += tl.where(alive, tl.where(cone_angle > 0, 1.0, tl.floor(leap / dt) + 1) * dt, 0.0)
        behind = alive & (cone_angle > 0)
        while tl.max(behind.to(tl.int32), 0) > 0:
            dt = _step(now, cone_angle, least, most)
            behind &= (now + 0.5 * dt < middle + leap) & ((level == CASCADES - 1) | (dt * norm * CELLS <= scale))
            now += tl.where(behind, dt, 0.0)
        alive &= (now < last) & (found < limit)
    tl.store(count + i, found.to(tl.int64), i < n)


@jit
def _enter(box, AXIS: tl.constexpr, o, d, first, last):
    """Where rays enter and leave the box's slab along an axis; entry beyond exit if they miss it."""
    low, high = tl.load(box + AXIS), tl.load(box + 3 + AXIS)
    moves = tl.abs(d) >= 1e-12
    a, b = (low - o) / tl.where(moves, d, 1.0), (high - o) / tl.where(moves, d, 1.0)
    first = tl.where(moves, tl.maximum(first, tl.minimum(a, b)), first)
    outside = tl.where((o < low) | (o > high), first - 1, last)
    return first, tl.where(moves, tl.minimum(last, tl.maximum(a, b)), outside)


@jit
def _contraction(px, py, pz, CASCADES: tl.constexpr):
    """Factor that takes positions relative to the centre into the field's cube: see `contract`."""
    reach = 2 * tl.maximum(tl.maximum(tl.abs(px), tl.abs(py)), tl.maximum(tl.abs(pz), 0.5))
    return tl.where(CASCADES > 1, 0.5 * (2 - 1 / reach) / reach, 1.0)


@jit
def _step(now, cone_angle, least, most):
    return tl.minimum(tl.maximum(now * cone_angle, least), most)


@jit
def _inside(g):
    return tl.minimum(tl.maximum(g, 0.0), CELLS - 1.0).to(tl.int32)


@jit
def _way_out(g, d, cell, away):
    """Time, in cells, until g leaves the cell (``away`` = 0) or the cube of blocks nearer than ``away`` around it."""
    low = tl.where(away == 0, cell, tl.maximum(2 * (cell // 2 - away + 1), 0))
    high = tl.where(away == 0, cell + 1, tl.minimum(2 * (cell // 2 + away), CELLS))
    return _time(g, d, high, low, float("inf"))


@jit
def _way_in(g, d):
    """Time, in cells, until g enters the slab that a finer cascade covers."""
    return _time(g, d, CELLS // 4, 3 * CELLS // 4, float("-inf"))


@jit
def _time(g, d, ahead, behind, never):
    """Time from g to what lies ahead in an axis' direction if d > 0, else to what lies behind."""
    moves = tl.abs(d) >= 1e-12
    return tl.where(moves, (tl.where(d > 0, ahead, behind) - g) / tl.where(moves, d, 1.0), never)
