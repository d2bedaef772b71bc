"""Photographs without poses: what is estimated against the truth of rendered and real ones, and every reason for having none."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from conftest import around
from nerfit.cli import main
from nerfit.commands import poses
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.errors import ConfigError, SceneError
from nerfit.files import file_lock
from nerfit.scenes import detect_format
from nerfit.scenes.formats import photos, transforms
from nerfit.scenes.formats.llff import read_poses
from nerfit.scenes.posing import retrieval
from nerfit.scenes.posing.registration import Links, PoseConfig, Report, View, advice, all_pairs, sequence_pairs, sharpness, why_missing
from photographs import FOCAL, HEIGHT, VIEWS, WIDTH, compare, original, photograph, pose, texture

# --- Photographs of a made-up place ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs, one held sideways and one stored mirrored; a copy of one, a dark one, one of something else, a damaged one."""
    folder = tmp_path_factory.mktemp("photos") / "mein Garten äöü"
    folder.mkdir()
    for view in range(VIEWS):
        picture = Image.fromarray(photograph(pose(view)))
        tags = Image.Exif()
        if view == 3:
            tags[274] = 6  # turn by a quarter clockwise to see it upright
            picture = picture.rotate(90, expand=True)
        if view == 5:
            tags[274] = 7  # mirror and turn by a quarter clockwise to see it upright
            picture = picture.transpose(Image.Transpose.TRANSVERSE)
        picture.save(folder / f"photo {view}.png", exif=tags)
    shutil.copy(folder / "photo 1.png", folder / "photo 9.png")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 4, np.uint8)).save(folder / "dark.png")
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(folder / "elsewhere.png")
    (folder / "torn.png").write_bytes((folder / "photo 2.png").read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFIT_CACHE", str(cache))


# --- Estimated poses ------------------------------------------------------------------------------------------------


def test_photographs_are_posed_and_those_that_are_not_have_a_reason(album: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in album.iterdir()}
    assert detect_format(str(album)) == "photos"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scene = photos.load(str(album), photos.Config(holdout=4))
    assert (scene.name, scene.format) == ("mein Garten äöü", "photos")
    assert scene.view_names == [f"photo {i}.png" for i in range(VIEWS)]
    assert scene.splits["test"] == [0, 4]
    rotations, places = compare(original(scene), torch.from_numpy(np.stack([pose(i) for i in range(VIEWS)])))
    assert rotations.max() < 0.3 and places.max() < 0.005
    assert abs(float(scene.cameras.fx.mean()) / FOCAL - 1) < 0.02
    for view in (0, 3, 5):
        assert np.array_equal((scene.image(view) * 255).round().numpy(), photograph(pose(view)))

    report = photos.estimate(str(album), PoseConfig())[1]
    assert report.photographs == VIEWS + 4 and report.cameras == 1 and report.points > 100 and report.error < 1
    assert report.missing["photo 9.png"] == "the same picture as photo 1.png"
    assert "can't be read" in report.missing["torn.png"]
    assert "dark" in report.missing["dark.png"] and "features" in report.missing["dark.png"]
    assert "other pictures" in report.missing["elsewhere.png"]
    assert [str(w.message) for w in said if "4 of 12 pictures have no pose" in str(w.message)]
    assert {p.name: p.read_bytes() for p in album.iterdir()} == before
    err = capfd.readouterr().err
    assert "12/12 pictures read" in err and "45/45 pairs matched" in err and "8/10 pictures posed" in err
    assert not [line for line in err.splitlines() if line[:1] in "IWE" and line[1:5].isdigit()]  # COLMAP's own


def test_the_command_line_answers_with_the_report_and_a_scene_for_others(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["poses", str(album), "--out", "posed", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["registered"]) == VIEWS and set(answer["missing"]) == {"photo 9.png", "dark.png", "elsewhere.png", "torn.png"}
    assert detect_format("posed") == "transforms" and answer["transforms"] == "posed/transforms.json"
    assert {p.name for p in Path("posed").iterdir()} == {"transforms.json", "points3d.ply", "report.json", "images"}
    frames = json.loads(Path("posed/transforms.json").read_text())["frames"]
    assert [f["file_path"] for f in frames] == [f"images/photo {i}.png" for i in range(VIEWS)]
    assert main(["poses", str(album)]) == 0
    out = capsys.readouterr().out
    assert "8 of 12 pictures have a pose" in out and "without: dark.png: only" in out and "nerfit train auto '" in out
    assert main(["poses", str(album), "--out", "posed"]) == 1 and "exists already" in capsys.readouterr().err


def test_auto_trains_on_photographs(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    plan, _, folder = prepare(request("auto", str(album), ["--scene.factor", "2"]))
    assert (plan.method, plan.format, str(folder)) == ("instant", "photos", "runs/mein Garten äöü-instant")
    assert plan.load_scene().cameras.width.unique().tolist() == [WIDTH // 2]
    picture = str(album / "photo 0.png")
    plan, _, folder = prepare(request("auto", picture, []))
    assert (plan.method, plan.format, str(folder), plan.config.model.pixels) == ("image", "image", "runs/photo 0-image", 8192)
    assert prepare(request("auto", "procedural", ["--recipe", "nerf-small"]))[0].method == "nerf"
    err = capsys.readouterr().err
    assert "auto: method instant with recipe instant" in err and "auto: method image with recipe image" in err
    assert main(["methods", "--json"]) == 0 and "auto" in json.loads(capsys.readouterr().out)
    with pytest.raises(SceneError, match="no known scene"):
        prepare(request("auto", "nowhere", []))


def test_what_was_stopped_goes_on_where_it_was(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfit.scenes.posing import mapping, sfm

    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    files = [album / f"photo {i}.png" for i in range(4)]
    done: list[str] = []

    def count(name: str, stop: int) -> None:
        real = getattr(pycolmap, name)

        def counted(*args, **kwargs):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(pycolmap, name, counted)

    count("match_image_pairs", stop=3)
    monkeypatch.setattr(sfm, "_CHUNK", 2)

    def stop_while_posing(done: int, of: int, what: str, last: bool | None = None) -> None:
        if what == "pictures posed":
            raise KeyboardInterrupt

    monkeypatch.setattr(mapping, "tick", stop_while_posing)
    with pytest.raises(KeyboardInterrupt):
        sfm.estimate("four", files, PoseConfig(), ordered=False)
    assert len(done) == 3  # the 6 pairs, by two
    monkeypatch.undo()
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    count("match_image_pairs", stop=99)
    count("extract_features", stop=99)
    report = sfm.estimate("four", files, PoseConfig(), ordered=False)[1]
    assert len(report.registered) == 4 and len(done) == 3
    monkeypatch.setattr(sfm, "_estimate", None)
    assert sfm.estimate("four", files, PoseConfig(), ordered=False)[1] == report


def test_pictures_of_several_sizes_have_a_lens_each(album: Path, tmp_path: Path) -> None:
    for view in range(VIEWS):
        picture = Image.fromarray(photograph(pose(view)))
        (picture if view % 2 else picture.resize((WIDTH // 2, HEIGHT // 2))).save(tmp_path / f"{view}.png")
    scene = photos.load(str(tmp_path), photos.Config())
    report = photos.estimate(str(tmp_path), PoseConfig())[1]
    assert report.cameras == 2 and len(report.registered) == VIEWS
    assert abs(scene.cameras.fx / scene.cameras.width * WIDTH / FOCAL - 1).max() < 0.03
    alone = photos.estimate(str(tmp_path), PoseConfig(shared_camera=False))[1]
    assert alone.cameras == VIEWS


def test_all_at_once_from_pairs_that_look_alike(album: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(retrieval, "NEAREST", 3)
    monkeypatch.setattr(retrieval, "BESIDE", 1)
    monkeypatch.setattr("pycolmap.incremental_mapping", None)
    file, report = photos.estimate(str(album), PoseConfig(matching="retrieval", mapper="global"))
    assert report.registered == [f"photo {i}.png" for i in range(VIEWS)] and report.error < 1
    frames = json.loads(file.read_text())["frames"]
    found = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)
    rotations, places = compare(found, torch.from_numpy(np.stack([pose(i) for i in range(VIEWS)])))
    assert rotations.max() < 0.5 and places.max() < 0.01
    pairs = int(re.findall(r"(\d+)/\1 pairs matched", capfd.readouterr().err)[-1])
    assert 15 <= pairs <= 30  # of 45


@pytest.mark.parametrize(("count", "ordered", "chosen"), [(200, False, 19900), (201, False, 1), (60, True, 1770), (201, True, None)])
def test_many_photographs_are_matched_by_their_looks(
    count: int, ordered: bool, chosen: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nerfit.scenes.posing import sfm

    monkeypatch.setattr(sfm, "similar_pairs", lambda descriptors, count: [(0, count - 1)])
    pairs = sfm._pairs(tmp_path / "empty.db", [view(str(i)) for i in range(count)], PoseConfig(), ordered)
    assert len(pairs) == chosen if chosen else pairs == sequence_pairs(count)


def test_masks_and_transparency_keep_features_off(tmp_path: Path) -> None:
    """A sharp sticker on the lens, at the same place of every picture, which features would take for the world."""
    from nerfit.scenes.posing import sfm

    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    sticker = np.asarray(Image.fromarray(noise).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST))
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    hidden[: HEIGHT // 2, : WIDTH // 2] = True
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(6):
        picture = photograph(pose(i))
        picture[: HEIGHT // 2, : WIDTH // 2] = sticker
        alpha = np.where(hidden, 0, 255).astype(np.uint8)
        if i == 0:  # as transparency, as instant-ngp has it, else as COLMAP has it and at half the size
            picture = np.dstack([picture, alpha])
        elif i == 1:
            Image.fromarray(255 - alpha).save(tmp_path / "images" / "dynamic_mask_1.png")
        else:
            Image.fromarray(alpha[::2, ::2]).save(tmp_path / "masks" / f"{i}.png.png")
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")

    found: list[np.ndarray] = []
    real = sfm._match

    def look(database: Path, *args) -> None:
        with sfm._opened(database) as db:
            found.extend(db.read_keypoints(image.image_id) for image in db.read_all_images())
        real(database, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sfm, "_match", look)
        file, report = photos.estimate(str(tmp_path), PoseConfig())
    assert len(found) == 6 and all(len(points) > 200 for points in found)
    assert all(((points[:, 0] >= WIDTH // 2) | (points[:, 1] >= HEIGHT // 2)).all() for points in found)
    assert len(report.registered) == report.masked == 6 and "masked and transparent parts of 6 pictures" in report.text()
    frames = json.loads(file.read_text())["frames"]
    rotations, _ = compare(
        torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64),
        torch.from_numpy(np.stack([pose(i) for i in range(6)])),
    )
    assert rotations.max() < 0.5

    out = photos.export(file, report, tmp_path / "out")
    with pytest.warns(UserWarning, match="in 5 of 6 pictures"):
        scene = transforms.load(str(out), transforms.Config())
    for i in range(1, 6):
        assert np.array_equal(scene.visible(i).numpy(), ~hidden)
    (tmp_path / "masks" / "2.png.png").write_bytes(b"")
    with pytest.raises(SceneError, match="2.png.png can't be read"):
        photos.estimate(str(tmp_path), PoseConfig())
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "2.png.png")
    with pytest.raises(SceneError, match="2.png.png is 9x9, of another shape than"):
        photos.estimate(str(tmp_path), PoseConfig())


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_photographs_or_none_that_fit_together(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(SceneError, match="poses need at least 3" if count == 2 else "no two of its 3 pictures"):
        photos.load(str(tmp_path), photos.Config())


def test_other_things_are_no_photographs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    assert not photos.detect(str(tmp_path)) and not photos.detect(str(tmp_path / "one.png")) and not photos.detect("nowhere")
    with pytest.raises(SceneError, match="neither a folder of photographs nor a video"):
        poses.run(poses.Options(source=str(tmp_path)))
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{i}.png")
    assert photos.detect(str(tmp_path / "images"))
    with pytest.raises(ConfigError, match="--fps"):
        poses.run(poses.Options(source=str(tmp_path / "images"), fps=3.0))


# --- Parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 61, 300])
def test_pairs_of_a_sequence_link_neighbours_and_close_loops(count: int) -> None:
    pairs = sequence_pairs(count)
    assert len(set(pairs)) == len(pairs) and all(0 <= i < j < count for i, j in pairs)
    assert {(i, i + k) for k in range(1, 11) for i in range(count - k)} <= set(pairs)
    assert count < 60 or any(j - i > 0.9 * count for i, j in pairs)
    assert len(pairs) < 25 * count + 60 * 59 / 2 and set(pairs) <= set(all_pairs(count))


def view(name: str, brightness: float = 100.0, sharp: float = 50.0, level: int = 0) -> View:
    return View(name, Path(name), name, 8, 8, 1.0, None, brightness, sharp, name, [level] * 256)


def test_reasons() -> None:
    views = [view(str(i), level=10 * i) for i in range(6)]
    matches = {(0, 1): 200, (0, 2): 20, (1, 3): 90, (4, 5): 50}
    links = Links([900] * 6, matches)
    groups = [{0, 1}, {4, 5}]
    assert "at most 20, with 0" in why_missing(2, views, links, groups)
    assert "90 matches with 1, but no pose" in why_missing(3, views, links, groups)
    assert "one of 2 pictures that hang together" in why_missing(4, views, links, groups)
    assert "matches only 5" in why_missing(4, views, links, groups[:1])
    assert "nearly the same picture as 1" in why_missing(2, [*views[:2], view("2", level=11), *views[3:]], links, groups)
    weak = Links([900, 900, 20, 900, 900, 900], matches)
    for odd, why in (
        (replace(view("2"), hidden=0.95), "hidden by its mask"),
        (view("2", brightness=5), "very dark"),
        (view("2", sharp=1), "blurred"),
        (view("2"), "texture"),
    ):
        assert why in why_missing(2, [*views[:2], odd, *views[3:]], weak, groups)


def test_advice_is_given_where_it_is_needed() -> None:
    good = Report("", 10, ["a"] * 10, error=0.5)
    poor = Report("", 10, ["a"] * 4, {"b": "too few features that other pictures have too (none); it is blurred"}, error=2.0)
    assert advice(good) == [] and len(advice(poor)) == 3
    turned = Report("", 10, ["a"] * 9, {"b": "90 matches with c, but no pose explains them (the camera only turned, or things moved)"})
    assert advice(turned) == []  # the pictures do overlap
    poor.advice = advice(poor)
    assert "less than half" in poor.text() and "b: too few features" in poor.missing_text() and good.missing_text() == ""


def test_blur_lowers_sharpness() -> None:
    sharp = texture(1, 64).astype(np.float32)
    blurred = (sharp[1:-1] + sharp[:-2] + sharp[2:]) / 3
    assert sharpness(blurred) < 0.5 * sharpness(sharp) and sharpness(np.ones((2, 2))) == 0


def test_one_process_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from nerfit.files import file_lock\n"
        "with file_lock(Path(sys.argv[1])):\n    print('mine', flush=True)\n    time.sleep(1)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ | {})
    assert other.stdout is not None and other.stdout.readline() == "mine\n"
    start = time.monotonic()
    with file_lock(tmp_path):
        assert time.monotonic() - start > 0.5 and other.wait() == 0
    (tmp_path / "file").touch()
    with pytest.raises(SceneError, match="can't be written"), file_lock(tmp_path / "file" / "x"):
        pass


# --- Real photographs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hundreds_of_photographs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    poses = [around(0.3 + i / 210, 0.3 + 0.5 * (13 * i % 21) / 20) for i in range(210)]
    for i, c2w in enumerate(poses):
        Image.fromarray(photograph(c2w)).save(tmp_path / f"{i}.png")
    file, report = photos.estimate(str(tmp_path), PoseConfig(mapper="global"))
    assert report.registered == [f"{i}.png" for i in range(210)]
    found = torch.tensor([frame["transform_matrix"] for frame in json.loads(file.read_text())["frames"]], dtype=torch.float64)
    rotations, places = compare(found, torch.from_numpy(np.stack(poses)))
    print(f"210 photographs: {rotations.max():.3f} degrees, {places.max():.3%}")
    assert rotations.max() < 0.3 and places.max() < 0.01
    assert int(re.findall(r"(\d+)/\1 pairs matched", capfd.readouterr().err)[-1]) < 45 * 210


@pytest.mark.slow
@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_fern_is_posed_as_by_its_authors(data_folder: Path, mapper: Literal["incremental", "global"]) -> None:
    fern = data_folder / "nerf_llff_data" / "fern"
    scene = photos.load(str(fern / "images_8"), photos.Config(mapper=mapper))
    assert len(scene.view_names) == 20
    rotations, places = compare(original(scene), read_poses(fern / "poses_bounds.npy").c2w)
    print(f"fern: {rotations.mean():.3f} and at most {rotations.max():.3f} degrees, {places.mean():.3%}, {places.max():.3%}")
    assert rotations.max() < 0.5 and places.max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_fountain_is_posed_as_surveyed(data_folder: Path, mapper: Literal["incremental", "global"]) -> None:
    fountain = data_folder / "fountain-P11"
    scene = photos.load(str(fountain), photos.Config(mapper=mapper))
    truth = []
    for name in scene.view_names:
        rows = [[float(x) for x in line.split()] for line in (fountain / "gt_cameras" / f"{name}.camera").read_text().splitlines()]
        rows = [row for row in rows if row]
        truth.append(np.concatenate([np.array(rows[4:7]) * [1, -1, -1], np.array(rows[7])[:, None]], 1))
    rotations, places = compare(original(scene), torch.from_numpy(np.stack(truth)))
    print(f"fountain: {rotations.mean():.3f} and at most {rotations.max():.3f} degrees, {places.mean():.3%}, {places.max():.3%}")
    assert len(truth) == 11 and rotations.mean() < 0.3 and places.mean() < 0.005
