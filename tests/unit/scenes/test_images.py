import itertools
import os
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from nerfit.errors import RunError, SceneError
from nerfit.scenes import images
from nerfit.scenes.images import (
    colorize,
    image_size,
    read_depth_png,
    read_header,
    read_image,
    resize_area,
    strip,
    write_depth_png,
    write_png,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_round_trip(tmp_path, channels):
    pixels = noise(5, 7, channels)
    write_png(tmp_path / "deep" / "er" / "a.png", pixels)
    assert np.array_equal(read_image(tmp_path / "deep" / "er" / "a.png"), pixels)
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["a.png"]


def test_floats_are_rounded_and_clipped(tmp_path):
    values = torch.tensor([[-0.2, 0.499 / 255, 0.501 / 255, 1.7, float("nan"), float("inf")]])
    for image in (values, values[..., None], values.numpy()):
        write_png(tmp_path / "a.png", image)
        assert read_image(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 255, 0, 255)]


def test_every_8_bit_level_survives_as_a_float(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for image in (torch.from_numpy(levels).float() / 255, (levels / 255).astype(np.float16), torch.from_numpy(levels)):
        write_png(tmp_path / "a.png", image)
        assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], levels)


def test_modes_become_rgb_or_rgba(tmp_path):
    rgb = Image.fromarray(noise(6, 8, 3))
    grey = noise(6, 8)
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    Image.fromarray(grey).save(tmp_path / "grey.png")
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "holes.png", transparency=1)
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(noise(6, 8, seed=1))]).save(tmp_path / "la.png")

    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[255, 0, 0], [0, 255, 0]]
    assert read_image(tmp_path / "holes.png")[0].tolist() == [[255, 0, 0, 255], [0, 255, 0, 0]]
    assert read_image(tmp_path / "cmyk.jpg").shape == (6, 8, 3)
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    assert np.array_equal(read_image(tmp_path / "la.png")[..., 3], noise(6, 8, seed=1))


def test_16_bits_are_scaled_not_clipped(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 1], levels)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, kind, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, exif=exif)
    pixels = read_image(path)
    assert image_size(path) == (48, 32) == pixels.shape[1::-1]
    assert pixels[4:12, 4:20].min() > 240 and pixels[4:12, 28:44].max() < 15 and pixels[20:28].max() < 15


def test_image_size_does_not_decode(tmp_path):
    Image.fromarray(noise(300, 200, 3)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    assert image_size(tmp_path / "cut.png") == (200, 300)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_damaged_files_are_scene_errors(tmp_path, kind):
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / f"a.{kind}")
    whole = (tmp_path / f"a.{kind}").read_bytes()
    path = tmp_path / f"bad.{kind}"
    for damaged in (b"", b"not an image", whole[:30], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(SceneError) as caught:
            read_image(path)
        message = str(caught.value)
        assert str(path) in message and message.endswith(".") and "\n" not in message
    (tmp_path / "folder.png").mkdir()
    for missing in (tmp_path / "none.png", tmp_path / "folder.png"):
        with pytest.raises(SceneError, match=missing.name):
            read_image(missing)
        with pytest.raises(SceneError, match=missing.name):
            image_size(missing)


def rgbe(mantissas, exponents):
    """A Radiance picture without run lengths: light is mantissa / 256 · 2^exponent."""
    height, width = exponents.shape
    rows = np.dstack([mantissas, exponents + 128]).astype(np.uint8)
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + rows.tobytes()


def exr(pixels):
    """An uncompressed OpenEXR file of 32-bit floats: attributes, a table of offsets, and the lines, channels in order of names."""
    height, width, channels = pixels.shape
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    order = [3, 2, 1, 0] if channels == 4 else [2, 1, 0] if channels == 3 else [0]
    names = {3: "BGR", 4: "ABGR", 1: "Y"}[channels]
    listed = b"".join(name.encode() + b"\0" + struct.pack("<4i", 2, 0, 1, 1) for name in names) + b"\0"
    attributes = [("channels", "chlist", listed), ("compression", "compression", b"\0"), ("dataWindow", "box2i", box),
                  ("displayWindow", "box2i", box), ("lineOrder", "lineOrder", b"\0"), ("pixelAspectRatio", "float", struct.pack("<f", 1)),
                  ("screenWindowCenter", "v2f", bytes(8)), ("screenWindowWidth", "float", struct.pack("<f", 1))]  # fmt: skip
    head = b"\x76\x2f\x31\x01\x02\0\0\0"
    for name, type_, value in attributes:
        head += name.encode() + b"\0" + type_.encode() + b"\0" + struct.pack("<i", len(value)) + value
    head += b"\0"
    lines = [pixels[y][:, order].T.astype("<f4").tobytes() for y in range(height)]
    first, size = len(head) + 8 * height, len(lines[0]) + 8
    table = b"".join(struct.pack("<q", first + y * size) for y in range(height))
    return head + table + b"".join(struct.pack("<2i", y, len(line)) + line for y, line in enumerate(lines))


def shown(linear):
    """The byte of a linear value, one number at a time."""
    x = min(max(linear, 0.0), 1.0)
    return round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exr_is_taken_to_srgb_with_straight_alpha(tmp_path, channels):
    light = np.random.default_rng(0).random((5, 7, channels)).astype(np.float32) * 1.4 - 0.1
    light[0, 0, 0], light[0, 1, 0], light[1, :, -1] = np.nan, np.inf, 0.5
    (tmp_path / "a.exr").write_bytes(exr(light))
    pixels = read_image(tmp_path / "a.exr")
    assert read_header(tmp_path / "a.exr") == (7, 5, True, True, False)
    assert pixels.shape == (5, 7, max(3, channels))
    for y, x in itertools.product(range(5), range(7)):
        values = [float(np.nan_to_num(v, posinf=1)) for v in light[y, x]]
        alpha = values[3] if channels == 4 else 1
        expected = [shown(v / alpha if alpha > 0 else 0) for v in (values * 3 if channels == 1 else values)[:3]]
        expected += [round(255 * min(max(alpha, 0), 1))] if channels == 4 else []
        assert np.abs(pixels[y, x].astype(int) - expected).max() <= 1, (y, x)


def test_radiance_and_floating_point_tiff_are_taken_to_srgb(tmp_path):
    mantissas, exponents = noise(6, 9, 3) | 128, np.arange(54).reshape(6, 9) % 8 - 6
    light = mantissas / 256 * 2.0 ** exponents[..., None]
    expected = np.array([[[shown(v) for v in pixel] for pixel in row] for row in light])
    (tmp_path / "a.hdr").write_bytes(rgbe(mantissas, exponents))
    assert np.abs(read_image(tmp_path / "a.hdr") - expected).max() <= 1
    Image.fromarray(light[..., 0].astype(np.float32)).save(tmp_path / "grey.tif")
    assert np.abs(read_image(tmp_path / "grey.tif")[..., 1] - expected[..., 0]).max() <= 1
    tifffile = pytest.importorskip("tifffile", reason="scikit-image brings it")
    for name, channels in (("rgb.tif", 3), ("rgba.tif", 4)):
        tifffile.imwrite(tmp_path / name, np.dstack([light, light[..., 0] / 2])[..., :channels].astype(np.float32), photometric="rgb")
        pixels = read_image(tmp_path / name)
        assert np.abs(pixels[..., :3] - expected).max() <= 1
        assert read_header(tmp_path / name).linear
    assert np.abs(pixels[..., 3] / 255 - light[..., 0] / 2).max() < 0.003
    tifffile.imwrite(tmp_path / "double.tif", light, photometric="rgb")
    with pytest.raises(SceneError, match=r"double\.tif .*not supported"):
        read_image(tmp_path / "double.tif")


def test_an_exr_file_cut_anywhere_is_noticed(tmp_path):
    whole = exr(np.ones((3, 4, 3), np.float32))
    for cut in range(len(whole)):
        (tmp_path / "a.exr").write_bytes(whole[:cut])
        with pytest.raises(SceneError, match=r"a\.exr can't be read"):
            read_image(tmp_path / "a.exr")
    unfinished = bytearray(whole)
    table = whole.index(struct.pack("<q", len(whole) - 3 * 56)) + 8
    unfinished[table : table + 8] = bytes(8)
    (tmp_path / "a.exr").write_bytes(unfinished)
    with pytest.raises(SceneError, match="cut short"):
        read_image(tmp_path / "a.exr")


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="scikit-image brings it")
    deep = np.random.default_rng(0).integers(0, 2**16, (5, 6, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep)
    assert np.array_equal(read_image(tmp_path / "a.tif"), deep >> 8)
    assert not read_header(tmp_path / "a.tif").linear


@pytest.mark.parametrize("kind", ["webp", "bmp", "tif"])
def test_other_lossless_kinds(tmp_path, kind):
    pixels = noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}", lossless=True)
    assert np.array_equal(read_image(tmp_path / f"a.{kind}"), pixels)
    assert read_header(tmp_path / f"a.{kind}") == (7, 5, False, False, False)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("target", "size"), [((400, 100), (800, 600)), ((60, 45), (200, 150)), ((50, 37), (100, 75)), ((1, 1), (100, 75))])
def test_a_jpeg_is_decoded_smaller_but_never_below_twice_the_target(tmp_path, orientation, target, size):
    exif = Image.Exif()
    exif[274] = orientation
    smooth = np.linspace(0, 255, 800)[None, :, None] * np.ones((600, 1, 3))
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turn = -1 if orientation == 6 else 1
    pixels = read_image(tmp_path / "a.jpg", target[::turn])
    assert pixels.shape[1::-1] == size[::turn]
    assert np.abs(resize_area(pixels, 20, 20).astype(int) - resize_area(read_image(tmp_path / "a.jpg"), 20, 20)).max() <= 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data):
    """A grey PNG whose header says what it likes about the size of its data."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_gigabytes_behind_the_first_bytes_of_a_jpeg_are_not_searched(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(5 << 30)
    with pytest.raises(SceneError, match="larger than the 256 MiB that a JPEG may have"):
        read_image(tmp_path / "huge.png")


def test_a_picture_too_large_is_refused_by_its_header_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30_000, 20_000, zlib.compress(bytes(1000))))
    for read in (image_size, read_image):
        with pytest.raises(SceneError, match=r"bomb\.png .*30000x20000, more than 500 million pixels; shrink"):
            read(path)
    path.write_bytes(png(20_000, 12_000, zlib.compress(bytes(1000))))
    assert image_size(path) == (20_000, 12_000)
    assert not recwarn.list
    lie = bytearray(exr(np.ones((2, 2, 3), np.float32)))
    at = lie.index(b"displayWindow") + len(b"displayWindow\0box2i\0") + 4
    lie[at : at + 16] = struct.pack("<4i", 0, 0, 99_999, 99_999)
    (tmp_path / "bomb.exr").write_bytes(lie)
    with pytest.raises(SceneError, match=r"bomb\.exr .*too large"):
        image_size(tmp_path / "bomb.exr")


def test_more_data_than_the_header_says_takes_no_memory(tmp_path):
    resource = pytest.importorskip("resource", reason="peak memory is read as POSIX has it")
    squeeze = zlib.compressobj(1)
    data = b"".join(squeeze.compress(bytes(2**24)) for _ in range(32)) + squeeze.flush()
    (tmp_path / "a.png").write_bytes(png(8, 8, data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_image(tmp_path / "a.png").shape == (8, 8, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_picture_that_may_not_be_read_is_named(tmp_path):
    write_png(tmp_path / "a.png", noise(2, 2, 3))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(SceneError, match=r"a\.png can't be read as an image: Permission denied\.$"):
        read_image(tmp_path / "a.png")


def overlaps(size, count):
    """Row i: the share of each old pixel in new pixel i."""
    weights = np.zeros((count, size))
    for i, j in itertools.product(range(count), range(size)):
        left, right = max(i * size / count, j), min((i + 1) * size / count, j + 1)
        weights[i, j] = max(0.0, right - left) * count / size
    return weights


sides = st.integers(1, 24)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_resize_area_against_explicit_overlaps(h, w, height, width, seed):
    pixels = noise(h, w, 3, seed=seed)
    expected = np.einsum("ia,abc,jb->ijc", overlaps(h, height), pixels, overlaps(w, width))
    resized = resize_area(pixels, width, height)
    assert resized.dtype == np.uint8 and np.abs(resized - expected).max() <= 0.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_resize_of_rgba_commutes_with_compositing(h, w, height, width, seed):
    pixels = noise(h, w, 4, seed=seed)
    pixels[..., 3] = np.where(pixels[..., 3] < 80, 0, np.where(pixels[..., 3] > 160, 255, pixels[..., 3]))
    rows, columns = overlaps(h, height), overlaps(w, width)
    colour, alpha = pixels[..., :3] / 255, pixels[..., 3:] / 255
    small = resize_area(pixels, width, height) / 255
    for background in (0.0, 1.0):
        expected = np.einsum("ia,abc,jb->ijc", rows, colour * alpha + background * (1 - alpha), columns)
        got = small[..., :3] * small[..., 3:] + background * (1 - small[..., 3:])
        assert np.abs(got - expected).max() < 1.01 / 255


def test_resize_matches_pillow_at_whole_factors():
    pixels = noise(24, 36, 3)
    box = np.asarray(Image.fromarray(pixels).resize((9, 8), Image.Resampling.BOX))
    assert np.abs(resize_area(pixels, 9, 8).astype(int) - box).max() <= 1
    assert resize_area(pixels, 36, 24) is pixels


def test_transparent_black_does_not_darken_edges():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[:, 0] = (200, 100, 50, 255)
    assert resize_area(pixels, 1, 1).tolist() == [[[200, 100, 50, 128]]]


def test_a_full_disk_is_a_run_error_and_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    path = tmp_path / "a.png"
    write_png(path, noise(4, 4, 3))
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(RunError, match="a.png"):
            write_png(path, noise(200, 200, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunError, match="can't be written"):
        write_png(path / "below a file.png", noise(4, 4, 3))


def test_depth_png(tmp_path):
    depth = torch.rand(6, 9, dtype=torch.float64) * 10
    depth[0, :4] = torch.tensor([0.0, float("nan"), float("inf"), 1e9])
    path = tmp_path / "depth.png"
    write_depth_png(path, depth, 0.001)
    read, scale = read_depth_png(path)
    assert scale == 0.001 and read.dtype == np.float32
    assert read[0, :4] == pytest.approx([0, 0, 0, 65.535])
    assert np.abs(read[1:] - depth[1:].numpy()).max() <= 0.0005 + 1e-6
    with Image.open(path) as file:
        assert isinstance(file, PngImagePlugin.PngImageFile) and file.text["unit"] == "scene units" and file.mode == "I;16"
    write_png(tmp_path / "plain.png", noise(3, 3))
    with pytest.raises(SceneError, match=r"plain\.png.*nerfit:scale"):
        read_depth_png(tmp_path / "plain.png")


def test_colours_are_even_steps_from_dark_to_light():
    values = torch.linspace(2, 6, 256)[None]
    colours = colorize(values, 2, 6)[0]
    luminance = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    lightness = np.cbrt(luminance)
    assert colours.min() > 0 and colours.max() < 1, "a clipped channel would bend the scale"
    assert (np.diff(luminance) > 0).all()
    assert np.diff(lightness).max() < 2 * np.diff(lightness).mean()


def test_colorize_guards():
    values = np.array([[np.nan, np.inf, -5.0, 5.0]])
    colours = colorize(values, 0, 1)[0]
    assert (colours[:2] == 0).all()
    assert np.array_equal(colours[2:], colorize(np.array([[0.0, 1.0]]), 0, 1)[0])
    assert np.isfinite(colorize(np.ones((2, 2)), 1, 1)).all()


def test_strip():
    left, right = np.zeros((4, 5, 3)), torch.full((3, 6), 0.5)
    joined = strip([left, right, noise(4, 2, 4)], gap=2)
    assert joined.shape == (4, 5 + 2 + 6 + 2 + 2, 3) and joined.dtype == np.uint8
    assert (joined[:, :5] == 0).all() and (joined[:, 5:7] == 255).all() and (joined[:3, 7:13] == 128).all()
    assert (joined[3, 7:13] == 255).all()


def test_a_crash_while_writing_leaves_no_half_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), images.replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
