"""Colours of files taken to sRGB: embedded ICC profiles of pictures, transfer curves and primaries of videos."""

from io import BytesIO

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageCms

PQ, HLG = 16, 18
"""Transfer characteristics of high dynamic range (ITU-T H.273, table 3); the others are near those of sRGB."""
BT2020, P3 = 9, 12
"""Colour primaries wider than those of sRGB (ITU-T H.273, table 2): ITU-R BT.2020, and Display P3."""
_TO_SRGB = {
    BT2020: [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    P3: [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]],
}
"""Linear light of those primaries to linear light of sRGB's, all with the white D65."""
_WHITE, _KNEE = 203.0, 0.8
"""Light of a white sheet in nits (ITU-R BT.2408), and the share of it above which highlights are compressed."""


def srgb(linear: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Display values of light (IEC 61966-2-1), both clipped to [0, 1]."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def by_profile(image: Image.Image) -> Image.Image:
    """A picture of 8 bits a sample, taken to sRGB by its ICC profile; as it is without one, or with one that is damaged or not its own."""
    data = image.info.get("icc_profile")
    if not data:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        if image.mode in ("P", "PA", "1"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def is_wide(transfer: int, primaries: int) -> bool:
    """Whether video of these code points (ITU-T H.273) shows other colours than sRGB where it is taken for that."""
    return transfer in (PQ, HLG) or primaries in _TO_SRGB


def video_srgb(picture: Shaped[np.ndarray, "height width 3"], transfer: int, primaries: int) -> UInt8[np.ndarray, "height width 3"]:
    """The 16-bit R'G'B' of a frame in sRGB: to light, to sRGB's primaries, highlights compressed, to display values."""
    signal = np.arange(65536, dtype=np.float32) / 65535
    light = {PQ: _pq, HLG: _hlg}.get(transfer, _display)(signal)[picture]
    if transfer == HLG:  # the system gamma of 1.2 for a display of 1000 nits (ITU-R BT.2100), of the luminance
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (1000 / _WHITE) * np.maximum(luminance, 1e-6)[..., None] ** 0.2
    light = (light @ np.array(_TO_SRGB.get(primaries, np.eye(3)), np.float32).T).clip(0)
    if transfer in (PQ, HLG):
        peak = light.max(-1, keepdims=True)
        light *= np.where(peak > _KNEE, _compressed(peak), peak) / np.maximum(peak, 1e-6)
    levels = np.rint(255 * srgb(np.arange(4097) / 4096)).astype(np.uint8)
    return levels[np.rint(light.clip(0, 1) * 4096).astype(np.int16)]


def _compressed(light: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Light above the knee, which nears 1 and has there the slope 1."""
    return 1 - (1 - _KNEE) * np.exp((_KNEE - light) / (1 - _KNEE))


def _display(signal: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Light of sRGB's display values, the inverse of `srgb`."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _hlg(signal: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Scene light in [0, 1] of a hybrid log-gamma signal (ITU-R BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _pq(signal: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Light, 1 = white, of a perceptual quantiser signal (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10000 / _WHITE
