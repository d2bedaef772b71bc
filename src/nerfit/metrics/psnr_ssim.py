"""How close a picture comes to the truth: PSNR and SSIM, computed as the papers' tables were."""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from torch import Tensor

_WINDOW = 11
_STRIP = 1 << 16
"""Pixels that `ssim` compares at a time, but for a window's height."""


def quantise(image: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Clip to [0, 1] and round to 256 levels, as the PNGs from which published numbers were computed."""
    return (image.clamp(0, 1) * 255).round() / 255


def psnr(prediction: Float[Tensor, "*n"], target: Float[Tensor, "*n"]) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error of values clipped to [0, 1]; equal images: inf."""
    mse = float((_clipped(prediction) - _clipped(target)).square().mean())
    return -10 * math.log10(mse) if mse else math.inf


def mean_psnr(predictions: Iterable[Tensor], targets: Iterable[Tensor]) -> float:
    """Mean over views of each view's own PSNR, as tables give it; the PSNR of the pooled error would be lower."""
    values = [psnr(p, t) for p, t in zip(predictions, targets, strict=True)]
    return sum(values) / len(values)


def ssim(prediction: Float[Tensor, "height width 3"], target: Float[Tensor, "height width 3"]) -> float:
    """Structural similarity (Wang et al. 2004) like tf.image.ssim, mean over channels; values are clipped to [0, 1].

    Windows of 11x11 Gaussian taps, sigma 1.5, that lie wholly inside: an image with a side below 11 has none, its SSIM is NaN.
    """
    from skimage.metrics import structural_similarity

    height, width = prediction.shape[:2]
    if min(height, width) < _WINDOW:
        return math.nan
    options = {"gaussian_weights": True, "sigma": 1.5, "win_size": _WINDOW, "use_sample_covariance": False, "data_range": 1.0}
    total, windows, strip = 0.0, height - _WINDOW + 1, max(1, _STRIP // width)
    for top in range(0, windows, strip):  # a whole picture's local means and variances would take a hundred times its bytes
        rows = slice(top, min(top + strip, windows) + _WINDOW - 1)
        a, b = _clipped(prediction[rows]).numpy(), _clipped(target[rows]).numpy()
        total += (len(a) - _WINDOW + 1) * float(np.mean(structural_similarity(a, b, channel_axis=-1, **options)))
    return total / windows


def _clipped(image: Tensor) -> Tensor:
    return image.detach().cpu().double().clamp(0, 1)
