"""The fused field: hash grid, density network and colour network as one function (instant-ngp's NeRF model)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.hash_grid import encode_grid_reference
from nerfit.kernels.layouts import HIGHEST_RAW, Network
from nerfit.kernels.spherical_harmonics import spherical_harmonics_reference


def field(x: Float[Tensor, "n 3"], d: Float[Tensor, "n 3"], network: Network) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Density exp(raw) [n] per unit length and colour sigmoid(raw) [n, 3] of a radiance field (Müller et al. 2022, section 5.4).

    Args:
        x: Positions [n, 3] in the field's cube [0, 1]³.
        d: Unit view directions [n, 3].
        network: Table and weights. A table that has a ``grad`` gets its gradient added there directly.

    Differentiable in positions, table and weights, not in directions.
    """
    if backend(x.device) == "reference" or x.dtype != torch.float32:
        return field_reference(x, d, network)
    return _Field.apply(x, d, network.table, network.weights, network)


def field_reference(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    """`field` in PyTorch, in any precision."""
    *_, color1, color2, out = network.shape.split(network.weights)
    geo_features = _geo_features(x, network)
    joint = torch.cat([geo_features, spherical_harmonics_reference(d.detach())], -1)
    color = torch.relu(torch.relu(joint @ color1.T) @ color2.T) @ out[:3].T
    return torch.exp(geo_features[:, 0].clamp(max=HIGHEST_RAW)), torch.sigmoid(color)


def _geo_features(x: Tensor, network: Network) -> Tensor:
    """Outputs [n, 16] of the density network."""
    hidden, to_geo_features, *_ = network.shape.split(network.weights)
    features = encode_grid_reference(x, network.table, network.shape.grid)
    return torch.relu(features @ hidden[:, : features.shape[1]].T) @ to_geo_features.T


@torch.no_grad()
def field_density(x: Float[Tensor, "n 3"], network: Network) -> Float[Tensor, "n"]:
    """The density [n] of `field` at positions x [n, 3] in the field's cube, without colours and gradients."""
    if backend(x.device) == "reference" or x.dtype != torch.float32:
        return torch.exp(_geo_features(x, network)[:, 0].clamp(max=HIGHEST_RAW))
    return implementation(x.device, "field").density(x.contiguous(), network)


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, table: Tensor, weights: Tensor, network: Network) -> Any:
        x, d = x.contiguous(), d.contiguous()
        density, rgb, features = implementation(x.device, "field").field_forward(x, d, network)
        ctx.save_for_backward(x, d, table, weights, features)
        ctx.network, ctx.done = network, False
        return density, rgb

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_density: Tensor, g_rgb: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, d, table, _, features = ctx.saved_tensors
        if ctx.done:
            raise RuntimeError("the fused field goes backward once: its kept features have become their own gradients.")
        ctx.done = True
        wants_x, _, wants_table, _, _ = ctx.needs_input_grad
        network, fields, grids = ctx.network, implementation(x.device, "field"), implementation(x.device, "hash_grid")
        g_features, g_weights = fields.field_backward(d, features, network, g_density.contiguous(), g_rgb.contiguous())
        g_table = None
        if wants_table:
            into = torch.zeros_like(table) if table.grad is None else table.grad
            grids.scatter(x, g_features, network.shape.grid, into)
            g_table = into if table.grad is None else None
        g_x = grids.position_gradient(x, g_features, table, network.shape.grid) if wants_x else None
        return g_x, None, g_table, g_weights, None
