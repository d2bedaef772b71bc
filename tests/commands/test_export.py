"""The commands that take a run away, on a short training, and the run as Python sees it."""

import base64
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from nerfit.cli import main
from nerfit.errors import RunError
from nerfit.outputs.mesh.turntable import write_turntable
from nerfit.runs import Run
from nerfit.scenes.images import to_bytes
from nerfit.scenes.reading.ply import read_ply

TINY = [
    *("--recipe=nerf-small", "--scene.size=24", "--scene.views=12", "--scene.samples=1", "--scene.test-views=1", "--scene.val-views=1"),
    *("--model.precrop-steps=0", "--model.width=32", "--model.fine-depth=3", "--model.fine-width=64", "--model.rays=256"),
    *("--model.fine-samples=16", "--threads=1", "--log.image-every=0", "--steps=400"),
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


def test_a_mesh_is_filmed_and_closed(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_turntable.__defaults__ == (90, 480)
    monkeypatch.setattr(write_turntable, "__defaults__", (6, 96))
    words = ["--resolution", "24", "--views", "4", "--close-holes", "--turntable", "--json"]
    assert main(["export", "mesh", str(run), *words, "--out", str(run / "closed.obj")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["turntable"] == str(run / "closed.mp4")
    with av.open(answer["turntable"]) as film:
        assert film.streams.video[0].frames == 6 and film.streams.video[0].width == 192
    corners = [
        [int(c.split("//")[0]) for c in line.split()[1:]] for line in (run / "closed.obj").read_text().splitlines() if line[0] == "f"
    ]
    edges = {(face[i], face[i - 2]) for face in corners for i in range(3)}
    assert edges == {(b, a) for a, b in edges}
    (run / "closed.obj").unlink()
    assert main(["export", "mesh", str(run), *words, "--out", str(run / "closed.obj")]) == 1
    assert f"{run / 'closed.mp4'} exists already" in capsys.readouterr().err


@pytest.fixture
def untrained(run: Path, tmp_path: Path) -> Path:
    """A run folder without a checkpoint."""
    folder = tmp_path / "untrained"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "exports", "renders", "events*"))
    return folder


EXPORTED = [["export", "mesh"], ["export", "points"], ["export", "web"]]


@pytest.mark.parametrize("words", [["view"], ["render"], ["eval"], *EXPORTED], ids=" ".join)
def test_a_run_without_a_checkpoint_is_refused(words: list[str], untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(untrained.rglob("*"))
    assert main([*words, str(untrained)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == f"nerfit: {untrained} has no checkpoint yet: train it first."
    assert sorted(untrained.rglob("*")) == before


def test_cameras_need_no_checkpoint(untrained: Path) -> None:
    assert main(["export", "cameras", str(untrained)]) == 0 and (untrained / "exports" / "transforms" / "transforms.json").is_file()


@pytest.mark.parametrize("words", [["render"], *EXPORTED, ["export", "cameras"]], ids=" ".join)
def test_where_nothing_can_be_written(words: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file there is no folder; the refusal is one sentence, and before any view is drawn."""
    (tmp_path / "file").touch()
    suffix = {"mesh": ".ply", "points": ".ply", "web": ".html"}.get(words[-1], "")
    where = tmp_path / "file" / f"taken{suffix}"
    assert main([*words, str(run), "--out", str(where)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and str(where) in err and ("can't be" in err), err


@pytest.mark.parametrize("words", EXPORTED, ids=" ".join)
def test_a_protected_folder_is_refused(
    words: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main([*words, str(run)]) == 1
    assert "is write-protected: choose another --out." in capsys.readouterr().err


def test_missing_extras_and_wrong_endings_are_reported_before_any_work(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, words in {"trimesh": ["--out", "m.glb"], "fast_simplification": ["--faces", "100"], "xatlas": ["--texture", "64"]}.items():
        monkeypatch.setitem(sys.modules, module, None)
        assert main(["export", "mesh", str(run), *words]) == 1
        out, err = capsys.readouterr()
        nowhere = " (xatlas has no wheels for Linux ARM64 and for Python 3.14)" if module == "xatlas" else ""
        assert out == "" and len(err.splitlines()) == 1 and f"needs the extra `mesh`: pip install 'nerfit[mesh]'{nowhere}." in err
    for kind, name in (("mesh", "m.stl"), ("points", "p.xyz"), ("web", "w.txt")):
        assert main(["export", kind, str(run), "--out", name]) == 1
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and name in err


def test_the_path_of_another_scene_is_not_rendered(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"scene": "garden", "c2w": [pose]}))
    assert main(["render", str(run), "--path", str(path)]) == 1
    assert "is a path through the scene 'garden', not through 'procedural-object'" in capsys.readouterr().err
    path.write_text(json.dumps({"c2w": [pose]}).replace("4", "400"))
    assert main(["render", str(run), "--path", str(path), "--what", "rgb", "--factor", "4"]) == 0
    assert "times as far away as the scene's cameras: is it a path of this scene?" in capsys.readouterr().err


def test_a_run_in_jupyter(run: Path) -> None:
    opened = Run.open(run)
    seen = opened.render(opened.scene.cameras[0])
    shown = np.asarray(Image.open(io.BytesIO(seen._repr_png_())))
    assert np.array_equal(shown, to_bytes(seen.rgb))
    html = opened._repr_html_()
    assert "<th>method</th><td>nerf</td>" in html and "<th>steps</th><td>400</td>" in html
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert picture is not None
    test = opened.render(opened.scene.cameras[opened.scene.splits["test"][0]])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1])))), to_bytes(test.rgb))


def test_the_example_of_the_readme_works(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(list(filter(None, example.splitlines()))) == 5 and example.count("runs/lego-instant") == 1
    names: dict[str, Any] = {}
    exec(example.replace("runs/lego-instant", str(run)), names)
    assert names["picture"].rgb.shape == (24, 24, 3) and names["small"].rgb.shape == (6, 6, 3)
    assert capsys.readouterr().out.startswith("Run(folder=")


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
