"""The readers of DeepVoxels, LINEMOD, tiny and multi-scale scenes: their cameras against their pictures, and bad input."""

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FOV, HEIGHT, WIDTH, around, assert_close, ball_picture
from nerfit.cli import main
from nerfit.errors import ConfigError
from nerfit.scenes.formats import blender, multiscale
from nerfit.scenes.images import resize_area
from nerfit.scenes.scene import Scene
from readers import load, refused

FOCAL = 0.5 * WIDTH / math.tan(0.5 * FOV)
COUNTS = {"train": 3, "validation": 2, "test": 4}
POSES = {split: [around(2 * math.pi * (i + phase) / n, 0.2 + 0.1 * i) for i in range(n)]
         for phase, (split, n) in enumerate(COUNTS.items())}  # fmt: skip


def assert_rays_hit_the_ball(scene: Scene, poses: list[np.ndarray]) -> None:
    """Exactly the rays that meet the unit ball end on its pixels, which are the only coloured ones; poses are ``poses``."""
    assert_close(scene.cameras.c2w, np.stack(poses)[:, :3], 1e-6)
    for view, c2w in enumerate(poses):
        w, h = int(scene.cameras.width[view]), int(scene.cameras.height[view])
        pixels = torch.arange(w * h)
        rays = scene.rays(torch.full_like(pixels, view), pixels % w, pixels // w)
        inside = torch.linalg.cross(rays.origins, rays.viewdirs).norm(dim=-1) < 1
        if (w, h) == (WIDTH, HEIGHT):
            assert torch.equal(inside.reshape(h, w), scene.image(view, 0.0).any(-1))
            assert np.abs((scene.image(view, 0.0) * 255).round().numpy() - ball_picture(c2w)[..., :3]).max() <= 1
        assert inside.any()


# --- DeepVoxels -----------------------------------------------------------------------------------------------------


@pytest.fixture
def vase(tmp_path: Path) -> Path:
    """An object whose intrinsics are for pictures 60 times as high and of another shape, as the published ones are."""
    folder = tmp_path / "voxels"
    for split, poses in POSES.items():
        place = folder / split / "vase"
        (place / "rgb").mkdir(parents=True)
        (place / "pose").mkdir()
        for i, c2w in enumerate(poses):
            Image.fromarray(ball_picture(c2w)[..., :3]).save(place / "rgb" / f"{i:06d}.png")
            opencv = c2w @ np.diag([1.0, -1, -1, 1])
            (place / "pose" / f"{i:06d}.txt").write_text(" ".join(map(repr, opencv.ravel().tolist())) + "\n")
        (place / "intrinsics.txt").write_text(f"{FOCAL * 480 / HEIGHT} 319.5 239.5 0.\n0. 0. 0.\n0.5\n1.\n480 640\n")
    return folder


def test_deepvoxels_are_read_whole(vase: Path) -> None:
    scene = load("deepvoxels", vase)
    assert (scene.name, scene.format, scene.bounds, scene.default_path) == ("vase", "deepvoxels", "object", "test")
    assert scene.splits == {"train": [0, 1, 2], "val": [3, 4], "test": [5, 6, 7, 8]}
    assert scene.view_names[0] == "train/vase/rgb/000000.png" and scene.view_names[8] == "test/vase/rgb/000003.png"
    assert (scene.near, scene.far) == (pytest.approx(3), pytest.approx(5))
    assert_rays_hit_the_ball(scene, sum(POSES.values(), []))
    assert_close(scene.cameras.fy, np.full(9, FOCAL), 1e-6)
    assert torch.equal(scene.cameras.fx, scene.cameras.fy)


def test_deepvoxels_options(vase: Path) -> None:
    scene = load("deepvoxels", vase, testskip=3, train_views=(1, -1, 1), factor=2, near=1.0, shape="vase")
    assert scene.splits == {"train": [0, 1], "val": [2], "test": [3, 4]} and scene.near == 1
    assert scene.view_names[-1] == "test/vase/rgb/000003.png"
    assert (int(scene.cameras.width[0]), int(scene.cameras.height[0])) == (5, 4)
    assert_close(scene.cameras.fx, np.full(5, FOCAL / 2), 1e-6)
    for split in ("validation", "test"):
        for file in sorted((vase / split).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (vase / split).rmdir()
    assert (load("deepvoxels", vase).splits, load("deepvoxels", vase).default_path) == ({"train": [0, 1, 2]}, "circle")
    (vase / "train" / "vase").rename(vase / "train" / "cup")
    assert load("deepvoxels", vase).name == "cup"
    refused("deepvoxels", vase, "has the objects cup; choose one with --scene.shape", ConfigError, shape="vase")
    refused("deepvoxels", vase, "at least 1", ConfigError, factor=0)


def test_deepvoxels_poses_may_be_world_to_camera(vase: Path) -> None:
    straight = load("deepvoxels", vase)
    for file in vase.rglob("intrinsics.txt"):
        file.write_text(file.read_text() + "1\n")
    for file in vase.rglob("pose/*.txt"):
        matrix = np.array(file.read_text().split(), dtype=float).reshape(4, 4)
        file.write_text("\n".join(" ".join(map(repr, row)) for row in np.linalg.inv(matrix).tolist()))
    assert_close(load("deepvoxels", vase).cameras.c2w, straight.cameras.c2w, 1e-6)


def test_two_objects_must_be_named(vase: Path) -> None:
    (vase / "train" / "cube").mkdir()
    (vase / "train" / "cube" / "intrinsics.txt").write_text("")
    refused("deepvoxels", vase, "has the objects cube, vase; choose one", ConfigError)
    assert load("deepvoxels", vase, shape="vase").name == "vase"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("intrinsics.txt", "", "must begin with a focal length"),
        ("intrinsics.txt", "a 1 1\n0 0 0\n0\n1\n480 640", "must begin with a focal length"),
        ("intrinsics.txt", "-9 1 1\n0 0 0\n0\n1\n480 640", "larger than 0"),
        ("intrinsics.txt", "9 1 1\n0 0 0\n0\n1\nnan 640", "larger than 0"),
        ("pose/000001.txt", "1 0 0", "16 numbers"),
        ("pose/000001.txt", " ".join(["nan"] * 16), "16 numbers"),
        ("pose/000001.txt", " ".join(["0"] * 16), "16 numbers"),
        ("pose/000001.txt", " ".join(map(str, np.diag([1, 1, -1, 1]).ravel())), "000001.png .*mirrors"),
        ("pose/000001.txt", None, "000001 is missing"),
        ("rgb/000001.png", None, "000001 is missing"),
        ("rgb/000001.png", "a letter", "000001.png can't be read"),
    ],
)
def test_bad_deepvoxels_are_refused(vase: Path, file: str, text: str | None, message: str) -> None:
    path = vase / "train" / "vase" / file
    path.unlink() if text is None else path.write_text(text)
    refused("deepvoxels", vase, message)


# --- LINEMOD --------------------------------------------------------------------------------------------------------

K = [[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL, HEIGHT / 2 - 0.5], [0, 0, 1]]


@pytest.fixture
def duck(tmp_path: Path) -> Path:
    """Frames named by where they lay on another machine."""
    folder = tmp_path / "duck"
    for split, poses in zip(("train", "val", "test"), POSES.values(), strict=True):
        (folder / split).mkdir(parents=True)
        frames = []
        for i, c2w in enumerate(poses):
            Image.fromarray(ball_picture(c2w)).save(folder / split / f"{i}.png")
            name = f"/home/ann/data/duck/{split}/{i}.png" if i % 2 else f"./data/../duck/{split}/{i}.png"
            frames.append({"file_path": name, "transform_matrix": c2w.tolist(), "intrinsic_matrix": K})
        ends = {"near": {"train": 2.4, "val": 0.1, "test": 2.2}[split], "far": {"train": 5.5, "val": 99, "test": 6.0}[split]}
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames, **ends}))
    return folder


def edit(file: Path, change: Callable[[Any], object]) -> None:
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def test_linemod_is_read_whole(duck: Path) -> None:
    scene = load("linemod", duck)
    assert (scene.name, scene.format, scene.bounds, scene.has_alpha) == ("duck", "linemod", "object", True)
    assert (scene.near, scene.far) == (2, 6)
    assert scene.splits == {"train": [0, 1, 2], "val": [3, 4], "test": [5, 6, 7, 8]}
    assert_rays_hit_the_ball(scene, sum(POSES.values(), []))


def test_linemod_intrinsics_are_each_frames_own_and_shrink_with_the_pictures(duck: Path) -> None:
    def other(meta: Any) -> None:
        meta["frames"][1]["intrinsic_matrix"] = [[9.0, 0, 3.5], [0, 8.0, 2.5], [0, 0, 1]]

    edit(duck / "transforms_train.json", other)
    scene = load("linemod", duck, factor=2, testskip=2)
    assert scene.splits["test"] == [4, 5]
    cameras = scene.cameras
    assert_close(torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1)[1], [4.5, 4, 2, 1.5], 1e-6)
    assert_close(torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1)[0], [FOCAL / 2, FOCAL / 2, 2.5, 2], 1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("near", None, "must give the distances near and far"),
        ("far", "6", "must give the distances near and far"),
        ("near", 1e300, "must give the distances near and far"),
        ("file_path", "/" * 100_000, "frame 1 has no file_path"),
        ("intrinsic_matrix", [[1, 2], [3, 4]], "not a finite 3x3 matrix"),
        ("intrinsic_matrix", [[1, 2, 3], [3, 4]], "not a finite 3x3 matrix"),
        ("intrinsic_matrix", np.zeros((3, 3)).tolist(), "focal lengths must be larger than 0"),
    ],
)
def test_bad_linemod_is_refused(duck: Path, key: str, value: Any, message: str) -> None:
    edit(duck / "transforms_test.json", lambda meta: (meta if key in meta else meta["frames"][1]).update({key: value}))
    refused("linemod", duck, message)


# --- The tiny scene -------------------------------------------------------------------------------------------------


def arrays(views: int, dtype: Any = np.float32) -> dict[str, Any]:
    poses = np.stack([around(2 * math.pi * i / views, 0.4) for i in range(views)])
    images = np.stack([ball_picture(c2w)[..., :3] for c2w in poses])
    scaled = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return {"images": scaled, "poses": poses.astype(np.float32), "focal": np.array(FOCAL)}


@pytest.mark.parametrize(("views", "dtype"), [(4, np.float32), (4, np.uint8), (4, np.float64), (106, np.float32)])
def test_a_tiny_scene_is_read(tmp_path: Path, views: int, dtype: Any) -> None:
    file = tmp_path / "tiny_nerf_data.npz"
    content = arrays(views, dtype)
    np.savez(file, **content)
    scene = load("tiny", file)
    assert (scene.name, scene.near, scene.far, scene.background) == ("tiny_nerf_data", 2.0, 6.0, "auto")
    first = min(100, views - 1)
    assert scene.splits == {"train": list(range(first)), "val": list(range(first, views)), "test": list(range(first, views))}
    assert_rays_hit_the_ball(scene, list(content["poses"]))


def test_packed_arrays_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "t.npz"
    content = arrays(3)
    np.savez_compressed(file, **{**content, "images": np.asfortranarray(content["images"]), "extra": np.array([{}], dtype=object)})
    assert_rays_hit_the_ball(load("tiny", file), list(content["poses"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"focal": None}, "no array named focal"),
        ({"focal": np.array([1.0, 2.0])}, "focal must be one number"),
        ({"focal": np.array(math.nan)}, "focal must be one number"),
        ({"poses": np.eye(4)}, r"poses is float64 of shape \(4, 4\), which should be floats of shape \(3, 4, 4\)"),
        ({"poses": np.zeros((3, 4, 4))}, "view 0 has no rotation"),
        ({"images": np.zeros((3, 4, 5))}, "images has the shape"),
        ({"images": np.zeros((3, 4, 5, 2))}, "images has the shape"),
        ({"images": np.full((3, 4, 5, 3), 255.0)}, "between 0 and 1"),
        ({"images": np.full((3, 4, 5, 3), math.nan)}, "between 0 and 1"),
        ({"images": np.zeros((3, 4, 5, 3), np.int64)}, "between 0 and 1"),
        ({"images": np.array([{}], dtype=object)}, "damaged or of another kind"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "t.npz"
    np.savez(file, **{k: v for k, v in (arrays(3) | change).items() if v is not None})
    refused("tiny", file, message)


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    np.savez(file, **arrays(3))
    whole = bytearray(file.read_bytes())
    place = whole.index(b"PK\x01\x02")
    whole[place + 24 : place + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    file.write_bytes(whole)
    refused("tiny", file, r"holds 4\.0 GB unpacked")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header((10**9, 100, 100, 3)) + bytes(10_000))
        archive.writestr("poses.npy", header((3, 4, 4)))
        archive.writestr("focal.npy", header(()))
    refused("tiny", file, "can't be in")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", b"text"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.npz"
    file.write_bytes(content)
    refused("tiny", file, "t.npz is damaged")


# --- Several scales -------------------------------------------------------------------------------------------------


@pytest.fixture
def pyramid(blender_folder: Path, tmp_path: Path) -> Path:
    assert multiscale.make_multiscale(str(blender_folder), tmp_path / "pyramid", 2) == 28
    return tmp_path / "pyramid"


def test_a_blender_scene_is_made_and_read_at_two_sizes(blender_folder: Path, pyramid: Path) -> None:
    single = blender.load(str(blender_folder), blender.Config())
    scene = load("multiscale", pyramid)
    assert (scene.name, scene.format, scene.near, scene.far, scene.has_alpha) == ("pyramid", "multiscale", 2.0, 6.0, True)
    assert scene.splits == {"train": list(range(10)), "val": list(range(10, 16)), "test": list(range(16, 28))}
    assert scene.view_names[:3] == ["images_train/000_d0.png", "images_train/000_d1.png", "images_train/001_d0.png"]
    assert scene.cameras.width.tolist() == [10, 5] * 14 and scene.cameras.height.tolist() == [8, 4] * 14
    assert_rays_hit_the_ball(scene, list(single.cameras.c2w.repeat_interleave(2, 0).numpy()))
    for view in range(14):
        full = (single.image(view, None) * 255).round().byte().numpy()
        assert np.array_equal((scene.image(2 * view, None) * 255).round().numpy(), full)
        assert np.array_equal((scene.image(2 * view + 1, None) * 255).round().numpy(), resize_area(full, 5, 4))
    assert multiscale.make_multiscale(str(blender_folder), pyramid.parent / "small", 1, factor=2) == 14
    small, halves = load("multiscale", pyramid.parent / "small"), blender.load(str(blender_folder), blender.Config(factor=2))
    assert torch.equal(small.stored_pixels, halves.stored_pixels) and torch.allclose(small.cameras.fx, halves.cameras.fx)
    some = load("multiscale", pyramid, testskip=2, train_views=(0, 4, 1))
    assert some.view_names[:4] == scene.view_names[:4] and len(some.splits["train"]) == 4
    assert set(some.cameras.width[some.splits["test"]].tolist()) == {10}


def test_its_rays_are_those_of_mip_nerf(pyramid: Path) -> None:
    """pix2cam takes (x + ½, y + ½, 1) to the direction in the camera; the files' other numbers agree with it."""
    meta = json.loads((pyramid / "metadata.json").read_text())["train"]
    scene = load("multiscale", pyramid)
    for i in range(10):
        w, h = meta["width"][i], meta["height"][i]
        x, y = np.meshgrid(np.arange(w), np.arange(h))
        pixels = np.stack([x.ravel() + 0.5, y.ravel() + 0.5, np.ones(w * h)])
        expected = np.array(meta["cam2world"][i])[:3, :3] @ np.array(meta["pix2cam"][i]) @ pixels
        rays = scene.rays(torch.full((w * h,), i), torch.from_numpy(x.ravel()), torch.from_numpy(y.ravel()))
        assert_close(rays.directions, expected.T, 1e-6)
        assert meta["lossmult"][i] * w * h == WIDTH * HEIGHT
        assert (meta["label"][i], meta["focal"][i]) == (i % 2, pytest.approx(FOCAL / 2 ** (i % 2)))


def test_the_command_line_makes_one(blender_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "two"
    assert main(["convert", "multiscale", str(blender_folder), str(out), "--scales", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "pictures": 28}
    for words in ([], ["multscale"], ["multiscale"], ["multiscale", str(blender_folder)], ["multiscale", "nowhere", str(out)]):
        assert main(["convert", *words]) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("scales", [0, -1, 3])
def test_sizes_must_come_out_whole(blender_folder: Path, tmp_path: Path, scales: int) -> None:
    with pytest.raises(ConfigError, match="10x8 can't be halved"):
        multiscale.make_multiscale(str(blender_folder), tmp_path / "out", scales)
    assert not (tmp_path / "out").exists()


def test_a_made_scene_is_not_overwritten(blender_folder: Path, pyramid: Path) -> None:
    with pytest.raises(ConfigError, match="has a metadata.json already"):
        multiscale.make_multiscale(str(blender_folder), pyramid, 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pix2cam", np.eye(3).tolist(), "not that of a pinhole camera"),
        ("pix2cam", [[1, 0, 0], [0, -1, 0], [0, 0.1, -1]], "not that of a pinhole camera"),
        ("pix2cam", [[1, 0], [0, -1]], "pix2cam 3x3"),
        ("cam2world", [[math.nan] * 4] * 4, "all finite"),
        ("cam2world", [[1, 2], [3]], "must be numbers"),
        ("width", 11, "is 10x8, not 11x8"),
        ("near", math.inf, "all finite"),
        ("file_path", "../pyramid/../r_0.png", "is not there"),
        ("file_path", 3, "must be a name"),
        ("file_path", "images_train/9.png", "is not there"),
    ],
)
def test_bad_metadata_is_refused(pyramid: Path, key: str, value: Any, message: str) -> None:
    edit(pyramid / "metadata.json", lambda meta: meta["train"][key].__setitem__(2, value))
    refused("multiscale", pyramid, message)
    edit(pyramid / "metadata.json", lambda meta: meta["train"][key].pop())
    refused("multiscale", pyramid, "train must have lists of one length")
    edit(pyramid / "metadata.json", lambda meta: meta["test"].pop(key))
    edit(pyramid / "metadata.json", lambda meta: meta["train"].pop(key))
    refused("multiscale", pyramid, "train must have lists of one length")
