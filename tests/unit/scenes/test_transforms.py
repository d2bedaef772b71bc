"""The reader of transforms.json: its cameras against a float64 twin, how captures are centred, and every kind of bad input."""

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import around, assert_close, rotation
from nerfit.cameras.paths import make_path
from nerfit.cameras.poses import rays_meet, world_up
from nerfit.errors import ConfigError, SceneError
from nerfit.scenes import detect_format
from nerfit.scenes.formats import transforms
from nerfit.scenes.reading.ply import write_ply
from nerfit.scenes.scene import Scene

VIEWS, WIDTH, HEIGHT = 12, 12, 8
FOCUS = {"fl_x": 11.0, "fl_y": 10.5, "cx": 6.3, "cy": 3.8}
LENS = {"k1": 0.06, "k2": -0.08, "p1": -0.01, "p2": 0.004, "k3": 0.02}


pytestmark = pytest.mark.usefixtures("cache")


def picture(view: int, width: int = WIDTH, height: int = HEIGHT, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(view).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A ring of 12 pictures in a world of its own: turned, and the point looked at far from its origin."""
    folder = tmp_path / "plant"
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(VIEWS):
        name = f"images/{i:04d}.png"
        Image.fromarray(picture(i)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": (WORLD @ ring(i)).tolist()})
    write(folder, {**FOCUS, **LENS, "w": WIDTH, "h": HEIGHT, "aabb_scale": 4, "frames": frames[::-1]})
    return folder


def ring(view: int) -> np.ndarray:
    """Cameras 4 away from the origin, all around it."""
    return around(2 * math.pi * view / VIEWS, 0.2 + 0.03 * view)


WORLD = np.eye(4)
WORLD[:3, :3], WORLD[:3, 3] = rotation(np.random.default_rng(5)), [30.0, -20.0, 10.0]


def write(folder: Path, meta: dict[str, Any]) -> None:
    (folder / "transforms.json").write_text(json.dumps(meta))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


def edit(folder: Path, **changes: Any) -> None:
    """Set keys of the file; None removes one."""
    write(folder, {k: v for k, v in (read(folder) | changes).items() if v is not None})


def edit_frame(folder: Path, index: int, **changes: Any) -> None:
    meta = read(folder)
    meta["frames"][index].update(changes)
    write(folder, meta)


def load(folder: Path, **choices: Any) -> Scene:
    """The scene, which must be read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return transforms.load(str(folder), transforms.Config(**choices))


def twin_pixel(c2w: np.ndarray, point: np.ndarray, lens: dict[str, Any]) -> tuple[float, float]:
    """Where a point of the file's world appears in the file's picture, pixels from its corner (OpenCV's and COLMAP's models)."""
    x, y, z = c2w[:3, :3].T @ (point - c2w[:3, 3]) * (1, -1, -1)
    model = lens.get("camera_model", "OPENCV")
    if model == "EQUIRECTANGULAR":
        return WIDTH * math.atan2(x, z) / (2 * math.pi) + lens["cx"], HEIGHT * math.atan2(y, math.hypot(x, z)) / math.pi + lens["cy"]
    u, v = x / z, y / z
    if "FISHEYE" in model:
        r = math.hypot(u, v)
        u, v = math.atan(r) * u / r, math.atan(r) * v / r
    k1, k2, p1, p2, k3, k4, k5, k6, sx1, sy1 = (lens.get(k, 0.0) for k in ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "sx1", "sy1"])
    r2 = u**2 + v**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    radial = radial / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3) if model == "FULL_OPENCV" else radial + k4 * r2**4
    ud = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2) + sx1 * r2
    vd = v * radial + p1 * (r2 + 2 * v**2) + 2 * p2 * u * v + sy1 * r2
    return lens["fl_x"] * ud + lens["cx"], lens["fl_y"] * vd + lens["cy"]


def assert_rays_meet_points(
    scene: Scene, view: int, c2w: np.ndarray, lens: dict[str, Any], size: tuple[int, int] = (WIDTH, HEIGHT), offset: float = 0.5
) -> None:
    """Points of the file's world lie on the rays of the pixels that they are seen in; ``size`` is that of the file's picture."""
    points = WORLD[:3, 3] + np.random.default_rng(view).uniform(-1, 1, (20, 3))
    pixels = np.array([twin_pixel(c2w, point, lens) for point in points])
    small = (int(scene.cameras.width[view]), int(scene.cameras.height[view]))
    x, y = torch.tensor(pixels * np.array(small) / size - offset, dtype=torch.float32).T
    rays = scene.rays(torch.full((20,), view), x, y)
    here = np.linalg.inv(scene.to_original.numpy()) @ np.concatenate([points, np.ones((20, 1))], 1).T
    to_points = torch.from_numpy(here[:3].T) - rays.origins.double()
    along = (to_points * rays.viewdirs).sum(-1)
    assert (along > 0).all()
    assert_close(rays.viewdirs * along[:, None], to_points, 1e-5)


def matrices(folder: Path) -> list[np.ndarray]:
    """The file's poses in order of the pictures' names."""
    return [np.array(f["transform_matrix"]) for f in sorted(read(folder)["frames"], key=lambda f: f["file_path"])]


# --- What is read ---------------------------------------------------------------------------------------------------


def test_a_capture_is_read_in_order_of_names(capture):
    scene = load(capture)
    assert (scene.name, scene.format, scene.bounds, scene.background) == ("plant", "transforms", "unbounded", "auto")
    assert scene.view_names == [f"images/{i:04d}.png" for i in range(VIEWS)]
    assert scene.splits == {"train": [1, 2, 3, 4, 5, 6, 7, 9, 10, 11], "val": [0, 8], "test": [0, 8]}
    for view in range(VIEWS):
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), picture(view))


def test_formats_are_recognised(capture, blender_folder, tmp_path):
    assert detect_format(str(capture)) == "transforms"
    assert detect_format(str(capture / "transforms.json")) == "transforms"
    other = capture / "indoors.json"
    other.write_text((capture / "transforms.json").read_text())
    assert detect_format(str(other)) == "transforms"
    scene = load(other)
    assert (scene.name, len(scene.view_names)) == ("indoors", VIEWS)
    assert load(capture / "transforms.json").name == "plant"
    (blender_folder / "transforms.json").write_text(other.read_text())
    assert detect_format(str(blender_folder)) == "blender"
    for text in ('{"a": 1}', "[]", "{", "[" * 100_000):
        other.write_text(text)
        assert not transforms.detect(str(other))
    assert not transforms.detect(str(tmp_path))
    assert not transforms.detect(str(tmp_path / "none.json"))


@pytest.mark.parametrize("lens", [{}, LENS], ids=["pinhole", "opencv"])
@pytest.mark.parametrize("choices", [{}, {"factor": 2}, {"factor": 5}, {"pixel_offset": 0.0}, {"centre": False}], ids=str)
def test_rays_meet_what_their_pixels_show(capture, lens, choices):
    edit(capture, **dict.fromkeys(LENS) | lens, camera_model="OPENCV" if lens else "PINHOLE")
    scene = load(capture, **choices)
    assert (scene.cameras.distortion is None) == (not lens)
    for view, c2w in enumerate(matrices(capture)):
        assert_rays_meet_points(scene, view, c2w, FOCUS | lens, offset=choices.get("pixel_offset", 0.5))


K4 = {"k1": 0.06, "k2": -0.08, "k3": 0.02, "k4": 0.05}
TANGENTIAL = {"p1": -0.01, "p2": 0.004}
MODELS: dict[str, dict[str, float]] = {
    "SIMPLE_PINHOLE": {},
    "PERSPECTIVE": {},
    "SIMPLE_RADIAL": {"k1": 0.06},
    "RADIAL": {"k1": 0.06, "k2": -0.08},
    "OPENCV": K4 | TANGENTIAL,
    "FULL_OPENCV": K4 | TANGENTIAL | {"k5": -0.03, "k6": 0.04},
    "SIMPLE_RADIAL_FISHEYE": {"k1": 0.06},
    "RADIAL_FISHEYE": {"k1": 0.06, "k2": -0.08},
    "OPENCV_FISHEYE": K4,
    "THIN_PRISM_FISHEYE": K4 | TANGENTIAL | {"sx1": 0.03, "sy1": -0.02},
    "EQUIRECTANGULAR": {},
}


@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model_is_read(capture, model):
    lens = {"camera_model": model, **MODELS[model]}
    edit(capture, **dict.fromkeys(LENS) | lens)
    for choices in ({}, {"factor": 2}):
        scene = load(capture, **choices)
        for view, c2w in enumerate(matrices(capture)[:4]):
            assert_rays_meet_points(scene, view, c2w, FOCUS | lens)


@pytest.mark.parametrize(("flag", "model"), [("is_fisheye", "OPENCV_FISHEYE"), ("latlong", "EQUIRECTANGULAR")])
def test_lenses_of_instant_ngp_are_marked_by_a_flag(capture, flag, model):
    edit(capture, **LENS, camera_model=model)
    named = load(capture).cameras.state()
    edit(capture, camera_model="OPENCV", **{flag: True})
    assert load(capture).cameras.state() == named
    edit(capture, camera_model=None, **{flag: False})
    assert load(capture).cameras.lens is None


def test_the_equirectangular_of_instant_ngp_is_spoken_of(capture):
    edit(capture, equirectangular=True)
    with pytest.warns(UserWarning, match="rows even in latitude") as caught:
        scene = transforms.load(str(capture), transforms.Config())
    assert len(caught) == 1
    assert_rays_meet_points(scene, 2, matrices(capture)[2], FOCUS | {"camera_model": "EQUIRECTANGULAR"})


def test_a_panorama_needs_no_focal_length(capture):
    edit(capture, **dict.fromkeys(FOCUS), camera_model="EQUIRECTANGULAR")
    middle = {"cx": WIDTH / 2, "cy": HEIGHT / 2, "camera_model": "EQUIRECTANGULAR"}
    assert_rays_meet_points(load(capture), 3, matrices(capture)[3], middle)


def test_frames_may_differ_in_their_models(capture):
    models = ["OPENCV", "OPENCV_FISHEYE", "EQUIRECTANGULAR", "FULL_OPENCV"]
    for view in range(VIEWS):
        edit_frame(capture, VIEWS - 1 - view, camera_model=models[view % 4], k4=0.05)
    scene = load(capture)
    for view, c2w in enumerate(matrices(capture)):
        assert_rays_meet_points(scene, view, c2w, FOCUS | LENS | {"camera_model": models[view % 4], "k4": 0.05})


def test_each_frame_may_have_a_lens_and_a_size_of_its_own(capture):
    """Frame 3 is upright, frame 4 a half-size copy of what the file describes: its own values go first, then the file's."""
    Image.fromarray(picture(3, 9, 14)).save(capture / "images/0003.png")
    Image.fromarray(picture(4, WIDTH // 2, HEIGHT // 2)).save(capture / "images/0004.png")
    own = {"fl_x": 12.0, "fl_y": 13.0, "cx": 4.0, "cy": 7.5, "k1": -0.03, "p2": 0.0}
    edit_frame(capture, VIEWS - 1 - 3, **own, w=9, h=14)
    scene = load(capture)
    matrix = matrices(capture)
    assert_rays_meet_points(scene, 3, matrix[3], FOCUS | LENS | own, (9, 14))
    for view in (2, 4):
        assert_rays_meet_points(scene, view, matrix[view], FOCUS | LENS)
    sizes = torch.stack([scene.cameras.width, scene.cameras.height], -1)
    assert sizes[2:6].tolist() == [[12, 8], [9, 14], [6, 4], [12, 8]]
    for view, size in ((2, ()), (3, (9, 14)), (4, (6, 4)), (5, ())):
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), picture(view, *size))


def test_focal_lengths_have_several_names(capture):
    def focal(**keys: Any) -> list[float]:
        edit(capture, **{"fl_x": None, "fl_y": None, "camera_angle_x": None, "camera_angle_y": None} | keys)
        cameras = load(capture).cameras
        return [float(cameras.fx[5]), float(cameras.fy[5])]

    def wide(size: int) -> float:
        return 0.5 * size / math.tan(0.35)

    assert focal(fl_x=9.0) == [9, 9]
    assert focal(fl_y=8) == [8, 8]
    assert focal(fl_x=9.0, fl_y=8, camera_angle_x=0.7, camera_angle_y=0.7) == [9, 8]
    assert focal(camera_angle_x=0.7) == pytest.approx([wide(WIDTH), wide(WIDTH)])
    assert focal(x_fov=math.degrees(0.7), y_fov=None) == pytest.approx([wide(WIDTH), wide(WIDTH)])
    edit(capture, x_fov=None)
    assert focal(camera_angle_y=0.7) == pytest.approx([wide(HEIGHT), wide(HEIGHT)])
    assert focal(camera_angle_x=0.7, camera_angle_y=0.7) == pytest.approx([wide(WIDTH), wide(HEIGHT)])
    edit_frame(capture, VIEWS - 1 - 5, camera_angle_x=0.7, camera_angle_y=0.7)
    assert focal(fl_x=9.0, fl_y=8.0) == pytest.approx([wide(WIDTH), wide(HEIGHT)])


def test_size_and_principal_point_default_to_those_of_the_picture(capture):
    edit(capture, cx=None, cy=None, w=None, h=None)
    cameras = load(capture, factor=2).cameras
    assert torch.stack([cameras.cx, cameras.cy, cameras.fx, cameras.fy], -1).tolist() == [[3, 2, 5.5, 5.25]] * VIEWS
    edit(capture, w=WIDTH * 3.0, h=HEIGHT * 3.0)
    cameras = load(capture).cameras
    assert torch.stack([cameras.cx, cameras.cy], -1).tolist() == [[6, 4]] * VIEWS
    assert_close(torch.stack([cameras.fx, cameras.fy], -1), [[11 / 3, 3.5]] * VIEWS)


def test_smaller_pictures_are_area_means(capture):
    scene = load(capture, factor=4)
    mean = picture(7).reshape(2, 4, 3, 4, 3).mean((1, 3))
    assert np.abs((scene.image(7) * 255).numpy() - mean).max() <= 0.5001
    assert load(capture, factor=100).cameras.width.tolist() == [1] * VIEWS


def test_names_may_lack_their_suffix(capture):
    (capture / "images/0002.png").rename(capture / "images/0002.jpeg")
    meta = read(capture)
    for frame in meta["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    write(capture, meta)
    assert load(capture).view_names[1:4] == ["images/0001.png", "images/0002.jpeg", "images/0003.png"]


# --- Absent pictures and splits -------------------------------------------------------------------------------------


def test_absent_pictures_are_left_out_with_one_warning(capture):
    for i in (0, 3, 5, 11):
        (capture / f"images/{i:04d}.png").unlink()
    with pytest.warns(UserWarning) as caught:
        scene = transforms.load(str(capture), transforms.Config(holdout=3))
    assert [str(w.message) for w in caught] == [
        f"{capture / 'transforms.json'}: 4 of 12 pictures are not there and were left out: "
        "images/0011.png, images/0005.png, images/0003.png, ..."
    ]
    assert scene.view_names == [f"images/{i:04d}.png" for i in (1, 2, 4, 6, 7, 8, 9, 10)]
    assert scene.splits == {"train": [1, 2, 4, 5, 7], "val": [0, 3, 6], "test": [0, 3, 6]}
    for view, i in enumerate((1, 2, 4, 6)):
        assert_rays_meet_points(scene, view, matrices(capture)[i], FOCUS | LENS)
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), picture(i))


def test_frames_listed_twice_count_once(capture):
    edit(capture, frames=[*read(capture)["frames"], read(capture)["frames"][3]])
    with pytest.warns(UserWarning, match=r"1 pictures are listed more than once, .*: images/0008\.png$"):
        assert len(transforms.load(str(capture), transforms.Config()).cameras) == VIEWS


def test_comments_and_trailing_commas_are_read(capture):
    file = capture / "transforms.json"
    plain = load(capture).cameras.state()
    text = file.read_text().replace('"frames": [', '"frames": [ // "all", of them\n /* here, */ ').rstrip("}")
    name = json.dumps("images/0011.png")
    assert name in text
    file.write_text("/* by hand // */ " + text.replace(name, '"images//0011.png" /* "0012" */') + ', "applied_scale": 1,\n}')
    assert load(capture).cameras.state() == plain
    for content in ('{"a": 1,,}', '{"a": /* no end', '{"a": "no end, }', '{"\\', "/*", "{,}" * 5 + '"' * 9):
        file.write_text(content)
        refused(capture, "not valid JSON")


def test_absent_pictures_point_to_a_model(capture):
    shutil.rmtree(capture / "images")
    (capture / "sparse/0").mkdir(parents=True)
    (capture / "sparse/0/images.txt").touch()
    refused(capture, r"none is there; .*0011\.png; --scene\.format colmap reads the model in .*sparse/0\.$")


def test_cameras_without_pictures_are_listed_in_the_coordinates_of_the_scene(capture):
    scene = load(capture, factor=2)
    listed = transforms.listed_cameras(capture / "transforms.json", scene)
    assert_close(listed.c2w.flip(0), scene.cameras.c2w, 1e-5)
    assert_close(listed.fx, 2 * scene.cameras.fx, 1e-5)
    assert listed.width.tolist() == [WIDTH] * VIEWS


def test_nothing_or_chosen_views_are_held_out(capture):
    assert load(capture, holdout=0).splits == {"train": list(range(VIEWS)), "val": [], "test": []}
    assert load(capture, train_views=(0, 3, 1)).splits == {"train": [1, 2, 3], "val": [0, 8], "test": [0, 8]}
    with pytest.raises(SceneError, match=r"none is left to train on.*holdout"):
        load(capture, holdout=1)


def test_a_file_may_list_its_splits(capture):
    def splits(**lists: list[int]) -> dict[str, list[int]]:
        names = dict.fromkeys(f"{s}_filenames" for s in ("train", "val", "test"))
        edit(capture, **names | {f"{s}_filenames": [f"images/{i:04d}.png" for i in views] for s, views in lists.items()})
        return load(capture).splits

    assert splits(train=[5, 4, 6], val=[1], test=[0, 2]) == {"train": [4, 5, 6], "val": [1], "test": [0, 2]}
    assert splits(train=[4, 5], val=[1, 7]) == {"train": [4, 5], "val": [1, 7], "test": [1, 7]}
    assert splits(train=[4, 5]) == {"train": [4, 5], "val": [], "test": []}
    assert splits(test=[2, 3]) == {"train": [0, 1, *range(4, 12)], "val": [2, 3], "test": [2, 3]}
    for train, message in ((["images/0001.png", "images/0099.png"], r"0099\.png, which is not among"), ("images/0001.png", "a list")):
        edit(capture, train_filenames=train)
        refused(capture, f"train_filenames .*{message}")
    assert splits(train=[2, 4, 5], test=[0]) == {"train": [2, 4, 5], "val": [0], "test": [0]}
    (capture / "images/0004.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 12 .*0004\.png$"):
        assert transforms.load(str(capture), transforms.Config()).splits["train"] == [2, 4]


def test_masks_hide_and_are_no_transparency(capture):
    """Frames may name them, else they lie beside the pictures."""
    (capture / "masks").mkdir()
    half = np.full((HEIGHT, WIDTH), 255, np.uint8)
    half[:, :4] = 0
    Image.fromarray(half).save(capture / "masks" / "zero.png")
    Image.fromarray(half).save(capture.parent / "away.png")
    edit_frame(capture, VIEWS - 1 - 5, mask_path="masks/zero.png")
    scene = load(capture)
    assert (scene.masked, scene.has_alpha, scene.bounds) == (True, False, "unbounded")
    assert [bool(scene.visible(view).all()) for view in range(VIEWS)] == [view != 5 for view in range(VIEWS)]
    assert (scene.visible(5).sum(), scene.visible(5)[:, :4].sum()) == (HEIGHT * (WIDTH - 4), 0)
    for path, message in (("masks/none.png", r"none\.png does not exist"), ("../away.png", "points outside"), (3, "mask_path '3'")):
        edit_frame(capture, VIEWS - 1 - 5, mask_path=path)
        refused(capture, message)
    edit_frame(capture, VIEWS - 1 - 5, mask_path=None)
    with pytest.warns(UserWarning, match="masks holds 1 masks that fit none of the 12 pictures, such as zero.png"):
        assert not transforms.load(str(capture), transforms.Config()).masked
    for i in range(VIEWS):
        Image.fromarray(half).save(capture / "masks" / f"{i:04d}.png")
    with pytest.warns(UserWarning, match="12 of 12"):
        scene = transforms.load(str(capture), transforms.Config(factor=2))
    assert all(scene.visible(view).sum() == HEIGHT // 2 * (WIDTH // 2 - 2) for view in range(VIEWS))


# --- Transparency and bounds ----------------------------------------------------------------------------------------


def split_up(folder: Path, val: str = "val", **changes: Any) -> None:
    """Write the capture as files of splits, every fourth picture in that of ``val``; ``changes`` are keys of all files."""
    meta = {k: v for k, v in (read(folder) | changes).items() if v is not None}
    frames = meta["frames"]
    for split, own in (("train", [f for i, f in enumerate(frames) if i % 4]), (val, frames[::4])):
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta | {"frames": own}))


@pytest.mark.parametrize("val", ["val", "test"])
@pytest.mark.parametrize("beside", [True, False])
def test_files_of_splits_with_a_lens_are_one_capture(capture, val, beside, capsys):
    """nerfstudio's and hand-split ones: lens, bounds and world are as in one file, and the splits those of the files."""
    whole = load(capture)
    split_up(capture, val, camera_angle_x=0.9)
    if not beside:
        (capture / "transforms.json").unlink()
    assert detect_format(str(capture)) == "transforms"
    scene = load(capture)
    assert ("to read that instead" in capsys.readouterr().err) == beside
    assert (scene.name, scene.view_names, scene.bounds) == ("plant", whole.view_names, "unbounded")
    assert scene.cameras.state() == whole.cameras.state() and scene.cameras.distortion is not None
    held = [3, 7, 11]  # the file lists the frames backwards
    assert scene.splits == {"train": [i for i in range(VIEWS) if i not in held], "val": held, "test": held}


def test_a_split_may_have_a_lens_of_its_own(capture):
    split_up(capture, "test")
    file = capture / "transforms_test.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cx": 5.5}))
    scene = load(capture)
    assert [float(scene.cameras.cx[v]) for v in scene.splits["test"]] == [5.5] * 3
    assert_close(scene.cameras.cx[scene.splits["train"]], np.full(9, 6.3))


def test_a_named_file_wins_beside_files_of_splits(capture):
    split_up(capture)
    file = capture / "transforms.json"
    assert detect_format(str(file)) == "transforms"
    scene = transforms.load(str(file), transforms.Config())
    assert scene.splits["test"] == [0, 8] and scene.name == "plant"


def test_what_is_not_used_is_said(capture):
    edit(capture, rolling_shutter=[0, 1], sharpness=3.0)
    edit_frame(capture, 0, time=0.5)
    edit_frame(capture, 1, time=0.75)
    with pytest.warns(UserWarning) as caught:
        transforms.load(str(capture), transforms.Config())
    said = sorted(str(w.message) for w in caught)
    assert len(said) == 2 and "a time, 2 different ones" in said[0] and said[1].endswith("not used: rolling_shutter.")


def test_transparency_is_kept_where_there_is_some(capture):
    opaque = picture(2, channels=4)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(capture / "images/0002.png")
    scene = load(capture)
    assert (scene.has_alpha, scene.bounds) == (False, "unbounded")
    assert np.array_equal((scene.image(2) * 255).round().numpy(), opaque[..., :3])
    Image.fromarray(picture(2)).save(capture / "images/0002.png")
    clear = picture(6, 7, 9, 4)
    Image.fromarray(clear).save(capture / "images/0006.png")
    edit_frame(capture, VIEWS - 1 - 6, w=7, h=9)
    scene = load(capture, background="black")
    assert (scene.has_alpha, scene.bounds, scene.background) == (True, "object", "black")
    assert np.array_equal((scene.image(6, None) * 255).round().numpy(), clear)
    assert np.array_equal((scene.image(7, None) * 255).round().numpy()[..., :3], picture(7))
    assert (scene.image(7, None)[..., 3] == 1).all()


@pytest.mark.parametrize("aabb", [1, 1.0, 16, None])
def test_near_and_far_follow_from_the_cameras(capture, aabb):
    """The ring lies 4 file units from what it looks at: unit distance here."""
    edit(capture, aabb_scale=aabb)
    scene = load(capture)
    assert scene.bounds == ("object" if aabb == 1 else "unbounded")
    expected = (0.25, 1.75) if aabb == 1 else (0.05, 100.0)
    assert (scene.near, scene.far) == pytest.approx(expected, rel=1e-4)
    same = load(capture, centre=False)
    assert (same.near, same.far) == pytest.approx([4 * t for t in expected], rel=1e-4)
    chosen = load(capture, near=0.3, far=9.0)
    assert (chosen.near, chosen.far) == (0.3, 9.0)
    with pytest.raises(SceneError, match="must be smaller"):
        load(capture, near=200.0)


def test_points_of_the_file_say_how_far_one_looks(capture):
    points = WORLD[:3, 3] + np.random.default_rng(0).uniform(-0.3, 0.3, (200, 3))
    write_ply(capture / "points.ply", torch.from_numpy(points))
    edit(capture, ply_file_path="points.ply")
    scene = load(capture)
    assert scene.depth_range is not None and 0.85 < scene.depth_range[0] < 1 < scene.depth_range[1] < 1.15
    assert scene.near == pytest.approx(0.5 * scene.depth_range[0])
    assert load(capture, near=0.3).near == 0.3
    assert load(capture, bounds="object").far == pytest.approx(1.1 * scene.depth_range[1])
    assert scene.describe() == f"12 views, 10 of them to train on; unbounded, from {scene.near:.3g} to 100"
    (capture / "points.ply").write_text("ply")
    with pytest.warns(UserWarning, match=r"points\.ply can't be read .* It is done without"):
        assert transforms.load(str(capture), transforms.Config()).near == 0.05


# --- Centring -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_centring_undoes_any_similarity_of_the_files_world(capture, seed, scale):
    """Cameras end at unit mean distance around the origin with z up, wherever they were, and ``to_original`` leads back."""
    rng = np.random.default_rng(seed)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation(rng), rng.normal(size=3) * 10 * scale
    meta = read(capture)
    poses = []
    for frame in meta["frames"]:
        local = ring(int(frame["file_path"][-8:-4]))
        local[:3, 3] *= scale
        frame["transform_matrix"] = (world @ local).tolist()
        poses.append(world @ local)
    write(capture, meta)
    scene = load(capture)
    meeting = rays_meet(scene.cameras)
    assert_close(meeting.point + 1, np.ones(3), 1e-4)
    assert meeting.distance == pytest.approx(1, rel=1e-4)
    assert_close(world_up(scene.cameras.c2w), [0.0, 0.0, 1.0], 1e-4)
    assert float(scene.cameras.centers[:, 2].min()) > 0
    back = scene.to_original.numpy()
    stretch = np.cbrt(np.linalg.det(back[:3, :3]))
    assert stretch == pytest.approx(4 * scale, rel=1e-4)
    for view, c2w in enumerate(poses[::-1]):
        here = np.vstack([scene.cameras.c2w[view].double().numpy(), [0, 0, 0, 1]])
        here[:3, :3] /= stretch
        assert_close(back @ here, c2w, 1e-5)


def test_a_capture_that_stands_upright_in_the_origin_only_shrinks(capture):
    meta = read(capture)
    for frame in meta["frames"]:
        frame["transform_matrix"] = ring(int(frame["file_path"][-8:-4])).tolist()
    write(capture, meta)
    assert_close(load(capture).to_original, np.diag([4.0, 4, 4, 1]), 1e-6)
    scene = load(capture, centre=False)
    assert torch.equal(scene.to_original, torch.eye(4, dtype=torch.float64))
    assert_close(scene.cameras.c2w, np.stack([ring(i)[:3] for i in range(VIEWS)]), 1e-6)


def outwards(view: int) -> np.ndarray:
    """From the middle of a room."""
    c2w = ring(view) @ np.diag([-1.0, 1, -1, 1])
    c2w[:3, 3] *= 0.25
    return c2w


def from_one_side(view: int) -> np.ndarray:
    return around(0.5 + 0.05 * view, 0.1 + 0.03 * (view % 3))


def half_way(view: int) -> np.ndarray:
    return around(0.25 * view, 0.3)


def side_by_side(view: int) -> np.ndarray:
    c2w = np.eye(4)
    c2w[0, 3] = view
    return c2w


def in_one_point(view: int) -> np.ndarray:
    c2w = ring(view)
    c2w[:3, 3] = 0
    return c2w


@pytest.mark.parametrize(
    ("pose", "aabb", "path", "looks_inwards"),
    [
        (ring, 1, "circle", True),
        (ring, 8, "ellipse", True),
        (from_one_side, 8, "spiral", True),
        (half_way, 8, "interpolate", True),
        (outwards, 8, "interpolate", False),
        (side_by_side, 8, "interpolate", False),
        (in_one_point, 8, "interpolate", False),
    ],
)
def test_other_captures_have_a_place_and_a_path_too(capture, pose: Callable[[int], np.ndarray], aabb, path, looks_inwards):
    """Cameras that look at nothing common are centred on their mean position; every default path can be made."""
    meta = read(capture) | {"aabb_scale": aabb}
    for frame in meta["frames"]:
        frame["transform_matrix"] = (WORLD @ pose(int(frame["file_path"][-8:-4]))).tolist()
    write(capture, meta)
    scene = load(capture)
    assert scene.default_path == path
    assert load(capture, centre=False).default_path == path
    assert len(make_path(path, scene.cameras, 5, scene.depth_range, scene.splits["test"])[0]) == 5
    centers = scene.cameras.centers.double()
    distance = 0.0 if pose is in_one_point else 1.0
    assert float(centers.norm(dim=-1).mean()) == pytest.approx(distance, abs=1e-4)
    assert (float(centers.mean(0).norm()) < 1e-4) == (not looks_inwards)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("rows", [3, 4])
def test_what_was_applied_to_the_file_is_undone(capture, rows, centre):
    """The original coordinates are those before nerfstudio turned and scaled them."""
    plain = load(capture, centre=centre)
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = 2 * rotation(np.random.default_rng(8)), [1, 2, 3]
    edit(capture, applied_transform=turned[:rows].tolist(), applied_scale=0.25)
    scene = load(capture, centre=centre)
    assert torch.equal(scene.cameras.c2w, plain.cameras.c2w)
    assert_close(np.diag([0.25, 0.25, 0.25, 1]) @ turned @ scene.to_original.numpy(), plain.to_original, 1e-9)


@pytest.mark.parametrize("keys", [
    {"applied_transform": np.diag([1.0, 1, -1, 1])[:3].tolist()},
    {"applied_transform": np.diag([1.0, 1, 2, 1])[:3].tolist()},
    {"applied_transform": np.zeros((3, 4)).tolist()},
    {"applied_transform": [[math.nan] * 4] * 3},
    {"applied_transform": [1, 2, 3]},
    {"applied_transform": "none"},
    {"applied_transform": {"a": 1}},
    {"applied_scale": 0},
    {"applied_scale": -2.0},
])  # fmt: skip
def test_a_transform_that_cannot_be_undone_is_refused(capture, keys):
    edit(capture, **keys)
    refused(capture, "applied_transform must be a 3x4 matrix")


# --- Depth maps -----------------------------------------------------------------------------------------------------


def add_depths(folder: Path, key: str, suffix: str, scale: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """A depth map for each view but the last, 1 to 3 units deep with holes; returns their depths."""
    rng = np.random.default_rng(3)
    depths = rng.uniform(1, 3, (VIEWS, size[1], size[0])) * (rng.random((VIEWS, size[1], size[0])) > 0.1)
    depths[-1] = 0
    for view in range(VIEWS):
        name = f"depth_{view:02d}{suffix}"
        if suffix == ".npy":
            np.save(folder / name, depths[view].astype(np.float32) / np.float32(scale))
        elif view < VIEWS - 1:
            Image.fromarray(np.rint(depths[view] / scale).astype(np.uint16)).save(folder / name)
        edit_frame(folder, VIEWS - 1 - view, **{key: name})
    (folder / f"depth_{VIEWS - 1:02d}{suffix}").unlink(missing_ok=True)
    return depths


@pytest.mark.parametrize(("key", "suffix", "unit", "scale"), [
    ("depth_file_path", ".png", {}, 1e-3),
    ("depth_file_path", ".png", {"depth_unit_scale_factor": 2e-4}, 2e-4),
    ("depth_path", ".png", {"integer_depth_scale": 3e-4}, 3e-4),
    ("depth_file_path", ".npy", {}, 1.0),
])  # fmt: skip
def test_depth_maps_are_read(capture, key, suffix, unit, scale):
    depths = add_depths(capture, key, suffix, scale)
    edit(capture, **unit, applied_scale=0.5)
    assert load(capture).depths is None
    with pytest.warns(UserWarning, match="1 of 12 frames have no depth map"):
        scene = transforms.load(str(capture), transforms.Config(depths=True))
    assert scene.depths is not None
    assert scene.depths.dtype == torch.float32
    assert_close(scene.depths, depths.ravel() * np.linalg.det(scene.to_original[:3, :3]) ** (-1 / 3), 1e-3 if scale < 1 else 1e-6)


def test_depths_of_another_size_are_taken_from_the_nearest_cell(capture):
    depths = add_depths(capture, "depth_file_path", ".npy", 1.0, (WIDTH // 2, HEIGHT // 2))
    with pytest.warns(UserWarning, match="no depth map"):
        large = transforms.load(str(capture), transforms.Config(depths=True, centre=False))
        small = transforms.load(str(capture), transforms.Config(depths=True, centre=False, factor=4))
    assert_close(large.depths, depths.repeat(2, 1).repeat(2, 2).ravel(), 1e-6)
    assert_close(small.depths, depths[:, 1::2, 1::2].ravel(), 1e-6)


def test_unknown_depths_are_zero(capture):
    depths = np.full((HEIGHT, WIDTH), 2.0)
    depths[0, :4] = [math.nan, math.inf, -math.inf, -1]
    np.save(capture / "depth.npy", depths)
    for view in range(VIEWS):
        edit_frame(capture, view, depth_file_path="depth.npy")
    found = load(capture, depths=True, centre=False).depths
    assert found is not None
    assert found.reshape(VIEWS, -1)[5].tolist() == [0.0] * 4 + [2.0] * (WIDTH * HEIGHT - 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "kind uint8, where a depth map"),
        (np.zeros((HEIGHT, WIDTH, 3), np.float32), "8x12x3 numbers"),
        (np.zeros((WIDTH, HEIGHT)), "is 8x12, of another shape"),
        (np.zeros((0, 0)), "0x0"),
        (b"a letter", "can't be read as a depth map"),
    ],
)
def test_bad_depth_maps_are_named(capture, content, message):
    file = capture / "depth.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    for view in range(VIEWS):
        edit_frame(capture, view, depth_file_path="depth.npy")
    refused(capture, rf"depth\.npy.*{message}", depths=True)
    edit(capture, depth_unit_scale_factor=-1)
    refused(capture, "unit of the depth maps must be larger than 0", depths=True)


# --- Bad input ------------------------------------------------------------------------------------------------------

BAD_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown lens": ({"camera_model": "VR180_L"}, "the lens VR180_L is not supported; undistort the pictures.*OPENCV_FISHEYE"),
    "model a number": ({"camera_model": 3}, "3 is not supported"),
    "f-theta": ({"ftheta_p0": 0.0, "ftheta_p1": 1.0}, "ftheta_p0 is not supported"),
    "k5 outside its model": ({"k5": 0.01}, "k5 belongs to the camera_model FULL_OPENCV, not OPENCV"),
    "normalised focal": ({"fl_x": 0.1}, "fl_x is 0.1 for a picture of 12 pixels; it should be in pixels"),
    "principal point far away": ({"cx": 960.0}, "cx is 960, far outside a picture of 12 pixels"),
    "principal point nan": ({"cy": math.nan}, "cy 'nan'"),
    "no focal length": ({"fl_x": None, "fl_y": None}, "no focal length"),
    "focal zero": ({"fl_x": 0}, "fl_x must be larger than 0"),
    "focal negative": ({"fl_y": -3.0}, "fl_y must be larger than 0"),
    "focal a word": ({"fl_x": "11"}, "fl_x '11', which should be a number"),
    "focal nan": ({"fl_x": math.nan}, "fl_x 'nan'"),
    "focal endless": ({"fl_x": 10**400}, "fl_x '1000"),
    "angle in degrees": ({"fl_x": None, "camera_angle_x": 40}, "camera_angle_x between 0 and π"),
    "distortion a list": ({"k1": [0.1]}, r"k1 '\[0\.1\]'"),
    "centre a word": ({"cx": "middle"}, "cx 'middle'"),
    "rotated": ({"w": HEIGHT, "h": WIDTH}, "is 12x8 where w and h are 8 and 12; it was rotated or cropped"),
    "negative size": ({"w": -12}, "w and h are -12"),
    "no frames": ({"frames": []}, "lists no frames"),
    "frames no list": ({"frames": 3}, "lists no frames"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_keys_are_refused_in_a_sentence(capture, case):
    keys, message = BAD_KEYS[case]
    edit(capture, **keys)
    refused(capture, message)


def test_lens_parameters_that_are_zero_do_no_harm(capture):
    plain = load(capture).cameras.state()
    edit(capture, k5=0.0, is_fisheye=False, camera_model="opencv")
    assert load(capture).cameras.state() == plain


def refused(folder: Path, message: str, **choices: Any) -> None:
    with pytest.raises(SceneError, match=message) as caught:
        load(folder, **choices)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert folder.name in text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"file_path": "../secret.png"}, "points outside"),
        ({"file_path": ""}, "frame 2 has no file_path"),
        ({"file_path": None}, "frame 2 has no file_path"),
        ({"transform_matrix": None}, "frame 2 .*4x4"),
        ({"transform_matrix": [[1, 0, 0, 10**400]] * 4}, "frame 2 .*4x4"),
        ({"transform_matrix": [[1, 0, 0, math.inf]] * 4}, "frame 2 .*4x4"),
        ({"transform_matrix": np.zeros((4, 4)).tolist()}, r"0009\.png .*no rotation"),
        ({"transform_matrix": np.diag([1, 1, -1, 1]).tolist()}, r"0009\.png .*mirrors"),
        ({"transform_matrix": (np.eye(4) + np.eye(4)[::-1] * np.eye(4)[3][:, None]).tolist()}, "last row"),
        ({"camera_model": "FISHEYE624"}, r"0009\.png.*FISHEYE624"),
    ],
)
def test_bad_frames_are_refused_in_a_sentence(capture, keys, message):
    (capture.parent / "secret.png").touch()
    edit_frame(capture, 2, **keys)
    refused(capture, message)


def test_pictures_outside_are_read_where_that_is_allowed(capture, tmp_path, monkeypatch):
    """By their path or through a link; in nerfit's own cache always."""
    edit(capture, cx=None, cy=None)
    (capture / "images/0004.png").rename(tmp_path / "away.png")
    for name in ("../away.png", str(tmp_path / "away.png")):
        edit_frame(capture, VIEWS - 1 - 4, file_path=name)
        refused(capture, "away.png' points outside .*plant; add --scene.allow-outside")
        scene = load(capture, allow_outside=True)
        view = scene.view_names.index("../away.png")
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), picture(4))
    edit_frame(capture, VIEWS - 1 - 4, file_path="images/0004.png")
    (capture / "images/0004.png").symlink_to(tmp_path / "away.png")
    refused(capture, "0004.png' points outside")
    assert load(capture, allow_outside=True).view_names[4] == "images/0004.png"
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path))
    assert load(capture).view_names[4] == "images/0004.png"


def test_points_outside_are_read_where_that_is_allowed(capture, tmp_path, monkeypatch):
    """By their path or through a link; in nerfit's own cache always."""
    write_ply(tmp_path / "away.ply", torch.from_numpy(WORLD[:3, 3] + np.random.default_rng(0).uniform(-0.3, 0.3, (200, 3))))
    (capture / "linked.ply").symlink_to(tmp_path / "away.ply")
    for name in ("../away.ply", str(tmp_path / "away.ply"), "linked.ply", "../absent.ply"):
        edit(capture, ply_file_path=name)
        refused(capture, "ply_file_path '.*ply' points outside .*plant; add --scene.allow-outside")
    edit(capture, ply_file_path="../away.ply")
    assert load(capture, allow_outside=True).depth_range is not None
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path))
    assert load(capture).depth_range is not None


def test_links_and_whole_paths_within_the_folder_are_followed(capture, tmp_path):
    (capture / "images/0004.png").rename(capture / "four.png")
    (capture / "images/0004.png").symlink_to(capture / "four.png")
    edit_frame(capture, VIEWS - 1 - 5, file_path=str(capture / "images/0005.png"))
    (tmp_path / "link").symlink_to(capture)
    for folder in (capture, tmp_path / "link"):
        assert len(load(folder).view_names) == VIEWS


def test_a_name_too_long_to_exist_is_an_absent_picture(capture):
    edit_frame(capture, 2, file_path="images/" + "x" * 300)
    with pytest.warns(UserWarning, match="1 of 12"):
        transforms.load(str(capture), transforms.Config())


@pytest.mark.parametrize("content", ["", "{", "[1, 2", "\x00", "[" * 100_000, "[]", "null"])
def test_broken_json_is_refused_in_a_sentence(capture, content):
    (capture / "transforms.json").write_text(content)
    assert transforms.detect(str(capture))
    refused(capture, r"transforms\.json")


def test_bad_pictures_are_named(capture):
    file = capture / "images/0003.png"
    file.write_bytes(file.read_bytes()[:80])
    refused(capture, r"0003\.png can't be read")
    file.write_text("a letter")
    refused(capture, r"0003\.png can't be read")


def test_a_scene_without_any_picture_says_so(capture):
    for file in (capture / "images").iterdir():
        file.unlink()
    refused(capture, r"lists 12 pictures of which none is there; the first should be .*0011\.png")


def test_a_missing_file_is_named(capture):
    (capture / "transforms.json").unlink()
    refused(capture, r"transforms\.json can't be read")


@pytest.mark.parametrize("choices", [{"factor": 0}, {"factor": -2}, {"holdout": -1}])
def test_senseless_settings_are_refused(capture, choices):
    with pytest.raises(ConfigError, match="at least"):
        load(capture, **choices)


# --- Real data ------------------------------------------------------------------------------------------------------


def test_the_fox_is_read(data_folder):
    """50 of the 67 pictures are there; intrinsics as in the file, over the factor."""
    if not (data_folder / "fox" / "transforms.json").is_file():
        pytest.skip(f"there is no fox in {data_folder}")
    with pytest.warns(UserWarning, match="17 of 67 pictures are not there"):
        scene = transforms.load(str(data_folder / "fox"), transforms.Config(factor=30))
    assert (scene.name, scene.bounds, scene.near, scene.far, scene.default_path) == ("fox", "unbounded", 0.05, 100.0, "spiral")
    assert len(scene.view_names) == 50
    assert scene.view_names[:5] == [f"images/{i:04d}.jpg" for i in (1, 2, 3, 4, 6)]
    assert scene.splits["test"] == [0, 8, 16, 24, 32, 40, 48]
    assert len(scene.splits["train"]) == 43
    assert scene.cameras.width.tolist() == [36] * 50
    assert scene.cameras.height.tolist() == [64] * 50
    lens = [scene.cameras.fx[0], scene.cameras.fy[0], scene.cameras.cx[0], scene.cameras.cy[0]]
    assert_close(torch.stack(lens), np.array([1375.52, 1374.49, 554.558, 965.268]) / 30)
    assert scene.cameras.distortion is not None
    assert_close(scene.cameras.distortion[49], [0.0578421, -0.0805099, 0, 0, -0.000980296, 0.00015575, *[0] * 7])
    meeting = rays_meet(scene.cameras)
    assert float(meeting.point.norm()) < 1e-5
    assert (meeting.in_front, meeting.distance) == (1.0, pytest.approx(1, rel=1e-5))
    assert float(scene.cameras.c2w[:, 2, 1].min()) > 0.7
