"""The reader of COLMAP models: bytes from an independent writer, every lens against COLMAP itself, layouts, and damaged files."""

import math
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import around, assert_close, rotation
from nerfit.errors import SceneError
from nerfit.scenes import detect_format
from nerfit.scenes.formats import colmap
from nerfit.scenes.scene import Scene

VIEWS, WIDTH, HEIGHT = 9, 24, 16
MODELS: dict[str, tuple[int, list[float]]] = {
    "SIMPLE_PINHOLE": (0, [20.0, 12.5, 7.8]),
    "PINHOLE": (1, [20.0, 21.0, 12.5, 7.8]),
    "SIMPLE_RADIAL": (2, [20.0, 12.5, 7.8, 0.08]),
    "RADIAL": (3, [20.0, 12.5, 7.8, 0.08, -0.03]),
    "OPENCV": (4, [20.0, 21.0, 12.5, 7.8, 0.08, -0.03, 0.01, -0.02]),
    "OPENCV_FISHEYE": (5, [20.0, 21.0, 12.5, 7.8, 0.05, -0.02, 0.01, 0.003]),
    "FULL_OPENCV": (6, [20.0, 21.0, 12.5, 7.8, 0.08, -0.03, 0.01, -0.02, 0.005, 0.02, 0.01, 0.003]),
    "SIMPLE_RADIAL_FISHEYE": (8, [20.0, 12.5, 7.8, 0.05]),
    "RADIAL_FISHEYE": (9, [20.0, 12.5, 7.8, 0.05, -0.02]),
    "THIN_PRISM_FISHEYE": (10, [20.0, 21.0, 12.5, 7.8, 0.05, -0.02, 0.004, -0.006, 0.01, 0.003, 0.012, -0.007]),
    "SIMPLE_FISHEYE": (14, [20.0, 12.5, 7.8]),
    "FISHEYE": (15, [20.0, 21.0, 12.5, 7.8]),
    "EQUIRECTANGULAR": (17, [float(WIDTH), float(HEIGHT)]),
}
WORLD = np.eye(4)
WORLD[:3, :3], WORLD[:3, 3] = rotation(np.random.default_rng(8)), [3.0, -20.0, 1.0]


pytestmark = pytest.mark.usefixtures("cache")


def picture(view: int, width: int = WIDTH, height: int = HEIGHT, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(view).integers(0, 256, (height, width, channels), dtype=np.uint8)


def c2w_opencv(view: int) -> np.ndarray:
    """A camera of a ring around the point of WORLD, in COLMAP's axes (right, down, forwards)."""
    return WORLD @ around(2 * math.pi * view / VIEWS, 0.2 + 0.03 * view) @ np.diag([1.0, -1, -1, 1])


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """w x y z by the axis (null space of R - 1) and the angle: slow, and unlike the library's way."""
    axis = np.linalg.svd(matrix - np.eye(3))[2][2]
    aside = np.cross(axis, [0.3, -0.5, 0.8])
    cosine, sine = aside @ matrix @ aside / (aside @ aside), axis @ np.cross(aside, matrix @ aside) / (aside @ aside)
    angle = math.atan2(sine, cosine)
    return np.array([math.cos(angle / 2), *(math.sin(angle / 2) * axis)])


def row(view: int) -> list[float]:
    """Quaternion and translation of the world-to-camera pose."""
    w2c = np.linalg.inv(c2w_opencv(view))
    return [*quaternion(w2c[:3, :3]), *w2c[:3, 3]]


POINTS = np.random.default_rng(2).uniform(-0.5, 0.5, (50, 3)) @ WORLD[:3, :3].T + WORLD[:3, 3]


def write_bin(folder: Path, names: list[str], cameras: dict[int, tuple[int, list[float]]], poses: list[list[float]]) -> None:
    """A model as COLMAP's documentation describes it, picture i with the first i points in it, cameras in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for number, (kind, values) in cameras.items():
            file.write(struct.pack("<iiQQ", number, kind, WIDTH, HEIGHT) + struct.pack(f"<{len(values)}d", *values))
    numbers = list(cameras)
    with (folder / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for i, (name, pose) in reversed(list(enumerate(zip(names, poses, strict=True)))):
            file.write(struct.pack("<i", 100 + i) + struct.pack("<7d", *pose) + struct.pack("<i", numbers[i % len(numbers)]))
            file.write(name.encode() + b"\x00" + struct.pack("<Q", i))
            file.write(b"".join(struct.pack("<ddq", 1.5 * k, 2.5, 7 * k) for k in range(i)))
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(POINTS)))
        for i, point in enumerate(POINTS):
            file.write(struct.pack("<Q", 7 * i) + struct.pack("<ddd", *point) + struct.pack("<BBBd", 1, 2, 3, 0.5))
            seen = range(i + 1, len(names))
            file.write(struct.pack("<Q", len(seen)) + b"".join(struct.pack("<ii", 100 + view, i) for view in seen))


def write_txt(folder: Path, names: list[str], cameras: dict[int, tuple[str, list[float]]], poses: list[list[float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list", *(f"{n} {kind} {WIDTH} {HEIGHT} {' '.join(map(repr, values))}" for n, (kind, values) in cameras.items())]
    (folder / "cameras.txt").write_text("\n".join(lines))
    numbers = list(cameras)
    lines = ["# Image list with two lines of data per image:", "#   IMAGE_ID, QW, ...", ""]
    for i, (name, pose) in enumerate(zip(names, poses, strict=True)):
        lines += [f"{i + 1} {' '.join(map(repr, map(float, pose)))} {numbers[i % len(numbers)]} {name}", "1.5 2 -1 3 4 5" if i % 2 else ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text(
        "".join(f"{i} {x!r} {y!r} {z!r} 9 9 9 .5 1 2 3 4\n" for i, (x, y, z) in enumerate(POINTS.tolist()))
    )


NAMES = [f"ein Bild {i} ü.png" for i in range(VIEWS)]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Nine pictures of a ring and their binary model in sparse/0; spaces and an umlaut in the names."""
    folder = tmp_path / "plant"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(picture(i)).save(folder / "images" / name)
    model(folder)
    return folder


def model(folder: Path, kind: str = "OPENCV", where: str = "sparse/0", text: bool = False, names: list[str] = NAMES) -> None:
    poses = [row(i) for i in range(len(names))]
    if text:
        write_txt(folder / where, names, {3: (kind, MODELS[kind][1])}, poses)
    else:
        write_bin(folder / where, names, {3: MODELS[kind]}, poses)


def load(folder: Path, **choices: Any) -> Scene:
    """The scene, which must be read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return colmap.load(str(folder), colmap.Config(**choices))


def project(kind: str, values: list[float], point: np.ndarray) -> tuple[float, float]:
    """COLMAP's formulas for a point in camera coordinates, one after another."""
    x, y, z = point
    if kind == "EQUIRECTANGULAR":
        return (math.atan2(x, z) / (2 * math.pi) + 0.5) * values[0], (math.atan2(y, math.hypot(x, z)) / math.pi + 0.5) * values[1]
    single = kind in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE")
    fx, fy, cx, cy, *k = [values[0], *values] if single else values
    u, v = x / z, y / z
    if "FISHEYE" in kind:
        r = math.hypot(u, v)
        u, v = u * math.atan(r) / r, v * math.atan(r) / r
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2 = [0.0] * 10
    if kind == "OPENCV_FISHEYE":
        k1, k2, k3, k4 = k
    elif kind == "THIN_PRISM_FISHEYE":
        k1, k2, p1, p2, k3, k4, s1, s2 = k
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = [*k, *[0.0] * (8 - len(k))]
    r2 = u * u + v * v
    if kind == "FULL_OPENCV":
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    else:
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    ud = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + s1 * r2
    vd = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v + s2 * r2
    return fx * ud + cx, fy * vd + cy


def assert_rays_meet_points(scene: Scene, view: int, kind: str, number: int, turn: Callable[[Any], Any] = lambda xy: xy) -> None:
    """Points of the model's world lie on the rays of the pixels that picture ``number`` shows them in."""
    points = WORLD[:3, 3] + np.random.default_rng(view).uniform(-1, 1, (20, 3))
    w2c = np.linalg.inv(c2w_opencv(number))
    pixels = np.array([turn(project(kind, MODELS[kind][1], w2c[:3, :3] @ p + w2c[:3, 3])) for p in points])
    x, y = torch.tensor(pixels - 0.5, dtype=torch.float32).T
    rays = scene.rays(torch.full((20,), view), x, y)
    here = np.linalg.inv(scene.to_original.numpy()) @ np.concatenate([points, np.ones((20, 1))], 1).T
    to_points = torch.from_numpy(here[:3].T) - rays.origins.double()
    along = (to_points * rays.viewdirs).sum(-1)
    assert (along > 0).all()
    assert_close(rays.viewdirs * along[:, None], to_points, 1e-5)


# --- What is read ---------------------------------------------------------------------------------------------------


def test_a_model_is_read_in_order_of_names(capture):
    assert detect_format(str(capture)) == "colmap"
    scene = load(capture)
    assert (scene.name, scene.format, scene.bounds, scene.default_path) == ("plant", "colmap", "unbounded", "ellipse")
    assert scene.view_names == [f"images/{name}" for name in NAMES]
    assert scene.splits == {"train": [1, 2, 3, 4, 5, 6, 7], "val": [0, 8], "test": [0, 8]}
    for view in range(VIEWS):
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), picture(view))
        assert_rays_meet_points(scene, view, "OPENCV", view)
    assert scene.depth_range is not None and 0.8 < scene.depth_range[0] < 1 < scene.depth_range[1] < 1.2
    assert_close(scene.cameras.centers.norm(dim=-1).mean(), 1.0, 1e-5)
    assert load(capture, holdout=0, train_views=(0, 3, 1)).splits == {"train": [0, 1, 2], "val": [], "test": []}
    assert (load(capture, near=0.3, far=7.0).near, load(capture, bounds="object").bounds) == (0.3, "object")
    assert torch.equal(load(capture, centre=False).to_original, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_lens_is_colmaps(capture, kind, text):
    shutil.rmtree(capture / "sparse")
    model(capture, kind, text=text)
    scene = load(capture)
    assert_rays_meet_points(scene, 4, kind, 4)
    assert scene.depth_range is not None


@pytest.mark.parametrize("kind", MODELS)
def test_the_formulas_of_the_lenses_are_those_of_pycolmap(kind):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    camera = pycolmap.Camera(model=kind, width=WIDTH, height=HEIGHT, params=MODELS[kind][1])
    for point in np.random.default_rng(0).uniform([-1, -1, 1], [1, 1, 2], (20, 3)):
        assert project(kind, MODELS[kind][1], point) == pytest.approx(tuple(camera.img_from_cam(point)), abs=1e-9)


def test_files_are_those_of_pycolmap(capture, tmp_path):
    """COLMAP reads what the tests write, and its own binary and text files are read as the same scene."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    before = load(capture)
    reconstruction = pycolmap.Reconstruction(str(capture / "sparse/0"))
    assert (reconstruction.num_reg_images(), reconstruction.num_points3D()) == (VIEWS, len(POINTS))
    for view, image in enumerate(sorted(reconstruction.images.values(), key=lambda image: image.name)):
        assert_close(image.projection_center(), c2w_opencv(view)[:3, 3], 1e-9)
    for write in ("write_binary", "write_text"):
        shutil.rmtree(capture / "sparse/0")
        (capture / "sparse/0").mkdir()
        getattr(reconstruction, write)(str(capture / "sparse/0"))
        after = load(capture)
        assert_close(after.cameras.c2w, before.cameras.c2w, 1e-6)
        assert after.depth_range == pytest.approx(before.depth_range)


# --- Layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sparse/0", "sparse", "colmap/sparse/0", "distorted/sparse/0", "."])
@pytest.mark.parametrize("pictures", ["images", "image", "input", "rgb", "."])
def test_models_and_pictures_may_lie_elsewhere(capture, where, pictures):
    shutil.rmtree(capture / "sparse")
    model(capture, where=where)
    for path in (capture / "images").iterdir():
        target = capture / pictures / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert detect_format(str(capture)) == "colmap"
    scene = load(capture)
    assert (scene.name, scene.view_names[0]) == ("plant", str(Path(pictures) / NAMES[0]))


@pytest.mark.parametrize("where", ["sparse/0", "sparse"])
def test_a_models_own_folder_is_enough(capture, where):
    shutil.rmtree(capture / "sparse")
    model(capture, where=where)
    scene = load(capture / where)
    assert (scene.name, scene.view_names[0]) == ("plant", f"images/{NAMES[0]}")


def test_other_formats_go_first(capture):
    (capture / "poses_bounds.npy").touch()
    assert detect_format(str(capture)) == "llff"
    (capture / "poses_bounds.npy").unlink()
    (capture / "transforms.json").touch()
    assert detect_format(str(capture)) == "transforms"


def test_the_largest_of_several_models_is_used(capture):
    model(capture, where="sparse/1", names=[*NAMES, "one more.png"])
    model(capture, where="sparse/2", names=NAMES[:3])
    Image.fromarray(picture(9)).save(capture / "images/one more.png")
    told = r"3 COLMAP models, .* is used, sparse/1 \(10 of 10\); the others: sparse/0 \(9 of 9\), sparse/2 \(3 of 3\)\.$"
    with pytest.warns(UserWarning, match=told):
        scene = colmap.load(str(capture), colmap.Config())
    assert len(scene.cameras) == 10


@pytest.mark.parametrize(
    ("where", "pictures"),
    [
        ("sparse/0/models/1", "images"),
        ("colmap_sparse/0", "images"),
        ("colmap_text", "images"),
        ("distorted/sparse/2", "input"),
        ("dense/0/sparse", "dense/0/images"),
        ("sparse", "dense/0/images"),
    ],
)
def test_models_are_found_wherever_programs_put_them(capture, where, pictures):
    """The one with the most pictures that are there; one of more pictures that are absent does not count."""
    shutil.rmtree(capture / "sparse")
    model(capture, where=where)
    for small, names in (("sparse/0", NAMES[:2]), ("sparse/7", [f"absent {i}.png" for i in range(20)])):
        model(capture, where=small, names=names)
    (capture / "images").rename(capture / "pictures")
    (capture / pictures).parent.mkdir(parents=True, exist_ok=True)
    (capture / "pictures").rename(capture / pictures)
    with pytest.warns(UserWarning, match=rf"3 COLMAP models, .* is used, {where} \(9 of 9\)"):
        scene = colmap.load(str(capture), colmap.Config())
    assert (scene.name, scene.view_names[0]) == ("plant", f"{pictures}/{NAMES[0]}")


def test_copies_of_a_model_are_one(capture):
    model(capture, where="sparse", text=True)
    shutil.copytree(capture / "sparse/0", capture / "sparse/1")
    assert len(load(capture).cameras) == VIEWS


def test_a_damaged_model_leaves_the_others(capture):
    model(capture, where="sparse/1")
    (capture / "sparse/1/images.bin").write_bytes(b"\xff" * 20)
    with pytest.warns(UserWarning, match="sparse/1/images.bin .* Another model is used"):
        assert len(colmap.load(str(capture), colmap.Config()).cameras) == VIEWS


@pytest.mark.parametrize("lines", ["no points", "empty points", "commas"])
def test_lines_of_points_may_be_missing_and_commas_end_words(capture, lines):
    shutil.rmtree(capture / "sparse")
    model(capture, text=True)
    whole = load(capture)
    for part in ("cameras", "images", "points3D"):
        file = capture / f"sparse/0/{part}.txt"
        rows = [row for row in file.read_text().splitlines() if not row.startswith("#")]
        if part == "images" and lines != "commas":
            rows = [line for row in rows if row.endswith(".png") for line in ([row] if lines == "no points" else [row, ""])]
        if lines == "commas":
            rows = [", ".join(row.split(maxsplit=9)) for row in rows]
        file.write_text("\n".join(rows) + "\n")
    scene = load(capture)
    assert scene.view_names == whole.view_names
    assert_close(scene.cameras.c2w, whole.cameras.c2w, 1e-6)


def test_smaller_pictures_are_taken_where_there_are_some(capture):
    assert load(capture, factor=2).cameras.width.tolist() == [12] * VIEWS
    (capture / "images_2").mkdir()
    for i, name in enumerate(NAMES):
        Image.fromarray(picture(20 + i, 12, 8)).save(capture / "images_2" / name.replace(".png", ".bmp"))
    scene, full = load(capture, factor=2), load(capture)
    assert scene.view_names[0] == f"images_2/{NAMES[0].replace('png', 'bmp')}"
    assert np.array_equal((scene.image(3, None) * 255).round().numpy(), picture(23, 12, 8))
    assert_close(scene.cameras.fx, full.cameras.fx / 2, 1e-6)
    assert_close(scene.cameras.cy, full.cameras.cy / 2, 1e-6)
    assert load(capture, factor=4).cameras.width.tolist() == [6] * VIEWS
    shutil.rmtree(capture / "images")
    refused(capture, r"none of the 9 pictures .* there is images_2: add --scene\.factor 2")


def test_pictures_may_lie_in_folders_of_their_own(capture):
    names = [f"left/{i}.png" if i % 2 else f"right/{i}.png" for i in range(VIEWS)]
    for old, new in zip(NAMES, names, strict=True):
        (capture / "images" / new).parent.mkdir(exist_ok=True)
        (capture / "images" / old).rename(capture / "images" / new)
    Image.fromarray(picture(0)).save(capture / "images/left/lone.png")
    model(capture, names=names)
    with pytest.warns(UserWarning, match=r"1 of 10 pictures have no pose in .*sparse/0 and were left out: lone\.png$"):
        scene = colmap.load(str(capture), colmap.Config())
    assert scene.view_names == [f"images/{name}" for name in sorted(names)]
    order = sorted(range(VIEWS), key=lambda i: names[i])
    for view, number in enumerate(order):
        assert_rays_meet_points(scene, view, "OPENCV", number)


def test_poses_without_pictures_and_pictures_without_poses_are_counted(capture):
    (capture / "images" / NAMES[2]).unlink()
    Image.fromarray(picture(0)).save(capture / "images/zz.png")
    with pytest.warns(UserWarning) as caught:
        scene = colmap.load(str(capture), colmap.Config())
    absent, lone = sorted(str(w.message) for w in caught if "left out" in str(w.message))[::-1]
    assert absent.endswith(f"1 of 9 pictures with a pose are not in {capture / 'images'} and were left out: {NAMES[2]}")
    assert lone == f"{capture / 'images'}: 1 of 9 pictures have no pose in {capture / 'sparse/0'} and were left out: zz.png"
    assert len(scene.cameras) == VIEWS - 1
    assert_rays_meet_points(scene, 2, "OPENCV", 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_that_exif_turns_takes_its_camera_along(capture, orientation):
    """COLMAP works with the pixels as they are stored."""
    turn: dict[int, Callable[[Any], Any]] = {
        1: lambda xy: xy,
        3: lambda xy: (WIDTH - xy[0], HEIGHT - xy[1]),
        6: lambda xy: (HEIGHT - xy[1], xy[0]),
        8: lambda xy: (xy[1], WIDTH - xy[0]),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(4)).save(capture / "images" / NAMES[4], exif=exif)
    scene = load(capture)
    assert np.array_equal((scene.image(4, None) * 255).round().numpy(), np.rot90(picture(4), {1: 0, 3: 2, 6: 3, 8: 1}[orientation]))
    assert_rays_meet_points(scene, 4, "OPENCV", 4, turn[orientation])
    shutil.rmtree(capture / "sparse")
    model(capture, "THIN_PRISM_FISHEYE")
    assert_rays_meet_points(load(capture), 4, "THIN_PRISM_FISHEYE", 4, turn[orientation])


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_a_picture_that_exif_mirrors_is_left_out(capture, orientation):
    """COLMAP has posed the mirrored picture, and the upright one is that of no camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(4)).save(capture / "images" / NAMES[4], exif=exif)
    with pytest.warns(UserWarning, match="1 of 9 pictures are stored mirrored") as caught:
        scene = colmap.load(str(capture), colmap.Config())
    assert NAMES[4] in str([w.message for w in caught]) and len(scene.cameras) == VIEWS - 1
    assert_rays_meet_points(scene, 4, "OPENCV", 5)
    for name in NAMES:
        Image.fromarray(picture(4)).save(capture / "images" / name, exif=exif)
    refused(capture, "9 of 9 pictures are stored mirrored")


@pytest.mark.parametrize("orientation", [5, 7])
def test_a_model_of_pictures_that_were_set_upright_holds(capture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = Image.Transpose.TRANSPOSE if orientation == 5 else Image.Transpose.TRANSVERSE
    Image.fromarray(picture(4)).transpose(undo).save(capture / "images" / NAMES[4], exif=exif)
    scene = load(capture)
    assert np.array_equal((scene.image(4, None) * 255).round().numpy(), picture(4))
    assert_rays_meet_points(scene, 4, "OPENCV", 4)


def test_transparent_pictures_are_an_object_and_masked_ones_are_not(capture):
    Image.fromarray(picture(2, channels=4)).save(capture / "images" / NAMES[2])
    assert load(capture).bounds == "object"
    Image.fromarray(picture(2)).save(capture / "images" / NAMES[2])
    (capture / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(picture(2)[..., 0] // 128 * 255).save(capture / "masks" / f"{name}.png")
    with pytest.warns(UserWarning, match="what masks hide is left out"):
        scene = colmap.load(str(capture), colmap.Config())
    assert (scene.masked, scene.bounds) == (True, "unbounded")


# --- Bad input ------------------------------------------------------------------------------------------------------


def refused(folder: Path, message: str) -> None:
    with pytest.raises(SceneError, match=message) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        colmap.load(str(folder), colmap.Config())
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and folder.name in text


def test_anything_missing_is_reported(capture, tmp_path):
    assert not colmap.detect(str(tmp_path)) and not colmap.detect(str(tmp_path / "none"))
    (capture / "sparse/0/points3D.bin").unlink()
    assert load(capture).depth_range is None
    (capture / "sparse/0/images.bin").rename(capture / "images.bin")
    assert colmap.detect(str(capture))
    refused(capture, r"sparse/0 has no images\.bin or images\.txt")
    (capture / "images.bin").rename(capture / "sparse/0/images.bin")
    (capture / "sparse/0/cameras.bin").unlink()
    refused(capture, r"sparse/0 has no cameras\.bin or cameras\.txt")
    shutil.rmtree(capture / "sparse")
    refused(capture, r"has no COLMAP model")


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("size", [0, 7, 8, 60, -1, -9])
def test_files_cut_short_are_refused(capture, part, size):
    path = capture / f"sparse/0/{part}.bin"
    path.write_bytes(path.read_bytes()[:size])
    if size != 8 or part == "points3D":
        refused(capture, rf"{part}\.bin (is cut short|says that it holds|is damaged)")
    else:
        refused(capture, rf"{part}\.bin says that it holds")


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("count", [2**64 - 1, 10**18, 10**6])
def test_counts_beyond_the_file_are_refused_before_anything_is_allocated(capture, part, count):
    path = capture / f"sparse/0/{part}.bin"
    path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])
    refused(capture, rf"{part}\.bin says that it holds {count} .* it is damaged")


def patched(path: Path, at: int, form: str, *values: Any) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("part", "at", "form", "value", "message"),
    [
        ("cameras", 12, "<i", 7, "camera 3 has a lens of the kind FOV, which is not supported"),
        ("cameras", 12, "<i", 99, "camera 3 has a lens of the kind number 99"),
        ("cameras", 12, "<i", -1, "number -1"),
        ("cameras", 16, "<Q", 0, "camera 3 is not made of sensible numbers"),
        ("cameras", 16, "<Q", 2**60, "camera 3 is not made of sensible numbers"),
        ("cameras", 16, "<Q", HEIGHT // 2, "24x16 where its camera has 8x16; it was turned or cropped"),
        ("cameras", 32, "<d", -20.0, "camera 3 is not made of sensible numbers"),
        ("cameras", 32, "<d", math.nan, "camera 3 is not made of sensible numbers"),
        ("cameras", 80, "<d", math.inf, "camera 3 is not made of sensible numbers"),
        ("cameras", 8, "<i", 4, "lacks this picture's camera"),
        ("images", 12, "<4d", (0.0, 0.0, 0.0, 0.0), "pose of ein Bild 8 ü.png is not made of finite numbers and a rotation"),
        ("images", 12, "<d", math.nan, "is not made of finite numbers"),
        ("images", 60, "<d", math.inf, "is not made of finite numbers"),
        ("images", 68 + 4 + len(NAMES[8].encode()) + 1, "<Q", 2**62, "says that it holds 4611686018427387904 points in a picture"),
        ("points3D", 8 + 43, "<Q", 2**63, "points3D.bin is cut short"),
    ],
)
def test_damaged_numbers_are_refused_in_a_sentence(capture, part, at, form, value, message):
    patched(capture / f"sparse/0/{part}.bin", at, form, *(value if isinstance(value, tuple) else (value,)))
    refused(capture, message)


@pytest.mark.parametrize("name", ["../../secret.png", "{}/secret.png", "a/../../../secret.png"])
def test_names_out_of_the_folder_are_refused(capture, name):
    """Where there is a picture; else it is absent."""
    (capture / "images/a").mkdir()
    model(capture, names=[name.format(capture.parent), *NAMES[1:]])
    with pytest.warns(UserWarning, match="1 of 9 pictures with a pose are not in"):
        assert len(colmap.load(str(capture), colmap.Config()).cameras) == VIEWS - 1
    Image.fromarray(picture(0)).save(capture.parent / "secret.png")
    refused(capture, "points outside")


def test_names_are_checked(capture):
    model(capture, names=[NAMES[1], *NAMES[1:]])
    refused(capture, "two pictures of the name ein Bild 1")
    path = capture / "sparse/0/images.bin"
    path.write_bytes(path.read_bytes().replace(b"\0\x08", b"xx"))
    model(capture, names=["x" * 5000, *NAMES[1:]])
    refused(capture, "name does not end")
    model(capture, names=["x" * 3000 + ".png", *NAMES[1:]])
    (capture / "images" / NAMES[0]).unlink()
    with pytest.warns(UserWarning, match="1 of 9 pictures with a pose"):
        assert len(colmap.load(str(capture), colmap.Config()).cameras) == VIEWS - 1
    model(capture, names=[])
    refused(capture, "has no picture with a pose")


def test_a_quaternion_of_another_length_is_the_same_rotation(capture):
    patched(capture / "sparse/0/images.bin", 12, "<4d", *(-3 * quaternion(np.linalg.inv(c2w_opencv(8))[:3, :3])))
    assert_rays_meet_points(load(capture), 8, "OPENCV", 8)


def test_points_that_are_not_finite_are_passed_over(capture):
    patched(capture / "sparse/0/points3D.bin", 16, "<3d", math.nan, 0.0, math.inf)
    assert load(capture).depth_range is not None


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("cameras", "3 OPENCV 24", "line 1 is no camera"),
        ("cameras", "# Cameras\n\nthree OPENCV 24 16 1 2 3 4 0 0 0 0", "line 3 is no camera"),
        ("cameras", "3", "line 1 is no camera"),
        ("cameras", "3 OPENCV 24 16 1 2 3 4", "camera 3 has 4 parameters where a lens of the kind OPENCV has 8"),
        ("cameras", "3 FOV 24 16 1 2 3 4 5", "kind FOV"),
        ("cameras", "", "lacks this picture's camera"),
        ("images", "1 1 0 0 0 0 0 0 3", "line 1 is no picture"),
        ("images", "1 1 0 0 0 0 0 zero 3 a.png", "line 1 is no picture"),
        ("images", "# none", "has no picture with a pose"),
        ("points3D", "1 2 3", "line 1 is no point"),
        ("points3D", "1 2 3 z 0 0 0", "line 1 is no point"),
    ],
)
def test_bad_lines_are_refused_in_a_sentence(capture, part, text, message):
    shutil.rmtree(capture / "sparse")
    model(capture, text=True)
    (capture / f"sparse/0/{part}.txt").write_text(text)
    refused(capture, message)
