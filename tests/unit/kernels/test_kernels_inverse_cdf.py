"""Inverse-CDF sampling: a plain twin for the reference and the CPU body, statistics, and the edges of what can be asked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close
from nerfit.kernels.cpu import inverse_cdf
from nerfit.kernels.inverse_cdf import sample_pdf, sample_pdf_reference

SEEDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(1, 9)
CLOSE = 1e-4


def twin(edges: Tensor, weights: Tensor, uniform: Tensor, padding: float = 1e-5) -> np.ndarray:
    """NeRF's inverse CDF in float64, number by number: right-side search, denominators below 1e-5 replaced by 1."""
    out = np.empty(uniform.shape)
    for ray, (t, w, numbers) in enumerate(zip(edges.tolist(), weights.tolist(), uniform.tolist(), strict=True)):
        cdf = [sum(w[:b]) + b * padding for b in range(len(t))]
        cdf = [c / cdf[-1] for c in cdf]
        for s, u in enumerate(numbers):
            index = sum(c <= u for c in cdf)
            below, above = index - 1, min(index, len(w))
            width = cdf[above] - cdf[below]
            out[ray, s] = t[below] + (u - cdf[below]) / (1.0 if width < 1e-5 else width) * (t[above] - t[below])
    return out


def even(rays: int, samples: int) -> Tensor:
    """Numbers from 0 to 1."""
    return torch.linspace(0, 1, samples, dtype=torch.float64).expand(rays, samples)


def some(seed: int, rays: int, bins: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, weights of which some vanish, and numbers from 0 to 1 of which many are small, all exact in float32."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 1, (rays, bins)) * rng.choice([0, 0, 1e-4, 1], (rays, bins))
    uniform = rng.uniform(0, 1, (rays, samples)) * rng.choice([1, 1e-4], (rays, samples))
    if samples > 1:
        uniform[:, -2:] = 0, 1
    edges = 2 + np.cumsum(rng.uniform(0.1, 1, (rays, bins + 1)), -1)
    a, b, c = (torch.tensor(v, dtype=torch.float32) for v in (edges, weights, uniform))
    return a, b, c


@given(seed=SEEDS, rays=SMALL, bins=SMALL, samples=SMALL)
def test_the_reference_follows_its_twin(seed, rays, bins, samples):
    edges, weights, uniform = (v.double() for v in some(seed, rays, bins, samples))
    assert_close(sample_pdf(edges, weights, samples, uniform), twin(edges, weights, uniform), 1e-9)
    assert_close(sample_pdf(edges, weights, samples), twin(edges, weights, even(rays, samples)), 1e-9)


@pytest.mark.parametrize("bins", [1, 2, 63])
@pytest.mark.parametrize("rays, samples", [(0, 9), (1, 0), (1, 1), (7, 130), (1000, 3), (3, 1000)])
def test_samples_match_float64(rays, bins, samples):
    edges, weights, uniform = some(rays + bins, rays, bins, samples)
    exact = edges.double(), weights.double(), samples
    found = sample_pdf(edges, weights, samples, uniform)
    assert found.dtype == torch.float32
    assert_close(found, sample_pdf(*exact, uniform.double()), CLOSE)
    assert_close(sample_pdf(edges, weights, samples), sample_pdf(*exact, even(rays, samples)), CLOSE)
    assert ((found >= edges[:, :1]) & (found <= edges[:, -1:])).all()


def test_a_single_huge_weight_takes_all_samples():
    edges, weights = torch.linspace(2, 6, 9)[None], torch.zeros(1, 8)
    weights[0, 5] = 1e30
    assert_close(sample_pdf(edges, weights, 13), twin(edges, weights, even(1, 13)), CLOSE)
    assert_close(sample_pdf(edges, weights, 13)[:, 1:-1], np.linspace(4.5, 5, 13)[None, 1:-1], CLOSE)


def test_the_ends_of_the_cdf_are_the_ends_of_the_ray():
    """However the weights round, and however little of them the last bin has."""
    edges, weights, _ = some(0, 500, 40, 0)
    for t, w in ((edges, weights), (edges.double(), weights.double())):
        assert torch.equal(sample_pdf(t, w, 5)[:, [0, -1]], t[:, [0, -1]])


def test_strided_inputs_and_the_body_that_is_asked_for(monkeypatch):
    edges, weights, uniform = some(1, 20, 14, 6)
    t, w, u = edges[::2, ::3], weights[::2, 1:12:3], uniform[::2, ::2]
    assert torch.equal(sample_pdf(t, w, 3, u), sample_pdf(t.contiguous(), w.contiguous(), 3, u.contiguous()))
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    monkeypatch.setattr(inverse_cdf, "sample_pdf", None)
    assert torch.equal(sample_pdf(edges, weights, 6, uniform), sample_pdf_reference(edges, weights, 6, uniform, 1e-5))


def test_a_number_that_meets_the_cdf_goes_to_the_bin_behind():
    """Right-side search: of the edges 3, 4 and 5, which share the cdf's value 1/2, the last."""
    edges, uniform = torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0]]), torch.tensor([[0.0, 0.5, 0.75, 1.0]])
    out = sample_pdf(edges, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), 4, uniform, padding=0.0)
    assert out.tolist() == [[2.0, 5.0, 5.5, 6.0]]


def test_the_histogram_of_importance_samples_is_the_pdf():
    """Binomial counts within five standard deviations, over bins of unequal width, some of them without weight."""
    weights = torch.tensor([[0.0, 3.0, 0.5, 0.0, 1.0, 8.0, 0.01]])
    edges = torch.tensor([[2.0, 2.5, 2.6, 3.0, 4.0, 4.1, 5.0, 6.0]])
    n = 200_000
    samples = sample_pdf(edges, weights, n, torch.rand(1, n, generator=torch.Generator().manual_seed(0)))
    p = (weights[0] / weights.sum()).double().numpy()
    counts, _ = np.histogram(samples[0].numpy(), edges[0].numpy())
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 5).all()
    inside = samples[0][(samples[0] > 4.1) & (samples[0] < 5.0)]
    thirds, _ = np.histogram(inside.numpy(), [4.1, 4.4, 4.7, 5.0])
    assert (np.abs(thirds - len(inside) / 3) <= 5 * np.sqrt(len(inside) * 2 / 9)).all()


@pytest.mark.parametrize("bins", [1, 2, 7])
def test_without_weights_importance_samples_are_uniform(bins):
    edges = torch.linspace(2, 6, bins + 1)[None]
    assert_close(sample_pdf(edges, torch.zeros(1, bins), 13), np.linspace(2, 6, 13)[None])


def test_no_gradient_flows_through_importance_samples():
    edges = torch.linspace(0, 1, 5)[None].requires_grad_()
    weights = torch.rand(1, 4).requires_grad_()
    assert not sample_pdf(edges, weights, 6, torch.rand(1, 6)).requires_grad
