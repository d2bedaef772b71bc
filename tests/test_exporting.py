"""The commands that take a run away, on a short training, and the run as Python sees it."""

import json
from pathlib import Path

import pytest
import torch

from nerfit.cli import main
from nerfit.errors import RunError
from nerfit.runs import Run
from nerfit.scenes.ply import read_ply

TINY = [
    *("--recipe=nerf-small", "--scene.size=24", "--scene.views=12", "--scene.samples=1", "--scene.test-views=1", "--scene.val-views=1"),
    *("--model.precrop-steps=0", "--threads=1", "--log.image-every=0", "--steps=400"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "nerf", "procedural", *TINY, "--out", str(folder)]) == 0
    return folder


def test_a_mesh_and_points_are_written_and_not_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in ("mesh.ply", "mesh-2.ply"):
        assert main(["export", "mesh", str(run), "--resolution", "24", "--views", "4", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["written"] == str(run / "exports" / expected) and 0 < answer["largest_piece"] <= 1
    assert len(read_ply(run / "exports" / "mesh.ply")) == answer["vertices"] > 100
    assert main(["export", "points", str(run), "--agreeing", "0", "--pixels", "24", "--count", "500"]) == 0
    assert capsys.readouterr().out.startswith(str(run / "exports" / "points.ply") + "\npoints 500, low ")
    assert main(["export", "mesh", str(run), "--out", str(run / "exports" / "mesh.ply")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_page_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "web", str(run), "--resolution", "32", "--views", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Path(answer["written"]).stat().st_size == pytest.approx(1e6 * answer["megabytes"], abs=5e3) and answer["psnr"][0] > 15


def test_a_run_in_python(run: Path) -> None:
    opened = Run.open(str(run))
    seen = opened.render(opened.scene.cameras[0].rescale(0.5))
    assert seen.rgb.shape == (12, 12, 3) and seen.depth is not None and seen.depth.shape == (12, 12)
    assert torch.equal(opened.render(opened.scene.cameras[[0, 3]], 1).rgb, opened.render(opened.scene.cameras[3]).rgb)
    assert opened.metrics["train"]["steps"] == 400
    psnr = round(opened.metrics["test"]["psnr"], 2)
    assert repr(opened) == f"Run(folder='{run}', method='nerf', scene='procedural-object', views=14, steps=400, psnr={{'test': {psnr}}})"
    with pytest.raises(RunError, match="not a run folder"):
        Run.open("nowhere")
