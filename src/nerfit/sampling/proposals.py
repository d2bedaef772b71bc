"""Intervals drawn from what a level of proposals saw, on a ladder of distances that reaches as far as a scene does."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend
from nerfit.rendering.volume import render_weights
from nerfit.sampling.histograms import resample


def power_ladder(x: Tensor, power: float) -> Tensor:
    """|λ-1|/λ ((x/|λ-1| + 1)^λ - 1) for distances x >= 0 (Zip-NeRF, supplement): x itself for λ = 1, log(1 + x) for 0, 2x/(x + 2) for -1.

    Curves that begin alike, with slope 1, and grow the slower the lower their power λ <= 1.
    """
    if power == 1:
        return x
    if power == 0:
        return torch.log1p(x)
    scale = abs(power - 1)
    return scale / power * torch.expm1(power * torch.log1p(x / scale))


def inverse_power_ladder(y: Tensor, power: float) -> Tensor:
    """The x of which y is the `power_ladder`."""
    if power == 1:
        return y
    if power == 0:
        return torch.expm1(y)
    scale = abs(power - 1)
    return scale * torch.expm1(torch.log1p(power / scale * y) / power)


class Intervals(NamedTuple):
    """Edges of intervals along rays."""

    s: Float[Tensor, "rays samples+1"]
    """As shares of the way from near to far on a ladder."""
    t: Float[Tensor, "rays samples+1"]
    """As distances."""


@dataclass(frozen=True)
class Ladder:
    """Distances of rays on the `power_ladder` of their multiples by ``multiple``: even steps of it are even close by, and grow behind."""

    power: float
    multiple: float

    def ends(self, near: Float[Tensor, "rays"], far: Float[Tensor, "rays"]) -> tuple[Tensor, Tensor]:
        """Where the ladder begins and ends."""
        return power_ladder(self.multiple * near, self.power), power_ladder(self.multiple * far, self.power)

    def distances(self, low: Float[Tensor, "rays"], high: Float[Tensor, "rays"], s: Float[Tensor, "rays edges"]) -> Tensor:
        """Distances t at shares s of the way between ``ends``."""
        return inverse_power_ladder(low[:, None] + s * (high - low)[:, None], self.power) / self.multiple

    def even(self, low: Float[Tensor, "rays"], high: Float[Tensor, "rays"], samples: int, jitter: Float[Tensor, "rays 1"]) -> Intervals:
        """Intervals around samples at shares (i + jitter)/samples of the way, as `resample` makes them of one bin."""
        order = torch.arange(samples + 1, device=low.device, dtype=low.dtype)
        s = ((order + jitter - 0.5) / samples).clamp(0, 1)
        return Intervals(s, self.distances(low, high, s))

    @torch.no_grad()
    def draw(
        self,
        low: Float[Tensor, "rays"],
        high: Float[Tensor, "rays"],
        last: Intervals,
        density: Float[Tensor, "rays bins"],
        norm: Float[Tensor, "rays"],
        samples: int,
        jitter: Float[Tensor, "rays 1"],
        exponent: float,
        padding: float,
    ) -> tuple[Float[Tensor, "rays bins"], Intervals]:
        """The weights of the ``last`` intervals, and others drawn (`resample`) from weights^exponent + padding; no gradient flows.

        ``norm`` is the length of the rays' directions where densities are measured.
        """
        if backend(density.device) == "cpu" and density.dtype == torch.float32:
            from nerfit.kernels.cpu import intervals

            ladder = (low, high, self.power, 1 / self.multiple)
            weights, s, t = intervals.draw((*last, density, norm), ladder, (jitter, exponent, padding), samples)
            return weights, Intervals(s, t)
        weights = render_weights(density, last.t.diff() * norm[:, None])
        s = resample(last.s, weights**exponent, samples, jitter, padding)
        return weights, Intervals(s, self.distances(low, high, s))
