"""The layouts of NSVF and NeRF++: their cameras against their pictures of a ball, near and far against its box, and bad input."""

import itertools
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import readers
from conftest import FOV, HEIGHT, WIDTH, around, assert_close, ball_picture, rotation
from nerfit.cameras.poses import to_4x4
from nerfit.errors import ConfigError
from nerfit.scenes.formats import nsvf
from nerfit.scenes.scene import Scene

FOCAL = 0.5 * WIDTH / math.tan(0.5 * FOV)
POSES = [around(2 * math.pi * i / 7, 0.2 + 0.1 * i) for i in range(7)]
PREFIXES = ("0_", "0_", "1_", "0_", "2_", "0_", "2_")
TURN = rotation(np.random.default_rng(3))
SHIFT, SCALE = np.array([0.5, -2.0, 1.0]), 3.0
"""From the world in which the ball is the unit ball and z is up to that of the files."""
BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.5, 1.0]])


def write(file: Path, matrix: np.ndarray, between: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(between.join(" ".join(map(repr, row)) for row in matrix.tolist()) + "\n")


def save(file: Path, view: int, channels: int = 3) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ball_picture(POSES[view])[..., :channels]).save(file)


def opencv(view: int, moved: bool = False) -> np.ndarray:
    """A camera-to-world matrix in the files' axes, and on demand in another world."""
    c2w = POSES[view] @ np.diag([1.0, -1, -1, 1])
    if moved:
        c2w[:3, :3], c2w[:3, 3] = TURN @ c2w[:3, :3], SCALE * TURN @ c2w[:3, 3] + SHIFT
    return c2w


def lens(focal: float = FOCAL) -> np.ndarray:
    return np.array([[focal, 0, WIDTH / 2, 0], [0, focal, HEIGHT / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.fixture
def barn(tmp_path: Path) -> Path:
    """NSVF's layout."""
    folder = tmp_path / "Barn"
    for i, prefix in enumerate(PREFIXES):
        save(folder / "rgb" / f"{prefix}{i:05d}.png", i)
        write(folder / "pose" / f"{prefix}{i:05d}.txt", opencv(i))
    write(folder / "intrinsics.txt", lens())
    (folder / "bbox.txt").write_text(" ".join(map(repr, BOX.ravel().tolist())) + " 0.4\n")
    return folder


@pytest.fixture
def truck(tmp_path: Path) -> Path:
    """NeRF++'s layout, in a world that is turned, shifted and larger, and a lens for each picture."""
    folder = tmp_path / "tat_training_Truck"
    for i, split in enumerate(("train", "train", "train", "train", "validation", "test", "test")):
        save(folder / split / "rgb" / f"{i:06d}.png", i)
        write(folder / split / "pose" / f"{i:06d}.txt", opencv(i, moved=True), " ")
        write(folder / split / "intrinsics" / f"{i:06d}.txt", lens(FOCAL + 0.01 * i), " ")
    write(folder / "camera_path" / "pose" / "000000.txt", opencv(0), " ")
    return folder


load, refused = partial(readers.load, "nsvf"), partial(readers.refused, "nsvf")


def assert_rays_hit_the_ball(scene: Scene, order: list[int], centre: np.ndarray, radius: float) -> None:
    """Exactly the rays that meet the ball of the files' world end on its pixels; poses are given by number."""
    to_original = scene.to_original.numpy()
    for view, number in enumerate(order):
        pixels = torch.arange(WIDTH * HEIGHT)
        rays = scene.rays(torch.full_like(pixels, view), pixels % WIDTH, pixels // WIDTH)
        origins = rays.origins.double().numpy() @ to_original[:3, :3].T + to_original[:3, 3]
        directions = rays.viewdirs.double().numpy() @ to_original[:3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        inside = np.linalg.norm(np.cross(centre - origins, directions), axis=-1) < radius
        truth = ball_picture(POSES[number])
        assert np.array_equal((scene.image(view, None) * 255).round().numpy()[..., :3], truth[..., :3])
        assert np.array_equal(inside.reshape(HEIGHT, WIDTH), truth[..., 3] > 0)


def test_nsvf_is_read_whole(barn: Path) -> None:
    scene = load(barn)
    order = [0, 1, 3, 5, 2, 4, 6]
    assert (scene.name, scene.format, scene.bounds, scene.default_path) == ("Barn", "nsvf", "object", "circle")
    assert scene.splits == {"train": [0, 1, 2, 3], "val": [4], "test": [5, 6]}
    assert scene.view_names == [f"rgb/{PREFIXES[i]}{i:05d}.png" for i in order]
    assert_rays_hit_the_ball(scene, order, np.zeros(3), 1.0)
    assert_close(scene.original_cameras.c2w, np.stack([POSES[i] for i in order])[:, :3], 1e-6)


def test_near_and_far_are_those_of_the_box(barn: Path) -> None:
    corners = np.array(list(itertools.product(*BOX.T)))
    for centre in (True, False):
        scene = load(barn, centre=centre)
        unit = float(scene.to_original[:3, 0].norm())
        depths = [(c2w[:3, 2] @ (c2w[:3, 3] - corner)) / unit for c2w in POSES for corner in corners]
        assert (scene.near, scene.far) == (pytest.approx(min(depths), rel=1e-5), pytest.approx(max(depths), rel=1e-5))
    assert (load(barn, near=0.5).near, load(barn, far=9.0).far) == (0.5, 9.0)
    assert load(barn, bounds="unbounded").far == 100
    (barn / "bbox.txt").write_text("-9 -9 -9 9 9 9")
    inside = load(barn)
    assert inside.near == pytest.approx(0.05 * inside.far)
    (barn / "bbox.txt").unlink()
    assert load(barn).bounds == "unbounded"


def test_nerfpp_is_read_whole(truck: Path) -> None:
    scene = load(truck)
    assert (scene.name, scene.bounds) == ("tat_training_Truck", "unbounded")
    assert scene.splits == {"train": [0, 1, 2, 3], "val": [4], "test": [5, 6]}
    assert scene.view_names[4] == "validation/rgb/000004.png"
    assert_rays_hit_the_ball(scene, list(range(7)), SHIFT, SCALE)
    assert_close(scene.cameras.fx, FOCAL + 0.01 * np.arange(7), 1e-6)
    assert_close(to_4x4(scene.original_cameras.c2w)[:, :3, 3], np.stack([SCALE * TURN @ c2w[:3, 3] + SHIFT for c2w in POSES]), 1e-5)
    shutil.rmtree(truck / "validation")
    assert load(truck).splits == {"train": [0, 1, 2, 3], "val": [4, 5], "test": [4, 5]}
    shutil.rmtree(truck / "test")
    assert load(truck).splits == {"train": [0, 1, 2, 3], "val": [], "test": []}


def test_options_and_other_layouts(barn: Path) -> None:
    small = load(barn, factor=2, train_views=(1, -1, 2))
    assert small.splits["train"] == [1, 3] and small.cameras.width.unique().tolist() == [WIDTH // 2]
    assert_close(small.cameras.fx, np.full(7, FOCAL / 2), 1e-6)
    whole = load(barn)
    for text in (
        f"{FOCAL!r} {WIDTH / 2} {HEIGHT / 2} 0.\n0. 0. 0.\n0.\n1.\n{HEIGHT} {WIDTH}\n",  # NSVF's made-up scenes
        "\n".join(" ".join(map(repr, row)) for row in lens()[:3, :3].tolist()),
    ):
        (barn / "intrinsics.txt").write_text(text)
        assert torch.equal(load(barn).cameras.fx, whole.cameras.fx) and torch.equal(load(barn).cameras.cy, whole.cameras.cy)
    for file in [*barn.glob("*/2_*")]:
        file.rename(file.with_name("1" + file.name[1:]))
    assert load(barn).splits == {"train": [0, 1, 2, 3], "val": [4, 5, 6], "test": [4, 5, 6]}  # Tanks and Temples has no 2_
    for file in [*barn.glob("*/?_*")]:
        file.rename(file.with_name("ein Bild ä" + file.name[2:]))
    assert load(barn, holdout=3).splits == {"train": [1, 2, 4, 5], "val": [0, 3, 6], "test": [0, 3, 6]}
    assert load(barn, holdout=0).splits == {"train": list(range(7)), "val": [], "test": []}
    refused(barn, "at least 1", ConfigError, factor=0)


def test_transparent_pictures_are_an_object_and_sizes_may_differ_with_their_lenses(truck: Path) -> None:
    for i, split in enumerate(("train", "train", "train", "train", "validation", "test", "test")):
        save(truck / split / "rgb" / f"{i:06d}.png", i, 4)
    assert load(truck).bounds == "object" and load(truck).has_alpha
    Image.fromarray(np.repeat(np.repeat(ball_picture(POSES[1]), 2, 0), 2, 1)).save(truck / "train/rgb/000001.png")
    large = lens(2 * FOCAL)
    large[:2, 2] *= 2
    write(truck / "train/intrinsics/000001.txt", large, " ")
    assert load(truck).cameras.width.tolist() == [WIDTH, 2 * WIDTH, *[WIDTH] * 5]


NAN, ZEROS = " ".join(["nan"] * 16), " ".join(["0"] * 16)
MIRROR = " ".join(map(str, np.diag([1, 1, -1, 1]).ravel()))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("intrinsics.txt", "", "3x3 or 4x4 matrix"),
        ("intrinsics.txt", NAN, "3x3 or 4x4 matrix"),
        ("intrinsics.txt", ZEROS, "3x3 or 4x4 matrix"),
        ("intrinsics.txt", "9 1 5 0 9 4 0 0 1", "3x3 or 4x4 matrix"),  # the pixels' axes are not square to each other
        ("intrinsics.txt", "1 2 3 4 5 6 7 8 9 10", "3x3 or 4x4 matrix"),
        ("intrinsics.txt", "9 0 5 0 -9 4 0 0 1", "fl_y .*larger than 0"),
        ("intrinsics.txt", "1e-3 0 5 0 1e-3 4 0 0 1", "should be in pixels"),
        ("intrinsics.txt", "1e300 0 5 0 1e300 4 0 0 1", "should be a number"),
        ("intrinsics.txt", "18 0 10 0 18 8 0 0 1", "10 8 is far from the middle of a picture of 10x8"),
        ("pose/0_00001.txt", "1 0 0", "16 numbers"),
        ("pose/0_00001.txt", NAN, "16 numbers"),
        ("pose/0_00001.txt", ZEROS, "16 numbers"),
        ("pose/0_00001.txt", MIRROR, "0_00001.png .*mirrors"),
        ("pose/0_00001.txt", None, "every pose in pose; 0_00001 is missing"),
        ("rgb/0_00001.png", None, "0_00001 is missing"),
        ("rgb/0_00001.png", "a letter", "0_00001.png can't be read"),
        ("bbox.txt", "1 2 3", "least x y z"),
        ("bbox.txt", "1 1 1 0 0 0", "least x y z"),
        ("bbox.txt", "99 99 99 100 100 100", "no picture shows the middle"),
    ],
)
def test_bad_nsvf_is_refused(barn: Path, file: str, text: str | None, message: str) -> None:
    path = barn / file
    path.unlink() if text is None else path.write_text(text)
    refused(barn, message)


def test_missing_and_contradicting_parts_are_refused(barn: Path, truck: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(barn / "rgb" / "0_00001.png")
    refused(barn, "0_00001.png is 10x9, unlike the first picture, 10x8")
    Image.new("RGB", (WIDTH, HEIGHT)).save(barn / "rgb" / "0_00001.jpg")
    (barn / "rgb" / "0_00001.png").unlink()
    for file in barn.glob("*/0_*"):
        file.unlink()
    refused(barn, "names should begin with 0_")
    for file in barn.glob("rgb/*"):
        file.unlink()
    refused(barn, "is missing")
    (truck / "test/intrinsics/000005.txt").unlink()
    refused(truck, "every intrinsics in intrinsics; 000005 is missing")
    shutil.rmtree(truck / "test")
    write(truck / "train/intrinsics/000002.txt", np.ones((4, 4)), " ")
    refused(truck, r"000002\.txt must hold a 3x3 or 4x4 matrix")
    (truck / "train/intrinsics/000002.txt").symlink_to("nowhere") if (truck / "train/intrinsics/000002.txt").unlink() else None
    shutil.rmtree(truck / "train/rgb")
    assert not nsvf.detect(str(truck)) and not nsvf.detect("nowhere")
