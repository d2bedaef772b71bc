"""The frequency (positional) encoding of NeRF."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def frequency_encoding(
    x: Float[Tensor, "*n dim"], frequencies: int, opened: Float[Tensor, "frequencies"] | None = None
) -> Float[Tensor, "*n features"]:
    """x, then sin(2^k x) and cos(2^k x) for k = 0 … frequencies-1 (NeRF, equation 4, with x itself in front, without π).

    ``opened`` weighs the octaves (`opened_levels`). Features: dim·(1 + 2·frequencies); 0 frequencies returns x.
    Computed in float32 or better whatever autocast says.
    """
    if frequencies == 0:
        return x
    scales = 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)
    phase = x[..., None, :] * scales[:, None]
    waves = torch.stack([torch.sin(phase), torch.cos(phase)], dim=-2)
    if opened is not None:
        waves = waves * opened.to(x)[:, None, None]
    return torch.cat([x, waves.flatten(-3)], dim=-1)


def opened_levels(levels: int, share: float) -> Float[Tensor, "levels"] | None:
    """Weights that open octaves or grid levels from coarse to fine as ``share`` goes from 0 to 1 (BARF, equation 14); None = all."""
    if share >= 1:
        return None
    position = (share * levels - torch.arange(levels)).clamp(0, 1)
    return (1 - torch.cos(math.pi * position)) / 2


def encoded_size(dim: int, frequencies: int) -> int:
    """How many features `frequency_encoding` makes of ``dim`` coordinates."""
    return dim * (1 + 2 * frequencies)
