"""The Triton bodies against the float64 references: on a GPU where there is one, else in Triton's interpreter (`test_in_the_interpreter`
runs this file again in a process of its own); and compiled for a GPU that need not be there."""

# pyright: reportCallIssue=false, reportArgumentType=false
# arguments come unpacked from lists

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.compositing import composite_packed, composite_packed_reference
from nerfit.kernels.field import field, field_density, field_reference
from nerfit.kernels.hash_grid import encode_grid, encode_grid_reference
from nerfit.kernels.inverse_cdf import sample_pdf, sample_pdf_reference
from nerfit.kernels.layouts import (
    BLOCKS,
    HIGHEST_RAW,
    RESOLUTION,
    AdamStep,
    Cutoffs,
    FieldShape,
    GridLayout,
    March,
    Network,
    Occupancy,
    RaySet,
    Samples,
)
from nerfit.kernels.marching import march_rays, march_rays_reference, pack_occupancy, visible_samples
from nerfit.kernels.spherical_harmonics import spherical_harmonics, spherical_harmonics_reference

triton = pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SIZES = pytest.mark.parametrize("n", [0, 1, 130])
CLOSE = 1e-4
HALF_CLOSE = 1e-2 if INTERPRETED else 5e-2
"""float16 in the interpreter, bfloat16 on a GPU."""
on_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="there is no GPU here; test_in_the_interpreter runs this"
)
once = pytest.mark.skipif(INTERPRETED, reason="the process that started the interpreter runs this")


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def places(n: int) -> Tensor:
    """Positions in and around the unit cube."""
    return torch.rand(n, 3) * 1.2 - 0.1


def unit(n: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)


def check(function: Callable[..., Any], reference: Callable[..., Any], leaves: list[Tensor], tolerance: float = CLOSE) -> None:
    """Values and gradients of ``function`` (float32, on the device) against ``reference`` (float64)."""
    mine = [v.to(DEVICE, copy=True).requires_grad_() for v in leaves]
    theirs = [v.double().requires_grad_() for v in leaves]
    found, expected = function(*mine), reference(*theirs)
    upstream = [torch.randn(v.shape) for v in expected]
    torch.autograd.backward(found, [g.to(DEVICE) for g in upstream])
    torch.autograd.backward(expected, [g.double() for g in upstream])
    for value, exact in zip([*found, *(v.grad for v in mine)], [*expected, *(v.grad for v in theirs)], strict=True):
        assert_close(value, exact, tolerance)


@once
def test_in_the_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1", "NERFIT_KERNELS": "triton"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-W", "ignore:divide by zero", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


# --- Hash grid, harmonics, field ------------------------------------------------------------------------------------


@on_device
@SIZES
@pytest.mark.parametrize("levels", [1, 6])
def test_encoding(n, levels):
    layout = GridLayout(levels, 10, 4, 64)  # dense levels and hashed ones
    x, table = places(n), torch.randn(layout.size)
    check(lambda *v: [encode_grid(*v, layout)], lambda *v: [encode_grid_reference(*v, layout)], [x, table])


@on_device
def test_an_encoding_of_the_borders_of_the_largest_table():
    layout = GridLayout(2, 18, 50, 2**20)
    x = torch.tensor([[0, 0, 0], [1, 1, 1], [1 - 2**-24, 0.5, 0], [-1, 2, 0.3]])
    check(
        lambda t: [encode_grid(x.to(DEVICE), t, layout)],
        lambda t: [encode_grid_reference(x.double(), t, layout)],
        [torch.randn(layout.size)],
    )


@on_device
@SIZES
def test_spherical_harmonics(n):
    d = unit(n)
    assert_close(spherical_harmonics(d.to(DEVICE)), spherical_harmonics_reference(d.double()), CLOSE)


@on_device
@pytest.mark.parametrize("n, levels, width", [(0, 8, 64), (1, 2, 64), (130, 2, 64), (7, 8, 64), (7, 3, 32), (7, 9, 128), (7, 17, 96)])
def test_field_in_float32(n, levels, width):
    shape, d = FieldShape(GridLayout(levels, 10, 4, 64), width), unit(n)
    leaves = [places(n), torch.randn(shape.grid.size), torch.randn(shape.size) * 0.15]
    check(
        lambda x, *v: field(x, d.to(DEVICE), Network(*v, shape)), lambda x, *v: field_reference(x, d.double(), Network(*v, shape)), leaves
    )
    x, *parameters = (v.detach() for v in leaves)
    density, _ = field_reference(x.double(), d.double(), Network(*(v.double() for v in parameters), shape))
    assert_close(field_density(x.to(DEVICE), Network(*(v.to(DEVICE) for v in parameters), shape)), density, CLOSE)


@on_device
@pytest.mark.parametrize("n, levels, width", [(0, 5, 64), (1, 2, 64), (130, 2, 64), (7, 5, 128)])
def test_field_in_half_precision(n, levels, width):
    shape, d = FieldShape(GridLayout(levels, 10, 4, 64), width), unit(n)
    weights = torch.randn(shape.size) * 0.1
    for matrix, view in enumerate(shape.split(weights)):  # rows of one sign keep ReLUs away from where half precision would flip them
        if matrix < 4:
            view.abs_()
        if matrix in (0, 2, 3):
            view[1::2] *= -1
        if matrix == 2:
            view[:, 16:] *= 0.01
    leaves = [places(n), torch.rand(shape.grid.size), weights]
    reference = lambda x, *v: field_reference(x, d.double(), Network(*v, shape))  # noqa: E731
    check(lambda x, *v: field(x, d.to(DEVICE), Network(*v, shape, half=True)), reference, leaves, HALF_CLOSE)
    density, _ = reference(*(v.double() for v in leaves))
    x, *parameters = (v.detach().to(DEVICE) for v in leaves)
    assert_close(field_density(x, Network(*parameters, shape, half=True)), density, HALF_CLOSE)


@on_device
def test_field_adds_to_the_gradient_that_a_table_has():
    shape = FieldShape(GridLayout(2, 10, 4, 64), 32)
    x, d, table, weights = (v.to(DEVICE) for v in (places(9), unit(9), torch.randn(shape.grid.size), torch.randn(shape.size) * 0.1))
    table.requires_grad_()
    gradients = []
    for _ in range(2):
        field(x, d, Network(table, weights, shape))[1].sum().backward()
        assert table.grad is not None
        gradients.append(table.grad.clone())
    assert_close(gradients[1], 2 * gradients[0])


@on_device
def test_density_is_cut_off_and_constant_there():
    shape = FieldShape(GridLayout(1, 10, 4, 64), 32)
    x, d, table, weights = places(3), unit(3), torch.full((shape.grid.size,), 4.0), torch.full((shape.size,), 0.2)
    leaves = [x.to(DEVICE).requires_grad_(), d.to(DEVICE), table.to(DEVICE).requires_grad_(), weights.to(DEVICE)]
    density, _ = field(*leaves[:2], Network(*leaves[2:], shape))
    assert_close(density, torch.full((3,), HIGHEST_RAW, dtype=torch.float64).exp(), CLOSE)
    density.sum().backward()
    assert leaves[2].grad is not None
    assert not leaves[2].grad.any()


# --- Compositing, Adam ----------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("counts", [[], [0], [1], [0, 7, 0, 32, 33, 130, 0]])
@pytest.mark.parametrize("strength", [1.0, 300.0])
def test_compositing(counts, strength):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    n = int(offsets[-1])
    length, t = torch.rand(n) * 0.1, torch.rand(n)

    def run(function: Callable[..., Any], kind: torch.dtype, device: str) -> Callable[..., Any]:
        return lambda density, rgb: function(density, rgb, length.to(device, kind), t.to(device, kind), offsets.to(device), 1e-4)

    exact = run(composite_packed_reference, torch.float64, "cpu")
    check(run(composite_packed, torch.float32, DEVICE), exact, [torch.rand(n) * strength, torch.rand(n, 3)])


@on_device
def test_compositing_forgets_no_light_before_a_wall():
    density = torch.tensor([2.0, 1e9, 1.0])
    rest = torch.rand(3, 3), torch.tensor([0.1, 1.0, 1.0]), torch.zeros(3), torch.tensor([0, 3])
    *_, weights = composite_packed(density.to(DEVICE), *(v.to(DEVICE) for v in rest))
    assert_close(weights, torch.tensor([1 - torch.e**-0.2, torch.e**-0.2, 0], dtype=torch.float64))


@on_device
@SIZES
def test_adam(n):
    start = [torch.randn(n), torch.randn(n) * (torch.rand(n) < 0.5), torch.randn(n), torch.rand(n)]
    mine, theirs = [v.to(DEVICE) for v in start], [v.double() for v in start]
    for tensors in (mine, theirs):
        sparse_adam(*tensors, AdamStep(step=3, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-3))
    for value, exact, before in zip(mine, theirs, start, strict=True):
        assert_close(value, exact, CLOSE)
        untouched = start[1] == 0
        assert torch.equal(value.cpu()[untouched], before[untouched])


# --- March ----------------------------------------------------------------------------------------------------------

STEP = {1: 0.023, 3: 0.0071}
"""By number of cascades: short enough for the finest, and no whole part of a cell, so that choosing one is no matter of rounding."""


@pytest.fixture(scope="module")
def occupancies() -> Callable[[int, str], Occupancy]:
    """Cascades that are empty, full, or empty but for a few lumps each."""
    made: dict[tuple[int, str], Occupancy] = {}

    def get(cascades: int, fill: str) -> Occupancy:
        if (cascades, fill) not in made:
            grid = torch.full((cascades, RESOLUTION, RESOLUTION, RESOLUTION), float(fill == "full"))
            for k in range(cascades if fill == "lumps" else 0):
                for z, y, x in torch.randint(0, RESOLUTION - 25, (15, 3), generator=torch.Generator().manual_seed(k)).tolist():
                    grid[k, z : z + 25, y : y + 21, x : x + 23] = 1
            made[cascades, fill] = pack_occupancy(grid.flatten().to(DEVICE), 0.5)
        return made[cascades, fill]

    return get


def rays_of(n: int, cascades: int = 1) -> RaySet:
    """Origins (outside the second cascade), directions of any length, near, far, jitter; a quarter along an axis, a quarter going away.

    Steps among several cascades are short, and so are the rays: they end inside the first.
    """
    aims, origins = 0.5 + 0.7 * (torch.rand(n, 3) - 0.5), 0.5 + 1.2 * unit(n)
    directions = (aims - origins) * (0.3 + torch.rand(n, 1))
    origins[1::4], directions[1::4] = aims[1::4] - torch.tensor([0, 1.2, 0]), torch.tensor([0, 0.7, -0.0])
    directions[2::4] *= -1
    far = (1.5 if cascades == 1 else 0.8) / directions.norm(dim=-1)
    return RaySet(origins, directions, directions, 0.1 * torch.rand(n), far, torch.rand(n))


def assert_same_samples(found: Samples, reference: Samples) -> None:
    """Alike but for rays of which a sample lies on a cell's wall, at most one in twenty."""
    assert found.ray_indices.dtype == torch.int32
    counts, expected = found.offsets.diff().cpu(), reference.offsets.diff()
    same = counts == expected
    assert (~same).sum() <= 0.05 * len(same)
    assert torch.equal(found.ray_indices.cpu().long(), torch.repeat_interleave(torch.arange(len(same)), counts))
    mine, theirs = same.repeat_interleave(counts), same.repeat_interleave(expected)
    for name in ("t_starts", "t_ends", "x"):
        assert_close(getattr(found, name).cpu()[mine], getattr(reference, name)[theirs], CLOSE)


@on_device
@pytest.mark.parametrize(
    "n, cascades, fill, cone_angle",
    [
        *((0, 1, "lumps", 0.0), (1, 1, "full", 0.0), (7, 1, "empty", 1 / 100), (33, 1, "lumps", 0.0), (33, 1, "lumps", 1 / 100)),
        *((12, 3, "lumps", 0.0), (12, 3, "lumps", 1 / 100)),
    ],
)
def test_march(occupancies, n, cascades, fill, cone_angle):
    occupancy, rays = occupancies(cascades, fill), rays_of(n, cascades)
    found = march_rays(rays.each(lambda t: t.to(DEVICE)), March(occupancy, STEP[cascades], cone_angle))
    known = Occupancy(occupancy.bits.cpu(), occupancy.distance.cpu(), occupancy.box.cpu())
    reference = march_rays_reference(rays.each(Tensor.double), March(known, STEP[cascades], cone_angle))
    assert (len(reference) > n) == (n > 0 and fill != "empty")
    assert_same_samples(found, reference)


@on_device
@pytest.mark.parametrize("cascades", [1, 3])
def test_march_through_fullness_stops_at_the_limit(occupancies, cascades):
    rays, occupancy = rays_of(9), occupancies(cascades, "full")
    found = march_rays(rays.each(lambda t: t.to(DEVICE)), March(occupancy, STEP[cascades], 0.01), limit=30)
    known = Occupancy(occupancy.bits.cpu(), occupancy.distance.cpu(), occupancy.box.cpu())
    reference = march_rays_reference(rays.each(Tensor.double), March(known, STEP[cascades], 0.01), 30)
    assert found.offsets.diff().amax() == 30
    assert_same_samples(found, reference)


@on_device
def test_visible_samples(monkeypatch, occupancies):
    shape = FieldShape(GridLayout(2, 10, 4, 16), 32)
    occupancy, rays = occupancies(1, "lumps"), rays_of(20)
    table, weights = torch.randn(shape.grid.size), torch.randn(shape.size)
    list(shape.split(weights))[1][0] = 0.15  # neither glass nor stone
    there, march, cutoffs = rays.each(lambda t: t.to(DEVICE)), March(occupancy, STEP[1]), Cutoffs(0.01, 0.5)
    found = visible_samples(there, march, Network(table.to(DEVICE), weights.to(DEVICE), shape), cutoffs)
    marched = march_rays(there, march)
    assert found.evaluated == len(marched)
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    known = Occupancy(occupancy.bits.cpu(), occupancy.distance.cpu(), occupancy.box.cpu())
    reference = visible_samples(rays, March(known, STEP[1]), Network(table, weights, shape), cutoffs)
    assert 0 < len(reference) < 0.9 * len(marched)
    assert_same_samples(found, reference)


@on_device
def test_packing():
    grid = torch.rand(RESOLUTION**3) * (torch.rand(RESOLUTION**3) < 1e-3)
    found = pack_occupancy(grid.to(DEVICE), 0.5)
    bits = (found.bits.cpu()[:, None] >> torch.arange(8) & 1).flatten().bool()
    assert torch.equal(bits, grid > 0.5)
    blocks = (grid > 0.5).reshape(BLOCKS, 2, BLOCKS, 2, BLOCKS, 2).any(5).any(3).any(1).flatten()
    assert torch.equal(found.distance.cpu() == 0, blocks)


# --- Inverse-CDF sampling -------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("rays, bins, samples", [(0, 4, 9), (1, 1, 0), (1, 1, 1), (7, 62, 128), (2, 100, 300), (9, 33, 7)])
@pytest.mark.parametrize("weighted", ["all", "some", "one", "none"])
def test_inverse_cdf(rays, bins, samples, weighted):
    edges = 2 + torch.rand(rays, bins + 1).cumsum(-1)
    weights = torch.rand(rays, bins) * (torch.rand(rays, bins) < {"all": 1.0, "some": 0.3}.get(weighted, 0.0))
    weights[:, -1] += 1e20 * (weighted == "one")
    uniform = torch.rand(rays, samples)
    uniform[:, -1:] = 1
    for numbers in (uniform, None):
        found = sample_pdf(edges.to(DEVICE), weights.to(DEVICE), samples, None if numbers is None else numbers.to(DEVICE))
        exact = sample_pdf_reference(edges.double(), weights.double(), samples, None if numbers is None else numbers.double(), 1e-5)
        assert_close(found, exact, CLOSE)


# --- Compilation ----------------------------------------------------------------------------------------------------


@once
def test_kernels_compile_for_a_gpu_that_need_not_be_there(monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nerfit.kernels.triton import adam, compositing, hash_grid, inverse_cdf, marching
    from nerfit.kernels.triton import field as fields
    from nerfit.kernels.triton import spherical_harmonics as harmonics

    types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16"}
    types |= {torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}
    compiled = set()

    def compile_only(kernel: Any, grid: Any, *args: Any, num_warps: int = 4, **constants: Any) -> None:
        kinds = [types[a.dtype] if isinstance(a, Tensor) else "i32" if isinstance(a, int) else "fp32" for a in args]
        signature = dict(zip(kernel.arg_names, [*kinds, *("constexpr" for _ in constants)], strict=True))
        done = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32), options={"num_warps": num_warps})
        assert done.metadata.shared <= 99 * 1024, "fits the smallest of the common GPUs"
        compiled.add(kernel.__name__)

    for module in (adam, compositing, fields, hash_grid, inverse_cdf, marching, harmonics):
        monkeypatch.setattr(module, "launch", compile_only)
    monkeypatch.setattr(fields, "_dtype", lambda x, half: torch.bfloat16)
    shape, x, t, offsets = FieldShape(GridLayout()), torch.rand(5, 3), torch.rand(5), torch.tensor([0, 2, 5])
    table, weights = torch.rand(shape.grid.size), torch.rand(shape.size)
    hash_grid.encode_backward(x, table, hash_grid.encode(x, table, shape.grid), shape.grid, True, True)
    harmonics.spherical_harmonics(x)
    network = Network(table, weights, shape, half=True)
    fields.density(x, network)
    density, rgb, features = fields.field_forward(x, x, network)
    fields.field_backward(x, features, network, density, rgb)
    color, opacity, depth, w = compositing.composite_forward(t, x, t, t, offsets, 1e-4)
    compositing.composite_backward(t, x, t, t, offsets, w, 1e-4, color, opacity, depth, w)
    adam.sparse_adam(t, t, t, t, AdamStep(1, 0.1, (0.9, 0.99), 1e-8))
    inverse_cdf.sample_pdf(x, x[:, :2].contiguous(), x, 1e-5)
    bits = torch.zeros(3 * RESOLUTION**3 // 8, dtype=torch.uint8)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda _: 5, raising=False)
    occupancy = Occupancy(bits, bits[: 3 * BLOCKS**3], torch.rand(2, 3))
    marching.march_rays(RaySet(x, x, x, t, t, t), March(occupancy, 0.1), 9)
    assert len(compiled) == 12
