"""The distortion loss of packed samples against its definition, pair by pair."""

import numpy as np
import torch

from conftest import assert_close
from nerfit.rendering.distortion import distortion_packed


def test_it_follows_its_definition_and_so_does_its_gradient():
    generator = torch.Generator().manual_seed(0)
    counts = [3, 0, 1, 40, 0, 7]
    offsets = torch.tensor([0, *np.cumsum(counts)])
    edges = [torch.rand(2 * n, generator=generator, dtype=torch.float64).sort().values for n in counts]
    s0, s1 = torch.cat([e[::2] for e in edges]), torch.cat([e[1::2] for e in edges])
    weights = torch.rand(sum(counts), generator=generator, dtype=torch.float64, requires_grad=True)
    twin = []
    for begin, n in zip(offsets.tolist(), counts, strict=False):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(begin, begin + n):
            loss = loss + weights[i] ** 2 * (s1[i] - s0[i]) / 3
            for j in range(begin, begin + n):
                loss = loss + weights[i] * weights[j] * abs(0.5 * (s0[i] + s1[i]) - 0.5 * (s0[j] + s1[j]))
        twin.append(loss)
    (expected,) = torch.autograd.grad(torch.stack(twin).square().sum(), weights)
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        w = weights.detach().to(kind).requires_grad_()
        found = distortion_packed(w, s0.to(kind), s1.to(kind), offsets)
        assert_close(found, torch.stack(twin), tolerance)
        (gradient,) = torch.autograd.grad(found.square().sum(), w)
        assert_close(gradient, expected, tolerance)


def test_one_thin_surface_costs_nothing_and_two_their_distance():
    offsets = torch.tensor([0, 1, 3])
    s0, s1 = torch.tensor([0.3, 0.2, 0.7]), torch.tensor([0.3, 0.2, 0.7])
    found = distortion_packed(torch.tensor([1.0, 0.5, 0.5]), s0, s1, offsets)
    assert_close(found, torch.tensor([0.0, 0.25]))
