"""The fused field: hash grid, density network and colour network as one function (instant-ngp's NeRF model)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.hash_grid import encode_grid_reference
from nerfit.kernels.layouts import HIGHEST_RAW, FieldShape
from nerfit.kernels.spherical_harmonics import spherical_harmonics_reference


def field(
    x: Float[Tensor, "n 3"],
    d: Float[Tensor, "n 3"],
    table: Float[Tensor, "size"],
    weights: Float[Tensor, "weights"],
    shape: FieldShape,
    half: bool = False,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Density exp(raw) per unit length and colour (sigmoid) at positions in [0, 1]³ seen along unit directions.

    Differentiable in positions, table and weights (not in directions). A table that has a ``grad`` gets its gradient added
    there directly. ``half`` lets matrix products take bfloat16 inputs where the hardware has them; sums stay float32.
    """
    if backend(x.device) == "reference" or x.dtype != torch.float32:
        return field_reference(x, d, table, weights, shape)
    return _Field.apply(x, d, table, weights, shape, half)


def field_reference(x: Tensor, d: Tensor, table: Tensor, weights: Tensor, shape: FieldShape) -> tuple[Tensor, Tensor]:
    """`field` in PyTorch, in any precision."""
    hidden, to_code, color1, color2, out = shape.split(weights)
    code = _code(x, table, hidden, to_code, shape)
    joint = torch.cat([code, spherical_harmonics_reference(d.detach())], -1)
    color = torch.relu(torch.relu(joint @ color1.T) @ color2.T) @ out[:3].T
    return torch.exp(code[:, 0].clamp(max=HIGHEST_RAW)), torch.sigmoid(color)


def _code(x: Tensor, table: Tensor, hidden: Tensor, to_code: Tensor, shape: FieldShape) -> Tensor:
    features = encode_grid_reference(x, table, shape.grid)
    return torch.relu(features @ hidden[:, : features.shape[1]].T) @ to_code.T


@torch.no_grad()
def field_density(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "size"], weights: Float[Tensor, "weights"], shape: FieldShape, half: bool = False
) -> Float[Tensor, "n"]:
    """The density of `field` alone, without gradients."""
    if backend(x.device) == "reference" or x.dtype != torch.float32:
        hidden, to_code, *_ = shape.split(weights)
        return torch.exp(_code(x, table, hidden, to_code, shape)[:, 0].clamp(max=HIGHEST_RAW))
    return implementation(x.device, "field").density(x.contiguous(), table, weights, shape, half)


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, table: Tensor, weights: Tensor, shape: FieldShape, half: bool) -> Any:
        x, d = x.contiguous(), d.contiguous()
        density, rgb, features = implementation(x.device, "field").field_forward(x, d, table, weights, shape, half)
        ctx.save_for_backward(x, d, table, weights, features)
        ctx.shape, ctx.half, ctx.done = shape, half, False
        return density, rgb

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_density: Tensor, g_rgb: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, d, table, weights, features = ctx.saved_tensors
        if ctx.done:
            raise RuntimeError("the fused field goes backward once: its kept features have become their own gradients.")
        ctx.done = True
        wants_x, _, wants_table, _, _, _ = ctx.needs_input_grad
        bodies = implementation(x.device, "field")
        g_features, g_weights = bodies.field_backward(d, features, weights, ctx.shape, ctx.half, g_density.contiguous(), g_rgb.contiguous())
        g_table = None
        if wants_table:
            into = torch.zeros_like(table) if table.grad is None else table.grad
            bodies.scatter(x, g_features, ctx.shape.grid, into)
            g_table = into if table.grad is None else None
        g_x = bodies.position_gradient(x, g_features, table, ctx.shape.grid) if wants_x else None
        return g_x, None, g_table, g_weights, None, None
