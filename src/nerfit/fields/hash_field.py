"""A radiance field on a hash grid (instant-ngp), whose whole evaluation is one fused kernel."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.kernels.field import field, field_density
from nerfit.kernels.intervals import density_along
from nerfit.kernels.layouts import FieldShape, GridLayout, Network, RaySet
from nerfit.kernels.memory import in_large_pages


class HashField(nn.Module):
    """Density and colour at positions in [0, 1]³ from a hash grid and two small networks."""

    def __init__(self, shape: FieldShape) -> None:
        super().__init__()
        self.shape = shape
        self.table = nn.Parameter(in_large_pages(torch.empty(shape.grid.size)).uniform_(-1e-4, 1e-4))
        self.weights = nn.Parameter(torch.cat([w.flatten() for w in _initial(shape)]))

    def forward(
        self, x: Float[Tensor, "n 3"], d: Float[Tensor, "n 3"], half: bool, opened: Float[Tensor, "levels"] | None = None
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
        """Density [n] per unit length of the cube, and colour [n, 3] in [0, 1] along unit directions; ``opened`` as in `network`."""
        return field(x, d, self.network(half, opened))

    def network(self, half: bool, opened: Float[Tensor, "levels"] | None = None) -> Network:
        """Table and weights as kernels take them; ``opened`` scales each grid level's features, from 0 to 1."""
        return Network(self.table, self.weights_behind(opened), self.shape, half)

    def weights_behind(self, opened: Float[Tensor, "levels"] | None) -> Tensor:
        """The networks' weights for grid levels scaled by ``opened``: the scales go into the columns of the first matrix."""
        if opened is None:
            return self.weights
        rows, columns = self.shape.matrices[0]
        share = torch.zeros(columns, device=self.weights.device)
        share[: 4 * len(opened)] = opened.to(share).repeat_interleave(4)
        rest = torch.ones(len(self.weights) - rows * columns, device=self.weights.device)
        return self.weights * torch.cat([share.repeat(rows), rest])

    def density(self, x: Float[Tensor, "n 3"], half: bool, opened: Float[Tensor, "levels"] | None = None) -> Float[Tensor, "n"]:
        """Density alone, differentiable in positions at most."""
        network = Network(self.table.detach(), self.weights_behind(opened).detach(), self.shape, half)
        if torch.is_grad_enabled() and x.requires_grad:
            return field(x, torch.zeros_like(x), network)[0]
        return field_density(x, network)


class HashDensity(nn.Module):
    """Density alone in contracted space, from a small hash grid and one hidden layer: it proposes where a field is sampled."""

    def __init__(self, grid: GridLayout, width: int = 32) -> None:
        super().__init__()
        self.shape = FieldShape(grid, width)
        self.table = nn.Parameter(in_large_pages(torch.empty(grid.size)).uniform_(-1e-4, 1e-4))
        hidden, out = _initial(self.shape)[:2]
        out[1:] = 0
        self.weights = nn.Parameter(torch.cat([hidden.flatten(), out.flatten()]))

    def forward(self, rays: RaySet, edges: Float[Tensor, "rays samples+1"], half: bool) -> Float[Tensor, "rays samples"]:
        """Density per side of the unit box in the middles of intervals of rays in cascade coordinates, with gradients."""
        return density_along(rays, edges, Network(self.table, self.weights, self.shape, half))


def _initial(shape: FieldShape) -> list[Tensor]:
    """He-uniform matrices; unused columns and rows are zero."""
    found = []
    for number, (rows, columns) in enumerate(shape.matrices):
        w = torch.empty(rows, columns).uniform_(-1, 1) * math.sqrt(6 / columns)
        if number == 0:
            w[:, 4 * shape.grid.levels :] = 0
        if number == 4:
            w[3:] = 0
        found.append(w)
    return found
