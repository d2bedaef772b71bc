"""Histograms along rays: blurred, dilated, annealed and resampled, and the losses between them, against slow float64 twins."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close
from nerfit.rendering.distortion import distortion, distortion_packed
from nerfit.rendering.losses import charbonnier, interlevel
from nerfit.sampling.along_rays import spaced
from nerfit.sampling.histograms import annealed, blurred, dilated, range_maxima, resample


def histogram(rays: int, bins: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Edges in [0, 1] and weights of sum at most 1, some of them 0."""
    rng = torch.Generator().manual_seed(seed)
    edges = torch.rand(rays, bins + 1, generator=rng, dtype=torch.float64).sort(-1).values
    weights = torch.rand(rays, bins, generator=rng, dtype=torch.float64) ** 4
    weights = torch.where(torch.rand(rays, bins, generator=rng) < 0.2, 0.0, weights)
    return edges.to(dtype), (weights / (weights.sum(-1, keepdim=True) + 0.1)).to(dtype)


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))


@given(SIZES)
def test_blurred_weights_bound_their_own_mean(size: tuple[int, int, int]) -> None:
    _, weights = histogram(*size)
    found, rows = blurred(weights), weights.tolist()
    for ray, w in enumerate(rows):
        for i in range(len(w)):
            before, after = w[max(i - 1, 0)], w[min(i + 1, len(w) - 1)]
            assert float(found[ray, i]) == pytest.approx(0.5 * (max(before, w[i]) + max(w[i], after)))
    assert (found >= weights - 1e-12).all()


@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 1000))
def test_maxima_of_ranges(rays: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rays, count))
    ends = np.sort(rng.integers(0, count, size=(2, rays, 7)), 0)
    found = range_maxima(torch.tensor(values), torch.tensor(ends[0]), torch.tensor(ends[1]))
    expected = [[values[r, ends[0, r, q] : ends[1, r, q] + 1].max() for q in range(7)] for r in range(rays)]
    assert np.array_equal(found.numpy(), expected)


@given(SIZES, st.floats(1e-3, 0.5))
def test_dilation_is_the_largest_density_within_reach(size: tuple[int, int, int], dilation: float) -> None:
    edges, weights = histogram(*size)
    wider, mass = dilated(edges, weights, dilation)
    assert wider.shape[1] == mass.shape[1] + 1 == 3 * edges.shape[1] - 2
    assert (wider.diff() >= 0).all() and wider.min() >= 0 and wider.max() <= 1
    assert_close(mass.sum(-1), torch.where(weights.sum(-1) > 0, 1.0, 0.0), 1e-6)
    density = (weights / edges.diff().clamp(min=torch.finfo(edges.dtype).eps)).tolist()
    for ray in range(len(edges)):
        e = edges[ray].tolist()
        twin = []
        for a, b in zip(wider[ray, :-1].tolist(), wider[ray, 1:].tolist(), strict=True):
            middle = 0.5 * (a + b)
            near = [p for p, start, end in zip(density[ray], e[:-1], e[1:], strict=True) if start - dilation <= middle < end + dilation]
            twin.append(max(near, default=0.0) * (b - a))
        if sum(twin) > 0:
            assert_close(mass[ray], np.array(twin) / sum(twin), 1e-6)


def test_annealing_runs_from_flat_to_the_weights() -> None:
    weights = torch.tensor([[0.2, 0.5, 0.01]])
    assert torch.equal(annealed(weights, 0.0, 10.0), torch.ones(1, 3))
    assert_close(annealed(weights, 1.0, 10.0), weights)
    assert_close(annealed(weights, 0.1, 10.0), weights ** (1 / 1.9))


@pytest.mark.parametrize("jittered", [False, True])
def test_new_samples_lie_where_the_weight_is(jittered: bool) -> None:
    """As many in each bin as its share of the weight says, to one; intervals in order and within [0, 1]."""
    edges, weights = histogram(50, 8, 3, torch.float32)
    rng = torch.Generator().manual_seed(0)
    jitter = torch.rand(50, 1, generator=rng) if jittered else None
    found = resample(edges, weights, 64, jitter)
    assert found.shape == (50, 65) and (found.diff() >= 0).all() and found.min() >= 0 and found.max() <= 1
    # every second edge's neighbours meet half way, so centres follow from the edges and the first one's middle
    share = torch.zeros(50, 8)
    for b in range(8):
        inside = (found[:, :-1] >= edges[:, b : b + 1] - 1e-6) & (found[:, 1:] <= edges[:, b + 1 : b + 2] + 1e-6)
        share[:, b] = inside.sum(-1) / 64
    assert ((share - weights / weights.sum(-1, keepdim=True)) <= 1 / 64 + 1e-3).all()
    assert float((share - weights / weights.sum(-1, keepdim=True)).abs().max()) < 0.05


def test_a_flat_histogram_gives_even_intervals() -> None:
    edges = torch.tensor([[0.0, 1.0]])
    assert_close(resample(edges, torch.ones(1, 1), 4, None), torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    moved = resample(edges, torch.ones(1, 1), 4, torch.tensor([[0.9]]))
    assert_close(moved, torch.tensor([[0.1, 0.35, 0.6, 0.85, 1.0]]), 1e-5)


def test_bins_without_length_or_weight_draw_nothing() -> None:
    edges = torch.tensor([[0.0, 0.0, 0.4, 0.4, 0.6, 1.0]])
    found = resample(edges, torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]]), 16, None)
    assert (found[:, 1:-1] >= 0.4 - 1e-3).all() and (found[:, 1:-1] <= 0.6 + 1e-3).all()
    assert torch.isfinite(resample(edges, torch.zeros(1, 5), 16, None)).all()


@pytest.mark.parametrize("lindisp", [False, True])
def test_spacing(lindisp: bool) -> None:
    near, far, s = torch.tensor([0.2]), torch.tensor([1e6]), torch.linspace(0, 1, 9)[None]
    t = spaced(near, far, s, lindisp)
    assert_close(t[0, [0, -1]], [0.2, 1e6])
    even = 1 / t if lindisp else t
    assert_close(even.diff(), even.diff().mean().expand(1, 8), 1e-4)


# --- Losses ---------------------------------------------------------------------------------------------------------


def interlevel_twin(edges: Tensor, weights: Tensor, bins: Tensor, proposal: Tensor) -> Tensor:
    losses = []
    for ray in range(len(edges)):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(weights.shape[1]):
            bound = torch.zeros((), dtype=torch.float64)
            for j in range(proposal.shape[1]):
                if bins[ray, j] < edges[ray, i + 1] and bins[ray, j + 1] > edges[ray, i]:
                    bound = bound + proposal[ray, j]
            w = weights[ray, i].detach()
            loss = loss + (w - bound).clamp(min=0) ** 2 / (w + torch.finfo(torch.float32).eps)
        losses.append(loss)
    return torch.stack(losses)


@given(SIZES, st.integers(1, 9))
def test_interlevel_loss_and_its_gradient(size: tuple[int, int, int], samples: int) -> None:
    bins, proposal = histogram(*size)
    edges, weights = histogram(size[0], samples, size[2] + 1)
    proposal, weights = proposal.requires_grad_(), weights.requires_grad_()
    found, twin = interlevel(edges, weights, bins, proposal), interlevel_twin(edges, weights, bins, proposal)
    assert_close(found, twin, 1e-9)
    gradient, none = torch.autograd.grad(found.sum(), [proposal, weights], allow_unused=True)
    (expected,) = torch.autograd.grad(twin.sum(), proposal) if twin.requires_grad else (torch.zeros_like(proposal),)
    assert none is None
    assert_close(gradient, expected, 1e-9)


def test_a_proposal_that_covers_the_field_costs_nothing() -> None:
    """Its own coarsening does, and so does the histogram itself."""
    edges, weights = histogram(5, 12, 0)
    assert float(interlevel(edges, weights, edges[:, ::3], weights.reshape(5, 4, 3).sum(-1)).abs().max()) < 1e-12
    assert float(interlevel(edges, weights, edges, weights).abs().max()) < 1e-12
    assert float(interlevel(edges, weights, edges, 0.5 * weights).min()) > 0.1


def distortion_twin(weights: Tensor, edges: Tensor) -> Tensor:
    """Every pair at once: memory grows with the square of the samples."""
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    pairs = weights[:, :, None] * weights[:, None, :] * (middle[:, :, None] - middle[:, None, :]).abs()
    return pairs.sum((-1, -2)) + (weights.square() * edges.diff()).sum(-1) / 3


@given(SIZES)
def test_distortion_and_its_gradients(size: tuple[int, int, int]) -> None:
    edges, weights = histogram(*size)
    edges, weights = edges.requires_grad_(), weights.requires_grad_()
    found, twin = distortion(weights, edges), distortion_twin(weights, edges)
    assert_close(found, twin, 1e-9)
    scale = torch.arange(1.0, size[0] + 1, dtype=torch.float64)
    for mine, right in zip(*(torch.autograd.grad((scale * loss).sum(), [weights, edges]) for loss in (found, twin)), strict=True):
        assert_close(mine, right, 1e-9)
    packed = torch.arange(size[0] + 1) * size[1]
    assert_close(distortion_packed(weights.flatten(), edges[:, :-1].flatten(), edges[:, 1:].flatten(), packed), twin, 1e-9)


def saved_floats(loss: Any, *inputs: Tensor) -> int:
    """Numbers that a loss keeps for its backward pass."""
    total = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        total += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(*inputs)
    return total


def test_many_samples_cost_in_proportion() -> None:
    """512 samples: the pairs' memory and time many times over, with the same value in single precision."""
    edges, weights = histogram(32, 512, 0, torch.float32)
    weights.requires_grad_()
    assert_close(distortion(weights, edges), distortion_twin(weights.double(), edges.double()), 1e-5)
    assert 10 * saved_floats(distortion, weights, edges) < saved_floats(distortion_twin, weights, edges)
    seconds = {}
    for loss in (distortion, distortion_twin):
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            torch.autograd.grad(loss(weights, edges).sum(), weights)
            runs.append(time.perf_counter() - start)
        seconds[loss] = min(runs)
    assert 5 * seconds[distortion] < seconds[distortion_twin], seconds


def test_charbonnier_is_quadratic_then_linear() -> None:
    target = torch.zeros(3, 3, dtype=torch.float64)
    error = torch.tensor([0.0, 1e-5, 0.5], dtype=torch.float64)[:, None].expand(3, 3)
    assert_close(charbonnier(error, target, 1e-3), [1e-3, 1e-3 + 0.5e-10 / 1e-3, 0.500001], 1e-9)
