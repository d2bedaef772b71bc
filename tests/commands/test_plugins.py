"""The example of docs/plugins.md, installed as a package of its own, and plug-ins that are broken."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

PAGE = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M))
"""The page's project file, module and commands by language, the commands' being none."""


def install(folder: Path, name: str, entry_points: dict[str, dict[str, str]]) -> None:
    """The metadata that pip would write for a package."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    groups = (f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()) for group, points in entry_points.items())
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of packages with the example in it, just as the page has it."""
    project = tomllib.loads(BLOCKS["toml"])["project"]
    folder = tmp_path / "packages"
    install(folder, project["name"], project["entry-points"])
    (folder / "nerfit_fog.py").write_text(BLOCKS["python"])
    return folder


def shell(packages: Path, *lines: str) -> list[subprocess.CompletedProcess[str]]:
    """Run command lines in one process that can import ``packages``; what each answered."""
    program = (
        "import contextlib, io, json, sys\n"
        "from nerfit.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(line.split())\n"
        "    print(json.dumps([code, out.getvalue(), err.getvalue()]))\n"
    )
    path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program, *lines], cwd=packages.parent, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [subprocess.CompletedProcess(line, *json.loads(answer)) for line, answer in zip(lines, done.stdout.splitlines(), strict=True)]


def test_the_example_of_the_page_works(packages: Path) -> None:
    commands = BLOCKS[""].splitlines()
    assert len(commands) == 4 and commands[3].startswith("nerfit train nerf wall:16 ")
    listed, trained, evaluated, nerf, help_, drawn, found, unknown, resumed = shell(
        packages,
        *(line.removeprefix("nerfit ") for line in commands[:3]),
        "train nerf wall:8 --model.depth 1 --model.width 8 --model.skips --model.samples 4 --model.fine-samples 4 --model.rays 32 "
        "--steps 2 --threads 1",
        "train fog wall:4 --help",
        "render runs/wall-16-fog --what rgb,depth,disparity,opacity,normal --frames 2",
        "inspect field wall:4 --model.width 8",
        "train fgo wall:4",
        "train fog wall:16 --resume --steps 301 --no-evaluate",
    )
    assert listed.returncode == 0 and ["fog", "A fog of one colour and one density."] in [
        line.split(maxsplit=1) for line in listed.stdout.splitlines()
    ]
    assert trained.returncode == 0, trained.stderr
    assert "wall:16: wall scene" in trained.stderr and "300 steps" in trained.stdout and "-> runs/wall-16-fog" in trained.stdout
    metrics = json.loads((packages.parent / "runs" / "wall-16-fog" / "metrics.json").read_text())
    assert evaluated.returncode == 0 and evaluated.stdout.startswith("test: PSNR ")
    assert metrics["test"]["psnr"] > 10 and metrics["train"]["steps"] == 301
    assert nerf.returncode == 0 and (packages.parent / "runs" / "wall-8-nerf" / "metrics.json").exists(), nerf.stderr
    assert help_.returncode == 0 and "--scene.grey" in help_.stdout and "Its brightness, 0 to 255." in help_.stdout
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((packages.parent / "runs" / "wall-16-fog" / "renders" / "interpolate").rglob("*.png"))) == 10
    assert found.returncode == 0 and "density" in found.stdout, found.stderr
    assert unknown.returncode == 1 and "did you mean 'fog'?" in unknown.stderr
    assert resumed.returncode == 0, resumed.stderr


BROKEN = {
    "gone": "nerfit_gone:Gone",
    "loud": "nerfit_loud:Loud",
    "absent": "nerfit_fog:Absent",
    "plain": "nerfit_fog:FogConfig",
    "nerf": "nerfit_gone:Nerf",
}


def test_broken_plug_ins_are_named_and_disturb_nothing_else(packages: Path) -> None:
    install(packages, "nerfit-broken", {"nerfit.methods": BROKEN, "nerfit.scenes": {"ruin": "nerfit_loud", "husk": "nerfit_fog:Fog"}})
    (packages / "nerfit_loud.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    listed, *tried, trained, built_in, nothing = shell(
        packages,
        "methods",
        *(f"train {name} wall:4" for name in ("gone", "loud", "absent", "plain")),
        "train fog wall:4 --steps 1",
        "train nerf procedural --scene.size 8 --scene.views 2 --scene.samples 1 --model.width 8 --steps 1 --model.rays 8 --no-evaluate",
        "train nerf /no/where",
    )
    reported = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    assert listed.returncode == 0 and set(reported) == {
        "auto",
        "instant",
        "nerf-occupancy",
        "instant-unbounded",
        "nerf",
        "mipnerf",
        "mipnerf360",
        "image",
        "fog",
        "gone",
        "loud",
        "absent",
        "plain",
    }
    assert reported["fog"].startswith("A fog") and reported["nerf"].startswith("Coarse and fine")
    assert reported["loud"] == "plug-in 'loud' (nerfit_loud:Loud) can't be imported: first line second line."
    for name, answer in zip(("gone", "loud", "absent", "plain"), tried, strict=True):
        last = answer.stderr.splitlines()[-1]
        assert answer.returncode == 1 and last == f"nerfit: {reported[name]}" and f"({BROKEN[name]})" in last
        assert "Traceback" not in answer.stderr
    assert trained.returncode == 0, trained.stderr
    assert built_in.returncode == 0 and "plug-in" not in built_in.stderr
    assert "warning: plug-in 'ruin'" in nothing.stderr and "warning: plug-in 'husk' (nerfit_fog:Fog) has no detect" in nothing.stderr
    assert nothing.returncode == 1 and nothing.stderr.splitlines()[-1].startswith("nerfit: no known scene at '/no/where'")
