"""What kernels are made of (vectors, matrix products), and how they are run: threads, forks, the cache of machine code."""

# pyright: reportCallIssue=false
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.kernels import warm_up
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.compositing import composite_packed
from nerfit.kernels.cpu import amx, runtime
from nerfit.kernels.cpu.amx import round16
from nerfit.kernels.cpu.blocks import LANES, Matrix
from nerfit.kernels.cpu.matmul import (
    backward,
    begin,
    end,
    forward,
    forward_relu,
    product_by,
    take,
    take_gradient,
    tile4,
    tile8,
    weight_gradient,
)
from nerfit.kernels.cpu.runtime import kernel, run_parallel
from nerfit.kernels.cpu.vectors import (
    any_nonzero,
    exp16,
    fma,
    join4,
    load16,
    maximum,
    minimum,
    positive_part,
    split4,
    square_root,
    store16,
    total,
    transpose16,
    where_nonzero,
)
from nerfit.kernels.dispatch import kernels_take_threads
from nerfit.kernels.field import field
from nerfit.kernels.inverse_cdf import sample_pdf
from nerfit.kernels.layouts import AdamStep, Cutoffs, FieldShape, GridLayout, March, Network, RaySet
from nerfit.kernels.marching import march_rays, pack_occupancy, visible_samples
from nerfit.kernels.memory import in_large_pages, zeros_in_large_pages


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets PyTorch's number of threads; it is as before afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "threads", 0)
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- Vectors --------------------------------------------------------------------------------------------------------


@kernel
def _exponentials(x, out):
    for i in range(0, x.size, 16):
        store16(out, i, exp16(load16(x, i)))


@kernel
def _lanes(a, b, c, out):
    x, y, z = load16(a, 0), load16(b, 0), load16(c, 0)
    store16(out, 0, fma(x, y, z))
    store16(out, 16, maximum(x, y))
    store16(out, 32, minimum(x, y))
    store16(out, 48, positive_part(x, y))
    store16(out, 64, where_nonzero(z, x, y))
    store16(out, 80, square_root(x * x))
    return total(x), any_nonzero(z)


@kernel
def _moves(tile, tile_turned, samples, rows, again):
    transpose16(tile, 3, 40, tile_turned, 5, 32)
    split4(samples, 4, rows, 7, 64)
    join4(rows, 7, 64, again, 4)


def test_exponentials():
    x = np.concatenate([np.linspace(-87, 88, 2**16 - 16), [-1e30, -200, -88, -87, 88, 88.5, 1e30, 0, -0.0, *np.full(7, 1e-8)]]).astype(
        np.float32
    )
    out = np.empty_like(x)
    _exponentials(x, out)
    expected = np.exp(x.astype(np.float64).clip(-87, 88))
    assert np.abs(out / expected - 1).max() < 1e-6


@pytest.mark.parametrize("gate", ["none", "one", "some"])
def test_lanes(gate):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 16)).astype(np.float32)
    c = {"none": np.zeros(16), "one": np.eye(16)[13], "some": rng.normal(size=16) * (np.arange(16) % 3 > 0)}[gate].astype(np.float32)
    out = np.empty(96, np.float32)
    sum_, any_ = _lanes(a, b, c, out)
    rows = [a.astype(float) * b + c, np.maximum(a, b), np.minimum(a, b), np.where(b > 0, a, 0), np.where(c != 0, a, b), np.abs(a)]
    assert_close(out.reshape(6, 16), np.stack(rows), 1e-6)
    assert sum_ == pytest.approx(a.astype(float).sum(), rel=1e-5)
    assert any_ == (gate != "none")


def test_tiles_turn_and_samples_split_and_join():
    tile, samples = np.arange(3 + 40 * 16, dtype=np.float32), np.arange(4 + 64, dtype=np.float32)
    turned, rows, again = (np.full(n, -1, np.float32) for n in (5 + 32 * 16, 7 + 4 * 64, 4 + 64))
    _moves(tile, turned, samples, rows, again)
    blocks = turned[5:].reshape(16, 32)
    assert np.array_equal(blocks[:, :16], tile[3:].reshape(16, 40)[:, :16].T)
    assert (blocks[:, 16:] == -1).all()
    assert (turned[:5] == -1).all()
    assert np.array_equal(rows[7:].reshape(4, 64)[:, :16], samples[4:].reshape(16, 4).T)
    assert (rows[7:].reshape(4, 64)[:, 16:] == -1).all()
    assert np.array_equal(again[4:], samples[4:])
    assert (again[:4] == -1).all()


# --- Matrix products ------------------------------------------------------------------------------------------------


@kernel
def _products(tiles, w, turned, x, g, gate, eye, y, dw, relu, back, dw_back, rows, depth):
    """All products of a layer; operands are read by multiplying them with the identity."""
    channels = max(rows, 32)
    scratch = np.empty(max(channels, depth) * LANES, np.float32)
    w16, turned16, eye16 = (np.empty(w.size // 2, np.int32), np.empty(turned.size // 2, np.int32), np.empty(eye.size // 2, np.int32))
    round16(w, w16)
    round16(turned, turned16)
    round16(eye, eye16)
    size = int(np.sqrt(eye.size))
    inputs, hidden, gates = np.empty(depth * LANES, np.float32), np.empty(size * LANES, np.float32), np.empty(depth * LANES, np.float32)
    given, gated = np.empty(channels * LANES, np.float32), np.zeros(size * LANES, np.float32)
    begin(tiles)
    take(tiles, x, depth, inputs)
    take(tiles, gate, depth, gates)
    take_gradient(tiles, g, channels, given)
    forward(tiles, w, w16, Matrix(0, rows, depth), inputs, y)
    weight_gradient(tiles, given, inputs, dw, Matrix(0, rows, depth), scratch)
    if rows == size:
        forward_relu(tiles, w, w16, Matrix(0, rows, depth), inputs, hidden, scratch)
        forward(tiles, eye, eye16, Matrix(0, rows, rows), hidden, relu)
    if depth == size:
        backward(tiles, turned, turned16, Matrix(0, depth, channels), given, gates, gated, scratch)
        forward(tiles, eye, eye16, Matrix(0, depth, depth), gated, back)
        weight_gradient(tiles, gated, inputs, dw_back, Matrix(0, depth, depth), scratch)
    end(tiles)


def rounded(a: np.ndarray) -> np.ndarray:
    """float32 cut to bfloat16's 8 bits, the nearest, ties away from 0."""
    return ((a.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("rows, depth", [(16, 32), (32, 32), (16, 128), (64, 32), (96, 64), (64, 96), (128, 128)])
def test_products(rows, depth, tiles):
    if tiles and not amx.has_tiles():
        pytest.skip("this processor has no bfloat16 tiles")
    rng = np.random.default_rng(rows + depth)
    size, channels = max(rows, depth), max(rows, 32)
    sizes = ((rows, depth), (depth, LANES), (channels, LANES), (depth, LANES), (rows, depth), (depth, depth))
    w, x, g, gate, dw, dw_back = (rng.normal(size=size).astype(np.float32) for size in sizes)
    g[rows:] = 0
    turned = np.zeros((depth, channels), np.float32)
    turned[:, :rows] = w.T
    y, relu, back = (np.full((n, LANES), np.nan, np.float32) for n in (rows, rows, depth))
    sums, sums_back = dw.copy(), dw_back.copy()
    arrays = (w, turned, x, g, gate, np.eye(size, dtype=np.float32), y, sums, relu, back, sums_back)
    _products(tiles, *(a.reshape(-1) for a in arrays), rows, depth)
    if tiles:
        w, x, g = rounded(w), rounded(x), rounded(g)
    w, g = w.astype(float), g[:rows].astype(float)
    assert_close(y, w @ x, 1e-6)
    assert_close(sums, dw + g @ x.T, 1e-6)
    rounding = 2**-8 if tiles else 1e-6
    if rows == size:
        assert_close(relu, np.maximum(w @ x, 0), rounding)
        assert np.array_equal(relu == 0, y <= 0)
    if depth == size:
        wanted = np.where(gate > 0, w.T @ g, 0)
        assert_close(back, wanted, rounding)
        assert_close(sums_back, dw_back + back.astype(float) @ x.T, 1e-6)


# --- Tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "processor, features, expected",
    [
        ("sapphirerapids", "", True),
        ("graniterapids-d", "+avx2", True),
        ("sapphirerapids", "+avx2,-amx-bf16", False),
        ("sapphirerapids", "-amx-tile", False),
        ("haswell", "", False),
        ("haswell", "+amx-tile,+amx-bf16", True),
        ("haswell", "+amx-bf16,-amx-tile", False),
        ("generic", "", False),
    ],
)
def test_tiles_are_those_of_numbas_target(processor, features, expected):
    assert amx.target_has_tiles(processor, features) == expected


@pytest.mark.parametrize(("tile", "tall", "wide"), [(tile4, 4, 16), (tile8, 8, 32)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_both_tiles_of_a_product_give_its_sums(tile, tall, wide, accumulate):
    """One is for registers of 8 lanes, one for 16; each runs everywhere. ``a`` and ``x`` are parts of larger matrices."""
    rows, depth, columns, rng = 16, 37, 64, np.random.default_rng(0)
    a, x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, depth + 3), (depth, columns + 16), (rows, columns + 16)))
    product, before = product_by(tile, tall, wide), y.copy()
    product(a.ravel(), 2, depth + 3, x.ravel(), 16, columns + 16, y.ravel(), 16, columns + 16, rows, depth, columns, accumulate)
    exact = a[:, 2 : 2 + depth].astype(np.float64) @ x[:, 16:] + accumulate * before[:, 16:]
    assert_close(y[:, 16:], exact, 1e-6)
    assert np.array_equal(y[:, :16], before[:, :16])


# --- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 5, 3_000_001])
def test_tensors_in_large_pages_are_as_others(count):
    tensor = in_large_pages(torch.empty(count)).fill_(3)
    assert tensor.sum() == 3 * count
    zeros = zeros_in_large_pages(torch.nn.Parameter(tensor))
    assert zeros.shape == tensor.shape and not zeros.any() and not zeros.requires_grad
    assert not zeros_in_large_pages(torch.empty(4, 700_000, dtype=torch.float64)[1:]).any()


# --- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 2])
def test_parts_run_at_the_same_time_and_answer_in_order(threads, count):
    threads(count)
    meeting = threading.Barrier(count, timeout=20)

    def part_of_work(part: int, parts: int, word: str) -> tuple[int, int, str]:
        meeting.wait()
        return part, parts, word

    assert run_parallel(part_of_work, "a") == [(part, count, "a") for part in range(count)]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_fails_is_heard_of_and_the_next_run_works(threads, bad):
    threads(2)

    def work(part: int, parts: int) -> int:
        if part == bad:
            raise ValueError(f"part {part}")
        return part

    with pytest.raises(ValueError, match=f"part {bad}"):
        run_parallel(work)
    assert run_parallel(lambda part, parts: part) == [0, 1]


def test_kernels_can_have_the_threads_to_themselves(threads):
    threads(3)
    for wrong in (False, True):
        try:
            with kernels_take_threads(torch.device("cpu")):
                assert torch.get_num_threads() == 1
                assert run_parallel(lambda part, parts: (part, parts)) == [(0, 3), (1, 3), (2, 3)]
                if wrong:
                    raise ValueError
        except ValueError:
            assert wrong
        assert torch.get_num_threads() == 3
        assert runtime.threads == 0
    with kernels_take_threads(torch.device("meta")):
        assert torch.get_num_threads() == 3


def test_kernels_can_be_compiled_by_the_first_rendering():
    warm_up._compile_rendering.cache_clear()
    with torch.no_grad():
        warm_up.warm_up(torch.device("cpu"))


def everything() -> list[Tensor]:
    """Outputs and gradients of every kernel with threads, on inputs that are always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = FieldShape(GridLayout(6, 10, 8, 128), 32)
    n = 500
    x, table, weights = (
        v.requires_grad_()
        for v in (
            torch.rand(n, 3, generator=generator),
            torch.randn(shape.grid.size, generator=generator),
            torch.randn(shape.size, generator=generator) * 0.2,
        )
    )
    d = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    density, rgb = field(x, d, Network(table, weights, shape))
    offsets = torch.arange(0, n + 1, 5)
    color, opacity, depth, light = composite_packed(density, rgb, torch.full((n,), 0.1), torch.rand(n, generator=generator), offsets)
    (color.sum() + (opacity * depth).sum() + light.square().sum()).backward()
    assert x.grad is not None
    assert table.grad is not None
    assert weights.grad is not None
    gradients = [x.grad, table.grad.clone(), weights.grad]
    p, m, v = (torch.zeros(table.shape) for _ in range(3))
    sparse_adam(p, table.grad, m, v, AdamStep(1, 0.01, (0.9, 0.99), 1e-10))
    occupancy = pack_occupancy((torch.rand(2 * 128**3, generator=generator) < 0.05).float(), 0.5)
    near, far, jitter = torch.zeros(n), torch.full((n,), 9.0), torch.rand(n, generator=generator)
    rays, march = RaySet(d * -2 + 0.5, d, d, near, far, jitter), March(occupancy, 0.01)
    samples = march_rays(rays, march)
    visible = visible_samples(rays, march, Network(table.detach(), weights.detach(), shape), Cutoffs(1e-2, 1e-2))
    assert 0 < len(visible) < len(samples)
    edges, numbers = torch.rand(n, 9, generator=generator).sort().values, torch.rand(n, 30, generator=generator)
    distances = sample_pdf(edges, torch.rand(n, 8, generator=generator), 30, numbers)
    outputs = [density, rgb, color, opacity, depth, light, *gradients, p, m, v, distances]
    for s in (samples, visible):
        outputs += [s.ray_indices, s.t_starts, s.t_ends, s.x, s.offsets]
    return [o.detach() for o in outputs]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_same_input_and_threads_give_the_same_bits(threads, count):
    threads(count)
    first, again = everything(), everything()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    threads(1)
    for k, (value, alone) in enumerate(zip(first, everything(), strict=True)):
        if k in (8, 9):  # the weights' gradients, and what depends on no sum over threads is the same
            assert_close(value, alone)
        else:
            assert torch.equal(value, alone), k


def _composite(pipe: Any) -> None:
    density, rgb = torch.rand(40, generator=torch.Generator().manual_seed(0)), torch.ones(40, 3)
    color, *_ = composite_packed(density, rgb, torch.ones(40), torch.ones(40), torch.arange(0, 41, 4))
    pipe.send((os.getpid(), run_parallel(lambda part, parts: (part, parts)), color.tolist()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kernels_run_after_a_fork(threads):
    threads(2)
    here, there = multiprocessing.Pipe(duplex=False)
    _composite(there)  # the threads exist before the fork; the child has none of them
    expected = here.recv()
    child = multiprocessing.get_context("fork").Process(target=_composite, args=(there,))
    child.start()
    try:
        assert here.poll(60), "the child hangs"
        found = here.recv()
    finally:
        child.kill()
        child.join()
    assert found[0] != expected[0]
    assert found[1:] == expected[1:]
    assert found[1] == [(0, 2), (1, 2)]


# --- Cache ----------------------------------------------------------------------------------------------------------


def test_the_cache_is_named_after_the_text_of_all_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    sources = tmp_path / "cpu"
    sources.mkdir()
    for path in Path(runtime.__file__).parent.glob("*.py"):
        (sources / path.name).write_bytes(path.read_bytes())
    original = runtime._cache_folder()
    assert Path(original).parent == tmp_path / "cache"
    assert Path(original).is_dir()
    monkeypatch.setattr(runtime, "__file__", str(sources / "runtime.py"))
    assert runtime._cache_folder() == original
    with (sources / "vectors.py").open("a") as file:
        file.write("\n")
    changed = runtime._cache_folder()
    assert changed != original
    assert Path(changed).is_dir()


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("NERFIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(runtime._cache_folder()).parent == tmp_path / "nerfit"
    (tmp_path / "file").touch()
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "file" / "folder"))
    elsewhere = Path(runtime._cache_folder())
    assert elsewhere.is_dir()
    elsewhere.rmdir()
