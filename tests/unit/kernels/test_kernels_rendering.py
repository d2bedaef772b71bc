"""Rays to colours in one kernel against the chain of definitions in float64, and the table's gradient in factors."""

# pyright: reportCallIssue=false

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.compositing import composite_packed_reference
from nerfit.kernels.cpu import rendering, runtime
from nerfit.kernels.field import field_reference
from nerfit.kernels.layouts import (
    RESOLUTION,
    AdamStep,
    Cutoffs,
    FactoredGradient,
    FieldShape,
    GridLayout,
    March,
    Network,
    Occupancy,
    RaySet,
    contract,
)
from nerfit.kernels.marching import march_rays, pack_occupancy
from nerfit.kernels.rendering import Rendered, render_rays

SHAPE = FieldShape(GridLayout(4, 10, 4, 64), 32)
STEP = 0.021


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """One thread and two: a thread's slots are its own."""
    monkeypatch.setattr(runtime, "threads", request.param)
    yield request.param


def scene(n: int, fill: str, cascades: int) -> tuple[RaySet, Occupancy, Network]:
    """n rays with directions of several lengths, the occupancy that they march through, and a field."""
    generator = torch.Generator().manual_seed(n)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    towards = torch.nn.functional.normalize(uniform(n, 3) - 0.5, dim=-1)
    origins, directions = 0.5 - towards + 0.3 * (uniform(n, 3) - 0.5), towards * (0.5 + uniform(n, 1))
    near, far = 0.1 * uniform(n), 1 + 2 * uniform(n)
    share = {"empty": 0.0, "random": 0.3, "full": 1.0}[fill]
    occupancy = pack_occupancy((uniform(cascades * RESOLUTION**3) < share).float(), 0.5)
    weights = torch.cat([((uniform(r, c) - 0.5) * 3 / c**0.5).flatten() for r, c in SHAPE.matrices])
    rays = RaySet(origins, directions, towards, near, far, uniform(n))
    return rays, occupancy, Network(uniform(SHAPE.grid.size) * 2 - 1, weights, SHAPE)


def leaves_of(network: Network, kind: torch.dtype = torch.float32) -> Network:
    """The same field as a leaf of gradients."""
    return replace(network, **{k: getattr(network, k).detach().clone().to(kind).requires_grad_() for k in ("table", "weights")})


def gradients_of(rendered: Rendered, network: Network) -> list[Tensor]:
    """Of a loss that reads every output."""
    assert rendered.weights is not None
    sign = torch.cos(torch.arange(rendered.color.numel())).reshape(rendered.color.shape).to(rendered.color)
    loss = (sign * rendered.color).sum() + rendered.opacity.square().sum() + (0.3 * rendered.depth).sum()
    (loss + rendered.weights.square().sum()).backward()
    assert network.table.grad is not None
    assert network.weights.grad is not None
    return [network.table.grad, network.weights.grad]


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@pytest.mark.parametrize("fill", ["empty", "random", "full"])
@pytest.mark.parametrize("cascades, cone_angle", [(1, 0.0), (3, 0.01)])
def test_values_and_gradients_follow_the_definitions(n, fill, cascades, cone_angle):
    if n == 1000 and fill == "full":
        n = 100
    rays, occupancy, network = scene(n, fill, cascades)
    march, network = March(occupancy, STEP, cone_angle), leaves_of(network)
    mine = render_rays(rays, march, network, Cutoffs(0.0, 0.0), near_falloff=0.7, packed=True)
    mine_g = gradients_of(mine, network)
    samples = mine.samples
    assert samples is not None
    assert len(samples) == mine.kept == mine.evaluated == len(march_rays(rays, march))
    exact = leaves_of(network, torch.float64)
    ray = samples.ray_indices.long()
    density, rgb = field_reference(samples.x.double(), rays.viewdirs[ray].double(), exact)
    t = 0.5 * (samples.t_starts + samples.t_ends).double()
    share = (t / 0.7).square().clamp(max=1)
    density.register_hook(lambda g: g * share)
    rgb.register_hook(lambda g: g * share[:, None])
    length = (samples.t_ends - samples.t_starts).double() * rays.directions.double().norm(dim=-1)[ray]
    true = Rendered(*composite_packed_reference(density, rgb, length, t, samples.offsets, 0.0)[:3], 0, 0)
    true.weights = composite_packed_reference(density, rgb, length, t, samples.offsets, 0.0)[3]
    for name in ("color", "opacity", "depth", "weights"):
        assert_close(getattr(mine, name), getattr(true, name), 1e-4)
    for a, b in zip(mine_g, gradients_of(true, exact), strict=True):
        assert_close(a, b, 1e-4)
    if fill == "empty" or n == 0:
        assert mine.kept == 0
        assert not mine.color.any()
        assert not any(g.any() for g in mine_g)


@pytest.mark.parametrize("near_falloff", [0.0, 1.5])
def test_samples_that_matter_little_are_left_out_of_colours_and_gradients_alike(near_falloff):
    """The chain of CPU kernels that each have tests of their own is the twin: it leaves out the same samples."""
    rays, occupancy, network = scene(400, "random", 1)
    found = []
    for fused in (True, False):
        leaves = leaves_of(network)
        with pytest.MonkeyPatch.context() as patch:
            if not fused:
                patch.setattr("nerfit.kernels.rendering.backend", lambda _: "reference")
            rendered = render_rays(rays, March(occupancy, STEP), leaves, Cutoffs(0.02, 0.1), near_falloff, True)
        found.append((rendered, gradients_of(rendered, leaves)))
    (mine, mine_g), (chain, chain_g) = found
    assert mine.kept == chain.kept < 0.7 * mine.evaluated
    assert mine.samples is not None
    assert chain.samples is not None
    assert torch.equal(mine.samples.t_starts, chain.samples.t_starts)
    for name in ("color", "opacity", "depth", "weights"):
        assert_close(getattr(mine, name), getattr(chain, name), 1e-5)
    for a, b in zip(mine_g, chain_g, strict=True):
        assert_close(a, b, 1e-5)


def test_evaluation_gives_the_picture_of_training(monkeypatch):
    """Without gradients nothing is kept, of a network that learns neither; with too few slots everything is done again."""
    rays, occupancy, network = scene(300, "random", 1)
    monkeypatch.setattr(rendering, "_room", 1)
    with torch.no_grad():
        plain = render_rays(rays, March(occupancy, STEP), leaves_of(network), Cutoffs(1e-3, 1e-3))
    assert rendering._room == 1
    kept = render_rays(rays, March(occupancy, STEP), leaves_of(network), Cutoffs(1e-3, 1e-3))
    assert rendering._room > 1
    assert plain.kept == kept.kept
    for name in ("color", "opacity", "depth"):
        assert torch.equal(getattr(plain, name), getattr(kept, name).detach())


def test_rendering_goes_backward_once():
    rays, occupancy, network = scene(20, "random", 1)
    rendered = render_rays(rays, March(occupancy, STEP), leaves_of(network), Cutoffs(0.0, 0.0))
    rendered.color.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        rendered.color.sum().backward()


@pytest.mark.parametrize("by_level", [False, True])
@pytest.mark.parametrize("levels, log2_entries", [(1, 8), (5, 9), (6, 14)])
def test_adam_on_a_gradient_in_factors_is_adam_on_its_sum(levels, log2_entries, by_level):
    """Bit by bit, over several steps: the first leaves its working space as it found it."""
    shape = FieldShape(GridLayout(levels, log2_entries, 4, 256), 32)
    rays, occupancy, _ = scene(200, "random", 1)
    generator = torch.Generator().manual_seed(1)
    start, weights = (torch.rand(size, generator=generator) - 0.5 for size in (shape.grid.size, shape.size))
    found = []
    for factored in (False, True):
        table = start.clone().requires_grad_()
        m, v = torch.zeros_like(start), torch.zeros_like(start)
        for step in range(1, 4):
            if factored:
                setattr(table, "factored_gradients", [])  # noqa: B010
            network = Network(table, weights, shape)
            rendered = render_rays(rays[:: step + 1], March(occupancy, STEP), network, Cutoffs(1e-3, 1e-3))
            rendered.color.square().sum().backward()
            gradient: Tensor | FactoredGradient | None = table.grad
            if factored:
                assert table.grad is None
                (gradient,) = getattr(table, "factored_gradients")  # noqa: B009
            assert gradient is not None
            begins = (4 * shape.grid.offsets).tolist() if by_level else ()
            sparse_adam(table, gradient, m, v, AdamStep(step, 0.01, (0.9, 0.99), 1e-15, 0.1), begins)
        found.append((table.detach(), m, v))
    assert (found[0][0] != start).any()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_contraction_keeps_the_unit_cube_and_reaches_the_border_at_infinity():
    x = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.7, 1.0], [0.5, 0.5, 2.5], [-1e6, 0.5, 0.5]])
    assert_close(contract(x, 3), torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.6, 0.75], [0.5, 0.5, 0.9375], [0.0, 0.5, 0.5]]), 1e-6)
    assert contract(x, 1) is x
