"""Kernels of intervals against their definitions in float64, and the ladder of distances."""

# pyright: reportCallIssue=false

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close
from nerfit.kernels.cpu import runtime
from nerfit.kernels.intervals import density_along, render_intervals
from nerfit.kernels.layouts import Cutoffs, FieldShape, GridLayout, Network, RaySet
from nerfit.sampling.proposals import Ladder, inverse_power_ladder, power_ladder

SHAPE = FieldShape(GridLayout(5, 10, 4, 64), 32)
OUT_OF_USE = slice(SHAPE.matrices[0][0] * SHAPE.matrices[0][1] + 32, None)
"""All rows but the first of the second matrix."""


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """One thread and two."""
    monkeypatch.setattr(runtime, "threads", request.param)
    yield request.param


def uniform(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def rays(n: int, samples: int) -> tuple[RaySet, Tensor]:
    """Rays with directions of several lengths, and edges of intervals, far out of the unit box too."""
    directions, unused = 2 * uniform(n, 3, seed=1) - 1, torch.zeros(n)
    viewdirs = torch.nn.functional.normalize(directions, dim=-1)
    return RaySet(uniform(n, 3), directions, viewdirs, unused, unused, unused), (2 * uniform(n, samples + 1, seed=2)).cumsum(-1)


def networks(matrices: int) -> tuple[Tensor, Tensor]:
    """A table and the first matrices of the networks."""
    parts = [((uniform(r, c, seed=k + 3) - 0.5) * 3 / c**0.5).flatten() for k, (r, c) in enumerate(SHAPE.matrices[:matrices])]
    return 2 * uniform(SHAPE.grid.size, seed=9) - 1, torch.cat(parts)


def exact(*tensors: Tensor) -> list[Tensor]:
    return [t.double() for t in tensors]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n, samples", [(0, 3), (1, 2), (50, 7), (300, 64)])
def test_densities_and_their_gradients_follow_the_definition(n: int, samples: int) -> None:
    given, edges = rays(n, samples)
    found = []
    for make in (lambda *t: [v.clone() for v in t], exact):
        table, weights = (v.requires_grad_() for v in make(*networks(2)))
        density = density_along(given.each(lambda t, make=make: make(t)[0]), make(edges)[0], Network(table, weights, SHAPE))
        signs = torch.cos(torch.arange(n * samples).to(density)).reshape(n, samples)
        (signs * density / (1 + density.detach())).sum().backward()
        assert table.grad is not None and weights.grad is not None
        assert not weights.grad[OUT_OF_USE].any()
        found.append((density.detach(), table.grad, weights.grad))
    for mine, true in zip(*found, strict=True):
        assert_close(mine, true, 1e-4)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n, samples", [(0, 3), (1, 2), (60, 7), (130, 40)])
def test_rendered_intervals_and_all_gradients_follow_the_definition(n: int, samples: int) -> None:
    """Also those of rays; an interval whose weight is about the least one would be a toss-up, so none is left out here."""
    given, edges = rays(n, samples)
    found = []
    for make in (lambda *t: [v.clone() for v in t], exact):
        table, weights, origins, directions = leaves = [v.requires_grad_() for v in make(*networks(5), given.origins, given.directions)]
        mine = replace(given.each(lambda t, make=make: make(t)[0]), origins=origins, directions=directions)
        network = Network(table, weights, SHAPE)
        rendered, every = render_intervals(mine, make(edges)[0], network, Cutoffs(0.0, 0.0), 0.7, True)
        assert rendered.weights is not None and rendered.kept == n * samples
        assert_close(rendered.weights.detach(), every.flatten(), 1e-6)
        loss = rendered.color.square().sum() + rendered.opacity.sum() + 0.1 * rendered.depth.sum() + rendered.weights.square().sum()
        loss.backward()
        found.append([rendered.color.detach(), rendered.depth.detach(), every, *(v.grad for v in leaves)])
    for mine, true in zip(*found, strict=True):
        assert_close(mine, true, 1e-4)


def test_intervals_of_little_weight_are_left_out_of_colours_but_not_of_the_weights() -> None:
    given, network = rays(40, 12), Network(*networks(5), SHAPE)
    with torch.no_grad():
        every, weights = render_intervals(*given, network, Cutoffs(0.0, 0.0))
        visible, again = render_intervals(*given, network, Cutoffs(0.05, 0.0))
    assert torch.equal(weights, again)
    assert 0 < visible.kept == int((weights >= 0.05).sum()) < every.kept == 480
    assert_close(visible.opacity, every.opacity, 12 * 0.05)


@given(st.sampled_from([1.0, 0.5, 0.0, -0.25, -1.0, -1.5]), st.floats(0, 50))
def test_the_ladder_begins_with_slope_one_grows_and_is_climbed_down_again(power: float, x: float) -> None:
    at = torch.tensor([x, x + 1e-3, 0.0, 1e-4], dtype=torch.float64)
    y = power_ladder(at, power)
    assert y[1] > y[0] and abs(float(y[3] / at[3]) - 1) < 1e-3 and y[2] == 0
    assert_close(inverse_power_ladder(y, power), at, 1e-8)
    scale = abs(power - 1) or 1.0
    if power not in (0.0, 1.0):
        assert float(y[0]) == pytest.approx(scale / power * ((x / scale + 1) ** power - 1), abs=1e-9)


def test_powers_without_a_formula_are_limits_of_those_beside_them() -> None:
    x = torch.linspace(0, 30, 100, dtype=torch.float64)
    for power in (0.0, 1.0):
        assert_close(power_ladder(x, power), power_ladder(x, power - 1e-7), 1e-4)
    assert_close(power_ladder(x, -1.0), 2 * x / (x + 2), 1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("power", [1.0, 0.0, -1.0, -1.5])
@pytest.mark.parametrize("exponent", [1.0, 0.3, 0.0])
def test_drawn_intervals_follow_the_definition(power: float, exponent: float) -> None:
    n = 200
    near, far, jitter, norm = 0.05 + 0.1 * uniform(n), 50 + 50 * uniform(n, seed=1), uniform(n, 1, seed=2), 0.5 + uniform(n, seed=3)
    density, ladder = torch.exp(8 * uniform(n, 16, seed=4) - 5), Ladder(power, 2.0)
    found = []
    for near_, far_, jitter_, norm_, density_ in ([near, far, jitter, norm, density], exact(near, far, jitter, norm, density)):
        ends = ladder.ends(near_, far_)
        first = ladder.even(*ends, 16, jitter_)
        weights, then = ladder.draw(*ends, first, density_, norm_, 12, jitter_, exponent, 1e-3)
        found.append((weights, then.s, (1 + then.t).log()))
    for mine, true in zip(*found, strict=True):
        assert_close(mine, true, 2e-4 if exponent else 2e-5)
    assert (found[0][1].diff(dim=-1) >= 0).all() and found[0][1].min() >= 0 and found[0][1].max() <= 1


def test_intervals_are_drawn_where_the_weight_is() -> None:
    """All but the padding lies between two edges: so do all but its share of the new intervals."""
    ladder, n = Ladder(-1.0, 1.0), 50
    ends = ladder.ends(torch.full((n,), 0.1), torch.full((n,), 1e3))
    first = ladder.even(*ends, 20, torch.full((n, 1), 0.5))
    density = torch.zeros(n, 20)
    density[:, 13] = 1e6
    weights, then = ladder.draw(*ends, first, density, torch.ones(n), 32, uniform(n, 1), 1.0, 1e-3 / 20)
    assert_close(weights[:, 13], torch.ones(n), 1e-6)
    inside = (then.s[:, 1:] > first.s[:, 13:14]) & (then.s[:, :-1] < first.s[:, 14:15])
    assert (inside.sum(-1) >= 32 - 1).all()
