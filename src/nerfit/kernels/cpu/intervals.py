"""Intervals along rays on CPUs: densities in their middles with gradients, and colours of rays whose samples are given."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.blocks import LANES, aligned, aligned_zeros
from nerfit.kernels.cpu.field import (
    back_through_density_network,
    density16,
    density_of_raw,
    geo_features_of_block,
    geo_features_of_blocks,
    gradients,
    layers,
    networks,
    slope16,
    transposes,
)
from nerfit.kernels.cpu.hash_grid import CHUNK
from nerfit.kernels.cpu.marching import contraction
from nerfit.kernels.cpu.matmul import begin, end
from nerfit.kernels.cpu.rendering import POOL, WAVE
from nerfit.kernels.cpu.runtime import kernel, part_count, part_of_kernel, run_parallel
from nerfit.kernels.cpu.slots import Slots, blank_lanes, copy_lanes, paint, write_directions
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, cutoff_numbers, f32, field_arrays, matrices
from nerfit.kernels.cpu.vectors import exp16, load16, splat16, store16
from nerfit.kernels.layouts import Cutoffs, Network, RaySet

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


@part_of_kernel
def _middles(origins, directions, edges, first, blocks, rows):
    """Middles of intervals, numbered ray after ray, from number ``first`` on, as positions in the field's cube (`contract`).

    They are ``rows`` ([blocks, 3, LANES], flat); lanes past the last interval repeat it.
    """
    samples = edges.shape[1] - 1
    last = edges.shape[0] * samples - 1
    for block in range(blocks):
        for lane in range(LANES):
            q = min(first + block * LANES + lane, last)
            i = q // samples
            k = q - i * samples
            t = _HALF * (edges[i, k] + edges[i, k + 1])
            x = origins[i, 0] + t * directions[i, 0] - _HALF
            y = origins[i, 1] + t * directions[i, 1] - _HALF
            z = origins[i, 2] + t * directions[i, 2] - _HALF
            squeeze = contraction(x, y, z)
            row = 3 * block * LANES + lane
            rows[row], rows[row + LANES], rows[row + 2 * LANES] = x * squeeze + _HALF, y * squeeze + _HALF, z * squeeze + _HALF


@kernel
def _density_along(part, parts, rays, field, positions, features, out):
    """Densities [blocks·LANES] in the middles of intervals; ``positions`` and ``features`` of all blocks stay there, if not empty.

    ``rays`` are origins, directions and edges; ``field`` is `field_arrays`.
    """
    origins, directions, edges = rays
    table, resolutions, offsets, entries, weights, depth, width, tiles = field
    blocks = out.size // LANES
    stop = blocks * (part + 1) // parts
    rows, found = aligned(3 * CHUNK * LANES), aligned_zeros(CHUNK * depth * LANES)
    geo_features = aligned(16 * CHUNK * LANES)
    net, room = networks(weights, depth, width, tiles), layers(depth, width)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        if features.size:
            rows, found = positions[3 * first * LANES :], features[first * depth * LANES :]
        _middles(origins, directions, edges, first * LANES, many, rows)
        geo_features_of_blocks(rows, many, table, resolutions, offsets, entries, net, found, room, geo_features)
        for block in range(many):
            density_of_raw(geo_features, 16 * LANES * block, out, (first + block) * LANES)
    end(tiles)


@kernel
def _density_along_backward(part, parts, features, network, gradient, weight_sums):
    """Turn ``features`` into their gradients, given those of the densities [blocks·LANES]; weight_sums[part] gets the networks'.

    ``network`` is `matrices`.
    """
    weights, depth, width, tiles = network
    blocks = gradient.size // LANES
    net, a, g = networks(weights, depth, width, tiles), layers(depth, width), gradients(width)
    transposed = transposes(net)
    sums = aligned_zeros(weights.size)
    begin(tiles)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        f = features[block * depth * LANES : (block + 1) * depth * LANES]
        geo_features_of_block(net, f, a, a.joint)
        for i in range(0, LANES, 16):
            store16(g.joint, i, load16(gradient, block * LANES + i) * slope16(load16(a.joint, i)))
        back_through_density_network(net, transposed, f, a, g, sums)
    end(tiles)
    weight_sums[part, :] = sums


@kernel
def _render_along(part, parts, rays, field, cutoffs, keep, shares, out):
    """Colour [n, 3], opacity [n] and depth [n] of rays, and ``shares`` [n, samples], the weights of all their intervals.

    ``rays`` are origins, directions, unit directions and edges; ``field``, ``cutoffs`` and ``out`` are those of `_render`.
    Those worth a colour get slots, as in `_render`; returns how many did.
    """
    origins, directions, viewdirs, edges = rays
    table, resolutions, offsets, entries, weights, depth, width, tiles = field
    min_weight, early_stop = cutoffs
    color, opacity, along, ray, t0, t1, length, weight, transmittance_after, slot_positions, slot_directions, features = out
    n, samples = shares.shape
    low, high = n * part // parts, n * (part + 1) // parts
    ray, t0, t1, length, weight, transmittance_after = ray[part], t0[part], t1[part], length[part], weight[part], transmittance_after[part]
    slot_positions, slot_directions, features = slot_positions[part], slot_directions[part], features[part]
    pool = max(POOL * WAVE // samples, 1)
    room = (pool * samples + LANES - 1) // LANES * LANES
    p, passing, lengths = aligned(3 * room), aligned(room), aligned(room)
    found, geo_features = aligned_zeros(room * depth), aligned(16 * room)
    kept_geo_features = aligned(16 * ray.size)
    from_ = np.empty(room, np.int64)
    net, space = networks(weights, depth, width, tiles), layers(depth, width)
    kept, gone, painted = 0, 0, 0
    zero = splat16(_ZERO)
    color[low:high] = _ZERO
    opacity[low:high] = _ZERO
    along[low:high] = _ZERO
    begin(tiles)
    for first in range(low, high, pool):
        many = min(pool, high - first)
        blocks = (many * samples + LANES - 1) // LANES
        _middles(origins[first : first + many], directions[first : first + many], edges[first : first + many], 0, blocks, p)
        geo_features_of_blocks(p, blocks, table, resolutions, offsets, entries, net, found, space, geo_features)
        for i in range(first, first + many):
            d = directions[i]
            norm = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            for k in range(samples):
                lengths[(i - first) * samples + k] = (edges[i, k + 1] - edges[i, k]) * norm
        for block in range(blocks):
            for i in range(0, LANES, 16):
                density, q = density16(load16(geo_features, 16 * LANES * block + i)), block * LANES + i
                store16(passing, q, exp16(zero - density * load16(lengths, q)))
        fresh = kept
        for i in range(first, first + many):
            light = shown = _ONE
            for k in range(samples):
                q = (i - first) * samples + k
                shares[i, k] = light * (_ONE - passing[q])
                if shares[i, k] >= min_weight and light >= early_stop:
                    w = shown * (_ONE - passing[q])
                    shown *= passing[q]
                    ray[kept], t0[kept], t1[kept], weight[kept], transmittance_after[kept] = i, edges[i, k], edges[i, k + 1], w, shown
                    length[kept] = lengths[q]
                    from_[kept - fresh] = q
                    opacity[i] += w
                    along[i] += w * _HALF * (edges[i, k] + edges[i, k + 1])
                    kept += 1
                light *= passing[q]
        if keep:
            copy_lanes(p, from_, 3, slot_positions, fresh, kept - fresh)
            copy_lanes(found, from_, depth, features, fresh, kept - fresh)
        copy_lanes(geo_features, from_, 16, kept_geo_features, fresh, kept - fresh)
        write_directions(viewdirs, ray, slot_directions, fresh, kept)
        ready = kept // LANES * LANES if keep else kept
        paint(painted, ready, net, space, kept_geo_features, slot_directions, ray, weight, color)
        painted = ready
        if not keep:
            gone, kept, painted = gone + kept, 0, 0
    paint(painted, kept, net, space, kept_geo_features, slot_directions, ray, weight, color)
    if keep:
        blank_lanes(slot_positions, 3, kept)
        blank_lanes(slot_directions, 3, kept)
        blank_lanes(features, depth, kept)
    end(tiles)
    return gone + kept


@part_of_kernel
def _from_ladder(y, power):
    """`inverse_power_ladder`."""
    if power == _ONE:
        return y
    if power == _ZERO:
        return np.exp(y) - _ONE
    scale = abs(power - _ONE)
    return scale * ((_ONE + power / scale * y) ** (_ONE / power) - _ONE)


@kernel
def _draw_intervals(part, parts, last, ladder, drawing, out):
    """``weights`` [n, bins] of intervals and the edges of new ones, [n, samples + 1], on the ladder and as distances.

    ``last`` are the old edges on the ladder and as distances, the densities between, and the lengths of directions [n]; ``ladder`` is
    (low, high, power, unit), low and high [n] where its share of the way begins and ends; ``drawing`` is (jitter [n, 1], exponent,
    padding).
    """
    s, t, density, norm = last
    low, high, power, unit = ladder
    jitter, exponent, padding = drawing
    weights, new_s, new_t = out
    n, bins = weights.shape
    samples = new_s.shape[1] - 1
    mass, center = np.empty(bins, np.float32), np.empty(samples, np.float32)
    for i in range(n * part // parts, n * (part + 1) // parts):
        light, total = _ONE, _ZERO
        for b in range(bins):
            left = light * np.exp(-density[i, b] * (t[i, b + 1] - t[i, b]) * norm[i])
            w = light - left
            light = left
            weights[i, b] = w
            if exponent != _ONE:
                w = np.exp(exponent * np.log(max(w, np.float32(1e-30))))
            mass[b] = (w if s[i, b + 1] > s[i, b] else _ZERO) + padding
            total += mass[b]
        before, b = _ZERO, 0
        for k in range(samples):
            wanted = (np.float32(k) + jitter[i, 0]) / np.float32(samples) * total
            while b < bins - 1 and before + mass[b] <= wanted:
                before += mass[b]
                b += 1
            share = min((wanted - before) / max(mass[b], np.float32(1e-30)), _ONE)
            center[k] = s[i, b] + share * (s[i, b + 1] - s[i, b])
        new_s[i, 0] = max(_HALF * (np.float32(3) * center[0] - center[1]), _ZERO)
        for k in range(1, samples):
            new_s[i, k] = _HALF * (center[k - 1] + center[k])
        new_s[i, samples] = min(_HALF * (np.float32(3) * center[samples - 1] - center[samples - 2]), _ONE)
        for k in range(samples + 1):
            new_t[i, k] = _from_ladder(low[i] + new_s[i, k] * (high[i] - low[i]), power) * unit


def density(rays: RaySet, edges: Tensor, network: Network, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Densities [rays, samples], and with ``keep`` the blocked positions and features."""
    n, samples = len(edges), edges.shape[1] - 1
    blocks, depth = blocks_of(n * samples), network.shape.grid.depth
    out = torch.empty(blocks * LANES)
    positions, features = torch.empty(3 * LANES * blocks if keep else 0), torch.zeros(depth * LANES * blocks if keep else 0)
    if n:
        given = arrays(rays.origins, rays.directions, edges)
        run_parallel(_density_along, given, field_arrays(network), *arrays(positions, features, out))
    return out[: n * samples].reshape(n, samples), positions, features


def density_backward(features: Tensor, network: Network, gradient: Tensor) -> Tensor:
    """Turn the features into their gradients; the networks' gradients."""
    sums = torch.zeros(part_count(), len(network.weights))
    padded = torch.zeros(len(features) // network.shape.grid.depth)
    padded[: gradient.numel()] = gradient.flatten()
    run_parallel(_density_along_backward, array(features), matrices(network), array(padded), array(sums))
    return sums.sum(0)


def render(rays: RaySet, edges: Tensor, network: Network, cutoffs: Cutoffs, keep: bool) -> tuple[Slots, Tensor]:
    """A rendering in slots that hold its visible samples with ``keep``, and the weights [rays, samples] of all intervals."""
    n, samples = len(edges), edges.shape[1] - 1
    most = samples * -(-n // part_count()) if keep else max(POOL * WAVE, samples)
    slots = Slots.make(n, blocks_of(most) * LANES, network.shape.grid.depth, keep)
    slots.evaluated = n * samples
    weights = torch.empty(n, samples)
    given = arrays(rays.origins, rays.directions, rays.viewdirs, edges), field_arrays(network), cutoff_numbers(cutoffs)
    slots.kept = run_parallel(_render_along, *given, keep, array(weights), slots.arrays())
    return slots, weights


def draw(
    last: tuple[Tensor, ...], ladder: tuple[Tensor, Tensor, float, float], drawing: tuple[Tensor, float, float], samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, and new intervals' edges on the ladder and as distances; the arguments are those of `_draw_intervals`."""
    (low, high, power, unit), (jitter, exponent, padding) = ladder, drawing
    density, n = last[2], len(low)
    weights, new_s, new_t = torch.empty_like(density), torch.empty(n, samples + 1), torch.empty(n, samples + 1)
    places, rule = (*arrays(low, high), f32(power), f32(unit)), (*arrays(jitter), f32(exponent), f32(padding))
    run_parallel(_draw_intervals, arrays(*last), places, rule, arrays(weights, new_s, new_t))
    return weights, new_s, new_t
