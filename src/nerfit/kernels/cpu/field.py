"""The fused field on CPUs: hash grid, density network, colour network; forward and backward, block by block."""

from collections import namedtuple

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.amx import round16
from nerfit.kernels.cpu.blocks import LANES, Matrix, aligned, aligned_zeros
from nerfit.kernels.cpu.hash_grid import CHUNK, encode_blocks, positions
from nerfit.kernels.cpu.matmul import backward, begin, end, forward, forward_relu, take, take_gradient, weight_gradient
from nerfit.kernels.cpu.runtime import inlined, kernel, part_count, part_of_kernel, run_parallel
from nerfit.kernels.cpu.spherical_harmonics import spherical_harmonics_block
from nerfit.kernels.cpu.tensors import array, blocks_of, field_arrays, matrices
from nerfit.kernels.cpu.vectors import exp16, load16, minimum, positive_part, splat16, store16
from nerfit.kernels.layouts import Network

Networks = namedtuple("Networks", "tiles depth width w w16 hidden to_geo_features color1 color2 color")
"""The five matrices (see FieldShape) in ``w``, and the same rounded."""
Layers = namedtuple("Layers", "joint color inputs hidden inputs2 color1 color2 scratch")
"""What the layers of one block give: ``joint`` [32, LANES], geo features and encoded direction; ``color`` [16, LANES], unused from 3
on; the five products' operands; and working space."""
Gradients = namedtuple("Gradients", "density color joint narrow a b")
"""Of a block's densities [LANES], raw colours and ``joint`` [32, LANES]; and operands."""


@part_of_kernel
def networks(weights, depth, width, tiles):
    """The networks, ready for `forward`."""
    w16 = aligned(weights.size // 2).view(np.int32)
    round16(weights, w16)
    hidden, to_geo_features = Matrix(0, width, depth), Matrix(width * depth, 16, width)
    color1 = Matrix(to_geo_features.at + 16 * width, width, 32)
    color2 = Matrix(color1.at + 32 * width, width, width)
    color = Matrix(color2.at + width * width, 16, width)
    return Networks(tiles, depth, width, weights, w16, hidden, to_geo_features, color1, color2, color)


@part_of_kernel
def layers(depth, width):
    """Room for the layers of one block."""
    joint, color = aligned(32 * LANES), aligned(16 * LANES)
    inputs, hidden, inputs2 = aligned(depth * LANES), aligned(width * LANES), aligned(32 * LANES)
    color1, color2 = aligned(width * LANES), aligned(width * LANES)
    return Layers(joint, color, inputs, hidden, inputs2, color1, color2, aligned(max(depth, width) * LANES))


@part_of_kernel
def gradients(width):
    """Room for the gradients of one block."""
    a, b = aligned(width * LANES), aligned(width * LANES)
    return Gradients(aligned_zeros(LANES), aligned_zeros(32 * LANES), aligned_zeros(32 * LANES), aligned(32 * LANES), a, b)


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
def geo_features_of_block(net, features, a, geo_features):
    """Density network at one block: features [depth, LANES] to geo_features [16, LANES]."""
    take(net.tiles, features, net.depth, a.inputs)
    forward_relu(net.tiles, net.w, net.w16, net.hidden, a.inputs, a.hidden, a.scratch)
    forward(net.tiles, net.w, net.w16, net.to_geo_features, a.hidden, geo_features)


@part_of_kernel
def geo_features_of_blocks(rows, blocks, table, resolutions, offsets, entries, net, features, a, geo_features):
    """Grid and density network at ``rows`` ([blocks, 3, LANES], flat).

    ``features`` are [blocks, depth, LANES], ``geo_features`` [blocks, 16, LANES].
    """
    encode_blocks(rows, blocks, table, resolutions, offsets, entries, features, net.depth)
    for block in range(blocks):
        geo_features_of_block(net, features[block * net.depth * LANES :], a, geo_features[16 * LANES * block :])


@kernel
def _density(part, parts, x, field, out):
    """Density [blocks·LANES, so at least n] at positions x [n, 3]: grid and density network of ``field``, `field_arrays`, alone."""
    table, resolutions, offsets, entries, weights, depth, width, tiles = field
    blocks = (x.shape[0] + LANES - 1) // LANES
    stop = blocks * (part + 1) // parts
    rows, features = aligned(3 * CHUNK * LANES), aligned_zeros(CHUNK * depth * LANES)
    geo_features = aligned(16 * CHUNK * LANES)
    net, room = networks(weights, depth, width, tiles), layers(depth, width)
    begin(tiles)
    for first in range(blocks * part // parts, stop, CHUNK):
        many = min(CHUNK, stop - first)
        positions(x, first, many, rows)
        geo_features_of_blocks(rows, many, table, resolutions, offsets, entries, net, features, room, geo_features)
        for block in range(many):
            density_of_raw(geo_features, 16 * LANES * block, out, (first + block) * LANES)
    end(tiles)


@part_of_kernel
def _squash(color):
    """The sigmoid of a block's three raw colours."""
    one, zero = splat16(np.float32(1)), splat16(np.float32(0))
    for i in range(0, 3 * LANES, 16):
        store16(color, i, one / (one + exp16(zero - load16(color, i))))


@part_of_kernel
def color_of_block(net, a):
    """The colour network of one block; ``a.joint`` [32, LANES] holds the geo features and the encoded direction."""
    take(net.tiles, a.joint, 32, a.inputs2)
    forward_relu(net.tiles, net.w, net.w16, net.color1, a.inputs2, a.color1, a.scratch)
    forward_relu(net.tiles, net.w, net.w16, net.color2, a.color1, a.color2, a.scratch)
    forward(net.tiles, net.w, net.w16, net.color, a.color2, a.color)
    _squash(a.color)


@part_of_kernel
def all_layers(net, features, a):
    """All layers of one block; ``a.joint`` comes with the encoded direction in its last 16 rows."""
    geo_features_of_block(net, features, a, a.joint)
    color_of_block(net, a)


@kernel
def _field_forward(part, parts, x, d, field, features, density, rgb):
    """density [n] and rgb [n, 3] at positions x in directions d; keeps the grid's features for the backward pass.

    ``field`` is `field_arrays`.
    """
    table, resolutions, offsets, entries, weights, depth, width, tiles = field
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
def _transpose(w, m, out, at):
    """Write a matrix transposed to out[at]; the 16 rows of a narrow one become 32 columns, the upper half zero. Returns where it is."""
    depth = max(m.rows, 32)
    for j in range(m.rows):
        for k in range(m.depth):
            out[at + k * depth + j] = w[m.at + j * m.depth + k]
    return Matrix(at, m.depth, depth)


@part_of_kernel
def transposes(net):
    """The transposed matrices, for gradients of layers' inputs, as `Networks`; of a density network alone, where there is no other."""
    late, colors = 16 * net.width, net.w.size > net.color1.at
    w = aligned_zeros(net.w.size + (2 * late if colors else late))
    hidden, to_geo_features = _transpose(net.w, net.hidden, w, 0), _transpose(net.w, net.to_geo_features, w, net.to_geo_features.at)
    color1, color2, color = net.color1, net.color2, net.color
    if colors:
        color1, color2 = _transpose(net.w, color1, w, color1.at + late), _transpose(net.w, color2, w, color2.at + late)
        color = _transpose(net.w, color, w, color.at + late)
    w16 = aligned(w.size // 2).view(np.int32)
    round16(w, w16)
    return Networks(net.tiles, net.depth, net.width, w, w16, hidden, to_geo_features, color1, color2, color)


@inlined
def slope16(raw):
    """Slope of `density16`, which is constant above its cut-off."""
    return positive_part(exp16(raw), splat16(np.float32(15)) - raw)


@inlined
def back_through_density_network(net, transposed, features, a, g, sums):
    """Turn a block's ``features`` into their gradients, given those of its geo_features in ``g.joint``, after `geo_features_of_block`."""
    tiles = net.tiles
    take_gradient(tiles, g.joint, 32, g.narrow)
    weight_gradient(tiles, g.narrow, a.hidden, sums, net.to_geo_features, a.scratch)
    backward(tiles, transposed.w, transposed.w16, transposed.to_geo_features, g.narrow, a.hidden, g.a, a.scratch)
    weight_gradient(tiles, g.a, a.inputs, sums, net.hidden, a.scratch)
    forward(tiles, transposed.w, transposed.w16, transposed.hidden, g.a, features)


@part_of_kernel
def back_through_layers(net, transposed, features, a, g, sums):
    """Turn a block's ``features`` into their gradients and add the weights' gradients to ``sums``, after `all_layers`.

    ``g.color`` is the gradient of the raw colours (rows from 3 on zero), ``g.density`` that of the densities.
    """
    tiles, w, w16 = net.tiles, transposed.w, transposed.w16
    take_gradient(tiles, g.color, 32, g.narrow)
    weight_gradient(tiles, g.narrow, a.color2, sums, net.color, a.scratch)
    backward(tiles, w, w16, transposed.color, g.narrow, a.color2, g.a, a.scratch)
    weight_gradient(tiles, g.a, a.color1, sums, net.color2, a.scratch)
    backward(tiles, w, w16, transposed.color2, g.a, a.color1, g.b, a.scratch)
    weight_gradient(tiles, g.b, a.inputs2, sums, net.color1, a.scratch)
    forward(tiles, w, w16, transposed.color1, g.b, g.joint)
    for i in range(0, LANES, 16):
        store16(g.joint, i, load16(g.joint, i) + load16(g.density, i) * slope16(load16(a.joint, i)))
    g.joint[16 * LANES :] = np.float32(0)
    back_through_density_network(net, transposed, features, a, g, sums)


@kernel
def _field_backward(part, parts, d, features, network, density_gradient, rgb_gradient, weight_sums):
    """Turn ``features`` into their own gradients; weight_sums[part] is this part's sum of the weights' gradients.

    The networks (``network``, `matrices`) are run again from the kept features: cheaper than keeping every activation in memory.
    """
    weights, depth, width, tiles = network
    n = d.shape[0]
    blocks = (n + LANES - 1) // LANES
    direction = aligned(3 * LANES)
    net, a, g = networks(weights, depth, width, tiles), layers(depth, width), gradients(width)
    transposed = transposes(net)
    color, g_density, g_color, sums = a.color, g.density, g.color, aligned_zeros(weights.size)
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
                v = color[c * LANES + i]
                g_color[c * LANES + i] = rgb_gradient[s, c] * v * (1 - v) if there else np.float32(0)
        back_through_layers(net, transposed, f, a, g, sums)
    end(tiles)
    weight_sums[part, :] = sums


def density(x: Tensor, network: Network) -> Tensor:
    """Densities [n]."""
    out = torch.empty(blocks_of(len(x)) * LANES)
    if len(x):
        run_parallel(_density, array(x), field_arrays(network), array(out))
    return out[: len(x)]


def field_forward(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Densities, colours and the blocked features."""
    grid = network.shape.grid
    blocks, depth = blocks_of(len(x)), grid.depth
    features = torch.empty(blocks * depth * LANES) if depth == 4 * grid.levels else torch.zeros(blocks * depth * LANES)
    sigma, rgb = torch.empty(len(x)), torch.empty(len(x), 3)
    if len(x):
        run_parallel(_field_forward, array(x), array(d), field_arrays(network), array(features), array(sigma), array(rgb))
    return sigma, rgb, features


def field_backward(d: Tensor, features: Tensor, network: Network, g_density: Tensor, g_rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the blocked features, in their place, and of the weights."""
    sums = torch.zeros(part_count(), len(network.weights))
    if len(d):
        given = map(array, (g_density, g_rgb, sums))
        run_parallel(_field_backward, array(d), array(features), matrices(network), *given)
    return features, sums.sum(0)
