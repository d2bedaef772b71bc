"""Sample distances along rays. Pure functions; randomness comes in as uniform numbers, so None means deterministic."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import ConfigError
from nerfit.scenes.scene import Scene


def spaced(
    near: Float[Tensor, "rays"], far: Float[Tensor, "rays"], s: Float[Tensor, "*rays samples"], lindisp: bool
) -> Float[Tensor, "rays samples"]:
    """Distances at the shares ``s`` in [0, 1] of the way from near to far, measured in depth, or in inverse depth with ``lindisp``."""
    near, far = near[:, None], far[:, None]
    return 1 / (1 / near * (1 - s) + 1 / far * s) if lindisp else near * (1 - s) + far * s


def stratified(
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    samples: int,
    uniform: Float[Tensor, "rays samples"] | None = None,
    lindisp: bool = False,
) -> Float[Tensor, "rays samples"]:
    """Distances from near to far, evenly spaced in depth, or in inverse depth with ``lindisp`` (NeRF, equation 2).

    With ``uniform`` numbers in [0, 1) each sample moves anywhere between the mid-points to its neighbours.
    """
    s = torch.linspace(0, 1, samples, device=near.device, dtype=near.dtype)
    t = spaced(near, far, s, lindisp)
    if uniform is None:
        return t
    mids = 0.5 * (t[:, 1:] + t[:, :-1])
    lower, upper = torch.cat([t[:, :1], mids], -1), torch.cat([mids, t[:, -1:]], -1)
    return lower + (upper - lower) * uniform


def require_inverse_depth(lindisp: bool, scene: Scene) -> None:
    """Raise ConfigError where samples are to be spaced in an inverse depth (model.lindisp) that a scene doesn't have."""
    if lindisp and scene.ndc:
        raise ConfigError("model.lindisp has no meaning in NDC, whose depth is inverse already: add --scene.no-ndc or drop it.")
    if lindisp and scene.near <= 0:
        raise ConfigError("model.lindisp needs a near distance above 0: set --scene.near.")
