"""Models from matches: the ladder of starts, models that are merged, panoramas, and the doubts that are reported."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from conftest import rotation
from nerfit.cameras import Cameras
from nerfit.errors import SceneError
from nerfit.scenes.formats import photos
from nerfit.scenes.posing import mapping
from nerfit.scenes.posing.mapping import _merged, parallax, similarity
from nerfit.scenes.posing.registration import Links, Mapper, PoseConfig, Report, View, advice, check_share, chosen_lens
from photographs import compare, original, texture


@pytest.fixture(autouse=True)
def use_cache(cache: Path) -> None:
    """Poses are kept in a folder of the test's own."""


# --- Merging --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[pycolmap.Reconstruction, Path]:
    """A made-up model of 12 pictures, and its database."""
    folder = tmp_path_factory.mktemp("made")
    pycolmap.set_random_seed(3)
    options = pycolmap.SyntheticDatasetOptions(num_rigs=1, num_frames_per_rig=12, num_points3D=200)
    with pycolmap.Database.open(folder / "database.db") as database:
        model = pycolmap.synthesize_dataset(options, database)
    return model, folder / "database.db"


def part(model: pycolmap.Reconstruction, images: list[int], scale: float = 1.0) -> pycolmap.Reconstruction:
    """A model of some of the images alone, in coordinates of its own."""
    own = copy.deepcopy(model)
    for image in set(own.reg_image_ids()) - set(images):
        own.deregister_frame(own.image(image).frame_id)
    own.tear_down()
    own.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation(np.random.default_rng(1))), np.array([3.0, 0, 1])))
    return own


def centres(model: pycolmap.Reconstruction) -> torch.Tensor:
    return torch.from_numpy(np.stack([model.image(image).projection_center() for image in sorted(model.reg_image_ids())]))


def test_models_that_share_pictures_become_one(made: tuple[pycolmap.Reconstruction, Path]) -> None:
    model, database = made
    ids = sorted(model.reg_image_ids())
    found = _merged([part(model, ids[:8]), part(model, ids[5:], 7.0)], database, database.parent)
    assert [m.num_reg_images() for m in found] == [12]
    truth, placed = centres(model), centres(found[0])
    pairs = torch.triu_indices(12, 12, 1)
    ratio = (placed[pairs[0]] - placed[pairs[1]]).norm(dim=1) / (truth[pairs[0]] - truth[pairs[1]]).norm(dim=1)
    assert float((ratio / ratio.median() - 1).abs().max()) < 1e-3
    assert found[0].compute_mean_reprojection_error() < 1 and found[0].num_points3D() > 150


def test_models_that_share_too_little_stay_apart(made: tuple[pycolmap.Reconstruction, Path]) -> None:
    model, database = made
    ids = sorted(model.reg_image_ids())
    found = _merged([part(model, ids[:7]), part(model, ids[5:])], database, database.parent)
    assert [m.num_reg_images() for m in found] == [7, 7]


@pytest.mark.parametrize("line", [False, True])
def test_the_similarity_between_cameras_is_found_on_a_line_too(line: bool) -> None:
    rng = np.random.default_rng(0)
    turns, places = np.stack([rotation(rng) for _ in range(5)]), rng.normal(size=(5, 3)) * ([1, 0, 0] if line else [1, 1, 1])
    turn, scale, shift = rotation(rng), 2.5, rng.normal(size=3)
    moved = turns @ turn.T, scale * places @ turn.T + shift
    found = similarity((turns, places), moved)
    np.testing.assert_allclose(found.scale, scale)
    np.testing.assert_allclose(found.rotation.matrix(), turn, atol=1e-12)
    np.testing.assert_allclose(found.translation, shift, atol=1e-12)
    other = rotation(rng) @ moved[0][:1]
    assert similarity((turns, places), (np.concatenate([other, moved[0][1:]]), moved[1])) is None
    assert similarity((turns, places), (moved[0], moved[1][::-1])) is None


# --- Captures that COLMAP's own start gives up --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapper", "posed", "best"),
    [
        ("auto", {16: 11}, 11),  # enough at once
        ("auto", {16: 0, 4: 12}, 12),
        ("auto", {16: 3, 4: 3, 0.5: 10}, 10),
        ("auto", {16: 3, 4: 5, 0.5: 5, "global": 12}, 12),
        ("incremental", {16: 3, 4: 5, 0.5: 4}, 5),
        ("global", {"global": 7}, 7),
    ],
)
def test_starts_are_tried_until_one_poses_enough(
    made: tuple[pycolmap.Reconstruction, Path], monkeypatch: pytest.MonkeyPatch, mapper: Mapper, posed: dict[object, int], best: int
) -> None:
    """Eleven pictures of twelve have matches, so ten are enough."""
    model, database = made
    ids, tried = sorted(model.reg_image_ids()), []

    def found(key: object) -> list[pycolmap.Reconstruction]:
        tried.append(key)
        return [part(model, ids[: posed[key]])] if posed[key] else []

    monkeypatch.setattr(mapping, "_one_by_one", lambda database, pictures, count, start: found(start.parallax))
    monkeypatch.setattr(mapping, "_at_once", lambda database, pictures: found("global"))
    links = Links([900] * 12, {(i, i + 1): 100 for i in range(10)})
    models = mapping.map_pictures("garden", database, database.parent, mapper, links)
    assert models[0].num_reg_images() == best and tried == list(posed)


@pytest.mark.slow
def test_a_flower_is_posed(data_folder: Path) -> None:
    """25 handheld photographs of which COLMAP's own start poses none."""
    report = photos.estimate(str(data_folder / "captures" / "flower"), PoseConfig())[1]
    assert len(report.registered) == 25 and report.error < 0.7


def panorama(c2w: np.ndarray, height: int = 256) -> np.ndarray:
    """All that is seen from inside a room with papered walls, floor and ceiling, 3 wide; as `Cameras` of that lens sees it."""
    x, y = (v.reshape(-1) for v in torch.meshgrid(torch.arange(2 * height), torch.arange(height), indexing="xy"))
    lens = torch.full((1,), 2 * height / (2 * np.pi), dtype=torch.float64)
    one = torch.tensor([1])
    cameras = Cameras.pinhole(torch.from_numpy(c2w[None, :3]), float(lens), 2 * height, height, 0.5)
    cameras = replace(cameras, fy=torch.full_like(cameras.fx, height / np.pi), lens=2 * one)
    d, o = cameras.directions(torch.zeros_like(x), x, y).double().numpy(), c2w[:3, 3]
    t = np.where(d > 0, (1.5 - o) / d, (-1.5 - o) / d)
    wall = t.argmin(-1)
    point = o + d * t.min(-1, keepdims=True)
    shade = np.zeros(len(point))
    for axis in range(3):
        for side in (False, True):
            here = (wall == axis) & ((d[:, axis] > 0) == side)
            u, v = (np.clip((point[here, a] + 1.5) * 170, 0, 511).astype(int) for a in range(3) if a != axis)
            shade[here] = texture(2 * axis + side)[v, u]
    return np.repeat(shade.reshape(height, 2 * height, 1).astype(np.uint8), 3, -1)


def test_panoramas_are_posed_as_panoramas(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    poses = []
    for i in range(6):
        c2w = np.eye(4)
        c2w[:3, :3] = rotation(rng)
        c2w[:3, 3] = rng.uniform(-0.6, 0.6, 3)
        poses.append(c2w)
        Image.fromarray(panorama(c2w)).save(tmp_path / f"{i}.png")
    scene = photos.load(str(tmp_path), photos.Config(holdout=3))
    turned, moved = compare(original(scene), torch.from_numpy(np.stack(poses)))
    assert len(scene.cameras) == 6 and float(turned.max()) < 0.5 and float(moved.max()) < 0.02
    assert scene.cameras.lens is not None and set(scene.cameras.lens.tolist()) == {2}
    assert "read as panoramas" in capfd.readouterr().err


# --- Doubts ---------------------------------------------------------------------------------------------------------


def test_little_parallax_is_reported(made: tuple[pycolmap.Reconstruction, Path]) -> None:
    assert parallax(made[0]) > 20
    advised = advice(Report("", 9, ["a"] * 9, points=900, error=0.5, parallax=0.7))
    assert len(advised) == 1 and "less than 0.7 degrees" in advised[0]


def test_a_few_pictures_of_many_are_no_scene() -> None:
    check_share("park", 3, 12, PoseConfig(), "")
    with pytest.raises(SceneError, match=r"only 3 of 30 pictures could be posed together \(b: blurred\); --scene.least-share 0.10"):
        check_share("park", 3, 30, PoseConfig(), "b: blurred")
    check_share("park", 3, 30, PoseConfig(least_share=0.1), "")


def test_the_lens_of_panoramas_is_chosen_where_all_are_twice_as_wide_as_high() -> None:
    wide = View("a", Path("a"), "a", 800, 400, 1.0, None, 100, 50, "a", [0])
    assert chosen_lens("room", [wide, wide], "auto") == "equirectangular"
    assert chosen_lens("room", [wide, replace(wide, height=401)], "auto") == "radial"
    assert chosen_lens("room", [wide], "fisheye") == "fisheye"
