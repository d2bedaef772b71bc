"""Gaussians of cone segments, the encoding of Gaussians, contraction and the icosahedron's axes against float64 twins."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close, rotation
from nerfit.cameras import Rays
from nerfit.fields.integrated import icosahedron_basis, integrated_encoding, lift
from nerfit.sampling.frustums import PointGaussians, conical_frustums, contract, cylinders, ray_gaussians
from nerfit.scenes.formats.procedural import Config, load


def some_rays(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Rays:
    rng = torch.Generator().manual_seed(seed)
    o, d = (torch.randn(count, 3, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2))
    ends = torch.zeros(count, dtype=dtype), torch.ones(count, dtype=dtype)
    radius = 0.001 + 0.1 * torch.rand(count, generator=rng, dtype=torch.float64).to(dtype)
    return Rays(o, d, torch.nn.functional.normalize(d, dim=-1), *ends, radius, torch.zeros(count, dtype=torch.long))


def cone_moments(t0: float, t1: float, radius: float) -> tuple[float, float, float]:
    """By Gauss quadrature, exact for these polynomials: a disc at t has area ∝ t² and variance (radius t)²/4 along a diameter."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    t = 0.5 * (t0 + t1) + 0.5 * (t1 - t0) * nodes
    mass = weights * t**2
    mean = (mass * t).sum() / mass.sum()
    return mean, (mass * (t - mean) ** 2).sum() / mass.sum(), (mass * (radius * t) ** 2 / 4).sum() / mass.sum()


@given(st.floats(0, 1e4), st.floats(1e-5, 1e2), st.floats(1e-5, 1))
def test_moments_of_a_cone_segment_are_those_of_its_points(t0: float, length: float, radius: float) -> None:
    """In float32 too, where segments are short and far away; the mean as a distance from the near end."""
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-4)):
        a = torch.tensor([[t0]], dtype=dtype)
        b = a + length
        if not bool(b - a > 1e-3 * length):
            continue
        mean, along, across = conical_frustums(a, b, torch.tensor([[radius]], dtype=dtype))
        expected = cone_moments(float(a), float(b), float(torch.tensor(radius, dtype=dtype)))
        assert float(along) == pytest.approx(expected[1], rel=tolerance)
        assert float(across) == pytest.approx(expected[2], rel=tolerance)
        assert abs(float(mean) - expected[0]) <= tolerance * float(b - a) + torch.finfo(dtype).eps * 4 * float(b)


def test_a_segment_without_length_at_the_tip_is_a_point() -> None:
    for value in conical_frustums(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)):
        assert float(value) == 0


def test_moments_of_a_cylinder() -> None:
    mean, along, across = cylinders(torch.tensor([[1.0]]), torch.tensor([[4.0]]), torch.tensor([[0.5]]))
    assert (float(mean), float(along), float(across)) == pytest.approx((2.5, 9 / 12, 0.25 / 4))


@pytest.mark.parametrize("cylindrical", [False, True])
def test_gaussians_of_rays_are_those_of_points_spread_in_their_cones(cylindrical: bool) -> None:
    """A hundred thousand points drawn in each of a few segments."""
    rays, rng = some_rays(3), np.random.default_rng(0)
    edges = torch.tensor([[0.0, 0.7, 2.0]], dtype=torch.float64).expand(3, 3)
    mean, covariance = ray_gaussians(rays, edges, cylindrical)
    assert mean.shape == (3, 2, 3) and covariance.shape == (3, 2, 3, 3)
    for ray in range(3):
        d = rays.directions[ray].numpy()
        side = np.linalg.svd(d[None])[2][1:]
        for segment, (a, b) in enumerate([(0, 0.7), (0.7, 2)]):
            u = rng.random(100_000)
            t = a + (b - a) * u if cylindrical else (a**3 + (b**3 - a**3) * u) ** (1 / 3)
            angle, share = 2 * math.pi * rng.random(100_000), np.sqrt(rng.random(100_000))
            reach = float(rays.pixel_radius[ray]) * share * (1 if cylindrical else t)
            points = rays.origins[ray].numpy() + t[:, None] * d
            points += reach[:, None] * (np.cos(angle)[:, None] * side[0] + np.sin(angle)[:, None] * side[1])
            assert_close(mean[ray, segment], points.mean(0), 0.01)
            assert_close(covariance[ray, segment], np.cov(points.T), 0.03)
            across = torch.tensor(side, dtype=torch.float64)
            spread = ((across @ covariance[ray, segment]) * across).sum(-1)
            assert_close(spread, np.diag(side @ np.cov(points.T) @ side.T), 0.03)


# --- Encoding -------------------------------------------------------------------------------------------------------


def test_the_encoding_is_the_mean_of_waves_over_the_gaussian() -> None:
    """By Gauss-Hermite quadrature."""
    rng = torch.Generator().manual_seed(1)
    mean = torch.randn(5, 2, generator=rng, dtype=torch.float64)
    variance = 0.05 * torch.rand(5, 2, generator=rng, dtype=torch.float64)
    nodes, weights = np.polynomial.hermite.hermgauss(100)
    x = mean.numpy()[..., None] + np.sqrt(2 * variance.numpy())[..., None] * nodes
    expected = []
    for k in range(4):
        for wave in (np.sin, np.cos):
            expected.append((weights * wave(2.0**k * x)).sum(-1) / math.sqrt(math.pi))
    assert_close(integrated_encoding(mean, variance, 4), np.concatenate(expected, -1), 1e-9)
    assert_close(integrated_encoding(mean.float(), variance.float(), 4), np.concatenate(expected, -1), 1e-5)


def test_waves_shorter_than_the_gaussian_vanish_and_none_overflows() -> None:
    mean, variance = torch.full((1, 3), 1e3), torch.full((1, 3), 1e20)
    assert (integrated_encoding(mean, variance, 16) == 0).all()
    point = integrated_encoding(torch.full((1, 3), 0.3), torch.zeros(1, 3), 16)
    assert_close(point.reshape(16, 2, 3).square().sum(1), torch.ones(16, 3))


def covariances(count: int, rng: torch.Generator) -> Tensor:
    a = torch.randn(count, 3, 3, generator=rng, dtype=torch.float64)
    return a @ a.mT


def test_lifting_projects_mean_and_covariance() -> None:
    rng = torch.Generator().manual_seed(2)
    mean, covariance, basis = torch.randn(6, 3, generator=rng, dtype=torch.float64), covariances(6, rng), icosahedron_basis().double()
    found = lift(mean, covariance, basis)
    for n in range(6):
        for axis, p in enumerate(basis):
            assert_close(found[0][n, axis], p @ mean[n])
            assert_close(found[1][n, axis], p @ covariance[n] @ p)
    plain = lift(mean, covariance, torch.eye(3, dtype=torch.float64))
    assert_close(plain[1], covariance.diagonal(dim1=1, dim2=2))


def test_the_icosahedrons_axes() -> None:
    """21 axes, no two the same: 6 through corners, arctan 2 apart, and 15 through edges; together they see all sides alike."""
    basis = icosahedron_basis().double()
    assert basis.shape == (21, 3)
    cosines = (basis @ basis.T).abs()
    assert_close(cosines.diagonal(), torch.ones(21))
    assert float((cosines - torch.eye(21)).max()) < 0.96
    assert_close(cosines[:6, :6][~torch.eye(6, dtype=torch.bool)], torch.full((30,), 1 / math.sqrt(5)))
    assert all(((row > 0.85) & (row < 0.86)).sum() == 2 for row in cosines[6:, :6])  # each edge lies beside two corners, 31.7° away
    for part in (basis[:6], basis[6:]):
        assert_close(part.T @ part, len(part) / 3 * np.eye(3), 1e-6)


# --- Contraction ----------------------------------------------------------------------------------------------------


def contracted(x: Tensor) -> Tensor:
    """Equation 10 as it stands."""
    r = x.norm()
    return x if r <= 1 else (2 - 1 / r) * x / r


@given(st.floats(-3, 6), st.integers(0, 100))
def test_contraction_follows_its_definition_and_its_derivative(power: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(1, 3, generator=rng, dtype=torch.float64), dim=-1) * 10**power
    covariance = covariances(1, rng)
    jacobian = torch.autograd.functional.jacobian(contracted, x[0])
    assert isinstance(jacobian, Tensor)
    mean, spread = contract(x, covariance)
    assert_close(mean[0], contracted(x[0]), 1e-12)
    assert_close(spread[0], jacobian @ covariance[0] @ jacobian.T, 1e-9)
    assert float(mean.norm()) <= 2
    half = contract(x.float(), covariance.float())
    assert_close(half[0], mean, 1e-5)
    assert_close(half[1], spread, 1e-4)


def test_contraction_leaves_the_unit_ball_alone() -> None:
    rng = torch.Generator().manual_seed(3)
    x, covariance = 0.5 * torch.rand(9, 3, generator=rng, dtype=torch.float64), covariances(9, rng)
    mean, spread = contract(x, covariance)
    assert torch.equal(mean, x) and torch.equal(spread, covariance)
    origin, flat = contract(torch.zeros(1, 3), torch.eye(3)[None])
    assert torch.equal(origin, torch.zeros(1, 3)) and torch.equal(flat[0], torch.eye(3))


def test_distant_segments_stay_sane_in_single_precision() -> None:
    """From a ray's near end to a million units away: contracted and encoded along the axes, beside float64."""
    t = torch.cat([torch.tensor([0.2]), 0.2 * 5e6 ** torch.linspace(0.02, 1, 60)])[None].double()
    rays, basis = some_rays(20), icosahedron_basis()
    edges = t.expand(20, -1)
    exact = integrated_encoding(*lift(*contract(*ray_gaussians(rays, edges)), basis.double()), 8)
    single = some_rays(20, dtype=torch.float32)
    found = integrated_encoding(*lift(*contract(*ray_gaussians(single, edges.float())), basis), 8)
    assert_close(found, exact, 2e-3)


# --- Points ---------------------------------------------------------------------------------------------------------


def test_points_are_as_wide_as_a_pixel_there() -> None:
    scene = load("procedural", Config(size=16, views=6, test_views=1, samples=1))
    gaussians = PointGaussians(scene)
    views = scene.splits["train"]
    away = float((scene.cameras.centers[views] - scene.cameras.centers[views].mean(0)).norm(dim=-1).mean())
    radius = 2 / math.sqrt(12) / float(scene.cameras.fx[0])
    points = scene.cameras.centers[views].mean(0) + torch.tensor([[0.0, 0.0, 0.1], [0.0, 50.0, 0.0]])
    same, covariance = gaussians(points)
    assert torch.equal(same, points)
    assert_close(covariance[0], np.eye(3) * (radius * away) ** 2 / 4)
    assert_close(covariance[1], np.eye(3) * (radius * 50) ** 2 / 4)
    forward = PointGaussians(load("procedural:forward-facing", Config(size=16, samples=1)))
    low, high = (forward(torch.full((1, 3), x))[1] for x in (0.1, 0.9))
    assert_close(low, high)


def test_turning_the_ray_turns_its_gaussian() -> None:
    rays, turn = some_rays(4), torch.tensor(rotation(np.random.default_rng(0)))
    edges = torch.tensor([[0.1, 0.5, 3.0]], dtype=torch.float64).expand(4, 3)
    turned = replace(rays, origins=rays.origins @ turn.T, directions=rays.directions @ turn.T)
    (mean, covariance), (mean2, covariance2) = ray_gaussians(rays, edges), ray_gaussians(turned, edges)
    assert_close(mean2, mean @ turn.T, 1e-12)
    assert_close(covariance2, turn @ covariance @ turn.T, 1e-12)
