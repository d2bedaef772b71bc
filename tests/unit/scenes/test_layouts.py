"""Layouts of other programs: points appear in the read cameras where the program's own formulas put them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layouts import (
    HEIGHT,
    LAYOUTS,
    POINTS,
    VIEWS,
    WIDTH,
    Project,
    metashape_writer,
    opensfm_writer,
    polycam_writer,
    save_pictures,
    write_mvsnet,
)
from nerfit.scenes import detect_format
from nerfit.scenes.formats.nvm import inverse_of_radial
from nerfit.scenes.scene import Scene
from nerfit.scenes.writing import write_transforms
from readers import load, refused

pytestmark = pytest.mark.usefixtures("cache")


def positions(scene: Scene, view: int, points: np.ndarray) -> np.ndarray:
    """Where the cameras, in the coordinates of the scene's files, see points; in float64. All must be visible."""
    exact = scene.original_cameras._map(lambda t: t.double() if t.is_floating_point() else t)
    pixels, visible = exact.project(torch.full((len(points),), view), torch.from_numpy(points))
    assert visible.all()
    return pixels.numpy()


def assert_projects(scene: Scene, project: Project, order: list[int] | None = None) -> None:
    for view, of in enumerate(order or range(VIEWS)):
        assert np.abs(positions(scene, view, POINTS) - project(of, POINTS)).max() < 1e-4, view


@pytest.mark.parametrize("name", LAYOUTS)
def test_points_appear_where_the_program_puts_them(name: str, tmp_path: Path) -> None:
    project = LAYOUTS[name].write(tmp_path)
    scene = load(name.split()[0], tmp_path)
    assert len(scene.cameras) == VIEWS and scene.view_names == sorted(scene.view_names)
    assert [len(scene.splits[split]) for split in ("train", "test")] == [VIEWS - 1, 1]
    assert_projects(scene, project)
    assert (scene.depth_range is not None) == LAYOUTS[name].points
    shrunk = load(name.split()[0], tmp_path, factor=2)
    assert np.abs(positions(shrunk, 3, POINTS) - project(3, POINTS) / 2).max() < 1e-4


@pytest.mark.parametrize("k", [-0.12, -0.05, 0.1, 0.4])
def test_the_inverse_of_a_radial_lens(k: float) -> None:
    """m(1 + k·m²) = u: the rational lens finds m from u to 1e-7, up to |k|·u² = 0.05."""
    m = np.linspace(0.01, 1, 50) * np.sqrt(0.05 / abs(k)) * 1.1
    u = m * (1 + k * m * m)
    u = u[np.abs(k) * u * u <= 0.05]
    s, lens = u * u, inverse_of_radial(k)
    found = u * (1 + lens["k1"] * s + lens["k2"] * s**2 + lens["k3"] * s**3) / (1 + lens["k4"] * s + lens["k5"] * s**2 + lens["k6"] * s**3)
    assert np.abs(found - m[: len(u)]).max() < 1e-7 * u.max()


def test_masks_of_neus_hide_what_is_black(tmp_path: Path) -> None:
    LAYOUTS["neus"].write(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    for file in (tmp_path / "mask").iterdir():
        Image.fromarray(mask).save(file)
    with pytest.warns(UserWarning, match=rf"what masks hide is left out, in {VIEWS} of {VIEWS} pictures"):
        scene = load("neus", tmp_path)
    assert scene.masked and torch.equal(scene.visible(2), torch.from_numpy(mask > 0))


def test_depths_of_polycam(tmp_path: Path) -> None:
    polycam_writer(corrected=True)(tmp_path)
    scene = load("polycam", tmp_path, depths=True, centre=False)
    assert (
        scene.depths is not None and torch.allclose(scene.depths[-1], torch.tensor(1.505)) and len(scene.depths) == VIEWS * WIDTH * HEIGHT
    )


def test_a_picture_that_exif_turns_takes_its_camera_along(tmp_path: Path) -> None:
    project = opensfm_writer("perspective", focal=1.1, k1=0.05)(tmp_path)
    path = tmp_path / "images" / "DJI_2.JPG.png"
    picture = Image.open(path)
    exif = picture.getexif()
    exif[274] = 6  # to be shown after a quarter turn clockwise
    picture.save(path, exif=exif)
    scene = load("opensfm", tmp_path)
    stored = project(2, POINTS)
    assert np.abs(positions(scene, 2, POINTS) - np.stack([HEIGHT - stored[:, 1], stored[:, 0]], -1)).max() < 1e-4
    assert (int(scene.cameras.width[2]), int(scene.cameras.height[2])) == (HEIGHT, WIDTH)


def test_pictures_that_are_not_there_are_counted(tmp_path: Path) -> None:
    metashape_writer()(tmp_path)
    (tmp_path / "images" / "IMG_0001.png").unlink()
    with pytest.warns(UserWarning, match=r"cameras.xml: 1 of 6 pictures are not there and were left out: IMG_0001\.png"):
        scene = load("metashape", tmp_path)
    assert len(scene.cameras) == VIEWS - 1


def test_pictures_without_a_pose_are_counted(tmp_path: Path) -> None:
    metashape_writer()(tmp_path)
    save_pictures(tmp_path, ["images/IMG_0008.png", "images/lost.png"])
    with pytest.warns(UserWarning, match=r"2 of 8 pictures have no pose in .*cameras.xml and were left out: IMG_0008\.png, lost\.png"):
        load("metashape", tmp_path)


def test_poses_that_are_all_the_same_are_said(tmp_path: Path) -> None:
    LAYOUTS["record3d"].write(tmp_path)
    meta = json.loads((tmp_path / "metadata").read_text())
    (tmp_path / "metadata").write_text(json.dumps(meta | {"poses": [[0, 0, 0, 1, 0, 0, 0]] * VIEWS}))
    with pytest.warns(UserWarning, match=rf"metadata: all {VIEWS} pictures have the same pose, as where nothing was tracked"):
        load("record3d", tmp_path)


def test_a_table_may_begin_with_the_number_of_cameras(tmp_path: Path) -> None:
    LAYOUTS["realitycapture"].write(tmp_path)
    edit(tmp_path / "cameras.csv", ("#name", "#cameras 6\n#name"))
    assert len(load("realitycapture", tmp_path).cameras) == VIEWS


@pytest.mark.parametrize("own", ["transforms", "colmap"])
def test_a_scene_of_another_format_keeps_its_answer(own: str, tmp_path: Path) -> None:
    metashape_writer()(tmp_path)
    if own == "colmap":
        (tmp_path / "sparse" / "0").mkdir(parents=True)
        (tmp_path / "sparse" / "0" / "images.bin").touch()
    else:
        (tmp_path / "transforms.json").write_text("{}")
    assert detect_format(str(tmp_path)) == own


@pytest.mark.parametrize("name", ["bundler", "nvm", "openmvg", "opensfm brown", "realitycapture", "metashape"])
def test_the_file_of_the_cameras_may_be_named(name: str, tmp_path: Path) -> None:
    """The file itself; its pictures are those beside it."""
    LAYOUTS[name].write(tmp_path)
    file = {
        "bundler": "bundle.out",
        "nvm": "model.nvm",
        "openmvg": "reconstruction/sfm_data.json",
        "opensfm brown": "opensfm/reconstruction.json",
        "realitycapture": "cameras.csv",
        "metashape": "cameras.xml",
    }[name]
    assert detect_format(str(tmp_path / file)) == name.split()[0]
    if name != "openmvg":
        assert len(load(name.split()[0], tmp_path / file).cameras) == VIEWS


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def changed(*changes: tuple[str, str], file: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, *changes)


def flat_cameras(file: Path) -> None:
    arrays: dict[str, Any] = {f"world_mat_{i}": np.ones((4, 4)) for i in range(VIEWS)}
    np.savez(file, **arrays)


REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    ("metashape", changed(('type="frame"', 'type="cylindrical"'), file="cameras.xml"), r"IMG_0000 .*'cylindrical'.*Undistort Photos"),
    ("metashape", changed(("<k1>", "<p3>0.1</p3><k1>"), file="cameras.xml"), r"'frame with p3 or p4'.*Undistort Photos"),
    ("metashape", changed(("<k1>", "<b2>5</b2><k1>"), file="cameras.xml"), r"not square \(skew 5, 1\.7 pixels at its edge\); undistort"),
    ("metashape", changed(("transform>", "x>"), file="cameras.xml"), r"has no picture with a pose; add --scene.format photos"),
    ("metashape", changed(("<document", '<!DOCTYPE d [<!ENTITY a "b">]><document'), file="cameras.xml"), "a document type of its own"),
    (
        "opensfm",
        changed(("perspective", "dual"), file="reconstruction.json"),
        r"DJI_0.*'dual', .*opensfm undistort",
    ),
    ("opensfm", changed(("[", "{"), ("]", "}"), file="reconstruction.json"), "is not valid JSON"),
    (
        "openmvg",
        changed(("disto_k3", "disto_x9"), file="reconstruction/sfm_data.json"),
        r"'disto_x9'.*ExportUndistortedImages",
    ),
    ("openmvg", changed(("focal_length", "none"), file="reconstruction/sfm_data.json"), "openMVG_main_openMVGSpherical2Cubic"),
    ("openmvg", lambda f: (f / "reconstruction/sfm_data.json").unlink(), r"holds no poses; .*openMVG_main_ConvertSfM_DataFormat"),
    ("bundler", lambda f: (f / "list.txt").unlink(), r"needs the list of its pictures, list\.txt"),
    ("bundler", changed(("0 0 0\n", ""), file="bundle.out"), "ends within|should be"),
    ("kapture", changed(("OPENCV", "FOV"), file="sensors/sensors.txt"), r"camera cam01 .*'FOV'"),
    ("realitycapture xmp", changed(("brown4t2", "division"), file="images/frame 0.xmp"), r"'division'.*Brown distortion model"),
    ("mvsnet", changed(("extrinsic", "pose"), file="cams/00000000_cam.txt"), r"should hold 'extrinsic' with 16 numbers"),
    ("kapture", lambda f: (f / "sensors/rigs.txt").write_text("rig\n"), r"rigs\.txt: the line 'rig' has too few values"),
    ("neus", lambda f: flat_cameras(f / "cameras_sphere.npz"), r"world_mat_0 is no projection matrix"),
    ("neus", lambda f: (f / "image/000.png").unlink(), r"has 6 cameras .*5 pictures"),
    ("record3d", changed(("poses", "pose"), file="metadata"), "no metadata with poses"),
    ("polycam", changed(("fx", "f"), ("fy", "g"), file="keyframes/corrected_cameras/0000.json"), r"has no focal length"),
]


@pytest.mark.parametrize(("name", "damage", "message"), REFUSALS)
def test_what_can_not_be_read_is_refused(name: str, damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    LAYOUTS[name].write(tmp_path)
    damage(tmp_path)
    refused(name.split()[0], tmp_path, message)


def test_pictures_outside_the_folder_are_refused(tmp_path: Path) -> None:
    write_mvsnet(tmp_path / "scene")
    (tmp_path / "scene/blended_images/00000000.png").rename(tmp_path / "secret.png")
    (tmp_path / "scene/blended_images/00000000.png").symlink_to(tmp_path / "secret.png")
    refused("mvsnet", tmp_path / "scene", "points outside")


# --- transforms.json of phones and viewers -----------------------------------------------------------------------------


def test_a_matrix_k_stands_for_the_focal_lengths(tmp_path: Path) -> None:
    from test_writing import cameras_of

    cameras = cameras_of(0, [("perspective", ())])
    names = [f"images/{i}.png" for i in range(len(cameras))]
    file = write_transforms(tmp_path, cameras, names)
    meta = json.loads(file.read_text())
    (tmp_path / "images").mkdir()
    for frame, name in zip(meta["frames"], names, strict=True):
        Image.new("RGB", (frame["w"], frame["h"])).save(tmp_path / name)
        fx, fy, cx, cy = (frame.pop(key) for key in ("fl_x", "fl_y", "cx", "cy"))
        frame["K"] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    file.write_text(json.dumps(meta))
    scene = load("transforms", tmp_path)
    for key in ("fx", "fy", "cx", "cy"):
        assert torch.equal(getattr(scene.cameras, key), getattr(cameras, key))
    meta["frames"][1]["K"] = [[1, 2], [3, 4]]
    file.write_text(json.dumps(meta))
    refused("transforms", tmp_path, r"images/1\.png has K '\[\[1, 2\], \[3, 4\]\]', which should be the 3x3 matrix")


def test_captures_of_nerfcapture(tmp_path: Path) -> None:
    """Names without endings, a lens for each frame, depth maps beside the pictures (nerfcapture_dataset.py)."""
    from layouts import FOCAL, MIDDLE, arkit, pose

    save_pictures(tmp_path, [f"images/{view}.png" for view in range(VIEWS)])
    lens = {"fl_x": FOCAL[0], "fl_y": FOCAL[1], "cx": MIDDLE[0], "cy": MIDDLE[1], "w": WIDTH, "h": HEIGHT}
    frames = [
        {"file_path": f"images/{view}", "depth_path": f"images/{view}.depth.png", "transform_matrix": pose(view).tolist(), **lens}
        for view in range(VIEWS)
    ]
    for view in range(VIEWS):
        Image.fromarray(np.full((HEIGHT, WIDTH), 65535 // (view + 2), np.uint16)).save(tmp_path / f"images/{view}.depth.png")
    meta = {"fl_x": 1.0, "fl_y": 1.0, "cx": 320, "cy": 240, "w": WIDTH, "h": HEIGHT, "integer_depth_scale": 10 / 65535, "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    scene = load("transforms", tmp_path, depths=True, centre=False)
    assert_projects(scene, arkit)
    assert scene.depths is not None and abs(float(scene.depths[0]) - 5) < 1e-3


@pytest.mark.parametrize("listed", [True, False])
def test_lists_with_transform_are_named(listed: bool, tmp_path: Path) -> None:
    frames = [{"file_path": "a.png", "transform": np.eye(4).tolist()}]
    (tmp_path / "transforms.json").write_text(json.dumps(frames if listed else {"frames": frames}))
    refused("transforms", tmp_path, r"list of pictures with the key 'transform'.*fl_x \(or K\) and frames")


# --- Real captures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["w19-neus", "w20-polycam", "w20b-record3d", "w21-metashape", "w14c-transforms"])
def test_captures_of_others(case: str, data_folder: Path) -> None:
    form = case.split("-")[1]
    folder = data_folder / "wild" / case.replace("transforms", "K")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = load(form, folder, factor=4)
    assert len(scene.cameras) == (50 if form == "transforms" else 11) and bool((scene.cameras.fx > scene.cameras.width / 2).all())
