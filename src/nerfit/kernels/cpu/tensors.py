"""What the CPU bodies make of tensors and of the shapes of grids and networks."""

from typing import Any

import numpy as np
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu import amx
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.layouts import Cutoffs, GridLayout, March, Network

f32 = np.float32


def array(tensor: Tensor) -> Any:
    """A tensor's memory as a NumPy array."""
    return tensor.detach().numpy()


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """Tensors' memory as NumPy arrays, row after row: what travels together enters a kernel as one tuple."""
    return tuple(array(t.contiguous()) for t in tensors)


def blocks_of(n: int) -> int:
    """Blocks of LANES samples that hold ``n``."""
    return (n + LANES - 1) // LANES


def grid(layout: GridLayout) -> tuple[Any, Any, int]:
    """Resolutions, offsets and entries of the levels."""
    return layout.resolutions, layout.offsets, layout.entries


def matrices(network: Network) -> tuple[Any, int, int, bool]:
    """Weights, depth of the features, width, and whether products use the processor's bf16 tiles."""
    shape = network.shape
    return array(network.weights), shape.grid.depth, shape.width, network.half and amx.has_tiles()


def field_arrays(network: Network) -> tuple[Any, ...]:
    """Table, `grid` and `matrices`."""
    return array(network.table), *grid(network.shape.grid), *matrices(network)


def march_arrays(march: March) -> tuple[Any, ...]:
    """Box, bits, distances, cascades, resolution, step and cone angle."""
    o = march.occupancy
    return array(o.box), array(o.bits), array(o.distance), o.cascades, layouts.RESOLUTION, f32(march.step), f32(march.cone_angle)


def cutoff_numbers(cutoffs: Cutoffs) -> tuple[Any, Any]:
    """Least weight and early stop."""
    return f32(cutoffs.min_weight), f32(cutoffs.early_stop)
