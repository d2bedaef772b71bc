"""The fused field on CPUs: hash grid, density network, colour network; forward and backward, block by block."""

from collections import namedtuple

import numpy as np

from nerfit.kernels.cpu.hash_grid import CHUNK, encode_blocks, positions
from nerfit.kernels.cpu.matmul import LANES, STRIP, Matrix, Place, aligned, aligned_zeros, begin, end, forward, round16, weight_gradient
from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel
from nerfit.kernels.cpu.vectors import exp16, load16, minimum, positive_part, splat16, store16

Networks = namedtuple("Networks", "tiles depth width w w16 open hidden code color1 color2 color")
"""The five matrices (see FieldShape) in ``w``, and the same rounded; ``open`` is no gate."""
Layers = namedtuple("Layers", "hidden joint color1 color2 color scratch")
"""What the layers of one block give, and working space; the widest three strip after strip, [LANES/STRIP, width, STRIP]."""
Gradients = namedtuple("Gradients", "density color joint a b")
"""Of a block's densities [LANES] and raw colours [32, LANES], and of what a strip's layers give."""


@part_of_kernel
def networks(weights, depth, width, tiles):
    """The networks, ready for `forward`."""
    w16 = aligned(weights.size // 2).view(np.int32)
    round16(weights, w16)
    hidden, code = Matrix(0, width, depth), Matrix(width * depth, 16, width)
    color1 = Matrix(code.at + 16 * width, width, 32)
    color2 = Matrix(color1.at + 32 * width, width, width)
    color = Matrix(color2.at + width * width, 16, width)
    return Networks(tiles, depth, width, weights, w16, np.empty(0, np.float32), hidden, code, color1, color2, color)


@part_of_kernel
def layers(depth, width):
    """Room for the layers of one block."""
    hidden, joint = aligned(width * LANES), aligned(32 * LANES)
    color1, color2, color = aligned(width * LANES), aligned(width * LANES), aligned(16 * LANES)
    return Layers(hidden, joint, color1, color2, color, aligned(3 * max(depth, width) * STRIP))


@part_of_kernel
def gradients(width):
    """Room for the gradients of one block."""
    return Gradients(aligned_zeros(LANES), aligned_zeros(32 * LANES), aligned(32 * STRIP), aligned(width * STRIP), aligned(width * STRIP))


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


@inlined
def code_of_strip(net, features, hidden, hidden_at, codes, strip, scratch):
    """Density network at a strip of a block: features [depth, LANES] to codes [16, LANES] by way of hidden [width, STRIP]."""
    here, inner = Place(strip, LANES), Place(hidden_at, STRIP)
    forward(net.tiles, net.w, net.w16, net.hidden, features, here, net.open, here, hidden, inner, scratch)
    forward(net.tiles, net.w, net.w16, net.code, hidden, inner, hidden, inner, codes, here, scratch)


@part_of_kernel
def codes_of_blocks(rows, blocks, table, resolutions, offsets, entries, net, features, a, codes):
    """Grid and density network at ``rows`` ([blocks, 3, LANES], flat): features [blocks, depth, LANES], codes [blocks, 16, LANES]."""
    encode_blocks(rows, blocks, table, resolutions, offsets, entries, features, net.depth)
    for block in range(blocks):
        f, code = features[block * net.depth * LANES :], codes[16 * LANES * block :]
        for strip in range(0, LANES, STRIP):
            code_of_strip(net, f, a.hidden, 0, code, strip, a.scratch)


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
        codes_of_blocks(rows, many, table, resolutions, offsets, entries, net, features, room, codes)
        for block in range(many):
            density_of_raw(codes, 16 * LANES * block, out, (first + block) * LANES)
    end(tiles)


@inlined
def _color_of_strip(net, a, strip):
    here, inner = Place(strip, LANES), Place(strip * net.width, STRIP)
    forward(net.tiles, net.w, net.w16, net.color1, a.joint, here, net.open, here, a.color1, inner, a.scratch)
    forward(net.tiles, net.w, net.w16, net.color2, a.color1, inner, a.color1, inner, a.color2, inner, a.scratch)
    forward(net.tiles, net.w, net.w16, net.color, a.color2, inner, a.color2, inner, a.color, here, a.scratch)


@part_of_kernel
def _squash(color):
    """The sigmoid of a block's three raw colours."""
    one, zero = splat16(np.float32(1)), splat16(np.float32(0))
    for i in range(0, 3 * LANES, 16):
        store16(color, i, one / (one + exp16(zero - load16(color, i))))


@part_of_kernel
def color_of_block(net, a):
    """The colour network of one block; ``a.joint`` [32, LANES] holds the code and the encoded direction."""
    for strip in range(0, LANES, STRIP):
        _color_of_strip(net, a, strip)
    _squash(a.color)


@part_of_kernel
def all_layers(net, features, a):
    """All layers of one block; ``a.joint`` comes with the encoded direction in its last 16 rows."""
    for strip in range(0, LANES, STRIP):
        code_of_strip(net, features, a.hidden, strip * net.width, a.joint, strip, a.scratch)
        _color_of_strip(net, a, strip)
    _squash(a.color)


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


@part_of_kernel
def _turn(w, m, out, at):
    """Write a matrix turned to out[at]; the 16 rows of a narrow one become 32 columns, the upper half zero. Returns where it is."""
    depth = max(m.rows, 32)
    for j in range(m.rows):
        for k in range(m.depth):
            out[at + k * depth + j] = w[m.at + j * m.depth + k]
    return Matrix(at, m.depth, depth)


@part_of_kernel
def transposes(net):
    """The transposed matrices, for gradients of layers' inputs, as `Networks`; of a density network alone, where there is no other."""
    late, colors = 16 * net.width, net.w.size > net.color1.at
    w = aligned_zeros(net.color.at + 3 * late if colors else net.color1.at + late)
    hidden, code = _turn(net.w, net.hidden, w, 0), _turn(net.w, net.code, w, net.code.at)
    color1, color2, color = net.color1, net.color2, net.color
    if colors:
        color1, color2 = _turn(net.w, color1, w, color1.at + late), _turn(net.w, color2, w, color2.at + late)
        color = _turn(net.w, color, w, color.at + late)
    w16 = aligned(w.size // 2).view(np.int32)
    round16(w, w16)
    return Networks(net.tiles, net.depth, net.width, w, w16, net.open, hidden, code, color1, color2, color)


@part_of_kernel
def collect(net, turned, sums, out):
    """out [weights] of their gradients' sums, in which the two matrices of 16 rows are turned and 32 wide (as in ``turned``).

    The fewer rows an operand has, the less it costs to turn it.
    """
    out[: net.code.at] = sums[: net.code.at]
    _collect_turned(sums, turned.code, out, net.code)
    if out.size > net.color1.at:
        out[net.color1.at : net.color.at] = sums[turned.color1.at : turned.color.at]
        _collect_turned(sums, turned.color, out, net.color)


@part_of_kernel
def _collect_turned(sums, turned, out, m):
    for j in range(m.rows):
        for k in range(m.depth):
            out[m.at + j * m.depth + k] = sums[turned.at + turned.depth * k + j]


@inlined
def slope16(raw):
    """Slope of `density16`, which is constant above its cut-off."""
    return positive_part(exp16(raw), splat16(np.float32(15)) - raw)


@inlined
def back_through_code(net, turned, features, hidden, hidden_at, g_code, g_code_at, g_hidden, sums, strip, scratch):
    """Turn a strip's ``features`` into their gradients, given those of its codes ([32, STRIP], the upper half zero)."""
    tiles, open, here, inner, own = net.tiles, net.open, Place(strip, LANES), Place(hidden_at, STRIP), Place(0, STRIP)
    weight_gradient(tiles, hidden, inner, hidden, inner, g_code, g_code_at, open, sums, turned.code, scratch)
    forward(tiles, turned.w, turned.w16, turned.code, g_code, g_code_at, open, own, g_hidden, own, scratch)
    weight_gradient(tiles, g_hidden, own, hidden, inner, features, here, open, sums, net.hidden, scratch)
    forward(tiles, turned.w, turned.w16, turned.hidden, g_hidden, own, hidden, inner, features, here, scratch)


@part_of_kernel
def back_through_layers(net, turned, features, a, g, sums):
    """Turn a block's ``features`` into their gradients and add the weights' gradients to ``sums``, after `all_layers`; see `collect`.

    ``g.color`` is the gradient of the raw colours (rows from 3 on zero), ``g.density`` that of the densities.
    """
    tiles, open, w, w16, width = net.tiles, net.open, turned.w, turned.w16, net.width
    color2_at, color1_at = Matrix(turned.color2.at, width, width), Matrix(turned.color1.at, width, 32)
    for strip in range(0, LANES, STRIP):
        here, inner, own = Place(strip, LANES), Place(strip * width, STRIP), Place(0, STRIP)
        weight_gradient(tiles, a.color2, inner, a.color2, inner, g.color, here, open, sums, turned.color, a.scratch)
        forward(tiles, w, w16, turned.color, g.color, here, open, here, g.a, own, a.scratch)
        weight_gradient(tiles, g.a, own, a.color2, inner, a.color1, inner, a.color1, sums, color2_at, a.scratch)
        forward(tiles, w, w16, turned.color2, g.a, own, a.color2, inner, g.b, own, a.scratch)
        weight_gradient(tiles, g.b, own, a.color1, inner, a.joint, here, open, sums, color1_at, a.scratch)
        forward(tiles, w, w16, turned.color1, g.b, own, a.color1, inner, g.joint, own, a.scratch)
        for i in range(0, STRIP, 16):
            store16(g.joint, i, load16(g.joint, i) + load16(g.density, strip + i) * slope16(load16(a.joint, strip + i)))
        g.joint[16 * STRIP :] = np.float32(0)
        back_through_code(net, turned, features, a.hidden, strip * width, g.joint, own, g.a, sums, strip, a.scratch)


@kernel
def field_backward(part, parts, d, features, weights, depth, width, tiles, density_gradient, rgb_gradient, weight_sums):
    """Turn ``features`` into their own gradients; weight_sums[part] is this part's sum of the weights' gradients.

    The networks are run again from the kept features: cheaper than keeping every activation in memory.
    """
    n = d.shape[0]
    blocks = (n + LANES - 1) // LANES
    direction = aligned(3 * LANES)
    net, a, g = networks(weights, depth, width, tiles), layers(depth, width), gradients(width)
    turned = transposes(net)
    sums = aligned_zeros(turned.w.size)
    begin(tiles)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        f = features[block * depth * LANES : (block + 1) * depth * LANES]
        positions(d, block, 1, direction)
        spherical_harmonics_block(direction, 0, a.joint, 16 * LANES)
        all_layers(net, f, a)
        for i in range(LANES):
            s, there = block * LANES + i, block * LANES + i < n
            g.density[i] = density_gradient[s] if there else np.float32(0)
            for c in range(3):
                v = a.color[c * LANES + i]
                g.color[c * LANES + i] = rgb_gradient[s, c] * v * (1 - v) if there else np.float32(0)
        back_through_layers(net, turned, f, a, g, sums)
    end(tiles)
    collect(net, turned, sums, weight_sums[part])
