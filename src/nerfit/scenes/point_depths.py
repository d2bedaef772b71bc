"""Points of a reconstruction as depths of the pixels that show them (DS-NeRF, Deng et al. 2022)."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerfit.cameras import Cameras


@dataclass
class PointDepths:
    """Single pixels (x, y) of views whose depth is known, and how far it is trusted, 0 to 1."""

    view: Int[Tensor, "n"]
    x: Int[Tensor, "n"]
    y: Int[Tensor, "n"]
    depth: Float[Tensor, "n"]
    trust: Float[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: Int[Tensor, "m"] | Bool[Tensor, "n"]) -> "PointDepths":
        """Those of an index tensor or a mask."""
        return PointDepths(*(getattr(self, f.name)[index] for f in fields(self)))


def point_depths(
    cameras: Cameras, points: Float[Tensor, "n 3"], error: Float[Tensor, "n"], view: Int[Tensor, "visible"], point: Int[Tensor, "visible"]
) -> PointDepths:
    """The pixels that ``points`` fall into where a ``view`` sees a ``point``, as far as they lie inside the picture.

    A depth is taken for the one along the pixel's middle. It is trusted as exp(-½(error/mean error)²), with the mean of all points'
    reprojection errors: DS-NeRF's weights of squared errors are squares of that (section 3.2 and the released code).
    """
    where, visible = cameras.project(view, points[point])
    pixel = where.floor().long()
    visible &= (pixel >= 0).all(-1) & (pixel[:, 0] < cameras.width[view]) & (pixel[:, 1] < cameras.height[view])
    trust = torch.exp(-0.5 * (error / error.mean().clamp(min=1e-9)).square())[point]
    depth = cameras.depths(view, points[point])
    return PointDepths(view, pixel[:, 0], pixel[:, 1], depth.float(), trust.float())[visible]
