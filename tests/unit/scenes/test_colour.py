"""Colours and kinds of pictures that other devices write: HEIC, AVIF, ICC profiles, 10 to 14 bits, HLG and PQ video."""

import base64
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from nerfit.errors import SceneError
from nerfit.scenes.colour import BT2020, HLG, P3, PQ, srgb, video_srgb
from nerfit.scenes.images import image_size, read_header, read_image
from nerfit.scenes.reading.pixel_cache import load_pixels

pytestmark = pytest.mark.usefixtures("cache")

HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAA
ADkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEAB
DAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNw
ZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAQW1kYXQAAAA1
KAGvGSF4YkD3l0T7JT9FLk2L1PvN4kNtSap0D2zXTf789YIiqvY4IwGHNoC4NA/WELOW+r8=
"""
"""24x16 pixels, red and blue, as libheif writes them at quality 30."""


def test_pictures_of_phones_are_read(tmp_path: Path) -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:, :12], picture[:, 12:] = (220, 40, 30), (30, 60, 200)
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC))
    Image.fromarray(picture).save(tmp_path / "a.avif", quality=90)
    Image.fromarray(picture).save(tmp_path / "a.ppm")
    Image.fromarray(picture).save(tmp_path / "a.jfif", format="JPEG", quality=95)
    for kind, error in (("heic", 8), ("avif", 8), ("ppm", 0), ("jfif", 20)):
        file = tmp_path / f"a.{kind}"
        assert image_size(file) == (24, 16)
        assert np.abs(read_image(file)[:, [2, 20]].astype(int) - picture[:, [2, 20]]).max() <= error, kind


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_damaged_pictures_of_phones_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    if kind == "heic":
        file.write_bytes(base64.b64decode(HEIC))
    else:
        Image.new("RGB", (24, 16), "red").save(file)
    data = file.read_bytes()
    for cut in (20, 100, len(data) - 30):
        file.write_bytes(data[:cut])
        with pytest.raises(SceneError, match=rf"a\.{kind} can't be read as an image"):
            read_image(file)


# --- ICC profiles ---------------------------------------------------------------------------------------------------


def display_p3() -> bytes:
    """A profile of matrix and curves with P3's primaries adapted to D50, and a gamma of 2.2."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    xyz = {
        "wtpt": (0.9642, 1.0, 0.8249),
        "rXYZ": (0.51512, 0.2412, -0.00105),
        "gXYZ": (0.29198, 0.69225, 0.04189),
        "bXYZ": (0.1571, 0.06657, 0.78407),
    }
    parts = {name: b"XYZ \0\0\0\0" + fixed(*values) for name, values in xyz.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    parts |= dict.fromkeys(("rTRC", "gTRC", "bTRC"), curve)
    parts["desc"] = b"desc\0\0\0\0" + struct.pack(">I", 8) + b"Wide P3\0" + bytes(78)
    table, body, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        part += bytes(-len(part) % 4)
        table += name.encode() + struct.pack(">II", start + len(body), len(part))
        body += part
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


def test_profiles_are_honoured_and_srgb_is_left_alone(tmp_path: Path) -> None:
    """Against the matrix of linear P3 to linear sRGB, for colours within both."""
    levels = np.array([[[128, 128, 128], [200, 150, 120], [90, 140, 100]]], np.uint8)
    to_srgb = np.array([[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]])
    expected = 255 * srgb((levels / 255) ** 2.2 @ to_srgb.T)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kind in (("RGB", "png"), ("RGBA", "png"), ("RGB", "tif"), ("RGB", "webp")):
        for name, profile in (("p3", display_p3()), ("srgb", own), ("none", None), ("damaged", display_p3()[:200])):
            file = tmp_path / f"{name}.{kind}"
            Image.fromarray(levels).convert(mode).save(file, icc_profile=profile, lossless=True)
            read = read_image(file)
            assert read.shape[2] == len(mode)
            if name == "p3":
                assert np.abs(read[..., :3] - expected).max() < 2, (mode, kind)
            else:
                assert np.array_equal(read[..., :3], levels), (mode, kind, name)


# --- 10, 12 and 14 bits in files of 16 ------------------------------------------------------------------------------


def save_deep(file: Path, samples: np.ndarray) -> None:
    """A PNG of 16 bits a sample, of 1, 3 or 4 channels."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    kind = {1: 0, 3: 2, 4: 6}[channels]
    chunks = ((b"IHDR", struct.pack(">2I5B", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pictures_are_scaled_by_the_bits_that_all_of_them_use(tmp_path: Path, bits: int, channels: int) -> None:
    rng = np.random.default_rng(bits)
    pictures = [rng.integers(0, most, (6, 8, channels)) for most in (1 << bits, 1 << bits, 40)]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pictures, strict=True):
        save_deep(path, picture)
        assert read_header(path).deep
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pixels = load_pixels(paths, [(8, 6)] * 3).numpy()
    expected = np.concatenate([picture.reshape(48, channels) >> (bits - 8) for picture in pictures])
    assert np.array_equal(pixels[:, : max(channels, 3)], np.broadcast_to(expected, (144, max(channels, 3))))
    assert [str(w.message) for w in told] == (
        [] if bits == 16 else [f"{tmp_path}: its 16-bit pictures use {bits} bits, and are scaled by that."]
    )


def test_ordinary_pictures_are_not_deep(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK"):
        Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
        assert not read_header(tmp_path / "a.tif").deep


# --- Video ----------------------------------------------------------------------------------------------------------


def test_grey_of_high_dynamic_range_is_that_of_sdr() -> None:
    """ITU-R BT.2408: a grey card, 26 of white's 203 nits, is 38 % of PQ and of HLG; white, 58 % and 75 %, is compressed."""
    for transfer, grey, white in ((PQ, 0.38, 0.58), (HLG, 0.38, 0.75)):
        signal = np.round(65535 * np.array([[[grey] * 3, [white] * 3, [1.0] * 3, [0.0] * 3]])).astype(np.uint16)
        levels = video_srgb(signal, transfer, BT2020)[0]
        assert (np.ptp(levels.astype(int), axis=1) <= 1).all()
        assert abs(levels[0, 0] - 255 * srgb(np.array(26 / 203))) < 3
        assert 230 < levels[1, 0] < 250 < levels[2, 0] and levels[3, 0] == 0


def test_wide_primaries_become_those_of_srgb() -> None:
    levels = np.array([[[128, 128, 128], [200, 150, 120]]])
    light = np.where(levels / 255 <= 0.04045, levels / 255 / 12.92, ((levels / 255 + 0.055) / 1.055) ** 2.4)
    for primaries in (P3, BT2020):
        matrix = {P3: [1.22494, -0.22494, 0.0], BT2020: [1.660491, -0.587641, -0.07285]}[primaries]
        made = video_srgb((levels * 257).astype(np.uint16), 1, primaries)
        assert np.abs(made[..., 0] - 255 * srgb(light @ np.array(matrix))).max() < 1
        assert np.abs(made[0, 0].astype(int) - 128).max() <= 1
