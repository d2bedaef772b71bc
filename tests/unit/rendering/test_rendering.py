"""Samples to pictures: the quadrature against float64 loops, empty and solid rays, and what must not change a picture."""

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close, rotation
from nerfit.cameras import Cameras, Rays
from nerfit.methods import nerf
from nerfit.methods.batch import Batch
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.rendering.volume import Rendering, composite_samples, intervals, render_weights
from nerfit.scenes.scene import Scene

SEEDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(1, 9)


# --- Quadrature -----------------------------------------------------------------------------------------------------


def intervals_twin(t: list[float], norm: float, far: float = math.inf) -> list[float]:
    """The last interval ends at ``far``, or, where that is infinite, after 1e10; none is negative."""
    last = max(far - t[-1], 0) if far < math.inf else 1e10
    return [((t[i + 1] - t[i]) if i + 1 < len(t) else last) * norm for i in range(len(t))]


def weights_twin(density: list[float], delta: list[float]) -> list[float]:
    """alpha times the product of (1 - alpha) of the samples before."""
    through, out = 1.0, []
    for sigma, length in zip(density, delta, strict=True):
        alpha = -math.expm1(-sigma * length)
        out.append(through * alpha)
        through *= 1 - alpha
    return out


def composite_twin(weights: list[float], rgb: list[list[float]], t: list[float], behind: list[float]) -> dict[str, Any]:
    opacity = math.fsum(weights)
    depth = math.fsum(w * z for w, z in zip(weights, t, strict=True))
    color = [math.fsum(w * c[k] for w, c in zip(weights, rgb, strict=True)) + (1 - opacity) * behind[k] for k in range(3)]
    return {"rgb": color, "depth": depth, "opacity": opacity, "disparity": 1 / max(1e-10, depth / opacity) if opacity else 0.0}


def some_samples(seed: int, rays: int, samples: int, empty: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Density, of which a share is zero, colour, distances and direction lengths."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.01, 30, (rays, samples)) * (rng.uniform(size=(rays, samples)) > empty)
    t = 2 + np.cumsum(rng.uniform(0.01, 0.5, (rays, samples)), -1)
    arrays = density, rng.uniform(0, 1, (rays, samples, 3)), t, rng.uniform(0.5, 2, rays)
    density, rgb, t, norm = (torch.tensor(a, dtype=torch.float32) for a in arrays)
    return density, rgb, t, norm


@given(seed=SEEDS, rays=SMALL, samples=SMALL)
def test_intervals_are_world_lengths_up_to_far_or_for_ever(seed, rays, samples):
    _, _, t, norm = some_samples(seed, rays, samples)
    delta = intervals(t, norm)
    twin = [intervals_twin(a, n) for a, n in zip(t.tolist(), norm.tolist(), strict=True)]
    assert_close(delta, twin)
    assert_close(delta[:, :-1], np.array(twin)[:, :-1])
    far = t[:, -1] + torch.linspace(-0.5, 2, rays)
    twin = [intervals_twin(a, n, f) for a, n, f in zip(t.tolist(), norm.tolist(), far.tolist(), strict=True)]
    assert_close(intervals(t, norm, far), twin)


@given(seed=SEEDS, rays=SMALL, samples=SMALL, endless=st.booleans())
def test_compositing_follows_its_twin(seed, rays, samples, endless):
    density, rgb, t, norm = some_samples(seed, rays, samples)
    delta = intervals(t, norm, None if endless else t[:, -1] + 0.1)
    weights = render_weights(density, delta)
    twin = [weights_twin(a, b) for a, b in zip(density.tolist(), delta.tolist(), strict=True)]
    assert_close(weights, twin)
    background = torch.rand(rays, 3, generator=torch.Generator().manual_seed(seed))
    rendering = composite_samples(weights, rgb, t, background)
    for r in range(rays):
        for name, value in composite_twin(twin[r], rgb[r].tolist(), t[r].tolist(), background[r].tolist()).items():
            assert_close(getattr(rendering, name)[r], value)
    assert rendering.weights is weights


@given(seed=SEEDS, rays=SMALL, samples=SMALL)
def test_weights_are_shares_of_the_light(seed, rays, samples):
    density, _, t, norm = some_samples(seed, rays, samples)
    weights = render_weights(density, intervals(t, norm))
    assert (weights >= 0).all()
    assert (weights.sum(-1) <= 1 + 1e-6).all()
    assert_close(weights.sum(-1)[density[:, -1] > 0], np.ones(int((density[:, -1] > 0).sum())))
    assert (weights[density == 0] == 0).all()


def test_splitting_a_sample_of_constant_density_changes_nothing():
    """The quadrature is exact for piecewise-constant density."""
    one = render_weights(torch.tensor([[0.7, 2.0]]), torch.tensor([[0.5, 1.0]]))
    two = render_weights(torch.tensor([[0.7, 0.7, 2.0]]), torch.tensor([[0.2, 0.3, 1.0]]))
    assert_close(torch.stack([two[:, 0] + two[:, 1], two[:, 2]], -1), one)


@given(seed=SEEDS, background=st.sampled_from([0.0, 1.0, 0.3]))
def test_every_form_of_background_means_the_same(seed, background):
    density, rgb, t, norm = some_samples(seed, 5, 4)
    weights = render_weights(density, intervals(t, norm, t[:, -1] + 0.1))
    forms = background, torch.full((3,), background), torch.full((5, 3), background)
    grey, triple, each = (composite_samples(weights, rgb, t, b) for b in forms)
    assert torch.equal(grey.rgb, triple.rgb)
    assert torch.equal(grey.rgb, each.rgb)


@pytest.mark.parametrize("background", [0.0, 1.0, torch.tensor([0.1, 0.5, 0.9]), torch.rand(3, 3)])
def test_an_empty_ray_is_background_without_nan_and_with_finite_gradients(background):
    density = torch.zeros(3, 5, requires_grad=True)
    rgb = torch.rand(3, 5, 3, requires_grad=True)
    t = torch.linspace(0, 6, 5).expand(3, 5)
    out = composite_samples(render_weights(density, intervals(t, torch.ones(3))), rgb, t, background)
    assert out.depth is not None
    assert out.opacity is not None
    assert out.disparity is not None
    assert torch.equal(out.rgb, torch.as_tensor(background).expand(3, 3))
    assert out.depth.tolist() == out.opacity.tolist() == out.disparity.tolist() == [0.0] * 3
    (out.rgb.sum() + out.depth.sum() + out.disparity.sum()).backward()
    for x in (density, rgb):
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("density", [1e-30, 1e-12, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("near", [0.0, 2.0])
def test_any_density_gives_finite_pictures_and_gradients(density, near):
    sigma = torch.full((2, 6), density, requires_grad=True)
    rgb = torch.rand(2, 6, 3, requires_grad=True)
    t = torch.linspace(near, 6, 6).expand(2, 6)
    out = composite_samples(render_weights(sigma, intervals(t, torch.ones(2))), rgb, t, 1.0)
    out.rgb.square().sum().backward()
    numbers = [out.rgb, out.depth, out.opacity, out.disparity, sigma.grad, rgb.grad]
    assert all(x is not None and x.isfinite().all() for x in numbers)
    assert (out.rgb >= -1e-6).all()
    assert (out.rgb <= 1 + 1e-6).all()


def test_gradients_are_those_of_the_formula():
    density, rgb, t, norm = (x.double() for x in some_samples(0, 3, 4, empty=0))
    delta = intervals(t, norm, t[:, -1] + 0.3)
    density = (density / 20).requires_grad_()

    def render(sigma: Tensor, color: Tensor) -> tuple[Tensor, ...]:
        out = composite_samples(render_weights(sigma, delta), color, t, 0.5)
        assert out.depth is not None
        assert out.opacity is not None
        assert out.disparity is not None
        return out.rgb, out.depth, out.opacity, out.disparity

    assert torch.autograd.gradcheck(render, (density, rgb.requires_grad_()))


# --- NeRF's renderings ----------------------------------------------------------------------------------------------

SIZES = [(7, 5), (4, 6)]
FINE = pytest.mark.parametrize("fine", [0, 9])


def ring_scene(**choices: Any) -> Scene:
    """Two views of different size at a distance of 4 from the origin, with random pixels."""
    rng = np.random.default_rng(0)
    turns = [rotation(rng) for _ in SIZES]
    c2w = np.stack([np.concatenate([turn, 4 * turn[:, 2:]], 1) for turn in turns])
    width, height = torch.tensor(SIZES).T
    cameras = Cameras(torch.tensor(c2w).float(), width * 1.2, width * 1.3, width / 2, height / 2, width, height)
    pixels = torch.from_numpy(rng.integers(0, 256, (sum(w * h for w, h in SIZES), 4), dtype=np.uint8))
    return Scene("ring", "test", cameras, 2.0, 6.0, {"train": [0, 1], "test": [1]}, pixels, **choices)


def small_nerf(scene: Scene, **choices: Any) -> Nerf:
    """A random network whose scene is neither empty nor solid."""
    torch.manual_seed(0)
    few: dict[str, Any] = {"depth": 2, "width": 16, "skips": [0], "samples": 8, "fine_samples": 9, "frequencies": 3, "rays": 11}
    return Nerf(NerfConfig(**(few | choices)), scene)


def whole_view(method: Nerf, scene: Scene, view: int = 0) -> Batch:
    count = int(scene.cameras.width[view] * scene.cameras.height[view])
    return method.view_batch(scene, scene.cameras, view, torch.arange(count))


def assert_same(a: Rendering, b: Rendering, depth: float = 1.0, exact: bool = False) -> None:
    """Equal pictures, with the second one's distances ``depth`` times the first one's."""
    for name, scale in (("rgb", 1.0), ("opacity", 1.0), ("depth", depth), ("disparity", 1 / depth)):
        if exact:
            assert torch.equal(getattr(a, name), getattr(b, name))
        else:
            assert_close(getattr(b, name), getattr(a, name) * scale)


@FINE
@pytest.mark.parametrize("lindisp", [False, True])
@pytest.mark.parametrize("scale", [0.25, 2.0, 1.7])
def test_the_length_of_directions_changes_no_picture(fine, lindisp, scale):
    """The same points in the same steps, only counted in another unit of t."""
    scene = ring_scene()
    method = small_nerf(scene, fine_samples=fine, lindisp=lindisp)
    batch = whole_view(method, scene)
    rays = batch.rays
    assert rays is not None
    stretched = replace(rays, directions=rays.directions * scale, near=rays.near / scale, far=rays.far / scale)
    with torch.no_grad():
        picture = method.render(batch)
        assert_same(picture, method.render(replace(batch, rays=stretched)), 1 / scale)
    assert picture.opacity is not None
    assert picture.rgb.std() > 1e-3


@FINE
def test_judging_twice_gives_the_same_picture(fine):
    scene = ring_scene()
    method = small_nerf(scene, fine_samples=fine, raw_noise=1.0)
    first = render_view(method, scene, scene.cameras, 0, 64)
    torch.manual_seed(99)
    assert_same(first, render_view(method.eval(), scene, scene.cameras, 0, 64), exact=True)


@FINE
def test_training_is_decided_by_its_generator_alone(fine):
    scene = ring_scene(background="random")
    method = small_nerf(scene, fine_samples=fine, raw_noise=1.0)

    def train(seed: int) -> Rendering:
        batch = method.next_batch(scene, 3, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return method.render(batch)

    first = train(7)
    torch.manual_seed(99)
    assert_same(first, train(7), exact=True)
    assert not torch.equal(first.rgb, train(8).rgb)


@FINE
@pytest.mark.parametrize(("jitter", "noise"), [(True, 0.0), (False, 1.0), (True, 1.0), (False, 0.0)])
def test_jitter_and_noise_act_in_training_alone(fine, jitter, noise):
    scene = ring_scene()
    method = small_nerf(scene, fine_samples=fine, jitter=jitter, raw_noise=noise)
    plain = small_nerf(scene, fine_samples=fine, jitter=False)
    batch = whole_view(method, scene)
    with torch.no_grad():
        evaluated = method.render(batch)
        trained = method.render(replace(batch, generator=torch.Generator().manual_seed(1)))
        assert_same(evaluated, plain.render(batch), exact=True)
    assert torch.equal(evaluated.rgb, trained.rgb) == (not jitter and noise == 0)


@FINE
@pytest.mark.parametrize("chunk", [1, 7, 34, 35, 1000])
@pytest.mark.parametrize("ndc", [False, True])
def test_a_view_in_chunks_is_the_view_at_once(fine, chunk, ndc):
    scene = ring_scene(ndc=ndc)
    method = small_nerf(scene, fine_samples=fine)
    with torch.no_grad():
        whole = method.render(whole_view(method, scene))
    view = render_view(method, scene, scene.cameras, 0, chunk)
    assert view.weights is None
    for name in ("rgb", "depth", "opacity", "disparity"):
        expected = getattr(whole, name)
        assert_close(getattr(view, name), expected.reshape(5, 7, *expected.shape[1:]))


@given(count=st.integers(1, 20), size=st.integers(1, 25))
def test_chunks_of_a_batch_are_its_pieces_in_order(count, size):
    cameras = ring_scene().cameras
    rays = cameras.rays(torch.zeros(count, dtype=torch.long), torch.arange(count), torch.arange(count), 1.0, 2.0)
    colors, generator = torch.rand(count, 3), torch.Generator()
    batch = Batch(rays, target=colors, background=colors + 1, generator=generator)
    pieces = list(batch.chunks(size))
    assert [len(p) for p in pieces] == [min(size, count - start) for start in range(0, count, size)]
    assert torch.equal(torch.cat([p.rays.directions for p in pieces if p.rays]), rays.directions)
    assert torch.equal(torch.cat([p.target for p in pieces if p.target is not None]), colors)
    assert torch.equal(torch.cat([p.background for p in pieces if isinstance(p.background, Tensor)]), colors + 1)
    assert all(p.generator is generator for p in pieces)
    coordinates = Batch(coordinates=colors, background=0.5)
    assert [p.background for p in coordinates.chunks(size)] == [0.5] * len(pieces)
    assert torch.equal(torch.cat([p.coordinates for p in coordinates.chunks(size) if p.coordinates is not None]), colors)


def marched(method: Nerf, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Weights and distances of each network's march."""
    with mock.patch.object(nerf, "composite_samples", wraps=composite_samples) as spy, torch.no_grad():
        method.render(batch)
    return [(call.args[0], call.args[2]) for call in spy.call_args_list]


@FINE
@pytest.mark.parametrize("viewdirs", [False, True])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_density_is_what_rendering_used(fine, viewdirs, activation):
    scene = ring_scene()
    method = small_nerf(scene, fine_samples=fine, viewdirs=viewdirs, density_activation=activation, density_bias=0.3)
    batch = whole_view(method, scene)
    rays = batch.rays
    assert rays is not None
    weights, t = marched(method, batch)[-1]
    with torch.no_grad():
        density = method.density(rays.origins[:, None] + rays.directions[:, None] * t[..., None])
    delta = intervals(t, rays.directions.norm(dim=-1), rays.far if activation == "softplus" else None)
    assert_close(weights, render_weights(density, delta))
    assert density.std() > 1e-3


@pytest.mark.parametrize(
    ("activation", "bounds", "ndc", "ends"),
    [
        ("softplus", "object", False, True),
        ("softplus", "object", True, False),
        ("softplus", "unbounded", False, False),
        ("softplus", "forward-facing", False, False),
        ("relu", "object", False, False),
    ],
)
@FINE
def test_rays_end_at_far_only_where_space_does(fine, activation, bounds, ndc, ends):
    """A thin fog shows the background through an object's bounds, but fills an endless last interval."""
    scene = ring_scene(bounds=bounds, ndc=ndc)
    method = small_nerf(scene, fine_samples=fine, density_activation=activation, density_bias=3.0 if activation == "relu" else -3.0)
    opacity = method.render(whole_view(method, scene)).opacity
    assert opacity is not None
    assert bool((opacity < 0.5).all()) == ends
    assert bool((opacity > 1 - 1e-5).all()) != ends


@pytest.mark.parametrize("train", [False, True])
def test_fine_samples_join_the_coarse_ones_in_order(train):
    scene = ring_scene()
    method = small_nerf(scene)
    batch = replace(whole_view(method, scene), generator=torch.Generator() if train else None)
    (_, coarse), (_, fine) = marched(method, batch)
    assert (coarse.shape, fine.shape) == ((35, 8), (35, 17))
    assert (fine.diff(dim=-1) >= 0).all()
    assert all(set(few.tolist()) <= set(many.tolist()) for few, many in zip(coarse, fine, strict=True))


def test_fine_samples_gather_where_the_coarse_network_sees_something():
    """A wall at depth 4: nearly all importance samples fall within a coarse interval of it."""
    scene = ring_scene()
    method = small_nerf(scene, samples=33, fine_samples=64)
    batch = whole_view(method, scene)
    rays = batch.rays
    assert rays is not None

    def wall(network: Any, batch: Batch, t: Tensor) -> Rendering:
        weights = torch.where((t - 4).abs() < 0.2, 0.3, 0.0)
        return Rendering(torch.zeros(len(t), 3), opacity=weights.sum(-1), weights=weights, depth=t.new_tensor(t.shape[1]), extras={"t": t})

    with mock.patch.object(method, "_march", wall):
        rendering = method.render(batch)
    assert rendering.weights is not None
    near_wall = (rendering.weights > 0).sum(-1)
    assert (near_wall >= 60).all()


@pytest.mark.parametrize("ndc", [False, True])
@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_views_of_any_size_have_their_shape(ndc, background):
    scene = ring_scene(ndc=ndc, background=background)
    method = small_nerf(scene)
    for view, (width, height) in enumerate(SIZES):
        out = render_view(method, scene, scene.cameras, view, 10)
        shapes = {name: tuple(getattr(out, name).shape) for name in ("rgb", "depth", "opacity", "disparity")}
        assert shapes == {"rgb": (height, width, 3)} | dict.fromkeys(("depth", "opacity", "disparity"), (height, width))
        assert all(getattr(out, name).isfinite().all() for name in shapes)


def test_an_empty_field_shows_the_background_everywhere():
    for background, level in (("white", 1.0), ("black", 0.0), ("random", 1.0)):
        scene = ring_scene(background=background)
        method = small_nerf(scene, density_activation="relu", density_bias=-1e6)
        out = render_view(method, scene, scene.cameras, 0, 64)
        assert torch.equal(out.rgb, torch.full((5, 7, 3), level))
        assert out.disparity is not None
        assert not out.disparity.any()


def test_look_cameras_change_colours_but_not_geometry():
    scene = ring_scene()
    cameras = scene.cameras[[0, 0]]
    look = scene.cameras[[0, 0]]
    look.c2w = look.c2w.flip(1)
    for viewdirs in (True, False):
        method = small_nerf(scene, viewdirs=viewdirs)
        still, turned = (render_view(method, scene, cameras, 1, 64, look=k) for k in (None, look))
        assert still.depth is not None
        assert turned.depth is not None
        assert torch.equal(still.depth, turned.depth)
        assert torch.equal(still.rgb, turned.rgb) != viewdirs


def test_reduced_precision_keeps_everything_along_rays_in_float32():
    scene = ring_scene()
    method = small_nerf(scene)
    exact = render_view(method, scene, scene.cameras, 0, 64)
    method.precision = torch.bfloat16
    with torch.no_grad():
        rough = method.render(whole_view(method, scene))
    assert {x.dtype for x in (rough.rgb, rough.depth, rough.weights) if x is not None} == {torch.float32}
    assert 0 < float((rough.rgb.reshape(5, 7, 3) - exact.rgb).abs().max()) < 0.02
    rays = whole_view(method, scene).rays
    assert isinstance(rays, Rays)
    assert method.density(rays.origins).dtype == torch.float32
