"""LPIPS 0.1, the learned perceptual distance (Zhang et al. 2018), on AlexNet or VGG16 features."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.files import cache_folder
from nerfit.metrics.networks import PictureMetric, read_weights, with_weights

Net = Literal["alex", "vgg"]

Block = list[tuple[int, int, int, int, int, int]]
_STRIP = 1 << 21
"""Features of a strip of rows."""

# Blocks of (index in torchvision's `features`, in channels, out channels, kernel, stride, padding); a tap ends each block.
_ALEX = [[(0, 3, 64, 11, 4, 2)], [(3, 64, 192, 5, 1, 2)], [(6, 192, 384, 3, 1, 1)], [(8, 384, 256, 3, 1, 1)], [(10, 256, 256, 3, 1, 1)]]
_VGG = [
    [(0, 3, 64, 3, 1, 1), (2, 64, 64, 3, 1, 1)],
    [(5, 64, 128, 3, 1, 1), (7, 128, 128, 3, 1, 1)],
    [(10, 128, 256, 3, 1, 1), (12, 256, 256, 3, 1, 1), (14, 256, 256, 3, 1, 1)],
    [(17, 256, 512, 3, 1, 1), (19, 512, 512, 3, 1, 1), (21, 512, 512, 3, 1, 1)],
    [(24, 512, 512, 3, 1, 1), (26, 512, 512, 3, 1, 1), (28, 512, 512, 3, 1, 1)],
]
# Network: its blocks, the size of the stride-2 max pooling before each (0 = none), and the smallest side it can see.
_NETS = {"alex": (_ALEX, (0, 3, 3, 0, 0), 31), "vgg": (_VGG, (0, 2, 2, 2, 2), 16)}
# ImageNet's mean and deviation of red, green and blue, for pictures in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(PictureMetric):
    """One LPIPS network; its state has torchvision's and the lpips package's names: ``features.N.*``, ``linK.weight``."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.blocks, self.pools, self.smallest = _NETS[net]
        convolutions = [c for block in self.blocks for c in block]
        self.features = nn.ModuleDict({str(i): nn.Conv2d(a, b, k, stride, pad) for i, a, b, k, stride, pad in convolutions})
        for tap, block in enumerate(self.blocks):
            self.add_module(f"lin{tap}", nn.Conv2d(block[-1][2], 1, 1, bias=False))

    @torch.no_grad()
    def distance(self, a: Float[Tensor, "height width 3"], b: Float[Tensor, "height width 3"]) -> float:
        """Perceptual distance of two pictures in [0, 1]: 0 for equal ones; NaN where a side is below ``smallest`` pixels."""
        return math.nan if min(a.shape[:2]) < self.smallest else float(self.difference(a, b))

    def difference(self, a: Float[Tensor, "height width 3"], b: Float[Tensor, "rows columns 3"], aligned: bool = True) -> Float[Tensor, ""]:
        """Sum over taps of the spatial mean of Σ_c w_c (â_c - b̂_c)², with features normalised to unit length over channels.

        Of pictures that are not ``aligned`` the spatial means of those features are compared. Features are computed in strips of rows,
        since those of a whole picture take gigabytes.
        """
        total, x, y = a.new_zeros(()), self._normalised(a), self._normalised(b)
        for tap, block in enumerate(self.blocks):
            weigh = self.get_submodule(f"lin{tap}")
            pool = self.pools[tap + 1] if tap + 1 < len(self.pools) else 0
            below: tuple[list[Tensor], list[Tensor]] = ([], [])
            strips = [self._strips(block, pool, image, into) for image, into in zip((x, y), below, strict=True)]
            if aligned:
                errors = [weigh((f - g).square()) for f, g in zip(*strips, strict=True)]
                total = total + torch.cat(errors, 2).mean()
            else:
                f, g = (torch.cat([unit.mean(3, keepdim=True) for unit in units], 2).mean(2, keepdim=True) for units in strips)
                total = total + weigh((f - g).square()).mean()
            x, y = (torch.cat(rows, 2) for rows in below)
        return total

    def _normalised(self, image: Tensor) -> Float[Tensor, "1 3 h w"]:
        image = image.to(self.get_parameter("lin0.weight"))
        return ((2 * image - 1 - image.new_tensor(_SHIFT)) / image.new_tensor(_SCALE)).movedim(-1, 0)[None]

    def _strips(self, block: Block, pool: int, x: Tensor, below: list[Tensor]) -> Iterator[Float[Tensor, "1 channels rows w"]]:
        """Strips of a block's unit-length features of ``x``, from top to bottom; the next block's input goes into ``below``."""
        height, width = (_size_after(block, side) for side in x.shape[2:])
        rows = max(2, _STRIP // (block[-1][2] * width) // 2 * 2)
        for first in range(0, height, rows):
            last = min(first + rows, height)
            features = self._rows(block, x, first, min(last + max(pool - 2, 0), height))
            if not pool:
                below.append(features)
            elif features.shape[2] >= pool:
                below.append(F.max_pool2d(features, pool, 2))
            strip = features[:, :, : last - first]
            yield strip / (strip.square().sum(1, keepdim=True).sqrt() + 1e-10)

    def _rows(self, block: Block, x: Tensor, first: int, last: int) -> Float[Tensor, "1 channels rows w"]:
        """Rows from ``first`` to before ``last`` of the block's features, from the rows of ``x`` that they depend on."""
        if not block:
            return x[:, :, first:last]
        *before, (index, _, _, kernel, stride, pad) = block
        low, high, height = first * stride - pad, (last - 1) * stride - pad + kernel, _size_after(before, x.shape[2])
        above, below = max(-low, 0), max(high - height, 0)
        x = F.pad(self._rows(before, x, max(low, 0), min(high, height)), (0, 0, above, below))
        weight, bias = (self.get_parameter(f"features.{index}.{part}") for part in ("weight", "bias"))
        return F.relu_(F.conv2d(x, weight, bias, stride, (0, pad)))


def _size_after(block: Block, size: int) -> int:
    """Height or width of a picture after a block's convolutions."""
    for _, _, _, kernel, stride, pad in block:
        size = (size + 2 * pad - kernel) // stride + 1
    return size


def find_weights(net: Net, folder: Path | None = None) -> Path | None:
    """The file ``<net>.safetensors`` in ``folder``, else in $NERFIT_LPIPS, else in the cache; None where there is none.

    The cache is ``lpips`` in `cache_folder`.
    """
    named = os.environ.get("NERFIT_LPIPS")
    folders = [folder, Path(named) if named else None, cache_folder() / "lpips"]
    return next((path for f in folders if f and (path := f / f"{net}.safetensors").is_file()), None)


def load_lpips(net: Net, path: Path) -> Lpips:
    """The network with the weights of a safetensors file, in float32; raises RunError for a file that doesn't hold them."""
    weights = read_weights(path, "LPIPS")
    with torch.device("meta"):  # no memory, and no random numbers drawn for weights that are replaced at once
        model = Lpips(net)
    return with_weights(model, weights, str(path), f"LPIPS network '{net}'")
