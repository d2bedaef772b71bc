"""The LLFF reader: its pipeline against a slow float64 twin, its pictures and their cache, and every kind of bad input."""

import math
import os
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DATA, assert_close
from nerfit.cameras.paths import make_path
from nerfit.errors import ConfigError, NerfitError, SceneError
from nerfit.scenes.formats.llff import Config, detect, load
from nerfit.scenes.images import resize_area
from nerfit.scenes.reading import pixel_cache as pixels

WIDTH, HEIGHT, FOCAL = 64, 48, 70.0


pytestmark = pytest.mark.usefixtures("cache")


def unit(v):
    return v / np.linalg.norm(v)


def rotation(rng, angle):
    """A random rotation by up to ``angle`` radians."""
    x, y, z = unit(rng.normal(size=3)) * rng.uniform(0, angle)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    total = term = np.eye(3)
    for i in range(1, 30):
        term = term @ k / i
        total = total + term
    return total


def forward_poses(seed, n=9):
    """OpenGL cameras that look about the same way, in a turned, shifted world of odd scale."""
    rng = np.random.default_rng(seed)
    world, shift = rotation(rng, 3.0), rng.normal(size=3) * 5
    return [(world @ rotation(rng, 0.15), world @ (rng.normal(size=3) * [2, 1, 0.3]) + shift) for _ in range(n)]


def inward_poses(seed, n=9):
    """OpenGL cameras all around a point of a turned, shifted world."""
    rng = np.random.default_rng(seed)
    world, shift = rotation(rng, 3.0), rng.normal(size=3) * 5
    poses = []
    for i in range(n):
        a, e = 2 * math.pi * i / n, rng.uniform(0.3, 0.6)
        z = np.array([math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)])
        x = unit(np.cross([0, 0, 1], z))
        aim = rotation(rng, 0.05)
        poses.append((world @ np.stack([x, np.cross(z, x), z], 1) @ aim, world @ (3 * z) + shift))
    return poses


def table(poses, seed=0):
    """Rows of poses_bounds.npy: axes down, right, backwards, position, (height, width, focal), and two depths."""
    rng = np.random.default_rng(seed)
    rows = []
    for r, t in poses:
        right, up, back = r.T
        pose = np.stack([-up, right, back, t, [HEIGHT, WIDTH, FOCAL]], 1)
        rows.append([*pose.reshape(-1), rng.uniform(2, 3), rng.uniform(20, 40)])
    return np.array(rows)


def picture(seed, width=WIDTH, height=HEIGHT, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_pictures(folder, n, width=WIDTH, height=HEIGHT, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(picture(i, width, height)).save(folder / (names[i] if names else f"IMG_{i:02d}.png"))


@pytest.fixture
def scene(tmp_path):
    """A forward-facing scene of nine 64×48 pictures."""
    folder = tmp_path / "garden"
    write_pictures(folder / "images", 9)
    np.save(folder / "poses_bounds.npy", table(forward_poses(0)))
    return folder


@pytest.fixture
def around(tmp_path):
    """A scene seen from all around."""
    folder = tmp_path / "statue"
    write_pictures(folder / "images", 9)
    np.save(folder / "poses_bounds.npy", table(inward_poses(0)))
    return folder


# pictures and poses that differ in number


def test_a_downscale_that_was_stopped_is_passed_over(scene):
    write_pictures(scene / "images_2", 4, WIDTH // 2, HEIGHT // 2)
    with pytest.warns(UserWarning, match="images_2 holds 4 of 9 pictures; those of images are shrunk"):
        assert load(str(scene), Config(factor=2)).view_names[8] == "IMG_08.png"


def test_originals_beside_their_copies_are_passed_over(scene):
    """nerf-pytorch's minify copies IMG.JPG into images_2, writes IMG.png, and may be stopped before it removes the first."""
    write_pictures(scene / "images_2", 9, WIDTH // 2, HEIGHT // 2)
    write_pictures(scene / "images_2", 9, names=[f"IMG_{i:02d}.JPG" for i in range(9)])
    with pytest.warns(UserWarning, match="9 pictures have the names of others of another kind"):
        made = load(str(scene), Config(factor=2))
    assert made.view_names[0] == "IMG_00.png" and int(made.cameras.width[0]) == WIDTH // 2


def test_the_list_of_llff_says_which_pictures_have_poses(scene):
    write_pictures(scene / "images", 12)
    with pytest.raises(SceneError, match=r"holds 12 pictures \(IMG_00.png, .* 9 poses; list those with a pose in view_imgs.txt"):
        load(str(scene), Config(factor=1))
    names = [f"IMG_{i:02d}.png" for i in range(12) if i not in (0, 4, 9)]
    (scene / "view_imgs.txt").write_text("\n".join(f"C:\\x\\images\\{name}" for name in names) + "\n")
    with pytest.warns(UserWarning, match="3 pictures are not in view_imgs.txt"):
        assert load(str(scene), Config(factor=1)).view_names == names


def test_a_folder_of_as_many_pictures_as_poses_is_named(scene):
    write_pictures(scene / "images_4", 9, WIDTH // 4, HEIGHT // 4)
    (scene / "images/IMG_03.png").unlink()
    with pytest.raises(SceneError, match=r"images holds 8 pictures .* 9 poses; images_4 holds as many .*: add --scene.factor 4\."):
        load(str(scene), Config(factor=1))


# the pipeline


def twin_average(poses):
    position, back, up = np.zeros(3), np.zeros(3), np.zeros(3)
    for r, t in poses:
        position += t / len(poses)
        back += r[:, 2]
        up += r[:, 1]
    z = unit(back)
    x = unit(np.cross(up, z))
    return np.stack([x, unit(np.cross(z, x)), z], 1), position


def twin_into(frame, poses):
    r0, t0 = frame
    return [(r0.T @ r, r0.T @ (t - t0)) for r, t in poses]


def twin_scene(poses, rows, bd_factor, recentre, spherify):
    """Poses and depth range of LLFF's own loading, step by step; also the world transform as a function of points."""
    scale = 1 / (rows[:, 15].min() * bd_factor) if bd_factor else 1.0
    poses = [(r, t * scale) for r, t in poses]
    bounds = rows[:, 15:] * scale
    steps = [lambda p: p * scale]
    if recentre:
        average = twin_average(poses)
        poses = twin_into(average, poses)
        steps.append(lambda p: average[0].T @ (p - average[1]))
    if spherify:
        a, b = np.zeros((3, 3)), np.zeros(3)
        for r, t in poses:
            across = np.eye(3) - np.outer(r[:, 2], r[:, 2])
            a += across.T @ across
            b += across @ t
        centre = np.linalg.inv(a) @ b
        up = unit(sum(t - centre for _, t in poses))
        x = unit(np.cross([0.1, 0.2, 0.3], up))
        frame = (np.stack([x, unit(np.cross(up, x)), up], 1), centre)
        poses = twin_into(frame, poses)
        size = 1 / math.sqrt(sum(float(t @ t) for _, t in poses) / len(poses))
        poses = [(r, t * size) for r, t in poses]
        bounds = bounds * size
        steps.append(lambda p: size * (frame[0].T @ (p - frame[1])))

    def transform(p):
        for step in steps:
            p = step(p)
        return p

    return poses, (bounds.min(), bounds.max()), transform


def as_array(poses):
    return np.stack([np.concatenate([r, t[:, None]], 1) for r, t in poses])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bd_factor", [0.75, None])
@pytest.mark.parametrize("recentre", [True, False])
@pytest.mark.parametrize("spherify", [False, True])
def test_poses_bounds_and_the_way_back_match_the_slow_pipeline(around, seed, bd_factor, recentre, spherify):
    poses = inward_poses(seed)
    rows = table(poses, seed)
    np.save(around / "poses_bounds.npy", rows)
    scene = load(str(around), Config(factor=8, bd_factor=bd_factor, recentre=recentre, spherify=spherify, ndc=False))
    expected, depth_range, transform = twin_scene(poses, rows, bd_factor, recentre, spherify)
    assert_close(scene.cameras.c2w, as_array(expected))
    assert scene.depth_range == pytest.approx(depth_range, rel=1e-9)
    assert (scene.near, scene.far) == pytest.approx((0.9 * depth_range[0], depth_range[1]), rel=1e-9)
    assert scene.bounds == ("object" if spherify else "unbounded")
    assert not scene.ndc
    for p in np.random.default_rng(seed).normal(size=(4, 3)) * 5:
        assert_close(scene.to_original @ torch.from_numpy(np.append(transform(p), 1.0)), np.append(p, 1.0), 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_forward_facing_scene_and_its_spiral_match_the_slow_pipeline(scene, seed):
    poses = forward_poses(seed)
    rows = table(poses, seed)
    np.save(scene / "poses_bounds.npy", rows)
    loaded = load(str(scene), Config(factor=2))
    expected, (low, high), _ = twin_scene(poses, rows, 0.75, True, False)
    assert_close(loaded.cameras.c2w, as_array(expected))
    assert low == pytest.approx(4 / 3)
    assert (loaded.ndc, loaded.bounds, loaded.near, loaded.far) == (True, "forward-facing", 0, 1)
    assert loaded.default_path == "spiral"
    focus = 1 / (0.25 / (0.9 * low) + 0.75 / (5 * high))
    frame = twin_average(expected)
    radii = np.percentile(np.abs([t for _, t in expected]), 90, axis=0)
    up = unit(sum(r[:, 1] for r, _ in expected))
    path = []
    for i in range(120):
        theta = 4 * math.pi * i / 120
        local = np.array([math.cos(theta), -math.sin(theta), -math.sin(theta / 2)]) * radii
        position = frame[0] @ local + frame[1]
        z = unit(position - (frame[0] @ np.array([0, 0, -focus]) + frame[1]))
        x = unit(np.cross(up, z))
        path.append((np.stack([x, np.cross(z, x), z], 1), position))
    made, _ = make_path("spiral", loaded.cameras, depth_range=loaded.depth_range)
    assert_close(made.c2w, as_array(path))


def test_spherified_scene_has_the_sphere_as_its_path(around):
    scene = load(str(around), Config(spherify=True))
    assert scene.default_path == "sphere"
    path, _ = make_path("sphere", scene.cameras)
    height = float(scene.cameras.c2w[:, 2, 3].mean())
    theta = 2 * math.pi * np.arange(120) / 119
    radius = math.sqrt(1 - height**2)
    assert_close(path.centers, np.stack([radius * np.cos(theta), radius * np.sin(theta), np.full(120, height)], -1))


def test_columns_of_the_file_are_down_right_backwards(scene):
    rows = np.zeros((9, 3, 5))
    rows[:, :, 0], rows[:, :, 1], rows[:, :, 2] = [0, -1, 0], [1, 0, 0], [0, 0, 1]
    rows[:, :, 3] = np.arange(27).reshape(9, 3)
    rows[:, :, 4] = [HEIGHT, WIDTH, FOCAL]
    np.save(scene / "poses_bounds.npy", np.concatenate([rows.reshape(9, 15), np.tile([1.0, 2.0], (9, 1))], 1))
    loaded = load(str(scene), Config(bd_factor=None, recentre=False))
    assert_close(loaded.cameras.c2w[:, :, :3], np.broadcast_to(np.eye(3), (9, 3, 3)), 1e-12)
    assert_close(loaded.cameras.centers, np.arange(27).reshape(9, 3), 1e-12)


def test_a_picture_that_exif_turns_upside_down_takes_its_camera_along(scene):
    plain = load(str(scene), Config(factor=1, bd_factor=None, recentre=False))
    tag = Image.Exif()
    tag[0x0112] = 3
    Image.fromarray(picture(4)).save(scene / "images" / "IMG_04.png", exif=tag)
    turned = load(str(scene), Config(factor=1, bd_factor=None, recentre=False))
    assert torch.equal(turned.image(4), plain.image(4).flip(0, 1)) and torch.equal(turned.cameras.c2w[3], plain.cameras.c2w[3])
    view, x, y = torch.tensor([4, 4]), torch.tensor([0, 9]), torch.tensor([5, 40])
    assert_close(turned.cameras.directions(view, x, y), plain.cameras.directions(view, WIDTH - 1 - x, HEIGHT - 1 - y))
    tag[0x0112] = 2
    Image.fromarray(picture(4)).save(scene / "images" / "IMG_04.png", exif=tag)
    with pytest.raises(SceneError, match=r"IMG_04\.png is stored mirrored"):
        load(str(scene), Config(factor=1))


def test_near_far_and_views_follow_the_config(scene):
    loaded = load(str(scene), Config(near=0.1, far=0.8, train_views=(1, -1, 3), pixel_offset=0.0, background="black"))
    assert (loaded.near, loaded.far) == (0.1, 0.8)
    assert loaded.splits == {"train": [2, 5], "val": [0, 8], "test": [0, 8]}
    assert (loaded.cameras.pixel_offset, loaded.background, loaded.name, loaded.format) == (0.0, "black", "garden", "llff")


def test_holdout_chooses_the_test_views(scene):
    assert load(str(scene), Config(holdout=3)).splits == {"train": [1, 2, 4, 5, 7, 8], "val": [0, 3, 6], "test": [0, 3, 6]}
    average = load(str(scene), Config(holdout=0))
    centres = average.cameras.centers
    assert average.splits["test"] == [int((centres - centres.mean(0)).norm(dim=-1).argmin())]
    assert len(average.splits["train"]) == 8


def test_cameras_all_around_turn_ndc_off_and_say_so(around, scene):
    with pytest.warns(UserWarning, match="were turned off"):
        loaded = load(str(around), Config())
    assert (loaded.ndc, loaded.bounds, loaded.default_path) == (False, "unbounded", "ellipse")
    with pytest.warns(UserWarning, match="are on, though"):
        assert load(str(around), Config(ndc=True)).ndc
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(scene), Config()).ndc
        assert not load(str(scene), Config(ndc=False)).ndc
        assert not load(str(around), Config(ndc=False)).ndc
        assert not load(str(around), Config(spherify=True)).ndc


def test_poses_that_are_no_rotations_are_mended_with_a_warning_that_names_the_picture(scene):
    rows = np.load(scene / "poses_bounds.npy")
    rows[4].reshape(-1)[[0, 1, 2, 5, 6, 7, 10, 11, 12]] *= 1.1
    np.save(scene / "poses_bounds.npy", rows)
    with pytest.warns(UserWarning, match="IMG_04.png"):
        r = load(str(scene), Config()).cameras.c2w[:, :, :3]
    assert_close(r.mT @ r, np.broadcast_to(np.eye(3), (9, 3, 3)))


def test_a_wide_lens_rules_ndc_out_too(scene):
    rows = np.load(scene / "poses_bounds.npy")
    rows[:, 14] = 2.0
    np.save(scene / "poses_bounds.npy", rows)
    with pytest.warns(UserWarning, match="were turned off"):
        assert not load(str(scene), Config(factor=1)).ndc


# pictures


def test_pictures_are_resized_by_area_in_name_order_and_intrinsics_follow(scene):
    loaded = load(str(scene), Config(factor=3))
    w, h = 21, 16
    assert (loaded.cameras.width.tolist(), loaded.cameras.height.tolist()) == ([w] * 9, [h] * 9)
    assert loaded.view_names == [f"IMG_{i:02d}.png" for i in range(9)]
    assert loaded.cameras.fx.tolist() == pytest.approx([FOCAL * w / WIDTH] * 9)
    assert loaded.cameras.fy.tolist() == pytest.approx([FOCAL * h / HEIGHT] * 9)
    assert (loaded.cameras.cx[0], loaded.cameras.cy[0]) == (w / 2, h / 2)
    assert loaded.pixels is not None
    assert loaded.pixels.dtype == torch.uint8
    for i in range(9):
        assert np.array_equal(loaded.pixels.reshape(9, h, w, 3)[i], resize_area(picture(i), w, h))


def test_the_default_is_factor_8(scene):
    assert load(str(scene), Config()).cameras.width[0] == 8


@pytest.mark.parametrize(
    ("config", "size"),
    [(Config(factor=1), (64, 48)), (Config(width=32), (32, 24)), (Config(height=12), (16, 12)), (Config(width=20, height=30), (20, 30))],
)
def test_size_may_be_given_directly(scene, config, size):
    cameras = load(str(scene), config).cameras
    assert (int(cameras.width[0]), int(cameras.height[0])) == size
    assert (float(cameras.fx[0]), float(cameras.fy[0])) == pytest.approx((FOCAL * size[0] / WIDTH, FOCAL * size[1] / HEIGHT))


def test_a_folder_of_the_right_size_is_used_as_it_is(scene, cache):
    write_pictures(scene / "images_4", 9, 16, 12)
    write_pictures(scene / "images_20x30", 9, 20, 30)
    loaded = load(str(scene), Config(factor=4))
    assert loaded.pixels is not None
    assert np.array_equal(loaded.pixels.reshape(9, 12, 16, 3)[5], picture(5, 16, 12))
    assert load(str(scene), Config(width=20, height=30)).cameras.height[0] == 30
    assert not cache.exists()


def test_the_largest_small_pictures_serve_where_the_originals_are_gone(scene):
    (scene / "images").rename(scene / "images_1")
    write_pictures(scene / "images_2", 9, 32, 24)
    write_pictures(scene / "images_4", 9, 16, 12)
    for file in (scene / "images_1").iterdir():
        file.unlink()
    loaded = load(str(scene), Config(factor=8))
    assert loaded.pixels is not None
    assert np.array_equal(loaded.pixels.reshape(9, 6, 8, 3)[2], resize_area(picture(2, 32, 24), 8, 6))
    with pytest.raises(SceneError, match="--factor 2"):
        load(str(scene), Config(factor=1))


def test_an_empty_folder_of_the_right_name_is_ignored(scene):
    (scene / "images_8").mkdir()
    assert load(str(scene), Config(factor=8)).cameras.width[0] == 8


def test_originals_shrunk_since_the_poses_were_found_still_fit(scene):
    write_pictures(scene / "images", 9, 32, 24)
    loaded = load(str(scene), Config(factor=2))
    assert (int(loaded.cameras.width[0]), float(loaded.cameras.fx[0])) == (32, FOCAL / 2)
    with pytest.raises(SceneError, match="32x24, smaller .* --factor 2"):
        load(str(scene), Config(width=60))


def test_any_case_and_kind_of_file_name_counts_and_others_do_not(tmp_path):
    folder = tmp_path / "mixed"
    names = ["a.JPG", "b.jpeg", "c.PNG", "d.jpg", "e.png"]
    write_pictures(folder / "images", 5, names=names)
    (folder / "images" / "notes.txt").write_text("hello")
    (folder / "images" / "._a.JPG").write_bytes(b"\0")
    np.save(folder / "poses_bounds.npy", table(forward_poses(1, 5)))
    assert load(str(folder), Config()).view_names == names


def test_transparent_pictures_keep_their_alpha(scene):
    Image.fromarray(picture(3, channels=4)).save(scene / "images" / "IMG_03.png")
    loaded = load(str(scene), Config(factor=1))
    assert loaded.pixels is not None
    views = loaded.pixels.reshape(9, HEIGHT, WIDTH, 4).numpy()
    assert np.array_equal(views[3], picture(3, channels=4))
    assert np.array_equal(views[2][..., :3], picture(2))
    assert (views[2][..., 3] == 255).all()


# cache


def test_resized_pictures_are_kept_and_read_back_without_the_originals_being_opened(scene, cache):
    first = load(str(scene), Config(factor=4)).pixels
    (entry,) = cache.iterdir()
    assert entry.suffix == ".npy"
    with mock.patch.object(pixels, "read_image", side_effect=AssertionError("read again")):
        again = load(str(scene), Config(factor=4)).pixels
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    before = entry.read_bytes()
    again.zero_()
    assert entry.read_bytes() == before


def test_changed_pictures_are_resized_again(scene, cache):
    load(str(scene), Config(factor=4))
    file = scene / "images" / "IMG_02.png"
    date = file.stat().st_mtime_ns
    grey = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    Image.fromarray(grey).save(file)
    os.utime(file, ns=(date, date))
    pixels = load(str(scene), Config(factor=4)).pixels
    assert pixels is not None
    assert np.array_equal(pixels.reshape(9, 12, 16, 3)[2], resize_area(grey, 16, 12))
    os.utime(file, ns=(1, 1))
    load(str(scene), Config(factor=4))
    assert len(list(cache.iterdir())) == 3


def other_shape(path):
    np.save(path, np.zeros((2, 12, 16, 3), np.uint8))


def pickled(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v\x00{" + p.read_bytes()[11:]),
        lambda p: p.write_bytes(b"PK\x03\x04 no archive"),
        other_shape,
        pickled,
    ],
)
def test_a_damaged_cache_entry_is_made_again(scene, cache, damage):
    pixels = load(str(scene), Config(factor=4)).pixels
    assert pixels is not None
    first = pixels.clone()
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    damage(entry)
    again = load(str(scene), Config(factor=4)).pixels
    assert again is not None
    assert torch.equal(first, again)
    assert [p.read_bytes() for p in cache.iterdir()] == [good]


def test_an_unwritable_cache_costs_only_a_warning(scene, cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="read again"):
        pixels = load(str(scene), Config(factor=4)).pixels
    assert pixels is not None
    assert np.array_equal(pixels.reshape(9, 12, 16, 3)[0], resize_area(picture(0), 16, 12))


def test_a_full_disk_leaves_nothing_half_written(scene, cache):
    with (
        mock.patch.object(Path, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.warns(UserWarning, match="No space"),
    ):
        assert load(str(scene), Config(factor=4)).pixels is not None
    assert not list(cache.iterdir())


def test_the_cache_is_in_the_home_folder_by_default(scene, tmp_path, monkeypatch):
    monkeypatch.delenv("NERFIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(str(scene), Config(factor=4))
    assert len(list((tmp_path / "home" / ".cache" / "nerfit").iterdir())) == 1


def test_the_users_folder_is_never_touched(scene):
    def state():
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in [scene, *scene.rglob("*")])

    before = state()
    for config in (Config(), Config(factor=1), Config(width=10, height=10), Config(factor=5, holdout=0)):
        load(str(scene), config)
    assert state() == before


# bad input


def test_detect(scene, tmp_path):
    assert detect(str(scene))
    assert not detect(str(scene / "images"))
    assert not detect(str(tmp_path / "nothing"))


def edit(change):
    def damage(folder):
        rows = np.load(folder / "poses_bounds.npy")
        change(rows)
        np.save(folder / "poses_bounds.npy", rows)

    return damage


def save(array, **options):
    return lambda folder: np.save(folder / "poses_bounds.npy", array, **options)


def change_picture(name, width, height):
    return lambda folder: Image.fromarray(picture(0, width, height)).save(folder / "images" / name)


def all_pictures(width, height):
    return lambda folder: write_pictures(folder / "images", 9, width, height)


def no_pictures(folder):
    for file in (folder / "images").iterdir():
        file.unlink()


def only_small(folder):
    no_pictures(folder)
    write_pictures(folder / "images_16", 9, 4, 3)


BAD_SCENES = {
    "no file": (lambda f: (f / "poses_bounds.npy").unlink(), "poses_bounds.npy can't be read: No such file"),
    "empty file": (lambda f: (f / "poses_bounds.npy").write_bytes(b""), "damaged"),
    "cut short": (lambda f: (f / "poses_bounds.npy").write_bytes((f / "poses_bounds.npy").read_bytes()[:300]), "damaged"),
    "text": (lambda f: (f / "poses_bounds.npy").write_text("1 2 3"), "damaged"),
    "bad archive": (lambda f: (f / "poses_bounds.npy").write_bytes(b"PK\x03\x04 no archive"), "damaged"),
    "pickle": (save(np.array([{}], dtype=object), allow_pickle=True), "damaged"),
    "words": (save(np.array([["a"] * 17])), "not the N x 17"),
    "complex": (save(np.zeros((9, 17), np.complex64)), "not the N x 17"),
    "no bounds": (save(np.zeros((9, 14))), "holds 9 x 14 float64, not the N x 17"),
    "one row": (save(np.zeros(17)), "not the N x 17"),
    "no rows": (save(np.zeros((0, 17))), "not the N x 17"),
    "NaN": (edit(lambda r: r[5].__setitem__(3, np.nan)), "row 5 holds numbers that are not finite"),
    "infinite bound": (edit(lambda r: r[6].__setitem__(16, np.inf)), "row 6 holds numbers that are not finite"),
    "focal 0": (edit(lambda r: r[:, 14].fill(0)), "focal lengths must be larger than 0"),
    "focal below 0": (edit(lambda r: r[2:3, 14].fill(-5)), "focal lengths must be larger than 0"),
    "height 0": (edit(lambda r: r[:, 4].fill(0)), "larger than 0"),
    "two sizes": (edit(lambda r: r[2:4, 9].fill(60)), "differ in size"),
    "bound 0": (edit(lambda r: r[3:5, 15].fill(0)), "row 3 has the depth bounds 0 and"),
    "bounds swapped": (edit(lambda r: r[7:, 16].fill(1)), "row 7 has the depth bounds"),
    "zero rotation": (edit(lambda r: r[4].__setitem__([0, 1, 2, 5, 6, 7, 10, 11, 12], 0)), r"IMG_04.png \(view 4\) has no rotation"),
    "mirrored": (edit(lambda r: np.negative(r[4, [0, 5, 10]], out=r[4, 0:11:5])), r"IMG_04.png \(view 4\) mirrors"),
    "no pictures": (no_pictures, "has no pictures"),
    "only small pictures": (only_small, "--factor 16"),
    "picture missing": (lambda f: (f / "images" / "IMG_00.png").unlink(), r"holds 8 pictures \(IMG_01.png, .*\) but .* 9 poses"),
    "picture too many": (change_picture("IMG_99.png", WIDTH, HEIGHT), r"holds 10 pictures \(IMG_00.png, .*\) but .* 9 poses"),
    "sizes differ": (change_picture("IMG_05.png", 60, 48), "IMG_05.png is 60x48 where IMG_00.png is 64x48"),
    "rotated": (all_pictures(48, 64), "are 48x64, but .* is for 64x48"),
    "damaged picture": (lambda f: (f / "images" / "IMG_05.png").write_bytes(b"no picture"), "IMG_05.png"),
    "picture cut short": (lambda f: os.truncate(f / "images" / "IMG_05.png", 2000), "IMG_05.png"),
}


@pytest.mark.parametrize(("damage", "words"), BAD_SCENES.values(), ids=BAD_SCENES.keys())
def test_a_bad_scene_is_one_sentence(scene, damage, words):
    damage(scene)
    with pytest.raises(SceneError, match=words) as caught:
        load(str(scene), Config())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(factor=0), "factor must be larger than 0"),
        (Config(width=-3), "width must be larger than 0"),
        (Config(bd_factor=0.0), "bd_factor must be larger than 0"),
        (Config(factor=4, height=10), "one or the other"),
        (Config(holdout=-1), r"scene\.holdout must be"),
        (Config(holdout=1), "none is left to train on"),
        (Config(spherify=True, ndc=True), "turn one of them off"),
        (Config(train_views=(50, -1, 1)), "leaves none"),
        (Config(near=2.0), "near"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_sentence(scene, config, words):
    with pytest.raises(NerfitError, match=words) as caught:
        load(str(scene), config)
    assert "\n" not in str(caught.value)


def test_contradictions_are_found_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError):
        load(str(tmp_path / "nothing"), Config(factor=0))


# a real scene


@pytest.mark.skipif(not detect(str(DATA / "nerf_llff_data" / "fern")), reason="needs the fern scene in NERFIT_DATA or ../shared/data")
@pytest.mark.parametrize(("factor", "size"), [(8, (504, 378)), (16, (252, 189))])
def test_fern(factor, size):
    scene = load(str(DATA / "nerf_llff_data" / "fern"), Config(factor=factor))
    assert (int(scene.cameras.width[0]), int(scene.cameras.height[0])) == size
    assert float(scene.cameras.fx[0]) == pytest.approx(3260.5263328805895 / factor)
    assert (scene.ndc, scene.splits["test"], len(scene.splits["train"])) == (True, [0, 8, 16], 17)
    assert scene.depth_range == pytest.approx((4 / 3, 80.00209740336334 / (0.75 * 16.985296178676084)))
