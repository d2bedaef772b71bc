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

        Of pictures that are not ``aligned`` the spatial means of those features are compared.
        """
        total = a.new_zeros(())
        for tap, (x, y) in enumerate(zip(self._taps(a), self._taps(b), strict=True)):
            if not aligned:
                x, y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
            total = total + self.get_submodule(f"lin{tap}")((x - y).square()).mean()
        return total

    def _taps(self, image: Tensor) -> Iterator[Float[Tensor, "1 channels h w"]]:
        """Unit-length features after each block, one at a time so that only one tap's are held."""
        image = image.to(self.get_parameter("lin0.weight"))
        x = ((2 * image - 1 - image.new_tensor(_SHIFT)) / image.new_tensor(_SCALE)).movedim(-1, 0)[None]
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x = F.max_pool2d(x, pool, 2) if pool else x
            for index, *_ in block:
                x = F.relu_(self.features[str(index)](x))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


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
