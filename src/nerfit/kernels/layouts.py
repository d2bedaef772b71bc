"""The data that kernels share: shapes of grids and networks, occupancy grids, packed samples, sparse gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.errors import ConfigError

FEATURES = 4
"""Numbers per table entry: one 16-byte load."""
PRIMES = (1, 2654435761, 805459861)
GEO_FEATURES = 16
"""Outputs of the density network; the first is the raw density."""
HIGHEST_RAW = 15.0
"""exp of more is cut off."""
RESOLUTION = 128
"""Cells along each side of a cascade."""
BLOCKS = RESOLUTION // 2
FARTHEST = 15
"""Largest distance to matter, in blocks of 2x2x2 cells, that the march knows of."""
LEAST_SHARE = 1e-5
"""A bin with less of the ray's weight than this is not resolved: its samples stay at its near edge."""
ATTEMPTS = 12
"""Pixels that are tried before an empty one is taken after all."""


@dataclass(frozen=True)
class GridLayout:
    """Sizes of a hash grid: ``levels`` grids of ``coarsest`` to ``finest`` cells along the cube, each of at most 2^log2_entries entries."""

    levels: int = 8
    log2_entries: int = 18
    coarsest: int = 16
    finest: int = 2048

    def __post_init__(self) -> None:
        if not (1 <= self.levels <= 32 and 8 <= self.log2_entries <= 24 and 1 <= self.coarsest <= self.finest <= 2**20):
            raise ConfigError(
                "a hash grid needs 1 to 32 levels of 2^8 to 2^24 entries and 1 <= coarsest <= finest <= 2^20, "
                f"not {self.levels}, 2^{self.log2_entries}, {self.coarsest} and {self.finest}."
            )

    @property
    def entries(self) -> int:
        """Most entries of a level, T."""
        return 2**self.log2_entries

    @cached_property
    def resolutions(self) -> np.ndarray:
        """Cells per level along an edge: floor(coarsest·bˡ), b = (finest/coarsest)^(1/(levels-1)) (equations 2 and 3)."""
        growth = (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))
        return np.floor(self.coarsest * growth ** np.arange(self.levels) + 1e-6).astype(np.int32)

    @cached_property
    def offsets(self) -> np.ndarray:
        """First entry of each level, and the number of all entries: levels start at multiples of 16."""
        sizes = [(min((int(r) + 1) ** 3, self.entries) + 15) // 16 * 16 for r in self.resolutions]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def size(self) -> int:
        """Floats in the table."""
        return int(self.offsets[-1]) * FEATURES

    @property
    def depth(self) -> int:
        """Channels of the encoding, padded with zeros to a multiple of 32."""
        return (self.levels * FEATURES + 31) // 32 * 32


@dataclass(frozen=True)
class FieldShape:
    """grid → ``width`` → 16, then 16 + 16 (direction) → ``width`` → ``width`` → 3; ReLU between, no biases."""

    grid: GridLayout
    width: int = 64

    def __post_init__(self) -> None:
        if self.width % 32 or not 32 <= self.width <= 256:
            raise ConfigError(f"the networks' width must be a multiple of 32 up to 256, not {self.width}.")

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of the five weight matrices; the last has 16 rows, of which 3 are used."""
        w = self.width
        return [(w, self.grid.depth), (GEO_FEATURES, w), (w, 2 * GEO_FEATURES), (w, w), (GEO_FEATURES, w)]

    @property
    def size(self) -> int:
        """Numbers in all matrices."""
        return sum(rows * columns for rows, columns in self.matrices)

    def split(self, weights: Tensor) -> Iterator[Tensor]:
        """The matrices as views of the flat weights."""
        start = 0
        for rows, columns in self.matrices:
            yield weights[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns

    def flops(self) -> int:
        """Floating-point operations of the networks, per sample, forward: two per weight in use."""
        w = self.width
        return 2 * (w * 4 * self.grid.levels + GEO_FEATURES * w + 2 * GEO_FEATURES * w + w * w + 3 * w)


@dataclass(frozen=True)
class Network:
    """The parameters of a field: hash table and weight matrices, with their sizes."""

    table: Float[Tensor, "size"]
    """Entries of all levels of the hash grid, flat, `FEATURES` numbers an entry."""
    weights: Float[Tensor, "weights"]
    """`FieldShape.matrices` one after another, flat; of a field without colours only the first two."""
    shape: FieldShape
    half: bool = False
    """Matrix products take bfloat16 inputs on hardware that has them; sums stay float32."""


@dataclass(frozen=True)
class RaySet:
    """Rays o + t·d in cascade coordinates (`Occupancy`)."""

    origins: Float[Tensor, "rays 3"]
    directions: Float[Tensor, "rays 3"]
    """Of any length: distances t are in units of it."""
    viewdirs: Float[Tensor, "rays 3"]
    """Unit directions."""
    near: Float[Tensor, "rays"]
    far: Float[Tensor, "rays"]
    jitter: Float[Tensor, "rays"]
    """March steps, from 0 to 1, between a ray's entry and its first sample."""

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: Any) -> "RaySet":
        return self.each(lambda t: t[index])

    def each(self, function: Callable[[Tensor], Tensor]) -> "RaySet":
        """The same rays after ``function`` of each tensor."""
        return RaySet(*(function(getattr(self, f.name)) for f in fields(self)))


@dataclass
class Occupancy:
    """Cascade k is a cube of side 2ᵏ around (½, ½, ½), of 128³ cells; cascade 0 is the unit cube."""

    bits: UInt8[Tensor, "cascades*128**3/8"]
    """One bit per cell, x fastest, lowest bit first."""
    distance: UInt8[Tensor, "cascades*64**3"]
    """Each 2x2x2 block's Chebyshev distance, in blocks and at most 15, to one with an occupied cell in the same cascade."""
    box: Float[Tensor, "2 3"]
    """Lower and upper corner of a box that holds all occupied cells."""

    @property
    def cascades(self) -> int:
        """Number of cubes."""
        return len(self.distance) // BLOCKS**3


@dataclass(frozen=True)
class March:
    """How rays are sampled: at occupied cells, in steps ``step`` long, or t·``cone_angle`` if that is more."""

    occupancy: Occupancy
    step: float
    """In sides of the unit cube."""
    cone_angle: float = 0.0
    """Step growth per unit distance."""


@dataclass(frozen=True)
class Cutoffs:
    """Which samples get a colour and a gradient."""

    min_weight: float
    """Least rendering weight of a sample."""
    early_stop: float
    """Transmittance below which a ray stops."""


@dataclass
class Samples:
    """Packed samples: those of ray i are offsets[i] … offsets[i + 1] - 1, front to back."""

    ray_indices: Int[Tensor, "samples"]
    t_starts: Float[Tensor, "samples"]
    t_ends: Float[Tensor, "samples"]
    x: Float[Tensor, "samples 3"]
    """Middles, as positions in the field's cube (`contract`)."""
    offsets: Int[Tensor, "rays_plus_1"]
    evaluated: int = 0
    """Densities that were evaluated to find them."""

    def __len__(self) -> int:
        return len(self.t_starts)

    @property
    def middles(self) -> Float[Tensor, "samples"]:
        """Distances t of the samples' middles."""
        return 0.5 * (self.t_starts + self.t_ends)

    def lengths(self, norm: Float[Tensor, "rays"]) -> Float[Tensor, "samples"]:
        """Lengths of the samples, where ``norm`` is that of each ray's direction."""
        return (self.t_ends - self.t_starts) * norm[self.ray_indices.long()]


@dataclass
class FactoredGradient:
    """A hash table's gradient as positions and the gradients of their features, summed by the optimiser (CPU kernels).

    Parameters with a list ``factored_gradients`` get it there instead of in ``grad``: a sum over the whole table costs more than all else.
    """

    positions: Any
    """[rows, 3·room] positions in blocks of channels, as the kernels keep them."""
    features: Any
    """[rows, depth·room] gradients of the features there."""
    count: list[int]
    """Samples in each row."""
    layout: GridLayout


def occupied_box(distance: Tensor) -> Float[Tensor, "2 3"]:
    """A box around all blocks at distance 0; the empty box (½, ½) if there is none."""
    cascades = len(distance) // BLOCKS**3
    low, high = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
    for level in range(cascades):
        matter = distance.reshape(cascades, BLOCKS, BLOCKS, BLOCKS)[level] == 0
        for axis, others in enumerate(((0, 1), (0, 2), (1, 2))):  # x is the last dimension
            found = matter.any(others[1]).any(others[0]).nonzero().flatten().cpu()
            if len(found):
                ends = torch.stack([found[0], found[-1] + 1]) / BLOCKS
                ends = (ends - 0.5) * 2**level + 0.5
                low[axis], high[axis] = torch.minimum(low[axis], ends[0]), torch.maximum(high[axis], ends[1])
    box = torch.stack([low, high]) if bool(torch.isfinite(low).all()) else torch.full((2, 3), 0.5)
    return box.to(distance.device)


def contract(x: Float[Tensor, "n 3"], cascades: int) -> Float[Tensor, "n 3"]:
    """Positions in cascade coordinates as positions in the field's cube [0, 1]³.

    With one cascade they are the same. Else the unit cube becomes the middle of the field's, half as long on each side, and all of
    space around it the rest, squeezed as 1/distance: mip-NeRF 360's equation 10, with the largest coordinate for the norm.
    """
    if cascades == 1:
        return x
    reach = 2 * (x - 0.5).abs().amax(-1, keepdim=True).clamp(min=0.5)
    return 0.5 * (2 - 1 / reach) / reach * (x - 0.5) + 0.5


@dataclass(frozen=True)
class PixelTable:
    """The stored pixels of all views, row after row, view after view."""

    pixels: UInt8[Tensor, "all channels"]
    """Colours, with alpha or without."""
    starts: Int[Tensor, "views"]
    """Each view's first pixel."""
    width: Int[Tensor, "views"]
    """Columns of each view."""
    height: Int[Tensor, "views"]
    """Rows of each view."""


@dataclass(frozen=True)
class Optics:
    """What `camera_rays` needs to know about a batch of cameras, in the conventions of `Cameras`."""

    c2w: Float[Tensor, "views 3 4"]
    fx: Float[Tensor, "views"]
    fy: Float[Tensor, "views"]
    cx: Float[Tensor, "views"]
    cy: Float[Tensor, "views"]
    lens: Int[Tensor, "views"] | None
    """Indices into `nerfit.cameras.lenses.LENSES`; None if all are perspective."""
    distortion: Float[Tensor, "views 13"] | None
    offset: float
    """The point of a pixel where its ray starts: 0.5 is the centre."""
    iterations: int
    """Newton steps that take the distortion away."""


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one Adam step."""

    step: int
    """Number of this step, from 1 on; the bias is corrected as if every entry had had a gradient each time."""
    lr: float
    """Learning rate."""
    betas: tuple[float, float]
    """Decay rates of the means of gradients and of their squares."""
    eps: float
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """Factor of an L2 penalty, on entries with a gradient only."""

    def rates(self) -> tuple[float, float, float, float, float]:
        """lr/(1 - β₁ᵗ), β₁, β₂, ε and 1/(1 - β₂ᵗ): what a step multiplies by."""
        beta1, beta2 = self.betas
        return self.lr / (1 - beta1**self.step), beta1, beta2, self.eps, 1 / (1 - beta2**self.step)
