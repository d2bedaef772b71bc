"""Photographs whose cameras nobody knows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerfit.cli import main
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.commands.train_run import train
from nerfit.errors import ConfigError, NerfitError, SceneError
from nerfit.runs import Run
from nerfit.scenes import detect_format
from nerfit.scenes.formats.unposed import Config, load


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine noisy photographs of 12x8 pixels."""
    (tmp_path / "photos").mkdir()
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"p{i}.png")
    return tmp_path / "photos"


def test_all_cameras_begin_at_the_origin(photos: Path) -> None:
    scene = load(str(photos), Config(factor=2, holdout=4, fov=90.0))
    assert torch.equal(scene.cameras.c2w, torch.eye(3, 4).expand(9, 3, 4))
    assert (int(scene.cameras.width[0]), int(scene.cameras.height[0])) == (6, 4)
    assert float(scene.cameras.fx[0]) == pytest.approx(3.0) and float(scene.cameras.fy[0]) == pytest.approx(3.0)
    assert (scene.splits["train"], scene.splits["test"]) == ([1, 2, 3, 5, 6, 7], [0, 4, 8])
    assert (scene.ndc, scene.near, scene.far, scene.view_names[1]) == (True, 0.0, 1.0, "p1.png")
    assert float(load(str(photos), Config()).cameras.fx[0]) == pytest.approx(12.0, rel=1e-4)
    assert load(str(photos), Config(holdout=0)).splits["test"] == [] and detect_format(str(photos)) == "photos"


def test_pictures_shrink_as_in_every_other_format(photos: Path) -> None:
    """12 by 8 pixels over 5: 2 by 1, not the 2 by 2 of rounding."""
    c = load(str(photos), Config(factor=5)).cameras
    assert (int(c.width[0]), int(c.height[0])) == (2, 1)


@pytest.mark.parametrize(
    ("choice", "error", "reported"),
    [
        ({"factor": 0}, ConfigError, "factor must be"),
        ({"holdout": 1}, SceneError, "none is left to train on"),
        ({"fov": math.nan}, ConfigError, "between 0 and 180"),
    ],
)
def test_settings_without_sense_are_refused(photos: Path, choice: dict[str, Any], error: type[NerfitError], reported: str) -> None:
    with pytest.raises(error, match=reported):
        load(str(photos), Config(**choice))


def test_pictures_of_several_sizes_or_none_are_refused(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 12)).save(photos / "p3.png")
    with pytest.raises(SceneError, match="p3.png has a size other than p0.png"):
        load(str(photos), Config())
    with pytest.raises(SceneError, match="holds 0 pictures"):
        load(str(tmp_path / "nothing"), Config())


def test_a_run_from_photographs_alone_is_evaluated_without_true_cameras(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out views stand by their neighbours; there is nothing to compare the learned cameras with, which is said."""
    words = ["--recipe", "nerfmm", "--scene.format", "unposed", "--steps", "6", "--model.width", "8", "--model.rays", "32"]
    words += ["--model.depth", "2", "--model.skips", "0"]
    monkeypatch.setattr("nerfit.commands.train_run.EVALUATE_WITHIN", math.inf)
    plan, options, folder = prepare(
        request("nerf", str(photos), [*words, "--model.samples", "4", "--json", "--out", str(tmp_path / "run")])
    )
    with pytest.warns(UserWarning, match="the cameras were not evaluated"):
        summary = train(plan, options, folder)
    assert math.isfinite(summary["test"]["psnr"]) and "cameras" not in summary["test"]
    assert (folder / "renders" / "cameras" / "frusta.png").is_file()


def test_auto_learns_the_cameras_of_photographs_that_get_no_poses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise has no features that pictures share."""
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    folder, rng = tmp_path / "noise", np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    small = ["--steps", "2", "--model.log2-entries", "10", "--out", str(tmp_path / "run")]
    assert main(["train", "auto", str(folder), *small]) == 1  # the model was typed, which a recipe of its own would change
    assert "no two of its 4 pictures" in capsys.readouterr().err
    assert main(["train", "auto", str(folder), "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "no two of its 4 pictures" in err and "cameras are learned with the scene instead" in err
    assert Run.open(tmp_path / "run").scene.format == "unposed"
