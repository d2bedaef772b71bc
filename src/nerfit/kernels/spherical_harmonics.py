"""Real spherical harmonics of degree < 4, the usual encoding of view directions (instant-ngp; Sloan 2013, appendix A2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation


def spherical_harmonics(d: Float[Tensor, "n 3"]) -> Float[Tensor, "n 16"]:
    """The 16 values for unit directions; no gradient."""
    if backend(d.device) == "reference" or d.dtype != torch.float32:
        return spherical_harmonics_reference(d.detach())
    return implementation(d.device, "spherical_harmonics").spherical_harmonics(d.detach().contiguous())


def spherical_harmonics_reference(d: Tensor) -> Tensor:
    """`spherical_harmonics` in PyTorch, in any precision."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    rows = [
        torch.full_like(x, 0.28209479177387814),
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * zz - xx - yy),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * zz - xx - yy),
        0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
        -0.4570457994644658 * x * (4 * zz - xx - yy),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]
    return torch.stack(rows, -1)
