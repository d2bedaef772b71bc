"""The march through occupancy grids against a plain walk that looks at every lattice point, and what of it can be seen."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.kernels.cpu import rendering, runtime
from nerfit.kernels.field import field_density
from nerfit.kernels.layouts import (
    BLOCKS,
    FARTHEST,
    RESOLUTION,
    Cutoffs,
    FieldShape,
    GridLayout,
    March,
    Network,
    Occupancy,
    RaySet,
    Samples,
    occupied_box,
)
from nerfit.kernels.marching import keep_visible, march_rays, march_rays_reference, pack_occupancy, visible_samples

CASCADES = pytest.mark.parametrize("cascades", [1, 3])
FILLS = pytest.mark.parametrize("fill", ["empty", "full", "random", "lumps"])
CONES = pytest.mark.parametrize("cone_angle", [0.0, 1 / 100])
STEP = 0.011
"""No whole part of a cell: which cascade a sample belongs to is never a matter of rounding."""


# --- Occupancy ------------------------------------------------------------------------------------------------------


def grid_of(cascades: int, fill: str) -> Tensor:
    """Values in [0, 1), those above 0.5 occupied: none, all, 5 % at random, or few lumps in empty space."""
    generator = torch.Generator().manual_seed(cascades)
    shape = (cascades, RESOLUTION, RESOLUTION, RESOLUTION)
    if fill in ("empty", "full"):
        return torch.full(shape, 0.25 + 0.5 * (fill == "full"))
    if fill == "random":
        return torch.rand(shape, generator=generator) * (0.5 / 0.95)
    grid = torch.full(shape, 0.5)
    for cascade in range(cascades):
        for _ in range(30):
            z, y, x = torch.randint(0, RESOLUTION - 15, (3,), generator=generator).tolist()
            grid[cascade, z : z + 15, y : y + 11, x : x + 13] = 0.75
    return grid


@pytest.fixture(scope="module")
def occupancies() -> Callable[[int, str], tuple[np.ndarray, Occupancy]]:
    """Which cells are occupied ([cascade, z, y, x]), and that packed; each made once."""
    made: dict[tuple[int, str], tuple[np.ndarray, Occupancy]] = {}

    def get(cascades: int, fill: str) -> tuple[np.ndarray, Occupancy]:
        if (cascades, fill) not in made:
            grid = grid_of(cascades, fill)
            made[cascades, fill] = (grid > 0.5).numpy(), pack_occupancy(grid.flatten(), 0.5)
        return made[cascades, fill]

    return get


@CASCADES
@FILLS
def test_packing_follows_its_definition_and_its_reference(monkeypatch, occupancies, cascades, fill):
    occupied, found = occupancies(cascades, fill)
    assert found.cascades == cascades
    assert np.array_equal(np.unpackbits(found.bits.numpy(), bitorder="little"), occupied.flatten())
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    reference = pack_occupancy(grid_of(cascades, fill).flatten(), 0.5)
    for name in ("bits", "distance", "box"):
        value, expected = getattr(found, name), getattr(reference, name)
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), name
    matter = occupied.reshape(cascades, BLOCKS, 2, BLOCKS, 2, BLOCKS, 2).any((2, 4, 6))
    distance = found.distance.reshape(matter.shape).numpy()
    assert np.array_equal(distance == 0, matter)
    if fill == "empty":
        assert (distance == FARTHEST).all()


@pytest.mark.parametrize("backend", ["", "reference"])
def test_distances_are_chebyshev_distances(monkeypatch, backend):
    monkeypatch.setenv("NERFIT_KERNELS", backend)
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, RESOLUTION, (count, 3)) for count in (1, 5)] + [np.array([[0, 0, 0], [127, 127, 127]])]
    grid = torch.zeros(3, RESOLUTION, RESOLUTION, RESOLUTION)
    for cascade, points in enumerate(cells):
        for x, y, z in points:
            grid[cascade, z, y, x] = 1
    found = pack_occupancy(grid.flatten(), 0.5)
    blocks = np.stack(np.meshgrid(*[np.arange(BLOCKS)] * 3, indexing="ij"), -1)[..., ::-1]  # [z, y, x] of (x, y, z)
    for cascade, points in enumerate(cells):
        expected = np.min([np.abs(blocks - p // 2).max(-1) for p in points], axis=0).clip(max=FARTHEST)
        assert np.array_equal(found.distance.reshape(3, BLOCKS, BLOCKS, BLOCKS)[cascade].numpy(), expected)


def test_a_cell_at_the_threshold_is_empty():
    grid = torch.zeros(RESOLUTION**3)
    grid[:3] = torch.tensor([0.5, math.nextafter(0.5, 0), 0.5000001])
    assert pack_occupancy(grid, 0.5).bits[0] == 4


def test_the_box_holds_all_matter_and_no_more():
    distance = torch.full((2, BLOCKS, BLOCKS, BLOCKS), 15, dtype=torch.uint8)
    assert occupied_box(distance.flatten()).tolist() == [[0.5] * 3] * 2
    distance[0, 3, 20, 40] = distance[0, 5, 21, 63] = 0  # z, y, x
    assert occupied_box(distance.flatten()).tolist() == [[40 / 64, 20 / 64, 3 / 64], [1, 22 / 64, 6 / 64]]
    distance[1, 32, 0, 30] = 0  # cascade 1 is [-0.5, 1.5]³, of blocks twice as large
    assert occupied_box(distance.flatten()).tolist() == [[-0.5 + 30 / 32, -0.5, 3 / 64], [1, 22 / 64, -0.5 + 33 / 32]]


# --- March ----------------------------------------------------------------------------------------------------------


def rays_of(n: int, cascades: int) -> RaySet:
    """Rays from inside and outside, with directions of any length; of every 8, one is axis-parallel and three lie in a plane,
    one begins after it ends, one misses."""
    generator = torch.Generator().manual_seed(n + cascades)
    side = 2.0 ** (cascades - 1)
    origins = 0.5 + side * (torch.rand(n, 3, generator=generator) - 0.5) * 3
    aims = 0.5 + side * (torch.rand(n, 3, generator=generator) - 0.5)
    aims[::5] = 0.5 + (aims[::5] - 0.5) / side  # at the finest cascade
    origins[1::4] = aims[1::4].flip(0)
    directions = (aims - origins) * torch.rand(n, 1, generator=generator).add(0.2)
    origins[2::8], directions[2::8] = aims[2::8] - torch.tensor([0, 3 * side, 0]), torch.tensor([0, 0.7, -0.0])
    origins[3::8, 0], directions[3::8, 0] = aims[3::8, 0], 0.0
    origins[4::8, 2], directions[4::8, 2] = aims[4::8, 2], -0.0
    origins[5::8, 1], directions[5::8, 1] = aims[5::8, 1], 1e-13
    near, far = torch.rand(n, generator=generator) * 0.1, torch.full((n,), 40.0)
    far[6::8] = 0.5 * near[6::8]
    far[1::8] = torch.rand(len(far[1::8]), generator=generator)
    directions[7::8] = origins[7::8] - 0.5
    return RaySet(origins, directions, directions, near, far, torch.rand(n, generator=generator))


def walk(rays: RaySet, i: int, occupied: np.ndarray, box: np.ndarray, step: float, cone_angle: float) -> tuple[np.ndarray, ...]:
    """Ray i's whole lattice in float64: begins, lengths, middles, whether each is occupied, and how far (in cells, steps or percent)
    anything is from turning out otherwise."""
    o, d = rays.origins[i].double().numpy(), rays.directions[i].double().numpy()
    first, last, jitter = (float(v[i]) for v in (rays.near, rays.far, rays.jitter))
    for axis in range(3):
        if abs(d[axis]) > 1e-12:
            ends = sorted((box[k, axis] - o[axis]) / d[axis] for k in (0, 1))
            first, last = max(first, ends[0]), min(last, ends[1])
        elif not box[0, axis] <= o[axis] <= box[1, axis]:
            last = -math.inf
    cascades, norm = len(occupied), math.sqrt(float(d @ d))
    longest = max(2 ** (cascades - 1) / RESOLUTION, step) / norm
    t, begins, lengths = first + jitter * max(step / norm, first * cone_angle), [], []
    while t < last:
        begins.append(t)
        lengths.append(min(max(t * cone_angle, step / norm), longest))
        t += lengths[-1]
    begins, lengths = np.array(begins), np.array(lengths)
    middles = o + (begins + 0.5 * lengths)[:, None] * d
    reach = np.abs(middles - 0.5).max(-1, initial=0)
    level, doubt = np.full(len(begins), cascades - 1), np.abs(last - begins) / np.maximum(lengths, 1e-30)
    for k in reversed(range(cascades - 1)):
        level[(reach < 0.5 * 2**k) & (lengths * norm * RESOLUTION <= 2**k)] = k
        doubt = np.minimum(doubt, np.abs(reach / 2**k - 0.5) * RESOLUTION)
        doubt = np.minimum(doubt, np.abs(lengths * norm * RESOLUTION / 2**k - 1) * 100)
    place = ((middles - 0.5) / 2.0 ** level[:, None] + 0.5) * RESOLUTION
    doubt = np.minimum(doubt, np.abs(place - np.rint(place)).min(-1, initial=1))
    x, y, z = np.clip(np.floor(place).astype(int), 0, RESOLUTION - 1).T
    return begins, lengths, middles, occupied[level, z, y, x], doubt


def check_march(samples: Samples, rays: RaySet, occupied: np.ndarray, box: np.ndarray, step: float, cone_angle: float) -> int:
    """Every sample lies on its ray's lattice, in an occupied cell, in order; and none is missing. Returns how many were certain."""
    n, certain = len(rays), 0
    offsets = samples.offsets.numpy()
    assert offsets.shape == (n + 1,)
    assert offsets[0] == 0
    assert offsets[-1] == len(samples)
    assert samples.ray_indices.dtype == torch.int32
    assert np.array_equal(samples.ray_indices.numpy(), np.repeat(np.arange(n), np.diff(offsets)))
    assert samples.x.shape == (len(samples), 3)
    for i in range(n):
        begins, lengths, middles, hit, doubt = walk(rays, i, occupied, box, step, cone_angle)
        mine = slice(offsets[i], offsets[i + 1])
        t0, t1, x = (v[mine].double().numpy() for v in (samples.t_starts, samples.t_ends, samples.x))
        at = np.array([np.abs(begins - t).argmin() for t in t0], int) if len(begins) else np.zeros(len(t0), int)
        assert len(begins) or not len(t0)
        assert (np.diff(at) > 0).all(), "samples follow one another"
        if len(at):
            assert (np.abs(t0 - begins[at]) < 0.01 * lengths[at]).all(), "samples lie on the lattice"
            assert (np.abs(t1 - t0 - lengths[at]) < 1e-3 * lengths[at]).all()
            for middle, place in zip(middles[at], x, strict=True):
                assert np.abs(contracted(middle, len(occupied)) - place).max() < 5e-5
        sure = doubt > 0.01  # float32 drifts along hundreds of steps
        seen = np.zeros(len(begins), bool)
        seen[at] = True
        assert not (seen & ~hit & sure).any(), "samples lie in occupied cells"
        assert not (hit & ~seen & sure).any(), f"ray {i} misses samples at t = {begins[hit & ~seen & sure]}"
        certain += int((hit & sure).sum())
    return certain


def contracted(x: np.ndarray, cascades: int) -> np.ndarray:
    """Cascade coordinates as the field's: mip-NeRF 360's equation 10 in the largest norm, [-2, 2]³ then being the field's cube."""
    if cascades == 1:
        return x
    p = 2 * (x - 0.5)
    reach = np.abs(p).max()
    return (p if reach <= 1 else (2 - 1 / reach) * p / reach) / 4 + 0.5


@CASCADES
@FILLS
@CONES
def test_march_finds_all_that_a_walk_finds(occupancies, cascades, fill, cone_angle):
    occupied, occupancy = occupancies(cascades, fill)
    rays = rays_of(200 if fill == "lumps" else 48, cascades)
    box = occupancy.box.double().numpy()
    found = march_rays(rays, March(occupancy, STEP, cone_angle))
    certain = check_march(found, rays, occupied, box, STEP, cone_angle)
    assert (certain > 100) == (fill != "empty")
    assert len(found) < 1.2 * certain + 1
    check_march(march_rays_reference(rays.each(Tensor.double), March(occupancy, STEP, cone_angle)), rays, occupied, box, STEP, cone_angle)


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@CASCADES
@CONES
def test_march_matches_its_float64_reference(occupancies, cascades, cone_angle, n):
    _, occupancy = occupancies(cascades, "lumps")
    rays = rays_of(n, cascades)
    found = march_rays(rays, March(occupancy, STEP, cone_angle))
    reference = march_rays_reference(rays.each(Tensor.double), March(occupancy, STEP, cone_angle))
    same = found.offsets.diff() == reference.offsets.diff()
    assert (~same).sum() <= 0.03 * n, "a sample on a cell's wall may be rounded to either side"
    mine, theirs = same[found.ray_indices.long()], same[reference.ray_indices.long()]
    assert torch.equal(found.ray_indices[mine], reference.ray_indices[theirs])
    for name in ("t_starts", "t_ends", "x"):
        assert_close(getattr(found, name)[mine], getattr(reference, name)[theirs], 1e-4 if mine.any() else 1)


@CONES
@pytest.mark.parametrize("limit", [1, 5])
def test_limits_keep_the_first_samples(occupancies, limit, cone_angle):
    _, occupancy = occupancies(3, "random")
    rays = rays_of(48, 3)
    whole, found = march_rays(rays, March(occupancy, STEP, cone_angle)), march_rays(rays, March(occupancy, STEP, cone_angle), limit)
    first = torch.cat([torch.arange(begin, min(begin + limit, end)) for begin, end in itertools.pairwise(whole.offsets.tolist())])
    assert torch.equal(found.offsets.diff(), whole.offsets.diff().clamp(max=limit))
    for name in ("ray_indices", "t_starts", "t_ends", "x"):
        assert torch.equal(getattr(found, name), getattr(whole, name)[first])
    reference = march_rays_reference(rays.each(Tensor.double), March(occupancy, STEP, cone_angle), limit)
    assert reference.offsets.diff().max() == limit
    assert (reference.offsets.diff() == found.offsets.diff()).float().mean() > 0.95


def test_marches_take_views(occupancies):
    _, occupancy = occupancies(1, "random")
    rays = rays_of(24, 1)
    whole = march_rays(rays, March(occupancy, STEP))
    even = march_rays(rays[::2], March(occupancy, STEP))
    assert len(even)
    assert torch.equal(even.t_starts, whole.t_starts[whole.ray_indices % 2 == 0])


def test_axis_parallel_rays_leap_as_others_do(occupancies):
    """2000 rays of 10⁵ steps cross an empty grid in no time."""
    empty = occupancies(1, "empty")[1]
    occupancy = Occupancy(empty.bits, empty.distance, torch.tensor([[0.0] * 3, [1.0] * 3]))
    for axis in range(3):
        directions = torch.zeros(2000, 3)
        directions[:, axis] = 1.0
        origins = torch.rand(2000, 3) * 0.8 + 0.1
        origins[:, axis] = -0.5
        rays = RaySet(origins, directions, directions, torch.zeros(2000), torch.full((2000,), 9.0), torch.rand(2000))
        start = perf_counter()
        assert not len(march_rays(rays, March(occupancy, 1e-5), limit=1))
        assert perf_counter() - start < 0.5


# --- Visible samples ------------------------------------------------------------------------------------------------

SHAPE = FieldShape(GridLayout(4, 12, 4, 64), 32)


def matter(strength: float) -> Network:
    """A field with densities around ``strength``, varied."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(SHAPE.grid.size, generator=generator)
    weights = torch.randn(SHAPE.size, generator=generator) * 0.2
    hidden, to_geo_features, *_ = SHAPE.split(weights)
    table[0::4] = 1.0  # a constant feature: the bias that the networks lack
    hidden[0, : 4 * SHAPE.grid.levels : 4], hidden[0, 1:4] = 1.0 / SHAPE.grid.levels, 0.0
    for channel in range(4 * SHAPE.grid.levels):
        if channel % 4:
            hidden[0, channel] = 0.0
    to_geo_features[0, 0] = math.log(strength)
    return Network(table, weights, SHAPE)


def visible_twin(samples: Samples, density: np.ndarray, norm: np.ndarray, cutoffs: Cutoffs) -> tuple[list[bool], list[float]]:
    """Which samples are kept, one after another, and how far (relatively) each is from the opposite."""
    keep, doubt = [], []
    for i, (begin, end) in enumerate(itertools.pairwise(samples.offsets.tolist())):
        light = 1.0
        for s in range(begin, end):
            left = light * math.exp(-density[s] * float(samples.t_ends[s] - samples.t_starts[s]) * norm[i])
            weight = light - left
            keep.append(weight >= cutoffs.min_weight and light >= cutoffs.early_stop)
            doubt.append(min(abs(weight / cutoffs.min_weight - 1), abs(light / cutoffs.early_stop - 1)))
            light = left
    return keep, doubt


@CASCADES
@CONES
@pytest.mark.parametrize("strength", [0.5, 20.0, 2000.0])
def test_visible_samples_follow_their_twin(monkeypatch, occupancies, strength, cascades, cone_angle):
    _, occupancy = occupancies(cascades, "full" if cascades == 1 else "random")
    rays = rays_of(200, cascades)
    network, march, cutoffs = matter(strength), March(occupancy, STEP, cone_angle), Cutoffs(1e-3, 1e-2)
    exact = replace(network, table=network.table.double(), weights=network.weights.double())
    norm = rays.directions.norm(dim=-1)
    everything = march_rays(rays, march)
    density = field_density(everything.x, network)
    true = field_density(everything.x.double(), exact).numpy()
    keep, doubt = (np.array(v) for v in visible_twin(everything, true, norm.double().numpy(), cutoffs))
    if strength == 20:
        assert 0.1 < keep.mean() < 0.95
    kept = keep_visible(everything, density, norm, cutoffs)
    assert kept.evaluated == len(everything)
    found = visible_samples(rays, march, network, cutoffs)
    assert len(found) <= found.evaluated <= len(everything)
    if strength == 2000 and cascades == 1:
        assert found.evaluated < 0.9 * len(everything), "what lies in the dark is not looked at"
    place = {(int(i), float(t)): s for s, (i, t) in enumerate(zip(everything.ray_indices, everything.t_starts, strict=True))}
    for samples in (found, kept):
        at = np.array([place[int(i), float(t)] for i, t in zip(samples.ray_indices, samples.t_starts, strict=True)])
        assert (np.diff(at) > 0).all(), "by ray, front to back"
        for name in ("t_ends", "x"):
            assert torch.equal(getattr(samples, name), getattr(everything, name)[at])
        assert torch.equal(samples.offsets[1:], torch.bincount(samples.ray_indices, minlength=200).cumsum(0))
        seen = np.zeros(len(everything), bool)
        seen[at] = True
        assert not ((seen != keep) & (doubt > 1e-3)).any()
    monkeypatch.setattr(runtime, "threads", 1)  # all samples in one row of slots: they outgrow it
    monkeypatch.setattr(rendering, "_room", 16)
    again = visible_samples(rays, march, network, cutoffs)
    assert rendering._room > 16
    assert torch.equal(again.t_starts, found.t_starts)
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    reference = visible_samples(rays.each(Tensor.double), march, exact, cutoffs)
    assert abs(len(reference) - len(found)) <= 0.01 * len(found) + 1


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@FILLS
def test_thin_matter_is_kept_whole(occupancies, fill, n):
    """With no least weight, what is seen is all that is marched: also where rays wait for a place among those followed."""
    _, occupancy = occupancies(1, fill)
    rays = rays_of(n, 1)
    found = visible_samples(rays, March(occupancy, STEP), matter(1e-3), Cutoffs(0.0, 0.0))
    everything = march_rays(rays, March(occupancy, STEP))
    for name in ("ray_indices", "t_starts", "t_ends", "x", "offsets"):
        assert torch.equal(getattr(found, name), getattr(everything, name)), name
    assert found.evaluated == len(everything)
