"""The fused field on CPUs: hash grid, density network, colour network; forward and backward, block by block."""

import numpy as np

from nerfit.kernels.cpu.hash_grid import CHUNK, encode_blocks, positions
from nerfit.kernels.cpu.matmul import LANES, begin, end, forward, round16, weight_gradient
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel
from nerfit.kernels.cpu.vectors import exp16, load16, maximum, minimum, positive_part, splat16, store16


@inlined
def _relu(a, size):
    zero = splat16(np.float32(0))
    for i in range(0, size, 16):
        store16(a, i, maximum(load16(a, i), zero))


@inlined
def _gate(g, a, size):
    """g where the activation a is positive, else 0."""
    for i in range(0, size, 16):
        store16(g, i, positive_part(load16(g, i), load16(a, i)))


@part_of_kernel
def spherical_harmonics_block(d, block, out):
    """The 16 real spherical harmonics of degree < 4 of a block's unit directions d [n, 3], as rows of ``out``."""
    last = d.shape[0] - 1
    for i in range(LANES):
        s = min(block * LANES + i, last)
        x, y, z = d[s, 0], d[s, 1], d[s, 2]
        xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
        out[i] = np.float32(0.28209479177387814)
        out[LANES + i] = np.float32(-0.4886025119029199) * y
        out[2 * LANES + i] = np.float32(0.4886025119029199) * z
        out[3 * LANES + i] = np.float32(-0.4886025119029199) * x
        out[4 * LANES + i] = np.float32(1.0925484305920792) * xy
        out[5 * LANES + i] = np.float32(-1.0925484305920792) * yz
        out[6 * LANES + i] = np.float32(0.31539156525252005) * (2 * zz - xx - yy)
        out[7 * LANES + i] = np.float32(-1.0925484305920792) * xz
        out[8 * LANES + i] = np.float32(0.5462742152960396) * (xx - yy)
        out[9 * LANES + i] = np.float32(-0.5900435899266435) * y * (3 * xx - yy)
        out[10 * LANES + i] = np.float32(2.890611442640554) * xy * z
        out[11 * LANES + i] = np.float32(-0.4570457994644658) * y * (4 * zz - xx - yy)
        out[12 * LANES + i] = np.float32(0.3731763325901154) * z * (2 * zz - 3 * xx - 3 * yy)
        out[13 * LANES + i] = np.float32(-0.4570457994644658) * x * (4 * zz - xx - yy)
        out[14 * LANES + i] = np.float32(1.445305721320277) * z * (xx - yy)
        out[15 * LANES + i] = np.float32(-0.5900435899266435) * x * (xx - 3 * yy)


@kernel
def spherical_harmonics(part, parts, d, out):
    """out [n, 16] of unit directions d [n, 3]."""
    n = d.shape[0]
    rows = np.empty(16 * LANES, np.float32)
    blocks = (n + LANES - 1) // LANES
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        spherical_harmonics_block(d, block, rows)
        for i in range(min(LANES, n - block * LANES)):
            for c in range(16):
                out[block * LANES + i, c] = rows[c * LANES + i]


@inlined
def _density_of(raw, out, at, count):
    """exp of the raw density (its first row), at most e¹⁵."""
    for i in range(0, LANES, 16):
        store16(raw, i, exp16(minimum(load16(raw, i), splat16(np.float32(15)))))
    for i in range(count):
        out[at + i] = raw[i]


@part_of_kernel
def density_of_blocks(
    rows, blocks, table, resolutions, offsets, entries, weights, w16, depth, width, tiles, features, hidden, code, scratch, out
):
    """Density [blocks·LANES] at ``rows`` ([blocks, 3, LANES], flat), with the working space that it needs."""
    encode_blocks(rows, blocks, table, resolutions, offsets, entries, features, depth)
    w1 = width * depth
    for block in range(blocks):
        forward(tiles, weights, w16, features[block * depth * LANES :], hidden, width, depth, scratch)
        _relu(hidden, width * LANES)
        forward(tiles, weights[w1:], w16[w1 // 2 :], hidden, code, 16, width, scratch)
        _density_of(code, out, block * LANES, LANES)


@kernel
def density(part, parts, x, table, resolutions, offsets, entries, weights, depth, width, tiles, out):
    """Density [blocks·LANES, so at least n] at positions x [n, 3]: grid and density network alone."""
    blocks = (x.shape[0] + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows, features = np.empty(3 * CHUNK * LANES, np.float32), np.zeros(CHUNK * depth * LANES, np.float32)
    hidden, code = np.empty(width * LANES, np.float32), np.empty(16 * LANES, np.float32)
    scratch = np.empty(max(depth, width) * LANES, np.float32)
    w16 = np.empty(weights.size // 2, np.int32)
    round16(weights, w16)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        density_of_blocks(
            rows,
            many,
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
            out[first * LANES :],
        )
    end(tiles)


@part_of_kernel
def _networks(tiles, weights, w16, features, hidden, joint, color1, color2, color, depth, width, scratch):
    """All layers of one block; ``joint`` [32, LANES] comes with the encoded direction in its last 16 rows."""
    w1 = width * depth
    w2 = w1 + 16 * width
    w3 = w2 + 32 * width
    w4 = w3 + width * width
    forward(tiles, weights, w16, features, hidden, width, depth, scratch)
    _relu(hidden, width * LANES)
    forward(tiles, weights[w1:], w16[w1 // 2 :], hidden, joint, 16, width, scratch)
    forward(tiles, weights[w2:], w16[w2 // 2 :], joint, color1, width, 32, scratch)
    _relu(color1, width * LANES)
    forward(tiles, weights[w3:], w16[w3 // 2 :], color1, color2, width, width, scratch)
    _relu(color2, width * LANES)
    forward(tiles, weights[w4:], w16[w4 // 2 :], color2, color, 16, width, scratch)
    one = splat16(np.float32(1))
    zero = splat16(np.float32(0))
    for i in range(0, 3 * LANES, 16):
        store16(color, i, one / (one + exp16(zero - load16(color, i))))


@kernel
def field_forward(part, parts, x, d, table, resolutions, offsets, entries, weights, depth, width, tiles, features, density, rgb):
    """density [n] and rgb [n, 3] at positions x in directions d; keeps the grid's features for the backward pass."""
    n = x.shape[0]
    blocks = (n + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows = np.empty(3 * CHUNK * LANES, np.float32)
    hidden, joint = np.empty(width * LANES, np.float32), np.empty(32 * LANES, np.float32)
    color1, color2, color = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32), np.empty(16 * LANES, np.float32)
    scratch = np.empty(max(depth, width) * LANES, np.float32)
    w16 = np.empty(weights.size // 2, np.int32)
    round16(weights, w16)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        encode_blocks(rows, many, table, resolutions, offsets, entries, features[first * depth * LANES :], depth)
        for block in range(first, first + many):
            spherical_harmonics_block(d, block, joint[16 * LANES :])
            f = features[block * depth * LANES :]
            _networks(tiles, weights, w16, f, hidden, joint, color1, color2, color, depth, width, scratch)
            count = min(LANES, n - block * LANES)
            _density_of(joint, density, block * LANES, count)
            for i in range(count):
                for c in range(3):
                    rgb[block * LANES + i, c] = color[c * LANES + i]
    end(tiles)


@inlined
def _transposed(w, rows, columns, out):
    for j in range(rows):
        for k in range(columns):
            out[k * rows + j] = w[j * columns + k]


@kernel
def field_backward(part, parts, d, features, weights, depth, width, tiles, density_gradient, rgb_gradient, weight_sums):
    """Turn ``features`` into their own gradients, and add the weights' gradients to weight_sums[part].

    The networks are run again from the kept features: cheaper than keeping every activation in memory.
    """
    n = d.shape[0]
    blocks = (n + LANES - 1) // LANES
    hidden, joint = np.empty(width * LANES, np.float32), np.empty(32 * LANES, np.float32)
    color1, color2, color = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32), np.empty(16 * LANES, np.float32)
    g_color, g_joint = np.zeros(32 * LANES, np.float32), np.empty(32 * LANES, np.float32)
    g_a, g_b = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32)
    scratch = np.empty(3 * max(depth, width) * LANES, np.float32)
    w1 = width * depth
    w2 = w1 + 16 * width
    w3 = w2 + 32 * width
    w4 = w3 + width * width
    # transposes; the 16 rows of a narrow layer become 32 columns, the upper half zero
    t0, t1, t2 = np.zeros(depth * width, np.float32), np.zeros(width * 32, np.float32), np.zeros(32 * width, np.float32)
    t3, t4 = np.zeros(width * width, np.float32), np.zeros(width * 32, np.float32)
    _transposed(weights, width, depth, t0)
    _transposed(weights[w2:], width, 32, t2)
    _transposed(weights[w3:], width, width, t3)
    for j in range(16):
        for k in range(width):
            t1[k * 32 + j] = weights[w1 + j * width + k]
            t4[k * 32 + j] = weights[w4 + j * width + k]
    w16 = np.empty(weights.size // 2, np.int32)
    s0, s1, s2 = np.empty(t0.size // 2, np.int32), np.empty(t1.size // 2, np.int32), np.empty(t2.size // 2, np.int32)
    s3, s4 = np.empty(t3.size // 2, np.int32), np.empty(t4.size // 2, np.int32)
    round16(weights, w16)
    round16(t0, s0)
    round16(t1, s1)
    round16(t2, s2)
    round16(t3, s3)
    round16(t4, s4)
    sums = weight_sums[part]
    begin(tiles)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        f = features[block * depth * LANES : (block + 1) * depth * LANES]
        count = min(LANES, n - block * LANES)
        spherical_harmonics_block(d, block, joint[16 * LANES :])
        _networks(tiles, weights, w16, f, hidden, joint, color1, color2, color, depth, width, scratch)
        for c in range(3):
            for i in range(LANES):
                v = color[c * LANES + i]
                g_color[c * LANES + i] = rgb_gradient[block * LANES + i, c] * v * (1 - v) if i < count else np.float32(0)
        weight_gradient(tiles, g_color, color2, sums[w4:], 16, width, scratch)
        forward(tiles, t4, s4, g_color, g_a, width, 32, scratch)
        _gate(g_a, color2, width * LANES)
        weight_gradient(tiles, g_a, color1, sums[w3:], width, width, scratch)
        forward(tiles, t3, s3, g_a, g_b, width, width, scratch)
        _gate(g_b, color1, width * LANES)
        weight_gradient(tiles, g_b, joint, sums[w2:], width, 32, scratch)
        forward(tiles, t2, s2, g_b, g_joint, 32, width, scratch)
        for i in range(0, LANES, 16):
            raw = load16(joint, i)
            store16(joint, i, positive_part(exp16(raw), splat16(np.float32(15)) - raw))  # constant above: no gradient
        for i in range(count):
            g_joint[i] += density_gradient[block * LANES + i] * joint[i]
        for i in range(16 * LANES, 32 * LANES):
            g_joint[i] = 0
        weight_gradient(tiles, g_joint, hidden, sums[w1:], 16, width, scratch)
        forward(tiles, t1, s1, g_joint, g_a, width, 32, scratch)
        _gate(g_a, hidden, width * LANES)
        weight_gradient(tiles, g_a, f, sums, width, depth, scratch)
        forward(tiles, t0, s0, g_a, f, depth, width, scratch)
    end(tiles)
