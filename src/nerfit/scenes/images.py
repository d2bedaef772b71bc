"""Pictures in and out: reading photographs, resizing them, writing PNGs, and colours for depths."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from nerfit.errors import RunError, SceneError
from nerfit.files import atomic_write, check_regular
from nerfit.scenes.colour import by_profile, srgb

Picture = Tensor | np.ndarray
"""An image [height, width] or [height, width, 1, 3 or 4]: uint8, or floats in [0, 1]."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".exr", ".hdr", ".avif", ".heic", ".heif")
"""Endings of the names of pictures, in small letters; of two files of one stem the first kind is taken."""
_PILLOW = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
"""Formats that Pillow may read. Its readers of rarer formats know no limits (GIF's goes through gigabytes by bytes)."""
MOST_JPEG_BYTES = 1 << 28
"""A larger JPEG is none: Pillow seeks its header byte by byte."""
MOST_PIXELS = 500_000_000
"""Larger pictures are refused unread; Pillow's own limits, which start at a fifth of that, are switched off."""
Image.MAX_IMAGE_PIXELS = None

_SAMPLE = 8
"""Pictures of a scene that are looked at for the bits that they use."""
_FLOAT_ONLY, _TIFF = (b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE"), (b"II*\0", b"MM\0*")


class Header(NamedTuple):
    """Facts about a picture that is not decoded yet."""

    width: int
    height: int
    alpha: bool
    """Whether some of its pixels may be transparent."""
    linear: bool
    """Whether it holds floating-point samples proportional to light, as EXR and HDR files do."""
    deep: bool = False
    """Whether it holds samples of 16 bits."""


def read_header(path: Path) -> Header:
    """Facts about the picture that `read_image` would give, from the start of the file alone; raises as it does."""
    with _opened(path) as image:
        if not isinstance(image, Image.Image):
            codec = image.streams.video[0].codec_context
            return Header(codec.width, codec.height, alpha=True, linear=True)
        width, height = image.size[::-1] if _sideways(image) else image.size
        return Header(width, height, image.has_transparency_data, image.mode == "F", _is_deep(image))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height that `read_image` would give, from the file's header alone."""
    return read_header(path)[:2]


def shrunk(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Width and height of a picture of ``size`` made smaller by ``factor``: rounded down, at least 1."""
    return max(1, size[0] // factor), max(1, size[1] // factor)


def read_image(path: Path, target: tuple[int, int] | None = None, bits: int = 16) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, 3 channels or, where it knows transparency, 4 with straight alpha.

    Rotated as its EXIF tag says and taken to sRGB by its ICC profile; grey, palette and CMYK files become RGB; of 16-bit samples
    the highest 8 of ``bits`` are kept (`stored_bits`); linear pictures (EXR, Radiance HDR, floating-point TIFF) are taken to sRGB,
    what is brighter than 1 is cut off. A picture that
    will be shrunk to ``target`` (width, height) may be decoded at a half, quarter or eighth of its size where its format
    makes that cheap (JPEG), never at less than twice the target. Raises SceneError for a file that is missing, cut short,
    no image, or larger than `MOST_PIXELS`.
    """
    with _opened(path) as image:
        if not isinstance(image, Image.Image):
            return _from_linear(_decoded_floats(image))
        if target is not None:
            width, height = target[::-1] if _sideways(image) else target
            image.draft("RGB", (2 * width, 2 * height))
        if bits < 16 and _is_deep(image):
            image = _shallow(image, path, bits)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            return _from_linear(np.asarray(image)[..., None])
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        image = by_profile(image)
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return np.array(image if image.mode == mode else image.convert(mode))


def stored_bits(paths: Sequence[Path], headers: Sequence[Header]) -> int:
    """The bits that 16-bit pictures of one source use: 10, 12 or 14 where no colour of a sample of them is larger, else 16."""
    deep = [path for path, header in zip(paths, headers, strict=True) if header.deep]
    largest = [int(read_image(path)[..., :3].max(initial=0)) for path in deep[:: max(1, -(-len(deep) // _SAMPLE))]]
    return next((bits for bits in (10, 12, 14) if largest and max(largest) < 1 << (bits - 8)), 16)


def _is_deep(image: Image.Image) -> bool:
    """Whether an undecoded picture has samples of 16 bits, of which Pillow keeps 8 where there are several a pixel."""
    return image.mode.startswith("I") or (
        image.format in ("PNG", "TIFF") and re.search(r"\bRGBA?;16", str(getattr(image, "tile", ""))) is not None
    )


def _shallow(image: Image.Image, path: Path, bits: int) -> Image.Image:
    """A picture of 16-bit samples, of which ``bits`` are used, with 8 bits a sample."""
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
    else:
        import av

        with av.open(f"file:{path}", metadata_errors="replace") as container:
            form = "rgba64le" if image.mode == "RGBA" else "rgb48le"
            samples = next(container.decode(video=0)).to_ndarray(format=form).astype(np.int64)
    shallow = Image.fromarray((samples.clip(0, (1 << bits) - 1) >> (bits - 8)).astype(np.uint8))
    shallow.info |= {key: image.info[key] for key in ("exif", "icc_profile") if key in image.info}
    return shallow


def _sideways(image: Image.Image) -> bool:
    """Whether the EXIF tag of an undecoded image swaps its width and height; Pillow applies that of a TIFF itself."""
    # PngImageFile.getexif would decode the whole picture in search of a late EXIF chunk.
    return image.format != "TIFF" and Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def orientation(path: Path) -> tuple[int, bool]:
    """The EXIF orientation: quarter turns clockwise, and whether a mirroring comes first. `read_image` applies it."""
    with _opened(path) as image:
        tag = Image.Image.getexif(image).get(ExifTags.Base.Orientation) if isinstance(image, Image.Image) else None
    return {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (1, False), 7: (1, True), 8: (3, False)}.get(tag or 1, (0, False))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file with its header read: a Pillow image, or for floating-point kinds that Pillow can't read PyAV's container."""
    check_regular(path)
    try:
        with path.open("rb") as file, _container(file) as image:
            yield image
    except FileNotFoundError:
        raise SceneError(f"{path} does not exist.") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise SceneError(f"{path} can't be read as an image: {reason or type(error).__name__}.") from error


def _container(file: BinaryIO) -> Any:
    """A decoder for an open image file, its size checked; a context manager."""
    magic, size = file.read(12), file.seek(0, 2)
    file.seek(0)
    try:
        if magic.startswith(_FLOAT_ONLY):
            raise UnidentifiedImageError
        heif = magic[4:8] == b"ftyp"
        if heif:
            _register_heif()
        if magic.startswith(b"\xff\xd8") and size > MOST_JPEG_BYTES:
            raise ValueError(f"it is larger than the {MOST_JPEG_BYTES // 2**20} MiB that a JPEG may have")
        image = Image.open(file, formats=(*_PILLOW, "HEIF") if heif else _PILLOW)
        width, height = image.size
    except UnidentifiedImageError:
        if not magic.startswith((*_FLOAT_ONLY, *_TIFF)):
            raise ValueError("it is of no kind that is known, or damaged") from None
        import av

        if magic.startswith(_FLOAT_ONLY[0]) and _exr_lacks_chunks(file):
            raise ValueError("it is cut short") from None
        file.seek(0)
        image = av.open(file, metadata_errors="replace")
        codec = image.streams.video[0].codec_context
        width, height = codec.width, codec.height
        if not width * height or "f32" not in str(codec.pix_fmt):
            raise ValueError("it is damaged, too large, or holds samples of a kind that is not supported") from None
    if width * height > MOST_PIXELS:
        raise ValueError(f"it is {width}x{height}, more than {MOST_PIXELS // 10**6} million pixels; shrink it first")
    return image


@cache
def _register_heif() -> None:
    """Let Pillow read the pictures of iPhones."""
    from pi_heif import register_heif_opener

    register_heif_opener()


def _exr_lacks_chunks(file: BinaryIO) -> bool:
    """Whether an EXR file of one part ends before its pixels do; FFmpeg would paint what is missing black."""
    head = file.read(2**22)
    version, at = int.from_bytes(head[4:8], "little"), 8
    if version & 0x1000:
        return False
    while head[at]:  # attributes: name, type, size, value
        at = head.index(0, head.index(0, at) + 1) + 1
        at += 4 + int.from_bytes(head[at : at + 4], "little")
    first, last = file.seek(0, 2), 0
    while (at := at + 8) < first:  # where each chunk begins; the first one right after this table
        offset = int.from_bytes(head[at - 7 : at + 1], "little")
        first, last = min(first, offset), max(last, offset)
    size_at = last + (16 if version & 0x200 else 4)  # after the coordinates of a tile, or of a line
    file.seek(size_at)
    return not first or size_at + 4 + int.from_bytes(file.read(4), "little") > file.seek(0, 2)


def _decoded_floats(container: Any) -> Float[np.ndarray, "height width channels"]:
    """The first picture of a PyAV container of 32-bit float samples, with straight alpha."""
    frame = next(container.decode(video=0))
    channels = len(frame.format.components)
    per_plane = channels // len(frame.planes)
    rows = [np.frombuffer(plane, np.float32).reshape(frame.height, -1)[:, : frame.width * per_plane] for plane in frame.planes]
    picture = np.stack(rows, -1).reshape(frame.height, frame.width, channels)
    if len(rows) < 3:
        return picture
    picture = picture[..., [2, 0, 1, 3][:channels]]  # FFmpeg's planes are green, blue, red
    if channels == 4:  # EXR's colours are premultiplied
        alpha = picture[..., 3:]
        picture[..., :3] = np.divide(picture[..., :3], alpha, out=np.zeros_like(picture[..., :3]), where=alpha > 0)
    return picture


def _from_linear(picture: Float[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "height width 3or4"]:
    picture = np.nan_to_num(picture, posinf=1.0, neginf=0.0)
    colour = _to_bytes(255 * srgb(np.broadcast_to(picture[..., :3], (*picture.shape[:2], 3))))
    return np.concatenate([colour, _to_bytes(255 * picture[..., 3:])], -1)


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
    """`atomic_write`, in a folder that is made; raises RunError when the disk is full or can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            yield part
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}.") from error


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
    return srgb(linear)


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
