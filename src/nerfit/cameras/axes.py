"""Names for the camera axes other programs use, and conversion between them."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import ConfigError, nearest

Axes = Literal["opengl", "opencv", "llff"]
"""opengl (ours): right, up, backwards. opencv (COLMAP too): right, down, forwards. llff: down, right, backwards."""

_COLUMNS: dict[str, list[list[float]]] = {  # each convention's axes as rows, in OpenGL camera coordinates
    "opengl": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "opencv": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "llff": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
}


def convert_axes(c2w: Float[Tensor, "*n rows columns"], source: Axes, target: Axes = "opengl") -> Float[Tensor, "*n rows columns"]:
    """The same cameras with their axes in another convention's order and signs; positions and the world stay.

    ``c2w`` is 3×3, 3×4 or 4×4, its first three columns the camera's axes in the world. Exact in every precision.
    Raises ConfigError for an unknown convention.
    """
    for name in (source, target):
        if name not in _COLUMNS:
            raise ConfigError(f"camera axes {name!r} are unknown{nearest(name, _COLUMNS)}; choose from {', '.join(get_args(Axes))}.")
    old, new = (torch.tensor(_COLUMNS[name], dtype=c2w.dtype, device=c2w.device) for name in (source, target))
    return torch.cat([c2w[..., :3] @ (old @ new.T), c2w[..., 3:]], -1)
