"""The fused field on GPUs: a program runs both networks on a block of samples without leaving the chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfit.kernels.layouts import HIGHEST_RAW, FieldShape, Network
from nerfit.kernels.triton.hash_grid import encode
from nerfit.kernels.triton.runtime import jit, launch
from nerfit.kernels.triton.spherical_harmonics import harmonics

TOP = tl.constexpr(HIGHEST_RAW)
FLOAT32 = tl.constexpr("ieee" if torch.version.hip else "tf32x3")
"""How tensor cores multiply float32: as three TF32 products that together lose nothing."""
CHUNK = 2**18
"""Samples whose features stay in the cache while their density is evaluated."""
SUMS = 64
"""Partial sums of the weights' gradient, for programs that add to the same number wait for one another."""


def density(x: Tensor, network: Network) -> Tensor:
    """Densities [n]."""
    out, dtype, shape = x.new_empty(len(x)), _dtype(x, network.half), network.shape
    for part, into in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
        features = encode(part, network.table, shape.grid, shape.grid.depth, dtype)
        launch(_density, (triton.cdiv(len(part), _block(dtype)),), features, network.weights, len(part), into, **_sizes(shape, dtype))
    return out


def field_forward(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Densities, colours and the features [n, depth], in the precision of the products."""
    n, dtype, shape = len(x), _dtype(x, network.half), network.shape
    features = encode(x, network.table, shape.grid, shape.grid.depth, dtype)
    sigma, rgb = x.new_empty(n), x.new_empty(n, 3)
    launch(_forward, (triton.cdiv(n, _block(dtype)),), features, d, network.weights, n, sigma, rgb, **_sizes(shape, dtype))
    return sigma, rgb, features


def field_backward(d: Tensor, features: Tensor, network: Network, g_density: Tensor, g_rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the features and of the weights."""
    n, dtype, weights = len(d), features.dtype, network.weights
    g_features, sums = torch.empty_like(features, dtype=torch.float32), weights.new_zeros(SUMS, len(weights))
    args = (features, d, weights, n, g_density, g_rgb, g_features, sums, SUMS)
    launch(_backward, (triton.cdiv(n, _block(dtype)),), *args, **_sizes(network.shape, dtype))
    return g_features, sums.sum(0)


def _dtype(x: Tensor, half: bool) -> torch.dtype:
    """What matrix products take: Triton's interpreter, which runs on tensors of the CPU, knows float16 but not bfloat16."""
    if half and x.device.type == "cpu":
        return torch.float16
    return torch.bfloat16 if half and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def _block(dtype: torch.dtype) -> int:
    return 32 if dtype == torch.float32 else 64


def _sizes(shape: FieldShape, dtype: torch.dtype) -> dict[str, int]:
    """Width and depth of the networks, and the powers of two that tiles need."""
    wide, deep = triton.next_power_of_2(shape.width), triton.next_power_of_2(shape.grid.depth)
    return {"WIDTH": shape.width, "DEPTH": shape.grid.depth, "WIDE": wide, "DEEP": deep, "BLOCK": _block(dtype)}


@jit
def _density(
    features, weights, n, out, WIDTH: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr
):
    s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = _features(features, s, n, DEPTH, DEEP)
    _, geo_features = _density_network(f, weights, WIDTH, DEPTH, WIDE, DEEP)
    tl.store(out + s, tl.exp(tl.minimum(_raw(geo_features), TOP)), s < n)


@jit
def _forward(
    features,
    d,
    weights,
    n,
    sigma,
    rgb,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = _features(features, s, n, DEPTH, DEEP)
    _, geo_features = _density_network(f, weights, WIDTH, DEPTH, WIDE, DEEP)
    tl.store(sigma + s, tl.exp(tl.minimum(_raw(geo_features), TOP)), s < n)
    sh = harmonics(d, s, n).to(f.dtype)
    _, _, color = _color_network(geo_features.to(f.dtype), sh, weights + WIDTH * (DEPTH + 16), WIDTH, WIDE)
    c = tl.arange(0, 16)[None, :]
    tl.store(rgb + 3 * s[:, None] + c, color, (s[:, None] < n) & (c < 3))


@jit
def _backward(
    features,
    d,
    weights,
    n,
    g_sigma,
    g_rgb,
    g_features,
    sums,
    parts,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs the networks again from the features, cheaper than keeping every activation."""
    at1: tl.constexpr = WIDTH * DEPTH
    at2: tl.constexpr = at1 + 16 * WIDTH
    at3: tl.constexpr = at2 + 32 * WIDTH
    at4: tl.constexpr = at3 + WIDTH * WIDTH
    program = tl.program_id(0).to(tl.int64)
    s, c, k = program * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 16)[None, :], tl.arange(0, DEEP)[None, :]
    sums += program % parts * (at4 + 16 * WIDTH)
    f = _features(features, s, n, DEPTH, DEEP)
    hidden, geo_features = _density_network(f, weights, WIDTH, DEPTH, WIDE, DEEP)
    raw, geo_features, sh = _raw(geo_features), geo_features.to(f.dtype), harmonics(d, s, n).to(f.dtype)
    color1, color2, color = _color_network(geo_features, sh, weights + at2, WIDTH, WIDE)
    g = tl.load(g_rgb + 3 * s[:, None] + c, (s[:, None] < n) & (c < 3), 0.0)
    g = (g * color * (1 - color)).to(f.dtype)
    _add(sums + at4, g, color2, 16, WIDTH, WIDTH)
    g = _gate(_product(g, _matrix(weights + at4, 16, WIDTH, WIDTH, 16, WIDE, f.dtype)), color2)
    _add(sums + at3, g, color1, WIDTH, WIDTH, WIDTH)
    g = _gate(_product(g, _matrix(weights + at3, WIDTH, WIDTH, WIDTH, WIDE, WIDE, f.dtype)), color1)
    _add(sums + at2, g, geo_features, WIDTH, 16, 32)
    _add(sums + at2 + 16, g, sh, WIDTH, 16, 32)
    g = _product(g, _matrix(weights + at2, WIDTH, 16, 32, WIDE, 16, f.dtype))
    g_raw = tl.load(g_sigma + s, s < n, 0.0) * tl.where(raw <= TOP, tl.exp(tl.minimum(raw, TOP)), 0.0)
    g = tl.where(c == 0, g + g_raw[:, None], g).to(f.dtype)
    _add(sums + at1, g, hidden, 16, WIDTH, WIDTH)
    g = _gate(_product(g, _matrix(weights + at1, 16, WIDTH, WIDTH, 16, WIDE, f.dtype)), hidden)
    _add(sums, g, f, WIDTH, DEPTH, DEPTH)
    g = _product(g, _matrix(weights, WIDTH, DEPTH, DEPTH, WIDE, DEEP, f.dtype))
    tl.store(g_features + s[:, None] * DEPTH + k, g, (s[:, None] < n) & (k < DEPTH))


@jit
def _density_network(f, weights, WIDTH: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr):
    """Hidden activations [block, width] and the geometry features [block, 16], these in float32."""
    w0, w1 = weights, weights + WIDTH * DEPTH
    hidden = _relu(_product(f, tl.trans(_matrix(w0, WIDTH, DEPTH, DEPTH, WIDE, DEEP, f.dtype))), f.dtype)
    return hidden, _product(hidden, tl.trans(_matrix(w1, 16, WIDTH, WIDTH, 16, WIDE, f.dtype)))


@jit
def _color_network(geo_features, sh, weights, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Activations of both hidden layers and the colour [block, 16], of which 3 columns count; ``weights`` begin with its own."""
    half: tl.constexpr = geo_features.dtype
    w2, w3, w4 = weights, weights + 32 * WIDTH, weights + WIDTH * (32 + WIDTH)
    color1 = _product(geo_features, tl.trans(_matrix(w2, WIDTH, 16, 32, WIDE, 16, half)))
    color1 = _relu(color1 + _product(sh, tl.trans(_matrix(w2 + 16, WIDTH, 16, 32, WIDE, 16, half))), half)
    color2 = _relu(_product(color1, tl.trans(_matrix(w3, WIDTH, WIDTH, WIDTH, WIDE, WIDE, half))), half)
    return color1, color2, tl.sigmoid(_product(color2, tl.trans(_matrix(w4, 16, WIDTH, WIDTH, 16, WIDE, half))))


@jit
def _features(features, s, n, DEPTH: tl.constexpr, DEEP: tl.constexpr):
    k = tl.arange(0, DEEP)[None, :]
    return tl.load(features + s[:, None] * DEPTH + k, (s[:, None] < n) & (k < DEPTH), 0.0)


@jit
def _matrix(
    weights, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, dtype: tl.constexpr
):
    """A weight matrix as a tile [R, C], zero where it is smaller."""
    r, c = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    return tl.load(weights + r * STRIDE + c, (r < ROWS) & (c < COLUMNS), 0.0).to(dtype)


@jit
def _add(to, g, activation, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """Add the gradient of a weight matrix, from those of a layer's outputs and from its inputs."""
    r, c = tl.arange(0, g.shape[1])[:, None], tl.arange(0, activation.shape[1])[None, :]
    tl.atomic_add(to + r * STRIDE + c, _product(tl.trans(g), activation), (r < ROWS) & (c < COLUMNS), sem="relaxed")


@jit
def _product(a, b):
    """Sums in float32; float32 factors keep their precision."""
    return tl.dot(a, b, input_precision=FLOAT32)


@jit
def _relu(a, dtype: tl.constexpr):
    return tl.maximum(a, 0.0).to(dtype)


@jit
def _gate(g, activation):
    """The gradient before a ReLU."""
    return tl.where(activation > 0, g, 0.0).to(activation.dtype)


@jit
def _raw(geo_features):
    """The first column."""
    return tl.sum(tl.where(tl.arange(0, 16)[None, :] == 0, geo_features, 0.0), 1)
