"""Where rays are sampled and which pixels are trained on: twins in plain Python, statistics, and what must never repeat."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close, rotation
from nerfit.cameras import Cameras
from nerfit.methods.batch import Batch
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.pixel_batches import PixelSource, pixel_batch
from nerfit.sampling.along_rays import stratified
from nerfit.sampling.shuffle import epoch_indices, mix, permute
from nerfit.scenes.scene import Scene

SEEDS = st.integers(0, 2**32 - 1)
KEYS = st.integers(0, 2**63 - 1)
SMALL = st.integers(1, 9)
BATCHINGS = pytest.mark.parametrize("batching", ["image", "all"])


# --- Along rays -----------------------------------------------------------------------------------------------------


def spans(seed: int, rays: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0.5, 3, rays)
    return torch.tensor(near, dtype=torch.float32), torch.tensor(near + rng.uniform(0.1, 5, rays), dtype=torch.float32)


def even_twin(near: float, far: float, samples: int, lindisp: bool) -> list[float]:
    """Even spacing in depth or in inverse depth, sample by sample."""
    steps = [i / (samples - 1) if samples > 1 else 0.0 for i in range(samples)]
    return [1 / ((1 - s) / near + s / far) if lindisp else near * (1 - s) + far * s for s in steps]


def jittered_twin(t: list[float], uniform: list[float]) -> list[float]:
    """Each sample anywhere between the mid-points to its neighbours, the outermost up to their own places."""
    out = []
    for i, u in enumerate(uniform):
        low = (t[i - 1] + t[i]) / 2 if i > 0 else t[i]
        high = (t[i] + t[i + 1]) / 2 if i + 1 < len(t) else t[i]
        out.append(low + u * (high - low))
    return out


@pytest.mark.parametrize("lindisp", [False, True])
@given(seed=SEEDS, rays=SMALL, samples=SMALL)
def test_stratified_follows_its_twin(lindisp, seed, rays, samples):
    near, far = spans(seed, rays)
    uniform = torch.rand(rays, samples, generator=torch.Generator().manual_seed(seed))
    even = [even_twin(a, b, samples, lindisp) for a, b in zip(near.tolist(), far.tolist(), strict=True)]
    assert_close(stratified(near, far, samples, None, lindisp), even)
    jittered = [jittered_twin(t, u) for t, u in zip(even, uniform.tolist(), strict=True)]
    assert_close(stratified(near, far, samples, uniform, lindisp), jittered)


@pytest.mark.parametrize("lindisp", [False, True])
@given(seed=SEEDS, samples=st.integers(2, 33))
def test_jittered_samples_stay_sorted_between_near_and_far(lindisp, seed, samples):
    near, far = spans(seed, 5)
    uniform = torch.rand(5, samples, generator=torch.Generator().manual_seed(seed))
    t = stratified(near, far, samples, uniform, lindisp)
    assert (t.diff(dim=-1) >= 0).all()
    assert (t >= near[:, None] * (1 - 1e-6)).all()
    assert (t <= far[:, None] * (1 + 1e-6)).all()


def test_inverse_depth_sampling_is_even_in_inverse_depth():
    t = stratified(torch.tensor([0.5]), torch.tensor([8.0]), 16, lindisp=True)
    assert_close((1 / t).diff(dim=-1), np.full((1, 15), (1 / 8 - 1 / 0.5) / 15))


# --- Shuffles -------------------------------------------------------------------------------------------------------


@given(size=st.one_of(st.integers(1, 70), st.integers(1, 5000)), key=KEYS)
def test_permute_is_a_bijection(size, key):
    assert permute(torch.arange(size), size, key).sort().values.equal(torch.arange(size))


@given(size=st.integers(1, 300), key=KEYS, seed=SEEDS)
def test_permute_sends_an_index_to_the_same_place_in_any_company(size, key, seed):
    some = torch.from_numpy(np.random.default_rng(seed).integers(0, size, 20))
    assert permute(some, size, key).equal(permute(torch.arange(size), size, key)[some])


def test_permute_leaves_its_argument_alone():
    index = torch.arange(50)
    permute(index, 50, 3)
    assert index.equal(torch.arange(50))


def test_every_key_permutes_differently_and_without_favourites():
    """Over many keys an index goes everywhere equally often: χ² with 9 degrees of freedom below 40 (p = 1e-5)."""
    places = torch.stack([permute(torch.arange(10), 10, key) for key in range(1500)])
    assert len({tuple(p) for p in places.tolist()}) > 1450
    for index in range(10):
        counts = torch.bincount(places[:, index], minlength=10)
        assert float(((counts - 150) ** 2 / 150).sum()) < 40


def test_shuffled_neighbours_are_strangers():
    place = permute(torch.arange(10_000), 10_000, 5).double()
    for lag in (1, 2, 100, 128):
        assert abs(float(torch.corrcoef(torch.stack([place[lag:], place[:-lag]]))[0, 1])) < 0.05
    assert int((place == torch.arange(10_000)).sum()) < 10


@given(size=st.integers(1, 60), count=st.integers(1, 25), seed=KEYS)
def test_each_epoch_visits_every_index_once(size, count, seed):
    steps = -(-3 * size // count)
    walk = torch.cat([epoch_indices(step, count, size, seed) for step in range(steps)])
    for epoch in range(3):
        assert walk[epoch * size : (epoch + 1) * size].sort().values.equal(torch.arange(size))


@given(size=st.integers(1, 60), count=st.integers(1, 20), seed=KEYS, step=st.integers(0, 8))
def test_any_step_of_the_walk_can_be_reached_at_once(size, count, seed, step):
    everything = epoch_indices(0, 9 * count, size, seed)
    assert epoch_indices(step, count, size, seed).equal(everything[step * count : (step + 1) * count])


def test_epochs_and_seeds_are_shuffled_differently():
    walks = [epoch_indices(step, 500, 500, seed).tolist() for step, seed in itertools.product(range(3), range(3))]
    assert len({tuple(walk) for walk in walks}) == 9


def test_walks_through_millions_of_pixels_reach_far_steps():
    """100 views of 800x800 at step 10 million: positions beyond 2^33."""
    size = 64_000_000
    indices = epoch_indices(10_000_000, 1024, size, 7)
    assert len(indices.unique()) == 1024
    assert int(indices.min()) >= 0
    assert size // 2 < int(indices.max()) < size


def test_mix_spreads():
    """Distinct, order-sensitive, 63 bits wide, and every bit set about half the time (six standard deviations)."""
    words = [*itertools.product(range(40), range(40)), *((k,) for k in range(2000)), (0, 0, 0), (2**64 - 1,), (2**63, 1)]
    numbers = [mix(*w) for w in words]
    assert len(set(numbers)) == len(words)
    assert all(0 <= n < 2**63 for n in numbers)
    for bit in range(63):
        ones = sum(n >> bit & 1 for n in numbers)
        assert abs(ones - len(numbers) / 2) < 3 * len(numbers) ** 0.5
    flips = [(mix(5, k) ^ mix(5, k ^ 1)).bit_count() for k in range(500)]
    assert abs(np.mean(flips) - 31.5) < 2
    assert mix(1, 2) != mix(2, 1)


# --- Batches of pixels ----------------------------------------------------------------------------------------------

SIZES = [(7, 5), (4, 9), (6, 6), (1, 3)]


def pixel_scene(sizes: list[tuple[int, int]] = SIZES, background: Any = "white", train: list[int] | None = None) -> Scene:
    """Views of their own sizes in random poses, with random colours and alpha."""
    rng = np.random.default_rng(1)
    c2w = np.stack([np.concatenate([rotation(rng), rng.normal(size=(3, 1))], 1) for _ in sizes])
    width, height = torch.tensor(sizes).T
    f = torch.tensor(rng.uniform(5, 9, len(sizes)), dtype=torch.float32)
    cameras = Cameras(torch.tensor(c2w, dtype=torch.float32), f, f + 1, width / 2, height / 2, width, height)
    pixels = torch.from_numpy(rng.integers(0, 256, (sum(w * h for w, h in sizes), 4), dtype=np.uint8))
    splits = {"train": list(range(len(sizes))) if train is None else train, "test": [0]}
    return Scene("noise", "test", cameras, 2.0, 6.0, splits, pixels, background=background)


def batch_of(scene: Scene, count: int, batching: str, step: int = 0, seed: int = 0, crop: float = 1.0) -> Batch:
    """The batch that a training of that seed sees at that step."""
    generator = torch.Generator().manual_seed(mix(seed, step + 1))
    return pixel_batch(PixelSource(scene, step, generator, torch.device("cpu"), seed), count, batching, crop)


def pixels_of(scene: Scene, batch: Batch) -> list[tuple[int, int, int]]:
    """View, column and row of each ray, found by projecting its direction into its camera."""
    rays, cameras = batch.rays, scene.cameras
    assert rays is not None
    views = rays.image_index
    d = torch.einsum("rji,rj->ri", cameras.c2w[views, :, :3], rays.directions)
    x = d[:, 0] / -d[:, 2] * cameras.fx[views] + cameras.cx[views] - 0.5
    y = d[:, 1] / d[:, 2] * cameras.fy[views] + cameras.cy[views] - 0.5
    assert all(((a - a.round()).abs() < 1e-4).all() for a in (x, y))
    return list(zip(views.tolist(), x.round().long().tolist(), y.round().long().tolist(), strict=True))


def test_image_batches_draw_from_one_view_without_replacement():
    scene = pixel_scene()
    seen = Counter()
    for step in range(60):
        pixels = pixels_of(scene, batch_of(scene, 20, "image", step))
        view = pixels[0][0]
        assert {v for v, _, _ in pixels} == {view}
        assert len(set(pixels)) == len(pixels) == min(20, SIZES[view][0] * SIZES[view][1])
        seen.update(pixels)
    assert set(seen) == {(v, x, y) for v, (w, h) in enumerate(SIZES) for x in range(w) for y in range(h)}


def test_batches_of_all_views_visit_every_training_pixel_once_an_epoch():
    scene = pixel_scene(train=[0, 2, 3])
    everything = {(v, x, y) for v in (0, 2, 3) for x in range(SIZES[v][0]) for y in range(SIZES[v][1])}
    steps = 2 * len(everything) // 2
    walk = [p for step in range(steps) for p in pixels_of(scene, batch_of(scene, 2, "all", step))]
    for epoch in range(2):
        part = walk[epoch * len(everything) : (epoch + 1) * len(everything)]
        assert set(part) == everything
    assert walk[: len(everything)] != walk[len(everything) :]


@BATCHINGS
def test_only_training_views_are_drawn(batching):
    scene = pixel_scene(train=[3, 1])
    views = {v for step in range(30) for v, _, _ in pixels_of(scene, batch_of(scene, 5, batching, step))}
    assert views == {1, 3}


@BATCHINGS
@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_targets_are_the_pictures_pixels_over_the_background(batching, background):
    scene = pixel_scene(background=background)
    for step in range(8):
        batch = batch_of(scene, 16, batching, step)
        assert batch.target is not None
        behind = np.broadcast_to(np.asarray(batch.background), batch.target.shape)
        for i, (view, x, y) in enumerate(pixels_of(scene, batch)):
            r, g, b, alpha = (scene.image(view, None)[y, x]).tolist()
            twin = [c * alpha + k * (1 - alpha) for c, k in zip((r, g, b), behind[i].tolist(), strict=True)]
            assert_close(batch.target[i], twin)


@BATCHINGS
def test_backgrounds_are_what_the_scene_asks_for(batching):
    for background, colour in (("white", [1.0] * 3), ("black", [0.0] * 3), ((0.25, 0.5, 0.75), [0.25, 0.5, 0.75])):
        given = batch_of(pixel_scene(background=background), 9, batching).background
        assert isinstance(given, Tensor) and given.tolist() == colour
    noise = batch_of(pixel_scene(SIZES[:1], "random"), 30, batching).background
    assert isinstance(noise, Tensor)
    assert noise.shape == (30, 3)
    assert len(noise.unique()) == 90
    assert 0 <= float(noise.min()) < 0.2 < 0.8 < float(noise.max()) <= 1


@BATCHINGS
def test_a_step_of_a_seed_has_its_own_batch(batching):
    scene = pixel_scene(background="random")

    def drawn(step: int, seed: int) -> tuple[Any, ...]:
        batch = batch_of(scene, 12, batching, step, seed)
        assert batch.target is not None
        return tuple(pixels_of(scene, batch)), tuple(batch.target.flatten().tolist())

    assert drawn(5, 3) == drawn(5, 3)
    assert len({drawn(step, seed)[0] for step in range(4) for seed in range(4)}) == 16


def centre(width: int, height: int, crop: float) -> set[tuple[int, int]]:
    """Columns W/2 ± W/2·crop and rows H/2 ± H/2·crop, at least one of each."""
    columns = [x for x in range(width) if -max(1, int(width * crop / 2)) <= x - width // 2 < max(1, int(width * crop / 2))]
    rows = [y for y in range(height) if -max(1, int(height * crop / 2)) <= y - height // 2 < max(1, int(height * crop / 2))]
    return {(x, y) for x in columns for y in rows}


@BATCHINGS
@pytest.mark.parametrize("crop", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (9, 2), (3, 3), (1, 6), (6, 1), (1, 1)])
def test_the_crop_keeps_to_the_centre_and_misses_none_of_it(batching, crop, size):
    scene = pixel_scene([size, size[::-1]])
    seen = {p for step in range(20) for p in pixels_of(scene, batch_of(scene, 60, batching, step, crop=crop))}
    assert seen == {(v, x, y) for v, (w, h) in enumerate((size, size[::-1])) for x, y in centre(w, h, crop)}


@BATCHINGS
def test_training_leaves_the_centre_after_the_precrop(batching):
    """The published defect: a crop that never ended."""
    scene = pixel_scene([(8, 8)] * 3)
    tiny = NerfConfig(depth=1, width=4, skips=[], rays=16, batching=batching, precrop_steps=10, precrop_fraction=0.5)
    method, middle = Nerf(tiny, scene), centre(8, 8, 0.5)

    def outside(step: int) -> int:
        batch = method.next_batch(scene, step, torch.Generator().manual_seed(mix(0, step)))
        return sum((x, y) not in middle for _, x, y in pixels_of(scene, batch))

    assert len(middle) == 16
    assert [outside(step) for step in range(10)] == [0] * 10
    assert min(outside(step) for step in range(10, 20)) > 4
