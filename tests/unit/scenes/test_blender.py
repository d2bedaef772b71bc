"""Scenes and the readers of Blender folders and single pictures: what is kept, what is chosen, and every kind of bad input."""

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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import FOV, HEIGHT, WIDTH, assert_close, rotation
from nerfit.cameras import Cameras
from nerfit.commands.render_film import scene_path
from nerfit.errors import ConfigError, NerfitError, SceneError
from nerfit.scenes import detect_format, scene_format
from nerfit.scenes.formats import blender, single_image
from nerfit.scenes.scene import Scene, SceneConfig, composite
from nerfit.scenes.splits import pick

Edit = Callable[[dict[str, Any]], object]


pytestmark = pytest.mark.usefixtures("cache")


def load(folder: Path, **choices: Any) -> Scene:
    return blender.load(str(folder), blender.Config(**choices))


def edit(folder: Path, change: Edit, split: str = "train") -> None:
    """Change the content of a transforms file."""
    file = folder / f"transforms_{split}.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def stored(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name))


# --- Blender folders ------------------------------------------------------------------------------------------------


def test_a_folder_is_read_whole_and_in_order(blender_folder):
    scene = load(blender_folder)
    assert (scene.name, scene.format, scene.bounds, scene.near, scene.far) == ("ball", "blender", "object", 2.0, 6.0)
    assert scene.splits == {"train": [0, 1, 2, 3, 4], "val": [5, 6, 7], "test": [8, 9, 10, 11, 12, 13]}
    assert scene.view_names == [f"{s}/r_{i}.png" for s, n in (("train", 5), ("val", 3), ("test", 6)) for i in range(n)]
    assert scene.pixels is not None
    assert scene.pixels.dtype == torch.uint8
    for view, name in enumerate(scene.view_names):
        assert np.array_equal((scene.image(view, None) * 255).round().numpy(), stored(blender_folder, name))
        meta = json.loads((blender_folder / f"transforms_{name.split('/')[0]}.json").read_text())
        pose = meta["frames"][int(name[-5])]["transform_matrix"]
        assert_close(scene.cameras.c2w[view], np.array(pose)[:3])
    assert scene.cameras.width.tolist() == [WIDTH] * 14
    assert scene.cameras.height.tolist() == [HEIGHT] * 14
    focal = 0.5 * WIDTH / math.tan(0.5 * FOV)
    assert_close(torch.stack([scene.cameras.fx, scene.cameras.fy]), np.full((2, 14), focal))
    assert_close(torch.stack([scene.cameras.cx, scene.cameras.cy], -1), [[WIDTH / 2, HEIGHT / 2]] * 14)


def test_depth_and_normal_pictures_are_not_views(blender_folder):
    assert len(list((blender_folder / "test").glob("*.png"))) == 18
    assert len(load(blender_folder).splits["test"]) == 6


def test_rays_hit_what_the_pictures_show(blender_folder):
    """Cameras and pixels agree: exactly the rays that meet the ball, between near and far, are opaque."""
    scene = load(blender_folder)
    for view in range(14):
        pixels = torch.arange(WIDTH * HEIGHT)
        x, y = pixels % WIDTH, pixels // WIDTH
        rays = scene.rays(torch.full_like(pixels, view), x, y)
        nearest = torch.linalg.cross(rays.origins, rays.viewdirs).norm(dim=-1)
        alpha = scene.colors(torch.full_like(pixels, view), x, y)[:, 3]
        assert torch.equal(nearest < 1, alpha == 1)
        assert 8 < int(alpha.sum()) < 72
        assert (rays.near < 3).all()
        assert (rays.far > 5).all()


@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_the_background_is_the_runs_choice(blender_folder, background):
    scene = load(blender_folder, background=background)
    assert scene.background == background
    assert scene.image(0, None).shape[-1] == 4


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_rays_start_where_the_config_says(blender_folder, offset):
    scene = load(blender_folder, pixel_offset=offset, factor=2)
    d = scene.cameras.directions(torch.tensor([0]), torch.tensor([0]), torch.tensor([0])) @ scene.cameras.c2w[0, :, :3]
    focal = 0.25 * WIDTH / math.tan(0.5 * FOV)
    assert_close(d, [[(offset - WIDTH / 4) / focal, -(offset - HEIGHT / 4) / focal, -1]])


@pytest.mark.parametrize("background", [0.0, 1.0])
@pytest.mark.parametrize("factor", [2, 3])
def test_smaller_pictures_are_area_means_of_visible_pixels(blender_folder, factor, background):
    """The composited picture shrinks to the mean over each new pixel's area, within the rounding of colour and alpha."""
    whole, small = load(blender_folder), load(blender_folder, factor=factor)
    w, h = WIDTH // factor, HEIGHT // factor
    assert (small.cameras.width.tolist(), small.cameras.height.tolist()) == ([w] * 14, [h] * 14)
    assert_close(small.cameras.fx, whole.cameras.fx * w / WIDTH)
    assert_close(small.cameras.fy, whole.cameras.fy * h / HEIGHT)
    assert_close(torch.stack([small.cameras.cx, small.cameras.cy], -1), [[w / 2, h / 2]] * 14)
    for view in (0, 6, 13):
        image, twin = whole.image(view, background).double().numpy(), np.zeros((h, w, 3))
        for j, i, y, x in np.ndindex(h, w, HEIGHT, WIDTH):
            rows = min((j + 1) * HEIGHT / h, y + 1) - max(j * HEIGHT / h, y)
            columns = min((i + 1) * WIDTH / w, x + 1) - max(i * WIDTH / w, x)
            if rows > 0 and columns > 0:
                twin[j, i] += image[y, x] * rows * columns * w * h / WIDTH / HEIGHT
        assert np.abs(small.image(view, background).numpy() - twin).max() < 1.01 / 255


def test_a_factor_beyond_the_picture_leaves_one_pixel(blender_folder):
    scene = load(blender_folder, factor=1000)
    assert (scene.cameras.width.tolist(), scene.cameras.height.tolist()) == ([1] * 14, [1] * 14)


@pytest.mark.parametrize(("testskip", "val", "test"), [(0, 3, 6), (1, 3, 6), (2, 2, 3), (4, 1, 2), (100, 1, 1)])
def test_testskip_thins_val_and_test_alone(blender_folder, testskip, val, test):
    scene = load(blender_folder, testskip=testskip)
    assert [len(scene.splits[s]) for s in ("train", "val", "test")] == [5, val, test]
    kept = [scene.view_names[v] for v in scene.splits["test"]]
    assert kept == [f"test/r_{i}.png" for i in range(0, 6, max(testskip, 1))]


@pytest.mark.parametrize(("views", "kept"), [((0, -1, 1), range(5)), ((1, 4, 1), [1, 2, 3]), ((0, -1, 2), [0, 2, 4]), ((4, 99, 1), [4])])
def test_train_views_choose_training_views_alone(blender_folder, views, kept):
    scene = load(blender_folder, train_views=views)
    assert [scene.view_names[v] for v in scene.splits["train"]] == [f"train/r_{i}.png" for i in kept]
    assert [len(scene.splits[s]) for s in ("val", "test")] == [3, 6]
    first = scene.splits["test"][0]
    assert np.array_equal((scene.image(first, None) * 255).round().numpy(), stored(blender_folder, "test/r_0.png"))


@pytest.mark.parametrize("views", [(5, -1, 1), (3, 3, 1), (0, -1, 0)])
def test_a_choice_of_no_views_is_refused(blender_folder, views):
    with pytest.raises(SceneError, match="view"):
        load(blender_folder, train_views=views)


@pytest.mark.parametrize("missing", [("val",), ("test",), ("val", "test")])
def test_a_missing_val_or_test_file_leaves_that_split_empty(blender_folder, missing):
    for split in missing:
        (blender_folder / f"transforms_{split}.json").unlink()
    scene = load(blender_folder)
    assert all(not scene.splits.get(split) for split in missing)
    assert len(scene.cameras) == sum({"train": 5, "val": 3, "test": 6}[s] for s, v in scene.splits.items() if v)


def test_near_and_far_can_be_chosen(blender_folder):
    scene = load(blender_folder, near=0.5, far=9.0)
    assert (scene.near, scene.far) == (0.5, 9.0)


@pytest.mark.parametrize(("near", "far"), [(6.0, None), (None, 2.0), (5.0, 1.0), (math.nan, None)])
def test_near_must_be_below_far(blender_folder, near, far):
    with pytest.raises(SceneError, match="near .* far"):
        load(blender_folder, near=near, far=far)


@pytest.mark.parametrize("choices", [{"factor": 0}, {"testskip": -1}])
def test_impossible_options_are_refused(blender_folder, choices):
    with pytest.raises(ConfigError, match=next(iter(choices))):
        load(blender_folder, **choices)


def place(folder: Path, scale: float, shift: tuple[float, float, float]) -> None:
    """Scale and shift the world of a folder's cameras."""
    for split in ("train", "val", "test"):
        meta = json.loads((folder / f"transforms_{split}.json").read_text())
        for f in meta["frames"]:
            pose = np.array(f["transform_matrix"])
            pose[:3, 3] = scale * pose[:3, 3] + shift
            f["transform_matrix"] = pose.tolist()
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("scale", "shift"), [(3.0, (0, 0, 0)), (20.0, (0, 0, 0)), (0.3, (0, 0, 0)), (1.0, (20, -35, 4)), (1e3, (1e5, 0, 7))]
)
def test_objects_of_any_size_and_place_come_to_that_of_nerfs(blender_folder, scale, shift):
    """Near and far are 2 and 6 of a world in which the cameras stand 4 away; the way back leads to the file's."""
    plain = load(blender_folder)
    place(blender_folder, scale, shift)
    scene = load(blender_folder)
    assert (scene.bounds, scene.near, scene.far) == ("object", pytest.approx(2, abs=1e-3), pytest.approx(6, abs=1e-3))
    assert_close(scene.cameras.c2w, plain.cameras.c2w, 1e-4)
    back = scene.original_cameras.c2w
    assert_close(back[:, :, 3], scale * plain.cameras.c2w[:, :, 3].double() + torch.tensor(shift), 1e-5)
    assert_close(back[:, :, :3], plain.cameras.c2w[:, :, :3], 1e-5)


@pytest.mark.parametrize("choices", [{"centre": False}, {"near": 40.0, "far": 120.0}])
def test_the_files_world_stays_where_asked_for(blender_folder, choices):
    plain = load(blender_folder)
    place(blender_folder, 20.0, (0, 0, 0))
    scene = load(blender_folder, **choices)
    assert (scene.near, scene.far) == (pytest.approx(40, rel=1e-3), pytest.approx(120, rel=1e-3))
    assert_close(scene.cameras.c2w[:, :, 3], 20 * plain.cameras.c2w[:, :, 3])
    assert torch.equal(scene.to_original, torch.eye(4, dtype=torch.float64))


def test_cameras_at_several_distances_reach_over_the_whole_object(blender_folder):
    """The nearest camera stands 2 from the middle, the farthest 8: both see an object of half the mean distance."""
    edit(blender_folder, lambda m: [row.__setitem__(3, row[3] / 2) for row in m["frames"][0]["transform_matrix"][:3]])
    edit(blender_folder, lambda m: [row.__setitem__(3, row[3] * 2) for row in m["frames"][1]["transform_matrix"][:3]])
    scene = load(blender_folder)
    distance = scene.cameras.centers.norm(dim=-1)
    assert float(distance.mean()) == pytest.approx(4, rel=1e-4)
    assert scene.near == pytest.approx(max(0.2, float(distance.min()) - 2), abs=1e-3)
    assert scene.far == pytest.approx(float(distance.max()) + 2, abs=1e-3)


def test_moments_of_a_moving_scene_and_unknown_keys_are_named(blender_folder):
    edit(blender_folder, lambda m: [f.update(time=i / 4, wind=3) for i, f in enumerate(m["frames"])])
    edit(blender_folder, lambda m: m.update(exposure=2.0))
    with pytest.warns(UserWarning) as caught:
        load(blender_folder)
    said = [str(w.message) for w in caught]
    assert any(
        "transforms_train.json: its frames have a time, 5 different ones, which is not used: a single still scene" in s for s in said
    )
    assert any(s.endswith("transforms_train.json: not used: exposure, wind.") for s in said)


def test_a_plain_lens_in_numbers_is_that_of_the_angle(blender_folder):
    """As BlenderNeRF writes it; the format stays Blender's."""
    plain = load(blender_folder)
    focal = 0.5 * WIDTH / math.tan(0.5 * FOV)
    numbers = {
        "fl_x": focal,
        "fl_y": focal,
        "cx": WIDTH / 2,
        "cy": HEIGHT / 2,
        "w": WIDTH,
        "h": HEIGHT,
        "k1": 0.0,
        "p2": 0,
        "aabb_scale": 4,
    }
    for split in ("train", "val", "test"):
        edit(blender_folder, lambda m: m.update(numbers), split)
    assert detect_format(str(blender_folder)) == "blender"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(blender_folder).cameras.c2w, plain.cameras.c2w)


def test_pictures_without_alpha_are_read_as_they_are(blender_folder):
    for file in blender_folder.glob("*/*.png"):
        Image.open(file).convert("RGB").save(file)
    scene = load(blender_folder)
    assert scene.image(0).shape == (HEIGHT, WIDTH, 3)
    assert torch.equal(scene.image(0, 1.0), scene.image(0, 0.0))


def test_a_file_path_may_bring_its_extension(blender_folder):
    edit(blender_folder, lambda m: m["frames"][0].update(file_path="train/r_0.png"))
    assert load(blender_folder).view_names[0] == "train/r_0.png"


def test_poses_of_three_rows_or_quoted_numbers_are_poses_too(blender_folder):
    whole = load(blender_folder)
    edit(blender_folder, lambda m: m["frames"][1]["transform_matrix"].pop())
    edit(blender_folder, lambda m: m["frames"][2]["transform_matrix"][0].__setitem__(0, str(m["frames"][2]["transform_matrix"][0][0])))
    assert torch.equal(load(blender_folder).cameras.c2w, whole.cameras.c2w)


# --- Bad input ------------------------------------------------------------------------------------------------------


def frame(**values: Any) -> Edit:
    return lambda meta: meta["frames"][2].update(values)


def entry(row: int, column: int, value: Any) -> Edit:
    def change(meta: dict[str, Any]) -> None:
        meta["frames"][2]["transform_matrix"][row][column] = value

    return change


def transpose(meta: dict[str, Any]) -> None:
    for f in meta["frames"]:
        f["transform_matrix"] = np.array(f["transform_matrix"]).T.tolist()


def mirror(meta: dict[str, Any]) -> None:
    for row in meta["frames"][2]["transform_matrix"]:
        row[0] = -row[0]


def flatten(meta: dict[str, Any]) -> None:
    for row in meta["frames"][2]["transform_matrix"]:
        row[0] = 0.0


BAD_TRANSFORMS: dict[str, tuple[Edit, str]] = {
    "nan pose": (entry(0, 0, math.nan), "frame 2 .*finite"),
    "infinite position": (entry(1, 3, math.inf), "frame 2 .*finite"),
    "words in a pose": (entry(0, 1, "left"), "frame 2 .*4x4"),
    "null in a pose": (entry(0, 1, None), "frame 2 .*4x4"),
    "short pose": (frame(transform_matrix=[[1, 0, 0, 0]]), "frame 2 .*4x4"),
    "ragged pose": (frame(transform_matrix=[[1, 0, 0, 0], [1]]), "frame 2 .*4x4"),
    "no pose": (frame(transform_matrix=None), "frame 2 .*4x4"),
    "mirroring pose": (mirror, "r_2.*mirrors"),
    "flat pose": (flatten, "r_2.*rotation"),
    "transposed poses": (transpose, "transposed"),
    "no file path": (frame(file_path=None), "frame 2 has no file_path"),
    "path climbing out": (frame(file_path="../secret"), "points outside"),
    "no name": (frame(file_path="./"), "frame 2 has no file_path"),
    "no frames": (lambda m: m.update(frames=[]), "lists no frames"),
    "frames no list": (lambda m: m.update(frames={"a": 1}), "lists no frames"),
    "frame no record": (lambda m: m.update(frames=[3]), "frame 0"),
    "no fov": (lambda m: m.pop("camera_angle_x"), "camera_angle_x"),
    "fov zero": (lambda m: m.update(camera_angle_x=0), "camera_angle_x"),
    "fov in degrees": (lambda m: m.update(camera_angle_x=40), "camera_angle_x"),
    "fov negative": (lambda m: m.update(camera_angle_x=-0.7), "camera_angle_x"),
    "fov nan": (lambda m: m.update(camera_angle_x=math.nan), "camera_angle_x"),
    "fov a word": (lambda m: m.update(camera_angle_x="0.7"), "camera_angle_x"),
}


def assert_readable(error: BaseException, folder: Path) -> None:
    """One sentence that names something in the folder."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert folder.name in text


@pytest.mark.parametrize("case", BAD_TRANSFORMS)
def test_bad_transforms_are_refused_in_a_sentence(blender_folder, case):
    change, message = BAD_TRANSFORMS[case]
    edit(blender_folder, change)
    shutil.copy(blender_folder / "train/r_0.png", blender_folder.parent / "secret.png")
    with pytest.raises(SceneError, match=message) as caught:
        load(blender_folder)
    assert_readable(caught.value, blender_folder)


def test_splits_must_share_their_field_of_view(blender_folder):
    edit(blender_folder, lambda m: m.update(camera_angle_x=0.5), "test")
    with pytest.raises(SceneError, match=r"transforms_test\.json: camera_angle_x differs"):
        load(blender_folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2", "\x00\x01", '{"camera_angle_x": 0.7', "[" * 100_000, "[]", "3", "null"])
def test_broken_json_is_refused_in_a_sentence(blender_folder, content):
    (blender_folder / "transforms_train.json").write_text(content)
    with pytest.raises(SceneError, match=r"transforms_train\.json") as caught:
        load(blender_folder)
    assert_readable(caught.value, blender_folder)


def test_bytes_that_are_no_text_are_refused_in_a_sentence(blender_folder):
    (blender_folder / "transforms_val.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(SceneError, match=r"transforms_val\.json"):
        load(blender_folder)


def test_a_missing_training_file_is_named(blender_folder):
    (blender_folder / "transforms_train.json").unlink()
    with pytest.raises(SceneError, match=r"transforms_train\.json can't be read"):
        load(blender_folder)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:80])


def no_image(file: Path) -> None:
    file.write_text("a letter")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_size(file: Path) -> None:
    Image.open(file).resize((WIDTH, HEIGHT + 1)).save(file)


@pytest.mark.parametrize("damage", [truncated, no_image, empty, other_size])
def test_bad_images_are_named(blender_folder, damage):
    damage(blender_folder / "test" / "r_3.png")
    with pytest.raises(SceneError, match=r"r_3\.png") as caught:
        load(blender_folder)
    assert_readable(caught.value, blender_folder)


def test_absent_pictures_are_left_out(blender_folder):
    whole = load(blender_folder)
    (blender_folder / "test/r_3.png").unlink()
    (blender_folder / "train/r_1.png").unlink()
    with pytest.warns(UserWarning) as caught:
        scene = load(blender_folder)
    left_out = [f"transforms_{split}.json: 1 of" for split in ("train", "test")]
    assert len(caught) == 2 and all(part in str(warning.message) for part, warning in zip(left_out, caught, strict=True))
    assert len(scene.splits["test"]) == len(whole.splits["test"]) - 1
    assert scene.view_names == [name for name in whole.view_names if name not in ("train/r_1.png", "test/r_3.png")]


def test_a_split_without_pictures_is_left_out_but_that_of_training(blender_folder):
    whole = load(blender_folder)
    shutil.rmtree(blender_folder / "test")
    with pytest.warns(UserWarning, match=r"not there and were left out: .*; nerfit render RUN --path .*transforms_test\.json renders"):
        scene = load(blender_folder)
    assert scene.splits.keys() == {"train", "val"}
    cameras, look = scene_path(scene, str(blender_folder / "transforms_test.json"), None)
    assert_close(cameras.c2w, whole.cameras[whole.splits["test"]].c2w, 1e-5)
    assert_close(cameras.fx, whole.cameras[whole.splits["test"]].fx, 1e-5)
    assert look is None and len(scene_path(scene, str(blender_folder / "transforms_test.json"), 2)[0]) == 2
    shutil.rmtree(blender_folder / "train")
    with pytest.raises(SceneError, match=r"transforms_train\.json lists \d+ pictures of which none is there; .*r_0\.png"):
        load(blender_folder)


def test_pictures_trained_on_and_listed_twice_are_named(blender_folder):
    first = json.loads((blender_folder / "transforms_train.json").read_text())["frames"][0]
    edit(blender_folder, lambda m: m["frames"].append(first), "test")
    with pytest.warns(UserWarning, match=r"1 pictures of val and test are trained on too.*: \./train/r_0"):
        load(blender_folder)
    edit(blender_folder, lambda m: m["frames"].pop(), "test")
    edit(blender_folder, lambda m: m["frames"].append(first))
    with pytest.warns(UserWarning, match=r"1 pictures are listed more than once"):
        assert len(load(blender_folder).cameras) == len({*load(blender_folder).view_names})


def test_poses_that_are_nearly_rotations_are_projected_with_a_warning(blender_folder):
    exact = load(blender_folder)
    edit(blender_folder, lambda m: m["frames"][2]["transform_matrix"][0].__setitem__(0, m["frames"][2]["transform_matrix"][0][0] + 0.02))
    with pytest.warns(UserWarning, match=r"1 of .*r_2"):
        scene = load(blender_folder)
    turn = scene.cameras.c2w[:, :, :3].double()
    assert_close(turn @ turn.mT, torch.eye(3).expand(14, 3, 3), 1e-6)
    assert 0 < float((scene.cameras.c2w - exact.cameras.c2w)[2].abs().max()) < 0.03
    assert torch.equal(scene.cameras.c2w[[0, 1, 3]], exact.cameras.c2w[[0, 1, 3]])


def test_rounded_poses_raise_no_warning(blender_folder):
    def round_off(meta: dict[str, Any]) -> None:
        for f in meta["frames"]:
            f["transform_matrix"] = np.round(f["transform_matrix"], 5).tolist()

    edit(blender_folder, round_off)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(blender_folder)


# --- Formats --------------------------------------------------------------------------------------------------------


def test_formats_are_recognised(blender_folder, tmp_path):
    assert detect_format(str(blender_folder)) == "blender"
    assert detect_format(str(blender_folder / "train" / "r_0.png")) == "image"
    assert scene_format("blender") is blender
    for nothing in (tmp_path, tmp_path / "none", blender_folder / "transforms_train.json"):
        with pytest.raises(SceneError, match="no known scene"):
            detect_format(str(nothing))


def test_an_unknown_format_names_the_closest():
    with pytest.raises(NerfitError, match="blender"):
        scene_format("blnder")


def test_official_scenes_are_read(data_folder):
    folder = data_folder / "lego_100px"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    scene = load(folder)
    assert [len(scene.splits[s]) for s in ("train", "val", "test")] == [100, 5, 20]
    assert set(zip(scene.cameras.width.tolist(), scene.cameras.height.tolist(), strict=True)) == {(100, 100)}
    assert float(scene.cameras.fx[0]) == pytest.approx(1111.1110311937682 / 8, rel=1e-5)
    assert_close(scene.cameras.centers.norm(dim=-1), np.full(125, 4.0311), 1e-3)


# --- Single pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".bmp"])
def test_a_picture_is_a_scene_of_one_view(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / f"garden{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)
    assert single_image.detect(str(path))
    scene = single_image.load(str(path), single_image.Config())
    assert (scene.name, scene.format, scene.default_path) == ("garden", "image", "test")
    assert scene.splits == {"train": [0], "val": [0], "test": [0]}
    assert np.array_equal((scene.image(0) * 255).round().numpy(), pixels)


@pytest.mark.parametrize(("factor", "size"), [(1, (7, 5)), (2, (3, 2)), (6, (1, 1)), (100, (1, 1))])
def test_pictures_can_be_shrunk(tmp_path, factor, size):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((5, 7), 90, np.uint8)).save(path)
    scene = single_image.load(str(path), single_image.Config(factor=factor))
    assert (int(scene.cameras.width[0]), int(scene.cameras.height[0])) == size
    assert_close(scene.image(0), np.full((size[1], size[0], 3), 90 / 255))


def test_a_bad_picture_or_factor_is_refused(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"nothing")
    with pytest.raises(SceneError, match=r"x\.png"):
        single_image.load(str(path), single_image.Config())
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(ConfigError, match="factor"):
        single_image.load(str(path), single_image.Config(factor=0))
    assert not single_image.detect(str(tmp_path))
    assert not single_image.detect(str(tmp_path / "missing.png"))


def test_a_picture_has_no_use_for_the_keys_of_rays():
    assert set(single_image.Config().unused()) == {"near", "far", "train_views", "pixel_offset"}


# --- Scenes ---------------------------------------------------------------------------------------------------------

SIZES = [(3, 2), (1, 1), (4, 5)]


def mixed_scene(channels: int = 4, **choices: Any) -> Scene:
    """Views of different sizes in random poses."""
    rng = np.random.default_rng(3)
    c2w = np.stack([np.concatenate([rotation(rng), rng.normal(size=(3, 1))], 1) for _ in SIZES])
    width, height = torch.tensor(SIZES).T
    intrinsics = width + 0.1, width + 0.3, width / 2, height / 3
    cameras = Cameras(torch.tensor(c2w).float(), *intrinsics, width, height, torch.full((3, 13), 0.01), pixel_offset=0.0)
    pixels = torch.from_numpy(rng.integers(0, 256, (27, channels), dtype=np.uint8))
    return Scene("mixed", "test", cameras, 1.0, 3.0, {"train": [0, 2], "test": [1]}, pixels, **choices)


@given(seed=st.integers(0, 2**32 - 1), background=st.sampled_from([0.0, 0.25, 1.0]))
def test_colours_lie_over_the_background_by_their_alpha(seed, background):
    rgba = np.random.default_rng(seed).uniform(0, 1, (3, 5, 4))
    tensor = torch.tensor(rgba, dtype=torch.float32)
    twin = [[[c * p[3] + background * (1 - p[3]) for c in p[:3]] for p in row] for row in tensor.tolist()]
    assert_close(composite(tensor, background), twin)
    assert_close(composite(tensor, torch.full((3, 5, 3), background)), twin)
    assert torch.equal(composite(tensor[..., :3], background), tensor[..., :3])


@pytest.mark.parametrize("channels", [3, 4])
def test_images_and_colours_are_the_stored_pixels(channels):
    scene = mixed_scene(channels)
    assert scene.pixels is not None
    start = 0
    for view, (w, h) in enumerate(SIZES):
        twin = np.array([[scene.pixels[start + y * w + x].tolist() for x in range(w)] for y in range(h)]) / 255
        assert_close(scene.image(view, None), twin)
        assert_close(scene.image(view, 0.3), twin if channels == 3 else twin[..., :3] * twin[..., 3:] + 0.3 * (1 - twin[..., 3:]))
        y, x = (torch.from_numpy(k.ravel()) for k in np.mgrid[:h, :w])
        assert_close(scene.colors(torch.full_like(x, view), x, y), twin.reshape(-1, channels))
        start += w * h
    assert scene.image(0).shape == (2, 3, 3)


def test_pixels_must_match_the_cameras():
    scene = mixed_scene()
    assert scene.pixels is not None
    with pytest.raises(SceneError, match="26 pixels, the cameras 27"):
        Scene("short", "test", scene.cameras, 1.0, 3.0, {"train": [0]}, scene.pixels[1:])


@pytest.mark.parametrize(("near", "far"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_a_scene_needs_near_below_far(near, far):
    with pytest.raises(SceneError, match="near"):
        Scene("flat", "test", mixed_scene().cameras, near, far, {"train": [0]})


@given(count=st.integers(1, 12), start=st.integers(0, 12), end=st.integers(-1, 12), step=st.integers(1, 5))
def test_pick_counts_through_the_views(count, start, end, step):
    twin = [i for i in range(count) if i >= start and (end == -1 or i < end) and (i - start) % step == 0]
    if twin:
        assert pick(count, (start, end, step)) == twin
    else:
        with pytest.raises(SceneError, match=f"leaves none of {count} views"):
            pick(count, (start, end, step))


def similarity() -> np.ndarray:
    """A rotation, a scale of 2.5 and a shift."""
    rng = np.random.default_rng(8)
    matrix = np.eye(4)
    matrix[:3] = np.concatenate([2.5 * rotation(rng), [[10.0], [-20.0], [30.0]]], 1)
    return matrix


def test_a_saved_scene_comes_back_without_its_images(tmp_path):
    scene = mixed_scene(
        bounds="forward-facing", background="black", ndc=True, default_path="spiral", view_names=["a", "b", "ü"],
        to_original=torch.from_numpy(similarity()), depth_range=(1.5, 2.5),
    )  # fmt: skip
    scene.save(tmp_path)
    again = Scene.load(tmp_path)
    for name in ("name", "format", "near", "far", "splits", "bounds", "background", "ndc", "default_path", "view_names", "depth_range"):
        assert getattr(again, name) == getattr(scene, name)
    assert again.cameras.state() == scene.cameras.state()
    assert torch.equal(again.to_original, scene.to_original)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cameras.json", "scene.json"]
    views = torch.tensor([0, 2, 2])
    x = torch.tensor([0, 1, 3])
    assert torch.equal(again.rays(views, x, x).directions, scene.rays(views, x, x).directions)
    for ask in (lambda: again.image(0), lambda: again.colors(views, x, x)):
        with pytest.raises(SceneError, match="opened without its images"):
            ask()


def test_saved_cameras_are_given_in_the_users_own_coordinates(tmp_path):
    """Positions move with the similarity, rotations turn with it and stay rotations."""
    scene = mixed_scene(to_original=torch.from_numpy(similarity()))
    scene.save(tmp_path)
    saved = json.loads((tmp_path / "cameras.json").read_text())
    assert saved["axes"] == "OpenGL"
    turn = similarity()[:3, :3] / 2.5
    for pose, c2w in zip(saved["original_c2w"], scene.cameras.c2w.double().numpy(), strict=True):
        position = similarity() @ np.append(c2w[:, 3], 1)
        assert_close(np.array(pose)[:, 3], position[:3], 1e-9)
        assert_close(np.array(pose)[:, :3], turn @ c2w[:, :3], 1e-9)
    mixed_scene().save(tmp_path)
    plain = json.loads((tmp_path / "cameras.json").read_text())
    assert_close(plain["original_c2w"], plain["normalised"]["c2w"], 1e-12)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"to_original": 1}', '{"name": "x", "to_original": [[1]]}'])
@pytest.mark.parametrize("file", ["scene.json", "cameras.json"])
def test_a_damaged_run_folder_is_refused_in_a_sentence(tmp_path, file, content):
    mixed_scene().save(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(SceneError, match="not a run folder") as caught:
        Scene.load(tmp_path)
    assert_readable(caught.value, tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(SceneError, match="not a run folder"):
        Scene.load(tmp_path / "nowhere")


def test_saving_leaves_no_half_written_file(tmp_path, monkeypatch):
    scene = mixed_scene()
    scene.save(tmp_path)
    before = (tmp_path / "scene.json").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    scene.name = "other"
    with pytest.raises(KeyboardInterrupt):
        scene.save(tmp_path)
    assert (tmp_path / "scene.json").read_bytes() == before


def test_defaults_are_the_promised_ones():
    config = SceneConfig()
    assert (config.background, config.train_views, config.pixel_offset) == ("auto", (0, -1, 1), 0.5)
    assert (blender.Config().factor, blender.Config().testskip) == (1, 1)
