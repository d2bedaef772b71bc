"""Pictures in and out: reading photographs, resizing them, writing PNGs, and colours for depths."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor

from nerfit.errors import RunError, SceneError

Picture = Tensor | np.ndarray
"""An image [height, width] or [height, width, 1, 3 or 4]: uint8, or floats in [0, 1]."""


def read_image(path: Path) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, 3 channels or, where it knows transparency, 4 with straight alpha.

    Rotated as its EXIF tag says; grey, palette and CMYK files become RGB; of 16-bit samples the high byte is kept.
    Raises SceneError for a file that is missing, cut short or no image.
    """
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("it holds floating-point samples, save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """`read_image` of many files at once, in their order; raises the error of the first that fails."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(read_image, paths))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height that `read_image` would give, from the file's header alone."""
    with _opened(path) as image:
        if image.format == "TIFF":
            return image.size
        # PngImageFile.getexif would decode the whole picture in search of a late EXIF chunk.
        sideways = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.height, image.width) if sideways else image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as stream, Image.open(stream) as image:
            yield image
    except FileNotFoundError:
        raise SceneError(f"{path} does not exist.") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise SceneError(f"{path} can't be read as an image: {str(error).rstrip('.')}.") from error


def resize_area(image: UInt8[np.ndarray, "h w channels"], width: int, height: int) -> UInt8[np.ndarray, "height width channels"]:
    """Resample by area: each new pixel is the mean of the old ones that it covers, fractions of pixels included.

    Colours are averaged premultiplied and returned straight: what shows through a pixel is its colour times its alpha,
    so a transparent neighbour, whose stored colour means nothing, must not tint (usually blacken) an object's edge.
    """
    if (height, width) == image.shape[:2]:
        return image
    if image.shape[2] == 3:
        return _to_bytes(_mean_rows(_mean_rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1))
    alpha = image[..., 3:].astype(np.uint32)
    premultiplied = np.concatenate([image[..., :3] * alpha, alpha], -1)
    mean = _mean_rows(_mean_rows(premultiplied, height).swapaxes(0, 1), width).swapaxes(0, 1)
    colour, alpha = mean[..., :3], mean[..., 3:]
    return _to_bytes(np.concatenate([np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0), alpha], -1))


def _mean_rows(image: np.ndarray, count: int) -> np.ndarray:
    """Area means along the first axis, float64: sums over whole rows plus the fractions at both ends."""
    size = image.shape[0]
    edges = np.arange(count + 1) * size / count
    first = np.minimum(edges.astype(int), size - 1)
    fraction = (edges - first)[:, None, None] * image[first]
    dtype = np.uint32 if image.dtype.kind == "u" else np.float64
    whole = np.add.reduceat(image, first[:-1], axis=0, dtype=dtype)
    whole[-1] = image[first[-2] : first[-1]].sum(0, dtype=dtype)
    whole[first[1:] == first[:-1]] = 0
    return (whole + np.diff(fraction, axis=0)) * (count / size)


def _to_bytes(levels: np.ndarray) -> np.ndarray:
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def to_bytes(image: Picture) -> UInt8[np.ndarray, "height width ..."]:
    """8-bit pixels of a picture: floats in [0, 1] are clipped and rounded to the nearest of 256 levels, NaN is 0."""
    array = image.detach().cpu().float().numpy() if isinstance(image, Tensor) and image.is_floating_point() else np.asarray(image)
    return array if array.dtype == np.uint8 else _to_bytes(np.nan_to_num(array, posinf=1.0, neginf=0.0) * 255.0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, moved onto it at the end: a crash leaves the old file or the new, never a half.

    Makes the parent folders. Raises RunError when the disk is full or can't be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_png(path: Path, image: Picture) -> None:
    """Write a picture with 8 bits a sample; raises RunError when that can't be done."""
    pixels = to_bytes(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_depth_png(path: Path, depth: Picture, scale: float, unit: str = "scene units") -> None:
    """Write depths [height, width] as 16-bit values depth/``scale``; ``scale`` and ``unit`` go into the PNG's text.

    0 means empty, as do NaN and infinity; depths beyond 65535·scale become that.
    """
    values = np.asarray(depth.detach().cpu() if isinstance(depth, Tensor) else depth, np.float64) / scale
    steps = np.rint(np.nan_to_num(values, posinf=0.0, neginf=0.0)).clip(0, 65535).astype(np.uint16)
    text = PngImagePlugin.PngInfo()
    text.add_text("nerfit:scale", repr(float(scale)))
    text.add_text("unit", unit)
    with replacing(path) as temporary:
        Image.fromarray(steps).save(temporary, format="PNG", pnginfo=text)


def read_depth_png(path: Path) -> tuple[Float[np.ndarray, "height width"], float]:
    """Depths (float32) and scale of a file from `write_depth_png`."""
    with _opened(path) as image:
        scale = float(image.info.get("nerfit:scale", math.nan))
        if not math.isfinite(scale):
            raise ValueError("it carries no 'nerfit:scale' text, so its depths have no unit")
        return (np.asarray(image) * scale).astype(np.float32), scale


def colorize(values: Picture, low: float, high: float) -> Float[np.ndarray, "height width 3"]:
    """Colours of numbers [height, width], dark violet at ``low`` to light yellow at ``high``; NaN and infinity are black."""
    x = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    finite = np.isfinite(x)
    index = ((np.where(finite, x, low) - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    return np.where(finite[..., None], _colours()[np.rint(index).astype(int)], 0).astype(np.float32)


@cache
def _colours() -> Float[np.ndarray, "256 3"]:
    """A colour scale of even steps in lightness and hue, from Oklab coordinates (B. Ottosson, 2020) to sRGB."""
    t = np.linspace(0, 1, 256)
    lightness, hue = 0.27 + 0.65 * t, np.radians(305 - 200 * t)
    chroma = 0.12 + 0.05 * t - 0.06 * np.sin(np.pi * t)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    lms = np.stack([
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    ], -1) ** 3  # fmt: skip
    linear = lms @ np.array([
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ])  # fmt: skip
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def strip(images: Sequence[Picture], gap: int = 4) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures side by side on white, such as truth, prediction and error; transparent ones lie on white too."""
    tiles = []
    for image in images:
        pixels = to_bytes(image)
        tile = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert("RGBA")
        tiles.append(tile)
    width = sum(tile.width for tile in tiles) + gap * (len(tiles) - 1)
    canvas = Image.new("RGBA", (width, max(tile.height for tile in tiles)), "white")
    x = 0
    for tile in tiles:
        canvas.alpha_composite(tile, (x, 0))
        x += tile.width + gap
    return np.array(canvas.convert("RGB"))
