"""Grid, harmonics, field, compositing, Adam: plain twins for the PyTorch references, those in float64 for the CPU bodies."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.errors import ConfigError
from nerfit.kernels import dispatch
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.compositing import composite_packed, composite_packed_reference
from nerfit.kernels.cpu import amx, compositing, hash_grid
from nerfit.kernels.cpu import field as cpu_field
from nerfit.kernels.dispatch import backend
from nerfit.kernels.field import field, field_density, field_reference
from nerfit.kernels.hash_grid import encode_grid, encode_grid_reference
from nerfit.kernels.layouts import HIGHEST_RAW, AdamStep, FieldShape, GridLayout, Network
from nerfit.kernels.spherical_harmonics import spherical_harmonics, spherical_harmonics_reference

SIZES = pytest.mark.parametrize("n", [0, 1, 7, 1000])
SHAPES = pytest.mark.parametrize("levels, width", [(1, 32), (6, 64), (8, 64), (16, 128)])
CLOSE = 1e-4
CPU = torch.device("cpu")


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(n: int, seed: int = 0) -> Tensor:
    """Positions in, on and around the unit cube, on a lattice fine enough to be generic and coarse enough for exact products."""
    x = torch.randint(-512, 4096 + 512, (n, 3), generator=random(seed)) / 4096
    if n >= 7:
        x[:7] = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0.25], [1, 0.3125, 0], [-0.5, 0.5, 2], [0.5, 0.5, 0.5], [1e-6, 3, -3]])
    return x


def directions(n: int, seed: int = 1) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=random(seed)), dim=-1)


def layout_of(levels: int) -> GridLayout:
    """Dense levels first, hashed ones from 17 cells on."""
    return GridLayout(levels, 12, 8, 256)


def both(function: Any, inputs: list[Tensor], upstream: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of ``function`` and gradients of all inputs, in float32 and in float64."""
    found = []
    for kind in (torch.float32, torch.float64):
        leaves = [v.to(kind).clone().requires_grad_() for v in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(o.dtype == kind for o in outputs)
        torch.autograd.backward(outputs, [g.to(kind) for g in upstream])
        gradients = [v.grad for v in leaves]
        assert all(g is not None for g in gradients)
        found.append([*(o.detach() for o in outputs), *gradients])
    return found


def assert_all_close(found: list[list[Tensor]], tolerance: float = CLOSE) -> None:
    for value, reference in zip(*found, strict=True):
        assert_close(value, reference, tolerance)


# --- Dispatch -------------------------------------------------------------------------------------------------------


def test_dialect_follows_the_device_and_the_environment(monkeypatch):
    monkeypatch.delenv("NERFIT_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "triton_fails", lambda device: "it is old" if device.index else None)
    assert backend(CPU) == "cpu"
    assert [backend(torch.device("cuda", i)) for i in range(2)] == ["triton", "reference"]
    assert backend(torch.device("meta")) == "reference"
    monkeypatch.setenv("NERFIT_KERNELS", "cpu")
    assert backend(CPU) == "cpu"
    with pytest.raises(ConfigError, match="NERFIT_KERNELS=cpu can't run on the device cuda"):
        backend(torch.device("cuda", 0))
    monkeypatch.setenv("NERFIT_KERNELS", "triton")
    with pytest.raises(ConfigError, match="NERFIT_KERNELS=triton can't run on the device cpu"):
        backend(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend(CPU) == "triton"
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    assert {backend(torch.device(d)) for d in ("cpu", "cuda", "meta")} == {"reference"}
    monkeypatch.setenv("NERFIT_KERNELS", "fast")
    with pytest.raises(ConfigError, match="must be reference, cpu or triton, not 'fast'"):
        backend(CPU)


def test_the_reference_runs_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    for bodies, name in ((hash_grid, "encode"), (cpu_field, "field_forward"), (cpu_field, "density"), (compositing, "composite_forward")):
        monkeypatch.setattr(bodies, name, None)
    shape = FieldShape(layout_of(2), 32)
    x, d, table, weights = places(9), directions(9), torch.rand(shape.grid.size), torch.rand(shape.size)
    network = Network(table, weights, shape)
    assert torch.equal(encode_grid(x, table, shape.grid), encode_grid_reference(x, table, shape.grid))
    found, expected = field(x, d, network), field_reference(x, d, network)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(field_density(x, network), expected[0])
    packed = torch.rand(9), torch.rand(9, 3), torch.rand(9), torch.rand(9), torch.tensor([0, 4, 9])
    found, expected = composite_packed(*packed, 1e-4), composite_packed_reference(*packed, 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- Hash grid ------------------------------------------------------------------------------------------------------


def corner_twin(i: int, j: int, k: int, resolution: int, entries: int) -> int:
    """A vertex's entry within its level: its place in the dense array if that fits, else the hash in 32-bit unsigned arithmetic."""
    if (resolution + 1) ** 3 <= entries:
        return np.ravel_multi_index((k, j, i), (resolution + 1,) * 3).item()
    word = 0xFFFFFFFF
    return (i & word ^ j * 2654435761 & word ^ k * 805459861 & word) % entries


def encode_twin(x: np.ndarray, table: np.ndarray, layout: GridLayout) -> np.ndarray:
    """One position, corner by corner, in float64."""
    features, first = [], 0
    for level in range(layout.levels):
        growth = (layout.finest / layout.coarsest) ** (level / max(layout.levels - 1, 1))
        resolution = math.floor(layout.coarsest * growth + 1e-6)
        p = [min(max(float(v), 0.0), 1 - 2**-24) * resolution for v in x]
        found = np.zeros(4)
        for step in itertools.product((0, 1), repeat=3):
            weight = math.prod(v - math.floor(v) if s else 1 - v + math.floor(v) for v, s in zip(p, step, strict=True))
            i, j, k = (math.floor(v) + s for v, s in zip(p, step, strict=True))
            entry = first + corner_twin(i, j, k, resolution, layout.entries)
            found += weight * table[4 * entry : 4 * entry + 4]
        features.append(found)
        first += -(-min((resolution + 1) ** 3, layout.entries) // 16) * 16
    return np.concatenate(features)


@pytest.mark.parametrize("levels", [1, 6, 8, 16])
def test_encoding_follows_its_twin(levels):
    layout = layout_of(levels)
    table = torch.randn(layout.size, dtype=torch.float64, generator=random(2))
    x = places(20).double()
    twin = np.stack([encode_twin(p, table.numpy(), layout) for p in x.numpy()])
    assert_close(encode_grid_reference(x, table, layout), twin, 1e-12)
    assert_close(encode_grid(x.float(), table.float(), layout), twin, CLOSE)


def test_a_vertex_finds_its_own_entry():
    layout = GridLayout(2, 10, 4, 64)  # 5³ vertices dense, 65³ hashed
    table = torch.zeros(layout.size)
    for vertex in ((0, 0, 0), (16, 48, 32), (1, 2, 3), (63, 5, 17)):
        entry = int(layout.offsets[1]) + corner_twin(*vertex, 64, 1024)
        table.zero_()[4 * entry : 4 * entry + 4] = torch.tensor([1.0, 2, 3, 4])
        found = encode_grid(torch.tensor([vertex]) / 64, table, layout)
        assert found.tolist() == [[0, 0, 0, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("resolution", [1, 15, 16, 31])
def test_dense_levels_reproduce_linear_functions(resolution):
    layout = GridLayout(1, 15, resolution, resolution)
    slopes = torch.randn(4, 3, generator=random(3))
    axis = torch.arange(resolution + 1) / resolution
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    values = torch.stack([x, y, z], -1).reshape(-1, 3) @ slopes.T + 1
    table = torch.zeros(layout.size)
    table[: values.numel()] = values.flatten()
    p = torch.rand(500, 3, generator=random(4)).requires_grad_()
    features = encode_grid(p, table, layout)
    assert_close(features, p.detach() @ slopes.T + 1, CLOSE)
    features[:, 2].sum().backward()
    assert p.grad is not None
    assert_close(p.grad, slopes[2].expand(500, 3), CLOSE)


@SIZES
@pytest.mark.parametrize("levels", [1, 6, 8, 16])
def test_encoding_and_its_gradients_match_float64(levels, n):
    layout = layout_of(levels)
    table = torch.randn(layout.size, generator=random(5))
    upstream = torch.randn(n, 4 * levels, generator=random(6))
    found = both(lambda x, t: encode_grid(x, t, layout), [places(n), table], [upstream])
    assert found[0][0].shape == (n, 4 * levels)
    assert_all_close(found)


def test_encoding_is_constant_outside_the_cube():
    layout = layout_of(6)
    table = torch.randn(layout.size, generator=random(5))
    x = torch.tensor([[-0.25, 0.5, 1.5], [0, 0.5, 1], [-9, 0.5, 9]], requires_grad=True)
    features = encode_grid(x, table, layout)
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
    features.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0], x.grad[2])
    assert x.grad[0, 0] == x.grad[0, 2] == 0
    assert x.grad[0, 1] != 0


def test_only_wanted_gradients_of_the_encoding_are_computed():
    layout = layout_of(1)
    for wants_x, wants_table in ((True, False), (False, True)):
        x, table = places(9).requires_grad_(wants_x), torch.rand(layout.size).requires_grad_(wants_table)
        encode_grid(x, table, layout).sum().backward()
        assert (x.grad is not None, table.grad is not None) == (wants_x, wants_table)


def test_second_derivatives_are_refused_rather_than_wrong():
    layout = layout_of(1)
    x, table = places(9).requires_grad_(), torch.rand(layout.size).requires_grad_()
    (g,) = torch.autograd.grad(encode_grid(x, table, layout).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_layouts():
    assert GridLayout(8, 18, 16, 2048).resolutions.tolist() == [16, 32, 64, 128, 256, 512, 1024, 2048]
    layout = layout_of(6)
    assert layout.resolutions.tolist() == [8, 16, 32, 64, 128, 256]
    assert layout.offsets.tolist() == [0, 736, *(736 + 4096 * k for k in range(1, 6))]  # 9³ = 729 rounded up to 16s, 17³ > 2¹²
    assert [(layout_of(k).depth, layout_of(k).size % 64) for k in (1, 6, 8, 9, 16)] == [(32, 0), (32, 0), (32, 0), (64, 0), (64, 0)]
    for wrong in ((0, 12, 8, 256), (33, 12, 8, 256), (6, 7, 8, 256), (6, 25, 8, 256), (6, 12, 0, 256), (6, 12, 9, 8), (6, 12, 8, 2**21)):
        with pytest.raises(ConfigError, match="hash grid"):
            GridLayout(*wrong)


# --- Spherical harmonics --------------------------------------------------------------------------------------------


def harmonics_twin(d: np.ndarray) -> np.ndarray:
    """Real spherical harmonics with the Condon-Shortley phase, from Legendre polynomials, at l² + l + m."""
    phi, z = np.arctan2(d[:, 1], d[:, 0]), d[:, 2]
    columns = []
    for degree in range(4):
        for m in range(-degree, degree + 1):
            a = abs(m)
            legendre = np.polynomial.legendre.Legendre.basis(degree).deriv(a)(z) * (-1) ** a * (1 - z * z) ** (a / 2)
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - a) / math.factorial(degree + a))
            wave = math.sqrt(2) * np.cos(m * phi) if m > 0 else math.sqrt(2) * np.sin(a * phi) if m < 0 else np.ones_like(phi)
            columns.append(norm * legendre * wave)
    return np.stack(columns, -1)


def test_harmonics_follow_their_twin():
    d = directions(200).double()
    assert_close(spherical_harmonics_reference(d), harmonics_twin(d.numpy()), 1e-6)


def test_harmonics_are_orthonormal():
    z, weight = np.polynomial.legendre.leggauss(8)  # with 16 azimuths exact up to degree 15, products have 6
    phi = np.arange(16) * 2 * math.pi / 16
    ring = np.sqrt(1 - z * z)[:, None]
    d = np.stack([ring * np.cos(phi), ring * np.sin(phi), np.broadcast_to(z[:, None], (8, 16))], -1).reshape(-1, 3)
    values = spherical_harmonics(torch.tensor(d, dtype=torch.float32)).double().numpy()
    area = np.repeat(weight * 2 * math.pi / 16, 16)
    assert_close(values.T @ (area[:, None] * values), np.eye(16), 1e-5)


@SIZES
def test_harmonics_match_float64(n):
    d = directions(n)
    found = spherical_harmonics(d)
    assert found.dtype == torch.float32
    assert_close(found, spherical_harmonics_reference(d.double()), 1e-6)
    transposed = d.T.contiguous().T
    assert torch.equal(spherical_harmonics(transposed), found)


# --- Field ----------------------------------------------------------------------------------------------------------


def field_inputs(n: int, shape: FieldShape) -> list[Tensor]:
    """Positions, table and weights of a field with densities around 1."""
    weights = torch.cat([torch.randn(r * c, generator=random(7 + k)) / math.sqrt(c) for k, (r, c) in enumerate(shape.matrices)])
    return [places(n), torch.randn(shape.grid.size, generator=random(8)), weights]


def field_upstream(n: int) -> list[Tensor]:
    return [torch.randn(n, generator=random(9)), torch.randn(n, 3, generator=random(10))]


def test_field_follows_its_twin():
    shape = FieldShape(layout_of(3), 32)
    x, table, weights = (v.double() for v in field_inputs(9, shape))
    d = directions(9).double()
    density, rgb = field_reference(x, d, Network(table, weights, shape))
    sizes = [(32, 32), (16, 32), (32, 32), (32, 32), (16, 32)]
    assert shape.matrices == sizes
    ends = np.cumsum([0, *(a * b for a, b in sizes)])
    hidden, code, color1, color2, out = (weights.numpy()[ends[k] : ends[k + 1]].reshape(sizes[k]) for k in range(5))
    for i in range(9):
        features = np.concatenate([encode_twin(x[i].numpy(), table.numpy(), shape.grid), np.zeros(20)])
        c = code @ np.maximum(hidden @ features, 0)
        a = np.maximum(color1 @ np.concatenate([c, harmonics_twin(d[i : i + 1].numpy())[0]]), 0)
        a = out @ np.maximum(color2 @ a, 0)
        assert density[i].item() == pytest.approx(math.exp(c[0]), rel=1e-6)
        assert rgb[i].tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in a[:3]], rel=1e-6)


@SIZES
@SHAPES
def test_field_and_its_gradients_match_float64(levels, width, n):
    shape = FieldShape(layout_of(levels), width)
    inputs, d = field_inputs(n, shape), directions(n)
    found = both(lambda x, t, w: field(x, d.to(x.dtype), Network(t, w, shape)), inputs, field_upstream(n))
    assert_all_close(found)
    alone = field_density(inputs[0], Network(inputs[1], inputs[2], shape))
    assert alone.shape == (n,)
    assert_close(alone, found[1][0], CLOSE)
    x, *parameters = (v.double() for v in inputs)
    assert_close(field_density(x, Network(parameters[0], parameters[1], shape)), found[1][0], 1e-12)


def test_gradients_of_the_table_are_added_where_there_are_some():
    shape = FieldShape(layout_of(2), 32)
    x, table, weights = field_inputs(9, shape)
    d, upstream = directions(9), field_upstream(9)
    table.requires_grad_()
    torch.autograd.backward(field(x, d, Network(table, weights, shape)), upstream)
    assert table.grad is not None
    once, kept = table.grad.clone(), table.grad
    torch.autograd.backward(field(x, d, Network(table, weights, shape)), upstream)
    assert table.grad is kept
    assert_close(kept, 2 * once, 1e-6)
    assert weights.grad is None
    assert x.grad is None


def test_density_and_its_gradient_end_at_the_highest():
    shape = FieldShape(GridLayout(1, 8, 1, 1), 32)
    table = torch.ones(shape.grid.size)
    weights = torch.zeros(shape.size)
    hidden, to_geo_features, *_ = shape.split(weights)
    hidden[:, 0] = 1  # all features are 1, so all hidden numbers are, and raw is the sum of the first row
    x, d = torch.full((3, 3), 0.3), directions(3)
    for raw in (HIGHEST_RAW - 1, HIGHEST_RAW + 5, 200.0, -200.0):
        to_geo_features[0] = raw / 32
        found = both(lambda w: field(x.to(w.dtype), d.to(w.dtype), Network(table.to(w.dtype), w, shape))[0], [weights], [torch.ones(3)])
        expected = math.exp(min(raw, HIGHEST_RAW)) if raw > -87 else 0
        for density, gradient in found:
            assert density.tolist() == pytest.approx([expected] * 3, rel=1e-5, abs=1e-30)
            of_geo_features = list(shape.split(gradient))[1]
            assert of_geo_features[0].tolist() == pytest.approx([3 * expected * (raw <= HIGHEST_RAW)] * 32, rel=1e-5, abs=1e-30)


def test_widths():
    for wrong in (0, 16, 48, 288):
        with pytest.raises(ConfigError, match="width"):
            FieldShape(GridLayout(), wrong)
    shape = FieldShape(layout_of(9), 96)
    assert [m.shape for m in shape.split(torch.empty(shape.size))] == [(96, 64), (16, 96), (96, 32), (96, 96), (16, 96)]
    assert shape.flops() == 2 * (96 * 36 + 96 * 16 + 32 * 96 + 96 * 96 + 96 * 3)


class Rounded(torch.autograd.Function):
    """x Wᵀ whose products, forward and backward, take bfloat16 inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(x), rounded(w))
        return rounded(x) @ rounded(w).T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return rounded(g) @ w, rounded(g).T @ x


def rounded(x: Tensor) -> Tensor:
    """Numbers with 8 significant bits."""
    return x.float().bfloat16().to(x.dtype)


def rounded_field(x: Tensor, d: Tensor, table: Tensor, weights: Tensor, shape: FieldShape) -> tuple[Tensor, Tensor]:
    hidden, to_geo_features, color1, color2, out = shape.split(weights)
    features = encode_grid_reference(x, table, shape.grid)
    code = Rounded.apply(torch.relu(Rounded.apply(features, hidden[:, : features.shape[1]])), to_geo_features)
    joint = torch.cat([code, spherical_harmonics_reference(d)], -1)
    color = Rounded.apply(torch.relu(Rounded.apply(torch.relu(Rounded.apply(joint, color1)), color2)), out[:3])
    return torch.exp(code[:, 0]), torch.sigmoid(color)


@SIZES
@SHAPES
def test_tiles_round_their_inputs_to_bfloat16_and_nothing_else(levels, width, n):
    if not amx.has_tiles():
        pytest.skip("this processor has no bfloat16 tiles")
    shape = FieldShape(layout_of(levels), width)
    inputs, d = field_inputs(n, shape), directions(n)

    def either(x: Tensor, t: Tensor, w: Tensor) -> Any:
        if x.dtype == torch.float32:
            return field(x, d, Network(t, w, shape, half=True))
        return rounded_field(x, d.double(), t, w, shape)

    found = both(either, inputs, field_upstream(n))
    assert_all_close(found, 5e-3)  # rarely, a number within float32's error of a tie is rounded the other way
    assert_close(field_density(inputs[0], Network(inputs[1], inputs[2], shape, half=True)), found[0][0], 1e-6)
    exact = both(lambda x, t, w: field(x, d.to(x.dtype), Network(t, w, shape)), inputs, field_upstream(n))
    for value, reference in zip(found[0], exact[1], strict=True):
        assert (value - reference).norm() <= 0.1 * reference.norm()
    if n == 1000:
        assert not torch.equal(found[0][1], exact[0][1])


def test_half_without_tiles_is_float32(monkeypatch):
    shape = FieldShape(layout_of(2), 32)
    inputs, d = field_inputs(9, shape), directions(9)
    x, table, weights = inputs
    exact = field(x, d, Network(table, weights, shape))
    monkeypatch.setattr(amx, "has_tiles", lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(field(x, d, Network(table, weights, shape, half=True)), exact, strict=True))


# --- Compositing ----------------------------------------------------------------------------------------------------


def packed(rays: int, empty: bool = False) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Density, colour, length, t of 0 to 8 samples a ray; the offsets; upstream gradients of all outputs."""
    g = random(11)
    counts = torch.randint(0, 9, (rays,), generator=g) * (0 if empty else 1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n = int(offsets[-1])
    density = torch.rand(n, generator=g) * 60
    density[torch.rand(n, generator=g) < 0.2] = 0
    length, t = torch.rand(n, generator=g) * 0.1, torch.rand(n, generator=g)
    upstream = [torch.randn(rays, 3, generator=g), *(torch.randn(rays, generator=g) for _ in range(2)), torch.randn(n, generator=g)]
    return [density, torch.rand(n, 3, generator=g), length, t], offsets, upstream


def composite_twin(density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, ...]:
    """Sample by sample, autograd following."""
    colors, opacities, depths, weights = [], [], [], []
    for begin, end in itertools.pairwise(offsets.tolist()):
        light = torch.ones((), dtype=torch.float64)
        color, opacity, depth = torch.zeros(3, dtype=torch.float64), light * 0, light * 0
        for s in range(begin, end):
            left = light * torch.exp(-density[s] * length[s])
            weight = light - left if light.item() >= early_stop else 0 * density[s]
            color, opacity, depth, light = color + weight * rgb[s], opacity + weight, depth + weight * t[s], left
            weights.append(weight)
        colors.append(color)
        opacities.append(opacity)
        depths.append(depth)
    return torch.stack(colors), torch.stack(opacities), torch.stack(depths), torch.stack(weights)


@pytest.mark.parametrize("early_stop", [0.0, 1e-4, 0.2])
@pytest.mark.parametrize("output", [None, 0, 1, 2, 3])
def test_compositing_follows_its_twin(output, early_stop):
    inputs, offsets, upstream = packed(25)
    length, t = (v.double() for v in inputs[2:])
    upstream = [g.double() * (output in (None, k)) for k, g in enumerate(upstream)]
    found = []
    for function in (composite_packed_reference, composite_twin):
        density, rgb = (v.double().requires_grad_() for v in inputs[:2])
        outputs = function(density, rgb, length, t, offsets, early_stop)
        torch.autograd.backward(outputs, upstream)
        assert density.grad is not None
        found.append([*(o.detach() for o in outputs), density.grad, rgb.grad if rgb.grad is not None else torch.zeros_like(rgb)])
    assert_all_close(found, 1e-12)


@SIZES
@pytest.mark.parametrize("early_stop", [0.0, 1e-4, 0.2])
def test_compositing_and_its_gradients_match_float64(early_stop, n):
    inputs, offsets, upstream = packed(n)
    length, t = inputs[2:]
    found = both(
        lambda density, rgb: composite_packed(density, rgb, length.to(rgb.dtype), t.to(rgb.dtype), offsets, early_stop),
        inputs[:2],
        upstream,
    )
    assert_all_close(found)
    if n == 1000 and early_stop == 0.2:
        assert (found[0][3] == 0).float().mean() > 0.25, "some samples lie in the dark"


def test_rays_without_samples_are_black():
    inputs, offsets, upstream = packed(3, empty=True)
    found = both(lambda density, rgb: composite_packed(density, rgb, density, density, offsets), inputs[:2], upstream)
    assert found[0][0].tolist() == [[0] * 3] * 3
    assert [len(v) for v in found[0]] == [3, 3, 3, 0, 0, 0]


def test_an_opaque_sample_hides_what_follows_and_an_unused_output_needs_no_gradient():
    density, rgb = torch.tensor([1e30, 5.0], requires_grad=True), torch.tensor([[0.1, 0.2, 0.3], [1, 1, 1]])
    color, opacity, depth, weights = composite_packed(density, rgb, torch.ones(2), torch.tensor([2.0, 3.0]), torch.tensor([0, 2]))
    assert_close(color, [[0.1, 0.2, 0.3]])
    assert (opacity.item(), depth.item(), weights.tolist()) == (1, 2, [1, 0])
    color.sum().backward()
    assert density.grad is not None
    assert density.grad.tolist() == [0, 0]


# --- Adam -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("n", [0, 16, 1008, 1, 7, 1000])
def test_adam_with_all_gradients_is_adam(n, decay):
    generator = random(12)
    start = torch.randn(n, generator=generator)
    p, m, v = start.clone(), torch.zeros(n), torch.zeros(n)
    twin = start.double().requires_grad_()
    optimizer = torch.optim.Adam([twin], 0.01, (0.9, 0.99), 1e-10, decay)
    for step in range(1, 6):
        gradient = torch.randn(n, generator=generator)
        twin.grad = gradient.double()
        optimizer.step()
        sparse_adam(p, gradient, m, v, AdamStep(step, 0.01, (0.9, 0.99), 1e-10, decay))
        assert not gradient.any()
        assert_close(p - start, twin.detach() - start, CLOSE)


@pytest.mark.parametrize("n", [1008, 1000, 7])
def test_adam_leaves_entries_without_gradient_alone(n):
    generator = random(13)
    p, m, v, raw = (torch.randn(n, generator=generator) for _ in range(4))
    v = v.abs()
    raw[torch.rand(n, generator=generator) < 0.5] = 0
    raw[16 : 16 + 4 * 16] = 0
    touched = raw != 0
    state = [value.clone() for value in (p, raw, m, v)]
    twin = [value.double() for value in state]
    for p_, raw_, m_, v_ in (state, twin):
        sparse_adam(p_, raw_, m_, v_, AdamStep(3, 0.01, (0.9, 0.99), 1e-10, 0.1))
    for old, new, reference in zip((p, raw, m, v), state, twin, strict=True):
        assert_close(new, reference, CLOSE)
        assert torch.equal(new[~touched], old[~touched])
    assert not state[1].any()
    assert_close((state[0] - p)[touched], (twin[0] - p)[touched], CLOSE)
    assert (state[0] != p)[touched].all()


def test_adam_updates_matrices_in_place_and_refuses_views():
    p, g, m, v = torch.rand(32, 32), *torch.ones(3, 32, 32)
    before = p.clone()
    sparse_adam(p, g, m, v, AdamStep(1, 0.1, (0.9, 0.99), 1e-10))
    assert (p != before).all()
    assert not g.any()
    for view in (p.T, p[:, ::2]):
        before, ones = view.clone(), torch.ones_like(view)
        with pytest.raises((RuntimeError, TypeError)):
            sparse_adam(view, ones, ones.clone(), ones.clone(), AdamStep(1, 0.1, (0.9, 0.99), 1e-10))
        assert torch.equal(view, before)
