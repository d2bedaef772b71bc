"""Pictures into pixels: decoding and shrinking against a slow twin, the cache, masks, and what becomes of hidden pixels."""

import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.errors import SceneError
from nerfit.evaluation.evaluate import EvalConfig, evaluate
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import PixelSource, pixel_batch, random_pixels
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats import blender, llff
from nerfit.scenes.images import read_image, resize_area
from nerfit.scenes.reading import pixel_cache as pixels
from nerfit.scenes.reading.masks import Mask, find_masks
from nerfit.scenes.reading.picture_files import picture_files
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene

pytestmark = pytest.mark.usefixtures("cache")


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write(folder, *arrays, kind="png"):
    return [save(folder / f"{i:03d}.{kind}", array) for i, array in enumerate(arrays)]


def quietly(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_pixels(*arguments)


# --- Decoding and shrinking -----------------------------------------------------------------------------------------

sizes_of_pictures = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]), st.integers(1, 9), st.integers(1, 9))


@given(views=st.lists(sizes_of_pictures, min_size=1, max_size=5), as_it_is=st.booleans())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pixels_are_those_of_the_pictures_taken_one_by_one(tmp_path, views, as_it_is):
    pictures = [noise(h, w, channels, seed) for seed, (h, w, channels, _, _) in enumerate(views)]
    paths = write(tmp_path / "some", *(p[..., 0] if p.shape[2] == 1 else p for p in pictures))
    sizes = [(w, h) if as_it_is else (width, height) for h, w, _, height, width in views]
    rows = []
    for picture, size in zip(pictures, sizes, strict=True):
        small = resize_area(np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture, *size)
        rows += [[*pixel[:3], pixel[3] if len(pixel) == 4 else 255] for line in small.tolist() for pixel in line]
    channels = 3 if all(row[3] == 255 for row in rows) else 4
    for _ in range(2):
        loaded = quietly(paths, sizes)
        assert loaded.dtype == torch.uint8
        assert loaded.tolist() == [row[:channels] for row in rows]


def test_real_scenes_are_read_bit_for_bit(data_folder):
    lego, fern = data_folder / "lego_100px", data_folder / "nerf_llff_data" / "fern"
    if not (lego.is_dir() and fern.is_dir()):
        pytest.skip(f"there is no lego_100px and no fern in {data_folder}")
    scene = blender.load(str(lego), blender.Config(factor=2))
    assert scene.pixels is not None
    twin = [resize_area(read_image(lego / name), 50, 50).reshape(-1, 4) for name in scene.view_names]
    assert np.array_equal(scene.pixels, np.concatenate(twin))
    scene = llff.load(str(fern), llff.Config(factor=16))
    assert scene.pixels is not None
    twin = [resize_area(read_image(fern / "images_8" / name), 252, 189).reshape(-1, 3) for name in scene.view_names]
    assert np.array_equal(scene.pixels, np.concatenate(twin))


def test_names_may_have_spaces_and_any_letters(tmp_path):
    path = save(tmp_path / "Ein Garten, 写真 é%d" / "Bild ä 1.png", noise(4, 6, 3))
    assert np.array_equal(quietly([path], [(6, 4)]).reshape(4, 6, 3), noise(4, 6, 3))
    assert len(quietly([path, path], [(3, 2), (6, 4)])) == 6 + 24


def test_linear_pictures_are_reported_once(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((2, 3), 0.25 * i, np.float32)).save(tmp_path / f"{i}.tif")
    with pytest.warns(UserWarning) as caught:
        loaded = load_pixels([tmp_path / f"{i}.tif" for i in range(3)], [(3, 2)] * 3)
    assert ["3 linear pictures" in str(w.message) for w in caught] == [True]
    assert loaded[::6].tolist() == [[0] * 3, [137] * 3, [188] * 3]


def test_the_first_picture_that_fails_is_named_and_the_others_are_not_waited_for(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(pixels, "_IN_FLIGHT", 1)
    read = []

    def slowly(path, size, bits):
        read.append(path)
        sleep(0.01)
        return read_image(path, size, bits)

    monkeypatch.setattr(pixels, "read_image", slowly)
    paths = write(tmp_path, *(noise(40, 40, 3, i) for i in range(20)))
    for i in (3, 7):
        os.truncate(paths[i], 2000)
    for size in (40, 20):
        with pytest.raises(SceneError, match=r"003\.png can't be read"):
            load_pixels(paths, [(size, size)] * 20)
    assert len(read) < 30
    assert not list(cache.glob("*"))


def test_a_terminal_is_shown_how_far_a_long_wait_is(monkeypatch):
    def shown(terminal, pause):
        clock = iter(np.arange(0, 100 * pause, pause))
        monkeypatch.setattr(pixels, "Console", lambda stderr: Console(file=screen, force_terminal=terminal, color_system=None))
        monkeypatch.setattr(pixels, "monotonic", lambda: next(clock))
        screen = io.StringIO()
        assert list(pixels._watched(iter("abc"), 3)) == ["a", "b", "c"]
        return screen.getvalue()

    assert "3/3 pictures" in shown(True, 1.5)
    assert not shown(True, 0.1)
    assert not shown(False, 1.5)


# --- The cache ------------------------------------------------------------------------------------------------------


def test_only_what_was_shrunk_or_is_large_is_cached(tmp_path, cache, monkeypatch):
    paths = write(tmp_path, noise(4, 6, 3), noise(4, 6, 3, 1))
    whole = quietly(paths, [(6, 4)] * 2)
    assert not cache.exists()
    monkeypatch.setattr(pixels, "_IN_MEMORY", 100)
    for _ in range(2):
        assert torch.equal(quietly(paths, [(6, 4)] * 2), whole)
        assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(pixels, "read_image", None)
    assert torch.equal(quietly(paths, [(6, 4)] * 2), whole)


def test_an_entry_of_opaque_pictures_has_no_alpha(tmp_path, cache):
    opaque = [np.dstack([noise(40, 60, 3, i), np.full((40, 60), 255, np.uint8)]) for i in range(3)]
    paths = write(tmp_path, *opaque)
    loaded = quietly(paths, [(30, 20)] * 3)
    assert torch.equal(loaded, quietly(paths, [(30, 20)] * 3))
    assert np.array_equal(loaded, np.concatenate([resize_area(o[..., :3], 30, 20).reshape(-1, 3) for o in opaque]))
    (entry,) = cache.iterdir()
    assert entry.stat().st_size == 128 + 3 * 600 * 3


def test_moving_colours_together_in_many_steps(monkeypatch):
    rgba = noise(50, 100, 4)
    expected = rgba.reshape(-1, 4)[:, :3].copy()
    monkeypatch.setattr(pixels, "_STEP", 7)
    assert np.array_equal(pixels._without_alpha(rgba.reshape(-1, 4)), expected)


def test_a_full_disk_costs_only_a_warning(tmp_path, cache):
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    paths = write(tmp_path, noise(100, 100, 3), noise(100, 100, 3, 1))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.warns(UserWarning, match="can't be written .*read again"):
            loaded = load_pixels(paths, [(99, 99)] * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert np.array_equal(loaded[: 99 * 99].reshape(99, 99, 3), resize_area(noise(100, 100, 3), 99, 99))
    assert not list(cache.iterdir())


# --- Files of a folder ----------------------------------------------------------------------------------------------


def test_pictures_of_a_folder_are_in_order_of_their_numbers(tmp_path):
    names = ["2.png", "10.PNG", "a1b2.jpg", "a1b10.exr", "a02b1.tif", "ö 3.webp"]
    for name in (*reversed(names), "notes.txt", ".hidden.png", "dynamic_mask_2.png", "10"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in picture_files(tmp_path)] == names
    assert picture_files(tmp_path / "2.png") == picture_files(tmp_path / "none") == []


def test_masks_are_found_in_the_usual_places(tmp_path):
    images = tmp_path / "images" / "left"
    paths = write(images, *[noise(2, 2, 3)] * 4, kind="jpg")
    masks = [save(p, noise(2, 2, 3)) for p in (
        images / "dynamic_mask_000.png", tmp_path / "masks/left/001.jpg.png", tmp_path / "masks/left/002.png")]  # fmt: skip
    save(tmp_path / "masks/left/000.png", noise(2, 2, 3))
    with pytest.warns(UserWarning, match=r"3 of 4 pictures, the first by .*dynamic_mask_000\.png"):
        assert find_masks(paths) == [Mask(masks[0], white_hides=True), Mask(masks[1]), Mask(masks[2]), None]
    small = write(tmp_path / "images_4", noise(1, 1, 3), noise(1, 1, 3))
    assert find_masks(small) == [None, None]
    masks = [save(tmp_path / "masks/000.png", noise(2, 2, 3)), save(tmp_path / "masks_4/001.png", noise(2, 2, 3))]
    with pytest.warns(UserWarning, match="2 of 2"):
        assert find_masks(small) == [Mask(mask) for mask in masks]
    assert find_masks([tmp_path / ("x" * 250 + ".png")]) == [None]


# --- Masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrink", [1, 3])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("channels", [3, 4])
def test_hidden_pixels_have_alpha_0_and_no_part_in_colours(tmp_path, shrink, times, channels):
    """Against a loop over the pixels; the mask may be of another size than the picture."""
    picture, shown = noise(12, 18, channels), np.random.default_rng(1).random((12 // times, 18 // times)) < 0.6
    (path,) = write(tmp_path / "images", picture)
    mask = save(tmp_path / "mask.png", shown.astype(np.uint8))
    loaded = quietly([path], [(18 // shrink, 12 // shrink)], [Mask(mask)]).reshape(12 // shrink, 18 // shrink, 4)
    for y, x in np.ndindex(12 // shrink, 18 // shrink):
        light, weight = np.zeros(3), 0.0
        for j, i in np.ndindex(shrink, shrink):
            v, u = shrink * y + j, shrink * x + i
            alpha = shown[v // times, u // times] * (picture[v, u, 3] / 255 if channels == 4 else 1)
            light, weight = light + alpha * picture[v, u, :3], weight + alpha
        coverage = weight / shrink**2
        if abs(coverage - 0.5) > 0.003:
            assert loaded[y, x, 3] == (255 if coverage > 0.5 else 0)
        if coverage > 0.5:
            assert np.abs(loaded[y, x, :3].numpy() - light / weight).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("name", "hidden"), [("mask.png", 0), ("mask.jpg", 0), ("mask.tif", 0), ("mask.png", 1), ("mask.jpg", 1)])
def test_black_or_white_hides(tmp_path, name, hidden):
    (path,) = write(tmp_path, noise(16, 16, 3))
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    mask = save(tmp_path / name, half)
    alpha = load_pixels([path], [(16, 16)], [Mask(mask, white_hides=bool(hidden))])[:, 3].reshape(16, 16)
    assert (alpha[:, :8] == 255 * hidden).all()
    assert (alpha[:, 8:] == 255 * (1 - hidden)).all()


def test_masks_that_hide_nothing_leave_no_alpha(tmp_path):
    paths = write(tmp_path, noise(4, 4, 3), noise(4, 4, 3, 1))
    mask = save(tmp_path / "mask.png", np.ones((4, 4), np.uint8))
    assert load_pixels(paths, [(4, 4)] * 2, [Mask(mask), None]).shape == (32, 3)


def test_changed_masks_are_read_again(tmp_path):
    paths, mask = write(tmp_path, noise(4, 4, 3)), tmp_path / "mask.png"
    for shade in (0, 255, 0):
        save(mask, np.full((4, 4), shade, np.uint8))
        os.utime(mask, ns=(shade + 1, shade + 1))
        assert load_pixels(paths, [(2, 2)], [Mask(mask)]).shape[1] == (3 if shade else 4)


def test_bad_masks_are_named(tmp_path):
    paths, mask = write(tmp_path, noise(8, 16, 3)), tmp_path / "mask.png"
    for content, message in (
        (None, "does not exist"),
        (b"", "can't be read"),
        (noise(16, 8, 3), r"is 8x16, of another shape than .*000\.png, 16x8"),
    ):
        if isinstance(content, np.ndarray):
            save(mask, content)
        elif content is not None:
            mask.write_bytes(content)
        with pytest.raises(SceneError, match=rf"mask\.png {message}"):
            load_pixels(paths, [(4, 2)], [Mask(mask)])


# --- Hidden pixels in training and judging --------------------------------------------------------------------------


def masked_scene(alpha: Tensor, masked: bool = True) -> Scene:
    """Views of alpha [views, height, width], each pixel's colour its number."""
    views, height, width = alpha.shape
    number = torch.arange(alpha.numel())
    stored = torch.stack([number % 256, number // 256, 0 * number, alpha.reshape(-1)], -1).to(torch.uint8)
    cameras = Cameras.pinhole(torch.eye(4).repeat(views, 1, 1), 10.0, width, height)
    splits = {"train": list(range(1, views)), "test": list(range(views))}
    return Scene("holes", "test", cameras, 1.0, 2.0, splits, stored, masked=masked, background="black")


def holes(seen: float, views: int = 4) -> Tensor:
    return (torch.rand(views, 9, 11, generator=torch.Generator().manual_seed(0)) < seen) * 255


def numbers(batch: Batch) -> Tensor:
    assert batch.target is not None
    low, high = (batch.target[:, :2] * 255).round().long().unbind(-1)
    return low + 256 * high


@pytest.mark.parametrize("kind", ["image", "all", "random"])
@pytest.mark.parametrize("seen", [0.01, 0.5])
@pytest.mark.parametrize("masked", [True, False])
def test_only_visible_pixels_are_trained_on(kind, seen, masked):
    scene, counts = masked_scene(holes(seen), masked), torch.zeros(4 * 99)
    for step in range(300 if masked and seen > 0.1 else 60):  # with few visible pixels each is drawn often
        source = PixelSource(scene, step, torch.Generator().manual_seed(step), torch.device("cpu"))
        batch = random_pixels(source, 30, 0.5) if kind == "random" else pixel_batch(source, 30, kind)
        assert 0 < len(batch) <= 30
        colors = scene.stored_pixels[numbers(batch)]
        assert masked or len(batch) == 30
        if masked:
            assert (colors[:, 3] == 255).all()
            counts += numbers(batch).bincount(minlength=4 * 99)
    if masked:
        known = holes(seen).reshape(-1) > 0
        known[:99] = False
        assert (counts[known] > 0).all()
        if kind != "image":
            assert counts[known].std() < 0.05 * counts[known].mean() + 3 * counts[known].mean() ** 0.5


def test_masks_that_hide_everything_are_refused():
    scene = masked_scene(holes(0.0))
    source = PixelSource(scene, 0, torch.Generator().manual_seed(0), torch.device("cpu"))
    for batch in (
        lambda: random_pixels(source, 30, 0.0),
        lambda: pixel_batch(source, 30, "all"),
        lambda: pixel_batch(source, 30, "image"),
    ):
        with pytest.raises(SceneError, match="holes: the masks hide nearly everything"):
            batch()
    with pytest.raises(SceneError, match="no test views that can be evaluated"):
        evaluate(Flat(), scene, 100)


class Flat(Method):
    """Everything is of one grey."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = torch.nn.Parameter(torch.tensor(102 / 255))

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def render(self, batch: Batch) -> Rendering:
        return Rendering(self.grey.expand(len(batch), 3))

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError


def test_hidden_pixels_are_not_evaluated(tmp_path):
    alpha = torch.full((3, 20, 24), 255)
    alpha[0, :15] = 0
    alpha[1] = 0
    scene = masked_scene(alpha)
    evaluated = evaluate(Flat(), scene, 1000, EvalConfig(lpips=False, pictures=tmp_path))
    assert [row["view"] for row in evaluated["views"]] == ["0", "2"]
    for row, view in zip(evaluated["views"], (0, 2), strict=True):
        truth = scene.stored_pixels.reshape(3, 480, 4)[view, :, :3][alpha[view].reshape(-1) > 0].numpy() / 255
        assert row["psnr"] == pytest.approx(-10 * np.log10(((truth - 0.4) ** 2).mean()), abs=1e-4)
    assert evaluated["views"][0]["ssim"] > evaluated["views"][1]["ssim"]
    assert "pixels that masks hide" in evaluated["protocol"]
    assert (read_image(tmp_path / "000.png") == 102).all()
    plain = evaluate(Flat(), masked_scene(alpha, masked=False), 1000, EvalConfig(lpips=False))
    assert len(plain["views"]) == 3
    assert "mask" not in plain["protocol"]


def test_a_scene_keeps_knowing_that_it_is_masked(tmp_path):
    scene = masked_scene(holes(0.5))
    assert torch.equal(scene.visible(2), holes(0.5)[2] > 0)
    scene.save(tmp_path)
    assert (scene.masked, scene.has_alpha, Scene.load(tmp_path).masked) == (True, False, True)
    opaque = masked_scene(holes(1.1))
    opaque = Scene("holes", "test", opaque.cameras, 1.0, 2.0, opaque.splits, opaque.stored_pixels[:, :3], masked=True)
    assert not opaque.masked
    assert opaque.visible(0).all()


def test_masks_beside_the_pictures_of_an_llff_scene(tmp_path):
    rows = np.zeros((9, 3, 5))
    rows[:, :, 0], rows[:, :, 1], rows[:, :, 2], rows[:, 0, 3] = [0, -1, 0], [1, 0, 0], [0, 0, 1], np.arange(9)
    rows[:, :, 4] = [48, 64, 70]
    np.save(tmp_path / "poses_bounds.npy", np.concatenate([rows.reshape(9, 15), np.tile([1.0, 20.0], (9, 1))], 1))
    write(tmp_path / "images", *(noise(48, 64, 3, i) for i in range(9)))
    half = np.ones((48, 64), np.uint8)
    half[:24] = 0
    write(tmp_path / "masks", *[half] * 9)
    with pytest.warns(UserWarning, match="9 of 9"):
        scene = llff.load(str(tmp_path), llff.Config(factor=4))
    assert (scene.masked, scene.has_alpha) == (True, False)
    for view in range(9):
        assert not scene.visible(view)[:6].any()
        assert scene.visible(view)[6:].all()


# --- Memory ---------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, time
from pathlib import Path
from nerfit.scenes.reading.pixel_cache import load_pixels, picture_files
import threading
def anonymous():
    return int(next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1]) / 1024
paths, most, begin, done = picture_files(Path(sys.argv[1])), anonymous(), time.monotonic(), threading.Event()
before = most
def watch():
    global most
    while not done.wait(0.01):
        most = max(most, anonymous())
threading.Thread(target=watch, daemon=True).start()
pixels = load_pixels(paths, [(500, 375)] * len(paths))
done.set()
print(most - before, time.monotonic() - begin, len(pixels))
"""


def measured(folder: Path) -> tuple[float, float, int]:
    """Most anonymous memory above that of the imports (MB), seconds, and number of pixels, of a process of its own."""
    out = subprocess.run([sys.executable, "-c", MEASURE, str(folder)], check=True, capture_output=True, text=True).stdout.split()
    return float(out[0]), float(out[1]), int(out[2])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux has it")
def test_many_large_photographs_take_little_memory(tmp_path):
    """60 photographs of 12 megapixels at 1/8 size are 34 MB; all of them decoded would be 2.2 GB."""
    count = 60
    smooth = np.asarray(Image.fromarray(noise(75, 100, 3)).resize((4000, 3000), Image.Resampling.BICUBIC))
    for i in range(count):
        path = tmp_path / "photos" / f"{i}.jpg"
        if i < 4:
            save(path, np.roll(smooth, 100 * i, 1))
        else:
            shutil.copy(tmp_path / "photos" / f"{i % 4}.jpg", path)
    first, second = measured(tmp_path / "photos"), measured(tmp_path / "photos")
    assert first[2] == second[2] == count * 500 * 375
    assert first[0] < 400
    assert second[0] < 50
    assert second[1] < first[1] / 3
