"""Rays to colours on CPUs, forward and backward: march, densities, light, colours, and the samples that can be seen kept in slots.

A thread owns a range of rays. It follows a pool of them, ``WAVE`` samples each at a time: those whose light is gone or that left the
box make room for new ones. Samples worth a colour go to slots, in the order in which they are found; a ray's own come front to
back, so light can be summed forwards when they are found, and gradients backwards from the last slot.
"""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu.blocks import LANES, aligned, aligned_zeros
from nerfit.kernels.cpu.field import (
    all_layers,
    back_through_layers,
    density16,
    geo_features_of_blocks,
    gradients,
    layers,
    networks,
    transposes,
)
from nerfit.kernels.cpu.hash_grid import gradients_by_place
from nerfit.kernels.cpu.marching import enter, march_ray
from nerfit.kernels.cpu.matmul import begin, end
from nerfit.kernels.cpu.runtime import kernel, run_parallel
from nerfit.kernels.cpu.slots import Slots, blank_lanes, copy_lanes, paint, write_directions
from nerfit.kernels.cpu.spherical_harmonics import spherical_harmonics_block
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, cutoff_numbers, f32, field_arrays, march_arrays, matrices
from nerfit.kernels.cpu.vectors import exp16, load16, splat16, store16
from nerfit.kernels.layouts import Cutoffs, March, Network, RaySet, Samples

POOL = 256
"""Rays that a thread follows at a time."""
WAVE = 8
"""Samples that each of them takes before their light is looked at."""
_ZERO, _HALF, _ONE, _LEAST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-30)


@kernel
def _render(part, parts, rays, marching, field, cutoffs, wanted, out):
    """Colour [n, 3], opacity [n] and depth [n] of rays; with ``keep`` part p's samples stay in row p of the slots.

    ``rays`` are origins, directions, unit directions, near, far and jitter; ``marching`` is `march_arrays`, ``field`` `field_arrays`,
    ``cutoffs`` `cutoff_numbers`; ``wanted`` says whether colours are computed and slots kept; ``out`` is `Slots.arrays`.
    Returns (samples with a slot, densities evaluated, whether a sample found no slot).
    """
    origins, directions, viewdirs, near, far, jitter = rays
    box, bits, distance, cascades, resolution, step, cone_angle = marching
    table, resolutions, offsets, entries, weights, depth, width, tiles = field
    min_weight, early_stop = cutoffs
    colors, keep = wanted
    color, opacity, along, ray, t0, t1, length, weight, transmittance_after, slot_positions, slot_directions, features = out
    n = origins.shape[0]
    low, high = n * part // parts, n * (part + 1) // parts
    slots = ray.shape[1]
    ray, t0, t1, length, weight, transmittance_after = ray[part], t0[part], t1[part], length[part], weight[part], transmittance_after[part]
    slot_positions, slot_directions, features = slot_positions[part], slot_directions[part], features[part]
    mine, got = np.empty(POOL, np.int64), np.empty(POOL, np.int64)
    at, stop, norm = aligned(POOL), aligned(POOL), aligned(POOL)
    light, shown = aligned(POOL), aligned(POOL)
    room = POOL * WAVE
    a, b, p, passing = aligned(room), aligned(room), aligned_zeros(3 * room), aligned(room)
    found, geo_features = aligned_zeros(room * depth), aligned(16 * room)
    kept_geo_features = aligned(16 * slots)
    from_ = np.empty(room, np.int64)
    net, space = networks(weights, depth, width, tiles), layers(depth, width)
    kept, gone, painted, evaluated, alive, next_ray, full = 0, 0, 0, 0, 0, low, False
    zero = splat16(_ZERO)
    color[low:high] = _ZERO
    opacity[low:high] = _ZERO
    along[low:high] = _ZERO
    begin(tiles)
    while not full:
        while alive < POOL and next_ray < high:
            first, last = enter(origins, directions, next_ray, box, near[next_ray], far[next_ray])
            if first < last:
                d = directions[next_ray]
                norm[alive] = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
                at[alive] = first + jitter[next_ray] * max(step / norm[alive], first * cone_angle)
                mine[alive], stop[alive], light[alive], shown[alive] = next_ray, last, _ONE, _ONE
                alive += 1
            next_ray += 1
        if alive == 0:
            break
        limit = room // alive if next_ray >= high else WAVE
        total = 0
        for k in range(alive):
            o, d = origins[mine[k]], directions[mine[k]]
            at[k], got[k] = march_ray(
                o[0],
                o[1],
                o[2],
                d[0],
                d[1],
                d[2],
                at[k],
                stop[k],
                bits,
                distance,
                cascades,
                resolution,
                step,
                cone_angle,
                limit,
                a,
                b,
                p,
                total,
            )
            for q in range(total, total + got[k]):
                passing[q] = (b[q] - a[q]) * norm[k]
            total += got[k]
        evaluated += total
        blocks = (total + LANES - 1) // LANES
        geo_features_of_blocks(p, blocks, table, resolutions, offsets, entries, net, found, space, geo_features)
        for block in range(blocks):
            for i in range(0, LANES, 16):
                density, q = density16(load16(geo_features, 16 * LANES * block + i)), block * LANES + i
                store16(passing, q, exp16(zero - density * load16(passing, q)))
        s, left, fresh = 0, 0, kept
        for k in range(alive):
            t, u, i = light[k], shown[k], mine[k]
            for q in range(s, s + got[k]):
                if t * (_ONE - passing[q]) >= min_weight and t >= early_stop:
                    if kept == slots:
                        full = True
                        break
                    w = u * (_ONE - passing[q])
                    u *= passing[q]
                    ray[kept], t0[kept], t1[kept], weight[kept], transmittance_after[kept] = i, a[q], b[q], w, u
                    length[kept] = (b[q] - a[q]) * norm[k]
                    from_[kept - fresh] = q
                    opacity[i] += w
                    along[i] += w * _HALF * (a[q] + b[q])
                    kept += 1
                t *= passing[q]
            s += got[k]
            if t >= early_stop and at[k] < stop[k]:
                mine[left], at[left], stop[left], norm[left], light[left], shown[left] = i, at[k], stop[k], norm[k], t, u
                left += 1
        alive = left
        if keep:
            copy_lanes(p, from_, 3, slot_positions, fresh, kept - fresh)
            copy_lanes(found, from_, depth, features, fresh, kept - fresh)
        if colors:
            copy_lanes(geo_features, from_, 16, kept_geo_features, fresh, kept - fresh)
            write_directions(viewdirs, ray, slot_directions, fresh, kept)
            ready = kept // LANES * LANES if keep else kept
            paint(painted, ready, net, space, kept_geo_features, slot_directions, ray, weight, color)
            painted = ready
        if not keep:
            gone, kept, painted = gone + kept, 0, 0
    if colors:
        paint(painted, kept, net, space, kept_geo_features, slot_directions, ray, weight, color)
    if keep and not full:
        blank_lanes(slot_positions, 3, kept)
        blank_lanes(slot_directions, 3, kept)
        blank_lanes(features, depth, kept)
    end(tiles)
    return gone + kept, evaluated, full


@kernel
def _render_backward(part, parts, slots, network, given, near_falloff, stretch, weight_sums):
    """Turn the slots' ``features`` into their gradients; weight_sums[part] is this part's sum of the networks' gradients.

    dL/dσᵢ = δᵢ (Tᵢ₊₁ gᵢ - Σ_{j>i} wⱼ gⱼ) with gᵢ = dL/dwᵢ, so slots are walked from the last to the first with one sum per ray.
    ``weight_gradient`` [parts, slots or 0] is the loss's own derivative by the weights. Nearer than ``near_falloff`` gradients shrink
    with the distance's square. With ``stretch`` the slots' ``transmittance_after`` becomes σ dL/dσ: the loss's derivative by the logarithm
    of length.

    ``slots`` are how many each part has kept, and their arrays; ``network`` is `matrices`; ``given`` are the gradients of the colours,
    opacities, depths and weights.
    """
    kept, ray, t0, t1, length, weight, transmittance_after, slot_directions, features = slots
    weights, depth, width, tiles = network
    color_gradient, opacity_gradient, depth_gradient, weight_gradient = given
    count = kept[part]
    ray, t0, t1, length, weight, transmittance_after = ray[part], t0[part], t1[part], length[part], weight[part], transmittance_after[part]
    slot_directions, features = slot_directions[part], features[part]
    behind = aligned_zeros(color_gradient.shape[0])
    net, space, inner = networks(weights, depth, width, tiles), layers(depth, width), gradients(width)
    transposed = transposes(net)
    rgb, g_density, g_rgb, sums = space.color, inner.density, inner.color, aligned_zeros(weights.size)
    begin(tiles)
    for block in range((count + LANES - 1) // LANES - 1, -1, -1):
        f = features[block * depth * LANES : (block + 1) * depth * LANES]
        spherical_harmonics_block(slot_directions, 3 * LANES * block, space.joint, 16 * LANES)
        all_layers(net, f, space)
        many = min(LANES, count - block * LANES)
        for lane in range(LANES - 1, -1, -1):
            if lane >= many:
                g_density[lane] = _ZERO
                g_rgb[lane] = g_rgb[LANES + lane] = g_rgb[2 * LANES + lane] = _ZERO
                continue
            s = block * LANES + lane
            i, w, t = ray[s], weight[s], _HALF * (t0[s] + t1[s])
            share = (t / near_falloff) ** 2 if t < near_falloff else _ONE
            g = opacity_gradient[i] + depth_gradient[i] * t
            if weight_gradient.size:
                g += weight_gradient[part, s]
            for c in range(3):
                v = rgb[c * LANES + lane]
                g += color_gradient[i, c] * v
                g_rgb[c * LANES + lane] = share * w * color_gradient[i, c] * v * (_ONE - v)
            by_thickness = share * (transmittance_after[s] * g - behind[i])
            g_density[lane] = length[s] * by_thickness
            if stretch:
                transmittance_after[s] = by_thickness * np.log((transmittance_after[s] + w) / max(transmittance_after[s], _LEAST))
            behind[i] += w * g
        back_through_layers(net, transposed, f, space, inner, sums)
    end(tiles)
    weight_sums[part, :] = sums


_room = 1 << 14


def render(rays: RaySet, march: March, network: Network, cutoffs: Cutoffs, colors: bool, keep: bool) -> Slots:
    """Slots with the rendering; repeated with more room in the rare case that it is short."""
    global _room
    lines = arrays(rays.origins, rays.directions, rays.viewdirs, rays.near, rays.far, rays.jitter)
    given = lines, march_arrays(march), field_arrays(network), cutoff_numbers(cutoffs)
    while True:
        room = blocks_of(_room) * LANES if keep else POOL * WAVE
        slots = Slots.make(len(rays), room, network.shape.grid.depth, keep)
        done = run_parallel(_render, *given, (colors, keep), slots.arrays())
        if not any(full for _, _, full in done):
            break
        _room *= 2
    slots.kept, slots.evaluated = [kept for kept, _, _ in done], sum(evaluated for _, evaluated, _ in done)
    return slots


def render_backward(slots: Slots, network: Network, near_falloff: float, stretch: bool, *gradients: Tensor | None) -> Tensor:
    """Turn the slots' features into their gradients; the networks' gradients. With ``stretch`` what `ray_gradients` needs is kept."""
    n, parts = len(slots.opacity), len(slots.kept)
    g_color, g_opacity, g_depth, g_weight = gradients
    g_color = torch.zeros(n, 3) if g_color is None else g_color.contiguous()
    g_opacity, g_depth = (torch.zeros(n) if g is None else g.contiguous() for g in (g_opacity, g_depth))
    g_weight = torch.empty(parts, 0) if g_weight is None else g_weight.contiguous()
    sums = torch.zeros(parts, len(network.weights))
    samples = slots.ray, slots.t0, slots.t1, slots.length, array(slots.weight), slots.transmittance, slots.directions, slots.features
    given = arrays(g_color, g_opacity, g_depth, g_weight)
    kept = np.array(slots.kept)
    run_parallel(_render_backward, (kept, *samples), matrices(network), given, f32(near_falloff), stretch, array(sums))
    return sums.sum(0)


def ray_gradients(slots: Slots, origins: Tensor, directions: Tensor, network: Network, cascades: int) -> tuple[Tensor, Tensor]:
    """Gradients [n, 3] of rays whose samples stay at their distances, after `render_backward` with ``stretch``."""
    grid = network.shape.grid
    by_place = torch.cat(gradients_by_place(slots.positions, np.array(slots.kept), slots.features, network.table, grid, grid.depth))
    kept = list(enumerate(slots.kept))
    by_slot = (slots.ray, slots.t0, slots.t1, slots.transmittance)
    ray, t0, t1, stretch = (torch.cat([torch.from_numpy(a[r, :n]) for r, n in kept]) for a in by_slot)
    with torch.enable_grad():
        o, d = (v.detach().requires_grad_() for v in (origins, directions))
        ray = ray.long()
        x = layouts.contract(o[ray] + 0.5 * (t0 + t1)[:, None] * d[ray], cascades)
        stretched = torch.zeros(len(d)).index_add_(0, ray, stretch) * d.norm(dim=-1).log()
        g_origins, g_directions = torch.autograd.grad((x * by_place).sum() + stretched.sum(), (o, d))
    return g_origins, g_directions


def visible_samples(rays: RaySet, march: March, network: Network, cutoffs: Cutoffs) -> Samples:
    """The visible samples."""
    return render(rays, march, network, cutoffs, False, True).samples()[0]
