"""The fused field on CPUs: hash grid, density network, colour network; forward and backward, block by block."""

from collections import namedtuple

import numpy as np

from nerfit.kernels.cpu.hash_grid import CHUNK, encode_blocks, positions
from nerfit.kernels.cpu.matmul import LANES, aligned, aligned_zeros, begin, end, forward, round16, weight_gradient
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel
from nerfit.kernels.cpu.vectors import exp16, load16, minimum, positive_part, splat16, store16

Networks = namedtuple("Networks", "weights w16 depth width tiles w1 w2 w3 w4 open")
"""The five matrices, one after another (matrix k from wk on), and the same rounded; see FieldShape. ``open`` is no gate."""
Layers = namedtuple("Layers", "hidden joint color1 color2 color scratch")
"""What the layers of one block give, and working space."""
Transposes = namedtuple("Transposes", "t0 t1 t2 t3 t4 s0 s1 s2 s3 s4")
"""The matrices turned, plain and rounded."""


@part_of_kernel
def networks(weights, depth, width, tiles):
    """The networks, ready for `forward`."""
    w16 = aligned(weights.size // 2).view(np.int32)
    round16(weights, w16)
    w1 = width * depth
    w2 = w1 + 16 * width
    w3 = w2 + 32 * width
    return Networks(weights, w16, depth, width, tiles, w1, w2, w3, w3 + width * width, np.empty(0, np.float32))


@part_of_kernel
def layers(depth, width):
    """Room for the layers of one block."""
    hidden, joint = aligned(width * LANES), aligned(32 * LANES)
    color1, color2, color = aligned(width * LANES), aligned(width * LANES), aligned(16 * LANES)
    return Layers(hidden, joint, color1, color2, color, aligned(3 * max(depth, width) * LANES))


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
def spherical_harmonics(part, parts, d, out):
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


@inlined
def density16(raw):
    """Densities of raw ones: exp, at most e¹⁵."""
    return exp16(minimum(raw, splat16(np.float32(15))))


@inlined
def density_of_raw(raw, at, out, to):
    """`density16` of a block."""
    for i in range(0, LANES, 16):
        store16(out, to + i, density16(load16(raw, at + i)))


@part_of_kernel
def codes_of_blocks(rows, blocks, table, resolutions, offsets, entries, net, features, hidden, scratch, codes):
    """Grid and density network at ``rows`` ([blocks, 3, LANES], flat): features [blocks, depth, LANES], codes [blocks, 16, LANES]."""
    encode_blocks(rows, blocks, table, resolutions, offsets, entries, features, net.depth)
    for block in range(blocks):
        f, code = features[block * net.depth * LANES :], codes[16 * LANES * block :]
        forward(net.tiles, net.weights, net.w16, f, net.open, hidden, net.width, net.depth, scratch)
        forward(net.tiles, net.weights[net.w1 :], net.w16[net.w1 // 2 :], hidden, hidden, code, 16, net.width, scratch)


@kernel
def density(part, parts, x, table, resolutions, offsets, entries, weights, depth, width, tiles, out):
    """Density [blocks·LANES, so at least n] at positions x [n, 3]: grid and density network alone."""
    blocks = (x.shape[0] + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows, features = aligned(3 * CHUNK * LANES), aligned_zeros(CHUNK * depth * LANES)
    codes = aligned(16 * CHUNK * LANES)
    net, room = networks(weights, depth, width, tiles), layers(depth, width)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        codes_of_blocks(rows, many, table, resolutions, offsets, entries, net, features, room.hidden, room.scratch, codes)
        for block in range(many):
            density_of_raw(codes, 16 * LANES * block, out, (first + block) * LANES)
    end(tiles)


@part_of_kernel
def color_of_block(net, a):
    """The colour network of one block; ``a.joint`` [32, LANES] holds the code and the encoded direction."""
    w, w16 = net.weights, net.w16
    forward(net.tiles, w[net.w2 :], w16[net.w2 // 2 :], a.joint, net.open, a.color1, net.width, 32, a.scratch)
    forward(net.tiles, w[net.w3 :], w16[net.w3 // 2 :], a.color1, a.color1, a.color2, net.width, net.width, a.scratch)
    forward(net.tiles, w[net.w4 :], w16[net.w4 // 2 :], a.color2, a.color2, a.color, 16, net.width, a.scratch)
    one, zero = splat16(np.float32(1)), splat16(np.float32(0))
    for i in range(0, 3 * LANES, 16):
        store16(a.color, i, one / (one + exp16(zero - load16(a.color, i))))


@part_of_kernel
def all_layers(net, features, a):
    """All layers of one block; ``a.joint`` comes with the encoded direction in its last 16 rows."""
    forward(net.tiles, net.weights, net.w16, features, net.open, a.hidden, net.width, net.depth, a.scratch)
    forward(net.tiles, net.weights[net.w1 :], net.w16[net.w1 // 2 :], a.hidden, a.hidden, a.joint, 16, net.width, a.scratch)
    color_of_block(net, a)


@kernel
def field_forward(part, parts, x, d, table, resolutions, offsets, entries, weights, depth, width, tiles, features, density, rgb):
    """density [n] and rgb [n, 3] at positions x in directions d; keeps the grid's features for the backward pass."""
    n = x.shape[0]
    blocks = (n + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows, direction = aligned(3 * CHUNK * LANES), aligned(3 * LANES)
    net, a = networks(weights, depth, width, tiles), layers(depth, width)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        encode_blocks(rows, many, table, resolutions, offsets, entries, features[first * depth * LANES :], depth)
        for block in range(first, first + many):
            positions(d, block, 1, direction)
            spherical_harmonics_block(direction, 0, a.joint, 16 * LANES)
            all_layers(net, features[block * depth * LANES :], a)
            density_of_raw(a.joint, 0, a.joint, 0)
            for i in range(min(LANES, n - block * LANES)):
                density[block * LANES + i] = a.joint[i]
                for c in range(3):
                    rgb[block * LANES + i, c] = a.color[c * LANES + i]
    end(tiles)


@inlined
def _transposed(w, at, rows, columns, out):
    """out [columns, at least 32] of w [rows, columns]: the 16 rows of a narrow layer become 32 columns, the upper half zero."""
    for j in range(rows):
        for k in range(columns):
            out[k * max(rows, 32) + j] = w[at + j * columns + k]


@part_of_kernel
def transposes(net):
    """The transposed matrices, for gradients of layers' inputs."""
    depth, width = net.depth, net.width
    t0, t1, t2 = aligned_zeros(depth * width), aligned_zeros(width * 32), aligned_zeros(32 * width)
    t3, t4 = aligned_zeros(width * width), aligned_zeros(width * 32)
    _transposed(net.weights, 0, width, depth, t0)
    _transposed(net.weights, net.w1, 16, width, t1)
    _transposed(net.weights, net.w2, width, 32, t2)
    _transposed(net.weights, net.w3, width, width, t3)
    _transposed(net.weights, net.w4, 16, width, t4)
    s0, s1, s2 = aligned(t0.size // 2).view(np.int32), aligned(t1.size // 2).view(np.int32), aligned(t2.size // 2).view(np.int32)
    s3, s4 = aligned(t3.size // 2).view(np.int32), aligned(t4.size // 2).view(np.int32)
    round16(t0, s0)
    round16(t1, s1)
    round16(t2, s2)
    round16(t3, s3)
    round16(t4, s4)
    return Transposes(t0, t1, t2, t3, t4, s0, s1, s2, s3, s4)


@part_of_kernel
def sums_of(net):
    """Zeros to sum the weights' gradients in: as the weights, but the two matrices of 16 rows turned and 32 wide.

    The fewer rows an operand has, the less it costs to turn it.
    """
    return aligned_zeros(net.w4 + 48 * net.width)


@part_of_kernel
def collect(net, sums, out):
    """out [weights] of the sums."""
    width, late = net.width, 16 * net.width
    out[: net.w1] = sums[: net.w1]
    out[net.w2 : net.w4] = sums[net.w2 + late : net.w4 + late]
    for j in range(16):
        for k in range(width):
            out[net.w1 + j * width + k] = sums[net.w1 + 32 * k + j]
            out[net.w4 + j * width + k] = sums[net.w4 + late + 32 * k + j]


@part_of_kernel
def back_through_layers(net, turned, features, a, g_color, g_density, g_joint, g_a, g_b, sums):
    """Turn a block's ``features`` into their gradients and add the weights' gradients to ``sums`` (`sums_of`), after `all_layers`.

    ``g_color`` [32, LANES] is the gradient of the raw colours (rows from 3 on zero), ``g_density`` [LANES] of the densities.
    """
    tiles, depth, width, scratch = net.tiles, net.depth, net.width, a.scratch
    weight_gradient(tiles, a.color2, a.color2, g_color, net.open, sums[net.w4 + 16 * width :], width, 32, scratch)
    forward(tiles, turned.t4, turned.s4, g_color, net.open, g_a, width, 32, scratch)
    weight_gradient(tiles, g_a, a.color2, a.color1, a.color1, sums[net.w3 + 16 * width :], width, width, scratch)
    forward(tiles, turned.t3, turned.s3, g_a, a.color2, g_b, width, width, scratch)
    weight_gradient(tiles, g_b, a.color1, a.joint, net.open, sums[net.w2 + 16 * width :], width, 32, scratch)
    forward(tiles, turned.t2, turned.s2, g_b, a.color1, g_joint, 32, width, scratch)
    for i in range(0, LANES, 16):
        raw = load16(a.joint, i)
        slope = positive_part(exp16(raw), splat16(np.float32(15)) - raw)  # constant above: no gradient
        store16(g_joint, i, load16(g_joint, i) + load16(g_density, i) * slope)
    g_joint[16 * LANES :] = np.float32(0)
    weight_gradient(tiles, a.hidden, a.hidden, g_joint, net.open, sums[net.w1 :], width, 32, scratch)
    forward(tiles, turned.t1, turned.s1, g_joint, net.open, g_a, width, 32, scratch)
    weight_gradient(tiles, g_a, a.hidden, features, net.open, sums, width, depth, scratch)
    forward(tiles, turned.t0, turned.s0, g_a, a.hidden, features, depth, width, scratch)


@kernel
def field_backward(part, parts, d, features, weights, depth, width, tiles, density_gradient, rgb_gradient, weight_sums):
    """Turn ``features`` into their own gradients; weight_sums[part] is this part's sum of the weights' gradients.

    The networks are run again from the kept features: cheaper than keeping every activation in memory.
    """
    n = d.shape[0]
    blocks = (n + LANES - 1) // LANES
    direction = aligned(3 * LANES)
    g_color, g_density, g_joint = aligned_zeros(32 * LANES), aligned_zeros(LANES), aligned(32 * LANES)
    g_a, g_b = aligned(width * LANES), aligned(width * LANES)
    net, a = networks(weights, depth, width, tiles), layers(depth, width)
    turned, sums = transposes(net), sums_of(net)
    begin(tiles)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        f = features[block * depth * LANES : (block + 1) * depth * LANES]
        positions(d, block, 1, direction)
        spherical_harmonics_block(direction, 0, a.joint, 16 * LANES)
        all_layers(net, f, a)
        for i in range(LANES):
            s, there = block * LANES + i, block * LANES + i < n
            g_density[i] = density_gradient[s] if there else np.float32(0)
            for c in range(3):
                v = a.color[c * LANES + i]
                g_color[c * LANES + i] = rgb_gradient[s, c] * v * (1 - v) if there else np.float32(0)
        back_through_layers(net, turned, f, a, g_color, g_density, g_joint, g_a, g_b, sums)
    end(tiles)
    collect(net, sums, weight_sums[part])
